"""Features of recordings: Kaldi filterbanks and the log-mel, batched, pure JAX.

Dimensions: B batch, N samples, F frames, T pairs of frames, K frequency bins, M mel bands.
Samples are mono, between -1 and 1. The valid frames of a row depend on the row's own samples alone; those past its end
are zero.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax.models.layers import pad_edges, valid, zero_padding

MEL_RATE = 22050  # Hz: the log-mel and the vocoder
SPEECH_RATE = 16000  # Hz: w2v-BERT and CAMPPlus

# ---------------------------------------------------------------------------------------- spectrum

# A quiet band beside a loud one is where float32 fails: its rounding errors are relative to the loudest bin, 1e-3 in
# the log for clean speech, 4e-2 where a recording has no high bands. So all that is linear (offset removal,
# pre-emphasis, window, Fourier transform) is one matrix made in float64, and it and the frames are split into two parts
# of 8 bits and a rest. The products of the leading parts are exact in float32 (their sums stay below 2^24).


_BLOCK = 64  # frames transformed at once


class _Parts(NamedTuple):
    coarse: Any  # multiples of the grid
    middle: Any  # multiples of the grid / 256
    rest: Any  # what is left; the sum of the three is exact


def _split(x: Any, grid: Any) -> _Parts:
    """Numpy and JAX arrays alike; all of the gradient goes through `rest`."""
    coarse = (x / grid).round() * grid
    middle = ((x - coarse) / (grid / 256)).round() * (grid / 256)
    return _Parts(coarse, middle, x - coarse - middle)


def _transform(linear: np.ndarray, n_fft: int) -> _Parts:
    """`linear` [n, frame] float64 on the samples of a frame, then the real Fourier transform: parts [frame, 2K]."""
    spectrum = np.fft.rfft(linear, n_fft, axis=0).T  # [frame, K]
    matrix = np.concatenate([spectrum.real, spectrum.imag], axis=1)
    return _split(matrix, 2.0 ** (math.ceil(math.log2(np.abs(matrix).max())) - 7))  # the largest entry is 64 to 128


def _power(frames: Array, transform: _Parts) -> Array:
    """|spectrum|² of frames [B, F, frame] -> [B, F, K], exact to some 1e-13 of the loudest amplitude.

    Block by block: a TPU's compiler writes the products out for all frames that it is given at once, and takes three to
    ten times as long for it.
    """
    B, F, size = frames.shape
    blocks = -(-B * F // _BLOCK)
    rows = jnp.pad(frames.reshape(B * F, size), ((0, blocks * _BLOCK - B * F), (0, 0)))
    power = jax.lax.map(partial(_power_of_block, transform=transform), rows.reshape(blocks, _BLOCK, size))
    return power.reshape(blocks * _BLOCK, -1)[: B * F].reshape(B, F, -1)


def _power_of_block(frames: Array, transform: _Parts) -> Array:
    """`_power` of frames [F, frame] -> [F, K]."""
    peak = jax.lax.stop_gradient(jnp.maximum(jnp.abs(frames).max(axis=-1, keepdims=True), 2.0**-64))
    parts = _split(frames, jax.lax.reduce_precision(peak, 8, 0) / 64)  # a power of two: the peak is 48 to 96
    first = _matmul(parts.coarse, transform.coarse)
    second = _matmul(parts.coarse, transform.middle) + _matmul(parts.middle, transform.coarse)
    third = _matmul(parts.rest, transform.coarse) + _matmul(frames - parts.coarse, transform.middle)
    spectrum = (first + second) + (third + _matmul(frames, transform.rest))
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    return real * real + imaginary * imaginary


def _matmul(x: Array, matrix: np.ndarray) -> Array:
    return jnp.einsum("...fi,ij->...fj", x, matrix.astype(np.float32), precision=jax.lax.Precision.HIGHEST)


def frames_of(samples: Array, size: int, hop: int) -> Array:
    """Overlapping frames: [B, N] -> [B, F, size], laid together from whole hops, which is cheap in reverse too."""
    count, hops = 1 + (samples.shape[1] - size) // hop, math.ceil(size / hop)
    if count < 1:
        raise ValueError(f"{samples.shape[1]} samples are less than one frame of {size}")
    length = (count + hops - 1) * hop
    padded = jnp.pad(samples, ((0, 0), (0, max(0, length - samples.shape[1]))))[:, :length]
    blocks = padded.reshape(-1, count + hops - 1, hop)
    return jnp.concatenate([blocks[:, i : i + count] for i in range(hops)], axis=-1)[:, :, :size]


def _triangles(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Triangular filters over `points` [K], each from one of `edges` [M + 2] over the next to the one after: [K, M]."""
    rising = (points[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


# ---------------------------------------------------------------- Kaldi filterbank, two front ends

KALDI_FRAME = SPEECH_RATE * 25 // 1000  # 25 ms
KALDI_HOP = SPEECH_RATE * 10 // 1000  # 10 ms
KALDI_FFT = 512  # the next power of two
KALDI_BANDS = 80
KALDI_LOWEST = 20.0  # Hz; the highest is the Nyquist frequency
PRE_EMPHASIS = 0.97
POWER_FLOOR = 2.0**-23  # float32 epsilon, before the logarithm
INT16_SCALE = 2.0**15  # w2v-BERT was trained on samples as 16-bit integers


class SpeechFeatures(NamedTuple):
    """The input of w2v-BERT."""

    features: Array  # [B, T, 160], two frames of 80 bands side by side, every 20 ms
    lengths: Array  # [B], the pair that holds an odd last frame included
    mask: Array  # [B, T] bool: what w2v-BERT attends to; False for that pair, although its output is used


@lru_cache(maxsize=1)
def kaldi_filterbank() -> np.ndarray:
    """Kaldi's filters: triangles in mel space, mel(f) = 1127·ln(1 + f/700), not normalised: [257, 80] float64."""

    def to_mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    lowest, highest = to_mel(np.array([KALDI_LOWEST, SPEECH_RATE / 2]))
    bins = np.arange(KALDI_FFT // 2 + 1) * (SPEECH_RATE / KALDI_FFT)
    return _triangles(to_mel(bins), np.linspace(lowest, highest, KALDI_BANDS + 2))


@lru_cache(maxsize=1)
def _kaldi_transform() -> _Parts:
    """Offset removal, pre-emphasis, symmetric Povey window (zero at the sample that has no predecessor), FFT."""
    size = KALDI_FRAME
    centre = np.eye(size) - 1.0 / size
    emphasis = np.eye(size) - PRE_EMPHASIS * np.eye(size, k=-1)
    povey = np.hanning(size) ** 0.85
    return _transform(povey[:, None] * (emphasis @ centre), KALDI_FFT)


def fbank(samples: Array, lengths: Array) -> tuple[Array, Array]:
    """Kaldi's log filterbank energies of samples [B, N] at 16 kHz, lengths [B] -> ([B, F, 80] float32, lengths [B]).

    No dither, no padding at the edges: F = 1 + (N - 400) // 160. Raises ValueError if N < 400.
    """
    power = _power(frames_of(samples, KALDI_FRAME, KALDI_HOP), _kaldi_transform())
    features = jnp.log(jnp.maximum(_matmul(power, kaldi_filterbank()), POWER_FLOOR))
    lengths = jnp.maximum(0, 1 + (lengths - KALDI_FRAME) // KALDI_HOP)
    return zero_padding(features, lengths), lengths


def _mean(x: Array, lengths: Array, unbiased: int = 0) -> Array:
    """Mean over a row's own frames, [B, F, C] with zero padding -> [B, 1, C]; `unbiased` is taken off the divisor."""
    return x.sum(axis=1, keepdims=True) / jnp.maximum(lengths - unbiased, 1).astype(x.dtype)[:, None, None]


@jax.jit
def campplus_features(samples: Array, lengths: Array) -> tuple[Array, Array]:
    """CAMPPlus's input, filterbank energies less their time mean: [B, N] at 16 kHz -> ([B, F, 80], lengths [B])."""
    features, lengths = fbank(samples, lengths)
    return zero_padding(features - _mean(features, lengths), lengths), lengths


@jax.jit
def w2vbert_features(samples: Array, lengths: Array) -> SpeechFeatures:
    """w2v-BERT's input from samples [B, N] at 16 kHz, lengths [B] (transformers' SeamlessM4TFeatureExtractor).

    Filterbank energies, each band normalised over the row's own frames, two frames side by side. An odd last frame is
    paired with ones (the extractor's padding value).
    """
    features, lengths = fbank(samples * INT16_SCALE, lengths)
    centred = zero_padding(features - _mean(features, lengths), lengths)
    features = centred / jnp.sqrt(_mean(centred * centred, lengths, unbiased=1) + 1e-7)
    F = features.shape[1]
    features = jnp.where(valid(lengths, F)[:, :, None], features, 1.0)
    features = jnp.pad(features, ((0, 0), (0, F % 2), (0, 0)), constant_values=1.0)
    features = features.reshape(-1, (F + 1) // 2, 2 * KALDI_BANDS)
    pairs = (lengths + 1) // 2
    return SpeechFeatures(zero_padding(features, pairs), pairs, valid(lengths // 2, features.shape[1]))


# ----------------------------------------------------------------------------------------- log-mel


@dataclass(frozen=True)
class MelConfig:
    """Sizes of the log-mel; the defaults are IndexTTS-2's, which are those of BigVGAN v2 22 kHz 80 band 256x."""

    rate: int = MEL_RATE  # Hz
    n_fft: int = 1024  # 46 ms
    window: int = 1024
    hop: int = 256  # 86.13 frames per second
    mels: int = 80
    fmin: float = 0.0  # Hz
    fmax: float | None = None  # Hz; None is the Nyquist frequency


OFFICIAL_MEL = MelConfig()


@lru_cache(maxsize=4)
def slaney_filterbank(cfg: MelConfig = OFFICIAL_MEL) -> np.ndarray:
    """Slaney's filters, librosa's default: triangles over Hz of equal area (2 / width), [n_fft / 2 + 1, mels] float64.

    The mel scale is linear up to 1 kHz (200/3 Hz each, so 15 mel there), then logarithmic (27 mel for a factor of 6.4).
    """
    step, knee, ratio = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0

    def to_mel(hertz: float) -> float:
        return hertz / step if hertz < knee else knee / step + math.log(hertz / knee) / ratio

    highest = cfg.rate / 2 if cfg.fmax is None else cfg.fmax
    mel_edges = np.linspace(to_mel(cfg.fmin), to_mel(highest), cfg.mels + 2)
    edges = np.where(mel_edges < knee / step, mel_edges * step, knee * np.exp(ratio * (mel_edges - knee / step)))
    bins = np.arange(cfg.n_fft // 2 + 1) * (cfg.rate / cfg.n_fft)
    return _triangles(bins, edges) * (2.0 / (edges[2:] - edges[:-2]))


@lru_cache(maxsize=4)
def _mel_transform(cfg: MelConfig) -> _Parts:
    left = (cfg.n_fft - cfg.window) // 2
    hann = np.hanning(cfg.window + 1)[:-1]  # periodic
    return _transform(np.diag(np.pad(hann, (left, cfg.n_fft - cfg.window - left))), cfg.n_fft)


@partial(jax.jit, static_argnames="cfg")
def mel(samples: Array, lengths: Array, cfg: MelConfig = OFFICIAL_MEL) -> tuple[Array, Array]:
    """Log-mel of samples [B, N] at cfg.rate, lengths [B] -> ([B, F, mels] float32, lengths [B]); F = N // hop.

    Mirrored at each row's own ends, not centred (`s2mel/modules/audio.py`, as HiFi-GAN and BigVGAN). Rows must be
    longer than (n_fft - hop) / 2 samples.
    """
    edge = (cfg.n_fft - cfg.hop) // 2
    padded = pad_edges(samples[:, :, None], lengths, edge, edge, "reflect")[:, :, 0]
    amplitude = jnp.sqrt(_power(frames_of(padded, cfg.n_fft, cfg.hop), _mel_transform(cfg)) + 1e-9)
    features = jnp.log(jnp.maximum(_matmul(amplitude, slaney_filterbank(cfg)), 1e-5))
    lengths = jnp.maximum(0, 1 + (lengths + 2 * edge - cfg.n_fft) // cfg.hop)
    return zero_padding(features, lengths), lengths
