"""From codes to samples: pure functions of arrays, and the batches that they take.

`render` is all of it in one: differentiable in everything that is not an integer.

Codes are int32 [B, C], or distributions over codes, floating [B, C, V], through which gradients go: see `gpt.latents`
and `repcodec.embed`, where embeddings are mixed. V is the GPT's vocabulary, or the codec's, without start and stop.

Dimensions: B batch, X text ids, L latents, C codes, V vocabulary, P prompt frames, F target frames, M mels, K content
width, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import buckets, byte_pairs
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.errors import Error
from indextts_jax.models import Params, bigvgan, gpt, repcodec, s2mel
from indextts_jax.voice import Voice


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


def gather(voices: Sequence[Voice]) -> Voices:
    """Voices as one batch, the prompts padded to a bucket."""
    rung = bucket(max(len(voice.mel) for voice in voices), buckets.PROMPT)
    latents, emotion, style = (
        jnp.asarray(np.stack([getattr(v, n) for v in voices])) for n in ("latents", "emotion", "style")
    )
    mel, lengths = _stacked([voice.mel for voice in voices], rung)
    content, _ = _stacked([voice.content for voice in voices], rung)
    return Voices(latents, emotion, style, mel, content, lengths)


def text_batch(cfg: Config, rows: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Text ids as a padded batch: [B, X] int32, lengths [B]. Raises Error for ids or lengths the GPT lacks."""
    longest = max(map(len, rows))
    if longest > cfg.gpt.most_texts:
        raise Error(
            f"a segment has {longest} text pieces, but the model takes {cfg.gpt.most_texts}: use shorter segments"
        )
    highest = max((max(row, default=0) for row in rows), default=0)
    if highest >= cfg.gpt.text_vocabulary:
        file = "bpe.model" if cfg.gpt.languages is None else byte_pairs.NAME
        raise Error(f"text id {highest} is past the model's {cfg.gpt.text_vocabulary}: {file} belongs to another model")
    return _stacked([np.asarray(row, np.int32) for row in rows], bucket(longest, buckets.TEXT))


