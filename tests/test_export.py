"""Every jitted stage lowers for a TPU as it does for a CPU and a GPU, and what a TPU does slowly stands here by name.

Official sizes, in shapes alone: nothing is compiled, no weights are made. What is not shown is how fast a TPU is.
"""

import importlib
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import indextts_jax
from indextts_jax import decoding, models, seeds, warmup
from indextts_jax.bench import counting
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.models import bigvgan, conditioner, gpt, layers, prototypes, qwen3, repcodec, s2mel
from indextts_jax.models.conditioner import ConditionerConfig
from indextts_jax.models.gpt import Prefix
from indextts_jax.models.qwen3 import Qwen3Config
from indextts_jax.models.repcodec import RepCodecConfig
from indextts_jax.request import Options
from indextts_jax.stages import STAGES
from indextts_jax.warmup import Uses, struct
from tests import small

pytestmark = pytest.mark.whole

PLATFORMS = ("cpu", "cuda", "tpu")
LANES = 128  # the last axis of a TPU's tile
INDEXED = ("gather", "scatter", "dynamic_slice", "dynamic_update_slice", "sort", "top_k")

LOOSE = "bfloat16"  # what a user may have set as the precision of products

# Jitted so that they are traced once for several uses.
PARTS = ("layers._alike", "layers._drawn", "bigvgan.activate")
# The targets of custom calls, each with the reason why it may stay.
CALLS = {"tpu_custom_call": "on TPUs alone, the kernels of BigVGAN and of the flow: models/*_kernel.py"}


class Access(NamedTuple):
    """An operation that a TPU does piece by piece, or by sorting."""

    where: str  # the function that asks for it
    operation: str
    pieces: int  # slices of a gather or scatter, rows of a sort or top_k
    size: int  # elements of each


