"""Loudness: what the standard measures, reached without clipping."""

import importlib.util

import numpy as np
import pytest

from indextts_jax import audio, loudness
from indextts_jax.errors import Error
from tests.small import normal, speech

RATE = 22050


def tone(hertz, level, seconds=2.0):
    """A sine of a level in dB beside full scale."""
    return (10 ** (level / 20) * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


class TestWithTheLibrary:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("pyloudnorm")

    @pytest.mark.parametrize("level", [0, -20, -40])
    def test_a_tone_has_the_loudness_of_the_standard(self, level):
        """BS.1770-4: 997 Hz at full scale in one channel has -3.01 LKFS."""
        assert loudness.measure(tone(997, level), RATE) == pytest.approx(level - 3.01, abs=0.1)

    @pytest.mark.parametrize("lufs", [-60, -23, -16.5])
    def test_speech_becomes_as_loud_as_asked(self, lufs, caplog):
        samples = speech(3.0, RATE)
        made = loudness.normalize(samples, RATE, lufs)
        assert made.dtype == np.float32
        assert loudness.measure(made, RATE) == pytest.approx(lufs, abs=0.02)
        gains = made[samples != 0] / samples[samples != 0]
        np.testing.assert_allclose(gains, gains[0], rtol=1e-6)  # one number: no sample is bent
        assert not caplog.text
        silence = np.zeros(3 * RATE, np.float32)
        padded = loudness.normalize(np.concatenate([silence, samples, silence]), RATE, lufs)
        np.testing.assert_allclose(padded[len(silence) : -len(silence)], made, rtol=0.08)  # pauses are not measured

    @pytest.mark.parametrize("rate", [None, 8000, 16000, 48000])
    def test_nothing_clips(self, rate, caplog):
        """A loud click among quiet speech limits the gain; so does what lies between samples, and at other rates."""
        click = 0.01 * speech(3.0, RATE)
        click[RATE] = 0.5
        between = (0.1 * np.sin(np.pi / 2 * np.arange(2 * RATE) + np.pi / 4)).astype(np.float32)  # peaks 3 dB above
        for samples in (click, between, 0.9 * np.sign(normal(1, RATE)).astype(np.float32)):
            caplog.clear()
            made = loudness.normalize(samples, RATE, -5)
            assert loudness.true_peak(made, RATE) <= 10 ** (-1 / 20) + 1e-4
            reached = loudness.measure(made, RATE)
            limited = f"{reached:.1f} LUFS, not -5: louder, its peaks would clip" in caplog.text
            assert limited == (reached < -5.1)
            assert limited == (samples is not between)
            encoded = audio.encode(made, RATE, "wav", rate)
            assert abs(np.frombuffer(encoded[44:], np.int16).astype(int)).max() < 32767
        assert loudness.true_peak(between, RATE) == pytest.approx(0.1, rel=0.02)

    def test_a_peak_at_a_seam_is_found(self):
        samples = np.zeros(3 << 16, np.float32)
        samples[(1 << 16) - 1 : (1 << 16) + 1] = 0.5
        assert loudness.true_peak(samples, RATE) == pytest.approx(
            loudness.true_peak(samples[60000:70000], RATE), rel=1e-5
        )
        assert loudness.true_peak(samples, RATE) > 0.55

    @pytest.mark.parametrize("seconds", [0.01, 0.1, 0.39, 0.4, 0.41])
    def test_what_is_short_is_measured(self, seconds):
        samples = tone(1000, -20, seconds)
        assert loudness.measure(samples, RATE) == pytest.approx(-23, abs=1.5)
        assert loudness.measure(loudness.normalize(samples, RATE, -30), RATE) == pytest.approx(-30, abs=0.05)

    def test_silence_stays(self, caplog):
        for samples in (np.zeros(RATE, np.float32), np.zeros(5, np.float32), np.zeros(0, np.float32)):
            caplog.clear()
            assert loudness.normalize(samples, RATE, -16) is samples
            assert "the audio is silent, and stays so" in caplog.text

    def test_what_cannot_be_asked_for(self):
        for lufs in (0, -4.9, -61, float("nan"), float("inf")):
            with pytest.raises(Error, match="give one between -60 and -5"):
                loudness.normalize(tone(1000, -20), RATE, lufs)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Error, match=r"^--normalize needs pyloudnorm: pip install 'indextts-jax\[loudness\]'$"):
        loudness.require("--normalize")
