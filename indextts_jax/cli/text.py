"""indextts-jax text: what the text front end makes of a text."""

import argparse
import json
from typing import Any

from indextts_jax.cli.options import add_common, add_model, add_text, command
from indextts_jax.cli.shared import read_stdin
from indextts_jax.cli.speak import analyse

EXAMPLES = ('indextts-jax text "It is 5 km. [pause 1s] Go."',)


def add(commands: Any) -> None:
    usage = "TEXT [options]"
    about = "Show what the text front end makes of a text: how it is read, its pieces, its segments and its pauses."
    sub = command(commands, "text", run, about, usage, *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument("text", metavar="TEXT", help="the text; - is standard input")
    add_model(sub, group)
    group.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_text(group)
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    analysis = analyse(options, read_stdin() if options.text == "-" else options.text)
    if options.json:
        shown = ("normalized", "pieces", "ids", "segments", "lead", "pauses")
        fields = {name: getattr(analysis, name) for name in shown}
        if analysis.language is not None:
            fields["language"] = analysis.language
        print(json.dumps(fields, ensure_ascii=False))
        return
    if analysis.language is not None:
        print(f"language    {analysis.language}")
    print(f"normalized  {analysis.normalized}")
    if analysis.lead:
        print(f"pause       {analysis.lead} ms")
    segments = zip(analysis.segments, analysis.segment_ids, analysis.pauses, strict=True)
    for i, (pieces, ids, pause) in enumerate(segments):
        print(f"segment {i}   {' '.join(pieces)}\n            {' '.join(map(str, ids))}")
        if pause is not None:
            print(f"pause       {pause} ms")
