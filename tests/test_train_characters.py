"""What the stage of the encoder tells of characters, and what its loss may have beside them."""

import jax
import numpy as np
import pytest

from indextts_jax.errors import Error
from indextts_jax.train import losses, stages
from indextts_jax.train.corpus import Corpus
from tests.small import CONFIG, normal, parameters
from tests.training import save_corpus


def distance(one: list[int], other: list[int]) -> int:
    """Levenshtein's, by its definition."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        new = [i]
        for j, b in enumerate(other, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (a != b)))
        row = new
    return row[-1]


def spelt(frames: np.ndarray) -> list[int]:
    """Characters of frames: equal neighbours are one, and 0 is none."""
    return [int(a) for a, b in zip(frames, [0, *frames], strict=False) if a not in (0, b)]


def test_errors_are_the_edit_distance():
    rng = np.random.default_rng(0)
    frames, lengths = rng.integers(0, 4, (40, 12)), rng.integers(1, 13, 40).astype(np.int32)
    texts, many = rng.integers(1, 4, (40, 7)).astype(np.int32), rng.integers(0, 8, 40).astype(np.int32)
    scores = np.eye(4, dtype=np.float32)[frames] + 0.1 * normal(0, 40, 12, 4).clip(-4, 4)
    found = losses.character_errors(jax.numpy.asarray(scores), lengths, jax.numpy.asarray(texts), many)
    wanted = [
        distance(spelt(row[:n]), text[:m].tolist())
        for row, n, text, m in zip(frames, lengths, texts, many, strict=True)
    ]
    assert found.tolist() == wanted
    assert len(set(wanted)) > 4


def test_reconstruction_is_added_and_padding_has_no_part_in_it():
    lengths, seen = np.array([9, 5], np.int32), np.arange(9)[None] < np.array([[9], [5]])
    characters, many = np.array([[1, 2], [3, 0]], np.int32), np.array([2, 1], np.int32)
    heads = {name: {"kernel": normal(1, 12, n), "bias": np.zeros(n, np.float32)} for name, n in
             (("ctc_head", 4), ("features_head", 160))}  # fmt: skip
    params = {"w2vbert": parameters("w2vbert", CONFIG.w2vbert), **heads}
    heard = normal(0, 2, 9, 160)

    def found(heard: np.ndarray, weight: float):
        batch = losses.EncoderBatch(*map(jax.numpy.asarray, (heard, seen, lengths, characters, many)))
        return losses.encoder(params, CONFIG, batch, jax.random.key(0), weight)

    loss, parts = found(heard, 0.5)
    assert float(loss) == pytest.approx(float(parts["ctc_loss"] + 0.5 * parts["reconstruction_loss"]), rel=1e-6)
    assert "reconstruction_loss" not in found(heard, 0.0)[1]
    heard[1, 5:] = 7.0
    assert float(found(heard, 0.5)[0]) == pytest.approx(float(loss), rel=1e-5)


def test_one_speaker_is_nobody_to_tell_apart(tmp_path):
    save_corpus(tmp_path / "corpus", lengths=(9,))
    with pytest.raises(Error, match="has one speaker"):
        stages.RECIPES["speaker"].heads(CONFIG, Corpus(tmp_path / "corpus"), tmp_path, jax.random.key(0))
