"""Losses, one per network: pure functions `(params, cfg, batch, key) -> (loss, parts)`.

params: component -> parameter tree, as `Model.params`, with the extra trees that a loss names; cfg: the whole
configuration; batch: a NamedTuple of arrays, padded at the end; key: what is drawn comes from it, unused where nothing
is. The loss and each of its parts, by name, are float32 scalars.

A loss is a mean over the tokens or frames of all rows, so that a batch has the gradient of its rows alone, each
weighted by its length, and padding changes nothing. Nothing is jitted here: the caller's step is.

Dimensions: B batch, X text pieces, C codes, S and Q frames of recordings, T frames, F mel frames, M mels, N samples,
E semantic width, D width of the GPT, V code vocabulary, K content width.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from indextts_jax.config import Config
from indextts_jax.models import Params, bigvgan, campplus, conditioner, discriminators, repcodec, s2mel, w2vbert
from indextts_jax.models import gpt as decoder
from indextts_jax.models.discriminators import DiscriminatorsConfig, Judged
from indextts_jax.models.layers import dtype_of, precision_of, valid, zero_padding
from indextts_jax.train import sound

Loss = tuple[Array, dict[str, Array]]


# ---- what they share ------------------------------------------------------------------------------------------------


def _mean(values: Array, inside: Array) -> Array:
    """The mean of values [B, T] at the places that are inside, float32; 0 where there are none."""
    total = jnp.where(inside, values.astype(jnp.float32), 0.0).sum()
    return total / jnp.maximum(inside.sum(), 1).astype(jnp.float32)


def _cross_entropy(scores: Array, targets: Array) -> Array:
    """Scores [..., V] float32, targets [...] int32 -> [...] nats."""
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - chosen


def _dense(params: Any, x: Array) -> Array:
    """x [B, T, in] through a dense layer {"kernel", "bias"}: [B, T, out] float32."""
    with precision_of(params):
        y = jnp.einsum("bti,io->bto", x, params["kernel"], preferred_element_type=jnp.float32)
    return y + params["bias"].astype(jnp.float32)[None, None]


def _each(key: Array, rows: int) -> Array:
    """A key per row, [B]: what a row draws does not depend on how many rows there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


# ---- GPT ------------------------------------------------------------------------------------------------------------

TEXT_WEIGHT, CODE_WEIGHT = 0.2, 0.8
Positions = Literal["second_pass", "decoding", "both"]
Share = Annotated[float, 1]  # and the most that it may be
_CORRUPT = 1  # a purpose of a row's key, beside what `skipped` draws of the key itself


class GPTBatch(NamedTuple):
    texts: Array  # [B, X] int32, without start and stop
    text_lengths: Array  # [B]
    codes: Array  # [B, C] int32, without start and stop
    code_lengths: Array  # [B]
    speaker: Array  # [B, S, E] normalised w2v-BERT features of another recording of the same speaker, 50 Hz
    speaker_lengths: Array  # [B], at least 3
    emotion: Array  # [B, Q, E] those of the recording whose emotion is spoken
    emotion_lengths: Array  # [B], at least 3


def gpt(
    params: Params, cfg: Config, batch: GPTBatch, key: Array, positions: Positions = "second_pass", remat: bool = False,
    corrupt: Share = 0.0,
) -> Loss:  # fmt: skip
    """Cross-entropy of the codes (0.8) and of the text (0.2), each with its stop: means over all their tokens.

    params: "gpt", "conditioner" and "text_head" {"kernel" [D, text vocabulary], "bias"}. positions: of the codes, as
    the second pass counts them, as decoding does, which skips position 1, or "both", of which each row draws one, which
    costs no second pass. At most `cfg.gpt.most_texts` pieces and `most_codes` codes. remat: as in `gpt.latents`.
    corrupt: see `corrupted`; from random weights, codes that tell enough of the next one teach the GPT to do without
    the text.

    Parts: code_loss, text_loss, code_accuracy (of the best code, stop included). Reference: indextts/gpt/model_v2.py,
    forward, and the layout of model.py, whose losses also count a stop after the stop, and the padding.
    """
    net, B = cfg.gpt, batch.texts.shape[0]
    latents = conditioner.speaker_latents(params["conditioner"], cfg.conditioner, batch.speaker, batch.speaker_lengths)
    emotion = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, batch.emotion, batch.emotion_lengths)
    skips = skipped(key, B) if positions == "both" else jnp.full(B, positions == "decoding", jnp.int32)
    prefix = decoder.prefix(params["gpt"], net, latents, emotion, batch.texts, batch.text_lengths)
    codes = _stopped(batch.codes, batch.code_lengths, net.stop_code)
    fed = corrupted(key, batch.codes, min(net.start_code, net.stop_code), corrupt) if corrupt else batch.codes
    before, hidden = decoder.states(params["gpt"], net, prefix, fed, 1 + skips, remat)

    texts = _stopped(batch.texts, batch.text_lengths, net.stop_text)  # [B, X + 1]
    first = before.shape[1] - texts.shape[1] - 2  # where the texts' start stands
    text_scores = _dense(params["text_head"], before[:, first : first + texts.shape[1]])
    text_loss = _mean(_cross_entropy(text_scores, texts), valid(batch.text_lengths + 1, texts.shape[1]))

    scores, inside = decoder.logits(params["gpt"], hidden), valid(batch.code_lengths + 1, codes.shape[1])
    code_loss = _mean(_cross_entropy(scores, codes), inside)
    accuracy = _mean(jnp.argmax(scores, axis=-1) == codes, inside)
    parts = {"code_loss": code_loss, "text_loss": text_loss, "code_accuracy": accuracy}
    return CODE_WEIGHT * code_loss + TEXT_WEIGHT * text_loss, parts


