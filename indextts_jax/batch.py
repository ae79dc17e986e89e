"""Batch jobs: the items of a manifest become audio files; what is done is never done twice, and nothing is lost.

    plan = check(job)
    summary = run(job, models)

The journal in the output folder says what is done. An item's key is a digest of all that determines its audio: the same
job again does what is missing, and a changed option does anew what it changes.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from indextts_jax import (
    __version__,
    audio,
    checkpoint,
    devices,
    files,
    hearing,
    interrupts,
    joining,
    manifest,
    pauses,
    pipeline,
)
from indextts_jax.config import Config
from indextts_jax.errors import Error
from indextts_jax.files import FileError, reason
from indextts_jax.hearing import Heard, Hearing
from indextts_jax.journal import Journal, Record, key, merge
from indextts_jax.manifest import Defaults, Item, Problem
from indextts_jax.model import Model
from indextts_jax.models import precision
from indextts_jax.models.layers import dtype_of
from indextts_jax.multilingual import FrontEnd
from indextts_jax.request import Request, Result
from indextts_jax.scheduling import BATCH, Usage
from indextts_jax.shards import Shard
from indextts_jax.text import Analysis, load_glossary
from indextts_jax.timing import Stopwatch

log = logging.getLogger(__name__)

JOURNAL, FAILURES, SUMMARY, KEPT = "journal.jsonl", "failures.jsonl", "summary.json", ".voices"
AHEAD = 8  # items whose files are read ahead
PATIENCE = 600.0  # seconds to wait for a disk that is full
MOST_PROBLEMS = 100  # that are shown
SECONDS_PER_PIECE = 0.1  # of speech: what a plan estimates with
# Options that came after the first journals, with what was done before: so set, they are no part of a key.
LATER = {"fade_ms": 0, "trim_tail": False, "speed": 1.0}


class Refused(Error):
    """A job that cannot begin, with all that is wrong with its manifest."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        super().__init__(message)
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Job:
    """What to do."""

    manifest: Path
    folder: Path  # of the outputs
    model: Path  # a converted one
    defaults: Defaults = field(default_factory=Defaults)
    kind: str = "wav"  # of `audio.FORMATS`
    rate: int | None = None  # Hz; None: the model's
    batch: int | None = None  # as in `scheduling.run`
    shard: Shard = field(default_factory=Shard)
    limit: int | None = None  # of items
    only_failed: bool = False
    force: bool = False  # replace outputs that no journal knows
    attempts: int = 3  # to speak an item, over all runs
    joined: Path | None = None  # one file of all outputs, in the manifest's order
    subtitles: tuple[Path, ...] = ()  # of it
    normalize: float | None = None  # LUFS of each output; None: as it is spoken

    @property
    def suffix(self) -> str:
        return f".{self.kind}"

    @property
    def journal(self) -> Path:
        """Of this shard alone."""
        return self.folder / JOURNAL.replace(".", f"{self.shard_suffix}.")

    @property
    def shard_suffix(self) -> str:
        """Of what is this shard's own."""
        return "" if self.shard.count == 1 else f"-{self.shard.index}-of-{self.shard.count}"

    def items(self) -> Iterator[Item]:
        """Those of this shard, up to the limit; lines with problems are left out."""
        found = 0
        for item in manifest.read(self.manifest, self.defaults, self.suffix, self.folder):
            if isinstance(item, Item) and self.shard.holds(item.id):
                if found == self.limit:
                    return
                found += 1
                yield item


@dataclass
class Plan:
    """What a job amounts to."""

    items: int = 0
    done: int = 0  # of them, by their outputs and journals; a changed option shows only later
    voices: int = 0  # different recordings
    segments: int = 0  # of what is not done
    seconds: float = 0.0  # of its speech, estimated from the lengths of the texts

    def __str__(self) -> str:
        length = f"{self.seconds / 3600:.1f} hours" if self.seconds >= 7200 else f"{self.seconds:.0f} s"
        return (
            f"{self.items} items ({self.done} of them done), {self.voices} voices; to be spoken: {self.segments} "
            f"segments, about {length} of speech"
        )