class Call(NamedTuple):
    """A jitted function and the shapes that it is given."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def result(self) -> Any:
        return self.function.eval_shape(*self.arguments, **self.keywords)


class Note(NamedTuple):
    count: int  # in one step of a loop, all layers together
    reason: str  # why it may stay


# Everything indexed inside a loop, at 2 rows, 3 beams and 256 slots; 2 rows with guidance; 2 questions.
STEPS = {
    Access("decoding.advance", "gather", 2, 3): Note(1, "the last codes: a few numbers per row"),
    Access("gpt._embed", "gather", 6, 1280): Note(2, "whole rows of the two tables, one per beam"),
    Access("decoding.advance", "dynamic_slice", 1, 1): Note(1, "the number of the step"),
    Access("gpt.Block", "dynamic_update_slice", 1, 7680): Note(48, "a slot per beam, the same in every row"),
    Access("decoding.process", "top_k", 6, 8194): Note(
        1, "the 30 best of each beam: of two axes, so a TPU sorts nothing"
    ),
    Access("decoding.candidates", "top_k", 2, 24582): Note(
        1, "the 6 best continuations of each row: of two axes, so a TPU sorts nothing"
    ),
    Access("decoding.candidates", "top_k", 2, 6): Note(1, "their order without the noise: 6 numbers"),
    Access("decoding.candidates", "gather", 12, 1): Note(2, "the scores and codes of 6 continuations per row"),
    Access("decoding._decide", "sort", 2, 6): Note(1, "which of 6 continuations go on"),
    Access("decoding._decide", "gather", 6, 1): Note(3, "score, parent and code of each beam"),
    Access("decoding.advance", "dynamic_update_slice", 1, 6): Note(
        3, "what is added to the trace: stacked by the scan"
    ),
    Access("decoding.advance", "dynamic_update_slice", 1, 2): Note(1, "to which place of each row's"),
    Access("decoding.advance", "scatter", 32, 3): Note(3, "the trace of 16 steps, once for all of them"),
    # Once per 16 steps and row: the slots of these steps behind those before them.
    Access("decoding._settle", "sort", 1, 2): Note(1, "which rows reach into a block: a number per row"),
    Access("decoding._settle", "dynamic_slice", 1, 1): Note(3, "the row, and where its slots begin: a number each"),
    Access("decoding._settle", "dynamic_slice", 1, 61440): Note(48, "the slots of a row, of every layer"),
    Access("decoding._settle", "dynamic_slice", 1, 327680): Note(
        96, "a row of a block, before, and what comes into it"
    ),
    Access("decoding._settle", "dynamic_update_slice", 1, 327680): Note(48, "the row back to its place"),
    # Once per 16 steps, to find the slots that no beam sees any more.
    Access("decoding._compact", "sort", 2, 256): Note(1, "which slots of a row come first: once per 16 steps"),
    Access("decoding._compact", "sort", 1, 2): Note(1, "which rows are due: a number per row, once per 16 steps"),
    Access("decoding._compact", "gather", 512, 3): Note(1, "what the beams see, slot by slot: once per 16 steps"),
    # Once per 64 steps of a row, for that row alone.
    Access("decoding._compact", "dynamic_slice", 1, 1): Note(1, "the row that is due: one number"),
    Access("decoding._compact", "dynamic_slice", 1, 256): Note(48, "the order of its slots; XLA takes it once"),
    Access("decoding._compact", "dynamic_slice", 1, 327680): Note(48, "a whole row of every cache"),
    Access("decoding._compact", "dynamic_update_slice", 1, 327680): Note(48, "the row back to its place"),
}
WALK = {
    Access("decoding.winners", "gather", 2, 1): Note(2, "code and parent of one beam per row, once per sentence"),
    Access("decoding.winners", "scatter", 1, 2): Note(1, "that code of every row"),
}


def _spectrum(frame: int, bins: int) -> dict[Access, Note]:
    return {
        Access("features._power", "dynamic_slice", 1, 64 * frame): Note(1, "a block of 64 whole frames"),
        Access("features._power", "dynamic_update_slice", 1, 64 * bins): Note(1, "their spectra"),
    }


LOOPS = {
    "features.campplus_features": _spectrum(400, 257),
    "features.mel": _spectrum(1024, 513),
    "features.w2vbert_features": _spectrum(400, 257),
    "conditioner.emotion_vector": {
        Access("conditioner.Subsample", "dynamic_slice", 1, 18774): Note(1, "a block: the inputs of seven features"),
        Access("conditioner.Subsample", "dynamic_slice", 1, 1835008): Note(1, "a block: their weights"),
    },
    "conditioner.speaker_latents": {
        Access("conditioner.Subsample", "dynamic_slice", 1, 9387): Note(1, "a block: the inputs of seven features"),
        Access("conditioner.Subsample", "dynamic_slice", 1, 1835008): Note(1, "a block: their weights"),
    },
    "decoding.advance": STEPS,
    "decoding.agreed": {
        Access("decoding.agreed", "gather", 12, 1): Note(2, "code and parent of six paths per row, once per chunk"),
        Access("decoding.agreed", "scatter", 1, 2): Note(2, "the code of every row, and whether all have it"),
    },
    "decoding.winners": WALK,
    "decoding.decode": STEPS | WALK,
    "s2mel.solve": {
        Access("s2mel.integrate", "dynamic_slice", 1, 1): Note(2, "time and step width: one number each"),
        Access("layers.pad_edges", "gather", 8, 512): Note(8, "two mirrored frames per row and WaveNet layer"),
    },
    "qwen3.generate": {
        Access("qwen3._decode", "gather", 2, 1024): Note(1, "a whole row of the table per question"),
        Access("qwen3.Block", "scatter", 2, 1024): Note(4, "as in gpt.Block; some 100 steps, once per text"),
        Access("qwen3.generate", "scatter", 1, 2): Note(1, "one id per row"),
    },
}

MANY = 500  # pieces of a gather or scatter that are too many for a TPU, even once and outside of loops

# Sizes in the products of the loops that fill no whole tile.
PARTIAL = {
    ("layers.attend_cached", 48): "the slots of 16 steps with 3 beams",
    ("layers.by_product", 1): "silence, once per step",
    ("layers.by_product", 111): "frames, which are as many as there are",
    ("layers.by_product", 127): "frames, which are as many as there are",
    ("layers.attend_cached", 64): "the width of a head, as it was trained",
    ("layers.multiply", 8194): "8192 codes, start and stop: two columns in a tile of their own, 1.5 % of one product",
    ("s2mel.Estimator", 80): "mel bands, once per step",
    ("s2mel.Estimator", 592): "width and mel bands side by side, once per step",
    ("s2mel.Estimator", 864): "state, prompt, content and style side by side, once per step",
}


# ---- what is lowered ------------------------------------------------------------------------------------------------


def jitted() -> dict[str, Any]:
    """Every jitted function of the package by name, but kernels and parts, which lie within others."""
    found = {}
    for module in pkgutil.walk_packages(indextts_jax.__path__, "indextts_jax."):
        if module.name.endswith("_kernel"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, jax.stages.Wrapped) and name(value) not in PARTS:
                found[name(value)] = value
    return found


def name(function: Any) -> str:
    return f"{function.__module__.removeprefix('indextts_jax.').removeprefix('models.')}.{function.__name__}"


@cache
def programs(dtype: str) -> dict[str, Call]:
    """One program of every jitted function, of official size, for two rows."""
    if dtype == "float32":
        # The same with other weights: to list them anew would be to trace every stage once more.
        return {stage: _in_float32(program) for stage, program in programs("bfloat16").items()}
    cfg = Config(qwen3=Qwen3Config(layers=2))  # of 28: nothing else depends on them, and each is traced four times
    listed = warmup.programs(cfg, Options(), Uses(batches=(2,), codes=(48,)), dtype, platform="tpu")
    assert {program.stage for program in listed} == set(STAGES) - {"more cache"}  # which so few codes do not need
    stages = (Call(program.function, program.arguments, program.keywords) for program in listed)
    return {name(call.function): call for call in (*stages, *_others(cfg, dtype))}


def _in_float32(program: Call) -> Call:
    def wide(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.bfloat16:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
        return jnp.dtype(jnp.float32) if isinstance(leaf, np.dtype) else leaf

    return program._replace(arguments=jax.tree.map(wide, program.arguments))


def _others(cfg: Config, dtype: str) -> Iterator[Call]:
    """What is jitted and no stage of its own, or not of every use."""

    def program(function: Any, *arguments: Any, **keywords: Any) -> Call:
        return Call(function, arguments, keywords)

    def parameters(component: str, own: Any = None) -> Any:
        return models.cast(component, models.shapes(component, own or getattr(cfg, component)), dtype)

    integers, feeling, vector = struct((2,), np.int32), parameters("prototypes"), struct((2, cfg.gpt.width))
    state = decoding.empty.eval_shape(cfg.gpt, Sampling(), 2, 4, jnp.dtype(dtype))
    codes, keys = struct((2, 3), np.int32), jax.eval_shape(lambda: jax.random.split(seeds.key(0), 2))
    prefix = Prefix(struct((2, 76, cfg.gpt.width), dtype), integers)  # type: ignore[arg-type]
    yield program(decoding.more, cfg.gpt, state, 3)
    yield program(decoding.agreed, cfg.gpt, state)
    caches = jax.eval_shape(lambda: gpt.empty(cfg.gpt, 2, 76 + 512, jnp.dtype(dtype)))
    yield program(gpt.widen, caches, 76 + 1024)
    yield program(
        gpt.extend, parameters("gpt"), cfg.gpt, caches, 76, integers, struct((2, 64), np.int32), struct((), np.int32)
    )
    yield program(decoding.decode, parameters("gpt"), cfg.gpt, prefix, keys, Sampling(), max_codes=60)
    visible = struct((2, 3, state.visible.shape[2] + state.recent[0].k.shape[3]), bool)
    arguments = state.caches, state.recent, codes, struct((), np.int32), integers, visible
    yield program(gpt.step, parameters("gpt"), cfg.gpt, *arguments)
    yield program(layers.quantize, struct((cfg.gpt.code_vocabulary, cfg.gpt.width)))
    yield program(s2mel.target_lengths, integers)
    codec, heard = RepCodecConfig(stride=2), ConditionerConfig(speaker=None, style=cfg.s2mel.style)
    yield program(repcodec.restore, parameters("repcodec", codec), codec, struct((2, 48), np.int32), integers)
    style = struct((2, cfg.s2mel.style))
    yield program(conditioner.style_latents, parameters("conditioner", heard), heard, style)
    yield program(s2mel.window, struct((2, 640, cfg.s2mel.mels)), integers, frames=111)
    yield program(prototypes.similar, feeling, cfg.prototypes, struct((2, cfg.prototypes.style)))
    yield program(prototypes.drawn, jax.eval_shape(lambda: jax.random.key(0)), cfg.prototypes)
    eight = len(cfg.prototypes.groups)
    yield program(prototypes.mixture, feeling, struct((2, eight)), struct((2, eight), np.int32), vector)
    assert cfg.qwen3 is not None
    question = parameters("qwen3"), cfg.qwen3, struct((2, 128), np.int32), integers
    yield program(qwen3.logits, *question)
    yield (begun := program(qwen3.prefill, *question, capacity=256))
    yield program(qwen3.step, *question[:2], begun.result()[1], integers, integers)
    yield program(qwen3.generate, *question, most=128)


# ---- what a lowering holds ------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    operation: Any
    looped: bool
    where: str  # the innermost function of the package that asks for it


def module(program: Call, platform: str) -> Any:
    """What the compiler of a platform is given."""
    traced = program.function.trace(*program.arguments, **program.keywords)
    return traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")


@lru_cache(maxsize=1)
def for_tpu(stage: str) -> Any:
    return module(programs("bfloat16")[stage], "tpu")


def lowered(program: Call) -> list[Operation]:
    """The operations that a TPU is given."""
    return operations(module(program, "tpu"))


def operations(module: Any) -> list[Operation]:
    """Those of a function once for every call of it."""
    functions = {function.attributes["sym_name"].value: function.operation for function in module.body.operations}

    def inside(operation: Any, looped: bool, where: str) -> Iterator[Operation]:
        for region in operation.regions:
            for block in region:
                for one in block.operations:
                    yield from visit(one.operation, looped, where)

    def visit(operation: Any, looped: bool, where: str) -> Iterator[Operation]:
        where = _function(operation) or where
        yield Operation(operation, looped, where)
        if operation.name == "func.call":
            yield from inside(functions[operation.attributes["callee"].value], looped, where)
        yield from inside(operation, looped or operation.name == "stablehlo.while", where)

    return list(inside(functions["main"], False, ""))


_FRAME = re.compile(r'"([^"]+)"\("[^"]*/indextts_jax/(?:\w+/)*(\w+)\.py"')


def _function(operation: Any) -> str:
    """From the call stack at an operation, innermost first; none where the lowering is shared by several callers."""
    frame = _FRAME.search(str(operation.location))
    return f"{frame[2]}.{frame[1].split('.<locals>')[0].removesuffix('.__call__')}" if frame else ""


def accesses(operations: list[Operation], looped: bool) -> Counter[Access]:
    """What is indexed or sorted inside of loops, or outside of them."""
    found = (_access(one) for one in operations if one.looped == looped)
    return Counter(access for access in found if access)


def _access(one: Operation) -> Access | None:
    kind = one.operation.name.partition(".")[2]
    if kind not in INDEXED:
        return None
    shapes, result = _shapes(one.operation)
    if kind in ("gather", "scatter"):  # operand, indices, and of a scatter what is written
        pieces, elements = math.prod(shapes[1][:-1]), math.prod(result if kind == "gather" else shapes[2])
    elif kind in ("sort", "top_k"):
        pieces, elements = math.prod(shapes[0][:-1]), math.prod(shapes[0])
    else:
        pieces, elements = 1, math.prod(result if kind == "dynamic_slice" else shapes[1])
    return Access(one.where, kind, pieces, elements // pieces)


def _shapes(operation: Any) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Of the operands, and of the first result."""
    return [tuple(value.type.shape) for value in operation.operands], tuple(operation.results[0].type.shape)


