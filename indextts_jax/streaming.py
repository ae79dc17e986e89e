"""Speech while it is being made: the chunks of a text, one after another.

    for chunk in stream(params, cfg, model.text.analyse("Hello."), voice, 0):
        play(chunk.samples)

`scheduling.run` does the work, `chunks.Stream` makes the samples of a segment.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from jax import Array

from indextts_jax import pipeline, scheduling
from indextts_jax.config import Config
from indextts_jax.emotion import Emotion
from indextts_jax.joining import Cue
from indextts_jax.models import Params
from indextts_jax.request import Chunk, Options, Result, Streaming
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice


def stream(
    params: Params,
    cfg: Config,
    text: Analysis,
    voice: Voice,
    key: int | Array,
    options: Options | None = None,
    felt: Emotion | None = None,
    streaming: Streaming | None = None,
    tick: Callable[[], None] = lambda: None,
    said: Callable[[Cue], None] = lambda cue: None,
) -> Iterator[Chunk]:
    """Speak a text as `pipeline.speak` does, and give its samples as soon as they are made.

    -> chunks in their order, `start` counted from the first sample of the text; one whose segment is over holds the
    silence after it, too. The codes are those of `speak`; the samples are those of `speak` where a segment is one
    chunk, and else lie near them (docs/streaming.md). `options.batch` segments are drawn side by side (default: 1, so
    that the first is not kept waiting); what is held does not grow with the text. tick: called now and then; what it
    raises ends the stream. said: called with the text of a segment and its place, when its last chunk is given. Raises
    Error for what does not fit the model or cannot be spoken, once all before it is given.
    """
    options, streaming = options or Options(), streaming or Streaming()
    asked = [
        replace(request, tag=i, streaming=streaming)
        for i, request in enumerate(pipeline.requests(params, cfg, text, voice, key, options, felt))
    ]
    order = Order(cfg, text, options, said)
    for found in scheduling.run(params, cfg, asked, options.batch or 1, tick=lambda *_: tick()):
        yield from order.add(found.request.tag, found)


class Order:
    """Puts what comes of the segments of one text in their order, with the silences around them.

    `said` as in `stream`.
    """

    def __init__(self, cfg: Config, text: Analysis, options: Options, said: Callable[[Cue], None] = lambda cue: None):
        self._cfg, self._options, self._said = cfg, options, said
        self._before, *self._after = pipeline.silences(cfg, len(text.segments), options, text)
        self._texts = text.texts or [""] * len(text.segments)
        self._at, self._segment = 0, 0  # the next sample, and the segment whose turn it is
        self._begin = len(self._before)  # its first sample
        self._given: list[np.ndarray] = []  # of that segment
        self._waiting: dict[int, deque[Chunk | Result]] = {}

    def add(self, segment: int, found: Chunk | Result) -> Iterator[Chunk]:
        """Take a chunk of a segment, or its result: -> the chunks whose turn has come.

        Raises the error of a segment when it is its turn.
        """
        if isinstance(found, Chunk) or found.error is not None:
            self._waiting.setdefault(segment, deque()).append(found)
        while waiting := self._waiting.get(self._segment):
            piece = waiting.popleft()
            if isinstance(piece, Result):
                assert piece.error is not None
                raise piece.error
            yield self._placed(piece)

    def _placed(self, piece: Chunk) -> Chunk:
        """A chunk of the segment whose turn it is, as one of the text."""
        samples = piece.samples
        if piece.last:
            silence = self._after[self._segment]
            samples = pipeline.ended(self._cfg, samples, self._options, self._given)
            end = self._at + len(self._before) + len(samples)
            self._said(Cue(self._begin, end, self._texts[self._segment]))
            self._begin = end + len(silence)
            samples = np.concatenate([samples, silence])
            self._waiting.pop(self._segment)
            self._segment, self._given = self._segment + 1, []
        elif self._options.trim_tail:
            self._given.append(samples)
        samples = np.concatenate([self._before, samples])
        start, self._at, self._before = self._at, self._at + len(samples), self._before[:0]
        return Chunk(samples, start, piece.codes, self._segment == len(self._after), piece.request)
