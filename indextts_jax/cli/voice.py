"""indextts-jax voice: a Voice file of a recording."""

import argparse
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_dtype, command
from indextts_jax.cli.shared import check_writable, load


def add(commands: Any) -> None:
    sub = command(commands, "voice", run, "Make a Voice file of a recording, or say what is in one.")
    sub.add_argument("source", type=Path, metavar="FILE", help="recording, or a Voice file (.safetensors) to inspect")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--output", type=Path, help="Voice file to write (.safetensors)")
    add_dtype(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint
    from indextts_jax.voice import listen, load_voice, save_voice

    if options.source.suffix == ".safetensors":
        cfg, _ = checkpoint.read_description(options.model)
        voice = load_voice(options.source, cfg)
    else:
        if options.output is None or options.output.suffix != ".safetensors":
            raise ValueError(f"--output is {options.output}: give the Voice file to write, ending in .safetensors")
        check_writable(options.output)
        recording = audio.load_speaker(options.source)
        model = load(options.model, options.dtype, recording)
        voice = listen(model.params, model.cfg, recording)
        cfg = model.cfg
        save_voice(options.output, voice)
    seconds = len(voice.mel) * cfg.mel.hop / cfg.mel.rate
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in voice._asdict().items())
    print(f"{options.output or options.source}: a voice of {seconds:.2f} s; {shapes}")