def sizes(operations: list[Operation]) -> Iterator[tuple[str, int]]:
    """The sizes in the products of loops: what is summed over, and the features of the weights."""
    for operation, looped, where in operations:
        if not looped:
            continue
        if operation.name == "stablehlo.dot_general":
            [left, right], _ = _shapes(operation)
            numbers = str(operation.attributes["dot_dimension_numbers"])
            summed = re.search(r"lhs_contracting_dimensions = \[([\d, ]+)\]", numbers)
            if summed:
                yield from ((where, left[int(i)]) for i in summed[1].split(","))
                yield from ((where, size) for size in right if len(right) == 2)
        elif operation.name == "stablehlo.convolution":
            [_, kernel], _ = _shapes(operation)
            yield from ((where, size) for size in kernel[-2:])


# ---- every stage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(jitted()))
def stage(request):
    """One after another, each through all tests, so that it is traced and lowered once for all of them."""
    return request.param


def test_every_stage_lowers_for_every_platform(stage):
    """In bfloat16 for GPU and TPU, in float32 for a TPU: on a CPU, all other tests run them."""
    assert stage in programs("bfloat16"), "a jitted function of which no program is listed here"
    assert custom_calls(programs("bfloat16")[stage], "cuda") <= CALLS.keys()
    assert targets(for_tpu(stage)) <= CALLS.keys()
    with jax.default_matmul_precision(LOOSE):  # as it is traced in the tests of precision
        assert custom_calls(programs("float32")[stage], "tpu") <= CALLS.keys()


