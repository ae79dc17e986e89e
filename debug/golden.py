"""Golden tensors and the one table of tolerances, shared by the tests and the validator."""

import json
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"

# Relative means ‖a − b‖ / ‖b‖ over the whole tensor; absolute means the largest |a − b|.
TOLERANCE = {
    "block": 1e-5,  # relative: one block of a network, fed the reference's input
    "component": 1e-4,  # relative: a whole network
    "recording": 1e-6,  # absolute: samples after resampling
    "front end": 1e-4,  # absolute: filterbank features and log-mel
    # The reference computes CAMPPlus's features and the log-mel in float32, and so is itself up to 5e-4 off where a
    # band is 1e7 times weaker than the loudest (0.2 % of all values by more than 1e-4); ours keeps 1e-4 of float64.
    "front end rounding": 1e-3,  # absolute
    "style of a recording": 5e-4,  # relative: CAMPPlus on our own features instead of the reference's rounded ones
    "mel": 1e-3,  # absolute: after all Euler steps
    "waveform": 1e-4,  # relative: the vocoder on the golden mel
    "samples": 4,  # of 32768: end to end
    "scores": 1e-3,  # absolute: processed logits
    "gradient": 1e-2,  # relative: against finite differences
}
ABSOLUTE = {"recording", "front end", "front end rounding", "mel", "samples", "scores"}


@lru_cache(maxsize=4)
def golden(name: str) -> dict[str, np.ndarray]:
    """The golden tensors of one utterance by name, e.g. golden("en_greedy")["ref_mel"].

    Read from tests/fixtures/golden (a small choice of arrays), or from the folder in INDEXTTS_GOLDEN.
    """
    return read(Path(os.environ.get("INDEXTTS_GOLDEN", FIXTURES / "golden")) / f"{name}.npz")


def read(path: Path) -> dict[str, Any]:
    """What the reference computed: an .npz file, a folder of .npy files, or the .json of text or emotion cases.

    -> arrays by key; of a .json file, its contents under the file's name. Raises FileNotFoundError and ValueError.
    """
    try:
        if path.is_dir():
            found = {file.stem: np.load(file) for file in sorted(path.glob("*.npy"))}
            if not found:
                raise ValueError("it holds no .npy files")
            return found
        if path.suffix == ".json":
            return {path.stem: json.loads(path.read_text("utf-8"))}
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; debug/dump_python.py makes one") from None
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a golden file, or cut short ({error}); make it again") from None


SKETCH = 256  # numbers that a sketch keeps


def sketch(x: Any) -> np.ndarray:
    """A tensor in at most SKETCH numbers, float64: itself if it is small, else sums of its entries with random signs.

    Every entry is part of one sum. The norm of the difference of two sketches is that of the tensors' difference, give
    or take a tenth: the sums' signs are independent, so that nothing cancels but by chance.
    """
    flat = np.asarray(x, np.float64).ravel()
    if flat.size <= SKETCH:
        return flat
    signs = 2.0 * np.random.default_rng(flat.size).integers(0, 2, flat.size) - 1.0
    return np.pad(flat * signs, (0, -flat.size % SKETCH)).reshape(-1, SKETCH).sum(axis=0)


def relative(a: object, b: object) -> float:
    """‖a − b‖ / ‖b‖ in float64; infinite where shapes differ or `a` is not finite."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or not np.isfinite(x).all():
        return float("inf")
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))


def absolute(a: object, b: object) -> float:
    """The largest |a − b|; infinite where shapes differ or `a` is not finite."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or not np.isfinite(x).all():
        return float("inf")
    return float(np.abs(x - y).max(initial=0.0))
