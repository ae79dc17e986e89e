"""Recordings: audio files and resampling (numpy, on the host).

Dimensions: N samples, mono, between -1 and 1.
"""

import contextlib
import io
import logging
import math
import os
import shutil
import subprocess
import zlib
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr
from jax import Array

from indextts_jax import interrupts
from indextts_jax.errors import Error, shown
from indextts_jax.features import MEL_RATE, SPEECH_RATE
from indextts_jax.files import FileError, reason, write_whole

logger = logging.getLogger(__name__)

MAX_SECONDS = 15  # what the system listens to of a recording
MIN_SECONDS = 0.1  # 8 filterbank frames, 4 of w2v-BERT: the conditioner's stride-2 convolution needs 3
PEAK = 16.0  # of any recording: floats may exceed 1, by far less than integers that nobody scaled
SILENCE = 1e-4  # peak of a silent recording: three steps of 16 bits
READ_MARGIN = 0.5  # seconds past the cut, so that the resampling filter does not see the end (at 8 kHz it spans 0.1 s)


# What soundfile does not read, and ffmpeg does: the end of a file's name -> what ffmpeg calls its format. It is told
# that, lest it take a file for a playlist, which would name other files.
FFMPEG_FORMATS = {
    **dict.fromkeys((".m4a", ".m4b", ".mp4", ".mov", ".3gp"), "mov"),
    **dict.fromkeys((".webm", ".mkv", ".mka"), "matroska"),
    **{".aac": "aac", ".wma": "asf", ".amr": "amr"},
}
FFMPEG_SECONDS = 120  # until it is taken for stuck
MOST_SECONDS = 3600  # what it gives of a file that is read to its end


class AudioError(Error):
    """A recording that cannot be used, or samples that cannot be written; the message says which and what to do."""


class Recording(NamedTuple):
    """A speaker's voice at the two rates the system uses, at most 15 s."""

    samples_22k: np.ndarray  # [N] float32
    samples_16k: np.ndarray  # [N'] float32, made from the 22.05 kHz ones
    emotion_16k: np.ndarray  # [N''] float32, made from the file in one step, as the reference does for an emotion


