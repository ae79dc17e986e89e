"""Gradients from the samples back through everything after the codes."""

import jax
import jax.numpy as jnp
import pytest

from debug.golden import TOLERANCE
from indextts_jax.render import gather, render, target_frames, text_batch

pytestmark = pytest.mark.whole


@pytest.mark.slow
def test_gradients_of_the_audio_agree_with_finite_differences(model, voice):
    """A loss on the samples, with respect to noise, emotion and speaker latents, codes given."""
    cfg = model.cfg
    short = voice._replace(mel=voice.mel[:40], content=voice.content[:40])
    voices = gather([short])._replace(mel=jnp.asarray(short.mel)[None], content=jnp.asarray(short.content)[None])
    texts, lengths = text_batch(cfg, [model.text.analyse("One small test.").ids])
    codes = jax.random.randint(jax.random.key(1), (1, 8), 0, cfg.repcodec.codes)
    weights = jax.random.normal(jax.random.key(2), (1, target_frames(8) * cfg.bigvgan.hop))
    inputs = {
        "noise": jax.random.normal(jax.random.key(3), (1, target_frames(8), cfg.s2mel.mels)),
        "emotion": voices.emotion,
        "latents": voices.latents,
    }

    @jax.jit
    def loss(inputs):
        there = voices._replace(emotion=inputs["emotion"], latents=inputs["latents"])
        out = render(model.params, cfg, there, texts, lengths, codes, jnp.array([8]), inputs["noise"], steps=4)
        return (out.samples * weights).mean() * 100

    gradient = jax.jit(jax.grad(loss))(inputs)
    for i, name in enumerate(inputs):
        # random, but uphill everywhere: a slope large enough to be measured in float32
        direction = jnp.sign(gradient[name]) * jnp.abs(jax.random.normal(jax.random.key(10 + i), inputs[name].shape))
        slope = float((gradient[name] * direction).sum())
        # The loss moves alike for all: with a tenth of it rounding shows, with ten times as much curvature.
        step = 5e-3 / abs(slope)
        assert abs(slope) > 1e-4, name
        ends = [float(loss({**inputs, name: inputs[name] + s * step * direction})) for s in (1, -1)]
        measured = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope - measured) <= TOLERANCE["gradient"] * abs(measured), name
