"""The public face: a loaded model that listens and speaks, thin over the pure functions of the package.

model = load("model")
voice = model.listen("voice.wav")
model.speak("Hello.", voice, seed=0).save("hello.wav")
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import Sharding

from indextts_jax import audio, checkpoint, embedded, emotion, lora, models, pipeline, streaming, voice
from indextts_jax.audio import Recording
from indextts_jax.config import Config
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.lora import Lora
from indextts_jax.models import COMPONENTS, Params
from indextts_jax.multilingual import FrontEnd
from indextts_jax.pipeline import Audio
from indextts_jax.request import Chunk, Options, Streaming
from indextts_jax.voice import Voice

Source = str | PathLike[str]


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["cfg", "text"])
@dataclass(frozen=True, eq=False)
class Model:
    """A loaded system. As a pytree it is its parameters: `jax.jit`, `jax.grad` and `jax.tree.map` take it whole."""

    params: Params  # component -> parameter tree
    cfg: Config
    text: FrontEnd

    def adapt(self, adapters: Lora) -> "Model":
        """This model with adapters (`lora.load`) added to its weights. Raises `Error` for those of another model."""
        return replace(self, params=lora.add(self.params, *adapters))

    def listen(self, recording: Source | Recording, start: float = 0.0) -> Voice:
        """The Voice in a recording, or in a Voice file (.safetensors).

        recording: a path, or what `audio.recording` makes of samples; heard from `start` seconds on, at most 15 s.
        Raises `Error` for a file that cannot be used.
        """
        if not isinstance(recording, Recording):
            if Path(recording).suffix == ".safetensors":
                return voice.load_voice(recording, self.cfg)
            recording = audio.load_speaker(recording, start)
        return voice.listen(self.params, self.cfg, recording)

    def feel(self, recording: Source | np.ndarray, alpha: float = 1.0) -> Emotion:
        """The emotion of a recording, or of an Emotion file (.safetensors); `alpha` 0 to 1: how strongly it is felt.

        recording: a path, or samples [N] float32 at 16 kHz. Raises `Error` for a file that cannot be used.
        """
        if not isinstance(recording, np.ndarray):
            if Path(recording).suffix == ".safetensors":
                return emotion.load(recording)
            recording = audio.load_emotion(recording)
        return Emotion(vector=voice.feel(self.params, self.cfg, recording), alpha=alpha)

    @overload
    def speak(
        self,
        text: str,
        voice: Voice,
        seed: int = 0,
        emotion: Emotion | str | None = None,
        options: Options | None = None,
        language: str | None = None,
    ) -> Audio: ...

    @overload
    def speak(
        self,
        text: Sequence[str],
        voice: Voice | Sequence[Voice],
        seed: int | Sequence[int] = 0,
        emotion: Emotion | str | Sequence[Emotion | str | None] | None = None,
        options: Options | None = None,
        language: str | Sequence[str | None] | None = None,
    ) -> list[Audio]: ...

    def speak(
        self, text: Any, voice: Any, seed: Any = 0, emotion: Any = None, options: Options | None = None,
        language: Any = None,
    ) -> Any:  # fmt: skip
        """Speak a text, or several side by side: a list of texts gives a list of Audio.

        voice, seed, emotion and language: one for all texts, or a list with one for each. A text with the same voice,
        seed, emotion and options becomes the same audio but for rounding, whatever is spoken beside it. emotion: None
        is the voice's own; a string holds weights, "happy=0.6,calm=0.2". language: None lets the text decide. Raises
        `Error` for what cannot be spoken.
        """
        texts = [text] if isinstance(text, str) else list(text)

        def each(given: Any) -> list[Any]:
            several = isinstance(given, list | tuple) and not isinstance(given, Voice)
            return list(given) if several else [given] * len(texts)

        if len(languages := each(language)) != len(texts):
            raise Error(f"{len(texts)} texts and {len(languages)} languages: not parallel")
        analysed = [self.text.analyse(one, language=own) for one, own in zip(texts, languages, strict=True)]
        felt = [_felt(one) for one in each(emotion)]
        spoken = pipeline.speak(self.params, self.cfg, analysed, each(voice), each(seed), options, felt)
        return spoken[0] if isinstance(text, str) else spoken

    def stream(
        self,
        text: str,
        voice: Voice,
        seed: int = 0,
        emotion: Emotion | str | None = None,
        options: Options | None = None,
        chunks: Streaming | None = None,
        language: str | None = None,
    ) -> Iterator[Chunk]:
        """Speak a text, and give its samples in chunks while it is being made: see `streaming.stream`."""
        analysed = self.text.analyse(text, language=language)
        return streaming.stream(self.params, self.cfg, analysed, voice, seed, options, _felt(emotion), chunks)


def _felt(given: Emotion | str | None) -> Emotion | None:
    return Emotion(weights=emotion.parse(given)) if isinstance(given, str) else given


def load(
    folder: Source = embedded.FOLDER,
    dtype: Any = None,
    components: Sequence[str] = COMPONENTS,
    sharding: Sharding | None = None,
    check: bool = True,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Model:
    """Load a model that `indextts-jax convert` made, component by component; without a folder, the embedded one.

    dtype: of weights and computation, "float32" or "bfloat16" (default: float32 on a CPU, bfloat16 on GPU and TPU), or
    "int8": the matrices that decoding reads, rounded while they are loaded; all else is as by default. sharding: where
    the weights go (default: the first device). check: hold every file against its checksum. progress: called with the
    stage, the megabytes read and the megabytes in all. Raises `Error` for a dtype or a folder that cannot be used.
    """
    folder, kind = Path(folder), models.asked(dtype)
    cfg, _ = checkpoint.read_description(folder)
    text = checkpoint.load_text(folder)
    sizes = [_megabytes(folder / name) for name in components]
    params = {}
    for i, name in enumerate(components):
        progress("reading weights", sum(sizes[:i]), sum(sizes))
        params[name] = checkpoint.restore(folder, name, getattr(cfg, name), kind, sharding, check)
    return Model(params, cfg, text)


def _megabytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) // 2**20
