"""Files and folders that are whole or not there: written under a temporary name, then renamed into place."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indextts_jax.errors import Error, NotFound


class FileError(Error):
    """A file or folder that cannot be written; the message says which and what to do."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears only once it is complete; a failure leaves what was there before. Raises FileError."""
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; choose another place or free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` when the block ends, and is removed when it fails.

    Raises FileError when `target` exists or nothing can be written there, NotFound when its folder is missing.
    """
    if os.path.lexists(target):
        raise FileError(f"{target}: exists already; remove it or choose another folder")
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such folder, so {target.name} cannot be written there")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise FileError(f"{target.parent}: {target.name} cannot be written there ({error.strerror})") from None
    try:
        partial.chmod(0o755)
        yield partial
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
