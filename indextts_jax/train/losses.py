"""Losses, one per network: pure functions `(params, cfg, batch, key) -> (loss, parts)`.

params: component -> parameter tree, as `Model.params`, with the extra trees that a loss names; cfg: the whole
configuration; batch: a NamedTuple of arrays, padded at the end; key: what is drawn comes from it, unused where nothing
is. The loss and each of its parts, by name, are float32 scalars.

A loss is a mean over the tokens or frames of all rows, so that a batch has the gradient of its rows alone, each
weighted by its length, and padding changes nothing. Nothing is jitted here: the caller's step is.

Dimensions: B batch, X text pieces, C codes, S and Q frames of recordings, T frames, F mel frames, M mels, N samples,
E semantic width, D width of the GPT, V code vocabulary, K content width.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax.config import Config
from indextts_jax.models import Params, conditioner, repcodec, s2mel
from indextts_jax.models import gpt as decoder
from indextts_jax.models.layers import dtype_of, precision_of, valid, zero_padding

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


class GPTBatch(NamedTuple):
    texts: Array  # [B, X] int32, without start and stop
    text_lengths: Array  # [B]
    codes: Array  # [B, C] int32, without start and stop
    code_lengths: Array  # [B]
    speaker: Array  # [B, S, E] normalised w2v-BERT features of another recording of the same speaker, 50 Hz
    speaker_lengths: Array  # [B], at least 3
    emotion: Array  # [B, Q, E] those of the recording whose emotion is spoken
    emotion_lengths: Array  # [B], at least 3


def gpt(params: Params, cfg: Config, batch: GPTBatch, key: Array, positions: Positions = "second_pass") -> Loss:
    """Cross-entropy of the codes (0.8) and of the text (0.2), each with its stop: means over all their tokens.

    params: "gpt", "conditioner" and "text_head" {"kernel" [D, text vocabulary], "bias"}. positions: of the codes, as
    the second pass counts them, as decoding does, which skips position 1, or "both", of which each row draws one, which
    costs no second pass. At most `cfg.gpt.most_texts` pieces and `most_codes` codes.

    Parts: code_loss, text_loss, code_accuracy (of the best code, stop included). Reference: indextts/gpt/model_v2.py,
    forward, and the layout of model.py, whose losses also count a stop after the stop, and the padding.
    """
    net, B = cfg.gpt, batch.texts.shape[0]
    latents = conditioner.speaker_latents(params["conditioner"], cfg.conditioner, batch.speaker, batch.speaker_lengths)
    emotion = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, batch.emotion, batch.emotion_lengths)
    match positions:
        case "both":
            skipped = jax.vmap(jax.random.bernoulli)(_each(key, B)).astype(jnp.int32)
        case _:
            skipped = jnp.full(B, positions == "decoding", jnp.int32)
    prefix = decoder.prefix(params["gpt"], net, latents, emotion, batch.texts, batch.text_lengths)
    codes = _stopped(batch.codes, batch.code_lengths, net.stop_code)
    before, hidden = decoder.states(params["gpt"], net, prefix, codes, skipped)

    texts = _stopped(batch.texts, batch.text_lengths, net.stop_text)  # [B, X + 1]
    first = before.shape[1] - texts.shape[1] - 2  # where the texts' start stands
    text_scores = _dense(params["text_head"], before[:, first : first + texts.shape[1]])
    text_loss = _mean(_cross_entropy(text_scores, texts), valid(batch.text_lengths + 1, texts.shape[1]))

    scores, inside = decoder.logits(params["gpt"], hidden), valid(batch.code_lengths + 1, codes.shape[1])
    code_loss = _mean(_cross_entropy(scores, codes), inside)
    accuracy = _mean(jnp.argmax(scores, axis=-1) == codes, inside)
    parts = {"code_loss": code_loss, "text_loss": text_loss, "code_accuracy": accuracy}
    return CODE_WEIGHT * code_loss + TEXT_WEIGHT * text_loss, parts


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


def flow_draw(cfg: Config, batch: FlowBatch, key: Array) -> FlowDraw:
    """A time, noise, a prompt (none in a tenth of the rows), and whether the conditions are dropped (in a tenth)."""
    B, F, M = batch.mel.shape
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(5)))(_each(key, B))
    t, share, none, drop = (jax.vmap(jax.random.uniform)(keys[:, i]) for i in (_TIME, _PROMPT, _NONE, _DROP))
    prompt = jnp.floor(share * batch.code_lengths.astype(jnp.float32)).astype(jnp.int32)
    prompt = jnp.minimum(prompt, batch.code_lengths - 1)
    return FlowDraw(t, s2mel.noise(keys[:, _NOISE], F, M), jnp.where(none < WITHOUT_PROMPT, 0, prompt), drop < DROPPED)


def flow(params: Params, cfg: Config, batch: FlowBatch, key: Array) -> Loss:
    """Conditional flow matching (arXiv:2210.02747) as seed-vc trains this network (arXiv:2411.09943): `flow_given`
    of what is drawn from the key."""
    return flow_given(params, cfg, batch, *flow_draw(cfg, batch, key))


def flow_given(
    params: Params, cfg: Config, batch: FlowBatch, t: Array, noise: Array, prompt_codes: Array, dropped: Array
) -> Loss:
    """The mean of |velocity - (mel - (1 - σ) noise)| over the mels of all frames after the prompts; draws: `FlowDraw`.

    params: "s2mel" and "repcodec". A row is split at a whole code, and its two parts are regulated apart, as when it is
    spoken: the regulator normalises over a whole row, and a prompt has the codec's embeddings alone, without latents.
    The prompt's frames are those of its codes, the target's are the rest. Dropped are prompt, content and style
    together, before their projections, as guidance drops them. No parts.
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
    rest, latents = (s2mel.window(a, codes, C) for a in (embeddings, batch.latents))
    target_content = s2mel.content(own, net, rest, latents, target_codes, F, targets)
    content = s2mel.join(prompt_content, prompts, target_content, F)

    t, mel = t[:, None, None], zero_padding(batch.mel, batch.lengths).astype(jnp.float32)
    velocity = mel - (1 - SIGMA) * noise
    heard = valid(prompts, F)
    spoken = valid(batch.lengths, F) & ~heard
    y = jnp.where(spoken[:, :, None], (1 - (1 - SIGMA) * t) * noise + t * mel, 0.0)
    prompt = jnp.where(heard[:, :, None], mel, 0.0)
    style = batch.style.astype(jnp.float32)
    prompt, content, style = (
        jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), jnp.zeros((), a.dtype), a).astype(dtype_of(own))
        for a in (prompt, content, style)
    )
    found = s2mel.estimate(own, net, y.astype(dtype_of(own)), prompt, content, style, t[:, 0, 0], batch.lengths)
    return _mean(jnp.abs(found.astype(jnp.float32) - velocity).mean(axis=-1), spoken), {}
