"""IndexTTS-2.5 spoken with: codes and samples of the reference, batches, streams, languages, and what the library says.

Its networks are held to the reference one by one in tests/test_version_25.py, its text front end in
tests/test_multilingual.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from debug.golden import FIXTURES, TOLERANCE, absolute, read, relative
from indextts_jax import audio, byte_pairs, checkpoint, convert, pipeline, scheduling
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.model import Model, load
from indextts_jax.render import render, spoken_frames, text_batch
from indextts_jax.request import Chunk, Given, Options, Streaming
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice, listen, load_voice, save_voice
from tests import small
from tests.test_version_25 import assembled

pytestmark = pytest.mark.whole

GREEDY = Options(Sampling(beams=1, sample=False), max_codes=24, fade_ms=0)
QUICK = Options(Sampling(beams=1), max_codes=24, steps=1)
TEXT = "Hello, this is a small test."


@pytest.fixture(scope="module")
def official_25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 2.5 as a converted folder, all of it."""
    place = tmp_path_factory.mktemp("whole")
    convert.convert(assembled(place / "tiny25"), place / "converted", strict=True)
    return place / "converted"


@pytest.fixture(scope="module")
def official(official_25: Path) -> Model:
    return load(official_25)


@pytest.fixture(scope="module")
def model(official: Model) -> Model:
    """The one with a small vocoder."""
    params, cfg = small.with_small_vocoder(official.params, official.cfg)
    return replace(official, params=params, cfg=cfg)


@pytest.fixture(scope="module")
def voice(official: Model) -> Voice:
    return listen(official.params, official.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))


def ids_of(arrays, segments: int, language: str) -> Analysis:
    """The ids of a golden file as a text, without the stop that the reference appends."""
    ids = [arrays[f"seg{i}.text_tokens"][0, :-1].tolist() for i in range(segments)]
    return Analysis("", [], [], [[]] * segments, ids, [], language=language)


# ---- against the reference ------------------------------------------------------------------------------------------


def test_a_sentence_equals_reference(official, voice):
    """From the recording to samples, codes drawn greedily."""
    arrays = read(FIXTURES / "golden" / "v25_greedy.npz")
    assert voice.latents.shape == (1, official.cfg.gpt.width)
    assert relative(voice.content, arrays["prompt_condition"][0]) <= TOLERANCE["component"]
    noise = Given(noise=arrays["seg0.cfm.noise"][0].T)
    [speech] = pipeline.speak(
        official.params, official.cfg, [ids_of(arrays, 1, "en")], [voice], [0], GREEDY, given=[[noise]]
    )
    [segment] = speech.segments
    assert segment.codes.tolist() == arrays["seg0.gpt.codes"][0].tolist()
    assert absolute(segment.mel, arrays["seg0.bigvgan.in"][0].T) <= TOLERANCE["mel"]
    theirs = np.trunc(np.clip(32767 * arrays["seg0.bigvgan.out"][0, 0], -32767, 32767))
    assert absolute(audio.to_int16(speech.samples).astype(np.int32), theirs.astype(np.int32)) <= TOLERANCE["samples"]


def test_segments_beams_an_emotion_and_a_duration_equal_reference(model, voice):
    """Two segments in Chinese, three beams, an emotion vector, ids of start and stop inside a text, 1.3 times as long."""
    arrays = read(FIXTURES / "golden" / "v25_segments.npz")
    meta = json.loads(str(arrays["meta"]))
    options = Options(Sampling(beams=3, sample=False), max_codes=12, fade_ms=0, steps=1, speed=1 / meta["duration"])
    text, felt = ids_of(arrays, 2, "zh"), Emotion(weights=tuple(meta["emo_vector"]))
    [speech] = pipeline.speak(model.params, model.cfg, [text], [voice], [0], options, [felt])
    for i, segment in enumerate(speech.segments):
        assert segment.codes.tolist() == arrays[f"seg{i}.gpt.codes"][0].tolist()
    assert len(speech.samples) == round(meta["audio_seconds"] * speech.rate)
    # Another language is another sentence.
    [other] = pipeline.speak(model.params, model.cfg, [text._replace(language="en")], [voice], [0], options, [felt])
    assert [segment.codes.tolist() for segment in other.segments] != [s.codes.tolist() for s in speech.segments]


# ---- the library ----------------------------------------------------------------------------------------------------


def test_side_by_side_as_alone(model, voice):
    """Texts of several languages in one batch: each as it is by itself, a code of 25 a second as two frames."""
    texts = [TEXT, "今天天气很好。", "مرحبا بكم.", "Hello, this is a small test, and another one."]
    together = model.speak(texts, voice, options=QUICK)
    for text, speech in list(zip(texts, together, strict=True))[1:3]:
        alone = model.speak(text, voice, options=QUICK)
        [segment], [other] = speech.segments, alone.segments
        assert segment.codes.tolist() == other.codes.tolist()
        assert relative(speech.samples, alone.samples) <= TOLERANCE["component"]
        assert len(alone.samples) == spoken_frames(2 * len(other.codes)) * model.cfg.bigvgan.hop
    [timed] = pipeline.speak(model.params, model.cfg, [model.text.analyse(TEXT)], [voice], [0], QUICK, duration=1.25)
    assert abs(len(timed.samples) / timed.rate - 1.25) < 0.01


