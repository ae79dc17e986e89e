"""A manifest of recordings and texts becomes a corpus: checked, resampled, and encoded by the model's own encoders.

    {"audio": "wavs/0001.wav", "text": "Hello.", "speaker": "anna", "emotion": "happy"}

Rows are prepared in their order, SHARD at a time. A shard that was made from the same rows and files is left as it is,
and where an encoder has changed since, only what depends on it is made anew.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indextts_jax import audio, checksums, features, hearing, interrupts, manifest, voice
from indextts_jax.errors import Error, short
from indextts_jax.files import make_folder
from indextts_jax.manifest import Problem
from indextts_jax.model import Model
from indextts_jax.models import campplus, repcodec
from indextts_jax.multilingual import FrontEnd
from indextts_jax.text import LANGUAGES
from indextts_jax.train import corpus
from indextts_jax.train.corpus import Line, Utterance

FIELDS = ("id", "audio", "text", "speaker", "emotion", "language")
SHARD = 256  # rows
LONGEST = 30  # seconds of a recording
# What depends on which component of a model: codes are made of semantic features.
FROM = {
    "semantic": {"w2vbert"},
    "codes": {"w2vbert", "repcodec"},
    "style": {"campplus"},
    "mel": set(),
    "samples": set(),
}
COMPONENTS = ("w2vbert", "repcodec", "campplus")


class Row(NamedTuple):
    """A row of the manifest whose text was understood."""

    line: int
    id: str
    audio: Path
    speaker: str
    emotion: str
    text: str  # as it is spoken
    texts: tuple[int, ...]


class Prepared(NamedTuple):
    """What became of a manifest."""

    utterances: int
    seconds: float
    kept: int  # shards that were there already, as they would be made now
    problems: tuple[Problem, ...]


def prepare(
    path: Path,
    model: Model,
    model_folder: Path,
    out: Path,
    batch: int = 8,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Prepared:
    """Prepare the manifest at `path` into the folder `out`, which is made; a row that cannot be used is left out.

    model: COMPONENTS of it at least. batch: recordings that are encoded side by side. Raises Error where no row can be
    used, and NotFound and FileError.
    """
    corpus.check_model(model.cfg)
    found = list(rows(path, model.text, model.cfg.gpt.most_texts))
    problems = [row for row in found if isinstance(row, Problem)]
    good = [row for row in found if isinstance(row, Row)]
    if not good:
        more = f"line {problems[0].line}: {problems[0].message}" if problems else "it holds no rows"
        raise Error(f"{path}: no row can be used; {more}")
    make_folder(out)
    encoders = _digests(model, model_folder)
    utterances, seconds, kept = 0, 0.0, 0
    shards = range(0, len(good), SHARD)
    for number, first in enumerate(shards):
        progress("preparing", first, len(good))
        part = good[first : first + SHARD]
        made_from = {"rows": corpus.source([repr(model.cfg.mel), *map(_described, part)]), **encoders}
        lines, old, fields = _there(out / corpus.name(number), made_from)
        if fields:
            made = _encode(
                model, part, batch, fields, old,
                lambda done, first=first: progress("preparing", first + done, len(good)),
            )  # fmt: skip
            problems += [one for one in made if isinstance(one, Problem)]
            whole = [one for one in made if not isinstance(one, Problem)]
            lines = [line for line, _ in whole]
            corpus.write(out, number, json.dumps(made_from), lines, [utterance for _, utterance in whole])
        else:
            kept += 1
        utterances, seconds = utterances + len(lines), seconds + sum(line.seconds for line in lines)
    for left in sorted(out.glob("*.safetensors")):  # of a longer manifest
        if left.name not in {corpus.name(i) for i in range(len(shards))}:
            left.unlink()
    progress("preparing", len(good), len(good))
    if not utterances:
        raise Error(f"{path}: no recording can be used; line {problems[0].line}: {problems[0].message}")
    return Prepared(utterances, seconds, kept, tuple(sorted(problems)))


def rows(path: Path, text: FrontEnd, most_texts: int) -> Iterator[Row | Problem]:
    """Each row of a manifest, or what is wrong with it. Raises as `manifest.rows`."""
    ids: dict[str, int] = {}
    for line, row in manifest.rows(path, FIELDS):
        try:
            found = _row(path.parent, line, row, text, most_texts)
            if found.id in ids:
                raise Error(f"the id {short(found.id)} is that of line {ids[found.id]}, too; give each its own")
            ids[found.id] = line
            yield found
        except Error as error:
            yield Problem(line, str(error))


def _row(folder: Path, line: int, row: Any, text: FrontEnd, most_texts: int) -> Row:
    if isinstance(row, str):
        raise Error(row)
    for name in row:
        if name not in FIELDS:
            raise Error(manifest.unknown(name, FIELDS))
    given = {name: value for name, value in row.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, str) or not value.strip():
            raise Error(f"{name} is {short(value)}, but must be text; put it in quotes, or leave it out")
    for name in ("audio", "text"):
        if name not in given:
            raise Error(f"there is no {name}; add the field {name}")
    if (language := given.get("language")) not in (None, *LANGUAGES):
        raise Error(f"language is {short(language)}, but must be one of {', '.join(LANGUAGES)}")
    analysis = text.analyse(given["text"], language=language)
    if len(analysis.ids) > most_texts:
        raise Error(f"the text has {len(analysis.ids)} pieces, but the model takes {most_texts}; cut the recording")
    place = folder / given["audio"]
    spoken = "".join(analysis.pieces).replace("▁", " ").strip()
    own = given.get("id", f"line-{line:06}")
    return Row(line, own, place, given.get("speaker", ""), given.get("emotion", ""), spoken, tuple(analysis.ids))


def _described(row: Row) -> str:
    try:
        stat = row.audio.stat()
        file = f"{stat.st_size}:{stat.st_mtime_ns}"
    except OSError:
        file = "missing"
    return repr((row.id, str(row.audio), file, row.speaker, row.emotion, row.texts))


def _digests(model: Model, folder: Path) -> dict[str, str]:
    """Of each encoder: its sizes and weights."""
    weights = {name: folder / name / checksums.NAME for name in COMPONENTS}
    return {
        name: corpus.source([repr(getattr(model.cfg, name)), hearing.digest(path) if path.is_file() else ""])
        for name, path in weights.items()
    }


def _there(path: Path, made_from: dict[str, str]) -> tuple[list[Line], dict[str, Utterance], set[str]]:
    """What a shard has: its lines, its utterances by id where some of them can be kept, and the fields that cannot."""
    nothing = [], {}, set(FROM)
    if not path.is_file():
        return nothing
    try:
        source, lines = corpus.read_metadata(path)
        before = json.loads(source)
        if before.keys() != made_from.keys() or before["rows"] != made_from["rows"]:
            return nothing
        changed = {name for name in made_from if before[name] != made_from[name]}
        fields = {field for field, needed in FROM.items() if needed & changed}
        old = dict(zip((line.id for line in lines), corpus.read(path, len(lines)), strict=True)) if fields else {}
    except (Error, ValueError, AttributeError):  # damaged, or of an older version
        return nothing
    return lines, old, fields


class _Heard(NamedTuple):
    samples: np.ndarray  # [N] float32 at 22.05 kHz
    samples_16k: np.ndarray


def _read(row: Row) -> _Heard | Problem:
    try:
        samples, rate = audio.read(row.audio)
        if len(samples) > LONGEST * rate:
            raise Error(f"{row.audio} has {len(samples) / rate:.1f} s, but at most {LONGEST} s are used; cut it")
        samples = audio.resample(samples, rate, features.MEL_RATE)
        return _Heard(samples, audio.resample_sinc(samples, features.MEL_RATE, features.SPEECH_RATE))
    except Error as error:
        return Problem(row.line, str(error))


def _encode(
    model: Model,
    part: Sequence[Row],
    batch: int,
    fields: set[str],
    old: dict[str, Utterance],
    progress: Callable[[int], None],
) -> list[tuple[Line, Utterance] | Problem]:
    """A row's arrays, or what is wrong with its recording; in the order of the rows.

    old: by id, of which all but `fields` is kept.
    """
    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(_read, part))
    made: dict[int, tuple[Line, Utterance] | Problem] = {
        i: one for i, one in enumerate(heard) if isinstance(one, Problem)
    }
    usable = {i: one for i, one in enumerate(heard) if isinstance(one, _Heard)}
    if not all(part[i].id in old for i in usable):
        fields, old = set(FROM), {}
    order = sorted(usable, key=lambda i: len(usable[i].samples))  # so that rows of a batch are padded little
    for first in range(0, len(order), batch):
        interrupts.check()
        chosen = order[first : first + batch]
        # Always as many rows, so that a batch's length alone makes a program.
        filled = [usable[i] for i in (chosen * batch)[:batch]]
        for i, fresh in zip(chosen, encode(model, filled, fields), strict=False):
            row, most = part[i], model.cfg.gpt.most_codes
            kept = old[row.id]._asdict() if old else {}
            utterance = Utterance(**{**kept, **fresh, "texts": np.asarray(row.texts, np.int32)})
            if len(utterance.codes) > most:
                made[i] = Problem(row.line, f"{row.audio} has {len(utterance.codes)} codes, more than {most}; cut it")
                continue
            sizes = len(utterance.samples), len(utterance.codes), len(utterance.mel), len(row.texts)
            made[i] = Line(row.id, row.speaker, row.text, row.emotion, *sizes), utterance
        progress(len(made))
    return [made[i] for i in range(len(part))]


def encode(model: Model, heard: Sequence[Any], fields: Collection[str] = tuple(FROM)) -> list[dict[str, np.ndarray]]:
    """What the model's encoders make of recordings, each with `samples` and `samples_16k`: fields of `Utterance`."""
    params, cfg = model.params, model.cfg
    narrow = [one.samples_16k for one in heard]
    found: list[dict[str, np.ndarray]] = [{} for _ in heard]

    def keep(field: str, rows: Any, lengths: Any, dtype: Any) -> None:
        rows, lengths = np.asarray(rows), np.asarray(lengths)
        for own, row, length in zip(found, rows, lengths, strict=True):
            own[field] = row[:length].astype(dtype)

    if {"semantic", "codes"} & set(fields):
        semantic, lengths = voice.hear(params, cfg, narrow)
        keep("semantic", semantic, lengths, np.float16)
        keep("codes", repcodec.quantize(params["repcodec"], cfg.repcodec, semantic, lengths).codes, lengths, np.int32)
    if "style" in fields:
        samples, counts = voice.padded(narrow, features.SPEECH_RATE)
        style = campplus.embed(params["campplus"], cfg.campplus, *features.campplus_features(samples, counts))
        keep("style", style, [style.shape[1]] * len(heard), np.float32)
    if "mel" in fields:
        mel, frames = features.mel(*voice.padded([one.samples for one in heard], cfg.mel.rate), cfg.mel)
        keep("mel", mel, frames, np.float32)
    if "samples" in fields:
        for own, one in zip(found, heard, strict=True):
            own["samples"] = audio.to_int16(one.samples)
    return found
