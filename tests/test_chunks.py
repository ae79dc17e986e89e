"""A segment in chunks: beside the same codes spoken whole, and beside itself under other circumstances."""

from dataclasses import replace

import numpy as np
import pytest

from indextts_jax import pipeline, scheduling
from indextts_jax.decoding import Sampling
from indextts_jax.render import spoken_frames
from indextts_jax.request import Chunk, Given, Options, Request, Streaming

pytestmark = pytest.mark.whole

OPTIONS = Options(Sampling(beams=1), steps=2)
STREAMING = Streaming(first_codes=60, hop=100, context=60)


class System:
    def __init__(self, model, voice):
        self.params, self.cfg = model.params, model.cfg
        self.voice = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
        self.text = model.text.analyse("One small test.")

    def request(self, options=OPTIONS, **changed) -> Request:
        [made] = pipeline.requests(self.params, self.cfg, self.text, self.voice, 7, options)
        return replace(made, **changed)

    def run(self, *requests, **settings):
        found = list(scheduling.run(self.params, self.cfg, requests, **({"batch": 1} | settings)))
        pieces = [one for one in found if isinstance(one, Chunk)]
        results = [one for one in found if not isinstance(one, Chunk)]
        for result in results:
            if result.error:
                raise result.error
        return pieces, results


@pytest.fixture(scope="module")
def system(model, voice):
    return System(model, voice)


def codes_of(n, seed=0):
    return Given(codes=np.random.default_rng(seed).integers(0, 128, n))


def test_bounds():
    bounds = [0]
    while len(bounds) < 7:
        bounds.append(Streaming().after(bounds[-1]))
    assert bounds == [0, 50, 100, 200, 400, 600, 800]


@pytest.mark.parametrize("n", [61, 260, 301])
def test_chunks_are_the_segment(system, n):
    request = system.request(given=codes_of(n))
    whole = system.run(request)[1][0]
    pieces, [result] = system.run(replace(request, streaming=STREAMING))
    assert len(result.samples) == len(whole.samples) == spoken_frames(n) * system.cfg.bigvgan.hop
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), result.samples)
    np.testing.assert_array_equal(np.concatenate([piece.codes for piece in pieces]), request.given.codes)
    assert [piece.start for piece in pieces] == np.cumsum([0] + [len(p.samples) for p in pieces])[:-1].tolist()
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_one_chunk_is_the_segment_to_the_bit(system):
    request = system.request(given=codes_of(60))
    whole = system.run(request)[1][0]
    [piece], [result] = system.run(replace(request, streaming=STREAMING))
    assert piece.last
    assert piece.samples.tobytes() == whole.samples.tobytes() == result.samples.tobytes()
