"""An emotion, whichever way it was made: by a recording, by eight weights, or by a text that Qwen reads.

    Emotion(weights=parse("happy=0.6,calm=0.2"))
    Emotion(vector=pipeline.feel(params, cfg, audio.load_emotion("sad.wav")), alpha=0.6)
    Emotion(weights=checkpoint.load_reader("model").read("I am so glad!"))

`pipeline.speak` takes one per text, or None for the voice's own.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from indextts_jax import files
from indextts_jax.buckets import QUESTION, bucket
from indextts_jax.models import emotion as matrices
from indextts_jax.models import qwen3
from indextts_jax.models.emotion import EmotionConfig
from indextts_jax.models.qwen3 import Qwen3Config

NAMES = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
MOST = 1.2  # of one weight: where the reference cuts what Qwen answers
# The reference's optional correction: strong where speech sounds odd, and what all weights may sum up to.
BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
CAP = 0.8


@dataclass(frozen=True, eq=False)
class Emotion:
    """What to feel: either `weights` of the eight NAMES, or the `vector` [D] of a recording; and how strongly."""

    weights: Sequence[float] | None = None  # each 0 to 1.2
    vector: Any = None  # from `pipeline.feel`
    alpha: float = 1.0  # scales the weights, or how far to go from the voice's base to the vector
    seed: int | None = None  # with weights: speakers drawn at random instead of the ones most like the voice

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.vector is None):
            raise ValueError("an emotion has either weights or the vector of a recording")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but must lie between 0 and 1")
        if self.weights is not None:
            _check(self.weights)
        elif self.seed is not None:
            raise ValueError("a seed draws speakers for weights; the vector of a recording has none to draw")


def _check(weights: Sequence[float]) -> None:
    if len(weights) != len(NAMES):
        raise ValueError(f"{len(weights)} weights, but there are {len(NAMES)}: {', '.join(NAMES)}")
    for name, weight in zip(NAMES, weights, strict=True):
        if not 0 <= weight <= MOST:
            raise ValueError(f"{name} is {weight}, but must lie between 0 and {MOST}")


def parse(text: str) -> tuple[float, ...]:
    """Weights as people write them: "happy=0.6,calm=0.2", or all eight, "0.6,0,0,0,0,0,0,0.2". Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    named = all("=" in part for part in parts)
    pairs = [[side.strip() for side in part.split("=", 1)] if named else ["", part] for part in parts]
    if unknown := [name for name, _ in pairs if named and name not in NAMES]:
        raise ValueError(f"emotion {unknown[0]!r} is none of {', '.join(NAMES)}")
    try:
        values = [float(value) for _, value in pairs]
    except ValueError:
        raise ValueError(f"emotion {text!r}: write happy=0.6,calm=0.2 or the eight weights {','.join(NAMES)}") from None
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


def resolve(params: Any, cfg: EmotionConfig, emotion: Emotion | None, own: Any, base: Any, style: Any) -> Any:
    """What an emotion is for one voice: -> vector [D] float32.

    params: the component "emotion"; own, base [D] and style of the voice (`pipeline.Voice`).
    """
    if emotion is None:
        return own
    if emotion.vector is not None:
        if np.shape(emotion.vector) != np.shape(base):
            raise ValueError(
                f"the emotion has width {np.size(emotion.vector)}, but the model {np.size(base)}: make it again with it"
            )
        return np.asarray(mix(base, np.asarray(emotion.vector, np.float32), emotion.alpha))
    assert emotion.weights is not None
    weights = np.array(scaled(emotion.weights, emotion.alpha), np.float32)
    if emotion.seed is None:
        rows = matrices.similar(params, cfg, jnp.asarray(style)[None])
    else:
        rows = matrices.drawn(jax.random.key(emotion.seed), cfg)[None]
    return np.asarray(matrices.mixture(params, weights[None], rows, jnp.asarray(own)[None])[0])


# ---- files ----------------------------------------------------------------------------------------------------------

_FORMAT = "indextts-jax emotion 1"


def save(path: str | Path, emotion: Emotion) -> None:
    """Write an Emotion as a safetensors file, which appears only once it is complete. Raises OSError."""
    value = emotion.vector if emotion.weights is None else emotion.weights
    kind = "vector" if emotion.weights is None else "weights"
    about = {"format": _FORMAT, "alpha": repr(emotion.alpha), "seed": repr(emotion.seed)}
    files.write_whole(Path(path), safetensors.numpy.save({kind: np.array(value, np.float32)}, about))


