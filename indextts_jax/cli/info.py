"""indextts-jax info: what a converted model is made of."""

import argparse
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, add_model_place, command


def add(commands: Any) -> None:
    sub = command(commands, "info", run, "Show what a converted model is made of.", "[MODEL] [options]")
    sub.bare = True
    group = sub.add_argument_group("everyday")
    add_model_place(sub, group)
    group.add_argument("--verify", action="store_true", help="check every file against the checksums of the conversion")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    import jax

    from indextts_jax import checkpoint, checksums, models
    from indextts_jax.errors import NotFound

    if options.verify and (options.model / checksums.NAME).exists():
        _verify(options.model)
    cfg, source = checkpoint.read_description(options.model)
    print(f"{options.model}: converted from {source}, format {checkpoint.FORMAT}")
    for name in (*models.COMPONENTS, *(name for name in models.OPTIONAL if getattr(cfg, name))):
        folder = options.model / name
        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder, the {name} component is missing; convert the model again")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        count = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.shapes(options.model, name, getattr(cfg, name))))
        print(f"{name:12} {count:14,} parameters {size / 1e6:10.1f} MB  {getattr(cfg, name)}")
    print(f"{'mel':12} {cfg.mel}")
    if options.verify:
        print("every file is as it was written")


def _verify(model: Path) -> None:
    """Say what is damaged, a line for each file. Raises ModelError if anything is."""
    from indextts_jax import checkpoint

    if not (found := checkpoint.verify(model)):
        return
    print(*found, sep="\n")
    raise checkpoint.ModelError(f"{model}: damaged or missing: {len(found)} of its files; convert the model again")
