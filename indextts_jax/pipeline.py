"""The whole system: texts and voices become audio.

    model = load("model")
    voice = listen(model.params, model.cfg, audio.load_speaker("voice.wav"))
    [speech] = speak(model.params, model.cfg, [model.text.analyse("Hello.")], [voice], [0])

`speak` works on lists and lengths at the host; what it calls are pure functions of arrays (`decoding.py`, `render.py`).

Dimensions: B batch, C codes, P prompt frames, F target frames, M mels, D width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import audio, buckets, decoding, emotion, seeds
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.models import Params, bigvgan, gpt, s2mel
from indextts_jax.render import _stacked, gather, second_pass, target_frames, text_batch, to_mel
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """What replaces a stage of one segment, for research and comparison; None: computed as usual."""

    codes: Any = None  # [C] integers: nothing is drawn
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

    def save(self, path: str | PathLike[str]) -> None:
        """Write a WAV file, mono and 16 bit, that appears only once it is complete. Raises `Error`."""
        audio.write_wav(path, audio.to_int16(self.samples), self.rate)


@dataclass(frozen=True)
class Options:
    """Settings of speech; the defaults are the reference's."""

    sampling: Sampling = field(default_factory=Sampling)
    max_codes: int = 1500  # per segment
    retries: int = 0  # how often a segment that meets max_codes, or has none, is drawn again with another key
    steps: int = 25  # of the flow
    guidance: float = 0.7
    silence_ms: int = 200  # between segments
    batch: int = 8  # segments at once, at most: `rows` says how many

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_codes", self.max_codes, 1),
            ("retries", self.retries, 0),
            ("batch", self.batch, 1),
            ("steps", self.steps, 1),
            ("silence_ms", self.silence_ms, 0),
        ):
            if value < low:
                raise Error(f"{name} is {value}, but must be at least {low}")
        if not 0 <= self.guidance <= 100:
            raise Error(f"guidance is {self.guidance}, but must lie between 0 and 100")
        if self.retries and not self.sampling.sample:
            raise Error(f"retries is {self.retries}, but without sampling the same codes would come again")

    @property
    def rows(self) -> int:
        """The segments that are decoded at once, and rendered at once: `batch` rounded down to 1, 2, 4, 8, 16, ..."""
        return buckets.within(self.batch, buckets.BATCH)


Progress = Callable[[str, int, int], None]  # stage that begins, steps done, steps in all
FRAMES_PER_ROW = 1024  # rows longer than this, prompt and target together, take the place of several
STAGES = ("codes", "latents", "mel", "vocode")  # each is one step per segment


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
    keys: Sequence[int | Array],
    options: Options | None = None,
    emotions: Sequence[Emotion | None] | None = None,
    given: Sequence[Sequence[Given]] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Audio]:
    """Speak each text in its voice: texts (`TextFrontEnd.analyse`), voices and keys are parallel; -> one Audio each.

    keys: integer seeds or typed keys, see `seeds.key`.

    All segments of all texts go through the stages side by side, `options.rows` at a time: while codes are drawn, a
    segment that ends gives its place to the next; segments of like length are rendered together. The same text,
    voice, key and options give the same audio but for rounding, whatever stands beside them. `emotions`: one per text,
    None for the voice's own. `given`: per text, per segment, what replaces a stage. Raises Error for what does
    not fit the model.
    """
    options = options or Options()
    given = given or [[Given()] * len(text.segments) for text in texts]
    emotions = emotions or [None] * len(texts)
    if not len(texts) == len(voices) == len(keys) == len(emotions) == len(given):
        raise Error(
            f"{len(texts)} texts, {len(voices)} voices, {len(keys)} keys, {len(emotions)} emotions and {len(given)} "
            "given: not parallel"
        )
    keys = [seeds.key(key) for key in keys]
    rows: list[list[_Item]] = []
    for t, (text, voice, key, felt, replaced) in enumerate(zip(texts, voices, keys, emotions, given, strict=True)):
        vector = emotion.resolve(params["prototypes"], cfg.prototypes, felt, voice.emotion, voice.base, voice.style)
        voice = voice._replace(emotion=vector)
        if len(replaced) != len(text.segments):
            raise Error(f"{len(replaced)} segments are given, but the text has {len(text.segments)}")
        of = f" of text {t + 1}" if len(texts) > 1 else ""
        row = []
        for i, (ids, instead) in enumerate(zip(text.segment_ids, replaced, strict=True)):
            name = f"segment {i + 1} of {len(text.segments)}{of}"
            own = jax.random.fold_in(key, i)
            purposes = jax.random.fold_in(own, seeds.CODES), jax.random.fold_in(own, seeds.NOISE)
            row.append(_Item(name, ids, voice, purposes, instead))
        rows.append(row)

    items = [item for row in rows for item in row]
    for item in items:
        _check_given(cfg, item)
    total = len(STAGES) * len(items)
    drawn = [item for item in items if item.given.mel is None]
    progress("codes", 0, total)
    _draw(params, cfg, [item for item in drawn if item.given.codes is None], options)
    for item in drawn:
        _check_codes(cfg, item)
    done = len(items)
    for group in _groups(drawn, options.rows):
        _render(params, cfg, group, options, partial(_begin, progress, done, len(group), total))
        done += len(group) * (len(STAGES) - 1)
    for item in items:
        if item.given.mel is not None:
            progress("vocode", done, total)
            _vocode(params, cfg, [item], [item.given.mel])
            done += len(STAGES) - 1
    return [_join(cfg, row, options) for row in rows]


