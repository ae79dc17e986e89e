"""w2v-BERT 2.0: stacked filterbank frames -> semantic features, 50 Hz (arXiv:2312.05187).

The system reads the hidden state after layer 17 and normalises it by stored statistics; later layers are not computed.

Dimensions: B batch, T frames, D width, N heads, H head width.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import (
    Depthwise,
    LayerNorm,
    alike,
    apply,
    attend,
    by_product,
    enter,
    pad_edges,
    zero_padding,
)


@dataclass(frozen=True)
class W2VBertConfig:
    features: int = 160
    width: int = 1024
    layers: int = 17
    heads: int = 16
    intermediate: int = 4096
    kernel: int = 31
    left: int = 64  # relative positions are clipped to [-left, right]
    right: int = 8
    epsilon: float = 1e-5


class FeedForward(nn.Module):
    cfg: W2VBertConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = LayerNorm(self.cfg.epsilon, name="norm")(x)
        x = nn.silu(nn.Dense(self.cfg.intermediate, name="up")(x))
        return nn.Dense(self.cfg.width, name="down")(x)


class Attention(nn.Module):
    """Self-attention in which a clipped relative position has its own key (arXiv:1803.02155)."""

    cfg: W2VBertConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        B, T, D = x.shape
        N, H = self.cfg.heads, D // self.cfg.heads
        x = LayerNorm(self.cfg.epsilon, name="norm")(x)
        q, k, v = jnp.split(nn.Dense(3 * D, name="qkv")(x).reshape(B, T, 3 * N, H), 3, axis=2)
        span = self.cfg.left + self.cfg.right + 1
        distance = self.param("distance", nn.initializers.normal(0.02), (span, H))
        # Scores against the few distinct distances, then spread to their places: [B, N, T, span] -> [B, N, T, T]
        scores = jnp.einsum("bqnh,rh->bnqr", q, distance, preferred_element_type=jnp.float32)
        offset = jnp.arange(T)[None, :] - jnp.arange(T)[:, None]
        place = jnp.clip(offset, -self.cfg.left, self.cfg.right) + self.cfg.left
        bias = jax.lax.platform_dependent(scores, place, tpu=_spread_by_product, default=_spread)
        return nn.Dense(D, name="out")(attend(q, k, v, mask, bias).reshape(B, T, D))


def _spread(scores: Array, place: Array) -> Array:
    """[B, N, T, span], [T, T] -> [B, N, T, T]: of each query, the score at each place."""
    return jnp.take_along_axis(scores, place[None, None], axis=-1)


def _spread_by_product(scores: Array, place: Array) -> Array:
    """The same numbers: a TPU gathers one by one, but multiplies fast."""
    return by_product("bnqr,qkr->bnqk", scores, place[:, :, None] == jnp.arange(scores.shape[-1])[None, None])


class Convolution(nn.Module):
    """Gated pointwise, causal depthwise, norm, swish, pointwise. Hidden frames enter as zeros."""

    cfg: W2VBertConfig

    @nn.compact
    def __call__(self, x: Array, seen: Array, lengths: Array) -> Array:
        D, K = self.cfg.width, self.cfg.kernel
        x = LayerNorm(self.cfg.epsilon, name="norm")(x)
        x = jnp.where(seen[:, :, None], x, jnp.zeros((), x.dtype))
        x = nn.glu(nn.Dense(2 * D, use_bias=False, name="gated")(x))
        x = pad_edges(x, lengths, K - 1, 0, "zeros")
        x = Depthwise(K, use_bias=False, name="depthwise")(x)
        x = nn.silu(LayerNorm(self.cfg.epsilon, name="depthwise_norm")(x))
        return nn.Dense(D, use_bias=False, name="out")(x)


class Block(nn.Module):
    cfg: W2VBertConfig

    @nn.compact
    def __call__(self, x: Array, seen: Array, lengths: Array) -> Array:
        half = jnp.asarray(0.5, x.dtype)
        x = x + half * FeedForward(self.cfg, name="feed_forward_1")(x)
        x = x + Attention(self.cfg, name="attention")(x, seen[:, None, None, :])
        x = x + Convolution(self.cfg, name="convolution")(x, seen, lengths)
        x = x + half * FeedForward(self.cfg, name="feed_forward_2")(x)
        return LayerNorm(self.cfg.epsilon, name="norm")(x)


class Encoder(nn.Module):
    """features [B, T, F], seen [B, T], lengths [B] -> the last hidden state [B, T, D]."""

    cfg: W2VBertConfig

    @nn.compact
    def __call__(self, x: Array, seen: Array, lengths: Array) -> Array:
        x = LayerNorm(self.cfg.epsilon, name="norm")(x)
        x = nn.Dense(self.cfg.width, name="project")(x)
        x = jnp.where(seen[:, :, None], x, jnp.zeros((), x.dtype))
        for i in range(self.cfg.layers):
            x = alike(self, f"layer_{i}", Block(self.cfg, parent=None), x, seen, lengths)
        return x


def init(cfg: W2VBertConfig, key: Array) -> dict:
    """Random float32 parameters, with statistics that change nothing."""
    x, lengths = jnp.zeros((1, 4, cfg.features)), jnp.array([4])
    return {
        "encoder": Encoder(cfg).init(key, x, jnp.ones((1, 4), bool), lengths)["params"],
        "statistics": {"mean": jnp.zeros(cfg.width), "variance": jnp.ones(cfg.width)},
    }


@partial(jax.jit, static_argnames="cfg")
def encode(params: dict, cfg: W2VBertConfig, features: Array, seen: Array, lengths: Array) -> Array:
    """Normalised semantic features: features [B, T, F], seen [B, T] bool, lengths [B] -> [B, T, D] float32.

    Zero past a row's end. `seen` is False for padding and also for a last frame that was stacked from an odd one: that
    frame is hidden from the others but is itself put out, and used by what follows. Reference: indextts/infer_v2.py,
    get_emb.
    """
    encoder, statistics = params["encoder"], params["statistics"]
    x = apply(Encoder(cfg), encoder, enter(features, lengths, encoder), seen, lengths)
    mean, variance = (statistics[name].astype(jnp.float32)[None, None] for name in ("mean", "variance"))
    return zero_padding((x.astype(jnp.float32) - mean) / jnp.sqrt(variance), lengths)
