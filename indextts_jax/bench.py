"""How long every stage takes, beside what the machine could do: the pipeline itself, timed at its seams.

The chain runs as users run it, on random recordings and texts and with as many codes as are asked for; every jitted
stage is a seam, where its first call gives the seconds of compilation and every later one those of running. A stage's
floor is the larger of two times: its products at the machine's measured matrix rate, and the bytes it cannot avoid
moving at the machine's measured bandwidth.
"""

import datetime
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from indextts_jax import audio, decoding, models, pipeline, voice
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert
from indextts_jax.pipeline import Options
from indextts_jax.text import Analysis
from indextts_jax.timing import Stopwatch

# In the order of the data: what is called where, and its name in the table.
SEAMS: tuple[tuple[ModuleType, str, str], ...] = (
    (voice, "_w2vbert_features", "w2v-BERT features"), (w2vbert, "encode", "w2v-BERT"),
    (repcodec, "quantize", "RepCodec"), (voice, "_campplus_features", "CAMPPlus features"),
    (campplus, "embed", "CAMPPlus"), (voice, "_mel", "mel"), (conditioner, "speaker_latents", "speaker latents"),
    (conditioner, "emotion_vector", "emotion vector"), (s2mel, "regulate", "prompt content"),
    (gpt, "prefix", "prefix"), (gpt, "prefill", "prefill"),
    (decoding, "admit", "admission"), (decoding, "advance", "decoding"), (decoding, "pack", "packing the cache"),
    (gpt, "latents", "second pass"), (repcodec, "embed", "code embeddings"), (s2mel, "content", "content"),
    (pipeline, "_noise", "noise"), (s2mel, "pack", "packing the prompt"), (s2mel, "solve", "flow"),
    (bigvgan, "vocode", "BigVGAN"),
)  # fmt: skip


RATE = 24000  # of the recording, Hz


@dataclass(frozen=True)
class Setting:
    """One utterance, or a batch of like ones."""

    dtype: str = "float32"
    batch: int = 1
    beams: int = 3
    codes: int = 150  # of a segment, 50 per second of speech
    seconds: float = 4.56  # of the recording
    pieces: int = 30  # of the text
    flow_steps: int = 25


@dataclass
class Stage:
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


@dataclass(frozen=True)
class Machine:
    """What it is, and what it can do at best."""

    device: str
    count: int
    jax: str
    python: str
    date: str
    flops: dict[str, float]  # products per second by dtype, twice the multiplications
    bandwidth: float  # bytes per second, read and written


# ---- the machine ----------------------------------------------------------------------------------------------------


