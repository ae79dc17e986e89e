"""IndexTTS-2.5 spoken with: codes and samples of the reference, batches, streams, languages, and what the library says.

Its networks are held to the reference one by one in tests/test_version_25.py, its text front end in
tests/test_multilingual.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from jax.core import Tracer

from debug import validate
from debug.follow import Case, Golden
from debug.golden import FIXTURES, TOLERANCE, absolute, read, relative
from indextts_jax import audio, byte_pairs, check, checkpoint, cli, convert, pipeline, scheduling, stages, warmup
from indextts_jax.bench import chain as bench
from indextts_jax.convert.export import export
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.model import Model, load
from indextts_jax.render import gather, render, spoken_frames, target_frames, text_batch
from indextts_jax.request import Given, Options, Streaming
from indextts_jax.serve.body import Defaults, Text
from indextts_jax.text import Analysis
from indextts_jax.train import prepare
from indextts_jax.voice import Voice, listen, load_voice, save_voice
from indextts_jax.warmup import Uses
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
def official_model(official_25: Path) -> Model:
    return load(official_25)


@pytest.fixture(scope="module")
def model(official_model: Model) -> Model:
    """The one with a small vocoder."""
    params, cfg = small.with_small_vocoder(official_model.params, official_model.cfg)
    return replace(official_model, params=params, cfg=cfg)


@pytest.fixture(scope="module")
def voice(official_model: Model) -> Voice:
    return listen(official_model.params, official_model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))


def ids_of(arrays, segments: int, language: str) -> Analysis:
    """The ids of a golden file as a text, without the stop that the reference appends."""
    ids = [arrays[f"seg{i}.text_tokens"][0, :-1].tolist() for i in range(segments)]
    return Analysis("", [], [], [[]] * segments, ids, [], language=language)


def run(model: Model, request, **settings) -> list:
    """What comes of a request by itself: chunks, if it is streamed, and its result."""
    found = list(scheduling.run(model.params, model.cfg, [request], 1, **settings))
    assert getattr(found[-1], "error", None) is None
    return found


# ---- against the reference ------------------------------------------------------------------------------------------


def test_a_sentence_equals_reference(official_model, voice):
    """From the recording to samples, codes drawn greedily."""
    arrays = read(FIXTURES / "golden" / "v25_greedy.npz")
    assert voice.latents.shape == (1, official_model.cfg.gpt.width)
    assert relative(voice.content, arrays["prompt_condition"][0]) <= TOLERANCE["component"]
    noise = Given(noise=arrays["seg0.cfm.noise"][0].T)
    [speech] = pipeline.speak(
        official_model.params, official_model.cfg, [ids_of(arrays, 1, "en")], [voice], [0], GREEDY, given=[[noise]]
    )
    [segment] = speech.segments
    assert segment.codes.tolist() == arrays["seg0.gpt.codes"][0].tolist()
    assert absolute(segment.mel, arrays["seg0.bigvgan.in"][0].T) <= TOLERANCE["mel"]
    theirs = np.trunc(np.clip(32767 * arrays["seg0.bigvgan.out"][0, 0], -32767, 32767))
    assert absolute(audio.to_int16(speech.samples).astype(np.int32), theirs.astype(np.int32)) <= TOLERANCE["samples"]


def test_segments_beams_an_emotion_and_a_duration_equal_reference(model, voice):
    """Chinese, three beams, an emotion vector, ids of start and stop inside a text, 1.3 times as long."""
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


def test_the_validator_runs_the_chain(official_model):
    """From a recording and ids to the mel, as it does for IndexTTS-2."""
    arrays = read(FIXTURES / "golden" / "v25_greedy.npz")
    case = Case(official_model, Golden(arrays), speaker=FIXTURES / "audio" / "voice_24k.wav")
    found = list(validate.validate(case, ["end-to-end"]))
    assert [verdict.key for verdict in found if not verdict.held] == []
    assert {"codec.codes", "prompt_condition", "seg0.gpt.codes", "seg0.bigvgan.in"} <= {one.key for one in found}


# ---- the library ----------------------------------------------------------------------------------------------------


def test_side_by_side_as_alone(model, voice):
    """Texts of several languages in one batch: each as it is by itself, a code of 25 a second as two frames."""
    texts = [TEXT, "今天天气很好。", "مرحبا بكم.", "Hello, this is a small test, and another one."]
    together = model.speak(texts, voice, options=QUICK, language=["en", None, "ar", None])
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
    [result] = run(model, request, mels=True)
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
    with pytest.raises(Error, match="2 texts and 1 languages: not parallel"):
        model.speak([TEXT, TEXT], voice, options=QUICK, language=["en"])
    save_voice(tmp_path / "voice.safetensors", voice._replace(latents=np.zeros((32, model.cfg.gpt.width), np.float32)))
    with pytest.raises(Error, match=r"made with another model \(latents of shape \(32, 48\), not \(1, 48\)\)"):
        load_voice(tmp_path / "voice.safetensors", model.cfg)


def test_a_missing_vocabulary_is_named(official_25, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(official_25, other)
    (other / byte_pairs.NAME).unlink()
    with pytest.raises(Error, match=rf"{byte_pairs.NAME}: is missing; convert the model again"):
        checkpoint.load_text(other)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_chunks_are_the_segment(model, voice):
    """As long to the sample, its codes, and near its samples, of codes that are restored with all that they hear."""
    short = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
    text = model.text.analyse(TEXT)
    [request] = pipeline.requests(model.params, model.cfg, text, short, 7, QUICK)
    request = replace(request, given=Given(codes=np.random.default_rng(7).integers(0, 128, 100)))
    [whole] = run(model, request)
    *pieces, result = run(model, replace(request, streaming=Streaming(first_codes=30, hop=40, context=60)))
    assert [len(piece.codes) for piece in pieces] == [30, 30, 40]
    assert len(result.samples) == len(whole.samples) == spoken_frames(200) * model.cfg.bigvgan.hop
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), result.samples)
    [keys] = [one.keys for one in pipeline.requests(model.params, model.cfg, text, short, 8, QUICK)]
    [other] = run(model, replace(request, keys=keys))
    near, far = (np.abs(one.samples - whole.samples).mean() for one in (result, other))
    assert near < 0.4 * far
    # What is given of a chunk is restored of codes that are all known: its end is held back.
    held = len(pieces[0].samples) // model.cfg.bigvgan.hop
    assert held <= spoken_frames(2 * (30 - model.cfg.repcodec.reach))


def test_a_stream_of_text(model, voice):
    chunks = list(model.stream(TEXT, voice, options=replace(QUICK, max_codes=40), chunks=Streaming(30, 40, 60)))
    whole = model.speak(TEXT, voice, options=replace(QUICK, max_codes=40))
    assert sum(len(chunk.samples) for chunk in chunks) == len(whole.samples)


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_25(official_25: Path, model: Model) -> Path:
    """The folder with a small vocoder, which compiles in a tenth of the time."""
    out = official_25.parent / "quick"
    shutil.copytree(official_25, out)
    shutil.rmtree(out / "bigvgan")
    checkpoint.save(out, "bigvgan", model.cfg.bigvgan, model.params["bigvgan"])
    checkpoint.save_description(out, model.cfg, "tiny25")
    return out


def test_a_text_and_its_language(official_25, capsys):
    assert cli.main(["text", "你好。", "--model", str(official_25)]) == 0
    assert "language    zh\n" in capsys.readouterr().out
    assert cli.main(["text", "Hola.", "--language", "ar", "--model", str(official_25), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["language"] == "ar"
    assert shown["pieces"][0] == "<|ar|>"


def test_a_language_that_2_0_has_not(converted, capsys):
    assert cli.main(["text", "Hola.", "--language", "es", "--model", str(converted)]) == 1
    error = capsys.readouterr().err
    assert "language must be 'zh' or 'en', or None to let the text decide, not 'es': this model has no other" in error


def test_what_it_is_made_of(official_25, capsys):
    assert cli.main(["info", str(official_25)]) == 0
    assert "languages    zh, en, es, ja, ar\n" in capsys.readouterr().out


def test_a_folder_that_is_not_converted_lacks_nothing_of_2_0(tmp_path):
    [finding] = check.files_of(assembled(tmp_path / "tiny25"))
    assert (finding.what, finding.state) == ("model", "wrong")
    assert "not converted yet" in finding.message


def test_a_request_to_the_server_may_name_any_language():
    assert Text(input="Hola.", language="es").reading(Defaults(), False)["language"] == "es"


def test_training_is_refused(official_25, model, tmp_path):
    with pytest.raises(Error, match=r"training is not for models of IndexTTS-2\.5 yet"):
        prepare.prepare(tmp_path / "manifest.jsonl", model, official_25, tmp_path / "out")


def test_exported_it_is_what_it_came_from(official_25, tmp_path):
    """Its own files but for codec.pth, which nothing changes: converted again, the same parameters to the bit."""
    place = assembled(tmp_path / "tiny25")
    (place / "gpt.pth").unlink()
    (place / "s2mel.pth").unlink()
    export(official_25, place)
    for component in ("conditioner", "gpt", "s2mel"):
        theirs, ours = (
            convert.read(component, folder, strict=True)[0] for folder in (official_25.parent / "tiny25", place)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_is_warmed_up_is_what_runs(model, voice):
    """The stages that a model has, and the shapes that they are given."""
    uses = Uses(texts=(8,), codes=(24,), seconds=(4.56,))
    listed = warmup.programs(model.cfg, QUICK, uses, "float32")
    assert {program.stage for program in listed} == set(stages.of(model.cfg)) - {"more cache"}
    found = {(program.stage, _shapes(program.arguments, program.keywords)) for program in listed}
    called: set[Any] = set()

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((arguments, keywords))):
                called.add((name, _shapes(arguments, keywords)))
            return function(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, stage in stages.of(model.cfg).items():
            patch.setattr(stage.module, stage.attribute, watched(name, stage.function))
        listen(model.params, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))
        pipeline.speak(model.params, model.cfg, [ids_of(TEXT_IDS, 1, "en")], [voice], [0], QUICK)
    assert {name for name, _ in called} == {program.stage for program in listed}
    # The loops are left out: what is written there as numbers is given as arrays, or left to its default.
    assert {one for one in called if one[0] not in ("decoding", "flow")} <= found


TEXT_IDS = {"seg0.text_tokens": np.array([[5, 6, 7, 8, 9, 10, 11, 12, 1]])}


def _shapes(arguments: Any, keywords: Any) -> str:
    """Of arrays; what is static as it is."""

    def shape(leaf: Any) -> Any:
        array = isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct)
        return (tuple(leaf.shape), str(leaf.dtype)) if array else leaf

    return repr(jax.tree.map(shape, (arguments, dict(sorted(keywords.items())))))


SENTENCES = {
    "en": "Hello, this is a small test.",
    "zh": "今天天气很好，3点见。",
    "ja": "今日は天気がいいです。",
    "ar": "مرحبا بكم في المدينة.",
}


@pytest.mark.slow
def test_the_command_line_equals_reference(official_25, tmp_path):
    """From a recording and a text, whose language its script tells, to codes, mel and samples."""
    noise, voice = tmp_path / "noise.npz", str(FIXTURES / "audio" / "voice_24k.wav")
    np.savez(noise, seg0=read(FIXTURES / "golden" / "v25_greedy.npz")["seg0.cfm.noise"])
    for language, text in SENTENCES.items():
        theirs = read(FIXTURES / "golden" / f"v25_{language}.npz")
        out, saved = tmp_path / f"{language}.wav", tmp_path / f"{language}.npz"
        given = ["speak", "--model", str(official_25), "--voice", voice, "--text", text, "--greedy", "--quiet"]
        given += ["--max-codes", "24", "--fade-ms", "0", "--flow-noise", str(noise), "--save", str(saved)]
        assert cli.main([*given, "--output", str(out)]) == 0
        with np.load(saved) as ours:
            assert ours["seg0.codes"].tolist() == theirs["seg0.gpt.codes"][0].tolist(), language
            assert absolute(ours["seg0.mel"], theirs["seg0.bigvgan.in"][0]) <= TOLERANCE["mel"]
        samples = soundfile.read(out, dtype="int16")[0].astype(int)
        assert absolute(samples, theirs["wav_int16"][:, 0].astype(int)) <= TOLERANCE["samples"]


def test_each_language_has_the_codes_of_the_reference(model, voice):
    """Of its ids, in one batch: Spanish too, whose rules for numbers are an extra."""
    found = {name: read(FIXTURES / "golden" / f"v25_{name}.npz") for name in (*SENTENCES, "es")}
    texts = [ids_of(arrays, 1, name) for name, arrays in found.items()]
    options = replace(GREEDY, steps=1)
    spoken = pipeline.speak(model.params, model.cfg, texts, [voice] * 5, [0] * 5, options)
    for speech, (name, arrays) in zip(spoken, found.items(), strict=True):
        assert speech.segments[0].codes.tolist() == arrays["seg0.gpt.codes"][0].tolist(), name


@pytest.mark.slow
def test_commands_speak_with_it(quick_25, tmp_path, capsys):
    """`speak`, whole and in chunks, and `batch` with rows of two languages."""
    own = ["--model", str(quick_25), "--voice", str(FIXTURES / "audio" / "voice_24k.wav"), "--steps", "1"]
    own += ["--beams", "1", "--max-codes", "30", "--quiet"]
    one = ["speak", *own, "--text", TEXT, "--language", "en"]
    assert cli.main([*one, "--output", str(tmp_path / "whole.wav")]) == 0
    assert cli.main([*one, "--stream", "--first-codes", "25", "--output", str(tmp_path / "chunks.wav")]) == 0
    whole, chunks = (soundfile.info(tmp_path / name).frames for name in ("whole.wav", "chunks.wav"))
    assert whole == chunks > 0
    manifest = tmp_path / "texts.jsonl"
    rows = {"id": "a", "text": "Hello."}, {"id": "b", "text": "Hello.", "language": "zh"}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["batch", str(manifest), *own, "--output-dir", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    first, second = (soundfile.read(tmp_path / "out" / f"{name}.wav")[0] for name in "ab")
    assert first.shape != second.shape or (first != second).any()


@pytest.mark.slow
def test_the_server_speaks_with_it(model, voice, tmp_path):
    from tests.test_serve import Running

    save_voice(tmp_path / "anna.safetensors", voice._replace(mel=voice.mel[:60], content=voice.content[:60]))
    running = Running(model, tmp_path)
    try:
        spoken = [running.post(TEXT, response_format="wav", language=language) for language in ("en", "ar")]
        assert [answer.status_code for answer in spoken] == [200, 200]
        assert spoken[0].content != spoken[1].content
        assert running.post(TEXT, language="fr").status_code == 400
    finally:
        running.close()


@pytest.mark.slow
def test_it_is_timed(model):
    chain, timed = bench.run(model.params, model.cfg, bench.Setting(codes=20, pieces=8, flow_steps=1, beams=1), 1)
    assert {stage.name for stage in timed} == set(stages.of(model.cfg)) - {"more cache"}
    assert chain.audio_s == pytest.approx(spoken_frames(40) * 256 / 22050)
