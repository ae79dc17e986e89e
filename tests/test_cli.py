"""The command line as a user meets it: equal to the reference end to end, and one clear line for each mistake."""

import errno
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import indextts_jax
from debug.golden import FIXTURES, TOLERANCE, absolute, golden
from indextts_jax import audio, checkpoint, cli, config, files, loudness, models, pipeline
from tests import small

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("at_hand")]

VOICE = FIXTURES / "audio" / "voice_24k.wav"
TEXT = "Hello world, this is a small test of the speech system."


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """Programs compiled by these tests stay out of the user's cache."""
    monkeypatch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def speak(model, out: Path, *arguments) -> int:
    return run("speak", "--model", model, "--voice", VOICE, "--text", TEXT, "-o", out, "--force", *arguments)


def noise_file(folder: Path, name: str) -> Path:
    path = folder / "noise.npz"
    np.savez(path, seg0=golden(name)["seg0.cfm.noise"])
    return path


def differences(out: Path, saved: Path, name: str) -> set[str]:
    """Which of codes, mel and samples differ from a golden file by more than they may."""
    arrays, found = golden(name), set()
    samples, rate = soundfile.read(out, dtype="int16")
    assert rate == 22050
    with np.load(saved) as ours:
        codes = arrays["seg0.gpt.codes"][0]
        if ours["seg0.codes"].tolist() != codes[codes != 129].tolist():
            found.add("codes")
        if absolute(ours["seg0.mel"], arrays["seg0.bigvgan.in"][0]) > TOLERANCE["mel"]:
            found.add("mel")
        assert ours["seg0.stopped"] == (codes[-1] == 129)
    if absolute(samples.astype(int), arrays["wav_int16"][:, 0].astype(int)) > TOLERANCE["samples"]:
        found.add("samples")
    return found


# ---- against the reference ------------------------------------------------------------------------------------------


def test_greedy_speech_equals_reference(official, tmp_path, capsys):
    out, saved = tmp_path / "out.wav", tmp_path / "out.npz"
    noise = noise_file(tmp_path, "en_greedy")
    assert (
        speak(official, out, "--greedy", "--max-codes", 40, "--fade-ms", 0, "--flow-noise", noise, "--save", saved) == 0
    )
    assert differences(out, saved, "en_greedy") == set()
    assert differences(out, saved, "zh_greedy_emotion_audio") == {"codes", "mel", "samples"}
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: 0.79 s of audio in ")
    assert "real-time factor" in line
    assert "tracing" in line
    assert line.count("\n") == 1


def test_beams_equal_reference(converted, tmp_path):
    """Three beams without sampling; the reference's own default samples, so its codes cannot be compared."""
    out, saved = tmp_path / "out.wav", tmp_path / "out.npz"
    arguments = ["--no-sample", "--max-codes", 40, "--steps", 1, "--save", saved]
    assert speak(converted, out, *arguments) == 0
    with np.load(saved) as ours:
        assert ours["seg0.codes"].tolist() == golden("en_beam3")["seg0.gpt.codes"][0].tolist()
    assert speak(converted, out, *arguments, "--beams", 1) == 0
    with np.load(saved) as ours:
        assert ours["seg0.codes"].tolist() == golden("en_greedy")["seg0.gpt.codes"][0].tolist()


def test_speech_that_stops_by_itself_equals_reference(official, tmp_path):
    """The golden was made with mel_head.bias[129] at 4.5; it is -20 in the checkpoint."""
    model = tmp_path / "model"
    shutil.copytree(official, model)
    cfg, _ = checkpoint.read_description(model)
    tree = checkpoint.restore(model, "gpt", cfg.gpt, jnp.dtype("float32"))
    shutil.rmtree(model / "gpt")
    tree["head"]["bias"] = tree["head"]["bias"].at[129].set(4.5)
    checkpoint.save(model, "gpt", cfg.gpt, tree)
    out, saved, noise = tmp_path / "out.wav", tmp_path / "out.npz", noise_file(tmp_path, "en_stop_greedy")
    settings = ["--greedy", "--max-codes", 60, "--fade-ms", 0]
    assert speak(model, out, *settings, "--flow-noise", noise, "--save", saved) == 0
    assert differences(out, saved, "en_stop_greedy") == set()


