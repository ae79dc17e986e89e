"""How codes are drawn: the reference's score processing and beams, in a scan over a preallocated cache.

`generate` decodes many rows with a loop on the host, which gives the place of a finished row to the next one; `decode`
decodes a batch in one program. Steps are scanned in chunks inside a while loop, which returns to the host when a row
has finished while another waits for a place, and when the cache is full. Each row has its own prefix, count and key:
what it draws depends neither on its neighbours nor on when it was admitted.

Beams share one cache per row. Each step writes one slot per beam after those of the step before, and every beam
remembers which slots are its own past: reordering beams reorders these masks, and no key or value moves. Slots that no
beam sees any more are dropped when the cache is full.

Dimensions: B rows decoded at once, K beams, C codes, V code vocabulary, S cache slots.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from indextts_jax import buckets, seeds
from indextts_jax.errors import Error
from indextts_jax.models import gpt
from indextts_jax.models.gpt import GPTConfig, LayerCache, Prefix
from indextts_jax.models.layers import valid

CHUNK = 16  # steps between two looks at whether rows have finished
HEADROOM = 64  # steps for which a compacted cache has free slots at least: the cost of compacting is spread over them
UNLIKELY = -1e9  # running score of all beams but the first before the first step, so that they do not count yet


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["top_p", "temperature", "repetition_penalty", "length_penalty"],
    meta_fields=["beams", "sample", "top_k"],
)
@dataclass(frozen=True)
class Sampling:
    """The reference's settings. Another `beams`, `sample` or `top_k` compiles anew, the others do not."""

    beams: int = 3
    sample: bool = True  # False: the best code, or plain beam search
    top_k: int = 30  # 0: all
    top_p: float | Array = 0.8
    temperature: float | Array = 0.8
    repetition_penalty: float | Array = 10.0
    length_penalty: float | Array = 0.0  # a hypothesis counts as its score / length ** length_penalty

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("beams", self.beams, 1, 64),
            ("top_k", self.top_k, 0, float("inf")),
            ("top_p", self.top_p, 0.0, 1.0),
            ("temperature", self.temperature, 1e-3, 100.0),
            ("repetition_penalty", self.repetition_penalty, 1e-3, 1000.0),
            ("length_penalty", self.length_penalty, -10.0, 10.0),
        ):
            if isinstance(value, float | int) and not low <= value <= high:
                raise Error(f"{name} is {value}, but must lie between {low} and {high}")


class Codes(NamedTuple):
    """What was drawn, row by row; numpy arrays where `generate` gives it."""

    codes: Any  # [N, C] int32, C the most there can be; the stop code past a row's length
    lengths: Any  # [N] int32, stop code not counted
    stopped: Any  # [N] bool; False where the limit cut the row
    scores: Any  # [N] float32, of the hypothesis that won; 0 without beams


class Trace(NamedTuple):
    """The beams after each step."""

    codes: Array  # [B, C, K] int32, the stop code where nothing was drawn
    parents: Array  # [B, C, K] int32, which beam each one continues
    scores: Array  # [B, C, K] float32, running scores


class Hypotheses(NamedTuple):
    """The best K finished beams of a row, in the order in which they finished. Length −1 marks an empty place."""

    scores: Array  # [B, K] float32, divided by length ** length_penalty
    lengths: Array  # [B, K] int32, stop code not counted
    beams: Array  # [B, K] int32, which beam it was before the step that stopped it


class State(NamedTuple):
    """Everything that one step hands to the next."""

    caches: tuple[LayerCache, ...]  # of [B, heads, head width, S]
    visible: Array  # [B, K, S] bool, the slots that a beam sees
    filled: Array  # [B] int32, slots in use
    counts: Array  # [B] int32, steps taken
    done: Array  # [B] bool
    seen: Array  # [B, K, V] bool, the codes that are penalised
    scores: Array  # [B, K] float32, running
    trace: Trace
    hypotheses: Hypotheses
    keys: Array  # [B, words] uint32, key data


# ---- one decision ---------------------------------------------------------------------------------------------------


