"""Length regulator, estimator and solver against the reference; and that padding changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, absolute, golden, relative
from indextts_jax.config import read_yaml
from indextts_jax.convert import s2mel as converter
from indextts_jax.models import s2mel
from tests.small import S2MEL, normal, parameters

flow = jax.jit(s2mel.flow, static_argnames=("cfg", "steps", "guidance", "frames", "every"))


@pytest.fixture(scope="module")
def arrays():
    return golden("en_greedy")


@pytest.fixture(scope="module")
def params(tiny):
    return tiny.params("s2mel")


def channels_last(x):
    return np.swapaxes(x, 1, 2)


# ---- length regulator -----------------------------------------------------------------------------------------------


def test_latent_and_regulator_equal_reference(tiny, params, arrays):
    cfg = tiny.cfg.s2mel
    latent = jax.jit(s2mel.Latent(cfg).apply)({"params": params["latent"]}, arrays["seg0.gpt.latent.out"])
    assert relative(latent, arrays["seg0.s2mel.gpt_layer.out"]) <= TOLERANCE["block"]
    lengths = np.array([40])
    frames = s2mel.target_lengths(lengths)
    np.testing.assert_array_equal(frames, arrays["seg0.s2mel.length_regulator.ylens"])
    out = s2mel.regulate(params, cfg, arrays["seg0.s2mel.length_regulator.in"], lengths, 68, frames)
    assert relative(out, arrays["seg0.s2mel.length_regulator"]) <= TOLERANCE["component"]
    embeddings, latents = channels_last(arrays["seg0.vq2emb"]), arrays["seg0.gpt.latent.out"]
    whole = s2mel.content(params, cfg, embeddings, latents, lengths, 68, frames)
    assert relative(whole, arrays["seg0.s2mel.length_regulator"]) <= TOLERANCE["component"]


def test_prompt_condition_equals_reference(tiny, params, arrays):
    out = s2mel.regulate(params, tiny.cfg.s2mel, arrays["codec.S_ref"], np.array([227]), 392, np.array([392]))
    assert relative(out, arrays["prompt_condition"]) <= TOLERANCE["component"]


def test_nearest_is_float32_and_differs_from_exact_arithmetic():
    """The rule as the reference's framework computes it, in numpy, for many pairs of lengths."""
    sources = np.arange(1, 600)
    targets = (sources * np.float32(1.72)).astype(np.int32)
    frames = int(targets.max())
    ours = np.asarray(jax.jit(s2mel.nearest, static_argnums=1)(sources, frames, targets))
    exact = 0
    for row, source, target in zip(ours, sources, targets, strict=True):
        scale = np.float32(source) / np.float32(target)
        expected = np.minimum(np.floor(np.arange(target, dtype=np.float32) * scale), source - 1)
        np.testing.assert_array_equal(row[:target], expected)
        exact += np.array_equal(expected, np.arange(target) * source // target)
    assert exact < len(sources)


def test_regulator_ignores_padding_and_neighbours():
    cfg, params = S2MEL, parameters("s2mel", S2MEL)
    x, lengths = normal(0, 3, 20, cfg.semantic), np.array([20, 7, 13])
    targets = np.asarray(s2mel.target_lengths(lengths))
    together = np.asarray(s2mel.regulate(params, cfg, x, lengths, 40, targets))
    for i, (n, f) in enumerate(zip(lengths.tolist(), targets.tolist(), strict=True)):
        alone = s2mel.regulate(params, cfg, x[i : i + 1, :n], lengths[i : i + 1], f, targets[i : i + 1])
        assert relative(together[i : i + 1, :f], alone) <= TOLERANCE["block"]
        assert not together[i, f:].any()


# ---- estimator ------------------------------------------------------------------------------------------------------


def test_time_frequencies_are_the_checkpoints(tiny):
    tensors = converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))
    for name in ("t_embedder", "t_embedder2"):
        stored = tensors[f"cfm.estimator.{name}.freqs"].read()
        np.testing.assert_array_max_ulp(s2mel.time_frequencies(len(stored)), stored, maxulp=1)


def estimator_inputs(arrays):
    return {
        "x": channels_last(arrays["seg0.dit0.in.x"]),
        "prompt": channels_last(arrays["seg0.dit0.in.prompt_x"]),
        "content": arrays["seg0.dit0.in.mu"],
        "style": arrays["seg0.dit0.in.style"],
        "t": arrays["seg0.dit0.in.t"],
        "lengths": np.array([460, 460]),
    }


