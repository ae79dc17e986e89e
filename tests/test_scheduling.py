"""The loop on the host: requests in at any time, results out, errors of one request alone, memory that stays."""

import gc
import itertools
import weakref
from dataclasses import replace

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax import decoding, pipeline, scheduling, seeds
from indextts_jax.decoding import Sampling
from indextts_jax.models import bigvgan, gpt, s2mel
from indextts_jax.request import Cancelled, Chunk, Given, Options, Request, Streaming
from indextts_jax.scheduling import IN_FLIGHT, Usage
from indextts_jax.timing import Stopwatch
from tests import small
from tests.marks import LONG

pytestmark = pytest.mark.whole

OPTIONS = Options(Sampling(beams=1), max_codes=12, steps=1, fade_ms=0)
TEXTS = ("One small test.", "Where is the money, I do not know?", "Yes.")


class System:
    """The tiny model with a bias that lets it stop, and a short voice."""

    def __init__(self, model, voice, bias=5.5):
        head = model.params["gpt"]["head"]
        head = {**head, "bias": head["bias"].at[model.cfg.gpt.stop_code].set(bias)}
        params = {**model.params, "gpt": {**model.params["gpt"], "head": head}}
        self.params, self.cfg = small.with_small_vocoder(params, model.cfg)
        self.voice = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
        self.texts = [model.text.analyse(text) for text in TEXTS]

    def request(self, i, options=OPTIONS, text=0, **changed) -> Request:
        [made] = pipeline.requests(self.params, self.cfg, self.texts[text], self.voice, i, options, tag=i)
        return replace(made, name=f"request {i}", **changed)

    def run(self, requests, batch=4, **settings):
        return scheduling.run(self.params, self.cfg, requests, batch, **settings)

    def all(self, requests, batch=4, **settings):
        """Of every request its result, by tag."""
        results = list(self.run(requests, batch, **settings))
        found = {result.request.tag: result for result in results}
        assert len(found) == len(results)
        return found


@pytest.fixture(scope="module")
def system(model, voice):
    return System(model, voice)


def same(found, expected):
    """The same codes, and samples but for rounding."""
    assert found.keys() == expected.keys()
    for tag, result in found.items():
        assert result.error is None
        np.testing.assert_array_equal(result.codes, expected[tag].codes)
        assert (result.stopped, result.attempts) == (expected[tag].stopped, expected[tag].attempts)
        assert relative(result.samples, expected[tag].samples) <= TOLERANCE["component"]


# ---- in and out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_requests_are_taken_a_few_ahead(system, given):
    """Of those that are drawn, and of those whose codes are given; results come before the last is taken."""
    codes = Given(codes=np.arange(20)) if given else Given()
    taken, ahead = [], []

    def source():
        for i in range(40):
            taken.append(i)
            yield system.request(i, given=codes)

    for done, _ in enumerate(system.run(source())):
        ahead.append(len(taken) - done)
    assert len(ahead) == len(taken) == 40
    assert ahead[0] < 20
    assert max(ahead) <= 3 * 4 + IN_FLIGHT  # twice the batch, the rows that ended, and what is rendered


def test_a_source_that_has_nothing_yet_is_asked_again(system):
    found, asked = [], []

    def source():
        yield system.request(0)
        yield system.request(1)
        while len(found) < 2:
            asked.append(1)
            assert len(asked) < 1000
            yield None
        yield None
        yield system.request(2)

    for result in system.run(source()):
        found.append(result.request.tag)
    assert sorted(found[:2]) == [0, 1]
    assert found[2:] == [2]


def test_no_requests_no_results(system):
    assert list(system.run([])) == []


def test_what_a_tick_raises_ends_the_run(system):
    said, found = [], []

    def tick(drawn, finished):
        said.append((drawn, finished))
        if finished >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.extend(system.run([system.request(i) for i in range(20)], tick=tick))
    assert 3 <= len(found) < 20
    said.clear()
    requests = [system.request(0), system.request(1, given=Given(codes=[1, 2])), system.request(2, ids=[700])]
    list(system.run(requests, tick=lambda *counts: said.append(counts)))
    assert said[0] == (0, 0)
    assert said == sorted(said)
    assert any(drawn == 3 > finished for drawn, finished in said)  # before samples are waited for
    assert said[-1] == (3, 3)


