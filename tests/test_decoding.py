"""Greedy codes equal the reference's, processed scores too; sampling follows its distribution; caches grow unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, absolute, golden
from indextts_jax import buckets, decoding
from indextts_jax.decoding import Sampling
from indextts_jax.models import gpt
from tests.small import GPT, normal, parameters

GREEDY = Sampling(greedy=True)


def prefix_of(tiny, arrays):
    texts, emotion = arrays["seg0.text_tokens"], arrays["seg0.gpt.emo_vec"]
    latents = golden("en_greedy")["seg0.gpt.speech_conditioning_latent"]
    return gpt.prefix(tiny.params("gpt"), tiny.cfg.gpt, latents, emotion, texts, np.array([texts.shape[1]]))


def with_stop_bias(params, cfg, bias):
    """The weights with which decoding stops by itself (the tiny ones have -20 there)."""
    head = params["head"]
    return {**params, "head": {**head, "bias": head["bias"].at[cfg.stop_code].set(bias)}}


def test_greedy_codes_equal_reference(tiny):
    """Three segments of different lengths in one batch, each as the reference draws it alone."""
    arrays, params, cfg = golden("en_segments"), tiny.params("gpt"), tiny.cfg.gpt
    segments = [f"seg{i}" for i in range(3)]
    texts = [arrays[f"{segment}.text_tokens"][0] for segment in segments]
    lengths = np.array([len(text) for text in texts])
    assert len(set(lengths)) > 1
    padded = np.stack([np.pad(text, (0, lengths.max() - len(text))) for text in texts])
    latents = golden("en_greedy")["seg0.gpt.speech_conditioning_latent"].repeat(3, 0)
    emotion = np.concatenate([arrays[f"{segment}.gpt.emo_vec"] for segment in segments])
    prefix = gpt.prefix(params, cfg, latents, emotion, padded, lengths)
    drawn = decoding.generate(params, cfg, prefix, jax.random.split(jax.random.key(0), 3), GREEDY, 40)
    assert drawn.lengths.tolist() == [40] * 3
    assert not drawn.stopped.any()
    expected = np.concatenate([arrays[f"{segment}.gpt.codes"] for segment in segments])
    np.testing.assert_array_equal(drawn.codes[:, :40], expected)
    assert len({tuple(codes) for codes in expected.tolist()}) == 3


def test_greedy_stops_where_the_reference_stops(tiny):
    arrays, cfg = golden("en_stop_greedy"), tiny.cfg.gpt
    params = with_stop_bias(tiny.params("gpt"), cfg, 4.5)
    drawn = decoding.generate(params, cfg, prefix_of(tiny, arrays), jax.random.split(jax.random.key(0), 1), GREEDY, 60)
    codes = arrays["seg0.gpt.codes"][0]
    assert codes[-1] == cfg.stop_code
    assert bool(drawn.stopped[0])
    assert drawn.lengths.tolist() == [len(codes) - 1]
    np.testing.assert_array_equal(drawn.codes[0, : len(codes)], codes)


def test_processed_scores_equal_reference(tiny):
    """Under the reference's own sampled codes: −inf at the same places, the rest close."""
    arrays, params, cfg = golden("en_sample"), tiny.params("gpt"), tiny.cfg.gpt
    prefix, codes = prefix_of(tiny, arrays), arrays["seg0.gpt.codes"]
    scores, caches = gpt.prefill(params, cfg, prefix, capacity=128)
    seen = np.zeros(scores.shape, bool)
    seen[:, [1, cfg.start_code]] = True
    process = jax.jit(decoding.process)
    for i, stored in enumerate(arrays["seg0.gpt.processed_scores_per_step"]):
        ours = np.asarray(process(scores, seen, Sampling()))
        np.testing.assert_array_equal(np.isinf(ours), np.isinf(stored))
        assert absolute(ours[np.isfinite(ours)], stored[np.isfinite(stored)]) <= TOLERANCE["scores"]
        seen[0, codes[:, i]] = True
        scores, caches = gpt.step(params, cfg, caches, codes[:, i], prefix.lengths + i, np.array([i + 2]))


def reference_chain(scores, seen, sampling):
    """The chain written the long way round, in numpy: full sorts, as the definition reads."""
    penalty = sampling.repetition_penalty
    scores = np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = np.where(scores < np.sort(scores)[-min(sampling.top_k, len(scores))], -np.inf, scores)
    order = np.argsort(scores, kind="stable")
    p = np.exp(scores[order] - scores.max())
    removed = np.cumsum(p / p.sum()) <= 1 - sampling.top_p
    removed[-1] = False
    scores[order[removed]] = -np.inf
    return scores


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (7, 0.5), (3, 0.0), (100, 0.9)])
def test_process_follows_its_definition(top_k, top_p):
    rng = np.random.default_rng(top_k)
    scores, seen = rng.normal(size=(20, 40)).astype(np.float32) * 3, rng.random((20, 40)) < 0.3
    sampling = Sampling(top_k=top_k, top_p=top_p, temperature=0.7, repetition_penalty=2.0)
    ours = np.asarray(jax.jit(decoding.process)(scores, seen, sampling))
    for row, (a, b) in enumerate(zip(scores, seen, strict=True)):
        expected = reference_chain(a.astype(np.float64), b, sampling)
        np.testing.assert_array_equal(np.isinf(ours[row]), np.isinf(expected))
        kept = np.isfinite(expected)
        np.testing.assert_allclose(ours[row][kept], expected[kept], rtol=1e-5)


