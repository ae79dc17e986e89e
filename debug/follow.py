"""Running a network of ours beside the reference's tensors, module by module.

A network is followed: it runs whole, and each of its modules for which the golden file has the reference's output is
measured, then hands on that output instead of its own. So a fault shows where it is and does not hide the next one.
A golden file may hold any choice of layers: what lies between two stored tensors is measured as one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn  # to look into modules; elsewhere only models/ knows linen
import jax
import numpy as np

from indextts_jax.model import Model
from indextts_jax.models.layers import apart
from indextts_jax.reader import Reader


class Golden(dict[str, Any]):
    """Golden arrays by key, which remember which of them were looked at."""

    def __init__(self, arrays: Mapping[str, Any]):
        super().__init__(arrays)
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.used.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.used.add(key)
        return super().get(key, default)


class Comparison(NamedTuple):
    """One tensor of ours beside the reference's, in the same layout."""

    component: str
    where: str  # our modules that are measured, by the names of the parameter tree
    key: str  # in the golden file
    ours: np.ndarray
    reference: np.ndarray
    allowed: str | None  # row of `golden.TOLERANCE`; None: equal


class Case(NamedTuple):
    """What a stage is given: the loaded model, a golden file, and the recordings where there are files of them."""

    model: Model
    golden: Golden
    reader: Callable[[], Reader] | None = None
    speaker: Path | None = None
    emotion: Path | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """How the golden file was made."""
        return json.loads(str(self.golden["meta"])) if "meta" in self.golden else {}

    @property
    def segments(self) -> list[str]:
        """seg0, seg1, ... as far as there are any."""
        return sorted({key.split(".")[0] for key in self.golden if key.startswith("seg")}, key=lambda s: int(s[3:]))

    def has(self, *keys: str) -> bool:
        """Whether the golden file has all of these."""
        return all(key in self.golden for key in keys)

    def first(self, *keys: str) -> np.ndarray | None:
        """The first of these that the golden file has."""
        return next((self.golden[key] for key in keys if key in self.golden), None)


def same(x: np.ndarray) -> np.ndarray:
    return x


def swapped(x: np.ndarray) -> np.ndarray:
    """[B, C, T] as [B, T, C], and back."""
    return np.swapaxes(x, 1, 2)


class Row(NamedTuple):
    """A module and the golden tensor that it puts out."""

    module: str  # its path below the network, "" for the network itself
    key: str
    layout: Callable[[np.ndarray], np.ndarray] = same  # theirs -> ours
    then: Callable[[Any], Any] = same  # what the golden tensor has behind it and our module has not; harmless twice


class _Follower:
    """`function(params, cfg, *inputs)`, compiled so that modules whose output is stored hand on what is stored."""

    def __init__(self, function: Callable[..., Any], cfg: Any, rows: tuple[Row, ...], static: Mapping[str, Any]):
        self.rows = {row.module: row for row in rows}
        self.calls: list[str] = []  # the modules, as they finish
        self.function, self.cfg, self.static = function, cfg, static
        self.run = jax.jit(self._run)

    def _run(self, params: Any, inputs: Sequence[Any], stored: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ours: dict[str, Any] = {}
        self.calls.clear()

        def observe(call: Callable[..., Any], arguments: Any, more: Any, context: Any) -> Any:
            out = call(*arguments, **more)
            if context.method_name != "__call__":
                return out
            path = "/".join(context.module.path)
            self.calls.append(path)
            if path not in stored:
                return out
            first, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
            ours[path] = self.rows[path].then(first)
            if ours[path].shape != stored[path].shape:
                return out
            first = stored[path].astype(first.dtype)
            return first if rest is None else (first, *rest)

        with nn.intercept_methods(observe), apart():
            out = self.function(params, self.cfg, *inputs, **self.static)
        return out, ours


@cache
def _follower(function: Callable[..., Any], cfg: Any, rows: tuple[Row, ...], static: tuple[Any, ...]) -> _Follower:
    return _Follower(function, cfg, rows, dict(static))


def follow(
    case: Case, component: str, function: Callable[..., Any], inputs: Sequence[Any], rows: Sequence[Row],
    outputs: Sequence[Row], root: str = "", tail: str = "", allowed: str = "component", **static: Any,
) -> Iterator[Comparison]:  # fmt: skip
    """Run a public function of a component and compare its modules, then what comes out.

    rows: modules whose output the golden file may have. outputs: what the function returns, one Row per array, without
    a module. root: where the network lies in the parameters; tail: what follows the last module. allowed: row of
    TOLERANCE for the outputs where nothing was stored on the way; else a block's.
    """
    params, cfg = case.model.params[component], getattr(case.model.cfg, component)
    rows = tuple(row for row in rows if case.has(row.key))
    follower = _follower(getattr(function, "__wrapped__", function), cfg, rows, tuple(sorted(static.items())))
    stored = {row.module: row.layout(case.golden[row.key]) for row in rows}
    out, ours = follower.run(params, list(inputs), stored)
    calls = [f"{root}/{call}".strip("/") for call in follower.calls] + [tail] * bool(tail)
    at = 0
    for end, module in enumerate(follower.calls, 1):
        if module in ours:
            where = _span(calls[at:end], calls[end - 1], calls)
            kind = "component" if "…" in where else "block"
            key = follower.rows[module].key
            yield Comparison(component, where, key, np.asarray(ours[module]), stored[module], kind)
            at = end
    where = _span(calls[at:], tail, calls) or root
    arrays = [out] if len(outputs) == 1 else out
    for row, array in zip(outputs, arrays, strict=True):
        if case.has(row.key):
            reference = row.layout(case.golden[row.key])
            exact = np.issubdtype(reference.dtype, np.integer)
            kind = None if exact else "block" if at and allowed == "component" else allowed
            yield Comparison(component, where, row.key, np.asarray(row.then(array)), reference, kind)


def _span(calls: Sequence[str], module: str, every: Sequence[str]) -> str:
    """A name for what was called since the last stored tensor: a module, or the first and the last of several."""
    parents = {"/".join(parts[:n]) for parts in (call.split("/") for call in every) for n in range(len(parts))}
    leaves = [call for call in calls if call not in parents]
    if not leaves or (module and all(f"{leaf}/".startswith(f"{module}/") for leaf in leaves)):
        return module
    first, last = leaves[0].split("/"), leaves[-1].split("/")
    differ = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    if differ is None:
        return leaves[0]
    return " … ".join("/".join(parts[: differ + 1]) for parts in (first, last))
