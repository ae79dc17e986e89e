"""GPT-2 decoder: an embedded prefix -> codes, one code per scan step; codes -> latents in one pass.

The prefix of a row is [speaker latents + emotion vector, two speed embeddings, start, text, stop, start code]. Rows are
padded at the end and carry their lengths; positions are learned and counted per part, so padding changes nothing.

A model of many languages (IndexTTS-2.5) adds that of the text to its embeddings, from start to stop; it knows no speed,
and has two zero vectors there.

Dimensions: B batch, T positions, P prefix positions, C codes, D width, N heads, H head width, S cache slots, R recent
slots, V code vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import (
    Dense,
    LayerNorm,
    alike,
    apply,
    attend,
    attend_cached,
    multiply,
    precision_of,
    valid,
)


@dataclass(frozen=True)
class GPTConfig:
    width: int = 1280
    layers: int = 24
    heads: int = 20
    text_vocabulary: int = 12001
    text_positions: int = 602
    code_vocabulary: int = 8194  # start and stop included
    code_positions: int = 1818
    start_text: int = 0
    stop_text: int = 1
    start_code: int = 8192
    stop_code: int = 8193
    languages: int | None = None  # rows of the embedding of languages; None: there is none, but one of the speed
    repetition_penalty: float | None = None  # with which codes are drawn unless told otherwise; None: the reference's

    @property
    def most_texts(self) -> int:
        """The most text ids that have positions, start and stop apart."""
        return self.text_positions - 2

    @property
    def most_codes(self) -> int:
        """The most codes that have positions; decoding skips one, and the reference keeps two for start and stop."""
        return self.code_positions - 3


class LayerCache(NamedTuple):
    """Keys and values, the slots last: a CPU multiplies few queries with them in a third of the time so."""

    k: Array  # [B, N, H, S]
    v: Array  # [B, N, H, S]


def empty(cfg: GPTConfig, rows: int, slots: int, dtype: jnp.dtype) -> tuple[LayerCache, ...]:
    """Free slots in every layer."""
    shape = rows, cfg.heads, cfg.width // cfg.heads, slots
    return tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.layers))


class Prefix(NamedTuple):
    embeddings: Array  # [B, P, D], padded at the end
    lengths: Array  # [B]


class Block(nn.Module):
    """x [B, T, D] -> the same and its keys and values. With a cache, they go to its last block, from `slot` on.

    mask: bool, against [B, N, T, T], or with a cache [B, T, S], S the slots of all its blocks.
    """

    cfg: GPTConfig

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, cache: tuple[LayerCache, ...] | None, slot: Array | None
    ) -> tuple[Array, LayerCache]:
        B, T, D = x.shape
        N = self.cfg.heads
        qkv = Dense(3 * D, name="qkv")(LayerNorm(name="attention_norm")(x))
        q, k, v = jnp.split(qkv.reshape(B, T, 3 * N, D // N), 3, axis=2)
        new = LayerCache(*(jnp.transpose(a, (0, 2, 3, 1)) for a in (k, v)))
        if cache is None or slot is None:
            y = attend(q, k, v, mask)
        else:
            pairs = zip(cache[-1], new, strict=True)
            new = LayerCache(*(jax.lax.dynamic_update_slice_in_dim(old, a, slot, axis=3) for old, a in pairs))
            y = attend_cached(q, (*cache[:-1], new), mask)
        y = y.reshape(B, T, D)
        x = x + Dense(D, name="out")(y)
        y = Dense(4 * D, name="up")(LayerNorm(name="feed_forward_norm")(x))
        x = x + Dense(D, name="down")(nn.gelu(y, approximate=True))
        return x, new


class Decoder(nn.Module):
    """All blocks and the two norms that follow them. mask: as in Block."""

    cfg: GPTConfig
    remat: bool = False  # without caches: a reverse pass keeps what goes into a block, and computes the block anew

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, caches: Sequence[tuple[LayerCache, ...]] = (), slot: Array | None = None
    ) -> tuple[Array, tuple[LayerCache, ...]]:
        new = []
        for i in range(self.cfg.layers):
            if self.remat:
                x = _again(self.cfg, self.variables["params"][f"layer_{i}"], x, mask)
                continue
            block, own = Block(self.cfg, parent=None), caches[i] if caches else None
            x, cache = alike(self, f"layer_{i}", block, x, mask, own, slot)
            new.append(cache)
        return LayerNorm(name="final_norm")(LayerNorm(name="norm")(x)), tuple(new)


@partial(jax.checkpoint, static_argnums=0)
def _again(cfg: GPTConfig, params: dict, x: Array, mask: Array) -> Array:
    return apply(Block(cfg, parent=None), params, x, mask, None, None)[0]


def init(cfg: GPTConfig, key: Array) -> dict:
    """Random float32 parameters: embeddings, "decoder" and "head"."""
    keys = iter(jax.random.split(key, 7))
    own = ("speed", 2) if cfg.languages is None else ("language", cfg.languages)

    def table(rows: int) -> dict:
        return {"embedding": 0.02 * jax.random.normal(next(keys), (rows, cfg.width))}

    mask = jnp.ones((1, 1, 1, 1), bool)
    return {
        "text": table(cfg.text_vocabulary),
        "text_position": table(cfg.text_positions),
        "code": table(cfg.code_vocabulary),
        "code_position": table(cfg.code_positions),
        own[0]: table(own[1]),
        "decoder": Decoder(cfg).init(next(keys), jnp.zeros((1, 1, cfg.width)), mask)["params"],
        "head": Dense(cfg.code_vocabulary).init(next(keys), jnp.zeros((1, cfg.width)))["params"],
    }


def _embed(params: dict, part: str, ids: Array, positions: Array) -> Array:
    """ids [..., T], or distributions [..., T, V] over the first V, whose embeddings are mixed; positions [..., T]."""
    table = params[part]["embedding"]
    if jnp.issubdtype(ids.dtype, jnp.floating):
        with precision_of(table):
            x = jnp.einsum("...v,vd->...d", ids.astype(table.dtype), table[: ids.shape[-1]])
    else:
        x = table[ids]
    return x + params[f"{part}_position"]["embedding"][positions]


def logits(params: dict, hidden: Array) -> Array:
    """The scores of the next code, [..., D] -> [..., V] float32."""
    head = params["head"]
    with precision_of(head):
        scores = multiply(hidden, head, jnp.float32)
    return scores + head["bias"].astype(jnp.float32).reshape((1,) * (scores.ndim - 1) + (-1,))


@partial(jax.jit, static_argnames="cfg")
def prefix(
    params: dict, cfg: GPTConfig, latents: Array, emotion: Array, texts: Array, lengths: Array,
    languages: Array | None = None,
) -> Prefix:  # fmt: skip
    """Embed what is known before the first code.

    latents [B, L, D] of the speaker, emotion [B, D], texts [B, X] int32 ids, lengths [B] up to `cfg.most_texts` ->
    Prefix with P = L + 2 + X + 3. languages [B] int32: rows of the embedding of languages, where the model has one.
    Raises ValueError where languages are missing, or given to a model that knows none.
    Reference: indextts/gpt/model_v2.py, inference_speech and prepare_gpt_inputs, which
    drops the ids of start and stop inside a text (its second pass does not): they are the caller's to drop.
    """
    if (languages is None) != (cfg.languages is None):
        raise ValueError("languages are for models that have an embedding of them, which need them")
    B, X = texts.shape
    place = jnp.arange(X + 3)[None, :]
    # start, text, stop, start code: at 0, 1 .. n, n + 1 and n + 2 of every row
    end = lengths[:, None] + 1
    ids = jnp.where(place < end, jnp.pad(texts, ((0, 0), (1, 2)), constant_values=cfg.start_text), cfg.stop_text)
    words = _embed(params, "text", ids, jnp.broadcast_to(jnp.minimum(place, cfg.text_positions - 1), ids.shape))
    if languages is not None:
        words = words + params["language"]["embedding"][languages][:, None]
    start = _embed(params, "code", jnp.array(cfg.start_code), jnp.array(0))
    words = jnp.where((place == end + 1)[:, :, None], start[None, None], words)
    dtype = words.dtype
    if cfg.languages is None:
        speed = jnp.broadcast_to(params["speed"]["embedding"][::-1], (B, 2, cfg.width))
    else:
        speed = jnp.zeros((B, 2, cfg.width), dtype)
    speaker = latents.astype(dtype) + emotion.astype(dtype)[:, None]
    return Prefix(jnp.concatenate([speaker, speed, words], axis=1), lengths + latents.shape[1] + 2 + 3)


@partial(jax.jit, static_argnames="cfg")
def prefill(params: dict, cfg: GPTConfig, prefix: Prefix) -> tuple[Array, tuple[LayerCache, ...]]:
    """One pass over the prefix: -> (logits of the first code [B, V] float32, caches with P slots).

    Slots past a row's prefix hold what its padding gave.
    """
    x, lengths = prefix
    hidden, caches = apply(Decoder(cfg), params["decoder"], x, _causal(x.shape[1])[None, None])
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return logits(params, last), caches


@partial(jax.jit, static_argnames="cfg")
def step(
    params: dict, cfg: GPTConfig, caches: Sequence[tuple[LayerCache, ...]], recent: tuple[LayerCache, ...],
    codes: Array, slot: Array, positions: Array, visible: Array,
) -> tuple[Array, tuple[LayerCache, ...]]:  # fmt: skip
    """Feed K alternative codes per row, one per beam: -> (logits of the codes after them [B, K, V] float32, recent).

    Of each layer, `caches` holds blocks of slots that are only read, S in all, and `recent` one of R slots, where the
    keys and values of these codes go to K slots from `slot` [] on, the same in every row: a slot per row would have to
    be scattered. codes [B, K]; positions [B] of the code embedding; visible [B, K, S + R] bool: the slots that each
    beam sees, its own new one included. While generating, the n-th code (from 0) has position n + 2: position 1 is
    skipped.
    """
    x = _embed(params, "code", codes, jnp.broadcast_to(positions[:, None], codes.shape))
    blocks = [(*own, last) for own, last in zip(caches, recent, strict=True)]
    hidden, recent = apply(Decoder(cfg), params["decoder"], x, visible, blocks, slot)
    return logits(params, hidden), recent


@partial(jax.jit, static_argnames=("cfg", "remat"))
def latents(params: dict, cfg: GPTConfig, prefix: Prefix, codes: Array, remat: bool = False) -> Array:
    """The second, teacher-forced pass: codes -> latents [B, C, D]; row i predicted code i.

    codes: [B, C] int32, or distributions over the first V codes [B, C, V] floating, whose embeddings are mixed; one-hot
    ones give what the codes do, but for rounding. remat: a gradient keeps no activations of a block, and computes it
    twice (a CPU gains by it with `XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false` alone).
    Raises ValueError for distributions over more codes than there are.
    Code positions are contiguous here, unlike in `step`. By causality a row's valid latents do not depend on the codes
    that follow them, nor on the stop code, which the reference appends. Reference: model_v2.py, forward.
    """
    return states(params, cfg, prefix, codes[:, :-1], remat=remat)[1]


def log_probabilities(
    params: dict, cfg: GPTConfig, prefix: Prefix, codes: Array, lengths: Array,
    positions: Literal["decoding", "second_pass"] = "decoding", remat: bool = False,
) -> Array:  # fmt: skip
    """How probable given codes are, teacher-forced in one pass: codes [B, C] int32, lengths [B] -> [B, C + 1] float32.

    Column i is the log-probability of code i after those before it, column lengths[b] that of the stop code after them
    all, and what follows is 0: the sum over a row is the log-probability of all that it drew. A row that a limit cut
    drew no stop code: leave its column out. Temperature, top-k, top-p and penalties, which sampling puts on top, are no
    part of it: codes are drawn from exactly these probabilities with `Sampling(beams=1, top_k=0, top_p=1.0,
    temperature=1.0, repetition_penalty=1.0)`.

    positions: which embeddings the codes are fed with. "decoding": those of `step`, where position 1 is skipped;
    "second_pass": those of `latents`, as the system was trained. Meant to be jitted as part of a loss.
    """
    _, hidden = states(params, cfg, prefix, codes, {"second_pass": 1, "decoding": 2}[positions], remat)
    place, lengths = jnp.arange(codes.shape[1] + 1)[None], lengths[:, None]
    drawn = jnp.where(place < lengths, jnp.pad(codes, ((0, 0), (0, 1))), cfg.stop_code)
    scores = jax.nn.log_softmax(logits(params, hidden), axis=-1)
    return jnp.where(place <= lengths, jnp.take_along_axis(scores, drawn[:, :, None], axis=2)[:, :, 0], 0.0)


def states(
    params: dict, cfg: GPTConfig, prefix: Prefix, codes: Array, positions: Array | int = 1, remat: bool = False
) -> tuple[Array, Array]:
    """All outputs of a teacher-forced pass: those of the prefix [B, P, D], and [B, C + 1, D] of the codes that follow.

    codes [B, C], or distributions [B, C, V]; positions: [B] int32, or one for all rows, of the first code: 1 as in
    `latents`, 2 as in `step`. Output i of the codes predicts code i, the last what follows them all. In the prefix, the
    output of the start of a text, at P - X - 3, predicts its first piece, that of its last piece the stop. What lies
    past a row's prefix or codes is unspecified. remat: as in `latents`.
    """
    x, lengths = prefix
    P, (B, C) = x.shape[1], codes.shape[:2]
    if codes.ndim == 3 and codes.shape[2] > cfg.code_vocabulary:
        raise ValueError(f"distributions over {codes.shape[2]} codes, but the GPT has {cfg.code_vocabulary}")
    # the prefix ends with the start code
    first = jnp.broadcast_to(jnp.asarray(positions, jnp.int32).reshape(-1, 1), (B, 1))
    fed = _embed(params, "code", codes, first + jnp.arange(C)[None])
    seen = jnp.pad(valid(lengths, P), ((0, 0), (0, C)), constant_values=True)
    mask = _causal(P + C)[None, None] & seen[:, None, None, :]
    hidden, _ = apply(Decoder(cfg, remat), params["decoder"], jnp.concatenate([x, fed], axis=1), mask)
    start = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return hidden[:, :P], jnp.concatenate([start, hidden[:, P:]], axis=1)


@partial(jax.jit, static_argnames="slots")
def widen(caches: tuple[LayerCache, ...], slots: int) -> tuple[LayerCache, ...]:
    """The same caches with `slots` slots, at least as many as they have."""
    missing = slots - caches[0].k.shape[3]
    return jax.tree.map(lambda array: jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, missing))), caches)


@partial(jax.jit, static_argnames=("cfg", "prefix"), donate_argnames="caches")
def extend(
    params: dict, cfg: GPTConfig, caches: tuple[LayerCache, ...], prefix: int, lengths: Array, before: Array,
    first: Array,
) -> tuple[Array, tuple[LayerCache, ...]]:  # fmt: skip
    """Go on with the second pass: -> (latents [B, C, D] of the codes from `first` [] on, caches).

    caches: from `prefill` with `prefix` slots, `widen`ed by at least first + C; lengths [B] of the prefixes; before
    [B, C] int32: the code before each of these codes, the start code before the first of all. `latents` in parts,
    equal but for rounding: what stands in `before` past the codes that are known changes none of theirs, and its slots
    are written again.
    """
    B, C = before.shape
    place, slot = first + jnp.arange(C), jnp.arange(caches[0].k.shape[3])
    x = _embed(params, "code", before, jnp.broadcast_to(place[None], (B, C)))
    # The prefix ends with the start code, which is fed here again.
    seen = slot[None, None] < lengths[:, None, None] - 1
    own = (slot[None] >= prefix) & (slot[None] - prefix <= place[:, None])
    hidden, caches = apply(
        Decoder(cfg), params["decoder"], x, seen | own[None], [(cache,) for cache in caches], prefix + first
    )
    return hidden, caches


def _causal(positions: int) -> Array:
    return jnp.tril(jnp.ones((positions, positions), bool))
