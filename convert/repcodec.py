"""hf_cache/semantic_codec_model.safetensors: the encoder and the quantizer; codec.pth: all of a codec with a stride."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.config import from_yaml
from indextts_jax.convert.table import (
    Row,
    Table,
    convolution,
    dense,
    embedding,
    layer_norm,
    parameters,
    pointwise,
    weight_norm,
)
from indextts_jax.convert.tensors import CheckpointError, Tensors, flatten, read_pth, read_safetensors
from indextts_jax.models.repcodec import RepCodecConfig


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    if from_yaml(settings).repcodec.stride is None:
        return read_safetensors(folder / "hf_cache" / "semantic_codec_model.safetensors")
    path = folder / "codec.pth"
    state = read_pth(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path}: has no `model` entry; this is not the codec's checkpoint")
    return flatten(state["model"], path)


def config(base: RepCodecConfig, tensors: Tensors, extra: dict[str, Any]) -> RepCodecConfig:
    channels, width, kernel = tensors["encoder.0.embed.weight"].shape
    return dataclasses.replace(base, width=width, channels=channels, kernel=kernel)


def table(cfg: RepCodecConfig) -> Table:
    quantizer, strided = "quantizer.quantizers.0", []
    if cfg.stride is not None:
        strided = [
            Row("down", "shrink/conv", convolution),
            *_backbone("decoder"),
            Row("up", "stretch/conv", convolution),
        ]
    return Table(
        rows=[
            *_backbone("encoder"),
            *strided,
            Row(f"{quantizer}.in_project", "quantizer/in", weight_norm(pointwise)),
            Row(f"{quantizer}.codebook", "quantizer/codebook", embedding),
            Row(f"{quantizer}.out_project", "quantizer/out", weight_norm(pointwise)),
        ],
        unused=["decoder.*"] if cfg.stride is None else [],
    )


def _backbone(name: str) -> list[Row]:
    layer, block = f"{name}.0.convnext.{{i}}", f"{name}/layer_{{i}}"
    return [
        Row(f"{name}.0.embed", f"{name}/embed", convolution),
        Row(f"{name}.0.norm", f"{name}/norm", layer_norm),
        Row(layer, block, parameters(gamma="gamma")),
        Row(f"{layer}.dwconv", f"{block}/depthwise", convolution),
        Row(f"{layer}.norm", f"{block}/norm", layer_norm),
        Row(f"{layer}.pwconv1", f"{block}/up", dense),
        Row(f"{layer}.pwconv2", f"{block}/down", dense),
        Row(f"{name}.0.final_layer_norm", f"{name}/final_norm", layer_norm),
        Row(f"{name}.1", f"{name}/out", dense),
    ]
