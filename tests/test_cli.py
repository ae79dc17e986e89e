"""The command line as a user meets it: equal to the reference end to end, and one clear line for each mistake."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from debug.golden import FIXTURES, TOLERANCE, absolute, golden
from indextts_jax import audio, checkpoint, cli, config, files, pipeline

VOICE = FIXTURES / "audio" / "voice_24k.wav"
TEXT = "Hello world, this is a small test of the speech system."


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """Programs compiled by these tests stay out of the user's cache."""
    monkeypatch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def speak(model, out: Path, *arguments) -> int:
    return run("speak", "--model", model, "--voice", VOICE, "--text", TEXT, "--output", out, *arguments)


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


def test_greedy_speech_equals_reference(converted, tmp_path, capsys):
    out, saved = tmp_path / "out.wav", tmp_path / "out.npz"
    noise = noise_file(tmp_path, "en_greedy")
    assert speak(converted, out, "--greedy", "--max-codes", 40, "--flow-noise", noise, "--save", saved) == 0
    assert differences(out, saved, "en_greedy") == set()
    assert differences(out, saved, "zh_greedy_emotion_audio") == {"codes", "mel", "samples"}
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: 0.79 s of audio in ")
    assert "real-time factor" in line
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


def test_speech_that_stops_by_itself_equals_reference(converted, tmp_path):
    """The golden was made with mel_head.bias[129] at 4.5; it is -20 in the checkpoint."""
    model = tmp_path / "model"
    shutil.copytree(converted, model)
    cfg, _ = checkpoint.read_description(model)
    tree = checkpoint.restore(model, "gpt", cfg.gpt, jnp.dtype("float32"))
    shutil.rmtree(model / "gpt")
    tree["head"]["bias"] = tree["head"]["bias"].at[129].set(4.5)
    checkpoint.save(model, "gpt", cfg.gpt, tree)
    out, saved, noise = tmp_path / "out.wav", tmp_path / "out.npz", noise_file(tmp_path, "en_stop_greedy")
    assert speak(model, out, "--greedy", "--max-codes", 60, "--flow-noise", noise, "--save", saved) == 0
    assert differences(out, saved, "en_stop_greedy") == set()


def test_emotions_on_the_command_line(converted, tmp_path, capsys, monkeypatch):
    """Weights, a file of them, a recording and its file, a text, the spoken text: each is heard."""
    model = checkpoint.load(converted)
    monkeypatch.setattr(checkpoint, "load", lambda folder, dtype: model)  # once is enough

    def samples(*arguments) -> np.ndarray:
        said = ["--text", "One small test.", "--greedy", "--max-codes", 8, "--steps", 1]
        assert run("speak", "--model", converted, "--voice", voice, "--output", out, *said, *arguments) == 0
        return soundfile.read(out, dtype="int16")[0]

    voice, weighed, recorded = (tmp_path / f"{name}.safetensors" for name in ("voice", "happy", "felt"))
    out = tmp_path / "out.wav"
    assert run("voice", VOICE, "--model", converted, "--output", voice) == 0
    capsys.readouterr()
    record = FIXTURES / "audio" / "emotion.wav"
    assert run("emotion", "--weights", "happy=0.6,calm=0.2", "--model", converted, "--output", weighed) == 0
    assert capsys.readouterr().out == "happy=0.6,calm=0.2\n"
    assert run("emotion", "--audio", record, "--model", converted, "--output", recorded) == 0
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
        (["--emotion", "happy=1", "--emotion-alpha", "2"], "--emotion-alpha is 2.0, but must lie between 0 and 1"),
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
    assert set(found) == {"normalized", "pieces", "ids", "segments"}
    assert found["normalized"] == case["normalized"]
    assert (found["pieces"], found["ids"]) == (case["tiny"]["tokens"], case["tiny"]["ids"])
    assert found["segments"] == case["tiny"]["segments_120"]
    assert run("text", TEXT, "--model", converted, "--segment-tokens", 20) == 0
    assert "segment 1" in capsys.readouterr().out


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
    assert run("info", FIXTURES / "tiny") == 1
    assert "run `indextts-jax convert` on it" in capsys.readouterr().err


def test_info_verifies_a_model(converted, tmp_path, capsys):
    assert run("info", converted, "--verify") == 0
    assert capsys.readouterr().out.endswith("every file is as it was written\n")
    model = tmp_path / "model"
    shutil.copytree(converted, model)
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
    options = ["--max-codes", 20, "--steps", 2, "--seed", 5]
    assert speak(converted, out, *options) == 0
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    arguments = ["speak", "--model", converted, "--voice", voice, "--text-file", text, "--output", again, *options]
    assert run(*arguments) == 0
    assert out.read_bytes() == again.read_bytes()
    assert speak(converted, again, *options[:-1], 6) == 0
    assert out.read_bytes() != again.read_bytes()


def test_random_weights_need_no_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        config, "from_yaml", lambda settings: tiny.cfg
    )  # it would take official sizes where it is silent
    out = tmp_path / "out.wav"
    arguments = ["--voice", VOICE, "--text", "a test", "--output", out, "--max-codes", 8, "--steps", 2]
    assert run("speak", "--random-init", FIXTURES / "tiny" / "config.yaml", *arguments) == 0
    assert out.is_file()
    assert "random weights: the output is noise" in capsys.readouterr().err


# ---- mistakes -------------------------------------------------------------------------------------------------------


def refused(capsys, out: Path, *arguments) -> str:
    """The one line that a failing command prints; it leaves no output."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    assert run(*arguments) not in (0, 2)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "warning" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("indextts-jax: error: ")
    assert not out.is_file()
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else None) == before
    return lines[0]


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
        (["--output", "missing/out.wav"], "missing: no such folder"),
        (["--output", "out.mp3"], "let it end in .wav"),
        (["--model", "missing"], "model.json: no such file"),
        (["--top-p", "2"], "top_p is 2.0"),
        (["--steps", "0"], "steps is 0"),
        (["--segment-tokens", "0"], "budget must be at least 1"),
        (["--flow-noise", str(VOICE)], "voice_24k.wav: not an .npz file"),
        (["--flow-noise", "missing.npz"], "missing.npz: no such file"),
        (["--save", "missing/save.npz"], "missing: no such folder"),
    ],
)
def test_bad_arguments_are_refused(converted, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out = Path("out.wav")
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "--output", out]
    assert message in refused(capsys, out, *base, *arguments)


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
    assert speak(converted, out, "--max-codes", 20, "--steps", 2) == 1
    assert "out.wav: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert out.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["out.wav"]


def test_an_interruption_leaves_nothing(converted, tmp_path, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "speak", interrupted)
    assert speak(converted, tmp_path / "out.wav") == 130
    assert capsys.readouterr().err == "indextts-jax: error: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_long_recording_is_cut_and_said_so(converted, tmp_path, capsys):
    seconds = 40
    rng = np.random.default_rng(0)
    path = write_sound(tmp_path / "long.wav", rng.normal(size=8000 * seconds) * 0.1, 8000)
    recording = audio.load_speaker(path)
    assert [len(samples) for samples in recording] == [15 * 22050, 15 * 16000, 15 * 16000]


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
