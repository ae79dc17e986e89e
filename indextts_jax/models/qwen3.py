"""Qwen3, a causal language model: a prompt of ids -> the most probable ids after it, one per scan step.

arXiv:2505.09388. Rows are padded at the end and carry their lengths. The id at position n keeps its keys and values in
slot n of the cache and sees the slots up to its own, so what padding left in a slot is overwritten before it is seen.

Dimensions: B batch, T positions, D width, N heads, G groups of heads that share keys and values, R heads in a group,
H head width, S cache slots, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.models.layers import Dense, RMSNorm, alike, apply, attend_cached, dtype_of, precision_of, zero_padding

CHUNK = 8  # steps between two looks at whether every row has stopped


@dataclass(frozen=True)
class Qwen3Config:
    vocabulary: int = 151936
    width: int = 1024
    layers: int = 28
    heads: int = 16
    groups: int = 8
    head: int = 128
    feed_forward: int = 3072
    base: float = 1e6  # of the rotary angles
    epsilon: float = 1e-6
    stops: tuple[int, ...] = (151645, 151643)  # the ids that end an answer


class LayerCache(NamedTuple):
    """Keys, rotated, and values; the slots last: a CPU multiplies few queries with them in a third of the time so."""

    k: Array  # [B, G, H, S]
    v: Array  # [B, G, H, S]


class Answer(NamedTuple):
    ids: Array  # [B, most] int32, stop ids from the row's length on
    lengths: Array  # [B] int32, stop id not counted; `most` where the row was cut


class State(NamedTuple):
    """Everything that one step hands to the next."""

    caches: tuple[LayerCache, ...]
    ids: Array  # [B, most] int32
    last: Array  # [B] int32, what was drawn last; a row that has stopped draws stop ids
    count: Array  # [] int32, drawn so far


def rotate(x: Array, positions: Array, base: float) -> Array:
    """Rotate the pairs (i, i + H / 2) of x [B, T, N, H] by position · base^(−2i / H), in float32 (arXiv:2104.09864)."""
    H = x.shape[-1]
    frequencies = base ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Block(nn.Module):
    """x [B, T, D] at positions [B, T] -> the same, and the cache with their keys and values in it.

    A position past the last slot is not written.
    """

    cfg: Qwen3Config

    @nn.compact
    def __call__(self, x: Array, positions: Array, cache: LayerCache) -> tuple[Array, LayerCache]:
        cfg = self.cfg
        B, T, D = x.shape
        N, G, H = cfg.heads, cfg.groups, cfg.head
        qkv = Dense((N + 2 * G) * H, False, name="qkv")(RMSNorm(cfg.epsilon, name="attention_norm")(x))
        q, k, v = jnp.split(qkv.reshape(B, T, N + 2 * G, H), (N, N + G), axis=2)
        q = rotate(RMSNorm(cfg.epsilon, name="q_norm")(q), positions, cfg.base)
        k = rotate(RMSNorm(cfg.epsilon, name="k_norm")(k), positions, cfg.base)
        rows, pairs = jnp.arange(B)[:, None], zip(cache, (k, v), strict=True)
        cache = LayerCache(*(old.at[rows, :, :, positions].set(new, mode="drop") for old, new in pairs))
        seen = jnp.arange(cache.k.shape[3])[None, None] <= positions[:, :, None]
        x = x + Dense(D, False, name="out")(attend_cached(q, [cache], seen).reshape(B, T, N * H))
        y = Dense(2 * cfg.feed_forward, False, name="gated")(RMSNorm(cfg.epsilon, name="feed_forward_norm")(x))
        gate, y = jnp.split(y, 2, axis=-1)  # SwiGLU (arXiv:2002.05202)
        return x + Dense(D, False, name="down")(nn.silu(gate) * y), cache


class Decoder(nn.Module):
    """All blocks and the norm that follows them: x [B, T, D] at positions [B, T] -> the same, and the caches."""

    cfg: Qwen3Config

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, caches: tuple[LayerCache, ...]
    ) -> tuple[Array, tuple[LayerCache, ...]]:
        new = []
        for i in range(self.cfg.layers):
            x, cache = alike(self, f"layer_{i}", Block(self.cfg, parent=None), x, positions, caches[i])
            new.append(cache)
        return RMSNorm(self.cfg.epsilon, name="norm")(x), tuple(new)


def init(cfg: Qwen3Config, key: Array) -> dict:
    """Random float32 parameters: "token" (embeddings, which are the head as well) and "decoder"."""
    keys = jax.random.split(key)
    x, positions = jnp.zeros((1, 1, cfg.width)), jnp.zeros((1, 1), jnp.int32)
    return {
        "token": {"embedding": 0.02 * jax.random.normal(keys[0], (cfg.vocabulary, cfg.width))},
        "decoder": Decoder(cfg).init(keys[1], x, positions, empty(cfg, 1, 1, x.dtype))["params"],
    }


def empty(cfg: Qwen3Config, rows: int, capacity: int, dtype: jnp.dtype) -> tuple[LayerCache, ...]:
    """Caches of `capacity` slots."""
    shape = (rows, cfg.groups, cfg.head, capacity)
    return tuple(LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.layers))


def _decode(
    params: dict, cfg: Qwen3Config, ids: Array, positions: Array, caches: tuple[LayerCache, ...]
) -> tuple[Array, tuple[LayerCache, ...]]:
    x = params["token"]["embedding"][ids]
    return apply(Decoder(cfg), params["decoder"], x, positions, caches)


def _begin(params: dict, cfg: Qwen3Config, ids: Array, capacity: int) -> tuple[Array, tuple[LayerCache, ...]]:
    B, T = ids.shape
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    return _decode(params, cfg, ids, positions, empty(cfg, B, capacity, dtype_of(params)))


def _scores(params: dict, hidden: Array) -> Array:
    """The scores of the next id, [..., D] -> [..., V] float32."""
    embedding = params["token"]["embedding"]
    with precision_of(params):
        return jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames="cfg")
def logits(params: dict, cfg: Qwen3Config, ids: Array, lengths: Array) -> Array:
    """One plain pass: ids [B, T] int32, lengths [B] -> the scores of the id after each [B, T, V] float32, zero past
    each row's own length. Reference: transformers, models/qwen3/modeling_qwen3.py.
    """
    hidden, _ = _begin(params, cfg, ids, ids.shape[1])
    return zero_padding(_scores(params, hidden), lengths)


@partial(jax.jit, static_argnames=("cfg", "capacity"))
def prefill(
    params: dict, cfg: Qwen3Config, ids: Array, lengths: Array, capacity: int
) -> tuple[Array, tuple[LayerCache, ...]]:
    """One pass over the prompts: ids [B, T] int32, lengths [B] from 1 on -> (scores of the next id [B, V] float32,
    caches with `capacity` slots, at least T).
    """
    if capacity < ids.shape[1]:
        raise ValueError(f"capacity is {capacity}, but prompts of {ids.shape[1]} ids need as many slots")
    hidden, caches = _begin(params, cfg, ids, capacity)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return _scores(params, last), caches


@partial(jax.jit, static_argnames="cfg")
def step(
    params: dict, cfg: Qwen3Config, caches: tuple[LayerCache, ...], ids: Array, positions: Array
) -> tuple[Array, tuple[LayerCache, ...]]:
    """Feed one id per row: ids [B] int32 at positions [B] (a prompt's first id has 0) -> (scores of the id after it
    [B, V] float32, caches).
    """
    hidden, caches = _decode(params, cfg, ids[:, None], positions[:, None], caches)
    return _scores(params, hidden[:, 0]), caches


@partial(jax.jit, static_argnames=("cfg", "most"))
def generate(params: dict, cfg: Qwen3Config, ids: Array, lengths: Array, most: int) -> Answer:
    """Continue each prompt greedily until it draws one of `cfg.stops` or has `most` ids.

    ids [B, T] int32, lengths [B] from 1 on; rows do not depend on one another. Of equal scores the first id is drawn.
    Reference: transformers, generation/utils.py, without sampling.
    """
    if most < 1:
        raise ValueError(f"most is {most}, but at least one id must be allowed")
    stops = jnp.array(cfg.stops, jnp.int32)

    def draw(state: State, scores: Array) -> State:
        drawn = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        drawn = jnp.where(jnp.isin(state.last, stops), stops[0], drawn)
        ids = state.ids.at[:, state.count].set(drawn, mode="drop")
        return state._replace(ids=ids, last=drawn, count=state.count + 1)

    def one(state: State, _: None) -> tuple[State, None]:
        scores, caches = step(params, cfg, state.caches, state.last, lengths + state.count - 1)
        return draw(state._replace(caches=caches), scores), None

    def more(state: State) -> Array:
        return (state.count < most) & ~jnp.isin(state.last, stops).all()

    scores, caches = prefill(params, cfg, ids, lengths, ids.shape[1] + most)
    B = ids.shape[0]
    none = jnp.full(B, -1, jnp.int32)  # whatever id a prompt ends with, no row has stopped yet
    state = draw(State(caches, jnp.full((B, most), stops[0]), none, jnp.int32(0)), scores)
    chunk = min(CHUNK, most)
    state = jax.lax.while_loop(more, lambda state: jax.lax.scan(one, state, length=chunk)[0], state)
    return Answer(state.ids, (~jnp.isin(state.ids, stops)).sum(axis=1, dtype=jnp.int32))
