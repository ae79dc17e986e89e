"""s2mel.pth -> net -> cfm, length_regulator and gpt_layer."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.config import inside
from indextts_jax.convert.table import (
    Row,
    Table,
    beside,
    convolution,
    dense,
    layer_norm,
    pointwise,
    rms_norm,
    weight_norm,
)
from indextts_jax.convert.tensors import CheckpointError, Tensors, flatten, read_pth
from indextts_jax.models.s2mel import S2MelConfig, time_frequencies


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    path = folder / inside(settings, "s2mel_checkpoint")
    state = read_pth(path)
    if not isinstance(state, dict) or not isinstance(state.get("net"), dict):
        raise CheckpointError(f"{path}: has no `net` entry; this is not the s2mel checkpoint")
    return {
        f"{part}.{name.removeprefix('module.')}": tensor
        for part, module in state["net"].items()
        for name, tensor in flatten(module, path).items()
    }


def state(tensors: dict[str, Any]) -> dict[str, Any]:
    """What s2mel.pth holds, of tensors by the names that `tensors` gives them."""
    net: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        net.setdefault(part, {})[rest] = tensor
    return {"net": net}


def config(base: S2MelConfig, tensors: Tensors, extra: dict[str, Any]) -> S2MelConfig:
    widths = [tensors[f"gpt_layer.{i}.weight"].shape for i in range(len(base.latent_layers))]
    return dataclasses.replace(
        base,
        latent=widths[0][1] if widths else base.latent,
        latent_layers=tuple(out for out, _ in widths),
        semantic=tensors["length_regulator.content_in_proj.weight"].shape[1],
    )


def table(cfg: S2MelConfig) -> Table:
    dit, wavenet = "cfm.estimator", "cfm.estimator.wavenet"
    layer, block = f"{dit}.transformer.layers.{{i}}", "estimator/transformer/layer_{i}"
    last = cfg.regulator_layers
    latent = [Row("gpt_layer.{i}", "latent/layer_{i}", dense)] if cfg.latent_layers else []
    return Table(
        rows=[
            *latent,
            Row("length_regulator.content_in_proj", "regulator/project", dense),
            # a flat list of convolution, norm, activation; the last convolution stands alone
            *(Row(f"length_regulator.model.{3 * i}", f"regulator/conv_{i}", convolution) for i in range(last)),
            *(Row(f"length_regulator.model.{3 * i + 1}", f"regulator/norm_{i}", layer_norm) for i in range(last)),
            Row(f"length_regulator.model.{3 * last}", "regulator/out", pointwise),
            *_time(f"{dit}.t_embedder", "estimator/time"),
            *_time(f"{dit}.t_embedder2", "estimator/wavenet_time"),
            Row(f"{dit}.cond_projection", "estimator/content", dense),
            Row(f"{dit}.cond_x_merge_linear", "estimator/merge", dense),
            Row(f"{layer}.skip_in_linear", f"{block}/skip", dense),
            Row(f"{layer}.attention_norm.project_layer", f"{block}/attention_norm/project", dense),
            Row(f"{layer}.attention_norm.norm", f"{block}/attention_norm/norm", rms_norm),
            Row(f"{layer}.attention.wqkv", f"{block}/attention/qkv", dense),
            Row(f"{layer}.attention.wo", f"{block}/attention/out", dense),
            Row(f"{layer}.ffn_norm.project_layer", f"{block}/feed_forward_norm/project", dense),
            Row(f"{layer}.ffn_norm.norm", f"{block}/feed_forward_norm/norm", rms_norm),
            Row(tuple(f"{layer}.feed_forward.{w}" for w in ("w1", "w3")), f"{block}/feed_forward/gated", beside(dense)),
            Row(f"{layer}.feed_forward.w2", f"{block}/feed_forward/down", dense),
            Row(f"{dit}.transformer.norm.project_layer", "estimator/transformer/norm/project", dense),
            Row(f"{dit}.transformer.norm.norm", "estimator/transformer/norm/norm", rms_norm),
            Row(f"{dit}.skip_linear", "estimator/skip", dense),
            Row(f"{dit}.conv1", "estimator/wavenet_in", dense),
            Row(f"{wavenet}.cond_layer.conv.conv", "estimator/wavenet/condition", weight_norm(pointwise)),
            Row(f"{wavenet}.in_layers.{{i}}.conv.conv", "estimator/wavenet/in_{i}", weight_norm(convolution)),
            Row(f"{wavenet}.res_skip_layers.{{i}}.conv.conv", "estimator/wavenet/out_{i}", weight_norm(pointwise)),
            Row(f"{dit}.res_projection", "estimator/residual", dense),
            Row(f"{dit}.final_layer.adaLN_modulation.1", "estimator/modulation", dense),
            Row(f"{dit}.final_layer.linear", "estimator/final", weight_norm(dense)),
            Row(f"{dit}.conv2", "estimator/out", pointwise),
        ],
        unused=[
            *([] if latent else ["gpt_layer.*"]),
            f"{dit}.input_pos",
            f"{dit}.x_embedder.*",
            f"{dit}.cond_embedder.*",
            f"{dit}.content_mask_embedder.*",
            f"{dit}.transformer.layers.*.skip_in_linear.*",  # of the layers that receive no skip
            "length_regulator.embedding.weight",
            "length_regulator.mask_token",
        ],
        computed={
            f"{dit}.{name}.freqs": lambda shape: time_frequencies(shape[0]) for name in ("t_embedder", "t_embedder2")
        },
    )


def _time(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.mlp.0", f"{ours}/up", dense), Row(f"{theirs}.mlp.2", f"{ours}/down", dense)]
