"""RepCodec, the MaskGCT semantic codec: semantic features -> codes -> embeddings (arXiv:2409.00750).

With a stride, a code stands for several frames, and a decoder makes features of codes again: the codec of IndexTTS-2.5.

Dimensions: B batch, T frames, D width, C channels inside, V codes, K code width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import Depthwise, LayerNorm, alike, apply, enter, pad_edges, precision_of


@dataclass(frozen=True)
class RepCodecConfig:
    width: int = 1024
    codes: int = 8192
    code_width: int = 8
    channels: int = 384
    intermediate: int = 2048
    layers: int = 12
    kernel: int = 7
    stride: int | None = None  # frames of a code, which a decoder makes of it; None: one, and no decoder

    @property
    def frames(self) -> int:
        """The semantic frames, 50 a second, that a code stands for."""
        return self.stride or 1

    @property
    def reach(self) -> int:
        """How many codes before and after its own a restored frame hears; none without a stride."""
        return 0 if self.stride is None else (self.layers + 1) * (self.kernel // 2) + 1


class Quantized(NamedTuple):
    codes: Array  # [B, T] int32
    embeddings: Array  # [B, T, D]


class Block(nn.Module):
    """A ConvNeXt block (arXiv:2201.03545) in time."""

    cfg: RepCodecConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        C, K = self.cfg.channels, self.cfg.kernel
        y = pad_edges(x, lengths, K // 2, K // 2, "zeros")
        y = Depthwise(K, name="depthwise")(y)
        y = nn.Dense(self.cfg.intermediate, name="up")(LayerNorm(1e-6, name="norm")(y))
        y = nn.Dense(C, name="down")(nn.gelu(y, approximate=False))
        gamma = self.param("gamma", nn.initializers.ones, (C,))
        return x + y * gamma[None, None]


class Encoder(nn.Module):
    """[B, T, D], lengths [B] -> [B, T, D]."""

    cfg: RepCodecConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        K = self.cfg.kernel
        x = pad_edges(x, lengths, K // 2, K // 2, "zeros")
        x = nn.Conv(self.cfg.channels, K, padding="VALID", name="embed")(x)
        x = LayerNorm(1e-6, name="norm")(x)
        for i in range(self.cfg.layers):
            x = alike(self, f"layer_{i}", Block(self.cfg, parent=None), x, lengths)
        return nn.Dense(self.cfg.width, name="out")(LayerNorm(1e-6, name="final_norm")(x))


class Decoder(Encoder):
    """Embeddings [B, T, D], lengths [B] -> semantic features [B, T, D]: of the encoder's form.

    Without a stride for training alone.
    """


class Shrink(nn.Module):
    """[B, T, D], lengths [B] -> the frames of codes [B, (T - 1) // stride + 1, D] and how many there are."""

    cfg: RepCodecConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> tuple[Array, Array]:
        x = pad_edges(x, lengths, 1, 1, "zeros")
        x = nn.Conv(self.cfg.width, 3, self.cfg.frames, padding="VALID", name="conv")(x)
        return nn.gelu(x, approximate=False), code_lengths(self.cfg, lengths)


class Stretch(nn.Module):
    """Every frame `stride` times, and a convolution over them: [B, C, D], lengths [B] -> [B, C * stride, D]."""

    cfg: RepCodecConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        x = jnp.repeat(x, self.cfg.frames, axis=1)
        x = pad_edges(x, lengths * self.cfg.frames, 1, 1, "zeros")
        return nn.Conv(self.cfg.width, 3, padding="VALID", name="conv")(x)


def init(cfg: RepCodecConfig, key: Array) -> dict:
    """Random float32 parameters: the encoder and the quantizer; with a stride, what goes down and up again as well."""
    keys = jax.random.split(key, 4)
    x, lengths = jnp.zeros((1, 8, cfg.width)), jnp.array([8])
    strided = {}
    if cfg.stride is not None:
        own = jax.random.split(jax.random.fold_in(key, 1), 3)
        networks = {"shrink": Shrink(cfg), "decoder": Decoder(cfg), "stretch": Stretch(cfg)}
        for (name, network), one in zip(networks.items(), own, strict=True):
            strided[name] = network.init(one, x, lengths)["params"]
    return {
        **strided,
        "encoder": Encoder(cfg).init(keys[0], x, lengths)["params"],
        "quantizer": {
            "in": nn.Dense(cfg.code_width).init(keys[1], jnp.zeros((1, cfg.width)))["params"],
            "out": nn.Dense(cfg.width).init(keys[2], jnp.zeros((1, cfg.code_width)))["params"],
            "codebook": {"embedding": jax.random.normal(keys[3], (cfg.codes, cfg.code_width))},
        },
    }


def _dense(params: dict, x: Array) -> Array:
    with precision_of(params):
        y = jnp.einsum("...i,io->...o", x, params["kernel"])
    return y + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def nearest(params: dict, x: Array) -> Array:
    """The code nearest in angle to each encoder output: [B, T, D] -> [B, T] int32."""
    quantizer = params["quantizer"]
    directions = _unit(_dense(quantizer["in"], x))
    codebook = _unit(quantizer["codebook"]["embedding"])
    # Between unit vectors the nearest is the one of largest product.
    cosine = jnp.einsum("btk,vk->btv", directions, codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(cosine, axis=-1).astype(jnp.int32)


def _unit(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames="cfg")
def embed(params: dict, cfg: RepCodecConfig, codes: Array) -> Array:
    """The embeddings of codes: [B, T] int32 -> [B, T, D]. Codes at or past the codebook's end give its last row.

    codes may be distributions [B, T, V] floating, whose embeddings are mixed. V may be more than there are codes, as
    the GPT's vocabulary is, which has a start and a stop code: as with codes, their mass goes to the last row. Who
    wants none there takes it away before the softmax.
    """
    quantizer = params["quantizer"]
    table = quantizer["codebook"]["embedding"]
    if not jnp.issubdtype(codes.dtype, jnp.floating):
        return _dense(quantizer["out"], table[jnp.minimum(codes, cfg.codes - 1)])
    with precision_of(table):
        rows = table[jnp.minimum(jnp.arange(codes.shape[-1]), cfg.codes - 1)]
        return _dense(quantizer["out"], jnp.einsum("btv,vk->btk", codes.astype(table.dtype), rows))


@partial(jax.jit, static_argnames="cfg")
def quantize(params: dict, cfg: RepCodecConfig, features: Array, lengths: Array) -> Quantized:
    """The nearest code of each semantic feature, and its embedding: features [B, T, D], lengths [B] -> Quantized.

    With a stride there are as many as `code_lengths` says. Reference:
    indextts/utils/maskgct/models/codec/kmeans/repcodec_model.py, and indextts/codec/models.py, quantize.
    """
    x = _encoded(params, cfg, features, lengths)
    codes = nearest(params, x)
    return Quantized(codes, embed(params, cfg, codes))


def code_lengths(cfg: RepCodecConfig, lengths: Any) -> Any:
    """How many codes so many frames become, of integers or arrays of them; the last code may be of fewer frames."""
    return (lengths - 1) // cfg.frames + 1


def _encoded(params: dict, cfg: RepCodecConfig, features: Array, lengths: Array) -> Array:
    """The encoder's outputs, one for each code: [B, T, D], lengths [B] -> [B, C, D]."""
    x = enter(features, lengths, params)
    if cfg.stride is not None:
        x, lengths = apply(Shrink(cfg), params["shrink"], x, lengths)
    return apply(Encoder(cfg), params["encoder"], x, lengths)


@partial(jax.jit, static_argnames="cfg")
def restore(params: dict, cfg: RepCodecConfig, codes: Array, lengths: Array) -> Array:
    """The semantic features that codes stand for, of a codec with a stride: -> [B, C * stride, D].

    codes [B, C] int32 or distributions, as in `embed`; lengths [B]. Reference: indextts/codec/models.py, decode.
    """
    x = enter(embed(params, cfg, codes), lengths, params)
    x = apply(Decoder(cfg), params["decoder"], x, lengths)
    return apply(Stretch(cfg), params["stretch"], x, lengths)


class Trained(NamedTuple):
    """`quantize`, with what a codec's losses compare."""

    codes: Array  # [B, T] int32
    projected: Array  # [B, T, K] the encoder's outputs where codes lie
    chosen: Array  # [B, T, K] the rows of the codebook
    embeddings: Array  # [B, T, D], whose gradient goes straight through to `projected`


def quantize_straight(params: dict, cfg: RepCodecConfig, features: Array, lengths: Array) -> Trained:
    """`quantize` with the straight-through gradient (arXiv:1711.00937): features [B, T, D], lengths [B] -> Trained."""
    quantizer = params["quantizer"]
    x = _encoded(params, cfg, features, lengths)
    codes, projected = nearest(params, x), _dense(quantizer["in"], x)
    chosen = quantizer["codebook"]["embedding"][codes]
    straight = projected + jax.lax.stop_gradient(chosen - projected)
    return Trained(codes, projected, chosen, _dense(quantizer["out"], straight))


def init_decoder(cfg: RepCodecConfig, key: Array) -> dict:
    """Random float32 parameters of a decoder, for a codec without a stride: no released model has a use for it."""
    variables: Any = Decoder(cfg).init(key, jnp.zeros((1, 8, cfg.width)), jnp.array([8]))
    return variables["params"]


def decode(params: dict, cfg: RepCodecConfig, embeddings: Array, lengths: Array) -> Array:
    """The features that a decoder makes of embeddings: [B, T, D], lengths [B] -> [B, T, D]."""
    return apply(Decoder(cfg), params, enter(embeddings, lengths, params), lengths)
