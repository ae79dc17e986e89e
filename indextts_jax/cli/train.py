"""indextts-jax train: a stage of a model, on a prepared corpus."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, add_model, command, number
from indextts_jax.cli.shared import check_plot, progress_of

STAGES = {
    "gpt": "text to codes, with its conditioners",
    "flow": "codes to mel",
    "vocoder": "mel to sound",
    "codec": "semantic features to codes",
    "encoder": "sound to semantic features, by characters",
    "speaker": "sound to the style of a speaker",
}


EXAMPLES = ("indextts-jax train gpt --config gpt.yaml --output run --lora 16",)


def add(commands: Any) -> None:
    about = (
        "Train a stage of a model on a corpus that `indextts-jax prepare` made. The same command again goes on from "
        "the last checkpoint. Stages: " + "; ".join(f"{name}, {what}" for name, what in STAGES.items()) + "."
    )
    sub = command(commands, "train", run, about, "STAGE --config FILE --output DIR [options]", *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument("stage", choices=tuple(STAGES), metavar="STAGE", help=", ".join(STAGES))
    group.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="settings in YAML; docs/training.md lists them"
    )
    add_model(sub, group, falls_back=False)
    group.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for checkpoints, the log and what comes of it"
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="the prepared corpus, in place of that of the settings")
    group.add_argument(
        "--lora", type=number(int, 1, 4096), metavar="RANK", help="train adapters of this rank (as `lora: RANK`)"
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of the log (.png)")
    group.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="where to compute (default: the best there is)")
    group.add_argument(
        "--distributed", action="store_true", help="one of several processes of one run, on a cluster that JAX knows"
    )
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    check_plot(options.plot)
    options.dtype = None
    if options.distributed:
        _join_cluster()

    from indextts_jax import files
    from indextts_jax.cli.shared import configure_jax
    from indextts_jax.errors import Error

    if importlib.util.find_spec("grain") is None:
        raise Error("training needs grain: pip install 'indextts-jax[train]'")
    from indextts_jax.train import loop, settings

    configure_jax(options)
    data = str(options.data.absolute()) if options.data else None
    asked = settings.read(options.config, lora=options.lora, data=data)
    with progress_of(options) as progress:
        done = loop.run(
            options.stage, asked, options.config.parent, options.model, options.output, progress.show
        )  # fmt: skip
    if options.plot:
        files.write_whole(options.plot, loop.plot(options.output))
    if not options.quiet:
        skipped = f", {done.skipped} batches skipped" if done.skipped else ""
        loss = "" if done.loss is None else f", loss {done.loss:.4f}"
        print(f"{done.written}: {done.steps} steps{loss}{skipped}", flush=True)


def _join_cluster() -> None:
    """Before JAX looks for devices."""
    import jax

    from indextts_jax.errors import Error, shown

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise Error(
            f"--distributed: JAX finds no other processes ({shown(error)}); start it under SLURM, Kubernetes or MPI, "
            "or on TPUs"
        ) from None
