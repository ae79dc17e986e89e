"""Comparing recordings: what decides, what the loose gates let through, and what cannot be compared."""

import json
import runpy
import sys

import numpy as np
import pytest
import soundfile

from debug.compare_audio import main
from debug.golden import FIXTURES, golden

LENGTH, SAMPLES, LARGEST_MEL, CORRELATION, ERROR, COSINE, STOI = range(7)


@pytest.fixture(scope="module")
def samples():
    """The reference's own waveform of a sentence, [17408] int16."""
    return golden("en_greedy")["wav_int16"][:, 0]


@pytest.fixture
def run(tmp_path, capsys, samples):
    """Compare samples with the reference's: -> (exit status, figures, or the error)."""

    def run(ours, reference=samples, rate=22050, other_rate=22050):
        paths = [tmp_path / "ours.wav", tmp_path / "reference.wav"]
        for path, content, hertz in zip(paths, (ours, reference), (rate, other_rate), strict=True):
            soundfile.write(path, content, hertz, subtype="PCM_16")
        return outcome(capsys, *paths)

    return run


def outcome(capsys, *paths):
    status = main([*map(str, paths), "--json"])
    out, error = capsys.readouterr()
    if status == 2:
        assert not out
        return status, error
    assert not error
    found = json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity
    assert found["same"] == (status == 0)
    return status, found["figures"]


def test_a_file_and_itself(run, samples):
    status, figures = run(samples)
    assert status == 0
    assert [f["holds"] for f in figures] == [True] * 5 + [None] * 2
    assert [f["value"] for f in figures[:6]] == pytest.approx([0, 0, 0, 1, 0, 1], abs=1e-12)


@pytest.mark.parametrize(("by", "status"), [(1, 0), (4, 0), (5, 1)])
def test_the_tolerance_of_samples(run, samples, by, status):
    off = samples.copy()
    off[::50] += by
    found, figures = run(off)
    assert found == status
    assert figures[SAMPLES]["value"] == by
    assert not figures[LARGEST_MEL]["holds"]


@pytest.mark.parametrize("name", ["en_segments", "zh_greedy_emotion_audio"])
def test_loose_gates_hold_for_another_sentence(run, samples, name):
    """The reference's own waveforms of other texts, from the same noise: one in the same voice, one in another."""
    other = golden(name)
    assert np.array_equal(other["seg0.cfm.noise"], golden("en_greedy")["seg0.cfm.noise"])
    assert (other["seg0.gpt.codes"] != golden("en_greedy")["seg0.gpt.codes"]).mean() > 0.8
    status, figures = run(other["wav_int16"][: len(samples), 0])
    assert status == 1
    assert figures[SAMPLES]["value"] > 1000
    assert not figures[SAMPLES]["holds"]
    assert figures[CORRELATION]["value"] > 0.998
    assert figures[CORRELATION]["holds"]
    assert figures[ERROR]["holds"]


def test_loose_gates_hold_for_one_wrong_code(run, samples):
    """20 ms, one code's, are those of another text."""
    wrong = samples.copy()
    wrong[8820:9261] = golden("en_segments")["wav_int16"][8820:9261, 0]
    status, figures = run(wrong)
    assert status == 1
    assert figures[SAMPLES]["value"] > 100
    assert not figures[SAMPLES]["holds"]
    assert figures[CORRELATION]["value"] > 0.9999
    assert figures[ERROR]["holds"]


def test_scaled(run, samples):
    """Correlation is blind to loudness, a log-mel is not."""
    status, figures = run((samples * 0.5).astype(np.int16))
    assert status == 1
    assert figures[CORRELATION]["value"] > 0.99999
    assert figures[COSINE]["value"] > 0.99999
    assert figures[ERROR]["value"] == pytest.approx(np.log(2) ** 2, rel=0.05)
    assert not figures[ERROR]["holds"]


def test_shifted(run, samples):
    """By 2 ms: the waveform is another one, the magnitudes are nearly the same."""
    status, figures = run(np.roll(samples, 44))
    assert status == 1
    assert not figures[CORRELATION]["holds"]
    assert figures[COSINE]["value"] > 0.9 > figures[CORRELATION]["value"]


