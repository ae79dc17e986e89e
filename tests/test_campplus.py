"""CAMPPlus: padding changes nothing, another voice has another style. Parity: test_validate.py."""

import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import campplus
from tests.small import CAMPPLUS, normal, parameters


def test_the_style_of_a_recording_is_not_that_of_another(tiny):
    """Ours of a recording is the reference's of it, and far from the reference's of another one."""
    x = golden("en_greedy")["campplus.in"]
    ours = campplus.embed(tiny.params("campplus"), tiny.cfg.campplus, x, np.array([x.shape[1]]))
    assert relative(ours, golden("en_greedy")["campplus.out"]) <= TOLERANCE["component"]
    assert relative(ours, golden("zh_greedy_emotion_audio")["campplus.out"]) > 100 * TOLERANCE["component"]


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