def measure(dtypes: Sequence[str]) -> Machine:
    """Time large products in each dtype, and what streams memory. Takes a few seconds."""
    large = jax.default_backend() != "cpu"
    n, words = (8192, 2**29) if large else (2048, 2**26)
    product = jax.jit(lambda a, b: a @ b)
    rates = {}
    for dtype in dtypes:
        a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
        rates[dtype] = 2 * n**3 / _best(lambda a=a, b=b: product(a, b))
    # A product with one row streams its matrix, as decoding does; on some machines an addition is faster.
    weights, row = jnp.ones((words // 8192, 8192), jnp.float32), jnp.ones((1, 8192), jnp.float32)
    stream, add = jax.jit(lambda x, w: jnp.einsum("bi,oi->bo", x, w)), jax.jit(lambda x: x + 1)
    bandwidth = weights.nbytes / min(_best(lambda: stream(row, weights)), _best(lambda: add(weights)) / 2)
    device = jax.devices()[0]
    today = datetime.date.today().isoformat()
    version = ".".join(map(str, sys.version_info[:3]))
    return Machine(device.device_kind, jax.device_count(), jax.__version__, version, today, rates, bandwidth)


def _best(run: Callable[[], Array], repeat: int = 5) -> float:
    """The shortest of several runs: what the machine can do, not what it did while something else ran."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)


def host_peak() -> int:
    """The most memory this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak() -> int | None:
    """The most memory in use on the first device, in bytes; None where it keeps no account (a CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


# ---- counting -------------------------------------------------------------------------------------------------------


def products(jaxpr: Any, trips: int = 1) -> float:
    """Floating-point operations of all matrix products and convolutions of a traced program, scans included.

    trips: how often the body of a while loop runs; of a conditional the longest branch counts. Everything else (norms,
    activations, sums of shifted slices) is not counted.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, [v.aval for v in equation.outvars]
        if name == "dot_general" and (contracted := equation.params["dimension_numbers"][0][0]):
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(out[0].shape) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(out[0].shape) * math.prod(kernel) / kernel[features]
        times = {"scan": equation.params.get("length", 1), "while": trips}.get(name, 1)
        inner = [products(part, trips) for value in equation.params.values() for part in _jaxprs(value)]
        total += times * (max(inner) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> Iterator[Any]:
    """The programs inside a parameter of an equation."""
    for part in value if isinstance(value, tuple | list) else [value]:
        if hasattr(part, "jaxpr"):
            yield part.jaxpr
        elif hasattr(part, "eqns"):
            yield part


def _read(jaxpr: Any) -> int:
    """Bytes of the arguments that a program reads whole: not those it has no use for, nor tables it takes rows of."""
    uses: dict[Any, set[str]] = {}
    for equation in jaxpr.eqns:
        for place, variable in enumerate(equation.invars):
            if not hasattr(variable, "val"):  # no literal
                row = equation.primitive.name in ("gather", "dynamic_slice") and place == 0
                uses.setdefault(variable, set()).add("row" if row else "whole")
    whole = [variable.aval for variable in jaxpr.invars if "whole" in uses.get(variable, ())]
    return sum(aval.size * aval.dtype.itemsize for aval in whole)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))


# ---- the seams ------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands at the seams of the pipeline and times what passes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.stages = {name: Stage(name, setting) for _, _, name in SEAMS}
        self.recording = False  # whether this run counts; the first one compiles
        self._now: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator["Recorder"]:
        """Stand at the seams while the block runs."""
        originals = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in SEAMS]
        try:
            for (module, attribute, name), (_, _, function) in zip(SEAMS, originals, strict=True):
                setattr(module, attribute, self._seam(self.stages[name], function))
            yield self
        finally:
            for module, attribute, function in originals:
                setattr(module, attribute, function)

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

    def _seam(self, stage: Stage, function: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            leaves = jax.tree.leaves((arguments, keywords))
            if any(isinstance(leaf, Tracer) for leaf in leaves):  # a stage inside another
                return function(*arguments, **keywords)
            stage.calls += 1
            if not self.recording:
                return self._first(stage, function, arguments, keywords)
            begin = time.perf_counter()
            out = jax.block_until_ready(function(*arguments, **keywords))
            self._now[stage.name] += time.perf_counter() - begin
            return out

        return call

    def _first(self, stage: Stage, function: Any, arguments: Any, keywords: Any) -> Any:
        """Run once, and count; what is donated is gone afterwards."""
        before = _counts(arguments)
        with Stopwatch() as watch:
            traced = function.trace(*arguments, **keywords)
            out = jax.block_until_ready(function(*arguments, **keywords))
        stage.compile_s += watch.compiling
        compiled = traced.lower().compile()  # the one that ran
        cost, room = compiled.cost_analysis() or {}, compiled.memory_analysis()
        after = _counts([out])
        drawn = int((after - before).max()) if stage.name == "decoding" and before is not None else 0
        trips = -(-drawn // decoding.CHUNK)
        steps = self.setting.flow_steps if stage.name == "flow" else drawn
        moved = _read(traced.jaxpr.jaxpr)
        stage.steps += steps
        stage.flops += products(traced.jaxpr.jaxpr, trips)
        stage.xla_flops += cost.get("flops", 0.0)
        stage.xla_bytes += cost.get("bytes accessed", 0.0)
        stage.temporary = max(stage.temporary, room.temp_size_in_bytes if room else 0)
        stage.bytes += max(steps, 1) * moved + _bytes(out)
        return out


def _counts(values: Sequence[Any]) -> Any:
    """How many codes each row of a decoding state has drawn."""
    state = next((value for value in values if isinstance(value, decoding.State)), None)
    return None if state is None else np.asarray(state.counts)


# ---- the chain ------------------------------------------------------------------------------------------------------


def parameters(cfg: Config, dtype: Any) -> pipeline.Params:
    """Random parameters of every component, made on the device."""
    keys = jax.random.split(jax.random.key(0), len(models.COMPONENTS))
    return {
        name: jax.block_until_ready(models.random(name, getattr(cfg, name), key, dtype))
        for name, key in zip(models.COMPONENTS, keys, strict=True)
    }


def noise(setting: Setting) -> np.ndarray:
    """The recording, [N] float32 at RATE."""
    return np.random.default_rng(0).normal(scale=0.1, size=round(setting.seconds * RATE)).astype(np.float32)


def run(
    params: pipeline.Params,
    cfg: Config,
    setting: Setting,
    repeat: int = 3,
    reference: Callable[[], dict[str, Any]] | None = None,
) -> tuple[Chain, list[Stage]]:
    """Run the chain once to compile, then `repeat` times with a clock at every seam and, in turns, as it is.

    `reference` is let run before each of them: a machine's speed wanders, and both should meet the same of it.
    The stop code is never drawn, so that every segment has `setting.codes`.
    """
    head = params["gpt"]["head"]
    bias = head["bias"].at[cfg.gpt.stop_code].set(-1e4)
    params = {**params, "gpt": {**params["gpt"], "head": {**head, "bias": bias}}}
    recording = audio.recording(noise(setting), RATE)
    ids = np.random.default_rng(0).integers(2, cfg.gpt.texts, setting.pieces).tolist()
    text = Analysis("", [], ids, [[""]], [ids], [])
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
        setting, first[0] + first[1], watch.compiling, float(np.median(listens)), float(np.median(speaks)),
        max(speaks) - min(speaks), float(lengths[0]), theirs,
    )  # fmt: skip
    return found, [stage for stage in recorder.stages.values() if stage.calls]


# ---- the reference --------------------------------------------------------------------------------------------------

# Its stages, and ours that do the same.
GROUPS = {
    "w2v-BERT": ("w2v-BERT features", "w2v-BERT"), "RepCodec": ("RepCodec",),
    "CAMPPlus": ("CAMPPlus features", "CAMPPlus"), "mel": ("mel",),
    "conditioners": ("speaker latents", "emotion vector"),
    "codes": ("prefix", "prefill", "admission", "decoding", "packing the cache"), "second pass": ("second pass",),
    "content": ("prompt content", "code embeddings", "content"),
    "flow": ("noise", "packing the prompt", "flow"), "BigVGAN": ("BigVGAN",),
}  # fmt: skip


@contextmanager
def reference(checkout: Path, model: Path, python: str, setting: Setting) -> Iterator[Callable[[], dict[str, Any]]]:
    """The PyTorch reference in a process of its own, on the same recording, with as many pieces and codes.

    Gives a function that lets it run once: -> its seconds so far, by stage. checkout: of the reference; model: a folder
    in the official layout; python: an interpreter with what it needs. Raises FileNotFoundError and ValueError.
    """
    script = Path(__file__).parent.parent / "debug" / "time_python.py"
    if not script.is_file():
        raise FileNotFoundError(f"{script}: no such file; --reference works in a checkout of this project only")
    if shutil.which(python) is None:
        raise FileNotFoundError(f"{python}: no such interpreter; name one that has what the reference needs")
    with tempfile.TemporaryDirectory() as folder:
        voice, errors = Path(folder) / "voice.wav", Path(folder) / "errors"
        audio.write_wav(voice, audio.to_int16(noise(setting)), RATE)
        given = {"reference": checkout, "model-dir": model, "speaker": voice}
        given |= {"pieces": setting.pieces, "codes": setting.codes, "beams": setting.beams}
        command = [python, str(script), *(str(part) for name, value in given.items() for part in (f"--{name}", value))]
        with (
            errors.open("w") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            asked, said = process.stdin, process.stdout
            assert asked is not None
            assert said is not None

            def answer() -> dict[str, Any]:
                for line in said:
                    if line.startswith('{"torch"'):
                        return json.loads(line)
                last = errors.read_text().strip().splitlines()
                raise ValueError(f"the reference could not be timed: {last[-1] if last else process.wait()}")

            def run() -> dict[str, Any]:
                with suppress(BrokenPipeError):  # it has ended: its answer says why
                    os.write(asked.fileno(), b"\n")
                return answer()

            try:
                answer()  # it is warm
                yield run
            finally:
                process.kill()


def beside(result: dict[str, Any]) -> list[str]:
    """Ours and the reference's seconds as Markdown, for every setting in which it was timed."""
    lines = []
    for chain in result["chains"]:
        if not (other := chain.get("reference")):
            continue
        own = {row["name"]: row["run_s"] for row in _stages(result, chain)}
        rows = [(name, sum(own.get(part, 0.0) for part in parts)) for name, parts in GROUPS.items()]
        rows.append(("whole chain", chain["listen_s"] + chain["speak_s"]))
        lines += ["", f"beside PyTorch {other['torch']}, {other['threads']} threads, {chain['beams']} beams", ""]
        lines += ["| stage | ours, s | reference, s | ratio |", "|---|---|---|---|"]
        for name, ours in rows:
            theirs = float(np.median(other["stages"][name]))
            lines.append(f"| {name} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |")
    return lines


# ---- the report -----------------------------------------------------------------------------------------------------


def floor_s(stage: Stage, machine: Machine) -> float:
    """The least a stage can take: its products at the matrix rate, or its bytes at the bandwidth."""
    rate = machine.flops[stage.setting.dtype]
    return max(stage.flops / rate, stage.bytes / machine.bandwidth)


def report(machine: Machine, chains: Sequence[Chain], stages: Sequence[Stage]) -> dict[str, Any]:
    """Everything as one object: {"machine", "memory", "chains": [...], "stages": [{"name", "compile_s", "run_s"}]}."""
    rows = []
    for stage in stages:
        floor = floor_s(stage, machine)
        row = {"name": stage.name, **asdict(stage.setting), "calls": stage.calls, "steps": stage.steps}
        row |= {"compile_s": stage.compile_s, "run_s": stage.run_s, "spread_s": stage.spread_s, "runs_s": stage.runs_s}
        row |= {"flops": stage.flops, "xla_flops": stage.xla_flops, "bytes": stage.bytes}
        row |= {"xla_bytes": stage.xla_bytes, "temporary_bytes": stage.temporary}
        rows.append(row | {"floor_s": floor, "fraction": floor / stage.run_s})
    return {
        "machine": asdict(machine),
        "memory": {"host_peak_bytes": host_peak(), "device_peak_bytes": device_peak()},
        "chains": [
            {**asdict(chain.setting), **{k: v for k, v in asdict(chain).items() if k != "setting"}}
            | {"real_time_factor": chain.real_time_factor}
            for chain in chains
        ],
        "stages": rows,
    }  # fmt: skip


def table(result: dict[str, Any], before: dict[str, Any] | None = None, least: float = 0.001) -> str:
    """The report as Markdown; with an earlier one, the ratio of its seconds to ours. Stages below `least` seconds are
    summed up in one line.
    """
    machine = result["machine"]
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in machine["flops"].items())
    lines = [
        f"{machine['device']} x {machine['count']}, jax {machine['jax']}, Python {machine['python']}, "
        f"{machine['date']}",
        f"measured: products {rates}; memory {machine['bandwidth'] / 1e9:,.0f} GB/s",
    ]
    old = {_name(row): row for row in (before or {}).get("stages", [])}
    last = " earlier |" if before else ""
    for chain in result["chains"]:
        own = _stages(result, chain)
        lines += ["", f"## {chain['dtype']}, batch {chain['batch']}, {chain['beams']} beams, {chain['codes']} codes, "
                  f"{chain['seconds']:g} s of voice", ""]  # fmt: skip
        lines.append(f"| stage | calls | compile s | run s | spread | GFLOP | XLA's | GB | XLA's | room MB | floor s "
                     f"| reached |{last}")  # fmt: skip
        lines.append("|---|---|---|---|---|---|---|---|---|---|---|---|" + "---|" * bool(before))
        small = [row for row in own if row["run_s"] < least]
        for row in [*(row for row in own if row["run_s"] >= least), *_summed(small)]:
            earlier = old.get(_name(row))
            ratio = f" {earlier['run_s'] / row['run_s']:.2f}x |" if earlier else " |"
            per = f" ({1e3 * row['run_s'] / row['steps']:.1f} ms a step)" if row["steps"] else ""
            times = f"{row['compile_s']:.1f} | {row['run_s']:.3f}{per} | {row['spread_s']:.3f}"
            work = f"{row['flops'] / 1e9:,.1f} | {row['xla_flops'] / 1e9:,.1f} | {row['bytes'] / 1e9:,.3f}"
            work += f" | {row['xla_bytes'] / 1e9:,.3f} | {row['temporary_bytes'] / 1e6:,.0f}"
            floor = f"{row['floor_s']:.3f} | {100 * row['fraction']:.0f} %"
            lines.append(f"| {row['name']} | {row['calls']} | {times} | {work} | {floor} |" + ratio * bool(before))
        speaking = f"speaking {chain['speak_s']:.2f} s (spread {chain['spread_s']:.2f}) for {chain['audio_s']:.2f} s"
        factor = chain["real_time_factor"]
        lines += [
            "", f"listening {chain['listen_s']:.2f} s; {speaking} of audio: real-time factor {factor:.3f}, "
            f"{1 / factor:.2f} seconds of audio per second; the first run {chain['first_s']:.1f} s, "
            f"{chain['compile_s']:.1f} of them compilation",
        ]  # fmt: skip
    lines += beside(result)
    for curves in scaling(result):
        lines += _grown(curves, least)
    memory = result["memory"]
    device = memory["device_peak_bytes"]
    lines += ["", f"peak memory: host {memory['host_peak_bytes'] / 2**30:.1f} GiB"
              + (f", device {device / 2**30:.1f} GiB" if device else "")]  # fmt: skip
    return "\n".join(lines)


# ---- growth ---------------------------------------------------------------------------------------------------------

SIZES = {"batch": "batch", "beams": "beams", "codes": "codes", "seconds": "seconds of voice", "pieces": "text pieces"}


@dataclass
class Curves:
    """What every stage takes as one size grows and all others stay."""

    size: str  # of SIZES
    title: str
    values: list[float]
    seconds: dict[str, list[float]]  # of a stage, one per value
    bytes: dict[str, list[float]]  # beside arguments and results


def scaling(result: dict[str, Any]) -> list[Curves]:
    """A set of curves for every size that has several values in a report, and every choice of the others."""
    found = []
    for size, word in SIZES.items():
        groups: dict[Any, list[Any]] = {}
        for chain in result["chains"]:
            groups.setdefault(tuple(chain[key] for key in _SETTING if key != size), []).append(chain)
        for chains in (sorted(group, key=lambda chain: chain[size]) for group in groups.values() if len(group) > 1):
            own = [{row["name"]: row for row in _stages(result, chain)} for chain in chains]
            names = [name for _, _, name in SEAMS if all(name in rows for rows in own)]
            others = [f"{chains[0][key]:g} {other}" for key, other in SIZES.items() if key != size]
            seconds, room = (
                {name: [rows[name][key] for rows in own] for name in names} for key in ("run_s", "temporary_bytes")
            )
            seconds["whole chain"] = [chain["listen_s"] + chain["speak_s"] for chain in chains]
            title = f"{word}: {chains[0]['dtype']}, {', '.join(others)}, {chains[0]['flow_steps']} steps"
            found.append(Curves(size, title, [chain[size] for chain in chains], seconds, room))
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x by least squares: 1 is linear growth, 2 quadratic. NaN where y is not positive."""
    if min(y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _grown(curves: Curves, least: float) -> list[str]:
    """Curves as Markdown: the seconds, and the exponents over all values and between the last two."""
    heads = "".join(f" {value:g} |" for value in curves.values)
    lines = [
        "",
        f"## growth with {curves.title}",
        "",
        f"| seconds |{heads} exponent | at the end | room MB | exponent |",
    ]
    lines.append("|---|" + "---|" * (len(curves.values) + 4))
    for name, seconds in curves.seconds.items():
        if max(seconds) < 10 * least:
            continue
        room = curves.bytes.get(name)
        memory = (
            f"{room[0] / 1e6:,.0f} to {room[-1] / 1e6:,.0f} | {exponent(curves.values, room):.2f}" if room else " | "
        )
        end = exponent(curves.values[-2:], seconds[-2:])
        times = "".join(f" {value:.3f} |" for value in seconds)
        lines.append(f"| {name} |{times} {exponent(curves.values, seconds):.2f} | {end:.2f} | {memory} |")
    return lines


_SETTING = tuple(each.name for each in fields(Setting))


def _stages(result: dict[str, Any], chain: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of one chain."""
    return [row for row in result["stages"] if all(row[key] == chain[key] for key in _SETTING)]


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["name"], *(row[key] for key in _SETTING))


