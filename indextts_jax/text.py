"""Text front end: text -> normalised text -> SentencePiece pieces -> ids, cut into segments the decoder can hold.

`TextFrontEnd` carries what was read from the model folder; every call is a function of its arguments alone. Follows
the reference's `indextts/utils/front.py` and `common.py`, whose quirks are kept where they decide what is spoken.
"""

import logging
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from sentencepiece import SentencePieceProcessor

from indextts_jax import pauses, rules, yaml_file
from indextts_jax.errors import Error, NotFound

logger = logging.getLogger(__name__)

Glossary = Mapping[str, Mapping[str, str]]  # term -> {"zh": reading, "en": reading}
LANGUAGES = ("zh", "en")

LATIN = re.compile("[A-Za-z]")
CHINESE = re.compile("[\u4e00-\u9fff]")
EMAIL = re.compile(r"[A-Za-z0-9]+@[A-Za-z0-9]+\.[A-Za-z]+$")
CONTRACTION = re.compile("(what|where|who|which|how|there|here|it|she|he|that|this)'s", re.IGNORECASE)

# Patterns that match at every run they meet: one that fails is tried again from each of the run's characters.
HYPHENATED = re.compile("[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")  # GPT-5-nano from its first letter on; not 138-0013
NAME = re.compile("[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){0,2}")  # 约瑟夫·高登-莱维特; 约瑟夫 alone is none
ANNOTATION_LINE = re.compile("[^>\n]*[>\n]?")  # an annotation, <重|CHONG2>, ends at the first >, before any line end

# What stands for a part of the text that the rules must not rewrite: letters alone, or letters in angle brackets.
ANNOTATION_MARK = "PRONPLACEHOLDER{}PRONPLACEHOLDER"
HELD_ANNOTATION = re.compile(ANNOTATION_MARK.format("[a-z]+"))
HYPHEN = "<H>"  # a hyphen that joins words
HELD_NAME = re.compile("<n_[a-z]+>")
HELD_PINYIN = re.compile("<pinyin_[a-z]+>")
FOLDED = {ord("İ"): "i", ord("ı"): "i", ord("ſ"): "s"}
JQX_UMLAUT = re.compile("([jqx])[uü](n|e|an)?([1-5])", re.IGNORECASE)

# A syllable is an initial and a final, or a syllabic consonant, then its tone: xuan4, er2; not beta1, voice2.
INITIALS = "b|p|m|f|d|t|n|l|g|k|h|j|q|x|z|c|s|r|y|w|zh|ch|sh"
FINALS = (
    "a|o|e|i|u|ü|v|ai|ei|ao|ou|ia|ie|iu|iao|ua|uo|ui|uai|ue|ve|üe|an|en|in|un|vn|ian|uan|van|üan|"
    "ang|eng|ing|ong|iang|iong|uang|vang|üang"
)
PINYIN = re.compile(f"(?<![a-z])(?:(?:{INITIALS})?(?:{FINALS})|ng|er)[1-5]", re.IGNORECASE)
MAYBE_PINYIN = re.compile(r"[^\W\d_]{1,6}[1-5]")  # the longest syllable has six letters

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


MAX_MODEL_BYTES = 64 << 20  # the official one has 475 kB
MODEL_PARTS = {0x0A, 0x12, 0x1A}  # pieces, trainer_spec and normalizer_spec: fields 1 to 3 of sentencepiece_model.proto


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
    lead: int = 0  # ms of silence before the first segment
    # Parallel to the segments: ms of silence after each. None: what the options have between segments, and nothing
    # after the last; as if all were None where it is empty.
    pauses: tuple[int | None, ...] = ()
    texts: tuple[str, ...] = ()  # parallel to the segments: what each holds of the normalised text
    language: str | None = None  # of the text, for IndexTTS-2.5: `byte_pairs.language_id` has its id; 2.0 has none


