"""The work of a traced program: floating-point operations of its products, bytes that it must read."""

import math
from collections.abc import Iterator
from typing import Any

import jax


def products(jaxpr: Any, trips: int = 1) -> float:
    """Floating-point operations of all matrix products and convolutions of a traced program, scans included.

    trips: how often the body of a while loop runs; of a conditional the longest branch counts, of forms for several
    platforms the default. Everything else (norms, activations, sums of shifted slices) is not counted.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, [v.aval for v in equation.outvars]
        if name == "dot_general" and (contracted := equation.params["dimension_numbers"][0][0]):
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(out[0].shape) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(out[0].shape) * math.prod(kernel) / kernel[features]
        times = {"scan": equation.params.get("length", 1), "while": trips}.get(name, 1)
        inner = [products(part, trips) for value in equation.params.values() for part in jaxprs(value)]
        if name == "cond":
            platforms = equation.params.get("branches_platforms") or ()
            inner = [inner[platforms.index(None)] if None in platforms else max(inner)]
        total += times * sum(inner)
    return total


def jaxprs(value: Any) -> Iterator[Any]:
    """The programs inside a parameter of an equation."""
    for part in value if isinstance(value, tuple | list) else [value]:
        if hasattr(part, "jaxpr"):
            yield part.jaxpr
        elif hasattr(part, "eqns"):
            yield part


def read(jaxpr: Any) -> int:
    """Bytes of the arguments that a program reads whole: not those it has no use for, nor tables it takes rows of."""
    uses: dict[Any, set[str]] = {}
    for equation in jaxpr.eqns:
        for place, variable in enumerate(equation.invars):
            if not hasattr(variable, "val"):  # no literal
                row = equation.primitive.name in ("gather", "dynamic_slice") and place == 0
                uses.setdefault(variable, set()).add("row" if row else "whole")
    whole = [variable.aval for variable in jaxpr.invars if "whole" in uses.get(variable, ())]
    return sum(aval.size * aval.dtype.itemsize for aval in whole)


def size(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
