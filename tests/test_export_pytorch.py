"""Back to PyTorch: what is exported is what was converted, bit for bit, in the layout of the official files."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from debug.golden import FIXTURES
from indextts_jax import checkpoint, convert, models
from indextts_jax.cli import main
from indextts_jax.config import Config
from indextts_jax.convert import conditioner, gpt, rest, s2mel
from indextts_jax.convert import export as exporting
from indextts_jax.convert.export import export
from indextts_jax.convert.table import fill, is_unused, unfill
from indextts_jax.convert.tensors import CheckpointError, Tensor, flatten, read_pth
from indextts_jax.errors import Error, NotFound
from indextts_jax.files import FileError
from tests.files import linked, write_pth

COMPONENTS = ("conditioner", "gpt", "s2mel")
FILES = ("gpt.pth", "s2mel.pth")
CONVERTERS: dict[str, Any] = {"conditioner": conditioner, "gpt": gpt, "s2mel": s2mel}

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files of the tiny checkpoint."""
    out = tmp_path_factory.mktemp("exported") / "pytorch"
    export(converted, out)
    return out


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    """The converted model, to be damaged."""
    return shutil.copytree(converted, tmp_path / "model")


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of gpt.pth or s2mel.pth by its full name."""
    state = read_pth(path)
    parts = {f"net.{part}.": part_of for part, part_of in state["net"].items()} if "net" in state else {"": state}
    return {name: t for prefix, part in parts.items() for name, t in flatten(part, path, prefix).items()}


def bits(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, str(a.dtype), np.asarray(a).tobytes()), tree)


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_converting_what_was_exported_gives_every_leaf_bit_for_bit(tiny, exported, tmp_path, component):
    folder = linked(tiny.folder, tmp_path / "model")
    for name in FILES:
        (folder / name).unlink()
        shutil.copyfile(exported / name, folder / name)
    tree, report = convert.read(component, folder, strict=True)
    assert bits(tree) == bits(tiny.params(component))
    original = convert.read(component, tiny.folder, strict=True)[1]
    assert report == original  # all that the original holds is there again, used or not


@pytest.mark.parametrize("name", ["bigvgan", "prototypes", "repcodec", "w2vbert"])
def test_other_components_go_there_and_back(tiny, name):
    """Of which `debug/official_folder.py` makes files; CAMPPlus, whose norms are folded, has no way back."""
    cfg, tree = getattr(tiny.cfg, name), tiny.params(name)
    table, like = importlib.import_module(f"indextts_jax.convert.{name}").table(cfg), models.shapes(name, cfg)
    found = dict(unfill(name, table, jax.device_get(tree), like, "model"))
    held = {n: Tensor(Path("file"), a.shape, a.dtype, lambda a=a: a) for n, a in found.items()}
    again, report = fill(name, table, held, like, strict=True)
    assert report.tensors == len(found)
    assert bits(again) == bits(tree)


@pytest.mark.parametrize("name", FILES)
def test_the_files_hold_what_the_official_ones_hold(tiny, exported, name):
    """Names, nesting, shapes, dtypes, values; but weight_v comes back as the weight itself, of another length."""
    theirs, ours = tensors(tiny.folder / name), tensors(exported / name)
    assert ours.keys() == theirs.keys()
    for full, tensor in theirs.items():
        assert (ours[full].shape, ours[full].dtype) == (tensor.shape, tensor.dtype), full
        found, expected = ours[full].read(), tensor.read()
        if full.endswith("weight_v") and "x_embedder" not in full:  # which is not used, and stays as it is
            axes = tuple(range(1, found.ndim))
            gain = tensors(tiny.folder / name)[full.removesuffix("v") + "g"].read()
            norm = np.sqrt((expected.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
            np.testing.assert_array_equal(found, (expected * (gain / norm)).astype(np.float32), full)
        else:
            assert found.tobytes() == expected.tobytes(), full


def test_the_same_model_gives_the_same_bytes(converted, exported, tmp_path):
    found = export(converted, tmp_path / "other")
    assert [written.path.name for written in found] == list(FILES)
    assert [(written.tensors, written.kept) for written in found] == [(227, 4), (150, 16)]
    for name in FILES:
        assert (tmp_path / "other" / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize("component", COMPONENTS)
def test_names_and_shapes_at_official_size(component):
    inventory = json.loads((FIXTURES / "inventory_full.json").read_text())
    file = "s2mel" if component == "s2mel" else "gpt"
    theirs = {name.removeprefix("net/").replace("/", "."): tuple(shape) for name, (shape, _) in inventory[file].items()}
    if file == "gpt":
        theirs = {n: shape for n, shape in theirs.items() if conditioner.belongs(n) == (component == "conditioner")}
    cfg = getattr(Config(), component)
    table, like = CONVERTERS[component].table(cfg), models.shapes(component, cfg)
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), like)  # takes no memory
    found = {name: array.shape for name, array in unfill(component, table, tree, like, "x")}
    assert found == {name: theirs[name] for name in found}
    assert all(is_unused(name, (*table.unused, *table.computed)) for name in theirs.keys() - found.keys())


def test_what_speaking_does_not_use_is_kept(tiny, converted):
    found = rest.read(converted)
    assert found.keys() == set(COMPONENTS)
    assert found["gpt"].keys() == {"text_head.weight", "text_head.bias"}
    theirs = tensors(tiny.folder / "gpt.pth")
    for name, tensor in found["gpt"].items():
        assert tensor.read().tobytes() == theirs[name].read().tobytes()


_LIST = """
import hashlib, json, sys, torch
def listed(part, name=""):
    if isinstance(part, dict):
        return {key: value for n, inner in part.items() for key, value in listed(inner, f"{name}{n}.").items()}
    return {name[:-1]: [list(part.shape), str(part.dtype), hashlib.sha256(part.numpy().tobytes()).hexdigest()]}
