"""GPT-2: beams in one cache, and padding changes nothing. Parity: test_validate.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax.models import gpt
from tests.small import GPT, normal, parameters


def begin(params, cfg, prefix, slots):
    """-> (logits of the first code, what the prefixes left in blocks, `slots` free slots)."""
    scores, caches = gpt.prefill(params, cfg, prefix)
    rows, dtype = len(prefix.lengths), prefix.embeddings.dtype
    return scores, tuple((cache,) for cache in caches), gpt.empty(cfg, rows, slots, dtype)


def one_beam(params, cfg, caches, recent, codes, lengths, step):
    """The code of `step` of every row, which sees all before it: -> (logits [B, V], recent)."""
    P, R = caches[0][0].k.shape[3], recent[0].k.shape[3]
    visible = np.concatenate(
        [np.arange(P)[None] < np.asarray(lengths)[:, None], np.tile(np.arange(R) <= step, (len(codes), 1))], axis=1
    )
    scores, recent = gpt.step(
        params, cfg, caches, recent, codes[:, None], step, np.full(len(codes), step + 2), visible[:, None]
    )
    return scores[:, 0], recent


def test_beams_share_a_cache():
    """Three beams, of which two go on from the first and one from the second, in one cache: as three rows alone."""
    params, cfg, rng = parameters("gpt", GPT), GPT, np.random.default_rng(2)
    texts, emotion = rng.integers(2, 50, (1, 5), np.int32), normal(1, 1, cfg.width)
    prefix = gpt.prefix(params, cfg, normal(0, 1, 4, cfg.width), emotion, texts, np.array([5]))
    _, caches, recent = begin(params, cfg, prefix, 6)
    P, parents, codes = int(prefix.lengths[0]), [0, 0, 1], rng.integers(0, 40, (2, 1, 3), np.int32)
    visible = np.tile(np.arange(P + 6) < P, (1, 3, 1))
    visible[0, range(3), range(P, P + 3)] = True
    first, recent = gpt.step(params, cfg, caches, recent, codes[0], 0, np.array([2]), visible)
    visible = visible[:, parents]
    visible[0, range(3), range(P + 3, P + 6)] = True
    second, _ = gpt.step(params, cfg, caches, recent, codes[1], 3, np.array([3]), visible)
    for beam, parent in enumerate(parents):
        _, caches, recent = begin(params, cfg, prefix, 2)
        scores, recent = one_beam(params, cfg, caches, recent, codes[0, :, parent], [P], 0)
        assert relative(first[0, parent], scores[0]) <= TOLERANCE["block"]
        scores, _ = one_beam(params, cfg, caches, recent, codes[1, :, beam], [P], 1)
        assert relative(second[0, beam], scores[0]) <= TOLERANCE["block"]


def test_padded_rows_equal_rows_alone():
    """Prefix, prefill, steps and the second pass of two rows of different lengths, together and alone."""
    params, cfg, rng = parameters("gpt", GPT), GPT, np.random.default_rng(2)
    latents, emotion = normal(0, 2, 4, cfg.width), normal(1, 2, cfg.width)
    texts, lengths = rng.integers(2, 50, (2, 9), np.int32), np.array([9, 1])
    codes = rng.integers(0, 40, (2, 6), np.int32)

    def run(latents, emotion, texts, lengths, codes):
        prefix = gpt.prefix(params, cfg, latents, emotion, texts, lengths)
        scores, caches, recent = begin(params, cfg, prefix, codes.shape[1])
        out = [scores]
        for i in range(codes.shape[1]):
            scores, recent = one_beam(params, cfg, caches, recent, codes[:, i], prefix.lengths, i)
            out.append(scores)
        return np.stack(out, axis=1), np.asarray(gpt.latents(params, cfg, prefix, codes))

    together = run(latents, emotion, texts, lengths, codes)
    for i, n in enumerate(lengths):
        row = slice(i, i + 1)
        alone = run(latents[row], emotion[row], texts[row, :n], lengths[row], codes[row])
        for a, b in zip(together, alone, strict=True):
            assert relative(a[row], b) <= TOLERANCE["block"]


def test_the_second_pass_in_parts():
    """Fed code by code, in twos and in fives, with what is not known yet in the padding: as in one pass."""
    params, cfg, rng = parameters("gpt", GPT), GPT, np.random.default_rng(2)
    latents, emotion = normal(0, 2, 4, cfg.width), normal(1, 2, cfg.width)
    texts, lengths = rng.integers(2, 50, (2, 9), np.int32), np.array([9, 1])
    codes, unknown = rng.integers(0, 40, (2, 10), np.int32), rng.integers(0, 40, (2, 5), np.int32)
    prefix = gpt.prefix(params, cfg, latents, emotion, texts, lengths)
    whole = gpt.latents(params, cfg, prefix, codes)
    before = np.concatenate([np.full((2, 1), cfg.start_code, np.int32), codes, unknown], axis=1)
    P = prefix.embeddings.shape[1]
    for size in (1, 2, 5):
        caches, parts = gpt.prefill(params, cfg, prefix)[1], []
        for first in range(0, 10, size):
            caches = gpt.widen(caches, max(caches[0].k.shape[3], P + first + 5))
            part, caches = gpt.extend(
                params, cfg, caches, P, prefix.lengths, before[:, first : first + 5], np.int32(first)
            )
            parts.append(part[:, :size])
        assert relative(np.concatenate(parts, axis=1), whole) <= TOLERANCE["block"], size


@pytest.fixture(scope="module")
def forced():
    """Parameters, a prefix of two rows, codes of which the second row has four, and a mask of what counts."""
    params, rng = parameters("gpt", GPT), np.random.default_rng(2)
    texts = rng.integers(2, 50, (2, 9), np.int32)
    prefix = gpt.prefix(params, GPT, normal(0, 2, 4, GPT.width), normal(1, 2, GPT.width), texts, np.array([9, 1]))
    return params, prefix, rng.integers(0, 40, (2, 6), np.int32), np.array([6, 4])


def test_log_probabilities_are_those_of_decoding(forced):
    """Fed code by code, the stop code last: the same, whatever stands past a row's end."""
    params, prefix, codes, lengths = forced
    scores, caches, recent = begin(params, GPT, prefix, 6)
    steps = [scores]
    for i in range(6):
        scores, recent = one_beam(params, GPT, caches, recent, codes[:, i], prefix.lengths, i)
        steps.append(scores)
    expected = np.asarray(jax.nn.log_softmax(jnp.stack(steps, axis=1), axis=-1))  # [2, 7, V]
    found = np.asarray(gpt.log_probabilities(params, GPT, prefix, codes, lengths))
    assert found.shape == (2, 7)
    for row, n in enumerate(lengths):
        drawn = [*codes[row, :n], GPT.stop_code]
        assert relative(found[row, : n + 1], expected[row, range(n + 1), drawn]) <= TOLERANCE["block"]
        assert not found[row, n + 1 :].any()
    codes = np.where(np.arange(6) < lengths[:, None], codes, 0)
    np.testing.assert_array_equal(gpt.log_probabilities(params, GPT, prefix, codes, lengths), found)


