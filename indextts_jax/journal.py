"""The journal of a job: one line of JSON per item that is done or has failed, on the disk before the next one.

    {"format": "indextts-jax journal 1"}
    {"id": "a", "key": "3f...", "status": "done", "attempts": 1, "output": "a.wav", "time": 1700000000.5, ...}

Lines are only ever appended, and the last one of an id counts. A process that is killed leaves at most a torn last
line, which is dropped; a file that is damaged anywhere else is refused, for what it says cannot be trusted.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from indextts_jax import files, interrupts
from indextts_jax.errors import NotFound
from indextts_jax.files import FileError, reason

log = logging.getLogger(__name__)

_HEADER = b'{"format": "indextts-jax journal 1"}\n'
_LONGEST = 1 << 24  # bytes of a line


class Record(NamedTuple):
    """What is kept in memory of an item's last entry."""

    key: str
    status: str
    attempts: int
    output: str | None


def key(**parts: Any) -> str:
    """A digest of all that determines an item's audio: values that JSON knows; the order of their names is no matter.

    1 and 1.0 are two values, a tuple and a list are one.
    """
    content = json.dumps(parts, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """A journal that this process alone appends to; `records` holds the last entry of each id."""

    def __init__(self, path: Path, file: int, end: int, records: dict[str, Record]):
        """Use `open`."""
        self.path, self.records = path, records
        self._file, self._end = file, end  # of the last whole line
        self._torn = False  # something may stand past it
        self._lock = threading.Lock()

    @staticmethod
    def open(path: Path) -> "Journal":
        """Open a journal, or make one; nobody else can until it is closed.

        Raises FileError when it is open elsewhere, cannot be written, is damaged or is no journal.
        """
        try:
            file = _locked(path)
        except OSError as error:
            raise FileError(f"{path}: cannot be written ({reason(error)}); choose another folder") from None
        try:
            records: dict[str, Record] = {}
            end = 0
            with open(file, "rb", closefd=False) as opened:
                for entry, after in _entries(opened, path):
                    end = after
                    if entry:
                        records[entry["id"]] = _record(entry)
            journal = Journal(path, file, end, records)
            journal._repair()
        except BaseException:
            os.close(file)
            raise
        return journal

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry, onto the disk: `id`, `key`, `status`, `attempts`, `output` (or None) and whatever else.

        `time`, the seconds since 1970, is added where it is missing. Raises FileError when it cannot be written; the
        journal then is what it was before, and a later append may succeed. Threads may share a journal.
        """
        entry = {"time": round(time.time(), 3)} | entry
        record, line = _record(entry), _line(entry)
        if len(line) > _LONGEST:
            raise ValueError(f"an entry of {len(line)} bytes")
        with self._lock, interrupts.shielded():
            try:
                self._write(line)
            except OSError as error:
                with contextlib.suppress(OSError):  # then the next append tries again, or the next process
                    self._truncate()
                raise FileError(f"{self.path}: cannot be written ({reason(error)}); free some space") from error
            self.records[entry["id"]] = record

    def close(self) -> None:
        """Let others have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @staticmethod
    def read(path: Path) -> Iterator[dict[str, Any]]:
        """The entries in their order, whether or not a job appends to them now. Raises NotFound or FileError."""
        try:
            with files.open_file(path) as file:
                yield from (entry for entry, _ in _entries(file, path) if entry)
        except NotFound:
            raise
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({reason(error)}); check its permissions") from None

    def _repair(self) -> None:
        """Drop a torn last line, and begin a journal that is new."""
        try:
            if os.fstat(self._file).st_size > self._end:
                log.warning("%s: its last line was torn when a job was killed; that item is done again", self.path)
                self._truncate()
            if not self._end:
                self._write(_HEADER)
                files.sync_folder(self.path.parent)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({reason(error)}); free some space") from error

    def _write(self, line: bytes) -> None:
        """Write a line at the end, at once where the system does that. Raises OSError."""
        if self._torn:
            self._truncate()
        self._torn = True
        done = 0
        while done < len(line):
            done += os.pwrite(self._file, line[done:], self._end + done)
        os.fsync(self._file)
        self._end, self._torn = self._end + done, False

    def _truncate(self) -> None:
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        self._torn = False


def merge(paths: Iterable[Path], out: Path) -> int:
    """Join the journals of shards in one, written whole, with one entry per id; -> how many. It may be one of them.

    Of one journal the last entry of an id counts, and among journals the one with the latest `time`; at the same time
    the one with more attempts, then that of the later path. One line per id is held in memory. Raises NotFound or
    FileError, also when a job appends to `out` now.
    """
    lines: dict[str, tuple[tuple[float, int], bytes]] = {}
    with Journal.open(out) if os.path.lexists(out) else contextlib.nullcontext():
        for path in paths:
            own: dict[str, tuple[tuple[float, int], bytes]] = {}
            for entry in Journal.read(path):
                own[entry["id"]] = (entry["time"], entry["attempts"]), _line(entry)
            for id, found in own.items():
                if id not in lines or found[0] >= lines[id][0]:
                    lines[id] = found
        files.write_whole(out, _HEADER + b"".join(line for _, line in lines.values()))
    return len(lines)


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate becomes what JSON calls it


def _record(entry: dict[str, Any]) -> Record:
    """What is kept of an entry. Raises KeyError, TypeError or ValueError for what is none."""
    record = Record(entry["key"], entry["status"], entry["attempts"], entry["output"])
    values, kinds = (entry["id"], entry["time"], *record), (str, int | float, str, str, int, str | None)
    for value, kind in zip(values, kinds, strict=True):
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} in an entry of a journal")
    return record._replace(status=intern(record.status))


def _entries(file: BinaryIO, path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole line of a journal, the first one as {}, and where it ends. Raises FileError."""
    first = file.readline(len(_HEADER))
    if first != _HEADER:
        if _HEADER.startswith(first) or not first.strip(b"\0"):  # zeros: of a file that lost its content
            return
        raise FileError(f"{path}: is no journal, or of another version; move it away, or choose another folder")
    end = len(first)
    yield {}, end
    number = 1
    while line := file.readline(_LONGEST):
        number += 1
        if not line.endswith(b"\n") and len(line) < _LONGEST:
            return
        try:
            entry = json.loads(line)
            _record(entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            if not file.read(1):
                return
            raise FileError(
                f"{path} line {number}: is damaged; remove that line, or move the file away to begin anew"
            ) from None
        end += len(line)
        yield entry, end


def _locked(path: Path) -> int:
    """Open a file, made if need be, and lock it. Raises OSError, or FileError when another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileError(f"{path}: is no regular file; choose another folder")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileError(
                    f"{path}: another job writes to it now; wait for it, or choose another folder"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                log.warning("%s: cannot be locked there; see that no second job writes to it", path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was replaced before it was locked
