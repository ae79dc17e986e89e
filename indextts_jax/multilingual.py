"""Text front end of IndexTTS-2.5: text -> text as its language is read -> segments -> ids of byte pairs.

Has the face of `text.TextFrontEnd`, which is that of IndexTTS-2. Follows the reference's `indextts/infer_v2_5.py`,
whose quirks are kept where they decide what is spoken: marks become plain before the rules read numbers, so that 3:30
is "3,30"; whether the rules of Chinese or English read a text, the text decides; and only the marks of `SENTENCE` end
a sentence, so that long Arabic text may be cut inside a word.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from indextts_jax import languages, pauses
from indextts_jax.byte_pairs import Vocabulary
from indextts_jax.errors import Error, short
from indextts_jax.text import (
    LANGUAGES,
    Analysis,
    Glossary,
    TextFrontEnd,
    check_budget,
    check_spoken,
    check_unicode,
    load_glossary,
    normalize,
    plain_marks,
    replace_annotations,
    rules_for,
)

CHINESE = re.compile("[\u4e00-\u9fff]")
KANA = re.compile("[\u3040-\u309f]+|[\u30a0-\u30ff]+")
MARK = re.compile(r"<\|([^|]+)\|>")
PRONOUNCED = re.compile(r"(<\|SPECIAL_TOKEN_\d+\|>.*?<\|SPECIAL_TOKEN_\d+\|>)")  # a pronunciation is in one segment
SENTENCE = re.compile("(?<=[，。！？、；：,.!?;:\n])")


@dataclass(frozen=True)
class MultilingualFrontEnd:
    """A vocabulary of byte pairs, and how to read the terms of a glossary in Chinese and in English text."""

    vocabulary: Vocabulary
    glossary: Glossary = field(default_factory=dict)

    @classmethod
    def load(cls, vocabulary: Path, glossary: Path | None = None) -> "MultilingualFrontEnd":
        """Read the vocabulary, `byte_pairs.NAME`, and, where one is given, a glossary.

        Raises NotFound for a missing file, Error for one that cannot be understood.
        """
        return cls(Vocabulary.load(vocabulary), load_glossary(glossary) if glossary else {})

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return self.vocabulary.size

    def analyse(
        self,
        text: str,
        budget: int = 120,
        first: int = 0,
        language: str | None = None,
        paragraph_ms: int = pauses.PARAGRAPH_MS,
    ) -> Analysis:
        """Everything the decoder needs of a text; `language` as in `normalize`.

        A segment has at most `budget` ids, the mark of its language among them, and begins with that mark; so do `ids`,
        those of the whole text. Sentences within the first `first` ids are joined to half as many at most.

        Ids 0 and 1 are "!" and a quote here, but also where a text starts and stops: they stay, and whoever draws codes
        leaves them out, as for IndexTTS-2. Pauses are those of `text.TextFrontEnd.analyse`.

        Raises Error for a text without anything to pronounce, for a pause that cannot be read, and for a language
        that is none of `languages.SPOKEN` or whose extra is missing.
        """
        check_unicode(text)
        check_budget(budget, first)
        found = pauses.split(text, paragraph_ms)
        language = _language(" ".join(found.parts), language)
        rules = None
        if found.parts != [text]:  # the whole text decides, and spaces beside a pause are not read
            rules = rules_for(plain_marks(" ".join(found.parts)))
            found = found._replace(parts=[part.strip() for part in found.parts])
        read = [self._read(part, language, rules) for part in found.parts]
        spoken = [any(map(str.isalnum, part)) for part in read]
        check_spoken(text, spoken)
        found, read = found.keep(spoken), list(compress(read, spoken))

        start = [self.vocabulary.mark(language)]
        most = max(1, budget - len(start) - self._length(" "))
        segments: list[str] = []
        after: list[int | None] = []
        seen = 0
        for part, silence in zip(read, found.pauses, strict=True):
            cut = split(part, self._length, most, max(0, first - seen))
            seen += self._length(part)
            segments += cut
            after += [*[None] * (len(cut) - 1), silence]
        whole = " ".join(read)
        ids, *segment_ids = (start + self.vocabulary.encode(f" {part}") for part in (whole, *segments))
        pieces, *own = (self.vocabulary.pieces(part) for part in (ids, *segment_ids))
        texts = tuple(part.strip() for part in segments)
        return Analysis(whole, pieces, ids, own, segment_ids, [], found.lead, tuple(after), texts, language)

    def normalize(self, text: str, language: str | None = None) -> str:
        """Text as the vocabulary takes it: in words, few marks, in the case of its language, annotations as marks.

        `language` is one of `languages.SPOKEN`; None lets the text decide, see `languages.guess`. An annotation says
        how a word is pronounced: `<行|XING2>`, `<minute|M IH1 . N AH0 T>`, `<上手|じょうず>`. Kana take the place of
        the word, all else stands between two marks. Raises Error for other languages, and as `text.normalize`.
        """
        return self._read(text, _language(text, language), None)

    def _read(self, part: str, language: str, rules: str | None) -> str:
        part = plain_marks(part)
        if language in LANGUAGES:
            part = normalize(part, rules, self.glossary).lower()
        elif language == "es":
            part = languages.spanish(part).upper()
        elif language == "ja":
            part = part.lower()
        part = replace_annotations(part, _pronounced)
        if language == "ja":
            part = languages.japanese(part)
        return MARK.sub(lambda found: found[0].upper(), part)

    def _length(self, part: str) -> int:
        return len(self.vocabulary.encode(part))


FrontEnd = TextFrontEnd | MultilingualFrontEnd  # which of them a model has, `checkpoint.text_kind` says


def split(text: str, length: Callable[[str], int], most: int, first: int = 0) -> list[str]:
    """Cut a text into parts of at most `most` ids, after marks where it can: joined they are the text.

    `length` counts the ids of a text. Within the first `first` ids sentences are joined to at most half as many. Only
    a pronunciation between marks may be longer. The reference's split_text_by_tokens, where `first` is 0.
    """
    if length(text) <= (most / 2 if first else most):
        return [text]
    chunks: list[str] = []
    for i, piece in enumerate(PRONOUNCED.split(text)):
        if i % 2:
            chunks.append(piece)
            continue
        for sentence in filter(None, SENTENCE.split(piece)):
            chunks += [sentence] if length(sentence) <= most else _filled(sentence, length, most)
    return _filled(chunks, length, most, first)


def _filled(chunks: str | list[str], length: Callable[[str], int], most: int, first: int = 0) -> list[str]:
    """Neighbours joined while they have at most `most` ids, and half as many within the first `first` ids."""
    joined: list[str] = []
    seen = 0
    for chunk in chunks:
        seen += length(chunk) if first else 0
        if joined and length(joined[-1] + chunk) <= (most / 2 if seen < first else most):
            joined[-1] += chunk
        else:
            joined.append(chunk)
    return joined


def _language(text: str, language: str | None) -> str:
    if language is None:
        return languages.guess(text)
    if language.lower() not in languages.SPOKEN:
        spoken = ", ".join(languages.SPOKEN)
        raise Error(f"language must be one of {spoken}, or None to let the text decide, not {short(language)}")
    return language.lower()


def _pronounced(annotation: str) -> str:
    word, pronunciation = annotation[1:-1].split("|", 1)
    pronunciation = pronunciation.upper()
    if KANA.fullmatch(pronunciation):
        return f" {pronunciation} "
    mark = f"<|SPECIAL_TOKEN_{2 if CHINESE.search(word) else 1}|>"
    return f"{mark}{pronunciation}{mark}"
