"""The writer of .pth files: our reader, which test_tensors.py holds to PyTorch's own files, reads what it writes."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from indextts_jax.convert.tensors import read_pth
from indextts_jax.convert.writer import Writer
from tests.files import STORAGES


def written(path, arrays):
    with Writer(path) as file:
        file.finish({"net": {name: file.add(array) for name, array in arrays.items()}, "none": {}})
    return path


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_dtype_and_shape_is_read_back(tmp_path, dtype):
    shapes = {"matrix": (3, 2), "vector": (5,), "volume": (2, 3, 4), "scalar": (), "empty": (0, 4), "one": (1, 1)}
    arrays = {name: np.arange(np.prod(shape)).reshape(shape).astype(dtype) for name, shape in shapes.items()}
    arrays |= {"turned": arrays["matrix"].T, "every other": arrays["vector"][::2]}
    found = read_pth(written(tmp_path / "x.pth", arrays))
    assert found["none"] == {}
    assert list(found["net"]) == list(arrays)
    for name, array in arrays.items():
        tensor = found["net"][name]
        assert (tensor.shape, tensor.dtype) == (array.shape, dtype)
        assert tensor.read().tobytes() == array.tobytes()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.zeros(2, np.int64)}
    first = written(tmp_path / "x.pth", arrays).read_bytes()
    (tmp_path / "there").mkdir()
    assert written(tmp_path / "there" / "y.pth", arrays).read_bytes() == first
    assert written(tmp_path / "x.pth", arrays | {"b": np.ones(2, np.int64)}).read_bytes() != first


def test_entries_are_those_of_pytorch(tmp_path):
    """Uncompressed, without a time, every storage at a multiple of 64 bytes."""
    path = written(tmp_path / "x.pth", {name: np.ones(n, np.uint8) for n, name in enumerate("abcd")})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [f"archive/data/{n}" for n in range(4)]
        assert archive.namelist() == [*names, "archive/data.pkl", "archive/byteorder", "archive/version"]
        assert (archive.read("archive/byteorder"), archive.read("archive/version")) == (b"little", b"3\n")
        for info in archive.infolist():
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
            begin = info.header_offset + 30 + sum(content[info.header_offset + at] for at in (26, 28))
            assert begin % 64 == 0
            assert content[begin : begin + info.file_size] == archive.read(info)


def test_what_no_file_can_hold_is_refused(tmp_path):
    with Writer(tmp_path / "x.pth") as file:
        with pytest.raises(TypeError, match="tensors of complex64"):
            file.add(np.ones(2, np.complex64))
        with pytest.raises(TypeError, match="tensors of float8"):
            file.add(np.ones(2, ml_dtypes.float8_e4m3fn))
        with pytest.raises(TypeError, match="cannot hold list"):
            file.finish({"x": [1]})
