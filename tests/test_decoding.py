"""Greedy codes equal the reference's, processed scores too; sampling follows its distribution; caches grow unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, absolute, golden
from indextts_jax import buckets, decoding
from indextts_jax.decoding import Sampling
from indextts_jax.models import gpt

GREEDY = Sampling(greedy=True)


def prefix_of(tiny, arrays, segment="seg0"):
    texts = jnp.asarray(arrays[f"{segment}.text_tokens"])
    latents = golden("en_greedy")["seg0.gpt.speech_conditioning_latent"]
    return gpt.prefix(
        tiny.params("gpt"), tiny.cfg.gpt, jnp.asarray(latents), jnp.asarray(arrays[f"{segment}.gpt.emo_vec"]), texts,
        jnp.array([texts.shape[1]]),
    )  # fmt: skip


def with_stop_bias(params, cfg, bias):
    """The weights with which decoding stops by itself (the tiny ones have -20 there)."""
    head = params["head"]
    return {**params, "head": {**head, "bias": head["bias"].at[cfg.stop_code].set(bias)}}


@pytest.mark.parametrize("segment", ["seg0", "seg1", "seg2"])
def test_greedy_codes_equal_reference(tiny, segment):
    arrays = golden("en_segments")
    prefix = prefix_of(tiny, arrays, segment)
    drawn = decoding.generate(tiny.params("gpt"), tiny.cfg.gpt, prefix, jax.random.split(jax.random.key(0), 1), GREEDY, 40)
    assert drawn.lengths.tolist() == [40]
    assert not drawn.stopped[0]
    np.testing.assert_array_equal(drawn.codes[:, :40], arrays[f"{segment}.gpt.codes"])


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
    seen = jnp.zeros(scores.shape, bool).at[:, jnp.array([1, cfg.start_code])].set(True)
    process = jax.jit(decoding.process)
    for i, stored in enumerate(arrays["seg0.gpt.processed_scores_per_step"]):
        ours = np.asarray(process(scores, seen, Sampling()))
        np.testing.assert_array_equal(np.isinf(ours), np.isinf(stored))
        assert absolute(ours[np.isfinite(ours)], stored[np.isfinite(stored)]) <= TOLERANCE["scores"]
        code = jnp.asarray(codes[:, i])
        seen = seen.at[0, code].set(True)
        scores, caches = gpt.step(params, cfg, caches, code, prefix.lengths + i, jnp.array([i + 2]))


def reference_chain(scores, seen, sampling):
    """The chain written the long way round, in numpy: full sorts, as the definition reads."""
    scores = np.where(seen, np.where(scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty), scores)
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
    ours = np.asarray(decoding.process(jnp.asarray(scores), jnp.asarray(seen), sampling))
    for row, (a, b) in enumerate(zip(scores, seen, strict=True)):
        expected = reference_chain(a.astype(np.float64), b, sampling)
        np.testing.assert_array_equal(np.isinf(ours[row]), np.isinf(expected))
        kept = np.isfinite(expected)
        np.testing.assert_allclose(ours[row][kept], expected[kept], rtol=1e-5)


def test_draws_follow_the_distribution(tiny):
    """Chi-square of 4000 draws against the probabilities of the processed scores."""
    cfg = tiny.cfg.gpt
    n = 4000
    scores = jax.random.normal(jax.random.key(3), (1, cfg.codes)) * 0.7
    seen = jnp.zeros(scores.shape, bool)
    expected = np.asarray(jax.nn.softmax(decoding.process(scores.at[:, cfg.start_code].set(-jnp.inf), seen, Sampling())))[0]
    drawn = decoding.draw(
        jnp.repeat(scores, n, 0), jnp.repeat(seen, n, 0), jax.random.split(jax.random.key(4), n),
        jnp.zeros(n, jnp.int32), Sampling(), cfg,
    )  # fmt: skip
    counts = np.bincount(np.asarray(drawn), minlength=cfg.codes)
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    chi = (np.square(counts[likely] - n * expected[likely]) / (n * expected[likely])).sum()
    freedom = likely.sum() - 1
    assert freedom >= 3
    assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_start_code_is_never_drawn(tiny):
    cfg = tiny.cfg.gpt
    scores = jnp.zeros((1, cfg.codes)).at[:, cfg.start_code].set(50.0)
    for sampling in (GREEDY, Sampling()):
        code = decoding.draw(scores, scores > 99, jax.random.split(jax.random.key(0), 1), jnp.array([0]), sampling, cfg)
        assert code[0] != cfg.start_code


def test_same_key_same_codes_and_growing_the_cache_changes_nothing(tiny, monkeypatch):
    """Sampled rows of one batch, with caches that grow, equal rows alone in one large cache."""
    params, cfg = with_stop_bias(tiny.params("gpt"), tiny.cfg.gpt, 0.5), tiny.cfg.gpt
    arrays = golden("en_segments")
    one = prefix_of(tiny, arrays)
    batch = gpt.Prefix(jnp.repeat(one.embeddings, 3, 0), jnp.repeat(one.lengths, 3))
    keys = jax.random.split(jax.random.key(5), 3)
    monkeypatch.setattr(buckets, "CACHE", (96, 128, 192))
    together = decoding.generate(params, cfg, batch, keys, Sampling(), 90)
    monkeypatch.setattr(buckets, "CACHE", (256, 512))
    assert len({tuple(row[:n]) for row, n in zip(together.codes.tolist(), together.lengths.tolist(), strict=True)}) == 3
    for i in range(3):
        alone = decoding.generate(params, cfg, one, keys[i : i + 1], Sampling(), 90)
        assert alone.lengths[0] == together.lengths[i]
        assert alone.stopped[0] == together.stopped[i]
        n = int(alone.lengths[0])
        np.testing.assert_array_equal(alone.codes[0, :n], together.codes[i, :n])


@pytest.mark.parametrize("bad", [{"top_p": 1.5}, {"temperature": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_buckets_hold_and_go_on():
    assert [buckets.bucket(n, (4, 8, 15)) for n in (1, 4, 5, 15, 16, 23)] == [4, 4, 8, 15, 22, 29]
