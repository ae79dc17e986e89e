"""BigVGAN's activation and its convolution as TPU kernels.

Time is the outermost axis and segments and channels fill the tiles of 8 x 128, so that a tap of a filter is another
tile: no element moves. An activation reads every frame once and writes it once, with nothing in memory between. The
plain forms, which these equal, are in `bigvgan`; XLA needs minutes to compile what these need seconds for.

Dimensions: T frames, R segments, W channels.
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_STEP = 8  # frames at a time; where a row begins, all that is replaced lies in the first of these steps
_TILE = 512  # frames at most that are fetched and written together
NEAR = 32  # frames at most that a convolution hears on either side

_MEMORY = 64 * 2**20  # bytes that a kernel may take of a v5e's 128 MiB beside its arithmetic

Snake = Callable[[Array, Array, Array], Array]  # x, rate, scale -> y


class Neighbours(NamedTuple):
    """How segments lie: one behind the other in the lanes, `beside` of them, then in the next of R."""

    segments: int  # of a row; those of eight of R are of whole rows
    beside: int

    def moved(self, x: Array, by: int) -> Array:
        """x [F, R, W] with each segment where the next one lies (by = 1) or the one before (-1); float32 inside."""
        F, R, W = x.shape
        if self.segments == 1:
            return x
        wide = x.astype(jnp.float32)
        order = [R - 1, *range(R - 1)] if by == 1 else [*range(1, R), 0]
        rolled = jnp.concatenate([wide[:, i : i + 1] for i in order], axis=1)
        if self.beside == 1:
            return rolled.astype(x.dtype)
        # By products with 0-1 matrices: lanes are moved slowly by numbers that divide no tile.
        C = W // self.beside
        shift = jax.lax.broadcasted_iota(jnp.int32, (W, W), 1) - jax.lax.broadcasted_iota(jnp.int32, (W, W), 0)
        dtype, exact = x.dtype, "highest" if x.dtype == jnp.float32 else None

        def product(frames: Array, lanes: int) -> Array:
            frames, places = frames.astype(dtype).reshape(F * R, W), (shift == lanes).astype(dtype)
            return jnp.dot(frames, places, precision=exact, preferred_element_type=jnp.float32)

        y = product(wide, by * C) + product(rolled, -by * (self.beside - 1) * C)
        return y.reshape(x.shape).astype(x.dtype)


def whole(L: int) -> int:
    """The least number of frames from L on that tiles divide."""
    tiles = pl.cdiv(L, _TILE)
    return tiles * NEAR * pl.cdiv(L, tiles * NEAR)


def _tile(L: int) -> int:
    if whole(L) != L:
        raise ValueError(f"segments of {L} frames: {whole(L)} are the next that tiles divide")
    return L // pl.cdiv(L, _TILE)


def _edges(tile: int, near: int, L: int, spec: Callable[..., pl.BlockSpec]) -> list[pl.BlockSpec]:
    """The `near` frames before a tile and those after it: at the ends of a segment those of its other end."""
    blocks, each = L // near, tile // near
    return [spec(near, lambda t: (t * each + blocks - 1) % blocks), spec(near, lambda t: (t + 1) * each % blocks)]


def _gather(x_ref: Any, before_ref: Any, after_ref: Any, heard: Any, near: int, neighbours: Neighbours) -> None:
    """A tile amid its neighbours' frames, `near` on either side, which at a segment's ends are other segments'."""
    tile, t = x_ref.shape[0], pl.program_id(2)
    heard[near : near + tile] = x_ref[...]
    last = t == pl.num_programs(2) - 1

    @pl.when(t == 0)
    def _() -> None:
        heard[:near] = neighbours.moved(before_ref[...], 1)

    @pl.when(t != 0)
    def _() -> None:
        heard[:near] = before_ref[...]

    @pl.when(last)
    def _() -> None:
        heard[near + tile : near + tile + near] = neighbours.moved(after_ref[...], -1)

    @pl.when(jnp.logical_not(last))
    def _() -> None:
        heard[near + tile : near + tile + near] = after_ref[...]