def test_emotions_on_the_command_line(converted, model, tmp_path, capsys, monkeypatch):
    """Weights, a file of them, a recording and its file, a text, the spoken text: each is heard."""
    monkeypatch.setattr(cli.shared, "load_model", lambda *_: model)  # once is enough
    for command in (cli.speak, cli.emotion, cli.voice):
        monkeypatch.setattr(command, "load_model", lambda *_: model)

    def samples(*arguments) -> np.ndarray:
        said = ["--text", "One small test.", "--greedy", "--max-codes", 8, "--steps", 1]
        assert run("speak", "--model", converted, "--voice", voice, "-o", out, "--force", *said, *arguments) == 0
        return soundfile.read(out, dtype="int16")[0]

    voice, weighed, recorded = (tmp_path / f"{name}.safetensors" for name in ("voice", "happy", "felt"))
    out = tmp_path / "out.wav"
    assert run("voice", VOICE, "--model", converted, "--output", voice) == 0
    capsys.readouterr()
    record = FIXTURES / "audio" / "emotion.wav"
    assert run("emotion", "--weights", "happy=0.6,calm=0.2", "--model", converted, "--output", weighed) == 0
    assert capsys.readouterr().out == "happy=0.6,calm=0.2\n"
    assert run("emotion", "--audio", record, "--model", converted, "--output", recorded) == 0
    assert run("emotion", "--audio", recorded, "--model", converted, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"vector": 96}
    assert run("emotion", "--audio", weighed, "--model", converted, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["calm"] == 0.2
    assert run("emotion", "I feel so depressed today.", "--model", converted) == 0
    assert capsys.readouterr().out == "calm=1\n"  # what the tiny Qwen's nonsense counts as
    own = samples()
    happy = samples("--emotion", "0.6,0,0,0,0,0,0,0.2")
    np.testing.assert_array_equal(happy, samples("--emotion-audio", weighed))
    felt = samples("--emotion-audio", record, "--emotion-alpha", 0.5)
    np.testing.assert_array_equal(felt, samples("--emotion-audio", recorded, "--emotion-alpha", 0.5))
    calm = samples("--emotion", "calm=1")
    np.testing.assert_array_equal(calm, samples("--emotion-from-text"))
    normal = samples("--emotion", "calm=1", "--emotion-normalize")
    np.testing.assert_array_equal(normal, samples("--emotion", "calm=0.5625"))
    random = samples("--emotion", "calm=1", "--emotion-random", "--seed", 2)
    assert len({tuple(sound) for sound in (own, happy, felt, calm, normal, random)}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emotion", "happy=3"], "happy is 3.0, but must lie between 0 and 1.2"),
        (["--emotion", "joy=1"], "emotion 'joy' is none of happy"),
        (["--emotion-alpha", "0.5"], "--emotion-alpha is the strength of an emotion, but none is given"),
        (["--emotion-audio", "none.wav"], "none.wav: no such file"),
        (["--emotion-random"], "--emotion-random changes the weights of an emotion, but none is given: add --emotion"),
        (
            ["--emotion-audio", VOICE, "--emotion-normalize"],
            "--emotion-normalize changes the weights of an emotion, but a recording has no weights",
        ),
        (["--emotion-text", " "], "the text to read an emotion off is empty"),
    ],
)
def test_wrong_emotions_are_one_line(converted, tmp_path, capsys, arguments, message):
    out = tmp_path / "out.wav"
    assert speak(converted, out, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_model_without_qwen_says_so(converted, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(converted, model, ignore=shutil.ignore_patterns("qwen3", "tokenizer.json"))
    assert run("emotion", "So glad!", "--model", model) == 1
    assert "this model was converted without Qwen" in capsys.readouterr().err


# ---- other commands -------------------------------------------------------------------------------------------------


def test_text_as_json(converted, capsys):
    assert run("text", TEXT, "--model", converted, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    [case] = [c for c in json.loads((FIXTURES / "golden" / "text_cases.json").read_text("utf-8")) if c["text"] == TEXT]
    assert set(found) == {"normalized", "pieces", "ids", "segments", "lead", "pauses"}
    assert found["normalized"] == case["normalized"]
    assert (found["pieces"], found["ids"]) == (case["tiny"]["tokens"], case["tiny"]["ids"])
    assert found["segments"] == case["tiny"]["segments_120"]
    assert run("text", TEXT, "--model", converted, "--segment-tokens", 20) == 0
    assert "segment 1" in capsys.readouterr().out
    said = "[pause 1s] Hello.\n\nYes. [pause 1.5s] No."
    assert run("text", said, "--model", converted, "--paragraph-ms", 70) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line[:1].strip()]
    assert lines[1::2] == ["pause       1000 ms", "pause       70 ms", "pause       1500 ms"]
    assert [line[:9] for line in lines[::2]] == ["normalize", *(f"segment {i}" for i in range(3))]
    assert "PAUSE" not in shown
    assert run("text", "One [pause 1h] two", "--model", converted) == 1
    assert capsys.readouterr().err.startswith("indextts-jax: error: [pause 1h]: write a pause as [pause 500ms] or")


def test_text_from_standard_input(converted, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello world"))
    assert run("text", "-", "--model", converted) == 0
    assert capsys.readouterr().out.startswith("normalized  Hello world\n")


def test_convert_counts_what_is_not_needed(converted, tmp_path, capsys, monkeypatch):
    from indextts_jax import convert

    reports = [convert.Report("gpt", 40, 1000, ["a.0.x", "a.1.x"], []), convert.Report("qwen3", 30, 500, [], [])]

    def quickly(folder, out, strict, progress):
        for report in reports:
            progress(report)
        return reports

    monkeypatch.setattr(convert, "convert", quickly)
    for more, names in (((), ""), (("--verbose",), "  a.*.x (2)")):
        assert run("convert", FIXTURES / "tiny", tmp_path / "out", *more) == 0
        assert capsys.readouterr().out.splitlines()[:3] == [
            "component     tensors     parameters  not needed",
            f"gpt                40          1,000           2{names}",
            "qwen3              30            500           0",
        ]


def test_info_names_every_component(converted, capsys):
    assert run("info", converted) == 0
    printed = capsys.readouterr().out
    assert "gpt                 476,962 parameters" in printed
    assert "converted from tiny, format 3" in printed
    assert run("info", converted, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["components"]["gpt"]["parameters"] == 476_962
    assert run("info", FIXTURES / "tiny") == 1
    assert "run `indextts-jax convert` on it" in capsys.readouterr().err


def test_info_verifies_a_model(official, tmp_path, capsys):
    assert run("info", official, "--verify") == 0
    assert capsys.readouterr().out.endswith("every file is as it was written\n")
    model = tmp_path / "model"
    shutil.copytree(official, model)
    damaged = [model / "bpe.model", max((model / "gpt").rglob("*"), key=lambda path: path.stat().st_size)]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    (model / "repcodec" / "checksums.json").unlink()
    assert run("info", model, "--verify") == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{damaged[0]}: damaged, its content is not what was written; convert the model again",
        f"{model}/repcodec/checksums.json: is missing; convert the model again",
        f"{damaged[1]}: damaged, its content is not what was written; convert the model again",
    ]
    assert printed.err == (
        f"indextts-jax: error: {model}: damaged or missing: 3 of its files; convert the model again\n"
    )
    assert run("info", FIXTURES / "tiny", "--verify") == 1
    assert "run `indextts-jax convert` on it" in capsys.readouterr().err


def test_voice_files_speak_like_their_recording(converted, tmp_path, capsys):
    voice, out, again = tmp_path / "voice.safetensors", tmp_path / "a.wav", tmp_path / "b.wav"
    assert run("voice", VOICE, "--model", converted, "--output", voice) == 0
    assert run("voice", voice, "--model", converted) == 0
    assert capsys.readouterr().out.count("a voice of 4.55 s; latents [32, 96]") == 2
    assert run("voice", voice, "--model", converted, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shapes"]["latents"] == [32, 96]
    options = ["--max-codes", 20, "--steps", 1, "--seed", 5]
    assert speak(converted, out, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], said["segments"][0]["text"]) == (str(out), TEXT)
    assert said["segments"][0]["end"] == pytest.approx(said["seconds"]) == soundfile.info(out).duration
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    arguments = ["speak", "--model", converted, "--voice", voice, "--text-file", text, "-o", again, *options]
    assert run(*arguments) == 0
    assert out.read_bytes() == again.read_bytes()
    assert speak(converted, again, *options[:-1], 6) == 0
    assert out.read_bytes() != again.read_bytes()


def test_subtitles_say_what_is_spoken_when(converted, tmp_path):
    """Segments where they are in the audio, to the millisecond; their words in WebVTT, in between."""
    out, saved = tmp_path / "a.wav", tmp_path / "a.npz"
    shared = ["--max-codes", 8, "--steps", 1, "--segment-tokens", 12, "--save", saved]
    said = [
        "speak",
        "--model",
        converted,
        "--voice",
        VOICE,
        "--force",
        "--text",
        "[pause 1s] Hello you. Where is 5 & 6?",
    ]
    for suffix in ("srt", "vtt"):
        path = tmp_path / f"a.{suffix}"
        assert run(*said, "-o", out, "--subtitles", path, *shared) == 0
        with np.load(saved) as arrays:
            spans = [arrays[f"seg{i}.samples"] for i in range(len(arrays.files) // 4)]
        assert len(spans) == 2
        blocks = path.read_text("utf-8").strip().split("\n\n")[suffix == "vtt" :]
        for block, (start, end) in zip(blocks, spans, strict=True):
            times = re.findall(r"00:00:(\d\d)[,.](\d\d\d) --> 00:00:(\d\d)[,.](\d\d\d)\n", block)[0]
            begins, ends = (int(a) * 1000 + int(b) for a, b in (times[:2], times[2:]))
            assert (begins, ends) == (round(start / 22.05), round(end / 22.05))
        plain = [re.sub("<[0-9:.]+>", "", block).splitlines()[-1] for block in blocks]
        assert plain == ["Hello you.", "Where is five and six?"]
        assert ("<00:00:01." in path.read_text("utf-8")) == (suffix == "vtt")
    assert run(*said, "-o", out, "--subtitles", tmp_path / "a.txt", *shared) == 1


def test_formats_rates_and_loudness(converted, model, tmp_path, capsys, monkeypatch):
    """Files hold what the WAV holds, whether the name or --format says what they are."""
    monkeypatch.setattr(cli.speak, "load_model", lambda *_: model)
    shared = [
        "speak",
        "--model",
        converted,
        "--voice",
        VOICE,
        "--text",
        TEXT,
        "--max-codes",
        20,
        "--steps",
        1,
        "--force",
    ]
    out = {name: tmp_path / name for name in ("a.wav", "a.FLAC", "a.ogg", "b")}
    assert all(run(*shared, "-o", path) == 0 for path in list(out.values())[:3])
    assert run(*shared, "-o", out["b"], "--format", "flac") == 0
    plain, rate = soundfile.read(out["a.wav"], dtype="int16")
    assert rate == 22050
    kinds = {name: soundfile.info(path).format for name, path in out.items()}
    assert kinds == {"a.wav": "WAV", "a.FLAC": "FLAC", "a.ogg": "OGG", "b": "FLAC"}
    for name in ("a.FLAC", "b"):
        np.testing.assert_array_equal(soundfile.read(out[name], dtype="int16")[0], plain)
    assert run(*shared, "-o", out["a.wav"], "--sample-rate", 16000) == 0
    assert soundfile.info(out["a.wav"]).samplerate == 16000
    assert soundfile.info(out["a.wav"]).frames == pytest.approx(len(plain) * 16000 / 22050, abs=1)
    pytest.importorskip("pyloudnorm")
    assert run(*shared, "-o", out["a.wav"], "--normalize", -30) == 0
    samples, rate = soundfile.read(out["a.wav"], dtype="float32")
    assert len(samples) == len(plain)
    assert loudness.measure(samples, rate) == pytest.approx(-30, abs=0.1)


def test_loudness_without_its_library_is_one_line(converted, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyloudnorm" else found(name))
    message = "indextts-jax: error: --normalize needs pyloudnorm: pip install 'indextts-jax[loudness]'\n"
    assert speak(converted, tmp_path / "a.wav", "--normalize", -16) == 1
    assert capsys.readouterr().err == message
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Hello."}')
    shared = ["--model", converted, "--voice", VOICE, "--output-dir", tmp_path / "out"]
    assert run("batch", rows, *shared, "--normalize", -16) == 2
    assert capsys.readouterr().err == message


def test_random_weights_need_no_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    # It would take official sizes where it is silent.
    monkeypatch.setattr(config, "from_yaml", lambda settings: replace(tiny.cfg, bigvgan=small.VOCODER))
    out = tmp_path / "out.wav"
    arguments = ["--voice", VOICE, "--text", "a test", "--output", out, "--max-codes", 8, "--steps", 1]
    assert run("speak", "--random-init", FIXTURES / "tiny" / "config.yaml", *arguments) == 0
    assert out.is_file()
    assert "random weights: the output is noise" in capsys.readouterr().err


# ---- mistakes -------------------------------------------------------------------------------------------------------


def refused(capsys, out: Path, *arguments) -> str:
    """The one line that a failing command prints; it leaves no output."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    assert run(*arguments) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "warning" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("indextts-jax: error: ")
    assert not out.is_file()
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else None) == before
    return lines[0]


def misused(capsys, *arguments) -> str:
    """The middle one of the three lines that a usage error prints: what is wrong."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    usage, line, hint = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: indextts-jax ")
    assert hint.endswith("--help` lists all options")
    return line.removeprefix("indextts-jax: error: ")


def write_sound(path: Path, samples, rate=16000) -> Path:
    soundfile.write(path, np.asarray(samples, np.float32), rate)
    return path


def test_bad_recordings_are_refused(converted, tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    (files / "text.wav").write_text("this is no sound")
    (files / "empty.wav").write_bytes(b"")
    out = tmp_path / "out" / "out.wav"
    out.parent.mkdir()
    rng = np.random.default_rng(0)
    cases = {
        files / "missing.wav": "missing.wav: no such file",
        files / "text.wav": "text.wav cannot be read as audio",
        files / "empty.wav": "empty.wav is empty",
        write_sound(files / "nothing.wav", []): "nothing.wav has 0.000 s of sound",
        write_sound(files / "silent.wav", np.zeros(16000)): "silent.wav is silent",
        write_sound(files / "short.wav", rng.normal(size=1500) * 0.1): "short.wav has 0.093 s of sound",
        files / "missing.safetensors": "missing.safetensors: no such file",
    }
    for path, message in cases.items():
        arguments = ["speak", "--model", converted, "--voice", path, "--text", TEXT, "--output", out]
        assert message in refused(capsys, out, *arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"hidden_dim: 64": "hidden_dim: 65536", "depth: 5": "depth: 32"},
            "weights of these sizes take 10,208 GB in float32, but this machine has ",
        ),
        ({"num_heads: 4": "num_heads: 7"}, "sizes that do not fit together (s2mel: "),
    ],
)
def test_sizes_that_cannot_be_made_are_refused(tmp_path, capsys, monkeypatch, sizes, message):
    """Each is within its limits. Nothing is made of them."""
    text = (FIXTURES / "tiny" / "config.yaml").read_text()
    for size, other in sizes.items():
        text = text.replace(size, other)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    monkeypatch.setattr(models, "random", lambda *_: pytest.fail("memory is taken"))
    out = tmp_path / "out.wav"
    line = refused(capsys, out, "speak", "--random-init", path, "--voice", VOICE, "--text", "a", "--output", out)
    assert f"--random-init {path}: {message}" in line


def test_adapters_of_random_weights_are_refused(tmp_path, capsys):
    out = tmp_path / "out.wav"
    given = "--random-init", FIXTURES / "tiny" / "config.yaml", "--lora", "own.safetensors"
    line = refused(capsys, out, "speak", *given, "--voice", VOICE, "--text", "a", "--output", out)
    assert "--lora own.safetensors: belongs to a model, not to random weights" in line


def test_bad_texts_are_refused(converted, tmp_path, capsys):
    out = tmp_path / "out.wav"
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    base = ["speak", "--model", converted, "--voice", VOICE, "--output", out]
    for text in ("", "   ", "...", "!?"):
        assert "nothing to pronounce" in refused(capsys, out, *base, "--text", text)
    assert "latin.txt: not UTF-8" in refused(capsys, out, *base, "--text-file", tmp_path / "latin.txt")
    assert "absent.txt" in refused(capsys, out, *base, "--text-file", tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "missing/out.wav"], "--output missing/out.wav: there is no folder missing"),
        (["--output", "out.mp3"], "--output out.mp3: let its name end in .wav, .flac or .ogg"),
        (["--output", "."], "--output .: let its name end in .wav, .flac or .ogg, or add --format"),
        (["--format", "flac"], "its name must end in .flac, the --format"),
        (
            ["--output", "a.flac", "--sample-rate", "191999"],
            "--sample-rate 191999: flac cannot have it; choose another",
        ),
        (["--subtitles", "a.txt"], "--subtitles a.txt: let its name end in .srt or .vtt"),
        (["--subtitles", "none/a.srt"], "--subtitles none/a.srt: there is no folder none; create it first"),
        (["--model", "missing"], "model.json: no such file"),
        (["--flow-noise", str(VOICE)], "voice_24k.wav: not an .npz file"),
        (["--flow-noise", "missing.npz"], "--flow-noise missing.npz: no such file"),
        (["--glossary", "missing.yaml"], "missing.yaml"),
        (["--save", "missing/save.npz"], "--save missing/save.npz: there is no folder missing"),
        (["--plot", "picture.jpg"], "--plot picture.jpg: a PNG file is written"),
        (["--save", "out.wav"], "--save and --output are the same file"),
        (["--save", "x", "--plot", "x.png", "--retries", "2", "--greedy"], "--retries 2 with --greedy"),
        (["--voice-start", "60"], "voice_24k.wav"),
        (["--device", "tpu"], "--device tpu: JAX finds none here, only "),
    ],
)
def test_bad_arguments_are_refused(converted, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out = Path("out.wav")
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "--output", out]
    assert message in refused(capsys, out, *base, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "2"], "argument --top-p: 2 is not between 0 and 1"),
        (["--steps", "0"], "argument --steps: 0 is not between 1 and 10000"),
        (["--steps", "x" * 100], f"argument --steps: {'x' * 40!r} is not a whole number"),
        (["--cfg-rate", "nan"], "argument --cfg-rate: nan is not between 0 and 100"),
        (["--segment-tokens", "0"], "argument --segment-tokens: 0 is not between 1 and 10000"),
        (["--silence-ms", "1000000000"], "argument --silence-ms: 1000000000 is not between 0 and 60000"),
        (["--sample-rate", "7999"], "argument --sample-rate: 7999 is not between 8000 and 192000"),
        (["--normalize", "3"], "argument --normalize: 3 is not between -60 and -5"),
        (["--fade-ms", "-1"], "argument --fade-ms: -1 is not between 0 and 1000"),
        (["--paragraph-ms", "1.5"], "argument --paragraph-ms: '1.5' is not a whole number"),
        (["--seed", "-1"], "argument --seed: -1 is not between 0 and"),
        (["--seed", str(2**64)], f"argument --seed: {2**64} is not between 0 and"),
        (["--emotion-alpha", "2"], "argument --emotion-alpha: 2 is not between 0 and 1"),
        (["--language", "fr"], "argument --language: invalid choice: 'fr'"),
        (
            ["--emotion", "happy=1", "--emotion-text", "a"],
            "argument --emotion-text: not allowed with argument --emotion",
        ),
        (["--text-file", "a"], "argument --text-file: not allowed with argument --text"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_wrong_usage_is_three_lines_that_name_the_option(converted, capsys, arguments, message):
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "--output", "out.wav"]
    assert message in misused(capsys, *base, *arguments)


