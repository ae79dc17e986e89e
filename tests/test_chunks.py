"""A segment in chunks: beside the same codes spoken whole, and beside itself under other circumstances."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax import chunks, pipeline, scheduling
from indextts_jax.chunks import faded
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.models import bigvgan
from indextts_jax.render import second_pass, spoken_frames
from indextts_jax.request import Chunk, Given, Options, Request, Streaming
from tests import small
from tests.marks import LONG

pytestmark = pytest.mark.whole

OPTIONS = Options(Sampling(beams=1), steps=1)
STREAMING = Streaming(first_codes=40, hop=64, context=60)


class System:
    """The tiny model and a short voice."""

    def __init__(self, model, voice):
        self.params, self.cfg = small.with_small_vocoder(model.params, model.cfg)
        self.voice = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
        self.text = model.text.analyse("One small test.")

    def request(self, options=OPTIONS, seed=7, codes=None, **changed) -> Request:
        """With so many codes given, or to be drawn."""
        [made] = pipeline.requests(self.params, self.cfg, self.text, self.voice, seed, options, tag=seed)
        given = Given() if codes is None else Given(codes=np.random.default_rng(seed).integers(0, 128, codes))
        return replace(made, given=given, **changed)

    def run(self, *requests, batch=1, **settings):
        """By tag: the chunks and the result."""
        found = {}
        for one in scheduling.run(self.params, self.cfg, requests, batch, **settings):
            pieces, _ = found.setdefault(one.request.tag, ([], None))
            found[one.request.tag] = ([*pieces, one], None) if isinstance(one, Chunk) else (pieces, one)
        return found

    def one(self, request, **settings):
        pieces, result = self.run(request, **settings)[request.tag]
        assert result.error is None, result.error
        return pieces, result


@pytest.fixture(scope="module")
def system(model, voice):
    return System(model, voice)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [50, 100, 200, 400, 600]), ({"first_codes": 300, "hop": 80}, [300, 380, 460, 540, 620])],
)
def test_bounds_grow_up_to_the_hop(settings, expected):
    bounds = [0]
    while len(bounds) < 6:
        bounds.append(Streaming(**settings).after(bounds[-1]))
    assert bounds[1:] == expected


# ---- beside the whole segment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [pytest.param(41, marks=LONG), 170])
def test_chunks_are_the_segment(system, n):
    """As long to the sample, its codes, and near its samples: a different prompt and different norms change them."""
    request = system.request(codes=n)
    _, whole = system.one(request)
    pieces, result = system.one(replace(request, streaming=STREAMING))
    assert len(result.samples) == len(whole.samples) == spoken_frames(n) * system.cfg.bigvgan.hop
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), result.samples)
    np.testing.assert_array_equal(np.concatenate([piece.codes for piece in pieces]), request.given.codes)
    assert [len(piece.codes) for piece in pieces] == {41: [40, 1], 170: [40, 40, 64, 26]}[n]
    assert [piece.start for piece in pieces] == [0, *np.cumsum([len(piece.samples) for piece in pieces])[:-1]]
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    # The measure is what other noise changes.
    _, other = system.one(replace(request, keys=system.request(seed=8).keys))
    near, far = (np.abs(one.samples - whole.samples).mean() for one in (result, other))
    assert near < 0.4 * far


def test_one_chunk_is_the_segment_to_the_bit(system):
    request = system.request(codes=40)
    _, whole = system.one(request)
    [piece], result = system.one(replace(request, streaming=STREAMING))
    assert piece.last
    assert piece.samples.tobytes() == whole.samples.tobytes() == result.samples.tobytes()


def test_the_second_pass_and_noise_are_those_of_the_whole(system, monkeypatch):
    """What a chunk is solved from, where nothing is lost by rounding: latents, and noise by its absolute frame."""
    seen = []
    solve = chunks.to_chunk

    def to_chunk(params, cfg, voices, codes, lengths, latents, noise, spoken, heard, starts, ends, *more):
        seen.append((np.asarray(latents)[0, : lengths[0]], np.asarray(noise)[0], int(starts[0]), int(ends[0])))
        return solve(params, cfg, voices, codes, lengths, latents, noise, spoken, heard, starts, ends, *more)

    monkeypatch.setattr(chunks, "to_chunk", to_chunk)
    request = system.request(codes=170)
    system.one(replace(request, streaming=STREAMING))
    voices = chunks.gather([request.voice])
    codes = request.given.codes.astype(np.int32)[None]
    texts = chunks.text_batch(system.cfg, [request.ids])
    latents = np.asarray(second_pass(system.params, system.cfg, voices, *texts, codes))[0]
    noise = np.asarray(chunks.s2mel.noise(request.keys[1][None], 400, system.cfg.s2mel.mels))[0]
    assert len(seen) == 4
    for found, drawn, start, end in seen:
        assert relative(found, latents[: len(found)]) <= TOLERANCE["block"]
        np.testing.assert_array_equal(drawn[: end - start], noise[start:end])


def test_speed(system):
    """Slower or faster by the length of the target, whole and in chunks."""
    hop = system.cfg.bigvgan.hop
    for speed in (0.5, 1.3, 2.0):
        _, result = system.one(system.request(replace(OPTIONS, speed=speed), codes=30))
        assert len(result.samples) == int(np.float32(30 * 1.72) / speed) * hop
    pieces, result = system.one(system.request(replace(OPTIONS, speed=1.3), codes=70, streaming=Streaming(60, 60, 60)))
    assert len(pieces) == 2
    assert len(result.samples) == int(np.float32(70 * 1.72) / np.float32(1.3)) * hop


# ---- while codes are drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(beams=1), Sampling()])
def test_chunks_come_while_codes_are_drawn(system, sampling):
    """With one beam and with three: the codes of the whole, the first chunk long before the last of them."""
    options = replace(OPTIONS, sampling=sampling, max_codes=180)
    request, usage = system.request(options), scheduling.Usage()
    _, whole = system.one(request)
    steps, pieces = [], []
    for one in scheduling.run(
        system.params, system.cfg, [replace(request, streaming=STREAMING)], 1, usage=usage
    ):  # fmt: skip
        steps.append(usage.used_row_steps)
        pieces.append(one)
    *pieces, result = pieces
    np.testing.assert_array_equal(result.codes, whole.codes)
    np.testing.assert_array_equal(np.concatenate([piece.codes for piece in pieces]), whole.codes)
    assert steps[0] < 120 < 179 == steps[-1]  # the first code comes with the admission
    # And not by when they came: given all at once, the same chunks.
    given = replace(request, given=Given(codes=whole.codes), streaming=STREAMING)
    for a, b in zip(system.one(given)[0], pieces, strict=True):
        assert a.samples.tobytes() == b.samples.tobytes()


def test_neighbours_change_nothing(system):
    """Three streams and two others in a batch of four: each to the bit as alone in such a batch."""
    options = replace(OPTIONS, max_codes=100)
    asked = [system.request(options, seed, streaming=STREAMING if seed < 3 else None) for seed in range(5)]
    together = system.run(*asked, batch=4)
    assert len(together) == 5
    for request in asked[::2]:
        pieces, result = system.one(request, batch=4)
        beside, other = together[request.tag]
        assert [piece.samples.tobytes() for piece in pieces] == [piece.samples.tobytes() for piece in beside]
        np.testing.assert_array_equal(result.codes, other.codes)
        assert relative(other.samples, result.samples) <= TOLERANCE["component"]


# ---- joins ----------------------------------------------------------------------------------------------------------


def test_fading():
    np.testing.assert_array_equal(faded(np.zeros(0, np.float32), np.arange(3.0, dtype=np.float32)), [0, 1, 2])
    ramp = faded(np.zeros(100, np.float32), np.ones(300, np.float32))
    assert ramp[0] < 1e-3 < 0.99 < ramp[99]
    assert (np.diff(ramp[:100]) > 0).all()
    np.testing.assert_array_equal(ramp[100:], 1)
    same = np.random.default_rng(0).normal(size=300).astype(np.float32)
    np.testing.assert_allclose(faded(same[:100], same), same, rtol=1e-6)


def tones(params, cfg, mel, lengths):
    """A vocoder without noise of its own: overtones of 86 Hz, each as strong as a band of the mel says."""
    mel, time = np.asarray(mel)[0], np.arange(mel.shape[1] * cfg.hop) / cfg.hop
    bands = (np.interp(time, np.arange(len(mel)) + 0.5, mel[:, band]) for band in range(0, 80, 16))
    samples = sum(0.01 * np.exp(band) * np.cos(2 * np.pi * (k + 1) * time) for k, band in enumerate(bands))
    return np.where(time < lengths[0], samples, 0)[None].astype(np.float32)


def ranks_of_joins(system, seeds):
    """Of every join, how its step from sample to sample ranks among those of its segment, 0 to 1."""
    ranks = []
    for seed in seeds:
        pieces, result = system.one(system.request(seed=seed, codes=170, streaming=STREAMING))
        steps = np.abs(np.diff(result.samples, 2))
        highest = np.sort(np.lib.stride_tricks.sliding_window_view(steps, 3).max(axis=1))
        for piece in pieces[1:]:
            own = steps[piece.start - 2 : piece.start + 1].max()
            ranks.append(np.searchsorted(highest, own) / len(highest))
    return np.array(ranks)


def test_joins_are_places_as_any_other(system, monkeypatch):
    """Of tones, in which every step is seen; and without the cross-fade they are not."""
    monkeypatch.setattr(bigvgan, "vocode", tones)
    ranks = ranks_of_joins(system, range(5))
    assert np.median(ranks) < 0.9
    assert ranks.max() < 0.9999
    monkeypatch.setattr(chunks, "faded", lambda before, samples: samples)
    assert np.median(ranks_of_joins(system, range(5))) > 0.999


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"streaming": Streaming(first_codes=8)}, "first_codes is 8"),
        ({"streaming": Streaming(hop=4)}, "hop is 4"),
        ({"streaming": STREAMING, "given": Given(mel=np.zeros((50, 80)))}, "cannot be streamed"),
        ({"streaming": STREAMING, "options": replace(OPTIONS, retries=2)}, "retries"),
    ],
)
def test_what_cannot_be_streamed_is_refused(system, changed, message):
    pieces, result = system.run(replace(system.request(), **changed))[7]
    assert not pieces
    assert message in str(result.error)


@pytest.mark.parametrize("settings", [{"first_codes": 0}, {"hop": 0}, {"context": -1}])
def test_bad_settings(settings):
    with pytest.raises(Error, match="must be at least"):
        Streaming(**settings)


def test_the_failure_of_a_stream_is_its_own(system, monkeypatch):
    """NaN in the second chunk of one of two: its first chunk came, then its error, once; the other is whole."""
    options = replace(OPTIONS, max_codes=100)
    asked = [system.request(options, seed, streaming=STREAMING) for seed in (1, 2)]
    expected, solve = system.one(asked[1], batch=2)[1], chunks.Stream._solve

    def nan(stream, codes, frames):
        later = stream._row.request is asked[0] and stream._codes
        return solve(stream, codes, frames) * np.float32(np.nan if later else 1)

    monkeypatch.setattr(chunks.Stream, "_solve", nan)
    found = system.run(*asked, batch=2)
    pieces, result = found[1]
    assert "stage mel of segment 1 of 1 gave NaN" in str(result.error)
    assert [piece.last for piece in pieces] == [False]
    assert found[2][1].samples.tobytes() == expected.samples.tobytes()


def test_out_of_memory_in_a_chunk_it_is_made_again(system, monkeypatch):
    options = replace(OPTIONS, max_codes=100)
    request = system.request(options, streaming=STREAMING)
    expected = system.one(request, batch=2)[1]
    failures, vocode = [1, 1], bigvgan.vocode

    def full(*arguments):
        if len(failures) == 1 and failures.pop():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if failures:
            failures.pop()
        return vocode(*arguments)

    monkeypatch.setattr(bigvgan, "vocode", full)
    pieces, result = system.one(request, batch=2)
    assert not failures
    assert [piece.last for piece in pieces] == [False, False, True]
    np.testing.assert_array_equal(result.codes, expected.codes)
    assert relative(result.samples, expected.samples) <= TOLERANCE["component"]
