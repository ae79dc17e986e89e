"""Ends of segments: no step is left, and nothing before the end is touched."""

import numpy as np
import pytest

from indextts_jax.ends import fade
from tests.small import normal

RATE = 22050


@pytest.mark.parametrize("ms", [1, 20, 1000])
def test_a_fade_ends_at_zero_and_touches_nothing_before(ms):
    samples = np.clip(0.3 * normal(0, 2 * RATE), -1, 1)
    kept = samples.copy()
    faded = fade(samples, RATE, ms)
    length = RATE * ms // 1000
    assert faded.dtype == np.float32
    np.testing.assert_array_equal(samples, kept)  # not in place
    np.testing.assert_array_equal(faded[:-length], samples[:-length])
    assert faded[-1] == 0
    assert (np.abs(faded) <= np.abs(samples)).all()
    ones = fade(np.ones(2 * RATE, np.float32), RATE, ms)[-length:]
    assert (np.diff(ones) <= 0).all()
    np.testing.assert_allclose(ones[length // 2 - 1], 0.5, atol=0.6 * np.pi / length)  # half way down in the middle
    assert 1 - ones[0] <= (np.pi / length) ** 2  # flat where it begins


def test_no_fade_gives_the_samples_themselves():
    samples = normal(1, 100)
    assert fade(samples, RATE, 0) is samples
    assert len(fade(samples[:0], RATE, 20)) == 0


def test_what_is_shorter_than_the_fade_fades_from_its_first_sample():
    faded = fade(np.ones(10, np.float32), RATE, 20)
    np.testing.assert_allclose(faded, 0.5 + 0.5 * np.cos(np.pi * np.arange(1, 11) / 10), rtol=1e-6, atol=1e-7)
