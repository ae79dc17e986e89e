"""Text front end: text -> normalised text -> SentencePiece pieces -> ids, cut into segments the decoder can hold.

`TextFrontEnd` carries what was read from the model folder; every call is a function of its arguments alone. Follows
the reference's `indextts/utils/front.py` and `common.py`, whose quirks are kept where they decide what is spoken.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sentencepiece import SentencePieceProcessor

logger = logging.getLogger(__name__)

Glossary = Mapping[str, Mapping[str, str]]  # term -> {"zh": reading, "en": reading}
LANGUAGES = ("zh", "en")

LATIN = re.compile("[A-Za-z]")
CHINESE = re.compile("[\u4e00-\u9fff]")
EMAIL = re.compile(r"[A-Za-z0-9]+@[A-Za-z0-9]+\.[A-Za-z]+$")
CONTRACTION = re.compile("(what|where|who|which|how|there|here|it|she|he|that|this)'s", re.IGNORECASE)
HYPHENATED = re.compile("[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+")  # GPT-5-nano; not a telephone number
NAME = re.compile("[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){1,2}")  # 约瑟夫·高登-莱维特
ANNOTATION = re.compile(r"<[^|>\n]+\|[^>\n]+>")  # <重|CHONG2>
ANNOTATION_MARK = "PRONPLACEHOLDER{}PRONPLACEHOLDER"  # letters alone, which no normaliser rewrites
JQX_UMLAUT = re.compile("([jqx])[uü](n|e|an)?([1-5])", re.IGNORECASE)

# A syllable is an initial and a final, or a syllabic consonant, then its tone: xuan4, er2; not beta1, voice2.
INITIALS = "b|p|m|f|d|t|n|l|g|k|h|j|q|x|z|c|s|r|y|w|zh|ch|sh"
FINALS = (
    "a|o|e|i|u|ü|v|ai|ei|ao|ou|ia|ie|iu|iao|ua|uo|ui|uai|ue|ve|üe|an|en|in|un|vn|ian|uan|van|üan|"
    "ang|eng|ing|ong|iang|iong|uang|vang|üang"
)
PINYIN = re.compile(f"(?<![a-z])(?:(?:{INITIALS})?(?:{FINALS})|ng|er)[1-5]", re.IGNORECASE)

WORD_PARTS = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[\d#$%&*+/=@^|~€£¥]|[^\d#$%&*+/=@^|~€£¥]+")
ELLIPSIS = re.compile(r"\.{3}|,{3}|…{2}")
MARKS = {"，、：:；;": ",", "。": ".", "！": "!", "？": "?", "·—～~": "-", "\n": " ", '“”"‘’（）()《》【】[]「」': "'"}
ENGLISH_MARKS = {ord(mark): plain for marks, plain in MARKS.items() for mark in marks}
CHINESE_MARKS = ENGLISH_MARKS | {ord("$"): "."}

CJK = "\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
CJK_OR_RUN = re.compile(f"[{CJK}]|[^{CJK}]+")

# The pieces a segment may end with. The others the vocabulary holds ("▁!", "…") end none, as in the reference.
STOPS = (".", "!", "?", "▁.", "▁?", "▁...")
PAUSES = (",", "▁,", "-")
APOSTROPHES = ("'", "▁'")


class Analysis(NamedTuple):
    """What a text becomes.

    `segments` and `segment_ids` are parallel and hold every piece in order (an apostrophe perhaps twice, see `split`).
    """

    normalized: str
    pieces: list[str]
    ids: list[int]
    segments: list[list[str]]
    segment_ids: list[list[int]]
    unknown: list[str]  # the pieces that the vocabulary lacks, in order, repeated as often as they occur


@dataclass(frozen=True)
class TextFrontEnd:
    """A SentencePiece vocabulary, and how to read the terms of a glossary."""

    processor: SentencePieceProcessor
    glossary: Glossary = field(default_factory=dict)

    @classmethod
    def load(cls, bpe_model: Path, glossary: Path | None = None) -> "TextFrontEnd":
        """Read `bpe.model` and, where one is given, a glossary.

        Raises FileNotFoundError for a missing file, ValueError for one that cannot be understood.
        """
        bpe_model = Path(bpe_model)
        if not bpe_model.is_file():
            raise FileNotFoundError(f"{bpe_model}: no such file; the SentencePiece model belongs to the model folder")
        try:
            processor = SentencePieceProcessor(model_file=str(bpe_model))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{bpe_model}: not a readable SentencePiece model ({error}); fetch it again") from error
        return cls(processor, load_glossary(glossary) if glossary else {})

    def analyse(self, text: str, budget: int = 120, first: int = 0) -> Analysis:
        """Everything the decoder needs of a text; `budget` and `first` as in `split`.

        Raises ValueError for a text without anything to pronounce. Pieces that the vocabulary lacks are logged.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text[:80]!r} is not valid Unicode ({error}); read it with its own encoding") from error
        if len(text.strip()) == 1:  # the reference neither normalises nor upper-cases a lone character
            normalized, pieces = text.strip(), self.processor.encode(text, out_type=str)
        else:
            normalized = self.normalize(text)
            pieces = self.encode(normalized)
        if not any(character.isalnum() for piece in pieces for character in piece):
            raise ValueError(f"nothing to pronounce in {text[:80]!r}: give at least one letter, digit or character")
        ids = self.ids(pieces)
        unknown = [piece for piece, i in zip(pieces, ids, strict=True) if i == self.processor.unk_id()]
        if unknown:
            names = ", ".join(repr(piece) for piece in dict.fromkeys(unknown))
            logger.warning("%d of %d pieces are not in the vocabulary: %s", len(unknown), len(pieces), names)
        segments = split(pieces, budget, first)
        return Analysis(normalized, pieces, ids, segments, [self.ids(segment) for segment in segments], unknown)

    def normalize(self, text: str) -> str:
        """Text as it is spoken: numbers, dates and units in words, terms by the glossary, few punctuation marks.

        Annotations such as `<重|CHONG2>` come out as they went in. Raises ValueError for characters the rules refuse.
        """
        text, annotations = _set_aside_annotations(text)
        language = "zh" if is_chinese(text) else "en"
        text = CONTRACTION.sub(r"\1 is", text)
        text = _read_terms(text, self.glossary, language)

        # The rules would read the hyphen of GPT-5 as a minus, pinyin tones as numbers, and the dot of a name.
        hyphenated = _longest_first(HYPHENATED.findall(text))
        for term in hyphenated:
            text = text.replace(term, term.replace("-", "<H>"))
        if language == "zh":
            pinyin = _marks("pinyin", PINYIN.findall(text))
            text = _replace_all(text, pinyin)
            names = _marks("n", NAME.findall(text))
            text = _apply_rules(_replace_all(text, names), language)
            text = _replace_all(text, {mark: name for name, mark in names.items()})
            text = _replace_all(text, {mark: _spelling(syllable) for syllable, mark in pinyin.items()})
        else:
            text = _apply_rules(text, language)
        if hyphenated:
            text = re.sub(r"\s*<H>\s*", "-", text)

        text = ELLIPSIS.sub("…", text).translate(CHINESE_MARKS if language == "zh" else ENGLISH_MARKS)
        return _replace_all(text, annotations)

    def encode(self, normalized: str) -> list[str]:
        """The pieces of a normalised text: CJK characters stand alone, everything is upper-cased."""
        parts = (part.strip() for part in CJK_OR_RUN.findall(normalized))
        return self.processor.encode(" ".join(part for part in parts if part).upper(), out_type=str)

    def ids(self, pieces: list[str]) -> list[int]:
        """The id of each piece; that of `<unk>` for a piece the vocabulary lacks."""
        return [self.processor.piece_to_id(piece) for piece in pieces]


