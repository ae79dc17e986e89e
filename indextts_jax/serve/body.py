"""What a client may ask for: the body of POST /v1/audio/speech, as OpenAI's clients send it, and more.

What a body leaves out is as the options of the command say. Bounds keep one request from taking the whole machine.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from indextts_jax.emotion import MOST, parse
from indextts_jax.languages import Language
from indextts_jax.pauses import PARAGRAPH_MS
from indextts_jax.request import Options, Streaming

_SAMPLING = ("beams", "sample", "top_k", "top_p", "temperature", "repetition_penalty", "length_penalty")
_OPTIONS = ("max_codes", "retries", "steps", "silence_ms", "fade_ms", "trim_tail", "speed")
Weight = Annotated[float, Field(ge=0, le=MOST)]


@dataclass(frozen=True)
class Defaults:
    """What holds where a body says nothing."""

    options: Options = field(default_factory=Options)
    streaming: Streaming = field(default_factory=Streaming)
    seed: int = 0
    language: str | None = None
    segment_tokens: int = 120
    first_segment_tokens: int = 0  # of what is streamed
    paragraph_ms: int = PARAGRAPH_MS


class Named(BaseModel):
    """A voice as an object with its name."""

    id: str


class Text(BaseModel):
    """A text, and how it is read."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    input: str = Field(min_length=1)
    language: Language | None = None
    segment_tokens: int | None = Field(None, ge=1, le=10_000)
    first_segment_tokens: int | None = Field(None, ge=0, le=10_000)
    paragraph_ms: int | None = Field(None, ge=0, le=60_000)

    def reading(self, defaults: Defaults, streamed: bool) -> dict[str, Any]:
        """The arguments of `TextFrontEnd.analyse` besides the text."""
        first = defaults.first_segment_tokens if streamed else 0
        return {
            "budget": _given(self.segment_tokens, defaults.segment_tokens),
            "first": _given(self.first_segment_tokens, first),
            "language": _given(self.language, defaults.language),
            "paragraph_ms": _given(self.paragraph_ms, defaults.paragraph_ms),
        }


class Speech(Text):
    """A text to speak."""

    model: str = "indextts-2"  # there is one, whatever it is called
    voice: str | Named
    response_format: Literal["mp3", "opus", "ogg", "flac", "wav", "pcm"] = "mp3"
    speed: float | None = Field(None, ge=0.5, le=2)
    stream_format: Literal["audio", "sse"] | None = None
    stream: bool | None = None  # the sound while it is made, which a stream_format asks for, too
    instructions: str | None = Field(None, max_length=4096)  # OpenAI's: read as `emotion_text`

    # Not OpenAI's, from here on.
    sample_rate: int | None = Field(None, ge=8000, le=192_000)
    cues: bool = False  # sse: also an event with the text and the times of every segment
    seed: int | None = Field(None, ge=0, lt=2**64)
    emotion: str | dict[str, Weight] | list[Weight] | None = None  # "happy=0.6,calm=0.2", or as an object, or all eight
    emotion_text: str | None = Field(None, max_length=4096)
    emotion_from_text: bool = False
    emotion_voice: str | None = None  # a voice whose recording shows the emotion
    emotion_alpha: float | None = Field(None, ge=0, le=1)
    emotion_random: bool = False
    emotion_normalize: bool = False
    silence_ms: int | None = Field(None, ge=0, le=60_000)
    fade_ms: int | None = Field(None, ge=0, le=1000)
    trim_tail: bool | None = None
    beams: int | None = Field(None, ge=1, le=8)
    sample: bool | None = None
    top_k: int | None = Field(None, ge=0, le=100_000)
    top_p: float | None = Field(None, ge=0, le=1)
    temperature: float | None = Field(None, ge=1e-3, le=100)
    repetition_penalty: float | None = Field(None, ge=1e-3, le=1000)
    length_penalty: float | None = Field(None, ge=-10, le=10)
    max_codes: int | None = Field(None, ge=1, le=10_000)
    retries: int | None = Field(None, ge=0, le=10)
    steps: int | None = Field(None, ge=1, le=100)
    cfg_rate: float | None = Field(None, ge=0, le=100)
    first_codes: int | None = Field(None, ge=1, le=1500)
    hop: int | None = Field(None, ge=1, le=1500)

    @model_validator(mode="after")
    def together(self) -> "Speech":
        asked = [name for name in EMOTIONS if getattr(self, name)]
        if len(asked) > 1:
            raise ValueError(f"{asked[0]} and {asked[1]} are two emotions: leave one out")
        if self.streams and self.retries:
            raise ValueError("retries need all of a segment before it is heard: leave them out, or the stream")
        if self.stream is False and self.stream_format == "sse":
            raise ValueError("stream_format sse is a stream: leave out stream, or make it true")
        return self

    @property
    def streams(self) -> bool:
        return self.stream_format is not None if self.stream is None else self.stream

    @property
    def speaker(self) -> str:
        """The name of the voice."""
        return self.voice if isinstance(self.voice, str) else self.voice.id

    def options(self, defaults: Defaults) -> Options:
        """Raises Error for what does not go together."""
        options = defaults.options
        sampling = replace(options.sampling, **self._those(_SAMPLING))
        more = self._those(_OPTIONS)
        if self.streams:
            more["retries"] = 0
        if self.cfg_rate is not None:
            more["guidance"] = self.cfg_rate
        return replace(options, sampling=sampling, **more)

    def streaming(self, defaults: Defaults) -> Streaming | None:
        return replace(defaults.streaming, **self._those(("first_codes", "hop"))) if self.streams else None

    def weights(self) -> tuple[float, ...] | None:
        """Of the emotion, where the body has them. Raises Error."""
        if not self.emotion:
            return None
        if isinstance(self.emotion, dict):
            return parse(",".join(f"{name}={weight}" for name, weight in self.emotion.items()))
        return parse(self.emotion if isinstance(self.emotion, str) else ",".join(map(str, self.emotion)))

    def _those(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


EMOTIONS = ("emotion", "emotion_text", "emotion_from_text", "emotion_voice", "instructions")


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
