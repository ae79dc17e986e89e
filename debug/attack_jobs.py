"""Kill and interrupt a batch job at random moments, run it again each time, and see that nothing is lost or done twice.

    python -m debug.attack_jobs [--times 200] [--signals 20] [--items 60] [--seed 0] [--minutes M] [--cache DIR]

Each round runs one and the same command on the tiny model and ends it by SIGKILL: most of them a moment after an item
has been written, the others at any moment of a run. After each, the journal is readable, no item stands in it twice as
done with the same key, what it calls done is there, and every output has the bytes of an undisturbed run. A round that
comes to its end leaves all outputs and nothing temporary; the next one begins in a new folder. Then SIGINT and SIGTERM:
what had begun is finished, the status is 130 or 143, and the same command goes on.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import soundfile

from debug.attack_interrupts import start
from debug.golden import FIXTURES
from indextts_jax.journal import Journal

LONGEST = 300  # seconds until a run counts as hung
TEXTS = ("Hello there.", "Good morning.", "It rains.")
SHORT = ("--max-codes", "8", "--steps", "1", "--greedy", "--quiet")  # many items in little time


class Attack:
    """One job, in folders of its own below `scratch`, and what an undisturbed run of it writes."""

    def __init__(self, scratch: Path, items: int, model: Path | None = None):
        self._scratch, self._rounds = scratch, 0
        if model is None:
            model = scratch / "model"
            start(["convert", "--quiet", str(FIXTURES / "tiny"), str(model)], scratch, None).wait()
        rows = [{"id": f"i{i:03}", "text": TEXTS[i % len(TEXTS)]} for i in range(items)]
        manifest = scratch / "items.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        voice = FIXTURES / "audio" / "voice_24k.wav"
        self.command = ["batch", str(manifest), "--model", str(model), "--voice", str(voice), *SHORT]
        self.ids = [row["id"] for row in rows]
        self.seconds = 0.0  # of an undisturbed run, its programs compiled
        self.expected: dict[str, bytes] = {}
        for name in ("compiling", "undisturbed"):
            begin = time.perf_counter()
            self.folder = scratch / name
            if status := self.start(None).wait():
                raise SystemExit(f"the undisturbed run ended with {status}")
            self.seconds = time.perf_counter() - begin
            found = {path.name: path.read_bytes() for path in self.folder.glob("*.wav")}
            if self.expected and found != self.expected:
                raise SystemExit("two undisturbed runs differ")
            self.expected = found
        self.fresh()

    def start(self, stderr: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
        return start([*self.command, "--output-dir", str(self.folder)], self._scratch, stderr)

    def fresh(self) -> None:
        """Begin anew, in another folder."""
        self._rounds += 1
        self.folder = self._scratch / f"job-{self._rounds}"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def size(self) -> int:
        return self.journal.stat().st_size if self.journal.exists() else 0

    def round(self, number: int, rng: random.Random, written: float = 0.7) -> tuple[int, str, list[str]]:
        """Run the command and send a signal: -> its status, when the signal came, and what is wrong then."""
        before, begin = self.size(), time.perf_counter()
        process = self.start()
        try:
            if rng.random() < written:  # when a few items more are written than before, and a little later
                goal = before + rng.randint(1, 12) * 250
                _wait(process, lambda: self.size() > goal)
                time.sleep(rng.uniform(0, 0.1))
            else:
                until = begin + rng.uniform(0, self.seconds)
                _wait(process, lambda: time.perf_counter() > until)
            after = time.perf_counter() - begin
            process.send_signal(number)
            _, said = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
        status, faults = process.returncode, self.faults()
        if status in (0, 128 + number):
            faults += self.left_over()
        if status == 0:
            faults += self.complete()
        elif status == 128 + number:
            faults += self.unfinished(before)
        if status not in (0, 128 + number, -number):
            faults.append(f"status {status}: {said[-500:]}")
        return status, f"after {after:5.2f} s with {self.done()} of {len(self.ids)} done", faults

    def done(self) -> int:
        return len({entry["id"] for entry in self._entries() if entry["status"] == "done"})

    def _entries(self) -> list[dict]:
        return list(Journal.read(self.journal)) if self.journal.exists() else []

    def faults(self) -> list[str]:
        """What must never be, at any moment."""
        faults, counts = [], Counter()
        for entry in self._entries():  # raises where it cannot be read
            if entry["status"] != "done":
                faults.append(f"{entry['id']} has failed: {entry.get('error')}")
                continue
            counts[entry["id"], entry["key"]] += 1
            path = self.folder / entry["output"]
            if not path.exists():
                faults.append(f"{path.name} is done, but not there")
            elif abs(soundfile.info(str(path)).duration - entry["seconds"]) > 1e-6:
                faults.append(f"{path.name} is not as long as the journal says")
        faults += [f"{id} was done {n} times" for (id, _), n in counts.items() if n > 1]
        for path in self.folder.glob("*.wav"):
            if path.read_bytes() != self.expected.get(path.name):
                faults.append(f"{path.name} has other bytes than in an undisturbed run")
        return faults

    def left_over(self) -> list[str]:
        """What a process that came to its own end has left."""
        known = {"journal.jsonl", "summary.json", *self.expected}
        found = [path for path in self.folder.rglob("*") if path.parent.name != ".voices" and path.name != ".voices"]
        found += self.folder.rglob(".voices/.*")
        return [f"{path} was left" for path in found if path.name not in known]

    def complete(self) -> list[str]:
        """What is missing after a run that says that all is done."""
        found = {path.name for path in self.folder.glob("*.wav")}
        faults = [] if found == set(self.expected) else [f"{len(found)} of {len(self.expected)} outputs are there"]
        return faults if self.done() == len(self.ids) else [*faults, "the journal lacks items"]

    def unfinished(self, before: int) -> list[str]:
        """What had begun when a signal came, and was not finished."""
        if self.size() == before:
            return []
        with self.journal.open("rb") as file:
            file.seek(before)
            added = sum(line.startswith(b'{"time"') for line in file)
        if not (self.folder / "summary.json").exists():
            return ["there is no summary"]
        summary = json.loads((self.folder / "summary.json").read_text())
        counts = summary["items"], summary["done"], added
        return [] if len({*counts}) == 1 else ["begun, done and in the journal: {}, {}, {}".format(*counts)]


def _wait(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    begin = time.perf_counter()
    while not ready() and process.poll() is None:
        if time.perf_counter() - begin > LONGEST:
            raise SystemExit("a run hangs")
        time.sleep(0.002)


def attack(job: Attack, rng: random.Random, numbers: list[int], until: float, say: Callable[[str], None]) -> list[str]:
    """Rounds with these signals, then one that comes to its end: -> all that was wrong."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    for number in numbers:
        if time.perf_counter() > until:
            break
        status, when, faults = job.round(number, rng)
        ends[f"{signal.Signals(number).name} {status}"] += 1
        say(f"{signal.Signals(number).name:7} {when}: status {status}{''.join(f'  FAULT: {f}' for f in faults)}")
        wrong += faults
        if status == 0 or faults:
            ends["complete"] += status == 0
            job.fresh()
    if job.start(None).wait():
        wrong.append("the last run did not succeed")
    wrong += job.faults() + job.left_over() + job.complete()
    say(f"ends: {dict(sorted(ends.items()))}; an undisturbed run takes {job.seconds:.1f} s; {len(wrong)} faults")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="kills (%(default)s)")
    parser.add_argument("--signals", type=int, default=20, help="SIGINT and SIGTERM (%(default)s)")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no round after this long")
    parser.add_argument("--cache", type=Path, help="folder of compiled programs, kept")
    options = parser.parse_args()
    begin, rng = time.perf_counter(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["INDEXTTS_CACHE"] = str((options.cache or Path(scratch) / "cache").resolve())
        job = Attack(Path(scratch), options.items)
        numbers = [signal.SIGKILL] * options.times
        numbers += [rng.choice((signal.SIGINT, signal.SIGTERM)) for _ in range(options.signals)]
        if options.minutes < 1e9:  # of what fits, as many of each
            rng.shuffle(numbers)
        wrong = attack(job, rng, numbers, begin + 60 * options.minutes, lambda line: print(line, flush=True))
    sys.exit(len(wrong) > 0)


if __name__ == "__main__":
    main()
