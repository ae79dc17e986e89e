"""Solvers of the flow at equal cost: the table in docs/gradients.md.

    python -m debug.solvers [MODEL] [--frames N] [--methods euler midpoint heun Bosh3]

MODEL: a converted folder (default: the embedded checkpoint, whose weights are random). Noise, content, prompt and style
are drawn at random. The relative error of the mel (norm of the difference by the norm) against a fine result, and
against the reference's solver, 25 steps of Euler's.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from debug.golden import FIXTURES
from indextts_jax import checkpoint, convert
from indextts_jax.models import s2mel

STEPS = 4, 6, 8, 10, 16, 25
FINE = 400  # steps of Heun's
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "Ralston": 2, "Bosh3": 3, "Tsit5": 6}  # of the velocity, per step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a converted folder")
    parser.add_argument("--frames", type=int, default=60, help="mel frames of the target")
    parser.add_argument("--prompt", type=int, default=40, help="mel frames of the voice")
    parser.add_argument("--guidance", type=float, default=0.7)
    parser.add_argument("--methods", nargs="+", default=list(EVALUATIONS), help="names as s2mel.integrate takes them")
    options = parser.parse_args()
    if options.model:
        cfg, _ = checkpoint.read_description(options.model)
        params = checkpoint.restore(options.model, "s2mel", cfg.s2mel, jnp.float32)
    else:
        cfg = convert.read_config(FIXTURES / "tiny")
        params = jax.device_put(convert.read("s2mel", FIXTURES / "tiny")[0])
    own, rng = cfg.s2mel, np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    F, P = options.frames, options.prompt
    noise, content, n = drawn(1, F, own.mels), drawn(1, F, own.content), (jnp.array([F]), jnp.array([P]))
    given = noise, content, n[0], drawn(1, P, own.mels), drawn(1, P, own.content), n[1], drawn(1, own.style)

    def mel(solver: str, steps: int) -> Any:
        return s2mel.flow(params, own, *given, steps=steps, guidance=options.guidance, solver=solver)

    def relative(a: Any, b: Any) -> float:
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

    fine, reference = mel("heun", FINE), mel("euler", 25)
    print("| solver | steps | evaluations | from the fine result | from 25 steps of Euler's |\n|---|---|---|---|---|")
    for method in options.methods:
        for steps in STEPS:
            found, cost = mel(method, steps), steps * EVALUATIONS.get(method, 0) or "?"
            print(f"| {method} | {steps} | {cost} | {relative(found, fine):.1e} | {relative(found, reference):.1e} |")


if __name__ == "__main__":
    main()
