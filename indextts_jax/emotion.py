"""An emotion, whichever way it was made: by a recording, by eight weights, or by a text that Qwen reads.

    Emotion(weights=parse("happy=0.6,calm=0.2"))
    Emotion(vector=feel(params, cfg, audio.load_emotion("sad.wav")), alpha=0.6)
    Emotion(weights=checkpoint.load_reader("model").read("I am so glad!"))

`pipeline.speak` takes one per text, or None for the voice's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from indextts_jax import files, seeds
from indextts_jax.errors import Error, NotFound
from indextts_jax.models import prototypes
from indextts_jax.models.prototypes import PrototypesConfig

NAMES = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
MOST = 1.2  # of one weight: where the reference cuts what Qwen answers
# The reference's optional correction: strong where speech sounds odd, and what all weights may sum up to.
BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
CAP = 0.8


@dataclass(frozen=True, eq=False)
class Emotion:
    """What to feel: either `weights` of the eight NAMES, or the `vector` [D] of a recording; and how strongly."""

    weights: Sequence[float] | None = None  # each 0 to 1.2
    vector: Any = None  # from `voice.feel`
    alpha: float = 1.0  # scales the weights, or how far to go from the voice's base to the vector
    seed: int | None = None  # with weights: speakers drawn at random instead of the ones most like the voice

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.vector is None):
            raise Error("an emotion has either weights or the vector of a recording")
        if not 0 <= self.alpha <= 1:
            raise Error(f"alpha is {self.alpha}, but must lie between 0 and 1")
        if self.weights is not None:
            _check(self.weights)
        elif self.seed is not None:
            raise Error("a seed draws speakers for weights; the vector of a recording has none to draw")


def _check(weights: Sequence[float]) -> None:
    if len(weights) != len(NAMES):
        raise Error(f"{len(weights)} weights, but there are {len(NAMES)}: {', '.join(NAMES)}")
    for name, weight in zip(NAMES, weights, strict=True):
        if not 0 <= weight <= MOST:
            raise Error(f"{name} is {weight}, but must lie between 0 and {MOST}")


def parse(text: str) -> tuple[float, ...]:
    """Weights as people write them: "happy=0.6,calm=0.2", or all eight, "0.6,0,0,0,0,0,0,0.2". Raises Error."""
    parts = [part.strip() for part in text.split(",")]
    named = all("=" in part for part in parts)
    pairs = [[side.strip() for side in part.split("=", 1)] if named else ["", part] for part in parts]
    if unknown := [name for name, _ in pairs if named and name not in NAMES]:
        raise Error(f"emotion {unknown[0]!r} is none of {', '.join(NAMES)}")
    try:
        values = [float(value) for _, value in pairs]
    except ValueError:
        raise Error(f"emotion {text!r}: write happy=0.6,calm=0.2 or the eight weights {','.join(NAMES)}") from None
    given = dict(zip((name for name, _ in pairs), values, strict=True))
    found = tuple(given.get(name, 0.0) for name in NAMES) if named else tuple(values)
    _check(found)
    return found


def normalize(weights: Sequence[float]) -> tuple[float, ...]:
    """The reference's correction: each weight by its bias, then all scaled so that they sum up to 0.8 at most."""
    biased = [weight * bias for weight, bias in zip(weights, BIAS, strict=True)]
    total = sum(biased)
    return tuple(weight * (CAP / total) if total > CAP else weight for weight in biased)


def scaled(weights: Sequence[float], alpha: float) -> tuple[float, ...]:
    """Weights of a part `alpha`, cut after four decimals as the reference cuts them; untouched at 1."""
    return tuple(weights) if alpha == 1 else tuple(math.trunc(w * alpha * 10000) / 10000 for w in weights)


def mix(base: Any, emotion: Any, alpha: float) -> Any:
    """The emotion vector a part `alpha` of the way from a voice's base to an emotion: [..., D]."""
    return base + alpha * (emotion - base)


def resolve(params: Any, cfg: PrototypesConfig, emotion: Emotion | None, own: Any, base: Any, style: Any) -> Any:
    """What an emotion is for one voice: -> vector [D] float32.

    params: the component "prototypes"; own, base [D] and style of the voice (`voice.Voice`).
    """
    if emotion is None:
        return own
    if emotion.vector is not None:
        if np.shape(emotion.vector) != np.shape(base):
            raise Error(
                f"the emotion has width {np.size(emotion.vector)}, but the model {np.size(base)}: make it again with it"
            )
        return np.asarray(mix(base, np.asarray(emotion.vector, np.float32), emotion.alpha))
    assert emotion.weights is not None
    weights = np.array(scaled(emotion.weights, emotion.alpha), np.float32)
    if emotion.seed is None:
        rows = prototypes.similar(params, cfg, jnp.asarray(style)[None])
    else:
        rows = prototypes.drawn(seeds.key(emotion.seed), cfg)[None]
    return np.asarray(prototypes.mixture(params, weights[None], rows, jnp.asarray(own)[None])[0])


# ---- files ----------------------------------------------------------------------------------------------------------

_FORMAT = "indextts-jax emotion 1"


def save(path: str | PathLike[str], emotion: Emotion) -> None:
    """Write an Emotion as a safetensors file, which appears only once it is complete. Raises OSError."""
    value = emotion.vector if emotion.weights is None else emotion.weights
    kind = "vector" if emotion.weights is None else "weights"
    about = {"format": _FORMAT, "alpha": repr(emotion.alpha), "seed": repr(emotion.seed)}
    files.write_whole(Path(path), safetensors.numpy.save({kind: np.array(value, np.float32)}, about))


def load(path: str | PathLike[str]) -> Emotion:
    """Read an Emotion that `save` wrote. Raises NotFound, or Error for another file."""
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise Error("of another kind or version")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        # The weights were written in float32: what they were is the shortest number that rounds to them.
        weights = [float(str(w)) for w in found["weights"]] if "weights" in found else None
        seed = None if about["seed"] == "None" else int(about["seed"])
        return Emotion(weights, found.get("vector"), float(about["alpha"]), seed)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise Error(f"{path}: not an emotion file, or cut short ({error}); make it again") from None
