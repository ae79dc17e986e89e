"""python -m indextts_jax.train.recipes.tiny_voice.assemble BASE OUT bigvgan=RUN/model: one model of several runs.

Stages that need nothing of each other are trained side by side, each to a model of its own. With --half the weights are
written in bfloat16 and compressed, for a model that is shipped; --only writes some components alone, to be kept until
the others are trained: such a folder is no model, but may be named here again.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from indextts_jax import checkpoint, files, models
from indextts_jax.config import Config
from indextts_jax.convert import rest
from indextts_jax.errors import Error
from indextts_jax.train.recipes.tiny_voice import command

# Whole by themselves, but for a GPT, which belongs to its codec and conditioner, and a flow, which belongs to its GPT:
# take them of one model.
COMPONENTS = ("w2vbert", "repcodec", "campplus", "conditioner", "gpt", "s2mel", "bigvgan")


def assemble(
    base: Path, out: Path, others: dict[str, Path], half: bool = False, only: Sequence[str] | None = None
) -> None:
    """Write into `out`, which must not exist, the model in `base` with components of other folders.

    half: matrices in bfloat16, compressed, else all in float32; only: the components to write. Raises NotFound,
    ModelError, FileError, and Error for components of other sizes.
    """
    cfg, source = checkpoint.read_description(base)
    changed: dict[str, Any] = {}
    for component, folder in others.items():
        if component not in COMPONENTS:
            raise Error(f"{component} is none of {', '.join(COMPONENTS)}; train it from the model that it belongs to")
        own = getattr(cfg, component)
        if getattr(checkpoint.read_description(folder)[0], component) != own:
            raise Error(f"{folder}: its {component} has other sizes than that of {base}")
        changed[component] = _read(folder, component, cfg)
    if not half and only is None:
        checkpoint.derive(base, out, changed)
        return
    with files.whole(out) as partial:
        for path in base.iterdir():
            if path.is_file() and path.name in ("bpe.model", "glossary.yaml"):
                shutil.copyfile(path, partial / path.name)
        if only is None and (base / rest.NAME).exists():
            rest.save(partial, rest.read(base))  # the text's head, without which it is neither trained on nor exported
        for component in models.COMPONENTS if only is None else only:
            tree = changed[component] if component in changed else _read(base, component, cfg)
            kept = _halved(tree) if half else tree
            checkpoint.save(partial, component, getattr(cfg, component), kept, compress=half)
        checkpoint.save_description(partial, cfg, source)


def _read(folder: Path, component: str, cfg: Config) -> Any:
    return jax.device_get(checkpoint.restore(folder, component, getattr(cfg, component), jnp.dtype(jnp.float32)))


def _halved(tree: Any) -> Any:
    """Matrices in bfloat16; vectors, which are few, in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, tree)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of the model that has all the rest")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the new model; must not exist")
    parser.add_argument("others", nargs="*", metavar="COMPONENT=FOLDER", help=", ".join(COMPONENTS))
    parser.add_argument("--half", action="store_true", help="write the matrices in bfloat16, and compress")
    parser.add_argument(
        "--only", nargs="+", choices=models.COMPONENTS, metavar="COMPONENT", help="write these components alone"
    )
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    pairs = [one.partition("=") for one in options.others]
    for name, _, folder in pairs:
        if not folder:
            raise Error(f"{name}: names no folder; write {name}=FOLDER")
    others = {name: Path(folder) for name, _, folder in pairs}
    assemble(options.base, options.out, others, options.half, options.only)


if __name__ == "__main__":
    sys.exit(main())
