"""What a compiled program does, read from its text: loop by loop the instructions, their bytes and estimated cycles.

XLA prints the final program: every array with its layout and tiles, and for a TPU the compiler's estimate of cycles per
fusion. Scatters, gathers of some kinds and copies in the background carry no estimate: sums of cycles are lower bounds.
Bytes count what goes through the device's main memory, tiles padded; of a slice or an update in place, the slice alone.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f8e4m3fn": 8, "f8e5m2": 8}
_ARRAY = re.compile(r"(pred|[subf]f?\d\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-~]+)")
_OPERATION = re.compile(r"([\w\-]+)\(")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota", "partition-id")
PARTS = ("dynamic-slice", "gather", "dynamic-update-slice")  # operations that touch a part of an array
IN_PLACE = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")  # custom calls that move nothing
# What a fusion is called by, the first that it contains.
KINDS = (
    "convolution", "dot", "scatter", "gather", "sort", "dynamic-update-slice", "reduce", "reduce-window",
    "dynamic-slice", "transpose", "concatenate", "copy", "custom-call",
)  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """An array as it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int  # without padding
    padded: int
    near: bool  # in a core's own memory, not in the device's main memory


@dataclass
class Instruction:
    name: str
    operation: str
    buffers: list[Buffer]  # its results
    operands: list[str]
    source: str  # the scope in the program that it comes from
    cycles: int | None  # the compiler's estimate
    calls: list[str]  # computations: of a fusion, a call, branches; of a loop its body first, its condition last
    trips: int | None  # of a loop, where the compiler knows
    root: bool
    target: str = ""  # of a custom call; of a parameter its number, of a constant its value

    @property
    def padded(self) -> int:
        return sum(buffer.padded for buffer in self.buffers if not buffer.near)


Computation = dict[str, Instruction]


@dataclass
class Loop:
    """The instructions of one loop's body, or of what lies outside of loops."""

    path: tuple[str, ...]  # the loops that it lies in, outermost first; the scope that each comes from
    trips: int | None  # times in one run of the surrounding one; None: known at run time alone
    instructions: list[Instruction] = field(default_factory=list)
    loops: list["Loop"] = field(default_factory=list)


class Program:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self._entry = ""
        own: Computation = {}
        for line in text.splitlines():
            if line.endswith("{") and (head := re.match(r"(ENTRY )?%([\w.\-~]+) \(", line)):
                own = self.computations[head[2]] = {}
                self._entry = head[2] if head[1] else self._entry
            elif found := re.match(r"\s+(ROOT )?%([\w.\-~]+) = (.*)$", line):
                own[found[2]] = _instruction(found[2], found[3], bool(found[1]))

    @cached_property
    def outside(self) -> Loop:
        """What lies outside of loops, with the loops inside it."""
        loop = Loop((), 1)
        self._fill(loop, self._entry)
        return loop

    def loops(self) -> Iterator[Loop]:
        """All, the outermost first, and what lies outside of them before."""

        def inside(loop: Loop) -> Iterator[Loop]:
            yield loop
            for one in loop.loops:
                yield from inside(one)

        return inside(self.outside)

    def _fill(self, loop: Loop, name: str) -> None:
        for one in self.computations[name].values():
            if one.operation == "while":
                inner = Loop((*loop.path, one.source or one.name), one.trips or self._trips(one))
                loop.loops.append(inner)
                self._fill(inner, one.calls[0])
            elif one.operation in ("call", "conditional", "async-start"):
                for part in one.calls:
                    self._fill(loop, part)
            elif one.operation not in FREE:
                loop.instructions.append(one)

    def _trips(self, loop: Instruction) -> int | None:
        """Of a loop that counts from 0 to a constant, as those of JAX do."""
        condition = self.computations[loop.calls[-1]]
        root = next(one for one in condition.values() if one.root)
        if root.operation != "compare" or len(root.operands) != 2:
            return None
        limit = condition[root.operands[1]]
        return int(limit.target) if limit.operation == "constant" and limit.target.isdigit() else None

    def kind(self, one: Instruction) -> str:
        """Its operation, of a fusion the heaviest one inside."""
        if one.operation != "fusion":
            return (one.target if one.operation == "custom-call" else "") or one.operation
        inside = {part.operation for part in self.inside(one)}
        return next((kind for kind in KINDS if kind in inside), "elementwise")

    def inside(self, one: Instruction) -> Iterator[Instruction]:
        """What a fusion does, fusions inside it included."""
        for name in one.calls:
            for part in self.computations[name].values():
                yield part
                if part.operation == "fusion":
                    yield from self.inside(part)

    def bytes(self, one: Instruction) -> int:
        """What an instruction reads from and writes to main memory."""
        if (
            one.operation in (*FREE, "while", "call", "conditional")
            or one.operation.endswith("-start")
            or one.target in IN_PLACE
        ):
            return 0
        own = self._of[one.name]
        if one.operation.endswith("-done"):  # a copy in the background: from or to main memory, or both
            begun = own.get(one.operands[0])
            source = own.get(begun.operands[0]) if begun and begun.operands else None
            far = [not any(buffer.near for buffer in part.buffers) for part in (one, source) if part]
            return sum(buffer.padded for buffer in one.buffers) * sum(far)
        if one.operation == "fusion":
            return self._of_fusion(one, own)
        if one.operation in ("dynamic-slice", "gather"):
            return 2 * one.padded
        if one.operation == "dynamic-update-slice":
            return 2 * own[one.operands[1]].padded
        return one.padded + sum(own[name].padded for name in one.operands if name in own)

    @cached_property
    def _of(self) -> dict[str, Computation]:
        """The computation of each instruction: names are unique in a program."""
        return {name: own for own in self.computations.values() for name in own}

    def _of_fusion(self, one: Instruction, own: Computation) -> int:
        inside = self.computations[one.calls[0]]
        users: dict[str, list[Instruction]] = {}
        for part in inside.values():
            for name in part.operands:
                users.setdefault(name, []).append(part)
        parameters = [part for part in inside.values() if part.operation == "parameter"]
        total, updated = 0, 0
        for parameter in parameters:
            place = int(parameter.target)
            outer = own.get(one.operands[place]) if place < len(one.operands) else None
            if outer is None or not outer.padded:
                continue
            uses = list(self._uses(parameter.name, users))
            if uses and all(use.operation in PARTS and first for use, first in uses):
                updates = [inside[use.operands[1]].padded for use, _ in uses if use.operation == PARTS[2]]
                total += 2 * sum(updates) + sum(use.padded for use, _ in uses if use.operation != PARTS[2])
                updated += outer.padded if updates else 0
            else:
                total += outer.padded
        return total + max(0, one.padded - updated)

    def _uses(self, name: str, users: dict[str, list[Instruction]]) -> Iterator[tuple[Instruction, bool]]:
        """Who uses it, seen through bitcasts, and whether as the array that it takes a part of."""
        for user in users.get(name, []):
            if user.operation == "bitcast":
                yield from self._uses(user.name, users)
            else:
                yield user, user.operands[0] == name


