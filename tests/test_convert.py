"""The converters: the contract on the tiny checkpoint and on the official shapes, and what is said of bad folders."""

import dataclasses
import errno
import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from debug.golden import FIXTURES
from indextts_jax import checkpoint, convert, models
from indextts_jax.config import Config, ConfigError, read_yaml
from indextts_jax.convert import (
    CheckpointError,
    Report,
    bigvgan,
    campplus,
    conditioner,
    gpt,
    prototypes,
    qwen3,
    repcodec,
    s2mel,
    w2vbert,
)  # fmt: skip
from indextts_jax.convert.table import fill
from indextts_jax.convert.tensors import Tensors, read_pth
from indextts_jax.errors import Error
from indextts_jax.files import FileError
from indextts_jax.models.qwen3 import Qwen3Config
from tests.files import Call, Name, arrays, change, linked, ones, write_pth

pytestmark = pytest.mark.whole

CONVERTERS: dict[str, Any] = {
    "w2vbert": w2vbert,
    "repcodec": repcodec,
    "campplus": campplus,
    "conditioner": conditioner,
    "prototypes": prototypes,
    "gpt": gpt,
    "s2mel": s2mel,
    "bigvgan": bigvgan,
    "qwen3": qwen3,
}
ALL = (*models.COMPONENTS, *models.OPTIONAL)
FILES = {
    "w2vbert": "hf_cache/w2v-bert-2.0/model.safetensors",
    "repcodec": "hf_cache/semantic_codec_model.safetensors",
    "campplus": "hf_cache/campplus_cn_common.bin",
    "conditioner": "gpt.pth",
    "prototypes": "feat2.pt",
    "gpt": "gpt.pth",
    "s2mel": "s2mel.pth",
    "bigvgan": "hf_cache/bigvgan/bigvgan_generator.pt",
    "qwen3": "qwen0.6bemo4-merge/model.safetensors",
}