def padded_codes(cfg: Config, codes: int, ladder: tuple[int, ...] = buckets.CODES) -> int:
    """To how many codes so many are padded: those of a rung of semantic frames."""
    return -(-bucket(codes * cfg.repcodec.frames, ladder) // cfg.repcodec.frames)


def target_frames(semantic: int) -> int:
    """The mel frames that a bucket of semantic frames can need."""
    return int(semantic * s2mel.FRAMES_PER_CODE) + 1


TARGETS = tuple(map(target_frames, buckets.CODES))  # every length of a target that programs are compiled for


def spoken_frames(semantic: int, speed: float = 1.0) -> int:
    """The mel frames of so many semantic frames, as `s2mel.target_lengths` has them: on the host, which waits for no
    device."""
    return int(np.float32(semantic) * np.float32(s2mel.FRAMES_PER_CODE) / np.float32(speed))


def rung(semantic: int, frames: int) -> int:
    """To how many frames a target of so many is padded. What has its codes' own length has their rung."""
    own = bucket(semantic, buckets.CODES)
    return target_frames(own) if frames == spoken_frames(semantic) else bucket(frames, TARGETS)


def _stacked(rows: Sequence[Any], longest: int) -> tuple[Array, Array]:
    """Arrays of different lengths as a batch, padded with zeros: [B, longest, ...], lengths [B]."""
    arrays = [np.asarray(row) for row in rows]
    padded = [np.pad(a, ((0, longest - len(a)),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    return jnp.asarray(np.stack(padded)), jnp.array([len(a) for a in arrays])


# ---- from codes to samples: pure functions --------------------------------------------------------------------------


def second_pass(
    params: Params, cfg: Config, voices: Voices, texts: Array, lengths: Array, codes: Array, remat: bool = False
) -> Array | None:
    """The GPT's latents of codes already known: texts [B, X], lengths [B], codes [B, C] or [B, C, V] -> [B, C, D].

    None of a model whose content has no latents. remat: as in `gpt.latents`.
    """
    if not cfg.s2mel.latent_layers:
        return None
    prefix = gpt.prefix(params["gpt"], cfg.gpt, voices.latents, voices.emotion, texts, lengths)
    return gpt.latents(params["gpt"], cfg.gpt, prefix, codes, remat)


def content(
    params: Params, cfg: Config, codes: Array, lengths: Array, latents: Array | None, frames: int, targets: Array
) -> Array:  # fmt: skip
    """What is to be spoken, at the rate of mels: codes, lengths [B], latents [B, C, D] -> [B, frames, K].

    targets [B]: how many frames of it. latents: None where the model has no second pass; what is spoken are then the
    semantic features that its codec restores.
    """
    if latents is None:
        features = repcodec.restore(params["repcodec"], cfg.repcodec, codes, lengths)
        semantic = lengths * cfg.repcodec.frames
        return s2mel.regulate(params["s2mel"], cfg.s2mel, features, semantic, frames=frames, target_lengths=targets)
    embeddings = repcodec.embed(params["repcodec"], cfg.repcodec, codes)
    return s2mel.content(
        params["s2mel"], cfg.s2mel, embeddings, latents, lengths, frames=frames, target_lengths=targets
    )


def to_mel(
    params: Params, cfg: Config, voices: Voices, codes: Array, lengths: Array, latents: Array | None, noise: Array,
    steps: int = 25, guidance: Any = 0.7, frames: int | None = None, guided: bool | None = None,
    targets: Array | None = None, solver: Any = "euler", schedule: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Codes, lengths [B], latents [B, C, D] and noise [B, F, M] -> log-mel [B, F, M] and its lengths [B].

    latents: as in `content`. `guidance` (a number, or one per row [B]), `guided`, `solver`, `schedule`, and `frames` of
    prompt and target together: see `s2mel.flow`.
    targets [B] int32, at most F: the lengths that are wanted (default: the codes' own).
    """
    targets = s2mel.target_lengths(lengths * cfg.repcodec.frames) if targets is None else targets
    said = content(params, cfg, codes, lengths, latents, noise.shape[1], targets)
    mel = s2mel.flow(
        params["s2mel"], cfg.s2mel, noise, said, targets, voices.mel, voices.content, voices.lengths, voices.style,
        steps=steps, guidance=guidance, frames=frames, guided=guided, solver=solver, schedule=schedule,
    )  # fmt: skip
    return mel, targets


def to_chunk(
    params: Params, cfg: Config, voices: Voices, codes: Array, lengths: Array, latents: Array | None, noise: Array,
    spoken: Array, heard: Array, starts: Array, ends: Array, steps: int = 25, guidance: Any = 0.7,
    frames: int | None = None, guided: bool | None = None, whole: int | None = None,
) -> Array:  # fmt: skip
    """`to_mel` of the frames from `starts` to `ends` [B] alone, which continue what was spoken: -> [B, F, M].

    codes [B, C], lengths [B] and latents [B, C, D] are all that are known, and `ends` the frames that they become;
    noise [B, F, M] that of these frames. spoken [B, W, M], of which heard [B]: the log-mel before them, which the flow
    hears after the voice's own. whole: to how many frames all of it is padded (default: `target_frames` of them).
    """
    whole = whole or target_frames(codes.shape[1] * cfg.repcodec.frames)
    # From the start of the segment: its norms run over all frames, so that parts by themselves would differ more.
    said = content(params, cfg, codes, lengths, latents, whole, ends)
    before, own = s2mel.window(said, starts - heard, spoken.shape[1]), s2mel.window(said, starts, noise.shape[1])
    length = voices.mel.shape[1] + spoken.shape[1]
    prompt, prompt_content = (
        s2mel.join(first, voices.lengths, second.astype(first.dtype), length)
        for first, second in ((voices.mel, spoken), (voices.content, before))
    )
    return s2mel.flow(
        params["s2mel"], cfg.s2mel, noise, own, ends - starts, prompt, prompt_content, voices.lengths + heard,
        voices.style, steps=steps, guidance=guidance, frames=frames, guided=guided,
    )  # fmt: skip


def render(
    params: Params, cfg: Config, voices: Voices, texts: Array, text_lengths: Array, codes: Array, code_lengths: Array,
    noise: Array, steps: int = 25, guidance: Any = 0.7, guided: bool | None = None, solver: Any = "euler",
    schedule: Any = None, remat: bool = False,
) -> Rendered:  # fmt: skip
    """Everything after the codes, as one pure function: differentiable in voices, noise, guidance, parameters, and in
    codes that are distributions.

    texts [B, X], codes [B, C] int32 or [B, C, V] floating with their lengths [B]; noise [B, F, M] with F at least
    `target_frames` of their semantic frames; guidance: a number, or one per row [B], with `guided`, `solver` and
    `schedule` as in `s2mel.flow`; remat: as in `gpt.latents`.
    """
    latents = second_pass(params, cfg, voices, texts, text_lengths, codes, remat)
    mel, lengths = to_mel(
        params, cfg, voices, codes, code_lengths, latents, noise, steps, guidance, guided=guided, solver=solver,
        schedule=schedule,
    )  # fmt: skip
    return Rendered(mel, lengths, bigvgan.vocode(params["bigvgan"], cfg.bigvgan, mel, lengths))