def skipped(key: Array, rows: int) -> Array:
    """How many code positions each row skips where both rules are trained on: 0 or 1, [B] int32."""
    return jax.vmap(jax.random.bernoulli)(_each(key, rows)).astype(jnp.int32)


def corrupted(key: Array, codes: Array, count: int, most: float) -> Array:
    """Codes [B, C] of which some are others of `count`: of each row another part, none to `most` of it."""

    def row(key: Array, codes: Array) -> Array:
        part, place, drawn = jax.random.split(jax.random.fold_in(key, _CORRUPT), 3)
        bad = jax.random.uniform(place, codes.shape) < most * jax.random.uniform(part)
        return jnp.where(bad, jax.random.randint(drawn, codes.shape, 0, count), codes)

    return jax.vmap(row)(_each(key, codes.shape[0]), codes)


def _stopped(ids: Array, lengths: Array, stop: int) -> Array:
    """Each row with its stop, and stops in its padding: [B, X], [B] -> [B, X + 1]."""
    return jnp.where(valid(lengths, ids.shape[1] + 1), jnp.pad(ids, ((0, 0), (0, 1))), stop)


# ---- flow -----------------------------------------------------------------------------------------------------------

SIGMA = 1e-6  # how much of the noise is left at the end
WITHOUT_PROMPT = 0.1  # of the rows
DROPPED = 0.1  # of the rows: for the null branch of guidance
_TIME, _NOISE, _PROMPT, _NONE, _DROP = range(5)  # purposes of a row's key


class FlowBatch(NamedTuple):
    codes: Array  # [B, C] int32
    code_lengths: Array  # [B], at least 1
    latents: Array  # [B, C, D] the GPT's of these codes (`gpt.latents`)
    mel: Array  # [B, F, M] log-mel of the recording
    lengths: Array  # [B] its frames, at least 3
    style: Array  # [B, style] of the speaker


class FlowDraw(NamedTuple):
    """What is drawn for a batch: independent of its padding and of other rows."""

    t: Array  # [B] float32 in [0, 1)
    noise: Array  # [B, F, M] float32
    prompt_codes: Array  # [B] int32: how many codes, less than all, are the prompt's
    dropped: Array  # [B] bool: whether the row is without its conditions


def flow_draw(cfg: Config, batch: FlowBatch, key: Array, early: float = 1.0, prompt: Share = 1.0) -> FlowDraw:
    """A time, noise, a prompt (none in a tenth of the rows), and whether the conditions are dropped (in a tenth).

    early: the power of a uniform number that the time is; prompt: the largest part of a row that is its prompt's.
    """
    B, F, M = batch.mel.shape
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(5)))(_each(key, B))
    t, share, none, drop = (jax.vmap(jax.random.uniform)(keys[:, i]) for i in (_TIME, _PROMPT, _NONE, _DROP))
    codes = jnp.floor(prompt * share * batch.code_lengths.astype(jnp.float32)).astype(jnp.int32)
    codes = jnp.where(none < WITHOUT_PROMPT, 0, jnp.minimum(codes, batch.code_lengths - 1))
    return FlowDraw(t**early, s2mel.noise(keys[:, _NOISE], F, M), codes, drop < DROPPED)