def process(scores: Array, seen: Array, sampling: Sampling) -> Array:
    """The reference's chain: repetition penalty, and when sampling temperature, top-k and top-p.

    scores [..., V] float32, seen [..., V] bool -> [..., V] float32, −inf where removed. Equal scores stay or go
    together. With beams at least two are kept.
    """
    penalty = jnp.asarray(sampling.repetition_penalty, scores.dtype)
    scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if not sampling.sample:
        return scores
    scores = scores / jnp.asarray(sampling.temperature, scores.dtype)
    least = 2 if sampling.beams > 1 else 1
    k = min(max(sampling.top_k, least) if sampling.top_k else scores.shape[-1], scores.shape[-1])
    # Descending. As rows: of more axes a TPU would sort everything.
    best = jax.lax.top_k(scores.reshape(-1, scores.shape[-1]), k)[0].reshape(*scores.shape[:-1], k)
    # Ascending sums as the reference takes them: whatever lies in the lower 1 - p goes, but never the best.
    tail = jnp.cumsum(jax.nn.softmax(best, axis=-1)[..., ::-1], axis=-1)[..., ::-1]
    kept = tail > 1.0 - jnp.asarray(sampling.top_p, scores.dtype)
    kept = kept | (jnp.arange(k) < least).reshape((1,) * (kept.ndim - 1) + (k,))
    lowest = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores < lowest, -jnp.inf, scores)


def draw(logits: Array, seen: Array, keys: Array, sampling: Sampling, cfg: GPTConfig) -> Array:
    """The next code of each row [B], without beams: logits and seen [B, V], keys [B].

    The start code is never drawn: the reference does not forbid it and indexes past its codebook when it comes.
    """
    allowed = jnp.arange(logits.shape[-1])[None] != cfg.start_code
    scores = process(jnp.where(allowed, logits, -jnp.inf), seen, sampling)
    if not sampling.sample:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)


def candidates(
    logits: Array, seen: Array, running: Array, keys: Array, sampling: Sampling, cfg: GPTConfig
) -> tuple[Array, Array, Array]:
    """The 2K continuations to consider, best first: -> (running scores, beams, codes), each [B, 2K].

    logits [B, K, V], seen [B, K, V], running [B, K], keys [B]. Sampling draws them without replacement from all K·V
    continuations, by the largest of scores with Gumbel noise (arXiv:1903.06059). The start code is never among them.
    """
    B, K, V = logits.shape
    scores = jnp.where(jnp.arange(V)[None, None] == cfg.start_code, -jnp.inf, jax.nn.log_softmax(logits, axis=-1))
    scores = (process(scores, seen, sampling) + running[:, :, None]).reshape(B, K * V)
    if sampling.sample:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (K * V,)))(keys)
        # Relative to the best: noise added to large sums would be rounded away.
        noisy = scores - scores.max(axis=-1, keepdims=True) + noise
        chosen = jax.lax.top_k(noisy, 2 * K)[1]
        scores = jnp.take_along_axis(scores, chosen, axis=1)
        scores, order = jax.lax.top_k(scores, 2 * K)
        chosen = jnp.take_along_axis(chosen, order, axis=1)
    else:
        scores, chosen = jax.lax.top_k(scores, 2 * K)
    return scores, chosen // V, chosen % V


def _enter(hypotheses: Hypotheses, scores: Array, lengths: Array, beams: Array, candidate: Array) -> Hypotheses:
    """Where `candidate` [B], add a hypothesis to its row if a place is empty or if it beats the worst, which leaves."""
    empty = hypotheses.lengths < 0
    worst = jnp.where(empty, -jnp.inf, hypotheses.scores).min(axis=-1)
    enters = candidate & (empty.any(axis=-1) | (scores > worst))
    # The first empty place goes, or else the first of the lowest.
    leaves = jnp.where(empty.any(-1), jnp.argmax(empty, axis=-1), jnp.argmin(hypotheses.scores, axis=-1))
    K = empty.shape[1]
    later = jnp.arange(K)[None] >= leaves[:, None]

    def replace(old: Array, new: Array) -> Array:
        moved = jnp.where(later, jnp.concatenate([old[:, 1:], new[:, None].astype(old.dtype)], axis=1), old)
        return jnp.where(enters[:, None], moved, old)

    return Hypotheses(*map(replace, hypotheses, (scores, lengths, beams)))


