"""Semantic features -> what the GPT hears of a voice: speaker latents, and one emotion vector.

The speaker is encoded from semantic features, or, as in IndexTTS-2.5, projected from the style of its recording.

Dimensions: B batch, T frames, D width, N heads, H head width, L latents.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax.models.layers import (
    Depthwise,
    LayerNorm,
    RMSNorm,
    alike,
    apply,
    attend,
    dtype_of,
    enter,
    pad_edges,
    valid,
)


@dataclass(frozen=True)
class EncoderConfig:
    """A Conformer followed by a Perceiver resampler."""

    width: int
    heads: int
    units: int  # of the Conformer's feed-forward
    layers: int
    latents: int
    latent_width: int  # of the Perceiver, which it puts out
    perceiver_units: int  # half the width of the gated feed-forward
    kernel: int = 15
    perceiver_layers: int = 2
    perceiver_head: int = 64


@dataclass(frozen=True)
class ConditionerConfig:
    semantic: int = 1024
    width: int = 1280  # of the GPT
    speaker: EncoderConfig | None = EncoderConfig(512, 8, 2048, 6, 32, 1280, 1706)  # None: the style is projected
    emotion: EncoderConfig = EncoderConfig(512, 4, 1024, 4, 1, 1024, 1365)
    style: int | None = None  # width of the style, where it is projected

    @property
    def latents(self) -> int:
        """How many positions of a prefix are the speaker's."""
        return 1 if self.speaker is None else self.speaker.latents


