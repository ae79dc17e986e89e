"""Options that several commands share."""

import argparse
from typing import Any


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A parser of one command, which `run` does."""
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=run)
    return sub


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What decides how speech is made, apart from text and voice."""
    parser.add_argument("--beams", type=int, default=3, help="continuations kept while codes are drawn (%(default)s)")
    parser.add_argument("--no-sample", action="store_true", help="take the best codes at each step instead of sampling")
    parser.add_argument("--greedy", action="store_true", help="short for --beams 1 --no-sample")
    parser.add_argument("--temperature", type=float, default=0.8, help="of sampling (%(default)s)")
    parser.add_argument("--top-k", type=int, default=30, help="sample among the k best codes, 0: all (%(default)s)")
    parser.add_argument("--top-p", type=float, default=0.8, help="sample among the best of this mass (%(default)s)")
    parser.add_argument("--repetition-penalty", type=float, default=10.0, help="of codes already drawn (%(default)s)")
    parser.add_argument(
        "--length-penalty", type=float, default=0.0, help="beams count by score / length ** this (%(default)s)"
    )
    parser.add_argument("--max-codes", type=int, default=1500, help="per segment, 50 a second (%(default)s)")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="draw a segment that meets --max-codes, or has no code, so often again (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=25, help="of the flow (%(default)s)")
    parser.add_argument("--cfg-rate", type=float, default=0.7, help="strength of the flow's guidance (%(default)s)")
    parser.add_argument("--silence-ms", type=int, default=200, help="between segments (%(default)s)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and computation (float32 on a CPU, bfloat16 on GPU and TPU)",
    )


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= {"float32", "bfloat16"}:
        raise ValueError(text)
    return found


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