def _decide(state: State, logits: Array, sampling: Sampling, cfg: GPTConfig, limit: Array) -> State:
    """Choose the next code of each beam from `logits` [B, K, V], in the rows that are not done."""
    B, K, _ = logits.shape
    rows = jnp.arange(B)
    active = ~state.done
    keys = jax.vmap(jax.random.fold_in)(seeds.wrap(state.keys), state.counts)
    counts = state.counts + 1
    # Powers of the length as the reference's: the length counts the stop.
    norm = jnp.power(counts.astype(jnp.float32), jnp.asarray(sampling.length_penalty, jnp.float32))
    hypotheses, visible, seen = state.hypotheses, state.visible, state.seen
    if K == 1:
        codes = draw(logits[:, 0], seen[:, 0], keys, sampling, cfg)[:, None]
        parents, running = jnp.zeros_like(codes), state.scores
        done = active & (codes[:, 0] == cfg.stop_code)
        hypotheses = _enter(hypotheses, running[:, 0], state.counts, parents[:, 0], done)
    else:
        scores, beams, codes = candidates(logits, seen, state.scores, keys, sampling, cfg)
        stops = codes == cfg.stop_code
        for rank in range(K):
            stopping = active & stops[:, rank]
            hypotheses = _enter(hypotheses, scores[:, rank] / norm, state.counts, beams[:, rank], stopping)
        # Finished once the worst of K hypotheses is at least as good as the best candidate, whatever that is.
        full = (hypotheses.lengths >= 0).all(axis=-1)
        done = active & full & (hypotheses.scores.min(axis=-1) >= scores[:, 0] / norm)
        going = jnp.argsort(stops, axis=-1, stable=True)[:, :K]  # the best K that go on; at most K of 2K stop
        running, parents, codes = (jnp.take_along_axis(a, going, axis=1) for a in (scores, beams, codes))
        visible, seen = (jnp.take_along_axis(a, parents[:, :, None], axis=1) for a in (visible, seen))
    cut = active & ~done & (counts >= limit)
    for beam in range(K):
        hypotheses = _enter(hypotheses, running[:, beam] / norm, counts, jnp.full(B, beam), cut)

    at = jnp.where(active, state.counts, state.trace.codes.shape[1])  # past the end: dropped
    trace = Trace(
        *(
            old.at[rows, at].set(new, mode="drop")
            for old, new in zip(state.trace, (codes, parents, running), strict=True)
        )
    )
    keep = active[:, None]
    seen = seen | (jnp.arange(seen.shape[-1])[None, None] == codes[:, :, None])
    return state._replace(
        visible=jnp.where(keep[..., None], visible, state.visible),
        counts=jnp.where(active, counts, state.counts),
        done=state.done | done | cut,
        seen=jnp.where(keep[..., None], seen, state.seen),
        scores=jnp.where(keep, running, state.scores),
        trace=trace,
        hypotheses=hypotheses,
    )


