"""Samples as the bytes of an answer: a whole file, or one that is sent while it grows.

Dimensions: N samples, mono, between -1 and 1.
"""

import io
import os

import numpy as np
import soundfile
import soxr

from indextts_jax import audio
from indextts_jax.audio import AudioError, to_int16
from indextts_jax.errors import shown
from indextts_jax.growing import wav_header

# What `response_format` may be -> the media type, and the rate in Hz where none is asked for (None: the model's).
# Of samples alone a client cannot see the rate: OpenAI's have 24 kHz. Opus knows none near the model's.
TYPES: dict[str, tuple[str, int | None]] = {
    "mp3": ("audio/mpeg", None),
    "opus": ("audio/ogg", 24_000),
    "ogg": ("audio/ogg", None),
    "flac": ("audio/flac", None),
    "wav": ("audio/wav", None),
    "pcm": ("audio/pcm", 24_000),
}
_FORMATS = {**audio.FORMATS, "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}
_BLOCK = 1 << 16  # samples that libsndfile gets at once: Vorbis overflows its stack with millions


def rate_of(kind: str, asked: int | None, own: int) -> int:
    """The rate in Hz to send. Raises AudioError for one that `kind` does not know."""
    rate = asked or TYPES[kind][1] or own
    if kind not in ("wav", "pcm"):
        _open(io.BytesIO(), kind, rate).close()
    return rate


def whole(samples: np.ndarray, rate: int, kind: str, target: int) -> bytes:
    """Samples [N] at `rate` Hz as a file at `target` Hz; of wav, flac and ogg the bytes that `speak` writes."""
    if kind in audio.FORMATS:
        return audio.encode(samples, rate, kind, target)
    samples = to_int16(audio.resample(samples, rate, target))
    if kind == "pcm":
        return samples.astype("<i2").tobytes()
    found = io.BytesIO()
    with _open(found, kind, target) as file:
        _write(file, samples)
    return found.getvalue()


class Growing:
    """Samples at `rate` Hz on their way to a client, as a file of `kind` at `target` Hz whose length nobody knows."""

    def __init__(self, kind: str, rate: int, target: int):
        self._resample = None if target == rate else soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
        self._plain = kind in ("wav", "pcm")
        self._sent = _Sent()
        self._file = None if self._plain else _open(self._sent, kind, target)
        if kind == "wav":
            self._sent.write(wav_header(target, None))

    def bytes_of(self, samples: np.ndarray, last: bool) -> bytes:
        """What to send for samples [N] float32 that follow those before; last: no more do."""
        if self._resample is not None:
            samples = self._resample.resample_chunk(samples, last=last)
        samples = to_int16(samples)
        if self._file is None:
            self._sent.write(samples.astype("<i2").tobytes())
        else:
            _write(self._file, samples)
            if last:
                self._file.close()
        return self._sent.take()


class _Sent(io.RawIOBase):
    """A file whose beginning has been sent: what is written there again, such as a length in a header, is dropped."""

    def __init__(self) -> None:
        self._gone, self._left, self._place = 0, bytearray(), 0

    def take(self) -> bytes:
        taken = bytes(self._left)
        self._gone, self._left = self._gone + len(taken), bytearray()
        return taken

    def write(self, data: bytes) -> int:  # type: ignore[override]
        start, size = self._place - self._gone, len(data)
        self._place += size
        kept = bytes(data)[max(0, -start) :]
        self._left[max(0, start) : max(0, start) + len(kept)] = kept
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._gone + len(self._left)}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        return b""


def _open(file: object, kind: str, rate: int) -> soundfile.SoundFile:
    form, subtype = _FORMATS[kind]
    # Readers tell the length of an MP3 file without one from its first frames: so let all be of one size.
    more = {"bitrate_mode": "CONSTANT", "compression_level": 0.7} if kind == "mp3" else {}
    try:
        return soundfile.SoundFile(file, "w", rate, 1, subtype, format=form, **more)  # type: ignore[arg-type]
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(
            f"cannot make {kind} at {rate} Hz ({shown(error)}); choose another response_format or sample_rate"
        ) from None


def _write(file: soundfile.SoundFile, samples: np.ndarray) -> None:
    for start in range(0, len(samples), _BLOCK):
        file.write(samples[start : start + _BLOCK])
