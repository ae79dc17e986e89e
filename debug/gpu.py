"""All that a first look at a GPU needs, in one go and within ten minutes: python -m debug.gpu --output gpu.

Three parts, each in a process of its own with a limit of time, so that one that fails loses nothing of the others: the
benchmark at several batch sizes, a profile of decoding and of the flow (launches, gaps, graphs), and the tests that
compare with the reference. Figures go to OUTPUT as JSON, and to OUTPUT/page.md with the device and the date.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from indextts_jax import decoding, files, models, seeds
from indextts_jax.bench.chain import Setting
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.models import gpt, s2mel

TESTS = ("test_validate.py", "test_bfloat16.py", "test_gpt.py", "test_s2mel.py", "test_bigvgan.py", "test_int8.py")


def parts(options: argparse.Namespace) -> dict[str, tuple[int, list[str]]]:
    """By its name, the most seconds that a part may take and its command."""
    python, batches = [sys.executable, "-m"], ",".join(map(str, options.batches))
    bench = [*python, "indextts_jax.cli", "bench", "--force", "--dtype", "bfloat16", "--codes", str(options.codes)]
    tests = [str(Path("tests") / name) for name in TESTS]
    return {
        "bench": (270, [*bench, "--batch", batches, "--repeat", "2", "--json", str(options.output / "bench.json")]),
        "profile": (120, [*python, "debug.gpu", "--output", str(options.output), "--profile"]),
        "tests": (170, [*python, "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]),
    }


def run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    page = [f"# {device.device_kind}, {time.strftime('%Y-%m-%d')}, jax {jax.__version__}", ""]
    for name, (limit, command) in parts(options).items():
        if options.parts and name not in options.parts:
            continue
        begin = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            text, status = done.stdout + done.stderr[-2000:] * (done.returncode != 0), f"exit status {done.returncode}"
        except subprocess.TimeoutExpired as late:
            text, status = (late.stdout or b"").decode(errors="replace"), f"stopped after {limit} s"
        took = time.perf_counter() - begin
        page += [f"## {name}: {status}, {took:.0f} s", "", text.strip() if name != "tests" else _last(text), ""]
        # At once: the next part may be the last.
        files.write_whole(options.output / "page.md", "\n".join(page).encode())
        print(f"{name}: {status}, {took:.0f} s", flush=True)


def _last(text: str) -> str:
    """What pytest counts, and what failed."""
    return "\n".join(line for line in text.splitlines() if line.startswith(("FAILED", "ERROR")) or " in " in line)[
        -3000:
    ]


# ---- the profile ----------------------------------------------------------------------------------------------------


def profile(options: argparse.Namespace) -> None:
    """Decoding and the flow for each batch: -> OUTPUT/profile.json, and a table."""
    cfg, rows = Config(), []
    if options.small:
        from tests.small import GPT, S2MEL

        cfg = Config(gpt=GPT, s2mel=S2MEL)
    params = {name: models.random(name, getattr(cfg, name), 0, "bfloat16") for name in ("gpt", "s2mel")}
    print("| program | batch | ms a step | launches a step | busy | longest gap, us | of them graphs |")
    print("|---|---|---|---|---|---|---|")
    for batch in options.batches:
        for name, (steps, call) in (("decoding", _decoding(params, cfg, batch)), ("flow", _flow(params, cfg, batch))):
            jax.block_until_ready(call())
            begin = time.perf_counter()
            jax.block_until_ready(call())
            row = {"name": name, "batch": batch, "step_s": (time.perf_counter() - begin) / steps}
            folder = options.output / f"trace_{name}_{batch}"
            with jax.profiler.trace(str(folder)):
                jax.block_until_ready(call())
            rows.append(row | _launches(folder, steps))
            one = rows[-1]
            print(
                f"| {name} | {batch} | {1e3 * one['step_s']:.3f} | {one['launches']:.0f} | {one['busy']:.0%} "
                f"| {one['gap_us']:.0f} | {one['graphs']:.1f} |",
                flush=True,
            )
    files.write_whole(options.output / "profile.json", (json.dumps(rows, indent=1) + "\n").encode())


def _launches(folder: Path, steps: int) -> dict[str, float]:
    """What ran on the device: kernels a step, the share of time in which one ran, the longest gap between two."""
    [file] = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    spans, graphs = [], 0
    for plane in data.planes:
        on_device = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            for event in line.events:
                if on_device and line.name.startswith("Stream"):
                    spans.append((event.start_ns, event.start_ns + event.duration_ns))
                graphs += event.name == "cuGraphLaunch"
    if not spans:
        return {"launches": float("nan"), "busy": float("nan"), "gap_us": float("nan"), "graphs": graphs / steps}
    spans.sort()
    busy, gap, end = 0.0, 0.0, spans[0][0]
    for begin, until in spans:
        gap, busy = max(gap, begin - end), busy + max(0.0, until - max(begin, end))
        end = max(end, until)
    return {
        "launches": len(spans) / steps, "busy": busy / (end - spans[0][0]), "gap_us": gap / 1e3,
        "graphs": graphs / steps,
    }  # fmt: skip


def _decoding(params: Any, cfg: Config, batch: int) -> tuple[int, Any]:
    """A chunk of steps of `batch` rows with 3 beams."""
    own, sampling = cfg.gpt, Sampling(3)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 72, own.width)) * 0.1, jnp.bfloat16)
    prefix = gpt.Prefix(rows, jnp.full(batch, 72))
    keys = jnp.stack([seeds.data(seeds.key(i)) for i in range(batch)])

    def begun() -> decoding.State:
        state = decoding.empty(own, sampling, batch, 2, jnp.dtype(jnp.bfloat16))
        begun = gpt.prefill(params["gpt"], own, prefix)
        return decoding.admit(own, state, prefix.lengths, *begun, jnp.arange(batch), keys, sampling, jnp.int32(200))

    states = [begun() for _ in range(3)]  # each is given away when it is used
    return decoding.CHUNK, lambda: decoding.advance(params["gpt"], own, states.pop(), jnp.array(False), jnp.int32(1))


def _flow(params: Any, cfg: Config, batch: int, steps: int = 5) -> tuple[int, Any]:
    """Steps of the flow, 1024 frames of which 441 are spoken."""
    own, T, F = cfg.s2mel, 1024, 441
    rng = np.random.default_rng(0)

    def made(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    arguments = (
        made(batch, F, own.mels).astype(jnp.float32), made(batch, T, own.mels), made(batch, T, own.content),
        made(batch, own.style), jnp.full(batch, 393), jnp.full(batch, 430), jnp.full(batch, 0.7, jnp.float32),
    )  # fmt: skip
    return steps, lambda: s2mel.solve(params["s2mel"], own, *arguments, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="folder of the results (%(default)s)")
    parser.add_argument("--parts", nargs="*", choices=("bench", "profile", "tests"), help="only these")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32, 64])
    parser.add_argument("--codes", type=int, default=Setting.codes, help="of an utterance (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="the profile alone, in this process")
    parser.add_argument("--small", action="store_true", help="the profile of small networks: to try it on a CPU")
    options = parser.parse_args()
    profile(options) if options.profile else run(options)


if __name__ == "__main__":
    main()
