"""CAMPPlus: padding changes nothing, another voice has another style. Parity: test_validate.py."""

import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import campplus
from tests.small import CAMPPLUS, normal, parameters


def test_another_voice_has_another_style(tiny):
    a, b = golden("en_greedy")["campplus.out"], golden("zh_greedy_emotion_audio")["campplus.out"]
    assert relative(a, b) > 100 * TOLERANCE["component"]


def test_padding_and_neighbours_change_nothing():
    """Lengths around the pooling segment (after a stride of 2), odd and even."""
    params = parameters("campplus", CAMPPLUS)
    lengths = [19, 30]
    batch = normal(1, 2, 47, CAMPPLUS.features)
    batch[0, 19:], batch[1, 30:] = 5.0, -7.0
    together = campplus.embed(params, CAMPPLUS, batch, np.array(lengths))
    for i, n in enumerate(lengths):
        alone = campplus.embed(params, CAMPPLUS, batch[i : i + 1, :n], np.array([n]))
        assert relative(together[i : i + 1], alone) <= TOLERANCE["block"]
