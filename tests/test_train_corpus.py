"""A corpus on the disk, and how one is made of recordings."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import soundfile

from debug.golden import FIXTURES
from indextts_jax import audio, checkpoint, voice
from indextts_jax.errors import Error, NotFound
from indextts_jax.model import Model
from indextts_jax.text import TextFrontEnd
from indextts_jax.train import corpus, prepare
from indextts_jax.train.corpus import Corpus
from tests import small
from tests.small import speech
from tests.training import LENGTHS, save_corpus, save_model


def test_utterances_come_back_as_they_were_written(tmp_path):
    save_corpus(tmp_path / "corpus")
    found = Corpus(tmp_path / "corpus")
    assert len(found) == len(LENGTHS)
    assert [len(found[i].codes) for i in range(len(found))] == list(LENGTHS) == [line.codes for line in found.lines]
    assert found.speakers == ("a", "b")
    assert found.by_speaker["b"].tolist() == [1, 3, 5, 7]
    assert found.characters == ("E", "H", "L", "O")
    assert found.longest(10, "frames") == max(line.frames for line in found.lines if line.codes <= 10)


def test_another_corpus_has_another_digest(tmp_path):
    save_corpus(tmp_path / "a")
    save_corpus(tmp_path / "b")
    assert Corpus(tmp_path / "a").digest == Corpus(tmp_path / "b").digest
    (tmp_path / "b" / corpus.name(1)).unlink()
    assert Corpus(tmp_path / "a").digest != Corpus(tmp_path / "b").digest


def test_what_is_no_corpus_is_named(tmp_path):
    with pytest.raises(NotFound, match="no corpus is there; `indextts-jax prepare` makes one"):
        Corpus(tmp_path / "none")
    save_corpus(tmp_path / "corpus")
    path = tmp_path / "corpus" / corpus.name(1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Error, match=r"00001\.safetensors: not a shard of a corpus, or cut short"):
        Corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i, rate in enumerate((24000, 16000, 22050)):
        soundfile.write(folder / f"{i}.wav", speech(1.2 + 0.3 * i, rate, i), rate)
    (folder / "text.wav").write_text("no sound")
    rows = [
        {"audio": "0.wav", "text": "Hello world.", "speaker": "anna", "id": "first"},
        {"audio": "none.wav", "text": "Hello."},
        {"audio": "1.wav", "text": "It costs 5 dollars.", "emotion": "happy"},
        {"audio": "text.wav", "text": "Hello."},
        {"audio": "2.wav", "text": ""},
        {"audio": "2.wav", "txt": "Hello."},
        {"audio": "2.wav", "text": "Hello.", "id": "first"},
        {"audio": "2.wav", "text": "One more."},
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of random weights, with positions for real texts."""
    out = tmp_path_factory.mktemp("small") / "model"
    cfg = replace(small.CONFIG, gpt=replace(small.GPT, text_positions=100, code_positions=300))
    save_model(out, cfg)
    return out


@pytest.fixture(scope="module")
def model(folder):
    cfg, _ = checkpoint.read_description(folder)
    params = {
        name: small.parameters(name, getattr(cfg, name)) for name in (*prepare.COMPONENTS, "conditioner", "s2mel")
    }
    return Model(params, cfg, TextFrontEnd.load(FIXTURES / "tiny" / "bpe.model"))


def test_recordings_are_prepared_once(tmp_path, recordings, model, folder, monkeypatch):
    done = prepare.prepare(recordings / "m.jsonl", model, folder, tmp_path / "corpus", batch=2)
    assert done.utterances == 3
    assert [problem.line for problem in done.problems] == [2, 4, 5, 6, 7]
    said = "\n".join(problem.message for problem in done.problems)
    for part in ("none.wav: no such file", "text.wav cannot be read", "text is ''", "write text", "is that of line 1"):
        assert part in said
    found = Corpus(tmp_path / "corpus")
    assert [line.id for line in found.lines] == ["first", "line-000003", "line-000008"]
    assert found.lines[0].speaker == "anna"
    assert found.lines[1].emotion == "happy"
    assert found.lines[1].text == "IT COSTS FIVE DOLLARS."

    # What the encoders make of a recording alone is what speaking hears of it.
    heard = voice.listen(model.params, model.cfg, audio.load_speaker(recordings / "1.wav"))
    own = found[1]
    np.testing.assert_allclose(own.mel, heard.mel, atol=2e-3)
    np.testing.assert_allclose(own.style, heard.style, rtol=1e-3, atol=1e-3)
    assert len(own.codes) == len(own.semantic)

    def refuse(*_):
        raise AssertionError("what is there was made again")

    monkeypatch.setattr(prepare, "encode", refuse)
    again = prepare.prepare(recordings / "m.jsonl", model, folder, tmp_path / "corpus", batch=2)
    assert (again.utterances, again.kept) == (3, 1)


def test_what_an_encoder_made_is_made_anew_when_it_changes(tmp_path, recordings, model, folder, monkeypatch):
    """The corpus that a changed model finds becomes the one that it would have made."""
    other = replace(
        model, params={**model.params, "repcodec": small.parameters("repcodec", model.cfg.repcodec, seed=1)}
    )
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "repcodec" / "checksums.json").write_text("{}")
    made, asked = prepare.encode, []

    def watched(model, heard, fields):
        asked.append(set(fields))
        return made(model, heard, fields)

    monkeypatch.setattr(prepare, "encode", watched)
    prepare.prepare(recordings / "m.jsonl", model, folder, tmp_path / "one", batch=2)
    before = Corpus(tmp_path / "one")[1]
    asked.clear()
    done = prepare.prepare(recordings / "m.jsonl", other, tmp_path / "other", tmp_path / "one", batch=2)
    assert done.kept == 0
    assert all(fields == {"codes"} for fields in asked)
    assert asked
    prepare.prepare(recordings / "m.jsonl", other, tmp_path / "other", tmp_path / "two", batch=2)
    ours, fresh = Corpus(tmp_path / "one"), Corpus(tmp_path / "two")
    assert ours.digest == fresh.digest
    assert ours.lines == fresh.lines
    for one, two in zip(ours, fresh, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.array_equal(before.codes, ours[1].codes)


def test_a_manifest_of_nothing_usable_is_refused(tmp_path, model, folder):
    (tmp_path / "m.jsonl").write_text('{"audio": "none.wav"}\n')
    with pytest.raises(Error, match="no row can be used; line 1: there is no text; add the field text"):
        prepare.prepare(tmp_path / "m.jsonl", model, folder, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
