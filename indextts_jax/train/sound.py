"""Losses of samples, through which `jax.grad` goes: [B, N] float32 and lengths [B] -> one number per row, [B] float32.

A row's number does not depend on its padding or on other rows. Recordings are compared with what was measured of others
before: features, styles and vectors, so that the other recording is listened to once.

Dimensions: B batch, N samples, F frames, T semantic frames, D widths.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import features
from indextts_jax.audio import sinc_kernel
from indextts_jax.config import Config
from indextts_jax.features import OFFICIAL_MEL, SPEECH_RATE, MelConfig
from indextts_jax.models import Params, campplus, conditioner, w2vbert
from indextts_jax.models.layers import pad_edges, valid, zero_padding

# Points of the Fourier transform, hop and window in samples: those of Parallel WaveGAN (arXiv:1910.11480)
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
FLOOR = 1e-3  # of a magnitude, before its logarithm


# ---- samples against samples ----------------------------------------------------------------------------------------


def mean_of_rows(x: Array, lengths: Array) -> Array:
    """The mean over a row's own frames, and over what each holds: x [B, T, ...], lengths [B] -> [B] float32."""
    x = x.astype(jnp.float32).reshape(*x.shape[:2], -1).mean(axis=-1)
    total = jnp.where(valid(lengths, x.shape[1]), x, 0.0).sum(axis=1)
    return total / jnp.maximum(lengths, 1).astype(jnp.float32)


def log_mel_l1(samples: Array, other: Array, lengths: Array, cfg: MelConfig = OFFICIAL_MEL) -> Array:
    """The mean distance of two log-mels: samples and other [B, N] at cfg.rate, of one length -> [B].

    Those of `features.mel`, by a Fourier transform in float32. Rows must be longer than (n_fft - hop) / 2 samples.
    """
    ours, frames = _log_mel(samples, lengths, cfg)
    return mean_of_rows(jnp.abs(ours - _log_mel(other, lengths, cfg)[0]), frames)


def _log_mel(samples: Array, lengths: Array, cfg: MelConfig) -> tuple[Array, Array]:
    """`features.mel`, whose exact products are for quiet bands, which matter less where distances are averaged."""
    edge = (cfg.n_fft - cfg.hop) // 2
    padded = pad_edges(zero_padding(samples[:, :, None], lengths), lengths, edge, edge, "reflect")[:, :, 0]
    frames = features.frames_of(padded, cfg.n_fft, cfg.hop)
    amplitude = jnp.sqrt(_power(frames, cfg.window, cfg.n_fft) + 1e-9)
    bands = jnp.asarray(features.slaney_filterbank(cfg), jnp.float32)
    mel = jnp.einsum("bfk,km->bfm", amplitude, bands, precision="highest")
    return jnp.log(jnp.maximum(mel, 1e-5)), lengths // cfg.hop


def _power(frames: Array, window: int, points: int) -> Array:
    """The power spectrum of frames [B, F, size] under a periodic Hann window in their middle: [B, F, K]."""
    before = (frames.shape[2] - window) // 2
    hann = np.pad(np.hanning(window + 1)[:-1], (before, frames.shape[2] - window - before)).astype(np.float32)
    spectrum = jnp.fft.rfft(frames * jnp.asarray(hann)[None, None], points)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def multi_resolution_stft(
    samples: Array, other: Array, lengths: Array, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS
) -> Array:
    """Spectral convergence and distance of log magnitudes, each a mean over resolutions, added up (arXiv:1910.11480).

    samples, other [B, N], other the one that is to be met; a resolution is (points, hop, window) in samples. Frames are
    centred at every hop, over zeros past a row's ends. Magnitudes below 1e-3 count as 1e-3.
    """
    total = jnp.zeros(samples.shape[0])
    for points, hop, window in resolutions:
        ours, frames = _magnitudes(samples, lengths, points, hop, window)
        theirs, _ = _magnitudes(other, lengths, points, hop, window)
        inside = valid(frames, ours.shape[1])[:, :, None]
        difference = jnp.square(jnp.where(inside, ours - theirs, 0.0)).sum((1, 2))
        # Where they are equal, the root has no slope: zero, not NaN
        norm = jnp.sqrt(jnp.where(difference > 0, difference, 1.0))
        convergence = jnp.where(difference > 0, norm, 0.0) / jnp.sqrt(
            jnp.square(jnp.where(inside, theirs, 0.0)).sum((1, 2))
        )
        total = total + convergence + mean_of_rows(jnp.abs(jnp.log(ours) - jnp.log(theirs)), frames)
    return total / len(resolutions)


