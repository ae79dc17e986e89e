"""The kinds of the conversion tables, against plain numpy in float64, and the contract that holds for every table."""

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from indextts_jax.convert import table as language
from indextts_jax.convert.table import Invertible, Kind, Leaves, Module, Row, Table, fill, unfill
from indextts_jax.convert.tensors import CheckpointError, Tensor, Tensors

FILE = Path("x.pth")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def held(arrays: dict[str, np.ndarray]) -> Tensors:
    """Arrays as the tensors of a file."""
    return {name: Tensor(FILE, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}


def made(kind: Kind, *modules: dict[str, np.ndarray]) -> Leaves:
    """What a kind makes of modules with these tensors."""
    tensors = held({f"{i}.{name}": a for i, arrays in enumerate(modules) for name, a in arrays.items()})
    used: dict[str, Module] = {}
    leaves = kind(*(Module(str(i), tensors, used, "row") for i in range(len(modules))))
    assert used.keys() == tensors.keys()  # every tensor was asked for
    return leaves


def like(**shapes: tuple[int, ...]) -> dict:
    """A tree of shapes; "a__b" stands for a/b."""
    tree: dict = {}
    for path, shape in shapes.items():
        node = tree
        *parents, leaf = path.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, np.float32)
    return tree


# ---- kinds ----------------------------------------------------------------------------------------------------------


def test_dense():
    weight, bias, x = draw(5, 3), draw(5), draw(2, 3)
    leaves = made(language.dense, {"weight": weight, "bias": bias})
    np.testing.assert_allclose(x @ leaves["kernel"] + leaves["bias"], x @ weight.T + bias)
    assert set(made(language.dense, {"weight": weight})) == {"kernel"}
    assert made(language.dense_out_in, {"weight": weight, "bias": draw(5)})["weight"].shape == (5, 3)
    assert made(language.dense_from_in_out, {"weight": weight, "bias": draw(3)})["weight"].shape == (3, 5)


def test_pointwise():
    for ones in (1,), (1, 1):
        weight = draw(5, 3, *ones)
        leaves = made(language.pointwise, {"weight": weight, "bias": draw(5)})
        np.testing.assert_array_equal(leaves["kernel"], weight.reshape(5, 3).T)


def test_convolution():
    """Kernel [K, I, O] of torch's [O, I, K]; and in two dimensions, against jax's own reading of both layouts."""
    assert made(language.convolution, {"weight": draw(4, 2, 7)})["kernel"].shape == (7, 2, 4)
    weight, x = draw(6, 2, 3, 5), jnp.asarray(draw(1, 4, 8, 9))
    kernel = jnp.asarray(made(language.convolution, {"weight": weight})["kernel"])
    theirs = jax.lax.conv_general_dilated(
        x, jnp.asarray(weight), (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=2
    )
    ours = jax.lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1),
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), theirs, rtol=1e-5, atol=1e-5)


def test_norms_embeddings_and_bare_tensors():
    weight, bias = draw(4), draw(4, seed=1)
    leaves = made(language.layer_norm, {"weight": weight, "bias": bias})
    assert leaves["scale"] is weight
    assert leaves["bias"] is bias
    assert made(language.rms_norm, {"weight": weight})["scale"] is weight
    assert made(language.embedding, {"weight": bias})["embedding"] is bias
    leaves = made(language.parameters(gamma="g", beta="b"), {"g": weight, "b": bias})
    assert (leaves["gamma"] is weight, leaves["beta"] is bias) == (True, True)


