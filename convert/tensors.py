"""Tensors on disk, by name, read one at a time: PyTorch .pth files and safetensors.

A .pth file is a zip of raw storages and a pickle that says how to cut tensors out of them. A pickle can run any code,
so ours is never run: its instructions are followed one by one, only those that make tensors and plain values are known,
and of what it asks for by name nothing is imported or called.
"""

import json
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from indextts_jax.errors import Error, NotFound, short


class CheckpointError(Error):
    """A checkpoint that cannot be converted; the message names the file, the tensor and what to do."""


class Tensor(NamedTuple):
    """A tensor that has not been read yet."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


Tensors = dict[str, Tensor]

STORAGES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.storage.UntypedStorage": np.uint8,
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
_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETER = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_DICT = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
# Checkpoints of a training run also carry the state of the optimizer, which nobody reads: these stay mere names.
_PLAIN = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple")
_NAMES = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN),
    *(f"torch.{name}" for name in ("bool", "bfloat16", "float16", "float32", "float64")),
    *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter"),
    *("torch.serialization._get_layout", "_codecs.encode"),
}
_ADMITTED = STORAGES.keys() | _TENSOR | _PARAMETER | _DICT | _NAMES

# What zipfile, pickletools and the code below raise for a file that makes no sense.
_NONSENSE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, AttributeError, LookupError, TypeError, ValueError,
    ArithmeticError, RuntimeError, OSError,
)  # fmt: skip
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how PyTorch's files began before version 1.6
_MOST_DIMENSIONS = 32
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


class _Name(NamedTuple):
    """Something a pickle asks for by name, or what calling that would have made."""

    name: str


class _Storage(NamedTuple):
    dtype: np.dtype
    offset: int  # in the file, bytes
    size: int  # elements


class _Pickle:
    """The instructions that torch.save writes for dicts of tensors and plain values; anything else is refused."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        self._path, self._archive, self._root = path, archive, root

    def load(self) -> Any:
        """The object that the instructions describe. Raises CheckpointError, or one of `_NONSENSE`."""
        stack: list[Any] = []
        marks: list[int] = []  # how high the stack was
        memo: dict[int, Any] = {}
        value: Any

        def pop(count: int | None = None) -> list[Any]:
            """The last `count` values, or those since the last mark."""
            at = marks.pop() if count is None else len(stack) - count
            values = stack[at:]
            del stack[at:]
            return values

        for instruction, value, _ in pickletools.genops(self.entry("data.pkl")):
            match instruction.name:
                case "PROTO" | "FRAME":
                    pass
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(instruction.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(value)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES":
                    stack.append(value)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(pop()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(int(instruction.name[-1]))))
                case "APPEND" | "APPENDS" | "ADDITEMS":
                    values = pop(1 if instruction.name == "APPEND" else None)
                    stack[-1].extend(values)
                case "SETITEM" | "SETITEMS":
                    values = pop(2 if instruction.name == "SETITEM" else None)
                    _update(stack[-1], values[::2], values[1::2])
                case "BINPUT" | "LONG_BINPUT":
                    memo[value] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "GLOBAL":
                    stack.append(self._name(*value.split(" ")))
                case "STACK_GLOBAL":
                    stack.append(self._name(*pop(2)))
                case "REDUCE":
                    stack.append(self._call(*pop(2)))
                case "BUILD":  # attributes, such as the version numbers that a state dict carries
                    pop(1)
                case "BINPERSID":
                    stack.append(self._storage(*stack.pop()))
                case "STOP":
                    return stack.pop()
                case name:
                    raise CheckpointError(
                        f"{self._path}: refused, its pickle has the instruction {name}, which tensors do not need; "
                        "save the state dict alone with torch.save"
                    )
        raise EOFError

    def entry(self, name: str) -> bytes:
        """A whole entry of the archive."""
        return self._archive.read(self._plain(name))

    def _plain(self, name: str) -> zipfile.ZipInfo:
        """Where an entry is. Only uncompressed ones: they are no larger than the file, a compressed one could be."""
        try:
            info = self._archive.getinfo(self._root + name)
        except KeyError:
            raise CheckpointError(f"{self._path}: damaged, its {name!r} is missing; download it again") from None
        whole = info.compress_size == info.file_size <= self._path.stat().st_size - info.header_offset
        if info.compress_type != zipfile.ZIP_STORED or not whole:
            raise CheckpointError(f"{self._path}: damaged, its {name!r} is compressed or cut short; download it again")
        return info

    def _name(self, module: str, name: str) -> _Name:
        if (full := ".".join((module, name))) not in _ADMITTED:
            raise CheckpointError(
                f"{self._path}: refused, its pickle asks for {short(full)}, which is more than tensors need and could "
                "run code; save the state dict alone with torch.save"
            )
        return _Name(full)

    def _call(self, function: _Name, arguments: tuple) -> Any:
        """What calling `function` would make, as far as it matters to us."""
        if function.name in _TENSOR:
            return self._tensor(*arguments[:4])
        if function.name in _PARAMETER:
            return arguments[0]
        if function.name in _DICT:  # of nothing, of a dict, or of a type and perhaps a dict
            if not all(isinstance(argument, dict | _Name) for argument in arguments):
                raise TypeError("a dict of something else")
            return next((argument for argument in arguments if isinstance(argument, dict)), {})
        return function

    def _storage(self, _: str, kind: _Name, key: str, __: str, size: int) -> _Storage:
        dtype = np.dtype(STORAGES[kind.name])
        info = self._plain("data/" + key)
        file = self._archive.fp
        assert file is not None
        file.seek(info.header_offset)
        header = file.read(30)  # the local header's name and extra lengths differ from the directory's
        offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        length = size * dtype.itemsize
        if not 0 <= length <= info.file_size or offset + length > self._path.stat().st_size:
            raise CheckpointError(f"{self._path}: damaged, its {'data/' + key!r} is too short; download it again")
        return _Storage(dtype, offset, size)

    def _tensor(self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
        path, shape, strides = self._path, tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if not all(isinstance(n, int) for n in numbers) or len(shape) > _MOST_DIMENSIONS:
            raise TypeError("a tensor of no shape")
        count = math.prod(shape)
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else 0
        # A tensor larger than its storage repeats elements, which no weight does; it could claim any size.
        if min(numbers) < 0 or offset + span > storage.size or count > storage.size:
            raise CheckpointError(f"{path}: damaged, a tensor {shape} does not fit into its storage; download it again")
        width = storage.dtype.itemsize

        def read() -> np.ndarray:
            flat = _read(path, storage.dtype, span, storage.offset + offset * width)
            return np.lib.stride_tricks.as_strided(flat, shape, [s * width for s in strides])

        return Tensor(path, shape, storage.dtype, read)


def _update(target: Any, names: Sequence[Any], values: Sequence[Any]) -> None:
    if not isinstance(target, dict) or not all(isinstance(name, str | bytes | int | float | None) for name in names):
        raise TypeError("a dict whose names are not plain")
    target.update(zip(names, values, strict=True))


def read_pth(path: Path) -> Any:
    """The object in a PyTorch zip file, with every tensor as an unread `Tensor`.

    Raises NotFound, or CheckpointError when it is no such file, is cut short, or holds more than tensors.
    """
    return _parsed(path, _parse_pth, "PyTorch")


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, unread. Raises NotFound or CheckpointError."""
    return _parsed(path, _parse_safetensors, "safetensors")


def flatten(state: Any, path: Path, prefix: str = "") -> Tensors:
    """A state dict as tensors by name. What is neither a dict nor, inside it, a tensor is an error that names it."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, found {type(state).__name__}")
    if not state:
        raise CheckpointError(f"{path}: holds no tensors; download it again")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {prefix}{str(name)[:100]} is {type(value).__name__}, not a tensor")
    return {f"{prefix}{name}": value for name, value in state.items()}


