"""w2v-BERT: padding changes nothing. Parity: test_validate.py."""

import numpy as np

from debug.golden import TOLERANCE, relative
from indextts_jax.models import w2vbert
from tests.small import W2VBERT, normal, parameters


def test_a_hidden_last_frame_is_put_out_and_padding_changes_nothing():
    """Two rows, one with a hidden last frame, together with padding of nines and alone."""
    params, cfg = parameters("w2vbert", W2VBERT), W2VBERT
    features, place = normal(0, 2, 90, cfg.features), np.arange(90)[None]
    lengths, ends = np.array([33, 90]), np.array([33, 89])
    features = np.where((place < lengths[:, None])[:, :, None], features, np.float32(9.0))
    together = np.asarray(w2vbert.encode(params, cfg, features, place < ends[:, None], lengths))
    for i, n in enumerate(lengths):
        alone = w2vbert.encode(params, cfg, features[i : i + 1, :n], place[:, :n] < ends[i], lengths[i : i + 1])
        assert relative(together[i : i + 1, :n], alone) <= TOLERANCE["block"]
        assert not together[i, n:].any()
    assert np.linalg.norm(together[1, 89]) > 1
    ignored = np.asarray(w2vbert.encode(params, cfg, features[1:2], place < 90, lengths[1:2]))
    assert relative(ignored[:, :89], together[1:2, :89]) > 1e-3  # the mask matters


def test_scores_of_distances_by_a_product_are_the_scores():
    scores = normal(0, 2, 3, 9, 5) * 1e3
    place = np.clip(np.arange(9)[None] - np.arange(9)[:, None], -2, 2) + 2
    by_product = w2vbert._spread_by_product(scores, place)
    np.testing.assert_array_equal(by_product, w2vbert._spread(scores, place))
    assert by_product[1, 2, 3, 4] == scores[1, 2, 3, 3]
