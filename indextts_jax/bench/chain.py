"""The pipeline itself, timed at its seams: every jitted stage is one."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from indextts_jax import audio, decoding, models, pipeline, voice
from indextts_jax.bench import counting
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.request import Options
from indextts_jax.stages import ALL
from indextts_jax.text import Analysis
from indextts_jax.timing import Stopwatch

RATE = 24000  # of the recording, Hz


@dataclass(frozen=True)
class Setting:
    """One utterance, or a batch of like ones."""

    dtype: str = "float32"
    batch: int = 1
    beams: int = 3
    codes: int = 150  # of a segment, 50 per second of speech, or as many as the codec has
    seconds: float = 4.56  # of the recording
    pieces: int = 30  # of the text
    flow_steps: int = 25


@dataclass
class Timed:
    """One stage of one setting. Seconds are of all its calls in one run of the chain."""

    name: str
    setting: Setting
    calls: int = 0  # in one run
    compile_s: float = 0.0  # tracing, lowering and compiling
    runs_s: list[float] = field(default_factory=list)  # one per repetition
    steps: int = 0  # of the loop inside, in one run: codes drawn, Euler steps; 0 without a loop
    flops: float = 0.0  # of all products of one run, counted in the traced program, loops included
    xla_flops: float = 0.0  # by XLA's own count, which takes a loop's body once
    xla_bytes: float = 0.0  # likewise
    temporary: int = 0  # bytes of memory while it runs, beside arguments and results: XLA's account
    bytes: float = 0.0  # arguments that are read whole (once per step of a loop) and results: what it must move

    @property
    def run_s(self) -> float:
        """The median."""
        return float(np.median(self.runs_s)) if self.runs_s else math.nan

    @property
    def spread_s(self) -> float:
        """The longest less the shortest."""
        return max(self.runs_s) - min(self.runs_s) if self.runs_s else math.nan


@dataclass
class Chain:
    """Listening to a recording and speaking a batch of texts, from the first call to the last sample."""

    setting: Setting
    first_s: float  # the first run, which compiles
    compile_s: float
    listen_s: float  # medians
    speak_s: float
    spread_s: float  # of speaking
    audio_s: float  # speech that came out
    reference: dict[str, Any] | None = None  # what `reference` found

    @property
    def real_time_factor(self) -> float:
        return self.speak_s / self.audio_s


class Recorder:
    """Stands at the seams of the pipeline and times what passes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.stages = {name: Timed(name, setting) for name in ALL}
        self.recording = False  # whether this run counts; the first one compiles
        self._now: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator["Recorder"]:
        """Stand at the seams while the block runs."""
        originals = {name: stage.function for name, stage in ALL.items()}
        try:
            for name, stage in ALL.items():
                setattr(stage.module, stage.attribute, self._seam(self.stages[name], originals[name]))
            yield self
        finally:
            for name, stage in ALL.items():
                setattr(stage.module, stage.attribute, originals[name])

    def begin(self, recording: bool) -> None:
        """A run of the chain begins, the first or one that counts."""
        self.recording, self._now = recording, dict.fromkeys(self.stages, 0.0)
        for stage in self.stages.values():
            stage.calls = 0

    def end(self) -> None:
        """It is over."""
        for stage in self.stages.values():
            if self.recording and stage.calls:
                stage.runs_s.append(self._now[stage.name])

    def _seam(self, stage: Timed, function: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if isinstance(jnp.zeros(()), Tracer):  # a stage inside another, which is being traced
                return function(*arguments, **keywords)
            stage.calls += 1
            if not self.recording:
                return self._first(stage, function, arguments, keywords)
            begin = time.perf_counter()
            out = jax.block_until_ready(function(*arguments, **keywords))
            self._now[stage.name] += time.perf_counter() - begin
            return out

        return call

    def _first(self, stage: Timed, function: Any, arguments: Any, keywords: Any) -> Any:
        """Run once, and count; what is donated is gone afterwards."""
        before = _counts(arguments)
        with Stopwatch() as watch:
            traced = function.trace(*arguments, **keywords)
            out = jax.block_until_ready(function(*arguments, **keywords))
        stage.compile_s += watch.preparing
        compiled = traced.lower().compile()  # the one that ran
        cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        after = _counts([out])
        drawn = int((after - before).max()) if stage.name == "decoding" and before is not None else 0
        trips = -(-drawn // decoding.CHUNK)
        steps = self.setting.flow_steps if stage.name == "flow" else drawn
        moved = counting.read(traced.jaxpr.jaxpr)
        stage.steps += steps
        stage.flops += counting.products(traced.jaxpr.jaxpr, trips)
        stage.xla_flops += cost.get("flops", 0.0)
        stage.xla_bytes += cost.get("bytes accessed", 0.0)
        stage.temporary = max(stage.temporary, memory.temp_size_in_bytes if memory else 0)
        stage.bytes += max(steps, 1) * moved + counting.size(out)
        return out


def _counts(values: Sequence[Any]) -> Any:
    """How many codes each row of a decoding state has drawn."""
    state = next((value for value in values if isinstance(value, decoding.State)), None)
    return None if state is None else np.asarray(state.counts)


def parameters(cfg: Config, dtype: Any) -> models.Params:
    """Random parameters of every component."""
    return {name: models.random(name, getattr(cfg, name), i, dtype) for i, name in enumerate(models.COMPONENTS)}


def noise(setting: Setting) -> np.ndarray:
    """The recording, [N] float32 at RATE."""
    return np.random.default_rng(0).normal(scale=0.1, size=round(setting.seconds * RATE)).astype(np.float32)


def run(
    params: models.Params,
    cfg: Config,
    setting: Setting,
    repeat: int = 3,
    reference: Callable[[], dict[str, Any]] | None = None,
) -> tuple[Chain, list[Timed]]:
    """Run the chain once to compile, then `repeat` times with a clock at every seam and, in turns, as it is.

    `reference` is let run before each of them: a machine's speed wanders, and both should meet the same of it.
    The stop code is never drawn, so that every segment has `setting.codes`.
    """
    head = params["gpt"]["head"]
    bias = head["bias"].at[cfg.gpt.stop_code].set(-1e4)
    params = {**params, "gpt": {**params["gpt"], "head": {**head, "bias": bias}}}
    recording = audio.recording(noise(setting), RATE)
    ids = np.random.default_rng(0).integers(2, cfg.gpt.text_vocabulary, setting.pieces).tolist()
    text = Analysis("", [], ids, [[""]], [ids], [], language=None if cfg.gpt.languages is None else "en")
    keys = list(jax.random.split(jax.random.key(1), setting.batch))
    options = Options(Sampling(setting.beams), setting.codes, steps=setting.flow_steps, batch=setting.batch)

    def chain() -> tuple[float, float, float]:
        begin = time.perf_counter()
        heard = voice.listen(params, cfg, recording)
        middle = time.perf_counter()
        spoken = pipeline.speak(params, cfg, [text] * setting.batch, [heard] * setting.batch, keys, options)
        end = time.perf_counter()
        return middle - begin, end - middle, sum(len(speech.samples) / speech.rate for speech in spoken)

    recorder, plain, theirs = Recorder(setting), [], None
    with recorder.watching(), Stopwatch() as watch:
        recorder.begin(recording=False)
        first = chain()
    for _ in range(repeat):
        theirs = reference() if reference else None
        with recorder.watching():
            recorder.begin(recording=True)
            chain()
            recorder.end()
        plain.append(chain())
    listens, speaks, lengths = zip(*plain, strict=True)
    found = Chain(
        setting, first[0] + first[1], watch.preparing, float(np.median(listens)), float(np.median(speaks)),
        max(speaks) - min(speaks), float(lengths[0]), theirs,
    )  # fmt: skip
    return found, [stage for stage in recorder.stages.values() if stage.calls]
