"""The benchmark: what it counts, where it stands, and what it reports."""

import dataclasses
import itertools
import json
import logging
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug import bench_reference
from indextts_jax import cli
from indextts_jax.bench import chain as chains
from indextts_jax.bench import counting, machine, plot, report
from indextts_jax.bench.chain import Setting, run
from indextts_jax.bench.machine import Machine
from indextts_jax.model import load
from indextts_jax.models import gpt, w2vbert
from indextts_jax.stages import ALL, STAGES
from tests.small import GPT, W2VBERT, normal, parameters

pytestmark = pytest.mark.whole

SETTING = Setting(beams=1, codes=20, seconds=1.0, pieces=9, flow_steps=2)
MACHINE = Machine("test", 1, "0", "3", "2026-01-01", {"float32": 1e9, "bfloat16": 2e9}, 1e9)


def counted(function, *shapes, trips=1):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return counting.products(jax.make_jaxpr(function)(*arguments).jaxpr, trips)


def test_products_by_hand():
    """Products, batched ones, convolutions, what a scan and a loop repeat, and nothing else."""
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert (
        counted(lambda a, b: jnp.einsum("bqnh,bknh->bnqk", a, b), (2, 3, 4, 5), (2, 6, 4, 5)) == 2 * 2 * 3 * 6 * 4 * 5
    )

    def convolve(x, k, groups=1):
        dimensions = jax.lax.conv_dimension_numbers(x.shape, k.shape, ("NWC", "WIO", "NWC"))
        return jax.lax.conv_general_dilated(
            x, k, (1,), "VALID", dimension_numbers=dimensions, feature_group_count=groups
        )

    assert counted(convolve, (2, 10, 3), (4, 3, 6)) == 2 * 2 * 7 * 6 * 4 * 3
    assert counted(lambda x, k: convolve(x, k, 3), (1, 10, 3), (4, 1, 6)) == 2 * 7 * 6 * 4
    scanned = lambda a, b: jax.lax.scan(lambda x, _: (x @ b, None), a, length=9)[0]  # noqa: E731
    assert counted(scanned, (3, 5), (5, 5)) == 9 * 2 * 3 * 5 * 5
    looped = lambda a, b: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ b, a)  # noqa: E731
    assert counted(looped, (3, 5), (5, 5), trips=4) == 4 * 2 * 3 * 5 * 5
    branches = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b)  # noqa: E731
    assert counted(branches, (3, 5), (5, 5)) == 2 * 2 * 3 * 5 * 5
    assert counted(jax.jit(lambda a, b: jnp.tanh(a @ b) + a), (3, 3), (3, 3)) == 2 * 27
    assert counted(lambda a, b: jnp.einsum("tc,c->tc", jnp.tanh(a), b).sum(), (3, 3), (3,)) == 0


def test_products_of_stages_by_hand():
    """w2v-BERT and a prefill, against formulas of their own."""
    T, c = 40, W2VBERT
    features, seen, lengths = normal(0, 1, T, c.features), np.ones((1, T), bool), np.array([T])
    jaxpr = w2vbert.encode.trace(parameters("w2vbert", c), c, features, seen, lengths).jaxpr.jaxpr
    D, U, span = c.width, c.intermediate, c.left + c.right + 1
    # attention and convolution, two feed-forwards; scores and sums; scores of distances
    layer = T * (4 * D * D + 3 * D * D + 4 * D * U) + 2 * T * T * D + T * span * D
    assert counting.products(jaxpr) == 2 * (T * c.features * D + c.layers * layer)
    P, g = 12, GPT
    prefix = gpt.Prefix(normal(1, 1, P, g.width), np.array([P]))
    jaxpr = gpt.prefill.trace(parameters("gpt", g), g, prefix).jaxpr.jaxpr
    layer = 12 * P * g.width**2 + 2 * P * P * g.width
    assert counting.products(jaxpr) == 2 * (g.layers * layer + g.width * g.code_vocabulary)


@pytest.fixture(scope="module")
def figures(converted):
    """A run of the whole chain on the tiny model."""
    model = load(converted, "float32")
    before = [stage.function for stage in STAGES.values()]
    chain, stages = run(model.params, model.cfg, SETTING, repeat=2)
    assert [stage.function for stage in STAGES.values()] == before
    return model, chain, stages


