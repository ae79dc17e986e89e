"""Memory and time of a gradient at official size, with random weights: the table in docs/gradients.md.

    python -m debug.gradient_memory

One utterance. The second pass of the GPT is differentiated by speaker latents and emotion, the flow by content, style
and noise: what `train.inversion` needs. Takes some 6 GB and some minutes.
"""

import argparse
import os
import time
from typing import Any
from unittest import mock

# Without it a CPU computes a block anew as soon as it can, and not when it is needed.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_concurrency_optimized_scheduler=false"

import jax
import jax.numpy as jnp
import numpy as np

from indextts_jax import models
from indextts_jax.config import Config
from indextts_jax.models import gpt, s2mel


def measure(function: Any, *inputs: Any) -> tuple[float, float]:
    """MB that the program needs besides inputs and outputs, and the seconds of all cores for one run."""
    program = jax.jit(function).lower(*inputs).compile()
    memory: Any = program.memory_analysis()
    begin = time.process_time()
    jax.block_until_ready(program(*inputs))
    return memory.temp_size_in_bytes / 1e6, time.process_time() - begin


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 300], help="mel frames of the target")
    parser.add_argument("--prompt", type=int, default=300, help="mel frames of the voice")
    parser.add_argument("--steps", type=int, default=4, help="of the solver")
    options = parser.parse_args()
    cfg = Config()
    print("| what | frames | remat | MB | CPU s |\n|---|---|---|---|---|")

    own = models.random("gpt", cfg.gpt, 0, "float32")
    texts, lengths = jnp.arange(2, 42)[None], jnp.array([40])
    for frames in options.frames:
        codes = jnp.asarray(np.random.default_rng(0).integers(0, 8192, (1, round(frames / 1.72))), jnp.int32)
        for remat in (False, True):

            def heard(voice: Any, own: Any, codes: Any = codes, remat: bool = remat) -> Any:
                prefix = gpt.prefix(own, cfg.gpt, *voice, texts, lengths)
                return jnp.square(gpt.latents(own, cfg.gpt, prefix, codes, remat)).mean()

            voice = normal(0, 1, 32, cfg.gpt.width), normal(1, 1, cfg.gpt.width)
            result = measure(jax.grad(heard), voice, own)
            print(f"| second pass | {frames} | {remat} | {result[0]:.0f} | {result[1]:.1f} |", flush=True)
    del own

    own = models.random("s2mel", cfg.s2mel, 0, "float32")
    prompt, said = normal(2, 1, options.prompt, cfg.s2mel.mels), normal(3, 1, options.prompt, cfg.s2mel.content)
    for frames in options.frames:
        for remat in (True, False):
            jax.clear_caches()

            def flowed(found: Any, own: Any, frames: int = frames) -> Any:
                noise, content, style = found
                n = jnp.array([frames]), jnp.array([options.prompt])
                given = own, cfg.s2mel, noise, content, n[0], prompt, said, n[1], style
                return jnp.square(s2mel.flow(*given, steps=options.steps)).mean()

            found = normal(4, 1, frames, 80), normal(5, 1, frames, cfg.s2mel.content), normal(6, 1, cfg.s2mel.style)
            # The solver's step is checkpointed always: here is what it would be without.
            with mock.patch("jax.checkpoint", jax.checkpoint if remat else lambda function, **_: function):
                result = measure(jax.grad(flowed), found, own)
            print(f"| flow | {frames} | {remat} | {result[0]:.0f} | {result[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
