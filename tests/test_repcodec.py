"""RepCodec against the reference: codes identical, embeddings close; and that padding changes nothing."""

import jax
import numpy as np

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import repcodec


def test_encoder_equals_reference(tiny):
    arrays, params, cfg = golden("en_greedy"), tiny.params("repcodec"), tiny.cfg.repcodec
    features = arrays["w2v.spk.normalized"]
    x = jax.jit(repcodec.Encoder(cfg).apply)({"params": params["encoder"]}, features, np.array([features.shape[1]]))
    assert relative(x, arrays["codec.encoder.out"]) <= TOLERANCE["component"]


def test_codes_and_embeddings_equal_reference(tiny):
    arrays, params, cfg = golden("en_greedy"), tiny.params("repcodec"), tiny.cfg.repcodec
    features = arrays["w2v.spk.normalized"]
    codes, embeddings = repcodec.quantize(params, cfg, features, np.array([features.shape[1]]))
    np.testing.assert_array_equal(codes, arrays["codec.codes"])
    assert len(np.unique(codes)) > 10
    assert relative(embeddings, arrays["codec.S_ref"]) <= TOLERANCE["block"]
    drawn = repcodec.embed(params, cfg, arrays["seg0.gpt.codes"].astype(np.int32))
    assert relative(drawn, arrays["seg0.vq2emb"].transpose(0, 2, 1)) <= TOLERANCE["block"]


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
