"""indextts-jax completion: what a shell needs to complete commands and options."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, command, model_folder
from indextts_jax.errors import Error

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add(commands: Any) -> None:
    about = "Print a script with which a shell completes commands, options and files. Needs the extra [completion]."
    examples = (
        "indextts-jax completion bash >> ~/.bash_completion",
        "indextts-jax completion zsh > ~/.zfunc/_indextts-jax",
        "indextts-jax completion fish > ~/.config/fish/completions/indextts-jax.fish",
    )
    sub = command(commands, "completion", run, about, "SHELL [options]", *examples)
    sub.heeds_settings = False
    group = sub.add_argument_group("everyday")
    group.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("shtab") is None:
        raise Error("completion needs shtab: pip install 'indextts-jax[completion]'")
    import shtab

    for parser in options.root.commands.values():
        for action in parser._actions:
            if action.type in (Path, model_folder):
                of_folder = action.type is model_folder or (action.metavar == "DIR")
                action.complete = shtab.DIRECTORY if of_folder else shtab.FILE
    print(shtab.complete(options.root, options.shell))
