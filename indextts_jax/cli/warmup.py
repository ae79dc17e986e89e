"""indextts-jax warmup: programs compiled ahead."""

import argparse
import functools
from collections import Counter
from typing import Any

from indextts_jax import interrupts
from indextts_jax.cli.options import (
    CODE_RATE,
    add_common,
    add_device,
    add_model,
    add_rendering,
    add_sampling,
    command,
    numbers,
)
from indextts_jax.cli.shared import configure_jax, progress_of, read_settings

EXAMPLES = ("indextts-jax warmup --batch 1,8 --codes 256,512",)


def add(commands: Any) -> None:
    usage = "[--batch N,...] [--pieces N,...] [--codes N,...] [--voice-seconds S,...] [options]"
    about = "Compile ahead the programs that speak will need, for the sizes that you name."
    sub = command(commands, "warmup", run, about, usage, *EXAMPLES)
    sub.bare = True
    group = sub.add_argument_group("everyday", "Sizes: several are separated by commas.")
    add_model(sub, group)
    some = numbers(int, 1, 100_000)
    group.add_argument("--batch", type=some, default=[1], metavar="N", help="segments side by side (1)")
    group.add_argument("--pieces", type=some, default=[32], metavar="N", help="text pieces of a segment (32)")
    group.add_argument("--codes", type=some, default=[256], metavar="N", help=f"codes of a segment, {CODE_RATE} (256)")
    group.add_argument(
        "--voice-seconds",
        type=numbers(float, 0.1),
        default=[6.0],
        metavar="S",
        help="length of recordings, of which 15 s are heard (6)",
    )
    add_device(group)
    add_sampling(sub)
    add_rendering(sub.add_argument_group("rendering"))
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint, warmup
    from indextts_jax.timing import Stopwatch

    settings = read_settings(options, max(options.batch))
    heard = [min(seconds, audio.MAX_SECONDS) for seconds in options.voice_seconds]
    uses = warmup.Uses(options.batch, options.pieces, options.codes, heard)
    cfg, _ = checkpoint.read_description(options.model)
    dtype = configure_jax(options)
    seconds: dict[str, float] = {}
    count: Counter[str] = Counter()
    with Stopwatch() as watch, progress_of(options) as progress:
        shapes = functools.partial(checkpoint.shapes, options.model)
        listed = warmup.programs(cfg, settings, uses, dtype, shapes)
        for i, program in enumerate(listed):
            progress(program.stage, i, len(listed))
            seconds[program.stage] = seconds.get(program.stage, 0.0) + program.compile()
            count[program.stage] += 1
        interrupts.check()
    if options.quiet:
        return
    for stage in seconds:
        print(f"{stage:26} {count[stage]:4} programs {seconds[stage]:8.1f} s")
    print(f"{sum(count.values())} programs in {watch.seconds:.0f} s, of which {watch.fetched} were there already")