def test_log_probabilities_as_the_second_pass_sees_them(forced):
    """The softmax over the scores of its latents: not those of decoding, where position 1 is skipped."""
    params, prefix, codes, lengths = forced
    scores = gpt.logits(params, gpt.latents(params, GPT, prefix, codes))
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(scores, axis=-1)), codes[:, :, None], axis=2)[:, :, 0]
    found = np.asarray(gpt.log_probabilities(params, GPT, prefix, codes, lengths, "second_pass"))
    decoding = np.asarray(gpt.log_probabilities(params, GPT, prefix, codes, lengths))
    for row, n in enumerate(lengths):
        assert relative(found[row, :n], expected[row, :n]) <= TOLERANCE["block"]
    np.testing.assert_array_equal(found[:, 0], decoding[:, 0])  # nothing was fed yet
    assert relative(found[:, 1:4], decoding[:, 1:4]) > 1e-3


def test_slopes_of_log_probabilities(forced):
    """Of every parameter, in a direction that leans towards the gradient: against finite differences and forwards."""
    params, prefix, codes, lengths = forced

    def total(params):
        return gpt.log_probabilities(params, GPT, prefix, codes, lengths).sum()

    slopes = jax.jit(jax.grad(total))(params)
    size = sum(float(jnp.vdot(a, a)) for a in jax.tree.leaves(slopes)) ** 0.5
    direction = jax.tree.map(lambda a: a / size, slopes)
    along = jax.jit(lambda params: jax.jvp(total, (params,), (direction,)))
    assert abs(float(along(params)[1]) - size) <= TOLERANCE["block"] * size
    ends = [jax.tree.map(lambda a, b, step=step: a + step * b, params, direction) for step in (0.01, -0.01)]
    up, down = (float(along(end)[0]) for end in ends)
    assert abs((up - down) / 0.02 - size) <= TOLERANCE["gradient"] * size


def test_one_hot_distributions_are_codes_to_the_second_pass(forced):
    params, prefix, codes, _ = forced
    expected = gpt.latents(params, GPT, prefix, codes)
    for vocabulary in (GPT.code_vocabulary, 40):  # with start and stop, and without
        ours = gpt.latents(params, GPT, prefix, np.eye(vocabulary, dtype=np.float32)[codes])
        assert relative(ours, expected) <= TOLERANCE["block"]
    with pytest.raises(ValueError, match="43 codes, but the GPT has 42"):
        gpt.latents(params, GPT, prefix, np.zeros((2, 6, 43), np.float32))


def test_blocks_that_are_computed_anew(forced):
    """`remat`: the same gradient, for which a block keeps little but what goes into it."""
    params, prefix, codes, _ = forced

    def latents(x, remat):
        return gpt.latents(params, GPT, gpt.Prefix(x, prefix.lengths), codes, remat)

    slopes, kept = [], []
    for remat in (False, True):
        value, back = jax.vjp(partial(latents, remat=remat), prefix.embeddings)
        slopes.append(back(value)[0])
        kept.append({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(back)})
    assert relative(slopes[1], slopes[0]) <= TOLERANCE["block"]
    weights = {id(leaf) for leaf in jax.tree.leaves(params)}
    plain, again = (sum(size for i, size in one.items() if i not in weights) for one in kept)
    assert again < 0.3 * plain
