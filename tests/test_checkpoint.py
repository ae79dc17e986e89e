"""The converted model on disk: what is written comes back, and what cannot be used is named."""

import errno
import functools
import gc
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from indextts_jax import checkpoint, checksums, interrupts, models
from indextts_jax.checkpoint import read_description, restore, save, save_description
from indextts_jax.config import Config, to_dict
from indextts_jax.errors import Error
from indextts_jax.files import FileError
from indextts_jax.model import load
from indextts_jax.models.gpt import GPTConfig

# Of a failed restore, Orbax leaves tasks behind whose exceptions nobody asks for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SMALL = "repcodec"


@pytest.fixture(scope="module", autouse=True)
def _shapes_once() -> Iterator[None]:
    """Shapes are a function of the configuration, and slow to find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "shapes", functools.cache(models.shapes))
        yield
    gc.collect()  # those tasks, before other tests


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """The description and one component of the converted tiny checkpoint, to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(converted / SMALL, folder / SMALL)
    for name in ("model.json", "bpe.model"):
        shutil.copyfile(converted / name, folder / name)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Make the checksums of a folder's own files anew."""
    own = [folder / name for name in ("model.json", "bpe.model")]
    checksums.write(folder, [*own, *folder.glob("*/checksums.json")])


def same(ours: Any, theirs: Any) -> bool:
    """Equal bit for bit, in structure, dtype and values."""
    return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


# ---- what is written comes back -------------------------------------------------------------------------------------


def test_everything_comes_back(tiny, official):
    model = load(official)
    assert model.cfg == tiny.cfg
    assert list(model.params) == list(models.COMPONENTS)
    for component in models.COMPONENTS:
        assert same(model.params[component], tiny.params(component)), component
    assert {type(leaf) for leaf in jax.tree.leaves(model.params)} == {type(jnp.zeros(()))}
    assert model.text is not None
    assert read_description(official) == (tiny.cfg, "tiny")


def test_bfloat16_rounds_once(tiny, official):
    model = load(str(official), dtype=jnp.bfloat16, components=[SMALL, "gpt"])
    assert set(model.params) == {SMALL, "gpt"}
    for component, params in model.params.items():
        assert same(params, models.cast(component, tiny.params(component), jnp.bfloat16))
    assert model.params["gpt"]["decoder"]["layer_0"]["up"]["weight"].dtype == jnp.bfloat16
    assert model.params["gpt"]["decoder"]["layer_0"]["attention_norm"]["scale"].dtype == jnp.bfloat16
    assert model.params[SMALL]["encoder"]["final_norm"]["scale"].dtype == jnp.float32


def test_shapes_are_kept_and_found_anew_where_they_are_not(tiny, copy, monkeypatch):
    """Loading traces no network: the shapes were kept when the model was converted."""
    like, cfg = models.shapes(SMALL, tiny.cfg.repcodec), tiny.cfg.repcodec
    traced = []
    monkeypatch.setattr(models, "shapes", lambda *of: traced.append(of) or like)
    assert checkpoint.shapes(copy, SMALL, cfg) == like
    restore(copy, SMALL, cfg, jnp.dtype("float32"))
    assert not traced
    kept = copy / SMALL / "shapes.json"
    for content in (None, "", "{}", "[]", kept.read_text().replace('"layers": ', '"layers": 1')):
        kept.unlink() if content is None else kept.write_text(content)
        assert checkpoint.shapes(copy, SMALL, cfg) == like
    assert len(traced) == 5


def test_a_disk_that_is_full_for_the_shapes(tiny, tmp_path, monkeypatch):
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    message = f"^{tmp_path}: the {SMALL} component cannot be written there \\(No space left on device\\)$"
    with pytest.raises(FileError, match=message):
        save(tmp_path / ".out.partial", SMALL, tiny.cfg.repcodec, tiny.params(SMALL))


