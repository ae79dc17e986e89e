"""Numbers, dates, units and abbreviations in words, by the rules of wetext.

The rules are finite-state transducers. They take 0.2 ms and up to 80 KB a character, more in a long text, and they
choose between readings by sums in single precision, which run out of digits there. So a long text is read in parts:

- A word that the rules keep as it is is passed by, unless a digit or symbol is so near that an expression of the
  rules ("5 million", "call me at 555-0100") could join the two.
- What remains is read by the rules, each stretch for itself, and a stretch longer than `LIMIT` is cut.

The result is that of the rules on the whole text, spaces included, but for numbers with readings of equal weight:
"seven hundred and nine" or "seven hundred nine". `python -m debug.compare_text` looks for other differences.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache

from indextts_jax.errors import Error

WHOLE = {"en": 500, "zh": 0}  # characters; a text of no more is read as a whole
LIMIT = 240  # characters that the rules read at once

# How far from a digit or symbol an expression may begin or end, in English words and in Chinese characters.
WORDS = 1  # 5 million; May 5
SHORT_WORD = 3  # letters; if the next word has no more, the one after it may belong too: 5 pm est, 12 sq ft
WORDS_OF_PHONE, PHONE = 4, ("at", "is")  # before a number, from the last word on: hit me up at 555-0100
WORDS_OF_ADDRESS = 6  # after a number, as long as they are capitalised: 12 Old Town Road, San Jose, CA 95125
BEFORE, AFTER = 12, 8  # characters: 伍尔弗汉普顿流浪者 3:2; 5 平方千米

DIGITS = 30  # of a longer number, the rest is read digit by digit, as the English rules read all from 16 digits on

LONG_NUMBER = re.compile(f"([0-9]{{{DIGITS}}})([0-9]+)")

# Letters beyond ASCII that no rule knows: Latin, Cyrillic, Hebrew, Arabic, kana, Hangul; Greek letters are symbols.
LETTERS = "À-ÖØ-öø-ʯЀ-ӿא-תؠ-ي\u3041-\u3096\u30a1-\u30fa가-힣"

# English: words, and the gaps between them. An apostrophe within a word belongs to it: the rules know Wu's.
SPACES = " \t\n\r"
MARKS = ",.;:!?\"'“”‘’—–…()-"
GAP = re.compile(f"((?:[{SPACES},.;:!?\"“”‘’—–…()-]|'(?![A-Za-z])|(?<![A-Za-z])'|<H>)+)")
LOWER = re.compile(f"[a-z{LETTERS}]+(?:'[a-z]+)*")
MIXED = re.compile(f"[A-Za-z{LETTERS}]+(?:'[A-Za-z]+)*")
LONG_TITLE = re.compile("[A-Z][a-z]{7,}")  # the abbreviations that the rules know are shorter
PLACEHOLDER = re.compile("PRONPLACEHOLDER[a-z]+PRONPLACEHOLDER")  # an annotation that was set aside
PLAIN_GAP = re.compile(
    f"[{SPACES}]+|<H>|[\"'“”‘’—–…()]+|(?=[^{SPACES}]*[{SPACES}])[{SPACES}{MARKS}]*[{SPACES}\"'“”‘’—–…()]"
)
SENTENCE_GAP = re.compile(f"[.!?][\"'”’)]*[{SPACES}]")
SPACE_RUN = re.compile(f"[{SPACES}]+")
LONG_GAP, LONG_WORD = 40, 60  # characters; longer ones are passed by

# Chinese: the characters that only matter to the rules where another one is near.
PLAIN_CHINESE = f"A-Za-z{LETTERS}\u3400-\u9fff{SPACES},!?;:'\"()<>_，。！？；：、“”‘’（）《》〈〉「」『』【】—…·-"
OTHER_CHINESE = re.compile(f"[^{PLAIN_CHINESE}]+")
CHINESE_STOP = re.compile("[。！？；\n]")

# Where to cut what is too long, the best places first.
CUTS = {
    "en": (
        re.compile(r"(?<=[a-z]{2})[.!?]+[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z])"),
        re.compile(r"(?<=[a-z])[,;:]*\s+(?=[a-z]{2})"),
        re.compile(r"(?<!\d)\s+(?!\d)"),
        re.compile(r"\s+"),
    ),
    "zh": (
        re.compile("(?<=[\u3400-\u9fff])[。！？；\n]+"),
        re.compile("(?<=[\u3400-\u9fff])[，、：,\\s]+(?=[\u3400-\u9fff])"),
        re.compile("(?<=[\u3400-\u9fff])(?=[\u3400-\u9fff])"),
        re.compile(r"\s+|[，。！？；、]+(?!\d)"),
    ),
}


def read(text: str, language: str, whole: int | None = None) -> str:
    """Text with its numbers, dates, units and abbreviations in words, in `language`: "zh" or "en".

    A text of up to `whole` characters is read as a whole, by default as `WHOLE` says. Chinese comes out in simplified
    characters and half-width marks, as the reference writes it on Linux. Raises Error for characters that the
    rules refuse.
    """
    whole = WHOLE[language] if whole is None else whole
    text = text.replace("\0", " ")  # a null character would end the text for the rules
    read_part, space = (_read_english, " ") if language == "en" else (_read_chinese, "")
    if language == "zh":
        text = _convert(text, "traditional_to_simple")
    parts = LONG_NUMBER.split(text)  # text, number, its further digits, text, number, ...
    spoken = []
    for i in range(0, len(parts), 3):
        number, digits = parts[i + 1 : i + 3] or ("", "")
        part = parts[i] + number
        spoken.append(_rules(language)(part.strip()) if len(part) <= whole else read_part(part))
        if digits:
            names = _digit_names(language)
            spoken.append(space + space.join(names[digit] for digit in digits))
            spoken.append(space if parts[i + 3][:1].isalnum() else "")
    text = "".join(spoken).strip()
    return _convert(text, "full_to_half") if language == "zh" else text


def _read_english(text: str) -> str:
    parts = GAP.split(text)  # word, gap, word, ..., gap, word; the first and the last word may be empty
    words, gaps = parts[::2], parts[1::2]
    aside = [False] * len(words)  # the words that the rules must read
    for i, word in enumerate(words):
        before, after = gaps[i - 1] if i else "", gaps[i] if i < len(gaps) else ""
        aside[i] |= not _is_plain_word(word, before, after)
        if after and len(after) <= LONG_GAP and not PLAIN_GAP.fullmatch(after):
            aside[i] = aside[i + 1] = True

    def reach(i: int, step: int) -> int:
        """The last word in one direction that the rules may join with word i."""
        count = WORDS
        if step < 0 and i and words[i - 1] in PHONE:
            count = WORDS_OF_PHONE
        if step > 0 and i + 1 < len(words) and len(words[i + 1]) <= SHORT_WORD:
            count += 1
        last = i
        while 0 <= last + step < len(words):
            gap = gaps[min(last, last + step)]
            near = abs(last - i) < count
            address = step > 0 and last - i < WORDS_OF_ADDRESS and words[last][:1].isupper()
            marks = gap.strip(SPACES) and abs(last - i) <= count  # the rules may take a mark too: "May 5th."
            if len(gap) > LONG_GAP or not (near or address or marks):
                break
            last += step
            if last - step != i and len(words[last]) > 1 and SENTENCE_GAP.search(gap):
                break
        return last

    # What an aside word may be joined with goes to the rules in one stretch, the rest is passed by.
    spoken, done = [], 0
    for first, end in _merged((reach(i, -1), reach(i, 1) + 1) for i, is_aside in enumerate(aside) if is_aside):
        for i in range(done, first):
            spoken += (words[i], _gap(gaps[i]))
        spoken.append(_read_long("".join(parts[2 * first : 2 * end - 1]), "en"))
        spoken += [_gap(gap) for gap in gaps[end - 1 : end]]
        done = end
    for i in range(done, len(words)):
        spoken += [words[i], *(_gap(gap) for gap in gaps[i : i + 1])]
    return "".join(spoken)


def _is_plain_word(word: str, before: str, after: str) -> bool:
    """Whether the rules keep an English word as it is, with nothing but such words around it."""
    if LOWER.fullmatch(word):
        return not word.endswith("per")  # "per minute" is a unit, and the rules find it in "super minute" too
    if LONG_TITLE.fullmatch(word) or PLACEHOLDER.fullmatch(word):
        return True
    if not MIXED.fullmatch(word) or word == "War":  # World War I
        return False
    if len(word) > LONG_WORD:
        return True
    if len(word) == 1 and after.startswith("."):  # initials
        return False
    if "," in before and word[:2].isupper():  # Boston, MA
        return False
    return _is_kept(word + after[0] if len(word) < 6 and after.startswith((".", "'")) else word)  # Capt., Avs'


@lru_cache(maxsize=1 << 16)
def _is_kept(word: str) -> bool:
    return _rules("en")(word) == word


def _gap(gap: str) -> str:
    """What the English rules make of the characters between two words.

    Without a mark they are one space. Beside a mark spaces stay, and other white space is dropped: "end.\\nNext" is
    "end.Next", as in the reference.
    """
    if gap == " " or not any(space in gap for space in "\t\n\r"):
        return gap if gap.strip(" ") else " "
    if not gap.strip(SPACES):
        return " "

    def near_marks(run: re.Match[str]) -> str:
        if not run[0].strip(" "):
            return run[0]
        before = len(run[0]) - len(run[0].lstrip(" ")) if run.start() else 0
        after = len(run[0]) - len(run[0].rstrip(" ")) if run.end() < len(gap) else 0
        return " " * (before + after)

    return SPACE_RUN.sub(near_marks, gap)


def _read_chinese(text: str) -> str:
    def reach(start: int, end: int) -> tuple[int, int]:
        before, after = text[max(0, start - BEFORE) : start], text[end : end + AFTER]
        return start - len(CHINESE_STOP.split(before)[-1]), end + len(CHINESE_STOP.split(after)[0])

    spoken, done = [], 0
    for start, end in _merged(reach(*found.span()) for found in OTHER_CHINESE.finditer(text)):
        spoken += (text[done:start], _read_long(text[start:end], "zh"))
        done = end
    return "".join([*spoken, text[done:]])


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open spans in order, those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        while merged and start < merged[-1][1]:
            before = merged.pop()
            start, end = min(start, before[0]), max(end, before[1])
        merged.append((start, end))
    return merged


def _read_long(text: str, language: str) -> str:
    """What the rules make of a text, `LIMIT` characters at a time."""
    rules = _rules(language)
    spoken = []
    for part in _cut(text, language):
        core = part.strip()
        start = part.find(core)
        before, after = part[:start], part[start + len(core) :]
        if language == "zh":
            spoken += (before, rules(core), after)
        else:
            spoken += (rules(core), _gap(core[-1:] + after)[1:] if core[-1:] in MARKS else after and " ")
    return "".join(spoken)


def _cut(text: str, language: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LIMIT:
        end = start + LIMIT
        for places in CUTS[language]:
            found = [place.end() for place in places.finditer(text, start + LIMIT // 2, end)]
            if found:
                end = found[-1]
                break
        yield text[start:end]
        start = end
    yield text[start:]


@cache
def _rules(language: str) -> Callable[[str], str]:
    # Imported on first use: the import reads the rules of every language, which takes half a second.
    from wetext import reorder, tag, verbalize

    @lru_cache(maxsize=4096)
    def rules(text: str) -> str:
        if not text:
            return ""
        try:
            tagged = reorder(tag(text, language, "tn"), language, "tn")  # pyright: ignore[reportArgumentType]
        except AssertionError as error:
            raise Error(f"cannot normalise {text[:80]!r}: remove control and other unusual characters") from error
        return str(verbalize(tagged, language, "tn"))  # pyright: ignore[reportArgumentType]

    return rules


@cache
def _digit_names(language: str) -> dict[str, str]:
    if language == "zh":
        return {digit: _rules("zh")(digit) for digit in "0123456789"}
    digits = "1234567890" * 3
    return dict(zip(digits, _rules("en")(digits).split(), strict=True))


def _convert(text: str, rule: str) -> str:
    """Text with its characters replaced one by one, by a rule of wetext that knows single characters only."""
    from wetext import postprocess, preprocess

    found = "".join(sorted({character for character in text if not character.isascii() and not character.isspace()}))
    convert = preprocess if rule == "traditional_to_simple" else postprocess
    return text.translate(dict(zip(map(ord, found), convert(found, **{rule: True}), strict=True)))
