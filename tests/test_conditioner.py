"""Conformer and Perceiver against the reference, and that padding changes nothing."""

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, golden, relative
from indextts_jax import models
from indextts_jax.models import conditioner
from indextts_jax.models.conditioner import Conformer, Perceiver
from tests.small import CONDITIONER, normal, parameters


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return golden("en_greedy")["w2v.spk.normalized"]


@pytest.mark.parametrize(("part", "theirs"), [("speaker", ""), ("emotion", "emo_")])
def test_encoder_equals_reference(tiny, features, part, theirs):
    arrays, suffix = golden("en_greedy"), ".spk" if theirs else ""
    cfg, params = getattr(tiny.cfg.conditioner, part), tiny.params("conditioner")[part]
    params = params["encoder"] if part == "emotion" else params
    lengths = np.array([features.shape[1]])
    encoded, shorter = jax.jit(Conformer(cfg).apply)({"params": params["conformer"]}, features, lengths)
    stored = arrays[f"seg0.gpt.{theirs}conditioning_encoder{suffix}.out"]
    assert shorter.tolist() == [stored.shape[1]]
    assert relative(encoded, stored) <= TOLERANCE["component"]
    latents = jax.jit(Perceiver(cfg).apply)({"params": params["perceiver"]}, stored, shorter)
    assert relative(latents, arrays[f"seg0.gpt.{theirs}perceiver_encoder{suffix}.out"]) <= TOLERANCE["block"]


def test_public_functions_equal_reference(tiny, features):
    arrays, params, cfg = golden("en_greedy"), tiny.params("conditioner"), tiny.cfg.conditioner
    lengths = np.array([features.shape[1]])
    latents = conditioner.speaker_latents(params, cfg, features, lengths)
    assert relative(latents, arrays["seg0.gpt.speech_conditioning_latent"]) <= TOLERANCE["component"]
    vector = conditioner.emotion_vector(params, cfg, features, lengths)
    assert relative(vector, arrays["seg0.gpt.emo_layer.spk.out"]) <= TOLERANCE["component"]


@pytest.mark.parametrize("function", [conditioner.speaker_latents, conditioner.emotion_vector])
def test_padding_and_neighbours_change_nothing(function):
    params = parameters("conditioner", CONDITIONER)
    lengths = [30, 3]  # of 50 frames; 3 are the fewest
    batch = normal(1, 2, 50, CONDITIONER.semantic)
    batch[0, 30:] = batch[1, 3:] = 9.0
    together = function(params, CONDITIONER, batch, np.array(lengths))
    for i, n in enumerate(lengths):
        alone = function(params, CONDITIONER, batch[i : i + 1, :n], np.array([n]))
        assert relative(together[i : i + 1], alone) <= TOLERANCE["block"]


def test_init_has_the_official_size():
    shapes = models.shapes("conditioner", conditioner.ConditionerConfig())
    assert shapes["speaker"]["conformer"]["subsample"]["out"]["kernel"].shape == (261632, 512)
    assert shapes["emotion"]["merge"]["kernel"].shape == (1280, 1280)