def _summed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Small stages as one row."""
    if not rows:
        return []
    numbers = ("calls", "compile_s", "run_s", "spread_s", "flops", "xla_flops", "bytes", "xla_bytes", "floor_s")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in numbers}
    total["temporary_bytes"] = max(row["temporary_bytes"] for row in rows)
    name = f"{len(rows)} small ones"
    return [rows[0] | total | {"name": name, "steps": 0, "fraction": total["floor_s"] / total["run_s"]}]


def plot(result: dict[str, Any]) -> bytes:
    """A picture (.png). Needs matplotlib.

    One panel for every size that has several values, in which every stage is a curve; without such, one per setting of
    what every stage takes beside its floor.
    """
    import io

    from matplotlib.figure import Figure

    grown = scaling(result)
    panels = len(grown or result["chains"])
    figure = Figure(figsize=(9, (4.5 if grown else 3.2) * panels), layout="constrained")
    for i in range(panels):
        axes = figure.add_subplot(panels, 1, i + 1)
        _draw_curves(axes, grown[i]) if grown else _draw_bars(axes, result, result["chains"][i])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw_curves(axes: Any, curves: Curves) -> None:
    most = max(max(seconds) for seconds in curves.seconds.values())
    shown = {name: seconds for name, seconds in curves.seconds.items() if max(seconds) > 0.002 * most}
    for i, (name, seconds) in enumerate(shown.items()):
        label = f"{name}: {exponent(curves.values, seconds):.2f}"
        style = "o-" if i < 10 else "s--"  # after ten colours they come again
        axes.plot(curves.values, seconds, style, label=label, linewidth=3 if name == "whole chain" else 1.5)
    axes.set(title=curves.title, xlabel=SIZES[curves.size], ylabel="s", xscale="log", yscale="log")
    axes.set_xticks(curves.values, [f"{value:g}" for value in curves.values])
    axes.minorticks_off()
    axes.legend(title="exponent", loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_bars(axes: Any, result: dict[str, Any], chain: dict[str, Any]) -> None:
    own = _stages(result, chain)
    own = [row for row in own if row["run_s"] > 0.002 * sum(other["run_s"] for other in own)]
    place = np.arange(len(own))
    axes.barh(place, [row["run_s"] for row in own], 0.4, label="measured")
    axes.barh(place + 0.4, [max(row["floor_s"], 1e-6) for row in own], 0.4, label="floor")
    axes.set_yticks(place + 0.2, [row["name"] for row in own])
    axes.invert_yaxis()
    title = f"{chain['dtype']}, batch {chain['batch']}, {chain['beams']} beams, {chain['codes']} codes"
    axes.set(title=title, xlabel="s", xscale="log")
    axes.legend()
