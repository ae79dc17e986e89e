"""indextts-jax emotion: an emotion of a text, a recording or weights, as a file."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_dtype, command
from indextts_jax.cli.shared import check_writable, configure_jax


def add(commands: Any) -> None:
    sub = command(commands, "emotion", run, "Read an emotion off a text or a recording, or make one of weights.")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("text", nargs="?", help="a text that Qwen reads; - is standard input")
    source.add_argument("--audio", type=Path, metavar="FILE", help="recording, or an Emotion file to inspect")
    source.add_argument("--weights", metavar="W", help="happy=0.6,calm=0.2 or all eight")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--output", type=Path, help="Emotion file to write (.safetensors)")
    sub.add_argument("--json", action="store_true", help="print the weights as JSON")
    add_dtype(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint, emotion
    from indextts_jax.emotion import Emotion
    from indextts_jax.voice import feel

    if options.output is not None:
        if options.output.suffix != ".safetensors":
            raise ValueError(f"--output is {options.output}: an Emotion file is written, so let it end in .safetensors")
        check_writable(options.output)
    checkpoint.read_description(options.model)
    if options.weights is not None:
        found = Emotion(emotion.parse(options.weights))
    elif options.audio is None:
        text = sys.stdin.read() if options.text == "-" else options.text
        found = Emotion(checkpoint.load_reader(options.model, configure_jax(options.dtype)).read(text))
    elif options.audio.suffix == ".safetensors":
        found = emotion.load(options.audio)
    else:
        recording = audio.load_emotion(options.audio)
        model = checkpoint.load(options.model, configure_jax(options.dtype))
        found = Emotion(vector=feel(model.params, model.cfg, recording))
    if options.output is not None:
        emotion.save(options.output, found)
    if found.weights is None:
        print(f"{options.output or options.audio}: the emotion of a recording, a vector of {len(found.vector)}")
    elif options.json:
        print(json.dumps(dict(zip(emotion.NAMES, found.weights, strict=True))))
    else:
        print(",".join(f"{name}={w:g}" for name, w in zip(emotion.NAMES, found.weights, strict=True) if w))
