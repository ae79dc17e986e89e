"""The flow's transformer as TPU kernels: attention with its rotation, and what follows it in a block.

Scores, and all that lies between the products of a block, stay in a core's memory: written to the device's, they take
longer than the products themselves. The plain forms, which these equal, are in `s2mel`.

Dimensions: B batch, T frames, D width, N heads, H head width, U width between the products of the feed-forward.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_ROWS = 512  # frames at most that are computed together
_SCORES = 2**20  # of a head, likewise
_LONGEST = 5120  # frames of a row: queries, keys and values of two heads, twice, and their scores
_HIDDEN = -1e30  # added to the scores of keys past the end: finite, so that a row without keys averages all values

_MEMORY = 64 * 2**20  # bytes that a kernel may take of a v5e's 128 MiB beside its arithmetic


def fits(T: int, D: int, H: int, U: int) -> bool:
    """Whether the kernels are made for such sizes: whole tiles, heads that fill the lanes side by side, a row that a
    core holds.
    """
    return T % 16 == 0 and T <= _LONGEST and D % _LANES == 0 and U % _LANES == 0 and _LANES % H == 0 and H < _LANES


def _block(T: int, dtype: Any, most: int = _ROWS) -> int:
    """The largest part of T frames, up to `most`, that divides them and fills tiles.

    In float32 a product is six, all written out: fewer frames, or they take minutes to compile.
    """
    most = min(most, _ROWS if dtype == jnp.bfloat16 else _ROWS // 4)
    return next(T // n for n in range(1, T + 1) if T % n == 0 and T // n <= most and T // n % 16 == 0)


@partial(jax.jit, static_argnames=("heads", "interpret"))
def attend(qkv: Array, rotation: Array, lengths: Array, heads: int, interpret: bool = False) -> Array:
    """Attention of frames to those inside of their row: qkv [B, T, 3 D], lengths [B] -> [B, T, D].

    rotation [2, T, 128] float32: cosines, and sines that are negative in even lanes, of the heads side by side.
    """
    B, T, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    H, groups = D // heads, D // _LANES

    def columns(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, T, _LANES), lambda b, g, _: (b, 0, part * groups + g))

    return pl.pallas_call(
        partial(_attend, width=H, block=_block(T, qkv.dtype, _SCORES // T)),
        out_shape=jax.ShapeDtypeStruct((B, T, D), qkv.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, groups),
            in_specs=[*map(columns, range(3)), pl.BlockSpec(rotation.shape, lambda b, g, _: (0, 0, 0))],
            out_specs=columns(0),
            scratch_shapes=[pltpu.VMEM((_LANES // H, T, _LANES), qkv.dtype)] * 2,
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY),
        interpret=interpret,
        name="attention",
    )(lengths, qkv, qkv, qkv, rotation)


def _attend(
    lengths_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, rotation_ref: Any, y_ref: Any, keys_ref: Any, values_ref: Any,
    width: int, block: int,
) -> None:  # fmt: skip
    """The heads that lie side by side in 128 lanes, of one row.

    A product takes all 128 lanes or wastes those that a head leaves, so that each head is multiplied where it lies.
    The lanes of the others come to use: against ones in the queries, they add the mask to the scores, and ones in the
    values add up the weights.
    """
    T = q_ref.shape[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, _LANES), 1)
    own = [(lane >= start) & (lane < start + width) for start in range(0, _LANES, width)]
    spare = [lane == (width if i == 0 else 0) for i in range(len(own))]  # a lane that is not its own
    first = lane & 1 == 0

    def rotated(x: Array, at: Any) -> Array:
        x = x.astype(jnp.float32)
        other = jnp.where(first, pltpu.roll(x, _LANES - 1, 1), pltpu.roll(x, 1, 1))
        return x * rotation_ref[0, at] + other * rotation_ref[1, at]

    seen = jax.lax.broadcasted_iota(jnp.int32, (T, 1), 0) < lengths_ref[pl.program_id(0)]
    k, v, mask = rotated(k_ref[...], slice(None)), v_ref[...].astype(jnp.float32), jnp.where(seen, 0.0, _HIDDEN)
    for i, (mine, other) in enumerate(zip(own, spare, strict=True)):
        keys_ref[i] = jnp.where(mine, k, jnp.where(other, mask, 0.0)).astype(keys_ref.dtype)
        values_ref[i] = jnp.where(mine, v, 1.0).astype(values_ref.dtype)

    def queries(n: Array, _: None) -> None:
        at = pl.ds(pl.multiple_of(n * block, block), block)
        # Powers of two instead of e, for which the processor has no instruction.
        q = rotated(q_ref[at], at) * (width**-0.5 * _LOG2E)
        y = jnp.zeros_like(q)
        for i, (mine, other) in enumerate(zip(own, spare, strict=True)):
            mine_alone = jnp.where(mine, q, jnp.where(other, 1.0, 0.0)).astype(keys_ref.dtype)
            scores = jax.lax.dot_general(
                mine_alone, keys_ref[i], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            weights = jnp.exp2(scores - scores.max(axis=1, keepdims=True)).astype(values_ref.dtype)
            sums = jnp.dot(weights, values_ref[i], preferred_element_type=jnp.float32)
            y = jnp.where(mine, sums / pltpu.roll(sums, width, 1), y)
        y_ref[at] = y.astype(y_ref.dtype)

    jax.lax.fori_loop(0, T // block, queries, None)


_LOG2E = 1.4426950408889634


@partial(jax.jit, static_argnames=("epsilon", "interpret"))
def project(x: Array, norm: Array, weight: Array, epsilon: float, interpret: bool = False) -> Array:
    """A product of normalised frames: x [B, T, D], norm [B, 2, D] as in `feed_forward`, weight [D, E] -> [B, T, E]."""
    B, T, _ = x.shape
    block = _block(T, x.dtype)
    return pl.pallas_call(
        partial(_project, epsilon=epsilon),
        out_shape=jax.ShapeDtypeStruct((B, T, weight.shape[1]), x.dtype),
        grid=(B, T // block),
        in_specs=[_frames(block, x.shape[2]), _row(norm), _whole(weight)],
        out_specs=_frames(block, weight.shape[1]),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY),
        interpret=interpret,
        name="projection",
    )(x, norm, weight)


def _frames(block: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, block, width), lambda b, t: (b, t, 0))


def _row(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda b, t: (b, 0, 0))


def _whole(weight: Array) -> pl.BlockSpec:
    return pl.BlockSpec(weight.shape, lambda b, t: (0, 0))


def _product(x: Array, weight: Array) -> Array:
    return jnp.dot(x, weight, preferred_element_type=jnp.float32)


def _normalised(x: Array, norm_ref: Any, epsilon: float) -> Array:
    """In float32."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon) * norm_ref[0:1] + norm_ref[1:2]


