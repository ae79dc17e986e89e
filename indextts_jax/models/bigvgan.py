"""BigVGAN v2: mel -> waveform (arXiv:2206.04658).

Every activation runs at twice the rate, between two low-pass filters of 12 taps (arXiv:2106.12423). Of each filter only
every other tap meets a given phase, so both are sums of shifted slices: as grouped convolutions they take several times
as long.

Dimensions: B batch, T frames or samples, C channels, K kernel, M mels.
"""

from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import add
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax.models.layers import apply, enter, pad_edges, valid, zero_padding

_TAPS = 12


@dataclass(frozen=True)
class BigVGANConfig:
    mels: int = 80
    channels: int = 1536
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return int(np.prod(self.upsample_rates))


@lru_cache
def low_pass() -> np.ndarray:
    """The filter of both directions, [12] float32: a sinc of cutoff 1/4 under a Kaiser window, of sum 1."""
    half_width = 0.3  # of the transition band, in units of the doubled rate
    attenuation = 2.285 * (_TAPS // 2 - 1) * np.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula above 50 dB
    time = np.arange(_TAPS) - _TAPS / 2 + 0.5
    taps = np.kaiser(_TAPS, beta) * np.sinc(time / 2) / 2
    return (taps / taps.sum()).astype(np.float32)


def sine_squared(x: Array) -> Array:
    """sin²(x) in float32 to 4e-7: XLA's sine is a scalar loop on CPUs, a polynomial on ±π/2 is 15 times faster."""
    turns = jnp.round(x * np.float32(1 / np.pi))
    # π in two parts, the first exact in few bits, so that the difference loses nothing
    x = x - turns * np.float32(3.140625) - turns * np.float32(np.pi - 3.140625)
    square = x * x
    y = jnp.full_like(x, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        y = y * square + np.float32(coefficient)
    return jnp.square(x * y)


# sin(x) / x in powers of x², least squares on ±π/2
_SINE = (1.0, -1.66666666e-01, 8.33333097e-03, -1.98408613e-04, 2.75252754e-06, -2.38893087e-08)


class Activation(nn.Module):
    """x + sin²(αx) / β at twice the rate, float32 inside; the row's own edges are repeated.

    x [J, B, T, C], lengths [B] -> [J, B, T, C]: J activations side by side, each with its own α and β.
    """

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        J, B, T, C = x.shape
        # Stored as logarithms
        alpha = self.param("alpha", nn.initializers.zeros, (J, C)).astype(jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, (J, C)).astype(jnp.float32)
        alpha, scale = (jnp.repeat(a, B, axis=0)[:, None] for a in (jnp.exp(alpha), 1 / (jnp.exp(beta) + 1e-9)))
        lengths = jnp.tile(lengths, J)

        def snake(x: Array) -> Array:
            return x + sine_squared(x * alpha) * scale

        def filtered(x: Array, taps: np.ndarray) -> Array:
            return reduce(add, (tap * x[:, i : i + T] for i, tap in enumerate(taps.tolist())))

        # Without the barriers XLA computes each intermediate anew for every one of its six readers.
        even, odd = low_pass()[0::2], low_pass()[1::2]  # six taps each
        # up: sample 2t hears x[t-3 .. t+2] through the odd taps, sample 2t+1 hears x[t-2 .. t+3] through the even ones
        padded = pad_edges(x.reshape(J * B, T, C).astype(jnp.float32), lengths, 3, 3, "replicate")
        padded = jax.lax.optimization_barrier(padded)
        first = snake(2 * filtered(padded[:, :-1], odd[::-1]))
        second = snake(2 * filtered(padded[:, 1:], even[::-1]))
        first, second = jax.lax.optimization_barrier((first, second))
        # down: what lies before the row is its very first sample, what lies after it its very last
        inside = valid(lengths, T)[:, :, None]
        last = jnp.take_along_axis(second, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)

        def surrounded(y: Array, left: int, right: int) -> Array:
            before = jnp.broadcast_to(first[:, :1], (J * B, left, C))
            after = jnp.broadcast_to(last, (J * B, right, C))
            return jnp.concatenate([before, jnp.where(inside, y, last), after], axis=1)

        first, second = jax.lax.optimization_barrier((surrounded(first, 2, 3), surrounded(second, 3, 2)))
        return (filtered(first, odd) + filtered(second, even)).astype(x.dtype).reshape(J, B, T, C)


class Stage(nn.Module):
    """J residual blocks side by side, averaged; each has a dilated and a plain convolution per dilation.

    All blocks of a stage advance together, so that a third of the activations are left to compile and to launch.
    """

    kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]  # of each block

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        C, blocks = x.shape[-1], list(enumerate(self.kernels))

        def convolve(xs: Array, name: str, dilations: tuple[int, ...]) -> Array:
            ys = []
            for j, kernel in blocks:
                edge = (kernel - 1) * dilations[j] // 2
                y = pad_edges(xs[j], lengths, edge, edge, "zeros")
                convolution = nn.Conv(C, kernel, kernel_dilation=dilations[j], padding="VALID", name=f"{name}_{j}")
                ys.append(convolution(y))
            return jnp.stack(ys)

        xs = jnp.broadcast_to(x, (len(blocks), *x.shape))
        for i, dilations in enumerate(zip(*self.dilations, strict=True)):
            ys = Activation(name=f"activation_{2 * i}")(xs, lengths)
            ys = convolve(ys, f"dilated_{i}", dilations)
            ys = Activation(name=f"activation_{2 * i + 1}")(ys, lengths)
            xs = xs + convolve(ys, f"plain_{i}", (1,) * len(blocks))
        return xs.sum(0) / len(blocks)


class Upsample(nn.Module):
    """A transposed convolution as one product and an addition of shifted parts: [B, T, C] -> [B, rate T, channels]."""

    channels: int
    kernel: int
    rate: int

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        B, T, C = x.shape
        K, R = self.kernel, self.rate
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (C, K, self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = jnp.einsum("btc,cko->btko", zero_padding(x, lengths), kernel)
        parts = -(-K // R)  # every input frame reaches so many output groups of `rate` samples
        y = jnp.pad(y, ((0, 0), (0, 0), (0, parts * R - K), (0, 0))).reshape(B, T, parts, R, self.channels)
        total = reduce(add, (jnp.pad(y[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0), (0, 0))) for i in range(parts)))
        crop = (K - R) // 2
        y = total.reshape(B, (T + parts - 1) * R, self.channels)[:, crop : crop + T * R]
        return y + bias[None, None]


class Generator(nn.Module):
    """mel [B, T, M], lengths [B] -> waveform [B, T * hop] within ±1."""

    cfg: BigVGANConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        cfg = self.cfg
        x = nn.Conv(cfg.channels, 7, padding="VALID", name="in")(pad_edges(x, lengths, 3, 3, "zeros"))
        for i, (rate, kernel) in enumerate(zip(cfg.upsample_rates, cfg.upsample_kernels, strict=True)):
            x = Upsample(cfg.channels // 2 ** (i + 1), kernel, rate, name=f"upsample_{i}")(x, lengths)
            lengths = lengths * rate
            x = Stage(cfg.kernels, cfg.dilations, name=f"stage_{i}")(x, lengths)
        x = Activation(name="activation")(x[None], lengths)[0]
        x = nn.Conv(1, 7, padding="VALID", use_bias=False, name="out")(pad_edges(x, lengths, 3, 3, "zeros"))
        return jnp.clip(x[:, :, 0].astype(jnp.float32), -1.0, 1.0)


def init(cfg: BigVGANConfig, key: Array) -> dict:
    """Random float32 parameters."""
    variables: Any = Generator(cfg).init(key, jnp.zeros((1, 2, cfg.mels)), jnp.array([2]))
    return variables["params"]


@partial(jax.jit, static_argnames="cfg")
def vocode(params: dict, cfg: BigVGANConfig, mel: Array, lengths: Array) -> Array:
    """The waveform of a log-mel: [B, T, M], lengths [B] frames -> [B, T * hop] float32 within ±1.

    A row's samples past lengths * hop are zero. Reference: indextts/s2mel/modules/bigvgan/bigvgan.py.
    """
    samples = apply(Generator(cfg), params, enter(mel, lengths, params), lengths)
    return zero_padding(samples[:, :, None], lengths * cfg.hop)[:, :, 0]
