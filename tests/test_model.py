"""The public face: thin over the pure functions, and a pytree."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import indextts_jax as tts
from debug.golden import FIXTURES
from indextts_jax import audio, checkpoint, pipeline
from indextts_jax.decoding import Sampling

pytestmark = pytest.mark.whole

VOICE = FIXTURES / "audio" / "voice_24k.wav"
SHORT = tts.Options(Sampling(beams=1), max_codes=8, steps=1)


def test_the_readme(converted, tmp_path):
    """The lines of the README, on a path as text."""
    model = tts.load(str(converted))
    voice = model.listen(str(VOICE))
    model.speak("Hello.", voice, seed=0, options=SHORT).save(tmp_path / "hello.wav")
    samples, rate = audio.read(tmp_path / "hello.wav")
    assert rate == 22050
    key = jax.random.key(0)
    [speech] = pipeline.speak(model.params, model.cfg, [model.text.analyse("Hello.")], [voice], [key], SHORT)
    np.testing.assert_array_equal((samples * 32768).astype(np.int16), audio.to_int16(speech.samples))


def test_lists_and_what_goes_with_them(model, voice):
    """One voice, seed and emotion for all, or one for each; a text alone is the same text in a list."""
    other = voice._replace(style=-voice.style)
    alone = model.speak("One small test.", voice, 3, "happy=1", SHORT)
    same = model.speak(["One small test.", "Hello."], voice, 3, "happy=1", SHORT)
    each = model.speak(["One small test."] * 3, [voice, other, voice], [3, 3, 4], ["happy=1", "happy=1", None], SHORT)
    assert [len(spoken) for spoken in (same, each)] == [2, 3]
    for spoken in (same[0], each[0]):
        assert spoken.segments[0].codes.tolist() == alone.segments[0].codes.tolist()
        assert np.abs(spoken.samples - alone.samples).max() < 1e-4
    for spoken in each[1:]:
        assert not np.array_equal(spoken.samples, alone.samples)
    with pytest.raises(tts.Error, match="not parallel"):
        model.speak(["a b", "c d"], [voice], options=SHORT)


@pytest.mark.parametrize("dtype", ["int16", "float16", "half precision", 3])
def test_weights_in_another_dtype_are_refused(dtype):
    """Before anything is read."""
    for load in (tts.load, checkpoint.load_reader):
        with pytest.raises(tts.Error, match=rf"dtype is '?{dtype}'?, but must be float32, bfloat16 or int8"):
            load("no-such-folder", dtype)


def test_what_can_be_listened_to(model, voice, tmp_path):
    """A recording, samples, a Voice file; an emotion likewise."""
    tts.save_voice(tmp_path / "voice.safetensors", voice)
    for source in (VOICE, audio.recording(*audio.read(VOICE)), tmp_path / "voice.safetensors"):
        np.testing.assert_array_equal(model.listen(source).latents, voice.latents)
    file = FIXTURES / "audio" / "emotion.wav"
    one, two = model.feel(file, alpha=0.5), model.feel(audio.load_emotion(file))
    np.testing.assert_array_equal(one.vector, two.vector)
    assert (one.alpha, two.alpha) == (0.5, 1.0)


def test_a_model_is_a_pytree_of_its_parameters(model):
    """jit takes it as an argument and compiles once; what tree.map makes of it is a model that speaks."""
    leaves = jax.tree.leaves(model)
    assert len(leaves) == len(jax.tree.leaves(model.params)) > 100
    calls = []

    @jax.jit
    def total(model: tts.Model, x: jax.Array) -> jax.Array:
        calls.append(model.cfg)
        return x * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(model.params["prototypes"]))

    one, two = total(model, jnp.ones(())), total(jax.tree.map(lambda a: 2 * a, model), jnp.ones(()))
    assert float(two) == pytest.approx(2 * float(one))
    assert calls == [model.cfg]
    copied = jax.tree.map(lambda a: a, model)
    assert copied.text is model.text


def test_what_is_named_is_there_and_imported_late():
    code = """
import sys
import indextts_jax
assert "jax" not in sys.modules
assert set(indextts_jax.__all__) <= set(dir(indextts_jax))
for name in indextts_jax.__all__:
    getattr(indextts_jax, name)
assert "jax" in sys.modules
try:
    indextts_jax.absent
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'indextts_jax' has no attribute 'absent'\n"