def test_the_pure_function_is_the_pipeline(model, voice):
    """`render` of the codes and the noise of a segment gives its mel."""
    [request] = pipeline.requests(model.params, model.cfg, model.text.analyse(TEXT), voice, 3, QUICK)
    assert request.language == byte_pairs.language_id("en")
    codes = np.random.default_rng(0).integers(0, 128, 16)
    noise = small.normal(0, len(voice.mel) + spoken_frames(32), model.cfg.s2mel.mels)
    request = replace(request, given=Given(codes=codes, noise=noise))
    [result] = scheduling.run(model.params, model.cfg, [request], 1, mels=True)
    assert result.error is None
    from indextts_jax.render import gather, target_frames

    drawn = np.zeros((1, target_frames(32), model.cfg.s2mel.mels), np.float32)
    drawn[0, : spoken_frames(32)] = noise[len(voice.mel) :]
    found = render(
        model.params, model.cfg, gather([voice]), *text_batch(model.cfg, [request.ids]),
        codes[None].astype(np.int32), np.array([16]), drawn, steps=1,
    )  # fmt: skip
    assert found.lengths.tolist() == [spoken_frames(32)]
    assert absolute(found.mel[0, : spoken_frames(32)], result.mel) <= TOLERANCE["mel"]


def test_what_this_model_has_not_is_refused(model, voice, tmp_path):
    text = model.text.analyse(TEXT)
    codes = Given(codes=np.zeros(4, np.int32), latents=np.zeros((4, model.cfg.gpt.width)))
    with pytest.raises(Error, match="latents are given for segment 1 of 1, but this model has no second pass"):
        pipeline.speak(model.params, model.cfg, [text], [voice], [0], QUICK, given=[[codes]])
    with pytest.raises(Error, match="the text was analysed for another model"):
        pipeline.speak(model.params, model.cfg, [text._replace(language=None)], [voice], [0], QUICK)
    with pytest.raises(Error, match="language must be one of zh, en, es, ja, ar"):
        model.text.analyse(TEXT, language="fr")
    save_voice(tmp_path / "voice.safetensors", voice._replace(latents=np.zeros((32, model.cfg.gpt.width), np.float32)))
    with pytest.raises(Error, match=r"made with another model \(latents of shape \(32, 48\), not \(1, 48\)\)"):
        load_voice(tmp_path / "voice.safetensors", model.cfg)


def test_a_missing_vocabulary_is_named(official_25, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(official_25, other)
    (other / byte_pairs.NAME).unlink()
    with pytest.raises(Error, match=rf"{byte_pairs.NAME}: no such file|{byte_pairs.NAME}: missing"):
        checkpoint.load_text(other)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_chunks_are_the_segment(model, voice):
    """As long to the sample, its codes, and near its samples: what a chunk gives, the codec restored with all it hears."""
    short = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
    [request] = pipeline.requests(model.params, model.cfg, model.text.analyse(TEXT), short, 7, QUICK)
    request = replace(request, given=Given(codes=np.random.default_rng(7).integers(0, 128, 100)))
    [whole] = scheduling.run(model.params, model.cfg, [request], 1)
    assert whole.error is None
    streamed = replace(request, streaming=Streaming(first_codes=30, hop=40, context=60))
    *pieces, result = scheduling.run(model.params, model.cfg, [streamed], 1)
    assert result.error is None, result.error
    assert all(isinstance(piece, Chunk) for piece in pieces)
    assert [len(piece.codes) for piece in pieces] == [30, 30, 40]
    assert len(result.samples) == len(whole.samples) == spoken_frames(200) * model.cfg.bigvgan.hop
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), result.samples)
    other = replace(
        request, keys=pipeline.requests(model.params, model.cfg, model.text.analyse(TEXT), short, 8, QUICK)[0].keys
    )
    [other] = scheduling.run(model.params, model.cfg, [other], 1)
    near, far = (np.abs(one.samples - whole.samples).mean() for one in (result, other))
    assert near < 0.4 * far
    # What is given of a chunk is restored of codes that are all known: its end is held back.
    held = len(pieces[0].samples) // model.cfg.bigvgan.hop
    assert held <= spoken_frames(2 * (30 - model.cfg.repcodec.reach))


def test_a_stream_of_text(model, voice):
    chunks = list(model.stream(TEXT, voice, options=replace(QUICK, max_codes=40), chunks=Streaming(30, 40, 60)))
    whole = model.speak(TEXT, voice, options=replace(QUICK, max_codes=40))
    assert sum(len(chunk.samples) for chunk in chunks) == len(whole.samples)
