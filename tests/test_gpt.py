"""GPT-2: beams in one cache, and padding changes nothing. Parity: test_validate.py."""

import numpy as np

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
