"""The language of the conversion tables, and the contract that every table is held to.

A table is a list of rows `Row(their module, our module, kind)`. A kind turns the tensors of one module of theirs into
the leaves of one module of ours; `{i}` and `{j}` in a row run over our layers. A row may name several of their modules,
which its kind receives together. The contract: each of their tensors is used exactly once or listed as unused, each of
our leaves is filled exactly once, and every shape is the one that `init` would make.

Kinds that are `Invertible` also go back, from the leaves of a module of ours to the tensors of theirs, under the same
contract: each leaf is used exactly once, each tensor is made exactly once.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from indextts_jax.convert.tensors import CheckpointError, Tensor, Tensors
from indextts_jax.errors import shown

log = logging.getLogger(__name__)
Leaves = dict[str, np.ndarray]


class Module:
    """The tensors directly under one module of theirs; remembers which were read."""

    def __init__(self, name: str, tensors: Tensors, used: dict[str, "Module"], row: str):
        self.name, self._tensors, self._used, self._row = name, tensors, used, row

    def _full(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name

    def __contains__(self, name: str) -> bool:
        return self._full(name) in self._tensors

    def __getitem__(self, name: str) -> np.ndarray:
        full = self._full(name)
        if full not in self._tensors:
            raise CheckpointError(f"{files(self._tensors)}: tensor {full} is missing ({self._row}); download it again")
        if (first := self._used.setdefault(full, self)) is not self:
            raise CheckpointError(f"tensor {full} is used twice, by {first._row} and by {self._row}")
        return self._tensors[full].read()

    def names(self) -> list[str]:
        """The tensors directly under this module."""
        found = (name.rpartition(".") for name in self._tensors)
        return [last for parent, _, last in found if parent == self.name]

    def replaced(self, name: str, value: np.ndarray) -> "Module":
        """This module, with one tensor put in place of whatever is on disk under that name."""
        other = _Replaced(self.name, self._tensors, self._used, self._row)
        other.extra = {**getattr(self, "extra", {}), name: value}
        return other


class _Replaced(Module):
    extra: Leaves

    def __contains__(self, name: str) -> bool:
        return name in self.extra or super().__contains__(name)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.extra[name] if name in self.extra else super().__getitem__(name)


Kind = Callable[..., Leaves]
Given = Module | Leaves  # what a kind reads from, by name


class Invertible:
    """A kind, and what undoes it: the leaves of one module of ours -> the tensors of each of `count` of theirs."""

    def __init__(self, make: Kind, undo: Callable[[Given, int], list[Leaves]]):
        self._make, self.undo = make, undo
        functools.update_wrapper(self, make)

    def __call__(self, *modules: Module) -> Leaves:
        return self._make(*modules)


def undone_by(back: Callable[[Given], Leaves]) -> Callable[[Kind], Invertible]:
    """For a kind of one module of theirs: what makes its tensors of our leaves."""
    return lambda make: Invertible(make, lambda leaves, count: [back(leaves)])


class Row(NamedTuple):
    """One module: theirs (or several of theirs), ours ("a/b/c"), and how."""

    theirs: str | tuple[str, ...]
    ours: str
    kind: Kind


class Table(NamedTuple):
    """The rows of a component, and the patterns of the tensors that it does not use ("*" any, "{17+}" 17 and up).

    `computed`: those that hold constants, which the system computes: pattern -> what a tensor of a shape must hold.
    """

    rows: Sequence[Row]
    unused: Sequence[str] = ()
    computed: Mapping[str, Callable[[tuple[int, ...]], np.ndarray]] = {}


# ---- kinds ----------------------------------------------------------------------------------------------------------


def _bias(m: Given) -> Leaves:
    return {"bias": m["bias"]} if "bias" in m else {}


@undone_by(lambda ours: {"weight": ours["kernel"].T, **_bias(ours)})
def dense(m: Module) -> Leaves:
    """torch Linear [out, in] -> kernel [in, out]."""
    return {"kernel": m["weight"].T, **_bias(m)}


@undone_by(lambda ours: {"weight": ours["weight"]} | _bias(ours))
def dense_out_in(m: Module) -> Leaves:
    """A linear layer [out, in] -> the same, for `layers.Dense`."""
    return {"weight": m["weight"]} | _bias(m)


@undone_by(lambda ours: {"weight": ours["weight"].T} | _bias(ours))
def dense_from_in_out(m: Module) -> Leaves:
    """GPT-2's Conv1D [in, out] -> weight [out, in], for `layers.Dense`."""
    return {"weight": m["weight"].T} | _bias(m)


