"""Every component is differentiable: its gradient is finite, agrees with finite differences, and ignores padding.

All inputs carry NaN in their padding, so that a leak into a valid frame or into a gradient cannot pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert
from tests import small
from tests.small import normal, parameters

LENGTHS = np.array([13, 9])
T = 13

Case = tuple[Callable[[Any], Any], dict[str, np.ndarray]]  # a function of inputs, and the inputs


def frames(seed: int, channels: int, lengths: np.ndarray = LENGTHS) -> np.ndarray:
    """Random frames [B, T, C] of rows that end at `lengths`, NaN after that."""
    x = normal(seed, len(lengths), max(lengths), channels)
    return np.where(np.arange(max(lengths))[None, :, None] < lengths[:, None, None], x, np.nan)


def inside(x: Any, lengths: Any) -> Any:
    """The valid frames of an output that is unspecified past them."""
    return jnp.where((jnp.arange(x.shape[1])[None] < jnp.asarray(lengths)[:, None])[:, :, None], x, 0.0)


def w2vbert_case() -> Case:
    params, seen = parameters("w2vbert", small.W2VBERT), np.arange(T)[None] < (LENGTHS - np.array([0, 1]))[:, None]
    return lambda x: w2vbert.encode(params, small.W2VBERT, x["features"], seen, LENGTHS), {
        "features": frames(0, small.W2VBERT.features)
    }


def repcodec_case() -> Case:
    """Through the encoder, and from the codebook to the embeddings; the choice of codes between has no gradient."""
    params, codes = parameters("repcodec", small.REPCODEC), np.arange(12).reshape(2, 6)

    def function(x: dict) -> Any:
        encoded = repcodec.apply(
            repcodec.Encoder(small.REPCODEC), params["encoder"], repcodec.enter(x["features"], LENGTHS, params), LENGTHS
        )
        quantizer = {**params["quantizer"], "codebook": {"embedding": x["codebook"]}}
        return inside(encoded, LENGTHS), repcodec.embed({"quantizer": quantizer}, small.REPCODEC, codes)

    return function, {
        "features": frames(0, small.REPCODEC.width),
        "codebook": normal(1, small.REPCODEC.codes, small.REPCODEC.code_width),
    }


def campplus_case() -> Case:
    params = parameters("campplus", small.CAMPPLUS)
    # One channel of the pooled features is held at zero by its ReLU, where a plain square root has no gradient.
    params["out_norm"]["bias"] = params["out_norm"]["bias"].at[0].set(-1e3)
    return lambda x: campplus.embed(params, small.CAMPPLUS, x["features"], LENGTHS), {
        "features": frames(0, small.CAMPPLUS.features)
    }


def conditioner_case() -> Case:
    params, cfg = parameters("conditioner", small.CONDITIONER), small.CONDITIONER
    return lambda x: (
        conditioner.speaker_latents(params, cfg, x["features"], LENGTHS),
        conditioner.emotion_vector(params, cfg, x["features"], LENGTHS),
    ), {"features": frames(0, cfg.semantic)}


def gpt_case() -> Case:
    params, cfg = parameters("gpt", small.GPT), small.GPT
    texts, codes, lengths = np.arange(2, 12).reshape(2, 5), np.arange(12).reshape(2, 6), np.array([6, 4])

    def function(x: dict) -> Any:
        prefix = gpt.prefix(params, cfg, x["latents"], x["emotion"], texts, np.array([5, 3]))
        return inside(gpt.latents(params, cfg, prefix, codes), lengths)

    return function, {"latents": normal(0, 2, 3, cfg.width), "emotion": normal(1, 2, cfg.width)}


def content_case() -> Case:
    params, cfg = parameters("s2mel", small.S2MEL), small.S2MEL
    targets = s2mel.target_lengths(jnp.asarray(LENGTHS))
    return lambda x: s2mel.content(params, cfg, x["embeddings"], x["latents"], LENGTHS, 24, targets), {
        "embeddings": frames(0, cfg.semantic),
        "latents": frames(1, cfg.latent),
    }


def flow_case() -> Case:
    params, cfg = parameters("s2mel", small.S2MEL), small.S2MEL
    prompts = np.array([4, 7])

    def function(x: dict) -> Any:
        mel = s2mel.flow(
            params, cfg, x["noise"], x["content"], LENGTHS, x["prompt"], x["prompt_content"], prompts, x["style"], steps=2
        )
        return inside(mel, LENGTHS)

    return function, {
        "noise": frames(0, cfg.mels),
        "content": frames(1, cfg.content),
        "prompt": frames(2, cfg.mels, prompts),
        "prompt_content": frames(3, cfg.content, prompts),
        "style": normal(4, 2, cfg.style),
    }


def bigvgan_case() -> Case:
    params = parameters("bigvgan", small.BIGVGAN)
    return lambda x: bigvgan.vocode(params, small.BIGVGAN, x["mel"], LENGTHS), {"mel": frames(0, small.BIGVGAN.mels)}


@pytest.mark.parametrize(
    "case",
    [w2vbert_case, repcodec_case, campplus_case, conditioner_case, gpt_case, content_case, flow_case, bigvgan_case],
)
def test_gradient_equals_finite_differences(case):
    function, inputs = case()
    present = {name: np.isfinite(x) for name, x in inputs.items()}
    clean = {name: np.where(present[name], x, 0).astype(np.float32) for name, x in inputs.items()}
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(function, clean)
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def scalar_and_gradient(x):
        return jax.value_and_grad(lambda x: sum(map(jnp.vdot, jax.tree.leaves(function(x)), jax.tree.leaves(weights))))(x)

    value, gradient = scalar_and_gradient({name: x.astype(np.float32) for name, x in inputs.items()})
    assert value == scalar_and_gradient(clean)[0]  # padding reaches nothing
    for name, slope in gradient.items():
        assert np.isfinite(slope).all(), name
        assert np.asarray(slope)[present[name]].any(), name
        assert not np.asarray(slope)[~present[name]].any(), name

    # One input after the other, in a random direction that leans towards the gradient, so that the slope is not lost in
    # rounding. Central differences are wrong by h², less a third of the way: Richardson's extrapolation takes that out.
    for name, slope in gradient.items():
        slope = np.asarray(slope, np.float64)
        direction = rng.normal(size=slope.shape) * present[name]
        direction = direction / np.linalg.norm(direction) + slope / np.linalg.norm(slope)

        def difference(step, name=name, direction=direction):
            ends = [
                scalar_and_gradient({**clean, name: (clean[name] + sign * step * direction).astype(np.float32)})[0]
                for sign in (1, -1)
            ]
            return float(ends[0] - ends[1]) / (2 * step)

        expected = (4 * difference(0.01) - difference(0.02)) / 3
        assert abs((slope * direction).sum() - expected) <= TOLERANCE["gradient"] * abs(expected), name


def test_reverse_pass_of_the_flow_keeps_states_and_no_activations():
    """The memory that each further step of the solver costs its reverse pass is that of a few states."""
    function, inputs = flow_case()
    cfg, params = small.S2MEL, parameters("s2mel", small.S2MEL)
