"""How alike two recordings are: python -m debug.compare_audio OURS REFERENCE [--json].

Equal lengths, and samples within the golden tests' tolerance, decide; the other gates are reported. Two of them are
often asked for, correlation > 0.95 and log-mel mean squared error < 0.01, but wrong speech passes them: between two
sentences of the golden files they are 0.9990 and 0.0059, and samples differ by 1143. The golden tests' tolerance of a
log-mel is meant for what the flow puts out: made anew from samples, it is exceeded where one in fifty is 1 off.

Exit status 0: what decides holds; 1: it does not; 2: the two cannot be compared.
"""

import argparse
import json
import operator
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from debug.golden import TOLERANCE
from indextts_jax import audio
from indextts_jax.audio import AudioError
from indextts_jax.features import OFFICIAL_MEL, MelConfig, mel

SILENT = "undefined: one of them is silent here"
HOLDS = {"==": operator.eq, "<=": operator.le, "<": operator.lt, ">": operator.gt}


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    value: float | None  # None: undefined or not computed, and then `note` says why
    relation: str = ""  # to the bound, a key of HOLDS; empty: there is no gate
    bound: float = 0.0
    decides: bool = False
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the gate holds, which it does not where the value is undefined; None without a gate."""
        if not self.relation:
            return None
        return self.value is not None and bool(HOLDS[self.relation](self.value, self.bound))


def compare(ours: np.ndarray, reference: np.ndarray, rate: int) -> list[Figure]:
    """Every figure of two recordings, samples [N] and [N'] at `rate` Hz; those after the first are of the common part.

    The mel's window, hop and bands are the model's, up to half of the recordings' own rate: nothing is resampled.
    Raises AudioError where that is too short for one spectrum.
    """
    cfg = replace(OFFICIAL_MEL, rate=rate)
    N = min(len(ours), len(reference))
    if cfg.n_fft > N:
        raise AudioError(f"{N} samples in common, but a spectrum takes {cfg.n_fft}; give longer recordings")
    both = np.stack([ours[:N], reference[:N]])
    x, y = both.astype(np.float64)
    mels, _ = mel(jnp.asarray(both, jnp.float32), jnp.array([N, N]), cfg)
    a, b = np.asarray(mels, np.float64)
    largest = 32768 * np.abs(x - y).max()
    centred = [x - x.mean(), y - y.mean()]
    silent = min(np.abs(c).max() for c in centred) < audio.SILENCE
    note = SILENT if silent else ""
    spectra = [spectrum(x, cfg), spectrum(y, cfg)]
    return [
        Figure("samples more or fewer", abs(len(ours) - len(reference)), "==", 0, True),
        Figure("largest difference of samples, of 32768", largest, "<=", TOLERANCE["samples"], True),
        Figure("largest difference of log-mels", np.abs(a - b).max(), "<=", TOLERANCE["mel"]),
        Figure("correlation of waveforms", None if silent else cosine(*centred), ">", 0.95, note=note),
        Figure("mean squared error of log-mels", np.square(a - b).mean(), "<", 0.01),
        Figure("cosine of magnitude spectra", None if silent else cosine(*spectra), note=note),
        Figure("STOI", None, note=SILENT) if silent else intelligibility(x, y, rate),
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine between two arrays, neither of them zero."""
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def spectrum(samples: np.ndarray, cfg: MelConfig) -> np.ndarray:
    """Magnitudes [F, K] with the window and hop of the mel, without its padding."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, cfg.n_fft)[:: cfg.hop]
    return np.abs(np.fft.rfft(frames * np.hanning(cfg.n_fft + 1)[:-1]))


def intelligibility(ours: np.ndarray, reference: np.ndarray, rate: int) -> Figure:
    """Short-time objective intelligibility, 1 for equal (doi:10.1109/TASL.2011.2114881), by pystoi where installed."""
    try:
        from pystoi import stoi
    except ModuleNotFoundError:
        return Figure("STOI", None, note="not computed: pip install -e '.[compare]'")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return Figure("STOI", float(stoi(reference, ours, rate)))
        except RuntimeWarning as warning:  # less than 0.4 s of sound, for which it gives 1e-5
            return Figure("STOI", None, note=f"undefined: {str(warning).partition('.')[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    options = parser.parse_args(arguments)
    try:
        (ours, rate), (reference, other) = audio.read(options.ours), audio.read(options.reference)
        if rate != other:
            raise AudioError(f"{options.ours} has {rate} Hz, {options.reference} {other} Hz; resample one first")
        figures = compare(ours, reference, rate)
    except (AudioError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    same = all(figure.holds for figure in figures if figure.decides)
    if options.json:
        rows = [figure._asdict() | {"holds": figure.holds} for figure in figures]
        lengths = [len(ours), len(reference)]
        print(json.dumps({"rate": rate, "samples": lengths, "figures": rows, "same": same}, indent=1, allow_nan=False))
        return 0 if same else 1
    print(f"{len(ours)} and {len(reference)} samples at {rate} Hz\n\n| figure | | gate | verdict |\n|---|---|---|---|")
    for figure in figures:
        gate = f"{figure.relation} {figure.bound:g}{', decides' * figure.decides}" if figure.relation else ""
        verdict = {True: "holds", False: "FAILS", None: ""}[figure.holds]
        print(f"| {figure.name} | {figure.note or f'{figure.value:.6g}'} | {gate} | {verdict} |")
    print(f"\n{'The same' if same else 'NOT the same'} within the tolerance of the golden tests.")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