def test_estimator_blocks_equal_reference(tiny, params, arrays):
    """Each block on the reference's own input, first row of the stacked two (the one with the prompt)."""
    cfg, params = tiny.cfg.s2mel, params["estimator"]
    stored = {key.removeprefix("seg0.dit0."): value for key, value in arrays.items() if key.startswith("seg0.dit0.")}
    stored["wavenet"] = channels_last(stored["wavenet"])
    lengths, T = np.array([460]), 460

    def check(module, name, ours, *inputs, **static):
        tree = params
        for part in ours.split("/"):
            tree = tree[part]
        out = jax.jit(partial(module.apply, **static))({"params": tree}, *inputs)
        assert relative(out, stored[name]) <= TOLERANCE["block"], name

    for name, ours, width in (("t_embedder", "time", cfg.width), ("t_embedder2", "wavenet_time", cfg.wavenet_width)):
        check(s2mel.TimeEmbedding(width), name, ours, stored["in.t"], dtype=jnp.float32)
    time, wave_time = stored["t_embedder"][:1], stored["t_embedder2"][:1]
    rotation, mask = tuple(s2mel.rotations(T, cfg.width // cfg.heads)), np.ones((1, 1, 1, T), bool)
    x, normed = stored["cond_x_merge_linear"], stored["layer0.attention_norm"]
    layer = "transformer/layer_0"
    check(s2mel.AdaptiveNorm(), "layer0.attention_norm", f"{layer}/attention_norm", x, time)
    check(s2mel.Attention(cfg), "layer0.attention", f"{layer}/attention", normed, rotation, mask)
    check(s2mel.Block(cfg), "layer0", layer, x, time, rotation, mask)
    check(s2mel.AdaptiveNorm(), "transformer", "transformer/norm", stored["layer4"], time)
    check(s2mel.Transformer(cfg), "transformer", "transformer", x, time, lengths)
    check(s2mel.WaveNet(cfg), "wavenet", "wavenet", stored["conv1"], wave_time, lengths)


def test_estimator_equals_reference(tiny, params, arrays):
    inputs, estimate = estimator_inputs(arrays), jax.jit(s2mel.estimate, static_argnums=1)
    out = estimate(params, tiny.cfg.s2mel, **inputs)
    assert relative(out, np.swapaxes(arrays["seg0.dit0.out"], 1, 2)) <= TOLERANCE["component"]
    out = estimate(params, tiny.cfg.s2mel, **{**inputs, "x": inputs["x"] * np.float32(1.01)})
    assert relative(out, np.swapaxes(arrays["seg0.dit0.out"], 1, 2)) > TOLERANCE["component"]


# ---- solver ---------------------------------------------------------------------------------------------------------


def test_times_equal_reference(arrays):
    np.testing.assert_array_max_ulp(s2mel.times(25)[0], arrays["seg0.cfm.t"], maxulp=1)


def flow_inputs(arrays, segment="seg0"):
    reference = golden("en_greedy")
    noise = channels_last(arrays[f"{segment}.cfm.noise"])
    return {
        "noise": noise[:, 392:],
        "content": reference["seg0.s2mel.length_regulator"],
        "lengths": np.array([68]),
        "prompt": channels_last(reference["ref_mel"]),
        "prompt_content": reference["prompt_condition"],
        "prompt_lengths": np.array([392]),
        "style": reference["campplus.out"],
    }


def test_mel_from_the_stored_noise_equals_reference(tiny, params, arrays):
    states = np.asarray(flow(params, tiny.cfg.s2mel, **flow_inputs(arrays), every=True))
    for index, step in enumerate(arrays["seg0.cfm.trajectory_steps"]):
        if step:
            stored = arrays["seg0.cfm.trajectory"][index].T[None, 392:]
            assert absolute(states[step - 1], stored) <= TOLERANCE["mel"]
    assert absolute(states[-1], np.swapaxes(arrays["seg0.cfm.mel_with_prompt"], 1, 2)[:, 392:]) <= TOLERANCE["mel"]


def test_euler_is_exact_on_a_constant_field():
    x = jnp.ones((2, 5))
    end, states = s2mel.euler(lambda x, t: jnp.full_like(x, 3.0), x, 7)
    np.testing.assert_allclose(end, x + 3.0, rtol=1e-6)
    assert states.shape == (7, 2, 5)
    end, _ = s2mel.euler(lambda x, t: jnp.broadcast_to(2 * t, x.shape), x, 1000)
    np.testing.assert_allclose(end, x + 1.0, atol=2e-3)


def test_flow_ignores_padding_and_neighbours():
    """Two rows of different prompts and targets, padded and packed together, equal the rows alone."""
    cfg, params = S2MEL, parameters("s2mel", S2MEL)
    P, F = 30, 24
    prompts, targets = np.array([30, 11]), np.array([13, 24])
    noise, prompt = normal(0, 2, F, cfg.mels), normal(1, 2, P, cfg.mels)
    content, before, style = normal(2, 2, F, cfg.content), normal(3, 2, P, cfg.content), normal(4, 2, cfg.style)
    together = flow(params, cfg, noise, content, targets, prompt, before, prompts, style, steps=4, frames=45)
    for i, (p, f) in enumerate(zip(prompts.tolist(), targets.tolist(), strict=True)):
        row = slice(i, i + 1)
        alone = flow(
            params, cfg, noise[row, :f], content[row, :f], targets[row], prompt[row, :p], before[row, :p], prompts[row],
            style[row], steps=4,
        )  # fmt: skip
        assert relative(together[row, :f], alone) <= TOLERANCE["block"]


def test_noise_does_not_depend_on_the_bucket():
    draw = jax.jit(s2mel.draw_noise, static_argnums=(1, 2))
    large = np.asarray(draw(jax.random.key(2), 500, 80))
    np.testing.assert_array_equal(draw(jax.random.key(2), 10, 80), large[:10])
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02


def test_no_guidance_is_the_conditional_branch(tiny, params, arrays):
    inputs = flow_inputs(arrays)
    a = flow(params, tiny.cfg.s2mel, **inputs, steps=2, guidance=0.0)
    b = flow(params, tiny.cfg.s2mel, **inputs, steps=2, guidance=1e-7)
    assert relative(a, b) <= 1e-5
