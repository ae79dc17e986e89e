"""indextts-jax convert: a model folder in the official layout -> a folder that JAX reads."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, command

EXAMPLES = ("indextts-jax convert checkpoints model",)


def add(commands: Any) -> None:
    about = "Convert a model folder in the official layout into one that the other commands read, without PyTorch."
    sub = command(commands, "convert", run, about, "MODEL_DIR OUT [options]", *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument(
        "model_dir", type=Path, metavar="MODEL_DIR", help="folder with config.yaml, gpt.pth, hf_cache/, ..."
    )
    group.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist")
    group.add_argument("--strict", action="store_true", help="refuse files with unknown tensors")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax.convert import convert

    def say(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    header = [f"{'component':12} {'tensors':>8} {'parameters':>14} {'not needed':>11}"]

    def report(done: Any) -> None:
        while header:  # once there is something to head
            say(header.pop())
        names = f"  {_summary(done.unused)}" if options.verbose and done.unused else ""
        numbers = f"{done.tensors:8} {done.parameters:14,} {len(done.unused):11}"
        say(f"{done.component:12} {numbers}{names}")

    reports = convert(options.model_dir, options.out, options.strict, report)
    say(f"{'all':12} {sum(r.tensors for r in reports):8} {sum(r.parameters for r in reports):14,}")
    say(f"converted to {options.out}")


def _summary(names: Sequence[str]) -> str:
    """Tensors by the first three parts of their names, all layers together, with how many there are of each."""
    groups = Counter(".".join(re.sub(r"\d+", "*", name).split(".")[:3]) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in groups.items())
