"""indextts-jax merge: a converted model and adapters -> a converted model."""

import argparse
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import MODEL_HELP, add_common, command, model_folder

EXAMPLES = ("indextts-jax merge model run/lora.safetensors merged",)


def add(commands: Any) -> None:
    about = "Add adapters that `indextts-jax train --lora` made to the weights of a model, as a model of its own."
    sub = command(commands, "merge", run, about, "MODEL LORA OUT [options]", *EXAMPLES)
    group = sub.add_argument_group("everyday")
    group.add_argument("model", type=model_folder, metavar="MODEL", help=MODEL_HELP)
    group.add_argument("lora", type=Path, metavar="LORA", help="adapters (.safetensors)")
    group.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")

    import jax.numpy as jnp

    from indextts_jax import checkpoint, lora

    adapters, scale = lora.load(options.lora)
    cfg, _ = checkpoint.read_description(options.model)
    changed = {}
    for name, own in adapters.items():
        params = {name: checkpoint.restore(options.model, name, getattr(cfg, name), jnp.dtype(jnp.float32))}
        changed |= lora.add(params, {name: own}, scale)
    checkpoint.derive(options.model, options.out, jax.device_get(changed))
    if not options.quiet:
        print(f"{options.out}: {', '.join(changed)} of {options.model} with {options.lora}", flush=True)