# ---- many steps -----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("cfg", "rows", "beams", "capacity", "dtype"))
def empty(cfg: GPTConfig, rows: int, beams: int, capacity: int, dtype: jnp.dtype) -> State:
    """A state whose `rows` places are all free."""
    B, K, S, C = rows, beams, capacity, cfg.most_codes
    caches = tuple(
        LayerCache(*(jnp.zeros((B, cfg.heads, cfg.width // cfg.heads, S), dtype) for _ in range(2)))
        for _ in range(cfg.layers)
    )
    counts, whole, part = jnp.zeros(B, jnp.int32), jnp.zeros((B, C, K), jnp.int32), jnp.zeros((B, K), jnp.float32)
    visible, seen = jnp.zeros((B, K, S), bool), jnp.zeros((B, K, cfg.code_vocabulary), bool)
    return State(
        caches, visible, counts, counts, counts == 0, seen, part,
        Trace(whole + cfg.stop_code, whole, whole.astype(jnp.float32)),
        Hypotheses(part, part.astype(jnp.int32) - 1, part.astype(jnp.int32)),
        jnp.zeros((B, seeds.WORDS), jnp.uint32),
    )  # fmt: skip


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def admit(
    cfg: GPTConfig, state: State, lengths: Array, logits: Array, caches: tuple[LayerCache, ...], rows: Array,
    keys: Array, sampling: Sampling, limit: Array,
) -> State:  # fmt: skip
    """Put prefilled prefixes into places of the state, and draw the first code of each.

    lengths [A] of the prefixes, logits [A, V] and caches of P slots from `gpt.prefill`, rows [A]: the places, where one
    past the last marks a prefix that is padding; keys [A, words] as data.
    """
    A, P = logits.shape[0], caches[0].k.shape[3]
    K, S = state.visible.shape[1:]
    new = empty(cfg, A, K, S, caches[0].k.dtype)
    # The reference counts its prompt as generated: ones and the start code stand for it, and are penalised.
    seen = new.seen.at[..., jnp.array([1, cfg.start_code])].set(True)
    visible = jnp.broadcast_to(valid(lengths, S)[:, None], (A, K, S))
    new = new._replace(
        # done: none of them, but computed, so that under shard_map the whole state varies as the rows do
        caches=(), visible=visible, filled=lengths, done=lengths < 0, seen=seen, keys=keys,
        scores=jnp.broadcast_to(jnp.where(jnp.arange(K) == 0, 0.0, UNLIKELY)[None], (A, K)),
    )  # fmt: skip
    V = logits.shape[-1]
    new = _decide(new, jnp.broadcast_to(logits[:, None], (A, K, V)), sampling, cfg, limit)
    places = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), state._replace(caches=()), new)
    filled = jax.tree.map(lambda old, new: old.at[rows, :, :, :P].set(new, mode="drop"), state.caches, caches)
    return places._replace(caches=filled)


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def advance(params: dict, cfg: GPTConfig, state: State, sampling: Sampling, limit: Array, waiting: Array) -> State:
    """Take steps until every row is done, until a row becomes done while others are `waiting` for its place, or until
    the next chunk might not fit into the cache.

    limit [] int32 steps of a row, waiting [] bool.
    """
    K, S = state.visible.shape[1:]
    busy = ~state.done

    def one(state: State, _: None) -> tuple[State, None]:
        last = jnp.take_along_axis(state.trace.codes, (state.counts - 1)[:, None, None], axis=1)[:, 0]  # [B, K]
        slots = state.filled[:, None] + jnp.arange(K)[None]
        visible = state.visible | (jnp.arange(S)[None, None] == slots[:, :, None])
        # counts is 1 when the first code is fed, at position 2: the reference skips position 1
        logits, caches = gpt.step(params, cfg, state.caches, last, state.filled, state.counts + 1, visible)
        filled = jnp.where(state.done, state.filled, state.filled + K)
        state = state._replace(caches=caches, visible=visible, filled=filled)
        return _decide(state, logits, sampling, cfg, limit), None

    def more(state: State) -> Array:
        fits = state.filled + K * jnp.minimum(CHUNK, limit - state.counts) <= S
        freed = waiting & (busy & state.done).any()
        return (~state.done).any() & (fits | state.done).all() & ~freed

    return jax.lax.while_loop(more, lambda state: jax.lax.scan(one, state, length=CHUNK)[0], state)


class Kept(NamedTuple):
    """The slots that a beam sees, moved to the front of a cache."""

    order: Array  # [B, slots] int32, where each slot comes from
    visible: Array  # [B, K, capacity] bool
    filled: Array  # [B] int32


@partial(jax.jit, static_argnames="capacity")
def keep(visible: Array, capacity: int) -> Kept:
    """Which slots stay, of those that the beams see [B, K, S], in a cache of `capacity` slots."""
    seen = visible.any(axis=1)
    order = jnp.argsort(~seen, axis=1, stable=True)[:, :capacity]
    return Kept(order, _moved(visible, order[:, None], capacity), seen.sum(axis=1, dtype=jnp.int32))


@partial(jax.jit, static_argnames="capacity")
def compact(cache: LayerCache, order: Array, capacity: int) -> LayerCache:
    """One layer's cache in a new order, with `capacity` slots."""
    return LayerCache(*(_moved(array, order[:, None, None], capacity) for array in cache))


def _moved(array: Array, order: Array, capacity: int) -> Array:
    """The last axis of an array in a new order, and padded to `capacity`."""
    array = jnp.take_along_axis(array, order, axis=-1)
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, capacity - array.shape[-1])])


