"""Emotion by weights: eight groups of speakers, each of whom felt one emotion; the most similar one lends their vector.

Dimensions: B batch, R speakers of all groups together, E emotions, D width of the GPT.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class PrototypesConfig:
    groups: tuple[int, ...] = (3, 17, 2, 8, 4, 5, 10, 24)  # speakers of each emotion, in the order of the rows
    style: int = 192
    width: int = 1280

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each group."""
        return tuple(sum(self.groups[:i]) for i in range(len(self.groups)))


def init(cfg: PrototypesConfig, key: Array) -> dict:
    """Random float32 parameters: the styles of the speakers and their emotion vectors."""
    one, two = jax.random.split(key)
    rows = sum(cfg.groups)
    return {
        "style": jax.random.normal(one, (rows, cfg.style)),
        "vector": jax.random.normal(two, (rows, cfg.width)),
    }


@partial(jax.jit, static_argnames="cfg")
def similar(params: dict, cfg: PrototypesConfig, style: Array) -> Array:
    """The row of each group whose style is most similar by cosine: style [B, style] -> [B, E] int32.

    Reference: indextts/infer_v2.py, find_most_similar_cosine.
    """
    wide, rows = style.astype(jnp.float32), params["style"].astype(jnp.float32)
    products = jnp.einsum("bs,rs->br", wide, rows, precision=jax.lax.Precision.HIGHEST)
    cosine = products / jnp.maximum(jnp.linalg.norm(rows, axis=-1), 1e-8)[None]
    parts = [cosine[:, a : a + n].argmax(axis=-1) + a for a, n in zip(cfg.starts, cfg.groups, strict=True)]
    return jnp.stack(parts, axis=1).astype(jnp.int32)


@partial(jax.jit, static_argnames="cfg")
def drawn(key: Array, cfg: PrototypesConfig) -> Array:
    """A row of each group at random instead: -> [E] int32."""
    counts = jnp.array(cfg.groups)
    return jnp.array(cfg.starts) + jax.random.randint(key, counts.shape, 0, counts)


@jax.jit
def mixture(params: dict, weights: Array, rows: Array, base: Array) -> Array:
    """The emotion vector of eight weights: weights [B, E], rows [B, E], base [B, D] -> [B, D] float32.

    What the weights leave of 1 stays with `base`, the voice's own emotion. Reference: indextts/infer_v2.py.
    """
    vectors = params["vector"].astype(jnp.float32)[rows]  # [B, E, D]
    rest = 1 - weights.sum(axis=-1, keepdims=True)
    felt = jnp.einsum("be,bed->bd", weights, vectors, precision=jax.lax.Precision.HIGHEST)
    return felt + rest * base.astype(jnp.float32)
