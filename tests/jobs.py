"""Manifests of mixed items for jobs on the tiny model."""

import json
import random
from pathlib import Path
from typing import Any

from debug.golden import FIXTURES

VOICE, OTHER, FELT = (FIXTURES / "audio" / f"{name}.wav" for name in ("voice_24k", "voice_24k_odd", "emotion"))
WORDS = "hello world this is a small test of the speech system please read next sentence slowly".split()  # noqa: SIM905
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"voice": str(OTHER)},
    {"segment_tokens": 9, "silence_ms": 30},
    {"emotion": "happy=0.6,calm=0.2"},
    {"emotion_vector": [0, 0.8, 0, 0, 0, 0, 0, 0], "emotion_weight": 0.5, "emotion_random": True},
    {"emotion_audio": str(FELT), "emotion_weight": 0.7},
    {"emotion_text": "I am so glad!", "emotion_normalize": True},
    {"emotion_from_text": True},
    {"seed": 5},
    {"greedy": True},
    {"beams": 2, "top_k": 12},
    {"temperature": 1.4, "top_p": 0.95, "repetition_penalty": 2.0},
    {"max_codes": 5, "cfg_rate": 0.0},
    {"steps": 2, "cfg_rate": 1.5},
    {"voice": "broken.wav"},  # which is no recording
)


def rows(count: int) -> list[dict[str, Any]]:
    """Items of every kind, with texts of different lengths; one in each kind's turn has a recording that is none."""
    rng, found = random.Random(0), []
    for i in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(2, 14))).capitalize() + "."
        found.append({"id": f"item-{i:03d}", "text": text, "silence_after_ms": 10 * (i % 5), **KINDS[i % len(KINDS)]})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    """The manifest, and beside it the recording that is none."""
    (path.parent / "broken.wav").write_text("this is no recording")
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    """Every audio file of a job by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}
