"""How often another batch size gives other codes: python -m debug.compare_batches --model OUT --batches 8,1.

The products of another number of rows may add up in another order, and a draw that is as good as even then falls the
other way. Sentences of different lengths in one voice; `--stop-bias` is added to the stop code's score, so that random
weights stop at all. Codes alone: the rest does not depend on the batch on a CPU.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from debug.bench_decoding import WORDS
from debug.golden import FIXTURES
from indextts_jax import seeds
from indextts_jax.decoding import Sampling
from indextts_jax.drawing import Draw, Drawing
from indextts_jax.model import load
from indextts_jax.models import gpt
from indextts_jax.render import text_batch


def codes_of(model: Any, params: Any, voice: Any, options: argparse.Namespace, batch: int) -> list[bytes]:
    """The codes of every item."""
    rng, drawing = np.random.default_rng(0), Drawing(params, model.cfg.gpt, Sampling(options.beams), batch)
    latents, emotion = voice.latents[None], voice.emotion[None]
    most = model.cfg.gpt.text_vocabulary
    texts = [rng.integers(2, most, rng.integers(3, len(WORDS))).tolist() for _ in range(options.items)]
    found, given = [b""] * options.items, 0
    while given < options.items or drawing.unfinished:
        while given < options.items and drawing.unfinished < 2 * batch:
            prefix = partial(
                gpt.prefix, params, model.cfg.gpt, latents, emotion, *text_batch(model.cfg, [texts[given]])
            )
            drawing.add(Draw(prefix, seeds.key(given), Sampling(options.beams), options.max_codes, tag=given))
            given += 1
        for draw in drawing.step():
            assert draw.best is not None
            found[draw.tag] = draw.best.codes.tobytes()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[8, 1])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--max-codes", type=int, default=30)
    parser.add_argument("--stop-bias", type=float, default=24.0)
    options = parser.parse_args()
    model = load(options.model, "float32")
    head = model.params["gpt"]["head"]
    bias = head["bias"].at[model.cfg.gpt.stop_code].add(options.stop_bias)
    params = {**model.params["gpt"], "head": {**head, "bias": bias}}
    voice = model.listen(FIXTURES / "audio" / "voice_24k.wav")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.items} items, {options.beams} beams\n")
    first: list[bytes] = []
    for batch in options.batches:
        begin = time.perf_counter()
        found = codes_of(model, params, voice, options, batch)
        lengths = sorted(len(codes) // 4 for codes in found)
        other = sum(a != b for a, b in zip(found, first, strict=True)) if first else 0
        first = first or found
        print(
            f"batch {batch}: {other} items differ from batch {options.batches[0]}; {lengths[0]} to {lengths[-1]} codes,"
            f" median {lengths[len(lengths) // 2]}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
