"""Qwen3 against Hugging Face's: every block, every step's scores, whole answers; padding, stop ids, its files."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from debug import qwen3_golden
from debug.golden import FIXTURES, TOLERANCE, relative
from indextts_jax import models
from indextts_jax.config import read_yaml
from indextts_jax.convert import CheckpointError
from indextts_jax.convert import qwen3 as converter
from indextts_jax.convert.table import Report, fill
from indextts_jax.convert.tensors import Tensors
from indextts_jax.models import qwen3
from indextts_jax.models.layers import Dense, RMSNorm, apply
from indextts_jax.models.qwen3 import Qwen3Config
from tests.files import arrays, linked, ones, write_safetensors
from tests.small import parameters

SMALL = Qwen3Config(40, 16, 2, 4, 2, 6, 24, base=100.0, stops=(38, 39))


def settings_of(folder: Path) -> dict:
    """What the converter calls `extra`."""
    place = folder / converter.place(read_yaml(folder / "config.yaml"))
    config, generation = (json.loads((place / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    return config | generation


def read(folder: Path) -> tuple[Qwen3Config, dict, Report]:
    found = converter.tensors(folder, read_yaml(folder / "config.yaml"))
    cfg = converter.config(Qwen3Config(), found, settings_of(folder))
    tree, report = fill("qwen3", converter.table(cfg), found, models.shapes("qwen3", cfg), strict=True)
    return cfg, tree, report


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny folder's configuration and parameters."""
    cfg, tree, _ = read(tiny.folder)
    return cfg, jax.device_put(tree)