def flow(
    params: Params, cfg: Config, batch: FlowBatch, key: Array, content: float = 0.0, early: float = 1.0,
    prompt: Share = 1.0,
) -> Loss:  # fmt: skip
    """Conditional flow matching (arXiv:2210.02747) as seed-vc trains this network (arXiv:2411.09943): `flow_given`
    of what is drawn from the key. early, prompt: `flow_draw`.

    From random weights, content that tells nothing yet teaches the network to do without it. Three options help: times
    near 0, at which nothing else tells what is spoken; short prompts, whose frames have no loss; and `content`.
    """
    return flow_given(params, cfg, batch, *flow_draw(cfg, batch, key, early, prompt), content)


def flow_given(
    params: Params, cfg: Config, batch: FlowBatch, t: Array, noise: Array, prompt_codes: Array, dropped: Array,
    content: float = 0.0,
) -> Loss:  # fmt: skip
    """The mean of |velocity - (mel - (1 - σ) noise)| over the mels of all frames after the prompts; draws: `FlowDraw`.

    params: "s2mel" and "repcodec". A row is split at a whole code, and its two parts are regulated apart, as when it is
    spoken: the regulator normalises over a whole row, and a prompt has the codec's embeddings alone, without latents.
    The prompt's frames are those of its codes, the target's are the rest. Dropped are prompt, content and style
    together, before their projections, as guidance drops them.

    content: how much the mean of |"mel_head" of the content - mel| over the same frames counts beside it, as in
    arXiv:2105.06337; "mel_head" {"kernel" [K, M], "bias"} is one more of `params` then. Parts, with it: velocity_loss,
    content_loss.

    Reference: indextts/s2mel/modules/flow_matching.py, forward, which takes the mean of the rows' means, and drops
    the conditions of all rows at once, after the projection of the content.
    """
    net, own = cfg.s2mel, params["s2mel"]
    F, C = batch.mel.shape[1], batch.codes.shape[1]
    codes, target_codes = prompt_codes, batch.code_lengths - prompt_codes
    prompts = jnp.minimum(s2mel.target_lengths(codes), batch.lengths - 1)
    targets = batch.lengths - prompts
    embeddings = repcodec.embed(params["repcodec"], cfg.repcodec, batch.codes)
    prompt_content = s2mel.regulate(own, net, embeddings, codes, F, prompts)
    rest, latents = (s2mel.window(a, codes, C) for a in (embeddings, zero_padding(batch.latents, batch.code_lengths)))
    target_content = s2mel.content(own, net, rest, latents, target_codes, F, targets)
    told = s2mel.join(prompt_content, prompts, target_content, F)

    t, mel = t[:, None, None], zero_padding(batch.mel, batch.lengths).astype(jnp.float32)
    velocity = mel - (1 - SIGMA) * noise
    heard = valid(prompts, F)
    spoken = valid(batch.lengths, F) & ~heard
    y = jnp.where(spoken[:, :, None], (1 - (1 - SIGMA) * t) * noise + t * mel, 0.0)
    prompt = jnp.where(heard[:, :, None], mel, 0.0)
    style = batch.style.astype(jnp.float32)
    prompt, given, style = (
        jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), jnp.zeros((), a.dtype), a).astype(dtype_of(own))
        for a in (prompt, told, style)
    )
    found = s2mel.estimate(own, net, y.astype(dtype_of(own)), prompt, given, style, t[:, 0, 0], batch.lengths)
    loss = _mean(jnp.abs(found.astype(jnp.float32) - velocity).mean(axis=-1), spoken)
    if not content:
        return loss, {}
    plain = _mean(jnp.abs(_dense(params["mel_head"], told) - mel).mean(axis=-1), spoken)
    return loss + content * plain, {"velocity_loss": loss, "content_loss": plain}


# ---- vocoder --------------------------------------------------------------------------------------------------------

DISCRIMINATORS = DiscriminatorsConfig()
MEL_WEIGHT, MATCHING_WEIGHT = 45.0, 2.0  # beside the adversarial loss, as in HiFi-GAN (arXiv:2010.05646)


class VocoderBatch(NamedTuple):
    mel: Array  # [B, F, M] log-mel
    samples: Array  # [B, F * hop] the recording, within ±1
    lengths: Array  # [B] frames; usually all full, since crops are trained on