@pytest.fixture(scope="module", autouse=True)
def _shapes_once() -> Iterator[None]:
    """Shapes are a function of the configuration, and slow to find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "shapes", functools.cache(models.shapes))
        yield


@pytest.fixture(scope="module")
def whole(tiny) -> dict[str, tuple[dict, Report]]:
    """Every component of the tiny checkpoint, and what became of its tensors."""
    return {name: convert.read(name, tiny.folder, strict=True) for name in ALL}


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """The tiny checkpoint in links."""
    return linked(tiny.folder, tmp_path / "model")


def held(tiny: Any, component: str) -> Tensors:
    return CONVERTERS[component].tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))


# ---- the contract on real files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ALL)
def test_contract_on_the_tiny_checkpoint(tiny, whole, component):
    tree, report = whole[component]
    like = models.shapes(component, getattr(tiny.cfg, component))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    assert report.component == component
    assert report.unknown == []
    assert report.tensors + len(report.unused) == len(held(tiny, component))
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_tensor_of_every_file_belongs_to_one_component(tiny, whole):
    count = len(read_pth(tiny.folder / "gpt.pth"))
    assert sum(whole[name][1].tensors + len(whole[name][1].unused) for name in ("conditioner", "gpt")) == count


def test_the_configuration_is_read_off_the_tensors(tiny):
    cfg = tiny.cfg
    assert (cfg.conditioner.speaker.latents, cfg.conditioner.speaker.latent_width) == (32, 96)
    assert (cfg.conditioner.emotion.latent_width, cfg.conditioner.semantic) == (64, 64)
    assert (cfg.s2mel.latent, cfg.s2mel.latent_layers, cfg.s2mel.semantic) == (96, (28, 20, 64), 64)
    assert (cfg.bigvgan.channels, cfg.bigvgan.hop) == (128, 256)
    assert (cfg.w2vbert.heads, cfg.w2vbert.intermediate, cfg.w2vbert.layers) == (4, 96, 17)
    assert cfg.campplus.blocks == (12, 24, 16)
    assert cfg.campplus.growth != Config().campplus.growth


def test_values_arrive_where_they_belong(tiny, whole):
    """Single tensors, followed by hand from their file to our tree."""
    theirs = {name: tensor.read() for name, tensor in held(tiny, "gpt").items()}
    ours = whole["gpt"][0]
    np.testing.assert_array_equal(ours["decoder"]["layer_2"]["qkv"]["weight"], theirs["gpt.h.2.attn.c_attn.weight"].T)
    np.testing.assert_array_equal(ours["head"]["weight"], theirs["mel_head.weight"])
    np.testing.assert_array_equal(ours["decoder"]["final_norm"]["bias"], theirs["final_norm.bias"])

    theirs = {name: tensor.read() for name, tensor in held(tiny, "w2vbert").items()}
    ours = whole["w2vbert"][0]
    kernel = ours["encoder"]["layer_16"]["attention"]["qkv"]["kernel"]
    for i, x in enumerate("qkv"):
        np.testing.assert_array_equal(
            kernel[:, 64 * i : 64 * (i + 1)], theirs[f"encoder.layers.16.self_attn.linear_{x}.weight"].T
        )
    np.testing.assert_array_equal(ours["statistics"]["variance"], theirs["statistics.var"])

    theirs = {name: tensor.read() for name, tensor in held(tiny, "bigvgan").items()}
    ours = whole["bigvgan"][0]  # their block 4 is the second kernel size of our stage 1
    for j in range(3):
        activation = theirs[f"resblocks.{3 + j}.activations.5.act.alpha"]
        np.testing.assert_array_equal(ours["stage_1"]["activation_5"]["alpha"][j], activation)
    v, g = (theirs[f"ups.1.0.weight_{x}"].astype(np.float64) for x in "vg")
    kernel = ours["upsample_1"]["kernel"]  # [in, kernel, out]
    i, out, k = 3, 2, 1
    assert kernel[i, k, out] == np.float32(g[i, 0, 0] * v[i, out, k] / np.linalg.norm(v[i]))


# ---- the contract on the official checkpoint's shapes ---------------------------------------------------------------

# component -> tensors used, unused, elements of theirs used, parameters of ours; folded norms make the last two differ
OFFICIAL = {
    "w2vbert": (550, 225, 411_232_128, 411_232_128),
    "repcodec": (123, 116, 22_186_896, 22_185_864),
    "campplus": (815, 122, 6_930_720, 6_841_568),
    "conditioner": (362, 2, 338_897_404, 338_897_404),
    "gpt": (299, 2, 511_709_954, 511_709_954),
    "s2mel": (260, 24, 98_379_216, 98_354_640),
    "bigvgan": (565, 218, 112_231_249, 112_199_472),
    "prototypes": (2, 0, 107_456, 107_456),
    "qwen3": (310, 0, 596_049_920, 596_049_920),
}
UNUSED = {  # the modules of the unused tensors, with layer numbers as #
    "w2vbert": {"masked_spec_embed", "encoder.layers.#"},
    "repcodec": {"decoder.#"},
    "campplus": {"num_batches_tracked"},
    "conditioner": {"conditioning_encoder.embed.pos_enc.pe", "emo_conditioning_encoder.embed.pos_enc.pe"},
    "gpt": {"text_head"},
    "prototypes": set(),
    "qwen3": set(),
    "s2mel": {
        "cfm.estimator.input_pos",
        "cfm.estimator.x_embedder",
        "cfm.estimator.cond_embedder",
        "cfm.estimator.content_mask_embedder",
        "cfm.estimator.t_embedder.freqs",
        "cfm.estimator.t_embedder#.freqs",
        "cfm.estimator.transformer.layers.#.skip_in_linear",
        "length_regulator.embedding",
        "length_regulator.mask_token",
    },
    "bigvgan": {"upsample.filter", "downsample.lowpass.filter"},
}

# What the config.json and generation_config.json of Qwen3-0.6B say.
QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    "rope_theta": 1000000, "rms_norm_eps": 1e-06, "tie_word_embeddings": True, "eos_token_id": [151645, 151643],
}  # fmt: skip


@pytest.fixture(scope="module")
def official() -> dict[str, Tensors]:
    """The tensors of every component at official size, all zero (norms one) and taking no memory."""
    inventory = json.loads((FIXTURES / "inventory_full.json").read_text())
    named = {
        "w2vbert": inventory["w2v-bert-2.0"] | {f"statistics.{x}": ([1024], "float32") for x in ("mean", "var")},
        "repcodec": inventory["semantic_codec"],
        "campplus": inventory["campplus"],
        "conditioner": {name: t for name, t in inventory["gpt"].items() if conditioner.belongs(name)},
        "gpt": {name: t for name, t in inventory["gpt"].items() if not conditioner.belongs(name)},
        "s2mel": {name.removeprefix("net/").replace("/", "."): t for name, t in inventory["s2mel"].items()},
        "bigvgan": inventory["bigvgan"],
        "prototypes": {f"{name}_matrix.rows": ([73, n], "float32") for name, n in (("spk", 192), ("emo", 1280))},
        "qwen3": inventory["qwen0.6bemo4-merge"],
    }
    return {
        component: {name: ones(shape, dtype, FILES[component]) for name, (shape, dtype) in tensors.items()}
        for component, tensors in named.items()
    }


@pytest.mark.parametrize("component", ALL)
def test_tables_cover_the_official_checkpoint(official, component):
    tensors, expected = official[component], getattr(Config(), component) or Qwen3Config()
    cfg = CONVERTERS[component].config(expected, tensors, QWEN3 if component == "qwen3" else {})
    assert cfg == expected  # what the shapes say is what config.yaml says
    table = CONVERTERS[component].table(cfg)
    tree, report = fill(component, table, tensors, models.shapes(component, cfg), strict=True, dry=True)
    assert (tree, report.unknown) == ({}, [])
    assert report.tensors + len(report.unused) == len(tensors)
    used = sum(math.prod(tensor.shape) for name, tensor in tensors.items() if name not in report.unused)
    assert (report.tensors, len(report.unused), used, report.parameters) == OFFICIAL[component]
    hashed = {re.sub(r"\d+", "#", name) for name in report.unused}
    ends = {end for name in hashed for end in UNUSED[component] if f".{end}." in f".{name}."}
    assert ends == UNUSED[component]
    assert all(any(f".{end}." in f".{name}." for end in ends) for name in hashed)


def test_parameters_of_the_official_files(official):
    """As they are published: 866 M of the GPT without its sinusoids, 580 M of w2v-BERT, 112 M of BigVGAN."""
    inventory = json.loads((FIXTURES / "inventory_full.json").read_text())
    sizes = {file: sum(math.prod(shape) for shape, _ in tensors.values()) for file, tensors in inventory.items()}
    sinusoids, text_head = 2 * 5000 * 512, 12001 * 1281
    assert sizes["gpt"] - sinusoids == 865_980_639
    assert OFFICIAL["conditioner"][2] + OFFICIAL["gpt"][2] == sizes["gpt"] - sinusoids - text_head
    assert (sizes["w2v-bert-2.0"], sizes["bigvgan"]) == (580_493_120, 112_233_865)
    assert sum(parameters for *_, parameters in OFFICIAL.values()) == 2_097_578_406


# ---- files of other people ------------------------------------------------------------------------------------------


def equal(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_gpt_in_a_wrapper(folder, whole):
    state = arrays(read_pth(folder / "gpt.pth"))
    write_pth(folder / "gpt.pth", {"model": state, "epoch": 3, "optimizer": [Call("torch.Size", ((1,),))]})
    assert equal(convert.read("gpt", folder, strict=True)[0], whole["gpt"][0])


def test_s2mel_with_the_prefix_of_parallel_training(folder, whole):
    def prefix(state: dict) -> None:
        state["net"] = {part: {f"module.{name}": a for name, a in t.items()} for part, t in state["net"].items()}
        state["optimizer"] = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}}

    change(folder / "s2mel.pth", prefix)
    assert equal(convert.read("s2mel", folder, strict=True)[0], whole["s2mel"][0])


def test_half_precision_checkpoints_become_float32(folder, whole):
    def halve(state: dict) -> None:
        state |= {name: a.astype(np.float16) for name, a in state.items()}

    change(folder / "gpt.pth", halve)
    tree, _ = convert.read("gpt", folder, strict=True)
    for ours, exact in zip(jax.tree.leaves(tree), jax.tree.leaves(whole["gpt"][0]), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=2**-11, atol=1e-7)


# ---- bad folders ----------------------------------------------------------------------------------------------------


def refused(component: str, folder: Path, strict: bool = False, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        convert.read(component, folder, strict)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("gpt", "gpt.h.1.ln_2.bias"),
        ("gpt", "text_embedding.weight"),  # its shape is a size of the configuration
        ("conditioner", "emo_perceiver_encoder.layers.1.0.to_kv.weight"),
        ("conditioner", "emovec_layer.weight"),
        ("repcodec", "encoder.0.embed.weight"),
        ("repcodec", "quantizer.quantizers.0.out_project.weight_g"),
        ("campplus", "head.bn2.running_var"),
        ("campplus", "xvector.block3.tdnnd16.nonlinear1.batchnorm.weight"),
        ("bigvgan", "resblocks.17.convs2.2.weight_v"),
        ("bigvgan", "conv_pre.weight_v"),
        ("w2vbert", "encoder.layers.16.conv_module.depthwise_conv.weight"),
    ],
)
def test_missing_tensors_are_named_with_their_file(folder, component, name):
    path = folder / FILES[component]
    change(path, lambda state: (state["generator"] if component == "bigvgan" else state).pop(name))
    text = refused(component, folder)
    assert text.startswith(str(path))
    assert f"tensor {name} is missing" in text


def test_a_missing_bias_is_named_by_its_place(folder):
    change(folder / "gpt.pth", lambda state: state.pop("mel_head.bias"))
    text = refused("gpt", folder)
    assert text == f"{folder}/gpt.pth: a tensor is missing, nothing fills gpt head/bias (mel_head -> gpt head)"


def test_misshapen_tensors_are_named_with_both_shapes(folder):
    def widen(state: dict) -> None:
        state["gpt.h.1.mlp.c_fc.weight"] = np.zeros((96, 400), np.float32)

    change(folder / "gpt.pth", widen)
    text = refused("gpt", folder)
    assert text.startswith(
        f"{folder}/gpt.pth: gpt.h.1.mlp.c_fc -> gpt decoder/layer_1/up: weight has shape (400, 96), "
    )
    assert "expected (384, 96)" in text

    def flatten(state: dict) -> None:
        state["generator"]["conv_pre.weight_v"] = np.zeros((128, 80), np.float32)

    change(folder / FILES["bigvgan"], flatten)
    assert refused("bigvgan", folder).startswith(
        f"{folder / FILES['bigvgan']}: the sizes of bigvgan cannot be read off it"
    )


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("bigvgan", "resblocks.3.activations.2.upsample.filter"),
        ("bigvgan", "activation_post.downsample.lowpass.filter"),
        ("s2mel", "cfm.estimator.t_embedder2.freqs"),
        ("conditioner", "emo_conditioning_encoder.embed.pos_enc.pe"),
    ],
)
def test_constants_that_are_not_ours_are_named(folder, component, name):
    """The reference computes with what stands in its files, ours with constants: another one would be another sound."""

    def damage(state: dict) -> None:
        if component == "s2mel":
            for other in state.keys() - {"net"}:
                del state[other]
            part, _, rest = name.partition(".")
            state["net"][part][rest][..., -1] += 0.02
        else:
            state.get("generator", state)[name][..., -1] += 0.02

    change(folder / FILES[component], damage)
    assert refused(component, folder).startswith(f"{folder / FILES[component]}: {name} is a constant, but not the one ")


def test_unknown_tensors_are_left_out_or_refused(folder, whole, caplog):
    change(folder / "gpt.pth", lambda state: state.update({"gpt.wte.weight": np.zeros(3, np.float32)}))
    tree, report = convert.read("gpt", folder)
    assert report.unknown == ["gpt.wte.weight"]
    assert equal(tree, whole["gpt"][0])
    text = f"{folder}/gpt.pth: 1 unknown tensors for gpt: gpt.wte.weight; "
    assert caplog.messages == [text + "left out"]
    assert refused("gpt", folder, strict=True) == text + "without --strict they are left out"
    assert convert.read("conditioner", folder, strict=True)[1].unknown == []  # it is none of the other component's


@pytest.mark.parametrize("component", ALL)
def test_missing_files_are_named(folder, component):
    path = folder / FILES[component]
    path.unlink()
    assert refused(component, folder, kind=FileNotFoundError) == f"{path}: no such file"


@pytest.mark.parametrize("component", ALL)
def test_damaged_files_are_named(tiny, folder, component):
    path = folder / FILES[component]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    assert refused(component, folder).startswith(f"{path}: not a ")


@pytest.mark.parametrize(
    ("component", "content", "text"),
    [
        ("gpt", {}, "holds no tensors"),
        ("conditioner", {}, "holds no tensors"),
        ("gpt", [1], "expected a dict of tensors, found list"),
        ("gpt", {"model": 3}, "expected a dict of tensors, found int"),
        ("gpt", {"epoch": 3}, "epoch is int, not a tensor"),
        ("s2mel", {"cfm": {}}, "has no `net` entry"),
        ("s2mel", {"net": 5}, "has no `net` entry"),
        ("s2mel", {"net": {}}, "tensor gpt_layer.0.weight is missing"),
        ("s2mel", {"net": {"cfm": 5}}, "expected a dict of tensors, found int"),
        ("s2mel", {"net": {}, "optimizer": Name("os.system")}, "asks for 'os.system'"),
        ("bigvgan", {"discriminator": {}}, "has no `generator` entry"),
        ("bigvgan", {"generator": {}}, "holds no tensors"),
        ("campplus", {}, "holds no tensors"),
        ("campplus", {"x": np.zeros(1)}, "tensor xvector.dense.linear.weight is missing"),
    ],
)
def test_files_of_something_else(folder, component, content, text):
    write_pth(folder / FILES[component], content)
    message = refused(component, folder)
    assert text in message
    assert message.startswith(str(folder))


def test_campplus_without_a_block(folder):
    def drop(state: dict) -> None:
        for name in [name for name in state if name.startswith("xvector.block3.")]:
            del state[name]

    change(folder / FILES["campplus"], drop)
    assert refused("campplus", folder).startswith(
        f"{folder / FILES['campplus']}: does not fit config.yaml (campplus): "
    )


@pytest.mark.parametrize(
    ("component", "place", "entries", "text"),
    [
        ("bigvgan", "bigvgan", {"activation": "snake"}, "activation is 'snake', only 'snakebeta' is supported"),
        ("bigvgan", "bigvgan", {"resblock": "2"}, "resblock is '2'"),
        ("bigvgan", "bigvgan", {"upsample_rates": 4}, "the sizes of bigvgan cannot be read off it"),
        ("bigvgan", "bigvgan", {"upsample_rates": [4, 4, 2, 2, 2, 4]}, ""),
        ("w2vbert", "w2v-bert-2.0", {"position_embeddings_type": "rotary"}, "'rotary'"),
        ("w2vbert", "w2v-bert-2.0", {"num_attention_heads": 7}, "does not fit config.yaml (w2vbert)"),
        (
            "w2vbert",
            "w2v-bert-2.0",
            {"left_max_position_embeddings": 9},
            "distance has shape (73, 16), expected (18, 16)",
        ),
    ],
)
def test_config_json_is_checked(folder, component, place, entries, text):
    path = folder / "hf_cache" / place / "config.json"
    contents = json.loads(path.read_text()) | entries
    path.unlink()
    path.write_text(json.dumps(contents))
    if text:
        assert text in refused(component, folder)
    else:  # a size that no tensor knows: it is taken from there
        assert convert.read_config(folder).bigvgan.hop == 512


@pytest.mark.parametrize(
    ("content", "text"), [("{", "not a JSON file"), ("[1]", "holds no entries"), (None, "no such file")]
)
def test_config_json_is_there(folder, content, text):
    path = folder / "hf_cache" / "bigvgan" / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    kind = FileNotFoundError if content is None else ConfigError
    assert refused("bigvgan", folder, kind=kind).startswith(f"{path}: {text}")


@pytest.mark.parametrize("name", ["gpt_checkpoint", "s2mel_checkpoint", "w2v_stat", "bpe_model"])
def test_config_yaml_names_the_files(folder, tmp_path, name):
    path = folder / "config.yaml"
    text = path.read_text()
    path.unlink()
    path.write_text(re.sub(rf"{name}: .*", f"{name}: gone.pth", text))
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file"):
        convert.convert(folder, tmp_path / "out")
    path.write_text(re.sub(rf"{name}: .*", "", text))
    with pytest.raises(ConfigError, match=rf"config\.yaml: entry (dataset\.)?{name} is missing"):
        convert.convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "entries", "text"),
    [
        (
            "hf_cache/w2v-bert-2.0",
            {"num_attention_heads": 10**9},
            "config.json: cannot be used: W2VBertConfig.heads",
        ),
        ("hf_cache/w2v-bert-2.0", {"layer_norm_eps": "x" * 9000}, "W2VBertConfig.epsilon: is 'xxx"),
        ("hf_cache/bigvgan", {"upsample_rates": [10**9] * 6}, "BigVGANConfig.upsample_rates is 1000000000, but must"),
        ("hf_cache/bigvgan", {"resblock": "x" * 9000}, "resblock is 'xxx"),
        ("qwen0.6bemo4-merge", {"num_hidden_layers": 10**9}, "Qwen3Config.layers is 1000000000, but must"),
        ("qwen0.6bemo4-merge", {"hidden_act": "x" * 9000}, "hidden_act is 'xxx"),
    ],
)
def test_sizes_without_bounds_are_refused(folder, place, entries, text):
    path = folder / place / "config.json"
    contents = json.loads(path.read_text()) | entries
    path.unlink()
    path.write_text(json.dumps(contents))
    component = {"w2v-bert-2.0": "w2vbert", "bigvgan": "bigvgan"}.get(path.parent.name, "qwen3")
    message = refused(component, folder)
    assert text in message
    assert len(message) < len(str(folder)) + 250


@pytest.mark.parametrize("name", ["gpt_checkpoint", "s2mel_checkpoint", "w2v_stat", "bpe_model", "emo_matrix"])
def test_files_outside_the_folder_are_refused(folder, tmp_path, name):
    path = folder / "config.yaml"
    text = path.read_text()
    path.unlink()
    path.write_text(re.sub(rf"{name}: .*", f"{name}: /etc/passwd", text))
    with pytest.raises(
        ConfigError, match=rf"config\.yaml: entry (dataset\.)?{name} is '/etc/passwd', outside the model"
    ):
        convert.convert(folder, tmp_path / "out")


def test_heads_that_do_not_divide_the_width(folder):
    path = folder / "config.yaml"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("  heads: 4", "  heads: 7"))
    assert refused("gpt", folder).startswith(f"{folder}/gpt.pth: does not fit config.yaml (gpt): ")


# ---- a whole folder -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: no such file"):
        convert.convert(tmp_path, tmp_path / "out")


def stop(error: BaseException, after: int) -> Callable[[Report], None]:
    seen = []

    def progress(report: Report) -> None:
        seen.append(report.component)
        if len(seen) == after:
            raise error

    return progress


class Interrupted:
    """Ways for a conversion to end in the middle."""

    @staticmethod
    def by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        return {"progress": stop(KeyboardInterrupt(), after=2)}

    @staticmethod
    def by_a_missing_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        change(folder / FILES["campplus"], lambda state: state.pop("head.bn1.weight"))
        return {}

    @staticmethod
    def by_an_unknown_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        change(folder / FILES["repcodec"], lambda state: state.update(more=np.zeros(1, np.float32)))
        return {"strict": True}

    @staticmethod
    def by_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        save = checkpoint.save

        def full(folder: Path, component: str, cfg: Any, tree: Any) -> None:
            save(folder, component, cfg, {"some": np.zeros(3, np.float32)})  # what was written before the disk was full
            if component == "repcodec":
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save", full)
        return {}


@pytest.mark.parametrize(
    ("way", "error"),
    [
        (Interrupted.by_hand, KeyboardInterrupt),
        (Interrupted.by_a_missing_tensor, CheckpointError),
        (Interrupted.by_an_unknown_tensor, CheckpointError),
        (Interrupted.by_a_full_disk, FileError),
    ],
)
def test_nothing_is_left_behind(folder, tmp_path, monkeypatch, way, error):
    options = way(folder, monkeypatch)
    target = tmp_path / "there"
    target.mkdir()
    with pytest.raises(error):
        convert.convert(folder, target / "out", **options)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "content", "text"),
    [
        ("bpe.model", b"no model", "not a readable SentencePiece model"),
        ("glossary.yaml", b"a: [", "not valid YAML"),
        ("glossary.yaml", b"- 5", "expected `term: reading` entries"),
        ("qwen0.6bemo4-merge/tokenizer.json", b"{}", "not a tokenizer"),
        ("qwen0.6bemo4-merge/tokenizer.json", None, "no such file; it belongs to the model"),
        ("bpe.model", None, "no such file; it belongs to the model"),
    ],
)
def test_other_files_are_understood_before_anything_is_written(folder, tmp_path, monkeypatch, place, content, text):
    """Not at the first sentence."""
    monkeypatch.setattr(convert, "whole", None)
    path = folder / place
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Error) as caught:
        convert.convert(folder, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: {text}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("component", "size", "name"),
    [("gpt", "text_vocabulary", r"bpe\.model"), ("qwen3", "vocabulary", r"tokenizer\.json")],
)
def test_a_vocabulary_of_another_model_is_refused(tiny, folder, tmp_path, monkeypatch, component, size, name):
    cfg = dataclasses.replace(tiny.cfg, **{component: dataclasses.replace(getattr(tiny.cfg, component), **{size: 10})})
    monkeypatch.setattr(convert, "read_config", lambda folder: cfg)
    with pytest.raises(CheckpointError, match=rf"{name}: has \d+ pieces, but the model knows 10: it belongs to"):
        convert.convert(folder, tmp_path / "out")


def test_what_exists_is_left_alone(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "note").write_text("mine")
    with pytest.raises(FileError, match=r"out: exists already; remove it or choose another folder"):
        convert.convert(folder, out)
    assert [path.name for path in out.iterdir()] == ["note"]
    assert (out / "note").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_reports_and_other_files(folder, tmp_path, monkeypatch, whole):
    """The order of the data, one report each; the vocabulary and the glossary come along."""
    monkeypatch.setattr(convert, "read", lambda component, folder, strict: whole[component])
    monkeypatch.setattr(checkpoint, "save", lambda folder, component, cfg, tree: (folder / component).mkdir())
    (folder / "glossary.yaml").write_text("JAX: jacks\n")
    seen: list[Report] = []
    reports = convert.convert(folder, tmp_path / "out", progress=seen.append)
    assert [report.component for report in reports] == list(ALL)
    assert reports == seen == [whole[name][1] for name in ALL]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["model.json", "bpe.model", "glossary.yaml", "tokenizer.json", "rest.pth", "checksums.json", *ALL]
    )
    assert (tmp_path / "out" / "glossary.yaml").read_text() == "JAX: jacks\n"
    assert (tmp_path / "out" / "bpe.model").read_bytes() == (folder / "bpe.model").read_bytes()
    assert checkpoint.read_description(tmp_path / "out") == (convert.read_config(folder), "model")
