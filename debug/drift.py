"""How far bfloat16 or int8 is from float32 on a converted model: python -m debug.drift --model OUT [--dtype int8].

bfloat16: weights, caches and products; norms, softmax, scores and the state of the flow stay float32. int8: the weights
of the GPT's decoder and head; all else is as by default. Stage by stage on the same inputs, then the whole chain.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from debug.golden import FIXTURES, relative
from indextts_jax import audio, pipeline
from indextts_jax.cli.options import DTYPES
from indextts_jax.decoding import Sampling
from indextts_jax.model import Model, load
from indextts_jax.models import gpt
from indextts_jax.models.layers import valid
from indextts_jax.render import text_batch
from indextts_jax.request import Given, Options
from indextts_jax.voice import Voice, listen

TEXT = "Hello world, this is a small test of the speech system."


def forced(model: Model, voice: Voice, ids: list[int], codes: np.ndarray) -> np.ndarray:
    """The logits of every step [C, V] while given codes are fed."""
    params, cfg = model.params["gpt"], model.cfg.gpt
    texts, lengths = text_batch(model.cfg, [ids])
    prefix = gpt.prefix(params, cfg, jnp.asarray(voice.latents)[None], jnp.asarray(voice.emotion)[None], texts, lengths)
    scores, caches = gpt.prefill(params, cfg, prefix)
    out, recent = [scores[0]], gpt.empty(cfg, 1, len(codes), prefix.embeddings.dtype)
    blocks, before = tuple((cache,) for cache in caches), valid(prefix.lengths, caches[0].k.shape[3])
    for i, code in enumerate(codes[:-1]):
        visible = jnp.concatenate([before, jnp.arange(len(codes))[None] <= i], axis=1)[:, None]
        logits, recent = gpt.step(
            params, cfg, blocks, recent, jnp.array([[code]]), jnp.array(i), jnp.array([i + 2]), visible
        )
        out.append(logits[0, 0])
    return np.stack(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="converted model")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="bfloat16")
    parser.add_argument("--codes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25, help="of the flow")
    options = parser.parse_args()
    exact, rounded = (load(options.model, dtype) for dtype in ("float32", options.dtype))
    recording = audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav")
    voice, other = (listen(model.params, model.cfg, recording) for model in (exact, rounded))
    rows: list[tuple[str, str]] = []
    for name, a, b in zip(Voice._fields, other, voice, strict=True):
        rows.append((f"listening: {name}", f"{relative(a, b):.1e} relative"))

    analysis, settings = exact.text.analyse(TEXT), Options(Sampling(beams=1), options.codes, steps=options.steps)

    def speak(model: Model, voice: Voice, given: Given | None = None) -> Any:
        instead = [[given]] if given else None
        [speech] = pipeline.speak(
            model.params, model.cfg, [analysis], [voice], [jax.random.key(0)], settings, given=instead
        )
        return speech.segments[0]

    segment = speak(exact, voice)
    scores = [forced(model, voice, analysis.segment_ids[0], segment.codes) for model in (exact, rounded)]
    p, q = (np.asarray(jax.nn.log_softmax(s), np.float64) for s in scores)
    agree = np.mean(p.argmax(1) == q.argmax(1))
    rows.append((f"{len(segment.codes)} forced steps: the best code is the same", f"{100 * agree:.1f} %"))
    rows.append(
        ("forced steps: Kullback-Leibler divergence per step", f"{np.mean((np.exp(p) * (p - q)).sum(1)):.1e} nats")
    )
    for name, spoken in (
        ("log-mel of the same codes, same voice", speak(rounded, voice, Given(codes=segment.codes))),
        ("log-mel of the same codes, whole chain", speak(rounded, other, Given(codes=segment.codes))),
    ):
        distance = np.abs(spoken.mel - segment.mel)
        rows.append((name, f"{distance.mean():.3f} mean, {np.quantile(distance, 0.99):.3f} at 99 %"))
    rows.append(("spread of that log-mel, for comparison", f"{segment.mel.std():.3f}"))
    print(f"| {options.dtype} against float32 | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
