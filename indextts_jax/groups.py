"""Codes become samples, in groups of segments that share their programs' shapes.

Work is only handed to the device when a group starts; its samples are fetched when they are ready, or when there is
nothing else to do.

Dimensions: B rows of a group, C codes, P prompt frames, F target frames, M mels, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import buckets
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.drawing import Usage
from indextts_jax.errors import Error
from indextts_jax.models import Params, bigvgan, s2mel
from indextts_jax.render import (
    TARGETS,
    _stacked,
    gather,
    padded_codes,
    rung,
    second_pass,
    spoken_frames,
    text_batch,
    to_mel,
)
from indextts_jax.request import Given, Request, Result

FRAMES_PER_ROW = 1024  # rows longer than this, prompt and target together, take the place of several


@dataclass(eq=False)
class Spoken:
    """A segment whose codes are known."""

    request: Request
    given: Given = field(default_factory=Given)  # as arrays
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [C]
    stopped: bool = True
    attempts: int = 0
    stride: int = 1  # semantic frames of a code
    target: int = 0  # mel frames
    stream: Any = None  # a `chunks.Stream`, where it is spoken in chunks

    @property
    def semantic(self) -> int:
        """The semantic frames that its codes stand for."""
        return len(self.codes) * self.stride

    @property
    def packed(self) -> int:
        """Frames of prompt and target together."""
        return len(self.request.voice.mel) + self.target

    @property
    def alone(self) -> bool:
        """Whether something is given that no group takes."""
        return any(value is not None for value in self.given[1:])

    @property
    def programs(self) -> tuple[int, bool]:
        """What rows of a group must have in common, whatever their lengths."""
        return self.request.options.steps, self.request.options.guidance != 0

    @property
    def shapes(self) -> tuple[int, ...]:
        """The rungs of everything that has a length."""
        return (
            bucket(len(self.request.ids), buckets.TEXT),
            bucket(self.semantic, buckets.CODES),
            bucket(len(self.request.voice.mel), buckets.PROMPT),
            rung(self.semantic, self.target),
            bucket(self.packed, buckets.FRAMES),
        )


class _Started(NamedTuple):
    """A group that is on the device."""

    rows: list[Spoken]
    mel: Array
    samples: Any  # an Array


class Groups:
    """Segments that wait for others of their shapes, and groups that are being rendered.

    size: rows of a group, fewer of long ones. fixed: every group is padded to its full size and holds one rung of every
    length, so that a segment's samples are the same to the bit whatever stands beside it; else groups are made as full
    as they can be without padding. mels: keep the log-mels.
    """

    def __init__(
        self,
        params: Params,
        cfg: Config,
        size: int,
        fixed: bool = False,
        mels: bool = False,
        usage: Usage | None = None,
    ):
        self._params, self._cfg, self.size, self._fixed, self._mels = params, cfg, size, fixed, mels
        self._usage = usage or Usage()
        self._waiting: dict[Any, list[Spoken]] = {}
        self._started: list[_Started] = []

    @property
    def unfinished(self) -> int:
        """The segments that wait or are being rendered."""
        return sum(map(len, self._waiting.values())) + sum(len(group.rows) for group in self._started)

    @property
    def started(self) -> int:
        """The groups on the device."""
        return len(self._started)

    def add(self, spoken: Spoken) -> None:
        """Have a segment rendered; it may wait for others of its shapes until `start`."""
        key: Any = id(spoken) if spoken.alone else (spoken.programs, spoken.shapes)
        waiting = self._waiting.setdefault(key, [])
        waiting.append(spoken)
        if len(waiting) == (full := 1 if spoken.alone else self._full(spoken.shapes[-1])):
            # It waits until it has started: out of memory, nothing is lost.
            self._start(waiting, full)
            del self._waiting[key]

    def _full(self, frames: int) -> int:
        most = max(1, min(self.size, self.size * FRAMES_PER_ROW // frames))
        return most if self._fixed else buckets.within(most, buckets.BATCH)

    def start(self) -> None:
        """Start all groups that wait for more segments."""
        if not self._fixed:
            kinds: dict[Any, list[Spoken]] = {}
            for rows in self._waiting.values():
                kinds.setdefault(rows[0].programs, []).extend(rows)
            for rows in kinds.values():
                rows.sort(key=lambda row: -row.packed)
            self._waiting = kinds
        while self._waiting:
            key, rows = next(iter(self._waiting.items()))
            while rows:
                full = self._full(rows[0].shapes[-1])
                n = full if self._fixed else buckets.within(min(full, len(rows)), buckets.BATCH)
                self._start(rows[:n], n)
                del rows[:n]
            del self._waiting[key]

    def taken(self) -> list[Spoken]:
        """Everything that is not finished, which is thereby given up."""
        left = [row for group in self._started for row in group.rows]
        left += [row for rows in self._waiting.values() for row in rows]
        self._waiting.clear()
        self._started.clear()
        return left

    def finished(self, wait: bool) -> list[Result]:
        """The segments of the oldest group, if its samples are ready or if `wait`."""
        if not self._started or not (wait or self._started[0].samples.is_ready()):
            return []
        group = self._started[0]
        samples = np.asarray(group.samples)
        spoilt = not np.isfinite(samples[: len(group.rows)]).all()
        mels = np.asarray(group.mel, np.float32) if self._mels or spoilt else [None] * len(group.rows)
        del self._started[0]
        return [self._result(*row) for row in zip(group.rows, samples, mels, strict=False)]

    def _result(self, row: Spoken, samples: np.ndarray, mel: np.ndarray | None) -> Result:
        samples = samples[: row.target * self._cfg.bigvgan.hop]
        mel = None if mel is None else mel[: row.target]
        found = Result(row.request, row.codes, row.stopped, row.attempts, samples, mel if self._mels else None)
        for stage, array in (("mel", mel), ("vocode", samples)):
            if array is not None and not np.isfinite(array).all():
                return found._replace(samples=None, mel=None, error=spoilt(stage, row.request.name))
        return found

    def _start(self, rows: Sequence[Spoken], size: int) -> None:
        """Hand a group to the device, padded to `size` rows."""
        rows = list(rows)
        if rows[0].given.mel is not None:
            frames = bucket(rows[0].target, TARGETS)
            mel, lengths = _stacked([rows[0].given.mel], frames)
            samples = bigvgan.vocode(self._params["bigvgan"], self._cfg.bigvgan, mel, lengths)
        else:
            mel, samples = self._render([*rows, *[rows[0]] * (size - len(rows))])
            self._usage.frames += size * max(row.shapes[-1] for row in rows)
            self._usage.used_frames += sum(row.packed for row in rows)
        self._started.append(_Started(rows, mel, samples))

    def _render(self, rows: list[Spoken]) -> tuple[Array, Array]:
        params, cfg, requests = self._params, self._cfg, [row.request for row in rows]
        voices = gather([request.voice for request in requests])
        longest = padded_codes(cfg, max(len(row.codes) for row in rows))
        codes, lengths = _stacked([row.codes for row in rows], longest)
        if all(row.given.latents is not None for row in rows):
            latents = _stacked([row.given.latents for row in rows], longest)[0]
        else:
            latents = second_pass(params, cfg, voices, *text_batch(cfg, [request.ids for request in requests]), codes)
        frames = max(rung(row.semantic, row.target) for row in rows)
        targets = jnp.array([row.target for row in rows])
        noise = s2mel.noise(jnp.stack([request.keys[1] for request in requests]), frames, cfg.s2mel.mels)
        for i, row in enumerate(rows):
            if row.given.noise is not None:
                noise = noise.at[i, : row.target].set(row.given.noise[len(row.request.voice.mel) :])
        steps, guided = rows[0].programs
        guidance = np.array([request.options.guidance for request in requests], np.float32)
        packed = max(row.shapes[-1] for row in rows)
        mel, _ = to_mel(
            params, cfg, voices, codes, lengths, latents, noise, steps, guidance, packed, guided, targets
        )  # fmt: skip
        return mel, bigvgan.vocode(params["bigvgan"], cfg.bigvgan, mel, targets)


def spoilt(stage: str, name: str) -> Error:
    """The error of a segment for which a stage gave what is no speech."""
    return Error(
        f"stage {stage} of {name} gave NaN or infinite numbers: look for such numbers in its voice, its emotion and "
        "the weights, and use float32 if the weights are narrower"
    )


# ---- what a segment may be ------------------------------------------------------------------------------------------


def spoken(cfg: Config, request: Request) -> Spoken:
    """A request with what is given for it as numpy arrays. Raises Error for what does not fit the model."""
    taken: dict[str, np.ndarray] = {}
    for name, form, width in (
        ("codes", "[C] of integers", None),
        ("latents", f"[C, {cfg.gpt.width}]", cfg.gpt.width),
        ("noise", f"[P + F, {cfg.s2mel.mels}]", cfg.s2mel.mels),
        ("mel", f"[F, {cfg.s2mel.mels}]", cfg.s2mel.mels),
    ):
        if (value := getattr(request.given, name)) is None:
            continue
        try:
            array = np.asarray(value)
            array = array if width is None else array.astype(np.float32)
        except (TypeError, ValueError):
            raise Error(f"the {name} given for {request.name} must be numbers of shape {form}") from None
        if len(array.shape) != form.count(",") + 1 or 0 in array.shape or (width and array.shape[1] != width):
            raise Error(f"the {name} given for {request.name} must have shape {form}, not {array.shape}")
        if width is None and array.dtype.kind not in "iu":
            raise Error(f"the {name} given for {request.name} are {array.dtype}, but must be integers")
        if not np.isfinite(array).all():
            raise Error(f"the {name} given for {request.name} must be finite, but hold NaN or infinite numbers")
        taken[name] = array
    if "latents" in taken and not cfg.s2mel.latent_layers:
        raise Error(f"latents are given for {request.name}, but this model has no second pass, whose place they take")
    row = Spoken(request, Given(**taken), stride=cfg.repcodec.frames)
    if row.given.mel is not None:
        row.target = len(row.given.mel)
        return row
    text_batch(cfg, [request.ids])
    if row.given.codes is not None:
        if len(row.given.codes) > cfg.gpt.most_codes:
            raise Error(
                f"{len(row.given.codes)} codes are given for {request.name}, but the model takes {cfg.gpt.most_codes}"
            )
        measure(cfg, row, row.given.codes)
    if row.given.latents is not None and len(row.given.latents) != len(row.codes):
        raise Error(
            f"{len(row.given.latents)} latents are given for {request.name} beside {len(row.codes)} codes: give as many"
        )
    return row


def measure(cfg: Config, row: Spoken, codes: np.ndarray) -> None:
    """Set the codes of a segment and how long it will be. Raises Error for codes that cannot be spoken."""
    name = row.request.name
    if len(codes) == 0:
        raise Error(f"no speech came of {name}: the stop code was drawn first; try another seed or retries")
    low, high = codes.min(), codes.max()
    if low < 0 or high >= cfg.repcodec.codes:
        raise Error(
            f"the codes of {name} lie between {low} and {high}, but the codec has 0 to {cfg.repcodec.codes - 1}"
        )
    row.codes = codes.astype(np.int32)
    row.target = row.request.frames or max(1, spoken_frames(row.semantic, row.request.options.speed))
    need = (row.packed, cfg.s2mel.mels)
    if row.given.noise is not None and row.given.noise.shape != need:
        raise Error(
            f"the noise given for {name} has shape {row.given.noise.shape}, but a prompt of "
            f"{len(row.request.voice.mel)} and a target of {row.target} frames need {need}"
        )