def vocoder(params: Params, cfg: Config, batch: VocoderBatch, key: Array) -> Loss:
    """What `bigvgan.vocode` makes of the mel against the recording: log-mel L1 and multi-resolution STFT, added up.

    params: "bigvgan". Parts: mel_loss, stft_loss (`sound.log_mel_l1`, `sound.multi_resolution_stft`).
    """
    made = bigvgan.vocode(params["bigvgan"], cfg.bigvgan, batch.mel, batch.lengths)
    parts = _spectral(cfg, made, batch)
    return parts["mel_loss"] + parts["stft_loss"], parts


def _spectral(cfg: Config, made: Array, batch: VocoderBatch) -> dict[str, Array]:
    lengths = batch.lengths * cfg.bigvgan.hop
    mel = sound.log_mel_l1(made, batch.samples, lengths, cfg.mel)
    stft = sound.multi_resolution_stft(made, batch.samples, lengths)
    return {"mel_loss": _of_rows(mel, lengths), "stft_loss": _of_rows(stft, lengths)}


def _of_rows(values: Array, lengths: Array) -> Array:
    """The mean of rows' values [B], each weighted by its length: []."""
    weights = lengths.astype(jnp.float32)
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def discriminator(
    params: Params, cfg: Config, batch: VocoderBatch, key: Array, networks: DiscriminatorsConfig = DISCRIMINATORS
) -> Loss:
    """The least-squares loss (arXiv:1611.04076) of the discriminators: recordings score 1, what is synthesised 0.

    params: "bigvgan", through which no gradient goes, and "discriminators" (`discriminators.init`). A sum over
    discriminators. Parts: real_loss, made_loss.
    """
    made = jax.lax.stop_gradient(bigvgan.vocode(params["bigvgan"], cfg.bigvgan, batch.mel, batch.lengths))
    real, fake = _judged(params, cfg, batch, made, networks)
    parts = {
        "real_loss": _scores(real, 1.0, batch.lengths),
        "made_loss": _scores(fake, 0.0, batch.lengths),
    }
    return parts["real_loss"] + parts["made_loss"], parts


def vocoder_adversarial(
    params: Params, cfg: Config, batch: VocoderBatch, key: Array, networks: DiscriminatorsConfig = DISCRIMINATORS
) -> Loss:
    """The generator's side: it scores 1 (least squares), matches the layers' values (2) and the log-mel (45).

    params: as for `discriminator`, whose own parameters are held fixed. Parts: adversarial_loss, matching_loss,
    mel_loss, stft_loss, which is measured only.
    """
    made = bigvgan.vocode(params["bigvgan"], cfg.bigvgan, batch.mel, batch.lengths)
    judges = {"discriminators": jax.lax.stop_gradient(params["discriminators"])}
    real, fake = _judged(judges, cfg, batch, made, networks)
    pairs = [pair for layers in zip(real, fake, strict=True) for pair in list(zip(*layers, strict=True))[:-1]]
    matching = [sound.mean_of_rows(jnp.abs(a.values - b.values), a.lengths) for a, b in pairs]
    parts = _spectral(cfg, made, batch) | {
        "adversarial_loss": _scores(fake, 1.0, batch.lengths),
        "matching_loss": _of_rows(sum(matching, jnp.zeros(len(made))), batch.lengths),
    }
    loss = parts["adversarial_loss"] + MATCHING_WEIGHT * parts["matching_loss"] + MEL_WEIGHT * parts["mel_loss"]
    return loss, parts


def _judged(params: Params, cfg: Config, batch: VocoderBatch, made: Array, networks: DiscriminatorsConfig) -> Any:
    """What the discriminators make of recordings and of what is synthesised."""
    lengths = batch.lengths * cfg.bigvgan.hop
    return (discriminators.judge(params["discriminators"], networks, x, lengths) for x in (batch.samples, made))


def _scores(judged: list[list[Judged]], wanted: float, lengths: Array) -> Array:
    """Mean squares between scores and what is wanted, added up over discriminators."""
    rows = [sound.mean_of_rows(jnp.square(last.values - wanted), last.lengths) for *_, last in judged]
    return _of_rows(sum(rows, jnp.zeros(lengths.shape)), lengths)


# ---- codec ----------------------------------------------------------------------------------------------------------

COMMITMENT = 0.25


class CodecBatch(NamedTuple):
    features: Array  # [B, T, E] normalised w2v-BERT features
    lengths: Array  # [B]


