"""Every stage compiled for a chip that is not at hand: what its compiler says of memory, bytes and time.

Nothing runs, so every figure is an estimate. *Estimate* is the sum of the cycles that a TPU's compiler expects, at the
chip's clock, loops included; scatters, some gathers and copies in the background have none, so that it is a lower
bound, and so is *bytes*, the padded bytes that go through the chip's memory by its bandwidth. *Floor* is what the stage
cannot do without: its products at the chip's rate, or its arguments and results by the bandwidth. The compiler for CUDA
estimates no time; the bytes, the operations to launch and the memory are what it shows.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from indextts_jax import decoding, warmup
from indextts_jax.bench import chips, counting, hlo
from indextts_jax.bench.chain import Setting
from indextts_jax.bench.chips import Chip
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.models import s2mel
from indextts_jax.request import Options
from indextts_jax.stages import of as stages_of
from indextts_jax.warmup import Program

LARGEST = 5  # instructions of a stage that are named
FRAME_SECONDS = 256 * s2mel.FRAMES_PER_CODE / 22050  # of a semantic frame
# What goes on row by row, or has kernels that are not shared out by jit: each chip runs it for its own rows.
ROW_BY_ROW = ("decoding", "flow", "BigVGAN")
_ROWS, _ALL = PartitionSpec("rows"), PartitionSpec()


def programs(cfg: Config, setting: Setting, platform: str) -> dict[str, Program]:
    """The program of each stage for a setting: where there are several, the one for the largest shapes."""
    options = Options(Sampling(setting.beams), setting.codes, steps=setting.flow_steps, batch=setting.batch)
    uses = warmup.Uses((setting.batch,), (setting.pieces,), (setting.codes,), (setting.seconds,))
    found = warmup.programs(cfg, options, uses, setting.dtype, platform=platform)
    return {program.stage: program for program in found}


def measure(
    cfg: Config, chip: Chip, setting: Setting, count: int = 1, stages: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """One stage after another as figures. `stages`: only those, by name. Raises Error where there is no compiler.

    With several chips, the rows of a batch are shared out among them, and what has one row is repeated.
    """
    devices = chips.devices(chip, count)
    if setting.batch % count:
        raise Error(f"--batch {setting.batch}: with --chips {count} it must be a multiple of {count}")
    mesh = Mesh(devices, ("rows",))
    for stage, program in programs(cfg, setting, chip.platform).items():
        if not stages or stage in stages:
            yield {"name": stage, "shape": program.shape, **_figures(program, chip, setting, mesh)}


def compiled(program: Program, mesh: Mesh, platform: str, batch: int) -> tuple[Any, Any]:
    """A program for the devices of a mesh, the rows of a batch shared out among them: as traced and as compiled."""

    def rows(leaf: Any) -> bool:
        return mesh.size > 1 and leaf.ndim > 0 and leaf.shape[0] == batch

    def placed(argument: Any) -> Any:
        def one(leaf: Any) -> Any:
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf
            spec = _ROWS if rows(leaf) and not isinstance(argument, dict) else _ALL  # weights are dictionaries
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(one, argument)

    arguments = tuple(map(placed, program.arguments))
    keywords = {name: placed(argument) for name, argument in program.keywords.items()}
    function = program.function
    if mesh.size > 1 and program.stage in ROW_BY_ROW:
        params, cfg, *rest = arguments
        arrays = [part for part in rest if _shapes(part)]

        def of_own_rows(params: Any, *own: Any) -> Any:
            remaining = iter(own)
            return program.function(params, cfg, *(next(remaining) if _shapes(part) else part for part in rest))

        own = jax.shard_map(
            of_own_rows, mesh=mesh, out_specs=_ROWS, check_vma=False,
            in_specs=(_ALL, *(_ROWS if any(map(rows, _shapes(part))) else _ALL for part in arrays)),
        )  # fmt: skip
        function = jax.jit(own, donate_argnums=(1,) if program.stage == "decoding" else ())
        arguments = (params, *arrays)
    traced = function.trace(*arguments, **keywords)
    return traced, traced.lower(lowering_platforms=(platform,)).compile()


def _shapes(argument: Any) -> list[jax.ShapeDtypeStruct]:
    """Of its arrays; none of a static argument."""
    return [leaf for leaf in jax.tree.leaves(argument) if isinstance(leaf, jax.ShapeDtypeStruct)]


def _figures(program: Program, chip: Chip, setting: Setting, mesh: Mesh) -> dict[str, Any]:
    begin = time.process_time()
    try:
        traced, executable = compiled(program, mesh, chip.platform, setting.batch)
    except jax.errors.JaxRuntimeError as error:
        return {"compile_s": time.process_time() - begin, "failure": _reason(str(error))}
    took, memory = time.process_time() - begin, executable.memory_analysis()
    jaxpr, steps = traced.jaxpr.jaxpr, _steps(program, setting)
    chunks = -(-setting.codes // decoding.CHUNK)
    shared = 1 if program.stage in ROW_BY_ROW else mesh.size  # those are counted for one chip as it is
    flops = counting.products(jaxpr, chunks) / shared
    least = (max(steps, 1) * counting.read(jaxpr) + counting.size(program.result())) / mesh.size
    figures = {
        "compile_s": took, "steps": steps, "flops": flops,
        "floor_s": max(flops / chip.flops, least / chip.bandwidth),
        "peak_bytes": memory.peak_memory_in_bytes, "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }  # fmt: skip
    own = replace(setting, batch=max(1, setting.batch // mesh.size))
    return figures | read(hlo.Program(executable.as_text()), chip, own)


def _steps(program: Program, setting: Setting) -> int:
    """Of the loop that a stage is."""
    return {"decoding": setting.codes, "flow": setting.flow_steps}.get(program.stage, 0)


def _reason(text: str) -> str:
    """Why a program cannot be compiled, in one line."""
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", text)
    return f"does not fit: {used[1]} of {used[2]} of memory" if used else text.strip().splitlines()[0][:200]


def read(program: hlo.Program, chip: Chip, setting: Setting) -> dict[str, Any]:
    """The figures that a compiled program's text gives: seconds of a whole run, and what they are made of."""
    cycles, moved, launched = 0.0, 0.0, 0.0
    loops, unknown = [], Counter()
    largest: dict[tuple[str, str], list[Any]] = {}  # by what they do: of many layers as one
    collectives = {"outside": 0, "inside": 0}

    def visit(loop: hlo.Loop, times: float) -> None:
        nonlocal cycles, moved, launched
        own = [(one, one.cycles or 0, program.bytes(one)) for one in loop.instructions]
        work = [one for one, _, _ in own if not one.operation.endswith("-done")]
        estimate, size = sum(n for _, n, _ in own), sum(n for _, _, n in own)
        cycles, moved, launched = cycles + times * estimate, moved + times * size, launched + times * len(work)
        for one, n, size_of_one in own:
            seconds = max(n / chip.clock if chip.clock else 0.0, size_of_one / chip.bandwidth)
            kind = program.kind(one)
            alike = largest.setdefault((kind, re.sub(r"_\d+", "_*", _short(one.source))), [one.name, 0, 0.0])
            alike[1:] = alike[1] + 1, alike[2] + times * seconds
            if one.operation.removesuffix("-start") in hlo.COLLECTIVES:
                collectives["inside" if loop.trips and loop.path else "outside"] += 1
            if chip.clock and one.cycles is None and kind in ("scatter", "gather", "sort", "tpu_custom_call"):
                unknown[kind] += 1
        if loop.path:
            loops.append({
                "name": _short(loop.path[-1]), "depth": len(loop.path), "times": times, "operations": len(work),
                "estimate_s": estimate / chip.clock if chip.clock else None, "bytes_s": size / chip.bandwidth,
            })  # fmt: skip
        for inner in loop.loops:
            alike = sum(other.path == inner.path for other in loop.loops)
            visit(inner, times * (inner.trips or _times(inner.path, alike, setting)))

    visit(program.outside, 1)
    most = sorted(largest.items(), key=lambda entry: -entry[1][2])[:LARGEST]
    return {
        "estimate_s": cycles / chip.clock if chip.clock else None, "bytes": moved, "bytes_s": moved / chip.bandwidth,
        "operations": launched, "collectives": collectives, "without_estimate": dict(unknown), "loops": loops,
        "largest": [
            {"name": name, "kind": kind, "source": source, "alike": count, "s": seconds}
            for (kind, source), (name, count, seconds) in most
        ],
    }  # fmt: skip


