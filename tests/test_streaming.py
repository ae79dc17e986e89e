"""A text in chunks: beside `pipeline.speak`, whatever stands beside what."""

from dataclasses import replace

import numpy as np
import pytest

from indextts_jax import chunks, ends, pipeline, streaming
from indextts_jax.decoding import Sampling
from indextts_jax.errors import Error
from indextts_jax.request import Options, Streaming
from tests import small

pytestmark = pytest.mark.whole

OPTIONS = Options(Sampling(beams=1), max_codes=100, steps=1, silence_ms=130)
STREAMING = Streaming(first_codes=40, hop=64, context=60)
TEXT = "[pause 70ms] One small test. [pause 310ms] Where is it?\n\nYes. [pause 40ms]"


class System:
    def __init__(self, model, voice):
        params, cfg = small.with_small_vocoder(model.params, model.cfg)
        self.model = replace(model, params=params, cfg=cfg)
        self.voice = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
        self.text = model.text.analyse(TEXT, budget=12)

    def speak(self, options=OPTIONS, **more):
        [spoken] = pipeline.speak(
            self.model.params, self.model.cfg, [self.text], [self.voice], [3], options, **more
        )  # fmt: skip
        return spoken

    def stream(self, options=OPTIONS, chunked=STREAMING, **more):
        return list(
            streaming.stream(
                self.model.params, self.model.cfg, self.text, self.voice, 3, options, streaming=chunked, **more
            )
        )


@pytest.fixture(scope="module")
def system(model, voice):
    return System(model, voice)


@pytest.mark.parametrize("batch", [None, 4])
def test_a_text_in_chunks_is_the_text(system, batch):
    """In one after another and side by side: the same codes, places and silences; samples near those of the whole."""
    whole, cues = system.speak(), []
    pieces = system.stream(replace(OPTIONS, batch=batch), said=cues.append)
    samples = np.concatenate([piece.samples for piece in pieces])
    assert len(whole.segments) == 3
    assert len(samples) == len(whole.samples)
    assert [piece.start for piece in pieces] == [0, *np.cumsum([len(piece.samples) for piece in pieces])[:-1]]
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert cues == [segment.cue for segment in whole.segments]
    codes = np.concatenate([piece.codes for piece in pieces])
    np.testing.assert_array_equal(codes, np.concatenate([segment.codes for segment in whole.segments]))
    sounding = np.zeros(len(samples), bool)
    for cue in cues:
        sounding[cue.start : cue.end] = True
        assert abs(samples[cue.end - 1]) < 1e-6  # faded
        assert np.abs(samples[cue.end - 600 : cue.end]).max() > 0
    assert not samples[~sounding].any()
    assert (~sounding).sum() == sum(len(silence) for silence in pipeline.silences(
        system.model.cfg, 3, OPTIONS, system.text
    ))  # fmt: skip


def test_segments_of_one_chunk_are_those_of_the_whole_to_the_bit(system):
    pieces = system.stream(chunked=Streaming(first_codes=100))
    assert len(pieces) == 3
    assert np.concatenate([piece.samples for piece in pieces]).tobytes() == system.speak(
        replace(OPTIONS, batch=1)
    ).samples.tobytes()  # fmt: skip


def test_a_tail_is_trimmed_as_in_the_whole(system, monkeypatch):
    """By what is known of the whole segment, though only its last chunk can still be cut."""
    seen = []

    def tail(samples, rate):
        seen.append(len(samples))
        return len(samples) - 1000

    monkeypatch.setattr(ends, "tail", tail)
    options = replace(OPTIONS, trim_tail=True)
    whole, pieces = system.speak(options), system.stream(options)
    assert seen[:3] == seen[3:]
    assert sum(len(piece.samples) for piece in pieces) == len(whole.samples)


def test_an_error_comes_after_all_that_was_spoken_before_it(system, monkeypatch):
    measured, measure = [], chunks.Stream._at_once

    def stops(stream):
        measured.append(1)
        if len(measured) == 2:
            raise Error("no speech came of segment 2 of 3")
        return measure(stream)

    monkeypatch.setattr(chunks.Stream, "_at_once", stops)
    pieces = streaming.stream(
        system.model.params, system.model.cfg, system.text, system.voice, 3, replace(OPTIONS, batch=4),
        streaming=Streaming(first_codes=100),
    )  # fmt: skip
    assert next(pieces).start == 0
    with pytest.raises(Error, match="segment 2 of 3"):
        next(pieces)


def test_what_a_tick_raises_ends_the_stream(system):
    class Enough(Exception):
        pass

    ticks = []

    def tick():
        ticks.append(1)
        if len(ticks) > 4:
            raise Enough

    with pytest.raises(Enough):
        system.stream(tick=tick)


def test_the_public_face(system):
    model = system.model
    pieces = list(model.stream("Yes.", system.voice, 3, "happy=0.5", OPTIONS, STREAMING))
    spoken = model.speak("Yes.", system.voice, 3, "happy=0.5", OPTIONS)
    assert sum(len(piece.samples) for piece in pieces) == len(spoken.samples)
