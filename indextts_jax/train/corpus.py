"""A prepared corpus: recordings with their texts, encoded once, in shards that are read at random.

    corpus/
      00000.safetensors ...   some hundred utterances each: their arrays, and a line about each as metadata

A shard appears only when it is whole, so that preparing can stop anywhere and goes on with the next. A second of speech
takes some 175 kB at official size, most of it semantic features.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from indextts_jax import files
from indextts_jax.config import Config
from indextts_jax.errors import Error, NotFound, shown
from indextts_jax.features import MEL_RATE

FORMAT = "indextts-jax corpus 1"
_KEPT = 16  # shards that stay open


def check_model(cfg: Config) -> None:
    """Raise Error for a model that needs what no corpus holds: languages, and codes of several frames."""
    if cfg.gpt.languages is not None or cfg.repcodec.stride is not None:
        raise Error("training is not for models of IndexTTS-2.5 yet; use one of IndexTTS-2")


class Utterance(NamedTuple):
    """What is known of one recording, as numpy arrays."""

    texts: Any  # [X] int32 text ids
    codes: Any  # [C] int32, 50 per second
    semantic: Any  # [C, E] float16: normalised w2v-BERT features
    mel: Any  # [F, M] float32 log-mel
    samples: Any  # [N] int16 at 22.05 kHz
    style: Any  # [style] float32


@dataclass(frozen=True)
class Line:
    """What is told of an utterance beside its arrays."""

    id: str
    speaker: str
    text: str  # as it is spoken: what the text front end made of it
    emotion: str
    samples: int
    codes: int
    frames: int
    texts: int

    @property
    def seconds(self) -> float:
        return self.samples / MEL_RATE

    @property
    def characters(self) -> int:
        return len(self.text)


def name(shard: int) -> str:
    return f"{shard:05}.safetensors"


def source(parts: Iterable[str]) -> str:
    """A digest of what a shard is made from."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write(folder: Path, shard: int, made_from: str, lines: Sequence[Line], utterances: Sequence[Utterance]) -> None:
    """Write one shard. Raises FileError."""
    arrays = {f"{i}.{n}": np.ascontiguousarray(a) for i, u in enumerate(utterances) for n, a in u._asdict().items()}
    described = json.dumps([asdict(line) for line in lines], ensure_ascii=False)
    metadata = {"format": FORMAT, "source": made_from, "lines": described}
    files.write_whole(folder / name(shard), safetensors.numpy.save(arrays, metadata))


def read_metadata(path: Path) -> tuple[str, list[Line]]:
    """What a shard was made from, and its lines. Raises Error for what is no shard or cut short."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise Error(f"{path}: not a shard of a corpus of this version; prepare it again")
        return metadata["source"], [Line(**line) for line in json.loads(metadata["lines"])]
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Error(
            f"{path}: not a shard of a corpus, or cut short ({shown(error)}); remove it and prepare again"
        ) from None


def read(path: Path, utterances: int) -> list[Utterance]:
    """The first so many utterances of a shard. Raises Error for a damaged one."""
    with _damage(path), safetensors.safe_open(path, "numpy") as file:
        return [Utterance(*(file.get_tensor(f"{i}.{field}") for field in Utterance._fields)) for i in range(utterances)]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise Error(f"{path}: damaged ({shown(error)}); remove it and prepare again") from None


class Corpus:
    """A prepared corpus, opened: `lines` of all utterances, and their arrays by number."""

    def __init__(self, folder: Path):
        """Raises NotFound and Error."""
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise NotFound(f"{folder}: no corpus is there; `indextts-jax prepare` makes one")
        self.folder = folder
        self.lines: list[Line] = []
        self._places: list[tuple[Path, int]] = []
        made_from = []
        for path in paths:
            digest, lines = read_metadata(path)
            made_from.append(digest)
            self.lines += lines
            self._places += [(path, i) for i in range(len(lines))]
        if not self.lines:
            raise Error(f"{folder}: the corpus holds no utterance; the messages of `indextts-jax prepare` say why")
        self.digest = source(made_from)  # a changed corpus is another one
        self._open: dict[tuple[int, Path], Any] = {}
        self.longest = lru_cache(maxsize=None)(self._longest)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: int) -> Utterance:
        """The arrays of an utterance. Raises Error for a damaged shard."""
        return Utterance(*(self.array(number, field) for field in Utterance._fields))

    def array(self, number: int, field: str) -> Any:
        """One array of an utterance. Raises Error for a damaged shard."""
        path, place = self._places[number]
        with _damage(path):
            file = self._open.get((os.getpid(), path))
            if file is None:
                file = safetensors.safe_open(path, "numpy")
                if len(self._open) >= _KEPT:
                    self._open.clear()
                self._open[os.getpid(), path] = file
            return file.get_tensor(f"{place}.{field}")

    def _longest(self, codes: int, field: str) -> int:
        """The most of a field of `Line` that an utterance of at most so many codes has."""
        return max((getattr(line, field) for line in self.lines if line.codes <= codes), default=0)

    @cached_property
    def hop(self) -> int:
        """Samples of a frame of the log-mel. A recording ends with less than a frame, so that of one alone, and a short
        one above all, it cannot be told."""
        return min(line.samples // line.frames for line in self.lines if line.frames)

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """All speakers, in order."""
        return tuple(sorted({line.speaker for line in self.lines}))

    @cached_property
    def by_speaker(self) -> dict[str, np.ndarray]:
        """Speaker -> the numbers of the utterances."""
        found: dict[str, list[int]] = {}
        for number, line in enumerate(self.lines):
            found.setdefault(line.speaker, []).append(number)
        return {speaker: np.array(numbers) for speaker, numbers in found.items()}

    @cached_property
    def characters(self) -> tuple[str, ...]:
        """All characters of the texts, in order: what the semantic encoder is trained to tell apart."""
        return tuple(sorted({character for line in self.lines for character in line.text}))
