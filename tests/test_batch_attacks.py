"""What a job that was killed leaves is no obstacle to the next run, and nothing is lost or done twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from debug.attack_jobs import Attack, attack
from debug.golden import FIXTURES
from indextts_jax import batch
from indextts_jax.cli import main
from indextts_jax.journal import Journal
from indextts_jax.manifest import Defaults
from tests.conftest import COMPILED


@pytest.fixture
def job(converted, tmp_path) -> batch.Job:
    """Of one item, "a", whose output is there."""
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "a", "text": "Hello."}) + "\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_bytes(b"sound")
    voice = FIXTURES / "audio" / "voice_24k.wav"
    return batch.Job(tmp_path / "items.jsonl", tmp_path / "out", converted, Defaults(voice=voice))


def write(path: Path, *statuses: str, time: float = 1.0) -> None:
    with Journal.open(path) as journal:
        for n, status in enumerate(statuses):
            output = "a.wav" if status == "done" else None
            entry = {"id": "a", "key": "k", "status": status, "attempts": n + 1, "output": output}
            journal.append(entry | {"time": time + n})


def test_an_output_that_appeared_just_before_a_kill_is_ours(job):
    write(job.journal)
    with pytest.raises(batch.Refused) as caught:
        batch.check(job)
    assert "exists already" in caught.value.problems[0].message
    (job.folder / ".writing").write_text("b.wav\na.wav\n")
    assert batch.check(job).done == 0


def test_names_of_outputs_that_are_not_in_the_journal_yet_are_kept(job):
    path = job.folder / ".writing"
    writing = batch._Writing(job, set())
    writing.begin("a.wav")
    writing.begin("b.wav")
    assert path.read_text() == "b.wav\n"
    writing = batch._Writing(job, set())  # after a kill
    writing.begin("c.wav")
    writing.begin("d.wav")
    assert path.read_text() == "b.wav\nd.wav\n"
    writing.end()
    assert path.read_text() == "b.wav\n"
    writing.begin("b.wav")
    writing.end()
    assert not path.exists()
    path.write_text("b.wav\n")
    batch._Writing(job, {"b.wav"}).end()
    assert not path.exists()


def test_an_output_of_an_item_that_failed_later_is_ours(job):
    write(job.journal, "done", "failed")
    assert batch.check(job).done == 0
    assert batch.known(job)["a"].output == "a.wav"


def test_of_several_journals_the_latest_entry_counts(job):
    write(job.journal, "failed", time=1.0)
    write(job.folder / "journal-0-of-2.jsonl", "failed", "done", time=2.0)
    assert batch.known(job)["a"].status == "done"
    assert batch.check(job).done == 1
    write(job.folder / "journal-1-of-2.jsonl", "failed", time=9.0)
    assert batch.known(job)["a"].status == "failed"


def test_merging_says_what_is_missing(job, capsys):
    command = ["batch", str(job.manifest), "--model", str(job.model), "--output-dir", str(job.folder), "--merge"]
    voice = ["--voice", str(job.defaults.voice)]
    assert main([*command, *voice]) == 1  # there are no journals of shards
    write(job.folder / "journal-0-of-2.jsonl", "failed")
    assert main([*command, *voice]) == 1
    assert "1 of them have failed: a" in capsys.readouterr().err
    write(job.folder / "journal-1-of-2.jsonl", "done", time=2.0)
    assert main(command) == 1  # of a line without a voice nobody knows
    assert "items.jsonl:1: there is no voice" in capsys.readouterr().err
    assert main([*command, *voice]) == 0
    assert "1 of 1 items are done" in capsys.readouterr().out


def test_an_interrupted_run_answers_for_what_it_left_itself(tmp_path):
    """Not for what one that was killed before it left, of items that it did not come to."""

    class Ending(Attack):
        def __init__(self):
            self.folder, self.ids, self.expected, self.seconds = tmp_path, [], {}, 0.0
            self.returncode = 128 + signal.SIGINT

        def start(self, stderr=None):
            return self

        def poll(self):
            return None

        def kill(self):
            pass

        def send_signal(self, number):
            for name, content in leaves.items():
                (tmp_path / name).write_text(content)

        def communicate(self, timeout):
            return "", ""

    def faults() -> list[str]:
        _, _, found = Ending().round(signal.SIGINT, random.Random(0), written=0.0)
        return [fault.removeprefix(f"{tmp_path}/") for fault in found]

    (tmp_path / ".a.wav.7.00.tmp").touch()
    (tmp_path / ".writing").write_text("a.wav\n")
    leaves = {}
    assert faults() == []
    leaves = {".b.wav.8.00.tmp": "", ".writing": "a.wav\nb.wav\n"}
    assert faults() == [".b.wav.8.00.tmp was left", ".writing/b.wav was left"]


@pytest.mark.slow
@pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="takes some minutes: set INDEXTTS_LONG to run it")
def test_kills_and_signals_at_random_moments(converted, tmp_path, monkeypatch):
    """The short form of `debug.attack_jobs`."""
    monkeypatch.setenv("INDEXTTS_CACHE", str(COMPILED))
    said: list[str] = []
    numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]
    job = Attack(tmp_path, 12, converted)
    assert attack(job, random.Random(os.getpid()), numbers, time.perf_counter() + 600, said.append) == [], said


@pytest.mark.slow
def test_many_kills_while_files_are_written():
    """With noise in the place of speech; in a process of its own, which forks."""
    command = [sys.executable, "-m", "debug.attack_jobs", "--stub", "--times", "12", "--signals", "6"]
    done = subprocess.run([*command, "--seed", str(os.getpid())], cwd=Path(__file__).parent.parent, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
