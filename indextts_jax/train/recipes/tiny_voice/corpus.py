"""python -m indextts_jax.train.recipes.tiny_voice.corpus OUT --hours 4: synthetic speech of the grammar's sentences.

    OUT/
      wavs/NAME.wav     24 kHz; NAME is a digest of what is spoken, and how
      manifest.jsonl    what to train with, for `indextts-jax prepare`
      held_out.jsonl    sentences of the grammar that are not trained on, of the first speaker

The teacher is the package hibari-tts (Apache-2.0). Every recording is a function of its text, its speaker and the seed,
so the same command again makes what is missing, and several processes make the same files.
"""

import argparse
import hashlib
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from indextts_jax import audio, files
from indextts_jax.errors import Error, NotFound
from indextts_jax.train.recipes.tiny_voice import command, grammar

# Speakers by how high they speak: the teacher's own voice, and the same resampled, at the same rate of speech.
SPEAKERS = {"heart": 1.0, "low": 0.8, "high": 1.2, "lower": 0.7, "higher": 1.35}
HELD_OUT = 60  # sentences
FREE_PART = 3  # one of so many sentences is free text, where there is such
RATE = 24_000  # Hz, the teacher's
_SILENCE, _BEFORE, _AFTER = 0.01, 0.06, 0.12  # amplitude; seconds that stay before and after speech
_BLOCK = 64  # sentences that are spoken before their length is looked at
_FREE = re.compile(r"[A-Z][A-Za-z,' ]+[.?!]")
_FREE_WORDS = range(4, 15)


class Spoken(NamedTuple):
    """A sentence, and how it is spoken."""

    text: str
    speaker: str
    seed: int

    @property
    def name(self) -> str:
        return hashlib.sha256("\n".join(map(str, self)).encode()).hexdigest()[:16]


def free_sentences(text: str) -> list[str]:
    """The plain sentences in a text, each once and in order: letters, commas and apostrophes, 4 to 14 words.

    Paragraphs end with an empty line or one with a percent sign, as in the files of `fortune`.
    """
    found = []
    for paragraph in re.split(r"\n%?[ \t]*\n", text):
        for sentence in re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split())):
            words = sentence.split()
            plain = _FREE.fullmatch(sentence) and len(words) in _FREE_WORDS
            if plain and not any(word.isupper() and len(word) > 1 for word in words):
                found.append(sentence)
    return list(dict.fromkeys(found))


def plan(seed: int, free: Sequence[str], speakers: int) -> Iterator[Spoken]:
    """What is spoken, in order and without end; free sentences are spoken once each, in an order of the seed."""
    allowed = [sentence for sentence in free if not grammar.is_held_out(sentence)]
    own, other = grammar.sentences(seed), iter(random.Random(seed).sample(allowed, len(allowed)))
    names = list(SPEAKERS)[:speakers]
    for number in itertools.count():
        text = next(other, None) if number % FREE_PART == FREE_PART - 1 else None
        yield Spoken(text or next(own), names[number % speakers], seed)


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples without the silence at both ends, but for a moment."""
    loud = np.flatnonzero(np.abs(samples) > _SILENCE)
    if not len(loud):
        return samples
    first, last = loud[0] - round(_BEFORE * rate), loud[-1] + round(_AFTER * rate)
    return samples[max(0, first) : last + 1]


@cache
def _teacher() -> Any:
    try:
        from hibari import Hibari
    except ImportError:
        raise Error("the teacher is missing: pip install 'indextts-jax[recipe]'") from None
    return Hibari()


def speak(asked: Spoken) -> np.ndarray:
    """The samples [N] float32 of a sentence at RATE, without silence at its ends."""
    height = SPEAKERS[asked.speaker]
    # Resampling makes speech higher and faster: it is spoken slower first.
    samples = _teacher()(asked.text, speed=1 / height, seed=asked.seed)
    return trimmed(audio.resample(np.asarray(samples, np.float32), round(RATE * height), RATE), RATE)


def _made(folder: Path, asked: Spoken) -> float:
    """The seconds of a recording, which is made where it is not there."""
    path = folder / f"{asked.name}.wav"
    try:
        return soundfile.info(path).duration
    except (OSError, soundfile.LibsndfileError):
        samples = speak(asked)
        audio.write_wav(path, audio.to_int16(samples), RATE)
        return len(samples) / RATE


def make(out: Path, hours: float, seed: int, free: Sequence[str], speakers: int, processes: int) -> tuple[int, float]:
    """Make the corpus in `out`: -> sentences to train with, and their seconds."""
    wavs = out / "wavs"
    for folder in (out, wavs):
        files.make_folder(folder)
    first = next(iter(SPEAKERS))
    held = [Spoken(text, first, seed) for text in itertools.islice(grammar.sentences(seed, True), HELD_OUT)]
    rows: list[Spoken] = []
    seconds = 0.0
    # A fresh interpreter each: onnxruntime does not survive a fork.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_made, itertools.repeat(wavs), held, chunksize=8))
        asked = plan(seed, free, speakers)
        while seconds < hours * 3600:
            block = list(itertools.islice(asked, _BLOCK))
            for one, length in zip(block, pool.map(_made, itertools.repeat(wavs), block, chunksize=8), strict=True):
                if seconds < hours * 3600:
                    rows.append(one)
                    seconds += length
    for name, spoken in (("manifest.jsonl", rows), ("held_out.jsonl", held)):
        lines = [
            {"id": n, "audio": f"wavs/{n}.wav", "text": one.text, "speaker": one.speaker, "language": "en"}
            for one, n in ((one, one.name) for one in spoken)
        ]
        files.write_whole(out / name, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return len(rows), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder; made if it is not there")
    parser.add_argument("--hours", type=float, required=True, help="of speech to train with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--free", type=Path, nargs="*", default=[], metavar="FILE", help="texts: a third of the corpus")
    parser.add_argument("--speakers", type=int, default=1, choices=range(1, len(SPEAKERS) + 1), metavar="N")
    parser.add_argument("--processes", type=int, default=1)
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    for path in options.free:
        if not path.is_file():
            raise NotFound(f"--free {path}: no such file; check the path")
    texts = [path.read_text("utf-8", errors="ignore") for path in options.free]
    free = list(dict.fromkeys(sentence for text in texts for sentence in free_sentences(text)))
    count, seconds = make(options.out, options.hours, options.seed, free, options.speakers, options.processes)
    print(f"{options.out}: {count} sentences, {seconds / 3600:.2f} hours")


if __name__ == "__main__":
    sys.exit(main())
