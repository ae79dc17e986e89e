"""IndexTTS-2 zero-shot text-to-speech in JAX.

    import indextts_jax as tts

    model = tts.load("model")
    voice = model.listen("voice.wav")
    model.speak("Hello.", voice, seed=0).save("hello.wav")

What is named here is imported when it is first used, so that `indextts-jax --help` needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "Audio": "pipeline",
    "Chunk": "request",
    "Emotion": "emotion",
    "Error": "errors",
    "Model": "model",
    "Options": "request",
    "Sampling": "decoding",
    "Streaming": "request",
    "Voice": "voice",
    "load": "model",
    "load_reader": "checkpoint",
    "save_voice": "voice",
}
__all__ = [
    "Audio",
    "Chunk",
    "Emotion",
    "Error",
    "Model",
    "Options",
    "Sampling",
    "Streaming",
    "Voice",
    "__version__",
    "load",
    "load_reader",
    "save_voice",
]

if TYPE_CHECKING:
    from indextts_jax.checkpoint import load_reader
    from indextts_jax.decoding import Sampling
    from indextts_jax.emotion import Emotion
    from indextts_jax.errors import Error
    from indextts_jax.model import Model, load
    from indextts_jax.pipeline import Audio
    from indextts_jax.request import Chunk, Options, Streaming
    from indextts_jax.voice import Voice, save_voice


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'indextts_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"indextts_jax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
