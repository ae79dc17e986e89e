"""gpt.pth, first part: what makes latents of a speaker, and the Conformer and Perceiver of emotion."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.config import inside
from indextts_jax.convert.table import (
    Given,
    Leaves,
    Module,
    Row,
    Table,
    beside,
    convolution,
    dense,
    layer_norm,
    parameters,
    pointwise,
    undone_by,
)
from indextts_jax.convert.tensors import Tensors, flatten, read_pth
from indextts_jax.models.conditioner import ConditionerConfig, EncoderConfig, sinusoids

_MODULES = ("conditioning_encoder.", "perceiver_encoder.", "spk_emb_proj.", "emo_", "emovec_layer.")


def gpt_file(folder: Path, settings: dict[str, Any]) -> Tensors:
    """All tensors of gpt.pth, which two components share; a `model` wrapper around them is taken off."""
    path = folder / inside(settings, "gpt_checkpoint")
    state = read_pth(path)
    return flatten(state.get("model", state) if isinstance(state, dict) else state, path)


def belongs(name: str) -> bool:
    """Whether a tensor of gpt.pth belongs to the conditioner."""
    return name.startswith(_MODULES)


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    return {name: tensor for name, tensor in gpt_file(folder, settings).items() if belongs(name)}


def config(base: ConditionerConfig, tensors: Tensors, extra: dict[str, Any]) -> ConditionerConfig:
    def encoder(base: EncoderConfig, prefix: str) -> EncoderConfig:
        heads, _ = tensors[f"{prefix}conditioning_encoder.encoders.0.self_attn.pos_bias_u"].shape
        latents, width = tensors[f"{prefix}perceiver_encoder.latents"].shape
        return dataclasses.replace(
            base,
            latents=latents,
            latent_width=width,
            perceiver_units=tensors[f"{prefix}perceiver_encoder.layers.0.1.2.weight"].shape[1],
            perceiver_head=tensors[f"{prefix}perceiver_encoder.layers.0.0.to_q.weight"].shape[0] // heads,
            kernel=tensors[f"{prefix}conditioning_encoder.encoders.0.conv_module.depthwise_conv.weight"].shape[-1],
        )

    return dataclasses.replace(
        base,
        semantic=tensors["emovec_layer.weight"].shape[1],
        speaker=encoder(base.speaker, "") if base.speaker else None,
        style=None if base.speaker else tensors["spk_emb_proj.weight"].shape[1],
        emotion=encoder(base.emotion, "emo_"),
    )


def _unflattened(ours: Given) -> Leaves:
    kernel = ours["kernel"]
    out = kernel.shape[1]
    return {"weight": kernel.reshape(-1, out, out).transpose(2, 1, 0).reshape(out, -1), "bias": ours["bias"]}


@undone_by(_unflattened)
def _flattened(m: Module) -> Leaves:
    """A dense layer over [channels, features] flattened, as one over [features, channels]."""
    weight = m["weight"]  # [out, channels * features], with as many channels as outputs
    out = weight.shape[0]
    kernel = weight.reshape(out, out, -1).transpose(2, 1, 0).reshape(-1, out)
    return {"kernel": kernel, "bias": m["bias"]}


def _encoder(prefix: str, ours: str) -> list[Row]:
    conformer, perceiver = f"{prefix}conditioning_encoder", f"{prefix}perceiver_encoder"
    layer, attention = f"{conformer}.encoders.{{i}}", f"{conformer}.encoders.{{i}}.self_attn"
    block, cross = f"{ours}/conformer/layer_{{i}}", f"{ours}/perceiver/attention_{{i}}"
    return [
        Row(f"{conformer}.embed.conv.0", f"{ours}/conformer/subsample/conv", convolution),
        Row(f"{conformer}.embed.out.0", f"{ours}/conformer/subsample/out", _flattened),
        Row(f"{layer}.norm_mha", f"{block}/attention_norm", layer_norm),
        Row(tuple(f"{attention}.linear_{x}" for x in "qkv"), f"{block}/attention/qkv", beside(dense)),
        Row(f"{attention}.linear_pos", f"{block}/attention/position", dense),
        Row(f"{attention}.linear_out", f"{block}/attention/out", dense),
        Row(attention, f"{block}/attention", parameters(content_bias="pos_bias_u", position_bias="pos_bias_v")),
        Row(f"{layer}.norm_conv", f"{block}/convolution_norm", layer_norm),
        Row(f"{layer}.conv_module.pointwise_conv1", f"{block}/convolution/gated", pointwise),
        Row(f"{layer}.conv_module.depthwise_conv", f"{block}/convolution/depthwise", convolution),
        Row(f"{layer}.conv_module.norm", f"{block}/convolution/norm", layer_norm),
        Row(f"{layer}.conv_module.pointwise_conv2", f"{block}/convolution/out", pointwise),
        Row(f"{layer}.norm_ff", f"{block}/feed_forward_norm", layer_norm),
        Row(f"{layer}.feed_forward.w_1", f"{block}/up", dense),
        Row(f"{layer}.feed_forward.w_2", f"{block}/down", dense),
        Row(f"{layer}.norm_final", f"{block}/norm", layer_norm),
        Row(f"{conformer}.after_norm", f"{ours}/conformer/norm", layer_norm),
        Row(perceiver, f"{ours}/perceiver", parameters(latents="latents")),
        Row(f"{perceiver}.proj_context", f"{ours}/perceiver/context", dense),
        Row(f"{perceiver}.layers.{{i}}.0.to_q", f"{cross}/q", dense),
        Row(f"{perceiver}.layers.{{i}}.0.to_kv", f"{cross}/kv", dense),
        Row(f"{perceiver}.layers.{{i}}.0.to_out", f"{cross}/out", dense),
        Row(f"{perceiver}.layers.{{i}}.1.0", f"{ours}/perceiver/up_{{i}}", dense),
        Row(f"{perceiver}.layers.{{i}}.1.2", f"{ours}/perceiver/down_{{i}}", dense),
        Row(f"{perceiver}.norm", f"{ours}/perceiver/norm", parameters(scale="gamma")),
    ]


def table(cfg: ConditionerConfig) -> Table:
    speaker = _encoder("", "speaker") if cfg.speaker else [Row("spk_emb_proj", "speaker", dense)]
    return Table(
        rows=[
            *speaker,
            *_encoder("emo_", "emotion/encoder"),
            Row("emovec_layer", "emotion/project", dense),
            Row("emo_layer", "emotion/merge", dense),
        ],
        computed={
            f"{prefix}conditioning_encoder.embed.pos_enc.pe": lambda shape: sinusoids(*shape[-2:]).reshape(shape)
            for prefix in (("", "emo_") if cfg.speaker else ("emo_",))
        },
    )
