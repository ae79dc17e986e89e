"""The parser, kinds of values, and options that several commands share."""

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from indextts_jax import embedded, settings
from indextts_jax.cli import defaults
from indextts_jax.errors import Error
from indextts_jax.languages import SPOKEN
from indextts_jax.pauses import PARAGRAPH_MS


class Formatter(argparse.HelpFormatter):
    """Help that fits the terminal: a usage line is folded, and examples stay as they are."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        text = " ".join(super()._format_usage(usage, actions, groups, prefix).split())
        text = re.sub("(-[a-z-]+) (?=[A-Z])", "\\1\0", text)  # an option stays with its value
        return textwrap.fill(text, self._width, subsequent_indent=" " * 7).replace("\0", " ") + "\n\n"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example") else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are three lines, and that shows its help when it is given nothing it needs.

    That of a command has a `name`; then its defaults are those of the user's settings.
    """

    name: str | None = None
    content: dict[str, Any] | None = None  # of the settings, where they have been read
    commands: dict[str, "Parser"]  # of the parser of all
    heeds_settings = True
    bare = False  # whether it can be used without arguments
    model: argparse.Action | None = None  # the option that names the model, where settings may do so
    needs_model = False
    falls_back = False  # whether the embedded model does, where none is named

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        self.exit(2, f"usage: {usage}\nindextts-jax: error: {message}\n`{self.prog} --help` lists all options\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        typed = sys.argv[1:] if args is None else args
        if not typed and not self.bare:
            self.print_help()
            self.exit(0 if self.prog == "indextts-jax" else 2)
        if self.name is None or not self.heeds_settings:
            return super().parse_known_args(args, namespace)
        before: dict[str, Any] = {}
        try:
            before = self._heed_settings(self.name)
        except Error:
            if not {"-h", "--help"} & set(typed):
                raise
        options, others = super().parse_known_args(args, namespace)
        defaults.settle(self, options, before)
        if self.needs_model and options.model is None and getattr(options, "random_init", None) is None:
            if self.falls_back:
                options.model, options.fell_back = embedded.FOLDER, True
                return options, others
            self.error(
                "no model is named: add --model DIR, set INDEXTTS_MODEL, or run `indextts-jax config set model DIR`"
            )
        return options, others

    def _heed_settings(self, name: str) -> dict[str, Any]:
        content = settings.read()
        before = defaults.apply(self, name, content)
        if self.model is not None and (chosen := settings.model(content, name)) is not None:
            before["model"], self.model.default = None, chosen
        return before


def command(commands: Any, name: str, run: Callable[..., None], text: str, usage: str, *examples: str) -> Parser:
    """The parser of one command, which `run` does; `usage` shows what it is mostly used with, `examples` are whole."""
    sub = commands.add_parser(
        name,
        help=f"{text.partition('. ')[0].rstrip('.')}.",  # the first sentence
        description=text,
        prog=f"indextts-jax {name}",
        usage=f"%(prog)s {usage}",
        add_help=False,
        formatter_class=Formatter,
        epilog="\n".join((f"example{'s' * (len(examples) > 1)}:", *(f"  {line}" for line in examples))),
    )
    sub.set_defaults(command=run, parser=sub)
    sub.name = name
    return sub


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes; the last group of its help."""
    group = parser.add_argument_group("help and messages")
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    loud = group.add_mutually_exclusive_group()
    loud.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    loud.add_argument("-q", "--quiet", action="store_true", help="print errors only")


# ---- kinds of values ------------------------------------------------------------------------------------------------
# argparse names the option that a value belongs to.


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """A number between two bounds, both included."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
            good = math.isfinite(value) and low <= value <= high
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {_KINDS[kind]}") from None
        if not good:
            bounds = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text[:40]} is not {bounds}")
        return value

    return read


_KINDS = {int: "a whole number", float: "a number"}


def numbers(kind: type, low: float, high: float = math.inf) -> Callable[[str], list[Any]]:
    """Several of them, separated by commas."""
    one = number(kind, low, high)
    return lambda text: [one(part) for part in text.split(",")]


DTYPES = ("float32", "bfloat16", "int8")