def custom_calls(program: Call, *platforms: str) -> set[str]:
    """The targets of a program's custom calls on some platforms; an error where one of them lacks what it needs."""
    found: set[str] = set()
    for platform in platforms or PLATFORMS:  # one by one: together, JAX would lower a TPU's kernel for the others, too
        found |= targets(module(program, platform))
    return found


def targets(module: Any) -> set[str]:
    return set(re.findall(r"stablehlo\.custom_call @([\w.]+)", str(module)))


# What is used in float32 and lies in bfloat16 all the same.
NARROW = {
    (1280,): "the GPT's norms: in float32, a TPU's compiler fetches neither weights nor cache ahead of their use",
    (8194,): "the bias of the GPT's head, whose dtype is that of the head: one for all layers",
    (8192, 8): "RepCodec's codebook, whose rows are also looked up in bfloat16; once per recording",
}


def inner(equation: Any) -> Iterator[Any]:
    """The programs inside an equation; and a form for TPUs, which is traced no earlier than it is lowered."""
    for value in equation.params.values():
        yield from counting.jaxprs(value)
    if equation.primitive.name == "on_tpu":
        shapes = [struct(variable.aval.shape, variable.aval.dtype) for variable in equation.invars]
        yield jax.make_jaxpr(equation.params["tiled"])(*shapes).jaxpr


