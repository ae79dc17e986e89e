"""The command line: parse, call, report. What a command needs is imported when it runs, so that --help is quick."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from indextts_jax import interrupts
from indextts_jax.cli import bench, convert, emotion, info, speak, text, voice, warmup

COMMANDS = (convert, info, voice, emotion, text, speak, warmup, bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit status. Every expected failure is one line on stderr and a status that is not 0."""
    options = _parser().parse_args(arguments)
    return run_command(options.command, options)


def run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a function of parsed options as `main` runs a command."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("indextts-jax: %(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("absl", "asyncio"):  # Orbax logs tracebacks of errors that it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with interrupts.handled():
            command(options)
    except KeyboardInterrupt as error:
        return _fail("interrupted", error.status if isinstance(error, interrupts.Interrupted) else 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory; use --dtype bfloat16, a shorter text or a larger machine")
    except (ValueError, OSError) as error:
        if os.environ.get("INDEXTTS_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail("out of memory on the device; use --dtype bfloat16, a shorter text or a larger device")
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"indextts-jax: error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("indextts-jax", description="IndexTTS-2 speech synthesis in JAX.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for each in COMMANDS:
        each.add(commands)
    return parser
