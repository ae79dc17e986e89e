"""The whole system against the reference, from files to samples; given stages; gradients; no recompilation."""

import os
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from debug.golden import FIXTURES, TOLERANCE, absolute, golden, relative
from indextts_jax import audio, buckets, decoding, emotion, ends, pipeline, scheduling
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.models import s2mel
from indextts_jax.render import gather, render, target_frames, text_batch
from indextts_jax.request import Given, Options, Result
from indextts_jax.text import Analysis
from indextts_jax.timing import Stopwatch
from indextts_jax.voice import feel, listen
from tests.small import normal

pytestmark = pytest.mark.whole

GREEDY = Options(Sampling(beams=1, sample=False), max_codes=40, fade_ms=0)
KEY = jax.random.key(0)


def speak(model, text, voice, key=KEY, options=GREEDY, given=None, budget=120, felt=None):
    analysis = model.text.analyse(text, budget)
    [speech] = pipeline.speak(model.params, model.cfg, [analysis], [voice], [key], options, [felt], given and [given])
    return speech


def noise_of(arrays, segments):
    return [Given(noise=arrays[f"seg{i}.cfm.noise"][0].T) for i in range(segments)]


def differences(speech, arrays):
    """Which of codes, mel and samples differ from a golden file by more than they may."""
    found = set()
    for i, segment in enumerate(speech.segments):
        codes = arrays[f"seg{i}.gpt.codes"][0]
        codes = codes[: list(codes).index(129)] if 129 in codes else codes
        if segment.codes.tolist() != codes.tolist():
            found.add("codes")
        if absolute(segment.mel, arrays[f"seg{i}.bigvgan.in"][0].T) > TOLERANCE["mel"]:
            found.add("mel")
    samples = audio.to_int16(speech.samples).astype(np.int32)
    if absolute(samples, arrays["wav_int16"][:, 0].astype(np.int32)) > TOLERANCE["samples"]:
        found.add("samples")
    return found


# ---- against the reference ------------------------------------------------------------------------------------------


def test_three_segments_equal_reference(official_model, voice):
    arrays = golden("en_segments")
    text = "Hello world, this is a small test. Where is the money? I do not know, please read the next sentence slowly."
    speech = speak(official_model, text, voice, given=noise_of(arrays, 3), budget=24)
    assert not differences(speech, arrays)
    starts = [(segment.start, segment.end) for segment in speech.segments]
    assert starts == [(0, 17408), (17408 + 4410, 2 * 17408 + 4410), (2 * 17408 + 8820, 3 * 17408 + 8820)]
    assert not speech.samples[17408 : 17408 + 4410].any()
    assert differences(speech._replace(segments=speech.segments[::-1]), arrays) == {"codes", "mel"}


SMALL = {"samples"}  # what a model with a small vocoder of its own has other than the reference
CHINESE = "今天天气很好，我们去公园吧。你好世界，这是一个测试。"