def _begin(progress: Progress, done: int, segments: int, total: int, stage: str) -> None:
    """Announce a stage of a group of segments before which `done` steps were done."""
    progress(stage, done + (STAGES.index(stage) - 1) * segments, total)


def _draw(params: Params, cfg: Config, items: Sequence[_Item], options: Options) -> None:
    """Draw the codes of all items, `options.rows` at a time."""
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
        params["gpt"], cfg.gpt, prefix, keys, options.sampling, options.max_codes, options.rows, options.retries
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


def _check_given(cfg: Config, item: _Item) -> None:
    """See that what is given for a segment fits the model, and take it as numpy arrays. Raises ValueError."""
    taken: dict[str, np.ndarray] = {}
    for name, form, width in (
        ("codes", "[C] of integers", None),
        ("latents", f"[C, {cfg.gpt.width}]", cfg.gpt.width),
        ("noise", f"[P + F, {cfg.s2mel.mels}]", cfg.s2mel.mels),
        ("mel", f"[F, {cfg.s2mel.mels}]", cfg.s2mel.mels),
    ):
        if (value := getattr(item.given, name)) is None:
            continue
        try:
            array = np.asarray(value)
            array = array if width is None else array.astype(np.float32)
        except (TypeError, ValueError):
            raise Error(f"the {name} given for {item.name} must be numbers of shape {form}") from None
        if len(array.shape) != form.count(",") + 1 or 0 in array.shape or (width and array.shape[1] != width):
            raise Error(f"the {name} given for {item.name} must have shape {form}, not {array.shape}")
        if width is None and array.dtype.kind not in "iu":
            raise Error(f"the {name} given for {item.name} are {array.dtype}, but must be integers")
        if not np.isfinite(array).all():
            raise Error(f"the {name} given for {item.name} must be finite, but hold NaN or infinite numbers")
        taken[name] = array
    item.given = Given(**taken)
    if item.given.mel is not None:
        return
    if item.given.codes is not None:
        item.codes = item.given.codes
        if len(item.codes) > cfg.gpt.most_codes:
            raise Error(f"{len(item.codes)} codes are given for {item.name}, but the model takes {cfg.gpt.most_codes}")
        _check_codes(cfg, item)
        item.codes = item.codes.astype(np.int32)
    if item.given.latents is not None and len(item.given.latents) != len(item.codes):
        raise Error(
            f"{len(item.given.latents)} latents are given for {item.name} beside {len(item.codes)} codes: give as many"
        )


