"""The networks, one file each: pure functions over parameter trees."""

import importlib
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from indextts_jax.errors import Error, short
from indextts_jax.models.layers import dtype_of, quantize

# In the order of the data; each is a file here, a field of Config and a checkpoint of a converted model.
COMPONENTS = ("w2vbert", "repcodec", "campplus", "conditioner", "prototypes", "gpt", "s2mel", "bigvgan")

Params = dict[str, Any]  # component -> parameter tree

OPTIONAL = ("qwen3",)  # what a model may lack, and what is loaded only when it is asked for

# What holds parameters that are used in float32 whatever the weights are: converted anew in every step of a loop, they
# would cost more than their bytes.
_WIDE = re.compile(r"(\w+_)?norm(_\d+)?|depthwise|activation(_\d+)?|statistics|prototypes")


def default_dtype(platform: str | None = None) -> str:
    """What weights and computation are in unless asked otherwise: float32 on a CPU, bfloat16 on GPU and TPU."""
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def asked(dtype: Any) -> jnp.dtype:
    """What weights are asked for in, or else the default. Raises Error for what is no dtype of weights."""
    try:
        found = jnp.dtype(dtype or default_dtype())
    except TypeError:
        found = jnp.dtype(bool)
    if found not in (jnp.float32, jnp.bfloat16, jnp.int8):
        raise Error(f"dtype is {short(dtype)}, but must be float32, bfloat16 or int8")
    return found


def computing(dtype: Any, platform: str | None = None) -> jnp.dtype:
    """In what a model computes whose weights are asked for in `dtype`: int8 is for some of them alone."""
    return jnp.dtype(default_dtype(platform) if jnp.dtype(dtype) == jnp.int8 else dtype)


def dtypes(component: str, like: Any, dtype: Any, platform: str | None = None) -> Any:
    """The dtype of each parameter of a component whose weights are in `dtype`; `like` is a tree of its structure.

    With int8, it is that of the matrices of the GPT's decoder and of its head, which every step of decoding reads. The
    GPT's norms are as narrow as the rest: with float32 ones a TPU's compiler fetches neither weights nor cache ahead.
    """

    def one(path: tuple[Any, ...], _: Any) -> jnp.dtype:
        *_, holder, name = component, *(str(key.key) for key in path)
        if component != "gpt" and _WIDE.fullmatch(holder):
            return jnp.dtype(jnp.float32)
        narrow = component == "gpt" and name == "weight"
        return jnp.dtype(dtype) if narrow else computing(dtype, platform)

    return jax.tree_util.tree_map_with_path(one, like)


def kept(path: tuple[str, ...], leaf: Any, dtype: jnp.dtype) -> dict[tuple[str, ...], Any]:
    """A parameter, array or its shape, in `dtype`, by its path; int8 has a scale beside it (`layers.quantize`)."""
    described = isinstance(leaf, jax.ShapeDtypeStruct)
    if dtype == jnp.int8:
        weight, scale = quantize.eval_shape(leaf) if described else quantize(leaf)
        return {path: weight, (*path[:-1], "scale"): scale}
    if leaf.dtype != dtype:
        leaf = jax.ShapeDtypeStruct(leaf.shape, dtype) if described else leaf.astype(dtype)
    return {path: leaf}


def cast(component: str, params: Any, dtype: Any, platform: str | None = None) -> Any:
    """Float32 parameters of one component, arrays or their shapes, as they are where its weights are in `dtype`.

    platform: where they are used (default: here).
    """
    leaves: dict[tuple[str, ...], Any] = dict(flatten_dict(params))
    kinds: dict[tuple[str, ...], Any] = dict(flatten_dict(dtypes(component, params, dtype, platform)))
    found = [kept(path, leaf, kinds[path]) for path, leaf in leaves.items()]
    return unflatten_dict({path: leaf for part in found for path, leaf in part.items()})


def precision(params: Params) -> str:
    """The dtype of a model's weights, by which its results differ: "float32", "bfloat16" or e.g. "int8, bfloat16"."""
    narrow = any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params["gpt"]))
    return ("int8, " if narrow else "") + str(dtype_of(params["gpt"]))


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
    leaves, _ = jax.tree_util.tree_flatten_with_path(like)
    kinds = jax.tree.leaves(dtypes(component, like, dtype))
    made = {}
    for (keys, leaf), kind in zip(leaves, kinds, strict=True):
        path = tuple(str(key.key) for key in keys)
        if path[-1] in ("scale", "gamma", "variance"):
            values = np.ones(leaf.shape, np.float32)
        elif path[-1] in ("bias", "alpha", "beta", "mean"):
            values = np.zeros(leaf.shape, np.float32)
        else:
            inputs = leaf.shape[1:] if path[-1] == "weight" else leaf.shape[:-1]
            values = rng.standard_normal(leaf.shape, np.float32)
            values *= math.prod(inputs) ** -0.5
        made |= jax.device_put(kept(path, values, kind))
    return unflatten_dict(made)


def shapes(component: str, cfg: Any) -> Any:
    """The shapes and dtypes of one component's parameters, without making them."""
    return jax.eval_shape(lambda key: init(component, cfg, key), jax.random.key(0))
