"""The networks, one file each: pure functions over parameter trees."""

import importlib
import math
from typing import Any

import jax
import numpy as np

# In the order of the data; each is a file here, a field of Config and a checkpoint of a converted model.
COMPONENTS = ("w2vbert", "repcodec", "campplus", "conditioner", "prototypes", "gpt", "s2mel", "bigvgan")

Params = dict[str, Any]  # component -> parameter tree

OPTIONAL = ("qwen3",)  # what a model may lack, and what is loaded only when it is asked for


def init(component: str, cfg: Any, key: jax.Array) -> Any:
    """Random float32 parameters of one component, e.g. init("gpt", cfg.gpt, key)."""
    return importlib.import_module(f"indextts_jax.models.{component}").init(cfg, key)


def random(component: str, cfg: Any, seed: int, dtype: Any, like: Any = None) -> Any:
    """Random parameters of the shapes and roughly the scales of `init`, made leaf by leaf in `dtype`.

    For benchmarks: they are drawn by numpy, since compiling `init` for a deep network takes longer than running it.
    like: what `shapes` found, where it was asked before.
    """
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(component, cfg) if like is None else like)
    made = []
    for path, leaf in leaves:
        name = str(path[-1].key)
        if name in ("scale", "gamma", "variance"):
            values = np.ones(leaf.shape, np.float32)
        elif name in ("bias", "alpha", "beta", "mean"):
            values = np.zeros(leaf.shape, np.float32)
        else:
            inputs = leaf.shape[1:] if name == "weight" else leaf.shape[:-1]
            values = rng.standard_normal(leaf.shape, np.float32)
            values *= math.prod(inputs) ** -0.5
        made.append(jax.device_put(values.astype(dtype, copy=False)))
    return jax.tree.unflatten(tree, made)


def shapes(component: str, cfg: Any) -> Any:
    """The shapes and dtypes of one component's parameters, without making them."""
    return jax.eval_shape(lambda key: init(component, cfg, key), jax.random.key(0))