@pytest.fixture(scope="module")
def odd(model):
    """The voice whose last filterbank frame is put out."""
    return listen(model.params, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k_odd.wav"))


def test_chinese_with_a_recorded_emotion_equals_reference(model, odd):
    arrays = golden("zh_greedy_emotion_audio")
    assert relative(odd.style, arrays["campplus.out"][0]) <= TOLERANCE["style of a recording"]
    vector = feel(model.params, model.cfg, audio.load_emotion(FIXTURES / "audio" / "emotion.wav"))
    felt = Emotion(vector=vector, alpha=0.6)
    assert relative(resolve(model, odd, felt), arrays["seg0.gpt.emo_vec"][0]) <= TOLERANCE["component"]
    assert differences(speak(model, CHINESE, odd, given=noise_of(arrays, 1), felt=felt), arrays) == SMALL


def test_chinese_with_a_weighed_emotion_equals_reference(model, odd):
    """Three beams without sampling; from the reference's own emotion vector, and from our own, which is as near as
    the recording's style lets it be."""
    arrays, options = golden("zh_beam3_emotion_vector"), Options(Sampling(sample=False), max_codes=40, fade_ms=0)
    felt = Emotion((0.3, 0.0, 0.2, 0.0, 0.0, 0.1, 0.0, 0.1))
    assert relative(resolve(model, odd, felt), arrays["seg0.gpt.emo_vec"][0]) <= TOLERANCE["component"]
    assert differences(speak(model, CHINESE, odd, KEY, options, noise_of(arrays, 1), felt=felt), arrays) == SMALL
    given = odd._replace(emotion=arrays["seg0.gpt.emo_vec"][0])
    assert differences(speak(model, CHINESE, given, KEY, options, noise_of(arrays, 1)), arrays) == SMALL


def resolve(model, voice, felt):
    return emotion.resolve(
        model.params["prototypes"], model.cfg.prototypes, felt, voice.emotion, voice.base, voice.style
    )


def test_one_batch_mixes_emotions(model, voice):
    options, text = (
        Options(Sampling(beams=1, sample=False), max_codes=12, steps=2),
        model.text.analyse("One small test."),
    )
    emotions = [None, Emotion([0.8, 0, 0, 0, 0, 0, 0, 0]), Emotion(vector=-voice.emotion), Emotion([0.8] * 8, seed=1)]
    together = pipeline.speak(model.params, model.cfg, [text] * 4, [voice] * 4, [KEY] * 4, options, emotions)
    for felt, speech in zip(emotions, together, strict=True):
        [alone] = pipeline.speak(model.params, model.cfg, [text], [voice], [KEY], options, [felt])
        assert relative(speech.samples, alone.samples) <= TOLERANCE["component"]
    assert len({tuple(np.round(speech.samples[:2000], 3)) for speech in together}) == 4


# ---- joining --------------------------------------------------------------------------------------------------------


def result(length, seed=0):
    return Result(None, np.arange(3), True, 1, np.clip(0.3 * normal(seed, length), -1, 1))  # type: ignore[arg-type]


def analysis(segments, lead=0, pauses=()):
    return Analysis("", [], [], [[""]] * segments, [[1]] * segments, [], lead, pauses)


@pytest.mark.parametrize("trim", [False, True])
def test_segments_and_silences_lie_where_they_are_said_to(tiny, monkeypatch, trim):
    """With any pauses, to the sample; what is not a segment is silence."""
    rng, rate = np.random.default_rng(5), tiny.cfg.mel.rate
    monkeypatch.setattr(ends, "tail", lambda samples, rate: len(samples) - 50)
    for _ in range(50):
        results = [result(int(rng.integers(200, 2000)), int(rng.integers(1000))) for _ in range(rng.integers(1, 5))]
        lead, usual, fade_ms = (int(n) for n in rng.integers(0, 300, 3))
        pauses = tuple(None if n < 30 else int(n) for n in rng.integers(0, 99, len(results)))
        options = Options(silence_ms=usual, fade_ms=fade_ms, trim_tail=trim)
        speech = pipeline.join(tiny.cfg, results, options, analysis(len(results), lead, pauses))
        position, left = rate * lead // 1000, speech.samples.copy()
        for i, (one, segment, pause) in enumerate(zip(results, speech.segments, pauses, strict=True)):
            kept = one.samples[: len(one.samples) - 50 * trim]
            assert (segment.start, segment.end) == (position, position + len(kept))
            np.testing.assert_array_equal(speech.samples[segment.start : segment.end], ends.fade(kept, rate, fade_ms))
            left[segment.start : segment.end] = 0
            between = usual * (i + 1 < len(results)) if pause is None else pause
            position = segment.end + rate * between // 1000
        assert len(speech.samples) == position
        assert not left.any()


def test_segments_know_what_they_say(tiny):
    texts = ("Hello, you.", "你好")
    speech = pipeline.join(tiny.cfg, [result(500), result(700)], Options(), analysis(2, 100)._replace(texts=texts))
    assert tuple(segment.text for segment in speech.segments) == texts
    for segment in speech.segments:
        assert segment.cue == (segment.start, segment.end, segment.text)
        assert (segment.words[0].start, segment.words[-1].end) == (segment.start, segment.end)
    assert [word.text for segment in speech.segments for word in segment.words] == ["Hello,", "you.", "你", "好"]
    [alone] = pipeline.join(tiny.cfg, [result(500)], Options()).segments
    assert (alone.text, alone.words) == ("", ())


def test_a_text_with_pauses_is_silent_there_to_the_sample(model, voice):
    """From the text to the samples; the segments are those of the same texts without pauses."""
    options = Options(Sampling(beams=1, sample=False), max_codes=6, steps=1)
    said = "[pause 100ms] One small test. [pause 333ms] [pause 0.667s] Yes.\n\nHere. [pause 1ms]"
    speech, rate = speak(model, said, voice, options=options), model.cfg.mel.rate
    edges = [0, *(edge for segment in speech.segments for edge in (segment.start, segment.end)), len(speech.samples)]
    assert [b - a for a, b in zip(edges[::2], edges[1::2], strict=True)] == [2205, rate, rate // 2, rate // 1000]
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        assert not speech.samples[a:b].any()
    assert [segment.text for segment in speech.segments] == ["One small test.", "Yes.", "Here."]
    alone = speak(model, "One small test.", voice, options=options)
    first = speech.segments[0]
    np.testing.assert_array_equal(speech.samples[first.start : first.end], alone.samples)


def test_without_pauses_and_fade_the_samples_are_what_the_network_made(tiny):
    results, options = [result(500, 1), result(700, 2)], Options(fade_ms=0)
    for text in (None, analysis(2), analysis(2, 0, (None, None))):
        speech = pipeline.join(tiny.cfg, results, options, text)
        silence = np.zeros(4410, np.float32)
        np.testing.assert_array_equal(speech.samples, np.concatenate([results[0].samples, silence, results[1].samples]))
    faded = pipeline.join(tiny.cfg, results, Options())
    assert [faded.samples[segment.end - 1] for segment in faded.segments] == [0, 0]
    assert results[0].samples[-1] != 0


# ---- one call after another -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(voice):
    """A voice with which rendering takes a fraction of the time."""
    return voice._replace(mel=voice.mel[:60], content=voice.content[:60])


def test_same_key_same_audio_and_nothing_is_compiled_twice(model, short):
    options = Options(Sampling(beams=1), max_codes=30, steps=1)
    first = speak(model, "One small test.", short, jax.random.key(3), options)
    with Stopwatch() as watch:
        again = speak(model, "One small test.", short, jax.random.key(3), options)
        speak(model, "Two other ones.", short, jax.random.key(4), options)  # of the same buckets
    assert watch.programs == 0
    np.testing.assert_array_equal(first.samples, again.samples)
    other = speak(model, "One small test.", short, jax.random.key(4), options)
    assert first.segments[0].codes.tolist() != other.segments[0].codes.tolist()


def test_a_seed_is_its_key(model, short):
    options = Options(Sampling(beams=1), max_codes=20, steps=1)
    speech = speak(model, "One small test.", short, jax.random.key(3), options)
    np.testing.assert_array_equal(speech.samples, speak(model, "One small test.", short, 3, options).samples)
    with pytest.raises(ValueError, match="implementation rbg"):
        speak(model, "One small test.", short, jax.random.key(3, impl="rbg"), options)


@pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="compiles everything twice: set INDEXTTS_LONG to run it")
def test_parameters_of_numpy_do_as_well(model, voice):
    """Listening, speaking and rendering with parameters on the host: the same in every bit."""
    host = jax.tree.map(np.asarray, model.params)
    again = listen(host, model.cfg, audio.load_speaker(FIXTURES / "audio" / "voice_24k.wav"))
    for ours, expected in zip(again, voice, strict=True):
        np.testing.assert_array_equal(ours, expected)
    options, felt = Options(Sampling(beams=2), max_codes=20, steps=2), Emotion([0.3] * 8, seed=1)
    speech = speak(model, "One small test.", voice, jax.random.key(3), options, felt=felt)
    key = jax.random.key(3)
    other = speak(replace(model, params=host), "One small test.", again, key, options, felt=felt)
    np.testing.assert_array_equal(speech.segments[0].codes, other.segments[0].codes)
    np.testing.assert_array_equal(speech.samples, other.samples)
    ids, lengths = text_batch(model.cfg, [model.text.analyse("One small test.").ids])
    codes, noise = speech.segments[0].codes[None], normal(0, 1, target_frames(20), 80)
    rendered = [
        render(params, model.cfg, gather([voice]), ids, lengths, codes, np.array([20]), noise, steps=2)
        for params in (model.params, host)
    ]
    np.testing.assert_array_equal(rendered[0].samples, rendered[1].samples)


def test_buckets_change_nothing(model, voice, monkeypatch):
    speech = speak(
        model, "One small test.", voice, options=Options(Sampling(beams=1, sample=False), max_codes=20, steps=5)
    )
    for name, ladder in {
        "TEXT": (9, 10),
        "CODES": (20, 21),
        "PROMPT": (393, 400),
        "FRAMES": (426, 430),
        "BLOCKS": (2, 3),
    }.items():
        monkeypatch.setattr(buckets, name, ladder)
    exact = speak(
        model, "One small test.", voice, options=Options(Sampling(beams=1, sample=False), max_codes=20, steps=5)
    )
    assert speech.segments[0].codes.tolist() == exact.segments[0].codes.tolist()
    assert relative(speech.segments[0].mel, exact.segments[0].mel) <= TOLERANCE["component"]
    assert relative(speech.samples, exact.samples) <= TOLERANCE["component"]


def test_given_stages_replace_their_own(model, voice):
    options = Options(Sampling(beams=1, sample=False), max_codes=20, steps=2)
    speech = speak(model, "One small test.", voice, options=options)
    [segment] = speech.segments
    by_codes = speak(model, "One small test.", voice, options=options, given=[Given(codes=segment.codes)])
    assert relative(by_codes.samples, speech.samples) <= TOLERANCE["block"]
    by_mel = speak(model, "One small test.", voice, options=options, given=[Given(mel=segment.mel)])
    assert relative(by_mel.samples, speech.samples) <= TOLERANCE["component"]
    zeros = np.zeros((20, model.cfg.gpt.width), np.float32)
    by_latents = speak(
        model, "One small test.", voice, options=options, given=[Given(codes=segment.codes, latents=zeros)]
    )
    assert relative(by_latents.segments[0].mel, segment.mel) > 0.01
    with pytest.raises(ValueError, match=r"noise given for segment 1 of 1 has shape \(7, 80\), but a prompt of 392"):
        speak(model, "One small test.", voice, options=options, given=[Given(noise=np.zeros((7, 80)))])
    with pytest.raises(ValueError, match="codec has 0 to 127"):
        speak(model, "One small test.", voice, options=options, given=[Given(codes=[1, 128])])
    with pytest.raises(ValueError, match="2 segments are given"):
        speak(model, "One small test.", voice, options=options, given=[Given(), Given()])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"codes": [[1, 2]]},
            r"codes given for segment 1 of 1 must have shape \[C\] of integers, not \(1, 2\)",
        ),
        ({"codes": []}, r"must have shape \[C\] of integers, not \(0,\)"),
        ({"codes": [1.0, 2.0]}, "are float64, but must be integers"),
        ({"codes": "ab"}, "codes given for segment 1 of 1 must have shape"),
        ({"codes": [1] * 500}, "500 codes are given for segment 1 of 1, but the model takes 400"),
        ({"codes": [1, 2**32]}, "lie between 1 and 4294967296"),
        ({"codes": [1, 128]}, "codes of segment 1 of 1 lie between 1 and 128"),
        ({"codes": [1, 2], "latents": np.zeros((2, 5))}, r"must have shape \[C, 96\], not \(2, 5\)"),
        ({"codes": [1, 2], "latents": np.zeros((3, 96))}, "3 latents are given for segment 1 of 1 beside 2 codes"),
        ({"latents": np.zeros((3, 96))}, "3 latents are given for segment 1 of 1 beside 0 codes"),
        ({"codes": [1, 2], "noise": np.zeros((7, 80))}, "a target of 3 frames need"),
        ({"noise": np.zeros(80)}, r"must have shape \[P \+ F, 80\], not \(80,\)"),
        ({"mel": np.zeros((80, 7))}, r"must have shape \[F, 80\], not \(80, 7\)"),
        ({"mel": [[1.0], [1.0, 2.0]]}, r"must be numbers of shape \[F, 80\]"),
        ({"mel": np.full((3, 80), np.nan)}, "mel given for segment 1 of 1 must be finite"),
    ],
)
def test_what_is_given_must_fit(model, short, monkeypatch, given, why):
    """Refused before anything is drawn, in words of ours."""
    monkeypatch.setattr(scheduling, "Drawing", None)
    with pytest.raises(ValueError, match=why):
        speak(model, "One small test.", short, given=[Given(**given)])


