"""How codes are drawn: the reference's score processing and beams, in a scan over a preallocated cache.

Pure programs: `drawing.py` has the loop on the host that gives the place of a finished row to the next one; `decode`
decodes a batch in one program. Steps are scanned in chunks inside a while loop, which returns to the host when a row
has finished while another waits for a place, and when the cache is full. Each row has its own prefix, count, key,
settings and limit: what it draws depends neither on its neighbours nor on when it was admitted.

Beams share one cache per row. Each step writes one slot per beam after those of the step before, and every beam
remembers which slots are its own past: reordering beams reorders these masks, and no key or value moves. Slots that no
beam sees any more are dropped every `COMPACT` steps of a row: when that is depends on the row alone, so that the order
in which its attention adds up does too.

Dimensions: B rows decoded at once, K beams, C codes, V code vocabulary, S cache slots.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax import seeds
from indextts_jax.errors import Error
from indextts_jax.models import gpt
from indextts_jax.models.gpt import GPTConfig, LayerCache, Prefix
from indextts_jax.models.layers import by_product, valid

BLOCK = 256  # slots of the cache that lie together: it grows by whole blocks
CHUNK = 16  # steps between two looks at whether rows have finished
COMPACT = 64  # steps of a row after which the slots that none of its beams sees are dropped; a multiple of CHUNK
REPETITION_PENALTY = 10.0  # the reference's
UNLIKELY = -1e9  # running score of all beams but the first before the first step, so that they do not count yet


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["top_p", "temperature", "repetition_penalty", "length_penalty"],
    meta_fields=["beams", "sample", "top_k"],
)
@dataclass(frozen=True)
class Sampling:
    """The reference's settings.

    Another `beams`, `sample` or `top_k` compiles anew; the others do not: they are numbers, or arrays [B], one per row.
    """

    beams: int = 3
    sample: bool = True  # False: the best code, or plain beam search
    top_k: int = 30  # 0: all
    top_p: float | Array = 0.8
    temperature: float | Array = 0.8
    repetition_penalty: float | Array | None = None  # None: the model's own, see `of`
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

    def of(self, cfg: GPTConfig) -> "Sampling":
        """These settings with numbers for all: those of the model where none is given."""
        own = cfg.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty
        return replace(self, repetition_penalty=REPETITION_PENALTY if own is None else own)


class Codes(NamedTuple):
    """What was drawn, row by row; numpy arrays where `drawing.generate` gives it."""

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

    caches: tuple[tuple[LayerCache, ...], ...]  # of each layer: blocks of [B, heads, head width, BLOCK], S in all
    recent: tuple[LayerCache, ...]  # of each layer: the slots of the chunk under way, K at each of its steps, R in all
    visible: Array  # [B, K, S] bool, the slots that a beam sees; within a chunk [B, K, S + R]
    filled: Array  # [B] int32, slots in use, the recent ones apart
    counts: Array  # [B] int32, steps taken
    done: Array  # [B] bool
    seen: Array  # [B, K, V] bool, the codes that are penalised
    scores: Array  # [B, K] float32, running
    trace: Trace
    hypotheses: Hypotheses
    keys: Array  # [B, words] uint32, key data
    sampling: Sampling  # of arrays [B] float32
    limits: Array  # [B] int32, the most steps of a row


# ---- one decision ---------------------------------------------------------------------------------------------------


def process(scores: Array, seen: Array, sampling: Sampling) -> Array:
    """The reference's chain: repetition penalty, and when sampling temperature, top-k and top-p.

    scores [B, ..., V] float32, seen [B, ..., V] bool -> [B, ..., V] float32, −inf where removed. Equal scores stay or
    go together. With beams at least two are kept. sampling: with a number for everything (`Sampling.of`).
    """

    def each(value: float | Array | None) -> Array:
        """A number, or one per row [B], against the scores."""
        if value is None:
            raise Error("repetition_penalty is None, which stands for the model's own: give it by Sampling.of(cfg)")
        array = jnp.asarray(value, scores.dtype)
        return array.reshape(array.shape + (1,) * (scores.ndim - 1)) if array.ndim else array

    penalty = each(sampling.repetition_penalty)
    scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if not sampling.sample:
        return scores
    scores = scores / each(sampling.temperature)
    least = 2 if sampling.beams > 1 else 1
    k = min(max(sampling.top_k, least) if sampling.top_k else scores.shape[-1], scores.shape[-1])
    # Descending. As rows: of more axes a TPU would sort everything.
    best = jax.lax.top_k(scores.reshape(-1, scores.shape[-1]), k)[0].reshape(*scores.shape[:-1], k)
    # Ascending sums as the reference takes them: whatever lies in the lower 1 - p goes, but never the best.
    tail = jnp.cumsum(jax.nn.softmax(best, axis=-1)[..., ::-1], axis=-1)[..., ::-1]
    kept = tail > 1.0 - each(sampling.top_p)
    kept = kept | (jnp.arange(k) < least).reshape((1,) * (kept.ndim - 1) + (k,))
    lowest = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores < lowest, -jnp.inf, scores)


def draw(logits: Array, seen: Array, keys: Array, sampling: Sampling, cfg: GPTConfig) -> Array:
    """The next code of each row [B], without beams: logits and seen [B, V], keys [B].

    The start code is never drawn: the reference does not forbid it and indexes past its codebook when it comes.
    """
    allowed = jnp.arange(logits.shape[-1])[None] != cfg.start_code
    scores = process(jnp.where(allowed, logits, -jnp.inf), seen, sampling.of(cfg))
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
    scores = (process(scores, seen, sampling.of(cfg)) + running[:, :, None]).reshape(B, K * V)
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


def _of_parents(values: Array, parents: Array) -> Array:
    """What each beam has from its parent: [B, K, N], [B, K] -> [B, K, N]. By selection: a gather takes row by row."""
    first, *others = jnp.split(values, values.shape[1], axis=1)
    picked = jnp.broadcast_to(first, values.shape)
    for k, other in enumerate(others, 1):
        picked = jnp.where((parents == k)[:, :, None], other, picked)
    return picked


def _decide(state: State, logits: Array, cfg: GPTConfig) -> tuple[State, Trace]:
    """Choose the next code of each beam from `logits` [B, K, V], in the rows that are not done.

    -> the state, and what is to be added to its trace [B, K], in the other rows anything.
    """
    B, K, _ = logits.shape
    sampling = state.sampling
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
        visible, seen = (_of_parents(a, parents) for a in (visible, seen))
    cut = active & ~done & (counts >= state.limits)
    for beam in range(K):
        hypotheses = _enter(hypotheses, running[:, beam] / norm, counts, jnp.full(B, beam), cut)

    keep = active[:, None]
    seen = seen | (jnp.arange(seen.shape[-1])[None, None] == codes[:, :, None])
    state = state._replace(
        visible=jnp.where(keep[..., None], visible, state.visible),
        counts=jnp.where(active, counts, state.counts),
        done=state.done | done | cut,
        seen=jnp.where(keep[..., None], seen, state.seen),
        scores=jnp.where(keep, running, state.scores),
        hypotheses=hypotheses,
    )
    return state, Trace(codes, parents, running)


# ---- many steps -----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("cfg", "rows", "blocks", "dtype"))
def empty(cfg: GPTConfig, sampling: Sampling, rows: int, blocks: int, dtype: jnp.dtype) -> State:
    """A state whose `rows` places are all free, for rows that are drawn by `sampling`'s beams, sample and top_k."""
    B, K, S, C = rows, sampling.beams, blocks * BLOCK, cfg.most_codes
    caches = tuple(zip(*(gpt.empty(cfg, B, BLOCK, dtype) for _ in range(blocks)), strict=True))
    recent = gpt.empty(cfg, B, K * CHUNK, dtype)
    counts, whole, part = jnp.zeros(B, jnp.int32), jnp.zeros((B, C, K), jnp.int32), jnp.zeros((B, K), jnp.float32)
    visible, seen = jnp.zeros((B, K, S), bool), jnp.zeros((B, K, cfg.code_vocabulary), bool)
    return State(
        caches, recent, visible, counts, counts, counts == 0, seen, part,
        Trace(whole + cfg.stop_code, whole, whole.astype(jnp.float32)),
        Hypotheses(part, part.astype(jnp.int32) - 1, part.astype(jnp.int32)),
        jnp.zeros((B, seeds.WORDS), jnp.uint32), _per_row(cfg, sampling, B), counts,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("cfg", "blocks"))
