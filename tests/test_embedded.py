"""The voice that comes with the package: what is written of it, how it is named, and that it says what it is to say."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from indextts_jax import audio, checkpoint, cli, embedded, features, models, settings
from indextts_jax.decoding import Sampling
from indextts_jax.model import load
from indextts_jax.request import Options
from indextts_jax.train.recipes.tiny_voice import grammar, measure
from tests.recogniser import RATE, Recogniser

SENTENCES = list(itertools.islice(grammar.sentences(0, held_out=True), 12))
TRAIN = ("train", "gpt", "--config", "gpt.yaml", "--output", "run")
CARD = (Path(embedded.__file__).parent / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def recognise(tmp_path_factory):
    return Recogniser(tmp_path_factory.mktemp("recogniser"))


def rates(recognise, recordings: list[np.ndarray]) -> tuple[float, float]:
    """The part of words that is heard wrong: of the sentences, and of each one's neighbour."""
    heard = [recognise(audio.resample(samples, features.MEL_RATE, RATE)) for samples in recordings]
    spoken = [measure.words(sentence) for sentence in SENTENCES]
    count = sum(map(len, spoken))

    def part(texts: list[list[str]]) -> float:
        return sum(map(measure.wrong, heard, texts)) / count

    return part(spoken), part(spoken[1:] + spoken[:1])


def test_its_files_are_as_they_were_written():
    assert checkpoint.verify(embedded.FOLDER) == []


def test_its_card_says_what_is_there():
    cfg, _ = checkpoint.read_description(embedded.FOLDER)
    trees = [models.shapes(name, getattr(cfg, name)) for name in models.COMPONENTS]
    count = sum(leaf.size for leaf in jax.tree.leaves(trees))
    assert f"{count / 1e6:.1f} million parameters" in CARD
    sizes = [path.stat().st_size for path in embedded.FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 30e6
    assert f"{sum(sizes) / 1e6:.0f} MB" in CARD
    assert f"{len(grammar.vocabulary())} words" in CARD
    for path in embedded.VOICES.iterdir():
        assert path.name in CARD


def test_it_says_what_it_is_asked_to(model, recognise):
    voice = model.listen(embedded.VOICE)
    spoken = model.speak(SENTENCES, voice, list(range(len(SENTENCES))), options=Options(retries=2))
    wrong, of_another = rates(recognise, [one.samples for one in spoken])
    assert wrong <= 0.1
    assert of_another > 0.8


def test_an_emotion_by_weights_changes_nothing(model):
    """It knows none, and must not be led astray by one: every prototype has the emotion that all recordings have."""
    own, vectors = model.listen(embedded.VOICE).emotion, model.params["prototypes"]["vector"]
    np.testing.assert_allclose(vectors, np.broadcast_to(own, vectors.shape), atol=1e-5)


@pytest.mark.slow
def test_so_does_a_stream(model, recognise):
    voice, options = model.listen(embedded.VOICE), Options(Sampling(beams=1), steps=10)  # with 25 as many are wrong
    spoken = [
        np.concatenate([chunk.samples for chunk in model.stream(text, voice, n, None, options)])
        for n, text in enumerate(SENTENCES)
    ]
    assert rates(recognise, spoken)[0] <= 0.12


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_without_a_model_it_speaks_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INDEXTTS_CONFIG", "")
    monkeypatch.delenv("INDEXTTS_MODEL", raising=False)
    assert run("speak", "--text", SENTENCES[0], "--seed", 1, "--greedy", "-o", tmp_path / "a.wav") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "no model is named" in line]
    assert "so tiny is used" in line
    own = ("--model", "tiny", "--voice", embedded.VOICE, "--text", SENTENCES[0], "--seed", 1, "--greedy")
    assert run("speak", *own, "-o", tmp_path / "b.wav") == 0
    assert "no model is named" not in capsys.readouterr().err
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert run("info") == 0
    assert str(embedded.FOLDER) in capsys.readouterr().out


@pytest.mark.parametrize("command", [("prepare", "manifest.jsonl", "corpus"), TRAIN])
def test_nothing_is_trained_from_it_unless_it_is_named(command, monkeypatch, capsys):
    monkeypatch.setenv("INDEXTTS_CONFIG", "")
    monkeypatch.delenv("INDEXTTS_MODEL", raising=False)
    with pytest.raises(SystemExit):
        run(*command)
    assert re.search("no model is named: add --model DIR", capsys.readouterr().err)


def test_another_model_of_its_name_is_over_it(tmp_path):
    content = {settings.MODELS: {"tiny": str(tmp_path)}}
    assert settings.model_folder("tiny", content) == settings.written("tiny", content) == tmp_path
    assert settings.model_folder("tiny", {}) == settings.written("tiny", {}) == embedded.FOLDER
    assert settings.model_folder("./tiny", {}) == Path("tiny")


def test_another_model_needs_a_voice(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("speak", "--model", tmp_path, "--text", "Hello.", "-o", tmp_path / "a.wav")
    assert "required: --voice" in capsys.readouterr().err
