"""The networks, one file each: pure functions over parameter trees."""

import importlib
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# In the order of the data; each is a file here, a field of Config and a checkpoint of a converted model.
COMPONENTS = ("w2vbert", "repcodec", "campplus", "conditioner", "prototypes", "gpt", "s2mel", "bigvgan")

Params = dict[str, Any]  # component -> parameter tree

OPTIONAL = ("qwen3",)  # what a model may lack, and what is loaded only when it is asked for

# What holds parameters that are used in float32 whatever the weights are: converted anew in every step of a loop, they
# would cost more than their bytes.
_WIDE = re.compile(r"(\w+_)?norm(_\d+)?|depthwise|activation(_\d+)?|statistics|prototypes")


def dtypes(component: str, like: Any, dtype: Any) -> Any:
    """The dtype of each parameter of a component whose weights are in `dtype`; `like` is a tree of its structure."""

    def one(path: tuple[Any, ...], _: Any) -> jnp.dtype:
        holder = [component, *(str(key.key) for key in path)][-2]
        return jnp.dtype(jnp.float32 if _WIDE.fullmatch(holder) else dtype)

    return jax.tree_util.tree_map_with_path(one, like)


def cast(component: str, params: Any, dtype: Any) -> Any:
    """Parameters, arrays or their shapes, with weights in `dtype`."""

    def one(leaf: Any, kind: jnp.dtype) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)
        return leaf.astype(kind)

    return jax.tree.map(one, params, dtypes(component, params, dtype))


def init(component: str, cfg: Any, key: jax.Array) -> Any:
    """Random float32 parameters of one component, e.g. init("gpt", cfg.gpt, key)."""
    return importlib.import_module(f"indextts_jax.models.{component}").init(cfg, key)


def random(component: str, cfg: Any, seed: int, dtype: Any, like: Any = None) -> Any:
    """Random parameters of the shapes and roughly the scales of `init`, made leaf by leaf, with weights in `dtype`.

    For benchmarks: they are drawn by numpy, since compiling `init` for a deep network takes longer than running it.
    like: what `shapes` found, where it was asked before.
    """
    rng = np.random.default_rng(seed)
    like = shapes(component, cfg) if like is None else like
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    kinds = jax.tree.leaves(dtypes(component, like, dtype))
    made = []
    for (path, leaf), kind in zip(leaves, kinds, strict=True):
        name = str(path[-1].key)
        if name in ("scale", "gamma", "variance"):
            values = np.ones(leaf.shape, np.float32)
        elif name in ("bias", "alpha", "beta", "mean"):
            values = np.zeros(leaf.shape, np.float32)
        else:
            inputs = leaf.shape[1:] if name == "weight" else leaf.shape[:-1]
            values = rng.standard_normal(leaf.shape, np.float32)
            values *= math.prod(inputs) ** -0.5
        made.append(jax.device_put(values.astype(kind, copy=False)))
    return jax.tree.unflatten(tree, made)


def shapes(component: str, cfg: Any) -> Any:
    """The shapes and dtypes of one component's parameters, without making them."""
    return jax.eval_shape(lambda key: init(component, cfg, key), jax.random.key(0))
