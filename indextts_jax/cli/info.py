"""indextts-jax info: what a converted model is made of."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from indextts_jax.cli.options import add_common, add_model_place, command

EXAMPLES = ("indextts-jax info model --verify",)


def add(commands: Any) -> None:
    sub = command(commands, "info", run, "Show what a converted model is made of.", "[MODEL] [options]", *EXAMPLES)
    sub.bare = True
    group = sub.add_argument_group("everyday")
    add_model_place(sub, group)
    group.add_argument("--verify", action="store_true", help="check every file against the checksums of the conversion")
    group.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    import jax

    from indextts_jax import checkpoint, checksums, config, languages, models
    from indextts_jax.errors import NotFound

    if options.verify and (options.model / checksums.NAME).exists():
        _verify(options.model, sys.stderr if options.json else sys.stdout)
    cfg, source = checkpoint.read_description(options.model)
    parts = {}
    for name in (*models.COMPONENTS, *(name for name in models.OPTIONAL if getattr(cfg, name))):
        folder = options.model / name
        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder, the {name} component is missing; convert the model again")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shapes = checkpoint.shapes(options.model, name, getattr(cfg, name))
        parts[name] = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)), "bytes": size}
    if options.json:
        own = {"model": str(options.model), "source": source, "format": checkpoint.FORMAT}
        print(json.dumps(own | {"components": parts, "config": config.to_dict(cfg)}, ensure_ascii=False))
        return
    print(f"{options.model}: converted from {source}, format {checkpoint.FORMAT}")
    for name, part in parts.items():
        sizes = f"{part['parameters']:14,} parameters {part['bytes'] / 1e6:10.1f} MB"
        print(f"{name:12} {sizes}  {getattr(cfg, name)}")
    print(f"{'mel':12} {cfg.mel}")
    if cfg.gpt.languages is not None:
        print(f"{'languages':12} {', '.join(languages.SPOKEN)}")
    if options.verify:
        print("every file is as it was written")


def _verify(model: Path, out: TextIO) -> None:
    """Say what is damaged, a line for each file. Raises ModelError if anything is."""
    from indextts_jax import checkpoint

    if not (found := checkpoint.verify(model)):
        return
    print(*found, sep="\n", file=out)
    raise checkpoint.ModelError(f"{model}: damaged or missing: {len(found)} of its files; convert the model again")
