"""Groups of segments: what stands together, that nothing is fetched on the way, and errors of one segment alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax import seeds
from indextts_jax.drawing import Usage
from indextts_jax.groups import Groups, Spoken, spoken
from indextts_jax.models import bigvgan, s2mel
from indextts_jax.request import NOTHING, Given, Options, Request
from indextts_jax.timing import Stopwatch
from indextts_jax.voice import Voice
from tests.small import normal

KEYS = (jax.random.key(0), jax.random.key(1))
OPTIONS = Options(steps=1)


# ---- what stands together -------------------------------------------------------------------------------------------


class Seen(Groups):
    """Groups that only note what would be rendered: the frames of each row, and the rows with the padding."""

    def __init__(self, size, fixed=False):
        super().__init__({}, None, size, fixed)  # type: ignore[arg-type]
        self.seen: list[tuple[list[int], int]] = []

    def _start(self, rows, size):
        assert len(rows) <= size
        self.seen.append(([row.packed for row in rows], size))


def of(frames, options=OPTIONS, pieces=5, codes=5, given=NOTHING):
    nothing = np.zeros(0, np.float32)
    voice = Voice(*(nothing,) * len(Voice._fields))._replace(mel=np.zeros((frames - 10, 80), np.float32))
    return Spoken(Request([3] * pieces, voice, KEYS, options), given, np.zeros(codes, np.int32), target=10)


def test_groups_are_of_like_lengths_without_padding():
    """Long rows take the place of several."""
    groups = Seen(8)
    for frames in [200, 900, 210, 220, 2500, 230, 240, 250, 2600, 260, 270]:
        groups.add(of(frames))
    assert groups.unfinished == 11
    assert groups.seen == []
    groups.start()
    assert groups.seen == [([2600, 2500], 2), ([900, 270, 260, 250, 240, 230, 220, 210], 8), ([200], 1)]
    assert groups.unfinished == 0


def test_a_rung_that_is_full_starts_at_once():
    for fixed in (False, True):
        groups = Seen(5, fixed)
        for frames in (100, 101, 102, 300, 103, 104, 105):
            groups.add(of(frames))
        # Without padding, a batch of a rung of `buckets.BATCH`.
        assert groups.seen == [([100, 101, 102, 103, 104][: 5 if fixed else 4], 5 if fixed else 4)]


def test_fixed_groups_hold_one_rung_and_are_padded():
    groups = Seen(8, fixed=True)
    for frames, pieces, codes in [(100, 5, 5), (2500, 5, 5), (110, 5, 5), (110, 20, 5), (110, 5, 40), (120, 5, 5)]:
        groups.add(of(frames, pieces=pieces, codes=codes))
    assert groups.seen == []
    groups.start()
    assert sorted(groups.seen) == [([100, 110, 120], 8), ([110], 8), ([110], 8), ([2500], 3)]


@pytest.mark.parametrize("fixed", [False, True])
def test_what_other_programs_render_never_shares_a_group(fixed):
    """Other steps, and with or without guidance; another guidance does share."""
    groups = Seen(8, fixed)
    for guidance, steps in [(0.7, 1), (0.0, 1), (0.7, 2), (0.6, 1), (0.0, 1)]:
        groups.add(of(200 + steps + round(10 * guidance), replace(OPTIONS, guidance=guidance, steps=steps)))
    groups.start()
    assert sorted(sorted(rows) for rows, _ in groups.seen) == [[201, 201], [207, 208], [209]]


def test_what_fails_to_start_still_waits():
    """Out of memory, nothing is lost and nothing is rendered twice."""

    class Failing(Seen):
        def _start(self, rows, size):
            if len(self.seen) == 1:
                raise MemoryError
            super()._start(rows, size)

    frames = [100, 900, 901, 2500, 2501]
    for fixed in (False, True):
        groups = Failing(8, fixed)
        for n in frames:
            groups.add(of(n))
        with pytest.raises(MemoryError):
            groups.start()
        [(started, _)] = groups.seen
        assert sorted(started + [row.packed for row in groups.taken()]) == frames
        groups = Failing(1, fixed)
        groups.add(of(100))
        with pytest.raises(MemoryError):
            groups.add(of(101))
        assert [row.packed for row in groups.taken()] == [101]


# ---- what comes of them ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row(model, voice):
    """Makes segments with codes of their own, in a short voice."""
    short = voice._replace(mel=voice.mel[:60], content=voice.content[:60])
    ids = model.text.analyse("One small test.").ids

    def make(i, n=20, voice=short, options=OPTIONS, **given):
        codes = np.random.default_rng(i).integers(0, 128, n)
        keys = (seeds.key(i), seeds.key(100 + i))
        return spoken(model.cfg, Request(ids, voice, keys, options, Given(codes=codes, **given), f"segment {i}"))

    make.voice = short
    return make


def finished(groups):
    groups.start()
    results = []
    while groups.unfinished:
        results += groups.finished(wait=True)
    assert groups.finished(wait=True) == []
    return {result.request.name: result for result in results}


def alone(model, row):
    groups = Groups(model.params, model.cfg, 1)
    groups.add(row)
    [result] = finished(groups).values()
    return result


@pytest.mark.whole
def test_padding_and_neighbours_change_nothing(model, row):
    rows = [row(i, n) for i, n in enumerate((20, 31, 12))]
    usage = Usage()
    groups = Groups(model.params, model.cfg, 4, fixed=True, mels=True, usage=usage)
    for one in rows:
        groups.add(one)
    found = finished(groups)
    assert (usage.frames, usage.used_frames) == (4 * 192, sum(one.packed for one in rows))
    for i, one in enumerate(rows):
        result, expected = found[f"segment {i}"], alone(model, one)
        assert len(result.samples) == one.target * model.cfg.bigvgan.hop
        assert result.mel.shape == (one.target, 80)
        assert expected.mel is None
        assert relative(result.samples, expected.samples) <= TOLERANCE["component"]


@pytest.mark.whole
def test_numbers_that_are_not_finite_are_the_error_of_their_segment(model, row, monkeypatch):
    spoilt = row.voice._replace(style=np.full_like(row.voice.style, np.nan))
    groups = Groups(model.params, model.cfg, 4, fixed=True)
    for one in (row(0), row(1, voice=spoilt), row(2)):
        groups.add(one)
    found = finished(groups)
    assert "stage mel of segment 1 gave NaN" in str(found["segment 1"].error)
    assert found["segment 1"].samples is None
    for i in (0, 2):
        assert found[f"segment {i}"].error is None
        assert relative(found[f"segment {i}"].samples, alone(model, row(i)).samples) <= TOLERANCE["component"]
    vocode = bigvgan.vocode

    def broken(*inputs):
        return vocode(*inputs).at[1, 5].set(np.inf)

    monkeypatch.setattr(bigvgan, "vocode", broken)
    groups = Groups(model.params, model.cfg, 4, fixed=True)
    for i in range(3):
        groups.add(row(i))
    errors = {name: result.error for name, result in finished(groups).items()}
    assert errors["segment 0"] is errors["segment 2"] is None
    assert "stage vocode of segment 1 gave NaN or infinite" in str(errors["segment 1"])


@pytest.mark.whole
def test_another_guidance_compiles_nothing(model, row):
    def render(guidance):
        groups = Groups(model.params, model.cfg, 2)
        for i in range(2):
            groups.add(row(i, options=replace(OPTIONS, guidance=guidance)))
        return finished(groups)["segment 1"].samples

    first = render(0.7)
    with Stopwatch() as watch:
        second = render(0.6)
    assert watch.programs == 0
    assert relative(second, first) > 1e-4


@pytest.mark.whole
def test_given_noise_and_mel_are_rendered_alone(model, row, monkeypatch):
    flows, vocoded, solve, vocode = [], [], s2mel.solve, bigvgan.vocode
    monkeypatch.setattr(s2mel, "solve", lambda *inputs: flows.append(len(inputs[2])) or solve(*inputs))
    monkeypatch.setattr(bigvgan, "vocode", lambda *inputs: vocoded.append(len(inputs[2])) or vocode(*inputs))
    groups = Groups(model.params, model.cfg, 4, fixed=True, mels=True)
    groups.add(row(0))
    groups.add(row(1, noise=normal(1, row(1).packed, 80)))
    assert (flows, vocoded) == ([1], [1])
    groups.add(row(2, mel=normal(2, 34, 80)))
    assert (flows, vocoded) == ([1], [1, 1])
    found = finished(groups)
    assert (flows, vocoded) == ([1, 4], [1, 1, 4])
    assert len(found) == 3
    np.testing.assert_array_equal(found["segment 2"].mel, normal(2, 34, 80))
    assert relative(found["segment 1"].samples, alone(model, row(1)).samples) > 0.01


@pytest.mark.whole
def test_nothing_is_fetched_before_the_samples(model, row):
    """While a group starts, whatever depends on the weights has no value yet: to fetch it would be an error."""

    rows = [row(i) for i in range(2)]

    def samples(params):
        groups = Groups(params, model.cfg, 2)
        for one in rows:
            groups.add(one)
        return groups._started[0].samples

    assert jax.eval_shape(samples, model.params).shape[0] == 2