@undone_by(lambda ours: {"weight": ours["kernel"].T[..., None], **_bias(ours)})
def pointwise(m: Module) -> Leaves:
    """A convolution of kernel size 1 [out, in, 1, ...] -> dense kernel [in, out]; undone: over time, [out, in, 1]."""
    weight = m["weight"]
    return {"kernel": weight.reshape(weight.shape[:2]).T, **_bias(m)}


@undone_by(lambda ours: {"weight": np.moveaxis(ours["kernel"], (-1, -2), (0, 1)), **_bias(ours)})
def convolution(m: Module) -> Leaves:
    """torch ConvNd [out, in/groups, *kernel] -> kernel [*kernel, in/groups, out]."""
    return {"kernel": np.moveaxis(m["weight"], (0, 1), (-1, -2)), **_bias(m)}


@undone_by(lambda ours: {"weight": ours["embedding"]})
def embedding(m: Module) -> Leaves:
    return {"embedding": m["weight"]}


@undone_by(lambda ours: {"weight": ours["scale"], "bias": ours["bias"]})
def layer_norm(m: Module) -> Leaves:
    return {"scale": m["weight"], "bias": m["bias"]}


@undone_by(lambda ours: {"weight": ours["scale"]})
def rms_norm(m: Module) -> Leaves:
    return {"scale": m["weight"]}


def _all(given: Given) -> Leaves:
    """All tensors of what a kind reads from."""
    return {name: given[name] for name in (given.names() if isinstance(given, Module) else given)}


def parameters(**names: str) -> Kind:
    """Bare tensors of a module: parameters(ours="theirs", ...)."""
    back = undone_by(lambda leaves: {theirs: leaves[ours] for ours, theirs in names.items()})
    return back(lambda m: {ours: m[theirs] for ours, theirs in names.items()})


def beside(kind: Kind, axis: int = -1) -> Kind:
    """Several modules of theirs side by side in one of ours: q, k and v in one product; undone: all of one width."""

    def joined(*modules: Module) -> Leaves:
        parts = [kind(m) for m in modules]
        return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}

    if not isinstance(kind, Invertible):
        return joined

    def split(ours: Given, count: int) -> list[Leaves]:
        pieces = {name: np.split(value, count, axis) for name, value in _all(ours).items()}
        return [kind.undo({name: piece[i] for name, piece in pieces.items()}, 1)[0] for i in range(count)]

    return Invertible(joined, split)


def stacked(kind: Kind) -> Kind:
    """Several modules of theirs along a new first axis of one of ours."""

    def joined(*modules: Module) -> Leaves:
        parts = [kind(m) for m in modules]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    if not isinstance(kind, Invertible):
        return joined

    def split(ours: Given, count: int) -> list[Leaves]:
        values = _all(ours)
        return [kind.undo({name: value[i] for name, value in values.items()}, 1)[0] for i in range(count)]

    return Invertible(joined, split)


def weight_norm(kind: Kind) -> Kind:
    """Fold weight_g * weight_v / ‖weight_v‖ (norm over all axes but the first), in float64; undone, v is the weight.

    A gain that is the norm, as near as float32 has it, is a gain of one: what was undone comes back bit for bit.
    """

    def folded(m: Module) -> Leaves:
        v = m["weight_v"].astype(np.float64)
        g = m["weight_g"].astype(np.float64)
        norm = _norms(v)
        _must_equal(g.shape, norm.shape)
        is_norm = np.abs(g - norm) <= 0.5001 * np.spacing(g.astype(np.float32))
        return kind(m.replaced("weight", (v * np.where(is_norm, 1.0, g / norm)).astype(np.float32)))

    if not isinstance(kind, Invertible):
        return folded

    def split(ours: Given, count: int) -> list[Leaves]:
        [tensors] = kind.undo(ours, 1)
        weight = tensors.pop("weight")
        norm = _norms(weight)
        v = np.where(norm == 0, np.copysign(np.float32(1), weight), weight)  # of zeros PyTorch would make 0 / 0
        return [{**tensors, "weight_v": v, "weight_g": norm.astype(np.float32)}]

    return Invertible(folded, split)


def _norms(weight: np.ndarray) -> np.ndarray:
    """The norm over all axes but the first, which stay, in float64."""
    return np.sqrt(np.square(weight, dtype=np.float64).sum(axis=tuple(range(1, weight.ndim)), keepdims=True))


