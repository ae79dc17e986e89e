"""Which utterances make up which batch, and their arrays: a function of the seed and the number of the batch alone.

So a run that was stopped goes on with the same batches, and every process of a job finds its own rows by itself. Grain
reads them ahead in threads.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from indextts_jax.train.corpus import Corpus

WINDOW = 50  # batches among which utterances of like length are put together
_ORDER, _PARTNER, _CROP = range(3)  # what is drawn


class Chosen(NamedTuple):
    """The utterances of a batch, and which rows of it a process loads: those of all decide how far it is padded."""

    numbers: tuple[int, ...]
    own: slice
    seed: int
    batch: int  # its number


class Batch(NamedTuple):
    """What one step is given."""

    rows: Any  # a NamedTuple of numpy arrays, as a recipe's `collate` makes it
    ids: tuple[str, ...]  # of the utterances
    seconds: float  # of speech, in the rows of all processes


class Order:
    """The utterances of each batch: shuffled anew in every epoch, rows of like length together."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        self._lengths, self._batch, self._seed = np.asarray(lengths), batch, seed
        self.per_epoch = max(1, len(lengths) // batch)
        self._epoch = lru_cache(maxsize=2)(self._made)

    def __getitem__(self, number: int) -> np.ndarray:
        """The numbers of the utterances of a batch."""
        epoch, place = divmod(number, self.per_epoch)
        return self._epoch(epoch)[place]

    def _made(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, _ORDER, epoch))
        order = rng.permutation(len(self._lengths))
        if len(order) < self._batch:  # a corpus of few utterances: each several times
            order = np.resize(order, self._batch)
        order = order[: self.per_epoch * self._batch]
        parts = [order[i : i + WINDOW * self._batch] for i in range(0, len(order), WINDOW * self._batch)]
        order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        return rng.permutation(order.reshape(-1, self._batch))


def partners(corpus: Corpus, chosen: Chosen) -> list[int]:
    """For each utterance of a batch another one of its speaker, itself where there is no other."""
    rng = np.random.default_rng((chosen.seed, _PARTNER, chosen.batch))
    found = []
    for number in chosen.numbers:
        own = corpus.by_speaker[corpus.lines[number].speaker]
        others = own[own != number]
        found.append(int(rng.choice(others)) if len(others) else number)
    return found


def crops(lengths: Sequence[int], size: int, chosen: Chosen) -> list[int]:
    """Where a part of `size` begins in each row of a batch, at random."""
    rng = np.random.default_rng((chosen.seed, _CROP, chosen.batch))
    return [int(rng.integers(0, max(0, length - size) + 1)) for length in lengths]


def stream(
    corpus: Corpus,
    collate: Callable[[Corpus, Chosen], Any],
    batch: int,
    seed: int,
    first: int,
    last: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """The batches from number `first` up to `last`, each the rows of one of several processes.

    collate: makes the arrays of the process's own rows, as a NamedTuple.
    """
    import grain.python as grain

    order = Order([line.samples for line in corpus.lines], batch, seed)

    def load(number: int) -> Batch:
        chosen = Chosen(tuple(order[number].tolist()), slice(process, None, processes), seed, number)
        lines = [corpus.lines[i] for i in chosen.numbers]
        rows = collate(corpus, chosen)
        return Batch(rows, tuple(line.id for line in lines), sum(line.seconds for line in lines))

    numbers = grain.MapDataset.range(first, last).map(load)
    return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def padded(rows: Sequence[Any], longest: int, dtype: Any = None) -> tuple[Any, Any]:
    """Arrays of different lengths as a batch, padded with zeros: [B, longest, ...], lengths [B] int32."""
    arrays = [np.asarray(row)[:longest] for row in rows]
    made = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), dtype or arrays[0].dtype)
    for row, array in zip(made, arrays, strict=True):
        row[: len(array)] = array
    return made, np.array([len(array) for array in arrays], np.int32)
