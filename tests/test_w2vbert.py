"""w2v-BERT against the reference, layer by layer, and that padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.models import w2vbert
from indextts_jax.models.layers import LayerNorm
from tests.small import W2VBERT, normal, parameters


@pytest.mark.parametrize(
    ("name", "part"), [("en_greedy", "spk"), ("en_greedy", "emo"), ("zh_greedy_emotion_audio", "emo")]
)
def test_features_equal_reference(tiny, name, part):
    arrays = golden(name)
    features = arrays[f"w2v.{part}.input_features"]
    T = features.shape[1]
    seen = arrays.get(f"w2v.{part}.attention_mask", np.ones((1, T))) > 0
    room = 256 - T  # one program for all recordings
    features, seen = np.pad(features, ((0, 0), (0, room), (0, 0))), np.pad(seen, ((0, 0), (0, room)))
    ours = w2vbert.encode(tiny.params("w2vbert"), tiny.cfg.w2vbert, features, seen, np.array([T]))
    assert relative(ours[:, :T], arrays[f"w2v.{part}.normalized"]) <= TOLERANCE["component"]


def test_projection_and_first_layer_equal_reference(tiny):
    arrays, cfg = golden("en_greedy"), tiny.cfg.w2vbert
    params = tiny.params("w2vbert")["encoder"]

    @jax.jit
    def project(params, x):
        x = LayerNorm(cfg.epsilon).apply({"params": params["norm"]}, x)
        return jnp.einsum("btf,fd->btd", x, params["project"]["kernel"]) + params["project"]["bias"][None, None]

    assert relative(project(params, arrays["w2v.spk.input_features"]), arrays["w2v.spk.hidden0"]) <= TOLERANCE["block"]
    seen, hidden = arrays["w2v.spk.attention_mask"] > 0, arrays["w2v.spk.hidden0"]
    y = jax.jit(w2vbert.Block(cfg).apply)({"params": params["layer_0"]}, hidden, seen, np.array([hidden.shape[1]]))
    assert relative(y, arrays["w2v.spk.hidden1"]) <= TOLERANCE["block"]


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
