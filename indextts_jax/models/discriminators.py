"""What tells recordings from synthesis: HiFi-GAN's multi-period and multi-scale discriminators (arXiv:2010.05646).

Each is a stack of convolutions in time. For a period P, samples are laid in P columns, which are convolved apart; at a
scale, they are averaged and convolved as one. The papers' weight and spectral norms, other forms of the same weights,
are left out.

Dimensions: B batch, N samples, T steps in time, P columns, C channels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import apply, dtype_of, valid, zero_padding


@dataclass(frozen=True)
class DiscriminatorsConfig:
    """The sizes of BigVGAN v2's and HiFi-GAN's."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    period_kernel: int = 5
    period_strides: tuple[int, ...] = (3, 3, 3, 3, 1)
    scales: tuple[int, ...] = (0, 1, 2)  # how often the rate is halved
    scale_channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_kernels: tuple[int, ...] = (15, 41, 41, 41, 41, 41, 5)
    scale_strides: tuple[int, ...] = (1, 2, 2, 4, 4, 1, 1)
    scale_groups: tuple[int, ...] = (1, 4, 16, 16, 16, 16, 1)


class Judged(NamedTuple):
    """What one layer of a discriminator makes of rows."""

    values: Array  # [B, T, P, C]
    lengths: Array  # [B] steps of each row's own


class Stack(nn.Module):
    """x [B, T, P], lengths [B] -> what each layer makes of it, the score [B, T, P, 1] last."""

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    groups: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> list[Judged]:
        y, found = x[..., None], []
        sizes = zip((*self.channels, 1), (*self.kernels, 3), (*self.strides, 1), (*self.groups, 1), strict=True)
        for i, (channels, kernel, stride, groups) in enumerate(sizes):
            y = jnp.where(valid(lengths, y.shape[1])[:, :, None, None], y, jnp.zeros((), y.dtype))
            y = nn.Conv(
                channels, (kernel, 1), (stride, 1), padding=((kernel // 2, kernel // 2), (0, 0)), feature_group_count=groups,
                name=f"layer_{i}",
            )(y)  # fmt: skip
            lengths = (lengths + stride - 1) // stride
            if i < len(self.channels):
                y = nn.leaky_relu(y, 0.1)
            found.append(Judged(y, lengths))
        return found


class Discriminators(nn.Module):
    """Samples [B, N], lengths [B] -> of each discriminator, what its layers make of them."""

    cfg: DiscriminatorsConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> list[list[Judged]]:
        cfg, found = self.cfg, []
        plain = len(cfg.period_channels)
        for period in cfg.periods:
            columns = jnp.pad(x, ((0, 0), (0, -x.shape[1] % period))).reshape(x.shape[0], -1, period)
            stack = Stack(
                cfg.period_channels, (cfg.period_kernel,) * plain, cfg.period_strides, (1,) * plain,
                name=f"period_{period}",
            )  # fmt: skip
            found.append(stack(columns, -(-lengths // period)))
        for scale in cfg.scales:
            y, rows = x, lengths
            for _ in range(scale):
                y, rows = _halved(y, rows)
            stack = Stack(
                cfg.scale_channels, cfg.scale_kernels, cfg.scale_strides, cfg.scale_groups, name=f"scale_{scale}"
            )
            found.append(stack(y[..., None], rows))
        return found


def _halved(x: Array, lengths: Array) -> tuple[Array, Array]:
    """Means of four samples at every other one, over zeros past the ends: [B, N], [B] -> [B, N // 2 + 1], [B]."""
    x = zero_padding(x[..., None], lengths)[..., 0]
    half = x.shape[1] // 2 + 1
    padded = jnp.pad(x, ((0, 0), (2, 3)))
    parts = [padded[:, i : i + 2 * half : 2][:, :half] for i in range(4)]
    return (parts[0] + parts[1] + parts[2] + parts[3]) / 4, lengths // 2 + 1


def init(cfg: DiscriminatorsConfig, key: Array) -> dict:
    """Random float32 parameters."""
    variables: Any = jax.jit(Discriminators(cfg).init)(key, jnp.zeros((1, 64)), jnp.array([64]))
    return variables["params"]


def judge(params: dict, cfg: DiscriminatorsConfig, samples: Array, lengths: Array) -> list[list[Judged]]:
    """Samples [B, N] within ±1, lengths [B] -> of each discriminator, what its layers make of them, the scores last."""
    samples = zero_padding(samples[..., None], lengths)[..., 0].astype(dtype_of(params))
    return apply(Discriminators(cfg), params, samples, lengths)