def more(cfg: GPTConfig, state: State, blocks: int) -> tuple[tuple[LayerCache, ...], ...]:
    """As many free blocks for the cache of every layer."""
    B, dtype = state.done.shape[0], state.caches[0][0].k.dtype
    return tuple(zip(*(gpt.empty(cfg, B, BLOCK, dtype) for _ in range(blocks)), strict=True))


def _per_row(cfg: GPTConfig, sampling: Sampling, rows: int) -> Sampling:
    return jax.tree.map(lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (rows,)), sampling.of(cfg))


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def admit(
    cfg: GPTConfig, state: State, lengths: Array, logits: Array, caches: tuple[LayerCache, ...], rows: Array,
    keys: Array, sampling: Sampling, limits: Array,
) -> State:  # fmt: skip
    """Put prefilled prefixes into places of the state, and draw the first code of each.

    lengths [A] of the prefixes, logits [A, V] and caches of P slots from `gpt.prefill`, rows [A]: the places, where one
    past the last marks a prefix that is padding; keys [A, words] as data; sampling as the state's, of numbers or arrays
    [A]; limits [A] int32, or one for all.
    """
    A = logits.shape[0]
    K, S = state.visible.shape[1:]
    new = empty(cfg, sampling, A, S // BLOCK, caches[0].k.dtype)
    # The reference counts its prompt as generated: ones and the start code stand for it, and are penalised.
    seen = new.seen.at[..., jnp.array([1, cfg.start_code])].set(True)
    visible = jnp.broadcast_to(valid(lengths, S)[:, None], (A, K, S))
    # None of them, but computed, so that under shard_map the whole state varies as the rows do.
    done = lengths < 0
    recent = jax.tree.map(lambda free: jnp.where(done[:, None, None, None], free + 1, free), new.recent)
    new = new._replace(
        caches=(), recent=recent, visible=visible, filled=lengths, done=done, seen=seen, keys=keys,
        scores=jnp.where((jnp.arange(K)[None] == 0) | done[:, None], 0.0, UNLIKELY),
        limits=jnp.broadcast_to(jnp.asarray(limits, jnp.int32), (A,)),
    )  # fmt: skip
    V = logits.shape[-1]
    new, first = _decide(new, jnp.broadcast_to(logits[:, None], (A, K, V)), cfg)
    new = new._replace(trace=Trace(*(old.at[:, 0].set(one) for old, one in zip(new.trace, first, strict=True))))
    places = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), state._replace(caches=()), new)

    def fill(blocks: tuple[LayerCache, ...], cache: LayerCache) -> tuple[LayerCache, ...]:
        """The slots of the prefixes into the first blocks of a layer; the others are cleared.

        Nobody sees those, but a NaN that an earlier row has left there would be one times zero, too.
        """
        filled = []
        for i, block in enumerate(blocks):
            parts = (array[..., i * BLOCK : (i + 1) * BLOCK] for array in cache)
            whole = (jnp.pad(part, ((0, 0), (0, 0), (0, 0), (0, BLOCK - part.shape[3]))) for part in parts)
            pairs = zip(block, whole, strict=True)
            filled.append(LayerCache(*(old.at[rows].set(new, mode="drop") for old, new in pairs)))
        return tuple(filled)

    return places._replace(caches=tuple(map(fill, state.caches, caches)))


@partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def advance(params: dict, cfg: GPTConfig, state: State, waiting: Array, chunks: Array) -> State:
    """Take steps until every row is done, until a row becomes done while others are `waiting` [] bool for its place,
    until the next chunk might not fit into the cache, or for `chunks` [] int32 of them.
    """
    K, S = state.visible.shape[1:]
    busy = ~state.done

    def more(carry: tuple[State, Array]) -> Array:
        state, taken = carry
        fits = state.filled + K * jnp.minimum(CHUNK, state.limits - state.counts) <= S
        freed = waiting & (busy & state.done).any()
        return (taken < chunks) & (~state.done).any() & (fits | state.done).all() & ~freed

    def chunk(carry: tuple[State, Array]) -> tuple[State, Array]:
        state, taken = carry
        caches = state.caches  # only read

        def one(carry: tuple[State, Array], n: Array) -> tuple[tuple[State, Array], tuple[Array, Trace]]:
            state, last = carry
            own = S + K * n + jnp.arange(K)
            visible = state.visible | (jnp.arange(S + K * CHUNK)[None] == own[:, None])[None]
            # counts is 1 when the first code is fed, at position 2: the reference skips position 1
            logits, recent = gpt.step(params, cfg, caches, state.recent, last, K * n, state.counts + 1, visible)
            # Where nothing is drawn: past the end, and dropped.
            at = jnp.where(state.done, cfg.most_codes, state.counts)
            state, drawn = _decide(state._replace(recent=recent, visible=visible), logits, cfg)
            return (state, drawn.codes), (at, drawn)

        last = jnp.take_along_axis(state.trace.codes, (state.counts - 1)[:, None, None], axis=1)[:, 0]  # [B, K]
        visible, trace = jnp.pad(state.visible, ((0, 0), (0, 0), (0, K * CHUNK))), state.trace
        state = state._replace(caches=(), trace=(), visible=visible)
        (state, _), (at, drawn) = jax.lax.scan(one, (state, last), jnp.arange(CHUNK))
        rows = jnp.arange(len(last))[None]
        trace = Trace(*(old.at[rows, at].set(new, mode="drop") for old, new in zip(trace, drawn, strict=True)))
        return _compact(_settle(state._replace(caches=caches, trace=trace))), taken + 1

    return jax.lax.while_loop(more, chunk, (state, jnp.int32(0)))[0]