def split(pieces: list[str], budget: int = 120, first: int = 0) -> list[list[str]]:
    """Cut pieces into segments of at most `budget` pieces, at sentence ends, commas and hyphens where it can.

    Neighbours are joined again while they fit, but within the first `first` pieces only up to half the budget: the
    first segments are then short, and streamed audio starts early. Two quirks of the reference are kept: an
    apostrophe after a sentence end closes one segment (which may thereby exceed the budget by one) *and* opens the
    next, and a sentence of one or two pieces is not cut off. Raises ValueError for a budget below 1.
    """
    if budget < 1 or first < 0:
        raise ValueError(f"budget must be at least 1 and first at least 0, not {budget} and {first}")
    parts: list[list[str]] = []
    current: list[str] = []
    for i, piece in enumerate(pieces):
        current.append(piece)
        if piece in PAUSES or len(current) > budget:
            if len(current) > budget:
                logger.warning("more than %d pieces without a mark: cut after %s", budget, "".join(current[-9:-1]))
            parts += [current[start : start + budget] for start in range(0, len(current), budget)]
            current = []
        elif piece in STOPS and len(current) > 2:
            closing = [mark for mark in pieces[i + 1 : i + 2] if mark in APOSTROPHES]
            parts.append(current + closing)
            current = []
    if current:
        parts.append(current)

    segments: list[list[str]] = []
    seen = 0
    for part in parts:
        seen += len(part)
        limit = budget if seen > first else budget / 2
        if segments and len(segments[-1]) + len(part) <= limit:
            segments[-1] = segments[-1] + part
        else:
            segments.append(part)
    return segments


