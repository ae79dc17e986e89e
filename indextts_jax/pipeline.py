"""The whole system, top to bottom: a recording becomes a Voice, a text in that voice becomes Audio.

    model = checkpoint.load("model")
    voice = listen(model.params, model.cfg, audio.load_speaker("voice.wav"))
    [speech] = speak(model.params, model.cfg, [model.text.analyse("Hello.")], [voice], [jax.random.key(0)])

`listen` and `speak` work on lists and lengths at the host; what they call are pure functions of arrays, and `render`,
from codes to samples, is one of them: differentiable in everything that is not an integer.

Dimensions: B batch, X text ids, L latents, C codes, P prompt frames, F target frames, M mels, K content width, D width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from indextts_jax import audio, buckets, decoding
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert
from indextts_jax.text import Analysis

log = logging.getLogger(__name__)

Params = dict[str, Any]  # component -> parameter tree


class Voice(NamedTuple):
    """Everything the system needs to know of a speaker, float32; made once by `listen`, kept as a file."""

    latents: Any  # [L, D] what the GPT hears
    emotion: Any  # [D] the recording's own
    base: Any  # [D] its emotion by way of the speaker's features: what other emotions are mixed into
    style: Any  # [style]
    mel: Any  # [P, M] log-mel of the recording, the prompt of the flow
    content: Any  # [P, K] what is said in it


class Voices(NamedTuple):
    """Voices as a batch, the prompts padded at their ends."""

    latents: Array  # [B, L, D]
    emotion: Array  # [B, D]
    style: Array  # [B, style]
    mel: Array  # [B, P, M]
    content: Array  # [B, P, K]
    lengths: Array  # [B] frames


class Rendered(NamedTuple):
    """What codes become."""

    mel: Array  # [B, F, M] log-mel
    lengths: Array  # [B] frames
    samples: Array  # [B, F * hop] float32 within ±1


class Given(NamedTuple):
    """What replaces a stage of one segment, for research and comparison; None: computed as usual."""

    codes: Any = None  # [C]: nothing is drawn
    latents: Any = None  # [C, D]: no second pass (together with codes)
    noise: Any = None  # [P + F, M] of prompt and target, where the flow begins
    mel: Any = None  # [F, M]: only the vocoder runs


class Segment(NamedTuple):
    """One segment of a text, and where it lies in the audio."""

    codes: np.ndarray  # [C] int32, without the stop code; empty where a mel was given
    mel: np.ndarray  # [F, M] float32 log-mel
    start: int  # first sample
    end: int  # one past the last
    stopped: bool  # False: cut off by the limit on codes


class Audio(NamedTuple):
    """Speech."""

    samples: np.ndarray  # [N] float32 within ±1
    rate: int  # Hz
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Options:
    """How to speak; the defaults are the reference's, without beams."""

    sampling: Sampling = field(default_factory=Sampling)
    max_codes: int = 1500  # per segment
    steps: int = 25  # of the flow
    guidance: float = 0.7
    silence_ms: int = 200  # between segments

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_codes", self.max_codes, 1),
            ("steps", self.steps, 1),
            ("silence_ms", self.silence_ms, 0),
        ):
            if value < low:
                raise ValueError(f"{name} is {value}, but must be at least {low}")
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance}, but must lie between 0 and 100")


Progress = Callable[[str, int, int], None]  # stage, segment, segments: called when a stage begins


# ---- listen ---------------------------------------------------------------------------------------------------------


def listen(params: Params, cfg: Config, recording: audio.Recording) -> Voice:
    """Make a Voice of a recording (`audio.load_speaker` or `audio.recording`).

    Computed in the dtype of the weights, given back as float32 numpy arrays. Reference: indextts/infer_v2.py.
    """
    semantic, lengths = hear(params, cfg, [recording.samples_16k, recording.emotion_16k])
    samples, samples_lengths = _padded([recording.samples_16k], audio.SPEECH_RATE)
    style = campplus.embed(params["campplus"], cfg.campplus, *_campplus_features(samples, samples_lengths))
    mel, mel_lengths = _mel(*_padded([recording.samples_22k], cfg.mel.rate), cfg.mel)
    own, own_length = semantic[:1], lengths[:1]
    quantized = repcodec.quantize(params["repcodec"], cfg.repcodec, own, own_length)
    content = s2mel.regulate(
        params["s2mel"], cfg.s2mel, quantized.embeddings, own_length, frames=mel.shape[1], target_lengths=mel_lengths
    )
    latents = conditioner.speaker_latents(params["conditioner"], cfg.conditioner, own, own_length)
    base, emotion = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, semantic, lengths)
    frames = int(mel_lengths[0])
    voice = Voice(latents[0], mix(base, emotion, 1.0), base, style[0], mel[0, :frames], content[0, :frames])
    return Voice(*(np.asarray(array, np.float32) for array in voice))


