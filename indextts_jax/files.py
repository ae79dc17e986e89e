"""Files and folders that are whole or not there: written under a temporary name, then renamed into place.

A temporary name is `.NAME.PROCESS.RANDOM.tmp` (a file) or `.partial` (a folder) beside NAME. While its process lives it
holds a lock on it; what can be locked was left by a process that was killed, and is removed when NAME is next written.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from indextts_jax import interrupts
from indextts_jax.errors import Error, NotFound

_LONGEST_NAME = 200  # bytes; with what a temporary name adds, within the 255 that file systems allow
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileError(Error):
    """A file or folder that cannot be read or written; the message says which and what to do."""


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises NotFound or FileError, also where it would wait: for a pipe's writer."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileError(f"{path}: is no regular file; give a file")
        return open(file, "rb")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({reason(error)}); check its permissions") from None


def read(path: Path, most: int) -> bytes:
    """The content of a small file, of at most `most` bytes. Raises NotFound or FileError."""
    try:
        with open_file(path) as file:
            content = file.read(most + 1)
    except NotFound:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({reason(error)}); check its permissions") from None
    if len(content) > most:
        raise FileError(f"{path}: is larger than {most:,} bytes, too large for what it should hold; check the path")
    return content


def reason(error: OSError) -> str:
    """What went wrong, without the name of the file: "No space left on device"."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears only once it is complete, on the disk too; a failure leaves what was there before.

    Raises FileError.
    """
    with _whole_file(path) as temporary:
        temporary.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty temporary file beside `path` that becomes `path` when the block ends, and is removed when it fails.

    For what is written piece by piece; else as `write_whole`. Raises FileError.
    """
    with _whole_file(path) as temporary:
        yield temporary.path


@contextmanager
def _whole_file(path: Path) -> "Iterator[_Temporary]":
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not path.is_symlink() and path.exists() and not (path.is_file() or path.is_dir()):
        raise FileError(f"cannot write {path}: it is a device or a pipe; give the name of a file")
    _sweep(path, "tmp")
    temporary = _Temporary(path, "tmp")
    try:
        temporary.make()
        yield temporary
        temporary.sync()
        interrupts.check()
        os.replace(temporary.path, path)
        sync_folder(path.parent)
    except NotFound:  # of another file, that the block needs
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}; choose another place or free some space") from error
    finally:
        temporary.remove()


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` when the block ends, and is removed when it fails.

    All that is in it is on the disk before it has its name. Raises FileError when `target` exists, is being written by
    another process or cannot be written, NotFound when its folder is missing.
    """
    exists = "exists already; remove it or choose another folder"
    if os.path.lexists(target):
        raise FileError(f"{target}: {exists}")
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such folder, so {target.name} cannot be written there; create it first")
    if writer := _sweep(target, "partial"):
        raise FileError(f"{target}: is being written by another process ({writer}); wait for it or choose another name")
    temporary = _Temporary(target, "partial")
    try:
        try:
            temporary.make()
        except OSError as error:
            raise FileError(
                f"{target.parent}: {target.name} cannot be written there ({reason(error)}); choose another place"
            ) from None
        try:
            yield temporary.path
            interrupts.check()
            _sync(temporary.path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise FileError(f"{target}: cannot be written ({reason(error)}); free some space") from error
        try:
            os.rename(temporary.path, target)
        except OSError as error:
            why = exists if os.path.lexists(target) else f"cannot be written ({reason(error)}); choose another place"
            raise FileError(f"{target}: {why}") from None
        sync_folder(target.parent)
    finally:
        temporary.remove()


def make_folder(path: Path) -> None:
    """Make a folder if it is not there. Raises NotFound where the one around it is missing, and FileError."""
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent}: no such folder, so {path.name} cannot be made there; create it first")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be made ({reason(error)}); choose another place") from None


# ---- temporary files and folders ------------------------------------------------------------------------------------


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    return target.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]


class _Temporary:
    """A file ("tmp") or folder ("partial") beside `target`, locked from `make` until `remove`."""

    def __init__(self, target: Path, kind: str):
        self._target, self._kind = target, kind
        self._lock: int | None = None
        self.path = target  # until it is made

    def make(self) -> None:
        """Make it, empty. Raises OSError."""
        while self._lock is None:
            with interrupts.shielded():
                name = f".{_prefix(self._target)}.{os.getpid()}.{secrets.token_hex(8)}.{self._kind}"
                self.path = self._target.parent / name
                if self._kind == "partial":
                    self.path.mkdir()
                    self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                else:
                    self._lock = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                _open[self] = os.getpid()
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    swept = not os.path.lexists(self.path)  # by one that was faster
                except BlockingIOError:
                    swept = True
                except OSError:  # a file system without locks: then nobody sweeps, either
                    swept = False
                if swept:
                    self.remove()

    def write(self, content: bytes) -> None:
        """Write a file's content. Raises OSError."""
        assert self._lock is not None
        left = memoryview(content)
        while left:
            left = left[os.write(self._lock, left[: 1 << 24]) :]  # in pieces, so that a signal is not kept waiting

    def sync(self) -> None:
        """Have a file's content on the disk, whoever wrote it. Raises OSError."""
        assert self._lock is not None
        os.fsync(self._lock)

    def remove(self) -> None:
        """Remove what is there of it under its temporary name, if anything, and unlock it."""
        with interrupts.shielded():
            if self in _open:
                for _ in range(50):  # other threads may still be writing there
                    _remove(self.path)
                    if not os.path.lexists(self.path):
                        del _open[self]
                        break
                    time.sleep(0.02)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


_open: dict[_Temporary, int] = {}  # and the process that made it: a fork does not own what its parent made


def remove_temporary() -> None:
    """Remove every temporary file and folder that this process has open; nothing more can be written to them."""
    for temporary, process in list(_open.items()):
        for _ in range(100 if process == os.getpid() else 0):
            if not os.path.lexists(temporary.path):
                break
            _remove(temporary.path)


atexit.register(remove_temporary)
interrupts.before_leaving(remove_temporary)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _sweep(target: Path, kind: str) -> int:
    """Remove what killed processes left of `target`; -> a process that is writing it now, or 0."""
    pattern = re.compile(rf"\.{re.escape(_prefix(target))}\.(\d+)\.[0-9a-f]{{16}}\.{kind}")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return 0
    writer = 0
    for match in filter(None, map(pattern.fullmatch, names)):
        path = target.parent / match[0]
        try:
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone meanwhile, or not of our making
            continue
        try:
            found = os.fstat(lock)
            expected = stat.S_ISDIR(found.st_mode) if kind == "partial" else stat.S_ISREG(found.st_mode)
            if expected and found.st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        except BlockingIOError:
            writer = int(match[1])
        except OSError:  # a file system without locks
            continue
        finally:
            os.close(lock)
    return writer


# ---- onto the disk --------------------------------------------------------------------------------------------------


def _sync(folder: Path) -> None:
    """Have all that is in a folder on the disk. Raises OSError."""
    for parent, _, names in os.walk(folder):
        for name in names:
            file = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where its file system can promise that. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)