def test_beside_and_stacked():
    parts = [{"weight": draw(n, 3), "bias": draw(n)} for n in (4, 2, 5)]
    leaves = made(language.beside(language.dense), *parts)
    np.testing.assert_array_equal(leaves["kernel"], np.concatenate([part["weight"] for part in parts]).T)
    np.testing.assert_array_equal(leaves["bias"], np.concatenate([part["bias"] for part in parts]))
    parts = [{"alpha": draw(4, seed=seed)} for seed in range(3)]
    leaves = made(language.stacked(language.parameters(ours="alpha")), *parts)
    np.testing.assert_array_equal(leaves["ours"], [part["alpha"] for part in parts])


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (6, 5, 7), (3, 4, 5, 2)])
def test_weight_norm(shape):
    v, g = draw(*shape) * 1e-3, 1 + draw(shape[0], seed=1).reshape(-1, *[1] * (len(shape) - 1))
    kind = language.weight_norm(lambda m: {"kernel": m["weight"], "bias": m["bias"]})
    leaves = made(kind, {"weight_v": v, "weight_g": g, "bias": draw(3)})
    expected = np.empty(shape)
    for i in range(shape[0]):  # row by row, in float64
        expected[i] = float(g[i].item()) * v[i].astype(np.float64) / np.linalg.norm(v[i].astype(np.float64).ravel())
    assert leaves["kernel"].dtype == np.float32
    # half a step of float32: what rounding the exact product gives, which folding in float32 would miss
    assert (np.abs(leaves["kernel"] - expected) <= 0.5001 * np.spacing(np.abs(expected).astype(np.float32))).all()


# ---- and back -------------------------------------------------------------------------------------------------------


def undone(kind: Kind, leaves: Leaves, count: int = 1) -> list[Leaves]:
    """The tensors of each module of theirs."""
    assert isinstance(kind, Invertible)
    used: dict[str, Module] = {}
    tensors = kind.undo(Module("a", held({f"a.{name}": leaf for name, leaf in leaves.items()}), used, "row"), count)
    assert used.keys() == {f"a.{name}" for name in leaves}  # every leaf was asked for
    return tensors


BIASED = {"weight": draw(5, 3), "bias": draw(5, seed=1)}
CONVOLVED = {"weight": draw(6, 2, 3, 5), "bias": draw(6)}
UNDONE = [
    (language.dense, [BIASED]),
    (language.dense, [{"weight": draw(5, 3)}]),
    (language.dense_out_in, [BIASED]),
    (language.dense_from_in_out, [{"weight": draw(5, 3), "bias": draw(3)}]),
    (language.pointwise, [{"weight": draw(5, 3, 1), "bias": draw(5)}]),
    (language.convolution, [CONVOLVED]),
    (language.convolution, [{"weight": draw(4, 2, 7)}]),
    (language.embedding, [{"weight": draw(7, 3)}]),
    (language.layer_norm, [{"weight": draw(4), "bias": draw(4, seed=1)}]),
    (language.rms_norm, [{"weight": draw(4)}]),
    (language.parameters(gamma="g", beta="b"), [{"g": draw(4), "b": draw(2, 3)}]),
    (language.beside(language.dense), [{"weight": draw(5, 3, seed=s), "bias": draw(5, seed=s)} for s in range(3)]),
    (language.beside(language.dense_out_in, 0), [{"weight": draw(5, 3, seed=s)} for s in range(2)]),
    (language.stacked(language.dense), [{"weight": draw(5, 3, seed=s), "bias": draw(5, seed=s)} for s in range(3)]),
]


