"""The languages of IndexTTS-2.5: which one a text is in, and how Spanish and Japanese are prepared.

Both need large packages, extras that are imported when the first such text comes. The rules of Chinese and English are
in `text.py`, and Arabic is read as it is written. Follows the reference's `nemo_tn.py` and `ja_g2p.py`.
"""

import importlib.metadata
import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

from indextts_jax import files, settings
from indextts_jax.errors import Error, shown

logger = logging.getLogger(__name__)

Language = Literal["zh", "en", "es", "ja", "ar"]
SPOKEN: tuple[str, ...] = get_args(Language)

# The first that a text has a letter of is its language.
SCRIPTS = {
    "ja": re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]"),  # kana
    "ar": re.compile("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f\u08a0-\u08b4\ufb50-\ufdff\ufe70-\ufefc]"),
    "zh": re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "es": re.compile("[¿¡ñÑ]"),
}


def guess(text: str) -> str:
    """The language of a text by its script: one of `SPOKEN`; English where nothing else shows.

    Spanish shows by ¿, ¡ and ñ alone, and Japanese by kana: whoever knows the language should say it.
    """
    return next((language for language, script in SCRIPTS.items() if script.search(text)), "en")


def spanish(text: str) -> str:
    """Spanish text with its numbers, dates and units in words, by the rules of NeMo.

    Where they find no reading the text stays as it is, as in the reference. Raises Error without the extra.
    """
    normalize, failures = _spanish_rules()
    try:
        return normalize(text) if text else text
    except failures as error:
        logger.warning("read as it is written, since the Spanish rules fail (%s): %r", shown(error), text[:80])
        return text


@cache
def _spanish_rules() -> tuple[Callable[[str], str], tuple[type[Exception], ...]]:
    """The rules, and what they raise for a text without a reading.

    They are compiled on first use, which takes minutes, and kept beside the compiled programs.
    """
    try:
        import pynini
        from nemo_text_processing.text_normalization.normalize import Normalizer
    except ImportError:
        raise Error("Spanish needs nemo_text_processing: pip install 'indextts-jax[spanish]'") from None

    def rules(folder: Any) -> Any:
        return Normalizer(input_case="cased", lang="es", cache_dir=str(folder))

    folder = settings.cache().with_name(f"spanish-{importlib.metadata.version('nemo_text_processing')}")
    if not folder.is_dir():
        logger.warning("compiling the rules of Spanish to %s, once: this takes minutes", folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(folder) as partial:
            rules(partial)
    return rules(folder).normalize, (pynini.FstOpError, pynini.FstArgError, ValueError, IndexError)


def japanese(text: str) -> str:
    """Japanese text with a space between its words, and the spaces that it has. Raises Error without the extra."""
    tagger = _japanese_words()
    return "".join(
        " ".join(word.surface for word in tagger(part)) if part.strip() else part for part in re.split("( +)", text)
    )


@cache
def _japanese_words() -> Callable[[str], Any]:
    try:
        import fugashi
        import unidic_lite
    except ImportError:
        raise Error("Japanese needs fugashi and unidic-lite: pip install 'indextts-jax[japanese]'") from None
    # Not Tagger, which takes another dictionary where there is one.
    return fugashi.GenericTagger(f'-r "{unidic_lite.DICDIR}/mecabrc" -d "{unidic_lite.DICDIR}"')  # pyright: ignore