def test_size_on_disk(tiny, converted):
    """Uncompressed: four bytes for each parameter, and a little that does not grow with them."""
    for component in ("gpt", SMALL):
        used = sum(path.stat().st_size for path in (converted / component).rglob("*") if path.is_file())
        parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(tiny.params(component)))
        assert parameters < used < 1.02 * parameters + 60_000


def test_devices_are_chosen_by_the_caller(tiny, converted):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = restore(converted, SMALL, tiny.cfg.repcodec, jnp.dtype("float32"), everywhere)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {everywhere}


def test_both_kinds_of_arrays_can_be_saved(tiny, tmp_path):
    params = tiny.params(SMALL)
    for name, tree in (("jax", params), ("numpy", jax.tree.map(np.asarray, params))):
        save(tmp_path / name, SMALL, tiny.cfg.repcodec, tree)
        assert same(restore(tmp_path / name, SMALL, tiny.cfg.repcodec, jnp.dtype("float32")), params)


# ---- a folder is whole or not there ---------------------------------------------------------------------------------


def test_a_full_disk_is_a_file_error(tmp_path, monkeypatch):
    """TensorStore reports it as a ValueError, with names that mean nothing to a user."""

    def full(*_: Any, **__: Any) -> None:
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a.kernel/0.0" in OCDBT database at local file "/x/": '
            'Failed writing: "/x/d": '
            "Failed to write 3194880 bytes to file 14: No space left on device [os_error_code='28']"
        )

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(FileError) as caught:
        save(tmp_path / ".out.partial", "gpt", GPTConfig(), {"x": np.zeros(3, np.float32)})
    assert str(caught.value) == f"{tmp_path}: the gpt component cannot be written there (No space left on device)"


# ---- folders that cannot be used ------------------------------------------------------------------------------------


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(Error) as caught:
        load(folder, components=[SMALL], **options)
    assert str(caught.value).startswith(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_copy_is_sound(copy):
    assert set(load(copy, components=[SMALL]).params) == {SMALL}


def test_a_missing_component_is_named(copy):
    shutil.rmtree(copy / SMALL)
    assert refused(copy) == f"{copy / SMALL}: the {SMALL} component is missing; convert the model again"


@pytest.mark.parametrize("how", ["deleted", "cut short"])
@pytest.mark.parametrize("which", ["largest", "manifest"])
def test_a_damaged_component_is_named(copy, how, which):
    names = json.loads((copy / SMALL / "checksums.json").read_text())
    files = [copy / SMALL / name for name in names]
    largest = max(files, key=lambda path: path.stat().st_size)
    path = largest if which == "largest" else copy / SMALL / "manifest.ocdbt"
    content = path.read_bytes()
    path.unlink()
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    what = "is missing" if how == "deleted" else f"has {len(content) // 2} bytes, but {len(content)} were written"
    assert refused(copy) == f"{path}: {what}; convert the model again"


def test_a_weight_that_the_disk_changed_is_found(tiny, copy):
    """Orbax would load another one: a voice that is a little wrong, or noise, and no error."""
    path = max((copy / SMALL).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not same(
        checkpoint._read(copy / SMALL, SMALL, tiny.cfg.repcodec, jnp.dtype("float32"), None), tiny.params(SMALL)
    )
    expected = f"{path}: damaged, its content is not what was written; convert the model again"
    assert refused(copy) == expected
    assert checkpoint.verify(copy) == [expected]
    assert set(load(copy, components=[SMALL], check=False).params) == {SMALL}


def test_what_is_read_besides_weights_is_checked(copy):
    for name in ("bpe.model", "model.json"):
        path = copy / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"tiny", b"tinY") if name == "model.json" else content[:-1] + b"?")
        assert refused(copy) == f"{path}: damaged, its content is not what was written; convert the model again"
        path.write_bytes(content)


