"""Every component is differentiable: its gradient is finite, agrees with finite differences, and ignores padding.

All inputs carry NaN in their padding, so that nothing there can reach a valid frame or a gradient unseen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE
from indextts_jax import models
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, layers, repcodec, s2mel, w2vbert
from tests.small import BIGVGAN, CAMPPLUS, CONDITIONER, GPT, REPCODEC, S2MEL, W2VBERT, normal, parameters

pytestmark = pytest.mark.whole

LENGTHS: Any = np.array([13, 9])

# A function of parameters and inputs, the parameters, and the inputs by name
Case = tuple[Callable[[Any, dict[str, Any]], Any], Any, dict[str, np.ndarray]]


def frames(seed: int, channels: int, lengths: np.ndarray = LENGTHS) -> np.ndarray:
    """Random frames [B, T, C] of rows that end at `lengths`, NaN after that."""
    x = normal(seed, len(lengths), max(lengths), channels)
    return np.where(np.arange(max(lengths))[None, :, None] < lengths[:, None, None], x, np.float32(np.nan))


def w2vbert_case() -> Case:
    seen = np.arange(13)[None] < np.array([[13], [8]])  # the second row's last frame is hidden, but put out

    def features(params, x):
        return w2vbert.encode(params, W2VBERT, x["features"], seen, LENGTHS)

    return features, parameters("w2vbert", W2VBERT), {"features": frames(0, W2VBERT.features)}


def repcodec_case() -> Case:
    """Features to encoder outputs, codebook to embeddings: between the two, the choice of a code has no gradient."""

    def encoded_and_embedded(params, x):
        features = layers.enter(x["features"], LENGTHS, params)
        encoded = layers.apply(repcodec.Encoder(REPCODEC), params["encoder"], features, LENGTHS)
        quantizer = {**params["quantizer"], "codebook": {"embedding": x["codebook"]}}
        embedded = repcodec.embed({"quantizer": quantizer}, REPCODEC, np.arange(12).reshape(2, 6))
        return layers.zero_padding(encoded, LENGTHS), embedded

    inputs = {"features": frames(0, REPCODEC.width), "codebook": normal(1, REPCODEC.codes, REPCODEC.code_width)}
    return encoded_and_embedded, parameters("repcodec", REPCODEC), inputs


def campplus_case() -> Case:
    params = parameters("campplus", CAMPPLUS)
    # One of the pooled channels is held at zero by its ReLU, where the square root of a variance has no slope.
    params["out_norm"]["bias"] = params["out_norm"]["bias"].at[0].set(-1e3)

    def style(params, x):
        return campplus.embed(params, CAMPPLUS, x["features"], LENGTHS)

    return style, params, {"features": frames(0, CAMPPLUS.features)}


def conditioner_case() -> Case:
    def latents_and_vector(params, x):
        latents = conditioner.speaker_latents(params, CONDITIONER, x["features"], LENGTHS)
        return latents, conditioner.emotion_vector(params, CONDITIONER, x["features"], LENGTHS)

    return latents_and_vector, parameters("conditioner", CONDITIONER), {"features": frames(0, CONDITIONER.semantic)}


def gpt_case() -> Case:
    texts, codes = np.arange(2, 12).reshape(2, 5), np.arange(12).reshape(2, 6)

    def latents(params, x):
        prefix = gpt.prefix(params, GPT, x["latents"], x["emotion"], texts, np.array([5, 3]))
        return layers.zero_padding(gpt.latents(params, GPT, prefix, codes), jnp.array([6, 4]))

    return latents, parameters("gpt", GPT), {"latents": normal(0, 2, 3, GPT.width), "emotion": normal(1, 2, GPT.width)}


def content_case() -> Case:
    def content(params, x):
        targets = s2mel.target_lengths(LENGTHS)
        return s2mel.content(params, S2MEL, x["embeddings"], x["latents"], LENGTHS, 24, targets)

    inputs = {"embeddings": frames(0, S2MEL.semantic), "latents": frames(1, S2MEL.latent)}
    return content, parameters("s2mel", S2MEL), inputs


def flow_case() -> Case:
    prompts: Any = np.array([4, 7])

    def mel(params, x):
        given = x["noise"], x["content"], LENGTHS, x["prompt"], x["prompt_content"], prompts, x["style"]
        return layers.zero_padding(s2mel.flow(params, S2MEL, *given, steps=2), LENGTHS)

    inputs = {
        "noise": frames(0, S2MEL.mels),
        "content": frames(1, S2MEL.content),
        "prompt": frames(2, S2MEL.mels, prompts),
        "prompt_content": frames(3, S2MEL.content, prompts),
        "style": normal(4, 2, S2MEL.style),
    }
    return mel, parameters("s2mel", S2MEL), inputs


def bigvgan_case() -> Case:
    params = parameters("bigvgan", BIGVGAN)
    params["out"]["kernel"] *= 0.1  # within ±1, where nothing is clipped

    def samples(params, x):
        return bigvgan.vocode(params, BIGVGAN, x["mel"], LENGTHS)

    return samples, params, {"mel": frames(0, BIGVGAN.mels)}


@pytest.mark.parametrize(
    "case",
    [w2vbert_case, repcodec_case, campplus_case, conditioner_case, gpt_case, content_case, flow_case, bigvgan_case],
)
def test_gradient_equals_finite_differences(case):
    function, params, inputs = case()
    rng = np.random.default_rng(5)
    present = {name: np.isfinite(x) for name, x in inputs.items()}
    clean = {name: np.where(present[name], x, np.float32(0)) for name, x in inputs.items()}
    outputs = jax.tree.leaves(jax.eval_shape(function, params, clean))
    weights = [rng.normal(size=output.shape).astype(np.float32) for output in outputs]

    @jax.jit
    @jax.value_and_grad
    def scalar_and_gradient(x, params):
        return sum(map(jnp.vdot, jax.tree.leaves(function(params, x)), weights))

    value, gradient = scalar_and_gradient(inputs, params)
    assert value == scalar_and_gradient(clean, params)[0]
    slopes = {name: np.asarray(slope, np.float64) for name, slope in gradient.items()}
    for name, slope in slopes.items():
        assert np.isfinite(slope).all(), name
        assert not slope[~present[name]].any(), name

    # One input after the other, in a random direction that leans towards the gradient, lest rounding hides the slope.
    for name, slope in slopes.items():
        direction = rng.normal(size=slope.shape) * present[name]
        direction = direction / np.linalg.norm(direction) + slope / np.linalg.norm(slope)

        def difference(step, name=name, direction=direction):
            ends = [(clean[name] + sign * step * direction).astype(np.float32) for sign in (1, -1)]
            up, down = (scalar_and_gradient({**clean, name: end}, params)[0] for end in ends)
            return float(up - down) / (2 * step)

        # Richardson's extrapolation takes the error that grows with step² out of central differences.
        expected = (4 * difference(0.01) - difference(0.02)) / 3
        assert abs((slope * direction).sum() - expected) <= TOLERANCE["gradient"] * abs(expected), name


def test_reverse_pass_of_the_flow_keeps_one_state_per_step():
    """What a further step of the solver adds to the memory of its reverse pass: the state, and no activations."""
    cfg = s2mel.S2MelConfig(6, 5, 8, 7, (6, 8), 10, 2, 12, 16, 2, 1, 16, 1, 5)
    params = models.shapes("s2mel", cfg)

    def frames(channels: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, 64, channels), jnp.float32)

    def bytes_of(steps: int) -> int:
        def loss(noise, params, content, prompt, prompt_content):
            lengths, style = jnp.array([64]), jnp.zeros((1, cfg.style))
            return s2mel.flow(
                params, cfg, noise, content, lengths, prompt, prompt_content, lengths, style, steps=steps
            ).sum()

        inputs = frames(cfg.mels), params, frames(cfg.content), frames(cfg.mels), frames(cfg.content)
        memory: Any = jax.jit(jax.grad(loss)).lower(*inputs).compile().memory_analysis()
        return memory.temp_size_in_bytes

    state = 4 * 128 * cfg.mels
    assert 0 < (bytes_of(16) - bytes_of(4)) / 12 <= 2 * state
