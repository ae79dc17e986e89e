"""indextts-jax prepare: a manifest of recordings and their texts -> a corpus to train with."""

import argparse
import logging
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, add_device, add_model, command, number
from indextts_jax.cli.shared import configure_jax, progress_of

log = logging.getLogger(__name__)
SHOWN = 20  # problems


EXAMPLES = ("indextts-jax prepare manifest.jsonl corpus",)


def add(commands: Any) -> None:
    about = (
        "Check and encode recordings and texts once, for `indextts-jax train`. The manifest has an object on each "
        'line (.jsonl), {"audio": "a.wav", "text": "Hello."}, with speaker, emotion, language and id where they are '
        "known; or the same as .csv. The same command again does what is missing."
    )
    sub = command(commands, "prepare", run, about, "MANIFEST OUT [options]", *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument("manifest", type=Path, metavar="MANIFEST", help="file that names the recordings")
    group.add_argument("out", type=Path, metavar="OUT", help="folder of the corpus; made if it is not there")
    add_model(sub, group, falls_back=False)
    group.add_argument(
        "--batch", type=number(int, 1, 1024), default=8, metavar="N", help="recordings side by side (%(default)s)"
    )
    group.add_argument("--strict", action="store_true", help="end with an error when a row could not be used")
    add_device(group)
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax.errors import Error
    from indextts_jax.model import load
    from indextts_jax.train import prepare

    dtype = configure_jax(options)
    with progress_of(options) as progress:
        model = load(options.model, dtype, prepare.COMPONENTS, progress=progress)
        done = prepare.prepare(options.manifest, model, options.model, options.out, options.batch, progress)
    for problem in done.problems[:SHOWN]:
        log.warning("%s, line %d: %s", options.manifest, problem.line, problem.message)
    if len(done.problems) > SHOWN:
        log.warning("and %d more", len(done.problems) - SHOWN)
    left = f"; {len(done.problems)} rows were left out" if done.problems else ""
    if not options.quiet:
        print(f"{options.out}: {done.utterances} utterances, {done.seconds / 60:.1f} minutes{left}", flush=True)
    if options.strict and done.problems:
        raise Error(f"{len(done.problems)} rows could not be used, and --strict was given; the others are prepared")