def _check_codes(cfg: Config, item: _Item) -> None:
    """See that the codes of a segment can be spoken, and that given noise fits them. Raises ValueError."""
    if len(item.codes) == 0:
        raise Error(f"no speech came of {item.name}: the stop code was drawn first; try another seed or retries")
    low, high = item.codes.min(), item.codes.max()
    if low < 0 or high >= cfg.repcodec.codes:
        raise Error(
            f"the codes of {item.name} lie between {low} and {high}, but the codec has 0 to {cfg.repcodec.codes - 1}"
        )
    item.target = int(s2mel.target_lengths(np.array(len(item.codes))))
    need = (item.packed, cfg.s2mel.mels)
    if item.given.noise is not None and item.given.noise.shape != need:
        raise Error(
            f"the noise given for {item.name} has shape {item.given.noise.shape}, but a prompt of "
            f"{len(item.voice.mel)} and a target of {item.target} frames need {need}"
        )


def _check_finite(stage: str, item: _Item, array: np.ndarray) -> None:
    """Raise ValueError where a stage gave what is no speech."""
    if not np.isfinite(array).all():
        raise Error(
            f"stage {stage} of {item.name} gave NaN or infinite numbers: look for such numbers in its voice, its "
            "emotion and the weights, and use float32 if the weights are narrower"
        )


def _groups(items: Sequence[_Item], batch: int) -> list[list[_Item]]:
    """Items of like length together: at most `batch`, fewer of long ones, and so many that no row is padding."""
    waiting, groups = sorted(items, key=lambda item: -item.packed), []
    while waiting:
        frames = bucket(waiting[0].packed, buckets.FRAMES)
        most = max(1, min(batch, len(waiting), batch * FRAMES_PER_ROW // frames))
        most = buckets.within(most, buckets.BATCH)
        groups.append(waiting[:most])
        waiting = waiting[most:]
    return groups


def _render(
    params: Params, cfg: Config, items: Sequence[_Item], options: Options, begin: Callable[[str], None]
) -> None:
    """From codes to samples, for a few items side by side."""
    begin("latents")
    voices = gather([item.voice for item in items])
    rung = bucket(max(len(item.codes) for item in items), buckets.CODES)
    codes, lengths = _stacked([item.codes for item in items], rung)
    if all(item.given.latents is not None for item in items):
        latents = _stacked([item.given.latents for item in items], rung)[0]
    else:
        latents = second_pass(params, cfg, voices, *text_batch(cfg, [item.ids for item in items]), codes)
        for i, item in enumerate(items):
            if item.given.latents is not None:
                latents = latents.at[i, : len(item.codes)].set(jnp.asarray(item.given.latents, latents.dtype))
    frames = target_frames(rung)
    noise = s2mel.noise(jnp.stack([item.keys[1] for item in items]), frames, cfg.s2mel.mels)
    for i, item in enumerate(items):
        if item.given.noise is not None:
            noise = noise.at[i, : item.target].set(item.given.noise[len(item.voice.mel) :])
    jax.block_until_ready(latents)  # so that a stage is over before the next one is announced
    begin("mel")
    packed = bucket(max(item.packed for item in items), buckets.FRAMES)
    mel, _ = to_mel(params, cfg, voices, codes, lengths, latents, noise, options.steps, options.guidance, packed)
    rows = [row[: item.target] for row, item in zip(np.asarray(mel, np.float32), items, strict=True)]
    for item, row in zip(items, rows, strict=True):
        _check_finite("mel", item, row)
    begin("vocode")
    _vocode(params, cfg, items, rows)


def _vocode(params: Params, cfg: Config, items: Sequence[_Item], mels: Sequence[np.ndarray]) -> None:
    rows, lengths = _stacked(mels, bucket(max(map(len, mels)), tuple(map(target_frames, buckets.CODES))))
    samples = np.asarray(bigvgan.vocode(params["bigvgan"], cfg.bigvgan, rows, lengths))
    for item, mel, row in zip(items, mels, samples, strict=True):
        item.mel, item.samples = mel, row[: len(mel) * cfg.bigvgan.hop]
        _check_finite("vocode", item, item.samples)


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