def _instruction(name: str, text: str, root: bool) -> Instruction:
    shape, rest = _split(text)
    operation = _OPERATION.match(rest)
    assert operation, text
    end = _closing(rest, operation.end() - 1)
    inside, attributes = rest[operation.end() : end], rest[end + 1 :]
    cycles, trips = _ESTIMATE.search(attributes), _TRIPS.search(attributes)
    source = re.search(r'op_name="([^"]*)"', attributes)
    target = re.search(r'custom_call_target="([^"]*)"', attributes)
    calls: list[str] = []
    for key in ("body", "calls", "to_apply", "called_computations", "branch_computations", "true_computation",
                "false_computation", "condition"):  # fmt: skip
        if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-~]+)", attributes):
            calls += _NAME.findall(found[1])
    return Instruction(
        name, operation[1], [_buffer(found) for found in _ARRAY.finditer(shape)], _NAME.findall(inside),
        source[1] if source else "", int(cycles[1]) if cycles else None, calls, int(trips[1]) if trips else None, root,
        target[1] if target else inside if operation[1] in ("parameter", "constant") else "",
    )  # fmt: skip


def _split(text: str) -> tuple[str, str]:
    """The shape before an operation, and the rest."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis at `begin` closes."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text) - 1


def _buffer(found: re.Match[str]) -> Buffer:
    dtype, sizes, layout = found[1], found[2], found[3] or ""
    shape = tuple(int(size) for size in sizes.split(",") if size)
    bits = _BITS.get(dtype) or int(re.sub(r"\D.*", "", dtype.lstrip("subf")) or 8)
    order, _, rest = layout.partition(":")
    tiles = [int(size) for size in m[1].split(",")] if (m := re.search(r"T\(([\d,]+)\)", rest)) else []
    minor_last = [shape[int(i)] for i in reversed(order.split(","))] if order and shape else list(shape)
    padded = [1] * (len(tiles) - len(minor_last)) + minor_last
    for i, tile in enumerate(reversed(tiles), 1):
        padded[-i] = -(-padded[-i] // tile) * tile
    near = bool(re.search(r"S\((?!0\))\d+\)", rest))
    return Buffer(dtype, shape, math.prod(shape) * bits // 8, math.prod(padded) * bits // 8, near)
