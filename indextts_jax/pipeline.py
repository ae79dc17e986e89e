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

from indextts_jax import audio, buckets, decoding, emotion, features, files
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
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
    """How to speak; the defaults are the reference's."""

    sampling: Sampling = field(default_factory=Sampling)
    max_codes: int = 1500  # per segment
    retries: int = 0  # how often a segment that meets max_codes, or has none, is drawn again with another key
    steps: int = 25  # of the flow
    guidance: float = 0.7
    silence_ms: int = 200  # between segments
    batch: int = 8  # segments at once, each beside the others

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_codes", self.max_codes, 1),
            ("retries", self.retries, 0),
            ("batch", self.batch, 1),
            ("steps", self.steps, 1),
            ("silence_ms", self.silence_ms, 0),
        ):
            if value < low:
                raise ValueError(f"{name} is {value}, but must be at least {low}")
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance}, but must lie between 0 and 100")
        if self.retries and not self.sampling.sample:
            raise ValueError(f"retries is {self.retries}, but without sampling the same codes would come again")


Progress = Callable[[str, int, int], None]  # stage that begins, steps done, steps in all
FRAMES_PER_ROW = 1024  # rows longer than this, prompt and target together, take the place of several
STAGES = ("codes", "latents", "mel", "vocode")  # each is one step per segment


# ---- listen ---------------------------------------------------------------------------------------------------------


def listen(params: Params, cfg: Config, recording: audio.Recording) -> Voice:
    """Make a Voice of a recording (`audio.load_speaker` or `audio.recording`).

    Computed in the dtype of the weights, given back as float32 numpy arrays. Reference: indextts/infer_v2.py.
    """
    semantic, lengths = hear(params, cfg, [recording.samples_16k, recording.emotion_16k])
    samples, samples_lengths = _padded([recording.samples_16k], features.SPEECH_RATE)
    style = campplus.embed(params["campplus"], cfg.campplus, *_campplus_features(samples, samples_lengths))
    mel, mel_lengths = _mel(*_padded([recording.samples_22k], cfg.mel.rate), cfg.mel)
    own, own_length = semantic[:1], lengths[:1]
    quantized = repcodec.quantize(params["repcodec"], cfg.repcodec, own, own_length)
    content = s2mel.regulate(
        params["s2mel"], cfg.s2mel, quantized.embeddings, own_length, frames=mel.shape[1], target_lengths=mel_lengths
    )
    latents = conditioner.speaker_latents(params["conditioner"], cfg.conditioner, own, own_length)
    base, other = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, semantic, lengths)
    frames = int(mel_lengths[0])
    voice = Voice(latents[0], emotion.mix(base, other, 1.0), base, style[0], mel[0, :frames], content[0, :frames])
    return Voice(*(np.asarray(array, np.float32) for array in voice))


def feel(params: Params, cfg: Config, recording: np.ndarray) -> np.ndarray:
    """The emotion vector [D] float32 of a recording at 16 kHz (`audio.load_emotion`), for `Emotion(vector=...)`."""
    semantic, lengths = hear(params, cfg, [recording])
    vector = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, semantic, lengths)
    return np.asarray(vector[0], np.float32)


