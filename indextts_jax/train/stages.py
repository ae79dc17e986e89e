"""What each stage of training is: its batches, its loss, and what of the model it changes.

Dimensions: B batch, X text ids, C codes, S semantic frames, E their width, F mel frames, M mels, N samples.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from indextts_jax import audio, buckets, features
from indextts_jax.buckets import bucket
from indextts_jax.config import Config
from indextts_jax.convert import rest
from indextts_jax.convert.tensors import Tensor
from indextts_jax.errors import Error
from indextts_jax.models import Params, conditioner, gpt, repcodec
from indextts_jax.models import discriminators as networks
from indextts_jax.train import batches, losses
from indextts_jax.train.batches import Chosen, padded
from indextts_jax.train.corpus import Corpus

log = logging.getLogger(__name__)

Loss = Callable[..., tuple[Array, dict[str, Array]]]

CROP = 32  # mel frames of a row of the vocoder
CODES = (64, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 1536)  # to how many codes a batch is padded: a program each
LONGEST = CODES[-1]
HEARD = 15 * 50  # semantic frames that are heard of a speaker, as when speaking


class Recipe(NamedTuple):
    """One stage of training."""

    components: tuple[str, ...]  # that the loss needs
    trained: tuple[str, ...]  # patterns of the paths that change beside the heads, unless the settings say otherwise
    collate: Callable[[Corpus, Chosen], Any]
    loss: Loss  # (params, cfg, rows, key, **options) -> (loss, parts)
    # (cfg, corpus, the model's folder, key, **options) -> what training needs beside the model's components
    heads: Callable[..., Params] = lambda cfg, corpus, model, key, **options: {}


class FlowRows(NamedTuple):
    """Rows of the flow: the GPT's batch, from which a frozen GPT makes latents, and what is to come out."""

    given: losses.GPTBatch
    mel: Any  # [B, F, M]
    lengths: Any  # [B]
    style: Any  # [B, style]


class SoundRows(NamedTuple):
    """Recordings at 16 kHz, and what is known of them."""

    samples: Any  # [B, N] float32
    lengths: Any  # [B]
    target: Any  # characters [B, X] int32, or speakers [B] int32
    target_lengths: Any  # [B]


# ---- batches --------------------------------------------------------------------------------------------------------


def _column(corpus: Corpus, numbers: Sequence[int], field: str, longest: int, dtype: Any) -> tuple[Any, Any]:
    return padded([corpus.array(i, field) for i in numbers], longest, dtype)


def _rung(corpus: Corpus, chosen: Chosen) -> int:
    """To how many codes a batch is padded: the one length that decides which program runs it."""
    return bucket(max(corpus.lines[i].codes for i in chosen.numbers), CODES)


def _longest(corpus: Corpus, chosen: Chosen, field: str) -> int:
    """The most of something that an utterance of as many codes, or less, has: so that it makes no further program."""
    return corpus.longest(_rung(corpus, chosen), field)


def gpt_rows(corpus: Corpus, chosen: Chosen) -> losses.GPTBatch:
    """Texts and codes, and another recording of the speaker, by which voice and emotion are heard."""
    own, heard = chosen.numbers[chosen.own], batches.partners(corpus, chosen)[chosen.own]
    texts = _column(corpus, own, "texts", bucket(_longest(corpus, chosen, "texts"), buckets.TEXT), np.int32)
    codes = _column(corpus, own, "codes", _rung(corpus, chosen), np.int32)
    heard_codes = min(HEARD, bucket(corpus.longest(LONGEST, "codes"), CODES))
    speaker = _column(corpus, heard, "semantic", heard_codes, np.float32)
    return losses.GPTBatch(*texts, *codes, *speaker, *speaker)


def flow_rows(corpus: Corpus, chosen: Chosen) -> FlowRows:
    own = chosen.numbers[chosen.own]
    mel = _column(corpus, own, "mel", bucket(_longest(corpus, chosen, "frames"), buckets.FRAMES), np.float32)
    return FlowRows(gpt_rows(corpus, chosen), *mel, np.stack([corpus.array(i, "style") for i in own]))


