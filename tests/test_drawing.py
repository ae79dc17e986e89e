"""The loop that draws codes: rows depend on nothing beside them, limits hold, places are given away at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import golden
from indextts_jax import buckets, decoding, drawing, seeds
from indextts_jax.decoding import Sampling
from indextts_jax.models import gpt
from tests.marks import LONG
from tests.small import GPT, normal, parameters
from tests.test_decoding import GREEDY, SAMPLED, row, with_stop_bias


def prefix_of(tiny, arrays):
    texts, emotion = arrays["seg0.text_tokens"], arrays["seg0.gpt.emo_vec"]
    speaker = "seg0.gpt.speech_conditioning_latent"
    latents = arrays[speaker] if speaker in arrays else golden("en_greedy")[speaker]
    return gpt.prefix(tiny.params("gpt"), tiny.cfg.gpt, latents, emotion, texts, np.array([texts.shape[1]]))


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
    drawn = drawing.generate(params, cfg, prefix, jax.random.split(jax.random.key(0), 3), GREEDY, 40)
    assert drawn.lengths.tolist() == [40] * 3
    assert not drawn.stopped.any()
    expected = np.concatenate([arrays[f"{segment}.gpt.codes"] for segment in segments])
    np.testing.assert_array_equal(drawn.codes[:, :40], expected)
    assert len({tuple(codes) for codes in expected.tolist()}) == 3


def alike(a, b):
    """Whether two rows are the same: codes, length, whether it stopped, and the score but for rounding."""
    assert a.lengths == b.lengths
    assert a.stopped == b.stopped
    np.testing.assert_array_equal(a.codes[: a.lengths], b.codes[: b.lengths])
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


@pytest.mark.parametrize("beams", [pytest.param(1, marks=LONG), 3])
def test_rows_do_not_depend_on_neighbours_cache_or_admission(tiny, monkeypatch, beams):
    """Sampled rows in one batch, with caches that grow and are packed, two of them admitted when others have finished,
    equal rows alone in a large cache."""
    params, cfg = with_stop_bias(tiny.params("gpt"), tiny.cfg.gpt, 0.5), tiny.cfg.gpt
    sampling, keys, limit = Sampling(beams=beams), jax.random.split(jax.random.key(5), 4), 90
    one = prefix_of(tiny, golden("en_segments"))
    batch = jax.tree.map(lambda a: np.repeat(a, 4, 0), one)
    monkeypatch.setattr(decoding, "BLOCK", 64)  # so that there are several
    jax.clear_caches()
    grown, more = [], decoding.more
    monkeypatch.setattr(decoding, "more", lambda *inputs: grown.append(inputs[2]) or more(*inputs))
    together = drawing.generate(params, cfg, batch, keys, sampling, limit, batch=2)
    assert grown
    monkeypatch.setattr(buckets, "BLOCKS", (8,))
    assert len({tuple(codes[:n]) for codes, n in zip(together.codes.tolist(), together.lengths, strict=True)}) == 4
    assert together.stopped.any()
    for i in range(4):
        alike(row(together, i), row(drawing.generate(params, cfg, one, keys[i : i + 1], sampling, limit), 0))
    jax.clear_caches()


def test_limits(monkeypatch):
    """One code, every code there is a position for, a stop at once; a prefix past the ladder; equal and other keys."""
    params, cfg = parameters("gpt", GPT), GPT
    texts, lengths = np.full((2, 5), 7, np.int32), np.array([5, 5])
    prefix = gpt.prefix(params, cfg, np.ones((2, 4, 16), np.float32), np.ones((2, 16), np.float32), texts, lengths)
    key, other = jax.random.split(jax.random.key(0))
    same, different = jnp.stack([key, key]), jnp.stack([key, other])

    def generate(params, keys, limit):
        return drawing.generate(params, cfg, prefix, keys, SAMPLED, limit)

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
    monkeypatch.setattr(decoding, "BLOCK", 4)
    monkeypatch.setattr(buckets, "BLOCKS", (1, 2))
    jax.clear_caches()
    np.testing.assert_array_equal(generate(unending, different, 1000).codes, whole.codes)
    jax.clear_caches()
    with pytest.raises(ValueError, match="max_codes is 0"):
        generate(params, same, 0)


@pytest.mark.parametrize("beams", [1, 3])
def test_settings_of_rows_are_arrays(beams):
    """Rows with settings of their own, side by side, are what each is in a batch where all have them."""
    params, cfg = with_stop_bias(parameters("gpt", GPT), GPT, 0.5), GPT
    texts, lengths = np.full((3, 5), 7, np.int32), np.full(3, 5)
    prefix = gpt.prefix(params, cfg, normal(1, 3, 4, 16), normal(2, 3, 16), texts, lengths)
    several = Sampling(
        beams, top_p=np.array([0.3, 0.9, 1.0]), temperature=np.array([0.5, 1.0, 2.0]),
        repetition_penalty=np.array([1.0, 3.0, 10.0]), length_penalty=np.array([0.0, 1.0, -1.0]),
    )  # fmt: skip
    together = drawing.generate(params, cfg, prefix, [1, 2, 3], several, 13)
    at_once = decoding.decode(params, cfg, prefix, jnp.stack([seeds.key(i) for i in (1, 2, 3)]), several, 13)
    np.testing.assert_array_equal(together.codes, at_once.codes)
    for i in range(3):
        own = jax.tree.map(lambda value, i=i: float(value[i]), several)
        alone = drawing.generate(params, cfg, prefix, [1, 2, 3], own, 13)
        np.testing.assert_array_equal(alone.codes[i], together.codes[i])
        other = drawing.generate(params, cfg, prefix, [1, 2, 3], Sampling(beams), 13)
        assert (other.codes != together.codes).any()


def test_the_penalty_that_is_not_given_is_the_model_s():
    """In a model that has its own, and in one that leaves it to the reference."""
    params, texts = with_stop_bias(parameters("gpt", GPT), GPT, -9.0), np.full((1, 5), 7, np.int32)
    for cfg, own, other in ((GPT, 10.0, 1.0), (replace(GPT, repetition_penalty=1.0), 1.0, 10.0)):
        prefix = gpt.prefix(params, cfg, normal(1, 1, 4, 16), normal(2, 1, 16), texts, np.array([5]))
        drawn = [
            drawing.generate(params, cfg, prefix, [0], Sampling(1, repetition_penalty=penalty), 13).codes.tolist()
            for penalty in (None, own, other)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert decoding.decode(params, cfg, prefix, seeds.key(0)[None], Sampling(1), 13).codes.tolist() == drawn[0]


def test_a_row_that_stops_at_once_gives_its_place_at_once(monkeypatch):
    """No step is taken while a row is done and another waits."""
    params, cfg = with_stop_bias(parameters("gpt", GPT), GPT, 3.0), GPT
    texts, lengths = np.full((16, 5), 7, np.int32), np.full(16, 5)
    prefix = gpt.prefix(params, cfg, normal(1, 16, 4, 16), normal(2, 16, 16), texts, lengths)
    at_once, idle, admit, advance = [], [], decoding.admit, decoding.advance

    def admitted(cfg, state, *inputs):
        state = admit(cfg, state, *inputs)
        at_once.append(int((state.done & (state.counts == 1)).sum()))
        return state

    def advanced(params, cfg, state, waiting, chunks):
        idle.append(bool(waiting) and bool(state.done.any()))
        return advance(params, cfg, state, waiting, chunks)

    monkeypatch.setattr(decoding, "admit", admitted)
    monkeypatch.setattr(decoding, "advance", advanced)
    keys, sampling = list(range(16)), replace(SAMPLED, top_p=1.0, top_k=0)
    drawn = drawing.generate(params, cfg, prefix, keys, sampling, 12, batch=4)
    assert max(at_once) > 0
    assert len(set(drawn.lengths.tolist())) > 3
    assert not any(idle)
    monkeypatch.undo()
    np.testing.assert_array_equal(drawn.codes, drawing.generate(params, cfg, prefix, keys, sampling, 12).codes)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_of_nan_leaves_nothing_in_its_place(beams):
    """Its keys and values stay in the cache, where nobody sees them; but NaN times zero is NaN."""
    params, cfg = with_stop_bias(parameters("gpt", GPT), GPT, -50.0), GPT
    latents = normal(1, 2, 4, 16)
    latents[0] = np.nan
    texts, lengths = np.full((2, 5), 7, np.int32), np.full(2, 5)
    prefix = gpt.prefix(params, cfg, latents, normal(2, 2, 16), texts, lengths)
    after = drawing.generate(params, cfg, prefix, [1, 2], Sampling(beams), 12, batch=1)
    alone = drawing.generate(params, cfg, jax.tree.map(lambda a: a[1:], prefix), [2], Sampling(beams), 12)
    np.testing.assert_array_equal(after.codes[1], alone.codes[0])
