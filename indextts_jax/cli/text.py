"""indextts-jax text: what the text front end makes of a text."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import command


def add(commands: Any) -> None:
    sub = command(commands, "text", run, "Show what the text front end makes of a text.")
    sub.add_argument("text", help="the text; - reads it from standard input")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--json", action="store_true", help="print normalized, pieces, ids and segments as JSON")
    sub.add_argument("--segment-tokens", type=int, default=120, metavar="N", help="pieces per segment (%(default)s)")


def run(options: argparse.Namespace) -> None:
    from indextts_jax.checkpoint import load_text

    text = sys.stdin.read() if options.text == "-" else options.text
    analysis = load_text(options.model).analyse(text, options.segment_tokens)
    if options.json:
        fields = {name: getattr(analysis, name) for name in ("normalized", "pieces", "ids", "segments")}
        print(json.dumps(fields, ensure_ascii=False))
        return
    print(f"normalized  {analysis.normalized}")
    for i, (pieces, ids) in enumerate(zip(analysis.segments, analysis.segment_ids, strict=True)):
        print(f"segment {i}   {' '.join(pieces)}\n            {' '.join(map(str, ids))}")