def test_every_stage_is_timed(figures):
    model, chain, stages = figures
    found = {stage.name: stage for stage in stages}
    missing = set(STAGES) - set(found)
    assert missing <= {"more cache"}  # which so few codes do not need
    assert all(len(stage.runs_s) == 2 and stage.run_s > 0 for stage in stages)
    assert found["decoding"].steps == SETTING.codes - 1  # the first one is drawn by the admission
    assert found["flow"].steps == SETTING.flow_steps
    assert found["w2v-BERT"].calls == found["flow"].calls == 1
    assert found["w2v-BERT"].compile_s > 0
    assert chain.audio_s == pytest.approx(int(SETTING.codes * 1.72) * 256 / 22050)
    assert chain.first_s >= chain.compile_s > 0
    assert chain.real_time_factor == chain.speak_s / chain.audio_s
    # A step reads the decoder and the cache once; what is counted must be so much, and not far more.
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves([model.params["gpt"][name] for name in ("decoder", "head")]))
    cache = 2 * model.cfg.gpt.layers * 256 * model.cfg.gpt.width * 4
    assert 19 * (weights + cache) < found["decoding"].bytes < 1.3 * 19 * (weights + cache)
    assert found["prefix"].bytes < weights / 4
    # Its activations: more than what it is given, less than all of its steps would need.
    assert 1e5 < found["flow"].temporary < 1e8
    assert found["flow"].xla_bytes > found["flow"].bytes / SETTING.flow_steps / 2
    assert found["flow"].flops > SETTING.flow_steps * found["flow"].xla_flops / 4


def test_a_stage_in_the_trace_of_another_is_left_alone(figures):
    """s2mel.content calls regulate, which is a seam of its own when it is called from outside."""
    _, _, stages = figures
    assert {stage.name: stage.calls for stage in stages}["prompt content"] == 1


def test_report(figures):
    _, chain, stages = figures
    result = json.loads(json.dumps(report.report(MACHINE, [chain], stages)))
    row = next(row for row in result["stages"] if row["name"] == "flow")
    assert {"name", "compile_s", "run_s", "spread_s", "flops", "xla_flops", "bytes", "floor_s", "fraction"} <= set(row)
    assert row["floor_s"] == max(row["flops"] / 1e9, row["bytes"] / 1e9)
    assert row["fraction"] == pytest.approx(row["floor_s"] / row["run_s"])
    assert result["memory"]["host_peak_bytes"] > 2**27
    text = report.table(result)
    assert f"| flow | 1 | {row['compile_s']:.1f} | {row['run_s']:.3f} (" in text
    assert "real-time factor" in text
    earlier = json.loads(json.dumps(result))
    for old in earlier["stages"]:
        old["run_s"] *= 3
    [line] = [line for line in report.table(result, earlier).splitlines() if line.startswith("| flow ")]
    assert line.endswith("| 3.00x |")


def test_the_references_seconds_stand_beside_ours(figures):
    """Of a stage that it does not have, ours stands alone; of one that neither has, nothing."""
    _, chain, stages = figures
    seconds = {"flow": [2.0, 4.0, 9.0], "codes": [1.0], "whole chain": [10.0]}
    timed = {"torch": "9.9", "threads": 2, "stages": seconds, "audio_s": 1.0}
    result = report.report(MACHINE, [dataclasses.replace(chain, reference=timed)], stages)
    own = {row["name"]: row["run_s"] for row in result["stages"]}
    flow = sum(own[name] for name in report.GROUPS["flow"])
    lines = report.beside(result)
    assert f"| flow | {flow:.3f} | 4.000 | {flow / 4:.2f} |" in lines
    assert f"| second pass | {own['second pass']:.3f} | | |" in lines
    assert not any(line.startswith("| codec's decoder ") for line in lines)
    assert lines[-1].startswith("| whole chain | ")
    assert {name for names in report.GROUPS.values() for name in names} <= set(ALL)


def grown(figures, **sizes):
    """A report of several settings, in which seconds grow with the square of every size and memory with the size."""
    _, chain, stages = figures
    chains, rows = [], []
    for values in itertools.product(*sizes.values()):
        setting = dataclasses.replace(SETTING, **dict(zip(sizes, values, strict=True)))
        much = math.prod(values)
        chains.append(dataclasses.replace(chain, setting=setting, listen_s=0.5 * much**2, speak_s=0.5 * much**2))
        rows += [
            dataclasses.replace(stage, setting=setting, runs_s=[1e-2 * much**2], temporary=1000 * much)
            for stage in stages
        ]
    return json.loads(json.dumps(report.report(MACHINE, chains, rows)))


