"""A converted model that was never in the official layout, such as the embedded voice, as such a folder, whole.

    python -m debug.official_folder indextts_jax/embedded/model official

`indextts-jax export` writes gpt.pth and s2mel.pth; the rest comes from the folder that a model was converted from.
Where there is none, this writes all of it, so that `debug/dump_python.py` can run the PyTorch reference on it.

Two things are not the model's. The codec's decoder, which speaking does not use, has the encoder's weights. CAMPPlus
has the reference's number of layers, of which it knows no other, with weights of zero: so it must be one that gives
every recording the same style, as with one speaker; any other is refused.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import yaml

from debug.golden import FIXTURES
from indextts_jax import checkpoint, models
from indextts_jax.config import Config
from indextts_jax.convert import bigvgan, prototypes, repcodec, s2mel, w2vbert
from indextts_jax.convert.export import export
from indextts_jax.convert.table import unfill
from indextts_jax.convert.tensors import flatten, read_pth
from indextts_jax.convert.writer import Writer
from indextts_jax.errors import Error
from indextts_jax.models.bigvgan import low_pass

TEMPLATE = FIXTURES / "tiny"  # of the files of settings
EPSILON = 1e-5  # of batch norms


def tensors(folder: Path, component: str, converter: Any, cfg: Config) -> dict[str, np.ndarray]:
    """A component's tensors by their official names."""
    own = getattr(cfg, component)
    tree = checkpoint.restore(folder, component, own, jnp.dtype(jnp.float32))
    return dict(unfill(component, converter.table(own), jax.device_get(tree), models.shapes(component, own), component))


def write_pth(path: Path, state: Mapping[str, Any] | np.ndarray) -> None:
    """A PyTorch file of an array, or of dicts of arrays."""

    def stored(value: Any) -> Any:
        return {n: stored(v) for n, v in value.items()} if isinstance(value, Mapping) else writer.add(value)

    with Writer(path) as writer:
        writer.finish(stored(state))


def settings(cfg: Config) -> dict[str, Any]:
    """config.yaml."""
    made = yaml.safe_load((TEMPLATE / "config.yaml").read_text("utf-8"))
    gpt, flow, codec = cfg.gpt, cfg.s2mel, cfg.repcodec

    def module(one: Any) -> dict[str, Any]:
        factor = 1.5 * one.perceiver_units / one.latent_width  # the reference makes two thirds of it
        return {
            "output_size": one.width, "linear_units": one.units, "attention_heads": one.heads, "num_blocks": one.layers,
            "input_layer": "conv2d2", "perceiver_mult": factor,
        }  # fmt: skip

    made["gpt"] |= {
        "model_dim": gpt.width, "max_mel_tokens": gpt.code_positions - 3, "max_text_tokens": gpt.text_positions - 2,
        "heads": gpt.heads, "layers": gpt.layers, "number_text_tokens": gpt.text_vocabulary - 1,
        "number_mel_codes": gpt.code_vocabulary, "start_mel_token": gpt.start_code, "stop_mel_token": gpt.stop_code,
        "condition_num_latent": cfg.conditioner.latents,
        "condition_module": module(cfg.conditioner.speaker), "emo_condition_module": module(cfg.conditioner.emotion),
    }  # fmt: skip
    made["semantic_codec"] = {
        "codebook_size": codec.codes, "hidden_size": codec.width, "codebook_dim": codec.code_width,
        "vocos_dim": codec.channels, "vocos_intermediate_dim": codec.intermediate, "vocos_num_layers": codec.layers,
    }  # fmt: skip
    parts = made["s2mel"]
    parts["style_encoder"]["dim"] = flow.style
    parts["length_regulator"] |= {"channels": flow.regulator_channels, "in_channels": flow.semantic}
    parts["DiT"] |= {
        "hidden_dim": flow.width, "num_heads": flow.heads, "depth": flow.depth, "content_dim": flow.content,
    }  # fmt: skip
    parts["wavenet"] |= {"hidden_dim": flow.wavenet_width, "num_layers": flow.wavenet_layers}
    return made | {"emo_num": list(cfg.prototypes.groups)}


