"""indextts-jax warmup: programs compiled ahead."""

import argparse
import functools
from collections import Counter
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_dtype, add_settings, command, integers, numbers
from indextts_jax.cli.shared import configure_jax, read_settings


def add(commands: Any) -> None:
    sub = command(commands, "warmup", run, "Compile ahead what speak will need; list the sizes to be ready for.")
    sub.add_argument("--model", type=Path, required=True, help="converted model")
    sub.add_argument("--batch", type=integers, default=[1], help="segments side by side, e.g. 1,8 (1)")
    sub.add_argument("--pieces", type=integers, default=[32], help="text pieces of a segment, e.g. 16,32 (32)")
    sub.add_argument("--codes", type=integers, default=[256], help="codes of a segment, 50 a second (256)")
    sub.add_argument("--voice-seconds", type=numbers, default=[6.0], help="of recordings, e.g. 4.6 (6)")
    add_settings(sub)
    add_dtype(sub)


def run(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts_jax import checkpoint, warmup
    from indextts_jax.timing import Stopwatch

    settings = read_settings(options, max(options.batch))
    uses = warmup.Uses(options.batch, options.pieces, options.codes, options.voice_seconds)
    cfg, _ = checkpoint.read_description(options.model)
    dtype = configure_jax(options.dtype)
    seconds: Counter[str] = Counter()
    count: Counter[str] = Counter()
    with Stopwatch() as watch:
        shapes = functools.partial(checkpoint.shapes, options.model)
        listed = warmup.programs(cfg, settings, uses, dtype, shapes)
        for program in tqdm(listed, disable=None, leave=False, unit="program"):
            seconds[program.stage] += program.compile()  # type: ignore[assignment]
            count[program.stage] += 1
    for stage in seconds:
        print(f"{stage:20} {count[stage]:4} programs {seconds[stage]:8.1f} s")
    print(f"{sum(count.values())} programs in {watch.seconds:.0f} s, of which {watch.fetched} were there already")