@jax.named_scope("settle")
def _settle(state: State) -> State:
    """Move the slots of a chunk behind those before it, in the rows that go on, which have taken all of its steps."""
    going, R = ~state.done, state.recent[0].k.shape[3]
    blocks = []
    for i, block in enumerate(zip(*state.caches, strict=True)):
        starts = state.filled - i * BLOCK  # where the first of them comes to lie in this block
        touched = going & (starts > -R) & (starts < BLOCK)
        rows = jnp.argsort(~touched, stable=True)

        def move(i: Array, block: Any, starts: Array = starts, rows: Array = rows) -> Any:
            row, start = rows[i], starts[rows[i]]
            place = jnp.arange(BLOCK)
            inside = ((place >= start) & (place < start + R))[None, None, None]

            def moved(old: Array, new: Array) -> Array:
                own = jax.lax.dynamic_slice_in_dim(old, row, 1)
                new = jnp.pad(jax.lax.dynamic_slice_in_dim(new, row, 1), ((0, 0), (0, 0), (0, 0), (BLOCK, BLOCK)))
                new = jax.lax.dynamic_slice_in_dim(new, BLOCK - start, BLOCK, axis=3)
                return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(inside, new, own), row, axis=0)

            return jax.tree.map(moved, block, state.recent)

        blocks.append(jax.lax.fori_loop(0, touched.sum(dtype=jnp.int32), move, block))
    S = state.visible.shape[2] - R
    offset = jnp.arange(S)[None] - state.filled[:, None]
    fresh = offset[:, None, :, None] == jnp.arange(R)[None, None, None]  # [B, 1, S, R]
    fresh = (fresh & state.visible[:, :, None, S:]).any(axis=3)
    return state._replace(
        caches=tuple(zip(*blocks, strict=True)),
        visible=state.visible[:, :, :S] | fresh,
        filled=jnp.where(going, state.filled + R, state.filled),
    )


