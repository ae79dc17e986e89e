"""Every stage on the reference's own input to it, then the whole chain on its own: what `debug.validate` compares.

The tables name our modules on the left and golden keys on the right; `follow.py` runs them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from debug.follow import Case, Comparison, Row, follow, same, swapped
from indextts_jax import audio, byte_pairs, decoding, drawing, emotion, features, pipeline, reader
from indextts_jax.decoding import Sampling
from indextts_jax.emotion import Emotion
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, qwen3, repcodec, s2mel, w2vbert
from indextts_jax.models.gpt import Prefix
from indextts_jax.models.layers import Dense, LayerNorm, apply
from indextts_jax.request import Given, Options
from indextts_jax.text import Analysis, TextFrontEnd, split
from indextts_jax.voice import feel, hear, listen

# ---- layouts: theirs -> ours ----------------------------------------------------------------------------------------


class _Hidden(NamedTuple):
    """Frames that the reference hides, as zeros."""

    seen: tuple[tuple[bool, ...], ...]

    def __call__(self, x: Any) -> Any:
        return x * jnp.asarray(self.seen, x.dtype)[:, :, None]


class _Scale(NamedTuple):
    factor: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x * np.float32(self.factor)


class _Cut(NamedTuple):
    frames: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x[:, : self.frames]


class _Prefix(NamedTuple):
    """One of the beams, which are alike before the first step, without what pads the prefix on its left."""

    positions: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x[:1, -self.positions :]


def _first_step(x: np.ndarray) -> np.ndarray:
    return x[0, :1]


def _flat(x: np.ndarray) -> np.ndarray:
    """[B, C, 1] as [B, C]."""
    return x.reshape(x.shape[:2])


def _one(x: np.ndarray) -> np.ndarray:
    return swapped(x)[None]


def _wave(x: np.ndarray) -> np.ndarray:
    return x[:, 0]


# ---- the stages -----------------------------------------------------------------------------------------------------


def text(case: Case) -> Iterator[Comparison]:
    """What the text becomes, letter by letter."""
    front = case.model.text
    for i, known in enumerate(case.golden.get("text_cases", [])):
        assert isinstance(front, TextFrontEnd)  # they are its own
        ours, expected = front.normalize(known["text"]), known["tiny"]
        try:
            pieces = front.analyse(known["text"]).pieces
        except ValueError:  # nothing to pronounce
            pieces = front.encode(ours)
        found = {"normalized": ours, "tokens": pieces, "ids": front.ids(pieces)}
        found |= {f"segments_{budget}": split(pieces, budget) for budget in (120, 20)}
        for name, value in found.items():
            reference = known["normalized"] if name == "normalized" else expected[name]
            yield _equal("text", name, f"text_cases[{i}].{name}", value, reference)
    if not case.has("text.raw"):
        return
    raw, golden = str(case.golden["text.raw"]), case.golden
    analysis = case.model.text.analyse(raw, case.meta.get("seg", 120))
    for where, key, ours, reference in (
        ("normalize", "text.normalized", analysis.normalized, str(golden["text.normalized"])),
        ("encode", "text.tokens", analysis.pieces, golden["text.tokens"].tolist()),
        ("ids", "text.ids", analysis.ids, golden["text.ids"].tolist()),
        ("split", "text.segments", analysis.segments, json.loads(str(golden["text.segments"]))),
    ):
        yield _equal("text", where, key, ours, reference)
    for segment, ids in zip(case.segments, analysis.segment_ids, strict=False):
        if case.has(key := f"{segment}.text_tokens"):
            yield Comparison("text", "split", key, np.array([ids], np.int32), golden[key], None)


def _equal(component: str, where: str, key: str, ours: Any, reference: Any) -> Comparison:
    """What is no number, compared as its JSON."""
    a, b = (np.array(json.dumps(value, ensure_ascii=False)) for value in (ours, reference))
    return Comparison(component, where, key, a, b, None)


def front_ends(case: Case) -> Iterator[Comparison]:
    """Loading and resampling, and the three front ends on the reference's own samples."""

    def compare(where: str, key: str, ours: Any, allowed: str | None, layout: Any = same) -> Iterator[Comparison]:
        if case.has(key):
            yield Comparison("audio", where, key, np.asarray(ours), layout(case.golden[key]), allowed)

    if case.speaker:
        recording = audio.load_speaker(case.speaker)
        yield from compare("load_speaker", "audio.spk_22k_librosa", recording.samples_22k[None], "recording")
        yield from compare("load_speaker", "audio.spk_16k", recording.samples_16k[None], "recording")
    # Without a recording of its own the emotion is the speaker's.
    if felt := case.emotion or (None if case.meta.get("emo_audio") else case.speaker):
        yield from compare("load_emotion", "audio.emo_16k_librosa", audio.load_emotion(felt)[None], "recording")
    if (samples := case.first("audio.spk_22k_librosa")) is not None:
        ours = audio.resample_sinc(samples[0], features.MEL_RATE, features.SPEECH_RATE)
        yield from compare("resample_sinc", "audio.spk_16k", ours[None], "recording")
    for part, keys in (("spk", ["audio.spk_16k"]), ("emo", ["audio.emo_16k", "audio.emo_16k_librosa"])):
        if (samples := case.first(*keys)) is not None:
            front, _, seen = features.w2vbert_features(*_batch(samples))
            yield from compare("w2vbert_features", f"w2v.{part}.input_features", front, "front end")
            mask = np.asarray(seen, np.int32)
            yield from compare("w2vbert_features", f"w2v.{part}.attention_mask", mask, None)
    if (samples := case.first("audio.spk_16k")) is not None:
        front, _ = features.campplus_features(*_batch(samples))
        yield from compare("campplus_features", "campplus.in", front, "front end rounding")
    if (samples := case.first("audio.spk_22k", "audio.spk_22k_librosa")) is not None:
        mel, _ = features.mel(*_batch(samples), case.model.cfg.mel)
        yield from compare("mel", "ref_mel", mel, "front end rounding", swapped)


