"""Whatever the disk changes in a folder is found, and named."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from debug import attack_damage
from indextts_jax import checkpoint, checksums


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "part").mkdir()
    for name in ("a", "part/b"):
        (tmp_path / name).write_text(f"the content of {name}")
    (tmp_path / "empty").touch()
    checksums.write(tmp_path, [tmp_path / name for name in ("a", "part/b", "empty")])
    return tmp_path


def test_a_sound_folder(folder):
    assert checksums.problems(folder) == []
    assert checksums.problems(folder, ["a"]) == []
    kept = json.loads((folder / "checksums.json").read_text())
    assert kept == {"a": [16, 3171168541], "empty": [0, 0], "part/b": [21, 252796034]}


def test_every_damage_is_a_line(folder):
    (folder / "part" / "b").write_text("the content of part/c")
    (folder / "empty").write_text("no more")
    (folder / "a").unlink()
    (folder / "more").touch()  # which nobody reads
    assert checksums.problems(folder) == [
        f"{folder / 'a'}: is missing; convert the model again",
        f"{folder / 'empty'}: has 7 bytes, but 0 were written; convert the model again",
        f"{folder / 'part/b'}: damaged, its content is not what was written; convert the model again",
    ]
    assert len(checksums.problems(folder, ["a"])) == 1
    assert checksums.problems(folder, ["more"]) == [f"{folder / 'more'}: has no checksum; convert the model again"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"5", b"\xff", b"{}", b'{"a": 1}', b'{"a": [1]}', b'{"a": ["x", 1]}', b'{"a": null}',
        b'{\n"/etc/passwd": [\n1,\n1\n]\n}\n', b'{\n"../a": [\n16,\n1\n]\n}\n', b"[" * 100_000,
    ],
)  # fmt: skip
def test_checksums_that_are_none(folder, content):
    path = folder / "checksums.json"
    path.write_bytes(content)
    assert checksums.problems(folder) == [f"{path}: damaged; convert the model again"]
    path.unlink()
    assert checksums.problems(folder) == [f"{path}: no such file; convert the model again"]
    os.mkfifo(path)
    assert checksums.problems(folder) == [f"{path}: is no regular file; convert the model again"]


def test_what_would_never_end_is_not_read(folder):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / "a").unlink()
        make(folder / "a")
        assert checksums.problems(folder) == [f"{folder / 'a'}: is missing; convert the model again"]


def test_a_closed_file_is_no_damage(folder, monkeypatch):
    """By a patch: nothing is closed to the superuser."""

    def closed(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        expected = f"{folder / 'a'}: cannot be read (Permission denied); check its permissions"
        assert checksums.problems(folder, ["a"]) == [expected]
    monkeypatch.setattr(os, "open", closed)
    expected = f"{folder / 'checksums.json'}: cannot be read (Permission denied); check its permissions"
    assert checksums.problems(folder) == [expected]


def test_every_byte_of_a_model_counts(official, tmp_path):
    """debug/attack_damage.py tries more of them."""
    model = tmp_path / "model"
    shutil.copytree(official, model)
    assert checkpoint.verify(model) == []
    assert attack_damage.missed(model, times=60) == []
    assert checkpoint.verify(model) == []


def test_every_file_of_a_model_counts(official, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(official, model)
    for path in [path for path in model.rglob("*") if path.is_file()]:
        path.rename(tmp_path / "aside")
        assert any(line.startswith(f"{path}: ") for line in checkpoint.verify(model)), path
        (tmp_path / "aside").rename(path)
    shutil.rmtree(model / "gpt")
    assert checkpoint.verify(model) == [f"{model / 'gpt/checksums.json'}: is missing; convert the model again"]
