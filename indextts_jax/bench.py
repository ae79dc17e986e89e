"""How long every stage takes, beside what the machine could do: the pipeline itself, timed at its seams.

The chain runs as users run it, on random recordings and texts and with as many codes as are asked for; every jitted
stage is a seam, where its first call gives the seconds of compilation and every later one those of running. A stage's
floor is the larger of two times: its products at the machine's measured matrix rate, and the bytes it cannot avoid
moving at the machine's measured bandwidth.
"""

import datetime
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from indextts_jax import audio, decoding, models, pipeline
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert
from indextts_jax.pipeline import Options, Voice
from indextts_jax.text import Analysis
from indextts_jax.timing import Stopwatch

# In the order of the data: what is called where, and its name in the table.
SEAMS: tuple[tuple[ModuleType, str, str], ...] = (
    (pipeline, "_w2vbert_features", "w2v-BERT features"), (w2vbert, "encode", "w2v-BERT"),
    (repcodec, "quantize", "RepCodec"), (pipeline, "_campplus_features", "CAMPPlus features"),
    (campplus, "embed", "CAMPPlus"), (pipeline, "_mel", "mel"), (conditioner, "speaker_latents", "speaker latents"),
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

    trips: how often the body of a while loop runs. Everything else (norms, activations, sums of shifted slices) is not
    counted.
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
        inner = [part for value in equation.params.values() for part in _jaxprs(value)]
        total += times * sum(products(part, trips) for part in inner)
    return total


def _jaxprs(value: Any) -> Iterator[Any]:
    """The programs inside a parameter of an equation; of a conditional every branch counts."""
    for part in value if isinstance(value, tuple | list) else [value]:
        if hasattr(part, "jaxpr"):
            yield part.jaxpr
        elif hasattr(part, "eqns"):
            yield part


def _scanned(jaxpr: Any) -> int:
    """The steps of the longest scan, 0 without one."""
    found = [equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    inner = (part for equation in jaxpr.eqns for value in equation.params.values() for part in _jaxprs(value))
    return max([*found, *map(_scanned, inner)], default=0)


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
        cost = traced.lower().cost_analysis() or {}
        after = _counts([out])
        drawn = int((after - before).max()) if stage.name == "decoding" and before is not None else 0
        trips = -(-drawn // decoding.CHUNK)
        steps, moved = drawn or _scanned(traced.jaxpr.jaxpr), _read(traced.jaxpr.jaxpr)
        stage.steps += steps
        stage.flops += products(traced.jaxpr.jaxpr, trips)
        stage.xla_flops += cost.get("flops", 0.0)
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


def run(params: pipeline.Params, cfg: Config, setting: Setting, repeat: int = 3) -> tuple[Chain, list[Stage]]:
    """Run the chain once to compile, then `repeat` times with a clock at every seam and, in turns, as it is.

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
        voice: Voice = pipeline.listen(params, cfg, recording)
        middle = time.perf_counter()
        spoken = pipeline.speak(params, cfg, [text] * setting.batch, [voice] * setting.batch, keys, options)
        end = time.perf_counter()
        return middle - begin, end - middle, sum(len(speech.samples) / speech.rate for speech in spoken)

    recorder, plain = Recorder(setting), []
    with recorder.watching(), Stopwatch() as watch:
        recorder.begin(recording=False)
        first = chain()
    for _ in range(repeat):
        with recorder.watching():
            recorder.begin(recording=True)
            chain()
            recorder.end()
        plain.append(chain())
    listens, speaks, lengths = zip(*plain, strict=True)
    found = Chain(
        setting, first[0] + first[1], watch.compiling, float(np.median(listens)), float(np.median(speaks)),
        max(speaks) - min(speaks), float(lengths[0]),
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


def reference(checkout: Path, model: Path, python: str, setting: Setting, repeat: int) -> dict[str, Any]:
    """Time the PyTorch reference on the same recording, with as many pieces and codes: -> its seconds by stage.

    checkout: of the reference; model: a folder in the official layout; python: an interpreter with what it needs.
    Raises FileNotFoundError and ValueError.
    """
    script = Path(__file__).parent.parent / "debug" / "time_python.py"
    if not script.is_file():
        raise FileNotFoundError(f"{script}: no such file; --reference works in a checkout of this project only")
    if shutil.which(python) is None:
        raise FileNotFoundError(f"{python}: no such interpreter; name one that has what the reference needs")
    with tempfile.TemporaryDirectory() as folder:
        voice = Path(folder) / "voice.wav"
        audio.write_wav(voice, audio.to_int16(noise(setting)), RATE)
        numbers = {"pieces": setting.pieces, "codes": setting.codes, "beams": setting.beams, "repeat": repeat}
        command = [
            python,
            str(script),
            "--reference",
            str(checkout),
            "--model-dir",
            str(model),
            "--speaker",
            str(voice),
        ]
        command += [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise ValueError(f"the reference could not be timed: {lines[-1] if lines else f'status {done.returncode}'}")
    return json.loads(lines[-1])


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
        lines.append(f"| stage | calls | compile s | run s | spread | GFLOP | XLA's | GB | floor s | reached |{last}")
        lines.append("|---|---|---|---|---|---|---|---|---|---|" + "---|" * bool(before))
        small = [row for row in own if row["run_s"] < least]
        for row in [*(row for row in own if row["run_s"] >= least), *_summed(small)]:
            earlier = old.get(_name(row))
            ratio = f" {earlier['run_s'] / row['run_s']:.2f}x |" if earlier else " |"
            per = f" ({1e3 * row['run_s'] / row['steps']:.1f} ms a step)" if row["steps"] else ""
            times = f"{row['compile_s']:.1f} | {row['run_s']:.3f}{per} | {row['spread_s']:.3f}"
            work = f"{row['flops'] / 1e9:,.1f} | {row['xla_flops'] / 1e9:,.1f} | {row['bytes'] / 1e9:,.3f}"
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
    memory = result["memory"]
    device = memory["device_peak_bytes"]
    lines += ["", f"peak memory: host {memory['host_peak_bytes'] / 2**30:.1f} GiB"
              + (f", device {device / 2**30:.1f} GiB" if device else "")]  # fmt: skip
    return "\n".join(lines)


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
    numbers = ("calls", "compile_s", "run_s", "spread_s", "flops", "xla_flops", "bytes", "floor_s")
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in numbers}
    name = f"{len(rows)} small ones"
    return [rows[0] | total | {"name": name, "steps": 0, "fraction": total["floor_s"] / total["run_s"]}]


def plot(result: dict[str, Any]) -> bytes:
    """A picture (.png): what every stage takes beside its floor, one panel per setting. Needs matplotlib."""
    import io

    from matplotlib.figure import Figure

    chains = result["chains"]
    figure = Figure(figsize=(9, 3.2 * len(chains)), layout="constrained")
    for i, chain in enumerate(chains):
        own = _stages(result, chain)
        own = [row for row in own if row["run_s"] > 0.002 * sum(other["run_s"] for other in own)]
        title = f"{chain['dtype']}, batch {chain['batch']}, {chain['beams']} beams, {chain['codes']} codes"
        axes = figure.add_subplot(len(chains), 1, i + 1, title=title, xlabel="s", xscale="log")
        place = np.arange(len(own))
        axes.barh(place, [row["run_s"] for row in own], 0.4, label="measured")
        axes.barh(place + 0.4, [max(row["floor_s"], 1e-6) for row in own], 0.4, label="floor")
        axes.set_yticks(place + 0.2, [row["name"] for row in own])
        axes.invert_yaxis()
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
