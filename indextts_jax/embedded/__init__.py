"""The small voice that comes with the package: what speaks where no model is named, and `--model tiny`.

One speaker, English, trained on synthetic speech by `train/recipes/tiny_voice`; README.md beside this is its card. It
shows what the system does, and is no replacement for the official weights.
"""

from pathlib import Path

NAME = "tiny"
WHAT = "a small voice that reads plain English; `indextts-jax download` gets the official weights"
_HERE = Path(__file__).parent
FOLDER = _HERE / "model"  # in the converted layout
VOICES = _HERE / "voices"  # recordings of its speaker
VOICE = VOICES / "heart.flac"  # that speaks where none is named