def hear(params: Params, cfg: Config, recordings: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Semantic features of recordings at 16 kHz: -> ([B, T, width], lengths [B]), 50 frames a second."""
    features, lengths, seen = _w2vbert_features(*_padded(recordings, audio.SPEECH_RATE))
    return w2vbert.encode(params["w2vbert"], cfg.w2vbert, features, seen, lengths), lengths


def mix(base: Any, emotion: Any, alpha: float) -> Any:
    """The emotion vector a part `alpha` of the way from a voice's base to an emotion: [..., D]."""
    return base + alpha * (emotion - base)


def _padded(recordings: Sequence[np.ndarray], rate: int) -> tuple[Array, Array]:
    """Samples of several recordings, padded to a bucket of seconds: [B, N], lengths [B]."""
    seconds = bucket(-(-max(map(len, recordings)) // rate), buckets.SECONDS)
    rows = [np.pad(samples, (0, seconds * rate - len(samples))) for samples in recordings]
    return jnp.asarray(np.stack(rows)), jnp.array([len(samples) for samples in recordings])


_w2vbert_features = jax.jit(audio.w2vbert_features)
_campplus_features = jax.jit(audio.campplus_features)
_mel = jax.jit(audio.mel, static_argnums=2)

_VOICE_FORMAT = "indextts-jax voice 1"


def save_voice(path: str | Path, voice: Voice) -> None:
    """Write a Voice as a safetensors file, which appears only once it is complete. Raises OSError."""
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in voice._asdict().items()}
    audio.write_whole(Path(path), safetensors.numpy.save(arrays, {"format": _VOICE_FORMAT}))


def load_voice(path: str | Path, cfg: Config) -> Voice:
    """Read a Voice that `save_voice` wrote. Raises FileNotFoundError, or ValueError for what does not fit the model."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = (file.metadata() or {}).get("format") == _VOICE_FORMAT
            voice = Voice(*(file.get_tensor(name) for name in Voice._fields)) if known else None
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a voice file, or cut short ({error}); make it again") from None
    if voice is None:
        raise ValueError(f"{path}: not a voice file of this version; make it with `indextts-jax voice`")
    width, mels = cfg.gpt.width, cfg.s2mel.mels
    if voice.latents.shape != (cfg.conditioner.speaker.latents, width) or voice.mel.shape[1:] != (mels,):
        raise ValueError(
            f"{path}: made with another model (width {voice.latents.shape[-1]}, not {width}); make it again"
        )
    return voice


# ---- speak ----------------------------------------------------------------------------------------------------------


def speak(
    params: Params,
    cfg: Config,
    texts: Sequence[Analysis],
    voices: Sequence[Voice],
    keys: Sequence[Array],
    options: Options | None = None,
    given: Sequence[Sequence[Given]] | None = None,
    progress: Progress = lambda stage, segment, segments: None,
) -> list[Audio]:
    """Speak each text in its voice: texts (`TextFrontEnd.analyse`), voices and keys are parallel; -> one Audio each.

    The same text, voice, key and options give the same audio, whatever stands beside them. `given`: per text, per
    segment, what replaces a stage. Raises ValueError for what does not fit the model.
    """
    options = options or Options()
    given = given or [[Given()] * len(text.segments) for text in texts]
    if not len(texts) == len(voices) == len(keys) == len(given):
        raise ValueError(
            f"{len(texts)} texts, {len(voices)} voices, {len(keys)} keys and {len(given)} given: not parallel"
        )
    result = []
    for text, voice, key, replaced in zip(texts, voices, keys, given, strict=True):
        if len(replaced) != len(text.segments):
            raise ValueError(f"{len(replaced)} segments are given, but the text has {len(text.segments)}")
        silence = np.zeros(cfg.mel.rate * options.silence_ms // 1000, np.float32)
        parts: list[np.ndarray] = []
        segments: list[Segment] = []
        batch = gather([voice])
        for i, (ids, instead) in enumerate(zip(text.segment_ids, replaced, strict=True)):
            parts += [silence] if parts else []
            start = sum(map(len, parts))
            begin = partial(_begin, progress, i, len(text.segments))
            segment, samples = _speak_segment(
                params, cfg, ids, batch, jax.random.fold_in(key, i), options, instead, begin
            )
            if not segment.stopped:
                log.warning(
                    "segment %d of %d was cut off after %d codes: its text may be incomplete; shorter segments or "
                    "another seed avoid it",
                    i + 1,
                    len(text.segments),
                    len(segment.codes),
                )
            parts.append(samples)
            segments.append(segment._replace(start=start, end=start + len(samples)))
        result.append(Audio(np.concatenate(parts), cfg.mel.rate, tuple(segments)))
    return result


def _begin(progress: Progress, segment: int, segments: int, stage: str) -> None:
    progress(stage, segment, segments)


def _speak_segment(
    params: Params, cfg: Config, ids: list[int], voices: Voices, key: Array, options: Options, given: Given,
    begin: Callable[[str], None],
) -> tuple[Segment, np.ndarray]:  # fmt: skip
    """One segment in one voice: from text ids to a Segment and its samples."""
    code_key, noise_key = jax.random.split(key)
    if given.mel is not None:
        begin("vocode")
        mel = np.asarray(given.mel, np.float32)
        frames = _row(mel, bucket(len(mel), tuple(map(target_frames, buckets.CODES))))
        samples = bigvgan.vocode(params["bigvgan"], cfg.bigvgan, frames, jnp.array([len(mel)]))
        return Segment(np.zeros(0, np.int32), mel, 0, 0, True), np.asarray(samples[0, : len(mel) * cfg.bigvgan.hop])

    begin("codes")
    texts, text_lengths = text_batch(cfg, [ids])
    # While drawing, the reference leaves out the ids of start and stop inside a text; in the second pass it does not.
    spoken = [i for i in ids if i not in (cfg.gpt.start_text, cfg.gpt.stop_text)]
    stopped = True
    if given.codes is not None:
        codes = np.asarray(given.codes, np.int32)
    else:
        prefix = gpt.prefix(
            params["gpt"], cfg.gpt, voices.latents, voices.emotion, *text_batch(cfg, [spoken], texts.shape[1])
        )
        drawn = decoding.generate(params["gpt"], cfg.gpt, prefix, code_key[None], options.sampling, options.max_codes)
        codes, stopped = np.asarray(drawn.codes[0])[: int(drawn.lengths[0])], bool(drawn.stopped[0])
    if len(codes) == 0:
        raise ValueError("no speech came of a segment: the stop code was drawn first; try another seed")
    if codes.min() < 0 or codes.max() >= cfg.repcodec.codes:
        raise ValueError(
            f"codes lie between {codes.min()} and {codes.max()}, but the codec has 0 to {cfg.repcodec.codes - 1}"
        )

    room = bucket(len(codes), buckets.CODES)
    length = jnp.array([len(codes)])
    padded = _row(codes, room)
    frames, target = target_frames(room), int(s2mel.target_lengths(length)[0])
    noise = s2mel.draw_noise(noise_key, frames, cfg.s2mel.mels)[None]
    if given.noise is not None:
        prompt = int(voices.lengths[0])
        if np.shape(given.noise) != (prompt + target, cfg.s2mel.mels):
            raise ValueError(
                f"the given noise has shape {np.shape(given.noise)}, but a prompt of {prompt} and a target of {target} "
                f"frames need {(prompt + target, cfg.s2mel.mels)}"
            )
        noise = _row(np.asarray(given.noise, np.float32)[prompt:], frames)

    begin("latents")
    if given.latents is not None:
        latents = _row(np.asarray(given.latents, np.float32), room)
    else:
        latents = second_pass(params, cfg, voices, texts, text_lengths, padded)
        jax.block_until_ready(latents)  # so that a stage is over before the next one is announced
    begin("mel")
    packed = bucket(int(voices.lengths[0]) + target, buckets.FRAMES)
    mel, lengths = to_mel(params, cfg, voices, padded, length, latents, noise, options.steps, options.guidance, packed)
    jax.block_until_ready(mel)
    begin("vocode")
    samples = bigvgan.vocode(params["bigvgan"], cfg.bigvgan, mel, lengths)
    segment = Segment(codes, np.asarray(mel[0, :target], np.float32), 0, 0, stopped)
    return segment, np.asarray(samples[0, : target * cfg.bigvgan.hop])


def gather(voices: Sequence[Voice]) -> Voices:
    """Voices as one batch, the prompts padded to a bucket."""
    lengths = [len(voice.mel) for voice in voices]
    room = bucket(max(lengths), buckets.PROMPT)

    def frames(arrays: list[Any]) -> Array:
        return jnp.stack([jnp.pad(jnp.asarray(a), ((0, room - len(a)), (0, 0))) for a in arrays])

    latents, emotion, style = (
        jnp.stack([jnp.asarray(getattr(v, n)) for v in voices]) for n in ("latents", "emotion", "style")
    )
    mel, content = (frames([getattr(v, n) for v in voices]) for n in ("mel", "content"))
    return Voices(latents, emotion, style, mel, content, jnp.array(lengths))


def text_batch(cfg: Config, rows: Sequence[Sequence[int]], room: int | None = None) -> tuple[Array, Array]:
    """Text ids as a padded batch: [B, X] int32, lengths [B]. Raises ValueError for ids or lengths the GPT lacks."""
    longest = max(map(len, rows))
    if longest > cfg.gpt.most_texts:
        raise ValueError(
            f"a segment has {longest} text pieces, but the model takes {cfg.gpt.most_texts}: use shorter segments"
        )
    highest = max((max(row, default=0) for row in rows), default=0)
    if highest >= cfg.gpt.texts:
        raise ValueError(f"text id {highest} is past the model's {cfg.gpt.texts}: bpe.model belongs to another model")
    room = room or bucket(longest, buckets.TEXT)
    ids = np.stack([np.pad(np.asarray(row, np.int32), (0, room - len(row))) for row in rows])
    return jnp.asarray(ids), jnp.array([len(row) for row in rows])


def target_frames(codes: int) -> int:
    """The mel frames that a bucket of codes can need."""
    return int(codes * s2mel.FRAMES_PER_CODE) + 1


def _row(array: np.ndarray, room: int) -> Array:
    """An array as the only row of a padded batch: [N, ...] -> [1, room, ...]."""
    return jnp.asarray(np.pad(array, ((0, room - len(array)),) + ((0, 0),) * (array.ndim - 1)))[None]


# ---- from codes to samples: pure functions --------------------------------------------------------------------------


def second_pass(params: Params, cfg: Config, voices: Voices, texts: Array, lengths: Array, codes: Array) -> Array:
    """The GPT's latents of codes already known: texts [B, X], lengths [B], codes [B, C] -> [B, C, D]."""
    prefix = gpt.prefix(params["gpt"], cfg.gpt, voices.latents, voices.emotion, texts, lengths)
    return gpt.latents(params["gpt"], cfg.gpt, prefix, codes)


def to_mel(
    params: Params, cfg: Config, voices: Voices, codes: Array, lengths: Array, latents: Array, noise: Array,
    steps: int = 25, guidance: float = 0.7, frames: int | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Codes [B, C], lengths [B], latents [B, C, D] and noise [B, F, M] -> log-mel [B, F, M] and its lengths [B].

    `frames`: room for prompt and target together, see `s2mel.flow`.
    """
    embeddings = repcodec.embed(params["repcodec"], cfg.repcodec, codes)
    targets = s2mel.target_lengths(lengths)
    content = s2mel.content(
        params["s2mel"], cfg.s2mel, embeddings, latents, lengths, frames=noise.shape[1], target_lengths=targets
    )
    mel = s2mel.flow(
        params["s2mel"], cfg.s2mel, noise, content, targets, voices.mel, voices.content, voices.lengths, voices.style,
        steps=steps, guidance=guidance, frames=frames,
    )  # fmt: skip
    return mel, targets


def render(
    params: Params, cfg: Config, voices: Voices, texts: Array, text_lengths: Array, codes: Array, code_lengths: Array,
    noise: Array, steps: int = 25, guidance: float = 0.7,
) -> Rendered:  # fmt: skip
    """Everything after the codes, as one pure function: differentiable in voices, noise and parameters.

    texts [B, X], codes [B, C] int32 with their lengths [B]; noise [B, F, M] with F at least `target_frames(C)`.
    """
    latents = second_pass(params, cfg, voices, texts, text_lengths, codes)
    mel, lengths = to_mel(params, cfg, voices, codes, code_lengths, latents, noise, steps, guidance)
    return Rendered(mel, lengths, bigvgan.vocode(params["bigvgan"], cfg.bigvgan, mel, lengths))