@partial(jax.jit, static_argnames="cfg")
def winners(cfg: GPTConfig, state: State, limit: Array) -> Codes:
    """What the rows that are done have drawn, walked back through the beams from the best hypothesis of each.

    Of equal hypotheses the last one wins. limit [] int32 steps, as in `advance`.
    """
    trace, K, rows = state.trace, state.hypotheses.scores.shape[1], jnp.arange(state.done.shape[0])
    winner = K - 1 - jnp.argmax(state.hypotheses.scores[:, ::-1], axis=1)
    scores, lengths, beams = (values[rows, winner] for values in state.hypotheses)
    lengths = jnp.maximum(lengths, 0)
    longest = lengths.max()

    def back(i: Array, walked: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, beams = walked
        step = longest - 1 - i
        code, parent = (values[rows, step, beams] for values in (trace.codes, trace.parents))
        inside = step < lengths
        codes = codes.at[:, step].set(jnp.where(inside, code, cfg.stop_code))
        return codes, jnp.where(inside, parent, beams)

    codes = jnp.full_like(trace.codes[:, :, 0], cfg.stop_code)
    codes, _ = jax.lax.fori_loop(0, longest, back, (codes, beams))
    return Codes(codes, lengths, lengths < limit, scores)


@partial(jax.jit, static_argnames=("cfg", "max_codes"))
def decode(
    params: dict, cfg: GPTConfig, prefix: Prefix, keys: Array, sampling: Sampling, max_codes: int = 1500
) -> Codes:
    """`generate` as one program, for `jit`, `vmap`, `shard_map` and reinforcement learning: -> Codes of JAX arrays.

    prefix of B rows, keys [B] typed; codes [B, most codes of the model]. The cache has slots for `max_codes` steps from
    the start, and no row is drawn again: where many rows of different lengths are to be drawn, `generate` needs less
    memory and time. Its rows are equal to those of `generate`.
    """
    limit = _limit(cfg, sampling, max_codes)
    B, P, _ = prefix.embeddings.shape
    logits, caches = gpt.prefill(params, cfg, prefix)
    state = empty(cfg, B, sampling.beams, P + sampling.beams * limit, prefix.embeddings.dtype)
    rows, most = jnp.arange(B), jnp.int32(limit)
    state = admit(cfg, state, prefix.lengths, logits, caches, rows, seeds.data(keys), sampling, most)
    state = advance(params, cfg, state, sampling, most, jnp.array(False))
    return winners(cfg, state, most)


def _limit(cfg: GPTConfig, sampling: Sampling, max_codes: int) -> int:
    """The most steps of a row. Raises Error for settings that do not fit the model."""
    if max_codes < 1:
        raise Error(f"max_codes is {max_codes}, but at least one code must be allowed")
    most = (cfg.code_vocabulary - 2) // 2
    if most < sampling.beams:
        raise Error(f"beams is {sampling.beams}, but a model of {cfg.code_vocabulary} codes takes at most {most}")
    return min(max_codes, cfg.most_codes)


# ---- all rows -------------------------------------------------------------------------------------------------------


def generate(
    params: dict,
    cfg: GPTConfig,
    prefix: Prefix,
    keys: Sequence[int | Array],
    sampling: Sampling,
    max_codes: int = 1500,
    batch: int | None = None,
    retries: int = 0,
) -> Codes:
    """Draw codes for every row of a prefix until it stops or has `max_codes`, the stop code counted.

    prefix: of N rows (more are ignored); keys: N integer seeds or typed keys, as in `seeds.key`; a row's codes depend
    on its own key alone. At most `batch` rows, rounded down to 1, 2, 4, 8, ..., are decoded at once (default: all), and
    when one has finished the next takes its place. `max_codes` is cut to the positions that the model has. A row that
    this limit cuts, or that stops at once, is drawn again up to `retries` times, each time with another key.
    Reference: model_v2.py, inference_speech, and its transformers_beam_search.py.
    """
    limit = _limit(cfg, sampling, max_codes)
    keys = [seeds.key(key) for key in keys]
    N = len(keys)
    K, B = sampling.beams, buckets.bucket(N, buckets.BATCH)
    if batch is not None:
        if batch < 1:
            raise Error(f"batch is {batch}, but must be at least 1")
        B = min(B, buckets.within(batch, buckets.BATCH))
    most_codes, longest = np.int32(limit), int(np.max(prefix.lengths[:N]))
    embeddings, lengths = map(np.asarray, prefix)
    result = Codes(
        np.full((N, cfg.most_codes), cfg.stop_code, np.int32), np.zeros(N, np.int32), np.zeros(N, bool),
        np.zeros(N, np.float32),
    )  # fmt: skip
    least = longest + K * min(CHUNK, limit)  # slots
    state = empty(cfg, B, K, buckets.bucket(least, buckets.CACHE), embeddings.dtype)
    place = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if place is not None and not isinstance(place, NamedSharding):
        # As bound to a device as what comes of the weights: another program would be compiled for the first admission.
        state = jax.device_put(state, place)
    waiting = deque((item, 0) for item in range(N))
    places: dict[int, tuple[int, int]] = {}  # row of the state -> item, attempt
    while waiting or places:
        free = [row for row in range(B) if row not in places][: len(waiting)]
        if free:
            chosen = [waiting.popleft() for _ in free]
            places |= dict(zip(free, chosen, strict=True))
            # Padded to a rung with rows that have no place.
            more = buckets.bucket(len(free), buckets.BATCH) - len(free)
            items = np.array([item for item, _ in chosen] + [chosen[0][0]] * more)
            data = np.stack([_key(keys[item], attempt) for item, attempt in chosen + [chosen[0]] * more])
            P = min(buckets.bucket(int(lengths[items].max()), buckets.PREFIX), state.visible.shape[2])
            part = embeddings[items, :P]
            part = np.pad(part, ((0, 0), (0, P - part.shape[1]), (0, 0)))
            logits, caches = gpt.prefill(params, cfg, Prefix(jnp.asarray(part), jnp.asarray(lengths[items])))
            rows = np.array(free + [B] * more, np.int32)
            state = admit(cfg, state, lengths[items], logits, caches, rows, data, sampling, most_codes)
        # A row may be done as soon as it is admitted: if another waits, its place is given away at once.
        done = np.asarray(state.done) if waiting else None
        if done is None or not done[list(places)].any():
            state = advance(params, cfg, state, sampling, most_codes, np.bool_(len(waiting) > 0))
            done = np.asarray(state.done)
        finished = [row for row in places if done[row]]
        if not finished:
            state = _with_headroom(state, limit, least)
            continue
        found = jax.device_get(winners(cfg, state, most_codes))
        for row in finished:
            item, attempt = places.pop(row)
            if (not found.stopped[row] or found.lengths[row] == 0) and attempt < retries:
                waiting.append((item, attempt + 1))
                continue
            for every, new in zip(result, found, strict=True):
                every[item] = new[row]
    return result


def _key(key: Array, attempt: int) -> np.ndarray:
    """The data of an item's key: its own at first, another one for each time it is drawn again; see `seeds`."""
    return np.asarray(seeds.data(jax.random.fold_in(key, seeds.ATTEMPT + attempt) if attempt else key))


def _with_headroom(state: State, limit: int, least: int) -> State:
    """Drop the slots that no beam sees, and make the cache larger if too few are free then; `least` slots in any case.

    The given state is gone afterwards: caches are moved layer by layer, and each old layer is freed while the next one
    is moved, so that the old cache and the new one never exist as a whole.
    """
    visible, counts, done = map(np.asarray, (state.visible, state.counts, state.done))
    need = visible.any(axis=1).sum(axis=1) + visible.shape[1] * np.minimum(HEADROOM, limit - counts)
    capacity = buckets.bucket(max(least, int(need[~done].max())), buckets.CACHE)
    kept, caches = keep(state.visible, capacity), []
    for i, cache in enumerate(state.caches):
        caches.append(compact(cache, kept.order, capacity))
        jax.block_until_ready(caches[i - 1] if i else kept)
        for array in state.caches[i - 1] if i else ():
            array.delete()
    return state._replace(caches=tuple(caches), visible=kept.visible, filled=kept.filled)
