"""Kill and interrupt a batch job at random moments, run it again each time, and see that nothing is lost or done twice.

    python -m debug.attack_jobs [--stub] [--times 200] [--signals 20] [--items 60] [--minutes M] [--cache DIR]

Each round runs one and the same command on the tiny model and ends it by SIGKILL: most of them a moment after an item
has been written, the others at any moment of a run. After each, the journal is readable, no item stands in it twice as
done with the same key, what it calls done is there, and every output has the bytes of an undisturbed run. A round that
comes to its end leaves all outputs and nothing temporary; the next one begins in a new folder. Then SIGINT and SIGTERM:
what had begun is finished, the status is 130 or 143, and the same command goes on.

`--stub`: no model speaks, but noise of each item's seed comes in its place, and processes are forked from one that has
imported everything. All that reads and writes files is as it is; a run takes a second instead of half a minute.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from debug.attack_interrupts import start
from debug.golden import FIXTURES
from indextts_jax import batch, checkpoint, devices, interrupts, model
from indextts_jax.cli import batch as cli_batch
from indextts_jax.cli import main as main_command
from indextts_jax.journal import Journal
from indextts_jax.request import Request, Result

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
        self.model = model
        rows = [{"id": f"i{i:03}", "text": TEXTS[i % len(TEXTS)]} for i in range(items)]
        manifest = scratch / "items.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        voice = self.voice()
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

    def voice(self) -> Path:
        return FIXTURES / "audio" / "voice_24k.wav"

    def start(self, stderr: int | None = subprocess.PIPE) -> "subprocess.Popen[str] | Forked":
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
        before, found, begin = self.size(), self.left_over(), time.perf_counter()
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
        if status == 0:
            faults += self.left_over() + self.complete()
        elif status == 128 + number:  # what a killed one left of an item goes when that item is written again
            faults += [left for left in self.left_over() if left not in found] + self.unfinished(before)
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
        """What is neither an output nor what a whole job leaves beside them; of `.writing`, each name in it."""
        known = {"journal.jsonl", "summary.json", ".writing", *self.expected}
        found = [path for path in self.folder.rglob("*") if path.parent.name != ".voices" and path.name != ".voices"]
        found += self.folder.rglob(".voices/.*")
        found = [path for path in found if path.name not in known]
        found += [path / name for path in self.folder.glob(".writing") for name in batch._writing(path) or [""]]
        return [f"{path} was left" for path in found]

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


def _wait(process: "subprocess.Popen[str] | Forked", ready: Callable[[], bool]) -> None:
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


# ---- without a model ------------------------------------------------------------------------------------------------


class Stubbed(Attack):
    """The same with noise in the place of speech."""

    def voice(self) -> Path:
        path = self._scratch / "voice.safetensors"
        path.write_bytes(b"nobody reads it")
        return path

    def start(self, stderr: int | None = subprocess.PIPE) -> "Forked":
        return Forked([*self.command, "--output-dir", str(self.folder)], self._scratch / "said")


class Forked:
    """A command in a fork of this process, used as a `subprocess.Popen`."""

    def __init__(self, arguments: list[str], said: Path):
        self._said, self.returncode = said, 0
        self._over = False
        self.pid = os.fork()
        if not self.pid:
            try:
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.dup2(2, 1)
                _stub()
                interrupts.leave(main_command(arguments))
            except KeyboardInterrupt:  # as Python ends where nobody catches it
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os._exit(99)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if not self._over:
            pid, status = os.waitpid(self.pid, options)
            if not pid:
                return None
            self._over, self.returncode = True, os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        self.poll(0)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        begin = time.perf_counter()
        while self.poll() is None:
            if time.perf_counter() - begin > timeout:
                raise SystemExit("a run hangs")
            time.sleep(0.001)
        return "", self._said.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _stub() -> None:
    """Put noise in the place of speech, in this process."""
    analysis = checkpoint.load_text(_stub_model[0]).analyse("Hello there.", 120, language=None)
    batch.Texts.analyse = lambda self, item: analysis

    def begin(self: batch.Speaker, work: batch.Work, heard: object) -> None:
        work.requests = [Request([], None, (None, None), work.item.options, tag=work)]  # pyright: ignore

    def run(params, cfg, requests, size, fixed, tick, usage, ending) -> Iterator[Result]:
        """Of eight at a time, any one ends next."""
        rng, here, over = random.Random(), [], False
        requests = iter(requests)
        while here or not over:
            tick()
            while len(here) < 8 and not over:
                request = next(requests, None)
                here += [request] if request else []
                over = request is None
            if here:
                time.sleep(0.005)
                request = here.pop(rng.randrange(len(here)))
                noise = np.random.default_rng(request.tag.item.seed)
                samples = noise.uniform(-1, 1, noise.integers(1000, 50_000)).astype(np.float32)
                yield Result(request, np.zeros(8, np.int32), True, 1, samples)

    batch.Speaker.begin, devices.run = begin, run
    params = {"gpt": {"weight": np.zeros(1, np.float32)}}
    cfg, text = checkpoint.read_description(_stub_model[0])[0], checkpoint.load_text(_stub_model[0])
    model.load = lambda *_, **__: model.Model(params, cfg, text)
    devices.copies = lambda params, _: [params]
    cli_batch.configure_jax = lambda options: "float32"


_stub_model: list[Path] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stub", action="store_true", help="noise instead of speech: many rounds in little time")
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
        if options.stub:
            _stub_model.append(Path(scratch) / "model")
        job = (Stubbed if options.stub else Attack)(Path(scratch), options.items)
        numbers = [signal.SIGKILL] * options.times
        numbers += [rng.choice((signal.SIGINT, signal.SIGTERM)) for _ in range(options.signals)]
        if options.minutes < 1e9:  # of what fits, as many of each
            rng.shuffle(numbers)
        wrong = attack(job, rng, numbers, begin + 60 * options.minutes, lambda line: print(line, flush=True))
    sys.exit(len(wrong) > 0)


if __name__ == "__main__":
    main()
