"""Emotions by weights, recording: the reference's vectors and its rules, files, and bad input."""

import jax
import numpy as np
import pytest

from debug.golden import FIXTURES, TOLERANCE, golden, relative
from indextts_jax import emotion
from indextts_jax.emotion import Emotion
from indextts_jax.models import prototypes
from tests.small import normal

WEIGHTS = (0.3, 0.0, 0.2, 0.0, 0.0, 0.1, 0.0, 0.1)


def resolved(tiny, felt, own, style):
    return emotion.resolve(tiny.params("prototypes"), tiny.cfg.prototypes, felt, own, own, style)


def test_weights_give_the_reference_vector(tiny):
    """Rows by cosine, mixed, and the rest of the voice's own emotion."""
    arrays = golden("zh_beam3_emotion_vector")
    own, expected = arrays["seg0.gpt.emovec_merged"][0], arrays["seg0.gpt.emo_vec"][0]
    style = golden("zh_greedy_emotion_audio")["campplus.out"][0]  # of the same recording
    assert relative(resolved(tiny, Emotion(WEIGHTS), own, style), expected) <= TOLERANCE["block"]
    assert relative(resolved(tiny, Emotion(WEIGHTS, alpha=0.9), own, style), expected) > 0.01
    assert relative(resolved(tiny, Emotion(WEIGHTS[::-1]), own, style), expected) > 0.01
    assert relative(resolved(tiny, Emotion(WEIGHTS), own, -style), expected) > 0.01
    np.testing.assert_array_equal(resolved(tiny, None, own, style), own)
    np.testing.assert_allclose(resolved(tiny, Emotion([0.0] * 8), own, style), own, rtol=1e-6)


def test_rows_by_cosine_and_at_random(tiny):
    cfg, params, style = tiny.cfg.prototypes, tiny.params("prototypes"), normal(0, 3, tiny.cfg.prototypes.style)
    rows = np.asarray(prototypes.similar(params, cfg, style))
    known = np.asarray(params["style"], np.float64)
    cosine = style @ known.T / np.linalg.norm(known, axis=1)
    for i, (start, count) in enumerate(zip(cfg.starts, cfg.groups, strict=True)):
        np.testing.assert_array_equal(rows[:, i], start + cosine[:, start : start + count].argmax(1))
    drawn = np.stack([prototypes.drawn(jax.random.key(i), cfg) for i in range(40)])
    for i, (start, count) in enumerate(zip(cfg.starts, cfg.groups, strict=True)):
        assert set(drawn[:, i]) <= set(range(start, start + count))
        assert len(set(drawn[:, i])) >= min(count, 2)
    own = normal(1, cfg.width)
    one, two, again = (resolved(tiny, Emotion(WEIGHTS, seed=seed), own, style[0]) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert relative(one, two) > 0.01


def test_a_recording_is_mixed_in(tiny):
    base, own, vector = normal(0, 96), normal(1, 96), normal(2, 96)
    felt = Emotion(vector=vector, alpha=0.25)
    found = emotion.resolve(tiny.params("prototypes"), tiny.cfg.prototypes, felt, own, base, normal(3, 192))
    np.testing.assert_allclose(found, 0.75 * base + 0.25 * vector, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the emotion has width 5, but the model 96"):
        emotion.resolve(tiny.params("prototypes"), tiny.cfg.prototypes, Emotion(vector=np.zeros(5)), own, base, base)


def test_alpha_scales_and_truncates():
    assert emotion.scaled((0.33333, 0.12345), 1.0) == (0.33333, 0.12345)
    assert emotion.scaled((0.33339, 0.12345, 1.2), 0.5) == (0.1666, 0.0617, 0.6)


def test_normalize_follows_the_reference():
    """0.9375, 0.875, 1, 1, 0.9375, 0.9375, 0.6875, 0.5625, then 0.8 at most."""
    assert emotion.normalize([0.4, 0, 0, 0, 0, 0, 0, 0.4]) == (0.375, 0, 0, 0, 0, 0, 0, 0.225)
    cut = emotion.normalize([1.0] * 8)
    assert sum(cut) == pytest.approx(0.8)
    assert cut[6] / cut[2] == pytest.approx(0.6875)


def test_weights_as_people_write_them():
    assert emotion.parse("happy=0.6,calm=0.2") == (0.6, 0, 0, 0, 0, 0, 0, 0.2)
    assert emotion.parse(" calm = 1.2 ") == (0, 0, 0, 0, 0, 0, 0, 1.2)
    assert emotion.parse("0.6,0,0,0,0,0,0,0.2") == (0.6, 0, 0, 0, 0, 0, 0, 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("happy=1.3", "happy is 1.3, but must lie between 0 and 1.2"),
        ("0,0,-0.1,0,0,0,0,0", "sad is -0.1, but must lie between 0 and 1.2"),
        ("happy=nan", "happy is nan, but must lie between"),
        ("joy=1", "emotion 'joy' is none of happy, angry"),
        ("0.1,0.2", "2 weights, but there are 8: happy"),
        ("happy", "write happy=0.6,calm=0.2 or the eight weights"),
        ("happy=much", "write happy=0.6,calm=0.2"),
        ("", "write happy=0.6"),
    ],
)
def test_bad_weights_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        emotion.parse(text)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "either weights or"),
        ({"weights": WEIGHTS, "vector": np.zeros(3)}, "either weights or"),
        ({"weights": WEIGHTS, "alpha": 1.5}, "alpha is 1.5, but must lie between 0 and 1"),
        ({"vector": np.zeros(3), "seed": 1}, "none to draw"),
    ],
)
def test_bad_emotions_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Emotion(**bad)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [Emotion(WEIGHTS, alpha=0.7, seed=3), Emotion(vector=normal(0, 96), alpha=0.25)])
def test_files_round_trip(made, tmp_path):
    path = tmp_path / "felt.safetensors"
    emotion.save(path, made)
    again = emotion.load(path)
    assert (again.alpha, again.seed) == (made.alpha, made.seed)
    if made.weights is None:
        np.testing.assert_array_equal(again.vector, made.vector)
    else:
        assert tuple(again.weights) == WEIGHTS
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"felt\.safetensors: not an emotion file, or cut short"):
        emotion.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        emotion.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="of another kind or version"):
        emotion.load(FIXTURES / "tiny" / "hf_cache" / "semantic_codec_model.safetensors")
