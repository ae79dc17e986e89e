"""feat1.pt and feat2.pt: the styles of the speakers whose emotions are known, and their emotion vectors."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.config import inside
from indextts_jax.convert.table import Row, Table, parameters
from indextts_jax.convert.tensors import CheckpointError, Tensor, Tensors, read_pth
from indextts_jax.models.prototypes import PrototypesConfig


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    found = {}
    for name in ("spk_matrix", "emo_matrix"):
        path = folder / inside(settings, name)
        tensor = read_pth(path)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: holds no tensor but {type(tensor).__name__}; download it again")
        found[f"{name}.rows"] = tensor
    return found


def config(base: PrototypesConfig, tensors: Tensors, extra: dict[str, Any]) -> PrototypesConfig:
    (rows, style), (_, width) = (tensors[f"{name}.rows"].shape for name in ("spk_matrix", "emo_matrix"))
    if sum(base.groups) != rows:
        raise CheckpointError(f"config.yaml: emo_num is {list(base.groups)}, but the matrices have {rows} rows")
    return dataclasses.replace(base, style=style, width=width)


def table(cfg: PrototypesConfig) -> Table:
    return Table(
        rows=[
            Row("spk_matrix", "", parameters(style="rows")),
            Row("emo_matrix", "", parameters(vector="rows")),
        ],
        unused=[],
    )