def dtypes(text: str) -> list[str]:
    """Some of DTYPES, separated by commas."""
    found = text.split(",")
    if not set(found) <= set(DTYPES):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of {', '.join(DTYPES)}, or several with commas")
    return found


def seed(text: str) -> int:
    """A seed of 64 bits."""
    return number(int, 0, 2**64 - 1)(text)


# ---- groups that several commands share -----------------------------------------------------------------------------


def model_folder(text: str) -> Path:
    """The folder of a model, or its name in the settings."""
    try:
        return settings.model_folder(text)
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None


CODE_RATE = "50 a second, or 25 with IndexTTS-2.5"
MODEL_HELP = f"folder that `indextts-jax convert` made, its name in the settings, or {embedded.NAME}: a small voice"


def _model_help(falls_back: bool) -> str:
    return f"{MODEL_HELP} (default: that of the settings{f', else {embedded.NAME}' if falls_back else ''})"


def add_model(parser: Parser, group: Any = None, falls_back: bool = True) -> None:
    """The model to use, in a group of the parser's options; it may stand in the settings.

    falls_back: to the embedded model where none is named.
    """
    parser.model = (group or parser).add_argument(
        "--model", type=model_folder, metavar="DIR", help=_model_help(falls_back)
    )
    parser.needs_model, parser.falls_back = True, falls_back


def add_model_place(parser: Parser, group: Any, needed: bool = True) -> None:
    """The same as an argument that may be left out; needed: it cannot do without any."""
    parser.model = group.add_argument("model", nargs="?", type=model_folder, metavar="MODEL", help=_model_help(needed))
    parser.needs_model = parser.falls_back = needed


def add_lora(group: Any) -> None:
    group.add_argument(
        "--lora", type=Path, metavar="FILE", help="adapters that `indextts-jax train --lora` made (.safetensors)"
    )


def add_batch(group: Any, where: str = "") -> None:
    """where: what the help adds."""
    group.add_argument(
        "--batch",
        type=number(int, 1, 1024),
        metavar="N",
        help=f"segments spoken side by side{where} (8; on GPU and TPU what the memory holds)",
    )


def add_device(parser: Any) -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of weights and computation (default: float32 on a CPU, bfloat16 on GPU and TPU); int8: the "
        "weights that draw codes are rounded to 8 bits, all else is as by default",
    )
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="where to compute (default: the best there is)")


def add_text(group: Any) -> None:
    group.add_argument(
        "--language",
        choices=SPOKEN,
        help="of the text, whose rules read numbers, dates and the like; IndexTTS-2 has zh and en, IndexTTS-2.5 all "
        "(default: decided by the characters of the text)",
    )
    group.add_argument("--glossary", type=Path, metavar="FILE", help="how terms are read (default: the model's own)")
    group.add_argument(
        "--segment-tokens",
        type=number(int, 1, 10_000),
        default=120,
        metavar="N",
        help="the most text pieces of a segment; longer texts are spoken in several (%(default)s)",
    )
    group.add_argument(
        "--paragraph-ms",
        type=number(int, 0, 60_000),
        default=PARAGRAPH_MS,
        metavar="MS",
        help="silence where a text has blank lines, unless a mark such as [pause 1.5s] stands there; 0: a blank line "
        "is a space (%(default)s)",
    )


def add_voice_start(group: Any) -> None:
    group.add_argument(
        "--voice-start",
        type=number(float, 0),
        default=0.0,
        metavar="SECONDS",
        help="where in a long recording to begin to listen (%(default)s)",
    )


def add_speed(group: Any) -> None:
    group.add_argument(
        "--speed",
        type=number(float, 0.5, 2),
        default=1.0,
        metavar="X",
        help="how much faster to speak, 0.5 to 2; the codes stay the same (%(default)s)",
    )


def add_silence(group: Any) -> None:
    group.add_argument(
        "--silence-ms",
        type=number(int, 0, 60_000),
        default=200,
        metavar="MS",
        help="silence between the segments of a text (%(default)s)",
    )


def add_ends(group: Any) -> None:
    """How a segment ends."""
    group.add_argument(
        "--fade-ms",
        type=number(int, 0, 1000),
        default=20,
        metavar="MS",
        help="fade-out at the end of each segment, against clicks; 0: none, as the reference (%(default)s)",
    )
    group.add_argument(
        "--trim-tail", action="store_true", help="leave out hiss and silence after the last sound of each segment"
    )


