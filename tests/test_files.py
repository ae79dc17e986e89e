"""Files and folders appear whole or not at all."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indextts_jax import files
from indextts_jax.errors import NotFound
from indextts_jax.files import FileError, whole


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"^cannot write .*out\.wav: No space left on device; "),
        (KeyboardInterrupt("stop"), r"^stop$"),
    ],
)
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch, step: str, failure: BaseException, message: str):
    path = tmp_path / "out.wav"
    path.write_text("the old file")

    def fail(*_: Any) -> None:
        assert len(os.listdir(tmp_path)) == 2
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((FileError, KeyboardInterrupt), match=message):
        files.write_whole(path, b"new")
    assert os.listdir(tmp_path) == ["out.wav"]
    assert path.read_text() == "the old file"


def test_whole(tmp_path):
    with whole(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "out").exists()
        assert partial.parent == tmp_path  # on the same disk, so that the last step is a rename
    assert (tmp_path / "out" / "x").read_text() == "1"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failure(tmp_path, error):
    def fail(folder: Path) -> None:
        (folder / "folder").mkdir()
        (folder / "folder" / "x").write_text("1")
        raise error

    with pytest.raises(error), whole(tmp_path / "out") as partial:
        fail(partial)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_refused(tmp_path):
    for name, make in (("file", Path.touch), ("folder", Path.mkdir), ("link", lambda path: path.symlink_to("nowhere"))):
        make(tmp_path / name)
        with pytest.raises(FileError, match=rf"{name}: exists already; remove it"), whole(tmp_path / name):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_parents_that_are_missing_or_closed(tmp_path, monkeypatch):
    missing = "none: no such folder, so out cannot be written there"
    with pytest.raises(NotFound, match=missing), whole(tmp_path / "none" / "out"):
        raise AssertionError

    def closed(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "a name that nobody knows")

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(FileError) as caught, whole(tmp_path / "out"):
        raise AssertionError
    assert str(caught.value) == f"{tmp_path}: out cannot be written there (Permission denied); choose another place"


def test_a_full_disk_is_named(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "x").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device", "a name that nobody knows")

    with pytest.raises(FileError) as caught, whole(tmp_path / "out") as partial:
        fill(partial)
    assert str(caught.value) == f"{tmp_path / 'out'}: cannot be written (No space left on device); free some space"
    assert list(tmp_path.iterdir()) == []


def test_only_files_are_replaced():
    with pytest.raises(FileError, match="cannot write /dev/null: it is a device or a pipe; give the name of a file"):
        files.write_whole(Path("/dev/null"), b"1")
    assert Path("/dev/null").is_char_device()


def test_long_names(tmp_path):
    for name in ("n" * 255, "声" * 85):
        files.write_whole(tmp_path / name, b"1")
        with whole(tmp_path / name[:-1]) as partial:
            (partial / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["n" * 255, "n" * 254, "声" * 85, "声" * 84])


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_whole(tmp_path / "file", b"1")
        with whole(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o640, 0o750]


# ---- onto the disk --------------------------------------------------------------------------------------------------


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power cut, a name whose content was not written yet would be an empty file."""
    events: list[str] = []
    sync, replace, rename = os.fsync, os.replace, os.rename

    def synced(file: int) -> None:
        events.append(Path(f"/proc/self/fd/{file}").resolve().name.rpartition(".")[2])
        sync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("named"), replace(*names)))
    monkeypatch.setattr(os, "rename", lambda *names: (events.append("named"), rename(*names)))
    files.write_whole(tmp_path / "file", b"1")
    assert events == ["tmp", "named", tmp_path.name]
    events.clear()
    with whole(tmp_path / "out") as partial:
        (partial / "folder").mkdir()
        for place in ("x", "folder/y"):
            (partial / place).write_text("1")
        assert events == []
    assert sorted(events[:4]) == ["folder", "partial", "x", "y"]
    assert events[4:] == ["named", tmp_path.name]