def _project(x_ref: Any, norm_ref: Any, weight_ref: Any, y_ref: Any, epsilon: float) -> None:
    normal = _normalised(x_ref[...].astype(jnp.float32), norm_ref, epsilon).astype(x_ref.dtype)
    y_ref[...] = _product(normal, weight_ref[...]).astype(y_ref.dtype)


@partial(jax.jit, static_argnames=("epsilon", "interpret"))
def feed_forward(
    x: Array, y: Array, out: Array, norm: Array, gated: Array, down: Array, epsilon: float, interpret: bool = False
) -> Array:
    """What follows attention in a block: x + y out, and then its norm through the feed-forward added to it.

    x, y [B, T, D], out [D, D], norm [B, 2, D] float32 (what multiplies the normalised frames, and what is added),
    gated [D, 2 U], down [U, D] -> [B, T, D].
    """
    B, T, D = x.shape
    block = _block(T, x.dtype)
    frames = _frames(block, D)
    return pl.pallas_call(
        partial(_feed_forward, epsilon=epsilon),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(B, T // block),
        in_specs=[frames, frames, _whole(out), _row(norm), _whole(gated), _whole(down)],
        out_specs=frames,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY),
        interpret=interpret,
        name="feed_forward",
    )(x, y, out, norm, gated, down)


def _feed_forward(
    x_ref: Any, y_ref: Any, out_ref: Any, norm_ref: Any, gated_ref: Any, down_ref: Any, z_ref: Any, epsilon: float
) -> None:
    """A block of frames, a part of U after the other."""
    U = down_ref.shape[0]
    part = next(size for size in (512, 384, 256, _LANES) if U % size == 0)
    x = x_ref[...].astype(jnp.float32) + _product(y_ref[...], out_ref[...])
    normal = _normalised(x, norm_ref, epsilon).astype(x_ref.dtype)
    for at in range(0, U, part):
        gate, y = _product(normal, gated_ref[:, at : at + part]), _product(normal, gated_ref[:, U + at : U + at + part])
        x = x + _product((gate * jax.nn.sigmoid(gate) * y).astype(x_ref.dtype), down_ref[at : at + part])
    z_ref[...] = x.astype(z_ref.dtype)
