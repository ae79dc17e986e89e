"""Low-rank adapters (LoRA, arXiv:2106.09685): a tree of {"a", "b"}, added to the weights before they are used.

    adapters = init(params, TARGETS["gpt"], rank=8, key=key)
    adapted = add(params, adapters, scale=2.0)

No network knows of them: a weight [M, N] with a [R, N] and b [M, R] becomes weight + scale · b a. `add` is a pure
function, so that training takes gradients through it and speaking calls it once.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from indextts_jax import files
from indextts_jax.errors import Error, NotFound, shown
from indextts_jax.models import Params

# What is adapted, by the paths of weights: the attention and the feed-forward layers of GPT and DiT.
TARGETS = {
    "gpt": (r"gpt/decoder/layer_\d+/(qkv|out|up|down)/weight",),
    "flow": (r"s2mel/estimator/transformer/layer_\d+/(attention/(qkv|out)|feed_forward/(gated|down))/kernel",),
}
_FORMAT = "indextts-jax lora 1"


class Lora(NamedTuple):
    """Adapters and how strongly they count: what a file holds."""

    adapters: Any  # component -> ... -> {"a": [R, N], "b": [M, R]} float32
    scale: float  # alpha / R


def init(params: Params, targets: Iterable[str], rank: int, key: Array) -> Any:
    """Adapters that change nothing yet, float32: a drawn, b zero.

    params: component -> tree, arrays or their shapes. targets: patterns of whole paths such as
    "gpt/decoder/layer_0/qkv/weight". Raises Error where they match nothing, or what is no matrix.
    """
    patterns = [re.compile(target) for target in targets]
    found: dict[tuple[str, ...], Array] = {}
    leaves = _flat(params)
    chosen = [path for path in leaves if any(p.fullmatch("/".join(path)) for p in patterns)]
    if not chosen:
        raise Error(f"no weight of the model is named {' or '.join(p.pattern for p in patterns)}")
    for path, one in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        shape = leaves[path].shape
        if len(shape) != 2:
            raise Error(f"{'/'.join(path)} is no matrix ({shape}), so that it has no adapter of low rank")
        found[*path, "a"] = jax.random.normal(one, (rank, shape[1])) * shape[1] ** -0.5
        found[*path, "b"] = jnp.zeros((shape[0], rank))
    return unflatten_dict(found)


def add(params: Params, adapters: Any, scale: Any) -> Params:
    """params with adapters added, each weight in its own dtype: component -> tree. The sum is made in float32.

    Raises Error for adapters of another model, and for weights of 8 bits.
    """
    leaves = dict(_flat(params))
    parts = _flat(adapters)
    for path in {path[:-1] for path in parts}:
        name = "/".join(path)
        a, b = parts[*path, "a"], parts[*path, "b"]
        weight = leaves.get(path)
        if weight is None or weight.shape != (b.shape[0], a.shape[1]):
            has = "no such weight" if weight is None else f"one of {weight.shape}"
            raise Error(f"the adapter changes {name} {(b.shape[0], a.shape[1])}, but this model has {has}")
        if weight.dtype == jnp.int8:
            raise Error(f"{name} has 8 bits, to which nothing can be added; `indextts-jax merge` the adapter first")
        delta = jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)
        leaves[path] = (weight.astype(jnp.float32) + jnp.float32(scale) * delta).astype(weight.dtype)
    return unflatten_dict(leaves)


def save(path: Path, lora: Lora) -> None:
    """Write a .safetensors file, which appears only once it is complete. Raises FileError."""
    arrays = {"/".join(path): np.asarray(array, np.float32) for path, array in _flat(lora.adapters).items()}
    metadata = {"format": _FORMAT, "scale": repr(float(lora.scale))}
    files.write_whole(path, safetensors.numpy.save(arrays, metadata))


def load(path: Path) -> Lora:
    """Read a file that `save` wrote. Raises NotFound, or Error for what is no such file."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file; `indextts-jax train` writes lora.safetensors")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise Error(f"{path}: not an adapter that `indextts-jax train --lora` wrote")
            parts = {tuple(name.split("/")): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            scale = float(metadata["scale"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise Error(f"{path}: not an adapter, or cut short ({shown(error)}); copy it again") from None
    pairs = {path[:-1] for path in parts}
    whole = {(*pair, name) for pair in pairs for name in ("a", "b")}
    if not parts or parts.keys() != whole or any(array.ndim != 2 for array in parts.values()):
        raise Error(f"{path}: not an adapter; its arrays are no pairs of a and b")
    if any(parts[*pair, "a"].shape[0] != parts[*pair, "b"].shape[1] for pair in pairs):
        raise Error(f"{path}: not an adapter; a and b have different ranks")
    return Lora(unflatten_dict(parts), scale)


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(tree))
