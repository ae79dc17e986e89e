"""CAMPPlus against the reference, and that padding changes nothing."""

import jax
import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import campplus
from tests.small import CAMPPLUS, normal, parameters


def test_head_and_style_equal_reference(tiny):
    arrays, cfg, params = golden("en_greedy"), tiny.cfg.campplus, tiny.params("campplus")
    features = arrays["campplus.in"]
    lengths = np.array([features.shape[1]])
    head = jax.jit(campplus.Head(cfg).apply)({"params": params["head"]}, features, lengths)
    assert relative(head, arrays["campplus.head.out"].transpose(0, 2, 1)) <= TOLERANCE["block"]
    style = campplus.embed(params, cfg, features, lengths)
    assert relative(style, arrays["campplus.out"]) <= TOLERANCE["component"]


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
