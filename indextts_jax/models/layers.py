"""What two or more components share: masks, edges of padded rows, norms, attention.

Dimensions: B batch, T time, C channels, Q queries, K keys, N heads, H head width.
Computation runs in the dtype of the weights; norms and softmax are always float32.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def valid(lengths: Array, frames: int) -> Array:
    """Which of `frames` positions lie inside each row: [B] -> [B, T] bool."""
    return jnp.arange(frames)[None, :] < lengths[:, None]


def zero_padding(x: Array, lengths: Array) -> Array:
    """`x` [B, T, C] with everything past each row's own length set to zero."""
    return jnp.where(valid(lengths, x.shape[1])[:, :, None], x, jnp.zeros((), x.dtype))


def pad_edges(x: Array, lengths: Array, left: int, right: int, mode: Literal["zeros", "replicate", "reflect"]) -> Array:
    """Pad in time at each row's own ends, so that a convolution sees there what it would see in the row alone.

    x [B, T, C], lengths [B] -> [B, left + T + right, C]; valid frames of row b start at `left`, and the `right` frames
    after its last one are zeros, that last frame, or the mirrored frames. What follows them is unspecified.
    "reflect" needs lengths > max(left, right), as every framework does.
    """
    T = x.shape[1]
    if mode == "zeros":
        return jnp.pad(zero_padding(x, lengths), ((0, 0), (left, right), (0, 0)))
    last = lengths - 1
    if mode == "replicate":
        tail = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)  # [B, 1, C]
        x = jnp.where(valid(lengths, T)[:, :, None], x, tail)
        head = jnp.broadcast_to(x[:, :1], (x.shape[0], left, x.shape[2]))
        return jnp.concatenate([head, x, jnp.broadcast_to(tail, (x.shape[0], right, x.shape[2]))], axis=1)
    mirrored = jnp.clip(last[:, None] - 1 - jnp.arange(right)[None, :], 0, T - 1)  # [B, right]
    tail = jnp.take_along_axis(x, mirrored[:, :, None], axis=1)
    padded = jnp.concatenate([x[:, 1 : left + 1][:, ::-1], x, jnp.zeros_like(tail)], axis=1)
    return jax.vmap(lambda row, frames, at: jax.lax.dynamic_update_slice(row, frames, (at, 0)))(
        padded, tail, left + lengths
    )


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in float32 with the two-pass variance."""

    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            shape = (x.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape).astype(jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape).astype(jnp.float32)
            y = jnp.einsum("...c,c->...c", y, scale) + bias.reshape((1,) * (x.ndim - 1) + shape)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (arXiv:1910.07467), computed in float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return jnp.einsum("...c,c->...c", y, scale).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None) -> Array:
    """Scaled dot-product attention: q [B, Q, N, H], k and v [B, K, N, H] -> [B, Q, N, H].

    `mask` (bool, True = seen) and `bias` (added before the scale) broadcast against the scores [B, N, Q, K].
    Softmax in float32. A query that sees no key averages all values.
    """
    scores = jnp.einsum("bqnh,bknh->bnqk", q, k)
    if bias is not None:
        scores = scores + bias
    scores = scores.astype(jnp.float32) * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
