"""CAMPPlus: filterbank frames -> one speaker style vector (arXiv:2303.00332).

A small 2-D convolutional head, then a densely connected time-delay network whose layers are gated by their context.
Batch norms that follow a layer are folded into it; those that precede one remain as scale and shift.

Dimensions: B batch, T frames, F filterbank bins, C channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import apply, enter, pad_edges, valid, zero_padding


@dataclass(frozen=True)
class CAMPPlusConfig:
    features: int = 80
    embedding: int = 192
    head_channels: int = 32
    channels: int = 128
    growth: int = 32
    bottleneck: int = 128
    blocks: tuple[int, ...] = (12, 24, 16)
    dilations: tuple[int, ...] = (1, 2, 2)
    kernel: int = 3
    segment: int = 100  # frames of one pooling segment


class Scale(nn.Module):
    """A batch norm of fixed statistics, in float32, then ReLU."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        return nn.relu(x.astype(jnp.float32) * scale[None, None] + bias[None, None]).astype(x.dtype)


class Head(nn.Module):
    """[B, T, F] -> [B, T, C * F / 8], channel by channel: strided in frequency, never in time."""

    cfg: CAMPPlusConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        C = self.cfg.head_channels
        inside = valid(lengths, x.shape[1])[:, None, :, None]

        def convolve(x: Array, name: str, kernel: int = 3, stride: int = 1) -> Array:
            x = jnp.where(inside, x, jnp.zeros((), x.dtype))  # what lies past the row's end is padding, that is zero
            return nn.Conv(C, (kernel, kernel), (stride, 1), padding=kernel // 2, name=name)(x)

        def residual(x: Array, name: str, stride: int) -> Array:
            y = nn.relu(convolve(x, f"{name}_first", stride=stride))
            y = convolve(y, f"{name}_second")
            return nn.relu(y + (x if stride == 1 else convolve(x, f"{name}_shortcut", kernel=1, stride=stride)))

        y = nn.relu(convolve(x.transpose(0, 2, 1)[..., None], "in"))  # [B, F, T, C]
        for i in range(2):
            y = residual(y, f"layer_{i}_0", stride=2)
            y = residual(y, f"layer_{i}_1", stride=1)
        y = nn.relu(convolve(y, "out", stride=2))
        return y.transpose(0, 2, 3, 1).reshape(*x.shape[:2], -1)


class Layer(nn.Module):
    """One densely connected layer: [B, T, any] -> [B, T, growth], gated by global and segment means."""

    cfg: CAMPPlusConfig
    dilation: int

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        cfg = self.cfg
        x = nn.relu(nn.Dense(cfg.bottleneck, name="reduce")(Scale(name="norm")(x)))
        x = zero_padding(x, lengths)
        edge = (cfg.kernel - 1) // 2 * self.dilation
        local = nn.Conv(
            cfg.growth, cfg.kernel, kernel_dilation=self.dilation, padding=edge, use_bias=False, name="local"
        )(x)
        context = nn.relu(nn.Dense(cfg.bottleneck // 2, name="context_in")(_context(x, lengths, cfg.segment)))
        return local * nn.sigmoid(nn.Dense(cfg.growth, name="context_out")(context))


def _context(x: Array, lengths: Array, segment: int) -> Array:
    """The mean of a row plus the mean of each frame's segment, float32 sums; `x` is zero past each row's end."""
    B, T, C = x.shape
    count = -(-T // segment)
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, count * segment - T), (0, 0)))
    sums = wide.reshape(B, count, segment, C).sum(2)
    total = sums.sum(1, keepdims=True) / jnp.maximum(lengths, 1).astype(jnp.float32)[:, None, None]
    # a row's last segment is divided by its real length
    sizes = jnp.clip(lengths[:, None] - segment * jnp.arange(count)[None], 1, segment).astype(jnp.float32)
    means = jnp.repeat(sums / sizes[:, :, None], segment, axis=1)[:, :T]
    return (total + means).astype(x.dtype)


class Network(nn.Module):
    """[B, T, F], lengths [B] -> [B, embedding]."""

    cfg: CAMPPlusConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        cfg = self.cfg
        x = Head(cfg, name="head")(x, lengths)
        x = pad_edges(x, lengths, 2, 2, "zeros")
        x = nn.relu(nn.Conv(cfg.channels, 5, 2, padding="VALID", name="in")(x))
        lengths = (lengths + 1) // 2
        for i, (layers, dilation) in enumerate(zip(cfg.blocks, cfg.dilations, strict=True)):
            for j in range(layers):
                x = jnp.concatenate([x, Layer(cfg, dilation, name=f"block_{i}_layer_{j}")(x, lengths)], axis=-1)
            x = nn.Dense(x.shape[-1] // 2, use_bias=False, name=f"transit_{i}")(Scale(name=f"transit_{i}_norm")(x))
        statistics = _statistics(Scale(name="out_norm")(x), lengths)
        return nn.Dense(cfg.embedding, name="out")(statistics)


def _statistics(x: Array, lengths: Array) -> Array:
    """Mean and unbiased standard deviation over each row's frames, float32 inside: [B, T, C] -> [B, 2 C]."""
    wide = zero_padding(x, lengths).astype(jnp.float32)
    frames = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None]
    mean = wide.sum(1) / frames
    squares = jnp.square(zero_padding(wide - mean[:, None], lengths)).sum(1)
    # The root has no slope at zero, where a channel lies that its ReLU holds down: its gradient is zero, not NaN.
    moving = squares > 0
    deviation = jnp.sqrt(jnp.where(moving, squares, 1.0) / jnp.maximum(frames - 1, 1))
    return jnp.concatenate([mean, jnp.where(moving, deviation, 0.0)], axis=-1).astype(x.dtype)


def init(cfg: CAMPPlusConfig, key: Array) -> dict:
    """Random float32 parameters."""
    variables: Any = Network(cfg).init(key, jnp.zeros((1, 8, cfg.features)), jnp.array([8]))
    return variables["params"]


@partial(jax.jit, static_argnames="cfg")
def embed(params: dict, cfg: CAMPPlusConfig, features: Array, lengths: Array) -> Array:
    """The style of a speaker: features [B, T, F] (log filterbanks less their mean), lengths [B] -> [B, embedding].

    Reference: indextts/s2mel/modules/campplus/DTDNN.py.
    """
    return apply(Network(cfg), params, enter(features, lengths, params), lengths)