def unused(cfg: Config) -> dict[str, np.ndarray]:
    """The tensors of s2mel.pth that speaking does not use, but for constants: zeros."""
    net, dit = cfg.s2mel, "cfm.estimator"
    shapes = {
        f"{dit}.x_embedder.bias": (net.width,), f"{dit}.x_embedder.weight_g": (net.width, 1),
        f"{dit}.x_embedder.weight_v": (net.width, net.mels), f"{dit}.cond_embedder.weight": (16, net.width),
        f"{dit}.content_mask_embedder.weight": (1, net.width), "length_regulator.mask_token": (1, net.content),
        "length_regulator.embedding.weight": (16, net.content),
    }  # fmt: skip
    for i in range(net.depth // 2 + 1):  # the layers that receive no skip
        layer = f"{dit}.transformer.layers.{i}.skip_in_linear"
        shapes |= {f"{layer}.weight": (net.width, 2 * net.width), f"{layer}.bias": (net.width,)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def complete(path: Path, more: dict[str, np.ndarray]) -> None:
    """Write s2mel.pth anew with more tensors."""
    found = {
        name: tensor.read()
        for part, tensors_of in read_pth(path)["net"].items()
        for name, tensor in flatten(tensors_of, path, f"{part}.").items()
    }
    if both := found.keys() & more.keys():
        raise ValueError(f"{path}: {min(both)} is there already")
    write_pth(path, s2mel.state(found | more))


def campplus(folder: Path, cfg: Config) -> dict[str, np.ndarray]:
    """A CAMPPlus of the reference's layers and smallest widths, which answers with the model's one style."""
    own = cfg.campplus
    out = checkpoint.restore(folder, "campplus", own, jnp.dtype(jnp.float32))["out"]
    if np.any(out["kernel"]):
        raise Error(f"{folder / 'campplus'}: tells recordings apart; only one of a single style can be written")
    made: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int) -> None:
        made[f"{name}.weight"] = np.zeros(shape, np.float32)

    def norm(name: str, width: int, shift: Any = None) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            made[f"{name}.{part}"] = np.full(width, part in ("weight", "running_var"), np.float32)
        if shift is not None:  # the last one, without weight and bias
            del made[f"{name}.weight"], made[f"{name}.bias"]
            made[f"{name}.running_mean"] = -np.asarray(shift, np.float32) * np.float32((1 + EPSILON) ** 0.5)

    head, first, growth, bottleneck = 32, 16, 8, 16
    layer("head.conv1", head, 1, 3, 3)
    norm("head.bn1", head)
    for i in (1, 2):
        for j in (0, 1):
            block = f"head.layer{i}.{j}"
            for k in (1, 2):
                layer(f"{block}.conv{k}", head, head, 3, 3)
                norm(f"{block}.bn{k}", head)
            if j == 0:
                layer(f"{block}.shortcut.0", head, head, 1, 1)
                norm(f"{block}.shortcut.1", head)
    layer("head.conv2", head, head, 3, 3)
    norm("head.bn2", head)
    layer("xvector.tdnn.linear", first, head * 10, 5)
    norm("xvector.tdnn.nonlinear.batchnorm", first)
    width = first
    for i, layers in enumerate((12, 24, 16), 1):
        for j in range(1, layers + 1):
            block = f"xvector.block{i}.tdnnd{j}"
            norm(f"{block}.nonlinear1.batchnorm", width)
            layer(f"{block}.linear1", bottleneck, width, 1)
            norm(f"{block}.nonlinear2.batchnorm", bottleneck)
            layer(f"{block}.cam_layer.linear_local", growth, bottleneck, 3)
            for k, (outputs, inputs) in enumerate(((bottleneck // 2, bottleneck), (growth, bottleneck // 2)), 1):
                layer(f"{block}.cam_layer.linear{k}", outputs, inputs, 1)
                made[f"{block}.cam_layer.linear{k}.bias"] = np.zeros(outputs, np.float32)
            width += growth
        norm(f"xvector.transit{i}.nonlinear.batchnorm", width)
        width //= 2
        layer(f"xvector.transit{i}.linear", width, 2 * width, 1)
    norm("xvector.out_nonlinear.batchnorm", width)
    layer("xvector.dense.linear", own.embedding, 2 * width, 1)
    norm("xvector.dense.nonlinear.batchnorm", own.embedding, out["bias"])
    return made


def write(folder: Path, out: Path) -> None:
    """Write the converted model in `folder` into `out`, which must not exist. Raises Error and OSError."""
    cfg, _ = checkpoint.read_description(folder)
    hub = out / "hf_cache"
    for place in (hub / "w2v-bert-2.0", hub / "bigvgan"):
        place.mkdir(parents=True)
    export(folder, out)
    complete(out / "s2mel.pth", unused(cfg))
    shutil.copyfile(folder / "bpe.model", out / "bpe.model")
    (out / "config.yaml").write_text(yaml.safe_dump(settings(cfg), sort_keys=False), "utf-8")

    heard, own = tensors(folder, "w2vbert", w2vbert, cfg), cfg.w2vbert
    write_pth(out / "wav2vec2bert_stats.pt", {n: heard.pop(f"statistics.{n}") for n in ("mean", "var")})
    safetensors.numpy.save_file(heard, hub / "w2v-bert-2.0" / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((TEMPLATE / "hf_cache" / "w2v-bert-2.0" / name).read_text("utf-8"))
        if name == "config.json":
            content |= {
                "hidden_size": own.width, "output_hidden_size": own.width, "intermediate_size": own.intermediate,
                "num_attention_heads": own.heads, "conv_depthwise_kernel_size": own.kernel,
                "num_hidden_layers": own.layers, "feature_projection_input_dim": own.features,
                "left_max_position_embeddings": own.left, "right_max_position_embeddings": own.right,
                "layer_norm_eps": own.epsilon,
            }  # fmt: skip
        (hub / "w2v-bert-2.0" / name).write_text(json.dumps(content), "utf-8")

    codec = tensors(folder, "repcodec", repcodec, cfg)
    codec |= {n.replace("encoder", "decoder", 1): a for n, a in codec.items() if n.startswith("encoder.")}
    safetensors.numpy.save_file(codec, hub / "semantic_codec_model.safetensors", {"format": "pt"})
    write_pth(hub / "campplus_cn_common.bin", campplus(folder, cfg))

    sound = tensors(folder, "bigvgan", bigvgan, cfg)
    filtered = [name.removesuffix("act.alpha") for name in sound if name.endswith("act.alpha")]
    low = np.asarray(low_pass(), np.float32).reshape(1, 1, -1)
    sound |= {f"{name}{part}.filter": low for name in filtered for part in ("upsample", "downsample.lowpass")}
    write_pth(hub / "bigvgan" / "bigvgan_generator.pt", {"generator": sound})
    content, net = json.loads((TEMPLATE / "hf_cache" / "bigvgan" / "config.json").read_text("utf-8")), cfg.bigvgan
    content |= {
        "num_mels": net.mels, "upsample_initial_channel": net.channels, "upsample_rates": net.upsample_rates,
        "upsample_kernel_sizes": net.upsample_kernels, "resblock_kernel_sizes": net.kernels,
        "resblock_dilation_sizes": net.dilations,
    }  # fmt: skip
    (hub / "bigvgan" / "config.json").write_text(json.dumps(content), "utf-8")

    known = tensors(folder, "prototypes", prototypes, cfg)
    for name, matrix in (("feat1.pt", "spk_matrix"), ("feat2.pt", "emo_matrix")):
        write_pth(out / name, known[f"{matrix}.rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="converted model")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    options = parser.parse_args()
    write(options.model, options.out)


if __name__ == "__main__":
    main()