@pytest.mark.parametrize(("kind", "modules"), UNDONE, ids=lambda value: getattr(value, "__name__", ""))
def test_kinds_are_undone(kind, modules):
    found = undone(kind, made(kind, *modules), len(modules))
    assert len(found) == len(modules)
    for tensors, module in zip(found, modules, strict=True):
        assert tensors.keys() == module.keys()
        for name, array in module.items():
            assert tensors[name].shape == array.shape
            assert tensors[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("inner", [language.dense, language.convolution, language.pointwise])
def test_a_weight_norm_is_undone_bit_for_bit(inner):
    """The gain is a norm that float32 has rounded: divided by the exact one, many weights would differ by a bit."""
    kind = language.weight_norm(inner)
    shape = {language.dense: (3000, 7), language.convolution: (3000, 5, 3), language.pointwise: (3000, 9, 1)}[inner]
    weight = draw(*shape) * np.logspace(-12, 12, 3000, dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    weight[5] = 0
    weight[6, 1:] = 0
    weight[7] = -0.0
    leaves = made(inner, {"weight": weight, "bias": draw(3000)})
    [tensors] = undone(kind, leaves)
    assert tensors.keys() == {"weight_v", "weight_g", "bias"}
    assert tensors["weight_g"].shape == (3000, *[1] * (len(shape) - 1))
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.delete(tensors["weight_v"], [5, 7], 0), np.delete(weight, [5, 7], 0))
    assert np.linalg.norm(tensors["weight_v"].reshape(3000, -1), axis=1).min() > 0  # what PyTorch divides by
    again = made(kind, tensors)
    for name, leaf in leaves.items():
        assert again[name].tobytes() == leaf.tobytes()


def test_a_gain_beside_the_norm_is_a_gain():
    """One step of float32 away from the norm, it is no longer taken for it."""
    v = draw(64, 100)
    [tensors] = undone(language.weight_norm(language.dense), {"kernel": v.T})
    more = np.nextafter(tensors["weight_g"], np.float32(np.inf))
    leaves = made(language.weight_norm(language.dense), {"weight_v": v, "weight_g": more})
    assert (np.abs(leaves["kernel"]) >= np.abs(v.T)).all()
    assert (leaves["kernel"] != v.T).any(0).all()


def statistics(channels: int, affine: bool = True) -> dict[str, np.ndarray]:
    norm = {"running_mean": draw(channels), "running_var": np.abs(draw(channels, seed=1)) + 0.1}
    return norm | ({"weight": draw(channels, seed=2), "bias": draw(channels, seed=3)} if affine else {})


def normalised(x: np.ndarray, norm: dict[str, np.ndarray]) -> np.ndarray:
    """torch's batch norm in evaluation, channels last, in float64."""
    wide = {name: array.astype(np.float64) for name, array in norm.items()}
    y = (x - wide["running_mean"]) / np.sqrt(wide["running_var"] + 1e-5)
    return y * wide["weight"] + wide["bias"] if "weight" in norm else y


def test_batch_norm():
    norm, x = statistics(4), draw(9, 4)
    leaves = made(language.batch_norm, norm)
    np.testing.assert_allclose(x * leaves["scale"] + leaves["bias"], normalised(x, norm), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_batch_norm_after_a_layer(affine, biased):
    norm, weight, x = statistics(4, affine), draw(4, 3, 5), draw(20, 3).astype(np.float64)
    layer = {"weight": weight, "bias": draw(4, seed=7)} if biased else {"weight": weight}
    leaves = made(language.batch_norm_after(language.convolution, affine=affine), layer, norm)
    windows = np.stack([x[t : t + 5] for t in range(16)])  # [T, K, I]
    y = np.einsum("tki,oik->to", windows, weight.astype(np.float64)) + layer.get("bias", 0)
    ours = np.einsum("tki,kio->to", windows, leaves["kernel"]) + leaves["bias"]
    np.testing.assert_allclose(ours, normalised(y, norm), rtol=1e-9, atol=1e-9)


def test_what_numpy_would_broadcast_is_refused():
    """A tensor of one element where there should be one per channel."""
    one = np.ones(1, np.float32)
    for name in ("running_mean", "running_var", "weight", "bias"):
        with pytest.raises(ValueError, match="belong to one layer"):
            made(language.batch_norm, statistics(4) | {name: one})
    after = language.batch_norm_after(language.dense)
    with pytest.raises(ValueError, match="belong to one layer"):
        made(after, {"weight": draw(4, 3)}, dict.fromkeys(statistics(1), one))
    with pytest.raises(ValueError, match="belong to one layer"):
        made(language.weight_norm(language.dense), {"weight_v": draw(4, 3), "weight_g": np.ones((1, 1), np.float32)})


def test_affine_norms_need_their_weights():
    """A missing weight must not turn a norm into one without."""
    for name in ("weight", "bias"):
        norm = {key: array for key, array in statistics(4).items() if key != name}
        with pytest.raises(CheckpointError, match=rf"x\.pth: tensor 0\.{name} is missing"):
            made(language.batch_norm, norm)


# ---- the contract ---------------------------------------------------------------------------------------------------

DENSE = Table([Row("lin", "dense", language.dense)])
LINEAR = {"lin.weight": draw(3, 2), "lin.bias": draw(3)}
TREE = like(dense__kernel=(2, 3), dense__bias=(3,))


def message(table: Table, arrays: dict[str, np.ndarray], tree: Any = TREE, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        fill("part", table, held(arrays), tree, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_fill():
    tree, report = fill("part", DENSE, held(LINEAR), TREE, strict=True)
    assert report == ("part", 2, 9, [], [])
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    np.testing.assert_array_equal(tree["dense"]["kernel"], LINEAR["lin.weight"].T)
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(tree))


def test_fill_takes_the_dtype_of_the_tree():
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        tree, _ = fill("part", DENSE, held({name: a.astype(dtype) for name, a in LINEAR.items()}), TREE)
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
        np.testing.assert_allclose(tree["dense"]["kernel"], LINEAR["lin.weight"].T, rtol=2**-8)


def test_fill_keeps_scalars_scalar():
    table = Table([Row("", "", language.parameters(ours="theirs"))])
    tree, report = fill("part", table, held({"theirs": np.array(2.5, np.float32)}), like(ours=()))
    assert tree["ours"].shape == ()
    assert report.parameters == 1


def test_a_dry_run_keeps_nothing():
    tree, report = fill("part", DENSE, held(LINEAR), TREE, dry=True)
    assert tree == {}
    assert (report.tensors, report.parameters) == (2, 9)
    assert "lin.weight is missing" in message(DENSE, {"lin.bias": draw(3)}, dry=True)


def test_placeholders_run_over_our_modules():
    """Two of them, more than nine, and only where ours has the module."""
    rows = [
        Row("layers.{i}.part{j}.lin", "layer_{i}/part_{j}/dense", language.dense),
        Row(("layers.{i}.q", "layers.{i}.k"), "layer_{i}/both", language.beside(language.dense)),
    ]
    tree, arrays = {}, {}
    for i in range(12):
        for j in range(1, 3):
            arrays[f"layers.{i}.part{j}.lin.weight"] = np.full((3, 2), 10 * i + j, np.float32)
            tree[f"layer_{i}__part_{j}__dense__kernel"] = (2, 3)
    for i in (5, 11):
        arrays |= {f"layers.{i}.{x}.weight": np.full((1, 2), i, np.float32) for x in "qk"}
        tree[f"layer_{i}__both__kernel"] = (2, 2)
    found, report = fill("part", Table(rows), held(arrays), like(**tree), strict=True)
    assert report.tensors == len(arrays)
    for i in range(12):
        assert [found[f"layer_{i}"][f"part_{j}"]["dense"]["kernel"][0, 0] for j in (1, 2)] == [10 * i + 1, 10 * i + 2]
        assert ("both" in found[f"layer_{i}"]) == (i in (5, 11))


def test_unused_patterns():
    arrays = {f"layers.{i}.{name}": draw(1) for i in (0, 1, 9, 16, 17, 18, 100) for name in ("a", "b.c")}
    arrays |= {"head": draw(1), "headless": draw(1), "x.count": draw(1)}
    table = Table([*DENSE.rows], unused=["layers.{17+}.*", "head", "*.count"])
    report = fill("part", table, held(LINEAR | arrays), TREE)[1]
    assert report.unused == sorted(
        [f"layers.{i}.{n}" for i in (17, 18, 100) for n in ("a", "b.c")] + ["head", "x.count"]
    )
    assert report.unknown == sorted([f"layers.{i}.{n}" for i in (0, 1, 9, 16) for n in ("a", "b.c")] + ["headless"])
    assert report.tensors + len(report.unused) + len(report.unknown) == len(LINEAR | arrays)


def test_unknown_tensors_are_named(caplog):
    arrays = LINEAR | {"extra.weight": draw(1), "more": draw(1)}
    with caplog.at_level(logging.WARNING, "indextts_jax"):
        tree, report = fill("part", DENSE, held(arrays), TREE)
    assert report.unknown == ["extra.weight", "more"]
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    [record] = caplog.records
    assert record.getMessage() == "x.pth: 2 unknown tensors for part: extra.weight, more; left out"
    text = message(DENSE, arrays, strict=True)
    assert text == "x.pth: 2 unknown tensors for part: extra.weight, more; without --strict they are left out"


def test_missing_tensors_are_named():
    text = message(DENSE, {"lin.bias": draw(3)})
    assert text == "x.pth: tensor lin.weight is missing (lin -> part dense); download it again"
    # not every dense layer has a bias, so only our side knows
    text = message(DENSE, {"lin.weight": draw(3, 2)})
    assert text == "x.pth: a tensor is missing, nothing fills part dense/bias (lin -> part dense)"


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("weight", (2, 3), "x.pth: lin -> part dense: kernel has shape (3, 2), expected (2, 3); "),
        ("weight", (3, 2, 1), "x.pth: lin -> part dense: kernel has shape (1, 2, 3), expected (2, 3); "),
        ("bias", (1,), "x.pth: lin -> part dense: bias has shape (1,), expected (3,); "),
        ("bias", (), "x.pth: lin -> part dense: bias has shape (), expected (3,); "),
    ],
)
def test_misshapen_tensors_are_named(name, shape, text):
    assert text in message(DENSE, LINEAR | {f"lin.{name}": draw(*shape)})


def test_tensors_that_do_not_fit_together():
    tables = {
        "lin -> part dense": (language.pointwise, LINEAR),
        "lin + lin2 -> part dense": (
            language.beside(language.dense),
            LINEAR | {"lin2.weight": draw(3, 4), "lin2.bias": draw(3)},
        ),
    }
    for label, (kind, arrays) in tables.items():
        theirs = tuple(label.split(" -> ")[0].split(" + "))
        wrong = arrays | {"lin.weight": draw(3, 2, 7) if kind is language.pointwise else draw(3, 2)}
        assert f"x.pth: {label}: tensors do not fit together: " in message(Table([Row(theirs, "dense", kind)]), wrong)


def test_a_tensor_used_twice_is_refused():
    both = like(dense__kernel=(2, 3), dense__bias=(3,), other__kernel=(2, 3), other__bias=(3,))
    twice = Table([*DENSE.rows, Row("lin", "other", language.dense)])
    assert (
        message(twice, LINEAR, both) == "tensor lin.weight is used twice, by lin -> part dense and by lin -> part other"
    )
    beside = Table([Row(("lin", "lin"), "dense", language.beside(language.dense))])
    assert "lin.weight is used twice" in message(beside, LINEAR, like(dense__kernel=(2, 6), dense__bias=(6,)))


def test_a_leaf_filled_twice_is_refused():
    table = Table([*DENSE.rows, Row("lin2", "dense", language.dense)])
    text = message(table, LINEAR | {"lin2.weight": draw(3, 2), "lin2.bias": draw(3)})
    assert text == "dense/kernel is filled twice, by lin -> part dense and by lin2 -> part dense"


def test_leaves_that_nothing_fills_are_named():
    text = message(DENSE, LINEAR, TREE | like(norm__scale=(3,)))
    assert text == "x.pth: a tensor is missing, nothing fills part norm/scale (which no row of its table names)"


def test_leaves_that_have_no_place_are_named():
    assert "gives bias, for which our module has no place" in message(DENSE, LINEAR, like(dense__kernel=(2, 3)))


def test_a_row_that_matches_no_module_is_refused():
    for ours in ("layer_{i}/dense", "dense_{i}"):
        table = Table([*DENSE.rows, Row("layers.{i}.lin", ours, language.dense)])
        assert message(table, LINEAR) == f"part: no module of ours is called {ours}, as a row of its table has it"


# ---- the contract, the other way ------------------------------------------------------------------------------------

ARRAYS = {"dense": {"kernel": draw(2, 3), "bias": draw(3)}}


def refusal(table: Table, tree: Any, like: Any = TREE) -> str:
    with pytest.raises(CheckpointError) as caught:
        dict(unfill("part", table, tree, like, "model/part"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_unfill():
    tree, _ = fill("part", DENSE, held(LINEAR), TREE, strict=True)
    found = dict(unfill("part", DENSE, tree, TREE, "model/part"))
    assert found.keys() == LINEAR.keys()
    for name, array in found.items():
        assert array.flags.c_contiguous
        assert array.tobytes() == LINEAR[name].tobytes()


def test_unfill_lets_go_of_the_tree():
    """At once, not when Python next looks for circles: the next component would come beside it."""
    tree = {"dense": {name: leaf.copy() for name, leaf in ARRAYS["dense"].items()}}
    held_on = [weakref.ref(leaf) for leaf in tree["dense"].values()]
    gc.disable()
    try:
        for _ in unfill("part", DENSE, tree, TREE, "model/part"):
            pass
        del tree, _
        assert [leaf() is None for leaf in held_on] == [True, True]
    finally:
        gc.enable()


def test_unfill_writes_float32():
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        tree = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf.astype(dtype)), ARRAYS)
        for array in dict(unfill("part", DENSE, tree, TREE, "model/part")).values():
            assert array.dtype == np.float32


def test_unfill_follows_placeholders_and_modules_that_share_a_leaf_name():
    rows = [
        Row("layers.{i}.lin", "layer_{i}/dense", language.dense),
        Row("layers.{i}", "layer_{i}", language.parameters(u="pos_u")),
        Row(("q", "k"), "both", language.beside(language.dense)),
        Row("", "", language.parameters(ours="theirs")),
    ]
    shapes = {
        f"layer_{i}__{leaf}": shape for i in range(11) for leaf, shape in (("dense__kernel", (2, 3)), ("u", (4,)))
    }
    tree = like(**shapes, both__kernel=(2, 4), ours=())
    leaves, structure = jax.tree.flatten(tree)
    values = structure.unflatten([draw(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)])
    found = dict(unfill("part", Table(rows), values, tree, "x"))
    names = {f"layers.{i}.{name}" for i in range(11) for name in ("lin.weight", "pos_u")}
    assert found.keys() == names | {"q.weight", "k.weight", "theirs"}
    assert found["theirs"].shape == ()
    again, _ = fill("part", Table(rows), held(found), tree, strict=True)
    jax.tree.map(np.testing.assert_array_equal, again, values)


def test_kinds_without_an_inverse_are_refused():
    kinds = [language.batch_norm, language.batch_norm_after(language.dense), language.stacked(language.batch_norm)]
    kinds += [
        language.weight_norm(lambda m: {"kernel": m["weight"]}),
        language.beside(language.batch_norm),
    ]
    for kind in kinds:
        text = refusal(Table([Row("lin", "dense", kind)]), ARRAYS)
        assert text.startswith("model/part: part dense -> lin cannot be exported, its kind has no inverse; ")


def test_a_leaf_that_no_row_uses_is_refused():
    table = Table([Row("lin", "dense", language.parameters(kernel="weight"))])
    assert refusal(table, ARRAYS) == "model/part: part dense.bias is used by no row of its table"


def test_a_leaf_used_twice_is_refused():
    table = Table([*DENSE.rows, Row("lin2", "dense", language.dense)])
    assert "dense.kernel is used twice, by part dense -> lin and by part dense -> lin2" in refusal(table, ARRAYS)


def test_a_tensor_made_twice_is_refused():
    both = like(dense__kernel=(2, 3), dense__bias=(3,), other__kernel=(2, 3))
    table = Table([*DENSE.rows, Row("lin", "other", language.dense)])
    text = refusal(table, ARRAYS | {"other": {"kernel": draw(2, 3)}}, both)
    assert text == "tensor lin.weight is made twice, by part dense -> lin and by part other -> lin"


def test_leaves_of_another_model_are_refused():
    for tree, text in (
        ({"dense": {"kernel": draw(2, 4), "bias": draw(3)}}, "dense/kernel has shape (2, 4), expected (2, 3)"),
        ({"dense": {"kernel": draw(2, 3)}}, "dense/bias has shape none, expected (3,)"),
        (
            {"dense": {"kernel": draw(2, 3), "bias": draw(3), "scale": draw(3)}},
            "dense/scale has shape (3,), expected none",
        ),
    ):
        assert refusal(DENSE, tree) == f"model/part: {text}; convert the model again"


def test_parts_of_unequal_width_are_refused():
    table = Table([Row(("q", "k"), "dense", language.beside(language.dense))])
    assert "part dense -> q + k: leaves cannot be taken apart: " in refusal(table, ARRAYS)