print(json.dumps([listed(torch.load(path, weights_only=True)) for path in sys.argv[1:]]))
"""


@pytest.mark.reference
def test_pytorch_reads_what_our_reader_reads(exported):
    if not (python := os.environ.get("INDEXTTS_REFERENCE_PYTHON")):
        pytest.skip("INDEXTTS_REFERENCE_PYTHON (an interpreter that has PyTorch) is not set")
    paths = [exported / name for name in FILES]
    done = subprocess.run([python, "-c", _LIST, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for path, found in zip(paths, json.loads(done.stdout), strict=True):
        assert found == {
            name: [list(tensor.shape), f"torch.{tensor.dtype}", hashlib.sha256(tensor.read().tobytes()).hexdigest()]
            for name, tensor in tensors(path).items()
        }


# ---- other weights --------------------------------------------------------------------------------------------------


def replace(folder: Path, component: str, cfg: Any, tree: Any) -> None:
    shutil.rmtree(folder / component)
    checkpoint.save(folder, component, getattr(cfg, component), tree)


def test_bfloat16_is_written_as_float32(tiny, copy, tmp_path):
    narrow = models.cast("s2mel", tiny.params("s2mel"), "bfloat16")
    replace(copy, "s2mel", tiny.cfg, narrow)
    export(copy, tmp_path / "out")
    found = tensors(tmp_path / "out" / "s2mel.pth")["net.gpt_layer.0.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.read().T, narrow["latent"]["layer_0"]["kernel"].astype(np.float32))


def test_int8_is_refused(tiny, copy, tmp_path):
    replace(copy, "gpt", tiny.cfg, models.cast("gpt", tiny.params("gpt"), "int8"))
    text = refused(copy, tmp_path / "out", checkpoint.ModelError)
    assert text == f"{copy}/gpt: holds weights of 8 bits; export the model that they were rounded from"
    assert list((tmp_path / "out").iterdir()) == []


# ---- misuse ---------------------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path, kind: type[Exception] = Error, **options: bool) -> str:
    with pytest.raises(kind) as caught:
        export(folder, out, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_nothing_is_overwritten_without_force(converted, exported, tmp_path):
    (tmp_path / "s2mel.pth").write_text("mine")
    text = refused(converted, tmp_path, FileError)
    assert text == f"{tmp_path}/s2mel.pth: exists already; add --force to replace it, or choose another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["s2mel.pth"]
    assert (tmp_path / "s2mel.pth").read_text() == "mine"
    export(converted, tmp_path, force=True)
    assert (tmp_path / "s2mel.pth").read_bytes() == (exported / "s2mel.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)


def test_places_that_are_none(tiny, converted, tmp_path):
    assert refused(converted, tmp_path / "a" / "b", NotFound).startswith(f"{tmp_path}/a: no such folder, so b cannot ")
    (tmp_path / "file").write_text("")
    assert refused(converted, tmp_path / "file").startswith(f"{tmp_path}/file: cannot be made (File exists)")
    assert "run `indextts-jax convert` on it" in refused(tiny.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_rest(copy, tmp_path):
    (copy / rest.NAME).unlink()
    text = refused(copy, tmp_path / "out", NotFound)
    assert text.startswith(f"{copy}/rest.pth: no such file, this model was converted before it was kept; convert ")


def test_a_damaged_rest(copy, tmp_path):
    content = bytearray((copy / rest.NAME).read_bytes())
    content[200] ^= 1
    (copy / rest.NAME).write_bytes(content)
    assert f"{copy}/rest.pth: damaged" in refused(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"gpt": {}}, "rest.pth: holds something else"),
        ([], "rest.pth: holds something else"),
        ({"conditioner": {}, "gpt": {"gpt.h.0.ln_1.bias": 0}, "s2mel": {}}, "gpt.h.0.ln_1.bias does not belong there"),
        ({"conditioner": {"more": 0}, "gpt": {}, "s2mel": {}}, "more does not belong there"),
    ],
)
def test_a_rest_of_something_else(copy, tmp_path, content, text):
    fill = np.zeros(3, np.float32)
    if isinstance(content, dict):
        content = {part: dict.fromkeys(names, fill) for part, names in content.items()}
    write_pth(copy / rest.NAME, content)
    checkpoint.save_description(copy, checkpoint.read_description(copy)[0], "x")
    assert text in refused(copy, tmp_path / "out")


def test_a_damaged_component_leaves_nothing_behind(copy, tmp_path):
    largest = max((copy / "gpt").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert str(largest) in refused(copy, tmp_path / "out", checkpoint.ModelError)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_what_was_there(converted, exported, tmp_path, monkeypatch):
    def full(self: Any, state: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "gpt.pth").write_text("mine")
    monkeypatch.setattr(exporting.Writer, "finish", full)
    assert refused(converted, tmp_path, FileError, force=True).startswith(f"cannot write {tmp_path}/gpt.pth: No space")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("gpt.pth", "mine")]


def test_a_name_that_is_there_twice_is_refused(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "is_unused", lambda name, patterns: True)
    kept = rest.read(converted)
    monkeypatch.setattr(rest, "read", lambda folder: kept | {"gpt": {"gpt.ln_f.bias": kept["gpt"]["text_head.bias"]}})
    with pytest.raises(CheckpointError, match=r"holds gpt\.ln_f\.bias of gpt\.pth twice"):
        export(converted, tmp_path / "out")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command(converted, exported, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(converted), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(out / name) for name in FILES]
    assert lines[0].endswith(": 227 tensors (4 as they came), 5.9 MB")
    assert main(["export", str(converted), str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"indextts-jax: error: {out}/gpt.pth: exists already; add --force")
    assert main(["export", str(converted), str(out), "--force", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert (out / "gpt.pth").read_bytes() == (exported / "gpt.pth").read_bytes()
