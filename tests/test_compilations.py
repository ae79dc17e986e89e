"""Fifty different sentences need no more programs than the ladders have rungs."""

import jax
import numpy as np
import pytest

from debug.golden import FIXTURES
from indextts_jax import audio, buckets, decoding, pipeline
from indextts_jax.decoding import Sampling
from indextts_jax.model import load
from indextts_jax.models import bigvgan, gpt, s2mel
from indextts_jax.request import Options
from indextts_jax.timing import Stopwatch
from indextts_jax.voice import listen

pytestmark = pytest.mark.whole

WORDS = "hello world this is a small test of the speech system please read the next sentence slowly".split()  # noqa: SIM905


def rungs(low: int, high: int, ladder: tuple[int, ...]) -> int:
    """How many rungs hold lengths from `low` to `high`."""
    return len({buckets.bucket(n, ladder) for n in range(low, high + 1)})


@pytest.mark.slow
def test_fifty_sentences(converted):
    """Sentences of 3 to 30 words in voices of 2 to 4 seconds, each of its own length in codes."""
    model = load(converted)
    head = model.params["gpt"]["head"]
    head = {**head, "bias": head["bias"].at[model.cfg.gpt.stop_code].set(5.5)}  # the tiny model never stops by itself
    params = {**model.params, "gpt": {**model.params["gpt"], "head": head}}
    voice = listen(params, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))
    rng, frames, most = np.random.default_rng(0), (170, 392), 60
    stages = (gpt.prefix, gpt.prefill, decoding.admit, decoding.advance, gpt.latents, s2mel.solve, bigvgan.vocode)
    jax.clear_caches()  # other tests may have compiled some of these programs
    options = Options(Sampling(beams=1), max_codes=most, steps=1)
    codes, texts = [], []
    with Stopwatch() as watch:
        for i in range(50):
            text = model.text.analyse(" ".join(rng.choice(WORDS, rng.integers(3, 31))) + ".")
            n = int(rng.integers(*frames))
            short = voice._replace(mel=voice.mel[:n], content=voice.content[:n])
            [speech] = pipeline.speak(params, model.cfg, [text], [short], [jax.random.key(i)], options)
            [segment] = speech.segments
            codes.append(len(segment.codes))
            texts.append(len(text.ids))
    grown = {stage.__name__: stage._cache_size() for stage in stages}
    assert len(set(codes)) > 10
    assert len(set(texts)) > 20
    text = rungs(min(texts), max(texts), buckets.TEXT)
    drawn = rungs(min(codes), max(codes), buckets.CODES)
    slots = min(texts) + 37 + decoding.CHUNK, buckets.bucket(max(texts), buckets.TEXT) + 37 + most
    cache = rungs(*(-(-n // decoding.BLOCK) for n in slots), buckets.BLOCKS)
    # The flow depends on the rung of its codes and on that of prompt and target together: the pairs there can be.
    packed = {
        (buckets.bucket(n, buckets.CODES), buckets.bucket(prompt + int(1.72 * n), buckets.FRAMES))
        for n in range(min(codes), max(codes) + 1)
        for prompt in range(*frames)
    }
    bound = {
        "prefix": text, "prefill": text, "admit": text * cache, "advance": cache, "latents": text * drawn,
        "solve": len(packed), "vocode": drawn,
    }  # fmt: skip
    assert all(1 <= grown[stage] <= bound[stage] for stage in bound), (grown, bound)
    assert watch.programs <= 4 * sum(bound.values())  # with the small operations between the stages
