"""The loop: what a step does, and that a run loses nothing."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from debug.golden import FIXTURES
from indextts_jax import checkpoint, lora
from indextts_jax.convert import rest
from indextts_jax.errors import Error
from indextts_jax.pipeline import Audio
from indextts_jax.train import batches, corpus, loop, stages
from indextts_jax.train.settings import Settings, Speak
from indextts_jax.voice import Voice, save_voice
from tests import small
from tests.marks import LONG
from tests.training import save_corpus, save_model

SETTINGS = Settings("corpus", steps=6, batch=4, warmup=2, learning_rate=1e-2, log_every=2, save_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a corpus."""
    out = tmp_path_factory.mktemp("training")
    save_model(out / "model", replace(small.CONFIG, gpt=replace(small.GPT, code_positions=80)))
    save_corpus(out / "corpus")
    return out


def run(folder, output, stage="codec", settings=SETTINGS):
    return loop.run(stage, settings, folder, folder / "model", output)


def parameters(model, component):
    cfg, _ = checkpoint.read_description(model)
    found = checkpoint.restore(model, component, getattr(cfg, component), jnp.dtype(jnp.float32))
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(found).items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- the step -------------------------------------------------------------------------------------------------------


def problem(settings=SETTINGS, loss=None):
    recipe = stages.RECIPES["codec"]._replace(
        loss=loss or (lambda p, cfg, rows, key: (jnp.sum(p["a"]["w"] * rows), {}))
    )
    return loop.Problem(small.CONFIG, recipe, settings, loop.optimizer(settings))


def stepped(rows, settings=SETTINGS, loss=None, trained=None):
    made = problem(settings, loss)
    state = loop.begin({"a": {"w": jnp.ones(3)}} if trained is None else trained, made)
    return loop.step(state, {}, jnp.asarray(rows), jax.random.key(0), made)


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted():
    state, told = stepped(np.full((1, 3), np.nan, np.float32))
    assert (state.trained["a"]["w"] == 1).all()
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(state.optimizer))
    assert not told["good"]
    assert (int(state.step), int(state.skipped)) == (1, 1)
    state, told = stepped(np.ones((1, 3), np.float32), replace(SETTINGS, warmup=0))
    assert told["good"]
    assert (state.trained["a"]["w"] < 1).all()
    assert int(state.skipped) == 0


def test_parts_of_a_batch_have_the_gradient_of_their_mean():
    settings = replace(SETTINGS, accumulate=2, warmup=0, clip=0.0)
    _, told = stepped([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], settings)
    assert told["gradient/a"] == pytest.approx(np.sqrt(12))
    assert told["loss"] == pytest.approx(6)


def test_the_first_update_is_adams():
    """Whatever the gradient, the first step of Adam is the learning rate, and weights of one axis do not decay."""
    state, _ = stepped(np.array([[1.0, -2.0, 30.0]], np.float32), replace(SETTINGS, warmup=0))
    np.testing.assert_allclose(state.trained["a"]["w"], 1 - 0.01 * np.array([1, -1, 1]), rtol=1e-5)


def test_moving_average_follows():
    settings = replace(SETTINGS, average=0.9, warmup=0)
    state, _ = stepped(np.ones((1, 3), np.float32), settings)
    np.testing.assert_allclose(state.average["a"]["w"], 0.1 * 1 + 0.9 * state.trained["a"]["w"], rtol=1e-6)


def test_every_step_has_its_own_key():
    def loss(params, cfg, rows, key):
        return jax.random.normal(key) + 0 * params["a"]["w"].sum(), {}

    made = problem(loss=loss)
    state = loop.begin({"a": {"w": jnp.ones(3)}}, made)
    first, told = loop.step(state, {}, jnp.ones((1, 3)), jax.random.key(0), made)
    _, again = loop.step(state, {}, jnp.ones((1, 3)), jax.random.key(0), made)
    _, second = loop.step(first, {}, jnp.ones((1, 3)), jax.random.key(0), made)
    assert told["loss"] == again["loss"] != second["loss"]


