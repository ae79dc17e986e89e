"""Voices and emotions of many items: each is made once per content, and kept in a folder for the next run.

What is kept is named by a digest of the recording or text and of the model, so that neither another recording under an
old name nor another model finds what is not its own.
"""

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from indextts_jax import audio, checkpoint, emotion, files, pauses, voice
from indextts_jax.audio import Recording
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.manifest import Feeling, Item
from indextts_jax.model import Model
from indextts_jax.voice import Voice

KEPT = 64  # voices, and as many emotions, in memory

T = TypeVar("T")


def digest(path: Path) -> str:
    """Of a file's content. Raises NotFound or FileError."""
    content = hashlib.sha256()
    with files.open_file(path) as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def model_digest(folder: Path) -> str:
    """Of a converted model: its configuration, and the checksums of every file in it."""
    content = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.json")) + sorted(Path(folder).glob("*/checksums.json")):
        content.update(f"{path.relative_to(folder)}:{digest(path)}\n".encode())
    return content.hexdigest()


class Hearing:
    """Makes voices and emotions with a model, or finds them in `folder` if there is one. For one thread at a time."""

    def __init__(self, model: Model, model_folder: Path, folder: Path | None, dtype: Any = None):
        self._model, self._from, self._folder, self._dtype = model, model_folder, folder, dtype
        self._model_digest = model_digest(model_folder)
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._weights: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        self._reader: Any = None
        self.listened = 0  # recordings that were not kept yet
        self.seconds = 0.0  # that listening and reading took

    def voice(self, path: Path, content: str, start: float, recording: Recording | None) -> Voice:
        """The voice in a file of the digest `content`, from `start` seconds on.

        recording: what was read of it, None for a Voice file. Raises Error.
        """
        if recording is None:
            return voice.load_voice(path, self._model.cfg)
        name = self._name("voice", content, f"{start:g}")

        def listen() -> Voice:
            self.listened += 1
            return self._model.listen(recording)

        def load(kept: Path) -> Voice:
            return voice.load_voice(kept, self._model.cfg)

        return self._kept(self._voices, name, listen, load, voice.save_voice)

    def vector(self, content: str, samples: np.ndarray) -> np.ndarray:
        """The emotion vector of a recording of the digest `content`: samples at 16 kHz."""
        name = self._name("emotion", content)

        def feel() -> np.ndarray:
            self.listened += 1
            return voice.feel(self._model.params, self._model.cfg, samples)

        def load(kept: Path) -> np.ndarray:
            found = emotion.load(kept).vector
            if np.shape(found) != (self._model.cfg.gpt.width,):
                raise Error(f"{kept}: of another model")
            return np.asarray(found)

        return self._kept(
            self._vectors, name, feel, load, lambda path, found: emotion.save(path, Emotion(vector=found))
        )

    def weights(self, text: str) -> tuple[float, ...]:
        """The weights that Qwen reads off a text."""
        name = self._name("reading", hashlib.sha256(text.encode()).hexdigest())

        def read() -> tuple[float, ...]:
            if self._reader is None:
                self._reader = checkpoint.load_reader(self._from, self._dtype)
            return tuple(self._reader.read(text))

        def load(kept: Path) -> tuple[float, ...]:
            found = json.loads(files.read(kept, 1 << 12))
            return tuple(Emotion(weights=[float(weight) for weight in found]).weights or ())

        def save(path: Path, found: tuple[float, ...]) -> None:
            files.write_whole(path, json.dumps(found).encode())

        return self._kept(self._weights, name, read, load, save)

    def _name(self, *parts: str) -> str:
        kind, *rest = parts
        return f"{kind}-{hashlib.sha256(':'.join((self._model_digest, *rest)).encode()).hexdigest()[:32]}"

    def _kept(
        self,
        memory: OrderedDict[str, T],
        name: str,
        make: Callable[[], T],
        load: Callable[[Path], T],
        save: Callable[[Path, T], None],
    ) -> T:
        """From memory, or from the folder, or made; then kept in both."""
        if name in memory:
            memory.move_to_end(name)
            return memory[name]
        folder = self._folder
        memory[name] = found = self._made(make) if folder is None else self._filed(folder, name, make, load, save)
        while len(memory) > KEPT:
            memory.popitem(last=False)
        return found

    def _filed(
        self, folder: Path, name: str, make: Callable[[], T], load: Callable[[Path], T], save: Callable[[Path, T], None]
    ) -> T:
        path = folder / f"{name}.{'json' if name.startswith('reading') else 'safetensors'}"
        try:
            return load(path)
        except (Error, ValueError, TypeError):  # not there, or damaged: it is made again
            found = self._made(make)
        with contextlib.suppress(Error, OSError):  # a disk that is full: the next run makes it again
            folder.mkdir(exist_ok=True)
            save(path, found)
        return found

    def _made(self, make: Callable[[], T]) -> T:
        begin = perf_counter()
        found = make()
        self.seconds += perf_counter() - begin
        return found


@lru_cache(8)
def _speaker(path: Path, start: float, content: str) -> Recording:
    """A recording, decoded once for the items that follow each other; `content` is its digest."""
    return audio.load_speaker(path, start)


@lru_cache(8)
def _felt(path: Path, content: str) -> np.ndarray:
    return audio.load_emotion(path)


class Heard:
    """What an item needs of files, read ahead by any thread: its recordings and their digests. Raises Error."""

    def __init__(self, item: Item):
        self.voice_digest, feeling = digest(item.voice), item.feeling
        whole = item.voice.suffix == ".safetensors"
        self.voice = None if whole else _speaker(item.voice, item.voice_start, self.voice_digest)
        self.glossary_digest = digest(item.glossary) if item.glossary else None
        self.felt_digest, self.felt = "", None
        if feeling and feeling.audio:
            self.felt_digest = digest(feeling.audio)
            if feeling.audio.suffix != ".safetensors":
                self.felt = _felt(feeling.audio, self.felt_digest)


def feeling(hearing: Hearing, item: Item, heard: Heard) -> Emotion | None:
    """The emotion of an item, None for the voice's own. Raises Error."""
    asked = item.feeling
    if asked is None:
        return None
    alpha = 1.0 if asked.weight is None else asked.weight
    if heard.felt is not None:
        return Emotion(vector=hearing.vector(heard.felt_digest, heard.felt), alpha=alpha)
    if asked.audio is not None:
        found = emotion.load(asked.audio)
        found = found if asked.weight is None else replace(found, alpha=alpha)
    else:
        found = Emotion(weights=_weights(hearing, asked, item.text), alpha=alpha)
    if found.weights is None:
        if asked.random or asked.normalize:
            raise Error(f"{asked.audio} holds no weights, which emotion_random and emotion_normalize change")
        return found
    if asked.normalize:
        found = replace(found, weights=emotion.normalize(found.weights))
    return replace(found, seed=item.seed) if asked.random else found


def _weights(hearing: Hearing, asked: Feeling, text: str) -> tuple[float, ...]:
    if asked.weights is not None:
        return asked.weights
    return hearing.weights(pauses.without(text) if asked.from_text else asked.text or "")
