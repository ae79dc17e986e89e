"""hf_cache/campplus_cn_common.bin; batch norms become part of the layer before them, or scale and shift."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from indextts_jax.convert.table import (
    Row,
    Table,
    batch_norm,
    batch_norm_after,
    convolution,
    pointwise,
)
from indextts_jax.convert.tensors import Tensors, flatten, read_pth
from indextts_jax.models.campplus import CAMPPlusConfig

_conv = batch_norm_after(convolution)
_last = batch_norm_after(pointwise, affine=False)


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    path = folder / "hf_cache" / "campplus_cn_common.bin"
    return flatten(read_pth(path), path)


def config(base: CAMPPlusConfig, tensors: Tensors, extra: dict[str, Any]) -> CAMPPlusConfig:
    first = "xvector.block1.tdnnd1"
    layers = {re.match(r"xvector\.block(\d+)\.tdnnd(\d+)\.", name) for name in tensors}
    found = [(int(m[1]), int(m[2])) for m in layers if m]
    return dataclasses.replace(
        base,
        embedding=tensors["xvector.dense.linear.weight"].shape[0],
        head_channels=tensors["head.conv1.weight"].shape[0],
        channels=tensors["xvector.tdnn.linear.weight"].shape[0],
        growth=tensors[f"{first}.cam_layer.linear_local.weight"].shape[0],
        bottleneck=tensors[f"{first}.linear1.weight"].shape[0],
        blocks=tuple(max(j for i, j in found if i == block) for block in sorted({i for i, _ in found})),
        kernel=tensors[f"{first}.cam_layer.linear_local.weight"].shape[2],
    )


def table(cfg: CAMPPlusConfig) -> Table:
    rows = [
        Row(("head.conv1", "head.bn1"), "head/in", _conv),
        Row(("head.conv2", "head.bn2"), "head/out", _conv),
        Row(("xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm"), "in", _conv),
        Row("xvector.out_nonlinear.batchnorm", "out_norm", batch_norm),
        Row(("xvector.dense.linear", "xvector.dense.nonlinear.batchnorm"), "out", _last),
    ]
    for i in range(2):
        theirs, ours = f"head.layer{i + 1}", f"head/layer_{i}"
        rows += [
            Row((f"{theirs}.{{i}}.conv1", f"{theirs}.{{i}}.bn1"), f"{ours}_{{i}}_first", _conv),
            Row((f"{theirs}.{{i}}.conv2", f"{theirs}.{{i}}.bn2"), f"{ours}_{{i}}_second", _conv),
            Row((f"{theirs}.{{i}}.shortcut.0", f"{theirs}.{{i}}.shortcut.1"), f"{ours}_{{i}}_shortcut", _conv),
        ]
    for i, layers in enumerate(cfg.blocks):
        rows += [
            Row(f"xvector.transit{i + 1}.nonlinear.batchnorm", f"transit_{i}_norm", batch_norm),
            Row(f"xvector.transit{i + 1}.linear", f"transit_{i}", pointwise),
        ]
        for j in range(layers):  # counted from one in theirs
            theirs, ours = f"xvector.block{i + 1}.tdnnd{j + 1}", f"block_{i}_layer_{j}"
            reduce = (f"{theirs}.linear1", f"{theirs}.nonlinear2.batchnorm")
            rows += [
                Row(f"{theirs}.nonlinear1.batchnorm", f"{ours}/norm", batch_norm),
                Row(reduce, f"{ours}/reduce", batch_norm_after(pointwise)),
                Row(f"{theirs}.cam_layer.linear_local", f"{ours}/local", convolution),
                Row(f"{theirs}.cam_layer.linear1", f"{ours}/context_in", pointwise),
                Row(f"{theirs}.cam_layer.linear2", f"{ours}/context_out", pointwise),
            ]
    return Table(rows, unused=["*.num_batches_tracked"])