def codec(
    params: Params, cfg: Config, batch: CodecBatch, key: Array, codebook: Literal["gradient", "average"] = "gradient"
) -> Loss:
    """Mean squares between features and those decoded from their codes, and between encoder and codebook.

    As in arXiv:1711.00937. params: "repcodec" and "codec_decoder" (`repcodec.init_decoder`), which speaking has no use
    for. The encoder is drawn to its codes (0.25), and they to it by gradient (1), or else by `moved`. Codes are chosen
    by angle, in which the codebook's scale has no part. Parts: reconstruction_loss, commitment_loss, codes_used (the
    fraction of all that the batch uses), perplexity (of their use: 1 to `cfg.repcodec.codes`).
    """
    net, inside = cfg.repcodec, valid(batch.lengths, batch.features.shape[1])
    found = repcodec.quantize_straight(params["repcodec"], net, batch.features, batch.lengths)
    decoded = repcodec.decode(params["codec_decoder"], net, found.embeddings, batch.lengths)
    features = zero_padding(batch.features, batch.lengths)

    def square(a: Array, b: Array) -> Array:
        return _mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean(axis=-1), inside)

    reconstruction = square(decoded, features)
    commitment = square(found.projected, jax.lax.stop_gradient(found.chosen))
    loss = reconstruction + COMMITMENT * commitment
    if codebook == "gradient":
        loss = loss + square(jax.lax.stop_gradient(found.projected), found.chosen)
    share = _used(found.codes, inside, net.codes).sum(axis=(0, 1)) / jnp.maximum(inside.sum(), 1).astype(jnp.float32)
    parts = {
        "reconstruction_loss": reconstruction,
        "commitment_loss": commitment,
        "codes_used": (share > 0).mean(dtype=jnp.float32),
        "perplexity": jnp.exp(jax.scipy.special.entr(share).sum()),
    }
    return loss, parts


def _used(codes: Array, inside: Array, count: int) -> Array:
    """One where a frame has a code: codes [B, T] -> [B, T, V] float32."""
    return jax.nn.one_hot(codes, count) * inside[:, :, None].astype(jnp.float32)


class Average(NamedTuple):
    """The state of a codebook that follows by moving averages (arXiv:1711.00937, appendix)."""

    counts: Array  # [V] float32: how often a code is used per batch
    sums: Array  # [V, K] float32: of the encoder's outputs that have the code


def averaged(codebook: Array) -> Average:
    """The state to begin with: every code used once, where it stands. codebook [V, K]."""
    return Average(jnp.ones(codebook.shape[0]), codebook.astype(jnp.float32))


def moved(
    params: Params, cfg: Config, batch: CodecBatch, average: Average, decay: float = 0.99, smoothing: float = 1e-5
) -> tuple[Array, Average]:
    """The codebook [V, K] float32 after a batch, and its state: each row the mean of the outputs that had its code.

    To be put in place of params["repcodec"]["quantizer"]["codebook"]["embedding"]. Counts are smoothed (Laplace), so
    that a code that nothing has stays finite.
    """
    found = repcodec.quantize_straight(params["repcodec"], cfg.repcodec, batch.features, batch.lengths)
    used = _used(found.codes, valid(batch.lengths, found.codes.shape[1]), cfg.repcodec.codes)
    sums = jnp.einsum("btv,btk->vk", used, found.projected.astype(jnp.float32), precision="highest")
    counts = decay * average.counts + (1 - decay) * used.sum(axis=(0, 1))
    sums = decay * average.sums + (1 - decay) * sums
    total = counts.sum()
    smooth = (counts + smoothing) / (total + counts.size * smoothing) * total
    return sums / smooth[:, None], Average(counts, sums)


# ---- semantic encoder -----------------------------------------------------------------------------------------------


class EncoderBatch(NamedTuple):
    features: Array  # [B, T, 160] (`features.w2vbert_features`)
    seen: Array  # [B, T] bool
    lengths: Array  # [B]
    characters: Array  # [B, X] int32, from 1: 0 is CTC's blank; or phonemes
    character_lengths: Array  # [B], with repeated ones at most as many as frames


