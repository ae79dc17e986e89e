"""Listening to a recording against the reference, and voice files."""

import numpy as np
import pytest

from debug.golden import FIXTURES, TOLERANCE, absolute, golden, relative
from indextts_jax.voice import load_voice, save_voice


def test_voice_equals_reference(model, voice):
    arrays = golden("en_greedy")
    assert relative(voice.latents, arrays["seg0.gpt.speech_conditioning_latent"][0]) <= TOLERANCE["component"]
    assert relative(voice.emotion, arrays["seg0.gpt.emo_vec"][0]) <= TOLERANCE["component"]
    assert relative(voice.base, arrays["seg0.gpt.emo_layer.spk.out"][0]) <= TOLERANCE["component"]
    assert relative(voice.style, arrays["campplus.out"][0]) <= TOLERANCE["style of a recording"]
    assert absolute(voice.mel, arrays["ref_mel"][0].T) <= TOLERANCE["front end rounding"]
    assert relative(voice.content, arrays["prompt_condition"][0]) <= TOLERANCE["component"]


def test_voice_files_round_trip(model, voice, tmp_path):
    path = tmp_path / "voice.safetensors"
    save_voice(path, voice)
    loaded = load_voice(path, model.cfg)
    for a, b in zip(loaded, voice, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["voice.safetensors"]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"voice\.safetensors: not a voice file, or cut short"):
        load_voice(path, model.cfg)
    save_voice(path, voice._replace(latents=np.zeros((32, 7), np.float32)))
    with pytest.raises(ValueError, match="made with another model"):
        load_voice(path, model.cfg)
    with pytest.raises(ValueError, match="not a voice file of this version"):
        load_voice(FIXTURES / "tiny" / "hf_cache" / "semantic_codec_model.safetensors", model.cfg)