def add_format(group: Any, default: str | None, of: str) -> None:
    """What files of audio are; `of`: which, in the help."""
    kinds = ("wav", "flac", "ogg")
    what = f"of {of} (%(default)s)" if default else f"of {of} (default: what its name ends in)"
    group.add_argument("--format", choices=kinds, default=default, help=what)
    group.add_argument(
        "--sample-rate",
        type=number(int, 8000, 192_000),
        metavar="HZ",
        help=f"of {of} (22050, as the model speaks)",
    )
    group.add_argument(
        "--normalize",
        type=number(float, -60, -5),
        metavar="LUFS",
        help="make it so loud, by EBU R 128; less where its peaks would exceed -1 dB (default: as it is spoken; needs "
        "pyloudnorm)",
    )


def add_emotion(sub: argparse.ArgumentParser) -> None:
    """What is felt."""
    group = sub.add_argument_group("emotion", "Without one of these, the emotion is that of the voice's recording.")
    felt = group.add_mutually_exclusive_group()
    felt.add_argument(
        "--emotion",
        metavar="W",
        help="weights: happy=0.6,calm=0.2 or all eight, each 0 to 1.2, in the order happy, angry, sad, afraid, "
        "disgusted, melancholic, surprised, calm",
    )
    felt.add_argument("--emotion-audio", type=Path, metavar="FILE", help="recording that shows it, or an Emotion file")
    felt.add_argument("--emotion-text", metavar="TEXT", help="text that expresses it; Qwen reads the weights off it")
    felt.add_argument("--emotion-from-text", action="store_true", help="let Qwen read it off the text that is spoken")
    group.add_argument("--emotion-alpha", type=number(float, 0, 1), metavar="X", help="its strength, 0 to 1 (1)")
    group.add_argument(
        "--emotion-random",
        action="store_true",
        help="weights: use vectors of speakers drawn by --seed, not of those most similar to the voice",
    )
    group.add_argument(
        "--emotion-normalize",
        action="store_true",
        help="weights: correct them as the reference's web page does; they then sum to 0.8 at most",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How codes are drawn."""
    group = parser.add_argument_group("sampling", "How codes are drawn: the defaults are the reference's.")
    group.add_argument("--beams", type=number(int, 1, 64), default=3, metavar="N", help="beams searched (%(default)s)")
    group.add_argument("--no-sample", action="store_true", help="do not sample: plain beam search")
    group.add_argument("--greedy", action="store_true", help="the best code at each step: --beams 1 --no-sample")
    group.add_argument(
        "--temperature",
        type=number(float, 1e-3, 100),
        default=0.8,
        metavar="X",
        help="how freely codes are drawn; near 0: the best ones (%(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=number(int, 0),
        default=30,
        metavar="K",
        help="sample among the K best codes; 0 is all (%(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=number(float, 0, 1),
        default=0.8,
        metavar="P",
        help="sample among the best codes that together hold this probability (%(default)s)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=number(float, 1e-3, 1000),
        metavar="X",
        help="how strongly to avoid codes that were drawn before; 1: not at all (10, or what the model says)",
    )
    group.add_argument(
        "--length-penalty",
        type=number(float, -10, 10),
        default=0.0,
        metavar="X",
        help="finished beams are compared by score / length ** X (%(default)s)",
    )
    group.add_argument(
        "--max-codes",
        type=number(int, 1),
        default=1500,
        metavar="N",
        help=f"cut a segment off after N codes, {CODE_RATE} (%(default)s)",
    )
    group.add_argument(
        "--retries",
        type=number(int, 0, 100),
        default=0,
        metavar="N",
        help="draw a segment again, up to N times, if it was cut off or is empty (%(default)s)",
    )


def add_rendering(group: Any) -> None:
    """How codes become sound."""
    group.add_argument(
        "--steps", type=number(int, 1, 10_000), default=25, metavar="N", help="Euler steps of the flow (%(default)s)"
    )
    group.add_argument(
        "--cfg-rate",
        type=number(float, 0, 100),
        default=0.7,
        metavar="X",
        help="strength of the flow's classifier-free guidance; 0: none (%(default)s)",
    )