def test_a_run_that_ends_finishes_what_is_drawn_and_begins_no_more(system):
    """Four rows have places: they are finished, and those that wait for one have no result."""
    found, asked = [], []

    def source():
        for i in range(40):
            asked.append(i)
            yield system.request(i)

    for result in system.run(source(), ending=lambda: bool(found)):
        found.append(result)
    assert all(result.error is None for result in found)
    assert 4 <= len(found) < len(asked) < 40


def test_memory_does_not_grow_with_the_requests(system, monkeypatch):
    """Rendered by programs that do nothing."""
    silence = jax.jit(lambda mel: jax.numpy.zeros((len(mel), mel.shape[1] * 256)))
    monkeypatch.setattr(s2mel, "solve", lambda params, cfg, noise, *rest: noise)
    monkeypatch.setattr(bigvgan, "vocode", lambda params, cfg, mel, lengths: silence(mel))
    options, alive, most = replace(OPTIONS, max_codes=2), weakref.WeakSet(), []
    ids = system.request(0).ids

    def source():
        for i in range(300):
            request = Request(ids, system.voice, (seeds.key(i), seeds.key(i)), options, tag=i)
            alive.add(request)
            yield request
            del request

    n = 0
    for n, result in enumerate(system.run(source()), start=1):
        del result
        if n % 30 == 0:
            gc.collect()
            most.append(len(alive))
    assert n == 300
    assert max(most) <= 3 * 4 + IN_FLIGHT + 2


# ---- errors and attempts --------------------------------------------------------------------------------------------


def test_a_failure_belongs_to_its_request(model, voice):
    """Texts too long and of another vocabulary, a voice of NaN, an empty draw: the others are as without them."""
    system = System(model, voice, 9.5)
    good = system.all([system.request(i) for i in range(24)])
    empty = [i for i, result in good.items() if result.error]
    assert 1 <= len(empty) < 20
    assert all(len(result.codes) > 0 for i, result in good.items() if i not in empty)
    bad = system.voice._replace(latents=np.full_like(system.voice.latents, np.nan))
    wrong = [
        system.request(100, ids=[5] * 500), system.request(101, ids=[700]), system.request(102, voice=bad),
        system.request(104, given=Given(codes=[1, 500])),
    ]  # fmt: skip
    mixed = [system.request(i) for i in range(24)]
    for place, request in zip((0, 5, 11, 17), wrong, strict=True):
        mixed.insert(place, request)
    found = system.all(mixed)
    for tag, why in (
        (100, "the model takes 200"), (101, "another model"), (102, "request 102"),
        (104, "codec has"), *((i, "the stop code was drawn first") for i in empty),
    ):  # fmt: skip
        assert why in str(found.pop(tag).error)
    same(found, {i: result for i, result in good.items() if i not in empty})


def test_retries_keep_the_best_attempt(model, voice):
    """The first that is good; else the longest cut one, whatever comes after it; else none. Each attempt by itself
    tells what to expect."""
    system, limit, most = System(model, voice, 9.5), replace(OPTIONS, max_codes=3), 3
    requests = {i: system.request(i, limit) for i in range(30)}
    single = [
        replace(request, keys=(seeds.of_attempt(request.keys[0], n), request.keys[1]), tag=(i, n))
        for i, request in requests.items() for n in range(most)
    ]  # fmt: skip
    drawn = {tag: (result.codes.tolist(), result.stopped) for tag, result in system.all(single).items()}
    again = replace(limit, retries=most - 1)
    found = system.all(replace(request, options=again) for request in requests.values())
    outcomes = set()
    for i, result in found.items():
        attempts = [drawn[i, n] for n in range(most)]
        kinds = ["empty" if not codes else "good" if stopped else "cut" for codes, stopped in attempts]
        last = kinds.index("good") if "good" in kinds else most - 1
        outcomes.add(tuple(kinds[: last + 1]))
        best = attempts[last] if kinds[last] == "good" else max(attempts, key=lambda one: len(one[0]))
        assert result.attempts == last + 1
        assert (result.codes.tolist(), result.stopped) == best
        assert (result.error is not None) == (not best[0])
    assert any(kinds[0] == "cut" and "empty" in kinds and kinds[-1] != "good" for kinds in outcomes)
    assert any(len(kinds) > 1 and kinds[-1] == "good" for kinds in outcomes)


