"""The journal: what it says is on the disk, whatever happens to the process or to the disk."""

import errno
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from indextts_jax import files, interrupts, journal
from indextts_jax.errors import NotFound
from indextts_jax.files import FileError
from indextts_jax.journal import Journal, Record


def entry(id: str, status: str = "done", **more: Any) -> dict[str, Any]:
    return {"id": id, "key": f"key of {id}", "status": status, "attempts": 1, "output": f"{id}.wav"} | more


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path, *entries: dict[str, Any]) -> None:
    with Journal.open(path) as opened:
        for one in entries:
            opened.append(one)


def test_what_was_appended_is_there(path: Path):
    before = time.time()
    with Journal.open(path) as opened:
        assert opened.records == {}
        opened.append(entry("声音\n", seconds=1.5, error=None))
        opened.append(entry("b", "failed", output=None))
        opened.append(entry("b", attempts=2, time=7))
        kept = {"声音\n": Record("key of 声音\n", "done", 1, "声音\n.wav"), "b": Record("key of b", "done", 2, "b.wav")}
        assert opened.records == kept
    with Journal.open(path) as opened:
        assert opened.records == kept
    read = list(Journal.read(path))
    assert [one["id"] for one in read] == ["声音\n", "b", "b"]
    assert read[0].pop("time") == pytest.approx(before, abs=60)
    assert read[0] == entry("声音\n", seconds=1.5, error=None)
    assert read[2]["time"] == 7
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == '{"format": "indextts-jax journal 1"}'
    assert "声音" in lines[1]  # as people read it


def test_file_names_that_are_no_text(path: Path):
    write(path, entry("a", error="cannot read \udcff.wav"))
    assert next(Journal.read(path))["error"] == "cannot read \udcff.wav"


def test_what_is_no_entry_is_a_bug(path: Path):
    with Journal.open(path) as opened:
        for wrong in ({}, entry("a", attempts="1"), entry("a", key=None), entry("a", time="now")):
            with pytest.raises((KeyError, TypeError)):
                opened.append(wrong)
        with pytest.raises(ValueError, match=r"an entry of .* bytes"):
            opened.append(entry("a", text="x" * (1 << 24)))
        with pytest.raises(ValueError, match="JSON compliant"):
            opened.append(entry("a", seconds=float("nan")))
        opened.append(entry("b"))
        assert list(opened.records) == ["b"]
    assert [one["id"] for one in Journal.read(path)] == ["b"]


def test_keys():
    one = journal.key(text="声音", weights=(0.5, 1.0), seed=2**64 - 1)
    assert one == journal.key(seed=2**64 - 1, weights=[0.5, 1.0], text="声音")
    assert len(one) == 64
    assert one.startswith("d1b902fd56c8")  # what was done must be found again by later versions
    others = [journal.key(text="声音", weights=(0.5, 1), seed=2**64 - 1), journal.key(text="声", weights=(0.5, 1.0))]
    assert len({one, *others}) == 3


def test_every_entry_is_on_the_disk_and_a_new_journal_in_its_folder(path: Path, monkeypatch):
    events: list[str] = []
    sync, write_at = os.fsync, os.pwrite

    def synced(file: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{file}').resolve().name}")
        sync(file)

    def written(file: int, content: bytes, at: int) -> int:
        events.append(f"write {content.count(b'}')}")
        return write_at(file, content, at)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "pwrite", written)
    with Journal.open(path) as opened:
        assert events == ["write 1", f"sync {path.name}", f"sync {path.parent.name}"]
        events.clear()
        opened.append(entry("a"))
        assert events == ["write 1", f"sync {path.name}"]


# ---- one job at a time ----------------------------------------------------------------------------------------------


def test_a_second_job_is_refused(path: Path):
    first = Journal.open(path)
    with pytest.raises(FileError, match=r"journal\.jsonl: another job writes to it now; wait for it, or choose"):
        Journal.open(path)
    first.append(entry("a"))
    assert len(list(Journal.read(path))) == 1  # which needs no lock
    first.close()
    first.close()
    with Journal.open(path) as second:
        assert list(second.records) == ["a"]


def test_where_files_cannot_be_locked_there_is_a_warning(path: Path, monkeypatch, caplog):
    def fail(number: int) -> None:
        def lock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(journal.fcntl, "flock", lock)

    fail(errno.ENOLCK)
    write(path, entry("a"))
    assert [record.message for record in caplog.records] == [
        f"{path}: cannot be locked there; see that no second job writes to it"
    ]
    fail(errno.EIO)
    with pytest.raises(FileError, match=r"cannot be written \(Input/output error\)"):
        Journal.open(path)