@dataclass
class Summary:
    """What a run has done; `to_dict` is written to summary.json."""

    items: int = 0  # of this run, those that were done before left out
    before: int = 0  # done in earlier runs
    done: int = 0
    failed: int = 0
    left: int = 0  # not begun: an interrupt came, or they had failed too often
    listened: int = 0  # recordings
    listening: float = 0.0  # seconds that it took, and reading emotions off texts
    segments: int = 0
    retried: int = 0
    cut: int = 0
    audio: float = 0.0  # seconds
    seconds: float = 0.0  # without loading the model
    preparing: float = 0.0  # of them, tracing, loading and compiling programs
    usage: Usage = field(default_factory=Usage)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio, without compilation."""
        return (self.seconds - self.preparing) / self.audio if self.audio else 0.0

    def to_dict(self) -> dict[str, Any]:
        usage = self.usage
        return asdict(self) | {
            "usage": {
                "drawing_seconds": round(usage.drawing, 3),
                "rendering_seconds": round(usage.rendering, 3),
                "idle_rows": round(1 - usage.used_row_steps / max(1, usage.row_steps), 4),
                "padded_frames": round(1 - usage.used_frames / max(1, usage.frames), 4),
            },
            "real_time_factor": round(self.real_time_factor, 4),
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    return {"indextts_jax": __version__, "jax": jax.__version__}


# ---- before it begins -----------------------------------------------------------------------------------------------


class Texts:
    """Front ends, one per glossary."""

    def __init__(self, front: FrontEnd):
        self._front = front
        self._of = functools.lru_cache(16)(lambda path: replace(front, glossary=load_glossary(path)))

    def analyse(self, item: Item) -> Analysis:
        """Raises Error for a text without a sound, or a glossary that cannot be read."""
        front = self._of(item.glossary) if item.glossary else self._front
        return front.analyse(item.text, item.segment_tokens, language=item.language, paragraph_ms=item.paragraph_ms)


def check(job: Job, progress: Callable[[int], None] = lambda items: None) -> Plan:
    """Read the whole manifest, texts too but for those of items that are done, without weights: -> what is to be done.

    progress: called with the items read so far. Raises Refused with every problem there is, by its line.
    """
    cfg, _ = checkpoint.read_description(job.model)
    texts = Texts(checkpoint.load_text(job.model))
    records = known(job)
    outputs = {record.output for record in records.values()}
    outputs.update(name for path in job.folder.glob(".writing*") for name in _writing(path))
    plan, problems, voices = Plan(), [], set()
    for number, item in enumerate(manifest.read(job.manifest, job.defaults, job.suffix, job.folder)):
        progress(number)
        if isinstance(item, Problem):
            problems.append(item)
            continue
        record, exists = records.get(item.id), (job.folder / item.output).exists()
        if exists and not job.force and str(item.output) not in outputs:
            problems.append(
                Problem(item.line, f"{job.folder / item.output} exists already; add --force to replace it, or move it")
            )
        done = exists and record is not None and record.status == "done"
        segments = pieces = 0
        if not done:  # else it has been analysed, which takes most of the time
            try:
                segment_ids = texts.analyse(item).segment_ids
                segments, pieces, longest = len(segment_ids), sum(map(len, segment_ids)), max(map(len, segment_ids))
                if longest > cfg.gpt.most_texts:
                    raise Error(
                        f"a segment has {longest} text pieces, but the model takes {cfg.gpt.most_texts}; make "
                        "segment_tokens smaller"
                    )
            except Error as error:
                problems.append(Problem(item.line, str(error)))
                continue
        if not job.shard.holds(item.id) or plan.items == job.limit:
            continue
        plan.items += 1
        plan.done += done
        plan.segments += segments
        plan.seconds += SECONDS_PER_PIECE * pieces
        voices.add(hashlib.sha256(f"{item.voice}:{item.voice_start}".encode()).digest())
    plan.voices = len(voices)
    if problems:
        raise Refused(f"{job.manifest}: {len(problems)} problems; nothing was begun", problems)
    return plan


def known(job: Job) -> dict[str, Record]:
    """What the journals in the output folder say of each item: as where they are merged, the latest entry counts.

    The output of one that has failed is that of its last success, if there is one: that file is still there.
    """
    found: dict[str, tuple[float, Record]] = {}
    for path in sorted(job.folder.glob("journal*.jsonl")):
        own: dict[str, tuple[float, Record]] = {}
        for entry in Journal.read(path):
            _note(own, entry["id"], entry["time"], Record(*(entry[name] for name in Record._fields)))
        for id, (when, record) in own.items():
            if id not in found or when >= found[id][0]:
                _note(found, id, when, record)
    return {id: record for id, (_, record) in found.items()}


def _note(found: dict[str, tuple[float, Record]], id: str, when: float, record: Record) -> None:
    before = found[id][1].output if id in found else None
    found[id] = when, record._replace(output=record.output or before)


class _Writing:
    """The names of outputs that may be there although no journal says so: `.writing`, beside them.

    A job that is killed after an output has its name and before it is in the journal would else meet a file that it
    does not know when it goes on.
    """

    def __init__(self, job: Job, outputs: set[str | None]):
        """outputs: those that journals know."""
        self._path = job.folder / f".writing{job.shard_suffix}"
        self._left = [name for name in _writing(self._path) if name not in outputs]

    def begin(self, output: str) -> None:
        """An output is about to appear. Raises FileError."""
        self._left = [name for name in self._left if name != output]
        self._write([*self._left, output])

    def end(self) -> None:
        """Every output that has begun is in the journal."""
        if self._left:
            self._write(self._left)
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, names: list[str]) -> None:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:  # at no moment without the names that it had, if they go on
                os.ftruncate(file, os.write(file, "".join(f"{name}\n" for name in names).encode()))
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written ({reason(error)}); free some space") from error


def _writing(path: Path) -> list[str]:
    try:
        return files.read(path, 1 << 20).decode(errors="replace").splitlines()
    except Error:
        return []


# ---- while it runs --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Work:
    """An item that is being spoken."""

    item: Item
    key: str = ""
    attempts: int = 1  # this one included
    text: Analysis | None = None
    requests: list[Request] = field(default_factory=list)
    taken: dict[int, Result] = field(default_factory=dict)  # by the segment

    def take(self, result: Result) -> bool:
        """Keep the result of one of the requests: -> whether it was the last."""
        self.taken[id(result.request)] = result
        return len(self.taken) == len(self.requests)

    @property
    def results(self) -> list[Result]:
        """In the order of the requests, once all are taken."""
        return [self.taken[id(request)] for request in self.requests]


class Speaker:
    """Makes requests of items, and audio of their results. For one thread at a time, but for `encoded`."""

    def __init__(self, model: Model, hearing: Hearing, kind: str, rate: int | None, normalize: float | None = None):
        """normalize: the loudness of what it makes, LUFS."""
        self.hearing, self.texts = hearing, Texts(model.text)
        self._model, self._how = model, (kind, rate, normalize)

    def begin(self, work: Work, heard: Heard) -> None:
        """Make the requests of an item. Raises Error."""
        item, model = work.item, self._model
        voice = self.hearing.voice(item.voice, heard.voice_digest, item.voice_start, heard.voice)
        felt = hearing.feeling(self.hearing, item, heard)
        work.text = self.texts.analyse(item)
        work.requests = pipeline.requests(
            model.params, model.cfg, work.text, voice, item.seed, item.options, felt,
            of=f" of {item.id}", tag=work,
        )  # fmt: skip

    def encoded(self, work: Work) -> tuple[bytes, float]:
        """The audio file of an item whose results are all there, and its seconds. Raises the first error of them."""
        if error := next((result.error for result in work.results if result.error), None):
            raise error
        speech = pipeline.join(self._model.cfg, work.results, work.item.options, work.text)
        return speech.encode(*self._how, work.item.id), len(speech.samples) / speech.rate


def run(
    job: Job,
    models: Sequence[Model],
    progress: Callable[[Summary, int], None] = lambda summary, planned: None,
    planned: int = 0,
) -> Summary:
    """Speak what is missing, on the devices of the models, one each: -> what was done.

    progress: called now and then with the summary so far and `planned`. A first signal finishes what is on the devices,
    then raises `interrupts.Interrupted`; a second one ends the process. Raises Error where the journal cannot be
    written.
    """
    with interrupts.shielded(), Journal.open(job.journal) as journal, Stopwatch() as watch:
        loop = _Run(job, models, journal, watch)
        summary = loop.speak(lambda: progress(loop.summary, planned))
        summary.seconds, summary.preparing = watch.seconds, watch.preparing
        _report(job, journal, summary)
    return summary


class _Run:
    """One run of a job."""

    def __init__(self, job: Job, models: Sequence[Model], journal: Journal, watch: Stopwatch):
        self._job, self._models, self._journal, self._watch = job, models, journal, watch
        self._cfg: Config = models[0].cfg
        params = models[0].params
        heard = Hearing(models[0], job.model, job.folder / KEPT, dtype_of(params["gpt"]))
        self._speaker = Speaker(models[0], heard, job.kind, job.rate, job.normalize)
        self._same = {
            "model": hearing.model_digest(job.model),
            "dtype": precision(params),
            "kind": job.kind,
            "rate": job.rate,
        } | ({} if job.normalize is None else {"normalize": job.normalize})
        self._known = known(job)
        self._writing = _Writing(job, {record.output for record in self._known.values()})
        self._lock = threading.Lock()  # of the summary
        self._waiting = threading.Semaphore(2 * (job.batch or BATCH) * len(models))  # audio that is not written yet
        self._error: BaseException | None = None  # of the writer
        self._stamp = _versions()
        self.summary = Summary()

    def speak(self, tick: Callable[[], None]) -> Summary:
        """Speak all there is to speak."""
        params = [model.params for model in self._models]

        def watch() -> None:
            if self._error:
                raise self._error
            self.summary.seconds, self.summary.preparing = self._watch.seconds, self._watch.preparing
            tick()

        with ThreadPoolExecutor(1) as self._writer:
            spoken = devices.run(
                params, self._cfg, self._requests(), self._job.batch, True, watch, self.summary.usage,
                lambda: interrupts.pending() is not None,
            )  # fmt: skip
            for result in spoken:
                assert isinstance(result, Result)  # nothing is streamed
                work: Work = result.request.tag
                if work.take(result):
                    self._hand_over(self._finish, work)
        if self._error:
            raise self._error
        self._writing.end()
        if interrupts.pending() is not None:
            self.summary.left += self.summary.items - self.summary.done - self.summary.failed
        heard = self._speaker.hearing
        self.summary.listened, self.summary.listening = heard.listened, heard.seconds
        return self.summary

    def _requests(self) -> Iterator[Request]:
        """The segments of every item that is to be spoken, whose files are read a few items ahead."""
        with ThreadPoolExecutor(2) as readers:
            ahead: deque[tuple[Item, Future[Heard]]] = deque()
            items = self._job.items()
            while True:
                while len(ahead) < AHEAD and not interrupts.pending() and (item := next(items, None)) is not None:
                    ahead.append((item, readers.submit(Heard, item)))
                if not ahead or interrupts.pending():
                    self.summary.left += len(ahead)
                    return
                item, heard = ahead.popleft()
                yield from self._begin(item, heard)

    def _begin(self, item: Item, reading: "Future[Heard]") -> list[Request]:
        """The segments of an item; none where there is nothing to do or it cannot be begun."""
        heard: Heard | None = None
        error: Error | None = None
        try:
            heard = reading.result()
        except Error as found:
            error = found
        before, work = self._known.get(item.id), Work(item, self._key(item, heard))
        failed = before is not None and before.status != "done"
        if before is not None and before.key == work.key:
            if not failed and (self._job.folder / item.output).exists():
                self.summary.before += 1
                return []
            work.attempts += before.attempts if failed else 0
        if work.attempts > self._job.attempts or (self._job.only_failed and not failed):
            self.summary.left += 1
            return []
        self.summary.items += 1
        try:
            if error or heard is None:
                raise error or Error("not read")
            self._speaker.begin(work, heard)
        except Error as found:
            self._hand_over(self._fail, work, found)
        return work.requests

    def _key(self, item: Item, heard: Heard | None) -> str:
        """The key of an item, `LATER` aside; of one whose files cannot be read, by their names."""
        names = str(item.voice), "", None
        voice, felt, glossary = (heard.voice_digest, heard.felt_digest, heard.glossary_digest) if heard else names
        feeling = item.feeling and asdict(item.feeling) | {"audio": felt}
        asked = replace(item.options, sampling=item.options.sampling.of(self._cfg.gpt))
        options = {name: given for name, given in asdict(asked).items() if LATER.get(name, ...) != given}
        del options["batch"]
        return key(
            text=item.text, voice=voice, start=item.voice_start, feeling=feeling, seed=item.seed,
            language=item.language, glossary=glossary, segment_tokens=item.segment_tokens, options=options,
            output=str(item.output), **self._same, **_pauses(item),
        )  # fmt: skip

    # What follows runs in the writer's thread, which ends items one after another.

    def _hand_over(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the writer do something, when it has not too much to do."""
        self._waiting.acquire()

        def write() -> None:
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:
                self._error = error
            finally:
                self._waiting.release()

        self._writer.submit(write)

    def _finish(self, work: Work) -> None:
        """Write the audio of an item, and what became of it into the journal."""
        path = self._job.folder / work.item.output
        try:
            content, seconds = self._speaker.encoded(work)
            path.parent.mkdir(parents=True, exist_ok=True)
            _patiently(functools.partial(self._writing.begin, str(work.item.output)))
            _patiently(functools.partial(files.write_whole, path, content))
        except (Error, OSError) as error:
            self._fail(work, error)
            return
        self._journal_of(work, status="done", output=str(work.item.output), seconds=round(seconds, 6))
        with self._lock:
            self.summary.done += 1
            self.summary.audio += seconds

    def _fail(self, work: Work, error: Exception) -> None:
        message = " ".join(str(error).split())
        log.warning("%s: %s", work.item.id, message)
        self._journal_of(work, status="failed", output=None, error=message)
        with self._lock:
            self.summary.failed += 1

    def _journal_of(self, work: Work, **more: Any) -> None:
        results = work.results
        cut, retried = sum(not result.stopped for result in results), sum(result.attempts > 1 for result in results)
        entry = {
            "id": work.item.id, "key": work.key, "attempts": work.attempts, "seed": work.item.seed,
            "codes": sum(len(result.codes) for result in results), "segments": len(results),
            "flags": ["cut"] * (cut > 0) + ["retried"] * (retried > 0), **more, "versions": self._stamp,
        }  # fmt: skip
        _patiently(lambda: self._journal.append(entry))
        with self._lock:
            self.summary.segments += len(results)
            self.summary.cut += cut
            self.summary.retried += retried