# ---- what killed processes leave ------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from indextts_jax import files
with files.whole(Path("out")) as partial:
    (partial / "weights").write_text("many")
    temporary = files._Temporary(Path("out.wav"), "tmp")
    temporary.make()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path) -> Iterator[subprocess.Popen]:
    """Another process, in the middle of writing a folder `out` and a file `out.wav`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(os.listdir(tmp_path)) == 2
    yield process
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_swept(tmp_path, writer):
    writer.kill()
    writer.wait()
    assert len(os.listdir(tmp_path)) == 2  # which only the next one can remove
    files.write_whole(tmp_path / "other.wav", b"1")
    assert len(os.listdir(tmp_path)) == 3
    files.write_whole(tmp_path / "out.wav", b"1")
    assert len(os.listdir(tmp_path)) == 3
    with whole(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["other.wav", "out", "out.wav"]


def test_what_is_in_use_is_left_alone(tmp_path, writer):
    before = set(os.listdir(tmp_path))
    message = rf"out: is being written by another process \({writer.pid}\); wait for it or choose another name"
    with pytest.raises(FileError, match=message), whole(tmp_path / "out"):
        raise AssertionError
    files.write_whole(tmp_path / "out.wav", b"1")  # files may be written by several: the last one counts
    assert set(os.listdir(tmp_path)) == before | {"out.wav"}
    writer.communicate("")
    assert writer.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "out.wav"]
    assert (tmp_path / "out" / "weights").read_text() == "many"


def test_the_second_of_two_that_write_at_once_is_refused(tmp_path):
    with pytest.raises(FileError, match="out: exists already; remove it"), whole(tmp_path / "out") as partial:  # noqa: PT012
        (partial / "x").touch()
        partial.rename(tmp_path / "aside")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        (tmp_path / "aside").rename(partial)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_is_not_ours_is_left_alone(tmp_path):
    """Names that are like ours, but not of our making."""
    mine = [".out.1.partial", ".out.12.0123456789abcdef.tmp", ".out.x.0123456789abcdef.partial", ".out.abc", ".other"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.12.0123456789abcdef.partial").touch()  # a file, not a folder
    (tmp_path / ".out.13.0123456789abcdef.partial").symlink_to(tmp_path / ".other")
    (tmp_path / ".out.14.0123456789abcdef.tmp").symlink_to(tmp_path / "nothing")
    before = sorted(os.listdir(tmp_path))
    with whole(tmp_path / "out"):
        pass
    (tmp_path / "out").rmdir()
    files.write_whole(tmp_path / "out", b"1")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out"])


def test_where_files_cannot_be_locked_nothing_is_swept(tmp_path, monkeypatch):
    (tmp_path / ".out.12.0123456789abcdef.partial").mkdir()

    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with whole(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".out.12.0123456789abcdef.partial", "out"]


def test_a_folder_that_was_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    lock, seen = files.fcntl.flock, []

    def sweep_first(file: int, how: int) -> None:
        if not seen:
            seen.append(file)
            [path] = tmp_path.iterdir()
            path.rmdir()
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", sweep_first)
    with whole(tmp_path / "out") as partial:
        (partial / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x"]


# ---- reading --------------------------------------------------------------------------------------------------------


def test_small_files_are_read(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read(tmp_path / "x", 5) == b"12345"
    with pytest.raises(FileError, match=r"x: is larger than 4 bytes, too large for what it should hold"):
        files.read(tmp_path / "x", 4)
    with pytest.raises(NotFound, match=r"none: no such file; check the path"):
        files.read(tmp_path / "none", 4)
    with pytest.raises(FileError, match=r": is no regular file; give a file"):
        files.read(tmp_path, 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileError, match=r": is no regular file; give a file"):
            files.read(path, 4)


def test_closed_files_are_named(tmp_path, monkeypatch):
    def closed(*_: Any) -> int:
        raise PermissionError(13, "Permission denied", "a name that nobody knows")

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(FileError) as caught:
        files.read(tmp_path / "x", 4)
    assert str(caught.value) == f"{tmp_path / 'x'}: cannot be read (Permission denied); check its permissions"


def test_a_file_is_opened_without_waiting(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    with files.open_file(tmp_path / "x") as file:
        assert file.read() == b"12345"
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileError, match=r": is no regular file; give a file"):
            files.open_file(path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- piece by piece -------------------------------------------------------------------------------------------------


def test_a_file_is_written_piece_by_piece(tmp_path):
    path = tmp_path / "out.wav"
    with files.whole_file(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    for error in (
        ValueError("x"),
        KeyboardInterrupt(),
        NotFound("x"),
        OSError(errno.ENOSPC, "No space left on device"),
    ):
        expected = FileError if type(error) is OSError else type(error)
        with pytest.raises(expected), files.whole_file(path) as temporary:  # noqa: PT012
            temporary.write_bytes(b"2")
            raise error
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["out.wav"]
