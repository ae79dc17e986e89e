"""debug/dump_python.py: what it refuses, how it writes; marked `reference`: that it remakes a golden file."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from debug import dump_python
from debug.golden import FIXTURES, TOLERANCE, absolute, golden, relative

TOOL = Path(dump_python.__file__)
VOICE = FIXTURES / "audio" / "voice_24k.wav"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that the hooks depend on, of no known version."""
    for name in dump_python.FILES:
        path = tmp_path / "checkout" / "indextts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"first\nsecond\n")
    return tmp_path / "checkout"


@pytest.fixture
def given(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """Options that are refused for the version of the checkout alone."""
    return {
        "--reference": str(checkout),
        "--model-dir": str(FIXTURES / "tiny"),
        "--text": "Hello.",
        "--speaker": str(VOICE),
        "--max-codes": "40",
        "--output": str(tmp_path / "out" / "golden.npz"),
    }


@pytest.fixture(autouse=True)
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def listed(given: dict[str, str]) -> list[str]:
    return [part for option in given.items() for part in option if part]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool in an interpreter in which neither torch, transformers nor jax can be imported."""
    hidden = "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'jax', 'indextts_jax']));"
    code = f"{hidden} sys.argv[0] = {str(TOOL)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_help_needs_no_torch() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert {"--reference", "--layers", "--emotion-text", "--noise-seed", "--npy"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "unknown version"),
        ({"--layers": "1,x"}, "'1,x' is neither all, none nor numbers"),
        ({"--layers": "-1"}, "--layers"),
        ({"--text": " "}, "--text is empty"),
        ({"--speaker": "nobody.wav"}, "nobody.wav is not a file"),
        ({"--emotion-audio": "nothing.wav"}, "nothing.wav is not a file"),
        ({"--emotion-vector": "0.5,0.5"}, "eight weights"),
        ({"--emotion-vector": "1,0,0,0,0,0,0,0", "--emotion-text": "joy"}, "not allowed with"),
        ({"--beams": "0"}, "0 is not at least 1"),
        ({"--max-codes": "1500"}, "--max-codes 1500: this model has positions for 400"),
        ({"--seed": "-1"}, "--noise-seed -1 is not"),
        ({"--model-dir": "nowhere"}, "config.yaml is missing"),
        ({"--reference": "nowhere"}, "infer_v2.py is missing; --reference is a checkout"),
        ({"--output": str(VOICE)}, "exists; remove it"),
    ],
)
def test_refuses(given: dict[str, str], out: Path, change: dict[str, str], message: str) -> None:
    done = run(*listed(given | change))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("dump_python.py: error: ")
    assert done.stderr.count("\n") == 1
    assert not list(out.iterdir())


def refusal(given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    assert dump_python.main(listed(given)) == 2
    return capsys.readouterr().err


def test_unknown_version_says_what_was_found_and_what_is_known(
    given: dict[str, str], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(given, capsys)
    assert dump_python.digest(checkout)[:12] in said
    assert all(sha[:12] in said and name in said for sha, name in dump_python.KNOWN.items())
    assert "--force" in said


@pytest.mark.parametrize("force", [False, True])
def test_refuses_without_a_module(
    given: dict[str, str],
    checkout: Path,
    force: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    if not force:
        monkeypatch.setitem(dump_python.KNOWN, dump_python.digest(checkout), "ours")
    assert "no Python module torch" in refusal(given | ({"--force": ""} if force else {}), capsys)


def test_refuses_another_transformers(
    given: dict[str, str], checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(dump_python.KNOWN, dump_python.digest(checkout), "ours")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.57.1")
    assert "transformers 4.57.1 is unknown; known: 4.52.x" in refusal(given, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2.5", "version 2.5 is not supported"),
        ("gpt: {}", "KeyError"),
        ("just text", "is not a configuration"),
    ],
)
def test_refuses_another_model(
    given: dict[str, str], tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (FIXTURES / "tiny" / "config.yaml").read_text("utf-8")
    text = config.replace("version: 2.0", text) if text.startswith("version") else text
    (tmp_path / "config.yaml").write_text(text, "utf-8")
    assert message in refusal(given | {"--model-dir": str(tmp_path)}, capsys)


def test_refuses_a_model_with_a_file_missing(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((FIXTURES / "tiny" / "config.yaml").read_text("utf-8"), "utf-8")
    assert "gpt.pth is missing" in refusal(given | {"--model-dir": str(tmp_path)}, capsys)


def test_digest_sees_every_file_and_no_line_endings(checkout: Path) -> None:
    digests = {dump_python.digest(checkout)}
    for name in dump_python.FILES:
        path = checkout / "indextts" / name
        path.write_bytes(b"first\r\nsecond\r\n")
        assert dump_python.digest(checkout) in digests
        path.write_bytes(b"first\nother\n")
        digests.add(dump_python.digest(checkout))
        path.write_bytes(b"first\nsecond\n")
    assert len(digests) == 1 + len(dump_python.FILES)


@pytest.mark.parametrize("npy", [False, True])
def test_writes_once_complete(given: dict[str, str], out: Path, npy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"seg0.gpt.codes": np.arange(3), "text.raw": np.array("好")}
    monkeypatch.setattr(dump_python, "_check", lambda options: {})

    def dump(options: object, config: object) -> dict[str, np.ndarray]:
        assert not (out / "golden.npz").exists()
        return arrays

    monkeypatch.setattr(dump_python, "dump", dump)
    assert dump_python.main(listed(given | ({"--npy": ""} if npy else {}))) == 0
    assert [path.name for path in out.iterdir()] == ["golden.npz"]
    if npy:
        found = {path.stem: np.load(path) for path in (out / "golden.npz").iterdir()}
    else:
        with np.load(out / "golden.npz") as file:
            found = dict(file)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[key], arrays[key]) for key in arrays)


@pytest.mark.parametrize("npy", [False, True])
def test_leaves_nothing_when_interrupted(
    given: dict[str, str], out: Path, npy: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dump(options: object, config: object) -> dict[str, np.ndarray]:
        assert len(list(out.iterdir())) == 1  # what cannot be written is known before
        raise KeyboardInterrupt

    monkeypatch.setattr(dump_python, "_check", lambda options: {})
    monkeypatch.setattr(dump_python, "dump", dump)
    assert dump_python.main(listed(given | ({"--npy": ""} if npy else {}))) == 130
    assert not list(out.iterdir())
    assert "nothing was written" in capsys.readouterr().err


def test_refuses_an_output_that_cannot_be_written(
    given: dict[str, str], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dump_python, "_check", lambda options: {})
    assert "cannot be written" in refusal(given | {"--output": str(out / "no" / "golden.npz")}, capsys)


def test_recorder_speaks_when_its_key_is_complete() -> None:
    recorder = dump_python.Recorder(None)
    value = np.zeros(2)
    recorder.put("seg{segment}.dit{step}.out", value)
    recorder.now.update(segment=1, step=None)
    recorder.put("seg{segment}.dit{step}.out", value)
    assert not recorder.arrays
    recorder.now["step"] = 0
    recorder.put("seg{segment}.dit{step}.out", value)
    value += 1  # as the reference changes some in place
    assert recorder.arrays["seg1.dit0.out"].tolist() == [0, 0]
    with pytest.raises(RuntimeError, match=r"seg1\.dit0\.out was computed twice"):
        recorder.put("seg{segment}.dit{step}.out", value)
    recorder.put("segments", [["好"], []])
    assert json.loads(str(recorder.arrays["segments"])) == [["好"], []]


@pytest.mark.parametrize(
    ("argument", "chosen"), [("all", [0, 1, 2, 3]), ("none", []), ("2,0,9", [0, 2]), (None, [0, 2, 3])]
)
def test_layers(argument: str | None, chosen: list[int], given: dict[str, str]) -> None:
    options = dump_python._parse(listed(given | ({"--layers": argument} if argument else {})))
    assert dump_python.Recorder(options.layers).chosen(4) == chosen


def test_official_sizes_replace_nothing() -> None:
    inventory = json.loads((FIXTURES / "inventory_full.json").read_text("utf-8"))
    states = {
        name: {
            key.removeprefix("net/").replace("/", "."): np.empty(shape, "V0")
            for key, (shape, _) in inventory[name].items()
        }
        for name in ("gpt", "s2mel", "campplus")
    }
    names = {name: object() for name in ("UnifiedVoice", "MyModel", "CAMPPlus")}
    reference = SimpleNamespace(**names)
    assert dump_python.fit_sizes(SimpleNamespace(nn=SimpleNamespace(Linear=None)), reference, states) == 1024
    assert vars(reference) == names


@pytest.mark.reference
def test_remakes_a_golden_file(tmp_path: Path, given: dict[str, str]) -> None:
    reference, python = (os.environ.get(f"INDEXTTS_REFERENCE{name}") for name in ("", "_PYTHON"))
    if not reference or not python:
        pytest.skip("INDEXTTS_REFERENCE (a checkout) and INDEXTTS_REFERENCE_PYTHON (its interpreter) are not set")
    expected = golden("en_greedy")
    meta = json.loads(str(expected.pop("meta")))
    given |= {
        "--reference": reference,
        "--text": meta["text"],
        "--greedy": "",
        "--max-codes": str(meta["max_mel"]),
        "--noise-seed": str(meta["noise_seed"]),
        "--layers": "all",
    }
    done = subprocess.run([python, str(TOOL), *listed(given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(given["--output"]) as file:
        found = dict(file)

    made = json.loads(str(found["meta"]))
    assert {key: made[key] for key in meta if key not in ("torch", "model")} == {
        key: value for key, value in meta.items() if key not in ("torch", "model")
    }
    steps = expected.pop("seg0.cfm.trajectory_steps", None)  # the fixture holds a few steps
    if steps is not None:
        found["seg0.cfm.trajectory"] = found["seg0.cfm.trajectory"][steps]
    for key, value in expected.items():
        ours = found[key]
        if key.startswith("seg0.dit0."):  # and of the estimator one row
            ours = ours[: len(value)]
        assert ours.dtype.kind == value.dtype.kind, key
        assert ours.shape == value.shape, key
        if key == "wav_int16":
            assert absolute(ours, value) <= TOLERANCE["samples"]
        elif value.dtype.kind == "f":  # processors round differently; most of it is where CAMPPlus's features do
            assert relative(ours, value) <= TOLERANCE["style of a recording"], key
        else:
            assert np.array_equal(ours, value), key
    assert np.array_equal(found["seg0.cfm.noise"], expected["seg0.cfm.noise"])