@pytest.fixture(scope="module")
def golden():
    with np.load(FIXTURES / "golden" / "qwen3.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def sharpened(tiny, model):
    """The golden's parameters."""
    cfg, _ = model
    found: Tensors = {
        name: tensor._replace(read=lambda name=name, tensor=tensor: tensor.read() * qwen3_golden.factor(name))
        for name, tensor in converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml")).items()
    }
    tree, _ = fill("qwen3", converter.table(cfg), found, models.shapes("qwen3", cfg))
    return cfg, jax.device_put(tree)


# ---- against the reference ------------------------------------------------------------------------------------------


def test_blocks_equal_reference(sharpened, golden):
    """Each block alone on the reference's own input."""
    cfg, params = sharpened
    assert relative(params["token"]["embedding"][golden["ids"][0]], golden["embeddings"][0]) == 0
    block = jax.jit(lambda params, x, cache: qwen3.Block(cfg).apply({"params": params}, x, np.arange(16)[None], cache))
    hidden = [golden[name][:1] for name in ("embeddings", "layer_0", "last_layer")]
    for i, cache in enumerate(qwen3.empty(cfg, 1, 16, jnp.dtype(jnp.float32))):
        out, cache = block(params["decoder"][f"layer_{i}"], hidden[i], cache)
        assert relative(out, hidden[i + 1]) <= TOLERANCE["block"]
        if i == 0:
            assert relative(np.transpose(cache.k, (0, 3, 1, 2)), golden["k"][:1]) <= TOLERANCE["block"]


def test_queries_equal_reference(sharpened, golden):
    cfg, params = sharpened
    layer, N, H = params["decoder"]["layer_0"], cfg.heads, cfg.head
    x = apply(RMSNorm(cfg.epsilon), layer["attention_norm"], golden["embeddings"])
    q = apply(Dense(N * H, False), {"weight": layer["qkv"]["weight"][: N * H]}, x).reshape(2, 16, N, H)
    q = qwen3.rotate(apply(RMSNorm(cfg.epsilon), layer["q_norm"], q), np.arange(16)[None], cfg.base)
    for i, n in enumerate(golden["lengths"]):
        assert relative(q[i, :n], golden["q"][i, :n]) <= TOLERANCE["block"]


def test_logits_equal_reference(sharpened, golden):
    """Both rows at once; the golden is zero past the shorter one, as ours."""
    cfg, params = sharpened
    assert (
        relative(qwen3.logits(params, cfg, golden["ids"], golden["lengths"]), golden["logits"])
        <= (TOLERANCE["component"])
    )


def test_steps_equal_reference(sharpened, golden):
    """Under the reference's own ids, every step's scores."""
    cfg, params = sharpened
    lengths = golden["lengths"]
    scores, caches = qwen3.prefill(params, cfg, golden["ids"], lengths, 40)
    for i, ids in enumerate(golden["answer"].T.astype(np.int32)):
        for row, expected in zip(np.asarray(scores), golden["answer_logits"][:, i], strict=True):
            assert relative(row, expected) <= TOLERANCE["component"]
        scores, caches = qwen3.step(params, cfg, caches, ids, lengths + i)


def test_answers_equal_reference(sharpened, golden):
    cfg, params = sharpened
    assert not np.isin(golden["answer"], cfg.stops).any()
    answer = qwen3.generate(params, cfg, golden["ids"], golden["lengths"], 24)
    np.testing.assert_array_equal(answer.ids, golden["answer"])
    assert answer.lengths.tolist() == [24, 24]


def test_prompts_and_answers_equal_reference_runs(tiny, model):
    """The tiny checkpoint's own weights, from the text of the prompt to the ids of the answer.

    The reference ran in float16, whose errors are far inside the margin of these ids: 0.59, of logits about 0.17.
    """
    cfg, params = model
    runs = json.loads((FIXTURES / "golden" / "qwen_emotion.json").read_text())["runs"]
    tokenizer = Tokenizer.from_file(str(tiny.folder / "qwen0.6bemo4-merge" / "tokenizer.json"))
    prompts = [tokenizer.encode(run["prompt_text"], add_special_tokens=False).ids for run in runs]
    assert prompts == [run["input_ids"] for run in runs]
    lengths = np.array([len(prompt) for prompt in prompts])
    ids = np.stack([np.pad(np.array(prompt, np.int32), (0, max(lengths) - len(prompt))) for prompt in prompts])
    expected = [run["output_ids"][len(run["input_ids"]) :] for run in runs]
    answer = qwen3.generate(params, cfg, ids, lengths, 24)
    assert answer.ids.tolist() == expected


# ---- properties -----------------------------------------------------------------------------------------------------


def test_steps_equal_the_full_pass():
    params, cfg, rows = parameters("qwen3", SMALL), SMALL, np.arange(2)
    ids, lengths = np.random.default_rng(1).integers(0, 40, (2, 9), np.int32), np.array([4, 2])
    full = qwen3.logits(params, cfg, ids, np.array([9, 9]))
    scores, caches = qwen3.prefill(params, cfg, ids[:, :4], lengths, 9)
    assert relative(scores, full[rows, lengths - 1]) <= TOLERANCE["block"]
    for at in (lengths + i for i in range(5)):
        scores, caches = qwen3.step(params, cfg, caches, ids[rows, at], at)
        assert relative(scores, full[rows, at]) <= TOLERANCE["block"]


def test_padded_rows_equal_rows_alone():
    """The full pass, prefill, a step and whole answers of two rows, together and alone."""
    params, cfg = parameters("qwen3", SMALL), SMALL
    ids, lengths = np.random.default_rng(2).integers(0, 38, (2, 9), np.int32), np.array([9, 4])

    def run(ids, lengths):
        scores, caches = qwen3.prefill(params, cfg, ids, lengths, 12)
        after, _ = qwen3.step(params, cfg, caches, np.full(len(lengths), 7, np.int32), lengths)
        return qwen3.logits(params, cfg, ids, lengths), scores, after, qwen3.generate(params, cfg, ids, lengths, 10)

    full, scores, after, answer = run(ids, lengths)
    assert answer.ids[0].tolist() != answer.ids[1].tolist()
    for i, n in enumerate(lengths):
        row = slice(i, i + 1)
        alone = run(ids[row, :n], lengths[row])
        assert relative(full[row, :n], alone[0]) <= TOLERANCE["block"]
        assert not np.asarray(full[i, n:]).any()
        assert relative(scores[row], alone[1]) <= TOLERANCE["block"]
        assert relative(after[row], alone[2]) <= TOLERANCE["block"]
        assert jax.tree.map(lambda a, row=row: a[row].tolist(), answer) == jax.tree.map(lambda a: a.tolist(), alone[3])


@pytest.mark.parametrize(("stops", "lengths"), [((428,), (4, 24)), ((415, 428), (4, 10)), ((336, 207), (0, 0))])
def test_rows_stop_by_themselves(sharpened, golden, stops, lengths):
    """428 and 415 are the reference's ids 4 of the first row and 10 of the second; 336 and 207 their first ones."""
    cfg, params = sharpened
    before = int(golden["ids"][0, 15])  # a prompt may end with a stop id
    assert before not in golden["answer"]
    cfg = dataclasses.replace(cfg, stops=(*stops, before))
    answer = qwen3.generate(params, cfg, golden["ids"], golden["lengths"], 24)
    assert answer.lengths.tolist() == list(lengths)
    for ids, expected, n in zip(np.asarray(answer.ids), golden["answer"], lengths, strict=True):
        assert ids[:n].tolist() == expected[:n].tolist()
        assert np.isin(ids[n:], stops).all()


def test_nothing_is_drawn_after_the_last_row_has_stopped(sharpened, golden, monkeypatch):
    """Steps are taken in chunks, and no chunk begins when both rows have stopped."""
    cfg, params = sharpened
    cfg, steps, step = dataclasses.replace(cfg, stops=(418, 446)), [], qwen3.step  # their ids 4 and 5

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(0))
        return step(*arguments)

    monkeypatch.setattr(qwen3, "step", counted)
    answer = qwen3.generate(params, cfg, golden["ids"], golden["lengths"], 24)
    jax.effects_barrier()
    assert answer.lengths.tolist() == [5, 4]
    assert len(steps) == qwen3.CHUNK


