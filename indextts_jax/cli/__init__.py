"""The command line: parse, call, report. What a command needs is imported when it runs, so that --help is quick."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from indextts_jax import __version__, embedded, interrupts, settings
from indextts_jax.cli import (
    batch,
    bench,
    check,
    completion,
    config,
    convert,
    defaults,
    download,
    emotion,
    export,
    info,
    merge,
    prepare,
    serve,
    speak,
    text,
    train,
    voice,
    warmup,
    webui,
)
from indextts_jax.cli.options import Formatter, Parser
from indextts_jax.errors import Error

log = logging.getLogger(__name__)

COMMANDS = (
    download, convert, check, config, info, speak, batch, serve, webui, voice, emotion, text, warmup, bench, prepare,
    train, merge, export, completion,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: -> the exit status.

    0: done. 1: an expected failure, which is one line on standard error. 2: wrong usage. 3: a bug, with its traceback.
    128 + n: ended by signal n.
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        if options.parser.heeds_settings:
            defaults.check_tables(parser.commands, settings.read())
    except Error as error:  # of the settings
        return _fail(str(error))
    return run_command(options.command, options)


def run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a function of parsed options as `main` runs a command."""
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("indextts_jax").setLevel(level)
    for name in ("absl", "asyncio"):  # Orbax logs tracebacks of errors that it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with interrupts.handled():
            if getattr(options, "fell_back", False):
                log.warning("no model is named, so %s is used: %s", embedded.NAME, embedded.WHAT)
            command(options)
    except KeyboardInterrupt as error:
        status = error.status if isinstance(error, interrupts.Interrupted) else 130
        notes = getattr(error, "__notes__", ["an output file that is there is complete"])
        return _fail(f"interrupted; {notes[0]}", status)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory; use --dtype bfloat16, a shorter text or a larger machine")
    except (Error, OSError) as error:
        if os.environ.get("INDEXTTS_TRACEBACK"):
            traceback.print_exc()
        return _fail(" ".join(str(error).split()), getattr(error, "status", 1))
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return _fail("out of memory on the device; use --dtype bfloat16, a smaller --batch or a shorter text")
        traceback.print_exc()
        return _fail("this is a bug in indextts-jax: please report it with the lines above and the command", 3)
    return 0


class _Formatter(logging.Formatter):
    """One line: the program, and the level unless it is only information."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"indextts-jax: {level}{record.getMessage()}"


def _fail(message: str, status: int = 1) -> int:
    print(f"indextts-jax: error: {message}", file=sys.stderr)
    return status


def _parser() -> Parser:
    about = "IndexTTS-2 zero-shot text-to-speech in JAX: text and a recording of a voice in, speech in that voice out."
    examples = (
        "indextts-jax download checkpoints --convert model --accept-licence",
        "indextts-jax config set model model",
        'indextts-jax speak --voice voice.wav --text "Hello." -o hello.wav',
    )
    usage, epilog = "indextts-jax COMMAND [options]", "\n  ".join(("examples:", *examples))
    parser = Parser("indextts-jax", description=about, usage=usage, epilog=epilog, formatter_class=Formatter)
    parser.add_argument("--version", action="version", version=f"indextts-jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for each in COMMANDS:
        each.add(commands)
    parser.commands = commands.choices
    parser.set_defaults(root=parser)
    return parser