def widened(jaxpr: Any, weights: set[int]) -> Iterator[tuple[int, ...]]:
    """The shapes of the arguments, those at the places `weights`, that are converted to float32 as they are."""
    own = {variable for i, variable in enumerate(jaxpr.invars) if i in weights}
    for equation in jaxpr.eqns:
        places = {i for i, v in enumerate(equation.invars) if not hasattr(v, "val") and v in own}
        if equation.primitive.name == "convert_element_type" and places:
            if equation.params["new_dtype"] == jnp.float32:
                yield equation.invars[0].aval.shape
        elif equation.primitive.name == "while":
            conditions, constants = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            body = {i - conditions for i in places if conditions <= i < conditions + constants}
            yield from widened(equation.params["body_jaxpr"].jaxpr, body)
        else:
            begin = int(equation.primitive.name == "cond")
            for part in inner(equation):
                yield from widened(part, {i - begin for i in places})


def test_what_is_used_in_float32_is_kept_in_it(stage):
    """Else it is converted anew wherever it is used, in every step of a loop."""
    program = programs("bfloat16")[stage]
    traced = program.function.trace(*program.arguments, **program.keywords)
    leaves = jax.tree.leaves(traced.in_avals)
    weights = {i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.bfloat16 and leaf.ndim < 3}
    assert set(widened(traced.jaxpr.jaxpr, weights)) <= set(NARROW)


def test_what_is_indexed_is_noted(stage):
    """Another gather in a loop fails here until the table has it, with the reason why it may stay."""
    found = operations(for_tpu(stage))
    assert accesses(found, looped=True) == counts(LOOPS.get(stage, {}))
    assert not [access for access in accesses(found, looped=False) if moved(access) >= MANY]


