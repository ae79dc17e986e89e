"""Ends of segments: no step is left, and nothing before the end is touched."""

import numpy as np
import pytest

from indextts_jax.ends import fade, tail
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


# ---- tails: made cases, as in docs/ends.md ---------------------------------------------------------------------------

SEEDS = 20
LOUD = -16.8  # dBFS, of the vowels


def vowel(ms, pitch=120, release=60):
    """Harmonics with three formants, up to 0.5, that come in 15 ms and go in `release` ms."""
    time = np.arange(RATE * ms // 1000) / RATE
    formants = ((600, 120, 1.0), (1200, 150, 0.5), (2600, 200, 0.15))
    sound = np.zeros(len(time))
    for k in range(1, 40):
        weight = sum(strength / (1 + ((k * pitch - centre) / width) ** 2) for centre, width, strength in formants)
        sound += weight * np.sin(2 * np.pi * k * pitch * time + k)
    return 0.5 * sound / np.abs(sound).max() * envelope(len(time), 15, release)


def envelope(length, attack, release):
    """Up and down along quarters of a sine, ms."""
    weights, up, down = np.ones(length), RATE * attack // 1000, RATE * release // 1000
    weights[:up] *= np.sin(np.linspace(0, np.pi / 2, up))
    weights[length - down :] *= np.cos(np.linspace(0, np.pi / 2, down))
    return weights


def noise(rng, ms, level, kind="s"):
    """Noise of a level in dB beside the vowels: as in /s/ (rising by 12 dB an octave), white, or breath (falling)."""
    length = RATE * ms // 1000
    sound = rng.standard_normal(length + 2)
    if kind == "s":
        sound = np.diff(sound, 2)
    elif kind == "breath":
        spectrum = np.fft.rfft(sound)
        sound = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)))
    sound = sound[:length]
    return sound / np.sqrt((sound**2).mean()) * 10 ** ((LOUD + level) / 20)


def gap(rng, ms):
    return noise(rng, ms, -58, "breath")


def said(rng):
    """Three syllables with an /s/ before the second, 970 ms that end with a vowel."""
    return np.concatenate(
        [vowel(220), gap(rng, 40), noise(rng, 90, -12), vowel(260, 150), gap(rng, 60), vowel(300, 110)]
    )


def cuts(*parts):
    """Of each of 20 drawings of `said` and what follows it: how many ms are cut off."""
    found = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        samples = np.concatenate([said(rng), *(part(rng) for part in parts)]).astype(np.float32)
        found.append(1000 * (len(samples) - tail(samples, RATE)) / RATE)
    return found


def test_vowels_are_as_loud_as_is_said():
    assert 20 * np.log10(np.sqrt((vowel(300) ** 2).mean())) == pytest.approx(LOUD, abs=0.1)


@pytest.mark.parametrize("kind", ["s", "white"])
@pytest.mark.parametrize(
    ("level", "share"), [(-10, 0), (-15, 0), (-22, 1), (-30, 1), (-40, 1), (-45, 0.9), (-50, 0), (-60, 1)]
)
def test_hiss_after_a_gap_is_cut_and_no_speech(kind, level, share):
    """Louder hiss may be an /s/, and is kept; at -50 dB the gap before it is hardly quieter; -60 dB is silence."""
    for ms in (35, 60, 100, 170, 250):
        found = cuts(lambda rng: gap(rng, 50), lambda rng, ms=ms: noise(rng, ms, level, kind))
        whole = [ms - 3 <= cut <= ms + 50 for cut in found]  # all of the hiss, and not more than the gap
        assert all(good or cut == 0 for good, cut in zip(whole, found, strict=True)) or level == -50
        assert np.mean(whole) >= share if share else np.mean(whole) <= 0.15


def fricative(level, ms=120, fades=40):
    return lambda rng: noise(rng, ms, level) * envelope(RATE * ms // 1000, 15, fades)


KEPT = {
    "a vowel": [],
    "a vowel that fades for 290 ms": [lambda rng: vowel(300, release=290)],
    "a vowel that fades into breath": [
        lambda rng: vowel(600, release=1) * np.exp(-np.arange(RATE * 6 // 10) / 1470) + noise(rng, 600, -45, "white")
    ],
    "a vowel that is cut off": [lambda rng: vowel(300)[: RATE // 5]],
    "a quiet word after a gap": [lambda rng: gap(rng, 250), lambda rng: 0.1 * vowel(120)],
    "/s/ that is cut off": [lambda rng: fricative(-12, 300)(rng)[: RATE // 7]],
    **{f"/s/ at {level} dB": [fricative(level)] for level in (-5, -12, -18, -25, -30)},
    **{f"/ts/ at {level} dB": [lambda rng: gap(rng, 60), fricative(level)] for level in (-5, -12, -18, -25, -30)},
    **{
        f"/ts/ at {level} dB and 30 ms of silence": [
            lambda rng: gap(rng, 60), fricative(level), lambda rng: np.zeros(RATE * 30 // 1000)
        ]
        for level in (-5, -12, -18, -25, -30)
    },
    **{
        f"/ts/ at {level} dB that is cut off": [
            lambda rng: gap(rng, 60), lambda rng, level=level: fricative(level, 300)(rng)[: RATE // 8]
        ]
        for level in (-5, -12, -18)
    },
    "40 ms of silence": [lambda rng: np.zeros(RATE * 40 // 1000)],
    "noise of a room at -38 dB": [lambda rng: noise(rng, 400, -38, "white")],
    "half a second of hiss": [lambda rng: gap(rng, 50), lambda rng: noise(rng, 500, -30)],
    "breath at -25 dB, which is low": [lambda rng: gap(rng, 50), lambda rng: noise(rng, 170, -25, "breath")],
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_may_be_speech_is_kept(name):
    assert max(cuts(*KEPT[name])) == 0


def test_a_quiet_affricate_without_silence_after_it_is_taken_for_hiss():
    """What cannot be told from hiss: a gap, and noise 25 dB below the vowels up to the last sample."""
    assert min(cuts(lambda rng: gap(rng, 60), lambda rng: fricative(-25, 300)(rng)[: RATE // 8])) > 0


@pytest.mark.parametrize("loudness", [1.0, 0.1, 0.01])
def test_of_silence_50_ms_are_kept(loudness):
    silence = lambda rng: gap(rng, 500)  # noqa: E731
    for seed in range(3):
        samples = loudness * np.concatenate([said(np.random.default_rng(seed)), silence(np.random.default_rng(9))])
        kept = tail(samples.astype(np.float32), RATE)
        spoken = np.flatnonzero(np.abs(samples) > loudness * 0.005)[-1]
        assert spoken + RATE * 45 // 1000 <= kept <= spoken + RATE * 80 // 1000


@pytest.mark.parametrize(
    "samples", [np.zeros(0), np.zeros(7), np.zeros(RATE), np.full(RATE, 0.3), 0.01 * normal(2, RATE), normal(3, 300)]
)
def test_where_there_is_no_speech_nothing_is_cut(samples):
    assert tail(samples.astype(np.float32), RATE) == len(samples)
