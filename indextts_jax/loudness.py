"""Loudness as ITU-R BS.1770 and EBU R 128 measure it: speech made as loud as is asked for, without clipping."""

import importlib.util
import logging

import numpy as np
import soxr

from indextts_jax.errors import Error

log = logging.getLogger(__name__)

QUIETEST, LOUDEST = -60.0, -5.0  # LUFS that may be asked for
MOST_PEAK = -1.0  # dB of a true peak beside full scale, as EBU R 128 allows
BLOCK = 0.4  # seconds that are measured at once
_PART = 1 << 16  # samples


def require(name: str) -> None:
    """Raises Error where the library is missing that measures; name: of what asks for it."""
    if importlib.util.find_spec("pyloudnorm") is None:
        raise Error(f"{name} needs pyloudnorm: pip install 'indextts-jax[loudness]'")


def measure(samples: np.ndarray, rate: int) -> float:
    """Loudness of samples [N] at `rate` Hz, LUFS, -inf for silence; gated, so pauses do not count.

    Less than 0.4 s are repeated until they are as long.
    """
    import pyloudnorm

    if not len(samples):
        return -np.inf
    block = int(np.ceil(BLOCK * rate))
    samples = np.tile(samples, -(-block // len(samples)))[:block] if len(samples) < block else samples
    return float(pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64)))


def true_peak(samples: np.ndarray, rate: int) -> float:
    """The largest amplitude of samples [N] float32 at `rate` Hz and between them, at four times the rate."""
    stream, peak = soxr.ResampleStream(rate, 4 * rate, 1, dtype="float32", quality="HQ"), 0.0
    for start in range(0, max(1, len(samples)), _PART):
        part = stream.resample_chunk(samples[start : start + _PART], last=start + _PART >= len(samples))
        peak = max(peak, float(np.abs(part).max(initial=0)))
    return max(peak, float(np.abs(samples).max(initial=0)))


def normalize(samples: np.ndarray, rate: int, lufs: float, name: str = "the audio") -> np.ndarray:
    """Samples [N] float32 at `rate` Hz, multiplied by one number so that their loudness is `lufs`: -> [N] float32.

    Where a peak would then be above -1 dB (true peak), the number is smaller, and a warning says how loud it is: peaks
    are never bent. Silence stays. Raises Error for a loudness that is not between -60 and -5, and where pyloudnorm is
    missing.
    """
    if not QUIETEST <= lufs <= LOUDEST:
        raise Error(f"a loudness of {lufs} LUFS; give one between {QUIETEST:g} and {LOUDEST:g}")
    require("normalization")
    loudness = measure(samples, rate)
    if not np.isfinite(loudness):
        log.warning("%s is silent, and stays so", name)
        return samples
    most = MOST_PEAK - 20 * np.log10(true_peak(samples, rate))
    gain = lufs - loudness
    if gain > most:
        log.warning("%s: %.1f LUFS, not %g: louder, its peaks would clip", name, loudness + most, lufs)
        gain = most
    return samples * np.float32(10 ** (gain / 20))