def counts(notes: dict[Access, Note]) -> dict[Access, int]:
    assert all(note.reason for note in notes.values())
    return {access: note.count for access, note in notes.items()}


def moved(access: Access) -> int:
    return access.pieces if access.operation in ("gather", "scatter") else 0


def test_products_in_loops_are_of_whole_tiles_but_for_those_noted():
    found = {
        size for stage in ("decoding.advance", "s2mel.solve") for size in sizes(lowered(programs("bfloat16")[stage]))
    }
    assert ("s2mel.WaveNet", 1024) in found
    assert {(where, size) for where, size in found if size % LANES} == PARTIAL.keys()


# ---- other ways of use ----------------------------------------------------------------------------------------------


def variants() -> Iterator[tuple[str, Call]]:
    """Static arguments that are not the defaults, of small size."""

    def parameters(component: str, cfg: Any) -> Any:
        return jax.tree.map(lambda leaf: struct(leaf.shape), models.shapes(component, cfg))

    weights = parameters("gpt", small.GPT)
    for beams, sample, top_k in ((1, True, 30), (1, False, 0), (3, False, 0), (3, True, 0)):
        state = decoding.empty.eval_shape(small.GPT, Sampling(beams, sample, top_k), 2, 1, jnp.dtype(np.float32))
        arguments = weights, small.GPT, state, struct((), bool), struct((), np.int32)
        yield "decoding.advance", Call(decoding.advance, arguments, {})
    state = decoding.empty.eval_shape(small.GPT, Sampling(), 2, 1, jnp.dtype(models.default_dtype()))
    arguments = models.cast("gpt", weights, "int8"), small.GPT, state, struct((), bool), struct((), np.int32)
    yield "decoding.advance", Call(decoding.advance, arguments, {})
    cfg, integers = small.S2MEL, struct((2,), np.int32)
    mel, content = struct((2, 12, cfg.mels)), struct((2, 12, cfg.content))
    style, guidance = struct((2, cfg.style)), struct((2,))
    arguments = parameters("s2mel", cfg), cfg, mel, mel, content, style, integers, integers, guidance
    for keywords in ({"guided": False}, {"every": True}):
        yield "s2mel.solve", Call(s2mel.solve, arguments, keywords)


# What these index beyond the defaults.
OTHERS = {
    ("s2mel.integrate", "dynamic_update_slice"): "the state after each step, kept where it is asked for",
}


@pytest.mark.parametrize(("stage", "program"), list(variants()))
def test_other_settings_lower_as_well_and_index_no_more(stage, program):
    assert custom_calls(program) <= CALLS.keys()
    noted = {(access.where, access.operation) for access in LOOPS[stage]} | OTHERS.keys()
    assert {(access.where, access.operation) for access in accesses(lowered(program), looped=True)} <= noted


# ---- these tests can fail -------------------------------------------------------------------------------------------


def one(function: Any, *shapes: jax.ShapeDtypeStruct) -> Call:
    return Call(jax.jit(function), shapes, {})


def test_a_call_back_to_the_host_does_not_pass():
    x = struct((4,))
    with pytest.raises((NotImplementedError, ValueError), match=r"callback|platform"):
        custom_calls(one(lambda a: jax.pure_callback(np.sin, x, a), x))


def test_a_custom_call_is_found():
    assert "Eigh" in custom_calls(one(lambda a: jnp.linalg.eigh(a)[0], struct((4, 4))))


def test_what_one_platform_lacks_does_not_pass():
    with pytest.raises(NotImplementedError, match="tpu"):
        custom_calls(one(jnp.linalg.eigvals, struct((4, 4))))


def test_an_access_is_found_in_loops_in_calls_and_nowhere_else():
    def function(table, places):
        def step(row, _):
            return jnp.take_along_axis(row, places, axis=0), None  # lowered as a call

        row = table.at[places, 0].set(0.0)[:, 1]
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jax.lax.scan(step, x, length=3)[0], row)

    found = lowered(one(function, struct((8, 2)), struct((8,), np.int32)))
    assert accesses(found, looped=True) == {Access("", "gather", 8, 1): 1}
    assert accesses(found, looped=False) == {Access("", "scatter", 8, 1): 1}


