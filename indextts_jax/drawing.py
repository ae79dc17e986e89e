"""The loop on the host that draws codes: rows that end give their places in the batch to those that wait.

`generate` draws the rows of one prefix; `scheduling.run` adds rows as they come.

What a row draws depends on itself alone, to the bit as long as the batch has the same number of rows: every prefix is
prefilled by itself, and when slots are dropped depends on the row's own steps (`decoding.advance`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from indextts_jax import buckets, decoding, seeds
from indextts_jax.decoding import CHUNK, COMPACT, Codes, Sampling, State
from indextts_jax.errors import Error
from indextts_jax.models import gpt
from indextts_jax.models.gpt import GPTConfig, Prefix

CHUNKS = 8  # of steps between two returns to the host, at most


class Drawn(NamedTuple):
    """What one attempt has drawn."""

    codes: np.ndarray  # [C] int32, without the stop code
    stopped: bool  # False: cut by the limit
    score: float  # of the hypothesis that won

    @property
    def good(self) -> bool:
        """Whether it ended by itself, and not at once."""
        return self.stopped and len(self.codes) > 0

    @property
    def rank(self) -> tuple[bool, int]:
        """The higher of two attempts is kept: one that is good, or else the longest."""
        return self.good, len(self.codes)


@dataclass(eq=False)
class Draw:
    """A row to be drawn, and what came of it."""

    prefix: Callable[[], Prefix]  # makes it, of one row, when a place is free
    key: Array
    sampling: Sampling
    max_codes: int
    retries: int = 0  # how often it is drawn again, with another key, when the limit cuts it or it stops at once
    tag: Any = None  # the caller's
    due: int | None = None  # where somebody waits for more codes than these, before all are drawn: see `Drawing.known`
    attempts: int = 0  # made so far
    best: Drawn | None = None
    error: Error | None = None  # why it could not be drawn

    def check(self, cfg: GPTConfig) -> int:
        """The most steps that it takes. Raises Error for settings that do not fit the model."""
        return decoding.steps(cfg, self.sampling, self.max_codes)


@dataclass
class Usage:
    """What the device was used for."""

    row_steps: int = 0  # steps of decoding times rows
    used_row_steps: int = 0  # of them, those that drew a code
    frames: int = 0  # of prompt and target in the flow, padding included
    used_frames: int = 0
    drawing: float = 0.0  # seconds that the host waited for codes
    rendering: float = 0.0  # and for samples


def kind(sampling: Sampling) -> tuple[int, bool, int]:
    """What the rows of a batch have in common; everything else may differ between them."""
    return sampling.beams, sampling.sample, sampling.top_k


class Drawing:
    """A batch of `rows` rows of one kind of sampling."""

    def __init__(self, params: Any, cfg: GPTConfig, sampling: Sampling, rows: int, usage: Usage | None = None):
        self._params, self._cfg, self._sampling, self.rows = params, cfg, sampling, rows
        self.kind = kind(sampling)
        self._state: State | None = None
        self._waiting: deque[Draw] = deque()
        self._places: dict[int, Draw] = {}  # row of the state -> what is drawn there
        self._usage = usage or Usage()

    @property
    def unfinished(self) -> int:
        """The rows that are being drawn or wait for a place."""
        return len(self._places) + len(self._waiting)

    def add(self, draw: Draw) -> None:
        """Have a row drawn as soon as there is a place for it. Raises Error for settings that do not fit the model."""
        draw.check(self._cfg)
        self._waiting.append(draw)

    def give_up(self) -> None:
        """Forget the rows that wait for a place."""
        self._waiting.clear()

    def drop(self, unwanted: Callable[[Draw], bool]) -> list[Draw]:
        """Give up rows that nobody wants: -> them. Their places are free; the others draw what they draw anyway."""
        rows = [row for row, draw in self._places.items() if unwanted(draw)]
        dropped = [self._places.pop(row) for row in rows]
        if rows and self._state is not None:
            over = np.array(self._state.done)
            over[rows] = True
            self._state = self._state._replace(done=jax.device_put(over, self._state.done.sharding))
        dropped += [draw for draw in self._waiting if unwanted(draw)]
        self._waiting = deque(draw for draw in self._waiting if not unwanted(draw))
        return dropped

    def taken(self) -> list[Draw]:
        """Everything that is not finished, which is thereby given up."""
        for draw in self._places.values():
            draw.attempts -= 1
        left = [*self._places.values(), *self._waiting]
        self._places.clear()
        self._waiting.clear()
        self._state = None
        return left

    def step(self, polls: bool = False) -> list[Draw]:
        """Admit what has a place, and take steps until a row has ended, or for a while: -> those that are finished.

        polls: only a few steps, because rows may come meanwhile.
        """
        finished = self._admit()
        if finished or not self._places:
            return finished
        state = self._state
        assert state is not None
        done, counts = jax.device_get((state.done, state.counts))
        # A row may be done as soon as it is admitted: if another waits, its place is given away at once.
        if not (self._waiting and done[list(self._places)].any()):
            before = counts
            listened = any(draw.due is not None for draw in self._places.values())
            most = np.int32(1 if polls or listened else CHUNKS)
            state = decoding.advance(self._params, self._cfg, state, np.bool_(len(self._waiting) > 0), most)
            done, counts, filled = jax.device_get((state.done, state.counts, state.filled))
            chunks = -(-int((counts - before).max()) // CHUNK)
            self._usage.row_steps += chunks * CHUNK * self.rows
            self._usage.used_row_steps += int((counts - before).sum())
            if not done[list(self._places)].any():
                state = self._with_room(state, counts, filled, done)
        self._state = state
        return self._finished(done)

    def known(self) -> list[tuple[Draw, np.ndarray]]:
        """The codes [C] that rows will begin with, of those that are being drawn and have more of them than are due."""
        due = {row: draw.due for row, draw in self._places.items() if draw.due is not None}
        if not due or self._state is None:
            return []
        counts, done = jax.device_get((self._state.counts, self._state.done))
        if not any(counts[row] > least and not done[row] for row, least in due.items()):
            return []
        codes, lengths = jax.device_get(decoding.agreed(self._cfg, self._state))
        rows = (row for row, least in due.items() if lengths[row] > least and not done[row])
        return [(self._places[row], codes[row, : lengths[row]]) for row in rows]

    def _admit(self) -> list[Draw]:
        """Give free places to rows that wait: -> the first of them whose prefix cannot be made, if there is one."""
        for row in (row for row in range(self.rows) if row not in self._places):
            if not self._waiting:
                break
            draw = self._waiting[0]  # until it has its place: what fails on the way is not its end
            try:
                prefix = draw.prefix()
            except Error as error:
                draw.error = error
                return [self._waiting.popleft()]
            self._place(row, draw, prefix)
            self._waiting.popleft()
        return []

    def _place(self, row: int, draw: Draw, prefix: Prefix) -> None:
        limit = draw.check(self._cfg)
        P, beams = prefix.embeddings.shape[1], self._sampling.beams
        least = _blocks(max(P, int(np.asarray(prefix.lengths)[0]) + beams * min(CHUNK, limit)))
        if self._state is None:
            empty = decoding.empty(
                self._cfg, _numbers(draw.sampling, self._cfg), self.rows, least, prefix.embeddings.dtype
            )
            place = getattr(jax.tree.leaves(self._params)[0], "sharding", None)
            if place is not None and not isinstance(place, NamedSharding):
                # As bound to a device as what comes of the weights: another program would be compiled for the first
                # admission.
                empty = jax.device_put(empty, place)
            self._state = empty
        else:
            self._state = self._grown(self._state, least)
        logits, caches = gpt.prefill(self._params, self._cfg, prefix)
        key = np.asarray(seeds.data(seeds.of_attempt(draw.key, draw.attempts)))
        self._state = decoding.admit(
            self._cfg, self._state, prefix.lengths, logits, caches, np.array([row], np.int32), key[None],
            _numbers(draw.sampling, self._cfg), np.array([limit], np.int32),
        )  # fmt: skip
        self._places[row] = draw
        draw.attempts += 1

    def _finished(self, done: np.ndarray) -> list[Draw]:
        ended = [row for row in self._places if done[row]]
        if not ended:
            return []
        assert self._state is not None
        found = jax.device_get(decoding.winners(self._cfg, self._state))
        finished = []
        for row in ended:
            draw = self._places.pop(row)
            drawn = Drawn(found.codes[row, : found.lengths[row]], bool(found.stopped[row]), float(found.scores[row]))
            if draw.best is None or drawn.rank > draw.best.rank:
                draw.best = drawn
            if not draw.best.good and draw.attempts <= draw.retries:
                self._waiting.append(draw)
            else:
                finished.append(draw)
        return finished

    def _with_room(self, state: State, counts: np.ndarray, filled: np.ndarray, done: np.ndarray) -> State:
        """A state whose cache has slots for the steps until slots are dropped again, in the row that needs the most."""
        beams = self._sampling.beams
        until = COMPACT - (counts - 1) % COMPACT if beams > 1 else COMPACT
        need = filled + beams * np.minimum(until, np.asarray(state.limits) - counts)
        return self._grown(state, _blocks(int(need[~done].max())))

    def _grown(self, state: State, blocks: int) -> State:
        """A state of at least so many blocks; nothing that it has is moved."""
        missing = blocks - len(state.caches[0])
        if missing <= 0:
            return state
        added = decoding.more(self._cfg, state, missing)
        caches = tuple(have + more for have, more in zip(state.caches, added, strict=True))
        visible = jnp.pad(state.visible, ((0, 0), (0, 0), (0, missing * decoding.BLOCK)))
        return state._replace(caches=caches, visible=visible)


def _blocks(slots: int) -> int:
    """The blocks of a cache for so many slots."""
    return buckets.bucket(-(-slots // decoding.BLOCK), buckets.BLOCKS)


def _numbers(sampling: Sampling, cfg: GPTConfig) -> Sampling:
    """The same settings as arrays of one row, so that numbers, arrays and None are one program."""
    return jax.tree.map(lambda value: np.full(1, value, np.float32), sampling.of(cfg))


def generate(
    params: Any,
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
    on its own key alone; sampling: of numbers, or arrays [N]. `batch` rows are decoded at once (default: all), and when
    one has finished the next takes its place. `max_codes` is cut to the positions that the model has. A row that this
    limit cuts, or that stops at once, is drawn again up to `retries` times, each time with another key, and the best
    attempt counts.
    Reference: model_v2.py, inference_speech, and its transformers_beam_search.py.
    """
    decoding.steps(cfg, sampling, max_codes)
    N = len(keys)
    if batch is not None and batch < 1:
        raise Error(f"batch is {batch}, but must be at least 1")
    drawing = Drawing(params, cfg, sampling, min(batch or N, N))
    embeddings, lengths = map(jnp.asarray, prefix)
    for i, key in enumerate(keys):
        row = Prefix(embeddings[i : i + 1], lengths[i : i + 1])
        own = jax.tree.map(lambda value, i=i: value[i] if np.ndim(value) else value, sampling)
        drawing.add(Draw(lambda row=row: row, seeds.key(key), own, max_codes, retries, tag=i))
    result = Codes(
        np.full((N, cfg.most_codes), cfg.stop_code, np.int32), np.zeros(N, np.int32), np.zeros(N, bool),
        np.zeros(N, np.float32),
    )  # fmt: skip
    while drawing.unfinished:
        for draw in drawing.step():
            assert draw.best is not None
            result.codes[draw.tag, : len(draw.best.codes)] = draw.best.codes
            result.lengths[draw.tag] = len(draw.best.codes)
            result.stopped[draw.tag], result.scores[draw.tag] = draw.best.stopped, draw.best.score
    return result
