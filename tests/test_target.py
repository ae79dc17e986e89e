"""Programs compiled for chips that are not at hand: what is read from them, and for a v5e that they stay as they are.

The tests that compile for a TPU are marked slow and need the extra [tpu]: `make test-tpu`.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from indextts_jax import cli, decoding
from indextts_jax.bench import chips, hlo, target
from indextts_jax.bench.chain import Setting
from indextts_jax.cli.bench import TARGETS
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from tests import small
from tests.small import parameters

# As XLA prints it, the layouts with tiles of 8 x 128 and pairs of bfloat16.
TEXT = """HloModule jit_f, entry_computation_layout={()->f32[]}

%fused (param_0.1: bf16[4,20,64], param_1: s32[]) -> bf16[1,20,64] {
  %param_0.1 = bf16[4,20,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = bf16[1,20,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0.1, %param_1, %zero, %zero), dynamic_slice_sizes={1,20,64}
}

%body (state: (s32[], bf16[4,20,64])) -> (s32[], bf16[4,20,64]) {
  %state = (s32[]{:T(128)}, bf16[4,20,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,20,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %row = bf16[1,20,64]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/while/body/take"}, backend_config={"estimated_cycles":"3000"}
  %sum = bf16[4,20,64]{2,1,0:T(8,128)(2,1)} all-reduce(%x), to_apply=%add
  ROOT %next = (s32[]{:T(128)}, bf16[4,20,64]{2,1,0:T(8,128)(2,1)}) tuple(%i, %sum)
}

%condition (state: (s32[], bf16[4,20,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[4,20,64]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} constant(12)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (a: bf16[4,20,64]) -> bf16[4,20,64] {
  %a = bf16[4,20,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, bf16[4,20,64]{2,1,0:T(8,128)(2,1)}) tuple(%start, %a)
  %loop = (s32[]{:T(128)}, bf16[4,20,64]{2,1,0:T(8,128)(2,1)}) while(%begin), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %out = bf16[4,20,64]{1,2,0:T(8,128)(2,1)} copy(%a), backend_config={"estimated_cycles":"1500"}
}
"""  # noqa: E501
ROW = 24 * 128 * 2  # of 20 x 64 bfloat16 in tiles of 8 x 128


def test_a_compiled_program_is_read_loop_by_loop():
    program = hlo.Program(TEXT)
    outside, loop = program.loops()
    assert [one.name for one in outside.instructions] == ["out"]
    assert loop.trips == 12
    assert loop.path == ("jit(f)/while",)
    row, total = loop.instructions
    assert program.kind(row) == "dynamic-slice"
    assert row.cycles == 3000
    assert program.bytes(row) == ROW + 512  # one row of four, and the number; what it gives stays in the core
    assert program.bytes(total) == 2 * 4 * ROW
    [copy] = outside.instructions
    assert copy.padded == 4 * 64 * 128 * 2  # 20 in the lanes
    figures = target.read(program, chips.CHIPS["v5e"], Setting())
    assert figures["estimate_s"] == pytest.approx((12 * 3000 + 1500) / 1.5e9)
    assert figures["collectives"] == {"outside": 0, "inside": 1}
    assert figures["operations"] == 2 * 12 + 1
    assert figures["largest"][0]["name"] == "row"


def test_loops_of_a_program_as_xla_prints_it():
    x = jax.ShapeDtypeStruct((8, 16), np.float32)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x) @ x.T @ x, None), x, length=7)[0])
    [_, loop] = hlo.Program(scanned.trace(x).lower().compile().as_text()).loops()
    assert loop.trips == 7
    assert loop.instructions
    until = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x))
    [_, loop] = hlo.Program(until.trace(x).lower().compile().as_text()).loops()
    assert loop.trips is None


def test_the_loops_of_decoding_are_known_by_name():
    """How often they run stands in `target`, by the names that `decoding` gives them."""
    params, cfg = parameters("gpt", small.GPT), small.GPT
    state = decoding.empty.eval_shape(cfg, Sampling(3), 2, 2, jnp.dtype(np.float32))
    arguments = params, cfg, state, jnp.array(False), jnp.int32(1)
    text = decoding.advance.trace(*arguments).lower().compile().as_text()
    loops = list(hlo.Program(text).loops())
    assert sum("/settle/" in loop.path[-1] for loop in loops if loop.path) == 2  # one per block
    assert any("/compact/" in loop.path[-1] for loop in loops if loop.path)
    times = {loop["name"]: loop["times"] for loop in target.read(hlo.Program(text), chips.CHIPS["v5e"], Setting(
        batch=2, codes=160))["loops"]}  # fmt: skip
    assert times["jit(advance)"] in (10, 160)
    assert times["jit(advance)/settle"] == pytest.approx(10 * 2 * (1 + 48 / 256) / 2)
    assert times["jit(advance)/compact"] == pytest.approx(10 * 2 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "v5e", "--chips", "3"], "--chips 3: for v5e it can be 1, 4, 8"),
        (["--target", "v5e", "--stages", "flow,vocoder"], "--stages vocoder: no such stage"),
        (["--chips", "4"], "of use with --target alone"),
        (["--target", "v5e", "--plot", "x.png"], "--plot: not with --target"),
    ],
)
def test_what_cannot_be_asked_for(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_every_chip_can_be_a_target():
    assert set(TARGETS) == chips.CHIPS.keys()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is there")
def test_a_missing_compiler_is_named(capsys):
    assert cli.main(["bench", "--target", "v5e", "--stages", "noise"]) == 1
    assert "pip install 'indextts-jax[tpu]'" in capsys.readouterr().err


# ---- for a v5e ------------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the compiler for TPUs: make test-tpu"
)


def compile_for_tpu(stage: str, setting: Setting, count: int = 1):
    """-> (the program as compiled, its text as read)."""
    chip = chips.CHIPS["v5e"]
    program = target.programs(Config(), setting, "tpu")[stage]
    mesh = Mesh(chips.devices(chip, count), ("rows",))
    _, executable = target.compiled(program, mesh, "tpu", setting.batch)
    return executable, hlo.Program(executable.as_text())


def kinds(program: hlo.Program, depth: int) -> set[str]:
    """What the loops of that depth and deeper do."""
    return {
        kind
        for loop in program.loops()
        if len(loop.path) >= depth
        for one in loop.instructions
        for kind in (program.kind(one), one.operation.removesuffix("-start"))
    }


@pytest.mark.slow
@needs_compiler
def test_decoding_fits_and_pads_nothing():
    """64 rows with 3 beams at 1024 slots in 16 GB, and in the loop of steps no cache in a layout that is padded."""
    setting = Setting("bfloat16", batch=64, codes=256)
    executable, program = compile_for_tpu("decoding", setting)
    assert executable.memory_analysis().peak_memory_in_bytes < 13e9
    *_, steps = (loop for loop in program.loops() if loop.trips == decoding.CHUNK)
    carried = [one for own in program.computations.values() for one in own.values() if one.operation == "while"]
    block = (64, 20, 64, decoding.BLOCK)
    caches = [buffer for one in carried for buffer in one.buffers if buffer.shape == block]
    assert len(caches) >= 4 * 48
    assert all(buffer.padded == buffer.bytes for buffer in caches)
    assert not {"scatter", "copy"} & {
        program.kind(one) for one in steps.instructions if one.padded > 64 * 20 * 64 * decoding.BLOCK
    }
    figures = target.read(program, chips.CHIPS["v5e"], setting)
    step = max(loop["estimate_s"] for loop in figures["loops"] if loop["times"] == setting.codes)
    assert step < 27e-3


@pytest.mark.slow
@needs_compiler
def test_the_flow_scatters_nothing_and_keeps_its_scores_near():
    """What three kernels in each of 13 layers leave to the compiler: the kernels themselves carry no estimate."""
    setting = Setting("bfloat16", batch=8, codes=256)
    executable, program = compile_for_tpu("flow", setting)
    assert executable.memory_analysis().temp_size_in_bytes < 0.5e9
    assert "scatter" not in kinds(program, depth=1)
    figures = target.read(program, chips.CHIPS["v5e"], setting)
    assert figures["without_estimate"]["tpu_custom_call"] == 3 * 13
    assert figures["estimate_s"] / setting.flow_steps < 7e-3


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("stage", ["decoding", "flow"])
def test_a_batch_on_four_chips_exchanges_nothing_in_its_loops(stage):
    """Each chip runs its own rows: decoding goes row by row, and jit does not share out the flow's kernels."""
    _, program = compile_for_tpu(stage, Setting("bfloat16", batch=8, codes=128), count=4)
    assert "convolution" in kinds(program, depth=1)
    assert not kinds(program, depth=1) & set(hlo.COLLECTIVES)
