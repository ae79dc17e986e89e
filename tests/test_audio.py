"""Audio files and resampling: against the reference, and what cannot be used."""

import io
import itertools
import logging
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import soxr

from debug.golden import FIXTURES, absolute, golden
from indextts_jax import audio
from indextts_jax.files import FileError
from tests.small import speech

RECORDINGS = FIXTURES / "audio"


def test_speaker_recording_equals_reference():
    speaker = audio.load_speaker(RECORDINGS / "voice_24k.wav")
    arrays = golden("en_greedy")
    assert absolute(speaker.samples_22k, arrays["audio.spk_22k_librosa"][0]) <= 1e-6
    assert absolute(speaker.samples_16k, arrays["audio.spk_16k"][0]) <= 1e-6
    assert speaker.samples_16k.dtype == np.float32


@pytest.mark.parametrize(("name", "file"), [("en_greedy", "voice_24k.wav"), ("zh_greedy_emotion_audio", "emotion.wav")])
def test_emotion_recording_equals_reference(name: str, file: str):
    assert absolute(audio.load_emotion(RECORDINGS / file), golden(name)["audio.emo_16k_librosa"][0]) <= 1e-6


def test_sinc_resampling_equals_reference():
    arrays = golden("en_greedy")
    samples = audio.resample_sinc(arrays["audio.spk_22k_librosa"][0], 22050, 16000)
    assert absolute(samples, arrays["audio.spk_16k"][0]) <= 1e-6


def test_int16_equals_reference():
    arrays = golden("en_greedy")
    np.testing.assert_array_equal(audio.to_int16(arrays["seg0.bigvgan.out"][0, 0]), arrays["wav_int16"][:, 0])


# -------------------------------------------------------------------------------------- resampling


