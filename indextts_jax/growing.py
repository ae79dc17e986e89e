"""Sound that can be played while it is written: a WAV file that grows, or samples to a pipe.

Not like all other outputs, which appear only once they are complete: what is there is valid at any time but for the
sizes in the header, which players of growing files ignore, and which are written at the end, whatever ends it.
"""

import struct
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soxr

from indextts_jax.audio import to_int16
from indextts_jax.errors import Error
from indextts_jax.files import FileError, reason

_UNKNOWN = 2**32 - 1  # as a size: until the end


class Closed(Error):
    """Whoever reads the samples has gone."""


class Growing:
    """Samples, mono and 16 bit, on their way to an open file without a buffer; `name`: what messages call it.

    They come at `rate` Hz and are written at `target` Hz. header: with that of a WAV file, whose sizes are written at
    the end if the file can seek; else samples alone.
    """

    def __init__(self, file: BinaryIO, rate: int, target: int, name: str, header: bool = True):
        self._file, self._rate, self._name, self._header = file, target, name, header
        self._resample = None if target == rate else soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
        self.samples = 0  # written so far
        if header:
            self._write(wav_header(target, None))

    @property
    def seconds(self) -> float:
        return self.samples / self._rate

    def write(self, samples: np.ndarray, last: bool) -> None:
        """Add samples [N] float32 in -1..1, and see that they can be heard. Raises FileError, Closed."""
        if self._resample is not None:
            samples = self._resample.resample_chunk(samples, last=last)
        self._write(to_int16(samples).astype("<i2").tobytes())
        self.samples += len(samples)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # a pipe takes what it has room for
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise Closed(f"{self._name} was closed by its reader after {self.seconds:.2f} s of sound") from None
        except OSError as error:
            raise FileError(
                f"cannot write {self._name} ({reason(error)}); it holds the first {self.seconds:.2f} s; free some space"
            ) from error

    def close(self) -> None:
        """Write the sizes, where that is possible, and leave out what was written in part. The file stays open."""
        if not self._header or not self._file.seekable():
            return
        self._file.truncate(len(wav_header(self._rate, None)) + 2 * self.samples)
        self._file.seek(0)
        self._file.write(wav_header(self._rate, self.samples))

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def wav_header(rate: int, samples: int | None) -> bytes:
    """The 44 bytes before the samples of a mono file of 16 bits; None: of unknown length."""
    size = _UNKNOWN if samples is None or 2 * samples + 36 > _UNKNOWN else 2 * samples
    whole = _UNKNOWN if size == _UNKNOWN else size + 36
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", size)
