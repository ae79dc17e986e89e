"""indextts-jax export: a converted model -> gpt.pth and s2mel.pth, which the PyTorch reference loads."""

import argparse
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import MODEL_HELP, add_common, command, model_folder

EXAMPLES = ("indextts-jax export model pytorch",)


def add(commands: Any) -> None:
    about = "Write gpt.pth and s2mel.pth of a converted model in the official layout, for PyTorch and without it."
    sub = command(commands, "export", run, about, "MODEL OUT [options]", *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument("model", type=model_folder, metavar="MODEL", help=MODEL_HELP)
    group.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write them into; made if it is not there. Weights are float32"
    )
    group.add_argument("--force", action="store_true", help="replace the files if they exist")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed

    from indextts_jax.convert.export import export

    def report(done: Any) -> None:
        if not options.quiet:
            size = done.path.stat().st_size / 1e6
            print(f"{done.path}: {done.tensors} tensors ({done.kept} as they came), {size:.1f} MB", flush=True)

    export(options.model, options.out, options.force, report)
