"""Joining: every sample is where it belongs, and the subtitles say where that is."""

import itertools
import os
import re
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts_jax import audio, interrupts, joining
from indextts_jax.errors import Error, NotFound
from indextts_jax.files import FileError
from indextts_jax.joining import Cue, Part, join, srt, vtt, words
from tests.small import speech

RATE = 22050


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Three files, of the kinds that there are, with silences of 0, 100 and 4000 ms."""
    made = []
    for i, (kind, seconds, silence) in enumerate((("wav", 0.5, 0), ("flac", 3.3, 100), ("wav", 0.25, 4000))):
        samples = speech(seconds, RATE)
        path = tmp_path / f"{i}.{kind}"
        path.write_bytes(audio.encode(samples, RATE, kind))
        half = len(samples) // 2
        made.append(Part(path, silence, (Cue(0, half, f"{i}a"), Cue(half, len(samples), f"{i}b"))))
    return made


def samples_of(parts: list[Part]) -> np.ndarray:
    pieces = []
    for part in parts:
        pieces += [soundfile.read(part.path, dtype="int16")[0]]
        pieces += [np.zeros(part.silence_after_ms * RATE // 1000, np.int16)]
    return np.concatenate(pieces)


@pytest.mark.parametrize("kind", sorted(audio.FORMATS))
def test_parts_follow_one_another(tmp_path: Path, parts: list[Part], kind: str):
    path = tmp_path / f"all.{kind}"
    total = join(iter(parts), path, kind, RATE)
    expected = samples_of(parts)
    samples, rate = soundfile.read(path, dtype="int16")
    assert (rate, total, len(samples)) == (RATE, len(expected), len(expected))
    if kind == "ogg":
        assert np.abs(samples.astype(int) - expected).max() < 3000
    else:
        np.testing.assert_array_equal(samples, expected)
    assert soundfile.info(path).subtype == audio.FORMATS[kind][1]
    content = path.read_bytes()
    assert content == audio.encode(expected / 32767 + np.sign(expected) * 1e-6, RATE, kind)
    join(parts, path, kind, RATE, force=True)
    assert path.read_bytes() == content  # the same bytes again


def test_subtitles_are_written_beside(tmp_path: Path, parts: list[Part]):
    targets = [tmp_path / "all.srt", tmp_path / "all.VTT"]
    join(parts, tmp_path / "all.wav", "wav", RATE, subtitles=targets)
    cues, position = [], 0
    for part in parts:
        cues += [Cue(position + start, position + end, text) for start, end, text in part.cues]
        position += soundfile.info(part.path).frames + part.silence_after_ms * RATE // 1000
    assert targets[0].read_text("utf-8") == srt(cues, RATE)
    assert targets[1].read_text("utf-8") == vtt(cues, RATE)
    assert "00:00:00,250 --> 00:00:00,500\n0b\n\n3\n00:00:00,500 --> " in srt(cues, RATE)


def test_all_appear_when_all_are_complete(tmp_path: Path, parts: list[Part]):
    targets = [tmp_path / "all.srt", tmp_path / "all.vtt"]
    before = sorted(os.listdir(tmp_path))

    def watched() -> Iterator[Part]:
        for part in parts:
            assert not {"all.wav", "all.srt", "all.vtt"} & set(os.listdir(tmp_path))
            yield part
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        join(watched(), tmp_path / "all.wav", "wav", RATE, subtitles=targets)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_audio_appears_last(tmp_path: Path, parts: list[Part], monkeypatch):
    named: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (named.append(Path(b).name), replace(a, b)))
    join(parts, tmp_path / "all.wav", "wav", RATE, subtitles=[tmp_path / "all.srt"])
    assert named == ["all.srt", "all.wav"]


def test_what_exists_needs_force(tmp_path: Path, parts: list[Part]):
    for name in ("all.wav", "all.srt"):
        (tmp_path / name).write_text("old")
        with pytest.raises(FileError, match=rf"{name}: exists already; add --force to replace it, or choose another"):
            join(parts, tmp_path / "all.wav", "wav", RATE, subtitles=[tmp_path / "all.srt"])
        assert (tmp_path / name).read_text() == "old"
        (tmp_path / name).unlink()
    join(parts, tmp_path / "all.wav", "wav", RATE, True, [tmp_path / "all.srt"])


def test_what_cannot_be_joined_is_named(tmp_path: Path, parts: list[Part]):
    before = sorted(os.listdir(tmp_path))
    path = tmp_path / "all.wav"
    soundfile.write(tmp_path / "stereo.wav", np.zeros((99, 2)), RATE)
    soundfile.write(tmp_path / "fast.wav", np.zeros(99), 24000)
    (tmp_path / "text.wav").write_text("no sound")
    os.mkfifo(tmp_path / "pipe.wav")
    for name, message in (
        ("stereo.wav", "2 channels at 22050 Hz, but one channel at 22050 Hz is joined; make it again"),
        ("fast.wav", "1 channels at 24000 Hz, but one channel at 22050 Hz is joined; make it again"),
        ("text.wav", r"cannot be read as audio \(.*\); make it again"),
        ("pipe.wav", "is no regular file; give a file"),
        ("none.wav", "no such file; check the path"),
    ):
        with pytest.raises(Error, match=rf"{name}:? {message}") as caught:
            join([*parts, Part(tmp_path / name)], path, "wav", RATE)
        assert isinstance(caught.value, NotFound) == (name == "none.wav")
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(Error, match=r"all\.wav: there is nothing to join"):
        join([], path, "wav", RATE)
    with pytest.raises(Error, match=r"all\.txt: subtitles end in \.srt or \.vtt; rename it"):
        join(parts, path, "wav", RATE, subtitles=[tmp_path / "all.txt"])
    with pytest.raises(FileError, match=r"cannot write .*absent.*; create it first"):
        join(parts, tmp_path / "absent" / "all.wav", "wav", RATE)
    link = tmp_path / "link.wav"
    link.symlink_to(parts[1].path)
    with pytest.raises(FileError, match=r"1\.flac: is to be joined and written at once; choose another name"):
        join(parts, link, "wav", RATE, force=True)
    link.unlink()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", sorted(audio.FORMATS))
def test_a_full_disk(tmp_path: Path, parts: list[Part], kind: str):
    before = sorted(os.listdir(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(FileError, match=r"cannot write .*all\.x \(.*System error.*\); free some space or choose"):
            join(parts, tmp_path / "all.x", kind, RATE)
        many = Part(parts[0].path, 0, tuple(Cue(i, i + 1, "x" * 99) for i in range(999)))
        names = [tmp_path / "all.srt", tmp_path / "all.vtt"]
        with pytest.raises(FileError, match=r"cannot write .*all\.(srt|vtt): .*free some space"):
            join([many], tmp_path / "all.x", kind, RATE, subtitles=names)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_wav_file_has_its_limit(tmp_path: Path, parts: list[Part], monkeypatch):
    total = len(samples_of(parts))
    monkeypatch.setattr(joining, "MOST_WAV_BYTES", 2 * total - 1)
    with pytest.raises(FileError, match=r"all\.wav: a WAV file holds 4 GB at most; write flac or ogg, or join fewer"):
        join(parts, tmp_path / "all.wav", "wav", RATE)
    assert not (tmp_path / "all.wav").exists()
    assert join(parts, tmp_path / "all.flac", "flac", RATE) == total
    monkeypatch.setattr(joining, "MOST_WAV_BYTES", 2 * total)
    assert join(parts, tmp_path / "all.wav", "wav", RATE) == total
    assert 2**32 - 2**20 < 22050 * 2 * 3600 * 27.05 < 2**32  # what the docstring says


def test_signals_are_heeded(tmp_path: Path, parts: list[Part], monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(interrupts, "check", lambda: calls.append(1))
    join(parts, tmp_path / "all.wav", "wav", RATE)
    assert len(calls) >= 4  # each block of each file


def test_memory_does_not_grow(tmp_path: Path):
    path = tmp_path / "part.flac"
    path.write_bytes(audio.encode(np.zeros(30 * RATE, np.float32), RATE, "flac"))

    def peak(count: int) -> int:
        parts = (Part(path, 60_000, (Cue(0, 9, "x" * 9999),)) for _ in range(count))
        tracemalloc.start()
        join(parts, tmp_path / "all.flac", "flac", RATE, True, [tmp_path / "all.srt"])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(40) < peak(10) + 50_000
    assert soundfile.info(tmp_path / "all.flac").frames == 10 * 90 * RATE


# ---- subtitles ------------------------------------------------------------------------------------------------------


def test_layouts():
    cues = [
        Cue(0, RATE, "你好。"),
        Cue(RATE, 2 * RATE, " \n"),
        Cue(2 * RATE, 360_001 * RATE + 7, "a & b\r\n\n <i>c-->d "),
    ]
    assert srt(cues, RATE) == (
        "1\n00:00:00,000 --> 00:00:01,000\n你好。\n\n2\n00:00:02,000 --> 100:00:01,000\na & b\n<i>c->d\n\n"
    )
    assert vtt(cues, RATE) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n你好。\n\n"
        "00:00:02.000 --> 100:00:01.000\na &amp; b\n&lt;i&gt;c--&gt;d\n\n"
    )
    assert srt([], RATE) == ""
    assert vtt([], RATE) == "WEBVTT\n\n"


@pytest.mark.parametrize("text", ["-->", "--->", "a-->b---->c", "\u2028x\u2028\u2028-->", "x\v\vy"])
def test_no_text_is_taken_for_times(text: str):
    for made in (srt([Cue(0, 9, text)], RATE), vtt([Cue(0, 9, text)], RATE)):
        assert made.count("-->") == 1
        assert made.removeprefix("WEBVTT\n\n").count("\n\n") == 1
        assert made.endswith("\n\n")


def times(subtitles: str) -> list[tuple[int, int]]:
    def number(text: str) -> int:
        hours, minutes, seconds, milliseconds = map(int, re.split("[:,]", text))
        return 1000 * (60 * (60 * hours + minutes) + seconds) + milliseconds

    pairs = re.findall(r"^(\S+) --> (\S+)$", subtitles, re.MULTILINE)
    return [(number(start), number(end)) for start, end in pairs]


def test_times_do_not_drift_nor_overlap():
    draw = np.random.default_rng(0)
    for rate in (RATE, 44100, 8000, 1_000_003):
        ends = np.cumsum(draw.integers(rate // 500, 3 * rate, 5000)).tolist()
        cues = [Cue(start, end, "x") for start, end in zip([0, *ends], ends, strict=False)]
        found = times(srt(cues, rate))
        for cue, (start, end) in zip(cues, found, strict=True):
            assert abs(start * rate - cue.start * 1000) <= rate / 2
            assert abs(end * rate - cue.end * 1000) <= rate / 2
        assert all(before[1] == after[0] for before, after in itertools.pairwise(found))


def test_short_and_overlapping_cues():
    cues = [Cue(0, 0, "a"), Cue(0, 1, "b"), Cue(1, RATE, "c"), Cue(5, 9, "d"), Cue(RATE - 9, RATE + 99, "e")]
    assert times(srt(cues, RATE)) == [(0, 1), (1, 2), (2, 1000), (1000, 1001), (1001, 1004)]


def test_a_half_millisecond_is_rounded_up():
    assert times(srt([Cue(1, 3, "x")], 2000)) == [(1, 2)]


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, it's me.", ["Hello,", "it's", "me."]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("他说 “OK 了”。", ["他", "说", "“OK", "了”。"]),
        ("a-b  c\nd", ["a-b", "c", "d"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_fill_their_cue(text: str, expected: list[str]):
    found = words(Cue(100, 5000, text))
    assert [word.text for word in found] == expected
    if found:
        assert (found[0].start, found[-1].end) == (100, 5000)
        assert all(a.end == b.start and a.start < a.end for a, b in itertools.pairwise(found))


def test_longer_words_take_longer():
    assert [word[:2] for word in words(Cue(0, 1200, "ab cde 好 7。"))] == [
        (0, 200),
        (200, 500),
        (500, 800),
        (800, 1200),
    ]


def test_words_have_times_in_webvtt_alone():
    one = Cue(RATE, 2 * RATE, "Tom & you: yes & no\n\nyou <i>")
    assert vtt([one], RATE).endswith("Tom &amp; you: yes &amp; no\nyou &lt;i&gt;\n\n")
    made = vtt([one], RATE, stamped=True)
    assert re.sub(r"<\d\d:\d\d:\d\d\.\d\d\d>", "", made) == vtt([one], RATE)
    lines = made.splitlines()
    assert lines[3].startswith("Tom <00:00:01.")
    assert re.search(r"\n<00:00:01\.\d{3}>you <00:00:01\.\d{3}>&lt;i&gt;$", made.strip())
    stamps = [word.start * 1000 // RATE for word in words(one)[1:]]
    found = [int(s) * 1000 + int(ms) for s, ms in re.findall(r"<00:00:0(\d)\.(\d{3})>", made)]
    assert len(found) == len(stamps) == 7
    assert max(abs(a - b) for a, b in zip(found, stamps, strict=True)) <= 1
    assert found[0] > 1000
    assert found[-1] < 2000
    assert found == sorted(set(found))


def test_times_of_words_lie_inside_their_cue():
    """WebVTT asks for it. Words of less than a millisecond, and those of a cue that had to begin later, have none."""
    cues = [Cue(start, start + 44, "a b c d") for start in (0, 10, 20)]
    made = vtt(cues, RATE, stamped=True)
    for block in made.split("\n\n")[1:-1]:
        times = [int(ms) for ms in re.findall(r"00:00:00\.(\d{3})", block)]
        begin, end, *inside = times
        assert inside == sorted(set(inside))
        assert all(begin < time < end for time in inside)


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".VTT"])
def test_subtitles_are_written_alone(tmp_path: Path, suffix: str):
    path, cues = tmp_path / f"a{suffix}", [Cue(0, RATE, "é a"), Cue(RATE, 2 * RATE, "b")]
    joining.write(path, cues, RATE)
    assert path.read_bytes().decode() == (srt(cues, RATE) if suffix == ".srt" else vtt(cues, RATE, stamped=True))