def test_another_gather_in_the_solver_is_found(monkeypatch):
    [program] = [program for _, program in variants() if program.keywords == {"every": True}]
    estimate = s2mel.estimate

    def reversed_in_time(params, cfg, x, *rest):
        return estimate(params, cfg, jnp.take(x, jnp.arange(x.shape[1])[::-1], axis=1), *rest)

    monkeypatch.setattr(s2mel, "estimate", reversed_in_time)
    solve = jax.jit(lambda *arguments: s2mel.solve.__wrapped__(*arguments), static_argnums=1)
    found = accesses(lowered(program._replace(function=solve, keywords={})), looped=True)
    assert Access("s2mel.solve", "gather", 12, 4 * small.S2MEL.mels) in found


# ---- precision ------------------------------------------------------------------------------------------------------


class Product(NamedTuple):
    """A product or a convolution of a traced program."""

    left: str
    right: str
    exact: bool  # at the highest precision; otherwise an accelerator takes 8 to 11 bits of each factor


def products(program: Call, setting: str | None = None) -> list[Product]:
    """All of them, in whatever they are nested, with JAX's global setting as given."""

    def visit(jaxpr: Any) -> Iterator[Product]:
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                left, right = (variable.aval.str_short() for variable in equation.invars[:2])
                yield Product(left, right, equation.params["precision"] == EXACT)
            for part in inner(equation):
                yield from visit(part)

    with jax.default_matmul_precision(setting):  # type: ignore[arg-type]
        return list(visit(program.function.trace(*program.arguments, **program.keywords).jaxpr.jaxpr))


EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)

# Networks whose products must not all be exact where the weights are bfloat16.
NETWORKS = (
    "w2vbert.encode", "campplus.embed", "repcodec.quantize", "s2mel.regulate", "conditioner.speaker_latents",
    "gpt.prefill", "decoding.advance", "gpt.latents", "s2mel.solve", "bigvgan.vocode", "qwen3.generate",
)  # fmt: skip


def test_float32_products_are_exact_whatever_the_setting(stage):
    """Float32 weights mean float32: a GPU does not make TF32 of it, nor a TPU bfloat16."""
    found = products(programs("float32")[stage], LOOSE)
    assert [product for product in found if not product.exact] == []
    assert found or stage not in NETWORKS


def test_float32_products_beside_bfloat16_are_exact(stage):
    """What stays float32 where the weights are bfloat16 does so for its precision: no product may round it again."""
    found = products(programs("bfloat16")[stage])
    assert [p for p in found if not p.exact and p.left.startswith("float32") and p.right.startswith("float32")] == []
    narrow = [p for p in found if p.left.startswith("bfloat16") and p.right.startswith("bfloat16")]
    assert not any(product.exact for product in narrow)
    assert narrow or stage not in NETWORKS


def test_products_of_gradients_are_exact():
    def loss(params, x, mel, content):
        n = jnp.array([12, 12])
        style, guidance = content[:, 0, : small.S2MEL.style], jnp.ones(2)
        velocity = s2mel.solve(params["s2mel"], small.S2MEL, x, x, content, style, n, n, guidance)
        return velocity.sum() + bigvgan.vocode(params["bigvgan"], small.BIGVGAN, mel, n).sum()

    def parameters(component: str, cfg: Any) -> Any:
        return jax.tree.map(lambda leaf: struct(leaf.shape), models.shapes(component, cfg))

    params = {"s2mel": parameters("s2mel", small.S2MEL), "bigvgan": parameters("bigvgan", small.BIGVGAN)}
    inputs = (struct((2, 12, n)) for n in (small.S2MEL.mels, small.BIGVGAN.mels, small.S2MEL.content))
    found = products(one(jax.grad(loss), params, *inputs), "bfloat16")
    assert len(found) > 100
    assert all(product.exact for product in found)


def test_a_loose_product_is_found():
    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (jnp.einsum("ij,jk->ik", x, b), None), a, length=3)[0]

    assert products(one(scanned, struct((4, 4)), struct((4, 4)))) == [Product("float32[4,4]", "float32[4,4]", False)]
    assert products(one(scanned, struct((4, 4)), struct((4, 4))), "highest")[0].exact
