"""rest.pth in a converted folder: what gpt.pth and s2mel.pth hold besides the parameters of our networks.

Speaking needs none of it and never opens it. PyTorch's modules have these tensors, and training needs `text_head` of
the GPT. They are kept as they were, by component and by the names in its table.
"""

from collections.abc import Mapping
from pathlib import Path

from indextts_jax import checksums, interrupts
from indextts_jax.convert.tensors import CheckpointError, Tensors, flatten, read_pth
from indextts_jax.convert.writer import Writer
from indextts_jax.errors import NotFound

NAME = "rest.pth"
COMPONENTS = ("conditioner", "gpt", "s2mel")  # of gpt.pth and s2mel.pth


def save(folder: Path, parts: Mapping[str, Tensors]) -> None:
    """Write component -> tensors into an open folder, reading one at a time. Raises OSError."""
    with Writer(folder / NAME) as file:
        kept: dict[str, dict] = {}
        for component, tensors in parts.items():
            interrupts.check()
            kept[component] = {name: file.add(tensor.read()) for name, tensor in tensors.items()}
        file.finish(kept)


def read(folder: Path) -> dict[str, Tensors]:
    """Component -> tensors, unread. Raises NotFound where there are none, and CheckpointError where it is damaged."""
    path = folder / NAME
    if not path.is_file():
        raise NotFound(f"{path}: no such file, this model was converted before it was kept; convert the model again")
    if found := checksums.problems(folder, [NAME]):
        raise CheckpointError(found[0])
    parts = read_pth(path)
    if not isinstance(parts, dict) or parts.keys() != set(COMPONENTS):
        raise CheckpointError(f"{path}: holds something else than it should; convert the model again")
    return {component: flatten(tensors, path) if tensors else {} for component, tensors in parts.items()}
