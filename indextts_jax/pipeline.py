"""The whole system: texts and voices become audio.

    model = load("model")
    voice = listen(model.params, model.cfg, audio.load_speaker("voice.wav"))
    [speech] = speak(model.params, model.cfg, [model.text.analyse("Hello.")], [voice], [0])

`speak` makes requests of texts and joins what comes of them; `scheduling.run` does the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from indextts_jax import audio, byte_pairs, emotion, ends, files, joining, loudness, scheduling, seeds
from indextts_jax.config import Config
from indextts_jax.emotion import Emotion
from indextts_jax.errors import Error
from indextts_jax.joining import Cue
from indextts_jax.models import Params
from indextts_jax.render import spoken_frames
from indextts_jax.request import NOTHING, Given, Options, Request, Result
from indextts_jax.text import Analysis
from indextts_jax.voice import Voice


class Segment(NamedTuple):
    """One segment of a text, and where it lies in the audio."""

    codes: np.ndarray  # [C] int32, without the stop code; empty where a mel was given
    mel: Any  # [F, M] float32 log-mel; None where it was not asked for
    start: int  # first sample
    end: int  # one past the last; before the mel ends where the tail was trimmed
    stopped: bool  # False: cut off by the limit on codes
    text: str = ""  # what is spoken, normalised

    @property
    def cue(self) -> Cue:
        """Its text, for subtitles."""
        return Cue(self.start, self.end, self.text)

    @property
    def words(self) -> tuple[Cue, ...]:
        """The words of its text, each with its first sample and one past its last: estimates, see `joining.words`."""
        return joining.words(self.cue)


class Audio(NamedTuple):
    """Speech."""

    samples: np.ndarray  # [N] float32 within ±1
    rate: int  # Hz
    segments: tuple[Segment, ...]

    def encode(
        self, kind: str = "wav", rate: int | None = None, lufs: float | None = None, name: str = "the audio"
    ) -> bytes:
        """A file of `audio.FORMATS`, mono and 16 bit: at `rate` Hz (default: its own), of a loudness of `lufs` LUFS
        (default: as it is), see `loudness.normalize`; name: in warnings. Raises `Error`.
        """
        if lufs is None:
            return audio.encode(self.samples, self.rate, kind, rate)
        samples = audio.resample(self.samples, self.rate, rate := rate or self.rate)
        return audio.encode(loudness.normalize(samples, rate, lufs, name), rate, kind)

    def save(
        self,
        path: str | PathLike[str],
        kind: str | None = None,
        rate: int | None = None,
        lufs: float | None = None,
    ) -> None:
        """Write a file that appears only once it is complete, as `encode` makes it. Raises `Error`.

        kind: None is what the name ends in, .flac or .ogg, else WAV.
        """
        files.write_whole(Path(path), self.encode(kind or audio.kind_of(path) or "wav", rate, lufs))


Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


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
    duration: float | None = None,
) -> list[Audio]:
    """Speak each text in its voice: texts (`TextFrontEnd.analyse`), voices and keys are parallel; -> one Audio each.

    keys: integer seeds or typed keys, see `seeds.key`.

    The segments of all texts are drawn side by side, `options.batch` at a time, and rendered as they end. The same
    text, voice, key and options give the same audio but for rounding, whatever stands beside them. `emotions`: one per
    text, None for the voice's own. `given`: per text, per segment, what replaces a stage. duration: seconds of each
    text, silences included, exact to half a mel frame; its codes are drawn as without it, and spoken as much faster or
    slower as that needs, at most twice. Raises Error for what does not fit the model or cannot be spoken.
    """
    options = options or Options()
    given = given or [[NOTHING] * len(text.segments) for text in texts]
    emotions = emotions or [None] * len(texts)
    if not len(texts) == len(voices) == len(keys) == len(emotions) == len(given):
        raise Error(
            f"{len(texts)} texts, {len(voices)} voices, {len(keys)} keys, {len(emotions)} emotions and {len(given)} "
            "given: not parallel"
        )
    asked: list[Request] = []
    for t, (text, voice, key, felt, replaced) in enumerate(zip(texts, voices, keys, emotions, given, strict=True)):
        if len(replaced) != len(text.segments):
            raise Error(f"{len(replaced)} segments are given, but the text has {len(text.segments)}")
        of = f" of text {t + 1}" if len(texts) > 1 else ""
        asked += requests(params, cfg, text, voice, key, options, felt, replaced, of, tag=t)
    batch = scheduling.no_more(options.batch or scheduling.rows(params, cfg), len(asked))

    def tick(drawn: int, finished: int) -> None:
        progress("drawing codes" if drawn < len(asked) else "rendering", drawn + finished, 2 * len(asked))

    def run(requests: Sequence[Request]) -> list[Result]:
        """The results of requests, in their order."""
        found: dict[int, Result] = {}
        for result in scheduling.run(params, cfg, requests, batch, mels=True, tick=tick):
            assert isinstance(result, Result)
            if result.error is not None:
                raise result.error
            found[id(result.request)] = result
        return [found[id(request)] for request in requests]

    if duration is None:
        results = run(asked)
    else:
        drawn = run([replace(request, codes_only=True) for request in asked])
        timed: list[Request] = []
        for t, text in enumerate(texts):
            own = [result for result in drawn if result.request.tag == t]
            lengths = fitted(
                cfg, [len(result.codes) for result in own], duration, silences(cfg, len(own), options, text)
            )
            for result, frames in zip(own, lengths, strict=True):
                codes = result.request.given._replace(codes=result.codes)
                timed.append(replace(result.request, given=codes, frames=frames, codes_only=False))
        results = [
            result._replace(stopped=first.stopped, attempts=first.attempts)
            for result, first in zip(run(timed), drawn, strict=True)
        ]
    return [
        join(cfg, [result for result in results if result.request.tag == t], options, text)
        for t, text in enumerate(texts)
    ]


def fitted(cfg: Config, codes: Sequence[int], seconds: float, silence: Sequence[np.ndarray]) -> list[int]:
    """The mel frames of segments of so many codes that together with the silences take so many seconds.

    Each gets its share by its codes, to the frame. Raises Error where that is more than twice as fast or slow as the
    codes say.
    """
    rate, hop, quiet = cfg.mel.rate, cfg.bigvgan.hop, sum(map(len, silence))
    own, total = [spoken_frames(n * cfg.repcodec.frames) for n in codes], round((seconds * rate - quiet) / hop)
    if not sum(own) / 2 <= total <= sum(own) * 2:
        low, high = ((sum(own) * factor * hop + quiet) / rate for factor in (0.5, 2.0))
        raise Error(f"duration is {seconds:g} s, but this text can take {low:.2f} to {high:.2f} s")
    bounds = np.round(np.cumsum([0, *own]) * (total / sum(own))).astype(int)
    return np.diff(bounds).tolist()


def requests(
    params: Params,
    cfg: Config,
    text: Analysis,
    voice: Voice,
    key: int | Array,
    options: Options,
    felt: Emotion | None = None,
    given: Sequence[Given] | None = None,
    of: str = "",
    tag: Any = None,
) -> list[Request]:
    """The segments of a text as the scheduler takes them; `of`: of what, in messages; tag: of each."""
    if (text.language is None) != (cfg.gpt.languages is None):
        raise Error("the text was analysed for another model: use this one's own front end")
    language = None if text.language is None else byte_pairs.language_id(text.language)
    key = seeds.key(key)
    vector = emotion.resolve(params["prototypes"], cfg.prototypes, felt, voice.emotion, voice.base, voice.style)
    voice = voice._replace(emotion=vector)
    asked = []
    for i, (ids, instead) in enumerate(zip(text.segment_ids, given or [NOTHING] * len(text.segments), strict=True)):
        own = jax.random.fold_in(key, i)
        keys = jax.random.fold_in(own, seeds.CODES), jax.random.fold_in(own, seeds.NOISE)
        name = f"segment {i + 1} of {len(text.segments)}{of}"
        asked.append(Request(ids, voice, keys, options, instead, name, tag, language=language))
    return asked


def join(cfg: Config, results: Sequence[Result], options: Options, text: Analysis | None = None) -> Audio:
    """The segments of a text, one after another, each as `ended` leaves it, with the silence of `silences` around."""
    silence = silences(cfg, len(results), options, text)
    parts, segments, at = [silence[0]], [], len(silence[0])
    texts = text.texts if text is not None and text.texts else [""] * len(results)
    for result, spoken, after in zip(results, texts, silence[1:], strict=True):
        assert result.samples is not None
        samples = ended(cfg, result.samples, options)
        segments.append(Segment(result.codes, result.mel, at, at + len(samples), result.stopped, spoken))
        parts += [samples, after]
        at += len(samples) + len(after)
    return Audio(np.concatenate(parts), cfg.mel.rate, tuple(segments))


def ended(cfg: Config, samples: np.ndarray, options: Options, before: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The samples of a segment [N] float32, trimmed and faded as the options say.

    before: what came before them in the segment, where they are only its end.
    """
    if options.trim_tail:
        whole = np.concatenate([*before, samples])
        cut = len(whole) - ends.tail(whole, cfg.mel.rate)
        samples = samples[: max(0, len(samples) - cut)]
    return ends.fade(samples, cfg.mel.rate, options.fade_ms)


def silences(cfg: Config, segments: int, options: Options, text: Analysis | None = None) -> list[np.ndarray]:
    """Zeros [N] float32 before the first of so many segments, and after each: what the text says, else the options.

    Of M ms, they are rate · M // 1000 samples.
    """
    pauses = text.pauses if text is not None and text.pauses else (None,) * segments
    usual = [options.silence_ms] * (segments - 1) + [0]
    lead = text.lead if text is not None else 0
    lengths = [lead, *(own if pause is None else pause for pause, own in zip(pauses, usual, strict=True))]
    return [np.zeros(cfg.mel.rate * ms // 1000, np.float32) for ms in lengths]
