"""Files and folders appear whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from indextts_jax import files
from indextts_jax.files import whole


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
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

    def fail(self, *args):
        if step == "write_bytes":  # half a file is on the disk
            self.touch()
        raise failure

    monkeypatch.setattr(Path if step == "write_bytes" else os, step, fail)
    with pytest.raises((files.FileError, KeyboardInterrupt), match=message):
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
        with pytest.raises(files.FileError, match=rf"{name}: exists already; remove it"), whole(tmp_path / name):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_parents_that_are_missing_or_closed(tmp_path, monkeypatch):
    missing = "none: no such folder, so out cannot be written there"
    with pytest.raises(FileNotFoundError, match=missing), whole(tmp_path / "none" / "out"):
        raise AssertionError

    def closed(**_: Any) -> str:
        raise PermissionError(13, "Permission denied", "a name that nobody knows")

    monkeypatch.setattr(files.tempfile, "mkdtemp", closed)
    with pytest.raises(files.FileError) as caught, whole(tmp_path / "out"):
        raise AssertionError
    assert str(caught.value) == f"{tmp_path}: out cannot be written there (Permission denied)"
