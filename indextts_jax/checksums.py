"""Checksums of the files of a folder: what the disk has changed since they were written is found.

They are kept in the folder as checksums.json: name -> [bytes, CRC-32]. That finds every damage to a few neighbouring
bytes and all but one in 4e9 of others, at 3 GB/s; it is no protection from someone who changes files on purpose.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from indextts_jax import files, interrupts
from indextts_jax.errors import Error

NAME = "checksums.json"
_MOST_BYTES = 16_000_000  # of checksums.json
_BLOCK = 1 << 20
_AGAIN, _PERMISSIONS = "convert the model again", "check its permissions"


def write(folder: Path, paths: Iterable[Path]) -> None:
    """Keep the checksums of some files inside a folder. Raises OSError."""
    found = {path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)] for path in sorted(paths)}
    (folder / NAME).write_text(_text(found), encoding="ascii")


def problems(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the files of a folder, or with these of them: a line for each, which names it."""
    kept = folder / NAME
    try:
        content = files.read(kept, _MOST_BYTES)
        found = json.loads(content)
        entries = {str(name): (int(size), int(checksum)) for name, (size, checksum) in found.items()}
        if content.decode() != _text(found) or not all(map(_is_inside, entries)):
            raise ValueError("it was changed")
    except Error as error:
        what, _, advice = str(error).rpartition("; ")
        return [f"{what}; {advice if advice == _PERMISSIONS else _AGAIN}"]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return [f"{kept}: damaged; {_AGAIN}"]
    missed = [f"{folder / name}: has no checksum; {_AGAIN}" for name in names or () if name not in entries]
    wrong = {name: _wrong(folder / name, *entries[name]) for name in entries if names is None or name in names}
    return missed + [f"{folder / name}: {what}" for name, what in wrong.items() if what]


def _text(entries: object) -> str:
    return json.dumps(entries, indent=0) + "\n"


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _wrong(path: Path, size: int, checksum: int) -> str | None:
    try:
        if not path.is_file():
            return f"is missing; {_AGAIN}"
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes, but {size} were written; {_AGAIN}"
        if _checksum(path) != checksum:
            return f"damaged, its content is not what was written; {_AGAIN}"
    except OSError as error:
        advice = _PERMISSIONS if isinstance(error, PermissionError) else _AGAIN
        return f"cannot be read ({files.reason(error)}); {advice}"
    return None


def _checksum(path: Path) -> int:
    checksum, block = 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            checksum = zlib.crc32(block[:read], checksum)
            interrupts.check()
    return checksum
