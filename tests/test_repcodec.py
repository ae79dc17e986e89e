"""RepCodec: padding changes nothing. Parity: test_validate.py."""

import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import repcodec


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