def batch_norm(m: Module, epsilon: float = 1e-5, affine: bool = True) -> Leaves:
    """A batch norm of fixed statistics as scale and shift, computed in float64."""
    mean, variance = m["running_mean"].astype(np.float64), m["running_var"].astype(np.float64)
    _must_equal(mean.shape, variance.shape)
    scale = 1.0 / np.sqrt(variance + epsilon)
    if not affine:
        return {"scale": scale, "bias": -mean * scale}
    _must_equal(m["weight"].shape, m["bias"].shape, mean.shape)
    scale = scale * m["weight"]
    return {"scale": scale, "bias": m["bias"] - mean * scale}


def batch_norm_after(kind: Kind, epsilon: float = 1e-5, affine: bool = True) -> Kind:
    """A layer and the batch norm that follows it, as one layer: rows with (layer, norm)."""

    def folded(layer: Module, norm: Module) -> Leaves:
        scale, shift = batch_norm(norm, epsilon, affine).values()
        leaves = kind(layer)  # output channels last
        kernel, bias = leaves["kernel"], leaves.get("bias", np.zeros(scale.shape))
        _must_equal(kernel.shape[-1:], bias.shape, scale.shape)
        return {"kernel": kernel * scale, "bias": bias * scale + shift}

    return folded


def _must_equal(*shapes: tuple[int, ...]) -> None:
    """Raise ValueError where numpy would broadcast without a word."""
    if len(set(shapes)) > 1:
        raise ValueError(f"shapes {shapes} belong to one layer")


# ---- the contract ---------------------------------------------------------------------------------------------------


def _matching(pattern: str, modules: set[str]) -> Iterator[dict[str, str]]:
    """The values of the placeholders with which `pattern` names one of our modules."""
    if "{" not in pattern:
        yield {}
        return
    expression = re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(pattern)))
    found = [match.groupdict() for match in map(expression.fullmatch, modules) if match]
    yield from sorted(found, key=lambda values: [int(v) for v in values.values()])


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, "a/b/kernel"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}


def _rows(component: str, table: Table, leaves: Mapping[str, Any]) -> Iterator[tuple[Kind, list[str], str]]:
    """For each row and each module of ours that it names: the kind, the names of theirs, the name of ours."""
    modules = {"/".join(path.split("/")[:n]) for path in leaves for n in range(path.count("/") + 1)}
    for row in table.rows:
        names = (row.theirs,) if isinstance(row.theirs, str) else row.theirs
        matches = list(_matching(row.ours, modules))
        if not matches:
            raise CheckpointError(f"{component}: no module of ours is called {row.ours}, as a row of its table has it")
        for values in matches:
            yield row.kind, [name.format(**values) for name in names], row.ours.format(**values)


