"""Distributions over codes: what they are, and that gradients go through them to the mel."""

import jax
import jax.numpy as jnp
import numpy as np

from debug.golden import TOLERANCE, relative
from indextts_jax.render import Voices, second_pass, target_frames, to_mel
from indextts_jax.train import soft
from tests.small import RENDERER, normal, parameters


def rendering():
    """Parameters, two voices of different length, texts, and what is spoken: what `train` renders in tests."""
    cfg = RENDERER
    params = {name: parameters(name, getattr(cfg, name)) for name in ("gpt", "repcodec", "s2mel")}
    voices = Voices(
        jnp.asarray(normal(0, 2, 3, cfg.gpt.width)), jnp.asarray(normal(1, 2, cfg.gpt.width)),
        jnp.asarray(normal(2, 2, cfg.s2mel.style)), jnp.asarray(normal(3, 2, 8, cfg.s2mel.mels)),
        jnp.asarray(normal(4, 2, 8, cfg.s2mel.content)), jnp.array([8, 5]),
    )  # fmt: skip
    texts, lengths = jnp.arange(2, 12).reshape(2, 5), jnp.array([5, 3])
    codes, code_lengths = jnp.array([[3, 39, 0, 7, 7, 21], [11, 4, 30, 2, 0, 0]]), jnp.array([6, 4])
    return params, cfg, voices, texts, lengths, codes, code_lengths, normal(5, 2, target_frames(6), cfg.s2mel.mels)


def test_straight_through_is_the_likeliest_code_with_the_slope_of_all():
    given, weights = jax.nn.softmax(normal(0, 2, 3, 5), axis=-1), normal(1, 2, 3, 5)
    hard = jax.jit(soft.straight_through)(given)
    np.testing.assert_array_equal(hard, np.eye(5)[np.argmax(given, axis=-1)])
    slope = jax.grad(lambda x: (soft.straight_through(x) * weights).sum())(given)
    np.testing.assert_array_equal(slope, weights)


def test_gumbel_softmax_draws_each_code_as_often_as_it_is_probable():
    logits = jnp.log(jnp.array([0.6, 0.1, 0.3]))
    many = jnp.broadcast_to(logits[None, None], (4, 1000, 3))
    drawn = soft.gumbel_softmax(jax.random.split(jax.random.key(0), 4), many, hard=True)
    np.testing.assert_array_equal(jnp.sort(drawn, axis=-1), np.tile([0.0, 0.0, 1.0], (4, 1000, 1)))
    np.testing.assert_allclose(drawn.mean((0, 1)), [0.6, 0.1, 0.3], atol=0.03)  # four standard deviations
    assert (drawn[0] != drawn[1]).any()


@jax.threefry_partitionable(False)  # with it, the default, any shape would do
def test_gumbel_softmax_becomes_one_hot_as_it_cools_and_knows_no_padding():
    keys, logits = jax.random.split(jax.random.key(1), 2), jnp.asarray(normal(0, 2, 6, 5))
    warm, cold = (soft.gumbel_softmax(keys, logits, t) for t in (1.0, 1e-3))
    np.testing.assert_allclose(warm.sum(-1), 1.0, rtol=1e-6)
    assert 0.1 < float(warm.max(-1).min()) < 0.9 < float(jnp.median(cold.max(-1)))
    np.testing.assert_array_equal(cold.argmax(-1), warm.argmax(-1))
    np.testing.assert_array_equal(soft.gumbel_softmax(keys, logits[:, :4]), warm[:, :4])
    np.testing.assert_array_equal(soft.gumbel_softmax(keys[1:], logits[1:]), warm[1:])


def test_slopes_of_the_mel_by_distributions():
    """One-hot distributions have the mel of the codes; their slope agrees with finite differences, and forwards."""
    params, cfg, voices, texts, lengths, codes, code_lengths, noise = rendering()
    weights = normal(6, *noise.shape)

    def mel(codes):
        latents = second_pass(params, cfg, voices, texts, lengths, codes)
        return to_mel(params, cfg, voices, codes, code_lengths, latents, noise, steps=2)[0]

    def loss(codes):
        return (mel(codes) * weights).sum()

    hard, tangent = jax.nn.one_hot(codes, cfg.gpt.code_vocabulary), jnp.asarray(normal(7, 2, 6, 42))
    slope = jax.jit(jax.grad(loss))(hard)
    assert not slope[1, 4:].any()  # past the row's end
    heard = jax.grad(lambda x: jnp.square(second_pass(params, cfg, voices, texts, lengths, x)).sum())(hard)
    assert np.abs(heard[0, :5]).min() > 0  # by the GPT too, all but the last, which it is not fed
    direction = slope / jnp.linalg.norm(slope) + tangent / jnp.linalg.norm(tangent)

    @jax.jit
    def along(x):
        return jax.jvp(lambda x: (loss(x), mel(x)), (x,), (direction,))

    (_, ours), (forwards, _) = along(hard)
    assert relative(ours, jax.jit(mel)(codes)) <= TOLERANCE["block"]
    expected = float((slope * direction).sum())
    assert abs(float(forwards) - expected) <= TOLERANCE["component"] * abs(expected)
    up, down = (float(along(hard + step * direction)[0][0]) for step in (0.01, -0.01))
    assert abs((up - down) / 0.02 - expected) <= TOLERANCE["gradient"] * abs(expected)