def is_chinese(text: str) -> bool:
    """Whether the Chinese rules read this text: for Chinese, pinyin, no Latin letter, or nothing but an address."""
    has_latin = LATIN.search(text)
    return bool(CHINESE.search(text) or not has_latin or EMAIL.match(text) or PINYIN.search(text))


def load_glossary(path: Path) -> dict[str, dict[str, str]]:
    """Read `glossary.yaml`: each term with one reading, or with readings under `zh` and `en`.

    A term without a reading in a language is read as it is written. Raises FileNotFoundError, or ValueError that
    names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such glossary")
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML in UTF-8: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `term: reading` entries, found a {type(content).__name__}")

    glossary = {}
    for term, readings in content.items():
        if not isinstance(term, str) or not term:
            raise ValueError(f"{path}: the term {term!r} is not a text; put it in quotes")
        if isinstance(readings, str):
            readings = dict.fromkeys(LANGUAGES, readings)
        if not isinstance(readings, dict) or not all(
            language in LANGUAGES and isinstance(reading, str) for language, reading in readings.items()
        ):
            raise ValueError(
                f"{path}: the term {term!r} needs a text or texts under `zh` and `en`, not {readings!r}; "
                "put numbers and words like yes and no in quotes"
            )
        glossary[term] = dict.fromkeys(LANGUAGES, term) | readings
    return glossary


def _set_aside_annotations(text: str) -> tuple[str, dict[str, str]]:
    """The text with a mark in place of each annotation, and mark -> annotation."""
    annotations: dict[str, str] = {}

    def hold(found: re.Match[str]) -> str:
        mark = ANNOTATION_MARK.format(_letters(len(annotations)))
        annotations[mark] = found[0]
        return mark

    return ANNOTATION.sub(hold, text), annotations


def _read_terms(text: str, glossary: Glossary, language: str) -> str:
    """Replace the terms of the glossary, longest first, in any case; a mark is no place to find a term in."""
    held = ANNOTATION_MARK.format("[a-z]+")
    for term in _longest_first(glossary):
        reading = glossary[term][language]
        pattern = re.compile(f"((?-i:{held}))|{re.escape(term)}", re.IGNORECASE)
        text = pattern.sub(lambda found, reading=reading: found[1] or reading, text)
    return text


def _apply_rules(text: str, language: str) -> str:
    """Text with its numbers, dates, units and abbreviations in words.

    wetext from 0.1.5 on finds no English reading for some runs of spaces, nor for digits and symbols next to letters
    beyond ASCII (Café2Go), and then none for the whole text. So the runs are closed, and if that is not enough, the
    words it refuses are taken apart.
    """
    rules = _rules(language)
    spoken = rules(text)
    if spoken is None:
        words = text.split()
        spoken = rules(" ".join(words))
        if spoken is None:
            spoken = rules(" ".join(w if rules(w) is not None else " ".join(WORD_PARTS.findall(w)) for w in words))
    if spoken is None:
        raise ValueError(f"cannot normalise {text[:80]!r}: remove control and other unusual characters")
    return re.sub(r'\\(["\\])', r"\1", spoken)  # the same releases leave these two escaped


@cache
def _rules(language: str) -> Callable[[str], str | None]:
    """The rules of wetext for one language; None stands for a text that they find no reading for."""
    # Imported on first use: the import reads the rules of every language, which takes half a second.
    from wetext import Normalizer

    normalizer = Normalizer(lang=language, operator="tn", remove_erhua=False)

    def read(text: str) -> str | None:
        try:
            return str(normalizer.normalize(text))
        except AssertionError:
            return None

    return read


def _spelling(syllable: str) -> str:
    """Pinyin as the vocabulary spells it: ju1 -> JV1, xue2 -> XVE2; other initials as written."""
    if syllable[0] not in "jqxJQX":
        return syllable
    return JQX_UMLAUT.sub(lambda found: f"{found[1]}v{found[2] or ''}{found[3]}", syllable).upper()


def _marks(label: str, found: Iterable[str]) -> dict[str, str]:
    """Each text found -> the mark that stands for it while the rules run."""
    return {text: f"<{label}_{_letters(i)}>" for i, text in enumerate(_longest_first(found))}


def _longest_first(texts: Iterable[str]) -> list[str]:
    """The different texts, so ordered that none is found inside one that comes later."""
    return sorted(dict.fromkeys(texts), key=len, reverse=True)


def _replace_all(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def _letters(index: int) -> str:
    """a, b, ... z, aa, ab, ...: marks without digits, which the rules would read."""
    letters = ""
    while index >= 0:
        index, last = divmod(index, 26)
        letters = chr(ord("a") + last) + letters
        index -= 1
    return letters