def test_an_interrupt_is_no_damage(copy, tiny, monkeypatch):
    """It may come out of Orbax as any error."""

    def interrupted(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("a task was cancelled") from None

    monkeypatch.setattr(ocp.Checkpointer, "restore", interrupted)
    monkeypatch.setattr(ocp.Checkpointer, "save", interrupted)
    with pytest.raises(interrupts.Interrupted), interrupts.handled():
        restore(copy, SMALL, tiny.cfg.repcodec, jnp.dtype("float32"))
    with pytest.raises(interrupts.Interrupted), interrupts.handled():
        save(copy, "new", tiny.cfg.repcodec, {})


def rewrite(folder: Path, **entries: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    seal(folder)


@pytest.mark.parametrize("sizes", [{"layers": 4}, {"layers": 2}, {"channels": 48}])
def test_a_component_of_another_configuration_is_named(tiny, copy, sizes):
    cfg = to_dict(tiny.cfg)
    cfg[SMALL] |= sizes
    rewrite(copy, config=cfg)
    assert refused(copy).startswith(f"{copy / SMALL}: damaged or of another configuration (")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("repcodec.kernel", 0, "Config.repcodec.kernel is 0, but must lie between 1 and 1,024"),
        ("gpt.width", 10**9, "Config.gpt.width is 1000000000, but must lie between 1 and 65,536"),
        ("gpt.layers", 10**4000, "Config.gpt.layers is 1000"),
        ("gpt.heads", ["x" * 10_000] * 50, "Config.gpt.heads: is ['xxx"),
        ("campplus.blocks", [1] * 100_000, "Config.campplus.blocks: holds 100000 items"),
    ],
)
def test_sizes_without_bounds_are_refused(tiny, copy, place, value, message):
    cfg = to_dict(tiny.cfg)
    part, field = place.split(".")
    cfg[part][field] = value
    rewrite(copy, config=cfg)
    text = refused(copy)
    assert text.startswith(f"{copy / 'model.json'}: cannot be read ({message}")
    assert len(text) < len(str(copy)) + 200


def test_descriptions_without_bounds_are_refused(copy):
    path = copy / "model.json"
    for content in ("[" * 100_000, '{"format": ' + "9" * 5000 + "}", "9" * 5000):
        path.write_text(content)
        assert refused(copy).startswith(f"{path}: cannot be read (")
    path.write_text(json.dumps({"format": "x" * 100_000}))
    assert len(refused(copy)) < len(str(copy)) + 200
    path.write_text(" " * 1_000_001)
    assert refused(copy).startswith(f"{path}: is larger than 1,000,000 bytes, too large for what it should hold")


def test_too_little_memory_is_no_damage(copy, tiny, monkeypatch):
    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")):

        def restore_nothing(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(ocp.Checkpointer, "restore", restore_nothing)
        with pytest.raises(type(error)):
            restore(copy, SMALL, tiny.cfg.repcodec, jnp.dtype("float32"))


def test_descriptions_that_cannot_be_read(copy):
    path = copy / "model.json"
    for content in ("", "{", "[]", "{}", "5", '{"format": 3}', '{"format": 3, "config": {}, "source": ""}', "\xff"):
        path.write_text(content, encoding="latin-1")
        assert refused(copy).startswith(f"{path}: cannot be read (")
    rewrite_to = {"format": 3, "source": "x", "config": to_dict(Config())}
    rewrite_to["config"]["gpt"]["heads"] = "many"
    path.write_text(json.dumps(rewrite_to))
    assert "Config.gpt.heads: is 'many'" in refused(copy)


@pytest.mark.parametrize("version", [0, 2, "3", None])
def test_other_versions_are_named(copy, version):
    rewrite(copy, format=version)
    expected = f"format {version!r}, but this version reads format 3; convert the model again"
    assert refused(copy) == f"{copy / 'model.json'}: {expected}"


def test_folders_that_are_something_else(tiny, tmp_path):
    assert refused(tmp_path / "none").startswith(f"{tmp_path / 'none' / 'model.json'}: no such file; a converted model")
    assert refused(tiny.folder) == (
        f"{tiny.folder / 'model.json'}: no such file; this is an unconverted model: run `indextts-jax convert` on it"
    )


def test_description(tmp_path):
    save_description(tmp_path, Config(), source="IndexTTS-2")
    assert read_description(tmp_path) == (Config(), "IndexTTS-2")