def test_what_is_trained_is_chosen_by_patterns():
    params = {"gpt": {"head": {"kernel": jnp.ones(2, jnp.bfloat16)}, "text": {"embedding": jnp.ones(3)}}}
    trained, frozen = loop.split(params, ("gpt/head/.*",))
    assert list(flatten_dict(trained)) == [("gpt", "head", "kernel")]
    assert trained["gpt"]["head"]["kernel"].dtype == jnp.float32
    assert list(flatten_dict(frozen)) == [("gpt", "text", "embedding")]
    with pytest.raises(Error, match="no parameter is named gpt/tail; the first parts of their names are gpt"):
        loop.split(params, ("gpt/tail",))


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", stages.RECIPES)
def test_rows_of_a_stage_are_what_its_loss_takes(folder, tmp_path, stage):
    """Traced, and not run."""
    recipe, key = stages.RECIPES[stage], jax.random.key(0)
    save_corpus(tmp_path / "corpus", hop=600 if stage in ("encoder", "speaker") else small.CONFIG.mel.hop)
    read, (cfg, _) = corpus.Corpus(tmp_path / "corpus"), checkpoint.read_description(folder / "model")
    params = {
        name: checkpoint.restore(folder / "model", name, getattr(cfg, name), jnp.dtype(jnp.float32))
        for name in recipe.components
    }
    params |= recipe.heads(cfg, read, folder / "model", key)
    rows = next(batches.stream(read, recipe.collate, 4, 0, 0, 1)).rows
    loss, _ = jax.eval_shape(lambda params, rows, key: recipe.loss(params, cfg, rows, key), params, rows, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("stage", ["gpt", *(pytest.param(stage, marks=LONG) for stage in ("flow", "vocoder", "codec"))])
def test_a_stage_trains(folder, tmp_path, stage):
    components = {"gpt": ("gpt", "conditioner"), "flow": ("s2mel",), "vocoder": ("bigvgan",), "codec": ("repcodec",)}
    done = run(folder, tmp_path / "run", stage, replace(SETTINGS, steps=2))
    assert done.steps == 2
    assert done.skipped == 0
    for component in ("gpt", "conditioner", "s2mel", "bigvgan", "repcodec"):
        unchanged = same(parameters(folder / "model", component), parameters(done.written, component))
        assert unchanged == (component not in components[stage])
    assert checkpoint.verify(done.written) == []
    head = rest.read(done.written)["gpt"]["text_head.weight"].read()
    assert np.array_equal(head, rest.read(folder / "model")["gpt"]["text_head.weight"].read()) == (stage != "gpt")


@pytest.mark.parametrize("stage", ["encoder", pytest.param("speaker", marks=LONG)])
def test_a_stage_of_recordings_trains(folder, tmp_path, stage):
    save_corpus(tmp_path / "corpus", hop=600)
    done = loop.run(stage, replace(SETTINGS, steps=2), tmp_path, folder / "model", tmp_path / "run")
    component = {"encoder": "w2vbert", "speaker": "campplus"}[stage]
    assert not same(parameters(folder / "model", component), parameters(done.written, component))
    if stage == "encoder":
        old, new = (parameters(model, component) for model in (folder / "model", done.written))
        assert same(*({n: a for n, a in tree.items() if n.startswith("statistics")} for tree in (old, new)))


def test_a_run_in_two_parts_is_the_run(folder, tmp_path):
    settings = replace(SETTINGS, average=0.9)
    whole = run(folder, tmp_path / "whole", settings=settings)

    class Stopped(Exception):
        pass

    def stop(stage, done, total, note):
        if stage == "training" and done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        loop.run("codec", settings, folder, folder / "model", tmp_path / "parts", stop)
    assert sorted(p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()) == ["2", "4"]
    parts = run(folder, tmp_path / "parts", settings=settings)
    assert same(parameters(whole.written, "repcodec"), parameters(parts.written, "repcodec"))
    steps = [line["step"] for line in loop.read_log(tmp_path / "parts")]
    assert steps == [2, 4, 6]


def test_adapters_are_trained_and_merged(folder, tmp_path):
    done = run(folder, tmp_path / "run", "gpt", replace(SETTINGS, steps=3, lora=2))
    assert done.written.name == "lora.safetensors"
    adapters, scale = lora.load(done.written)
    assert scale == 2.0
    assert any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(adapters["gpt"]["decoder"]["layer_0"]["qkv"]))
    from indextts_jax.cli import main

    arguments = [str(folder / "model"), str(done.written), str(tmp_path / "merged")]
    assert main(["merge", *arguments, "--quiet"]) == 0
    old, new = parameters(folder / "model", "gpt"), parameters(tmp_path / "merged", "gpt")
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {name for name in old if re.fullmatch(lora.TARGETS["gpt"][0], f"gpt/{name}")}
    assert checkpoint.verify(tmp_path / "merged") == []


