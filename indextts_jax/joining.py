"""Joining: audio files one after another in one file, and its subtitles.

A cue is a text and where it is spoken, in samples. Its times are rounded from there, each by itself, so that they never
drift: what is right in the first minute is right in the tenth hour.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import soundfile

from indextts_jax import files, interrupts
from indextts_jax.audio import AudioError, Encoder
from indextts_jax.errors import Error, shown
from indextts_jax.files import FileError, reason
from indextts_jax.text import CJK

MOST_WAV_BYTES = 2**32 - 2**12  # its sizes have 32 bits; what goes beyond (RF64) many players do not read
_BLOCK = 1 << 16  # samples


class Cue(NamedTuple):
    """A text, and where it is spoken."""

    start: int  # first sample
    end: int  # one past the last
    text: str


class Part(NamedTuple):
    """An audio file, the silence after it, and what is spoken in it, by its own samples."""

    path: Path
    silence_after_ms: int = 0
    cues: tuple[Cue, ...] = ()


def join(
    parts: Iterable[Part], path: Path, kind: str, rate: int, force: bool = False, subtitles: Iterable[Path] = ()
) -> int:
    """Write audio files of `rate` Hz, each with its silence after it, as one of a kind of `audio.FORMATS`: -> samples.

    subtitles: files to write, .srt or .vtt, of all cues. The same parts give the same bytes. Everything is read and
    written in pieces, and appears under its name only when all is complete; the audio last. A WAV file holds 4 GB at
    most (27 hours at 22 050 Hz); flac and ogg go on.

    Raises FileError for what cannot be written or, without `force`, exists already, AudioError for a part that cannot
    be read, or has another rate or several channels.
    """
    targets = [path, *subtitles]
    for target in targets:
        if target is not path and target.suffix.lower() not in _FORMATS:
            raise Error(f"{target}: subtitles end in .srt or .vtt; rename it")
        if target.exists() and not force:
            raise FileError(f"{target}: exists already; add --force to replace it, or choose another name")
    taken = {os.path.realpath(target) for target in targets}
    position = 0
    with ExitStack() as stack:
        temporary = stack.enter_context(files.whole_file(path))
        writers = [_Subtitles(stack, target, rate) for target in targets[1:]]
        encoder = stack.enter_context(Encoder(temporary, rate, kind, path))

        def write(samples: np.ndarray) -> None:
            nonlocal position
            position += len(samples)
            if kind == "wav" and 2 * position > MOST_WAV_BYTES:
                raise FileError(f"{path}: a WAV file holds 4 GB at most; write flac or ogg, or join fewer items")
            encoder.write(samples)

        for part in parts:
            if os.path.realpath(part.path) in taken:
                raise FileError(f"{part.path}: is to be joined and written at once; choose another name")
            for cue in part.cues:
                for writer in writers:
                    writer.add(Cue(position + cue.start, position + cue.end, cue.text))
            _read(part.path, rate, write)
            silence = round(part.silence_after_ms * rate / 1000)
            for start in range(0, silence, _BLOCK):
                write(np.zeros(min(_BLOCK, silence - start), np.int16))
        if not position:
            raise Error(f"{path}: there is nothing to join")
    return position


def _read(path: Path, rate: int, write: Callable[[np.ndarray], None]) -> None:
    """Hand on the samples of a file, block by block."""
    files.open_file(path).close()
    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.channels) != (rate, 1):
                raise AudioError(
                    f"{path}: {file.channels} channels at {file.samplerate} Hz, but one channel at {rate} Hz is "
                    "joined; make it again"
                )
            while len(samples := file.read(_BLOCK, dtype="int16")):
                interrupts.check()
                write(samples)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path} cannot be read as audio ({shown(error)}); make it again") from None


# ---- subtitles ------------------------------------------------------------------------------------------------------


def words(cue: Cue) -> tuple[Cue, ...]:
    """The words of a cue, each CJK character one, with estimates of where they are spoken: from its start to its end.

    Each takes a share by its length: a letter or mark counts 1, a digit or CJK character 3, which is a syllable.
    """
    found = [word for word in _WORD.findall(cue.text) if word]
    ends = list(accumulate(sum(3 if _SYLLABLE.match(c) else 1 for c in word) for word in found))
    edges = [cue.start + (cue.end - cue.start) * end // ends[-1] for end in [0, *ends]] if ends else []
    return tuple(Cue(*place, word) for word, place in zip(found, pairwise(edges), strict=True))


def write(path: Path, cues: Iterable[Cue], rate: int) -> None:
    """Write cues as subtitles, .srt or by the path .vtt, there with the times of `words`. Raises FileError."""
    files.write_whole(path, _all(path.suffix.lower(), cues, rate, True).encode())


def srt(cues: Iterable[Cue], rate: int) -> str:
    """Subtitles as SubRip has them, of cues in their order; those without a text are left out.

    A line with "-->" would be read as times: its arrow becomes "->". Blank lines in a text would end it, and are left
    out. Times are whole milliseconds; each cue ends after it starts, and none starts before the one before it ends.
    """
    return _all(".srt", cues, rate)


def vtt(cues: Iterable[Cue], rate: int, stamped: bool = False) -> str:
    """Subtitles as WebVTT has them: as `srt`, but & and < and > are escaped.

    stamped: before each word but the first stands the time when it begins, by the estimate of `words`.
    """
    return _all(".vtt", cues, rate, stamped)


def _all(suffix: str, cues: Iterable[Cue], rate: int, stamped: bool = False) -> str:
    layout = _Layout(suffix, rate, stamped)
    return _FORMATS[suffix].header + "".join(map(layout.block, cues))


class _Format(NamedTuple):
    header: str
    point: str  # between seconds and milliseconds
    numbered: bool
    escape: Callable[[str], str]


_FORMATS = {
    ".srt": _Format("", ",", True, lambda text: re.sub("--+>", "->", text)),
    ".vtt": _Format(
        "WEBVTT\n\n",
        ".",
        False,
        lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    ),
}
_SYLLABLE = re.compile(rf"\d|(?=[{CJK}])\w")
_WORD = re.compile(rf"[^\w\s]*[{CJK}][^\w\s]*|[^\s{CJK}]+[^\w\s]*")


class _Layout:
    """Makes the text of one cue after another."""

    def __init__(self, suffix: str, rate: int, stamped: bool = False):
        self._format, self._rate, self._stamped = _FORMATS[suffix], rate, stamped and suffix == ".vtt"
        self._number, self._end = 0, 0  # of the last cue; ms

    def block(self, cue: Cue) -> str:
        lines = [line.strip() for line in cue.text.splitlines() if line.strip()]
        if not lines:
            return ""
        start = max(self._milliseconds(cue.start), self._end)
        self._end = max(self._milliseconds(cue.end), start + 1)
        self._number += 1
        number = f"{self._number}\n" if self._format.numbered else ""
        text = self._text("\n".join(lines), words(cue) if self._stamped else (), start)
        return f"{number}{self._time(start)} --> {self._time(self._end)}\n{text}\n\n"

    def _text(self, text: str, stamped: Iterable[Cue], last: int) -> str:
        """The text, with times before those words that begin later than `last`, and than one another, and in time."""
        parts, done = [], 0
        for word in stamped:
            at, time = text.find(word.text, done), self._milliseconds(word.start)
            if at >= 0 and last < time < self._end:
                parts += [self._format.escape(text[done:at]), f"<{self._time(time)}>"]
                done, last = at, time
        return "".join([*parts, self._format.escape(text[done:])])

    def _milliseconds(self, sample: int) -> int:
        return (2000 * sample + self._rate) // (2 * self._rate)  # exact, halves up

    def _time(self, milliseconds: int) -> str:
        seconds, milliseconds = divmod(milliseconds, 1000)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:02}:{minutes:02}:{seconds:02}{self._format.point}{milliseconds:03}"


class _Subtitles:
    """A file of subtitles, written cue by cue until `stack` ends."""

    def __init__(self, stack: ExitStack, path: Path, rate: int):
        self._path, self._layout = path, _Layout(path.suffix.lower(), rate)
        temporary = stack.enter_context(files.whole_file(path))
        self._file: TextIO = stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
        self._write(_FORMATS[path.suffix.lower()].header)

    def add(self, cue: Cue) -> None:
        self._write(self._layout.block(cue))

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {reason(error)}; free some space") from error
