"""A recogniser for the embedded voice's tests: pocketsphinx, with a bigram of the grammar that it was trained on.

It is lenient, since it expects sentences of the grammar: what a large recogniser hears with 20 % of words wrong, it
hears with some 8 %. So a test that uses it also gives it the wrong text.
"""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pocketsphinx

from indextts_jax.train.recipes.tiny_voice import grammar

RATE = 16_000  # Hz
_SENTENCES, _DISCOUNT = 20_000, 0.5
_START, _END = "<s>", "</s>"


def bigram(sentences: list[list[str]]) -> str:
    """A bigram with absolute discounting, in the ARPA format."""
    marked = [[_START, *words, _END] for words in sentences]
    single = Counter(word for words in marked for word in words)
    pairs = Counter(pair for words in marked for pair in itertools.pairwise(words))
    before = Counter(word for words in marked for word in words[:-1])
    followers = Counter(first for first, _ in pairs)
    share = {word: count / (single.total() - len(marked)) for word, count in single.items()}
    seen = Counter[str]()
    for first, second in pairs:
        seen[first] += share[second]  # type: ignore[assignment]
    lines = ["\\data\\", f"ngram 1={len(single)}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for word in sorted(single):
        kept = _DISCOUNT * followers[word] / before[word] if before[word] else 1.0
        own = -99.0 if word == _START else math.log10(share[word])
        lines.append(f"{own:.4f} {word} {math.log10(kept / max(1e-9, 1 - seen[word])):.4f}")
    lines += ["", "\\2-grams:"]
    for (first, second), count in sorted(pairs.items()):
        lines.append(f"{math.log10((count - _DISCOUNT) / before[first]):.4f} {first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])


class Recogniser:
    """Hears sentences of the grammar."""

    def __init__(self, folder: Path):
        """folder: an existing one, for the bigram."""
        drawn = itertools.islice(grammar.sentences(1), _SENTENCES)
        path = folder / "bigram.arpa"
        path.write_text(bigram([grammar.words(sentence) for sentence in drawn]))
        self._decoder = pocketsphinx.Decoder(samprate=RATE, lm=str(path), loglevel="FATAL")
        missing = [word for word in grammar.vocabulary() if self._decoder.lookup_word(word) is None]
        assert not missing, f"pocketsphinx cannot pronounce {missing}"

    def __call__(self, samples: np.ndarray) -> list[str]:
        """The words in samples at 16 kHz, float32 within ±1."""
        self._decoder.start_utt()
        self._decoder.process_raw(np.round(samples * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return grammar.words(heard.hypstr) if heard else []