def _pauses(item: Item) -> dict[str, Any]:
    """What a key says of the pauses of a text; nothing of a text without any, as before there were pauses."""
    try:
        parts, lead, after = pauses.split(item.text, item.paragraph_ms)
    except Error as error:
        return {"pauses": str(error)}
    return {} if parts == [item.text] else {"pauses": [lead, *after]}


def _patiently(write: Callable[[], None]) -> None:
    """Write, and where the disk is full, wait for a while and try again. Raises FileError in the end."""
    begin, pause = time.monotonic(), 1.0
    while True:
        try:
            return write()
        except FileError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or interrupts.pending() or time.monotonic() - begin + pause > PATIENCE:
                raise
            log.warning("%s; trying again in %.0f s", error, pause)
        time.sleep(pause)
        pause = min(30.0, 2 * pause)


# ---- afterwards -----------------------------------------------------------------------------------------------------


def _report(job: Job, journal: Journal, summary: Summary) -> None:
    """summary.json, and failures.jsonl where some have failed: its lines are those of the journal."""
    ids = {id for id, record in journal.records.items() if record.status != "done"}
    failed = {entry["id"]: entry for entry in Journal.read(journal.path) if entry["id"] in ids}  # the last of each
    failures = job.folder / FAILURES.replace(".", f"{job.shard_suffix}.")
    if failed or failures.exists():
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in failed.values())
        files.write_whole(failures, "".join(lines).encode())
    summaries = job.folder / SUMMARY.replace(".", f"{job.shard_suffix}.")
    files.write_whole(summaries, (json.dumps(summary.to_dict(), indent=1) + "\n").encode())