def encoder(params: Params, cfg: Config, batch: EncoderBatch, key: Array, reconstruction: float = 0.0) -> Loss:
    """Connectionist temporal classification of characters on the semantic features: nats per character.

    params: "w2vbert" and "ctc_head" {"kernel" [E, characters + 1], "bias"}. reconstruction: how much the mean square
    between the features heard and what "features_head" {"kernel" [E, 160], "bias"} makes of the semantic ones counts
    beside it: characters alone are content with a peak each, and codes of what lies between would not tell how it
    sounded. Parts: ctc_loss, character_error_rate (of the best character of each frame), and reconstruction_loss.
    """
    heard = w2vbert.encode(params["w2vbert"], cfg.w2vbert, batch.features, batch.seen, batch.lengths)
    scores = _dense(params["ctc_head"], heard.astype(dtype_of(params["ctc_head"])))
    outside = (
        1.0 - valid(lengths, size).astype(jnp.float32)
        for lengths, size in ((batch.lengths, scores.shape[1]), (batch.character_lengths, batch.characters.shape[1]))
    )
    frames, characters = outside
    rows = optax.ctc_loss(scores, frames, batch.characters, characters)
    count = jnp.maximum(batch.character_lengths.sum(), 1).astype(jnp.float32)
    errors = character_errors(scores, batch.lengths, batch.characters, batch.character_lengths)
    loss = rows.sum() / count
    parts = {"ctc_loss": loss, "character_error_rate": errors.sum().astype(jnp.float32) / count}
    if reconstruction:
        made = _dense(params["features_head"], heard.astype(dtype_of(params["features_head"])))
        square = jnp.square(made - batch.features.astype(jnp.float32)).mean(axis=-1)
        parts["reconstruction_loss"] = _mean(square, batch.seen)
        loss = loss + reconstruction * parts["reconstruction_loss"]
    return loss, parts


def character_errors(scores: Array, lengths: Array, characters: Array, character_lengths: Array) -> Array:
    """How many characters are wrong, missing or too many in what the best of each frame spell: [B] int32.

    scores [B, T, characters + 1], lengths [B]; characters [B, X], lengths [B]. Equal frames in a row are one character,
    and 0 is none. The edit distance of Levenshtein, a row of its table for each character that is spelt.
    """
    best = jax.lax.stop_gradient(scores).argmax(axis=-1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
    spelt = (best != 0) & (best != before) & valid(lengths, best.shape[1])
    places = jnp.arange(characters.shape[1] + 1)[None]

    def add(row: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        character, spelt = given
        replaced = row[:, :-1] + (characters != character[:, None]).astype(jnp.int32)
        new = (row + 1).at[:, 1:].min(replaced)
        new = jax.lax.cummin(new - places, axis=1) + places  # where characters of the text are missing
        return jnp.where(spelt[:, None], new, row), None

    start = jnp.broadcast_to(places, (best.shape[0], places.shape[1]))
    row, _ = jax.lax.scan(add, start, (best.T, spelt.T))
    return jnp.take_along_axis(row, character_lengths[:, None], axis=1)[:, 0]


# ---- speaker --------------------------------------------------------------------------------------------------------

MARGIN, SCALE = 0.2, 30.0  # radians


class SpeakerBatch(NamedTuple):
    features: Array  # [B, T, 80] (`features.campplus_features`)
    lengths: Array  # [B]
    speakers: Array  # [B] int32


def speaker(params: Params, cfg: Config, batch: SpeakerBatch, key: Array) -> Loss:
    """Softmax over speakers by angle, the right one's widened by a margin of 0.2 (arXiv:1801.07698); scale 30.

    params: "campplus", whose batch norms have fixed statistics, and "speakers" [n, style], a direction for each. A mean
    over rows. Part: speaker_accuracy, without the margin.
    """
    styles = campplus.embed(params["campplus"], cfg.campplus, batch.features, batch.lengths)
    styles, speakers = (_unit(x.astype(jnp.float32)) for x in (styles, params["speakers"]))
    cosine = jnp.einsum("bd,nd->bn", styles, speakers, precision="highest")
    # cos(θ + margin); past π, where that would rise again, a line that goes on falling
    sine = jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), 1e-12))
    harder = cosine * math.cos(MARGIN) - sine * math.sin(MARGIN)
    harder = jnp.where(cosine > -math.cos(MARGIN), harder, cosine - MARGIN * math.sin(MARGIN))
    right = batch.speakers[:, None] == jnp.arange(speakers.shape[0])[None]
    loss = _cross_entropy(SCALE * jnp.where(right, harder, cosine), batch.speakers).mean()
    return loss, {"speaker_accuracy": (cosine.argmax(axis=-1) == batch.speakers).mean(dtype=jnp.float32)}


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
