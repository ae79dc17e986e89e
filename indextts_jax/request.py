"""What is asked for, and what comes of it: one segment at a time, as the scheduler takes and gives them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.voice import Voice


class Given(NamedTuple):
    """What replaces a stage of one segment, for research and comparison; None: computed as usual."""

    codes: Any = None  # [C] integers: nothing is drawn
    latents: Any = None  # [C, D]: no second pass (together with codes), for models that have one
    noise: Any = None  # [P + F, M] of prompt and target, where the flow begins
    mel: Any = None  # [F, M]: only the vocoder runs


NOTHING = Given()


@dataclass(frozen=True)
class Options:
    """Settings of speech; the defaults are the reference's, but for the fade."""

    sampling: Sampling = field(default_factory=Sampling)
    max_codes: int = 1500  # per segment
    retries: int = 0  # how often a segment that meets max_codes, or has none, is drawn again with another key
    steps: int = 25  # of the flow
    guidance: float = 0.7
    silence_ms: int = 200  # between segments
    fade_ms: int = 20  # at the end of each segment; 0: the reference's samples, bit by bit
    trim_tail: bool = False  # leave out hiss and silence after the last sound of a segment, see `ends.tail`
    speed: float = 1.0  # 0.5 to 2: by how much faster than the codes say; they stay the same
    batch: int | None = None  # segments drawn side by side; None: 8 on a CPU, else what the device's memory holds

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_codes", self.max_codes, 1),
            ("retries", self.retries, 0),
            ("batch", 1 if self.batch is None else self.batch, 1),
            ("steps", self.steps, 1),
            ("silence_ms", self.silence_ms, 0),
            ("fade_ms", self.fade_ms, 0),
        ):
            if value < low:
                raise Error(f"{name} is {value}, but must be at least {low}")
        if not 0.5 <= self.speed <= 2:
            raise Error(f"speed is {self.speed}, but must lie between 0.5 and 2")
        if not 0 <= self.guidance <= 100:
            raise Error(f"guidance is {self.guidance}, but must lie between 0 and 100")
        if self.retries and not self.sampling.sample:
            raise Error(f"retries is {self.retries}, but without sampling the same codes would come again")


@dataclass(frozen=True)
class Streaming:
    """When the sound of a segment is given while its codes are drawn, in chunks whose bounds depend on these alone."""

    first_codes: int = 50  # of the first chunk; 50 are a second of speech, or two: `RepCodecConfig.frames`
    hop: int = 200  # the most codes of any other; each has as many as there were before it, up to this
    context: int = 172  # mel frames, 86 a second: how much of what was spoken the flow hears again

    def __post_init__(self) -> None:
        for name, low in (("first_codes", 1), ("hop", 1), ("context", 0)):
            if getattr(self, name) < low:
                raise Error(f"{name} is {getattr(self, name)}, but must be at least {low}")

    def after(self, codes: int) -> int:
        """The bound that follows one, or 0."""
        return codes + min(self.hop, codes) if codes else self.first_codes


@dataclass(frozen=True, eq=False)
class Request:
    """One segment to speak."""

    ids: Sequence[int]  # of the text
    voice: Voice  # whose emotion is the one to speak in
    keys: tuple[Array, Array]  # of codes and of noise, see `seeds`
    options: Options  # of which the batch is the scheduler's own
    given: Given = NOTHING
    name: str = "the segment"  # in messages
    tag: Any = None  # the caller's
    frames: int | None = None  # mel frames to speak it in; None: by its codes and `options.speed`
    codes_only: bool = False  # nothing is rendered
    language: int | None = None  # of the text: its row in the GPT's embedding of languages, where there is one
    streaming: Streaming | None = None  # its samples are given in chunks
    cancelled: Callable[[], bool] | None = None  # once it is true nobody waits for it: its result is `Cancelled`


class Cancelled(Error):
    """Nobody waits for this segment any more."""


class Chunk(NamedTuple):
    """Some samples of a streamed segment, in their order."""

    samples: np.ndarray  # [N] float32 within ±1
    start: int  # where the first of them lies, in samples
    codes: np.ndarray  # [C] int32: those that this chunk was made for
    last: bool  # nothing follows
    request: Request


class Result(NamedTuple):
    """What came of a request: samples, or the error that it alone met."""

    request: Request
    codes: np.ndarray  # [C] int32, without the stop code; empty where a mel was given
    stopped: bool  # False: cut off by the limit on codes
    attempts: int  # how often codes were drawn
    samples: np.ndarray | None = None  # [N] float32 within ±1; None with codes_only
    mel: np.ndarray | None = None  # [F, M] float32 log-mel, where it was asked for; never of what is streamed
    error: Error | None = None
