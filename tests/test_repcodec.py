"""RepCodec: padding changes nothing. Parity: test_validate.py."""

import jax.numpy as jnp
import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import repcodec
from tests.small import REPCODEC, normal, parameters


def test_padding_changes_nothing(tiny):
    params, cfg = tiny.params("repcodec"), tiny.cfg.repcodec
    features = golden("en_greedy")["w2v.spk.normalized"][:, :60]
    batch = np.concatenate([features, features[:, ::-1]])
    batch[1, 41:] = 7.0
    codes, embeddings = map(np.asarray, repcodec.quantize(params, cfg, batch, np.array([60, 41])))
    for i, n in enumerate([60, 41]):
        alone = repcodec.quantize(params, cfg, batch[i : i + 1, :n], np.array([n]))
        np.testing.assert_array_equal(codes[i : i + 1, :n], alone.codes)
        assert relative(embeddings[i : i + 1, :n], alone.embeddings) <= TOLERANCE["block"]


def test_distributions_mix_the_embeddings_of_codes():
    """One-hot ones are the codes, bit for bit, start and stop included, which the codec lacks."""
    params, codes = parameters("repcodec", REPCODEC), np.array([[0, 7, 19, 20, 21]])
    expected = np.asarray(repcodec.embed(params, REPCODEC, codes))
    np.testing.assert_array_equal(expected[0, 3:], expected[0, [2, 2]])
    np.testing.assert_array_equal(repcodec.embed(params, REPCODEC, np.eye(22, dtype=np.float32)[codes]), expected)
    own = repcodec.embed(params, REPCODEC, np.eye(20, dtype=np.float32)[codes[:, :3]])  # the codec's own vocabulary
    np.testing.assert_array_equal(own, expected[:, :3])
    mixed = np.zeros((1, 1, 22), np.float32)
    mixed[0, 0, [0, 7, 21]] = 0.2, 0.3, 0.5
    expected = 0.2 * expected[0, 0] + 0.3 * expected[0, 1] + 0.5 * expected[0, 2]
    assert relative(repcodec.embed(params, REPCODEC, mixed)[0, 0], expected) <= TOLERANCE["block"]
    assert repcodec.embed(params, REPCODEC, jnp.asarray(normal(0, 1, 3, 20), jnp.bfloat16)).dtype == jnp.float32
