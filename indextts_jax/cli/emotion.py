"""indextts-jax emotion: an emotion of a text, a recording or weights, as a file."""

import argparse
import json
from pathlib import Path
from typing import Any

from indextts_jax import interrupts
from indextts_jax.cli.options import add_common, add_device, add_model, command
from indextts_jax.cli.shared import check_outputs, configure_jax, load_model, progress_of, read_stdin
from indextts_jax.errors import Error

EXAMPLES = (
    'indextts-jax emotion "What a day!" --json',
    "indextts-jax emotion --audio sad.wav -o sad.safetensors",
)


def add(commands: Any) -> None:
    usage = "(TEXT | --audio FILE | --weights W) [-o FILE] [options]"
    about = "Read an emotion off a text or a recording, or give one by weights; show it, and keep it in a file."
    sub = command(commands, "emotion", run, about, usage, *EXAMPLES)
    group = sub.add_argument_group("everyday")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("text", nargs="?", metavar="TEXT", help="Qwen reads the weights off it; - is standard input")
    source.add_argument("--audio", type=Path, metavar="FILE", help="recording, or an Emotion file to look into")
    source.add_argument("--weights", metavar="W", help="happy=0.6,calm=0.2, or all eight weights")
    add_model(sub, group)
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="Emotion file to write (.safetensors)")
    group.add_argument("--force", action="store_true", help="replace the output file if it exists")
    group.add_argument("--json", action="store_true", help="print the weights, or the length of the vector, as JSON")
    add_device(group)
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint, emotion
    from indextts_jax.emotion import Emotion

    if options.output is not None:
        if options.output.suffix != ".safetensors":
            raise Error(f"--output {options.output}: an Emotion file is written, so let its name end in .safetensors")
        check_outputs({"--output": options.output}, {"--audio": options.audio}, options.force)
    checkpoint.read_description(options.model)
    if options.weights is not None:
        found = Emotion(emotion.parse(options.weights))
    elif options.audio is None:
        text = read_stdin() if options.text == "-" else options.text
        found = Emotion(checkpoint.load_reader(options.model, configure_jax(options)).read(text))
    elif options.audio.suffix == ".safetensors":
        found = emotion.load(options.audio)
    else:
        recording = audio.load_emotion(options.audio)
        with progress_of(options) as progress:
            model = load_model(options, progress, None)
            progress("listening", 0, 1)
            found = model.feel(recording)
    interrupts.check()
    if options.output is not None:
        emotion.save(options.output, found)
    if found.weights is None and options.json:
        print(json.dumps({"vector": len(found.vector)}))
    elif found.weights is None:
        print(f"{options.output or options.audio}: the emotion of a recording, a vector of {len(found.vector)}")
    elif options.json:
        print(json.dumps(dict(zip(emotion.NAMES, found.weights, strict=True))))
    else:
        print(",".join(f"{name}={w:g}" for name, w in zip(emotion.NAMES, found.weights, strict=True) if w))
