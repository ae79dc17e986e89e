"""Checkpoint files made by hand, byte by byte: no test needs PyTorch, and files can be wrong in any way."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from indextts_jax.convert.tensors import Tensor, read_pth, read_safetensors

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
SAFETENSORS = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int64): "I64"}


class Name(NamedTuple):
    """What a pickle asks for by name, "module.name"."""

    name: str


class Call(NamedTuple):
    """What a pickle calls, with which arguments, and the attributes it gives to the result."""

    name: str
    arguments: tuple
    state: Any = None


class Storage(NamedTuple):
    """A storage, as torch.save refers to it."""

    kind: str
    key: str
    size: int


class Raw(NamedTuple):
    """Instructions as they are."""

    instructions: bytes


def instructions(value: Any, storages: dict[str, np.ndarray]) -> bytes:
    """The pickle instructions that make `value`, as torch.save writes them; arrays become tensors over `storages`.

    Views of one array share its storage, with their offset and strides.
    """

    def of(value: Any) -> bytes:
        match value:
            case Raw():
                return value.instructions
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int() if -(2**31) <= value < 2**31:
                return b"J" + struct.pack("<i", value)
            case int():
                return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
            case Name():
                return b"c%s\n%s\n" % tuple(part.encode() for part in value.name.rsplit(".", 1))
            case Call():
                made = of(Name(value.name)) + of(value.arguments) + b"R"
                return made if value.state is None else made + of(value.state) + b"b"
            case Storage():
                return of(("storage", Name(f"torch.{value.kind}"), value.key, "cpu", value.size)) + b"Q"
            case tuple():
                return b"(" + b"".join(map(of, value)) + b"t"
            case list():
                return b"](" + b"".join(map(of, value)) + b"e"
            case dict():
                return b"}(" + b"".join(of(k) + of(v) for k, v in value.items()) + b"u"
            case np.ndarray():
                return of(tensor(value))
        raise TypeError(type(value))

    def tensor(array: np.ndarray) -> Call:
        base = array if array.base is None else array.base
        assert isinstance(base, np.ndarray)
        key = next((key for key, known in storages.items() if known is base), str(len(storages)))
        storages[key] = base
        offset = (array.ctypes.data - base.ctypes.data) // array.itemsize
        strides = tuple(stride // array.itemsize for stride in array.strides)
        place = (Storage(STORAGES[array.dtype], key, base.size), offset, array.shape, strides)
        return Call("torch._utils._rebuild_tensor_v2", (*place, False, Call("collections.OrderedDict", ())))

    return of(value)


def write_pth(
    path: Path, value: Any, entries: dict[str, bytes | None] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """A PyTorch file of `value`. `entries` replace or (None) remove entries of the zip, e.g. {"byteorder": b"big"}."""
    storages: dict[str, np.ndarray] = {}
    pickled = b"\x80\x02" + instructions(value, storages) + b"."
    contents: dict[str, bytes | None] = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    contents |= {f"data/{key}": array.tobytes() for key, array in storages.items()}
    path.unlink(missing_ok=True)  # it may be a link
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (contents | (entries or {})).items():
            if content is not None:
                archive.writestr(f"archive/{name}", content)
    return path


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], **entries: Any) -> Path:
    """A safetensors file; `entries` are put into its header as they are."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": SAFETENSORS[array.dtype], "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    text = json.dumps(header | entries).encode()
    path.unlink(missing_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def arrays(tree: Any) -> Any:
    """What a file holds, with its tensors read."""
    if isinstance(tree, Tensor):
        array = np.empty(tree.shape, tree.dtype)  # with a storage of its own
        array[...] = tree.read()
        return array
    return {name: arrays(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def linked(folder: Path, to: Path) -> Path:
    """A copy of a model folder in links, so that single files of it can be replaced."""
    shutil.copytree(folder, to, copy_function=lambda source, target: Path(target).symlink_to(source))
    return to


def change(path: Path, how: Any) -> None:
    """Replace a file by one whose contents `how` has changed in place."""
    pytorch = path.suffix != ".safetensors"
    contents = arrays(read_pth(path) if pytorch else read_safetensors(path))
    how(contents)
    write_pth(path, contents) if pytorch else write_safetensors(path, contents)


def ones(shape: list[int], dtype: str, file: str) -> Tensor:
    """A tensor of any size that takes no memory."""
    array = np.broadcast_to(np.ones((), dtype), shape)
    return Tensor(Path(file), tuple(shape), array.dtype, lambda: array)
