"""Manifests: what a job speaks, one item per line of JSON (.jsonl, .ndjson, .json) or per record of CSV (.csv).

    {"id": "greeting", "text": "Hello.", "voice": "voices/anna.wav", "emotion_vector": [0, 0, 0.6, 0, 0, 0, 0, 0]}

The fields are those of IndexTTS-2's own batch manifests and the options of `speak`, with underscores; what a row leaves
out is as on the command line. A manifest is read as a stream: what is kept of an item are digests of its id and paths.
"""

import csv
import difflib
import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from indextts_jax import emotion, files
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error, NotFound, short, shown
from indextts_jax.files import FileError, reason
from indextts_jax.languages import SPOKEN as LANGUAGES
from indextts_jax.pauses import PARAGRAPH_MS
from indextts_jax.request import Options

LONGEST = 1 << 24  # bytes of a line, and of a text file
LONGEST_ID = 1000  # characters
_LONGEST_NAME = 120  # bytes of a name that is made of an id
_LONGEST_PART = 255  # bytes of a name that file systems allow
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


class Field(NamedTuple):
    """What a field holds: the name of a reader below, and the bounds of a number, both included."""

    kind: str
    low: float = 0
    high: float = math.inf


FIELDS = {
    "id": Field("text"),
    "text": Field("text"),
    "text_file": Field("path"),
    "voice": Field("path"),
    "voice_start": Field("number"),  # seconds
    "output": Field("path"),  # within the output folder
    "silence_after_ms": Field("whole", 0, 3_600_000),  # where outputs are joined
    "seed": Field("whole", 0, 2**64 - 1),
    "emotion": Field("weights"),
    "emotion_vector": Field("weights"),
    "emotion_audio": Field("path"),
    "emotion_text": Field("text"),
    "emotion_from_text": Field("flag"),
    "emotion_weight": Field("number", 0, 1),
    "emotion_alpha": Field("number", 0, 1),  # another name of the same
    "emotion_random": Field("flag"),
    "emotion_normalize": Field("flag"),
    "language": Field("language"),
    "glossary": Field("path"),
    "segment_tokens": Field("whole", 1, 10_000),
    "paragraph_ms": Field("whole", 0, 60_000),
    "silence_ms": Field("whole", 0, 60_000),
    "fade_ms": Field("whole", 0, 1000),
    "trim_tail": Field("flag"),
    "beams": Field("whole", 1, 64),
    "greedy": Field("flag"),
    "no_sample": Field("flag"),
    "temperature": Field("number", 1e-3, 100),
    "top_k": Field("whole", 0),
    "top_p": Field("number", 0, 1),
    "repetition_penalty": Field("number", 1e-3, 1000),
    "length_penalty": Field("number", -10, 10),
    "max_codes": Field("whole", 1),
    "retries": Field("whole", 0, 100),
    "steps": Field("whole", 1, 10_000),
    "cfg_rate": Field("number", 0, 100),
    "speed": Field("number", 0.5, 2),
}
SOURCES = ("emotion", "emotion_vector", "emotion_audio", "emotion_text", "emotion_from_text")  # of an emotion
STRENGTHS = ("emotion_weight", "emotion_alpha")


@dataclass(frozen=True)
class Defaults:
    """What the command line gave: the options of `speak` under their own names, for rows that leave them out."""

    seed: int = 0  # the run's: see `item_seed`
    voice: Path | None = None
    voice_start: float = 0.0
    emotion: str | None = None
    emotion_audio: Path | None = None
    emotion_text: str | None = None
    emotion_from_text: bool = False
    emotion_alpha: float | None = None
    emotion_random: bool = False
    emotion_normalize: bool = False
    language: str | None = None
    glossary: Path | None = None
    segment_tokens: int = 120
    paragraph_ms: int = PARAGRAPH_MS
    silence_ms: int = 200
    fade_ms: int = 20
    trim_tail: bool = False
    beams: int = 3
    greedy: bool = False
    no_sample: bool = False
    temperature: float = 0.8
    top_k: int = 30
    top_p: float = 0.8
    repetition_penalty: float | None = None
    length_penalty: float = 0.0
    max_codes: int = 1500
    retries: int = 0
    steps: int = 25
    cfg_rate: float = 0.7
    speed: float = 1.0