def read(path: str | os.PathLike[str], seconds: float | None = None, start: float = 0.0) -> tuple[np.ndarray, int]:
    """`seconds` (None: all) of an audio file from `start` seconds on: mono samples [N] float32, and the rate in Hz.

    Any format, rate and number of channels that soundfile reads, and what ffmpeg reads of `FFMPEG_FORMATS` where it is
    installed; channels are averaged. Raises AudioError for what is missing, no audio, shorter than 0.1 s, silent, far
    too loud or not finite.
    """
    path = Path(path)
    if not 0 <= start < math.inf:
        raise AudioError(f"the start is {start} s, but must be at least 0 s")
    if not path.exists():
        raise AudioError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise AudioError(f"{path} is a folder; give one audio file")
    if not path.is_file():
        raise AudioError(f"{path} is a device or a pipe; save the recording as a file first")
    if path.stat().st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes); copy or download it again")
    try:
        path.open("rb").close()
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({reason(error)}); check its permissions") from None
    try:
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            channels = _decode(file, str(path), seconds, start)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless .raw file
        interrupts.check()
        if path.suffix.lower() not in FFMPEG_FORMATS:
            raise AudioError(
                f"{path} cannot be read as audio ({shown(error)}); convert it to WAV, for example with: "
                "ffmpeg -i IN OUT.wav"
            ) from error
        with _by_ffmpeg(path, MOST_SECONDS if seconds is None else seconds, start) as file:
            rate = int(file.samplerate)
            channels = _decode(file, str(path), None, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        samples = channels.mean(axis=1)  # [N]
    name = _named(path, start)
    usable = len(samples) and np.abs(channels).max() <= PEAK  # which NaN is not
    if usable and _is_silent(samples) and not all(map(_is_silent, channels.T)):
        raise AudioError(
            f"{name} is silent when its channels are averaged: they cancel each other; keep one of them, for example "
            "with: ffmpeg -i IN -af 'pan=mono|c0=c0' OUT.wav"
        )
    _check(samples, rate, name)
    return samples, rate


def _decode(file: soundfile.SoundFile, name: str, seconds: float | None, start: float) -> np.ndarray:
    """Part of an open file, [N, channels] float32."""
    rate, first = file.samplerate, round(start * file.samplerate)
    if first and first >= file.frames:
        raise AudioError(f"{name} has {file.frames / rate:.2f} s of sound, none from {start:g} s on; start earlier")
    if first:
        file.seek(first)
    return file.read(-1 if seconds is None else math.ceil(seconds * rate), dtype="float32", always_2d=True)


def _by_ffmpeg(path: Path, seconds: float, start: float) -> soundfile.SoundFile:
    """Part of a file that soundfile does not read, at its own rate. Raises AudioError."""
    by_hand = "convert it to WAV, for example with: ffmpeg -i IN OUT.wav"
    if (program := shutil.which("ffmpeg")) is None:
        raise AudioError(
            f"{path}: {path.suffix} files are read by ffmpeg, which is not installed; install it, or {by_hand}"
        )
    source = ["-protocol_whitelist", "file", "-f", FFMPEG_FORMATS[path.suffix.lower()], "-i", f"file:{path.absolute()}"]
    cut = ["-ss", f"{start:.6f}", "-t", f"{seconds:.6f}"]
    wanted = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    try:
        done = subprocess.run(
            [program, "-nostdin", "-v", "error", *cut, *source, *wanted], capture_output=True, timeout=FFMPEG_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise AudioError(f"{path}: ffmpeg did not read it within {FFMPEG_SECONDS} s; {by_hand}") from None
    except OSError as error:
        raise AudioError(f"{path}: ffmpeg cannot be run ({reason(error)}); {by_hand}") from None
    interrupts.check()
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-150:]
    if done.returncode:
        raise AudioError(f"{path} cannot be read by ffmpeg ({said or done.returncode}); {by_hand}")
    try:
        file = soundfile.SoundFile(io.BytesIO(done.stdout))
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: ffmpeg gave no sound ({said or shown(error)}); {by_hand}") from None
    if start and not file.frames:
        raise AudioError(f"{path} has no sound from {start:g} s on; start earlier")
    return file


def load_speaker(path: str | os.PathLike[str], start: float = 0.0) -> Recording:
    """The speaker's voice in a file, from `start` seconds on. Raises AudioError.

    Reference: `infer_v2.py`, which resamples to 22 050 Hz with librosa and on to 16 kHz with torchaudio.
    """
    return recording(*read(path, MAX_SECONDS + READ_MARGIN, start), name=_named(path, start))


def load_emotion(path: str | os.PathLike[str], start: float = 0.0) -> np.ndarray:
    """An emotion recording's samples at 16 kHz, [N] float32, from `start` seconds on. Raises AudioError.

    Reference: `infer_v2.py`, which resamples to 16 kHz with librosa.
    """
    return emotion(*read(path, MAX_SECONDS + READ_MARGIN, start), name=_named(path, start))


def _named(path: str | os.PathLike[str], start: float) -> str:
    return f"{path} from {start:g} s on" if start else str(path)


def recording(samples: np.ndarray, rate: int, name: str = "the recording") -> Recording:
    """A speaker's voice from samples [N] at `rate` Hz, cut at 15 s. Raises AudioError, naming `name`."""
    samples = _cut(samples, rate, name)
    samples_22k = _fit(samples, rate, MEL_RATE, name)
    samples_16k = resample_sinc(samples_22k, MEL_RATE, SPEECH_RATE)
    return Recording(samples_22k, samples_16k, _fit(samples, rate, SPEECH_RATE, name))


def emotion(samples: np.ndarray, rate: int, name: str = "the emotion recording") -> np.ndarray:
    """An emotion recording at 16 kHz from samples [N] at `rate` Hz, cut at 15 s. Raises AudioError, naming `name`."""
    return _fit(_cut(samples, rate, name), rate, SPEECH_RATE, name)


def _cut(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    samples = np.asarray(samples)
    _check(samples, rate, name)
    if len(samples) > MAX_SECONDS * rate:
        logger.warning("%s is longer than %d s: only its first %d s are used", name, MAX_SECONDS, MAX_SECONDS)
    return samples[: math.ceil((MAX_SECONDS + READ_MARGIN) * rate)].astype(np.float32)


def _fit(samples: np.ndarray, rate: int, to_rate: int, name: str) -> np.ndarray:
    if rate != to_rate:
        length = math.ceil(len(samples) * (to_rate / rate))  # where soxr ends a sample earlier, librosa adds a zero
        samples = soxr.resample(samples, rate, to_rate, quality="HQ")[:length]
        samples = np.pad(samples, (0, length - len(samples)))
    samples = samples[: MAX_SECONDS * to_rate]
    _check(samples, to_rate, name)
    return samples


def _check(samples: np.ndarray, rate: int, name: str) -> None:
    if rate <= 0:
        raise AudioError(f"{name}: a rate of {rate} Hz; give the samples per second")
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(f"{name}: samples {samples.shape} {samples.dtype}; give one channel [N] of floats in -1..1")
    if len(samples) < MIN_SECONDS * rate:
        seconds = math.floor(1000 * len(samples) / rate) / 1000  # 0.0999 s are not 0.100 s
        raise AudioError(f"{name} has {seconds:.3f} s of sound; at least {MIN_SECONDS} s are needed")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds samples that are NaN or infinite; export it again")
    if (peak := np.abs(samples).max()) > PEAK:
        raise AudioError(
            f"{name} holds samples that reach {peak:.3g}, but they must lie in -1..1; divide integers by their largest "
            "value, or export it again with 16 bits"
        )
    if _is_silent(samples):
        seconds = len(samples) / rate
        raise AudioError(f"{name} is silent in the {seconds:.1f} s that were read; give one with speech there")


def _is_silent(samples: np.ndarray) -> bool:
    return bool(np.abs(samples - samples.mean()).max() < SILENCE)


def resample_sinc(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Windowed-sinc resampling, torchaudio's default (Hann, 6 crossings, rolloff 0.99): [N] -> [ceil(N·to/from)]."""
    if from_rate == to_rate:
        return samples
    divisor = math.gcd(from_rate, to_rate)
    stride, phases = from_rate // divisor, to_rate // divisor
    kernel, reach = sinc_kernel(stride, phases)
    padded = np.pad(samples, (reach, reach + stride))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::stride]
    # Tap after tap, in the order of the reference's convolution. Not with BLAS, whose sums depend on the number of its
    # threads, and so on the machine and what it is told.
    found = np.zeros((len(windows), len(kernel)), np.float32)
    product = np.empty_like(found)
    for tap in range(kernel.shape[1]):
        found += np.multiply(windows[:, tap, None], kernel[None, :, tap], out=product)
    return found.reshape(-1)[: math.ceil(len(samples) * phases / stride)]


@lru_cache(maxsize=8)
def sinc_kernel(stride: int, phases: int, crossings: int = 6, rolloff: float = 0.99) -> tuple[np.ndarray, int]:
    """The filter of each output phase, [phases, 2·reach + stride] float32, and its reach past the block of `stride`."""
    cutoff = min(stride, phases) * rolloff
    reach = math.ceil(crossings * stride / cutoff)
    # The reference divides in float32 here, then goes on in float64; float64 throughout moves the kernel by 7e-6.
    phase = (-np.arange(phases, dtype=np.float32) / np.float32(phases)).astype(np.float64)
    time = phase[:, None] + np.arange(-reach, reach + stride) / stride  # [phases, taps]
    time = np.clip(time * cutoff, -crossings, crossings)
    window = np.cos(time * np.pi / crossings / 2) ** 2
    return (np.sinc(time) * window * (cutoff / stride)).astype(np.float32), reach


def to_int16(samples: np.ndarray | Array) -> np.ndarray:
    """Samples in -1..1 as 16-bit integers: 32767·x, clamped and truncated towards zero. Raises AudioError for NaN."""
    samples = np.asarray(samples, np.float32)
    if np.isnan(samples).any():
        raise AudioError("the waveform holds NaN; check the weights and the precision")
    return np.clip(samples * np.float32(32767), -32767, 32767).astype(np.int16)


# ---- files of our own -----------------------------------------------------------------------------------------------

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS")}


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The kind of `FORMATS` that the name of a file ends in; None for another end."""
    kind = Path(path).suffix.lower().removeprefix(".")
    return kind if kind in FORMATS else None


def write_wav(path: str | os.PathLike[str], samples: np.ndarray, rate: int = MEL_RATE) -> None:
    """Write samples [N] int16 as a mono WAV file that appears only once it is complete.

    Raises FileError, or AudioError for other samples.
    """
    path = Path(path)
    if samples.ndim != 1 or samples.dtype != np.int16:
        raise AudioError(
            f"cannot write {path}: samples {samples.shape} {samples.dtype}; give one channel [N] of int16 (to_int16)"
        )
    write_whole(path, _encode(samples, rate, "wav"))


def encode(samples: np.ndarray, rate: int, kind: str, target_rate: int | None = None) -> bytes:
    """Samples [N] in -1..1 at `rate` Hz as a mono file of 16 bits, at `target_rate` Hz if that is given.

    kind: "wav" (what `write_wav` writes), "flac", or "ogg" (Vorbis). The same samples give the same bytes, where the
    libraries are the same. What exceeds -1..1 is clipped. Raises AudioError for NaN, for no samples, and for a
    rate that `kind` does not know.
    """
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(f"samples {samples.shape} {samples.dtype}; give one channel [N] of floats in -1..1")
    if not len(samples):
        raise AudioError("there are no samples to encode")
    target_rate = rate if target_rate is None else target_rate
    return _encode(to_int16(resample(samples, rate, target_rate)), target_rate, kind)


def resample(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Samples [N] from `rate` to `target_rate` Hz, as `encode` writes them: -> [N'] float32. Raises AudioError."""
    if target_rate < 1:
        raise AudioError(f"a rate of {target_rate} Hz; give the samples per second")
    if target_rate == rate:
        return samples
    return soxr.resample(samples.astype(np.float32), rate, target_rate, quality="HQ")


def _encode(samples: np.ndarray, rate: int, kind: str) -> bytes:
    encoded = io.BytesIO()
    with Encoder(encoded, rate, kind) as encoder:
        encoder.write(samples)
    return encoded.getvalue()


class Encoder:
    """Writes 16-bit samples, piece by piece, as a mono file of a kind of `FORMATS`, into memory or at a path.

    The same samples give the same bytes, in whatever pieces they come. At a path, what cannot be written raises
    FileError, at `close` at the latest.
    """

    def __init__(self, file: io.BytesIO | Path, rate: int, kind: str, name: Path | None = None):
        """name: what messages call it, instead of its path."""
        self._file, self._kind, self._name = file, kind, name or file
        self._frames, self._digest, self._waiting = 0, 0, np.zeros(0, np.int16)
        form, subtype = FORMATS[kind]
        try:
            self._sound = soundfile.SoundFile(file, "w", rate, 1, subtype, format=form)
        except soundfile.SoundFileError as error:
            if getattr(error, "code", 0) == _SYSTEM_ERROR:
                raise self._failed(shown(error)) from None
            raise AudioError(
                f"cannot write {kind} at {rate} Hz ({shown(error)}); choose another rate or kind"
            ) from None

    def write(self, samples: np.ndarray) -> None:
        """Add samples [N] int16."""
        samples = np.concatenate([self._waiting, samples])
        whole = len(samples) - len(samples) % _BLOCK
        for start in range(0, whole, _BLOCK):
            self._write(samples[start : start + _BLOCK])
        self._waiting = samples[whole:]

    def _write(self, block: np.ndarray) -> None:
        try:
            self._sound.write(block)
        except (soundfile.SoundFileError, AssertionError) as error:  # fewer were written
            raise self._failed(shown(error)) from None
        self._frames += len(block)
        self._digest = zlib.crc32(block.tobytes(), self._digest)

    def close(self) -> None:
        """Complete the file, and see that it holds all that was written."""
        try:
            if len(self._waiting):
                self._write(self._waiting)
        finally:
            self._sound.close()
        if self._kind == "ogg":
            with contextlib.ExitStack() as stack:
                file = self._file if isinstance(self._file, io.BytesIO) else stack.enter_context(self._file.open("r+b"))
                file.seek(0)
                _set_serial(file, self._digest.to_bytes(4, "little"))
        if isinstance(self._file, Path):
            try:
                frames = soundfile.info(str(self._file)).frames
            except soundfile.SoundFileError as error:
                raise self._failed(shown(error)) from None
            if frames != self._frames:
                raise self._failed(f"{frames} of {self._frames} samples were written")

    def _failed(self, why: str) -> FileError:
        return FileError(f"cannot write {self._name} ({why}); free some space or choose another place")

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._sound.close()


_SYSTEM_ERROR = 2  # of libsndfile: not of its formats, but of the file
# What libsndfile gets at once, in samples: it overflows its stack where it encodes millions as Vorbis, and where its
# blocks end shows in the bytes.
_BLOCK = 1 << 16
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte with its bits in reverse


def _set_serial(file: BinaryIO, serial: bytes) -> None:
    """Give the one stream of an Ogg file its serial number, which libsndfile draws by the clock (RFC 3533)."""
    while len(header := file.read(27)) == 27:  # a file that was cut short is found later
        start = file.tell() - len(header)
        sizes = file.read(header[26])
        rest = header[26:] + sizes + file.read(sum(sizes))
        end = file.tell()
        for offset, value in ((14, serial), (22, _checksum(header[:14] + serial + header[18:22] + bytes(4) + rest))):
            file.seek(start + offset)
            file.write(value)
        file.seek(end)


def _checksum(page: bytes) -> bytes:
    """CRC-32 as Ogg has it: zlib's with the bits the other way round, and without its inversions."""
    reverse = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reverse:032b}"[::-1], 2).to_bytes(4, "little")