@dataclass(frozen=True)
class TextFrontEnd:
    """A SentencePiece vocabulary, and how to read the terms of a glossary."""

    processor: SentencePieceProcessor
    glossary: Glossary = field(default_factory=dict)

    @classmethod
    def load(cls, bpe_model: Path, glossary: Path | None = None) -> "TextFrontEnd":
        """Read `bpe.model` and, where one is given, a glossary.

        Raises NotFound for a missing file, Error for one that cannot be understood.
        """
        bpe_model = Path(bpe_model)
        if not bpe_model.is_file():
            raise NotFound(f"{bpe_model}: no such file; the SentencePiece model belongs to the model folder")
        return cls(_load_model(bpe_model), load_glossary(glossary) if glossary else {})

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return self.processor.get_piece_size()

    def analyse(
        self,
        text: str,
        budget: int = 120,
        first: int = 0,
        language: str | None = None,
        paragraph_ms: int = pauses.PARAGRAPH_MS,
    ) -> Analysis:
        """Everything the decoder needs of a text; `budget` and `first` as in `split`, `language` as in `normalize`.

        Marks such as [pause 1.5s], and blank lines of `paragraph_ms`, are silences that end a segment, as
        `pauses.split` has them; they are not read. The whole text decides its language. A part between two pauses
        without anything to pronounce is left out, and its pauses add up.

        Raises Error for a text without anything to pronounce and for a mark that cannot be read. Pieces that the
        vocabulary lacks are logged.
        """
        _check_language(language)
        check_unicode(text)
        found = pauses.split(text, paragraph_ms)
        if language is None and len(found.parts) > 1:
            language = rules_for(" ".join(found.parts))
        read: list[tuple[str, list[str]]] = []  # each part normalised, and its pieces
        for part in found.parts:
            if len(found.parts) == 1 and len(part.strip()) == 1:  # the reference neither normalises nor upper-cases it
                read.append((part.strip(), self.processor.encode(part, out_type=str)))
            else:
                normalized = self.normalize(part, language)
                read.append((normalized, self.encode(normalized)))
        spoken = [any(character.isalnum() for piece in own for character in piece) for _, own in read]
        check_spoken(text, spoken)
        found, read = found.keep(spoken), list(compress(read, spoken))
        pieces: list[str] = []
        segments: list[list[str]] = []
        after: list[int | None] = []  # the segments
        texts: list[str] = []
        for (normalized, own), silence in zip(read, found.pauses, strict=True):
            cut = split(own, budget, max(0, first - len(pieces)))
            pieces += own
            segments += cut
            texts += written(normalized, cut)
            after += [*[None] * (len(cut) - 1), silence]
        ids = self.ids(pieces)
        unknown = [piece for piece, i in zip(pieces, ids, strict=True) if i == self.processor.unk_id()]
        if unknown:
            different = list(dict.fromkeys(unknown))
            names = ", ".join(map(repr, different[:20])) + (", ..." if len(different) > 20 else "")
            logger.warning("%d of %d pieces are not in the vocabulary: %s", len(unknown), len(pieces), names)
        segment_ids = [self.ids(segment) for segment in segments]
        whole = " ".join(normalized for normalized, _ in read)
        return Analysis(whole, pieces, ids, segments, segment_ids, unknown, found.lead, tuple(after), tuple(texts))

    def normalize(self, text: str, language: str | None = None) -> str:
        """Text as it is spoken: numbers, dates and units in words, terms by the glossary, few punctuation marks.

        `language` is "zh" or "en", the language whose rules read the numbers; None lets the text decide, as the
        reference does (see `is_chinese`). Annotations such as `<重|CHONG2>` come out as they went in. Raises
        ValueError for another language, and for characters that the rules refuse.
        """
        return normalize(text, language, self.glossary)

    def encode(self, normalized: str) -> list[str]:
        """The pieces of a normalised text: CJK characters stand alone, everything is upper-cased."""
        parts = (part.strip() for part in CJK_OR_RUN.findall(normalized))
        return self.processor.encode(" ".join(part for part in parts if part).upper(), out_type=str)

    def ids(self, pieces: list[str]) -> list[int]:
        """The id of each piece; that of `<unk>` for a piece the vocabulary lacks."""
        return [self.processor.piece_to_id(piece) for piece in pieces]


