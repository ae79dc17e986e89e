"""The options of `indextts-jax speak --stream`, and what it does with the chunks."""

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from indextts_jax import interrupts
from indextts_jax.cli.defaults import forget
from indextts_jax.cli.options import CODE_RATE, number
from indextts_jax.errors import Error

if TYPE_CHECKING:
    from indextts_jax.growing import Growing
    from indextts_jax.request import Chunk, Streaming

STDOUT = "-"


def add_stream(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("streaming", "The sound is given while it is made (docs/streaming.md).")
    group.add_argument(
        "--stream",
        nargs="?",
        const="",
        metavar="-",
        help="with --output: into a WAV file that grows and can be played meanwhile; --stream -: to standard output, "
        "as samples alone, for `| aplay -f S16_LE -r 22050`, or with --format wav as a WAV file of unknown length",
    )
    group.add_argument(
        "--first-codes",
        type=number(int, 1, 1500),
        metavar="N",
        help=f"codes of the first chunk of a segment, {CODE_RATE}: fewer are heard sooner (50)",
    )
    group.add_argument("--hop", type=number(int, 1, 1500), metavar="N", help="codes of any other chunk at most (200)")
    group.add_argument(
        "--first-segment-tokens",
        type=number(int, 0, 10_000),
        default=0,
        metavar="N",
        help="keep the segments short within the first N text pieces, so that the first is drawn soon (%(default)s)",
    )


def check_stream(options: argparse.Namespace) -> "Streaming | None":
    """How to stream, None where it is not asked for. Raises Error for options that do not go together."""
    from indextts_jax.request import Streaming

    if options.stream is None:
        forget(options, "first_codes", "hop")
        for name in ("first_codes", "hop"):
            if getattr(options, name) is not None:
                raise Error(f"--{name.replace('_', '-')} is for --stream: add it")
        return None
    if options.stream not in ("", STDOUT):
        raise Error(f"--stream {options.stream}: takes no file; use --stream --output {options.stream}, or --stream -")
    if options.stream == STDOUT and options.output is not None:
        raise Error("--stream - writes to standard output: leave out --output, or the -")
    alone = ("save", "plot", "flow_noise", "retries", "duration", "normalize", "json")
    forget(options, *alone, "format")
    if name := next((name for name in alone if getattr(options, name)), None):
        raise Error(f"--{name.replace('_', '-')} needs all of a segment before it is heard: leave it out with --stream")
    if options.format not in (None, "wav") or (options.output and options.output.suffix.lower() in (".flac", ".ogg")):
        raise Error("--stream writes WAV, or samples alone to standard output: choose --format wav, or a name in .wav")
    if options.stream == STDOUT and sys.stdout.isatty():
        raise Error("--stream -: standard output is a terminal; send it to a player, as in | aplay -f S16_LE -r 22050")
    given = {name: getattr(options, name) for name in ("first_codes", "hop") if getattr(options, name) is not None}
    return Streaming(**given)


def play(options: argparse.Namespace, chunks: "Iterator[Chunk]", rate: int, begin: float) -> str:
    """Write chunks as they come: -> what was done, in a line. begin: `time.perf_counter()` when the text was given."""
    target, samples, waiting = options.output or "standard output", 0, 0.0
    first = next(chunks)  # before a file is touched
    sounding = time.perf_counter() - begin
    played = sounding  # when a player that starts with the first chunk is at its end
    with _growing(options, rate) as growing:
        try:
            for chunk in itertools.chain([first], chunks):
                now = time.perf_counter() - begin
                growing.write(chunk.samples, chunk.last)
                waiting += max(0.0, now - played) if samples else 0.0
                played = max(played, now) + len(chunk.samples) / rate
                samples += len(chunk.samples)
                interrupts.check()
        except KeyboardInterrupt as error:
            error.add_note(f"{target} holds the first {growing.seconds:.2f} s")
            raise
    taken, seconds = time.perf_counter() - begin, samples / rate
    waits = f"waits {waiting:.2f} s in all" if waiting else "never waits"
    return (
        f"{target}: {seconds:.2f} s of audio in {taken:.2f} s, the first after {sounding:.2f} s (with reading weights "
        f"and making programs); a player {waits}"
    )


@contextlib.contextmanager
def _growing(options: argparse.Namespace, rate: int) -> "Iterator[Growing]":
    from indextts_jax.growing import Growing

    header, name, target = True, str(options.output), options.sample_rate or rate
    if options.stream == STDOUT:
        # A copy: what Python has of it, it would flush once more at its end.
        file, header, name = os.dup(sys.stdout.fileno()), options.format == "wav", "standard output"
    else:
        file = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    with os.fdopen(file, "wb", buffering=0) as opened, Growing(opened, rate, target, name, header) as growing:
        yield growing
