"""YAML files of any content: read, or refused in one short line before anything is built."""

import contextlib
import datetime
import time
from pathlib import Path

import pytest
import yaml

from indextts_jax import yaml_file
from indextts_jax.yaml_file import YamlError, read


@pytest.fixture(params=["in C", "in Python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loaders of PyYAML: the one in C may be missing."""
    if request.param == "in Python":
        monkeypatch.setattr(yaml_file, "LOADER", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("this PyYAML has no loader in C")


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "file.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", None),
        ("# nothing yet\n", None),
        ("a: 1\nb: [1.5, yes, ~, 'x']\n", {"a": 1, "b": [1.5, True, None, "x"]}),
        ("\ufeffa: 读\r\n", {"a": "读"}),
        ("a: |\n  " + "long text " * 1000, {"a": "long text " * 999 + "long text "}),
        (f"a: '{'9' * 5000}'", {"a": "9" * 5000}),
        (f"a: {'9' * 60}", {"a": int("9" * 60)}),
        (f"a: {'b' * 5000}", {"a": "b" * 5000}),
        ("date: 2024-02-29", {"date": datetime.date(2024, 2, 29)}),
        ("a: '*b'\nc: '&d'\ne: '!!f'", {"a": "*b", "c": "&d", "e": "!!f"}),
    ],
)
def test_files_are_read(write, content: str, expected: object) -> None:
    assert read(write(content)) == expected


def test_as_deep_as_allowed(write) -> None:
    assert read(write("[" * 32 + "]" * 32))


BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "line 1: anchors"),
        ("a: *b", "line 1: anchors|not valid YAML"),
        ("<<: {a: 1}\nb: &c 2", "line 2: anchors"),
        ("[" * 33 + "]" * 33, "nested more than 32 deep"),
        ("[" * 5000, "nested more than 32 deep"),
        ("- " * 5000, "nested more than 32 deep"),
        ("{a: " * 5000, "nested more than 32 deep"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "nested more than 32 deep"),
        ("? " * 5000, "nested more than 32 deep"),
        (f"a: {'9' * 5000}", "line 1: a number of 5000 characters"),
        (f"a: -0x{'f' * 5000}", "a number of 5003 characters"),
        (f"a: 1{':59' * 2000}", "a number of 6001 characters"),
        (f"a: .{'9' * 5000}", "a number of 5001 characters"),
        ("a: !!python/object/apply:os.system [ls]", "types"),
        ("a: !!timestamp x", "types"),
        ("a: !!int x", "types"),
        ("a: !!binary x", "types"),
        ("!" + "x" * 5000 + " a", "types"),
        ("a: 2024-13-45", "not valid YAML in UTF-8: month must be in 1..12"),
        ("a: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("'a", "not valid YAML"),
        ("a\n---\nb", "not valid YAML"),
        ("%", "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("a: \x80", "not valid YAML"),
        (b"a: caf\xe9", "not valid YAML in UTF-8"),
        ("a: 1\n".encode("utf-16"), "not valid YAML in UTF-8"),
        ("x" * 1_000_001, "larger than 1 MB"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100, "not valid YAML in UTF-8"),
    ],
)
def test_other_files_are_refused(write, content: str | bytes, message: str) -> None:
    path = write(content)
    start = time.perf_counter()
    with pytest.raises(YamlError, match=message) as caught:
        read(path)
    assert time.perf_counter() - start < 5
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 200 + len(str(path))


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    "content", ["[" * 999_999, "a: 1\n" * 9000, "- a\n" * 9000, "x" * 900_000, "a" * 900_000 + ": 1"], ids=range(5)
)
def test_large_files_take_seconds(write, content: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(YamlError):
        read(write(content))
    assert time.perf_counter() - start < 10


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # a sparse file
    with pytest.raises(YamlError, match=r"huge\.yaml: larger than 1 MB"):
        read(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.yaml")
