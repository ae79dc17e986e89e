"""One scheduler for all who ask: texts in from any thread, their sound out to whoever asked.

    service = Service(model.params, model.cfg)
    service.start()
    with service.place():
        service.submit(Speaking(text, voice, seed, options, tell=queue.put))

A thread of its own runs `scheduling.run`; texts that are spoken at the same time share its batches, segment by segment
in turns, so that a long text does not keep a short one waiting. With nothing to do the thread sleeps.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from indextts_jax import pipeline, scheduling
from indextts_jax.config import Config
from indextts_jax.drawing import Usage
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.joining import Cue
from indextts_jax.models import Params
from indextts_jax.pipeline import Audio
from indextts_jax.request import Cancelled, Chunk, Options, Request, Result, Streaming
from indextts_jax.streaming import Order
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice

log = logging.getLogger(__name__)

PATIENCE = 4  # batches of one kind of sampling while another waits


class Full(Error):
    """As many texts as may are under way: try again later."""


class Closing(Error):
    """No more texts are taken."""


class Broken(Exception):
    """The scheduler met a bug or lost its device; what was under way is lost, what comes is spoken."""


Event = Chunk | Cue | Audio | Exception


@dataclass(eq=False)
class Speaking:
    """A text that is to be spoken, and whom to tell what comes of it.

    tell is called in the service's thread: with streaming, by every Chunk in its order, the last of which ends it, and
    by the Cue of a segment before its last chunk; else by the Audio; or by an error, which ends it, too: `Error` where
    the text cannot be spoken, `Cancelled` where it was cancelled or its time was over, `Broken`.
    """

    text: Analysis
    voice: Voice
    seed: int
    options: Options
    tell: Callable[[Event], None]
    felt: Emotion | None = None
    streaming: Streaming | None = None
    until: float | None = None  # `time.monotonic()` after which nobody wants it
    name: str = ""  # " of request 7", in messages after the number of a segment
    _cancelled: bool = False
    _over: bool = False  # the last event was told
    _requests: deque[Request] | None = None  # that are not handed out
    _order: Order | None = None
    _results: dict[int, Result] = field(default_factory=dict)

    def cancel(self) -> None:
        """Free its rows: nobody listens any more. From any thread."""
        self._cancelled = True

    def over(self) -> bool:
        """Whether nobody wants what is left of it."""
        return self._cancelled or self._over or (self.until is not None and time.monotonic() > self.until)


class Service:
    """The scheduler's thread, and the texts on their way to it. Every method but `_`those may be called anywhere."""

    def __init__(
        self,
        params: Params,
        cfg: Config,
        batch: int | None = None,
        most: int = 64,
        patience: int | None = PATIENCE,
    ):
        """batch: rows, as in `scheduling.run`; most: texts that are under way or wait."""
        self._params, self._cfg, self.most, self._patience = params, cfg, most, patience
        self.rows = batch or scheduling.rows(params, cfg)
        # Several wait for it: the loop for texts, whoever closes for the end. So it is always notify_all.
        self._changed = threading.Condition()
        self._texts: deque[Speaking] = deque()  # that have segments to hand out; each in its turn
        self._unfinished: set[Speaking] = set()
        self._handed, self._drawn, self._back = 0, 0, 0  # segments: to the scheduler, drawn by it, come back from it
        self._places = 0
        self._closing = self._ended = False
        self.usage, self.seconds = Usage(), 0.0  # of audio made
        self._thread = threading.Thread(target=self._run, name="speaking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ---- for those who ask ----

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the texts under way, from before it is read until its sound is sent. Raises Full, Closing."""
        with self._changed:
            if self._closing:
                raise Closing("the server is about to end: ask another one, or this one when it runs again")
            if self._places >= self.most:
                raise Full(f"{self._places} requests are under way, which is the most: try again a little later")
            self._places += 1
        try:
            yield
        finally:
            with self._changed:
                self._places -= 1
                self._changed.notify_all()

    def submit(self, speaking: Speaking) -> None:
        """Have a text spoken. Whoever asks holds a `place`."""
        with self._changed:
            self._texts.append(speaking)
            self._unfinished.add(speaking)
            self._changed.notify_all()

    @property
    def places(self) -> int:
        """The texts under way, and those that wait."""
        return self._places

    @property
    def waiting(self) -> int:
        """The texts of which no segment has been handed to the scheduler."""
        return sum(speaking._requests is None for speaking in list(self._texts))

    @property
    def rows_in_use(self) -> int:
        return min(self.rows, max(0, self._handed - self._drawn))

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self, seconds: float | None = None) -> bool:
        """Take no more texts, and wait until those under way are spoken and sent: -> whether they were in time."""
        with self._changed:
            self._closing = True
            sent = self._changed.wait_for(lambda: not self._places, seconds)
            self._ended = True
            for speaking in self._unfinished:
                speaking.cancel()
            self._changed.notify_all()
        self._thread.join(seconds)
        return sent

    # ---- the thread ----

    def _run(self) -> None:
        while not self._ended:
            with self._changed:
                self._handed = self._drawn = self._back = 0
            try:
                for found in scheduling.run(
                    self._params, self._cfg, self._source(), self.rows, fixed=True, tick=self._tick, usage=self.usage,
                    patience=self._patience,
                ):  # fmt: skip
                    self._take(found)
            except Exception:
                log.exception("the scheduler failed: what was under way is lost; it begins anew")
                with self._changed:
                    lost, self._unfinished = self._unfinished, set()
                    self._texts.clear()
                for speaking in lost:
                    self._finish(speaking, Broken("the server failed while it was speaking: try again"))

    def _tick(self, drawn: int, finished: int) -> None:
        self._drawn = drawn

    def _source(self) -> Iterator[Request | None]:
        """Segments for the scheduler, of every text in its turn; None while it has some and no other is there."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._texts or self._handed > self._back or self._ended)
                speaking = self._texts.popleft() if self._texts else None
                if speaking is None and self._handed == self._back:
                    return
            if speaking is None:
                yield None
            elif (request := self._next(speaking)) is not None:
                self._handed += 1
                yield request

    def _next(self, speaking: Speaking) -> Request | None:
        """The next segment of a text, which goes behind the others if it has more; None where it is at its end."""
        if speaking.over():
            self._finish(speaking, Cancelled("nobody waits for this text any more"))
            return None
        if speaking._requests is None:
            try:
                speaking._requests = self._requests(speaking)
            except Error as error:
                self._finish(speaking, error)
                return None
        request = speaking._requests.popleft()
        if speaking._requests:
            with self._changed:
                self._texts.append(speaking)
        return request

    def _requests(self, speaking: Speaking) -> deque[Request]:
        text, options = speaking.text, speaking.options
        made = pipeline.requests(
            self._params, self._cfg, text, speaking.voice, speaking.seed, options, speaking.felt, of=speaking.name
        )  # fmt: skip
        if speaking.streaming is not None:
            speaking._order = Order(self._cfg, text, options, speaking.tell)
        return deque(
            replace(request, tag=(speaking, i), streaming=speaking.streaming, cancelled=speaking.over)
            for i, request in enumerate(made)
        )

    def _take(self, found: Chunk | Result) -> None:
        """Tell what came of a segment."""
        speaking, segment = found.request.tag
        if isinstance(found, Result):
            self._back += 1
            if found.error is None:
                self.seconds += len(found.samples) / self._cfg.mel.rate if found.samples is not None else 0.0
        if speaking._over:
            return
        if speaking._order is not None:
            try:
                for chunk in speaking._order.add(segment, found):
                    self._finish(speaking, chunk) if chunk.last else speaking.tell(chunk)
            except Error as error:
                self._finish(speaking, error)
        elif isinstance(found, Result):
            speaking._results[segment] = found
            if found.error is not None:
                self._finish(speaking, found.error)
            elif len(speaking._results) == len(speaking.text.segments):
                results = [speaking._results[i] for i in range(len(speaking._results))]
                self._finish(speaking, pipeline.join(self._cfg, results, speaking.options, speaking.text))

    def _finish(self, speaking: Speaking, last: Event) -> None:
        with self._changed:
            self._unfinished.discard(speaking)
        if not speaking._over:
            speaking._over = True
            speaking.tell(last)