@partial(jax.jit, static_argnames=("taps", "snake", "neighbours", "interpret"))
def activate(
    x: Array, start: Array, end: Array, rate: Array, scale: Array,
    taps: tuple[float, ...], snake: Snake, neighbours: Neighbours, interpret: bool = False,
) -> Array:  # fmt: skip
    """x [L, R, W], L as of `whole`; start, end [R, W], rate, scale [1, W] -> [L, R, W].

    start: the place of a segment in its row, 0 in the first. end: where its row ends, in frames of the segment.
    taps: every other one of the 12 of the filter; the rest are the same backwards.
    """
    L, R, W = x.shape
    rows, width, tile = min(R, 8), min(W, 128), _tile(L)
    place = pl.BlockSpec((rows, width), lambda r, w, t: (r, w))
    channel = pl.BlockSpec((1, width), lambda r, w, t: (0, w))

    def frames(count: int, at: Callable[[Any], Any] = lambda t: t) -> pl.BlockSpec:
        return pl.BlockSpec((count, rows, width), lambda r, w, t: (at(t), r, w))

    return pl.pallas_call(
        partial(_kernel, taps=taps, snake=snake, neighbours=neighbours),
        out_shape=jax.ShapeDtypeStruct((L, R, W), x.dtype),
        grid=(pl.cdiv(R, rows), pl.cdiv(W, width), L // tile),
        in_specs=[place, place, channel, channel, frames(tile), *_edges(tile, _STEP, L, frames)],
        out_specs=frames(tile),
        scratch_shapes=[pltpu.VMEM((tile + 3 * _STEP, rows, width), x.dtype)] * 2,
        interpret=interpret,
        name="activation",
    )(start, end, rate, scale, x, x, x)


def _kernel(
    start_ref: Any, end_ref: Any, rate_ref: Any, scale_ref: Any, x_ref: Any, before_ref: Any, after_ref: Any,
    z_ref: Any, heard: Any, y_ref: Any, taps: tuple[float, ...], snake: Snake, neighbours: Neighbours,
) -> None:  # fmt: skip
    """A tile of x to a tile of z, by way of a y that lags by twice the halo: y[t] is the tile's frame t - 10.

    STEP frames at a time, from 5 before the tile on, enter three windows: of x, and of the first and the second sample
    of each frame at twice the rate. The last 5 of each are kept from step to step.
    """
    halo, tile, shape = len(taps) - 1, x_ref.shape[0], x_ref.shape[1:]
    _gather(x_ref, before_ref, after_ref, heard, _STEP, neighbours)
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
        x = held(heard[pl.ds(k * _STEP + _STEP - halo, _STEP)].astype(jnp.float32), halo, kept[0][-1])
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

    nothing = jnp.zeros((halo, *shape), jnp.float32)
    jax.lax.fori_loop(0, pl.cdiv(tile + 2 * halo, _STEP), step, (nothing,) * 3)
    z_ref[...] = y_ref[2 * halo : 2 * halo + tile]


@partial(jax.jit, static_argnames=("dilation", "neighbours", "interpret"))
def convolve(
    x: Array, inner: Array, kernel: Array, bias: Array, added: Array | None, dilation: int, neighbours: Neighbours,
    interpret: bool = False,
) -> Array:  # fmt: skip
    """x, added [L, R, W], kernel [K, W, W], bias [1, W] -> [L, R, W]: a convolution of rows that are zero outside.

    inner [2, R, W]: 1 where a segment has one before it in its row, or one after it, else 0. L is as of `whole`, R a
    multiple of 8.
    """
    (L, R, W), K = x.shape, len(kernel)
    if (K - 1) * dilation // 2 > NEAR:
        raise ValueError(f"a kernel of {K} and a dilation of {dilation}: more than {NEAR} frames on either side")
    tile, width = _tile(L), min(W, 128)

    def frames(count: int, at: Callable[[Any], Any] = lambda t: t) -> pl.BlockSpec:
        return pl.BlockSpec((count, 8, W), lambda r, c, t: (at(t), r, 0))

    out = pl.BlockSpec((tile, 8, width), lambda r, c, t: (t, r, c))
    return pl.pallas_call(
        partial(_convolve, dilation=dilation, neighbours=neighbours),
        out_shape=jax.ShapeDtypeStruct((L, R, W), x.dtype),
        grid=(R // 8, pl.cdiv(W, width), L // tile),
        in_specs=[
            pl.BlockSpec((K, W, width), lambda r, c, t: (0, 0, c)),
            pl.BlockSpec((1, width), lambda r, c, t: (0, c)),
            pl.BlockSpec((2, 8, W), lambda r, c, t: (0, r, 0)),
            frames(tile),
            *_edges(tile, NEAR, L, frames),
            *[out] * (added is not None),
        ],
        out_specs=out,
        scratch_shapes=[pltpu.VMEM((tile + 2 * NEAR, 8, W), x.dtype)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY),
        interpret=interpret,
        name="convolution",
    )(kernel, bias, inner, x, x, x, *[added] * (added is not None))


def _convolve(
    kernel_ref: Any, bias_ref: Any, inner_ref: Any, x_ref: Any, before_ref: Any, after_ref: Any, *refs: Any,
    dilation: int, neighbours: Neighbours,
) -> None:  # fmt: skip
    """A tile of y, some frames after the others: one product per tap, added up in float32."""
    *added_refs, y_ref, heard = refs
    (tile, R, W), K, width = x_ref.shape, len(kernel_ref), y_ref.shape[2]
    _gather(x_ref, before_ref, after_ref, heard, NEAR, neighbours)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        heard[:NEAR] = heard[:NEAR] * inner_ref[0:1]

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        heard[NEAR + tile :] = heard[NEAR + tile :] * inner_ref[1:2]

    part = NEAR
    first = NEAR - (K - 1) * dilation // 2

    def step(n: Array, _: None) -> None:
        y = jnp.broadcast_to(bias_ref[...].astype(jnp.float32), (part * R, width))
        for k in range(K):
            x = heard[pl.ds(n * part + first + k * dilation, part)].reshape(part * R, W)
            y += jnp.dot(x, kernel_ref[k], preferred_element_type=jnp.float32)
        y, at = y.reshape(part, R, width), pl.ds(n * part, part)
        for ref in added_refs:
            y += ref[at].astype(jnp.float32)
        y_ref[at] = y.astype(y_ref.dtype)

    jax.lax.fori_loop(0, tile // part, step, None)
