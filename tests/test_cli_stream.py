"""`speak --stream`, --speed and --duration as a user meets them: growing files, pipes, one line for each mistake."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from indextts_jax import growing, streaming
from tests.test_cli import TEXT, VOICE, misused, refused, run, speak

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("at_hand")]

FEW = ("--greedy", "--max-codes", 100, "--steps", 1, "--first-codes", 40, "--hop", 64)


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """Programs compiled by these tests stay out of the user's cache."""
    monkeypatch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)


@pytest.fixture(scope="module")
def whole(converted, tmp_path_factory):
    """What is streamed, spoken whole: its samples and its subtitles."""
    folder = tmp_path_factory.mktemp("whole")
    out, cues = folder / "out.wav", folder / "out.srt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INDEXTTS_CACHE", jax.config.jax_compilation_cache_dir)
        assert speak(converted, out, *FEW[:5], "--subtitles", cues) == 0
    return soundfile.read(out, dtype="int16")[0], cues.read_text()


def test_a_file_that_grows(converted, tmp_path, capsys, monkeypatch, whole):
    """As long as the whole, with its subtitles; after every chunk what is there can be read."""
    out, cues, sizes = tmp_path / "out.wav", tmp_path / "out.srt", []
    write = growing.Growing.write

    def watched(self, samples, last):
        write(self, samples, last)
        sizes.append(out.stat().st_size)

    monkeypatch.setattr(growing.Growing, "write", watched)
    assert speak(converted, out, *FEW, "--stream", "--subtitles", cues) == 0
    samples, rate = soundfile.read(out, dtype="int16")
    assert (rate, len(samples)) == (22050, len(whole[0]))
    assert len(sizes) == 3
    assert sizes[0] < sizes[1] < sizes[2] == out.stat().st_size
    assert cues.read_text() == whole[1]
    said = capsys.readouterr().out
    assert re.search(
        r"out.wav: 2\.00 s of audio in [\d.]+ s, the first after [\d.]+ s .*; a player (never )?waits", said
    )


def to_stdout(converted, *arguments):
    return run("speak", "--model", converted, "--voice", VOICE, "--text", TEXT, *FEW, "--stream", "-", *arguments)


def test_samples_alone_to_standard_output(converted, capfdbinary, whole):
    assert to_stdout(converted) == 0
    data, messages = capfdbinary.readouterr()
    assert len(data) == 2 * len(whole[0])
    lines = [line for line in messages.decode().splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("standard output: 2.00 s of audio")


@pytest.mark.slow
def test_a_player_that_goes(converted):
    """In a process of its own, of whose output 1000 bytes are read."""
    command = [
        *(sys.executable, "-m", "indextts_jax.cli", "speak", "--model", converted, "--voice", VOICE, "--text", TEXT),
        *(*FEW, "--stream", "-", "--format", "wav", "--quiet"),
    ]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        data = process.stdout.read(1000)
        process.stdout.close()
        messages = process.stderr.read().decode().splitlines()
    assert data[:4] == b"RIFF"
    assert process.returncode == 1
    assert len(messages) == 1
    assert re.fullmatch(
        r"indextts-jax: error: standard output was closed by its reader after \d\.\d\d s of sound", messages[0]
    )


def test_a_disk_that_is_full_keeps_what_was_heard(converted, tmp_path, capsys, monkeypatch):
    out, header = tmp_path / "out.wav", growing.wav_header
    write = growing.Growing._write

    def full(self, data):
        if self.samples:
            self._file.write(data[:1000])
            raise growing.FileError("cannot write out.wav") from OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(growing.Growing, "_write", full)
    assert speak(converted, out, *FEW, "--stream") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert errors == ["indextts-jax: error: cannot write out.wav"]
    samples, _ = soundfile.read(out, dtype="int16")
    assert 0 < len(samples) == (out.stat().st_size - len(header(22050, 0))) // 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_heard_and_says_so(converted, tmp_path, capsys, monkeypatch, number):
    out, heard = tmp_path / "out.wav", streaming.stream

    def interrupted(*arguments, **more):
        for i, chunk in enumerate(heard(*arguments, **more)):
            if i:
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
            yield chunk

    monkeypatch.setattr(streaming, "stream", interrupted)
    assert speak(converted, out, *FEW, "--stream") == 128 + number
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    samples, _ = soundfile.read(out, dtype="int16")
    assert len(samples) > 10000
    assert lines == [f"indextts-jax: error: interrupted; {out} holds the first {len(samples) / 22050:.2f} s"]


def test_what_fails_before_the_first_sound_touches_no_file(converted, tmp_path, capsys):
    out = tmp_path / "out.wav"
    out.write_bytes(b"before")
    assert speak(converted, out, *FEW[:-4], "--first-codes", 10, "--stream") == 1
    assert "first_codes is 10, which is too few" in capsys.readouterr().err
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--first-codes", "40"], "--first-codes is for --stream: add it"),
        (["--hop", "40"], "--hop is for --stream: add it"),
        (["--stream", "a.wav"], "--stream a.wav: takes no file; use --stream --output a.wav, or --stream -"),
        (["--stream", "-"], "--stream - writes to standard output: leave out --output, or the -"),
        (["--stream", "--save", "x.npz"], "--save needs all of a segment before it is heard: leave it out"),
        (["--stream", "--plot", "x.png"], "--plot needs all of a segment"),
        (["--stream", "--retries", "1"], "--retries needs all of a segment"),
        (["--stream", "--duration", "3"], "--duration needs all of a segment"),
        (["--stream", "--normalize", "-16"], "--normalize needs all of a segment"),
        (["--stream", "--format", "flac"], "--stream writes WAV, or samples alone to standard output"),
        (["--stream", "--output", "out.ogg"], "--stream writes WAV, or samples alone to standard output"),
        (["--duration", "100"], "duration is 100 s, but this text can take 1.00 to 3.99 s"),
    ],
)
def test_what_does_not_go_together(converted, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT, "--output", "out.wav", *FEW[:5]]
    assert message in refused(capsys, Path("out.wav"), *base, *arguments)


def test_no_output_is_a_usage_error(converted, capsys):
    base = ["speak", "--model", converted, "--voice", VOICE, "--text", TEXT]
    assert misused(capsys, *base) == "the following arguments are required: -o/--output"
    assert misused(capsys, *base, "--stream") == "the following arguments are required: -o/--output"
    assert "not allowed with argument" in misused(capsys, *base, "--speed", "1.2", "--duration", "3")
    assert misused(capsys, *base, "--speed", "3") == "argument --speed: 3 is not between 0.5 and 2"


def test_speed_and_duration(converted, tmp_path, whole):
    faster, exact = tmp_path / "faster.wav", tmp_path / "exact.wav"
    assert speak(converted, faster, *FEW[:5], "--speed", 1.25) == 0
    assert speak(converted, exact, *FEW[:5], "--duration", 2.5) == 0
    frames = len(whole[0]) // 256
    assert soundfile.info(faster).frames == int(np.float32(1.72 * 100) / np.float32(1.25)) * 256
    assert frames == 172
    assert soundfile.info(exact).frames == round(2.5 * 22050 / 256) * 256