def test_growth(figures):
    """One set of curves per size that has several values and per choice of the others, with the exponents."""
    assert report.scaling(grown(figures, codes=[20])) == []
    [codes] = report.scaling(grown(figures, codes=[40, 10, 20]))
    assert (codes.size, codes.values) == ("codes", [10, 20, 40])
    for curves, slope in ((codes.seconds, 2), (codes.bytes, 1)):
        assert "flow" in curves
        assert [report.exponent(codes.values, values) for values in curves.values()] == pytest.approx(
            [slope] * len(curves)
        )
    both = report.scaling(grown(figures, codes=[10, 20], batch=[1, 2, 4]))
    assert [curves.size for curves in both] == ["batch"] * 2 + ["codes"] * 3
    assert codes.title == "codes: float32, 1 batch, 1 beams, 1 seconds of voice, 9 text pieces, 2 steps"
    text = report.table(grown(figures, codes=[10, 20, 40]))
    assert "| whole chain | 100.000 | 400.000 | 1600.000 | 2.00 | 2.00 |" in text
    assert "| flow | 1.000 | 4.000 | 16.000 | 2.00 | 2.00 | 0 to 0 | 1.00 |" in text
    assert math.isnan(report.exponent([1, 2], [0, 1]))


def test_picture(figures):
    pytest.importorskip("matplotlib")
    _, chain, stages = figures
    assert plot.plot(report.report(MACHINE, [chain], stages)).startswith(b"\x89PNG")
    assert plot.plot(grown(figures, codes=[10, 20], batch=[1, 2])).startswith(b"\x89PNG")


def test_the_first_run_alone_compiles(figures):
    """The same chain again: nothing is compiled, and the seams time what the pipeline does on its own."""
    model, _, _ = figures
    chain, stages = run(model.params, model.cfg, SETTING, repeat=1)
    assert sum(stage.compile_s for stage in stages) < 2
    inside = sum(stage.run_s for stage in stages)
    assert 0.3 * (chain.listen_s + chain.speak_s) < inside < 3 * (chain.listen_s + chain.speak_s)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("{", "not figures"), ('{"stages": 3}', "stages is no list")]
)
def test_earlier_figures_that_are_none(tmp_path, capsys, content, message):
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["bench", "--compare", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_reference_that_cannot_run(tmp_path, capsys, monkeypatch):
    """One line that names it, before anything of ours is timed."""
    monkeypatch.setattr(jax.config, "update", lambda *change: None)  # the tests' own settings stay
    monkeypatch.setattr(machine, "measure", lambda dtypes: MACHINE)
    monkeypatch.setattr(chains, "parameters", lambda cfg, dtype: {})
    for more, message in (
        (["--reference-model", str(tmp_path), "--reference-python", "/nowhere/python"], "/nowhere/python: no such"),
        (["--reference-model", str(tmp_path)], f"{tmp_path}/config.yaml is missing"),
    ):
        assert bench_reference.main(["--reference", str(tmp_path), *more]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert logging.getLogger("indextts_jax").isEnabledFor(logging.WARNING)


def test_a_reference_that_ends_between_two_runs(tmp_path):
    """One line with the last thing it said; a closed pipe is not taken for a reader of ours that has gone."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '{\"torch\": 1}'; echo Killed >&2\n")
    python.chmod(0o755)
    with bench_reference.reference(tmp_path, tmp_path, str(python), SETTING) as run:
        time.sleep(1)
        with pytest.raises(ValueError, match="the reference could not be timed: Killed"):
            run()


def test_bad_numbers_and_places(tmp_path, capsys):
    assert cli.main(["bench", "--json", str(tmp_path / "none" / "figures.json")]) == 1
    assert "--json" in capsys.readouterr().err
    for arguments, message in (
        (["--repeat", "0"], "--repeat: 0 is not at least 1"),
        (["--dtype", "float64"], "--dtype"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["bench", *arguments])
        assert message in capsys.readouterr().err