@dataclass(frozen=True)
class Feeling:
    """Where an item's emotion comes from: one of `audio`, `text`, `from_text` and `weights`; and how strong it is."""

    audio: Path | None = None  # a recording, or an Emotion file (.safetensors)
    text: str | None = None
    from_text: bool = False  # the text that is spoken
    weights: tuple[float, ...] | None = None
    weight: float | None = 1.0  # None: an Emotion file keeps its own
    random: bool = False  # of weights only
    normalize: bool = False  # of weights only


@dataclass(frozen=True)
class Item:
    """One item, with all that it says or leaves to the command line."""

    line: int
    id: str
    text: str
    voice: Path
    voice_start: float
    feeling: Feeling | None  # None: the voice's own
    seed: int
    language: str | None
    glossary: Path | None
    segment_tokens: int
    paragraph_ms: int
    options: Options
    silence_after_ms: int
    output: PurePosixPath  # within the output folder


class Problem(NamedTuple):
    """What is wrong in a line of a manifest, and what to do."""

    line: int
    message: str


def item_seed(run_seed: int, id: str) -> int:
    """The seed, 64 bits, of an item that has none of its own: neither its place nor other items change it."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{id}".encode()).digest()[:8], "big")


def file_name(id: str) -> str:
    """An id as the name of a file: where it is long, or has other characters than letters and digits and "-_.", with a
    digest, so that two ids never make one name.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in id)
    safe = f"_{safe[1:]}" if safe.startswith(".") else safe
    if safe == id and len(safe.encode()) <= _LONGEST_NAME:
        return safe
    return f"{safe.encode()[:_LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(id.encode()).hexdigest()[:12]}"


def read(path: Path, defaults: Defaults, suffix: str, root: Path | None = None) -> Iterator[Item | Problem]:
    """Each item of a manifest in its order, or all that is wrong with it; in one pass.

    suffix: of outputs, such as ".wav". root: the output folder, for what only it can tell: links out of it, and
    outputs that are the inputs of any item.

    Lines are numbered as in the file, a record of CSV where it begins. Blank lines are no items. null and empty cells
    are fields that are not there, and text that reads as a field's number or flag is one. Relative paths start at the
    manifest's folder, those of outputs at the output folder.

    An item without `id` has its line's number, "line-000012": give ids where lines come and go. Ids are compared as
    normalised text (NFC), outputs without regard to case, too. Without `output`, it is the id's `file_name`.

    A row that has a source of an emotion overrides the command line's; one with a strength alone overrides that alone,
    and without any source that is a problem; `emotion_from_text` false goes back to the voice's own emotion where the
    command line reads it off the text.

    Texts are not analysed and recordings not decoded. Raises NotFound or FileError for what cannot be read at all, and
    Error for what is wrong with `defaults`.
    """
    yield from _Rows(path.parent, defaults, suffix, root, path).items(rows(path))


