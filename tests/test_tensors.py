"""The readers of .pth and safetensors files: what they read, what they refuse, and that nothing in a file runs."""

import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from indextts_jax.convert.tensors import CheckpointError, flatten, read_pth, read_safetensors
from tests.files import STORAGES, Call, Name, Raw, Storage, arrays, instructions, write_pth, write_safetensors

TENSOR = "torch._utils._rebuild_tensor_v2"
ORDERED = Call("collections.OrderedDict", ())


def matrix() -> np.ndarray:
    return np.arange(30, dtype=np.float32).reshape(6, 5).copy()


def refusal(path: Path, read: Any = read_pth) -> str:
    """The message with which a file is refused: one line that begins with the file."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


# ---- what PyTorch and the safetensors library wrote ------------------------------------------------------------------


def test_pytorch_files(tiny):
    gpt = read_pth(tiny.folder / "gpt.pth")
    assert len(gpt) == 227
    assert {tensor.dtype for tensor in gpt.values()} == {np.dtype(np.float32)}
    assert gpt["mel_head.weight"].shape == (130, 96)
    bias = gpt["mel_head.bias"].read()
    assert bias[129] == -20.0
    assert np.abs(np.delete(bias, 129)).max() < 1

    s2mel = read_pth(tiny.folder / "s2mel.pth")
    assert set(s2mel) == {"net", "optimizer", "scheduler", "iters", "epoch"}
    assert {part: len(tensors) for part, tensors in s2mel["net"].items()} == {
        "cfm": 122,
        "length_regulator": 22,
        "gpt_layer": 6,
    }
    assert s2mel["net"]["cfm"]["estimator.input_pos"].dtype == np.int64
    np.testing.assert_array_equal(s2mel["net"]["cfm"]["estimator.input_pos"].read()[:3], [0, 1, 2])

    campplus = read_pth(tiny.folder / "hf_cache" / "campplus_cn_common.bin")
    count = campplus["head.bn1.num_batches_tracked"]
    assert (len(campplus), count.shape, count.dtype) == (937, (), np.int64)
    assert count.read().shape == ()

    matrix = read_pth(tiny.folder / "feat1.pt")  # a tensor alone
    assert (matrix.shape, matrix.file) == ((73, 192), tiny.folder / "feat1.pt")
    assert np.isfinite(matrix.read()).all()


def test_safetensors_files(tiny):
    tensors = read_safetensors(tiny.folder / "hf_cache" / "semantic_codec_model.safetensors")
    assert len(tensors) == 77
    codebook = tensors["quantizer.quantizers.0.codebook.weight"]
    assert (codebook.shape, codebook.dtype) == ((128, 8), np.float32)
    assert 0.1 < codebook.read().std() < 10
    qwen = read_safetensors(tiny.folder / "qwen0.6bemo4-merge" / "model.safetensors")
    assert {tensor.dtype for tensor in qwen.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert np.isfinite(qwen["model.embed_tokens.weight"].read().astype(np.float32)).all()


# ---- what can be written by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_dtype(tmp_path, dtype):
    values = np.array([[0, 1, 1], [1, 0, 3]]).astype(dtype)
    tensor = read_pth(write_pth(tmp_path / "x.pth", {"x": values}))["x"]
    assert (tensor.dtype, tensor.shape) == (dtype, (2, 3))
    assert tensor.read().tobytes() == values.tobytes()


def test_views_share_a_storage(tmp_path):
    whole = matrix()
    views = {"all": whole, "row": whole[2], "columns": whole[:, 1:4:2], "turned": whole.T, "one": whole[3, 4:5]}
    path = write_pth(tmp_path / "x.pth", views)
    with zipfile.ZipFile(path) as archive:
        assert [name for name in archive.namelist() if "/data/" in name] == ["archive/data/0"]
    for name, tensor in read_pth(path).items():
        np.testing.assert_array_equal(tensor.read(), views[name])


def test_scalars_empty_tensors_and_parameters(tmp_path):
    scalar, empty = np.array(3.5, np.float32), np.zeros((0, 4), np.float32)
    written = {
        "scalar": scalar,
        "empty": empty,
        "version 1": Call("torch._utils._rebuild_tensor", (Storage("FloatStorage", "0", 1), 0, (1,), (1,))),
        "parameter": Call("torch._utils._rebuild_parameter", (scalar, True, ORDERED)),
        "attributes": Call("torch._utils._rebuild_parameter_with_state", (scalar, True, ORDERED, {"tag": "x"})),
    }
    found = arrays(read_pth(write_pth(tmp_path / "x.pth", written)))
    assert {name: array.shape for name, array in found.items()} == {
        "scalar": (),
        "empty": (0, 4),
        "version 1": (1,),
        "parameter": (),
        "attributes": (),
    }
    assert found["parameter"] == found["attributes"] == found["version 1"] == 3.5


def test_state_dict_with_attributes(tmp_path):
    """A state dict is an OrderedDict that carries the versions of its modules, and a dict called `items` is a dict."""
    state = Raw(
        instructions(Call("collections.OrderedDict", ()), {})
        + b"("
        + instructions("weight", {})
        + instructions(1, {})
        + b"u"
        + instructions({"_metadata": ORDERED, "items": Name("builtins.dict")}, {})
        + b"b"
    )
    assert read_pth(write_pth(tmp_path / "x.pth", state)) == {"weight": 1}


def test_training_state_is_let_pass(tmp_path):
    """What official files and common trainers keep beside the weights neither runs nor is in the way."""
    beside = {
        "optimizer": {"state": {0: {"exp_avg": matrix()}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]},
        "scheduler": {"_last_lr": [1e-4], "best": None, "on": True, "steps": 2**70, "below": -5},
        "counts": Call("collections.Counter", ({"a": 2},)),
        "lists": Call("collections.defaultdict", (Name("builtins.list"),)),
        "set": Call("builtins.set", ([1, 2],)),
        "old set": Call("__builtin__.set", ([1, 2],)),
        "bytes": Call("_codecs.encode", ("abc", "latin1")),
        "size": Call("torch.Size", ((1, 2),)),
        "device": Call("torch.device", ("cuda", 0)),
        "dtype": Name("torch.float32"),
        "bytes of a tensor": Storage("storage.UntypedStorage", "0", 4),
    }
    found = read_pth(write_pth(tmp_path / "x.pth", {"net": {"x": matrix()}, **beside}))
    np.testing.assert_array_equal(found["net"]["x"].read(), matrix())
    assert found["scheduler"] == beside["scheduler"]
    assert (found["counts"], found["lists"]) == ({"a": 2}, {})
    assert set(found) == {"net", *beside}


def test_other_protocols(tmp_path):
    """Python's own pickler, in the protocols that torch.save can be asked for."""
    value = {"a": [1, 2.5, "x", None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {"c": -(2**40)}, 5: {}}
    value["again"] = value["a"]
    for protocol in (2, 3, 4, 5):
        path = write_pth(tmp_path / "x.pth", None, {"data.pkl": pickle.dumps(value, protocol)})
        assert read_pth(path) == value


# ---- what runs code --------------------------------------------------------------------------------------------------


class Attack:
    """Pickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def touch(path: Path) -> Attack:
    return Attack(exec, f"open({str(path)!r}, 'w').close()")


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("where", ["alone", "weights", "optimizer"])
def test_code_does_not_run(tmp_path, protocol, where):
    mark = tmp_path / "ran"
    attack = touch(mark)
    value = {"alone": attack, "weights": {"x": attack}, "optimizer": {"net": {}, "optimizer": [(attack,)]}}
    pickled = pickle.dumps(value[where], protocol)
    pickle.loads(pickled)
    assert mark.exists()  # it would
    mark.unlink()
    message = refusal(write_pth(tmp_path / "x.pth", None, {"data.pkl": pickled}))
    assert "refused" in message
    assert "exec" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "nt.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "builtins.__import__",
        "builtins.open",
        "__builtin__.eval",
        "functools.partial",
        "operator.attrgetter",
        "importlib.import_module",
        "numpy.load",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "torch.load",
        "torch.hub.load",
        "torch.storage._load_from_bytes",
        "torch.nn.modules.linear.Linear",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "__torch__.Model",
        "pickle.loads",
        "copyreg._reconstructor",
        "runpy._run_code",
        "webbrowser.open",
        "indextts_jax.convert.tensors.read_pth",
    ],
)
def test_what_is_refused_by_name(tmp_path, name):
    for value in (Name(name), {"net": {}, "optimizer": [Call(name, ("x",))]}):
        assert f"asks for {name!r}" in refusal(write_pth(tmp_path / "x.pth", value))


@pytest.mark.parametrize(
    ("pickled", "instruction"),
    [
        (b"(S'ls'\nios\nsystem\n.", "STRING"),  # protocol 0
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_other_instructions_are_refused(tmp_path, pickled, instruction):
    assert f"the instruction {instruction}," in refusal(write_pth(tmp_path / "x.pth", None, {"data.pkl": pickled}))


# ---- what makes no sense ---------------------------------------------------------------------------------------------


def test_no_such_file_and_folders(tmp_path):
    for read in (read_pth, read_safetensors):
        with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
            read(tmp_path / "none.pth")
        with pytest.raises(FileNotFoundError, match="is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(tiny, tmp_path, kept):
    for name in ("wav2vec2bert_stats.pt", "hf_cache/semantic_codec_model.safetensors"):
        whole = (tiny.folder / name).read_bytes()
        path = tmp_path / Path(name).name
        path.write_bytes(whole[: int(len(whole) * kept)])
        message = refusal(path, read_pth if path.suffix == ".pt" else read_safetensors)
        assert f"cut short ({int(len(whole) * kept)} bytes)" in message


@pytest.mark.parametrize(
    "content", [b"", b"x", b"<html>Not found</html>\n" * 100, b"version https://git-lfs\n", bytes(999)]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert "not a PyTorch file" in refusal(path)
    assert "not a safetensors file" in refusal(path, read_safetensors)


def test_the_format_before_zip(tmp_path):
    path = tmp_path / "x.pth"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2))
    assert "PyTorch before 1.6" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data.pkl": None}, "not a PyTorch file"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data/0": None}, "'data/0' is missing"),
        ({"data/0": bytes(119)}, "'data/0' is too short"),
    ],
)
def test_other_zip_files(tmp_path, changes, reason):
    assert reason in refusal(write_pth(tmp_path / "x.pth", {"x": matrix()}, changes))


def test_compressed_entries(tmp_path):
    """A thousandth of what they grow to: a small file could fill the memory."""
    path = write_pth(tmp_path / "x.pth", {"x": matrix()}, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)


def test_two_pickles(tmp_path):
    path = write_pth(tmp_path / "x.pth", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"}.")
    refusal(path)


@pytest.mark.parametrize(
    "place",
    [
        (-1, (2,), (1,)),
        (0, (31,), (1,)),
        (25, (6,), (1,)),
        (0, (2, 15), (16, 1)),
        (0, (3,), (-1,)),
        (0, (-3,), (1,)),
        (0, (10**12,), (0,)),  # one element, repeated
        (0, (6, 5), (0, 1)),
        (0, (2**62, 2**62), (0, 0)),
        (31, (0,), (1,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (2,), (1, 1)),
        (0, (2.0,), (1,)),
        (0, "ab", (1, 1)),
        (None, (2,), (1,)),
    ],
)
def test_tensors_outside_their_storage(tmp_path, place):
    storage = Storage("FloatStorage", "0", 30)
    written = {"x": matrix(), "y": Call(TENSOR, (storage, *place, False, ORDERED))}
    if place == (0, (6, 5), (0, 1)):  # 30 elements of 5, of a storage of 30: it fits
        found = read_pth(write_pth(tmp_path / "x.pth", written))
        np.testing.assert_array_equal(found["y"].read(), matrix()[:1].repeat(6, 0))
    else:
        assert "damaged" in refusal(write_pth(tmp_path / "x.pth", written))


def test_storages_that_are_none(tmp_path):
    for storage in (("<f4", 0, 30), None, "x", Name("torch.FloatStorage"), matrix()):
        path = write_pth(tmp_path / "x.pth", {"x": matrix(), "y": Call(TENSOR, (storage, 0, (2,), (1,)))})
        refusal(path)
    for identity in (("storage",), (1, 2, 3, 4, 5), ("storage", Name("torch.float32"), "0", "cpu", 1), "storage"):
        refusal(write_pth(tmp_path / "x.pth", Raw(instructions(identity, {}) + b"Q")))
    for size in (-1, 2**60):
        refusal(write_pth(tmp_path / "x.pth", {"x": matrix(), "y": Storage("FloatStorage", "0", size)}))


def test_small_files_take_little_memory(tmp_path):
    files = {
        "a large memo": b"\x80\x02}r\xff\xff\xff\xff.",
        "a long text": b"\x80\x02X\xff\xff\xff\xffabc.",
        "a long text of protocol 4": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc.",
        "doubling": b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 1000 + b"h\x00Q.",
        "a dict in itself": b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.",
    }
    tracemalloc.start()
    for pickled in files.values():
        path = write_pth(tmp_path / "x.pth", None, {"data.pkl": pickled})
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(CheckpointError):
            flatten(read_pth(path) if pickled != files["a large memo"] else {"x": read_pth(path)}, path)
        assert tracemalloc.get_traced_memory()[1] - before < 40e6
    tracemalloc.stop()


def test_deep_values_do_not_overflow_the_stack(tmp_path):
    deep = b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple ...; to hash one takes as many frames
    refusal(write_pth(tmp_path / "x.pth", None, {"data.pkl": b"\x80\x02}" + deep + b"Ns."}))
    assert read_pth(write_pth(tmp_path / "x.pth", None, {"data.pkl": b"\x80\x02" + deep + b"."}))


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = write_pth(tmp_path / "x.pth", {"x": matrix()})
    tensor = read_pth(path)["x"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="became shorter"):
        tensor.read()


def damage(rng: random.Random, content: bytes) -> bytes:
    """`content` with a few bytes changed, left out or put in."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(damaged))
        match rng.randrange(6):
            case 0 | 1:
                damaged[at] = rng.randrange(256)
            case 2:
                damaged[at] = (damaged[at] + rng.choice((-1, 1))) % 256
            case 3:
                damaged[at] = rng.choice(b"0123456789 aN,[]")
            case 4:
                del damaged[at : at + rng.choice((1, 1, 2, 8, len(damaged)))]
            case 5:
                damaged[at:at] = rng.randbytes(rng.choice((1, 4)))
        damaged = damaged or bytearray(b".")
    return bytes(damaged)


def outcome(path: Path, read: Any) -> str:
    """Read a file and all its tensors: nothing but the documented exceptions, and little memory."""
    tracemalloc.reset_peak()
    try:
        shapes = {name: (tensor.read().shape, tensor.shape) for name, tensor in flatten(read(path), path).items()}
    except CheckpointError as error:
        message = str(error)
    else:
        assert all(found == promised for found, promised in shapes.values())
        message = ""
    assert tracemalloc.get_traced_memory()[1] < 20e6
    assert message.startswith(str(path)) or not message
    return "read" if not message else "refused" if "refused" in message else "damaged"


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, about texts that are damaged
def test_damaged_files_raise_nothing_else(tiny, tmp_path):
    rng = random.Random(0)
    name = "a name that is as long as those of real tensors, "  # where damage does no harm
    contents = {
        name + "a": matrix(),
        name + "b": matrix()[:, 1:3],
        name + "c": Call("torch._utils._rebuild_parameter", (matrix(), True, ORDERED)),
        name + "d": np.array(3),
        name + "e": np.arange(4, dtype=np.float16),
    }
    pickled = b"\x80\x02" + instructions(contents, {}) + b"."
    path = write_pth(tmp_path / "x.pth", contents)
    tensors = write_safetensors(tmp_path / "x.safetensors", {"a": matrix(), "b": np.arange(4)})
    whole, whole_tensors = path.read_bytes(), tensors.read_bytes()
    seen: Counter[str] = Counter()
    tracemalloc.start()
    for _ in range(300):
        write_pth(path, contents, {"data.pkl": damage(rng, pickled)})
        seen["pickle " + outcome(path, read_pth)] += 1
        path.write_bytes(damage(rng, whole) if rng.random() < 0.5 else whole[:-700] + damage(rng, whole[-700:]))
        seen["zip " + outcome(path, read_pth)] += 1
        tensors.write_bytes(damage(rng, whole_tensors))
        seen["safetensors " + outcome(tensors, read_safetensors)] += 1
    tracemalloc.stop()
    # Every outcome was met: the damage is neither too small nor too large.
    assert min(seen[f"pickle {kind}"] for kind in ("read", "refused", "damaged")) > 5, seen
    assert min(seen[f"{file} {kind}"] for file in ("zip", "safetensors") for kind in ("read", "damaged")) > 5, seen


# ---- safetensors -----------------------------------------------------------------------------------------------------


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "x",
    [
        entry("F32", [2, 3], 0, 20),  # too few bytes
        entry("F32", [2, 3], 4, 28),  # past the end
        entry("F32", [1], 0, 4),  # leaves bytes over
        entry("F32", [2, 3], -24, 0),
        entry("F32", [-2, -3], 0, 24),
        entry("F32", [2.0, 3.0], 0, 24),
        entry("F32", [2] + [1] * 40 + [3], 0, 24),
        entry("F32", "ab", 0, 24),
        entry(["F32"], [2, 3], 0, 24),
        {"dtype": "F32", "shape": [2, 3]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": 0},
        7,
        None,
    ],
)
def test_headers_that_make_no_sense(tmp_path, x):
    path = write_safetensors(tmp_path / "x.safetensors", {"x": matrix()[:2, :3].copy()}, x=x)
    assert "not a safetensors file" in refusal(path, read_safetensors)


def test_overlaps_gaps_and_unknown_dtypes(tmp_path):
    path, six = tmp_path / "x.safetensors", np.arange(6, dtype=np.float32)
    for places in ((0, 16), (0, 12)), ((0, 8), (12, 24)), ((4, 12), (12, 24)):
        entries = {name: entry("F32", [(b - a) // 4], a, b) for name, (a, b) in zip("xy", places, strict=True)}
        write_safetensors(path, {"x": six}, **entries)
        refusal(path, read_safetensors)
    write_safetensors(path, {"x": six}, **{"x": entry("F32", [3], 0, 12), "y": entry("F32", [3], 12, 24)})
    np.testing.assert_array_equal(read_safetensors(path)["y"].read(), six[3:])
    write_safetensors(path, {"x": six}, x=entry("F8_E4M3", [24], 0, 24))
    assert "x is of dtype 'F8_E4M3'" in refusal(path, read_safetensors)


@pytest.mark.parametrize("header", [b"[]", b"{", b"7", b'{"x": {}}', b"\xff\xfe", b"[" * 100_000])
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refusal(path, read_safetensors)
    path.write_bytes(struct.pack("<Q", 2**63) + header)
    refusal(path, read_safetensors)


# ---- state dicts -----------------------------------------------------------------------------------------------------


def test_flatten_names_what_is_no_tensor(tmp_path):
    path = write_pth(tmp_path / "x.pth", {"weight": matrix()})
    state = read_pth(path)
    assert list(flatten(state, path, "head.")) == ["head.weight"]
    for wrong, message in (
        ({"epoch": 5}, "head.epoch is int, not a tensor"),
        ({"deep": state}, "head.deep is dict, not a tensor"),
        ({5: state["weight"]}, "head.5 is Tensor, not a tensor"),
        ({}, "holds no tensors; download it again"),
        ([state], "expected a dict of tensors, found list"),
        (state["weight"], "expected a dict of tensors, found Tensor"),
    ):
        with pytest.raises(CheckpointError) as caught:
            flatten(wrong, path, "head.")
        assert str(caught.value) == f"{path}: {message}"
