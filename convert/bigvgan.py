"""hf_cache/bigvgan/bigvgan_generator.pt -> generator, with sizes from config.json beside it."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.convert.table import (
    Leaves,
    Module,
    Row,
    Table,
    convolution,
    parameters,
    stacked,
    undone_by,
    weight_norm,
)
from indextts_jax.convert.tensors import CheckpointError, Tensors, flatten, read_pth
from indextts_jax.errors import short
from indextts_jax.models.bigvgan import BigVGANConfig, low_pass

_KNOWN = {
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    path = folder / "hf_cache" / "bigvgan" / "bigvgan_generator.pt"
    state = read_pth(path)
    if not isinstance(state, dict) or "generator" not in state:
        raise CheckpointError(f"{path}: has no `generator` entry; this is not a BigVGAN generator")
    return flatten(state["generator"], path)


def config(base: BigVGANConfig, tensors: Tensors, extra: dict[str, Any]) -> BigVGANConfig:
    for name, value in _KNOWN.items():
        if extra.get(name, value) != value:
            raise CheckpointError(f"bigvgan/config.json: {name} is {short(extra[name])}, only {value!r} is supported")
    channels, mels, _ = tensors["conv_pre.weight_v"].shape
    return dataclasses.replace(
        base,
        mels=mels,
        channels=channels,
        upsample_rates=tuple(extra.get("upsample_rates", base.upsample_rates)),
        upsample_kernels=tuple(extra.get("upsample_kernel_sizes", base.upsample_kernels)),
        kernels=tuple(extra.get("resblock_kernel_sizes", base.kernels)),
        dilations=tuple(map(tuple, extra.get("resblock_dilation_sizes", base.dilations))),
    )


@undone_by(lambda ours: {"weight": ours["kernel"].transpose(0, 2, 1), "bias": ours["bias"]})
def _transposed(m: Module) -> Leaves:
    """torch ConvTranspose1d [in, out, kernel] -> kernel [in, kernel, out]."""
    return {"kernel": m["weight"].transpose(0, 2, 1), "bias": m["bias"]}


_activation = stacked(parameters(alpha="alpha", beta="beta"))


def table(cfg: BigVGANConfig) -> Table:
    rows = [
        Row("conv_pre", "in", weight_norm(convolution)),
        Row("ups.{i}.0", "upsample_{i}", weight_norm(_transposed)),
        Row("activation_post.act", "activation", _activation),
        Row("conv_post", "out", weight_norm(convolution)),
    ]
    for i in range(len(cfg.upsample_rates)):
        blocks = [f"resblocks.{i * len(cfg.kernels) + j}" for j in range(len(cfg.kernels))]
        beside = tuple(f"{block}.activations.{{i}}.act" for block in blocks)
        rows.append(Row(beside, f"stage_{i}/activation_{{i}}", _activation))
        for j, block in enumerate(blocks):
            rows.append(Row(f"{block}.convs1.{{i}}", f"stage_{i}/dilated_{{i}}_{j}", weight_norm(convolution)))
            rows.append(Row(f"{block}.convs2.{{i}}", f"stage_{i}/plain_{{i}}_{j}", weight_norm(convolution)))
    filters = ("*.upsample.filter", "*.downsample.lowpass.filter")
    return Table(rows, computed={name: lambda shape: low_pass().reshape(1, 1, -1) for name in filters})
