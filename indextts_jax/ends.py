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


def tail(samples: np.ndarray, rate: int) -> int:
    """How many of samples [N] at `rate` Hz to keep."""
    return len(samples)
