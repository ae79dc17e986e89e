"""How codes are drawn: the reference's score processing, greedy or sampled, in a scan over a preallocated cache.

Steps are scanned in chunks inside a while loop, which stops once every row has; the host is asked only when the cache
is full and must grow by a rung. Rows are independent: own prefix length, own count, own key.

Dimensions: B batch, C codes, V code vocabulary, S cache slots.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax import buckets
from indextts_jax.models import gpt
from indextts_jax.models.gpt import GPTConfig, LayerCache, Prefix

CHUNK = 16  # steps between two looks at whether all rows have finished


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p", "repetition_penalty"],
    meta_fields=["greedy", "top_k"],
)
@dataclass(frozen=True)
class Sampling:
    """The reference's settings. A changed `greedy` or `top_k` compiles anew, the others do not."""

    greedy: bool = False
    top_k: int = 30  # 0: all
    top_p: float | Array = 0.8
    temperature: float | Array = 0.8
    repetition_penalty: float | Array = 10.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("top_k", self.top_k, 0, float("inf")),
            ("top_p", self.top_p, 0.0, 1.0),
            ("temperature", self.temperature, 1e-3, 100.0),
            ("repetition_penalty", self.repetition_penalty, 1e-3, 1000.0),
        ):
            if isinstance(value, float | int) and not low <= value <= high:
                raise ValueError(f"{name} is {value}, but must lie between {low} and {high}")


class Codes(NamedTuple):
    """What was drawn: codes [B, C] int32 (C the most there can be), of which row b has lengths[b]."""

    codes: Array
    lengths: Array  # [B] int32, stop code not counted
    stopped: Array  # [B] bool; False where the limit cut the row


class State(NamedTuple):
    """Everything that one step hands to the next."""

    caches: tuple[LayerCache, ...]
    codes: Array  # [B, C] int32
    counts: Array  # [B] int32, codes drawn so far, a stop code included
    stopped: Array  # [B] bool
    seen: Array  # [B, V] bool, the codes that are penalised


def process(scores: Array, seen: Array, sampling: Sampling) -> Array:
    """The reference's chain: repetition penalty, and when sampling temperature, top-k and top-p.

    scores [B, V] float32, seen [B, V] bool -> [B, V] float32, −inf where removed. Equal scores stay or go together.
    """
    penalty = jnp.asarray(sampling.repetition_penalty, scores.dtype)
    scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.greedy:
        return scores
    scores = scores / jnp.asarray(sampling.temperature, scores.dtype)
    best = jax.lax.top_k(scores, min(sampling.top_k or scores.shape[-1], scores.shape[-1]))[0]  # descending
    # Ascending sums as the reference takes them: whatever lies in the lower 1 - p goes, but never the best.
    tail = jnp.cumsum(jax.nn.softmax(best, axis=-1)[:, ::-1], axis=-1)[:, ::-1]
    kept = tail > 1.0 - jnp.asarray(sampling.top_p, scores.dtype)
    kept = kept.at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores < least, -jnp.inf, scores)


def draw(scores: Array, seen: Array, keys: Array, counts: Array, sampling: Sampling, cfg: GPTConfig) -> Array:
    """The next code of each row [B]: scores [B, V], keys [B], counts [B] (which draw of its key a row is at).

    The start code is never drawn: the reference does not forbid it and indexes past its codebook when it comes.
    """
    scores = process(scores.at[:, cfg.start_code].set(-jnp.inf), seen, sampling)
    if sampling.greedy:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in)(keys, counts)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)


def _record(state: State, code: Array, active: Array, cfg: GPTConfig) -> State:
    """Append one drawn code to the rows that are still active."""
    rows = jnp.arange(code.shape[0])
    at = jnp.where(active, state.counts, state.codes.shape[1])  # past the end: dropped
    return state._replace(
        codes=state.codes.at[rows, at].set(code, mode="drop"),
        counts=state.counts + active.astype(jnp.int32),
        stopped=state.stopped | (active & (code == cfg.stop_code)),
        seen=state.seen.at[rows, code].set(True),
    )