def rows(path: Path, fields: Collection[str] = FIELDS.keys()) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each row of a manifest with its line, or what is wrong with it; values are as they are written.

    fields: the columns that CSV may have; those of JSON are for the caller to check. Raises NotFound, FileError and
    Error for what cannot be read at all.
    """
    kind = path.suffix.lower()
    if kind not in (*JSON_SUFFIXES, ".csv"):
        raise Error(f"{path}: the name of a manifest ends in .jsonl, .ndjson, .json or .csv; rename it")
    empty = True
    try:
        with files.open_file(path) as file:
            for found in _csv(file, fields) if kind == ".csv" else _json(file):
                empty = False
                yield found
    except NotFound:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({reason(error)}); check the disk") from None
    if empty:
        yield 1, "the manifest holds no items; write one per line"


def items(
    rows: Iterable[dict[str, Any]], folder: Path, defaults: Defaults, suffix: str, root: Path | None = None
) -> Iterator[Item | Problem]:
    """Each item of rows that are no file's, numbered from 1, or all that is wrong with it: as `read`.

    folder: where relative paths start. Raises Error for what is wrong with `defaults`.
    """
    return _Rows(folder, defaults, suffix, root).items(enumerate(rows, 1))


# ---- rows -----------------------------------------------------------------------------------------------------------

_NOT_UTF8 = "save the file as UTF-8"


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Each line and its number; bytes that are not UTF-8 become surrogates. Raises Error at a line that is too long."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise Error(f"the manifest is text in UTF-16; {_NOT_UTF8}")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > LONGEST:
            raise Error(f"a line of more than {LONGEST:,} bytes, at which reading ended; put its text into a text_file")
        yield number, line.decode("utf-8", "surrogateescape")


def _json(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each row of JSON and its line, or what is wrong with it."""
    number = 0
    try:
        for number, line in _lines(file):
            if line.strip():
                yield number, _row(line)
    except Error as error:
        yield number + 1, str(error)


def _row(line: str) -> dict[str, Any] | str:
    one = "write one object {...} on each line"
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except Error as error:
        return str(error)
    except json.JSONDecodeError as error:
        return f"no JSON ({error.msg} at character {error.colno}); {one}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        return f"no usable JSON ({shown(error)}); {one}"
    return row if isinstance(row, dict) else f"{short(row, 30)} is no object; {one}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise Error(f"the field {short(next(n for n in names if names.count(n) > 1))} stands twice; keep one of them")
    return found


