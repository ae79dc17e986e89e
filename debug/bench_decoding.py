"""How long decoding takes, and what batches are worth: python -m debug.bench_decoding [--model OUT] [--dtype bfloat16].

Without a model: ms per step at official size with random weights, for several batch sizes and beams, and of several
dtypes with commas between (`--dtype float32,int8`) in turns; `--layers` leaves some out. With a model: the
seconds that utterances of different lengths take one by one, in static batches and in continuous ones, from text to
samples or (`--codes-only`) to codes; `--stop-bias` is added to the stop code's score, so that random weights stop at
all. No time contains compilation.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from debug.golden import FIXTURES
from indextts_jax import audio, decoding, drawing, models, pipeline
from indextts_jax.decoding import Sampling
from indextts_jax.model import load
from indextts_jax.models import gpt
from indextts_jax.models.gpt import GPTConfig, Prefix
from indextts_jax.models.layers import dtype_of
from indextts_jax.render import gather, text_batch
from indextts_jax.request import Options
from indextts_jax.timing import Stopwatch
from indextts_jax.voice import listen

WORDS = "hello world this is a small test of the speech system please read next sentence slowly".split()  # noqa: SIM905


def step_seconds(trees: Sequence[Any], cfg: GPTConfig, batch: int, beams: int, steps: int, repeat: int) -> list[float]:
    """Seconds per step of `batch` utterances with each of some parameters, in turns: medians of a long run less a short
    one, so that the prefixes do not count.
    """
    rows = np.random.default_rng(0).normal(size=(batch, 67, cfg.width)) * 0.1  # 30 text ids and 37 positions more
    keys, few = list(jax.random.split(jax.random.key(0), batch)), decoding.CHUNK + 1

    def run(params: Any, count: int) -> float:
        prefix = Prefix(jnp.asarray(rows, dtype_of(params)), jnp.full(batch, 67))
        begin = time.perf_counter()
        drawing.generate(params, cfg, prefix, keys, Sampling(beams=beams), count)
        return time.perf_counter() - begin

    times = [[run(params, few + steps) - run(params, few) for params in trees] for _ in range(repeat + 1)]
    return [float(np.median(column)) / steps for column in zip(*times[1:], strict=True)]  # the first one compiles


def steps_table(options: argparse.Namespace) -> None:
    cfg, names = GPTConfig(layers=options.layers), options.dtype.split(",")
    trees = jax.block_until_ready([models.random("gpt", cfg, 0, name) for name in names])
    print(f"| ms per step, {cfg.layers} layers | " + " | ".join(f"batch {batch}" for batch in options.batches) + " |")
    print("|---" * (1 + len(options.batches)) + "|")
    for beams in options.beams:
        found = [step_seconds(trees, cfg, b, beams, options.steps, options.repeat) for b in options.batches]
        for name, row in zip(names, zip(*found, strict=True), strict=True):
            print(f"| beams {beams}, {name} | " + " | ".join(f"{1e3 * s:.1f}" for s in row) + " |", flush=True)


def batches_table(options: argparse.Namespace) -> None:
    model = load(options.model, options.dtype)
    head = model.params["gpt"]["head"]
    bias = head["bias"].at[model.cfg.gpt.stop_code].add(options.stop_bias)
    params = {**model.params, "gpt": {**model.params["gpt"], "head": {**head, "bias": bias}}}
    voice = listen(params, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))
    rng, N, B = np.random.default_rng(0), options.sentences, options.rows
    texts = [model.text.analyse(" ".join(rng.choice(WORDS, rng.integers(3, 16))) + ".") for _ in range(N)]
    keys = list(jax.random.split(jax.random.key(1), N))

    def speak(beams: int, rows: Sequence[int], batch: int) -> list[tuple[int, float]]:
        """Codes and seconds of audio of every utterance."""
        sampling, some = Sampling(beams=beams), [keys[i] for i in rows]
        if options.codes_only:
            ids, lengths = text_batch(model.cfg, [texts[i].ids for i in rows])
            voices = gather([voice] * len(rows))
            prefix = gpt.prefix(params["gpt"], model.cfg.gpt, voices.latents, voices.emotion, ids, lengths)
            codes = drawing.generate(params["gpt"], model.cfg.gpt, prefix, some, sampling, options.max_codes, batch)
            return [(int(n), n / 50) for n in codes.lengths]
        settings = Options(sampling, options.max_codes, 1, steps=options.flow_steps, batch=batch)
        made = pipeline.speak(params, model.cfg, [texts[i] for i in rows], [voice] * len(rows), some, settings)
        return [(sum(len(s.codes) for s in speech.segments), len(speech.samples) / speech.rate) for speech in made]

    print("| beams | codes of an utterance | audio | one by one | static batches | continuous batches |")
    print("|---|---|---|---|---|---|")
    for beams in options.beams:
        times, made = [], []
        for size, batch in ((1, 1), (B, B), (N, B)):
            with Stopwatch() as watch:
                made = [one for i in range(0, N, size) for one in speak(beams, range(i, min(i + size, N)), batch)]
            times.append(watch.seconds - watch.preparing)
        codes = sorted(n for n, _ in made)
        about = f"{codes[0]} to {codes[-1]}, median {codes[N // 2]} | {sum(length for _, length in made):.1f} s"
        print(f"| {beams} | {about} | " + " | ".join(f"{time:.1f} s" for time in times) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def integers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--model", help="a converted model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=GPTConfig.layers)
    parser.add_argument("--batches", type=integers, default=[1, 8, 32])
    parser.add_argument("--beams", type=integers, default=[1, 3])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8, help="of a batch of sentences")
    parser.add_argument("--stop-bias", type=float, default=0.0)
    parser.add_argument("--max-codes", type=int, default=200)
    parser.add_argument("--codes-only", action="store_true")
    parser.add_argument("--flow-steps", type=int, default=25)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {options.dtype}, jax {jax.__version__}\n")
    batches_table(options) if options.model else steps_table(options)


if __name__ == "__main__":
    main()
