"""Emotions read off texts, by Qwen: the question, the answer, and what the answer means.

Emotion(weights=checkpoint.load_reader("model").read("I am so glad!"))
"""

import json
import logging
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from indextts_jax.buckets import QUESTION, bucket
from indextts_jax.emotion import MOST, NAMES
from indextts_jax.errors import Error
from indextts_jax.models import qwen3
from indextts_jax.models.qwen3 import Qwen3Config

log = logging.getLogger(__name__)

CHINESE = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")  # NAMES, as Qwen was taught them
PROMPT = (
    "<|im_start|>system\n文本情感分类<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)
# Qwen calls melancholy sadness; where a text names it, the two are swapped.
MELANCHOLIC = ("低落", "melancholy", "melancholic", "depression", "depressed", "gloomy")
LONGEST = 900  # tokens of a text: with the question around it, they fit the last rung of QUESTION
LABELS = ("emotion", "emotion_label", "label", "情感", "情绪")


class Reader(NamedTuple):
    """What reads emotions off texts: Qwen, fine-tuned for it, and its tokenizer; see `checkpoint.load_reader`."""

    params: Any
    cfg: Qwen3Config
    tokenizer: Any  # tokenizers.Tokenizer

    def answer(self, text: str, most: int = 256) -> str:
        """What Qwen says about a text: greedy, `most` tokens at the most. Raises Error for an empty text."""
        text = self._cut(text)
        if not text.strip():
            raise Error("the text to read an emotion off is empty: give at least one word")
        ids = self.tokenizer.encode(PROMPT.format(text=text)).ids
        rung = bucket(len(ids), QUESTION)
        padded = np.pad(np.array(ids, np.int32), (0, rung - len(ids)))[None]
        drawn, lengths = qwen3.generate(self.params, self.cfg, jnp.asarray(padded), jnp.array([len(ids)]), most)
        return answer_in(self.tokenizer, np.asarray(drawn)[0, : int(lengths[0])].tolist())

    def _cut(self, text: str) -> str:
        """The part of a text that is read: attention over it takes memory by the square of its length."""
        beginning = text[: LONGEST * 40]  # so that no more is split into tokens than could be read
        offsets = self.tokenizer.encode(beginning, add_special_tokens=False).offsets
        if len(offsets) <= LONGEST and len(beginning) == len(text):
            return text
        end = offsets[min(LONGEST, len(offsets)) - 1][1]
        log.warning("an emotion is read off the first %d characters of a text; this one has %d", end, len(text))
        return text[:end]

    def read(self, text: str) -> tuple[float, ...]:
        """The weights of a text's emotions. Raises Error where the answer cannot be understood."""
        return understand(self.answer(text), text)


def answer_in(tokenizer: Any, ids: list[int]) -> str:
    """What is said in ids drawn, after what is thought."""
    end = tokenizer.token_to_id("</think>")
    return tokenizer.decode(ids[len(ids) - ids[::-1].index(end) :] if end in ids else ids, skip_special_tokens=True)


def understand(answer: str, text: str) -> tuple[float, ...]:
    """The weights in Qwen's answer about a text, by the reference's rules.

    JSON, or else pairs found by a regular expression; answers that name one emotion count as 1; weights are cut to
    0 .. 1.2; no emotion at all is calm. Raises Error, with the answer, where the reference raises.
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
            raise Error(f"Qwen's answer holds no emotions: {answer!r}; say the text in other words")
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
        raise Error(
            f"Qwen's answer has {value!r} where a weight should be: {answer!r}; say the text in other words"
        ) from None
