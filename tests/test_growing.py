"""A file that grows: valid whenever it ends, and what goes wrong while it is written."""

import errno
import io
import os
import struct

import numpy as np
import pytest
import soundfile
import soxr

from indextts_jax.audio import to_int16
from indextts_jax.files import FileError
from indextts_jax.growing import Closed, Growing

SOUND = (0.5 * np.sin(np.arange(22050) / 9)).astype(np.float32)


def test_a_file_that_grows_can_be_read_at_any_time_and_is_a_whole_one_at_the_end(tmp_path):
    path = tmp_path / "a.wav"
    with path.open("wb", buffering=0) as file, Growing(file, 22050, 22050, "a.wav") as growing:
        assert path.stat().st_size == 44
        for start in range(0, 22050, 5000):
            growing.write(SOUND[start : start + 5000], False)
            header, data = path.read_bytes()[:44], path.read_bytes()[44:]
            assert header[40:] == b"\xff" * 4  # of unknown length
            np.testing.assert_array_equal(np.frombuffer(data, "<i2"), to_int16(SOUND[: start + 5000]))
    found, rate = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(found, to_int16(SOUND))
    assert rate == 22050 == growing.samples
    whole = io.BytesIO()
    soundfile.write(whole, to_int16(SOUND), 22050, "PCM_16", format="WAV")
    assert path.read_bytes() == whole.getvalue()


def test_to_a_pipe_samples_alone_or_a_header_of_unknown_length(tmp_path):
    for header in (False, True):
        read, write = os.pipe()
        with os.fdopen(write, "wb", buffering=0) as file, Growing(file, 22050, 22050, "pipe", header) as growing:
            growing.write(SOUND[:100], True)
        with os.fdopen(read, "rb") as file:
            data = file.read()
        assert len(data) == 200 + 44 * header
        np.testing.assert_array_equal(np.frombuffer(data[-200:], "<i2"), to_int16(SOUND[:100]))
        assert not header or struct.unpack("<I", data[40:44]) == (2**32 - 1,)


def test_another_rate(tmp_path):
    path = tmp_path / "a.wav"
    with path.open("wb", buffering=0) as file, Growing(file, 22050, 48000, "a.wav") as growing:
        for start in range(0, 22050, 5000):
            growing.write(SOUND[start : start + 5000], start == 20000)
    found, rate = soundfile.read(path, dtype="int16")
    expected = to_int16(soxr.resample(SOUND, 22050, 48000, quality="HQ"))
    assert rate == 48000
    assert len(found) == len(expected)
    assert np.abs(found.astype(int) - expected).max() <= 1


class Full(io.FileIO):
    """A disk that is full after some bytes, and writes what fits."""

    left = 44 + 2 * 3000 + 101

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(data[: self.left])
        self.left -= taken
        return taken


def test_a_full_disk_leaves_a_file_of_what_was_written(tmp_path):
    path = tmp_path / "a.wav"

    def fill():
        with Full(path, "w") as file, Growing(file, 22050, 22050, "a.wav") as growing:
            try:
                for start in range(0, 22050, 3000):
                    growing.write(SOUND[start : start + 3000], False)
            finally:
                file.left = 44  # a header in place of another needs no space

    with pytest.raises(FileError, match=r"cannot write a.wav \(No space left on device\); it holds the first 0.14 s"):
        fill()
    found, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(found, to_int16(SOUND[:3000]))


def test_a_player_that_has_gone(tmp_path):
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as file, Growing(file, 22050, 22050, "standard output", False) as growing:
        growing.write(SOUND[:2205], False)
        os.close(read)
        with pytest.raises(Closed, match=r"standard output was closed by its reader after 0\.10 s of sound"):
            growing.write(SOUND, False)