def _active(state: State, limit: Array) -> Array:
    return ~state.stopped & (state.counts < limit)


@partial(jax.jit, static_argnames=("cfg", "capacity"))
def start(params: dict, cfg: GPTConfig, prefix: Prefix, keys: Array, sampling: Sampling, capacity: int) -> State:
    """Prefill the caches and draw each row's first code."""
    scores, caches = gpt.prefill(params, cfg, prefix, capacity)
    B, V = scores.shape
    # The reference counts its prompt as generated: ones and the start code stand for it, and are penalised.
    seen = jnp.zeros((B, V), bool).at[:, jnp.array([1, cfg.start_code])].set(True)
    zeros = jnp.zeros(B, jnp.int32)
    state = State(caches, jnp.full((B, cfg.most_codes), cfg.stop_code, jnp.int32), zeros, zeros > 0, seen)
    return _record(state, draw(scores, seen, keys, zeros, sampling, cfg), zeros == 0, cfg)


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def advance(
    params: dict, cfg: GPTConfig, state: State, lengths: Array, keys: Array, sampling: Sampling, limit: Array
) -> State:
    """Draw on until every row has stopped or met `limit`, or what an active row draws next would not fit the cache.

    lengths [B] of the prefixes, keys [B], limit [] int32.
    """
    capacity = state.caches[0].k.shape[1]

    def one(state: State, _: None) -> tuple[State, None]:
        active = _active(state, limit)
        last = jnp.take_along_axis(state.codes, state.counts[:, None] - 1, axis=1)[:, 0]
        # counts is 1 when the first code is fed: at slot `length`, and at position 2 (the reference skips position 1)
        scores, caches = gpt.step(params, cfg, state.caches, last, lengths + state.counts - 1, state.counts + 1)
        code = draw(scores, state.seen, keys, state.counts, sampling, cfg)
        return _record(state._replace(caches=caches), code, active, cfg), None

    def more(state: State) -> Array:
        active = _active(state, limit)
        # Of n codes n - 1 are fed. A row that ends inside the chunk is fed on; what does not fit then is dropped.
        fed = jnp.minimum(state.counts - 1 + CHUNK, limit - 1)
        return active.any() & ((lengths + fed <= capacity) | ~active).all()

    return jax.lax.while_loop(more, lambda state: jax.lax.scan(one, state, length=CHUNK)[0], state)


def generate(
    params: dict, cfg: GPTConfig, prefix: Prefix, keys: Array, sampling: Sampling, max_codes: int = 1500
) -> Codes:
    """Draw codes for every row of a prefix until it stops or has `max_codes`, the stop code counted.

    keys: [B] typed PRNG keys, one per row; a row's codes depend on its own key alone. `max_codes` is cut to the
    positions that the model has. Reference: model_v2.py, inference_speech, without beams.
    """
    if max_codes < 1:
        raise ValueError(f"max_codes is {max_codes}, but at least one code must be allowed")
    limit = min(max_codes, cfg.most_codes)
    need = prefix.embeddings.shape[1] + min(CHUNK, limit)
    state = start(params, cfg, prefix, keys, sampling, buckets.bucket(need, buckets.CACHE))
    while True:
        state = advance(params, cfg, state, prefix.lengths, keys, sampling, jnp.int32(limit))
        if not bool(_active(state, jnp.int32(limit)).any()):
            return Codes(state.codes, state.counts - state.stopped.astype(jnp.int32), state.stopped)
        capacity = state.caches[0].k.shape[1]
        state = _grow(state, buckets.bucket(capacity + 1, buckets.CACHE))


@partial(jax.jit, static_argnames="capacity")
def _grow(state: State, capacity: int) -> State:
    room = ((0, 0), (0, capacity - state.caches[0].k.shape[1]), (0, 0), (0, 0))
    return state._replace(caches=jax.tree.map(lambda a: jnp.pad(a, room), state.caches))
