"""The networks, one file each: pure functions over parameter trees."""

import importlib
from typing import Any

import jax

# In the order of the data; each is a file here, a field of Config and a checkpoint of a converted model.
COMPONENTS = ("w2vbert", "repcodec", "campplus", "conditioner", "gpt", "s2mel", "bigvgan")


def init(component: str, cfg: Any, key: jax.Array) -> Any:
    """Random float32 parameters of one component, e.g. init("gpt", cfg.gpt, key)."""
    return importlib.import_module(f"indextts_jax.models.{component}").init(cfg, key)


def random(component: str, cfg: Any, key: jax.Array, dtype: Any) -> Any:
    """As `init`, made on the device in `dtype`, without a float32 copy of the whole."""

    def make(key: jax.Array) -> Any:
        return jax.tree.map(lambda a: a.astype(dtype), init(component, cfg, key))

    return jax.jit(make)(key)


def shapes(component: str, cfg: Any) -> Any:
    """The shapes and dtypes of one component's parameters, without making them."""
    return jax.eval_shape(lambda key: init(component, cfg, key), jax.random.key(0))
