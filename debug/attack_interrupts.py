"""Send signals to running commands at random moments, and see how each ends.

    python -m debug.attack_interrupts [--times 30] [--seed 0] [--twice] [--kill] [--only convert|speak]

Each run is one command on the tiny model. It must end with 128 + the signal, one line that says so, and nothing left in
its folder; or, where the signal came too late, with 0 and a complete output; or, where it came before the command could
listen, or after it was done, by the signal itself. `--twice` sends a second signal soon after the first. `--kill` sends
SIGKILL, and then runs the command again, which must succeed and leave its output alone there.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from debug.golden import FIXTURES
from indextts_jax.interrupts import SIGNALS

LONGEST = 120  # seconds until a run counts as hung


class End(NamedTuple):
    """How a run ended."""

    signal: int
    after: float  # seconds from its start to the signal
    took: float  # seconds from the signal to its end
    status: int
    left: list[str]  # what lies in its folder
    said: str  # on stderr

    def fault(self, output: str, twice: bool = False) -> str | None:
        """What is wrong with it, if anything."""
        lines = [line for line in self.said.splitlines() if not line.startswith("indextts-jax: warning: ")]
        if self.left != [output] and (self.status == 0 or self.left):  # a complete output may have been written before
            return f"status {self.status} left {self.left}"
        if self.status in (0, -self.signal):
            return None
        if self.status != 128 + self.signal:
            return f"status {self.status}, not {128 + self.signal}"
        if len(lines) != 1 and not (twice and not lines):
            return f"said {len(lines)} lines: {self.said[:1000]!r}"
        return None


def start(arguments: Sequence[str], folder: Path, stderr: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
    """A command of ours, in a folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "indextts_jax.cli", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True,
        start_new_session=True,
    )  # fmt: skip


def interrupt(
    arguments: Sequence[str], folder: Path, number: int, after: float, again: float | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> End:  # fmt: skip
    """Run a command, and send it a signal `after` seconds, counted from when it is `ready`, perhaps twice."""
    begin = time.perf_counter()
    process = start(arguments, folder)
    try:
        while not ready() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(after)
        sent = time.perf_counter()
        process.send_signal(number)
        if again is not None:
            time.sleep(again)
            process.send_signal(number)
        _, said = process.communicate(timeout=LONGEST)
    finally:
        process.kill()
    took = time.perf_counter() - sent
    return End(number, sent - begin, took, process.returncode, sorted(os.listdir(folder)), said)


def commands(scratch: Path) -> dict[str, tuple[list[str], str]]:
    """name -> (arguments, what it writes into its folder)."""
    model, voice = str(scratch / "model"), str(FIXTURES / "audio" / "voice_24k.wav")
    speak = ["speak", "--model", model, "--voice", voice, "--text", "Hello.", "--greedy", "--max-codes", "40"]
    return {
        "convert": (["convert", str(FIXTURES / "tiny"), "out"], "out"),
        "speak": ([*speak, "--output", "out.wav"], "out.wav"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["convert", "speak"], help="attack this command alone")
    parser.add_argument("--times", type=int, default=30, help="runs of each command (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", action="store_true", help="send a second signal within half a second")
    parser.add_argument("--kill", action="store_true", help="send SIGKILL, then run again")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        start(["convert", str(FIXTURES / "tiny"), "model"], scratch, None).wait()
        for command in [options.only] if options.only else ["convert", "speak"]:
            arguments, output = commands(scratch)[command]
            for warm in range(2):  # the second with its programs compiled
                begin = time.perf_counter()
                (scratch / f"{command}.{warm}").mkdir()
                start(arguments, scratch / f"{command}.{warm}", None).wait()
                whole = time.perf_counter() - begin
            ends: Counter[int] = Counter()
            slowest = 0.0
            for i in range(options.times):
                folder = scratch / f"{command}-{i}"
                folder.mkdir()
                number = signal.SIGKILL if options.kill else rng.choice(SIGNALS)
                again = rng.uniform(0, 0.5) if options.twice else None
                end = interrupt(arguments, folder, number, rng.uniform(0, whole), again)
                if options.kill and end.status:
                    start(arguments, folder, None).wait()
                    left = sorted(os.listdir(folder))
                    fault = None if left == [output] else f"then left {left}"
                else:
                    fault = end.fault(output, options.twice)
                ends[end.status] += 1
                slowest = max(slowest, end.took)
                faults += fault is not None
                last = (end.said.splitlines() or [""])[-1][:100]
                print(
                    f"{command} {signal.Signals(number).name:7} after {end.after:5.2f} s: status {end.status:4} in "
                    f"{end.took:5.2f} s, left {end.left}, said {last!r}{f'  FAULT: {fault}' if fault else ''}",
                    flush=True,
                )
            summary = ", ".join(f"{n} with {status}" for status, n in sorted(ends.items()))
            print(
                f"{command}: {summary}; the slowest took {slowest:.2f} s (a whole run takes {whole:.2f} s)", flush=True
            )
    print(f"{faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