draw = jax.jit(decoding.draw, static_argnames="cfg")


def test_draws_follow_the_distribution(tiny):
    """Chi-square of 4000 draws against the probabilities of the processed scores."""
    cfg = tiny.cfg.gpt
    n = 4000
    scores = np.float32(0.7) * normal(3, 1, cfg.codes)
    scores[:, cfg.start_code] = -np.inf
    seen = np.zeros(scores.shape, bool)
    expected = np.asarray(jax.jit(decoding.process)(scores, seen, Sampling()), np.float64)[0]
    expected = np.exp(expected - expected.max())
    expected /= expected.sum()
    keys = jax.random.split(jax.random.key(4), n)
    scores[:, cfg.start_code] = 0
    drawn = draw(scores.repeat(n, 0), seen.repeat(n, 0), keys, np.zeros(n, np.int32), Sampling(), cfg)
    counts = np.bincount(np.asarray(drawn), minlength=cfg.codes)
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    chi = (np.square(counts[likely] - n * expected[likely]) / (n * expected[likely])).sum()
    freedom = likely.sum() - 1
    assert freedom >= 3
    assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_start_code_is_never_drawn(tiny):
    cfg = tiny.cfg.gpt
    scores = np.zeros((1, cfg.codes), np.float32)
    scores[:, cfg.start_code] = 50.0
    for sampling in (GREEDY, Sampling()):
        code = draw(scores, scores > 99, jax.random.split(jax.random.key(0), 1), np.array([0]), sampling, cfg)
        assert code[0] != cfg.start_code


def test_same_key_same_codes_and_growing_the_cache_changes_nothing(tiny, monkeypatch):
    """Sampled rows of one batch, with caches that grow and fit to the slot, equal rows alone in one large cache."""
    params, cfg = with_stop_bias(tiny.params("gpt"), tiny.cfg.gpt, 0.5), tiny.cfg.gpt
    one, keys, limit = prefix_of(tiny, golden("en_segments")), jax.random.split(jax.random.key(5), 3), 90
    batch = jax.tree.map(lambda a: np.repeat(a, 3, 0), one)
    capacities, grow = [], decoding._grow
    monkeypatch.setattr(decoding, "_grow", lambda state, to: capacities.append(to) or grow(state, to))
    P = int(one.lengths[0])
    monkeypatch.setattr(buckets, "CACHE", (P + decoding.CHUNK, P + limit - 1))
    together = jax.tree.map(np.asarray, decoding.generate(params, cfg, batch, keys, Sampling(), limit))
    assert capacities == [P + limit - 1]
    monkeypatch.setattr(buckets, "CACHE", (256, 512))
    assert len({tuple(row[:n]) for row, n in zip(together.codes.tolist(), together.lengths.tolist(), strict=True)}) == 3
    assert together.stopped.any()
    assert together.lengths.max() == limit
    for i in range(3):
        alone = jax.tree.map(np.asarray, decoding.generate(params, cfg, one, keys[i : i + 1], Sampling(), limit))
        assert alone.lengths[0] == together.lengths[i]
        assert alone.stopped[0] == together.stopped[i]
        n = int(alone.lengths[0])
        np.testing.assert_array_equal(alone.codes[0, :n], together.codes[i, :n])


def test_limits(monkeypatch):
    """One code, every code there is a position for, a stop at once; a prefix past the ladder; equal and other keys."""
    params, cfg = parameters("gpt", GPT), GPT
    texts, lengths = np.full((2, 5), 7, np.int32), np.array([5, 5])
    prefix = gpt.prefix(params, cfg, np.ones((2, 4, 16), np.float32), np.ones((2, 16), np.float32), texts, lengths)
    key, other = jax.random.split(jax.random.key(0))
    same, different = jnp.stack([key, key]), jnp.stack([key, other])

    def generate(params, keys, limit):
        return jax.tree.map(np.asarray, decoding.generate(params, cfg, prefix, keys, Sampling(), limit))

    monkeypatch.setattr(buckets, "CACHE", (32,))
    unending = with_stop_bias(params, cfg, -50.0)
    whole = generate(unending, different, 1000)
    assert whole.lengths.tolist() == [cfg.most_codes] * 2
    assert not whole.stopped.any()
    assert whole.codes[0].tolist() != whole.codes[1].tolist()
    for limit in (1, 2, cfg.most_codes - 1):
        cut = generate(unending, different, limit)
        assert cut.lengths.tolist() == [limit] * 2
        np.testing.assert_array_equal(cut.codes[:, :limit], whole.codes[:, :limit])
        assert (cut.codes[:, limit:] == cfg.stop_code).all()
    at_once = generate(with_stop_bias(params, cfg, 50.0), different, 1000)
    assert at_once.lengths.tolist() == [0, 0]
    assert at_once.stopped.all()
    twice = generate(unending, same, 1000)
    np.testing.assert_array_equal(twice.codes[0], twice.codes[1])
    monkeypatch.setattr(buckets, "CACHE", (4, 8))
    np.testing.assert_array_equal(generate(unending, different, 1000).codes, whole.codes)
    with pytest.raises(ValueError, match="max_codes is 0"):
        generate(params, same, 0)


@pytest.mark.parametrize("bad", [{"top_p": 1.5}, {"temperature": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_buckets_hold_and_go_on():
    assert [buckets.bucket(n, (4, 8, 15)) for n in (1, 4, 5, 15, 16, 23)] == [4, 4, 8, 15, 22, 29]
