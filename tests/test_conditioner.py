"""Conformer and Perceiver: padding changes nothing. Parity: test_validate.py."""

import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax import models
from indextts_jax.models import conditioner
from tests.small import CONDITIONER, normal, parameters


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
