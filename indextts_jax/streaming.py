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
    before, *after = pipeline.silences(cfg, len(asked), options, text)
    texts = text.texts or [""] * len(asked)
    at, segment = 0, 0  # the next sample, and the segment whose turn it is
    begin = len(before)  # its first sample
    given: list[np.ndarray] = []  # of that segment
    waiting: dict[int, deque[Chunk | Result]] = {}
    for found in scheduling.run(params, cfg, asked, options.batch or 1, tick=lambda *_: tick()):
        if isinstance(found, Chunk) or found.error is not None:
            waiting.setdefault(found.request.tag, deque()).append(found)
        while waiting.get(segment):
            piece = waiting[segment].popleft()
            if isinstance(piece, Result):
                assert piece.error is not None
                raise piece.error
            samples = piece.samples
            if piece.last:
                samples = pipeline.ended(cfg, samples, options, given)
                end = at + len(before) + len(samples)
                said(Cue(begin, end, texts[segment]))
                begin = end + len(after[segment])
                samples = np.concatenate([samples, after[segment]])
                segment, given = segment + 1, []
            elif options.trim_tail:
                given.append(samples)
            samples = np.concatenate([before, samples])
            yield Chunk(samples, at, piece.codes, segment == len(asked), piece.request)
            at, before = at + len(samples), before[:0]
