"""Tensors on disk, by name, read one at a time: PyTorch .pth files and safetensors.

A .pth file is a zip of raw storages and a pickle that says how to cut tensors out of them. A pickle can run any code,
so ours allows exactly what rebuilding tensors needs, and refuses the rest by name.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message names the file, the tensor and what to do."""


class Tensor(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


Tensors = dict[str, Tensor]

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class _Storage(NamedTuple):
    dtype: np.dtype
    offset: int  # in the file, bytes
    size: int  # elements


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._path, self._archive, self._root = path, archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise CheckpointError(
            f"{self._path}: refused, its pickle asks for {module}.{name}, which is more than tensors need and could "
            "run code; save the state dict alone with torch.save"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size = pid
        entry = f"{self._root}data/{key}"
        try:
            info = self._archive.getinfo(entry)
        except KeyError:
            raise CheckpointError(f"{self._path}: truncated or damaged, {entry} is missing; download it again") from None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < size * dtype.itemsize:
            raise CheckpointError(f"{self._path}: damaged, {entry} is not a plain storage of {size} {dtype.name}")
        assert self._archive.fp is not None
        self._archive.fp.seek(info.header_offset)
        header = self._archive.fp.read(30)  # the local header's name and extra lengths differ from the directory's
        offset = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
        return _Storage(dtype, offset + int.from_bytes(header[28:30], "little"), size)

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
        path = self._path
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
        if offset + span > storage.size or any(s < 0 for s in strides):
            raise CheckpointError(f"{path}: damaged, a tensor of shape {tuple(shape)} lies outside its storage")

        def read() -> np.ndarray:
            at = storage.offset + offset * storage.dtype.itemsize
            flat = np.fromfile(path, storage.dtype, count=span, offset=at)
            return np.lib.stride_tricks.as_strided(flat, shape, [s * storage.dtype.itemsize for s in strides])

        return Tensor(tuple(shape), storage.dtype, read)


def read_pth(path: Path) -> Any:
    """The object in a PyTorch zip file, with every tensor as an unread `Tensor`.

    Raises FileNotFoundError, or CheckpointError when it is no such file, is cut short, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: not a PyTorch file (no data.pkl in the zip)")
            return _Unpickler(path, archive, pickles[0].removesuffix("data.pkl")).load()
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{path}: not a PyTorch zip file, or cut short ({path.stat().st_size} bytes); download it again"
        ) from None
    except (pickle.UnpicklingError, EOFError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: its pickle cannot be read ({error}); download it again") from error


def flatten(tree: Any, path: Path, prefix: str = "") -> Tensors:
    """A (nested) state dict as one dict of dotted names. What is neither dict nor tensor is an error that names it."""
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(tree).__name__}")
    flat: Tensors = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            flat |= flatten(value, path, f"{prefix}{name}.")
        else:
            raise CheckpointError(f"{path}: {prefix}{name} is {type(value).__name__}, not a tensor")
    return flat


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, unread. Raises FileNotFoundError or CheckpointError."""
    import json  # the header is read by hand: the library's numpy interface has no bfloat16 and no partial reads

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    total = path.stat().st_size
    damaged = CheckpointError(f"{path}: not a safetensors file, or cut short ({total} bytes); download it again")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if total < 8 or size > total - 8:
            raise damaged
        try:
            header = json.loads(file.read(size))
        except ValueError:
            raise damaged from None
    tensors: Tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if end > total or end - begin != dtype.itemsize * int(np.prod(shape)):
            raise damaged

        def read(dtype: np.dtype = dtype, shape: tuple = shape, begin: int = begin) -> np.ndarray:
            return np.fromfile(path, dtype, count=int(np.prod(shape)), offset=begin).reshape(shape)

        tensors[name] = Tensor(shape, dtype, read)
    return tensors