def is_unused(name: str, patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        least = [int(n) for n in re.findall(r"\{(\d+)\+\}", pattern)]
        expression = re.sub(r"\\{\d+\\\+\\}", r"(\\d+)", re.escape(pattern).replace(r"\*", ".*"))
        match = re.fullmatch(expression, name)
        if match and all(int(n) >= k for n, k in zip(match.groups(), least, strict=True)):
            return True
    return False


def files(tensors: Tensors) -> str:
    """The files that the tensors are in, for messages."""
    return " and ".join(sorted({str(tensor.file) for tensor in tensors.values()}))


def _check_constant(where: str, name: str, stored: np.ndarray, compute: Callable[..., np.ndarray]) -> None:
    """See that the constant in a checkpoint is the one that the system computes, but for half precision."""
    expected = compute(stored.shape)
    if stored.shape != expected.shape or not np.abs(stored.astype(np.float32) - expected).max() <= 5e-3:
        raise CheckpointError(
            f"{where}: {name} is a constant, but not the one that this system computes; the checkpoint is damaged or "
            "of another architecture"
        )


class Report(NamedTuple):
    """What became of a component's tensors."""

    component: str
    tensors: int  # used
    parameters: int  # of ours
    unused: list[str]  # known and not needed
    unknown: list[str]


def fill(
    component: str, table: Table, tensors: Tensors, like: Any, strict: bool = False, dry: bool = False
) -> tuple[dict, Report]:
    """The parameter tree that `table` makes of `tensors`, held to the contract.

    `like`: the tree of shapes to fill (`jax.eval_shape` of the component's init). Floating tensors become `like`'s
    dtype. With `dry`, shapes are checked and the values dropped. Raises CheckpointError for a missing, misshapen or
    doubly used tensor, an unfilled leaf, and (with `strict`) an unknown tensor; otherwise unknown ones are warned of.
    """
    expected = _flat(like)
    used: dict[str, Module] = {}
    filled: dict[str, str] = {}  # leaf -> row
    rows: dict[str, str] = {}  # our module -> row
    tree: dict = {}
    where = files(tensors)

    for kind, theirs, ours in _rows(component, table, expected):
        label = rows[ours] = f"{' + '.join(theirs)} -> {component} {ours}"
        try:
            leaves = kind(*(Module(name, tensors, used, label) for name in theirs))
        except CheckpointError:
            raise
        except (ValueError, IndexError) as error:  # from numpy, about shapes
            raise CheckpointError(f"{where}: {label}: tensors do not fit together: {shown(error)}") from None
        for leaf, value in leaves.items():
            path = f"{ours}/{leaf}" if ours else leaf
            if path not in expected:
                raise CheckpointError(f"{where}: {label} gives {leaf}, for which our module has no place")
            if path in filled:
                raise CheckpointError(f"{path} is filled twice, by {filled[path]} and by {label}")
            if value.shape != expected[path].shape:
                raise CheckpointError(
                    f"{where}: {label}: {leaf} has shape {value.shape}, expected {expected[path].shape}; "
                    "the checkpoint and its configuration do not belong together"
                )
            filled[path] = label
            if not dry:
                node = tree
                *parents, last = path.split("/")
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = np.asarray(value, dtype=expected[path].dtype, order="C")

    if left := sorted(expected.keys() - filled.keys()):
        row = rows.get(left[0].rpartition("/")[0], "which no row of its table names")
        raise CheckpointError(f"{where}: a tensor is missing, nothing fills {component} {left[0]} ({row})")
    rest = sorted(tensors.keys() - used.keys())
    unused = [name for name in rest if is_unused(name, (*table.unused, *table.computed))]
    for pattern, compute in {} if dry else table.computed.items():
        for name in unused:
            if is_unused(name, [pattern]):
                _check_constant(where, name, tensors[name].read(), compute)
    unknown = sorted(set(rest) - set(unused))
    if unknown:
        names, more = ", ".join(name[:100] for name in unknown[:10]), ", ..." if len(unknown) > 10 else ""
        text = f"{where}: {len(unknown)} unknown tensors for {component}: {names}{more}"
        if strict:
            raise CheckpointError(f"{text}; without --strict they are left out")
        log.warning("%s; left out", text)
    size = sum(int(np.prod(leaf.shape)) for leaf in expected.values())
    return tree, Report(component, len(used), size, unused, unknown)


def unfill(component: str, table: Table, tree: Any, like: Any, where: str) -> Iterator[tuple[str, np.ndarray]]:
    """The opposite of `fill`: their tensors, float32, by name, of a parameter tree; held to the contract.

    One module at a time, so that little is there twice. `like`: as for `fill`; where: the tree's place, for messages.
    Raises CheckpointError for a leaf that is missing, misshapen, unused or used twice, a tensor that is made twice, and
    a kind that cannot be undone.
    """
    leaves, expected = _flat(tree), _flat(like)
    found, wanted = ({path: tuple(leaf.shape) for path, leaf in each.items()} for each in (leaves, expected))
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise CheckpointError(
                f"{where}: {path} has shape {found.get(path, 'none')}, expected {wanted.get(path, 'none')}; convert "
                "the model again"
            )
    tensors = {
        path.replace("/", "."): Tensor(Path(where), leaf.shape, np.dtype(np.float32), functools.partial(_float32, leaf))
        for path, leaf in leaves.items()
    }
    used: dict[str, Module] = {}
    made: dict[str, str] = {}  # tensor -> row
    for kind, theirs, ours in _rows(component, table, expected):
        label = f"{component} {ours} -> {' + '.join(theirs)}"
        if not isinstance(kind, Invertible):
            raise CheckpointError(
                f"{where}: {label} cannot be exported, its kind has no inverse; convert/table.py has them"
            )
        module = Module(ours.replace("/", "."), tensors, used, label)
        try:
            parts = kind.undo(module, len(theirs))
        except CheckpointError:
            raise
        except ValueError as error:  # from numpy, about shapes
            raise CheckpointError(f"{where}: {label}: leaves cannot be taken apart: {shown(error)}") from None
        for name, part in zip(theirs, parts, strict=True):
            for last, value in part.items():
                full = f"{name}.{last}" if name else last
                if full in made:
                    raise CheckpointError(f"tensor {full} is made twice, by {made[full]} and by {label}")
                made[full] = label
                yield full, np.asarray(value, order="C")
    if left := sorted(tensors.keys() - used.keys()):
        raise CheckpointError(f"{where}: {component} {left[0]} is used by no row of its table")
    used.clear()  # a circle of references, which would keep the whole tree in memory


def _float32(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float32)