def _parsed(path: Path, parse: Callable[[Path, BinaryIO, int], Any], kind: str) -> Any:
    if not path.is_file():
        raise NotFound(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    size = path.stat().st_size
    try:
        opened = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    with opened as file:
        try:
            return parse(path, file, size)
        except CheckpointError:
            raise
        except _NONSENSE as error:
            raise CheckpointError(
                f"{path}: not a {kind} file, or damaged or cut short ({size} bytes); download it again"
            ) from error


def _parse_pth(path: Path, file: BinaryIO, size: int) -> Any:
    if file.read(len(_BEFORE_ZIP)) == _BEFORE_ZIP:
        raise CheckpointError(f"{path}: of a PyTorch before 1.6; load it and save it again with a newer torch.save")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (root,) = (name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl"))
        pickled = _Pickle(path, archive, root)
        if f"{root}byteorder" in names and pickled.entry("byteorder") != b"little":
            raise CheckpointError(f"{path}: of a big-endian machine; save it again on a little-endian one")
        return pickled.load()


def _parse_safetensors(path: Path, file: BinaryIO, size: int) -> Tensors:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError("the header is longer than the file")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    spans = []
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS:
            raise CheckpointError(f"{path}: {name[:100]} is of dtype {short(entry['dtype'])}, which is not supported")
        dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in (begin, *shape)) or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"{name} has no shape")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} does not fill its bytes")
        spans.append((begin, end))
        tensors[name] = Tensor(path, shape, dtype, partial(_read_shaped, path, dtype, shape, 8 + length + begin))
    at = 0
    for begin, end in sorted(spans):  # the format allows neither gaps nor overlaps
        if begin != at:
            raise ValueError("a gap or an overlap")
        at = end
    if at != size - 8 - length:
        raise ValueError("longer or shorter than its header says")
    return tensors


def _read_shaped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    return _read(path, dtype, math.prod(shape), offset).reshape(shape)


def _read(path: Path, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
    try:
        flat = np.fromfile(path, dtype, count=count, offset=offset)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its disk") from None
    if flat.size != count:
        raise CheckpointError(f"{path}: became shorter while it was read; convert again")
    return flat
