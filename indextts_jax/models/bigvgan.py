"""BigVGAN v2: mel -> waveform (arXiv:2206.04658).

Every activation runs at twice the rate, between two low-pass filters of 12 taps (arXiv:2106.12423). Of each filter only
every other tap meets a given phase, so both are sums of shifted slices: as grouped convolutions they take several times
as long.

Dimensions: B batch, T frames or samples, C channels, K kernel, M mels.
"""

from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from math import gcd
from operator import add
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax.models import bigvgan_kernel
from indextts_jax.models.layers import apply, enter, on_tpu, pad_edges, zero_padding

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

    @property
    def reach(self) -> int:
        """How many mel frames before and after its own a sample hears."""
        activation = _TAPS // 2  # three samples each way up, six of the doubled rate down
        stage = max(
            sum((kernel - 1) // 2 * (by + 1) + 2 * activation for by in dilations)
            for kernel, dilations in zip(self.kernels, self.dilations, strict=True)
        )
        heard = 3 + activation  # of the last convolution and its activation
        for rate in reversed(self.upsample_rates):
            heard = -(-(heard + stage) // rate) + 1
        return heard + 3


@lru_cache
def low_pass() -> np.ndarray:
    """The filter of both directions, [12] float32: a sinc of cutoff 1/4 under a Kaiser window, of sum 1."""
    half_width = 0.3  # of the transition band, in units of the doubled rate
    attenuation = 2.285 * (_TAPS // 2 - 1) * np.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula above 50 dB
    time = np.arange(_TAPS) - _TAPS / 2 + 0.5
    taps = np.kaiser(_TAPS, beta) * np.sinc(time / 2) / 2
    return (taps / taps.sum()).astype(np.float32)


def sine_squared(turns: Array) -> Array:
    """sin²(π turns) in float32: XLA's sine is a scalar loop on CPUs, a polynomial on ±1/2 is 15 times faster."""
    turns = turns - jnp.round(turns)
    square = turns * turns
    y = jnp.full_like(square, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        y = y * square + np.float32(coefficient)
    return y * square


# sin²(πx) / x² in powers of x², to 6e-9 on ±1/2
_SINE = (9.86960292, -32.4695811, 42.72538436, -30.08594922, 12.99071405, -3.2729213)


def snake(x: Array, rate: Array, scale: Array) -> Array:
    """x + sin²(αx) / β (arXiv:2006.08195) with rate α / π and scale 1 / β."""
    return x + sine_squared(x * rate) * scale


# ---- rows in segments -----------------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """How rows lie while a TPU computes: [B, T, C] -> [L, R, W], segments of L frames, some of them side by side.

    It computes 8 x 128 elements at once: segments fill the 8 where rows do not, and stand side by side where channels
    leave room in the 128. What lies outside of a segment is taken from its neighbours wherever it is heard.
    """

    segments: int = 1  # of each row
    beside: int = 1  # segments side by side: W = beside * C

    @property
    def neighbours(self) -> bigvgan_kernel.Neighbours:
        return bigvgan_kernel.Neighbours(self.segments, self.beside)

    def apart(self, x: Array) -> Array:
        """[B, T, C] -> [L, R, W], the last segments of each row filled up with zeros."""
        T, C = x.shape[1:]
        # As long as a convolution hears at least: only the next segment is at hand.
        L = bigvgan_kernel.whole(-(-T // self.segments))
        x = jnp.pad(x, ((0, 0), (0, L * self.segments - T), (0, 0))).reshape(-1, self.beside, L, C)
        return x.transpose(2, 0, 1, 3).reshape(L, -1, self.beside * C)

    def joined(self, x: Array, rows: int, frames: int) -> Array:
        """[L, R, W] -> [B, T, C]."""
        L, R, _ = x.shape
        x = x.reshape(L, R, self.beside, -1).transpose(1, 2, 0, 3)
        return x.reshape(rows, self.segments * L, -1)[:, :frames]

    def bounds(self, lengths: Array, L: int, C: int) -> tuple[Array, Array]:
        """Of each segment its place in the row, and where the row ends in frames of the segment: two of [R, W]."""
        place = jnp.broadcast_to(jnp.arange(self.segments)[None] * L, (len(lengths), self.segments))
        both = (jnp.reshape(x, (-1, self.beside)) for x in (place, lengths[:, None] - place))
        start, end = (jnp.repeat(x, C, axis=1) for x in both)
        return start, end


def tiles(B: int, C: int) -> Cut:
    """The cut that fills a TPU's tiles: R is a multiple of 8."""
    beside = max(1, 128 // C)
    return Cut(beside * 8 // gcd(B, 8), beside)


# ---- residual blocks ------------------------------------------------------------------------------------------------

HALO = 5  # frames that an activation hears on either side


class Snakes(NamedTuple):
    """The constants of J activations side by side, [J, C] float32."""

    rate: Array
    scale: Array


class Weights(NamedTuple):
    """Of a convolution."""

    kernel: Array  # [K, C, C]
    bias: Array  # [C]


def convolve(x: Array, weights: Weights, dilation: int) -> Array:
    """A convolution of rows that are zero outside, for an activation: [B, T, C] -> [B, HALO + T + HALO, C]."""
    kernel, bias = weights
    halo = (len(kernel) - 1) * dilation // 2 + HALO
    y = jax.lax.conv_general_dilated(
        jnp.pad(x, ((0, 0), (halo, halo), (0, 0))), kernel, (1,), "VALID", rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip
    return y + bias[None, None]


@jax.jit  # traced once for all that have the same shape
def activate(xs: list[Array], snakes: Snakes, lengths: Array) -> list[Array]:
    """x + sin²(αx) / β at twice the rate, float32 inside: J of [B, HALO + T + HALO, C] -> J of [B, T, C].

    The row's own edges are repeated whatever the halo holds there; past its end, the result is zero. snakes [J, C].
    """
    J, (R, T, _) = len(xs), xs[0].shape
    L = T - 2 * HALO
    x = jnp.concatenate(xs)  # [J B, T, C]
    rate, scale = (jnp.repeat(constants, R, axis=0)[:, None] for constants in snakes)
    end = jnp.tile(lengths[:, None], (J, 1))[:, None]

    def kept(x: Array, since: int, head: Array, last: Array) -> Array:
        """x, whose frame 0 is the row's frame `since`, with `head` before the row and `last` after it."""
        frame = jnp.arange(since, since + x.shape[1])[None, :, None]
        return jnp.where(frame < 0, head, jnp.where(frame < end, x, last))

    def at_end(x: Array, since: int) -> Array:
        """The row's last frame [J B, 1, C]."""
        return jnp.take_along_axis(x, jnp.clip(end - 1 - since, 0, x.shape[1] - 1), axis=1)

    def filtered(x: Array, taps: list[float], T: int) -> Array:
        return reduce(add, (tap * x[:, i : i + T] for i, tap in enumerate(taps)))

    # Of the twelve taps every other one meets a sample. Without the barriers XLA computes each intermediate anew for
    # every one of its six readers.
    odd, even = low_pass()[1::2].tolist(), low_pass()[0::2].tolist()
    x = x.astype(jnp.float32)
    x = jax.lax.optimization_barrier(kept(x, -HALO, x[:, HALO : HALO + 1], at_end(x, -HALO)))
    # up: sample 2t hears x[t-3 .. t+2] through the odd taps, sample 2t+1 hears x[t-2 .. t+3] through the even ones
    first = snake(2 * filtered(x, odd[::-1], L + 5), rate, scale)  # from frame -2
    second = snake(2 * filtered(x, even[::-1], L + 5), rate, scale)  # from frame -3
    first, second = jax.lax.optimization_barrier((first, second))
    # down: what lies before the row is its very first sample, what lies after it its very last
    head, last = first[:, 2:3], at_end(second, -3)
    first, second = jax.lax.optimization_barrier((kept(first, -2, head, last), kept(second, -3, head, last)))
    y = filtered(first, odd, L) + filtered(second, even, L)
    return jnp.split(kept(y, 0, jnp.zeros_like(head), jnp.zeros_like(last)).astype(xs[0].dtype), J)


def blocks(
    x: Array, lengths: Array, snakes: list[Snakes], weights: list[list[Weights]], dilations: list[tuple[int, ...]]
) -> Array:
    """J residual blocks side by side, averaged: [B, T, C] -> [B, T, C].

    snakes and weights in the order of the data, dilations as the weights: [convolution][block].
    """
    xs = ys = [jnp.pad(x, ((0, 0), (HALO, HALO), (0, 0)))] * len(dilations[0])
    for i, (constants, each) in enumerate(zip(snakes, weights, strict=True)):
        ys = activate(ys, constants, lengths)
        ys = [convolve(y, *w) for y, w in zip(ys, zip(each, dilations[i], strict=True), strict=True)]
        if i % 2:  # the second of a pair
            xs = ys = [x + y for x, y in zip(xs, ys, strict=True)]
    return reduce(add, xs)[:, HALO:-HALO] / len(xs)


def alone(x: Array, lengths: Array, snakes: Snakes) -> Array:
    """An activation with no convolution behind it: [B, T, C] -> [B, T, C]."""
    [y] = activate([jnp.pad(x, ((0, 0), (HALO, HALO), (0, 0)))], snakes, lengths)
    return y


# ---- the same as a TPU computes it ----------------------------------------------------------------------------------


def _blocks_in_tiles(
    x: Array, lengths: Array, snakes: list[Snakes], weights: list[list[Weights]], dilations: list[tuple[int, ...]],
) -> Array:  # fmt: skip
    B, T, C = x.shape
    cut = tiles(B, C)
    x = cut.apart(x)
    bounds = cut.bounds(lengths, len(x), C)
    # Whether there is a segment of the same row before each, and after it.
    first = np.arange(0, B * cut.segments) % cut.segments == 0
    inner = np.stack([~first, ~np.roll(first, -1)]).reshape(2, -1, cut.beside)
    inner = jnp.asarray(np.repeat(inner, C, axis=2), x.dtype)
    xs: list[Array] = [x] * len(dilations[0])
    for i in range(0, len(snakes), 2):
        for j, x in enumerate(xs):
            y = x
            for k, added in ((i, None), (i + 1, x)):
                constants = Snakes(snakes[k].rate[j : j + 1], snakes[k].scale[j : j + 1])
                y = _activate_in_tiles(y, constants, bounds, cut)
                kernel, bias = _beside(weights[k][j], cut.beside)
                y = bigvgan_kernel.convolve(y, inner, kernel, bias[None], added, dilations[k][j], cut.neighbours)
            xs[j] = y
    return cut.joined(reduce(add, xs) / len(xs), B, T)


def _beside(weights: Weights, beside: int) -> Weights:
    """For segments side by side, each of which hears itself alone."""
    kernel, bias = weights
    K, W = len(kernel), beside * len(bias)
    own = jnp.eye(beside, dtype=kernel.dtype)[None, :, None, :, None]
    return Weights((own * kernel[:, None, :, None, :]).reshape(K, W, W), jnp.tile(bias, beside))


def _activate_in_tiles(x: Array, snakes: Snakes, bounds: tuple[Array, Array], cut: Cut) -> Array:
    """[L, R, W] -> [L, R, W]."""
    snakes = Snakes(*(jnp.tile(constants, (1, cut.beside)) for constants in snakes))
    taps = tuple(low_pass()[1::2].tolist())
    return bigvgan_kernel.activate(x, *bounds, *snakes, taps, snake, cut.neighbours)


def _alone_in_tiles(x: Array, lengths: Array, snakes: Snakes) -> Array:
    B, T, C = x.shape
    cut = tiles(B, C)
    x = cut.apart(x)
    return cut.joined(_activate_in_tiles(x, snakes, cut.bounds(lengths, len(x), C), cut), B, T)


# ---- modules --------------------------------------------------------------------------------------------------------


class Constants(nn.Module):
    """What J activations hold, as logarithms."""

    activations: int
    channels: int

    def setup(self) -> None:
        shape = (self.activations, self.channels)
        self.alpha = self.param("alpha", nn.initializers.zeros, shape)
        self.beta = self.param("beta", nn.initializers.zeros, shape)

    def __call__(self) -> Snakes:
        alpha, beta = (x.astype(jnp.float32) for x in (self.alpha, self.beta))
        return Snakes(jnp.exp(alpha) / np.float32(np.pi), 1 / (jnp.exp(beta) + 1e-9))


class Convolution(nn.Module):
    """What a convolution holds."""

    channels: int
    kernel: int

    @nn.compact
    def __call__(self) -> Weights:
        shape = (self.kernel, self.channels, self.channels)
        return Weights(
            self.param("kernel", nn.initializers.lecun_normal(), shape),
            self.param("bias", nn.initializers.zeros, (self.channels,)),
        )


class Stage(nn.Module):
    """J residual blocks side by side, averaged; each has a dilated and a plain convolution per dilation.

    All blocks of a stage advance together, so that a third of the activations are left to compile and to launch.
    """

    kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]  # of each block

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        C, J = x.shape[2], len(self.kernels)
        snakes, weights, dilations = [], [], []
        for i, dilated in enumerate(zip(*self.dilations, strict=True)):
            for k, (name, by) in enumerate((("dilated", dilated), ("plain", (1,) * J))):
                snakes.append(Constants(J, C, name=f"activation_{2 * i + k}")())
                weights.append([Convolution(C, K, name=f"{name}_{i}_{j}")() for j, K in enumerate(self.kernels)])
                dilations.append(by)
        plain, tiled = (partial(form, dilations=dilations) for form in (blocks, _blocks_in_tiles))
        if (
            max((K - 1) * max(by) // 2 for K, by in zip(self.kernels, self.dilations, strict=True))
            > bigvgan_kernel.NEAR
        ):
            return plain(x, lengths, snakes, weights)
        return on_tpu(tiled, plain)(x, lengths, snakes, weights)


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
        parts = -(-K // R)  # every input frame reaches so many output groups of `rate` samples
        width = R * self.channels
        # Samples and channels in one axis: apart, a TPU's compiler takes five times as long.
        y = jnp.einsum("btc,cn->btn", zero_padding(x, lengths), kernel.reshape(C, -1))
        y = jnp.pad(y, ((0, 0), (0, 0), (0, parts * width - y.shape[2])))
        groups = (y[:, :, i * width : (i + 1) * width] for i in range(parts))
        total = reduce(add, (jnp.pad(y, ((0, 0), (i, parts - 1 - i), (0, 0))) for i, y in enumerate(groups)))
        crop = (K - R) // 2
        y = total.reshape(B, (T + parts - 1) * R, self.channels)[:, crop : crop + T * R]
        return y + bias[None, None]


class Activation(Constants):
    """A single activation of rows: [1, B, T, C], lengths [B] -> the same."""

    def __call__(self, x: Array, lengths: Array) -> Array:  # type: ignore[override]
        return on_tpu(_alone_in_tiles, alone)(x[0], lengths, super().__call__())[None]


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
        x = Activation(1, x.shape[2], name="activation")(x[None], lengths)[0]
        x = nn.Conv(1, 7, padding="VALID", use_bias=False, name="out")(pad_edges(x, lengths, 3, 3, "zeros"))
        return jnp.clip(x[:, :, 0].astype(jnp.float32), -1.0, 1.0)


def init(cfg: BigVGANConfig, key: Array) -> dict:
    """Random float32 parameters."""
    variables: Any = Generator(cfg).init(key, jnp.zeros((1, 2, cfg.mels)), jnp.array([2]))
    return variables["params"]


@partial(jax.jit, static_argnames="cfg")
def vocode(params: dict, cfg: BigVGANConfig, mel: Array, lengths: Array) -> Array:
    """The waveform of a log-mel: [B, T, M], lengths [B] frames -> [B, T * hop] float32 within ±1.

    A row's samples past lengths * hop are zero. On TPUs it has kernels, which jit alone does not share out among chips:
    there a batch on several chips is for jax.shard_map. Reference: indextts/s2mel/modules/bigvgan/bigvgan.py.
    """
    samples = apply(Generator(cfg), params, enter(mel, lengths, params), lengths)
    return zero_padding(samples[:, :, None], lengths * cfg.hop)[:, :, 0]
