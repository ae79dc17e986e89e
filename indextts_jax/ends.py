"""Ends: what is done to the last samples of a segment (numpy, on the host).

Dimensions: N samples, mono, between -1 and 1.
"""

import numpy as np


def fade(samples: np.ndarray, rate: int, ms: int) -> np.ndarray:
    """Samples [N] float32 at `rate` Hz whose last `ms` milliseconds fall to zero along a raised cosine: -> [N].

    The last sample is zero, so that no step is left, which would be a click; all before the fade keep their bits. What
    is shorter fades from its first sample on. With 0 ms, `samples` themselves. Raises nothing.
    """
    length = min(rate * ms // 1000, len(samples))
    if not length:
        return samples
    weights = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, length + 1) / length)
    faded = samples.copy()
    faded[-length:] *= weights.astype(samples.dtype)
    return faded


_BLOCK = 200  # a second: 5 ms each
_SILENT = 1e-3, 10 ** (-50 / 20)  # peak of a block: at most so much, and so much of the loudest
_KEPT = 10  # blocks of silence that stay after the last sound: 50 ms
_HISS_HZ = 2000.0  # mean frequency: voices lie near 500 to 1500 Hz, /s/ and hiss above 3000
_HISS_DB = 20.0  # below the loudest blocks (95 of 100): final /s/ is louder in most voices
_HISS_BLOCKS = 7, 60  # 35 to 300 ms
_DIP_DB, _DIP_BLOCKS = 9.0, 5  # the gap before a hiss: how far below it, and for how long (25 ms)


def tail(samples: np.ndarray, rate: int) -> int:
    """How many of samples [N] float32 at `rate` Hz to keep so that they end soon after the last sound of speech: <= N.

    What is left out: silence but for 50 ms of it, and hiss. A model that draws its stop code late adds five to nine
    codes, of 35 to 170 ms of high noise, after a short gap and up to the very end (github.com/index-tts/index-tts, pull
    requests 806 and 809: some 5 of 100 files). So hiss is what lasts 35 to 300 ms up to the last sample, has a mean
    frequency above 2 kHz, lies 20 dB or more below the loudest speech, and 9 dB or more above a gap of at least 25 ms
    before it. In doubt all is kept: a final /s/ has no gap before it, or, as in "cats", silence after it, or is louder;
    a voice that fades away is low. docs/ends.md has what was measured. Raises nothing.
    """
    size = max(1, rate // _BLOCK)
    count = len(samples) // size
    blocks = samples[len(samples) - count * size :].astype(np.float64).reshape(count, size)  # the last ends at the end
    peaks = np.abs(blocks).max(axis=1, initial=0)
    silent = peaks < min(_SILENT[0], _SILENT[1] * peaks.max(initial=0))
    if silent.all() or count < 4 * _HISS_BLOCKS[0]:
        return len(samples)
    end = count if silent[-1] else _hiss(blocks, rate)
    last = end - 1 - int(np.argmin(silent[:end][::-1]))  # block with a sound
    return len(samples) - (count - min(end, last + 1 + _KEPT)) * size


def _hiss(blocks: np.ndarray, rate: int) -> int:
    """The block of [count, size] at which hiss begins that goes on to the end; `count` where there is none."""
    count = len(blocks)
    power = (blocks**2).mean(axis=1) + 1e-12
    level = 10 * np.log10(power)
    # Of a tone of w radians a sample, the differences between neighbours have 2 - 2·cos(w) times its power.
    steep = (np.diff(blocks, axis=1) ** 2).mean(axis=1) / power
    frequency = np.arccos(np.clip(1 - steep / 2, -1, 1)) * rate / (2 * np.pi)
    floor = np.median(level[-_HISS_BLOCKS[0] :]) - _DIP_DB
    hiss = (frequency > _HISS_HZ) & (level > floor) & (level < np.percentile(level, 95) - _HISS_DB)
    start = count - int(np.argmin(hiss[::-1]))
    before = level[max(0, start - 1 - _DIP_BLOCKS) : max(0, start - 1)]  # the block beside it holds a part of it
    if not _HISS_BLOCKS[0] <= count - start <= _HISS_BLOCKS[1] or len(before) < _DIP_BLOCKS or (before > floor).any():
        return count
    return start - 1
