"""Figures as one object and as Markdown: floors, ratios, growth, and the PyTorch reference's beside ours."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from indextts_jax.bench.chain import Chain, Setting, Timed
from indextts_jax.bench.machine import Machine, device_peak, host_peak
from indextts_jax.stages import ALL

# Its stages, and ours that do the same.
GROUPS = {
    "w2v-BERT": ("w2v-BERT features", "w2v-BERT"), "RepCodec": ("RepCodec",),
    "CAMPPlus": ("CAMPPlus features", "CAMPPlus"), "mel": ("mel",),
    "conditioners": ("speaker latents", "style latents", "emotion vector"),
    "codes": (
        "prefix", "empty cache", "prefill", "admission", "decoding", "more cache", "winning codes",
    ),
    "second pass": ("second pass",),
    "codec's decoder": ("restored features",),
    "content": ("prompt content", "code embeddings", "content"),
    "flow": ("noise", "joining prompt and target", "flow"), "BigVGAN": ("BigVGAN",),
}  # fmt: skip


def floor_s(stage: Timed, machine: Machine) -> float:
    """The least a stage can take: its products at the matrix rate, or its bytes at the bandwidth."""
    rate = machine.flops[stage.setting.dtype]
    return max(stage.flops / rate, stage.bytes / machine.bandwidth)


def report(machine: Machine, chains: Sequence[Chain], stages: Sequence[Timed]) -> dict[str, Any]:
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
        own = stages_of(result, chain)
        lines += ["", f"## {chain['dtype']}, batch {chain['batch']}, {chain['beams']} beams, {chain['codes']} codes, "
                  f"{chain['seconds']:g} s of voice", ""]  # fmt: skip
        lines.append(f"| stage | calls | compile s | run s | spread | GFLOP | XLA's | GB | XLA's | temp. MB | floor s "
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


def beside(result: dict[str, Any]) -> list[str]:
    """Ours and the reference's seconds as Markdown, for every setting in which it was timed."""
    lines = []
    for chain in result["chains"]:
        if not (other := chain.get("reference")):
            continue
        own = {row["name"]: row["run_s"] for row in stages_of(result, chain)}
        rows = [(name, sum(own.get(part, 0.0) for part in parts)) for name, parts in GROUPS.items()]
        rows.append(("whole chain", chain["listen_s"] + chain["speak_s"]))
        lines += ["", f"beside PyTorch {other['torch']}, {other['threads']} threads, {chain['beams']} beams", ""]
        lines += ["| stage | ours, s | reference, s | ratio |", "|---|---|---|---|"]
        for name, ours in rows:
            if seconds := other["stages"].get(name):
                theirs = float(np.median(seconds))
                lines.append(f"| {name} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |")
            elif ours:  # not a stage of both versions
                lines.append(f"| {name} | {ours:.3f} | | |")
    return lines


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
            own = [{row["name"]: row for row in stages_of(result, chain)} for chain in chains]
            names = [name for name in ALL if all(name in rows for rows in own)]
            others = [f"{chains[0][key]:g} {other}" for key, other in SIZES.items() if key != size]
            seconds, temporary = (
                {name: [rows[name][key] for rows in own] for name in names} for key in ("run_s", "temporary_bytes")
            )
            seconds["whole chain"] = [chain["listen_s"] + chain["speak_s"] for chain in chains]
            title = f"{word}: {chains[0]['dtype']}, {', '.join(others)}, {chains[0]['flow_steps']} steps"
            found.append(Curves(size, title, [chain[size] for chain in chains], seconds, temporary))
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
        f"| seconds |{heads} exponent | at the end | temporary MB | exponent |",
    ]
    lines.append("|---|" + "---|" * (len(curves.values) + 4))
    for name, seconds in curves.seconds.items():
        if max(seconds) < 10 * least:
            continue
        temporary = curves.bytes.get(name)
        memory = (
            f"{temporary[0] / 1e6:,.0f} to {temporary[-1] / 1e6:,.0f} | {exponent(curves.values, temporary):.2f}"
            if temporary
            else " | "
        )
        end = exponent(curves.values[-2:], seconds[-2:])
        times = "".join(f" {value:.3f} |" for value in seconds)
        lines.append(f"| {name} |{times} {exponent(curves.values, seconds):.2f} | {end:.2f} | {memory} |")
    return lines


_SETTING = tuple(each.name for each in fields(Setting))


def stages_of(result: dict[str, Any], chain: dict[str, Any]) -> list[dict[str, Any]]:
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
