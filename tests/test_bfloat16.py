"""With parameters cast to bfloat16 every component runs under strict promotion and stays near its float32 result.

Errors are relative to the reference's float32 tensors, on the tiny checkpoint; each bound is about twice what was
measured. Rounding the weights alone, with float32 arithmetic, already makes half of it or more in the deep networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import golden, relative
from indextts_jax import models
from indextts_jax.models import bigvgan, campplus, conditioner, gpt, repcodec, s2mel, w2vbert
from tests.test_gpt import begin, one_beam

pytestmark = pytest.mark.whole

ARRAYS = golden("en_greedy")
REFERENCE_MEL = np.swapaxes(ARRAYS["ref_mel"], 1, 2)


def length(x):
    return np.array([x.shape[1]])


def w2vbert_outputs(params, cfg):
    features, seen = ARRAYS["w2v.spk.input_features"], ARRAYS["w2v.spk.attention_mask"] > 0
    yield w2vbert.encode(params, cfg, features, seen, length(features)), jnp.float32, ARRAYS["w2v.spk.normalized"], 0.12


def repcodec_outputs(params, cfg):
    features, codes = ARRAYS["w2v.spk.normalized"], ARRAYS["codec.codes"]
    embeddings = repcodec.embed(params, cfg, codes.astype(np.int32))
    yield embeddings, jnp.bfloat16, ARRAYS["codec.S_ref"], 0.007
    quantized = repcodec.quantize(params, cfg, features, length(features))
    assert np.mean(quantized.codes != codes) < 0.04  # of 128 codes; near ties fall the other way


def campplus_outputs(params, cfg):
    features = ARRAYS["campplus.in"]
    yield campplus.embed(params, cfg, features, length(features)), jnp.bfloat16, ARRAYS["campplus.out"], 0.3


def conditioner_outputs(params, cfg):
    features = ARRAYS["w2v.spk.normalized"]
    latents = conditioner.speaker_latents(params, cfg, features, length(features))
    yield latents, jnp.bfloat16, ARRAYS["seg0.gpt.speech_conditioning_latent"], 0.012


def gpt_outputs(params, cfg):
    speaker, emotion = ARRAYS["seg0.gpt.speech_conditioning_latent"], ARRAYS["seg0.gpt.emo_vec"]
    texts, codes = ARRAYS["seg0.text_tokens"], ARRAYS["seg0.gpt.codes"].astype(np.int32)
    prefix = gpt.prefix(params, cfg, speaker, emotion, texts, length(texts))
    scores, caches, recent = begin(params, cfg, prefix, 1)
    assert caches[0][0].k.dtype == jnp.bfloat16
    yield scores, jnp.float32, ARRAYS["seg0.gpt.logits_per_step"][0], 0.014
    scores, _ = one_beam(params, cfg, caches, recent, codes[:, 0], prefix.lengths, 0)
    yield scores, jnp.float32, ARRAYS["seg0.gpt.logits_per_step"][1], 0.014
    yield gpt.latents(params, cfg, prefix, codes), jnp.bfloat16, ARRAYS["seg0.gpt.latent.out"], 0.02


def s2mel_outputs(params, cfg):
    embeddings, latents = np.swapaxes(ARRAYS["seg0.vq2emb"], 1, 2), ARRAYS["seg0.gpt.latent.out"]
    expected, codes, frames = ARRAYS["seg0.s2mel.length_regulator"], np.array([40]), np.array([68])
    yield s2mel.content(params, cfg, embeddings, latents, codes, 68, frames), jnp.bfloat16, expected, 0.02
    noise = np.swapaxes(ARRAYS["seg0.cfm.noise"], 1, 2)[:, 392:]
    prompt, prompt_content, style = REFERENCE_MEL, ARRAYS["prompt_condition"], ARRAYS["campplus.out"]
    flow = jax.jit(s2mel.flow, static_argnames="cfg")
    mel = flow(params, cfg, noise, expected, frames, prompt, prompt_content, length(prompt), style)
    yield mel, jnp.float32, np.swapaxes(ARRAYS["seg0.cfm.mel_with_prompt"], 1, 2)[:, 392:], 0.006


def bigvgan_outputs(params, cfg):
    mel = np.swapaxes(ARRAYS["seg0.bigvgan.in"], 1, 2)
    yield bigvgan.vocode(params, cfg, mel, length(mel)), jnp.float32, ARRAYS["seg0.bigvgan.out"][:, 0], 0.025


@pytest.mark.parametrize(
    "outputs",
    [
        w2vbert_outputs,
        repcodec_outputs,
        campplus_outputs,
        conditioner_outputs,
        gpt_outputs,
        s2mel_outputs,
        bigvgan_outputs,
    ],
)
def test_bfloat16_stays_near_float32(tiny, outputs):
    component = outputs.__name__.removesuffix("_outputs")
    params = jax.device_put(models.cast(component, jax.tree.map(np.asarray, tiny.params(component)), jnp.bfloat16))
    for ours, dtype, expected, bound in outputs(params, getattr(tiny.cfg, component)):
        assert ours.dtype == dtype
        error = relative(ours, expected)
        assert bound / 10 < error < bound  # an error far below would mean that it ran in float32