def test_warmup_takes_what_speak_takes(capsys, converted):
    for seconds, message in (("nan", "nan is not at least 0.1"), ("0.05", "0.05 is not at least 0.1")):
        assert message in misused(capsys, "warmup", "--model", converted, "--voice-seconds", seconds)


def test_a_bare_command_shows_its_help(capsys):
    for arguments, status, text in (([], 0, "commands:"), (["speak"], 2, "--voice FILE")):
        with pytest.raises(SystemExit) as end:
            run(*arguments)
        assert end.value.code == status
        assert text in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out == f"indextts-jax {indextts_jax.__version__}\n"


# ---- nothing is lost ------------------------------------------------------------------------------------------------


def test_no_input_is_overwritten(converted, tmp_path, capsys):
    """An output that is an input, or a link to it, even with --force; before the model is looked at."""
    own = tmp_path / "me.wav"
    shutil.copyfile(VOICE, own)
    link = tmp_path / "link.wav"
    link.symlink_to(own)
    base = ["speak", "--model", converted, "--voice", own, "--text", TEXT, "--force"]
    for out in (own, link):
        assert run(*base, "--output", out) == 1
        assert f"--output and --voice are the same file, {out}" in capsys.readouterr().err
    assert run("voice", own, "--model", converted, "-o", tmp_path / "me.safetensors") == 0
    capsys.readouterr()
    assert (
        run("emotion", "--audio", tmp_path / "me.safetensors", "--model", converted, "-o", tmp_path / "me.safetensors")
        == 1
    )
    assert "--output and --audio are the same file" in capsys.readouterr().err
    assert own.read_bytes() == VOICE.read_bytes()


