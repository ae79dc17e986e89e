"""Back to PyTorch: gpt.pth and s2mel.pth in the official layout, of a converted model. PyTorch is not needed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from indextts_jax import checkpoint, interrupts, models
from indextts_jax.convert import conditioner, gpt, rest, s2mel
from indextts_jax.convert.table import is_unused, unfill
from indextts_jax.convert.tensors import CheckpointError, Tensors
from indextts_jax.convert.writer import Stored, Writer
from indextts_jax.files import FileError, make_folder, whole_file

_CONVERTERS: dict[str, ModuleType] = {"conditioner": conditioner, "gpt": gpt, "s2mel": s2mel}


class _File(NamedTuple):
    """A file to write: the components in it, and how it holds their tensors."""

    name: str
    components: tuple[str, ...]
    state: Callable[[dict[str, Any]], dict[str, Any]] = dict


FILES = (_File("gpt.pth", ("conditioner", "gpt")), _File("s2mel.pth", ("s2mel",), s2mel.state))


class Written(NamedTuple):
    """A file that has been written."""

    path: Path
    tensors: int  # in all
    kept: int  # of them as the original has them, out of rest.pth


def export(
    folder: Path, out: Path, force: bool = False, progress: Callable[[Written], None] = lambda written: None
) -> list[Written]:
    """Write gpt.pth and s2mel.pth of a converted model into the folder `out`, which is made if it is not there.

    Weights become float32, whatever they are kept in; the same model gives the same bytes, and converting them again
    gives the same parameters. One component is in memory at a time; a file appears only when all of it is written.
    Raises NotFound, CheckpointError, ModelError, and FileError, also for a file that exists, without `force`.
    """
    cfg, _ = checkpoint.read_description(folder)
    kept = rest.read(folder)
    for file in FILES:
        if os.path.lexists(path := out / file.name) and not force:
            raise FileError(f"{path}: exists already; add --force to replace it, or choose another folder")
    make_folder(out)
    written = []
    for file in FILES:
        written.append(_write(out / file.name, file, folder, cfg, kept))
        progress(written[-1])
    return written


def _write(path: Path, file: _File, folder: Path, cfg: Any, kept: dict[str, Tensors]) -> Written:
    tensors: dict[str, Stored] = {}
    with whole_file(path) as temporary, Writer(temporary) as writer:
        for component in file.components:
            for name, array in _tensors(component, folder, getattr(cfg, component), kept[component]):
                interrupts.check()
                if name in tensors:
                    raise CheckpointError(f"{folder}: holds {name} of {file.name} twice; convert the model again")
                tensors[name] = writer.add(array)
        writer.finish(file.state(tensors))
    return Written(path, len(tensors), sum(len(kept[component]) for component in file.components))


def _tensors(component: str, folder: Path, cfg: Any, kept: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of a component by their names there, those of the network first. Raises as `export`."""
    table = _CONVERTERS[component].table(cfg)
    leaves = flatten_dict(checkpoint.shapes(folder, component, cfg))
    if any(path[-1] == "scale" and (*path[:-1], "weight") in leaves for path in leaves):
        raise checkpoint.ModelError(
            f"{folder / component}: holds weights of 8 bits; export the model that they were rounded from"
        )
    place = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    tree = checkpoint.restore(folder, component, cfg, jnp.dtype(jnp.float32), place)
    yield from unfill(component, table, tree, models.shapes(component, cfg), str(folder / component))
    del tree
    for name, tensor in kept.items():
        if not is_unused(name, (*table.unused, *table.computed)):
            raise CheckpointError(f"{folder / rest.NAME}: {name} does not belong there; convert the model again")
        yield name, tensor.read()