def normalize(text: str, language: str | None = None, glossary: Glossary | None = None) -> str:
    """What `TextFrontEnd.normalize` returns, by a glossary that may be none."""
    _check_language(language)
    text, annotations = _set_aside_annotations(text)
    if language is None:
        language = "zh" if is_chinese(text) else "en"
    text = CONTRACTION.sub(r"\1 is", text)
    text = _read_terms(text, glossary or {}, language)

    # The rules would read the hyphen of GPT-5 as a minus, pinyin tones as numbers, and the dot of a name.
    unhyphenated = HYPHENATED.sub(_set_aside_hyphens, text)
    hyphenated = unhyphenated != text
    text = unhyphenated
    if language == "zh":
        text, pinyin = _set_aside_pinyin(text)
        text, names = _set_aside_names(text)
        text = rules.read(text, language)
        text = _put_back(text, names, HELD_NAME)
        text = _put_back(text, pinyin, HELD_PINYIN)
    else:
        text = rules.read(text, language)
    if hyphenated:
        text = _put_back_hyphens(text)

    text = plain_marks(text, CHINESE_MARKS if language == "zh" else ENGLISH_MARKS)
    return _put_back(text, annotations, HELD_ANNOTATION)


def plain_marks(text: str, marks: Mapping[int, str] = ENGLISH_MARKS) -> str:
    """The text with the few punctuation marks that are spoken, in place of all others that mean the same."""
    return ELLIPSIS.sub("…", text).translate(marks)


def split(pieces: list[str], budget: int = 120, first: int = 0) -> list[list[str]]:
    """Cut pieces into segments of at most `budget` pieces, at sentence ends, commas and hyphens where it can.

    Neighbours are joined again while they fit, but within the first `first` pieces only up to half the budget: the
    first segments are then short, and streamed audio starts early. Two quirks of the reference are kept: an
    apostrophe after a sentence end closes one segment (which may thereby exceed the budget by one) *and* opens the
    next, and a sentence of one or two pieces is not cut off. Raises Error for a budget below 1.
    """
    check_budget(budget, first)
    parts: list[list[str]] = []
    current: list[str] = []
    cuts: list[str] = []  # the ends of the parts that had to be cut inside a sentence
    for i, piece in enumerate(pieces):
        current.append(piece)
        if piece in PAUSES or len(current) > budget:
            if len(current) > budget:
                cuts.append("".join(current[-9:-1]))
            parts += [current[start : start + budget] for start in range(0, len(current), budget)]
            current = []
        elif piece in STOPS and len(current) > 2:
            closing = [mark for mark in pieces[i + 1 : i + 2] if mark in APOSTROPHES]
            parts.append(current + closing)
            current = []
    if current:
        parts.append(current)
    if cuts:
        logger.warning("more than %d pieces without a mark: cut after %s (%d times in all)", budget, cuts[0], len(cuts))

    segments: list[list[str]] = []
    seen = 0
    for part in parts:
        seen += len(part)
        limit = budget if seen > first else budget / 2
        if segments and len(segments[-1]) + len(part) <= limit:
            segments[-1] += part
        else:
            segments.append(part)
    return segments


def written(normalized: str, segments: Iterable[Iterable[str]]) -> list[str]:
    """What each segment of a normalised text's pieces holds of it, in its own letters and spaces.

    Pieces are upper case, and spaces stand around each Chinese character. Where they hold other characters, since the
    vocabulary replaces some, it is the pieces as they are.
    """
    spelt = ((unicodedata.normalize("NFKC", c).upper(), i) for i, c in enumerate(normalized))  # as the vocabulary does
    places = [(letter, i) for part, i in spelt for letter in part if not letter.isspace()]
    letters = "".join(letter for letter, _ in places)
    found, at = [], 0
    for pieces in segments:
        shown = "".join(pieces).replace("▁", " ").strip()
        own = "".join(shown.split())
        # One back where an apostrophe is in two segments, see `split`; further on after other characters.
        begin = at if letters.startswith(own, at) else letters.find(own, max(0, at - 1), at + 2 * len(own) + 20)
        end = begin + len(own)
        found.append(shown if begin < 0 or not own else normalized[places[begin][1] : places[end - 1][1] + 1])
        at = end if begin >= 0 else at + len(own)
    return found


def _load_model(path: Path) -> SentencePieceProcessor:
    unreadable = f"{path}: not a readable SentencePiece model"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
        if len(content) > MAX_MODEL_BYTES:
            raise Error(f"{unreadable}: it is larger than {MAX_MODEL_BYTES >> 20} MiB")
        if not _is_whole_model(content):
            raise Error(f"{unreadable}: it is cut short or another kind of file; fetch it again")
        return SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError) as error:
        raise Error(f"{unreadable} ({' '.join(str(error).split())[:100]}); fetch it again") from error