def vocoder_rows(corpus: Corpus, chosen: Chosen) -> losses.VocoderBatch:
    """A part of CROP frames of each recording; a shorter one is padded."""
    own = chosen.numbers[chosen.own]
    starts = batches.crops([corpus.lines[i].frames for i in chosen.numbers], CROP, chosen)[chosen.own]
    mels, recordings = ([corpus.array(i, field) for i in own] for field in ("mel", "samples"))
    # Of the samples as they are, so that a frame of mel and its samples lie side by side.
    hop = corpus.hop
    samples = [
        recording[start * hop : (start + CROP) * hop].astype(np.float32) / 32767
        for recording, start in zip(recordings, starts, strict=True)
    ]
    mel, lengths = padded([mel[start : start + CROP] for mel, start in zip(mels, starts, strict=True)], CROP)
    return losses.VocoderBatch(mel, padded(samples, CROP * hop)[0], lengths)


def codec_rows(corpus: Corpus, chosen: Chosen) -> losses.CodecBatch:
    rung = _rung(corpus, chosen)
    return losses.CodecBatch(*_column(corpus, chosen.numbers[chosen.own], "semantic", rung, np.float32))


def _sound(corpus: Corpus, chosen: Chosen) -> tuple[Any, Any]:
    seconds = bucket(-(-_longest(corpus, chosen, "samples") // features.MEL_RATE), buckets.SECONDS)
    recordings = [corpus.array(i, "samples").astype(np.float32) / 32767 for i in chosen.numbers[chosen.own]]
    narrow = [audio.resample(samples, features.MEL_RATE, features.SPEECH_RATE) for samples in recordings]
    return padded(narrow, seconds * features.SPEECH_RATE)


def encoder_rows(corpus: Corpus, chosen: Chosen) -> SoundRows:
    places = {character: i for i, character in enumerate(corpus.characters, 1)}  # 0 is CTC's blank
    texts = [np.array([places[c] for c in corpus.lines[i].text], np.int32) for i in chosen.numbers[chosen.own]]
    return SoundRows(*_sound(corpus, chosen), *padded(texts, bucket(_longest(corpus, chosen, "characters"), CODES)))


def speaker_rows(corpus: Corpus, chosen: Chosen) -> SoundRows:
    speakers = [corpus.speakers.index(corpus.lines[i].speaker) for i in chosen.numbers[chosen.own]]
    return SoundRows(*_sound(corpus, chosen), np.array(speakers, np.int32), np.ones(len(speakers), np.int32))


# ---- losses ---------------------------------------------------------------------------------------------------------


def latents(params: Params, cfg: Config, given: losses.GPTBatch) -> Array:
    """The latents [B, C, D] that the GPT makes of given codes, as speaking does: `render.second_pass`."""
    own, net = params["conditioner"], cfg.conditioner
    speaker = conditioner.speaker_latents(own, net, given.speaker, given.speaker_lengths)
    emotion = conditioner.emotion_vector(own, net, given.emotion, given.emotion_lengths)
    prefix = gpt.prefix(params["gpt"], cfg.gpt, speaker, emotion, given.texts, given.text_lengths)
    return gpt.latents(params["gpt"], cfg.gpt, prefix, given.codes)


def flow_loss(
    params: Params, cfg: Config, rows: FlowRows, key: Array, content: float = 0.0, early: float = 1.0,
    prompt: losses.Share = 1.0,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """`losses.flow` on the latents that the GPT makes of the codes, through which no gradient goes."""
    given = rows.given
    made = jax.lax.stop_gradient(latents(params, cfg, given))
    batch = losses.FlowBatch(given.codes, given.code_lengths, made, rows.mel, rows.lengths, rows.style)
    return losses.flow(params, cfg, batch, key, content, early, prompt)


def encoder_loss(
    params: Params, cfg: Config, rows: SoundRows, key: Array, reconstruction: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    heard, lengths, seen = features.w2vbert_features(rows.samples, rows.lengths)
    batch = losses.EncoderBatch(heard, seen, lengths, rows.target, rows.target_lengths)
    return losses.encoder(params, cfg, batch, key, reconstruction)


def speaker_loss(params: Params, cfg: Config, rows: SoundRows, key: Array) -> tuple[Array, dict[str, Array]]:
    heard, lengths = features.campplus_features(rows.samples, rows.lengths)
    return losses.speaker(params, cfg, losses.SpeakerBatch(heard, lengths, rows.target), key)


def vocoder_loss(
    params: Params, cfg: Config, batch: losses.VocoderBatch, key: Array, discriminators: bool = False
) -> tuple[Array, dict[str, Array]]:
    """`losses.vocoder`; or, with discriminators, both sides at once, of which each changes its own parameters alone."""
    if not discriminators:
        return losses.vocoder(params, cfg, batch, key)
    loss, parts = losses.vocoder_adversarial(params, cfg, batch, key)
    other, more = losses.discriminator(params, cfg, batch, key)
    return loss + other, parts | more


def codec_loss(params: Params, cfg: Config, batch: losses.CodecBatch, key: Array) -> tuple[Array, dict[str, Array]]:
    """`losses.codec`, whose codebook moves by gradient: its moving average is no loss (`losses.moved`)."""
    return losses.codec(params, cfg, batch, key)


# ---- heads ----------------------------------------------------------------------------------------------------------


def text_head(cfg: Config, corpus: Corpus, model: Path, key: Array, **options: Any) -> Params:
    """The head that predicts the text: what the model was converted with, else drawn."""
    kept = rest.read(model)["gpt"]
    names = "text_head.weight", "text_head.bias"
    if all(name in kept for name in names):
        weight, bias = (np.asarray(kept[name].read(), np.float32) for name in names)
        return {"text_head": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}
    log.warning("%s: has no text_head, which is drawn anew: its part of the loss begins high", model / rest.NAME)
    return {"text_head": _drawn(key, cfg.gpt.width, cfg.gpt.text_vocabulary)}


def _drawn(key: Array, inputs: int, outputs: int) -> Any:
    return {"kernel": jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, "bias": jnp.zeros(outputs)}


def flow_heads(cfg: Config, corpus: Corpus, model: Path, key: Array, content: float = 0.0, **options: Any) -> Params:
    return {"mel_head": _drawn(key, cfg.s2mel.content, cfg.s2mel.mels)} if content else {}


def vocoder_heads(cfg: Config, corpus: Corpus, model: Path, key: Array, discriminators: bool = False) -> Params:
    return {"discriminators": networks.init(losses.DISCRIMINATORS, key)} if discriminators else {}


def codec_heads(cfg: Config, corpus: Corpus, model: Path, key: Array) -> Params:
    return {"codec_decoder": repcodec.init_decoder(cfg.repcodec, key)}


def encoder_heads(cfg: Config, corpus: Corpus, model: Path, key: Array, reconstruction: float = 0.0) -> Params:
    one, two = jax.random.split(key)
    heads = {"ctc_head": _drawn(one, cfg.w2vbert.width, len(corpus.characters) + 1)}
    return heads | ({"features_head": _drawn(two, cfg.w2vbert.width, cfg.w2vbert.features)} if reconstruction else {})


def speaker_heads(cfg: Config, corpus: Corpus, model: Path, key: Array) -> Params:
    if len(corpus.speakers) < 2:
        raise Error(f"{corpus.folder}: has one speaker, so that there is nobody to tell apart; leave this stage out")
    return {"speakers": jax.random.normal(key, (len(corpus.speakers), cfg.campplus.embedding))}


def keep_heads(folder: Path, model: Path, heads: Params) -> None:
    """Write what a converted model keeps of heads, the text head, into an open folder derived from `model`."""
    if "text_head" not in heads:
        return
    head = {"weight": np.asarray(heads["text_head"]["kernel"]).T, "bias": np.asarray(heads["text_head"]["bias"])}
    parts = rest.read(model)
    own = {
        f"text_head.{name}": Tensor(folder, array.shape, array.dtype, partial(np.ascontiguousarray, array))
        for name, array in head.items()
    }
    rest.save(folder, {**parts, "gpt": {**parts["gpt"], **own}})


RECIPES = {
    "gpt": Recipe(("gpt", "conditioner"), ("gpt/.*", "conditioner/.*"), gpt_rows, losses.gpt, text_head),
    "flow": Recipe(("s2mel", "repcodec", "gpt", "conditioner"), ("s2mel/.*",), flow_rows, flow_loss, flow_heads),
    "vocoder": Recipe(("bigvgan",), ("bigvgan/.*",), vocoder_rows, vocoder_loss, vocoder_heads),
    "codec": Recipe(("repcodec",), ("repcodec/.*",), codec_rows, codec_loss, codec_heads),
    # Its statistics are those of its features, which are measured.
    "encoder": Recipe(("w2vbert",), ("w2vbert/encoder/.*",), encoder_rows, encoder_loss, encoder_heads),
    "speaker": Recipe(("campplus",), ("campplus/.*",), speaker_rows, speaker_loss, speaker_heads),
}
