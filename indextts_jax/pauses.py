"""Pauses: silences that are written in a text, as marks or as blank lines between paragraphs.

split("One. [pause 1.5s] Two.\n\nThree.", 500)  # the parts "One. ", " Two." and "Three."; 1500 and 500 ms
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from indextts_jax.errors import Error

PARAGRAPH_MS = 500  # of a blank line, where nothing else is asked for: longer than the 200 ms between segments
LONGEST_MS = 60_000  # of one mark

# Whatever begins like a mark is taken for one, up to the end of its line at most, so that none is ever spoken.
_MARK = r"\[[ \t]*[Pp][Aa][Uu][Ss][Ee](?![A-Za-z])[^\]\n]*\]?"
_MARKS = re.compile(f"({_MARK})")
_MARKS_AND_BLANK_LINES = re.compile(rf"({_MARK}|\n\s*\n)")
_LENGTH = re.compile(r"\[\s*pause\s+(?:([0-9]{1,9})\s*ms|([0-9]{0,6})(?:\.([0-9]{1,3}))?(?<=[0-9])\s*s)\s*\]", re.I)


class Split(NamedTuple):
    """The parts of a text between its pauses."""

    parts: list[str]  # none is blank; of a text without pauses, the text as it is
    lead: int  # ms of silence before the first part
    pauses: list[int | None]  # parallel to the parts: ms of silence after each; None after the last: no mark is there

    def keep(self, spoken: Sequence[bool]) -> "Split":
        """Only the parts that are spoken; the pauses around the others add up."""
        kept = Split([], self.lead, [])
        for part, pause, stays in zip(self.parts, self.pauses, spoken, strict=True):
            if stays:
                kept.parts.append(part)
                kept.pauses.append(pause)
            elif kept.parts:
                kept.pauses[-1] = (kept.pauses[-1] or 0) + (pause or 0)
            else:
                kept = kept._replace(lead=kept.lead + (pause or 0))
        return kept


def split(text: str, paragraph_ms: int = PARAGRAPH_MS) -> Split:
    """Cut a text at its marks, [pause 500ms] or [pause 1.5s], and at its blank lines.

    Marks that follow one another add up. A blank line, or several, is a pause of `paragraph_ms`; not at the ends of the
    text, nor beside a mark, which says how long that pause is. With a `paragraph_ms` of 0 blank lines have no meaning.
    Raises Error for a mark that cannot be read, is longer than 60 s, or finer than a millisecond.
    """
    found, lead = Split([], 0, []), 0
    marks: list[int] = []  # since the last part
    for i, part in enumerate((_MARKS_AND_BLANK_LINES if paragraph_ms else _MARKS).split(text)):
        if i % 2:
            marks += [_milliseconds(part)] if part[0] == "[" else []
        elif part.strip():
            if found.parts:
                found.pauses[-1] = sum(marks) if marks else paragraph_ms
            else:
                lead = sum(marks)
            found.parts.append(part)
            found.pauses.append(None)
            marks = []
    if marks and found.parts:
        found.pauses[-1] = sum(marks)
    return found._replace(lead=lead)


def without(text: str) -> str:
    """A text as people read it: without its marks. Raises Error for one that cannot be read."""
    parts = split(text, 0).parts
    return text if parts == [text] else " ".join(part.strip() for part in parts)


def _milliseconds(mark: str) -> int:
    """The length of a mark. Raises Error."""
    if length := _LENGTH.fullmatch(mark):
        ms, seconds, fraction = length.groups()
        found = int(ms) if ms else 1000 * int(seconds or 0) + int(f"{fraction or 0:0<3}")
        if found <= LONGEST_MS:
            return found
    raise Error(
        f"{mark[:40]}: write a pause as [pause 500ms] or [pause 1.5s], of whole milliseconds, {LONGEST_MS // 1000} s "
        "at most; in other brackets, (pause), it is spoken"
    )