def _magnitudes(samples: Array, lengths: Array, points: int, hop: int, window: int) -> tuple[Array, Array]:
    """Short-time Fourier magnitudes, at least FLOOR: [B, N], lengths [B] -> ([B, F, K], frames [B])."""
    samples = zero_padding(samples[:, :, None], lengths)[:, :, 0]
    padded = jnp.pad(samples, ((0, 0), (window // 2, window - window // 2)))
    power = _power(features.frames_of(padded, window, hop), window, points)
    return jnp.sqrt(jnp.maximum(power, FLOOR**2)), 1 + lengths // hop


# ---- samples against what networks hear -----------------------------------------------------------------------------


def resample(samples: Array, lengths: Array, from_rate: int, to_rate: int) -> tuple[Array, Array]:
    """Samples [B, N] at another rate, [B, ceil(N to / from)], and their lengths: linear, so that gradients go through.

    `audio.resample_sinc`, with which a voice is heard, as one product per block of samples.
    """
    if from_rate == to_rate:
        return samples, lengths
    divisor = math.gcd(from_rate, to_rate)
    stride, phases = from_rate // divisor, to_rate // divisor
    kernel, reach = sinc_kernel(stride, phases)
    samples = zero_padding(samples[:, :, None], lengths)[:, :, 0]
    size = -(-samples.shape[1] * phases // stride)
    blocks = -(-size // phases)
    padded = jnp.pad(samples, ((0, 0), (reach, blocks * stride + reach - samples.shape[1])))
    windows = features.frames_of(padded, kernel.shape[1], stride)
    found = jnp.einsum("bft,pt->bfp", windows, jnp.asarray(kernel), precision="highest")
    lengths = -(-lengths * phases // stride)
    return zero_padding(found.reshape(len(samples), -1, 1)[:, :size], lengths)[:, :, 0], lengths


def style(params: Params, cfg: Config, samples: Array, lengths: Array, rate: int) -> Array:
    """The CAMPPlus style of samples [B, N] at `rate` Hz, at least 400 of them at 16 kHz: [B, style] float32."""
    heard = features.campplus_features(*resample(samples, lengths, rate, SPEECH_RATE))
    return campplus.embed(params["campplus"], cfg.campplus, *heard).astype(jnp.float32)


def semantic(params: Params, cfg: Config, samples: Array, lengths: Array, rate: int) -> tuple[Array, Array]:
    """The w2v-BERT features of samples [B, N] at `rate` Hz: ([B, T, E] float32, lengths [B]), 50 Hz."""
    heard, frames, seen = features.w2vbert_features(*resample(samples, lengths, rate, SPEECH_RATE))
    return w2vbert.encode(params["w2vbert"], cfg.w2vbert, heard, seen, frames), frames


def emotion(params: Params, cfg: Config, samples: Array, lengths: Array, rate: int) -> Array:
    """The emotion vector of samples [B, N] at `rate` Hz, at least 3 semantic frames (0.07 s): [B, D] float32."""
    heard = semantic(params, cfg, samples, lengths, rate)
    return conditioner.emotion_vector(params["conditioner"], cfg.conditioner, *heard).astype(jnp.float32)


def cosine(a: Array, b: Array) -> Array:
    """[B, D], [B, D] -> [B] float32."""
    a, b = (x.astype(jnp.float32) for x in (a, b))
    return (a * b).sum(-1) / jnp.maximum(jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1), 1e-12)


def speaker_similarity(
    params: Params, cfg: Config, samples: Array, lengths: Array, other: Array, rate: int = OFFICIAL_MEL.rate
) -> Array:
    """The cosine of the samples' style and another, [B, style] (`style`, `Voice.style`): 1 for the same."""
    return cosine(style(params, cfg, samples, lengths, rate), other)


def semantic_distance(
    params: Params, cfg: Config, samples: Array, lengths: Array, other: Array, rate: int = OFFICIAL_MEL.rate
) -> Array:
    """The mean square between the samples' semantic features and others of as many frames, [B, T, E] (`semantic`)."""
    found, frames = semantic(params, cfg, samples, lengths, rate)
    return mean_of_rows(jnp.square(found - other.astype(jnp.float32)), frames)


def emotion_distance(
    params: Params, cfg: Config, samples: Array, lengths: Array, other: Array, rate: int = OFFICIAL_MEL.rate
) -> Array:
    """One less the cosine of the samples' emotion vector and another, [B, D] (`emotion`, `Model.feel`)."""
    return 1 - cosine(emotion(params, cfg, samples, lengths, rate), other)
