"""BigVGAN's activation and its convolution as TPU kernels.

Time is the outermost axis and segments and channels fill the tiles of 8 x 128, so that a tap of a filter is another
tile: no element moves. An activation reads every frame once and writes it once, with nothing in memory between. The
plain forms, which these equal, are in `bigvgan`; XLA needs minutes to compile what these need seconds for.

Dimensions: T frames, R segments, W channels.
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_STEP = 8  # frames at a time; where a row begins, all that is replaced lies in the first of these steps
_TILE = 512  # frames at most that are fetched and written together

_MEMORY = 64 * 2**20  # bytes that a kernel may take of a v5e's 128 MiB beside its arithmetic

Snake = Callable[[Array, Array, Array], Array]  # x, rate, scale -> y


@partial(jax.jit, static_argnames=("taps", "snake", "interpret"))
def activate(
    x: Array, start: Array, end: Array, rate: Array, scale: Array,
    taps: tuple[float, ...], snake: Snake, interpret: bool = False,
) -> Array:  # fmt: skip
    """x [T, R, W] with 5 frames of halo on either side; start, end [R, W], rate, scale [1, W] -> [T - 10, R, W].

    start: the place of a segment in its row, 0 in the first. end: where its row ends, in frames of the segment.
    taps: every other one of the 12 of the filter; the rest are the same backwards.
    """
    T, R, W = x.shape
    halo, rows, width = len(taps) - 1, min(R, 8), min(W, 128)
    tiles = pl.cdiv(T, _TILE)
    tile = pl.cdiv(T, tiles * _STEP) * _STEP
    place = pl.BlockSpec((rows, width), lambda r, w, t: (r, w))
    channel = pl.BlockSpec((1, width), lambda r, w, t: (0, w))
    frames = pl.BlockSpec((tile, rows, width), lambda r, w, t: (t, r, w))
    y = pl.pallas_call(
        partial(_kernel, taps=taps, snake=snake),
        out_shape=jax.ShapeDtypeStruct((T, R, W), x.dtype),
        grid=(pl.cdiv(R, rows), pl.cdiv(W, width), tiles),
        in_specs=[place, place, channel, channel, frames],
        out_specs=frames,
        scratch_shapes=[pltpu.VMEM((halo, rows, width), jnp.float32)] * 3,
        interpret=interpret,
        name="activation",
    )(start, end, rate, scale, x)
    return y[2 * halo :]


def _kernel(
    start_ref: Any, end_ref: Any, rate_ref: Any, scale_ref: Any, x_ref: Any, y_ref: Any, *kept_refs: Any,
    taps: tuple[float, ...], snake: Snake,
) -> None:  # fmt: skip
    """A tile of x to a tile of y, which lags by twice the halo: y[t] is the segment's frame t - 10, x[t] its t - 5.

    STEP frames at a time enter three windows: of x, and of the first and the second sample of each frame at twice the
    rate. `kept` are the last 5 of each, from step to step and from tile to tile.
    """
    halo, tile, shape = len(taps) - 1, x_ref.shape[0], x_ref.shape[1:]
    start, end = start_ref[...], end_ref[...]
    rate, scale = (jnp.broadcast_to(ref[...], shape)[None] for ref in (rate_ref, scale_ref))
    up, opening = [2 * tap for tap in taps], pl.program_id(2) * tile

    def window(x: Array, i: int) -> Array:
        return x[i : i + _STEP]

    def step(k: Array, kept: tuple[Array, ...]) -> tuple[Array, ...]:
        t = opening + k * _STEP
        inside = [t - 2 * halo + i < end for i in range(halo + _STEP)]  # from the frame of y[t]

        def ended(x: Array, since: int, last: Array) -> Array:
            """x [STEP, ...], whose frame 0 is `since` after that of y[t], with `last` [STEP, ...] past the end."""
            return jnp.stack([jnp.where(inside[since + i], x[i], last[i]) for i in range(_STEP)])

        def held(x: Array, since: int, last: Array) -> Array:
            """The same with the last frame inside repeated; `last` is the one before x."""
            frames = [last]
            for i in range(_STEP):
                frames.append(jnp.where(inside[since + i], x[i], frames[-1]))
            return jnp.stack(frames[1:])

        begins = (t + start == 0)[None]
        x = held(x_ref[pl.ds(k * _STEP, _STEP)].astype(jnp.float32), halo, kept[0][-1])
        x = jnp.concatenate([kept[0], jnp.where(begins, x[halo : halo + 1], x[:halo]), x[halo:]])
        # Up: both samples of a frame hear the same six frames, one through the taps backwards.
        first = snake(reduce(add, (tap * window(x, i) for i, tap in enumerate(up[::-1]))), rate, scale)
        second = snake(reduce(add, (tap * window(x, i) for i, tap in enumerate(up))), rate, scale)
        # Before the row lies its very first sample, after it its very last.
        first, second = (jnp.where(begins, first[-1:], samples) for samples in (first, second))
        second = held(second, 2, kept[2][-1])
        first = ended(first, 3, second)
        # Down: what the same tap meets is added first.
        first, second = jnp.concatenate([kept[1], first]), jnp.concatenate([kept[2], second])
        y = reduce(add, (tap * (window(first, i) + window(second, halo - i)) for i, tap in enumerate(taps)))
        y_ref[pl.ds(k * _STEP, _STEP)] = ended(y, 0, jnp.zeros_like(y)).astype(y_ref.dtype)
        return x[_STEP:], first[_STEP:], second[_STEP:]

    last = jax.lax.fori_loop(0, tile // _STEP, step, tuple(ref[...] for ref in kept_refs))
    for ref, frames in zip(kept_refs, last, strict=True):
        ref[...] = frames


@partial(jax.jit, static_argnames=("dilation", "interpret"))
def convolve(x: Array, kernel: Array, bias: Array, dilation: int, interpret: bool = False) -> Array:
    """x [T, R, W], kernel [K, W, C], bias [1, C] -> [T - (K - 1) dilation, R, C]; R must be a multiple of 8."""
    (T, R, W), (K, _, C) = x.shape, kernel.shape
    span = (K - 1) * dilation
    tile = max(64, pl.cdiv(span, 16) * 16)
    after = 16 if span <= 16 and tile % 16 == 0 else tile  # frames of the next tile that come with each
    width, last = min(C, 128), (T - 1) // after
    return pl.pallas_call(
        partial(_convolve, dilation=dilation),
        out_shape=jax.ShapeDtypeStruct((T - span, R, C), x.dtype),
        grid=(pl.cdiv(R, 8), pl.cdiv(C, width), pl.cdiv(T - span, tile)),
        in_specs=[
            pl.BlockSpec((K, W, width), lambda r, c, t: (0, 0, c)),
            pl.BlockSpec((1, width), lambda r, c, t: (0, c)),
            pl.BlockSpec((tile, 8, W), lambda r, c, t: (t, r, 0)),
            pl.BlockSpec((after, 8, W), lambda r, c, t: (jnp.minimum((t + 1) * (tile // after), last), r, 0)),
        ],
        out_specs=pl.BlockSpec((tile, 8, width), lambda r, c, t: (t, r, c)),
        scratch_shapes=[pltpu.VMEM((tile + after, 8, W), x.dtype)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY),
        interpret=interpret,
        name="convolution",
    )(kernel, bias, x, x)


def _convolve(
    kernel_ref: Any, bias_ref: Any, x_ref: Any, after_ref: Any, y_ref: Any, heard: Any, dilation: int
) -> None:
    """A tile of y: one product per tap, added up in float32."""
    tile, R, W = x_ref.shape
    heard[:tile], heard[tile:] = x_ref[...], after_ref[...]
    y = jnp.broadcast_to(bias_ref[...].astype(jnp.float32), (tile * R, y_ref.shape[2]))
    for k in range(len(kernel_ref)):
        x = heard[k * dilation : k * dilation + tile].reshape(tile * R, W)
        y += jnp.dot(x, kernel_ref[k], preferred_element_type=jnp.float32)
    y_ref[...] = y.reshape(y_ref.shape).astype(y_ref.dtype)