def test_a_journal_that_is_replaced_before_it_is_locked(path: Path, monkeypatch):
    write(path, entry("old"))
    other = path.with_name("other")
    write(other, entry("new"))
    lock = journal.fcntl.flock

    def replace_first(file: int, how: int) -> None:
        if other.exists():
            other.rename(path)
        lock(file, how)

    monkeypatch.setattr(journal.fcntl, "flock", replace_first)
    with Journal.open(path) as opened:
        assert list(opened.records) == ["new"]


# ---- torn and damaged files -----------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped(path: Path, caplog):
    write(path, entry("a"), entry("b"))
    content = path.read_bytes()
    whole = content[: content.rindex(b"\n", 0, -1) + 1]
    torn = [content[:cut] for cut in range(len(whole), len(content))]
    torn += [whole + b"\0" * 100, whole + b"\0" * 100 + b"}\n"]  # a file system that lost the beginning of a write
    for left in torn:
        path.write_bytes(left)
        assert [one["id"] for one in Journal.read(path)] == ["a"]
        assert path.read_bytes() == left
        caplog.clear()
        with caplog.at_level(logging.WARNING), Journal.open(path) as opened:
            assert path.read_bytes() == whole
            assert list(opened.records) == ["a"]
            opened.append(entry("c"))
        assert ["torn" in record.message for record in caplog.records] == [True] * (left != whole)
        assert [one["id"] for one in Journal.read(path)] == ["a", "c"]


def test_a_torn_first_line_begins_anew(path: Path):
    header = b'{"format": "indextts-jax journal 1"}\n'
    for left in [header[:cut] for cut in range(len(header))] + [b"\0" * 20, b"\0" * 4096]:
        path.write_bytes(left)
        assert list(Journal.read(path)) == []
        write(path, entry("a"))
        assert [one["id"] for one in Journal.read(path)] == ["a"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"id": "a"}',
        json.dumps(entry("a") | {"id": 1}).encode(),
    ],
)
def test_damage_elsewhere_is_named(path: Path, line: bytes):
    write(path, entry("a"), entry("b"))
    lines = path.read_bytes().splitlines()
    content = b"\n".join([*lines[:2], line, *lines[2:], b""])
    path.write_bytes(content)
    for use in (Journal.open, lambda path: list(Journal.read(path))):
        with pytest.raises(FileError, match=r"journal\.jsonl line 3: is damaged; remove that line, or move the file"):
            use(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"hello", b"\n", b"a,b\n1,2\n", b'{"id": "a"}\n', b'{"format": "indextts-jax journal 2"}\n']
)
def test_other_files_are_refused_and_left_alone(path: Path, content: bytes):
    path.write_bytes(content)
    for use in (Journal.open, lambda path: list(Journal.read(path))):
        with pytest.raises(FileError, match=r"journal\.jsonl: is no journal, or of another version; move it away"):
            use(path)
    assert path.read_bytes() == content


def test_what_is_no_file_is_named(tmp_path: Path, path: Path):
    with pytest.raises(NotFound, match=r"journal\.jsonl: no such file; check the path"):
        list(Journal.read(path))
    os.mkfifo(path)
    for use in (Journal.open, lambda path: list(Journal.read(path))):
        with pytest.raises(FileError, match=r"journal\.jsonl: is no regular file; (choose another folder|give a file)"):
            use(path)
    with pytest.raises(FileError, match=r"cannot be written \(Is a directory\); choose another folder"):
        Journal.open(tmp_path)
    with pytest.raises(FileError, match=r"cannot be written \(No such file or directory\); choose another folder"):
        Journal.open(tmp_path / "none" / "journal.jsonl")