def missing(job: Job, records: dict[str, Record]) -> tuple[int, list[str], list[str]]:
    """The manifest beside what journals say: -> items, those that are not done, and those of them that have failed.

    Raises Refused at the first problem of the manifest: of its line nobody knows whether it is done.
    """
    items, left, failed = 0, [], []
    for item in manifest.read(job.manifest, job.defaults, job.suffix, job.folder):
        if isinstance(item, Problem):
            raise Refused(f"{job.manifest}:{item.line}: {item.message}")
        if items == job.limit:
            break
        items += 1
        record = records.get(item.id)
        if record is None or record.status != "done" or not (job.folder / item.output).exists():
            left.append(item.id)
            failed += [item.id] if record is not None and record.status != "done" else []
    return items, left, failed


def merge_shards(job: Job) -> tuple[int, list[str], list[str]]:
    """Join the journals of all shards in journal.jsonl: -> what `missing` says then. Raises FileError, NotFound."""
    paths = sorted(job.folder.glob("journal-*-of-*.jsonl"))
    if not paths:
        raise Error(f"{job.folder}: holds no journals of shards (journal-0-of-8.jsonl, ...); check --output-dir")
    whole = job.folder / JOURNAL
    merge([*([whole] if whole.exists() else []), *paths], whole)
    return missing(replace(job, limit=None), known(job))


def join_outputs(job: Job) -> float:
    """Write one file of all outputs, in the manifest's order with its silences, and its subtitles: -> seconds.

    Raises Error where outputs are missing.
    """
    assert job.joined is not None
    _, left, _ = missing(job, known(job))
    if left:
        raise Error(
            f"{job.joined}: not written, since {len(left)} items are not done ({', '.join(left[:3])}, ...); run the "
            "same command again"
        )
    rate = job.rate or audio.MEL_RATE

    def parts() -> Iterable[joining.Part]:
        for item in job.items():
            path = job.folder / item.output
            cue = joining.Cue(0, _frames(path), pauses.without(item.text))
            yield joining.Part(path, item.silence_after_ms, (cue,))

    return joining.join(parts(), job.joined, job.kind, rate, True, job.subtitles) / rate


def _frames(path: Path) -> int:
    import soundfile

    try:
        return soundfile.info(str(path)).frames
    except (RuntimeError, OSError) as error:
        raise Error(f"{path}: cannot be read ({error}); remove it and run the same command again") from None
