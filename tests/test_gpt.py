"""GPT-2: beams in one cache, and padding changes nothing. Parity: test_validate.py."""

import numpy as np

from debug.golden import TOLERANCE, relative
from indextts_jax.models import gpt
from tests.small import GPT, normal, parameters


def one_beam(params, cfg, caches, codes, slots, positions):
    """One code per row, which sees everything before it: -> (logits [B, V], caches)."""
    visible = np.arange(caches[0].k.shape[3])[None, None] <= slots[:, None, None]
    scores, caches = gpt.step(params, cfg, caches, codes[:, None], slots, positions, visible)
    return scores[:, 0], caches


def test_beams_share_a_cache():
    """Three beams, of which two go on from the first and one from the second, in one cache: as three rows alone."""
    params, cfg, rng = parameters("gpt", GPT), GPT, np.random.default_rng(2)
    texts, emotion = rng.integers(2, 50, (1, 5), np.int32), normal(1, 1, cfg.width)
    prefix = gpt.prefix(params, cfg, normal(0, 1, 4, cfg.width), emotion, texts, np.array([5]))
    _, caches = gpt.prefill(params, cfg, prefix, capacity=20)
    P, parents, codes = int(prefix.lengths[0]), [0, 0, 1], rng.integers(0, 40, (2, 1, 3), np.int32)
    visible = np.arange(20)[None, None] < np.full((1, 3, 1), P)
    visible[0, range(3), range(P, P + 3)] = True
    first, caches = gpt.step(params, cfg, caches, codes[0], np.array([P]), np.array([2]), visible)
    visible = visible[:, parents]
    visible[0, range(3), range(P + 3, P + 6)] = True
    second, _ = gpt.step(params, cfg, caches, codes[1], np.array([P + 3]), np.array([3]), visible)
    for beam, parent in enumerate(parents):
        _, caches = gpt.prefill(params, cfg, prefix, capacity=20)
        scores, caches = one_beam(params, cfg, caches, codes[0, :, parent], np.array([P]), np.array([2]))
        assert relative(first[0, parent], scores[0]) <= TOLERANCE["block"]
        scores, _ = one_beam(params, cfg, caches, codes[1, :, beam], np.array([P + 1]), np.array([3]))
        assert relative(second[0, beam], scores[0]) <= TOLERANCE["block"]


def test_padded_rows_equal_rows_alone():
    """Prefix, prefill, steps and the second pass of two rows of different lengths, together and alone."""
    params, cfg, rng = parameters("gpt", GPT), GPT, np.random.default_rng(2)
    latents, emotion = normal(0, 2, 4, cfg.width), normal(1, 2, cfg.width)
    texts, lengths = rng.integers(2, 50, (2, 9), np.int32), np.array([9, 1])
    codes = rng.integers(0, 40, (2, 6), np.int32)

    def run(latents, emotion, texts, lengths, codes):
        prefix = gpt.prefix(params, cfg, latents, emotion, texts, lengths)
        scores, caches = gpt.prefill(params, cfg, prefix, capacity=24)
        out = [scores]
        for i in range(codes.shape[1]):
            slots = np.asarray(prefix.lengths) + i
            scores, caches = one_beam(params, cfg, caches, codes[:, i], slots, np.full(len(lengths), i + 2))
            out.append(scores)
        return np.stack(out, axis=1), np.asarray(gpt.latents(params, cfg, prefix, codes))

    together = run(latents, emotion, texts, lengths, codes)
    for i, n in enumerate(lengths):
        row = slice(i, i + 1)
        alone = run(latents[row], emotion[row], texts[row, :n], lengths[row], codes[row])
        for a, b in zip(together, alone, strict=True):
            assert relative(a[row], b) <= TOLERANCE["block"]
