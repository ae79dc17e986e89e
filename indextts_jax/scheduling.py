"""The one loop on the host: requests in at any time, results out as they come.

    for result in run(params, cfg, requests, batch=8):
        ...

Lists, jobs, streams and servers are its callers. It keeps the batch that draws codes full, has finished rows rendered
in groups, and gives every request its samples or its own error. What it holds does not grow with their number.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from indextts_jax import buckets
from indextts_jax.chunks import Stream
from indextts_jax.config import Config
from indextts_jax.drawing import Draw, Drawing, Usage, kind
from indextts_jax.errors import Error
from indextts_jax.groups import Groups, Spoken, measure, spoken
from indextts_jax.models import Params, gpt
from indextts_jax.models.gpt import Prefix
from indextts_jax.render import text_batch
from indextts_jax.request import Cancelled, Chunk, Request, Result

log = logging.getLogger(__name__)

BATCH = 8  # rows on a CPU
IN_FLIGHT = 2  # groups on the device before the loop waits for one


def run(
    params: Params,
    cfg: Config,
    requests: Iterable[Request | None],
    batch: int | None = None,
    fixed: bool = False,
    mels: bool = False,
    tick: Callable[[int, int], None] = lambda drawn, finished: None,
    usage: Usage | None = None,
    ending: Callable[[], bool] = lambda: False,
    patience: int | None = None,
) -> Generator[Result | Chunk, None, None]:
    """Speak requests as they come: -> their results, in the order in which they are finished.

    Of a request that is streamed the chunks come first, each as soon as it is made, then its result.

    requests are taken when there is a place for them, a few ahead; None among them means that there is none at the
    moment, and the loop goes on with what it has. `batch` rows (default: `rows`) are drawn at once, those of one kind
    of sampling (beams, sample, top_k) at a time; on an accelerator as many are rendered together, on a CPU, where that
    gains nothing, each by itself. fixed: shapes depend on nothing but a request and `batch`, so that it becomes the
    same samples to the bit whatever stands beside it. mels: results have the log-mels. tick: called between steps with
    the rows drawn and the requests finished so far; what it raises ends the run. ending: once it is true, what is on
    the device is finished, and no more is begun: other requests have no result.

    patience: while requests of another kind wait, as many batches of the present kind are begun, and then it is their
    turn (default: a batch goes on as long as there are requests of its kind, which is fastest).

    A request that cannot be spoken is a result with its error, and so is one that is cancelled. Out of memory on the
    device, the batch is halved.
    """
    batch = batch or rows(params, cfg)
    loop = _Loop(params, cfg, batch, fixed, mels, usage or Usage(), patience)
    source, over = iter(requests), False
    while True:
        tick(loop.drawn, loop.finished)
        idle = False
        if ending():
            over = True
            loop.give_up()
        while not over and not idle and loop.open:
            try:
                request = next(source)
            except StopIteration:
                over = True
                break
            if request is None:
                idle = True
            else:
                yield from loop.add(request)
        yield from loop.step(polls=idle)
        if over and loop.empty:
            tick(loop.drawn, loop.finished)
            return


class _Loop:
    """Requests on their way: those that wait, the batch that draws, the groups that are rendered."""

    def __init__(
        self, params: Params, cfg: Config, batch: int, fixed: bool, mels: bool, usage: Usage, patience: int | None
    ):
        self._params, self._cfg, self._batch, self._usage = params, cfg, batch, usage
        self._groups_of = partial(Groups, params, cfg, fixed=fixed, mels=mels, usage=usage)
        self._groups = self._groups_of(1 if _on_cpu(params) else batch)
        self._drawing: Drawing | None = None
        self._waiting: dict[Any, deque[Draw]] = {}  # by kind of sampling, the one that waits longest first
        self.drawn = self.finished = 0
        self._patience, self._begun = patience, 0  # rows handed to the batch while other kinds waited

    @property
    def open(self) -> bool:
        """Whether there is a place for one more request."""
        drawing = self._drawing
        waiting = sum(map(len, self._waiting.values()))
        others = waiting - (len(self._waiting.get(drawing.kind, ())) if drawing else 0)
        # Twice the batch, so that a row that ends is followed at once; of other kinds as many, to fill a batch later.
        own = (drawing.unfinished if drawing else 0) + waiting - others
        return own < 2 * self._batch and others < 2 * self._batch and self._groups.started <= IN_FLIGHT

    @property
    def empty(self) -> bool:
        return not (self._waiting or self._drawing or self._groups.unfinished)

    def add(self, request: Request) -> Iterator[Result | Chunk]:
        """Take a request: -> its error, if it cannot be spoken, and what needs no drawing."""
        options = request.options
        try:
            row = spoken(self._cfg, request)
            if request.streaming is not None:
                if row.alone or options.retries:
                    raise Error(f"{request.name} cannot be streamed with retries, or with more given than its codes")
                row.stream = Stream(self._params, self._cfg, row)
            if row.given.codes is not None or row.given.mel is not None:
                self.drawn += 1
                yield from self._speak(row)
                return
            draw = Draw(
                partial(_prefix, self._params, self._cfg, request), request.keys[0], options.sampling,
                options.max_codes, options.retries, row, row.stream.due if row.stream else None,
            )  # fmt: skip
            draw.check(self._cfg.gpt)
        except Error as error:
            self.drawn, self.finished = self.drawn + 1, self.finished + 1
            yield Result(request, np.zeros(0, np.int32), True, 0, error=error)
            return
        self._waiting.setdefault(kind(options.sampling), deque()).append(draw)

    def give_up(self) -> None:
        """Forget the rows that wait to be drawn."""
        self._waiting.clear()
        if self._drawing is not None:
            self._drawing.give_up()

    def step(self, polls: bool) -> Iterator[Result | Chunk]:
        """Draw for a while, start what can be rendered, and give what is finished."""
        yield from self._drop()
        self._choose()
        wait = not self._drawing  # for samples: what was drawn last is told first
        if self._drawing:
            begin = perf_counter()
            drawn = self._do(lambda: self._drawing.step(polls) if self._drawing else []) or []
            known = self._do(lambda: self._drawing.known() if self._drawing else []) or []
            self._usage.drawing += perf_counter() - begin
            for draw in drawn:
                self.drawn += 1
                yield from self._end(draw)
            for draw, codes in known:
                yield from self._begin(draw, codes)
            if self._drawing and not self._drawing.unfinished:  # out of memory, there is none
                self._drawing = None
        if not self._drawing and not self._waiting:
            self._do(self._groups.start)
        begin, results = perf_counter(), []
        while found := self._do(lambda wait=wait: self._groups.finished(wait or self._groups.started > IN_FLIGHT)):
            results, wait = results + found, False
        self._usage.rendering += perf_counter() - begin
        self.finished += len(results)
        yield from results

    def _choose(self) -> None:
        """Hand waiting rows to the batch; when it is empty, to one for the kind that has waited longest."""
        if self._drawing is None and self._waiting:
            first = next(iter(self._waiting.values()))[0]
            self._drawing = Drawing(self._params["gpt"], self._cfg.gpt, first.sampling, self._batch, self._usage)
            self._begun = 0
        drawing = self._drawing
        waiting = self._waiting.get(drawing.kind) if drawing else None
        while drawing and waiting and drawing.unfinished < 2 * self._batch:
            if len(self._waiting) > 1 and self._patience is not None:
                if self._begun >= self._patience * self._batch:  # the batch runs empty, and the next is of another kind
                    self._waiting[drawing.kind] = self._waiting.pop(drawing.kind)
                    break
                self._begun += 1
            drawing.add(waiting.popleft())
        if drawing and not waiting:
            self._waiting.pop(drawing.kind, None)

    def _drop(self) -> Iterator[Result]:
        """Give up the rows that nobody waits for any more: -> their results."""
        dropped = self._drawing.drop(_cancelled) if self._drawing else []
        for kept, waiting in list(self._waiting.items()):
            dropped += filter(_cancelled, waiting)
            self._waiting[kept] = deque(draw for draw in waiting if not _cancelled(draw))
            if not self._waiting[kept]:
                del self._waiting[kept]
        if self._drawing and not self._drawing.unfinished:
            self._drawing = None
        self.drawn += len(dropped)
        for draw in dropped:
            if not isinstance(draw.tag.stream, Error):  # which was given
                self.finished += 1
                request = draw.tag.request
                yield Result(request, np.zeros(0, np.int32), True, draw.attempts, error=_given_up(request))

    def _begin(self, draw: Draw, codes: np.ndarray) -> Iterator[Chunk | Result]:
        """The chunks of a row of which some codes are known."""
        try:
            yield from self._chunks(draw.tag, codes, whole=False)
        except Error as error:
            draw.due, draw.tag.stream = None, error
            self.finished += 1
            yield Result(draw.tag.request, codes, True, draw.attempts, error=error)
        else:
            draw.due = draw.tag.stream.due

    def _end(self, draw: Draw) -> Iterator[Result | Chunk]:
        """Hand drawn codes to their group, or give the chunks of them."""
        row, best = draw.tag, draw.best
        if isinstance(row.stream, Error):  # which was given
            return
        try:
            if draw.error:
                raise draw.error
            if _cancelled(draw):
                raise _given_up(row.request)
            assert best is not None
            row.stopped, row.attempts = best.stopped, draw.attempts
            measure(self._cfg, row, best.codes)
            if not best.stopped:
                again = f", each of {draw.attempts} times" if draw.attempts > 1 else ""
                log.warning(
                    "%s was cut off after %d codes%s: its text may be incomplete; shorter segments, another seed or "
                    "retries may avoid it",
                    row.request.name, len(best.codes), again,
                )  # fmt: skip
            yield from self._speak(row)
        except Error as error:
            codes, stopped = (best.codes, best.stopped) if best else (np.zeros(0, np.int32), True)
            self.finished += 1
            yield Result(row.request, codes, stopped, draw.attempts, error=error)

    def _speak(self, row: Spoken) -> Iterator[Result | Chunk]:
        """What comes of a row whose codes are known, if it does not wait for its group. Raises Error."""
        if not row.request.codes_only and row.stream is None:
            self._do(lambda: self._groups.add(row))
            return
        samples = None
        if row.stream is not None:
            yield from self._chunks(row, row.codes, whole=True)
            samples = row.stream.samples
        self.finished += 1
        yield Result(row.request, row.codes, row.stopped, row.attempts, samples)

    def _chunks(self, row: Spoken, codes: np.ndarray, whole: bool) -> Iterator[Chunk]:
        while True:
            if row.request.cancelled is not None and row.request.cancelled():
                raise _given_up(row.request)
            begin = perf_counter()
            found = self._do(lambda: [row.stream.chunk(codes, whole)])
            self._usage.rendering += perf_counter() - begin
            if found == [None]:
                return
            if found:  # out of memory, it is tried again beside less
                yield found[0]

    def _do(self, work: Callable[[], Any]) -> Any:
        """Do something on the device. Out of memory, halve the batch and begin again what it held: -> None then."""
        try:
            return work()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or self._batch == 1:
                raise
            self._batch = max(1, self._batch // 2)
            log.warning("out of memory on the device: from here on with --batch %d", self._batch)
        self._halved()
        return None

    def _halved(self) -> None:
        rendered, drawn = self._groups.taken(), self._drawing.taken() if self._drawing else []
        self._groups = self._groups_of(max(1, self._groups.size // 2))
        self._drawing = None
        for draw in reversed(drawn):
            self._waiting.setdefault(kind(draw.sampling), deque()).appendleft(draw)
        for row in rendered:
            self._do(lambda row=row: self._groups.add(row))


def _cancelled(draw: Draw) -> bool:
    cancelled = draw.tag.request.cancelled
    return cancelled is not None and cancelled()


def _given_up(request: Request) -> Cancelled:
    return Cancelled(f"{request.name} was given up: nobody waits for it")


def _prefix(params: Params, cfg: Config, request: Request) -> Prefix:
    """What codes are drawn after. Raises Error for ids or lengths the GPT lacks."""
    # While drawing, the reference leaves out the ids of start and stop inside a text; in the second pass it does not.
    silent = (cfg.gpt.start_text, cfg.gpt.stop_text)
    texts, lengths = text_batch(cfg, [[i for i in request.ids if i not in silent]])
    latents, emotion = (jnp.asarray(row)[None] for row in (request.voice.latents, request.voice.emotion))
    languages = () if request.language is None else (jnp.array([request.language], jnp.int32),)
    return gpt.prefix(params["gpt"], cfg.gpt, latents, emotion, texts, lengths, *languages)


# ---- how many rows --------------------------------------------------------------------------------------------------


def _on_cpu(params: Params) -> bool:
    leaf = jax.tree.leaves(params["gpt"])[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else [jax.devices()[0]]
    return next(iter(devices)).platform == "cpu"


def no_more(batch: int, count: int) -> int:
    """The rows for `count` requests that are all there is: the batch, or the rung that holds them."""
    return min(batch, buckets.bucket(count, buckets.BATCH))


def rows(params: Params, cfg: Config) -> int:
    """The rows that are drawn at once where no number is given: 8 on a CPU, else what the memory of the device holds.

    Half of what the weights leave is for the caches, at their largest; the rest is for rendering.
    """
    if _on_cpu(params):
        return BATCH
    leaf = jax.tree.leaves(params["gpt"])[0]
    memory = next(iter(leaf.devices())).memory_stats() or {}
    free = memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)
    slots = cfg.conditioner.latents + cfg.gpt.most_codes + buckets.TEXT[-1]
    row = 2 * cfg.gpt.layers * cfg.gpt.width * slots * leaf.dtype.itemsize
    return min(64, max(1, free // 2 // row))
