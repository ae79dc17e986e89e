"""Measure what batch jobs need, on the tiny model.

    python -m debug.bench_jobs --memory [--items 10000] [--beside 100] [--spoken 300] [--cache DIR]

Peak memory (resident, of the whole process) of `indextts-jax batch --dry-run`, and of a run that speaks the first items
(`--limit`), on a long manifest beside a short one. The texts and ids of the long one are all different.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from debug.attack_interrupts import start
from debug.attack_jobs import SHORT
from debug.golden import FIXTURES


class Use(NamedTuple):
    """Of one process."""

    seconds: float
    peak: float  # MiB, resident


def measured(arguments: list[str], folder: Path) -> Use:
    """Run a command to its end, which must be a good one."""
    begin = time.perf_counter()
    process = start(arguments, folder, None)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")
    return Use(time.perf_counter() - begin, usage.ru_maxrss / 1024)


def memory(folder: Path, sizes: list[int], spoken: int) -> None:
    """Print a line for each size of manifest: of a dry run, and of a run of its first items."""
    start(["convert", "--quiet", str(FIXTURES / "tiny"), "model"], folder, None).wait()
    voice = str(FIXTURES / "audio" / "voice_24k.wav")
    for size in sizes:
        rows = ({"id": f"item-{i}", "text": f"This is sentence {i}, and it has a few words."} for i in range(size))
        (folder / f"{size}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--model", "model", "--voice", voice, *SHORT, "--max-codes", "2"]
    print("| items | what | seconds | peak, MiB |\n|---|---|---|---|")
    for size in sizes:
        use = measured(["batch", f"{size}.jsonl", "--output-dir", f"dry-{size}", *settings, "--dry-run"], folder)
        print(f"| {size} | dry run | {use.seconds:.1f} | {use.peak:.0f} |", flush=True)
    limits = sorted({min(min(sizes), spoken), spoken})
    for size, limit in [(min(sizes), limits[0]), *((max(sizes), limit) for limit in limits)]:
        out = f"out-{size}-{limit}"
        use = measured(["batch", f"{size}.jsonl", "--output-dir", out, *settings, "--limit", str(limit)], folder)
        print(f"| {size} | {limit} spoken | {use.seconds:.1f} | {use.peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", required=True, help="measure peak memory")
    parser.add_argument("--items", type=int, default=10_000, help="of the long manifest (%(default)s)")
    parser.add_argument("--beside", type=int, default=100, help="of the short one (%(default)s)")
    parser.add_argument("--spoken", type=int, default=300, help="items of the long one to speak (%(default)s)")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs, kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["INDEXTTS_CACHE"] = str((options.cache or Path(scratch) / "cache").resolve())
        memory(Path(scratch), [options.beside, options.items], options.spoken)


if __name__ == "__main__":
    main()
