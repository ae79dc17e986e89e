"""Find by gradient what was spoken with: emotion vector, latents or style of a voice whose rendering meets a recording.

    loss = on_mel(params, cfg, voices, line, mel, lengths)
    found = fit(loss, {"emotion": jnp.zeros_like(voices.emotion)}, 200, optax.adam(0.05))
    voices = voices._replace(**found.tree)

The parameters of the networks stay as they are: only the tree that a loss is given moves.

Dimensions: B batch, X text ids, C codes, V vocabulary, F target frames, M mels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from indextts_jax.config import Config
from indextts_jax.models import Params
from indextts_jax.models.layers import zero_padding
from indextts_jax.render import Rendered, Voices, render, second_pass, to_mel

Loss = Callable[[Any], Array]  # of a tree of arrays -> [] float32


class Line(NamedTuple):
    """What is spoken, as `render.render` takes it."""

    texts: Array  # [B, X] int32
    text_lengths: Array  # [B]
    codes: Array  # [B, C] int32, or distributions [B, C, V]
    code_lengths: Array  # [B]
    noise: Array  # [B, F, M]


class Fitted(NamedTuple):
    """What `fit` found."""

    tree: Any  # like the start
    losses: Array  # [steps] float32: before each step


def fit(loss: Loss, start: Any, steps: int, optimizer: optax.GradientTransformation) -> Fitted:
    """Follow the gradient of a loss for so many steps of an optimizer: a pure scan, compiled once.

    loss: of a tree like `start`, which holds floating arrays and may be anything: a dict, Voices, an array. It is for
    the caller to close it over parameters and data; they stay as they are. Can itself be jitted, mapped by vmap and
    differentiated.
    """
    optimizer = optax.with_extra_args_support(optimizer)  # L-BFGS, for one, asks for the loss itself

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        tree, state = carry
        value, slope = jax.value_and_grad(loss)(tree)
        updates, state = optimizer.update(slope, state, tree, value=value, grad=slope, value_fn=loss)
        return (optax.apply_updates(tree, updates), state), value

    (tree, _), losses = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return Fitted(tree, losses)


def on_mel(
    params: Params, cfg: Config, voices: Voices, line: Line, mel: Array, lengths: Array,
    measure: Callable[[Array], Array] = jnp.abs, **options: Any,
) -> Callable[[dict[str, Array]], Array]:  # fmt: skip
    """How far the log-mel that is rendered is from another, [B, F, M] of lengths [B]: the mean measure of differences.

    measure: of each element; `jnp.square` is for optimizers that take the loss for smooth, as L-BFGS does.

    The loss is of a dict of what takes a place in `voices`: "emotion" [B, D], "latents" [B, L, D], "style" [B, style]
    or any other of its fields. Frames that only one of both has are left out. options: steps, guidance, solver and the
    like, as `render.to_mel` takes them.
    """

    def loss(found: dict[str, Array]) -> Array:
        there = voices._replace(**found)
        latents = second_pass(params, cfg, there, line.texts, line.text_lengths, line.codes)
        ours, own = to_mel(params, cfg, there, line.codes, line.code_lengths, latents, line.noise, **options)
        F, both = min(ours.shape[1], mel.shape[1]), jnp.minimum(own, lengths)
        ours, theirs = (zero_padding(x[:, :F], both) for x in (ours, mel))
        return measure(ours - theirs).sum() / (both.sum() * mel.shape[2]).astype(jnp.float32)

    return loss


def on_sound(
    params: Params, cfg: Config, voices: Voices, line: Line, distance: Callable[[Rendered], Array], **options: Any
) -> Callable[[dict[str, Array]], Array]:
    """The same of samples: distance is any function of what `render.render` gives, such as a loss of `train.sound`.

    options: steps, guidance, solver, remat and the like, as `render.render` takes them.
    """
    return lambda found: distance(render(params, cfg, voices._replace(**found), *line, **options))