def _batch(samples: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(samples), jnp.array([samples.shape[1]])


def _whole(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An input [1, T, C] and its length."""
    return x, np.array([x.shape[1]])


def w2v_bert(case: Case) -> Iterator[Comparison]:
    """Features of both recordings -> normalised hidden states, layer by layer."""
    cfg = case.model.cfg.w2vbert
    for part in ("spk", "emo"):
        at = f"w2v.{part}"
        if (given := case.first(f"{at}.input_features")) is None:
            continue
        mask = case.first(f"{at}.attention_mask")
        seen = np.ones(given.shape[:2], bool) if mask is None else mask > 0
        rows = [Row("project", f"{at}.hidden0", then=_Hidden(tuple(map(tuple, seen.tolist()))))]
        rows += [Row(f"layer_{i}", f"{at}.hidden{i + 1}") for i in range(cfg.layers)]
        inputs, out = (given, seen, np.array([given.shape[1]])), [Row("", f"{at}.normalized")]
        yield from follow(case, "w2vbert", w2vbert.encode, inputs, rows, out, root="encoder", tail="statistics")


def rep_codec(case: Case) -> Iterator[Comparison]:
    """Features -> codes -> embeddings, and the embeddings of the codes that were drawn."""
    params, cfg, golden = case.model.params["repcodec"], case.model.cfg.repcodec, case.golden
    dense = params["quantizer"]["in"]
    if case.has("codec.encoder.out", key := "codec.in_project.out"):
        ours = golden["codec.encoder.out"] @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        yield Comparison("repcodec", "quantizer/in", key, ours, swapped(golden[key]), "block")
    given, function = case.first("w2v.spk.normalized"), repcodec.quantize
    if cfg.stride is not None and given is not None and case.has("codec.encoder.in"):
        out = [Row("", "codec.encoder.in", swapped)]
        yield from follow(case, "repcodec", _shrink, _whole(given), [], out, root="shrink")
        given, function = swapped(golden["codec.encoder.in"]), _quantize
    if given is not None:
        rows = [Row("norm", "codec.encoder.embed")]
        rows += [Row(f"layer_{i}", f"codec.encoder.layer{i}", swapped) for i in range(cfg.layers)]
        rows, out = [*rows, Row("", "codec.encoder.out")], [Row("", "codec.codes"), Row("", "")]
        inputs = _whole(given)
        yield from follow(case, "repcodec", function, inputs, rows, out, root="encoder", tail="quantizer/codebook")
    embed = [("codec.codes", "codec.S_ref", same)]
    embed += [(f"{segment}.gpt.codes", f"{segment}.vq2emb", swapped) for segment in case.segments]
    for source, key, layout in embed:
        if case.has(source, key):
            codes = _codes(case, source)
            ours = np.asarray(repcodec.embed(params, cfg, codes))
            yield Comparison("repcodec", "quantizer/out", key, ours, layout(golden[key]), "block")
    for segment in case.segments if cfg.stride is not None else ():
        yield from _features(case, segment)


def _features(case: Case, segment: str) -> Iterator[Comparison]:
    """What the codec's decoder makes of the codes that were drawn, in its parts and as a whole."""
    params, cfg, golden, at = case.model.params["repcodec"], case.model.cfg.repcodec, case.golden, f"{segment}.codec"
    source, between, key = f"{segment}.vq2emb", f"{at}.decoder.out", f"{at}.decode"
    if case.has(source, between):
        rows = [Row("norm", f"{at}.decoder.embed")]
        rows += [Row(f"layer_{i}", f"{at}.decoder.layer{i}", swapped) for i in range(cfg.layers)]
        given = _whole(swapped(golden[source]))
        yield from follow(case, "repcodec", _decode, given, rows, [Row("", between)], root="decoder")
    if case.has(between, key):
        yield from follow(case, "repcodec", _stretch, _whole(golden[between]), [], [Row("", key)], root="stretch")
    if case.has(key):
        codes = _codes(case, f"{segment}.gpt.codes")
        ours = repcodec.restore(params, cfg, *_whole(codes))
        yield Comparison("repcodec", "restore", key, np.asarray(ours), golden[key], "component")


def _shrink(params: Any, cfg: Any, x: Any, lengths: Any) -> Any:
    return apply(repcodec.Shrink(cfg), params["shrink"], x, lengths)[0]


def _quantize(params: Any, cfg: Any, x: Any, lengths: Any) -> Any:
    codes = repcodec.nearest(params, apply(repcodec.Encoder(cfg), params["encoder"], x, lengths))
    return codes, repcodec.embed(params, cfg, codes)


def _decode(params: Any, cfg: Any, x: Any, lengths: Any) -> Any:
    return apply(repcodec.Decoder(cfg), params["decoder"], x, lengths)


def _stretch(params: Any, cfg: Any, x: Any, lengths: Any) -> Any:
    return apply(repcodec.Stretch(cfg), params["stretch"], x, lengths)


def _codes(case: Case, key: str) -> np.ndarray:
    """Codes [1, C] int32, without the stop code and what follows it."""
    codes = case.golden[key][:1].astype(np.int32)
    stops = np.flatnonzero(codes[0] == case.model.cfg.gpt.stop_code)
    return codes[:, : stops[0]] if len(stops) else codes


def camp_plus(case: Case) -> Iterator[Comparison]:
    """Filterbank frames -> style, every dense layer by itself."""
    cfg = case.model.cfg.campplus
    if (given := case.first("campplus.in")) is None:
        return
    rows = [Row("head", "campplus.head.out", swapped), Row("in", "campplus.tdnn", swapped, jax.nn.relu)]
    for i, layers in enumerate(cfg.blocks):
        rows += [Row(f"block_{i}_layer_{j}", f"campplus.block{i}.layer{j}", swapped) for j in range(layers)]
        rows.append(Row(f"transit_{i}", f"campplus.transit{i}", swapped))
    rows.append(Row("out_norm", "campplus.out_nonlinear", swapped))
    out = [Row("", "campplus.out")]
    yield from follow(case, "campplus", campplus.embed, _whole(given), rows, out)


def conditioners(case: Case) -> Iterator[Comparison]:
    """Speaker latents, the emotions of both recordings, and the emotion vector that is made of them."""
    cfg = case.model.cfg.conditioner

    def table(encoder: Any, conformer: str, perceiver: str, below: str = "") -> list[Row]:
        rows = [Row(f"{below}conformer/subsample", f"{conformer}.embed", _Scale(encoder.width**-0.5))]
        rows += [Row(f"{below}conformer/layer_{i}", f"{conformer}.layer{i}") for i in range(encoder.layers)]
        rows += [Row(f"{below}conformer", f"{conformer}.out"), Row(f"{below}perceiver/context", f"{perceiver}.context")]
        for i in range(encoder.perceiver_layers):
            rows.append(Row(f"{below}perceiver/attention_{i}", f"{perceiver}.layer{i}.attention"))
            rows.append(Row(f"{below}perceiver/down_{i}", f"{perceiver}.layer{i}.feed_forward"))
        return [*rows, Row(f"{below}perceiver", f"{perceiver}.out")]

    for segment in case.segments:
        at = f"{segment}.gpt"
        out = [Row("", f"{at}.speech_conditioning_latent")]
        if cfg.speaker is None:
            if (given := case.first("campplus.out")) is not None:
                yield from follow(case, "conditioner", conditioner.style_latents, (given,), [], out, root="speaker")
        elif (given := case.first("w2v.spk.normalized")) is not None:
            rows = table(cfg.speaker, f"{at}.conditioning_encoder", f"{at}.perceiver_encoder")
            inputs, function = _whole(given), conditioner.speaker_latents
            yield from follow(case, "conditioner", function, inputs, rows, out, root="speaker")
        for part in ("spk", "emo"):
            if (given := case.first(f"w2v.{part}.normalized")) is None:
                continue
            names = (f"{at}.emo_conditioning_encoder.{part}", f"{at}.emo_perceiver_encoder.{part}")
            rows = [*table(cfg.emotion, *names, below="encoder/"), Row("project", f"{at}.emovec_layer.{part}.out")]
            out = [Row("", f"{at}.emo_layer.{part}.out")]
            inputs, function = _whole(given), conditioner.emotion_vector
            yield from follow(case, "conditioner", function, inputs, rows, out, root="emotion")
        yield from _emotion(case, segment)


def _emotion(case: Case, segment: str) -> Iterator[Comparison]:
    golden, meta, at = case.golden, case.meta, f"{segment}.gpt"
    base, other, merged, key = (
        f"{at}.{name}" for name in ("emo_layer.spk.out", "emo_layer.emo.out", "emovec_merged", "emo_vec")
    )
    if case.has(base, other, merged):
        alpha = meta["emo_alpha"] if meta.get("emo_audio") else 1.0
        ours = emotion.mix(golden[base], golden[other], float(alpha))
        yield Comparison("conditioner", "emotion.mix", merged, ours, golden[merged], "block")
    style, felt = case.first("campplus.out", f"{segment}.cfm.style"), _weighed(case)
    if felt and case.has(merged, key) and style is not None:
        own, params, cfg = golden[merged][0], case.model.params["prototypes"], case.model.cfg.prototypes
        ours = np.asarray(emotion.resolve(params, cfg, felt, own, own, style[0]))
        yield Comparison("conditioner", "emotion.resolve", key, ours[None], golden[key], "block")


def _weighed(case: Case) -> Emotion | None:
    """The emotion that was given by weights, or read off a text."""
    weights = case.meta.get("emo_vector")
    if not weights and case.has("qwen.emotions"):
        weights = list(json.loads(str(case.golden["qwen.emotions"])).values())
    return Emotion(weights, alpha=case.meta["emo_alpha"]) if weights else None


def gpt_decoder(case: Case) -> Iterator[Comparison]:
    """The prefix, every layer and the cache after it, every step, the codes drawn, and the second pass."""
    params, cfg, golden = case.model.params["gpt"], case.model.cfg.gpt, case.golden
    for segment in case.segments:
        at = f"{segment}.gpt"
        if not case.has(f"{at}.speech_conditioning_latent", f"{at}.emo_vec", f"{segment}.text_tokens"):
            continue
        texts = golden[f"{segment}.text_tokens"]
        known = (golden[f"{at}.speech_conditioning_latent"], golden[f"{at}.emo_vec"])
        spoken = texts[:, ~np.isin(texts[0], (cfg.start_text, cfg.stop_text))]
        language = None if cfg.languages is None else golden[f"{segment}.language"].astype(np.int32)
        prefix, taught = (
            gpt.prefix(params, cfg, *known, ids, np.array([ids.shape[1]]), language) for ids in (spoken, texts)
        )
        P = prefix.embeddings.shape[1]
        alone = _Prefix(P)
        if case.has(key := f"{at}.prefill.inputs_embeds"):
            reference = alone(golden[key])  # what was dropped is zeros on its left
            yield Comparison("gpt", "prefix", key, np.asarray(prefix.embeddings), reference, "block")
            prefix = Prefix(jnp.asarray(reference), prefix.lengths)
        rows = [Row(f"layer_{i}", f"{at}.prefill.h{i}", alone) for i in range(cfg.layers)]
        rows.append(Row("norm", f"{at}.prefill.h_ln_f", alone))
        out = [Row("", f"{at}.logits_per_step", _first_step), Row("", "")]
        yield from follow(case, "gpt", gpt.prefill, (prefix,), rows, out, root="decoder", tail="head")
        for i, layer in enumerate(gpt.prefill(params, cfg, prefix)[1]):
            for name, ours in zip("kv", layer, strict=True):
                if case.has(key := f"{at}.prefill.{name}{i}"):
                    reference = golden[key][:1, :, -P:].transpose(0, 1, 3, 2)
                    yield Comparison("gpt", f"cache {i}", key, np.asarray(ours), reference, "component")
            if i and case.has(key := f"{at}.prefill.attention{i}", before := f"{at}.prefill.h{i - 1}"):
                ours = _attention(params["decoder"][f"layer_{i}"], cfg.heads, alone(golden[before]))
                reference = golden[key][:1, :, -P:, -P:]
                yield Comparison("gpt", f"decoder/layer_{i}/qkv", key, np.asarray(ours), reference, "block")
        if case.has(f"{at}.codes"):
            yield from _steps(case, at, prefix)
            yield from _drawn(case, at, prefix)
            if case.model.cfg.s2mel.latent_layers:
                yield from _second_pass(case, at, taught)


def _attention(layer: Any, heads: int, x: np.ndarray) -> jax.Array:
    """Where each position of a prefix looks: x [B, T, D] before the layer -> [B, N, T, T]."""
    B, T, D = x.shape
    qkv = apply(Dense(3 * D), layer["qkv"], apply(LayerNorm(), layer["attention_norm"], jnp.asarray(x)))
    q, k, _ = jnp.split(qkv.reshape(B, T, 3 * heads, D // heads), 3, axis=2)
    scores = jnp.einsum("bqnh,bknh->bnqk", q, k) * (D // heads) ** -0.5
    return jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool)[None, None], scores, -jnp.inf), axis=-1)


def _sampling(case: Case) -> Sampling:
    names = ("repetition_penalty", "length_penalty", "top_k", "top_p", "temperature")
    given = {name: case.meta[name] for name in names if name in case.meta}
    return Sampling(case.meta.get("beams", 1), case.meta.get("sample", False), **given).of(case.model.cfg.gpt)


def _steps(case: Case, at: str, prefix: Prefix) -> Iterator[Comparison]:
    """The scores of every step while the reference's own codes are fed, and the reference's scores processed."""
    params, cfg, golden, sampling = case.model.params["gpt"], case.model.cfg.gpt, case.golden, _sampling(case)
    raw, final, K = f"{at}.logits_per_step", f"{at}.processed_scores_per_step", sampling.beams
    if not (case.has(raw) or case.has(final)) or (K > 1 and not case.has(f"{at}.beam_tokens", f"{at}.beam_parents")):
        return
    steps = len(golden[raw if case.has(raw) else final])
    tokens = (golden[f"{at}.beam_tokens"] if K > 1 else golden[f"{at}.codes"][0, :, None]).astype(np.int32)
    parents = golden[f"{at}.beam_parents"] if K > 1 else np.zeros_like(tokens)
    P = int(prefix.lengths[0])
    first, caches = gpt.prefill(params, cfg, prefix)
    blocks, recent = tuple((cache,) for cache in caches), gpt.empty(cfg, 1, K * steps, first.dtype)
    logits = jnp.repeat(first[:, None], K, axis=1)
    S = caches[0].k.shape[3]
    visible, seen = np.zeros((1, K, S + K * steps), bool), np.zeros((1, K, cfg.code_vocabulary), bool)
    visible[..., :P], seen[..., [1, cfg.start_code]] = True, True
    scores, processed = [], []
    for n in range(steps):
        if n:
            visible, seen = visible[:, parents[n - 1]], seen[:, parents[n - 1]]
            visible[0, range(K), range(S + K * (n - 1), S + K * n)] = True
            seen[0, range(K), tokens[n - 1]] = True
            slot, positions = K * (n - 1), np.array([n + 1])
            logits, recent = gpt.step(params, cfg, blocks, recent, tokens[None, n - 1], slot, positions, visible)
        scores.append(np.asarray(logits[0]))
        given = golden[raw][None, n] if case.has(raw) else logits
        processed.append(np.asarray(_process(given, seen, sampling)[0]))
    for where, key, ours in (("step", raw, scores), ("process", final, processed)):
        if case.has(key):
            yield Comparison("gpt", where, key, np.stack(ours), golden[key], "scores")


@jax.jit
def _process(logits: Any, seen: Any, sampling: Sampling) -> Any:
    return decoding.process(jax.nn.log_softmax(logits) if sampling.beams > 1 else logits, seen, sampling)


def _drawn(case: Case, at: str, prefix: Prefix) -> Iterator[Comparison]:
    """The codes, where they are not a matter of chance."""
    sampling, codes = _sampling(case), case.golden[f"{at}.codes"].astype(np.int32)
    if sampling.sample:
        return
    params, cfg = case.model.params["gpt"], case.model.cfg.gpt
    limit = case.meta.get("max_mel", codes.shape[1])
    drawn = drawing.generate(params, cfg, prefix, [jax.random.key(0)], sampling, limit)
    yield Comparison("gpt", "generate", f"{at}.codes", drawn.codes[:, : codes.shape[1]], codes, None)
    if sampling.beams == 1:
        return
    golden, keys = case.golden, jax.random.key_data(jax.random.key(0))[None]
    yield Comparison("gpt", "generate", key := f"{at}.sequence_score", drawn.scores, golden[key], "block")
    blocks = -(-(int(prefix.lengths[0]) + sampling.beams * (limit + decoding.CHUNK)) // decoding.BLOCK)
    state = decoding.empty(cfg, sampling, 1, blocks, np.float32)
    logits, caches = gpt.prefill(params, cfg, prefix)
    place, most = np.array([0]), np.int32(limit)
    state = decoding.admit(cfg, state, prefix.lengths, logits, caches, place, keys, sampling, most)
    state = decoding.advance(params, cfg, state, np.bool_(False), most)
    steps = int(state.counts[0])
    for name, ours, allowed in zip(("tokens", "parents", "scores"), state.trace, (None, None, "block"), strict=True):
        ours = np.asarray(ours[0, :steps])
        reference = golden[f"{at}.beam_{name}"].astype(ours.dtype)
        yield Comparison("gpt", "advance", f"{at}.beam_{name}", ours, reference, allowed)


def _second_pass(case: Case, at: str, prefix: Prefix) -> Iterator[Comparison]:
    cfg, codes = case.model.cfg.gpt, _codes(case, f"{at}.codes")
    # The reference feeds the last code and a stop code as well, and drops what comes of them.
    fed = _Cut(prefix.embeddings.shape[1] + codes.shape[1] - 1)
    rows = [Row(f"layer_{i}", f"{at}.latent.h{i}", fed) for i in range(cfg.layers)]
    rows, out = [*rows, Row("norm", f"{at}.latent.h_ln_f", fed)], [Row("", f"{at}.latent.out")]
    yield from follow(case, "gpt", gpt.latents, (prefix, codes), rows, out, root="decoder")


def mel_decoder(case: Case) -> Iterator[Comparison]:
    """Latents in the codec's space, the length regulator, the estimator at the first step, and the whole trajectory."""
    cfg, golden = case.model.cfg.s2mel, case.golden

    def regulated(source: str, key: str) -> Iterator[Comparison]:
        frames, semantic = golden[key].shape[1], golden[source]
        rows = [Row("project", f"{key}.project")]
        for i in range(cfg.regulator_layers):
            rows += [Row(f"conv_{i}", f"{key}.conv{i}", swapped), Row(f"norm_{i}", f"{key}.norm{i}", swapped)]
        inputs, out = (*_whole(semantic), np.array([frames])), [Row("", key)]
        yield from follow(case, "s2mel", _regulate, inputs, rows, out, root="regulator", frames=frames)

    source = next((key for key in ("prompt_condition.in", "codec.S_ref") if case.has(key)), None)
    if source and case.has("prompt_condition"):
        yield from regulated(source, "prompt_condition")
    for segment in case.segments:
        at = f"{segment}.s2mel"
        if case.has(latents := f"{segment}.gpt.latent.out", f"{at}.gpt_layer.out"):
            rows = [Row(f"layer_{i}", f"{at}.gpt_layer.layer{i}") for i in range(len(cfg.latent_layers) - 1)]
            out = [Row("", f"{at}.gpt_layer.out")]
            yield from follow(case, "s2mel", _latent, (golden[latents],), rows, out, root="latent")
        if case.has(source := f"{at}.length_regulator.in", key := f"{at}.length_regulator", f"{key}.ylens"):
            if case.meta.get("duration", 1.0) == 1.0:
                ours = np.asarray(s2mel.target_lengths(np.array([golden[source].shape[1]])))
                reference = golden[f"{key}.ylens"].astype(np.int32)
                yield Comparison("s2mel", "target_lengths", f"{key}.ylens", ours, reference, None)
            yield from regulated(source, key)
        yield from _estimator(case, f"{segment}.dit0")
        yield from _trajectory(case, segment)


def _regulate(params: Any, cfg: Any, semantic: Any, lengths: Any, target_lengths: Any, frames: int) -> Any:
    return apply(s2mel.Regulator(cfg), params["regulator"], semantic, lengths, frames, target_lengths)


def _latent(params: Any, cfg: Any, x: Any) -> Any:
    return apply(s2mel.Latent(cfg), params["latent"], x)


def _estimator(case: Case, at: str) -> Iterator[Comparison]:
    cfg, golden = case.model.cfg.s2mel, case.golden
    if not case.has(f"{at}.in.x"):
        return
    x, prompt = (swapped(golden[f"{at}.in.{name}"]) for name in ("x", "prompt_x"))
    rows = [
        Row("time", f"{at}.t_embedder"), Row("content", f"{at}.cond_projection"),
        Row("merge", f"{at}.cond_x_merge_linear"),
    ]  # fmt: skip
    inside = {"attention_norm": "attention_norm", "attention": "attention", "feed_forward_norm": "ffn_norm"}
    inside |= {"feed_forward": "feed_forward", "skip": "skip_in"}
    for i in range(cfg.depth):
        rows += [Row(f"transformer/layer_{i}/{ours}", f"{at}.layer{i}.{theirs}") for ours, theirs in inside.items()]
        rows.append(Row(f"transformer/layer_{i}", f"{at}.layer{i}"))
    rows += [
        Row("transformer", f"{at}.transformer"), Row("skip", f"{at}.skip_linear"), Row("wavenet_in", f"{at}.conv1"),
        Row("wavenet_time", f"{at}.t_embedder2"), Row("wavenet/condition", f"{at}.wavenet.cond", _flat),
    ]  # fmt: skip
    for i in range(cfg.wavenet_layers):
        rows.append(Row(f"wavenet/in_{i}", f"{at}.wavenet.in{i}", swapped))
        rows.append(Row(f"wavenet/out_{i}", f"{at}.wavenet.res_skip{i}", swapped))
    rows += [
        Row("wavenet", f"{at}.wavenet", swapped), Row("residual", f"{at}.res_projection"),
        Row("final", f"{at}.final_layer"),
    ]  # fmt: skip
    inputs = (x, prompt, *(golden[f"{at}.in.{name}"] for name in ("mu", "style", "t")), np.full(len(x), x.shape[1]))
    out = [Row("", f"{at}.out", swapped)]
    yield from follow(case, "s2mel", s2mel.estimate, inputs, rows, out, root="estimator")


def _trajectory(case: Case, segment: str) -> Iterator[Comparison]:
    """All Euler steps from the reference's noise; the prompt's part of the state is zero and not compared."""
    params, cfg, golden, at = case.model.params["s2mel"], case.model.cfg.s2mel, case.golden, f"{segment}.cfm"
    style = case.first(f"{at}.style", "campplus.out")
    needed = (f"{segment}.s2mel.length_regulator", "prompt_condition", "ref_mel", f"{at}.noise")
    if style is None or not case.has(*needed):
        return
    content, before, prompt, noise = (golden[key] for key in needed)
    steps, P = int(golden.get(f"{at}.n_steps", 25)), prompt.shape[2]
    if case.has(f"{at}.t"):
        yield Comparison("s2mel", "times", f"{at}.t", s2mel.times(steps)[0], golden[f"{at}.t"], "block")
    noise = swapped(noise)[:, P:]
    inputs = (noise, *_whole(content), *(swapped(prompt), before), np.array([P]), style)
    states = np.asarray(_flow(params, cfg, *inputs, steps=steps, every=True))
    if case.has(key := f"{at}.trajectory"):
        stored = golden.get(f"{at}.trajectory_steps", np.arange(steps + 1))
        ours = np.concatenate([noise[None], states])[stored][:, 0]
        yield Comparison("s2mel", "flow", key, ours, swapped(golden[key])[:, P:], "mel")
    for key, start in ((f"{at}.mel_with_prompt", P), (f"{segment}.bigvgan.in", 0)):
        if case.has(key):
            yield Comparison("s2mel", "flow", key, states[-1], swapped(golden[key])[:, start:], "mel")


_flow = jax.jit(s2mel.flow, static_argnames=("cfg", "steps", "guidance", "frames", "every"))


def vocoder(case: Case) -> Iterator[Comparison]:
    """Mel -> waveform, stage by stage."""
    cfg = case.model.cfg.bigvgan
    for segment in case.segments:
        at = f"{segment}.bigvgan"
        if not case.has(f"{at}.in"):
            continue
        rows = [Row("in", f"{at}.conv_pre.out", swapped)]
        for i in range(len(cfg.upsample_rates)):
            rows += [Row(f"upsample_{i}", f"{at}.up{i}.out", swapped), Row(f"stage_{i}", f"{at}.stage{i}", swapped)]
        rows.append(Row("activation", f"{at}.activation_post.out", _one))
        case.golden.update(_averaged(case, at))
        inputs, out = _whole(swapped(case.golden[f"{at}.in"])), [Row("", f"{at}.out", _wave)]
        yield from follow(case, "bigvgan", bigvgan.vocode, inputs, rows, out, allowed="waveform")


def _averaged(case: Case, at: str) -> dict[str, np.ndarray]:
    """The mean of a stage's residual blocks, which is what our stage puts out, where all of them are stored."""
    cfg, found = case.model.cfg.bigvgan, {}
    for i in range(len(cfg.upsample_rates)):
        keys = [f"{at}.resblock{i * len(cfg.kernels) + j}.out" for j in range(len(cfg.kernels))]
        if case.has(*keys):
            found[f"{at}.stage{i}"] = sum(case.golden[key] for key in keys) / np.float32(len(keys))
    return found


def qwen(case: Case) -> Iterator[Comparison]:
    """Emotion from text: prompt, layers, answer, and what it is turned into."""
    golden = case.golden
    known = golden.get("qwen_emotion", {})
    for i, row in enumerate(known.get("convert_table", [])):
        expected = row["result"] and list(row["result"].values())
        try:
            weights = list(reader.understand(row["completion"], row["text"]))
        except ValueError:  # where the reference raises as well
            weights = None
        yield _equal("qwen3", "understand", f"convert_table[{i}]", weights, expected)
    if case.reader is None:
        return
    params, cfg, tokenizer = case.reader()
    case = case._replace(model=replace(case.model, params={**case.model.params, "qwen3": params}))
    for i, run in enumerate(known.get("runs", [])):
        prompt, drawn = run["input_ids"], run["output_ids"][len(run["input_ids"]) :]
        yield _equal("qwen3", "tokenizer", f"runs[{i}].input_ids", _prompt(tokenizer, run["text"]), prompt)
        ids = np.array([prompt], np.int32)
        answer = qwen3.generate(params, cfg, ids, np.array([len(prompt)]), len(drawn))
        yield _equal("qwen3", "generate", f"runs[{i}].output_ids", np.asarray(answer.ids)[0].tolist(), drawn)
    if not case.has("qwen.prompt_ids"):
        return
    words = case.meta["emotion_text"]
    ids = golden["qwen.prompt_ids"].reshape(1, -1).astype(np.int32)
    ours = np.array([_prompt(tokenizer, words)], np.int32)
    yield Comparison("qwen3", "tokenizer", "qwen.prompt_ids", ours, ids, None)
    if case.has(key := "qwen.embed"):
        ours = np.asarray(params["token"]["embedding"])[ids]
        yield Comparison("qwen3", "token", key, ours, golden[key], "block")
    rows = [*(Row(f"layer_{i}", f"qwen.layer{i}") for i in range(cfg.layers)), Row("norm", "qwen.norm")]
    out = [Row("", "qwen.logits", then=_last)]
    yield from follow(case, "qwen3", qwen3.logits, _whole(ids), rows, out, root="decoder", tail="token")
    if case.has(key := "qwen.answer_ids"):
        reference = golden[key].reshape(1, -1).astype(np.int32)
        answer = qwen3.generate(params, cfg, ids, np.array([ids.shape[1]]), reference.shape[1])
        yield Comparison("qwen3", "generate", key, np.asarray(answer.ids), reference, None)
    if case.has(key := "qwen.emotions", "qwen.answer"):
        weights = dict(zip(emotion.NAMES, reader.understand(str(golden["qwen.answer"]), words), strict=True))
        yield _equal("qwen3", "understand", key, weights, json.loads(str(golden[key])))


def _prompt(tokenizer: Any, words: str) -> list[int]:
    return tokenizer.encode(reader.PROMPT.format(text=words)).ids


def _last(x: Any) -> Any:
    return x[:, -1:]


# ---- the whole chain ------------------------------------------------------------------------------------------------


def chain(case: Case) -> Iterator[Comparison]:
    """The system on its own, from recordings and text to samples.

    Only the noise is the reference's, and the codes where they were drawn by chance.
    """
    model, golden, meta = case.model, case.golden, case.meta
    recording, analysis = _recording(case), _analysis(case)
    if recording is None or analysis is None or not case.has(*(f"{segment}.cfm.noise" for segment in case.segments)):
        return

    def compare(key: str, ours: Any, allowed: str | None, layout: Any = same) -> Iterator[Comparison]:
        if case.has(key):
            reference = layout(golden[key])
            ours = np.asarray(ours)
            yield Comparison("end-to-end", "chain", key, ours, reference.astype(ours.dtype), allowed)

    params, cfg = model.params, model.cfg
    heard, lengths = hear(params, cfg, [recording.samples_16k])
    frames = int(lengths[0])
    yield from compare("w2v.spk.normalized", heard[:, :frames], "component")
    codes = repcodec.quantize(params["repcodec"], cfg.repcodec, heard, lengths).codes
    yield from compare("codec.codes", codes[:, : repcodec.code_lengths(cfg.repcodec, frames)], None)
    voice = listen(params, cfg, recording)
    yield from compare("ref_mel", voice.mel[None], "front end rounding", swapped)
    yield from compare("campplus.out", voice.style[None], "style of a recording")
    yield from compare("prompt_condition", voice.content[None], "component")
    projected = cfg.conditioner.speaker is None  # and as near as the style is that they are made of
    allowed = "style of a recording" if projected else "component"
    yield from compare("seg0.gpt.speech_conditioning_latent", voice.latents[None], allowed)

    felt = _weighed(case)
    if meta.get("emo_audio"):
        felt = Emotion(vector=feel(params, cfg, recording.emotion_16k), alpha=meta["emo_alpha"])
    vector = emotion.resolve(params["prototypes"], cfg.prototypes, felt, voice.emotion, voice.base, voice.style)
    yield from compare("seg0.gpt.emo_vec", np.asarray(vector)[None], "component")

    sampling = _sampling(case)
    given = [Given(noise=golden[f"{segment}.cfm.noise"][0].T) for segment in case.segments]
    if sampling.sample:
        codes = [_codes(case, f"{segment}.gpt.codes")[0] for segment in case.segments]
        given = [instead._replace(codes=own) for instead, own in zip(given, codes, strict=True)]
    steps = int(golden.get("seg0.cfm.n_steps", 25))
    speed = 1 / meta.get("duration", 1.0)
    options = Options(sampling, meta.get("max_mel", 1500), steps=steps, fade_ms=0, speed=speed)
    [speech] = pipeline.speak(params, cfg, [analysis], [voice], [jax.random.key(0)], options, [felt], given=[given])
    for segment, spoken in zip(case.segments, speech.segments, strict=True):
        if not sampling.sample:
            reference = _codes(case, f"{segment}.gpt.codes")
            yield Comparison("end-to-end", "chain", f"{segment}.gpt.codes", spoken.codes[None], reference, None)
        yield from compare(f"{segment}.bigvgan.in", spoken.mel[None], "mel", swapped)
    yield from compare("wav_int16", audio.to_int16(speech.samples).astype(np.int32)[:, None], "samples")


def _analysis(case: Case) -> Analysis | None:
    """The text as our front end reads it; of IndexTTS-2.5, the ids that were given, without the stop behind them."""
    if case.has("text.raw"):
        return case.model.text.analyse(str(case.golden["text.raw"]), case.meta.get("seg", 120))
    if not case.segments or not case.has(*(f"{segment}.language" for segment in case.segments)):
        return None
    ids = [case.golden[f"{segment}.text_tokens"][0, :-1].tolist() for segment in case.segments]
    language = byte_pairs.LANGUAGES[int(case.golden["seg0.language"][0])]
    return Analysis("", [], [], [[]] * len(ids), ids, [], language=language)


def _recording(case: Case) -> audio.Recording | None:
    """The speaker's recording, its own file or what the reference read from it."""
    felt = audio.load_emotion(case.emotion) if case.emotion else case.first("audio.emo_16k", "audio.emo_16k_librosa")
    if case.speaker:
        recording = audio.load_speaker(case.speaker)
    else:
        samples = case.first("audio.spk_22k_librosa")
        if samples is None or felt is None:
            return None
        ours = audio.resample_sinc(samples[0], features.MEL_RATE, features.SPEECH_RATE)
        recording = audio.Recording(samples[0], ours, ours)
    return recording if felt is None else recording._replace(emotion_16k=felt.reshape(-1))


STAGES: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "text": text, "audio": front_ends, "w2vbert": w2v_bert, "repcodec": rep_codec, "campplus": camp_plus,
    "conditioner": conditioners, "gpt": gpt_decoder, "s2mel": mel_decoder, "bigvgan": vocoder, "qwen3": qwen,
    "end-to-end": chain,
}  # fmt: skip