def _csv(file: BinaryIO, fields: Collection[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each record of CSV and the line where it begins, or what is wrong with it."""
    records = csv.reader((line for _, line in _lines(file)), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    first = 1
    try:
        while True:
            first = records.line_num + 1
            cells = next(records)
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                wrong = [unknown(name, fields) for name in header if name not in fields]
                wrong += [f"the column {short(name)} stands twice" for name in fields if header.count(name) > 1]
                if wrong:
                    yield first, f"the header: {'; '.join(wrong)}; columns are separated by commas"
                    return
            elif len(cells) != len(header):
                yield first, f"{len(cells)} cells, but the header has {len(header)}; put quotes around commas in a text"
            else:
                yield first, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
    except StopIteration:
        return
    except Error as error:
        yield first, str(error)
    except csv.Error as error:
        yield (
            first,
            (
                f"no CSV ({shown(error)}), at which reading ended; put quotes around a text with commas, quotes or "
                "line breaks, write a quote in it twice, and put a very long text into a text_file"
            ),
        )


def unknown(name: str, fields: Collection[str] = FIELDS.keys()) -> str:
    """What to say of a field that is none of `fields`."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), fields, 1)
    return f"unknown field {short(name)}; {f'write {near[0]}' if near else 'correct its name or remove it'}"


# ---- values ---------------------------------------------------------------------------------------------------------


def value(name: str, given: Any) -> Any:
    """The value of a field, from JSON or as text. Raises Error, naming the field."""
    return _READERS[FIELDS[name].kind](name, given)


def _text(name: str, given: Any) -> str:
    if not isinstance(given, str):
        raise Error(f"{name} is {short(given)}, but must be text; put it in quotes")
    if not given.strip():
        raise Error(f"{name} is empty; fill it in or leave it out")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise Error(f"{name} {short(given)} is not valid UTF-8; {_NOT_UTF8}") from None
    return given


def _path(name: str, given: Any) -> str:
    text = _text(name, given)
    if any(unicodedata.category(c) == "Cc" for c in text):
        raise Error(f"{name} {short(text)} holds a control character; correct it")
    return text


def _number(name: str, given: Any) -> int | float:
    kind, low, high = FIELDS[name]
    whole = kind == "whole"
    try:
        number = (int(given) if whole else float(given)) if isinstance(given, str) else given
        if not isinstance(number, int if whole else int | float) or isinstance(number, bool):
            raise ValueError
        number = number if whole else float(number)
        if not low <= number <= high or math.isinf(number):  # which NaN does not meet, either
            raise ValueError
    except (ValueError, OverflowError):
        bounds = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise Error(f"{name} is {short(given)}, but must be a {'whole ' * whole}number {bounds}") from None
    return number


def _flag(name: str, given: Any) -> bool:
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in found:
        return found[given.strip().lower()]
    raise Error(f"{name} is {short(given)}, but must be true or false")


def _weights(name: str, given: Any) -> tuple[float, ...]:
    if isinstance(given, list) and all(isinstance(w, int | float) and not isinstance(w, bool) for w in given):
        given = ",".join(map(repr, given))
    if not isinstance(given, str):
        raise Error(f"{name} is {short(given)}, but must be eight numbers: [{', '.join(emotion.NAMES)}]")
    try:
        return emotion.parse(given)
    except Error as error:
        raise Error(f"{name}: {error}") from None


def _language(name: str, given: Any) -> str:
    if given not in LANGUAGES:
        raise Error(f"{name} is {short(given)}, but must be one of {', '.join(LANGUAGES)}")
    return given


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "text": _text,
    "path": _path,
    "number": _number,
    "whole": _number,
    "flag": _flag,
    "weights": _weights,
    "language": _language,
}


# ---- items ----------------------------------------------------------------------------------------------------------


class _Rows:
    """Makes items of rows, and knows of the rows before what must not come again."""

    def __init__(self, folder: Path, defaults: Defaults, suffix: str, root: Path | None, path: Path | None = None):
        """path: of the manifest itself."""
        self._folder, self._defaults, self._suffix, self._root = folder, defaults, suffix, root
        self._ids: dict[bytes, int] = {}  # digest -> line
        self._outputs: dict[bytes, int] = {}
        self._folders: dict[bytes, int] = {}  # of outputs
        self._written: dict[bytes, int] = {}  # outputs by their real paths
        self._read: dict[bytes, int] = {}  # inputs by theirs; line 0 is the command line
        self._checked: dict[bytes, str] = {}  # what is wrong with an input
        self._real_root = None if root is None else os.path.realpath(root)
        self._weights = None if defaults.emotion is None else _weights("--emotion", defaults.emotion)
        if path is not None:
            self._read[_digest(os.path.realpath(path))] = 0
        for name in ("voice", "emotion_audio", "glossary"):
            if (given := getattr(defaults, name)) and (wrong := self._input(0, given, name == "glossary")):
                raise Error(f"--{name.replace('_', '-')} {wrong}")

    def items(self, rows: Iterable[tuple[int, dict[str, Any] | str]]) -> Iterator[Item | Problem]:
        """The items of numbered rows; a string is what is wrong with one."""
        for line, row in rows:
            found = [row] if isinstance(row, str) else self.item(line, row)
            yield from [found] if isinstance(found, Item) else [Problem(line, message) for message in found]

    def item(self, line: int, row: dict[str, Any]) -> Item | list[str]:
        """The item of a row, or all that is wrong with it."""
        wrong = [unknown(name) for name in row if name not in FIELDS]
        named = {name for name, given in row.items() if name in FIELDS and given is not None}
        given: dict[str, Any] = {}
        for name in row:
            if name in named:
                try:
                    given[name] = value(name, row[name])
                except Error as error:
                    wrong.append(str(error))

        id = self._id(line, given, named, wrong)
        for name in ("text_file", "voice", "emotion_audio", "glossary"):
            if name in given:
                given[name] = self._folder / given[name]
                if problem := self._input(line, given[name], name in ("glossary", "text_file")):
                    wrong.append(f"{name} {problem}")
        text = self._text(given, named, wrong)
        if "voice" not in named and self._defaults.voice is None:
            wrong.append("there is no voice; add the field voice, or the option --voice")
        feeling = self._feeling(given, named, wrong)
        options = self._options(given, wrong)
        output = self._output(line, id, given, named, wrong)
        if wrong or id is None or text is None or options is None or output is None:
            return wrong
        return Item(
            line=line,
            id=id,
            text=text,
            voice=self._of(given, "voice"),
            voice_start=self._of(given, "voice_start"),
            feeling=feeling,
            seed=given.get("seed", item_seed(self._defaults.seed, id)),
            language=self._of(given, "language"),
            glossary=self._of(given, "glossary"),
            segment_tokens=self._of(given, "segment_tokens"),
            paragraph_ms=self._of(given, "paragraph_ms"),
            options=options,
            silence_after_ms=given.get("silence_after_ms", 0),
            output=output,
        )

    def _of(self, given: dict[str, Any], name: str) -> Any:
        return given.get(name, getattr(self._defaults, name))

    def _id(self, line: int, given: dict[str, Any], named: set[str], wrong: list[str]) -> str | None:
        if "id" in named and "id" not in given:
            return None
        id = unicodedata.normalize("NFC", given.get("id", f"line-{line:06d}").strip())
        if len(id) > LONGEST_ID:
            wrong.append(f"id {short(id)} has {len(id)} characters, but at most {LONGEST_ID} are allowed; shorten it")
            return None
        if (before := self._ids.setdefault(_digest(id), line)) != line:
            wrong.append(f"id {short(id)} is that of line {before}, too; give each item another one")
        return id

    def _text(self, given: dict[str, Any], named: set[str], wrong: list[str]) -> str | None:
        if len(named & {"text", "text_file"}) != 1:
            wrong.append("a row has either text or text_file; give one of them")
        elif "text" in given:
            return given["text"]
        elif "text_file" in given and not self._checked[_digest(str(given["text_file"]))]:
            path = given["text_file"]
            try:
                text = files.read(path, LONGEST).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                wrong.append(f"text_file {path} is not UTF-8 text ({error.reason} at byte {error.start}); {_NOT_UTF8}")
            except Error as error:
                wrong.append(f"text_file {error}")
            else:
                if text.strip():
                    return text
                wrong.append(f"text_file {path} is empty; write into it what to say")
        return None

    def _feeling(self, given: dict[str, Any], named: set[str], wrong: list[str]) -> Feeling | None:
        """Where the emotion comes from, by the rules that `read` tells."""
        defaults = self._defaults
        sources = [name for name in SOURCES if name in named and given.get(name) is not False]
        if len(sources) > 1:
            wrong.append(f"{' and '.join(sources)}: an emotion has one source; keep one of them")
        strengths = [name for name in STRENGTHS if name in named]
        if len(strengths) > 1:
            wrong.append(f"{' and '.join(strengths)} are the same; keep one of them")
        changes = [name for name in ("emotion_random", "emotion_normalize") if given.get(name)]
        weight = given.get(strengths[0]) if strengths else defaults.emotion_alpha
        if sources:
            audio, text = given.get("emotion_audio"), given.get("emotion_text")
            from_text = given.get("emotion_from_text", False)
            weights = given.get("emotion", given.get("emotion_vector"))
        else:
            audio, text, weights = defaults.emotion_audio, defaults.emotion_text, self._weights
            from_text = defaults.emotion_from_text and "emotion_from_text" not in named
            if audio is None and text is None and weights is None and not from_text:
                add = "but the item has no emotion; add one, for example emotion_vector"
                wrong += [f"{name} is the strength of an emotion, {add}" for name in strengths]
                wrong += [f"{name} changes the weights of an emotion, {add}" for name in changes]
                return None
        file = audio is not None and audio.suffix == ".safetensors"
        mutable = audio is None or file
        if not mutable:
            wrong += [f"{name} changes weights, but the emotion is a recording; remove one of them" for name in changes]
        return Feeling(
            audio=audio,
            text=text,
            from_text=from_text,
            weights=weights,
            weight=1.0 if weight is None and not file else weight,
            random=mutable and self._of(given, "emotion_random"),
            normalize=mutable and self._of(given, "emotion_normalize"),
        )

    def _options(self, given: dict[str, Any], wrong: list[str]) -> Options | None:
        greedy = self._of(given, "greedy")
        try:
            return Options(
                Sampling(
                    beams=1 if greedy else self._of(given, "beams"),
                    sample=not (greedy or self._of(given, "no_sample")),
                    top_k=self._of(given, "top_k"),
                    top_p=self._of(given, "top_p"),
                    temperature=self._of(given, "temperature"),
                    repetition_penalty=self._of(given, "repetition_penalty"),
                    length_penalty=self._of(given, "length_penalty"),
                ),
                max_codes=self._of(given, "max_codes"),
                retries=self._of(given, "retries"),
                steps=self._of(given, "steps"),
                guidance=self._of(given, "cfg_rate"),
                speed=self._of(given, "speed"),
                silence_ms=self._of(given, "silence_ms"),
                fade_ms=self._of(given, "fade_ms"),
                trim_tail=self._of(given, "trim_tail"),
            )
        except Error as error:  # retries without sampling
            wrong.append(f"{error}; set retries to 0, or sample")
            return None

    def _output(
        self, line: int, id: str | None, given: dict[str, Any], named: set[str], wrong: list[str]
    ) -> PurePosixPath | None:
        if "output" in named:
            if "output" not in given:
                return None
            path = PurePosixPath(given["output"])
        elif id is None:
            return None
        else:
            path = PurePosixPath(file_name(id) + self._suffix)
        name = f"output {short(str(path))}"
        real = None if self._root is None else os.path.realpath(self._root / path)
        inside = real is None or real.startswith(f"{(self._real_root or '').rstrip('/')}/")
        if path.is_absolute() or ".." in path.parts or not inside:
            wrong.append(f"{name} leaves the output folder; give a path within it, without ..")
            return None
        if path.suffix.lower() != self._suffix:
            wrong.append(f"{name} must end in {self._suffix}, the format that is written; rename it or choose another")
        if any(len(os.fsencode(part)) > _LONGEST_PART for part in path.parts):
            wrong.append(f"{name}: a name of more than {_LONGEST_PART} bytes; shorten it")
        own, *folders = (_digest(_folded(str(place))) for place in (path, *path.parents[:-1]))
        if (before := self._outputs.setdefault(own, line)) != line:
            wrong.append(f"{name} is that of line {before}, too, but for case at most; give each item another one")
        elif before := self._folders.get(own) or next(filter(None, map(self._outputs.get, folders)), 0):
            wrong.append(f"{name} and the output of line {before}: one is a folder of the other; choose another name")
        self._folders.update(dict.fromkeys(folders, line))
        if real is not None:
            if (other := self._read.get(_digest(real))) is not None:
                of = f"of line {other}" if other else "of the command line"
                wrong.append(f"{name} is an input {of}, which would be overwritten; choose another name")
            self._written[_digest(real)] = line
        return path

    def _input(self, line: int, path: Path, may_be_empty: bool) -> str:
        """What is wrong with an input, "" for nothing; each path is looked at once."""
        if (known := self._checked.get(_digest(str(path)))) is not None:
            return known
        real = _digest(os.path.realpath(path))
        self._read.setdefault(real, line)
        wrong = ""
        try:
            with files.open_file(path) as file:
                if not may_be_empty and not file.read(1):
                    wrong = f"{path}: is empty (0 bytes); copy it again"
        except Error as error:
            wrong = str(error)
        except OSError as error:
            wrong = f"{path}: cannot be read ({reason(error)}); check the disk"
        if real in self._written:
            wrong = f"{path}: is the output of line {self._written[real]}, too; choose another name for that"
        self._checked[_digest(str(path))] = wrong
        return wrong


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