def _is_whole_model(content: bytes) -> bool:
    """Whether a SentencePiece model has pieces, settings and a normaliser, the last of them to its end.

    SentencePiece itself loads a file that was cut between two pieces, and then knows fewer pieces and no normaliser.
    """
    parts, position = set(), 0
    while position < len(content):
        parts.add(content[position])  # every part begins with its number and kind, its length in 7 bits a byte
        length = shift = 0
        while True:
            position += 1
            if position >= len(content) or shift > 28:
                return False
            length |= (content[position] & 0x7F) << shift
            shift += 7
            if content[position] < 0x80:
                break
        position += 1 + length
    return position == len(content) and parts >= MODEL_PARTS


def is_chinese(text: str) -> bool:
    """Whether the Chinese rules read this text: for Chinese, pinyin, no Latin letter, or nothing but an address."""
    has_latin = LATIN.search(text)
    return bool(CHINESE.search(text) or not has_latin or EMAIL.match(text) or PINYIN.search(text))


def rules_for(text: str) -> str:
    """The language whose rules read this text, annotations aside: "zh" or "en"."""
    return "zh" if is_chinese(_set_aside_annotations(text)[0]) else "en"


def check_unicode(text: str) -> None:
    """Raise Error for a text with halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Error(f"{text[:80]!r} is not valid Unicode ({error}); read it with its own encoding") from error


def check_budget(budget: int, first: int) -> None:
    """Raise Error for a length of segments that is none."""
    if budget < 1 or first < 0:
        raise Error(f"budget must be at least 1 and first at least 0, not {budget} and {first}")


def check_spoken(text: str, spoken: Iterable[bool]) -> None:
    """Raise Error for a text of which no part is spoken."""
    if not any(spoken):
        raise Error(f"nothing to pronounce in {text[:80]!r}: give at least one letter, digit or character")


def load_glossary(path: Path) -> dict[str, dict[str, str]]:
    """Read `glossary.yaml`: each term with one reading, or with readings under `zh` and `en`.

    A term without a reading in a language is read as it is written. Raises NotFound, or Error that
    names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such glossary")
    content = yaml_file.read(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Error(f"{path}: expected `term: reading` entries, found a {type(content).__name__}")

    glossary = {}
    for term, readings in content.items():
        if not isinstance(term, str) or not term:
            raise Error(f"{path}: the term {reprlib.repr(term)} is not a text; put it in quotes")
        if isinstance(readings, str):
            readings = dict.fromkeys(LANGUAGES, readings)
        if not isinstance(readings, dict) or not all(
            language in LANGUAGES and isinstance(reading, str) for language, reading in readings.items()
        ):
            raise Error(
                f"{path}: the term {reprlib.repr(term)} needs a text, or texts under `zh` and `en`, not "
                f"{reprlib.repr(readings)}; put numbers and words like yes and no in quotes"
            )
        glossary[term] = dict.fromkeys(LANGUAGES, term) | readings
    return glossary


def _check_language(language: str | None) -> None:
    if language is not None and language not in LANGUAGES:
        raise Error(
            f"language must be 'zh' or 'en', or None to let the text decide, not {reprlib.repr(language)}: this model "
            "has no other"
        )


def replace_annotations(text: str, reading: Callable[[str], str]) -> str:
    """The text with each annotation, `<重|CHONG2>`, replaced by what `reading` makes of it."""

    def replaced(found: re.Match[str]) -> str:
        line = found[0]
        start = line.find("<") if line.endswith(">") else -1
        bar = line.find("|", start + 1)
        while 0 <= start == bar - 1:  # nothing between < and |: perhaps the next < begins an annotation
            start = line.find("<", start + 1)
            bar = line.find("|", start + 1)
        if start < 0 or bar < 0 or bar == len(line) - 2:
            return line
        return line[:start] + reading(line[start:])

    return ANNOTATION_LINE.sub(replaced, text)


def _set_aside_annotations(text: str) -> tuple[str, dict[str, str]]:
    """The text with a mark in place of each annotation, and mark -> annotation."""
    annotations: dict[str, str] = {}

    def hold(annotation: str) -> str:
        mark = ANNOTATION_MARK.format(_letters(len(annotations)))
        annotations[mark] = annotation
        return mark

    return replace_annotations(text, hold), annotations


def _set_aside_hyphens(found: re.Match[str]) -> str:
    """A run of letters, digits and hyphens with each hyphen after its first letter replaced by `HYPHEN`."""
    letter = LATIN.search(found[0])
    if letter is None:
        return found[0]
    return found[0][: letter.start()] + found[0][letter.start() :].replace("-", HYPHEN)


def _put_back_hyphens(text: str) -> str:
    """The text with hyphens again, and no space around them, which the rules may have left there."""
    first, *others = text.split(HYPHEN)
    if not others:
        return text
    *inner, last = others
    return "-".join([first.rstrip(), *map(str.strip, inner), last.lstrip()])


def _set_aside_pinyin(text: str) -> tuple[str, dict[str, str]]:
    """The text with a mark in place of each syllable, and mark -> the syllable as the vocabulary spells it.

    As in the reference, what is a syllable in one place is one everywhere: ba1 in "ba1 alba1", twice. Of syllables
    that end with the same tone the longest counts.
    """
    marks = _marks("pinyin", PINYIN.findall(text))

    def hold(found: re.Match[str]) -> str:
        for start in range(len(found[0]) - 1):
            mark = marks.get(found[0][start:])
            if mark:
                return found[0][:start] + mark
        return found[0]

    if marks:
        text = MAYBE_PINYIN.sub(hold, text)
    return text, {mark: _spelling(syllable) for syllable, mark in marks.items()}


def _set_aside_names(text: str) -> tuple[str, dict[str, str]]:
    """The text with a mark in place of each name, and mark -> name."""
    marks = _marks("n", (run for run in NAME.findall(text) if not run.isalpha()))
    text = NAME.sub(lambda found: marks.get(found[0], found[0]), text)
    return text, {mark: name for name, mark in marks.items()}


def _put_back(text: str, held: Mapping[str, str], marks: re.Pattern[str]) -> str:
    """The text with what was held back in place of its marks."""
    return marks.sub(lambda found: held.get(found[0], found[0]), text) if held else text


def _read_terms(text: str, glossary: Glossary, language: str) -> str:
    """Replace the terms of the glossary, longest first, in any case; a mark is no place to find a term in."""
    held = f"((?-i:{HELD_ANNOTATION.pattern}))|" if HELD_ANNOTATION.search(text) else "()"
    folded = _folded(text)
    for term in _longest_first(glossary):
        # Most terms do not occur, which is quickly seen where upper and lower case are as simple as in ASCII.
        if _folded(term) not in folded and all(c.isascii() or c.lower() == c.upper() for c in term):
            continue
        reading = glossary[term][language]
        pattern = re.compile(held + re.escape(term), re.IGNORECASE)
        text = pattern.sub(lambda found, reading=reading: found[1] or reading, text)
        folded = _folded(text)
    return text


def _folded(text: str) -> str:
    """Text in lower case, with the letters beyond ASCII that a pattern takes for i and s in any case."""
    return text.translate(FOLDED).lower()


def _spelling(syllable: str) -> str:
    """Pinyin as the vocabulary spells it: ju1 -> JV1, xue2 -> XVE2; other initials as written."""
    if syllable[0] not in "jqxJQX":
        return syllable
    return JQX_UMLAUT.sub(lambda found: f"{found[1]}v{found[2] or ''}{found[3]}", syllable).upper()


def _marks(label: str, found: Iterable[str]) -> dict[str, str]:
    """Each text found -> the mark that stands for it while the rules run."""
    return {text: f"<{label}_{_letters(i)}>" for i, text in enumerate(dict.fromkeys(found))}


def _longest_first(texts: Iterable[str]) -> list[str]:
    """The different texts, so ordered that none is found inside one that comes later."""
    return sorted(dict.fromkeys(texts), key=len, reverse=True)


def _letters(index: int) -> str:
    """a, b, ... z, aa, ab, ...: marks without digits, which the rules would read."""
    letters = ""
    while index >= 0:
        index, last = divmod(index, 26)
        letters = chr(ord("a") + last) + letters
        index -= 1
    return letters
