"""hf_cache/w2v-bert-2.0 and wav2vec2bert_stats.pt."""

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
    parameters,
    pointwise,
)
from indextts_jax.convert.tensors import CheckpointError, Tensors, flatten, read_pth, read_safetensors
from indextts_jax.errors import short
from indextts_jax.models.w2vbert import W2VBertConfig


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    path = folder / inside(settings, "w2v_stat")
    statistics = flatten(read_pth(path), path, "statistics.")
    return read_safetensors(folder / "hf_cache" / "w2v-bert-2.0" / "model.safetensors") | statistics


def config(base: W2VBertConfig, tensors: Tensors, extra: dict[str, Any]) -> W2VBertConfig:
    kind = extra.get("position_embeddings_type", "relative_key"), extra.get("hidden_act", "swish")
    if kind != ("relative_key", "swish"):
        raise CheckpointError(
            f"w2v-bert-2.0/config.json: position embeddings and activation {short(kind)} are not supported"
        )
    width, features = tensors["feature_projection.projection.weight"].shape
    return dataclasses.replace(
        base,
        features=features,
        width=width,
        heads=extra.get("num_attention_heads", base.heads),
        intermediate=tensors["encoder.layers.0.ffn1.intermediate_dense.weight"].shape[0],
        kernel=tensors["encoder.layers.0.conv_module.depthwise_conv.weight"].shape[-1],
        left=extra.get("left_max_position_embeddings", base.left),
        right=extra.get("right_max_position_embeddings", base.right),
        epsilon=extra.get("layer_norm_eps", base.epsilon),
    )


def table(cfg: W2VBertConfig) -> Table:
    layer, block = "encoder.layers.{i}", "encoder/layer_{i}"
    attention = f"{layer}.self_attn"
    return Table(
        rows=[
            Row("feature_projection.layer_norm", "encoder/norm", layer_norm),
            Row("feature_projection.projection", "encoder/project", dense),
            Row(f"{layer}.ffn{{j}}_layer_norm", f"{block}/feed_forward_{{j}}/norm", layer_norm),
            Row(f"{layer}.ffn{{j}}.intermediate_dense", f"{block}/feed_forward_{{j}}/up", dense),
            Row(f"{layer}.ffn{{j}}.output_dense", f"{block}/feed_forward_{{j}}/down", dense),
            Row(f"{layer}.self_attn_layer_norm", f"{block}/attention/norm", layer_norm),
            Row(tuple(f"{attention}.linear_{x}" for x in "qkv"), f"{block}/attention/qkv", beside(dense)),
            Row(f"{attention}.distance_embedding", f"{block}/attention", parameters(distance="weight")),
            Row(f"{attention}.linear_out", f"{block}/attention/out", dense),
            Row(f"{layer}.conv_module.layer_norm", f"{block}/convolution/norm", layer_norm),
            Row(f"{layer}.conv_module.pointwise_conv1", f"{block}/convolution/gated", pointwise),
            Row(f"{layer}.conv_module.depthwise_conv", f"{block}/convolution/depthwise", convolution),
            Row(f"{layer}.conv_module.depthwise_layer_norm", f"{block}/convolution/depthwise_norm", layer_norm),
            Row(f"{layer}.conv_module.pointwise_conv2", f"{block}/convolution/out", pointwise),
            Row(f"{layer}.final_layer_norm", f"{block}/norm", layer_norm),
            Row("statistics", "statistics", parameters(mean="mean", variance="var")),
        ],
        unused=["masked_spec_embed", f"encoder.layers.{{{cfg.layers}+}}.*"],
    )