def hear(params: Params, cfg: Config, recordings: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Semantic features of recordings at 16 kHz: -> ([B, T, width], lengths [B]), 50 frames a second."""
    heard, lengths, seen = _w2vbert_features(*_padded(recordings, features.SPEECH_RATE))
    return w2vbert.encode(params["w2vbert"], cfg.w2vbert, heard, seen, lengths), lengths


def _padded(recordings: Sequence[np.ndarray], rate: int) -> tuple[Array, Array]:
    """Samples of several recordings, padded to a bucket of seconds: [B, N], lengths [B]."""
    seconds = bucket(-(-max(map(len, recordings)) // rate), buckets.SECONDS)
    rows = [np.pad(samples, (0, seconds * rate - len(samples))) for samples in recordings]
    return jnp.asarray(np.stack(rows)), jnp.array([len(samples) for samples in recordings])


_w2vbert_features = jax.jit(features.w2vbert_features)
_campplus_features = jax.jit(features.campplus_features)
_mel = jax.jit(features.mel, static_argnums=2)

_VOICE_FORMAT = "indextts-jax voice 1"


def save_voice(path: str | Path, voice: Voice) -> None:
    """Write a Voice as a safetensors file, which appears only once it is complete. Raises OSError."""
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in voice._asdict().items()}
    files.write_whole(Path(path), safetensors.numpy.save(arrays, {"format": _VOICE_FORMAT}))


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


@dataclass
class _Item:
    """One segment on its way through the stages."""

    name: str  # for messages
    ids: list[int]
    voice: Voice
    keys: tuple[Array, Array]  # of codes and noise
    given: Given
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    stopped: bool = True
    target: int = 0  # mel frames
    mel: Any = None
    samples: Any = None

    @property
    def packed(self) -> int:
        """Frames of prompt and target together."""
        return len(self.voice.mel) + self.target


def speak(
    params: Params,
    cfg: Config,
    texts: Sequence[Analysis],
    voices: Sequence[Voice],
    keys: Sequence[Array],
    options: Options | None = None,
    emotions: Sequence[Emotion | None] | None = None,
    given: Sequence[Sequence[Given]] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Audio]:
    """Speak each text in its voice: texts (`TextFrontEnd.analyse`), voices and keys are parallel; -> one Audio each.

    All segments of all texts go through the stages side by side, `options.batch` at a time: while codes are drawn, a
    segment that ends makes room for the next; segments of like length are rendered together. The same text,
    voice, key and options give the same audio but for rounding, whatever stands beside them. `emotions`: one per text,
    None for the voice's own. `given`: per text, per segment, what replaces a stage. Raises ValueError for what does
    not fit the model.
    """
    options = options or Options()
    given = given or [[Given()] * len(text.segments) for text in texts]
    emotions = emotions or [None] * len(texts)
    if not len(texts) == len(voices) == len(keys) == len(emotions) == len(given):
        raise ValueError(
            f"{len(texts)} texts, {len(voices)} voices, {len(keys)} keys, {len(emotions)} emotions and {len(given)} "
            "given: not parallel"
        )
    rows: list[list[_Item]] = []
    for t, (text, voice, key, felt, replaced) in enumerate(zip(texts, voices, keys, emotions, given, strict=True)):
        vector = emotion.resolve(params["emotion"], cfg.emotion, felt, voice.emotion, voice.base, voice.style)
        voice = voice._replace(emotion=vector)
        if len(replaced) != len(text.segments):
            raise ValueError(f"{len(replaced)} segments are given, but the text has {len(text.segments)}")
        of = f" of text {t + 1}" if len(texts) > 1 else ""
        row = []
        for i, (ids, instead) in enumerate(zip(text.segment_ids, replaced, strict=True)):
            name = f"segment {i + 1} of {len(text.segments)}{of}"
            row.append(_Item(name, ids, voice, tuple(jax.random.split(jax.random.fold_in(key, i))), instead))
        rows.append(row)

    items = [item for row in rows for item in row]
    total = len(STAGES) * len(items)
    drawn = [item for item in items if item.given.mel is None]
    progress("codes", 0, total)
    _draw(params, cfg, [item for item in drawn if item.given.codes is None], options)
    for item in drawn:
        _check(cfg, item)
    done = len(items)
    for group in _groups(drawn, options.batch):
        _render(params, cfg, group, options, partial(_begin, progress, done, len(group), total))
        done += len(group) * (len(STAGES) - 1)
    for item in items:
        if item.given.mel is not None:
            progress("vocode", done, total)
            _vocode(params, cfg, [item], [np.asarray(item.given.mel, np.float32)])
            done += len(STAGES) - 1
    return [_join(cfg, row, options) for row in rows]


def _begin(progress: Progress, done: int, segments: int, total: int, stage: str) -> None:
    """Announce a stage of a group of segments before which `done` steps were done."""
    progress(stage, done + (STAGES.index(stage) - 1) * segments, total)


def _draw(params: Params, cfg: Config, items: Sequence[_Item], options: Options) -> None:
    """Draw the codes of all items, `options.batch` at a time."""
    if not items:
        return
    text_batch(cfg, [item.ids for item in items])  # the second pass must fit as well
    rows = [*items, *[items[0]] * (bucket(len(items), buckets.BATCH) - len(items))]
    # While drawing, the reference leaves out the ids of start and stop inside a text; in the second pass it does not.
    silent = (cfg.gpt.start_text, cfg.gpt.stop_text)
    texts, lengths = text_batch(cfg, [[i for i in item.ids if i not in silent] for item in rows])
    latents, emotion = (
        jnp.asarray(np.stack([getattr(item.voice, name) for item in rows])) for name in ("latents", "emotion")
    )
    prefix = gpt.prefix(params["gpt"], cfg.gpt, latents, emotion, texts, lengths)
    keys = [item.keys[0] for item in items]
    codes = decoding.generate(
        params["gpt"], cfg.gpt, prefix, keys, options.sampling, options.max_codes, options.batch, options.retries
    )
    for i, item in enumerate(items):
        item.codes, item.stopped = codes.codes[i, : codes.lengths[i]], bool(codes.stopped[i])
        if not item.stopped:
            again = f", each of {options.retries + 1} times" if options.retries else ""
            log.warning(
                "%s was cut off after %d codes%s: its text may be incomplete; shorter segments, another seed or "
                "retries avoid it",
                item.name, len(item.codes), again,
            )  # fmt: skip


def _check(cfg: Config, item: _Item) -> None:
    """Take the given codes, if any, and see that they can be spoken."""
    if item.given.codes is not None:
        item.codes = np.asarray(item.given.codes, np.int32)
    if len(item.codes) == 0:
        raise ValueError(f"no speech came of {item.name}: the stop code was drawn first; try another seed or retries")
    low, high = item.codes.min(), item.codes.max()
    if low < 0 or high >= cfg.repcodec.codes:
        raise ValueError(f"codes lie between {low} and {high}, but the codec has 0 to {cfg.repcodec.codes - 1}")
    item.target = int(s2mel.target_lengths(np.array(len(item.codes))))
    need = (item.packed, cfg.s2mel.mels)
    if item.given.noise is not None and np.shape(item.given.noise) != need:
        raise ValueError(
            f"the given noise has shape {np.shape(item.given.noise)}, but a prompt of {len(item.voice.mel)} and a "
            f"target of {item.target} frames need {need}"
        )


def _groups(items: Sequence[_Item], batch: int) -> list[list[_Item]]:
    """Items of like length together: at most `batch`, fewer of long ones, and so many that no row is padding."""
    waiting, groups = sorted(items, key=lambda item: -item.packed), []
    while waiting:
        frames = bucket(waiting[0].packed, buckets.FRAMES)
        most = max(1, min(batch, len(waiting), batch * FRAMES_PER_ROW // frames))
        most = max(size for size in range(1, most + 1) if size in buckets.BATCH)
        groups.append(waiting[:most])
        waiting = waiting[most:]
    return groups


def _render(
    params: Params, cfg: Config, items: Sequence[_Item], options: Options, begin: Callable[[str], None]
) -> None:
    """From codes to samples, for a few items side by side."""
    begin("latents")
    voices = gather([item.voice for item in items])
    room = bucket(max(len(item.codes) for item in items), buckets.CODES)
    codes, lengths = _stacked([item.codes for item in items], room)
    if all(item.given.latents is not None for item in items):
        latents = _stacked([np.asarray(item.given.latents, np.float32) for item in items], room)[0]
    else:
        latents = second_pass(params, cfg, voices, *text_batch(cfg, [item.ids for item in items]), codes)
        for i, item in enumerate(items):
            if item.given.latents is not None:
                latents = latents.at[i, : len(item.codes)].set(jnp.asarray(item.given.latents, latents.dtype))
    frames = target_frames(room)
    noise = _noise(jnp.stack([item.keys[1] for item in items]), frames, cfg.s2mel.mels)
    for i, item in enumerate(items):
        if item.given.noise is not None:
            row = np.asarray(item.given.noise, np.float32)[len(item.voice.mel) :]
            noise = noise.at[i, : item.target].set(row)
    jax.block_until_ready(latents)  # so that a stage is over before the next one is announced
    begin("mel")
    packed = bucket(max(item.packed for item in items), buckets.FRAMES)
    mel, _ = to_mel(params, cfg, voices, codes, lengths, latents, noise, options.steps, options.guidance, packed)
    rows = np.asarray(mel, np.float32)
    begin("vocode")
    _vocode(params, cfg, items, [row[: item.target] for row, item in zip(rows, items, strict=True)])


def _vocode(params: Params, cfg: Config, items: Sequence[_Item], mels: Sequence[np.ndarray]) -> None:
    rows, lengths = _stacked(mels, bucket(max(map(len, mels)), tuple(map(target_frames, buckets.CODES))))
    samples = np.asarray(bigvgan.vocode(params["bigvgan"], cfg.bigvgan, rows, lengths))
    for item, mel, row in zip(items, mels, samples, strict=True):
        item.mel, item.samples = mel, row[: len(mel) * cfg.bigvgan.hop]


def _join(cfg: Config, items: Sequence[_Item], options: Options) -> Audio:
    """The segments of a text, one after another with silence between."""
    silence = np.zeros(cfg.mel.rate * options.silence_ms // 1000, np.float32)
    parts, segments, at = [], [], 0
    for item in items:
        if parts:
            parts.append(silence)
            at += len(silence)
        parts.append(item.samples)
        segments.append(Segment(item.codes, item.mel, at, at + len(item.samples), item.stopped))
        at += len(item.samples)
    return Audio(np.concatenate(parts), cfg.mel.rate, tuple(segments))


def gather(voices: Sequence[Voice]) -> Voices:
    """Voices as one batch, the prompts padded to a bucket."""
    room = bucket(max(len(voice.mel) for voice in voices), buckets.PROMPT)
    latents, emotion, style = (
        jnp.asarray(np.stack([getattr(v, n) for v in voices])) for n in ("latents", "emotion", "style")
    )
    mel, lengths = _stacked([voice.mel for voice in voices], room)
    content, _ = _stacked([voice.content for voice in voices], room)
    return Voices(latents, emotion, style, mel, content, lengths)


def text_batch(cfg: Config, rows: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Text ids as a padded batch: [B, X] int32, lengths [B]. Raises ValueError for ids or lengths the GPT lacks."""
    longest = max(map(len, rows))
    if longest > cfg.gpt.most_texts:
        raise ValueError(
            f"a segment has {longest} text pieces, but the model takes {cfg.gpt.most_texts}: use shorter segments"
        )
    highest = max((max(row, default=0) for row in rows), default=0)
    if highest >= cfg.gpt.texts:
        raise ValueError(f"text id {highest} is past the model's {cfg.gpt.texts}: bpe.model belongs to another model")
    return _stacked([np.asarray(row, np.int32) for row in rows], bucket(longest, buckets.TEXT))


def target_frames(codes: int) -> int:
    """The mel frames that a bucket of codes can need."""
    return int(codes * s2mel.FRAMES_PER_CODE) + 1


def _stacked(rows: Sequence[Any], room: int) -> tuple[Array, Array]:
    """Arrays of different lengths as a batch, padded with zeros: [B, room, ...], lengths [B]."""
    arrays = [np.asarray(row) for row in rows]
    padded = [np.pad(a, ((0, room - len(a)),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    return jnp.asarray(np.stack(padded)), jnp.array([len(a) for a in arrays])


@partial(jax.jit, static_argnums=(1, 2))
def _noise(keys: Array, frames: int, mels: int) -> Array:
    return jax.vmap(lambda key: s2mel.draw_noise(key, frames, mels))(keys)


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