def test_what_is_not_finite_is_no_speech(model, short):
    options = Options(Sampling(beams=1, sample=False), max_codes=20, steps=1)
    broken = short._replace(style=np.full_like(short.style, np.nan))
    with pytest.raises(ValueError, match="stage mel of segment 1 of 1 gave NaN"):
        speak(model, "One small test.", broken, options=options)
    weights = jax.tree.map(lambda leaf: leaf * np.nan, model.params["bigvgan"])
    damaged = replace(model, params={**model.params, "bigvgan": weights})
    with pytest.raises(ValueError, match="stage vocode of segment 1 of 1 gave NaN"):
        speak(damaged, "One small test.", short, given=[Given(mel=np.zeros((20, 80)))])


SENTENCES = (
    "One small test.", "Where is the money?", "Hello world, this is a small test of the speech system.",
    "I do not know, please read the next sentence slowly.", "今天天气很好。", "Yes.",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopping(model):
    """The tiny model, which never stops, with a bias that lets it stop."""
    head = model.params["gpt"]["head"]
    head = {**head, "bias": head["bias"].at[model.cfg.gpt.stop_code].set(5.5)}
    return replace(model, params={**model.params, "gpt": {**model.params["gpt"], "head": head}})


@pytest.mark.slow
def test_a_batch_equals_its_rows_alone(stopping, voice, caplog):
    """Random texts, voices, emotions, beams and lengths, two and three segments at a time, later ones admitted while
    others run: codes, latents, mel and samples are those of the text alone."""
    rng, model = np.random.default_rng(11), stopping
    for beams, batch in ((1, 3), (3, 2)):
        options = Options(Sampling(beams=beams), max_codes=28, steps=3, batch=batch)
        texts, voices, keys = [], [], []
        for i, sentence in enumerate(rng.permutation(SENTENCES)[: 4 + (beams == 1)]):
            texts.append(model.text.analyse(sentence, 12))
            frames = int(rng.integers(60, len(voice.mel)))
            emotion = voice.emotion + 0.3 * rng.normal(size=voice.emotion.shape).astype(np.float32)
            voices.append(voice._replace(mel=voice.mel[:frames], content=voice.content[:frames], emotion=emotion))
            keys.append(jax.random.key(i))
        together = pipeline.speak(model.params, model.cfg, texts, voices, keys, options)
        found = [segment for speech in together for segment in speech.segments]
        assert len(found) > len(texts)
        assert len({len(segment.codes) for segment in found}) > 1
        assert {segment.stopped for segment in found} == {True, False}
        for text, one, key, speech in zip(texts, voices, keys, together, strict=True):
            [alone] = pipeline.speak(model.params, model.cfg, [text], [one], [key], replace(options, batch=1))
            for a, b in zip(speech.segments, alone.segments, strict=True):
                assert a.codes.tolist() == b.codes.tolist()
                assert (a.start, a.end, a.stopped) == (b.start, b.end, b.stopped)
                assert relative(a.mel, b.mel) <= TOLERANCE["component"]
            assert relative(speech.samples, alone.samples) <= TOLERANCE["component"]
    assert re.search(r"segment \d of \d of text \d was cut off after 28 codes:", caplog.text)


@pytest.mark.parametrize("batch", [1, 5, 8])
def test_as_many_rows_are_drawn_as_are_asked_for(model, short, monkeypatch, batch):
    drawn, rendered, advance, solve = set(), [], decoding.advance, s2mel.solve
    monkeypatch.setattr(decoding, "advance", lambda *inputs: drawn.add(len(inputs[2].done)) or advance(*inputs))
    monkeypatch.setattr(s2mel, "solve", lambda *inputs: rendered.append(len(inputs[2])) or solve(*inputs))
    options = Options(Sampling(beams=1), max_codes=5, steps=1, batch=batch)
    text = model.text.analyse("One small test.")
    pipeline.speak(model.params, model.cfg, [text] * 9, [short] * 9, range(9), options)
    assert drawn == {batch}
    assert rendered == [1] * 9  # on a CPU


def test_what_meets_the_limit_is_drawn_again_if_asked(stopping, short, caplog):
    model, text = stopping, stopping.text.analyse("One small test.")

    def stopped(limit, retries):
        options = Options(Sampling(beams=1), max_codes=limit, steps=1, retries=retries)
        voices, keys = [short] * 4, [jax.random.key(i) for i in range(4)]
        found = pipeline.speak(model.params, model.cfg, [text] * 4, voices, keys, options)
        return [speech.segments[0] for speech in found]

    once, again = stopped(28, 0), stopped(28, 3)
    assert sum(segment.stopped for segment in once) < sum(segment.stopped for segment in again)
    for a, b in zip(once, again, strict=True):
        if a.stopped:
            assert a.codes.tolist() == b.codes.tolist()
    caplog.clear()
    assert not any(segment.stopped for segment in stopped(1, 2))
    assert "segment 1 of 1 of text 3 was cut off after 1 codes, each of 3 times" in caplog.text
    with pytest.raises(ValueError, match="the same codes would come again"):
        Options(Sampling(sample=False), retries=1)


def test_a_cut_segment_is_flagged_and_named(model, short, caplog):
    speech = speak(
        model, "One small test.", short, options=Options(Sampling(beams=1, sample=False), max_codes=5, steps=1)
    )
    assert not speech.segments[0].stopped
    assert "segment 1 of 1 was cut off after 5 codes" in caplog.text


def test_what_does_not_fit_the_model_is_refused(model, short):
    long = model.text.analyse("small test " * 150, budget=1000)
    with pytest.raises(ValueError, match="the model takes 200: use shorter segments"):
        pipeline.speak(model.params, model.cfg, [long], [short], [KEY])
    foreign = model.text.analyse("One small test.")._replace(segment_ids=[[700]])
    with pytest.raises(ValueError, match=r"bpe\.model belongs to another model"):
        pipeline.speak(model.params, model.cfg, [foreign], [short], [KEY])
    with pytest.raises(ValueError, match="not parallel"):
        pipeline.speak(model.params, model.cfg, [foreign], [short, short], [KEY])


@pytest.mark.parametrize(
    "bad",
    [
        *({name: 0} for name in ("max_codes", "batch", "steps")),
        *({name: -1} for name in ("retries", "silence_ms", "fade_ms", "guidance")),
    ],
)
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Options(**bad)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.7])
def test_a_duration_is_met_to_the_frame(model, short, factor):
    """Silences included; the codes are those of the text without it, and the segments share by their codes."""
    options = Options(Sampling(beams=1), max_codes=20, steps=1, silence_ms=130)
    text = model.text.analyse("One small test. Where is it? Yes.", budget=9)
    assert len(text.segments) > 1
    hop, rate = model.cfg.bigvgan.hop, model.cfg.mel.rate
    [own] = pipeline.speak(model.params, model.cfg, [text], [short], [3], options)
    seconds = factor * len(own.samples) / rate
    [timed] = pipeline.speak(model.params, model.cfg, [text], [short], [3], options, duration=seconds)
    assert abs(len(timed.samples) - seconds * rate) <= hop / 2
    for a, b in zip(own.segments, timed.segments, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
        assert (a.stopped, a.text) == (b.stopped, b.text)
        assert len(b.mel) * hop == b.end - b.start


@pytest.mark.parametrize("seconds", [0.2, 60.0])
def test_a_duration_out_of_reach(model, short, seconds):
    options = Options(Sampling(beams=1), max_codes=40, steps=1)
    text = model.text.analyse("Yes.")
    with pytest.raises(Error, match=r"duration is .* s, but this text can take 0\.39 to 1\.58 s"):
        pipeline.speak(model.params, model.cfg, [text], [short], [3], options, duration=seconds)


@pytest.mark.parametrize("speed", [0.4, 2.1])
def test_a_speed_out_of_reach(speed):
    with pytest.raises(Error, match=r"between 0\.5 and 2"):
        Options(speed=speed)
