"""Speech in Ray Data: an actor that speaks the rows of a data set.

    rows = ray.data.read_json("items.jsonl")
    spoken = rows.map_batches(
        Speaker, fn_constructor_kwargs={"model": "model", "voice": "anna.wav"}, batch_size=64, concurrency=2
    )
    spoken.write_parquet("spoken")

A row's columns are the fields of a manifest, and a row becomes the audio that `indextts-jax batch` makes of it, to the
byte where `batch` is the same: neither its neighbours nor a worker that dies changes it. Ray itself is not imported.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from indextts_jax import devices, files, loudness, manifest, models, warmup
from indextts_jax.audio import FORMATS
from indextts_jax.batch import KEPT, Work
from indextts_jax.batch import Speaker as Maker
from indextts_jax.errors import Error, short
from indextts_jax.hearing import Heard, Hearing
from indextts_jax.manifest import Defaults, Item
from indextts_jax.model import Model, load
from indextts_jax.request import Request, Result

Source = str | PathLike[str]
_PATHS = ("voice", "emotion_audio", "glossary")


@dataclass
class _Row:
    """What becomes of a row."""

    id: str | None = None
    audio: bytes | str | None = None  # or where it was written
    seconds: float = math.nan
    seed: int = 0
    error: str | None = None

    def fail(self, message: object) -> None:
        self.error = "; ".join(filter(None, (self.error, " ".join(str(message).split()))))


class Speaker:
    """Speaks the rows of a data set, a batch of them per call; for `ray.data.Dataset.map_batches`.

    model: a converted one, where every worker finds it. voice and `defaults`: as in `manifest.Defaults`, for rows that
    leave them out. batch: as in `scheduling.run`, on each device of the worker. format: of `audio.FORMATS`, at
    `sample_rate` Hz (default: the model's). output_dir: a folder, made if need be, for files of audio; without it audio
    is a column of bytes. dtype: as in `model.load`. normalize: the loudness of the audio in LUFS, see
    `loudness.normalize`. Relative paths start at the working folder of the worker. Raises `Error` for what cannot be
    used.
    """

    def __init__(
        self,
        model: Source,
        voice: Source | None = None,
        batch: int | None = None,
        output_dir: Source | None = None,
        format: str = "wav",
        sample_rate: int | None = None,
        dtype: Any = None,
        normalize: float | None = None,
        **defaults: Any,
    ):
        if format not in FORMATS:
            raise Error(f"format is {short(format)}, but must be one of {', '.join(FORMATS)}")
        if normalize is not None:
            loudness.require("normalize")
        self._batch, self._suffix = batch, f".{format}"
        self._folder = None if output_dir is None else Path(output_dir)
        self._defaults = _defaults(defaults | ({} if voice is None else {"voice": voice}))
        list(self._items([]))  # raises for a default that cannot be read
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        warmup.keep_programs()
        dtype = dtype or models.default_dtype()
        loaded = load(model, dtype)
        copies = devices.copies(loaded.params, jax.local_devices())
        self._cfg, self._params = loaded.cfg, copies
        own = Model(copies[0], loaded.cfg, loaded.text)
        hearing = Hearing(own, Path(model), self._folder and self._folder / KEPT, dtype)
        self._maker = Maker(own, hearing, format, sample_rate, normalize)

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Speak rows, given as columns: -> a row for each, in their order, as columns.

        id; audio, the bytes of a file, or output, its path; seconds; seed; and error, what is wrong with that row
        alone, without which there is none of the others (None, NaN and 0). Every row needs an `id`, for its seed
        comes from it. What is missing (None, NaN, NA) is left out, as a field of a manifest.
        """
        given = [{} for _ in range(max(map(len, rows.values()), default=0))]
        for name, column in rows.items():
            for row, value in zip(given, column, strict=True):
                if (plain := _plain(name, value)) is not None:
                    row[name] = plain
        made = [_Row(id=None if row.get("id") is None else str(row["id"])) for row in given]
        for result in devices.run(self._params, self._cfg, self._requests(given, made), self._batch, True):
            assert isinstance(result, Result)  # nothing is streamed
            work: Work = result.request.tag
            if work.take(result):
                self._finish(work, made[work.item.line - 1])
        file = "audio" if self._folder is None else "output"
        return {
            "id": np.array([row.id for row in made], object),
            file: np.array([row.audio for row in made], object),
            "seconds": np.array([row.seconds for row in made], float),
            "seed": np.array([row.seed for row in made], np.uint64),
            "error": np.array([row.error for row in made], object),
        }

    def _items(self, rows: list[dict[str, Any]]) -> Iterator[Item | manifest.Problem]:
        return manifest.items(rows, Path(), self._defaults, self._suffix, self._folder)

    def _requests(self, given: list[dict[str, Any]], made: list[_Row]) -> Iterator[Request]:
        for item in self._items(given):
            row = made[item.line - 1]
            if not isinstance(item, Item):
                row.fail(item.message)
            elif row.id is None:
                row.fail("there is no id; give each row one, of which its seed is made")
            else:
                work, row.seed = Work(item), item.seed
                try:
                    self._maker.begin(work, Heard(item))
                except Error as error:
                    row.fail(error)
                yield from work.requests

    def _finish(self, work: Work, row: _Row) -> None:
        try:
            content, seconds = self._maker.encoded(work)
            if self._folder:
                path = self._folder / work.item.output
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_whole(path, content)
                row.audio = str(path)
            else:
                row.audio = content
            row.seconds = round(seconds, 6)
        except (Error, OSError) as error:
            row.fail(error)


def _plain(name: str, value: Any) -> Any:
    """A value of a column as JSON would have it; None where it is missing."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    whole = name in manifest.FIELDS and manifest.FIELDS[name].kind == "whole"
    if whole and isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)  # a column of integers in which some are missing
    return value


def _defaults(given: dict[str, Any]) -> Defaults:
    """Raises Error for a value that no row could have, and TypeError for a name that there is not."""
    Defaults(**given)
    checked = {}
    for name, value in given.items():
        if value is not None and name in _PATHS:
            value = Path(value)
        elif value is not None:
            found = manifest.value(name, value)
            value = ",".join(map(repr, found)) if name == "emotion" else found
        checked[name] = value
    return Defaults(**checked)