# ---- what differs per request ---------------------------------------------------------------------------------------


def test_other_kinds_share_a_run(system):
    several = [
        OPTIONS, replace(OPTIONS, sampling=Sampling(beams=2)), replace(OPTIONS, sampling=Sampling(1, sample=False)),
        replace(OPTIONS, sampling=Sampling(1, top_k=5)), replace(OPTIONS, steps=2),
    ]  # fmt: skip
    requests = [system.request(i, several[i % 5], text=i % 3) for i in range(15)]
    together = system.all(requests)
    same(together, {request.tag: system.all([request])[request.tag] for request in requests})
    assert len({tuple(result.codes) for result in together.values()}) > 9


def test_settings_of_one_kind_share_a_batch(system, monkeypatch):
    made, drawing = [], scheduling.Drawing
    monkeypatch.setattr(scheduling, "Drawing", lambda *inputs: made.append(1) or drawing(*inputs))
    system.all([system.request(i) for i in range(6)])
    made.clear()
    changes = [
        {"temperature": 1.5}, {"top_p": 0.3}, {"repetition_penalty": 2.0}, {"length_penalty": 1.0}, {"max_codes": 5},
        {"guidance": 0.3},
    ]  # fmt: skip
    options = [
        replace(OPTIONS, **change) if set(change) & {"max_codes", "guidance"}
        else replace(OPTIONS, sampling=replace(OPTIONS.sampling, **change))
        for change in changes
    ]  # fmt: skip
    requests = [system.request(i, options[i]) for i in range(6)]
    with Stopwatch() as watch:
        together = system.all(requests)
    assert made == [1]
    assert watch.programs == 0
    monkeypatch.undo()
    same(together, {request.tag: system.all([request])[request.tag] for request in requests})


@pytest.mark.parametrize("beams", [pytest.param(1, marks=LONG), 2])
def test_with_fixed_shapes_the_bits_are_the_same_whatever_stands_beside(system, monkeypatch, beams):
    """In groups, of mixed lengths: in order, backwards, alone; the codes are those of `speak`."""
    monkeypatch.setattr(scheduling, "_on_cpu", lambda params: False)
    options = [replace(OPTIONS, sampling=Sampling(beams), max_codes=n) for n in (12, 40)]
    requests = [system.request(i, options[i % 2], text=i % 3) for i in range(7)]
    usage = Usage()
    expected = system.all(requests, fixed=True, usage=usage)
    assert usage.frames > usage.used_frames
    assert len({len(result.samples) for result in expected.values()}) > 2
    for found in (
        system.all(requests[::-1], fixed=True),
        {request.tag: system.all([request], fixed=True)[request.tag] for request in requests[:3]},
    ):
        for tag, result in found.items():
            np.testing.assert_array_equal(result.codes, expected[tag].codes)
            np.testing.assert_array_equal(result.samples, expected[tag].samples)
    monkeypatch.undo()
    spoken = pipeline.speak(
        system.params, system.cfg, [system.texts[0]] * 2, [system.voice] * 2, [0, 6], replace(options[0], batch=4)
    )
    for tag, speech in zip((0, 6), spoken, strict=True):
        np.testing.assert_array_equal(speech.segments[0].codes, expected[tag].codes)
        assert relative(speech.samples, expected[tag].samples) <= TOLERANCE["component"]


# ---- cancelled, and in turns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 2])
def test_a_cancelled_request_frees_its_row_and_changes_no_other(system, beams):
    """Those that wait and those that are drawn: each has the error that says so, all others the same bits."""
    options = replace(OPTIONS, sampling=Sampling(beams), max_codes=60)
    requests = {i: system.request(i, replace(options, max_codes=60 if i in (1, 5) else 12)) for i in range(8)}
    expected = system.all(requests.values(), fixed=True)
    gone, usage = set(), Usage()

    def source():
        for i, request in requests.items():
            yield replace(request, cancelled=lambda i=i: i in gone)

    def tick(drawn, finished):
        if drawn:  # a row has ended: 1 has a place by now, and 5 has it or waits
            gone.update((1, 5))

    found = system.all(source(), fixed=True, usage=usage, tick=tick)
    assert all(isinstance(found.pop(i).error, Cancelled) for i in gone)
    for tag, result in found.items():
        np.testing.assert_array_equal(result.codes, expected[tag].codes)
        np.testing.assert_array_equal(result.samples, expected[tag].samples)
    assert len(found) == 6
    assert usage.used_row_steps < 12 * 8 + 30  # not 60 of each


