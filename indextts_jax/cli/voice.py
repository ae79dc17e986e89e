"""indextts-jax voice: a Voice file of a recording."""

import argparse
import json
from pathlib import Path
from typing import Any

from indextts_jax import interrupts
from indextts_jax.cli.options import add_common, add_device, add_model, command, number
from indextts_jax.cli.shared import check_outputs, load_model, progress_of
from indextts_jax.errors import Error

EXAMPLES = ("indextts-jax voice anna.wav -o anna.safetensors",)


def add(commands: Any) -> None:
    usage = "RECORDING -o FILE [options]"
    sub = command(commands, "voice", run, "Make a Voice file of a recording, or show what is in one.", usage, *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument(
        "source", type=Path, metavar="RECORDING", help="recording, or a Voice file (.safetensors) to look into"
    )
    add_model(sub, group)
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="Voice file to write (.safetensors)")
    group.add_argument("--force", action="store_true", help="replace the output file if it exists")
    group.add_argument(
        "--start",
        type=number(float, 0),
        default=0.0,
        metavar="SECONDS",
        help="where in a long recording to begin to listen (%(default)s)",
    )
    group.add_argument("--json", action="store_true", help="print what it is as JSON")
    add_device(group)
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint
    from indextts_jax.voice import load_voice, save_voice

    if options.source.suffix == ".safetensors":
        if options.output is not None:
            raise Error(f"{options.source}: is a Voice file already; leave --output out to look into it")
        cfg, _ = checkpoint.read_description(options.model)
        voice = load_voice(options.source, cfg)
    else:
        if options.output is None:
            raise Error("--output is missing: name the Voice file to write, ending in .safetensors")
        if options.output.suffix != ".safetensors":
            raise Error(f"--output {options.output}: a Voice file is written, so let its name end in .safetensors")
        check_outputs({"--output": options.output}, {"the recording": options.source}, options.force)
        recording = audio.load_speaker(options.source, options.start)
        with progress_of(options) as progress:
            model = load_model(options, progress, recording)
            progress("listening", 0, 1)
            voice, cfg = model.listen(recording), model.cfg
        interrupts.check()
        save_voice(options.output, voice)
    seconds = len(voice.mel) * cfg.mel.hop / cfg.mel.rate
    shapes = {name: list(array.shape) for name, array in voice._asdict().items()}
    place = options.output or options.source
    if options.json:
        print(json.dumps({"file": str(place), "seconds": round(seconds, 3), "shapes": shapes}, ensure_ascii=False))
    elif not options.quiet:
        print(f"{place}: a voice of {seconds:.2f} s; {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
