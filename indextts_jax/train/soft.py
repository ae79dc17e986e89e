"""Codes through which gradients go: distributions over codes, for `render.render`.

Each of these gives floating [B, C, V] whose last axis sums to 1, V as in `render`. What goes to the start and stop
codes of a vocabulary that has them is spoken as the codec's last code: set their logits to -inf if that is not meant.

Dimensions: B batch, C codes, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jax import Array


def straight_through(distributions: Array) -> Array:
    """The likeliest code, one-hot, with the gradient of the distributions [B, C, V] (arXiv:1308.3432)."""
    hard = jax.nn.one_hot(jnp.argmax(distributions, axis=-1), distributions.shape[-1], dtype=distributions.dtype)
    return hard + (distributions - jax.lax.stop_gradient(distributions))


def gumbel_softmax(keys: Array, logits: Array, temperature: Array | float = 1.0, hard: bool = False) -> Array:
    """Codes drawn from softmax(logits), relaxed (arXiv:1611.01144): -> [B, C, V] float32, one-hot as temperature -> 0.

    keys: one per row [B]; a code's noise depends on its row's key and its place, not on how many codes there are.
    logits [B, C, V]. hard: the code that was drawn, one-hot, with the gradient of the relaxed one.
    """

    def row(key: Array) -> Array:
        each = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits.shape[1]))
        return jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[2:]))(each)

    soft = jax.nn.softmax((logits.astype(jnp.float32) + jax.vmap(row)(keys)) / temperature, axis=-1)
    return straight_through(soft) if hard else soft