def _times(path: tuple[str, ...], alike: int, setting: Setting) -> float:
    """How often a loop runs whose length is known at run time alone, `alike` of which share its work."""
    if "/settle/" in path[-1]:  # a row and block at a time: each row ends in one block, and some reach into a second
        return setting.batch * (1 + setting.beams * decoding.CHUNK / decoding.BLOCK) / alike
    if "/compact/" in path[-1]:
        return setting.batch * decoding.CHUNK / decoding.COMPACT
    return -(-setting.codes // decoding.CHUNK) if "advance" in path[-1] and len(path) == 1 else 1


def _short(source: str) -> str:
    """The end of a scope, without what every program has."""
    parts = [part for part in source.split("/") if part not in ("while", "body", "closed_call", "checkpoint", "cond")]
    return "/".join(parts[-4:])


# ---- the whole ------------------------------------------------------------------------------------------------------


def speaking(cfg: Config, rows: Sequence[dict[str, Any]], setting: Setting) -> dict[str, float] | None:
    """What speaking a batch takes at least, from the figures of all its stages; None where one is missing.

    Per stage the longer of estimate and bytes. What has a program of one row runs once per row.
    """
    names = list(stages_of(cfg))
    needed = [name for name in names[names.index("prefix") :] if name != "more cache"]
    own = {row["name"]: row for row in rows if "failure" not in row}
    if any(name not in own for name in needed):
        return None
    times = {"prefill": setting.batch, "admission": setting.batch, "prefix": 2}
    seconds = {name: times.get(name, 1) * seconds_of(own[name]) for name in needed}
    audio = setting.batch * setting.codes * cfg.repcodec.frames * FRAME_SECONDS
    total = sum(seconds.values())
    return {"seconds": total, "audio_s": audio, "real_time_factor": total / audio, "audio_per_second": audio / total}


def seconds_of(row: dict[str, Any]) -> float:
    """The least a stage takes by its compiler's account."""
    return max(row["estimate_s"] or 0.0, row["bytes_s"], row["floor_s"])


def report(cfg: Config, chip: Chip, count: int, setting: Setting, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one setting as one object."""
    peak = {"memory": chip.memory, "bandwidth": chip.bandwidth, "flops": chip.flops, "clock": chip.clock or None}
    return {
        "target": chip.name, "chips": count, "chip": peak, "jax": jax.__version__, **asdict(setting),
        "stages": list(rows), "speaking": speaking(cfg, rows, setting),
    }  # fmt: skip


def table(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """A report as Markdown; with an earlier one, how many times as long each stage took then."""
    chip, gpu = result["chip"], result["chip"]["clock"] is None
    lines = [
        f"compiled for {result['target']}, {result['chips']} chip{'s' * (result['chips'] > 1)} of "
        f"{chip['memory'] / 1e9:.0f} GB, {chip['bandwidth'] / 1e9:,.0f} GB/s, {chip['flops'] / 1e12:.0f} TFLOP/s; "
        f"jax {result['jax']}. Nothing ran: all figures are estimates of the compiler, and lower bounds",
        "",
        f"## {result['dtype']}, batch {result['batch']}, {result['beams']} beams, {result['codes']} codes, "
        f"{result['seconds']:g} s of voice, {result['flow_steps']} steps",
        "",
    ]
    lines.append("| stage | compile s | peak MB | temp. MB | code MB | GFLOP | floor ms | bytes ms | "
                 f"{'operations' if gpu else 'estimate ms'} | of a step |{' earlier |' * bool(before)}")  # fmt: skip
    lines.append("|---" * (10 + bool(before)) + "|")
    old = {row["name"]: row for row in (before or {}).get("stages", [])}
    for row in result["stages"]:
        if "failure" in row:
            lines.append(f"| {row['name']}, {row['shape']} | {row['compile_s']:.0f} | {row['failure']} |" + " |" * 7)
            continue
        megabytes = (row[key] / 1e6 for key in ("peak_bytes", "temporary_bytes", "code_bytes"))
        step = f"{1e3 * seconds_of(row) / row['steps']:.2f} ms" if row["steps"] else ""
        last = f"{row['operations']:,.0f}" if gpu else f"{1e3 * row['estimate_s']:.2f}"
        then = old.get(row["name"])
        ratio = f" {seconds_of(then) / seconds_of(row):.2f}x |" if then and "failure" not in then else " |"
        lines.append(
            f"| {row['name']}, {row['shape']} | {row['compile_s']:.0f} | "
            + " | ".join(f"{value:,.0f}" for value in megabytes)
            + f" | {row['flops'] / 1e9:,.1f} | {1e3 * row['floor_s']:.2f} | {1e3 * row['bytes_s']:.2f} | {last} "
            + f"| {step} |"
            + ratio * bool(before)
        )
    for row in result["stages"]:
        lines += _details(row)
    if whole := result["speaking"]:
        lines += [
            "",
            f"speaking: at least {whole['seconds']:.3f} s for {whole['audio_s']:.1f} s of audio: real-time factor "
            f"{whole['real_time_factor']:.4f}, {whole['audio_per_second']:,.0f} seconds of audio per second",
        ]
    if gpu:
        lines += ["", "the compiler for CUDA estimates no time and tunes nothing without a device"]
    return "\n".join(lines)


def _details(row: dict[str, Any]) -> list[str]:
    """What a stage is made of, where it takes a millisecond or more."""
    if "failure" in row or seconds_of(row) < 1e-3:
        return []
    lines = ["", f"**{row['name']}**"]
    if row["without_estimate"]:
        lines.append(
            "- without an estimate: " + ", ".join(f"{n} {kind}" for kind, n in row["without_estimate"].items())
        )
    if any(row["collectives"].values()):
        inside, outside = row["collectives"]["inside"], row["collectives"]["outside"]
        lines.append(f"- collectives: {outside} outside of loops of known length, {inside} inside")
    loops = sorted(row["loops"], key=lambda loop: -loop["times"] * max(loop["estimate_s"] or 0, loop["bytes_s"]))
    for loop in loops[:3]:
        estimate = "" if loop["estimate_s"] is None else f"{1e3 * loop['estimate_s']:.3f} ms, "
        lines.append(
            f"- loop {loop['name']}, {loop['times']:,.0f} times: {estimate}{1e3 * loop['bytes_s']:.3f} ms of bytes, "
            f"{loop['operations']} operations"
        )
    for one in row["largest"]:
        alike = f" and {one['alike'] - 1} more" if one["alike"] > 1 else ""
        source = f" ({one['source']})" if one["source"] else ""
        lines.append(f"- {1e3 * one['s']:.2f} ms: {one['kind']} {one['name']}{alike}{source}")
    return lines