class Affine(nn.Module):
    """The kernel and bias of a linear map, for callers that multiply by themselves."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


class Subsample(nn.Module):
    """A 3x3 convolution of stride 2 over time and features, flattened: [B, T, F] -> [B, (T - 1) // 2, D].

    The convolution makes D / 4 as many numbers of every input, so it and the product that follows are done for a few
    features at a time.
    """

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, T, F = (x.shape[0], *((n - 1) // 2 for n in x.shape[1:]))
        D, group = self.cfg.width, max(n for n in range(1, 9) if F % n == 0)
        taps, first = Affine((3, 3, 1, D), name="conv")()
        weight, last = Affine((F * D, D), name="out")()
        seen = [x[:, i : i + 2 * T - 1 : 2, j : j + 2 * F - 1 : 2] for i in range(3) for j in range(3)]
        patches = jnp.stack(seen, axis=-1).reshape(B, T, F // group, group, 9)

        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            patch, weight = part  # [B, T, group, 9], [group * D, D]
            y = nn.relu(jnp.einsum("btgi,id->btgd", patch, taps.reshape(9, D)) + first[None, None, None])
            y = jnp.einsum("bti,id->btd", y.reshape(B, T, -1), weight, preferred_element_type=jnp.float32)
            return total + y, None

        parts = jnp.moveaxis(patches, 2, 0), weight.reshape(F // group, group * D, D)
        total, _ = jax.lax.scan(add, jnp.zeros((B, T, D)), parts)
        return total.astype(x.dtype) + last[None, None]


class Attention(nn.Module):
    """Self-attention with sinusoidal key positions, without the relative shift of arXiv:1901.02860."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        B, T, D = x.shape
        N, H = self.cfg.heads, D // self.cfg.heads
        q, k, v = jnp.split(nn.Dense(3 * D, name="qkv")(x).reshape(B, T, 3 * N, H), 3, axis=2)
        position = nn.Dense(D, use_bias=False, name="position")(jnp.asarray(sinusoids(T, D), x.dtype))
        content_bias = self.param("content_bias", nn.initializers.normal(), (N, H))
        position_bias = self.param("position_bias", nn.initializers.normal(), (N, H))
        q_position, position = q + position_bias[None, None], position.reshape(T, N, H)
        bias = jnp.einsum("bqnh,knh->bnqk", q_position, position, preferred_element_type=jnp.float32)
        y = attend(q + content_bias[None, None], k, v, mask, bias)
        return nn.Dense(D, name="out")(y.reshape(B, T, D))


class Convolution(nn.Module):
    """Gated pointwise, depthwise with zeros at the row's ends, norm, swish, pointwise."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        D, K = x.shape[-1], self.cfg.kernel
        x = nn.glu(nn.Dense(2 * D, name="gated")(x))
        x = pad_edges(x, lengths, K // 2, K // 2, "zeros")
        x = Depthwise(K, name="depthwise")(x)
        return nn.Dense(D, name="out")(nn.silu(LayerNorm(name="norm")(x)))


class Block(nn.Module):
    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array, mask: Array) -> Array:
        x = x + Attention(self.cfg, name="attention")(LayerNorm(name="attention_norm")(x), mask)
        x = x + Convolution(self.cfg, name="convolution")(LayerNorm(name="convolution_norm")(x), lengths)
        y = nn.silu(nn.Dense(self.cfg.units, name="up")(LayerNorm(name="feed_forward_norm")(x)))
        return LayerNorm(name="norm")(x + nn.Dense(self.cfg.width, name="down")(y))


class Conformer(nn.Module):
    """[B, T, S] and lengths [B] -> [B, (T - 1) // 2, D] and lengths (arXiv:2005.08100, one feed-forward per block)."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> tuple[Array, Array]:
        x = Subsample(self.cfg, name="subsample")(x) * self.cfg.width**0.5
        lengths = (lengths - 1) // 2
        mask = valid(lengths, x.shape[1])[:, None, None, :]  # [B, N, Q, K]
        for i in range(self.cfg.layers):
            x = alike(self, f"layer_{i}", Block(self.cfg, parent=None), x, lengths, mask)
        return LayerNorm(name="norm")(x), lengths


class CrossAttention(nn.Module):
    """Latents attend to themselves and the context."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, latents: Array, context: Array, mask: Array) -> Array:
        N, H = self.cfg.heads, self.cfg.perceiver_head
        both = jnp.concatenate([latents, context], axis=1)
        q = nn.Dense(N * H, use_bias=False, name="q")(latents)
        k, v = jnp.split(nn.Dense(2 * N * H, use_bias=False, name="kv")(both), 2, axis=-1)
        q, k, v = (a.reshape(*a.shape[:2], N, H) for a in (q, k, v))
        y = attend(q, k, v, mask)
        return nn.Dense(latents.shape[-1], use_bias=False, name="out")(y.reshape(*y.shape[:2], N * H))


class Perceiver(nn.Module):
    """[B, T, D] and lengths [B] -> [B, L, latent width] (arXiv:2204.14198)."""

    cfg: EncoderConfig

    @nn.compact
    def __call__(self, context: Array, lengths: Array) -> Array:
        L, D = self.cfg.latents, self.cfg.latent_width
        latents = self.param("latents", nn.initializers.normal(0.02), (L, D))
        context = nn.Dense(D, name="context")(context)
        seen = valid(lengths, context.shape[1])
        mask = jnp.pad(seen, ((0, 0), (L, 0)), constant_values=True)[:, None, None, :]
        x = jnp.broadcast_to(latents, (context.shape[0], L, D))
        for i in range(self.cfg.perceiver_layers):
            x = x + CrossAttention(self.cfg, name=f"attention_{i}")(x, context, mask)
            y, gate = jnp.split(nn.Dense(2 * self.cfg.perceiver_units, name=f"up_{i}")(x), 2, axis=-1)
            x = x + nn.Dense(D, name=f"down_{i}")(y * nn.gelu(gate, approximate=False))
        # The mean of squares with no epsilon is the l2 norm times sqrt(D).
        return RMSNorm(epsilon=0.0, name="norm")(x)


class Encoder(nn.Module):
    cfg: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        return Perceiver(self.cfg, name="perceiver")(*Conformer(self.cfg, name="conformer")(x, lengths))


class EmotionEncoder(nn.Module):
    cfg: ConditionerConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        x = Encoder(self.cfg.emotion, name="encoder")(x, lengths)[:, 0]
        return nn.Dense(self.cfg.width, name="merge")(nn.Dense(self.cfg.width, name="project")(x))


def sinusoids(frames: int, width: int) -> np.ndarray:
    """Sines and cosines interleaved, [T, D] float32, of angles rounded to float32 as the reference rounds them."""
    rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / width))
    angles = np.arange(frames, dtype=np.float32)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(frames, -1)[:, :width]


def init(cfg: ConditionerConfig, key: Array) -> dict:
    """Random float32 parameters: {"speaker": ..., "emotion": ...}."""
    x, lengths = jnp.zeros((1, 7, cfg.semantic)), jnp.array([7])
    speaker, emotion = jax.random.split(key)
    if cfg.speaker is None:
        heard = nn.Dense(cfg.width).init(speaker, jnp.zeros((1, cfg.style or 0)))
    else:
        heard = Encoder(cfg.speaker).init(speaker, x, lengths)
    return {
        "speaker": heard["params"],
        "emotion": EmotionEncoder(cfg).init(emotion, x, lengths)["params"],
    }


@partial(jax.jit, static_argnames="cfg")
def speaker_latents(params: dict, cfg: ConditionerConfig, features: Array, lengths: Array) -> Array:
    """What the GPT hears of a speaker: features [B, T, S] (normalised w2v-BERT, 50 Hz), lengths [B] -> [B, L, D].

    At least 3 frames per row. Raises ValueError for a model that hears the style instead.
    Reference: indextts/gpt/model_v2.py, get_conditioning.
    """
    if cfg.speaker is None:
        raise ValueError("this model hears a speaker's style: style_latents, not speaker_latents")
    return apply(Encoder(cfg.speaker), params["speaker"], enter(features, lengths, params), lengths)


@partial(jax.jit, static_argnames="cfg")
def style_latents(params: dict, cfg: ConditionerConfig, style: Array) -> Array:
    """What the GPT hears of a speaker where the style is projected: style [B, style] (CAMPPlus) -> [B, 1, D].

    Raises ValueError for a model that hears semantic features instead.
    Reference: indextts/gpt/model_v2.py, spk_emb_proj.
    """
    if cfg.speaker is not None:
        raise ValueError("this model hears a speaker's features: speaker_latents, not style_latents")
    own = params["speaker"]
    return apply(nn.Dense(cfg.width), own, style.astype(dtype_of(own)))[:, None]


@partial(jax.jit, static_argnames="cfg")
def emotion_vector(params: dict, cfg: ConditionerConfig, features: Array, lengths: Array) -> Array:
    """The emotion of a recording: features [B, T, S], lengths [B] -> [B, D].

    At least 3 frames per row. Reference: indextts/gpt/model_v2.py, get_emovec.
    """
    return apply(EmotionEncoder(cfg), params["emotion"], enter(features, lengths, params), lengths)