@jax.named_scope("compact")
def _compact(state: State) -> State:
    """Move the slots that some beam sees to the front, in the rows that have taken `COMPACT` steps since last time."""
    K = state.visible.shape[1]
    if K == 1:  # which sees all that was written
        return state
    due = ~state.done & ((state.counts - 1) % COMPACT == 0)
    seen = state.visible.any(axis=1)
    order = jnp.argsort(~seen, axis=1, stable=True)  # [B, S]
    rows = jnp.argsort(~due, stable=True)

    def move(i: Array, caches: tuple[tuple[LayerCache, ...], ...]) -> tuple[tuple[LayerCache, ...], ...]:
        row = rows[i]

        def moved(*blocks: Array) -> tuple[Array, ...]:
            own = jnp.concatenate([jax.lax.dynamic_slice_in_dim(block, row, 1) for block in blocks], axis=3)
            own = jax.lax.platform_dependent(own, order[row], tpu=_permute_by_product, default=_permute)
            put, own = jax.lax.dynamic_update_slice_in_dim, jnp.split(own, len(blocks), axis=3)
            return tuple(put(block, part, row, axis=0) for block, part in zip(blocks, own, strict=True))

        def layer(blocks: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
            return tuple(map(LayerCache, moved(*(b.k for b in blocks)), moved(*(b.v for b in blocks))))

        return tuple(map(layer, caches))

    visible = jnp.take_along_axis(state.visible, order[:, None], axis=2)
    return state._replace(
        caches=jax.lax.fori_loop(0, due.sum(dtype=jnp.int32), move, state.caches),
        visible=jnp.where(due[:, None, None], visible, state.visible),
        filled=jnp.where(due, seen.sum(axis=1, dtype=jnp.int32), state.filled),
    )


def _permute(x: Array, order: Array) -> Array:
    """x [..., S] in another order of its slots [S]."""
    return jnp.take_along_axis(x, order.reshape((1,) * (x.ndim - 1) + (-1,)), axis=-1)


def _permute_by_product(x: Array, order: Array) -> Array:
    """`_permute` for finite numbers, exact as well: a TPU moves slot by slot but multiplies fast."""
    return by_product("...s,sn->...n", x, jnp.arange(len(order))[:, None] == order[None])


@partial(jax.jit, static_argnames="cfg")
def winners(cfg: GPTConfig, state: State) -> Codes:
    """What the rows that are done have drawn, walked back through the beams from the best hypothesis of each.

    Of equal hypotheses the last one wins.
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
    return Codes(codes, lengths, lengths < state.limits, scores)


@partial(jax.jit, static_argnames="cfg")
def agreed(cfg: GPTConfig, state: State) -> tuple[Array, Array]:
    """The codes that a row will begin with, whatever wins: [B, C] int32, of which [B] are known.

    With one beam all that are drawn; with more, those that all live beams and all hypotheses begin with: a winner is
    one of the hypotheses or continues a live beam. Of rows that are done see `winners`.
    """
    trace, hypotheses, rows = state.trace, state.hypotheses, jnp.arange(state.done.shape[0])[:, None]
    K = hypotheses.lengths.shape[1]
    live = jnp.broadcast_to(jnp.arange(K)[None], hypotheses.beams.shape)
    beams = jnp.concatenate([live, hypotheses.beams], axis=1)  # [B, 2 K], where each path ends
    lengths = jnp.concatenate([jnp.broadcast_to(state.counts[:, None], live.shape), hypotheses.lengths], axis=1)
    longest = state.counts.max()

    def back(i: Array, walked: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        codes, beams, same = walked
        step = longest - 1 - i
        code, parent = (values[rows, step, beams] for values in (trace.codes, trace.parents))
        inside, counts = step < lengths, lengths >= 0
        one = inside.all(axis=1, where=counts) & (code == code[:, :1]).all(axis=1, where=counts)
        return codes.at[:, step].set(code[:, 0]), jnp.where(inside, parent, beams), same.at[:, step].set(one)

    codes = jnp.full_like(trace.codes[:, :, 0], cfg.stop_code)
    codes, _, same = jax.lax.fori_loop(0, longest, back, (codes, beams, jnp.zeros(codes.shape, bool)))
    return codes, jnp.cumprod(same, axis=1, dtype=jnp.int32).sum(axis=1)


@partial(jax.jit, static_argnames=("cfg", "max_codes"))
def decode(
    params: dict, cfg: GPTConfig, prefix: Prefix, keys: Array, sampling: Sampling, max_codes: int = 1500
) -> Codes:
    """`drawing.generate` as one program, for `jit`, `vmap`, `shard_map` and reinforcement learning: -> Codes.

    prefix of B rows, keys [B] typed; sampling of numbers or arrays [B]; codes [B, most codes of the model]. The cache
    has slots for `max_codes` steps from the start, and no row is drawn again: where many rows of different lengths are
    to be drawn, `generate` needs less memory and time. Its rows are equal to those of `generate`.
    """
    limit = steps(cfg, sampling, max_codes)
    B, P, _ = prefix.embeddings.shape
    logits, caches = gpt.prefill(params, cfg, prefix)
    blocks = -(-(P + sampling.beams * limit) // BLOCK)
    state = empty(cfg, sampling, B, blocks, prefix.embeddings.dtype)
    rows = jnp.arange(B)
    state = admit(cfg, state, prefix.lengths, logits, caches, rows, seeds.data(keys), sampling, jnp.int32(limit))
    return winners(cfg, advance(params, cfg, state, jnp.array(False), jnp.int32(limit)))


def steps(cfg: GPTConfig, sampling: Sampling, max_codes: int) -> int:
    """The most steps of a row, the stop code counted. Raises Error for settings that do not fit the model."""
    if max_codes < 1:
        raise Error(f"max_codes is {max_codes}, but at least one code must be allowed")
    most = (cfg.code_vocabulary - 2) // 2
    if most < sampling.beams:
        raise Error(f"beams is {sampling.beams}, but a model of {cfg.code_vocabulary} codes takes at most {most}")
    return min(max_codes, cfg.most_codes)
