"""CAMPPlus against the reference, and that padding changes nothing."""

import jax
import jax.numpy as jnp

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import campplus


def test_head_and_style_equal_reference(tiny):
    arrays, cfg, params = golden("en_greedy"), tiny.cfg.campplus, tiny.params("campplus")
    features = jnp.asarray(arrays["campplus.in"])
    lengths = jnp.array([features.shape[1]])
    head = jax.jit(campplus.Head(cfg).apply)({"params": params["head"]}, features, lengths)
    assert relative(head, arrays["campplus.head.out"].transpose(0, 2, 1)) <= TOLERANCE["block"]
    style = campplus.embed(params, cfg, features, lengths)
    assert relative(style, arrays["campplus.out"]) <= TOLERANCE["component"]


def test_another_voice_has_another_style(tiny):
    a, b = golden("en_greedy")["campplus.out"], golden("zh_greedy_emotion_audio")["campplus.out"]
    assert relative(a, b) > 100 * TOLERANCE["component"]


def test_padding_and_neighbours_change_nothing():
    """Lengths around the pooling segment (after a stride of 2), odd and even."""
    cfg = campplus.CAMPPlusConfig(16, 6, 4, 8, 4, 8, (2, 1), (1, 2), segment=10)
    params = campplus.init(cfg, jax.random.key(0))
    lengths = [47, 19, 30]
    batch = jax.random.normal(jax.random.key(1), (3, 47, 16)).at[1, 19:].set(5.0).at[2, 30:].set(-7.0)
    together = campplus.embed(params, cfg, batch, jnp.array(lengths))
    for i, n in enumerate(lengths):
        alone = campplus.embed(params, cfg, batch[i : i + 1, :n], jnp.array([n]))
        assert relative(together[i : i + 1], alone) <= TOLERANCE["block"]
