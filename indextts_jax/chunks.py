"""One segment in chunks: samples are made while its codes are drawn.

Where a chunk ends depends on the codes' number alone, never on time, so that the same request gives the same samples.

- Codes: those that the segment will begin with, whatever wins (`drawing.Drawing.known`).
- Second pass, where the model has one: causal, so that its cache is kept and only new codes are fed (`gpt.extend`).
- Codec, where it restores features: not causal. It is run on all codes known, and the frames held back are at least
  those that would hear the codes to come.
- Flow: not causal. A chunk is solved with the recording and the last frames spoken as its prompt, up to the last code
  known; its last frames, which have too little behind them, are held back and solved again with the next chunk, from
  the same noise.
- Vocoder: hears as far as it can to both sides, `BigVGANConfig.reach`; the frames held back are at least as many.
  Where a chunk begins, the samples that the one before gave for the same frames are cross-faded into its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import buckets
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.errors import Error
from indextts_jax.groups import Groups, Spoken, spoilt
from indextts_jax.models import Params, bigvgan, gpt, s2mel
from indextts_jax.render import TARGETS, gather, padded_codes, spoken_frames, text_batch, to_chunk
from indextts_jax.request import Chunk

FADE = 8  # mel frames over which a chunk fades into the next
# Few shapes, of which the first sound waits to be compiled: all codes of a segment are padded to one of these, in
# semantic frames,
CODES = (512, 1024, 1536, 2048)
BLOCK = 64  # the second pass reads so many at once, and the flow has three lengths.


class Stream:
    """A segment on its way: `chunk` after `chunk` of the codes that are known.

    Raises Error for settings of which a chunk would be too short.
    """

    def __init__(self, params: Params, cfg: Config, row: Spoken):
        streaming = row.request.streaming
        assert streaming is not None
        self._params, self._cfg, self._row, self._streaming = params, cfg, row, streaming
        unheard = self._frames(cfg.repcodec.reach) + 1 if cfg.repcodec.reach else 0
        self._held = max(cfg.bigvgan.reach, FADE, unheard)  # frames at the end of a chunk that are solved again
        self._window = max(streaming.context, cfg.bigvgan.reach)
        self._sizes = self._lengths()
        self._voice = gather([row.request.voice])
        self._codes = self._end = self._heard = 0  # codes used; frames given, and how many of them are kept:
        # As bound to a device as what comes of the weights: other programs would be compiled for the first chunk.
        place = getattr(jax.tree.leaves(params["s2mel"])[0], "sharding", None)
        self._spoken = jax.device_put(jnp.zeros((1, self._window, cfg.s2mel.mels)), place)
        self._tail = np.zeros(0, np.float32)  # samples past the last one given, as the last chunk had them
        self._given: list[np.ndarray] = []
        self._over = False
        # Of the second pass, if there is one: the codes fed, their latents, the prefix's slots and length, the caches.
        self._fed = 0
        self._latents: Any = None
        self._prefix: Any = None
        self._caches: Any = None

    @property
    def due(self) -> int:
        """More codes than these must be known for the next chunk, or all of them."""
        return self._streaming.after(self._codes)

    @property
    def samples(self) -> np.ndarray:
        """All samples given so far, [N]."""
        return np.concatenate(self._given)

    def chunk(self, codes: np.ndarray, whole: bool) -> Chunk | None:
        """The next chunk that can be made of the codes [C] known by now, if any can; whole: there are no others."""
        if self._over:
            return None
        if len(codes) > self.due:
            return self._chunk(codes[: self.due], last=False)
        if not whole:
            return None
        return self._chunk(codes, last=True) if self._codes else self._at_once()

    def _frames(self, codes: int) -> int:
        return spoken_frames(codes * self._cfg.repcodec.frames, self._row.request.options.speed)

    def _lengths(self) -> tuple[int, ...]:
        """To how many frames the target of the first chunk is padded, and to the lowest of which those of others."""
        first, hop = self._streaming.first_codes, self._streaming.hop
        for name, codes, least in (("first_codes", first, self._held + FADE), ("hop", hop, FADE + 1)):
            if self._frames(codes) < least:
                raise Error(
                    f"{name} is {codes}, which is too few: they become {self._frames(codes)} mel frames at this speed, "
                    f"and {least} are needed"
                )
        others = (self._frames(min(hop, codes)) + 1 + self._held for codes in (2 * first, hop))  # one: by its rounding
        return bucket(self._frames(first), TARGETS), *(bucket(frames, TARGETS) for frames in others)

    def _at_once(self) -> Chunk:
        """All of a segment that is no longer than its first chunk, by the programs that make it otherwise."""
        alone = Groups(self._params, self._cfg, 1)
        alone.add(self._row)  # a full group, which starts at once
        [found] = alone.finished(wait=True)
        if found.error is not None:
            raise found.error
        assert found.samples is not None
        return self._give(found.samples, self._row.codes, last=True)

    def _chunk(self, codes: np.ndarray, last: bool) -> Chunk:
        cfg, hop = self._cfg.bigvgan, self._cfg.bigvgan.hop
        frames = self._frames(len(codes))
        end = frames if last else frames - self._held
        if self._cfg.s2mel.latent_layers:
            self._feed(codes)
        mel = self._solve(codes, frames)
        before, heard = min(self._heard, cfg.reach), mel
        if before:
            past = s2mel.window(self._spoken, _one(self._heard - before), cfg.reach)
            heard = s2mel.join(past, _one(before), mel, cfg.reach + mel.shape[1])
        length = before + frames - self._end
        samples = np.asarray(bigvgan.vocode(self._params["bigvgan"], cfg, heard, _one(length)))[0]
        samples = samples[before * hop : length * hop]
        if not np.isfinite(samples).all():
            raise spoilt("vocode" if np.isfinite(np.asarray(mel)).all() else "mel", self._row.request.name)
        cut = (end - self._end) * hop
        given, tail, new = faded(self._tail, samples[:cut]), samples[cut : cut + FADE * hop], codes[self._codes :]
        # What is kept changes only here, so that a chunk that fails can be made again.
        both = s2mel.join(self._spoken, _one(self._heard), mel, self._window + mel.shape[1])
        known = self._heard + end - self._end
        self._heard = min(self._window, known)
        self._spoken = s2mel.window(both, _one(known - self._heard), self._window)
        self._codes, self._end, self._tail = len(codes), end, tail
        return self._give(given, new, last)

    def _feed(self, codes: np.ndarray) -> None:
        """The second pass of the codes that it has not seen."""
        gpt_cfg, params, request = self._cfg.gpt, self._params["gpt"], self._row.request
        if self._caches is None:
            voice, texts = self._voice, text_batch(self._cfg, [request.ids])
            self._prefix = gpt.prefix(params, gpt_cfg, voice.latents, voice.emotion, *texts)
            self._caches = gpt.prefill(params, gpt_cfg, self._prefix)[1]
            self._latents = jnp.zeros((1, CODES[0], gpt_cfg.width), self._prefix.embeddings.dtype)
        slots, known = self._prefix.embeddings.shape[1], padded_codes(self._cfg, len(codes), CODES)
        if self._caches[0].k.shape[3] < slots + known + BLOCK:
            self._caches = gpt.widen(self._caches, slots + known + BLOCK)
        before = np.concatenate([[gpt_cfg.start_code], codes[:-1], np.zeros(BLOCK)]).astype(np.int32)
        while self._fed < len(codes):
            latents, self._caches = gpt.extend(
                params, gpt_cfg, self._caches, slots, self._prefix.lengths, before[None, self._fed : self._fed + BLOCK],
                np.int32(self._fed),
            )  # fmt: skip
            self._latents = s2mel.join(self._latents, _one(self._fed), latents, known)
            self._fed = min(self._fed + BLOCK, len(codes))

    def _solve(self, codes: np.ndarray, frames: int) -> Array:
        """The log-mel [1, F, M] of the frames from the last one given to so many."""
        request, cfg = self._row.request, self._cfg
        known, first = padded_codes(self._cfg, len(codes), CODES), not self._heard
        size = self._sizes[0] if first else min(size for size in self._sizes[1:] if size >= frames - self._end)
        packed = len(request.voice.mel) + size + (0 if first else self._window)
        noise = s2mel.noise(request.keys[1][None], size, cfg.s2mel.mels, _one(self._end))
        guidance = np.array([request.options.guidance], np.float32)
        return to_chunk(
            self._params, cfg, self._voice, jnp.asarray(np.pad(codes, (0, known - len(codes)))[None]),
            _one(len(codes)), self._latents, noise, self._spoken, _one(self._heard), _one(self._end), _one(frames),
            request.options.steps, guidance, bucket(packed, buckets.FRAMES), bool(guidance[0]),
            bucket(self._frames(known) + 1, TARGETS),
        )  # fmt: skip

    def _give(self, samples: np.ndarray, codes: np.ndarray, last: bool) -> Chunk:
        start = sum(map(len, self._given))
        self._given.append(samples)
        self._over = last
        return Chunk(samples, start, codes, last, self._row.request)


def faded(before: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Samples [N] that begin as `before` [n], which stands for the same time, and become themselves within it."""
    n = min(len(before), len(samples))
    weight = (0.5 - 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / max(n, 1))).astype(np.float32)
    return np.concatenate([(1 - weight) * before[:n] + weight * samples[:n], samples[n:]])


def _one(value: int) -> Any:
    """A length or place of the one row."""
    return np.array([value], np.int32)