def test_what_exists_is_replaced_only_with_force(converted, tmp_path, capsys):
    out = tmp_path / "out.wav"
    out.write_bytes(b"before")
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "-o", out, "--max-codes", 20, "--steps", 1]
    assert run(*base) == 1
    assert f"--output {out}: exists already; add --force" in capsys.readouterr().err
    assert out.read_bytes() == b"before"
    assert run(*base, "--force", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert soundfile.info(out).samplerate == 22050


def test_noise_that_does_not_fit_is_refused(converted, tmp_path, capsys):
    out, noise = tmp_path / "out.wav", tmp_path / "noise.npz"
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "--output", out, "--flow-noise", noise]
    np.savez(noise, seg0=np.zeros((1, 80, 9)), seg1=np.zeros((1, 80, 9)))
    assert "noise for 2 segments, but the text has 1" in refused(capsys, out, *base)
    np.savez(noise, other=np.zeros((1, 80, 9)))
    assert "expected seg0" in refused(capsys, out, *base)


def test_a_missing_component_is_named(converted, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(converted, model)
    shutil.rmtree(model / "s2mel")
    out = tmp_path / "out.wav"
    line = refused(capsys, out, "speak", "--model", model, "--voice", VOICE, "--text", TEXT, "--output", out)
    assert "the s2mel component is missing" in line
    assert "the s2mel component is missing" in refused(capsys, out, "info", model)


def test_bad_model_folders_are_refused_by_convert(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("convert", tmp_path, out) == 1
    assert capsys.readouterr().out == ""
    assert "config.yaml: no such file" in refused(capsys, out, "convert", tmp_path, out)
    folder = tmp_path / "folder"
    shutil.copytree(FIXTURES / "tiny", folder)
    (folder / "gpt.pth").write_bytes((folder / "gpt.pth").read_bytes()[:-1000])
    assert "gpt.pth" in refused(capsys, out, "convert", folder, out)
    shutil.copyfile(FIXTURES / "tiny" / "gpt.pth", folder / "gpt.pth")
    (folder / "hf_cache" / "bigvgan" / "bigvgan_generator.pt").unlink()
    assert "bigvgan_generator.pt: no such file" in refused(capsys, out, "convert", folder, out)


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(converted, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.wav"
    out.write_bytes(b"before")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files._Temporary, "write", full)
    assert speak(converted, out, "--max-codes", 20, "--steps", 1) == 1
    assert "out.wav: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert out.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing(converted, tmp_path, capsys, monkeypatch, number):
    """Even one whose exception is swallowed on the way, as in a callback from C++."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
        return [pipeline.Audio(np.zeros(100, np.float32), 22050, ())]

    monkeypatch.setattr(pipeline, "speak", interrupted)
    assert speak(converted, tmp_path / "out.wav") == 128 + number
    assert capsys.readouterr().err == "indextts-jax: error: interrupted; an output file that is there is complete\n"
    assert not list(tmp_path.iterdir())


def test_a_bug_comes_with_its_traceback(converted, tmp_path, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("shapes (3,) and (4,) not aligned")

    monkeypatch.setattr(pipeline, "speak", broken)
    assert speak(converted, tmp_path / "out.wav") == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "not aligned" in error
    assert error.endswith("this is a bug in indextts-jax: please report it with the lines above and the command\n")


def test_where_an_expected_failure_came_from(converted, tmp_path, capsys, monkeypatch):
    arguments = ["speak", "--model", converted, "--voice", "none.wav", "--text", TEXT, "-o", tmp_path / "out.wav"]
    assert "Traceback" not in refused(capsys, tmp_path / "out.wav", *arguments)
    monkeypatch.setenv("INDEXTTS_TRACEBACK", "1")
    assert run(*arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_long_recording_is_cut_and_said_so(converted, model, tmp_path, capsys, monkeypatch):
    """And of another place in it, another voice is heard."""
    monkeypatch.setattr(audio, "MAX_SECONDS", 5)  # of which the programs are compiled already
    rng = np.random.default_rng(0)
    path = write_sound(tmp_path / "long.wav", rng.normal(size=8000 * 12) * 0.1, 8000)
    voices = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for out, start in zip(voices, ("0", "6"), strict=True):
        assert run("voice", path, "--model", converted, "-o", out, "--start", start) == 0
        printed = capsys.readouterr()
        assert f"{path} is longer than 5 s: only its first 5 s" in printed.err or start == "6"
        assert "5 s" in printed.err
        assert "a voice of 4.99 s" in printed.out
    assert voices[0].read_bytes() != voices[1].read_bytes()


def test_progress_in_a_pipe(converted, tmp_path, capsys):
    """Nothing by default; with --verbose a line when another stage begins, the weights first."""
    assert speak(converted, tmp_path / "out.wav", "--max-codes", 8, "--steps", 1) == 0
    assert "reading weights" not in capsys.readouterr().err
    assert speak(converted, tmp_path / "out.wav", "--max-codes", 8, "--steps", 1, "--verbose") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if ", after " in line]
    stages = [line.removeprefix("indextts-jax: ").partition(":")[0] for line in said]
    assert stages == ["reading weights", "listening", "drawing codes", "rendering"]


def test_help_is_quick_and_needs_no_jax():
    code = """
import sys
from indextts_jax import cli
try:
    cli.main(["speak", "--help"])
except SystemExit:
    print("jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "--flow-noise" in done.stdout
