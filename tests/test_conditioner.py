"""Conformer and Perceiver against the reference, and that padding changes nothing."""

import jax
import jax.numpy as jnp
import pytest

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import conditioner
from indextts_jax.models.conditioner import Conformer, Perceiver


@pytest.fixture(scope="module")
def features() -> jax.Array:
    return jnp.asarray(golden("en_greedy")["w2v.spk.normalized"])


@pytest.mark.parametrize(("part", "theirs"), [("speaker", ""), ("emotion", "emo_")])
def test_encoder_equals_reference(tiny, features, part, theirs):
    arrays, suffix = golden("en_greedy"), ".spk" if theirs else ""
    cfg, params = getattr(tiny.cfg.conditioner, part), tiny.params("conditioner")[part]
    params = params["encoder"] if part == "emotion" else params
    lengths = jnp.array([features.shape[1]])
    encoded, shorter = jax.jit(Conformer(cfg).apply)({"params": params["conformer"]}, features, lengths)
    stored = arrays[f"seg0.gpt.{theirs}conditioning_encoder{suffix}.out"]
    assert shorter.tolist() == [stored.shape[1]]
    assert relative(encoded, stored) <= TOLERANCE["component"]
    latents = jax.jit(Perceiver(cfg).apply)({"params": params["perceiver"]}, jnp.asarray(stored), shorter)
    assert relative(latents, arrays[f"seg0.gpt.{theirs}perceiver_encoder{suffix}.out"]) <= TOLERANCE["block"]


def test_public_functions_equal_reference(tiny, features):
    arrays, params, cfg = golden("en_greedy"), tiny.params("conditioner"), tiny.cfg.conditioner
    lengths = jnp.array([features.shape[1]])
    latents = conditioner.speaker_latents(params, cfg, features, lengths)
    assert relative(latents, arrays["seg0.gpt.speech_conditioning_latent"]) <= TOLERANCE["component"]
    vector = conditioner.emotion_vector(params, cfg, features, lengths)
    assert relative(vector, arrays["seg0.gpt.emo_layer.spk.out"]) <= TOLERANCE["component"]


@pytest.mark.parametrize("function", [conditioner.speaker_latents, conditioner.emotion_vector])
def test_padding_and_neighbours_change_nothing(function):
    encoder = conditioner.EncoderConfig(8, 2, 12, 1, 3, 16, 10, kernel=5, perceiver_head=4)
    cfg = conditioner.ConditionerConfig(semantic=12, width=16, speaker=encoder, emotion=encoder)
    params = conditioner.init(cfg, jax.random.key(0))
    lengths = [30, 3, 41]
    batch = jax.random.normal(jax.random.key(1), (3, 50, 12)).at[0, 30:].set(9.0).at[1, 3:].set(9.0)
    together = function(params, cfg, batch, jnp.array(lengths))
    for i, n in enumerate(lengths):
        alone = function(params, cfg, batch[i : i + 1, :n], jnp.array([n]))
        assert relative(together[i : i + 1], alone) <= TOLERANCE["block"]


def test_init_has_the_official_size():
    cfg = conditioner.ConditionerConfig()
    shapes = jax.eval_shape(lambda key: conditioner.init(cfg, key), jax.random.key(0))
    assert shapes["speaker"]["conformer"]["subsample"]["out"]["kernel"].shape == (261632, 512)
    assert shapes["emotion"]["merge"]["kernel"].shape == (1280, 1280)
