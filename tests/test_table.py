"""The kinds of the conversion tables, against plain numpy in float64, and the contract that holds for every table."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from indextts_jax.convert import table as language
from indextts_jax.convert.table import Kind, Leaves, Module, Row, Table, fill
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