def test_a_cancelled_stream_gives_no_more_chunks(model, voice):
    """Cancelled after its first chunk, while it is drawn; the one beside it is whole."""
    system, options, gone = System(model, voice, -20), replace(OPTIONS, max_codes=100), []
    first, other = (system.request(i, options, streaming=Streaming(40, 40)) for i in range(2))
    first = replace(first, cancelled=lambda: bool(gone))
    chunks, results, counted = {0: 0, 1: 0}, {}, []
    for found in system.run([first, other], tick=lambda *counts: counted.append(counts)):
        if isinstance(found, Chunk):
            chunks[found.request.tag] += 1
            gone.append(1)
        else:
            assert found.request.tag not in results
            results[found.request.tag] = found.error
    assert isinstance(results[0], Cancelled)
    assert results[1] is None
    assert chunks[0] <= 1 < chunks[1]
    assert counted[-1] == (2, 2)


@pytest.mark.parametrize("patience", [None, 2])
def test_a_stream_of_one_kind_leaves_the_others_their_turn(system, patience):
    """With patience the one of two beams comes after as many batches; without, at the very end."""
    other = replace(OPTIONS, sampling=Sampling(beams=2))

    def source():
        for i in range(40):
            yield system.request(i, other if i == 3 else OPTIONS)

    order = [result.request.tag for result in system.run(source(), 4, patience=patience)]
    assert sorted(order) == list(range(40))
    place = order.index(3)
    assert place == 39 if patience is None else place < 20


# ---- out of memory --------------------------------------------------------------------------------------------------

OUT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."


def failing(monkeypatch, module, name, calls, message=OUT):
    """Have a stage fail at these of its calls, the first being 0."""
    function, count = getattr(module, name), itertools.count()

    def fails(*inputs, **named):
        if next(count) in calls:
            raise jax.errors.JaxRuntimeError(message)
        return function(*inputs, **named)

    monkeypatch.setattr(module, name, fails)


@pytest.mark.parametrize(
    ("module", "name", "calls", "last"),
    [
        (decoding, "advance", [1], 2), (decoding, "winners", [1], 2), (gpt, "prefill", [2, 5], 1),
        (decoding, "admit", [6], 2), (s2mel, "solve", [0], 2), (s2mel, "solve", [1, 2], 1),
    ],
)  # fmt: skip
def test_out_of_memory_halves_the_batch(system, monkeypatch, caplog, module, name, calls, last):
    """Wherever it happens: every result comes once, with the same codes."""
    monkeypatch.setattr(scheduling, "_on_cpu", lambda params: False)
    requests = [system.request(i, text=i % 3) for i in range(9)]
    expected = system.all(requests)
    failing(monkeypatch, module, name, calls)
    usage = Usage()
    same(system.all(requests, usage=usage), expected)
    said = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(said) == len(calls)
    assert f"--batch {last}" in said[-1]
    assert usage.used_frames >= sum(60 + len(result.samples) // 256 for result in expected.values())


def test_what_no_smaller_batch_mends_passes_through(system, monkeypatch):
    requests = [system.request(i) for i in range(3)]
    failing(monkeypatch, decoding, "advance", range(100))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        system.all(requests, batch=1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        system.all(requests, batch=4)
    monkeypatch.undo()
    failing(monkeypatch, decoding, "advance", [0], "INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        system.all(requests)


# ---- what was used --------------------------------------------------------------------------------------------------


def test_usage_counts_codes_and_frames(system):
    """The first code of a row is drawn by its admission; a step gives each of the others, and the stop code."""
    usage = Usage()
    found = system.all([system.request(i) for i in range(9)], usage=usage)
    steps = sum(len(result.codes) + result.stopped - 1 for result in found.values())
    assert usage.used_row_steps == steps
    assert usage.row_steps > steps
    assert usage.row_steps % (4 * decoding.CHUNK) == 0
    assert usage.used_frames == sum(60 + len(result.samples) // 256 for result in found.values() if not result.error)
    assert usage.used_frames < usage.frames
    assert usage.frames % 192 == 0
    assert usage.drawing > 0
    assert usage.rendering > 0
