"""python -m indextts_jax.train.recipes.tiny_voice.assemble BASE OUT bigvgan=RUN/model: one model of several runs.

Stages that need nothing of each other are trained side by side, each to a model of its own.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from indextts_jax import checkpoint
from indextts_jax.errors import Error
from indextts_jax.train.recipes.tiny_voice import command

COMPONENTS = ("w2vbert", "repcodec", "campplus", "bigvgan")  # which are whole by themselves


def assemble(base: Path, out: Path, others: dict[str, Path]) -> None:
    """Write into `out`, which must not exist, the model in `base` with components of other folders.

    Raises NotFound, ModelError, FileError, and Error for components of other sizes.
    """
    cfg, _ = checkpoint.read_description(base)
    changed: dict[str, Any] = {}
    for component, folder in others.items():
        if component not in COMPONENTS:
            raise Error(f"{component} is none of {', '.join(COMPONENTS)}; train it from the model that it belongs to")
        own = getattr(cfg, component)
        if getattr(checkpoint.read_description(folder)[0], component) != own:
            raise Error(f"{folder}: its {component} has other sizes than that of {base}")
        changed[component] = jax.device_get(checkpoint.restore(folder, component, own, jnp.dtype(jnp.float32)))
    checkpoint.derive(base, out, changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of the model that has all the rest")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the new model; must not exist")
    parser.add_argument("others", nargs="+", metavar="COMPONENT=FOLDER", help=", ".join(COMPONENTS))
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    pairs = [one.partition("=") for one in options.others]
    for name, _, folder in pairs:
        if not folder:
            raise Error(f"{name}: names no folder; write {name}=FOLDER")
    assemble(options.base, options.out, {name: Path(folder) for name, _, folder in pairs})


if __name__ == "__main__":
    sys.exit(main())