def test_another_length_fails_and_the_common_part_is_compared(capsys):
    files = (FIXTURES / "audio" / "voice_24k.wav", FIXTURES / "audio" / "voice_24k_odd.wav")
    for paths in (files, files[::-1]):
        status, figures = outcome(capsys, *paths)
        assert status == 1
        assert figures[LENGTH]["value"] == 240
        assert not figures[LENGTH]["holds"]
        assert all(f["holds"] for f in figures[SAMPLES : ERROR + 1])


def test_channels_are_averaged(run, samples):
    half = samples // 2
    status, figures = run(np.stack([half + 100, half - 100], axis=1), half)
    assert status == 0
    assert figures[SAMPLES]["value"] == 0


def test_silence_in_common_has_no_correlation(run, samples, tmp_path, capsys):
    late = np.concatenate([np.zeros_like(samples), samples])
    status, figures = run(late)
    assert status == 1
    for i in (CORRELATION, COSINE, STOI):
        assert figures[i]["value"] is None
        assert "silent" in figures[i]["note"]
    assert figures[CORRELATION]["holds"] is False
    assert main([str(tmp_path / "ours.wav"), str(tmp_path / "reference.wav")]) == 1
    assert (
        "| correlation of waveforms | undefined: one of them is silent here | > 0.95 | FAILS |"
        in capsys.readouterr().out
    )


def test_table(run, samples, tmp_path, capsys):
    run(samples + (np.arange(len(samples)) == 700).astype(np.int16) * 9)
    assert main([str(tmp_path / "ours.wav"), str(tmp_path / "reference.wav")]) == 1
    out = capsys.readouterr().out
    assert "17408 and 17408 samples at 22050 Hz" in out
    assert "| largest difference of samples, of 32768 | 9 | <= 4, decides | FAILS |" in out
    assert "NOT the same" in out
    assert main([str(tmp_path / "reference.wav")] * 2) == 0
    out = capsys.readouterr().out
    assert "FAILS" not in out
    assert "NOT" not in out


def test_intelligibility(run, samples):
    pytest.importorskip("pystoi")
    hiss = np.random.default_rng(0).normal(0, samples.std(), len(samples))
    same, noisy = (run(x.astype(np.int16))[1][STOI] for x in (samples, samples / 2 + hiss))
    assert same["value"] == pytest.approx(1, abs=1e-6)
    assert 0 < noisy["value"] < 0.9
    short = run(samples[:6000], samples[:6000])[1][STOI]  # 0.27 s
    assert short["value"] is None
    assert "Not enough STFT frames" in short["note"]


def test_without_pystoi_the_line_says_what_to_install(run, samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystoi", None)
    status, figures = run(samples)
    assert status == 0
    assert figures[STOI]["value"] is None
    assert "pip install" in figures[STOI]["note"]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.wav", None, "no such file"),
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"This is not a recording.\n", "cannot be read as audio"),
        ("silent.wav", np.zeros(22050, np.int16), "is silent"),
        ("short.wav", np.full(100, 9000, np.int16), "at least 0.1 s"),
    ],
)
def test_what_cannot_be_compared(tmp_path, capsys, which, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 22050)
    paths = [FIXTURES / "audio" / "voice_24k.wav"] * 2
    paths[which] = path
    status, error = outcome(capsys, *paths)
    assert status == 2
    assert error.startswith(f"error: {path}")
    assert message in error
    assert error.count("\n") == 1


def test_another_rate_is_not_resampled(run, samples):
    status, error = run(samples, rate=24000)
    assert status == 2
    assert "24000 Hz" in error
    assert "22050 Hz" in error
    assert error.count("\n") == 1


def test_too_little_in_common(run, samples):
    status, error = run(samples[:900], rate=8000, other_rate=8000)
    assert status == 2
    assert "900 samples in common" in error


def test_run_as_a_module(monkeypatch, capsys):
    path = str(FIXTURES / "audio" / "voice_24k.wav")
    monkeypatch.delitem(sys.modules, "debug.compare_audio")
    for second, status in ((path, 0), ("missing.wav", 2)):
        monkeypatch.setattr(sys, "argv", ["compare_audio", path, second])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("debug.compare_audio", run_name="__main__")
        assert ended.value.code == status
    assert "The same" in capsys.readouterr().out
