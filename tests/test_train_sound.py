"""Losses of samples: equal to what they stand for, differentiable, and blind to padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from debug.golden import TOLERANCE, relative
from indextts_jax import audio, features
from indextts_jax.train import sound
from tests.small import CONFIG, normal, parameters, speech

pytestmark = pytest.mark.whole

RATES = features.MEL_RATE, features.SPEECH_RATE


def test_resampling_is_that_of_voices():
    samples = speech(1.0, features.MEL_RATE)
    found, lengths = sound.resample(jnp.asarray(samples)[None], jnp.array([len(samples)]), *RATES)
    expected = audio.resample_sinc(samples, *RATES)
    assert lengths.tolist() == [len(expected)]
    assert np.abs(found[0] - expected).max() <= TOLERANCE["recording"]
    # Away from the ends, where both filters see zeros
    other = soxr.resample(samples, *RATES, quality="VHQ")[: len(expected)]
    assert relative(np.asarray(found)[0, 400:-400], other[400 : len(expected) - 400]) <= 5e-3


def test_log_mel_is_that_of_voices():
    samples, lengths = (
        jnp.asarray(np.stack([speech(0.2, features.MEL_RATE, seed) for seed in (0, 1)])),
        jnp.array([4410, 3000]),
    )
    ours, frames = sound._log_mel(samples, lengths, features.OFFICIAL_MEL)
    theirs, expected = features.mel(samples, lengths)
    assert frames.tolist() == expected.tolist()
    for i, count in enumerate(frames):
        assert np.abs(ours[i, :count] - theirs[i, :count]).max() <= TOLERANCE["front end rounding"]


@pytest.mark.parametrize("name", ["log_mel_l1", "multi_resolution_stft"])
def test_distances_are_of_the_rows_alone(name):
    distance, lengths = getattr(sound, name), np.array([4096, 2900])
    x, y = 0.1 * normal(0, 2, 4096), 0.1 * normal(1, 2, 4096)

    @jax.jit
    def found(x, y, lengths):
        return jax.value_and_grad(lambda x: distance(x, y, lengths)[1])(x)

    padded = [np.where(np.arange(4096)[None] < lengths[:, None], a, np.float32(np.nan)) for a in (x, y)]
    value, slope = found(*padded, lengths)
    assert value > 0
    assert np.isfinite(slope).all()
    assert not slope[0].any()
    assert not slope[1, 2900:].any()
    alone = distance(x[1:, :2900], y[1:, :2900], lengths[1:])
    assert relative(value, alone[0]) <= TOLERANCE["block"]
    # A row that is met: no distance, and no slope that is NaN
    value, slope = found(x, x, lengths)
    assert value == 0
    assert np.isfinite(slope).all()


def test_networks_hear_samples():
    """Similarity is 1 and distances are 0 to a recording itself; their gradients reach all of its samples."""
    params = {name: parameters(name, getattr(CONFIG, name)) for name in ("w2vbert", "campplus", "conditioner")}
    samples = np.stack([speech(0.3, features.MEL_RATE, seed) for seed in (0, 1)])
    samples[1] += 0.02 * normal(2, *samples.shape)[1]
    lengths, rate = jnp.array([6615, 5000]), features.MEL_RATE
    samples = jnp.asarray(samples)

    @jax.jit
    def heard(samples):
        given = params, CONFIG, samples, lengths
        return sound.style(*given, rate), sound.semantic(*given, rate)[0], sound.emotion(*given, rate)

    @jax.jit
    def compared(samples, style, semantic, emotion):
        def total(samples):
            given = params, CONFIG, samples, lengths
            found = (
                sound.speaker_similarity(*given, style, rate),
                sound.semantic_distance(*given, semantic, rate),
                sound.emotion_distance(*given, emotion, rate),
            )
            return sum(map(jnp.sum, found)), found

        return jax.grad(total, has_aux=True)(samples)

    known = heard(samples)
    _, (similarity, *distances) = compared(samples, *known)
    np.testing.assert_allclose(similarity, 1.0, atol=1e-5)
    for distance in distances:
        np.testing.assert_allclose(distance, 0.0, atol=1e-5)
    slope, found = compared(samples, *(x[::-1] for x in known))
    assert (np.asarray(found[0]) < 1 - 1e-4).all()
    assert (np.asarray(found[1]) > 1e-3).all()
    assert (np.asarray(found[2]) > 1e-6).all()
    assert np.isfinite(slope).all()
    assert np.abs(slope[0]).max() > 0
    assert not slope[1, 5000:].any()