def load(path: str | Path) -> Emotion:
    """Read an Emotion that `save` wrote. Raises FileNotFoundError, or ValueError for another file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError("of another kind or version")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        # The weights were written in float32: what they were is the shortest number that rounds to them.
        weights = [float(str(w)) for w in found["weights"]] if "weights" in found else None
        seed = None if about["seed"] == "None" else int(about["seed"])
        return Emotion(weights, found.get("vector"), float(about["alpha"]), seed)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not an emotion file, or cut short ({error}); make it again") from None


# ---- by text --------------------------------------------------------------------------------------------------------

CHINESE = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")  # NAMES, as Qwen was taught them
PROMPT = (
    "<|im_start|>system\n文本情感分类<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)
# Qwen calls melancholy sadness; where a text names it, the two are swapped.
MELANCHOLIC = ("低落", "melancholy", "melancholic", "depression", "depressed", "gloomy")
LABELS = ("emotion", "emotion_label", "label", "情感", "情绪")


class Reader(NamedTuple):
    """What reads emotions off texts: Qwen, fine-tuned for it, and its tokenizer; see `checkpoint.load_reader`."""

    params: Any
    cfg: Qwen3Config
    tokenizer: Any  # tokenizers.Tokenizer

    def answer(self, text: str, most: int = 256) -> str:
        """What Qwen says about a text: greedy, `most` tokens at the most. Raises ValueError for an empty text."""
        if not text.strip():
            raise ValueError("the text to read an emotion off is empty: give at least one word")
        ids = self.tokenizer.encode(PROMPT.format(text=text)).ids
        room = bucket(len(ids), QUESTION)
        padded = np.pad(np.array(ids, np.int32), (0, room - len(ids)))[None]
        drawn, lengths = qwen3.generate(self.params, self.cfg, jnp.asarray(padded), jnp.array([len(ids)]), most)
        return answer_in(self.tokenizer, np.asarray(drawn)[0, : int(lengths[0])].tolist())

    def read(self, text: str) -> tuple[float, ...]:
        """The weights of a text's emotions. Raises ValueError where the answer cannot be understood."""
        return understand(self.answer(text), text)


def answer_in(tokenizer: Any, ids: list[int]) -> str:
    """What is said in ids drawn, after what is thought."""
    end = tokenizer.token_to_id("</think>")
    return tokenizer.decode(ids[len(ids) - ids[::-1].index(end) :] if end in ids else ids, skip_special_tokens=True)


def understand(answer: str, text: str) -> tuple[float, ...]:
    """The weights in Qwen's answer about a text, by the reference's rules.

    JSON, or else pairs found by a regular expression; answers that name one emotion count as 1; weights are cut to
    0 .. 1.2; no emotion at all is calm. Raises ValueError, with the answer, where the reference raises.
    """
    try:
        content = json.loads(answer)
    except json.JSONDecodeError:
        pairs = re.finditer(r"""([^\s":.,]+?)"?\s*:\s*([\d.]+)""", answer)
        content = {}
        for pair in pairs:
            content[pair[1]] = _number(pair[2], answer)
    if any(word in text.lower() for word in MELANCHOLIC):
        if not isinstance(content, dict):
            raise ValueError(f"Qwen's answer holds no emotions: {answer!r}; say the text in other words")
        content["悲伤"], content["低落"] = content.get("低落", 0.0), content.get("悲伤", 0.0)

    found = dict(content) if isinstance(content, dict) else {}
    # One emotion named instead of eight weighed, as the whole answer or under a label.
    named = [_name(content), *(_name(found.get(label)) for label in LABELS)]
    if (first := next(filter(None, named), None)) and not any(name in found for name in CHINESE):
        found[first] = 1.0
    for name in CHINESE:
        if other := _name(found.get(name)):
            found[name] = float(other == name)
            found[other] = 1.0
    weights = [max(0.0, min(MOST, _number(found.get(name, 0.0), answer))) for name in CHINESE]
    if not any(weights):
        weights[NAMES.index("calm")] = 1.0
    return tuple(weights)


def _name(value: Any) -> str | None:
    """The Chinese name of an emotion that is named in either language."""
    if not isinstance(value, str):
        return None
    value = value.strip()
    english = dict(zip(NAMES, CHINESE, strict=True))
    return value if value in CHINESE else english.get(value.lower())


def _number(value: Any, answer: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"Qwen's answer has {value!r} where a weight should be: {answer!r}; say the text in other words"
        ) from None
