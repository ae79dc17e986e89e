"""PyTorch files, written without it: the zip of storages and the pickle that `torch.load(weights_only=True)` reads.

The same content gives the same bytes: entries carry no time, and nothing depends on where the file stands.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from indextts_jax.convert.tensors import STORAGES

_KINDS = {np.dtype(dtype): kind for kind, dtype in STORAGES.items() if kind != "torch.storage.UntypedStorage"}
_ROOT = "archive"  # the folder of all entries
_ALIGNMENT = 64  # bytes, of a storage in the file: what is mapped into memory then lies well


class Stored(NamedTuple):
    """A tensor that has been written."""

    key: str  # of its storage
    dtype: np.dtype
    shape: tuple[int, ...]


class Writer:
    """A PyTorch file that is being written: `add` each tensor, then `finish` with the dict that holds them.

    A tensor need not stay in memory once it is added. Raises OSError where the disk is full.
    """

    def __init__(self, path: Path):
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._count = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._archive.close()

    def add(self, array: np.ndarray) -> Stored:
        """Write a tensor's storage. Raises TypeError for a dtype that PyTorch has not."""
        stored = Stored(str(self._count), array.dtype, array.shape)
        if stored.dtype not in _KINDS:
            raise TypeError(f"a PyTorch file cannot hold tensors of {stored.dtype}")
        self._entry(f"data/{stored.key}", array.ravel().view(np.uint8).data)
        self._count += 1
        return stored

    def finish(self, state: Mapping[str, Any]) -> None:
        """Write what holds the tensors: dicts of dicts of `Stored`."""
        self._entry("data.pkl", b"\x80\x02" + _pickled(state) + b".")
        self._entry("byteorder", b"little")
        self._entry("version", b"3\n")

    def _entry(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # of 1980, without attributes
        info.create_system = 0
        file = self._archive.fp
        assert file is not None
        gap = -(file.tell() + 30 + len(info.filename) + 4) % _ALIGNMENT  # the header, the name, the head of `extra`
        info.extra = b"FB" + struct.pack("<H", gap) + b"Z" * gap  # as PyTorch fills it
        self._archive.writestr(info, content)


def _pickled(value: Any) -> bytes:
    """The pickle instructions, of protocol 2, that make `value`."""
    match value:
        case Stored():
            kind, size = _KINDS[value.dtype], int(np.prod(value.shape, dtype=np.int64))
            strides = [int(np.prod(value.shape[i + 1 :], dtype=np.int64)) for i in range(len(value.shape))]
            storage = _tuple(_pickled("storage"), _named(kind), *map(_pickled, (value.key, "cpu", size))) + b"Q"
            shape, steps = _tuple(*map(_pickled, value.shape)), _tuple(*map(_pickled, strides))
            hooks = _named("collections.OrderedDict") + b")R"
            arguments = _tuple(storage, _pickled(0), shape, steps, b"\x89", hooks)
            return _named("torch._utils._rebuild_tensor_v2") + arguments + b"R"
        case str():
            return b"X" + struct.pack("<I", len(text := value.encode())) + text
        case int() if 0 <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case Mapping():
            return b"}(" + b"".join(_pickled(name) + _pickled(part) for name, part in value.items()) + b"u"
    raise TypeError(f"a PyTorch file cannot hold {type(value).__name__}")


def _named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"
