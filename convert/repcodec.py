"""hf_cache/semantic_codec_model.safetensors: the encoder and the quantizer."""

import dataclasses
from pathlib import Path
from typing import Any

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
from indextts_jax.convert.tensors import Tensors, read_safetensors
from indextts_jax.models.repcodec import RepCodecConfig


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    return read_safetensors(folder / "hf_cache" / "semantic_codec_model.safetensors")


def config(base: RepCodecConfig, tensors: Tensors, extra: dict[str, Any]) -> RepCodecConfig:
    channels, width, kernel = tensors["encoder.0.embed.weight"].shape
    return dataclasses.replace(base, width=width, channels=channels, kernel=kernel)


def table(cfg: RepCodecConfig) -> Table:
    layer, block = "encoder.0.convnext.{i}", "encoder/layer_{i}"
    quantizer = "quantizer.quantizers.0"
    return Table(
        rows=[
            Row("encoder.0.embed", "encoder/embed", convolution),
            Row("encoder.0.norm", "encoder/norm", layer_norm),
            Row(layer, block, parameters(gamma="gamma")),
            Row(f"{layer}.dwconv", f"{block}/depthwise", convolution),
            Row(f"{layer}.norm", f"{block}/norm", layer_norm),
            Row(f"{layer}.pwconv1", f"{block}/up", dense),
            Row(f"{layer}.pwconv2", f"{block}/down", dense),
            Row("encoder.0.final_layer_norm", "encoder/final_norm", layer_norm),
            Row("encoder.1", "encoder/out", dense),
            Row(f"{quantizer}.in_project", "quantizer/in", weight_norm(pointwise)),
            Row(f"{quantizer}.codebook", "quantizer/codebook", embedding),
            Row(f"{quantizer}.out_project", "quantizer/out", weight_norm(pointwise)),
        ],
        unused=["decoder.*"],
    )
