"""What the recipe's commands share: they end as those of indextts-jax do, with one line for each mistake."""

import argparse
from collections.abc import Callable

from indextts_jax.cli import run_command


def run(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None]) -> int:
    """Run a function of the options that the command line has: -> the exit status."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(quiet=False, verbose=False)
    return run_command(command, parser.parse_args())
