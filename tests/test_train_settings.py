"""The file of settings: what it may hold, and what is said of what it may not."""

import pytest

from indextts_jax.errors import Error, NotFound
from indextts_jax.train import settings
from indextts_jax.train.settings import Settings, Speak


def read(tmp_path, text, **more):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return settings.read(path, **more)


def test_defaults_and_what_is_given(tmp_path):
    found = read(
        tmp_path, "data: corpus\nlearning_rate: 1e-3\ntrain: gpt/.*\nspeak: {voice: a.wav}\nloss: {positions: both}"
    )
    assert found == Settings(
        "corpus", learning_rate=1e-3, train=("gpt/.*",), speak=Speak(voice="a.wav"), loss={"positions": "both"}
    )
    assert read(tmp_path, "data: corpus", lora=4).lora_scale == 2.0
    assert read(tmp_path, "data: corpus\nlora_alpha: 4", lora=8).lora_scale == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings"),
        ("steps: 3", "the setting data is missing; add it"),
        ("data: corpus\nstep: 3", "unknown setting 'step'; write steps"),
        ("data: corpus\nsteps: 0", "steps is 0, but must be at least 1"),
        ("data: corpus\nsteps: 1.5", "steps is 1.5, but must be a whole number"),
        ("data: corpus\nsteps: true", "steps is True, but must be a whole number"),
        ("data: corpus\nlearning_rate: fast", "learning_rate is 'fast', but must be a number"),
        ("data: corpus\nlearning_rate: .nan", "learning_rate is nan, but must lie between 0 and 10"),
        ("data: corpus\ndtype: float16", "dtype is 'float16', but must be float32 or bfloat16"),
        ("data: corpus\nbatch: 6\naccumulate: 4", "batch is 6, which is no multiple of accumulate, 4"),
        ("data: corpus\nlora: 4\ntrain: [gpt/.*]", "train and lora exclude each other"),
        ("data: corpus\nspeak: {}", "the setting speak.voice is missing"),
        ("data: corpus\nspeak: {voices: a}", "unknown setting 'speak.voices'; write voice"),
        ("data: [a]", "data is .*, but must be a text"),
        ("data: &a corpus", "anchors"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, message):
    with pytest.raises(Error, match=message) as found:
        read(tmp_path, text)
    assert "train.yaml" in str(found.value)
    assert "\n" not in str(found.value)


def test_missing_file(tmp_path):
    with pytest.raises(NotFound, match=r"--config .*none\.yaml: no such file"):
        settings.read(tmp_path / "none.yaml")