def test_what_is_learnt_is_spoken(folder, tmp_path, monkeypatch):
    """With the parameters of that step: the last time, those of the model that comes of the run."""
    cfg = replace(small.CONFIG, gpt=replace(small.GPT, text_vocabulary=601, code_positions=80))
    save_model(tmp_path / "model", cfg)
    shutil.copy(FIXTURES / "tiny" / "bpe.model", tmp_path / "model")
    checkpoint.save_description(tmp_path / "model", cfg, "random numbers")
    save_corpus(tmp_path / "corpus")
    shapes = (cfg.conditioner.latents, 16), (16,), (16,), (cfg.s2mel.style,), (9, 8), (9, cfg.s2mel.content)
    save_voice(tmp_path / "a.safetensors", Voice(*(small.normal(0, *shape) for shape in shapes)))
    models = []

    def speak(model, text, voice):
        models.append(model)
        return Audio(np.zeros(9, np.float32), 22050, ())

    monkeypatch.setattr("indextts_jax.model.Model.speak", speak)
    spoken = replace(SETTINGS, steps=4, average=0.5, speak=Speak("Hello.", "a.safetensors", every=2))
    done = loop.run("gpt", spoken, tmp_path, tmp_path / "model", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["000002.wav", "000004.wav"]
    first, last = ({"/".join(p): a for p, a in flatten_dict(m.params["gpt"]).items()} for m in models)
    assert not same(first, last)
    assert same(last, parameters(done.written, "gpt"))
    assert loop.plot(tmp_path / "run").startswith(b"\x89PNG")


def test_bfloat16_computes_and_float32_is_kept(folder, tmp_path):
    done = run(
        folder, tmp_path / "run", "gpt", replace(SETTINGS, steps=2, dtype="bfloat16", loss={"positions": "both"})
    )
    assert done.skipped == 0
    new = parameters(done.written, "gpt")
    assert any((array != array.astype(jnp.bfloat16).astype(np.float32)).any() for array in new.values())


def test_utterances_that_are_not_finite_are_named(folder, tmp_path):
    save_corpus(tmp_path / "corpus")
    path = tmp_path / "corpus" / corpus.name(0)
    arrays, lines = load_file(path), corpus.read_metadata(path)
    arrays["1.semantic"] = arrays["1.semantic"] * np.float16(np.nan)
    described = json.dumps([vars(line) for line in lines[1]])
    save_file(arrays, path, {"format": corpus.FORMAT, "source": lines[0], "lines": described})
    done = loop.run("codec", SETTINGS, tmp_path, folder / "model", tmp_path / "run")
    assert done.skipped == 3  # of three epochs
    named = [line["skipped"] for line in loop.read_log(tmp_path / "run") if "loss" not in line]
    assert len(named) == 3
    assert all("u1" in ids for ids in named)
    assert all(np.isfinite(array).all() for array in parameters(done.written, "repcodec").values())


def test_another_run_in_the_folder_is_refused(folder, tmp_path):
    run(folder, tmp_path / "run", settings=replace(SETTINGS, steps=1))
    with pytest.raises(Error, match="holds a run with another learning_rate; give what it was begun with"):
        run(folder, tmp_path / "run", settings=replace(SETTINGS, learning_rate=1e-3))
    with pytest.raises(Error, match="holds a run with another stage"):
        run(folder, tmp_path / "run", "vocoder")
    with pytest.raises(Error, match="is not empty, and no run of training"):
        run(folder, folder / "model")


def test_options_and_sizes_that_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(Error, match=r"loss\.weight is no option of this stage's loss, which has positions"):
        run(folder, tmp_path / "run", "gpt", replace(SETTINGS, loss={"weight": 1}))
    for stage, loss, said in (
        ("gpt", {"positions": "sideways"}, "'sideways', but must be one of second_pass, decoding, both"),
        ("gpt", {"remat": 1}, "1, but must be true or false"),
        ("flow", {"early": "x"}, "'x', but must be a number of at least 0"),
        ("flow", {"content": -1.0}, "-1.0, but must be a number of at least 0"),
        ("flow", {"prompt": True}, "True, but must be a number from 0 to 1"),
        ("flow", {"prompt": 1.5}, "1.5, but must be a number from 0 to 1"),
        ("gpt", {"corrupt": 2}, "2, but must be a number from 0 to 1"),
        ("flow", {"early": math.inf}, "inf, but must be a number of at least 0"),
    ):
        with pytest.raises(Error, match=re.escape(f"loss.{next(iter(loss))} is {said}")):
            run(folder, tmp_path / "run", stage, replace(SETTINGS, loss=loss))
    with pytest.raises(Error, match="lora_targets is missing: the codec stage has none of its own"):
        run(folder, tmp_path / "run", settings=replace(SETTINGS, lora=2))
    with pytest.raises(Error, match="no parameter is named codec"):
        run(folder, tmp_path / "run", settings=replace(SETTINGS, train=("codec/.*",)))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_last_checkpoint(folder, tmp_path, monkeypatch):
    settings = replace(SETTINGS, steps=4)
    save = loop.ocp.CheckpointManager.save

    def full(manager, number, **more):
        if number == 4:
            raise ValueError("Error writing: No space left on device [source]")
        return save(manager, number, **more)

    monkeypatch.setattr(loop.ocp.CheckpointManager, "save", full)
    message = r"checkpoints: step 4 cannot be saved \(No space left on device\); that of step 2 is whole"
    with pytest.raises(Error, match=message):
        run(folder, tmp_path / "run", settings=settings)
    monkeypatch.undo()
    assert run(folder, tmp_path / "run", settings=settings).steps == 4


COMMAND = (sys.executable, "-m", "indextts_jax.cli", "train", "codec", "--device", "cpu")


def command(folder, output):
    own = ("--config", str(folder / "train.yaml"), "--model", str(folder / "model"), "--output", str(output))
    return [*COMMAND, *own]


@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_to_the_same_bits(folder, tmp_path):
    (folder / "train.yaml").write_text("data: corpus\nsteps: 60\nbatch: 4\nsave_every: 4\nlog_every: 1\n")
    environment = {**os.environ, "INDEXTTS_CACHE": str(tmp_path / "cache")}
    subprocess.run(command(folder, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    stop = random.Random(os.getpid()).randint(2, 50)
    child = subprocess.Popen(command(folder, tmp_path / "killed"), env=environment, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            if any(line["step"] >= stop for line in loop.read_log(tmp_path / "killed")):
                break
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL, f"it was to be killed at step {stop}"
    done = subprocess.run(command(folder, tmp_path / "killed"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, killed = (parameters(tmp_path / name / "model", "repcodec") for name in ("whole", "killed"))
    assert same(whole, killed), f"killed at step {stop}"


@pytest.mark.slow
def test_four_devices_train_as_one(folder, tmp_path):
    run(folder, tmp_path / "one", settings=Settings("corpus", steps=3, batch=4, warmup=0))
    (folder / "train.yaml").write_text("data: corpus\nsteps: 3\nbatch: 4\nwarmup: 0\n")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run(command(folder, tmp_path / "four"), env=environment, check=True, capture_output=True)
    one, four = (loop.read_log(tmp_path / name)[-1] for name in ("one", "four"))
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert four["gradient/repcodec"] == pytest.approx(one["gradient/repcodec"], rel=1e-4)
