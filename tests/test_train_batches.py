"""Batches: functions of the seed and their number."""

import itertools

import numpy as np
import pytest

from indextts_jax.train import batches, stages
from indextts_jax.train.batches import Chosen, Order
from indextts_jax.train.corpus import Corpus
from tests.training import LENGTHS, save_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "corpus"
    save_corpus(folder)
    return Corpus(folder)


def test_an_epoch_has_every_utterance_once_and_another_order_than_the_next():
    order = Order(range(100, 400, 3), 10, seed=1)
    epochs = [[tuple(order[e * order.per_epoch + i]) for i in range(order.per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(100))
    assert epochs[0] != epochs[1]
    assert epochs[0] == [tuple(Order(range(100, 400, 3), 10, seed=1)[i]) for i in range(10)]
    assert epochs[0] != [tuple(Order(range(100, 400, 3), 10, seed=2)[i]) for i in range(10)]


def test_rows_of_a_batch_are_of_like_length():
    lengths = np.random.default_rng(0).integers(0, 1000, 5000)
    order = Order(lengths, 10, seed=0)
    spans = [np.ptp(lengths[order[i]]) for i in range(order.per_epoch)]
    assert np.mean(spans) < 40  # of rows at random: 800


def test_few_utterances_come_several_times():
    assert sorted(Order([5, 6, 7], 8, seed=0)[3]) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_partner_is_another_utterance_of_the_speaker(corpus):
    chosen = Chosen(tuple(range(len(LENGTHS))), slice(None), 0, 5)
    found = batches.partners(corpus, chosen)
    assert all(a != b and corpus.lines[a].speaker == corpus.lines[b].speaker for a, b in enumerate(found))
    assert found == batches.partners(corpus, chosen)
    assert found != batches.partners(corpus, chosen._replace(batch=6))


def test_a_run_that_begins_later_has_the_same_batches(corpus):
    def made(first, last):
        return list(batches.stream(corpus, stages.gpt_rows, 4, 0, first, last))

    whole, rest = made(0, 6), made(4, 6)
    for a, b in zip(whole[4:], rest, strict=True):
        assert a.ids == b.ids
        assert a.seconds == b.seconds > 0
        assert all(np.array_equal(x, y) for x, y in zip(a.rows, b.rows, strict=True))


@pytest.mark.parametrize("stage", ["gpt", "vocoder"])
def test_processes_share_the_rows_of_a_batch(corpus, stage):
    collate = stages.RECIPES[stage].collate
    whole, *parts = (
        next(batches.stream(corpus, collate, 4, 0, 0, 1, process, processes))
        for process, processes in ((0, 1), (0, 2), (1, 2))
    )
    for field, a, b in zip(whole.rows, *(part.rows for part in parts), strict=True):
        assert np.array_equal(field[0::2], a)
        assert np.array_equal(field[1::2], b)


def test_a_crop_of_the_vocoder_is_a_part_of_its_recording(corpus):
    numbers = tuple(range(4))
    rows = stages.vocoder_rows(corpus, Chosen(numbers, slice(None), 0, 0))
    for i in numbers:
        mel, samples = corpus[i].mel, corpus[i].samples / np.float32(32767)
        frames = int(rows.lengths[i])
        assert frames == min(stages.CROP, len(mel))
        hop = len(samples) // len(mel)
        starts = [s for s in range(len(mel) - frames + 1) if np.array_equal(mel[s : s + frames], rows.mel[i, :frames])]
        assert len(starts) == 1
        assert np.array_equal(samples[starts[0] * hop : (starts[0] + frames) * hop], rows.samples[i, : frames * hop])


def test_a_rung_of_codes_decides_every_length(corpus):
    """So that a corpus needs no more programs than there are rungs."""
    shapes = {}
    for number in range(20):
        rows = next(batches.stream(corpus, stages.flow_rows, 2, 0, number, number + 1)).rows
        own = [a.shape for a in (*rows.given, *rows[1:])]
        assert shapes.setdefault(rows.given.codes.shape[1], own) == own