def test_a_read_only_folder_is_named(path: Path, monkeypatch):
    def closed(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system", "a name that nobody knows")

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(FileError) as caught:
        Journal.open(path)
    assert str(caught.value) == f"{path}: cannot be written (Read-only file system); choose another folder"


# ---- a disk that is full for a while --------------------------------------------------------------------------------


@pytest.fixture
def limit():
    """Sets the largest size of a file: the system then writes a part and refuses the rest, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(path: Path, limit):
    with Journal.open(path) as opened:
        opened.append(entry("a"))
        before = path.read_bytes()
        for room in (0, 1, 50):
            limit(len(before) + room)
            for _ in range(2):
                with pytest.raises(FileError, match=r"journal\.jsonl: cannot be written \(.*\); free some space"):
                    opened.append(entry("b"))
                assert path.read_bytes() == before
                assert list(opened.records) == ["a"]
        limit(None)
        opened.append(entry("c"))
    assert [one["id"] for one in Journal.read(path)] == ["a", "c"]


def test_a_disk_that_does_not_even_shorten_a_file(path: Path, limit, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal.open(path) as opened:
        size = path.stat().st_size
        with monkeypatch.context() as broken:
            broken.setattr(os, "ftruncate", fail)
            limit(size + 50)
            with pytest.raises(FileError):
                opened.append(entry("b" * 100))
            assert path.stat().st_size == size + 50
            limit(None)
            assert list(Journal.read(path)) == []
            with pytest.raises(FileError, match="Input/output error"):
                opened.append(entry("b"))
        opened.append(entry("c"))
    assert [one["id"] for one in Journal.read(path)] == ["c"]


def test_a_disk_that_is_full_at_once(path: Path, limit):
    limit(10)
    with pytest.raises(FileError, match="cannot be written"):
        Journal.open(path)
    limit(None)
    write(path, entry("a"))
    assert len(list(Journal.read(path))) == 1


def test_what_did_not_reach_the_disk_is_taken_back(path: Path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal.open(path) as opened:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            with pytest.raises(FileError, match="Input/output error"):
                opened.append(entry("a" * 100))
        opened.append(entry("b"))
    assert [one["id"] for one in Journal.read(path)] == ["b"]


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_threads_share_a_journal(path: Path):
    with Journal.open(path) as opened:
        threads = [
            threading.Thread(target=lambda t=t: [opened.append(entry(f"{t}-{i}")) for i in range(20)]) for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened.records) == 80
    assert len(list(Journal.read(path))) == 80


def test_a_signal_does_not_tear_a_line(path: Path, monkeypatch):
    sync = os.fsync

    def interrupted(file: int) -> None:
        if armed:
            os.kill(os.getpid(), signal.SIGINT)
        sync(file)

    armed = False
    monkeypatch.setattr(os, "fsync", interrupted)
    with Journal.open(path) as opened:
        armed = True
        with pytest.raises(interrupts.Interrupted), interrupts.handled():
            opened.append(entry("a"))
        armed = False
        assert list(opened.records) == ["a"]
        opened.append(entry("b"))
    assert [one["id"] for one in Journal.read(path)] == ["a", "b"]


CHILD = """
import sys
from pathlib import Path
from indextts_jax.journal import Journal
opened = Journal.open(Path("journal.jsonl"))
first = len(opened.records)
for i in range(first, first + 100_000):
    opened.append({"id": str(i), "key": "k" * 3000, "status": "done", "attempts": 1, "output": None})
    print(i, flush=True)
"""


def test_nothing_is_lost_when_the_process_is_killed(path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    draw, reported = random.Random(0), 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=path.parent, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(draw.uniform(0, 0.05))
        child.kill()  # which is kill -9
        said = (first + child.communicate()[0]).split()
        reported = int(said[-1]) + 1
        found = [one["id"] for one in Journal.read(path)]
        assert found == [str(i) for i in range(len(found))]
        assert len(found) in (reported, reported + 1)
    assert reported > 8


# ---- merging --------------------------------------------------------------------------------------------------------


def test_merge(tmp_path: Path, path: Path):
    shards = [tmp_path / f"{i}.jsonl" for i in range(3)]
    write(shards[0], entry("a", "failed", time=5), entry("a", time=3), entry("b", "failed", time=9), entry("e", time=1))
    write(shards[1], entry("b", time=10), entry("c", time=1, attempts=2), entry("d", time=1, key="1"))
    write(shards[2], entry("c", "failed", time=1, attempts=1), entry("d", time=1, key="2"), entry("a", "late", time=2))
    with shards[2].open("ab") as file:
        file.write(b'{"id": "torn')
    assert journal.merge(shards, path) == 5
    merged = {one["id"]: one for one in Journal.read(path)}
    assert list(merged) == ["a", "b", "e", "c", "d"]
    assert merged["a"] == entry("a", time=3)  # the later line of a journal, whatever its time
    assert merged["b"] == entry("b", time=10)  # the later time
    assert merged["c"] == entry("c", time=1, attempts=2)  # the more attempts
    assert merged["d"] == entry("d", time=1, key="2")  # the later journal
    content = path.read_bytes()
    assert journal.merge([path, *shards], path) == 5
    assert path.read_bytes() == content
    write(path, entry("f"))  # and goes on
    assert len(list(Journal.read(path))) == 6


def test_a_merge_harms_nothing(tmp_path: Path, path: Path):
    write(path, entry("a"))
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("mine\n")
    with pytest.raises(FileError, match=r"foreign\.txt: is no journal"):
        journal.merge([path], foreign)
    with pytest.raises(NotFound, match=r"none\.jsonl: no such file"):
        journal.merge([path, tmp_path / "none.jsonl"], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with Journal.open(path), pytest.raises(FileError, match="another job writes to it now"):
        journal.merge([path], path)
    assert journal.merge([path], tmp_path / "out.jsonl") == 1
    assert files.read(foreign, 99) == b"mine\n"