def test_bfloat16(sharpened, golden):
    """It runs in bfloat16 and stays near float32; the roots of norms, angles and softmax are float32."""
    cfg, params = sharpened
    params = models.cast("qwen3", params, jnp.bfloat16)
    scores, caches = qwen3.prefill(params, cfg, golden["ids"], golden["lengths"], 40)
    assert (scores.dtype, caches[0].k.dtype) == (jnp.float32, jnp.bfloat16)
    error = relative(scores, golden["answer_logits"][:, 0])
    assert 0.004 < error < 0.04  # an error far below would mean that it ran in float32
    assert qwen3.generate(params, cfg, golden["ids"], golden["lengths"], 24).ids.shape == (2, 24)

    program = qwen3.generate.lower(params, cfg, golden["ids"], golden["lengths"], 24).as_text()
    found = set(re.findall(r"stablehlo\.(rsqrt|cosine|sine) .*x(\w+)>", program))
    found |= set(re.findall(r"stablehlo\.(exponential) .*<(?:\d+x){4}(\w+)>", program))  # of scores [B, G, R T, S]
    assert found == {(name, "f32") for name in ("rsqrt", "cosine", "sine", "exponential")}


def test_room_is_checked():
    params, ids = parameters("qwen3", SMALL), np.zeros((1, 5), np.int32)
    with pytest.raises(ValueError, match="capacity is 4, but prompts of 5 ids"):
        qwen3.prefill(params, SMALL, ids, np.array([5]), 4)
    with pytest.raises(ValueError, match="most is 0"):
        qwen3.generate(params, SMALL, ids, np.array([5]), 0)


# ---- its files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny, tmp_path):
    """The tiny checkpoint in links, and the folder of this model in it."""
    return linked(tiny.folder, tmp_path / "model")


def weights(folder: Path) -> Path:
    return folder / "qwen0.6bemo4-merge" / "model.safetensors"


def test_contract_on_the_tiny_checkpoint(tiny):
    cfg, tree, report = read(tiny.folder)
    assert cfg == Qwen3Config(512, 64, 2, 4, 2, 16, 128, 1e6, 1e-6, (500,))
    like = models.shapes("qwen3", cfg)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    assert (report.tensors, report.unused) == (24, [])
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(tree))
    theirs = {
        name: t.read() for name, t in converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml")).items()
    }
    layer = tree["decoder"]["layer_1"]
    for name, part in (("q", slice(64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
        np.testing.assert_array_equal(
            layer["qkv"]["weight"][part], theirs[f"model.layers.1.self_attn.{name}_proj.weight"].astype(np.float32)
        )
    np.testing.assert_array_equal(layer["gated"]["weight"][:128], theirs["model.layers.1.mlp.gate_proj.weight"])


def test_contract_on_the_official_shapes():
    inventory = json.loads((FIXTURES / "inventory_full.json").read_text())["qwen0.6bemo4-merge"]
    found = {name: ones(shape, dtype, "model.safetensors") for name, (shape, dtype) in inventory.items()}
    like = models.shapes("qwen3", Qwen3Config())
    _, report = fill("qwen3", converter.table(Qwen3Config()), found, like, strict=True, dry=True)
    assert (report.tensors, report.parameters, report.unused) == (310, 596_049_920, [])


def test_the_head_is_the_embeddings(folder):
    contents = arrays(converter.tensors(folder, read_yaml(folder / "config.yaml")))
    write_safetensors(weights(folder), contents | {"lm_head.weight": contents["model.embed_tokens.weight"]})
    assert read(folder)[2].unused == ["lm_head.weight"]
    found, settings = converter.tensors(folder, read_yaml(folder / "config.yaml")), settings_of(folder)
    with pytest.raises(CheckpointError, match="tie_word_embeddings is False, only True is supported"):
        converter.config(Qwen3Config(), found, settings | {"tie_word_embeddings": False})


def test_weights_in_parts(folder):
    contents = arrays(converter.tensors(folder, read_yaml(folder / "config.yaml")))
    expected = read(folder)[1]
    weights(folder).unlink()
    for i, names in enumerate((list(contents)[:9], list(contents)[9:])):
        path = weights(folder).with_name(f"model-{i + 1:05}-of-00002.safetensors")
        write_safetensors(path, {name: contents[name] for name in names})
    jax.tree.map(np.testing.assert_array_equal, read(folder)[1], expected)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: tensor .* is missing"):
        read(folder)


def test_weights_that_are_not_there(folder):
    weights(folder).unlink()
    with pytest.raises(FileNotFoundError, match=r"qwen0\.6bemo4-merge/model\.safetensors: no such file"):
        read(folder)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', only 'qwen3' is supported"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is"),
        ({"head_dim": None}, "head_dim is missing or wrong"),
        ({"num_hidden_layers": "28"}, "num_hidden_layers is missing or wrong"),
        ({"eos_token_id": None}, "eos_token_id is missing or wrong"),
        ({"eos_token_id": []}, "eos_token_id is"),
    ],
)
def test_config_json_is_checked(tiny, entries, text):
    with pytest.raises(CheckpointError, match=text):
        converter.config(Qwen3Config(), {}, settings_of(tiny.folder) | entries)


def test_several_stop_ids(tiny):
    assert converter.config(Qwen3Config(), {}, settings_of(tiny.folder) | {"eos_token_id": [7, 9]}).stops == (7, 9)
