"""Voices by name: the recordings of a folder, and those that clients have sent.

A name is looked up in what the folder holds, never made into a path. A recording is listened to once, when its name is
first asked for; so many voices are kept in memory, the others are listened to again.
"""

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import soundfile

from indextts_jax import audio, voice
from indextts_jax.audio import FFMPEG_FORMATS, AudioError
from indextts_jax.errors import Error
from indextts_jax.model import Model
from indextts_jax.voice import Voice

HEARD = 64  # voices of the folder that are kept in memory
UPLOADED = 64  # sent ones, which are kept nowhere else: the one that was not used for longest goes
SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".safetensors", *FFMPEG_FORMATS))
LONGEST_NAME = 64
MOST_RATE, MOST_CHANNELS = 192_000, 8  # what is decoded of a small file must not fill the memory


class Unknown(Error):
    """No voice has this name."""


class Taken(Error):
    """A voice has this name already."""


class TooLong(Error):
    """A recording is longer than may be sent."""


class Named(NamedTuple):
    """A voice in a list."""

    name: str
    uploaded: bool


class Voices:
    """Names of voices, and the voices. May be used by any thread; listening is for one at a time."""

    def __init__(self, folder: Path | None = None):
        """folder: of recordings and Voice files, each named by its file without the end. Raises Error."""
        if folder is not None and not folder.is_dir():
            raise Error(f"{folder}: no such folder; give one that holds recordings, such as anna.wav")
        self._folder, self._lock, self._listening = folder, threading.Lock(), threading.Lock()
        self._heard: OrderedDict[tuple[Path, int, int], Voice] = OrderedDict()
        self._uploaded: OrderedDict[str, Voice] = OrderedDict()

    def names(self) -> list[Named]:
        """All there are, in the order of their names."""
        with self._lock:
            uploaded = list(self._uploaded)
        return sorted([Named(name, False) for name in self._files()] + [Named(name, True) for name in uploaded])

    def _files(self) -> dict[str, Path]:
        if self._folder is None:
            return {}
        found = (path for path in sorted(self._folder.iterdir()) if path.suffix.lower() in SUFFIXES)
        return {path.stem: path for path in found if path.is_file()}

    def known(self, name: str) -> Voice | None:
        """The voice of a name, if it was sent or has been listened to."""
        path = self._files().get(name)
        with self._lock:
            if name in self._uploaded:
                self._uploaded.move_to_end(name)
                return self._uploaded[name]
            key = _content(path) if path else None
            if key not in self._heard:
                return None
            self._heard.move_to_end(key)
            return self._heard[key]

    def voice(self, name: str, model: Model) -> Voice:
        """The voice of a name, which may have to be listened to. Raises Unknown, or Error for a file of the folder."""
        with self._listening:
            if (found := self.known(name)) is not None:
                return found
            path = self._files().get(name)
            if path is None or (key := _content(path)) is None:
                known = ", ".join(named.name for named in self.names()[:20]) or "none yet"
                raise Unknown(f"there is no voice {name[:LONGEST_NAME]!r}; there are: {known}")
            found = model.listen(path)
            with self._lock:
                self._heard[key] = found
                while len(self._heard) > HEARD:
                    self._heard.popitem(last=False)
            return found

    def check(self, name: str) -> None:
        """See that a sent voice can have this name. Raises Error, Taken."""
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
            raise Error(f"the name of a voice has 1 to {LONGEST_NAME} characters that can be seen; choose another one")
        if name in self._uploaded or name in self._files():
            raise Taken(f"there is a voice {name!r} already: choose another name")

    def upload(self, name: str, content: bytes, file_name: str, seconds: float, model: Model) -> None:
        """Listen to a recording that was sent, and keep the voice. Raises Error, Taken, TooLong.

        file_name: of which the end alone counts; seconds: the longest that is taken.
        """
        self.check(name)
        suffix = Path(file_name).suffix.lower()
        suffix = suffix if suffix in SUFFIXES else ".wav"
        with tempfile.TemporaryDirectory(prefix="indextts-") as folder:
            path = Path(folder) / f"recording{suffix}"
            path.write_bytes(content)
            try:
                found = _listened(path, seconds, model, self._listening)
            except Error as error:  # which would tell a path that nobody knows
                raise type(error)(str(error).replace(str(path), "the recording")) from None
        with self._lock:
            self._uploaded[name] = found
            while len(self._uploaded) > UPLOADED:
                self._uploaded.popitem(last=False)

    def remove(self, name: str) -> None:
        """Forget a sent voice. Raises Unknown."""
        with self._lock:
            if self._uploaded.pop(name, None) is None:
                raise Unknown(f"there is no voice {name[:LONGEST_NAME]!r} that was sent")


def _content(path: Path) -> tuple[Path, int, int] | None:
    """What a file holds, as far as one sees from without; None where it has gone."""
    try:
        about = path.stat()
    except OSError:
        return None
    return path, about.st_mtime_ns, about.st_size


def _listened(path: Path, seconds: float, model: Model, listening: threading.Lock) -> Voice:
    if path.suffix == ".safetensors":
        return voice.load_voice(path, model.cfg)
    try:
        about = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError):  # ffmpeg may read it, which is told how much of it is wanted
        pass
    else:
        if about.samplerate > MOST_RATE or about.channels > MOST_CHANNELS:
            raise AudioError(
                f"the recording has {about.channels} channels at {about.samplerate} Hz; send at most {MOST_CHANNELS} "
                f"at {MOST_RATE} Hz"
            )
        if about.duration > seconds:
            raise TooLong(
                f"the recording lasts {about.duration:.0f} s, but at most {seconds:g} s are taken, of which "
                f"{audio.MAX_SECONDS} s are heard; cut it"
            )
    recording = audio.load_speaker(path)
    with listening:
        return model.listen(recording)