def test_sinc_resampling_keeps_tones_and_lengths():
    for from_rate, to_rate in ((22050, 16000), (16000, 22050), (8000, 16000), (44100, 16000)):
        tone = np.sin(2 * np.pi * 500 * np.arange(from_rate // 2) / from_rate).astype(np.float32)
        resampled = audio.resample_sinc(tone, from_rate, to_rate)
        expected = np.sin(2 * np.pi * 500 * np.arange(to_rate // 2) / to_rate)
        assert len(resampled) == to_rate // 2
        assert np.abs(resampled - expected)[50:-50].max() < 5e-3
    assert len(audio.resample_sinc(np.ones(442, np.float32), 22050, 16000)) == 321
    assert audio.resample_sinc(tone, 16000, 16000) is tone


def test_a_long_file_is_read_as_far_as_it_is_used(tmp_path: Path, monkeypatch, caplog):
    path = tmp_path / "long.wav"
    samples = speech(30, rate=8000)
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    counts = []
    decode = soundfile.SoundFile.read

    def count(file, *args, **options):
        decoded = decode(file, *args, **options)
        counts.append(len(decoded))
        return decoded

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    with caplog.at_level(logging.WARNING):
        speaker, emotion = audio.load_speaker(path), audio.load_emotion(path)
    assert max(counts) <= 16 * 8000
    assert [record.message for record in caplog.records] == [
        f"{path} is longer than 15 s: only its first 15 s are used"
    ] * 2
    # Cutting before resampling changes no sample.
    np.testing.assert_array_equal(speaker.samples_22k, soxr.resample(samples, 8000, 22050, quality="HQ")[: 15 * 22050])
    np.testing.assert_array_equal(emotion, soxr.resample(samples, 8000, 16000, quality="HQ")[: 15 * 16000])
    assert len(speaker.samples_16k) == 15 * 16000


def test_samples_in_memory_equal_the_file():
    path = RECORDINGS / "voice_24k.wav"
    speaker = audio.recording(*audio.read(path))
    for ours, expected in zip(speaker, audio.load_speaker(path), strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(audio.emotion(*audio.read(path)), audio.load_emotion(path))


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "error"),
    [
        ("a.wav", 24000, "PCM_16", 1e-4),
        ("b.wav", 96000, "PCM_24", 1e-6),
        ("c.wav", 8000, "FLOAT", 0.0),
        ("d.flac", 44100, "PCM_16", 1e-4),
        ("e.ogg", 48000, "VORBIS", 0.1),
        ("Stimme 声音.wav", 22050, "PCM_U8", 1e-2),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_formats(tmp_path: Path, name: str, rate: int, subtype: str, error: float, channels: int):
    path, samples = tmp_path / name, speech(0.5, rate)
    gains = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    soundfile.write(path, samples[:, None] * gains.astype(np.float32), rate, subtype=subtype)
    read, read_rate = audio.read(path)
    assert read_rate == rate
    assert absolute(read, samples) <= error + 1e-6
    speaker = audio.load_speaker(path)
    assert [len(x) for x in speaker] == [11025, 8000, 8000]
    assert len(audio.load_emotion(str(path))) == 8000
    if error < 0.1:
        expected = soxr.resample(samples, rate, 22050, quality="HQ") if rate != 22050 else samples
        assert absolute(speaker.samples_22k, expected) <= 2 * error + 1e-6


def write(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("load", [audio.read, audio.load_speaker, audio.load_emotion])
def test_unusable_files_are_named(tmp_path: Path, load):
    text = tmp_path / "text.wav"
    text.write_text("Hello, this is no audio. " * 20, encoding="utf-8")
    nothing, raw = tmp_path / "nothing.wav", tmp_path / "headerless.raw"
    nothing.touch()
    raw.write_bytes(b"\1\2" * 4000)
    broken = speech(0.5)
    broken[100] = np.nan
    loud = speech(0.5)
    loud[5] = np.inf
    quiet = "is silent in the 0.5 s that were read; give one with speech"
    for path, message in (
        (tmp_path / "missing.wav", "no such file; check the path"),
        (tmp_path, "is a folder; give one audio file"),
        (text, r"cannot be read as audio \(.*\); convert it to WAV"),
        (raw, r"cannot be read as audio \(.*\); convert it to WAV"),
        (nothing, r"is empty \(0 bytes\)"),
        (write(tmp_path / "empty.wav", np.zeros(0)), r"has 0.000 s of sound; at least 0.1 s are needed"),
        (write(tmp_path / "short.wav", speech(0.09)), r"has 0.090 s of sound; at least 0.1 s are needed"),
        (write(tmp_path / "silent.wav", np.zeros(8000)), quiet),
        (
            write(tmp_path / "faint.wav", speech(0.5) * 1e-5),
            quiet,
        ),
        (
            write(tmp_path / "offset.wav", np.full(8000, 0.3)),
            quiet,
        ),
        (write(tmp_path / "nan.wav", broken), "NaN or infinite; export it again"),
        (write(tmp_path / "inf.wav", loud), "NaN or infinite; export it again"),
    ):
        with pytest.raises(audio.AudioError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_devices_and_pipes_are_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        with pytest.raises(audio.AudioError, match=f"{path} is a device or a pipe; save the recording as a file first"):
            audio.read(path)


def test_closed_files_are_named(tmp_path: Path, monkeypatch):
    path = write(tmp_path / "closed.wav", speech(0.5))

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "a name that nobody knows")

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(audio.AudioError) as caught:
        audio.read(path)
    assert str(caught.value) == f"{path} cannot be opened (Permission denied); check its permissions"


@pytest.mark.parametrize("peak", [17.0, 32767.0, 1e30, 3e38])
def test_integers_that_nobody_scaled_are_refused(tmp_path: Path, peak: float):
    """A Voice of them would be NaN, or of a clipped recording."""
    samples = speech(0.5)
    samples = (samples / np.abs(samples).max() * np.float64(peak)).astype(np.float32)
    message = r"holds samples that reach .*, but they must lie in -1\.\.1; divide integers by their largest value"
    with pytest.raises(audio.AudioError, match=message):
        audio.load_speaker(write(tmp_path / "loud.wav", samples))
    with pytest.raises(audio.AudioError, match=message if peak < 1e38 else "NaN or infinite|" + message):
        audio.read(write(tmp_path / "stereo.wav", np.stack([samples, samples], axis=1)))
    with pytest.raises(audio.AudioError, match=message):
        audio.recording(samples, 16000)


def test_floats_that_exceed_one_a_little_are_used(tmp_path: Path):
    samples = speech(0.5) * 8
    assert np.abs(samples).max() > 2
    np.testing.assert_array_equal(audio.read(write(tmp_path / "loud.wav", samples))[0], samples)


def test_channels_that_cancel_each_other_are_named(tmp_path: Path):
    samples = speech(0.5)
    path = write(tmp_path / "antiphase.wav", np.stack([samples, -samples], axis=1))
    with pytest.raises(
        audio.AudioError, match="is silent when its channels are averaged: they cancel each other; keep"
    ):
        audio.load_speaker(path)
    path = write(tmp_path / "silent.wav", np.zeros((8000, 2), np.float32))
    with pytest.raises(audio.AudioError, match=r"is silent in the 0\.5 s that were read"):
        audio.load_speaker(path)


def test_a_length_just_below_the_least_is_no_absurdity(tmp_path: Path):
    soundfile.write(tmp_path / "short.wav", speech(0.5, 44100)[:4405], 44100, subtype="FLOAT")  # 0.09989 s
    with pytest.raises(audio.AudioError, match=r"has 0\.099 s of sound; at least 0\.1 s are needed"):
        audio.read(tmp_path / "short.wav")


# ------------------------------------------------------------------------- where listening starts


@pytest.mark.parametrize("name", ["long.wav", "long.flac"])
def test_listening_starts_where_it_is_told(tmp_path: Path, caplog, name: str):
    samples = np.concatenate([np.zeros(20 * 16000, np.float32), speech(20)])
    path = tmp_path / name
    soundfile.write(path, samples, 16000, subtype="FLOAT" if name.endswith("wav") else "PCM_16")
    whole, _ = audio.read(path)
    found, rate = audio.read(path, 1.0, 20.5)
    np.testing.assert_array_equal(found, whole[round(20.5 * 16000) : round(21.5 * 16000)])
    np.testing.assert_array_equal(audio.read(path, start=20.5)[0], whole[round(20.5 * 16000) :])
    with caplog.at_level(logging.WARNING):
        speaker = audio.load_speaker(path, start=20.0)
    assert caplog.messages == [f"{path} from 20 s on is longer than 15 s: only its first 15 s are used"]
    np.testing.assert_array_equal(speaker.samples_22k, audio.recording(whole[20 * 16000 :], rate).samples_22k)
    np.testing.assert_array_equal(audio.load_emotion(path, 39.0), audio.emotion(whole[39 * 16000 :], rate))
    with pytest.raises(audio.AudioError, match=r"from 1 s on is silent in the 15\.5 s that were read"):
        audio.load_speaker(path, start=1.0)


def test_a_start_past_the_end_is_named(tmp_path: Path):
    path = write(tmp_path / "short.wav", speech(2))
    for start in (2.0, 2.5, 1e9):
        with pytest.raises(audio.AudioError) as caught:
            audio.load_speaker(path, start=start)
        assert str(caught.value) == f"{path} has 2.00 s of sound, none from {start:g} s on; start earlier"
    with pytest.raises(audio.AudioError, match=r"from 1.95 s on has 0\.050 s of sound; at least 0\.1 s are needed"):
        audio.load_speaker(path, start=1.95)
    for start in (-1.0, math.nan, math.inf):
        with pytest.raises(audio.AudioError, match=f"the start is {start} s, but must be at least 0 s"):
            audio.load_emotion(path, start=start)


# -------------------------------------------------------------------- what ffmpeg reads for us


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch) -> Path:
    """A program of that name, alone on the path, that keeps its arguments and gives 0.5 s of speech in two channels."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rows = np.stack([speech(0.5, 24000)] * 2, axis=1)
    soundfile.write(tmp_path / "given.wav", rows, 24000, subtype="FLOAT")
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/arguments\n/bin/cat {tmp_path}/given.wav\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


@pytest.mark.parametrize(("end", "kind"), [(".m4a", "mov"), (".MP4", "mov"), (".webm", "matroska"), (".aac", "aac")])
def test_ffmpeg_reads_what_soundfile_does_not(tmp_path: Path, ffmpeg: Path, end: str, kind: str):
    path = tmp_path / f"voice{end}"
    path.write_bytes(b"no format that soundfile knows")
    samples, rate = audio.read(path, 15.5, 3.25)
    assert rate == 24000
    np.testing.assert_array_equal(samples, speech(0.5, 24000))
    arguments = (tmp_path / "arguments").read_text().splitlines()
    pairs = dict(itertools.pairwise(arguments))
    assert (pairs["-ss"], pairs["-t"], pairs["-f"], pairs["-i"]) == ("3.250000", "15.500000", "wav", f"file:{path}")
    assert arguments[arguments.index("-i") - 1] == kind
    assert len(audio.load_emotion(path)) == 8000


def test_what_ffmpeg_cannot_do_is_named(tmp_path: Path, ffmpeg: Path, monkeypatch):
    path = tmp_path / "voice.m4a"
    path.write_bytes(b"no format that soundfile knows")
    monkeypatch.setattr(audio, "FFMPEG_SECONDS", 0.5)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros((0, 1)), 16000)
    for script, start, message in (
        (
            "echo first >&2; echo 'Invalid data' >&2; exit 1",
            0.0,
            r"cannot be read by ffmpeg \(Invalid data\); convert it",
        ),
        ("exit 3", 0.0, r"cannot be read by ffmpeg \(3\); convert it to WAV"),
        ("true", 0.0, r"ffmpeg gave no sound \(.*\); convert it to WAV"),
        (f"/bin/cat {empty}", 9.0, r"has no sound from 9 s on; start earlier"),
        (f"/bin/cat {empty}", 0.0, r"has 0\.000 s of sound"),
        ("exec /bin/sleep 20", 0.0, r"ffmpeg did not read it within 0\.5 s; convert it to WAV"),
    ):
        ffmpeg.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(audio.AudioError, match=message) as caught:
            audio.read(path, start=start)
        assert str(path) in str(caught.value)
    ffmpeg.write_bytes(b"no program")
    with pytest.raises(audio.AudioError, match=r"ffmpeg cannot be run \(Exec format error\); convert it to WAV"):
        audio.read(path)
    ffmpeg.unlink()
    with pytest.raises(
        audio.AudioError, match=r"\.m4a files are read by ffmpeg, which is not installed; install it, or"
    ):
        audio.read(path)
    other = tmp_path / "voice.xyz"  # which ffmpeg is not asked for
    other.write_bytes(b"no format that soundfile knows")
    with pytest.raises(audio.AudioError, match=r"cannot be read as audio \(.*\); convert it to WAV"):
        audio.read(other)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("end", ["m4a", "mp4", "webm", "aac"])
def test_recordings_through_the_real_ffmpeg(tmp_path: Path, end: str):
    source, path = RECORDINGS / "voice_24k.wav", tmp_path / f"voice 声音.{end}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, "-ac", "2", path], check=True)
    samples, rate = audio.read(path)
    expected, _ = audio.read(source)
    assert len(samples) / rate == pytest.approx(len(expected) / 24000, abs=0.1)
    assert np.abs(samples).max() == pytest.approx(np.abs(expected).max() * 0.5**0.5, rel=0.1)
    assert len(audio.read(path, 1.0, 2.0)[0]) / rate == pytest.approx(1.0, abs=0.05)
    with pytest.raises(audio.AudioError, match=r"has no sound from 100 s on; start earlier"):
        audio.read(path, start=100.0)


def test_speech_after_the_first_15_seconds_is_not_heard():
    samples = np.concatenate([np.zeros(15 * 16000 + 1000, np.float32), speech(2)])
    with pytest.raises(audio.AudioError, match="the take is silent in the "):
        audio.emotion(samples, 16000, "the take")


def test_unusable_samples_are_refused():
    for samples, rate in ((np.zeros((2, 16000), np.float32), 16000), (np.zeros(16000, np.int16), 16000)):
        with pytest.raises(audio.AudioError, match=r"the recording: .* give one channel \[N\] of floats in -1..1"):
            audio.recording(samples, rate)
    with pytest.raises(audio.AudioError, match="a rate of 0 Hz"):
        audio.recording(speech(0.5), 0)


def test_int16_clamps_and_truncates():
    samples = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.99999, -0.00005, 1.9 / 32767], np.float32)
    assert audio.to_int16(samples).tolist() == [0, 32767, -32767, 32767, -32767, 32766, -1, 1]
    assert audio.to_int16(jnp.asarray(samples)).dtype == np.int16
    with pytest.raises(audio.AudioError, match="holds NaN"):
        audio.to_int16(np.array([0.1, np.nan], np.float32))


def test_wav_round_trip(tmp_path: Path):
    path, samples = tmp_path / "out.wav", audio.to_int16(speech(0.5, 22050))
    path.write_text("old")
    audio.write_wav(path, samples, 22050)
    read, rate = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(read, samples)
    info = soundfile.info(path)
    assert (rate, info.format, info.subtype) == (22050, "WAV", "PCM_16")
    assert os.listdir(tmp_path) == ["out.wav"]


def test_unwritable_places_are_named(tmp_path: Path):
    samples = np.zeros(10, np.int16)
    with pytest.raises(FileError, match=r"cannot write .*there is no folder .*absent; create it first"):
        audio.write_wav(tmp_path / "absent" / "out.wav", samples)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*folder\.wav: Is a directory"):
        audio.write_wav(tmp_path / "folder.wav", samples)
    with pytest.raises(audio.AudioError, match=r"give one channel \[N\] of int16"):
        audio.write_wav(tmp_path / "out.wav", np.zeros(10, np.float32))
    assert os.listdir(tmp_path) == ["folder.wav"]


# ---- files of our own -----------------------------------------------------------------------------------------------


def test_wav_is_encoded_as_it_is_written(tmp_path: Path):
    samples = speech(0.5, 22050) * 3  # some of which is clipped
    audio.write_wav(tmp_path / "out.wav", audio.to_int16(samples), 22050)
    assert audio.encode(samples, 22050, "wav") == (tmp_path / "out.wav").read_bytes()


@pytest.mark.parametrize(("kind", "most"), [("wav", 1e-9), ("flac", 1e-9), ("ogg", 0.1)])
def test_kinds_of_files(kind: str, most: float):
    samples = speech(4, 22050)  # more than one block
    encoded = audio.encode(samples, 22050, kind)
    info = soundfile.info(io.BytesIO(encoded))
    assert (info.samplerate, info.channels, info.frames) == (22050, 1, len(samples))
    assert (info.format, info.subtype) == audio.FORMATS[kind]
    decoded, _ = soundfile.read(io.BytesIO(encoded))
    assert np.abs(decoded - audio.to_int16(samples) / 32768).max() < most
    assert kind == "wav" or len(encoded) < 2 * len(samples)


@pytest.mark.parametrize("kind", sorted(audio.FORMATS))
def test_the_same_samples_give_the_same_bytes(tmp_path: Path, kind: str):
    samples = audio.to_int16(speech(8, 22050))
    encoded = audio.encode(speech(8, 22050), 22050, kind)
    assert audio.encode(speech(8, 22050), 22050, kind) == encoded
    with audio.Encoder(tmp_path / "out", 22050, kind) as encoder:
        for part in np.array_split(samples, 7):
            encoder.write(part)
    assert (tmp_path / "out").read_bytes() == encoded


def test_streams_of_ogg_have_numbers_of_their_own():
    """So that files may be chained; pages keep the checksum that RFC 3533 asks for."""
    numbers = set()
    for seconds in (1, 2, 2):
        encoded = audio.encode(speech(seconds, 22050), 22050, "ogg")
        numbers.add(encoded[14:18])
        for page in encoded.split(b"OggS")[1:]:
            page = b"OggS" + page
            assert page[14:18] == encoded[14:18]
            assert checksum(page[:22] + bytes(4) + page[26:]) == int.from_bytes(page[22:26], "little")
    assert len(numbers) == 2


def checksum(page: bytes) -> int:
    """By the book: polynomial 0x04c11db7, bit by bit."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


def test_much_sound_is_encoded_as_vorbis():
    """libsndfile crashes where it gets all of it at once."""
    samples = np.zeros(20_000_000, np.float32)
    assert soundfile.info(io.BytesIO(audio.encode(samples, 22050, "ogg"))).frames == len(samples)


@pytest.mark.parametrize("kind", sorted(audio.FORMATS))
def test_encoding_at_another_rate(kind: str):
    rate = 48000
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(22050) / 22050)
    decoded, found = soundfile.read(io.BytesIO(audio.encode(tone, 22050, kind, rate)))
    assert (found, len(decoded)) == (rate, rate)
    expected = 0.5 * np.sin(2 * np.pi * 500 * np.arange(rate) / rate)
    assert np.abs(decoded - expected)[500:-500].max() < (0.02 if kind == "ogg" else 1e-3)
    assert audio.encode(tone, 22050, kind, 22050) == audio.encode(tone, 22050, kind)


def test_peaks_of_the_filter_are_clipped():
    square = np.sign(np.sin(np.arange(22050) / 20)).astype(np.float32)
    decoded, _ = soundfile.read(io.BytesIO(audio.encode(square, 22050, "wav", 24000)), dtype="int16")
    assert (decoded.min(), decoded.max()) == (-32767, 32767)


def test_what_cannot_be_encoded_is_named(tmp_path: Path):
    samples = speech(0.5, 22050)
    for broken, message in (
        (np.zeros(10, np.int16), r"samples \(10,\) int16; give one channel \[N\] of floats in -1..1"),
        (np.zeros((2, 10)), r"samples \(2, 10\) float64; give one channel"),
        (np.zeros(0), "there are no samples to encode"),
        (np.full(10, np.nan), "the waveform holds NaN"),
    ):
        with pytest.raises(audio.AudioError, match=message):
            audio.encode(broken, 22050, "flac")
    with pytest.raises(audio.AudioError, match=r"a rate of 0 Hz; give the samples per second"):
        audio.encode(samples, 22050, "flac", 0)
    with pytest.raises(audio.AudioError, match=r"cannot write flac at 700000 Hz \(.*\); choose another rate or kind"):
        audio.encode(samples, 22050, "flac", 700_000)
    with pytest.raises(FileError, match=r"cannot write .*absent/out \(.*System error.*\); free some space or choose"):
        audio.Encoder(tmp_path / "absent" / "out", 22050, "wav")


@pytest.mark.parametrize("kind", sorted(audio.FORMATS))
@pytest.mark.parametrize("size", [0, 100, 9000])
def test_a_full_disk_is_noticed(tmp_path: Path, kind: str, size: int):
    samples = np.random.default_rng(0).integers(-9000, 9000, 60_000).astype(np.int16)
    path = tmp_path / "temporary"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with audio.Encoder(path, 22050, kind, tmp_path / "out") as encoder:
            encoder.write(samples)

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(FileError, match=r"cannot write .*/out \(.*\); free some space or choose another place"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write()


def test_what_is_missing_in_a_file_is_noticed(tmp_path: Path, monkeypatch):
    """However it got lost: what was written is read again before it counts."""
    info = soundfile.info(RECORDINGS / "voice_24k.wav")
    monkeypatch.setattr(soundfile, "info", lambda _: info)
    encoder = audio.Encoder(tmp_path / "out", 22050, "flac")
    encoder.write(np.zeros(9, np.int16))
    with pytest.raises(FileError, match=rf"out \({info.frames} of 9 samples were written\); free some space"):
        encoder.close()


def test_a_recording_is_the_same_whatever_the_number_of_threads():
    """Of BLAS, which machines and engines choose: jobs on several of them give the same bytes."""
    code = "import sys; from indextts_jax import audio; from hashlib import sha256\n"
    code += "print([sha256(each.tobytes()).hexdigest() for each in audio.load_speaker(sys.argv[1])])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(FIXTURES / "audio" / "voice_24k.wav")], capture_output=True, check=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
