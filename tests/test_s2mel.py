"""Length regulator, estimator and solver: rules, and padding changes nothing. Parity: test_validate.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, golden, relative
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


def test_source_frames_are_float32_and_differs_from_exact_arithmetic():
    """The rule as the reference's framework computes it, in numpy, for many pairs of lengths."""
    sources = np.arange(1, 600)
    targets = (sources * np.float32(1.72)).astype(np.int32)
    frames = int(targets.max())
    ours = np.asarray(jax.jit(s2mel.source_frames, static_argnums=1)(sources, frames, targets))
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


def test_a_window_of_the_estimator_equals_the_whole():
    """From `reach` frames before the target on, or from the row's begin where the prompt is shorter than that."""
    cfg, params, T, F = S2MEL, parameters("s2mel", S2MEL)["estimator"], 40, 14
    prompts, targets = np.array([25, 3, 0]), np.array([14, 9, 14])
    assert prompts[1] < cfg.reach < prompts[0]
    arrays = normal(0, 3, T, cfg.mels), normal(1, 3, T, cfg.mels), normal(2, 3, T, cfg.content), normal(3, 3, cfg.style)
    inputs = ({"estimator": params}, cfg, *arrays, np.full(3, 0.4, np.float32), prompts + targets)
    estimate = jax.jit(s2mel.estimate, static_argnames=("cfg", "frames"))
    whole, starts = np.asarray(estimate(*inputs)), np.maximum(prompts - cfg.reach, 0)
    part = np.asarray(estimate(*inputs, starts=starts, frames=F + cfg.reach))
    nearer = np.asarray(estimate(*inputs, starts=starts + (prompts > cfg.reach), frames=F + cfg.reach))
    for i, (start, p, f) in enumerate(zip(starts, prompts, targets, strict=True)):
        assert relative(part[i, p - start : p - start + f], whole[i, p : p + f]) <= TOLERANCE["block"]
    assert relative(nearer[0, cfg.reach - 1 : cfg.reach + 13], whole[0, 25:39]) > TOLERANCE["block"]  # a frame too few


# ---- solver ---------------------------------------------------------------------------------------------------------


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
    keys = jax.random.split(jax.random.key(2), 1)
    [large] = np.asarray(s2mel.noise(keys, 500, 80))
    np.testing.assert_array_equal(s2mel.noise(keys, 10, 80)[0], large[:10])
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02


def test_no_guidance_is_the_conditional_branch(tiny, params, arrays):
    inputs = flow_inputs(arrays)
    a = flow(params, tiny.cfg.s2mel, **inputs, steps=2, guidance=0.0)
    b = flow(params, tiny.cfg.s2mel, **inputs, steps=2, guidance=1e-7)
    assert relative(a, b) <= 1e-5


def test_guidance_is_a_number_per_row_and_compiles_once():
    """Rows of different guidance in one batch equal the rows alone, whether the number is known or traced."""
    cfg, params, n = S2MEL, parameters("s2mel", S2MEL), np.array([12, 12, 12])
    noise, prompt, style = normal(0, 3, 12, cfg.mels), normal(1, 3, 12, cfg.mels), normal(2, 3, cfg.style)
    content, before = normal(3, 3, 12, cfg.content), normal(4, 3, 12, cfg.content)
    strengths = np.array([0.0, 0.7, 3.0], np.float32)
    inputs = (noise, content, n, prompt, before, n, style)
    before_all = s2mel.solve._cache_size()
    together = np.asarray(s2mel.flow(params, cfg, *inputs, steps=2, guidance=strengths))
    assert s2mel.solve._cache_size() == before_all + 1
    traced = jax.jit(lambda strengths: s2mel.flow(params, cfg, *inputs, steps=2, guidance=strengths))
    assert relative(traced(strengths), together) <= TOLERANCE["block"]
    for i, strength in enumerate(strengths.tolist()):
        same = s2mel.flow(params, cfg, *inputs, steps=2, guidance=strength, guided=True)
        np.testing.assert_array_equal(together[i], same[i])
    assert s2mel.solve._cache_size() == before_all + 1  # another number is no other program
    alone = s2mel.flow(params, cfg, *inputs, steps=2, guidance=0.0)  # one branch, half the cost
    assert s2mel.solve._cache_size() == before_all + 2
    assert relative(together[0], alone[0]) <= TOLERANCE["block"]
    assert relative(together[1], alone[1]) > 0.01
    slope = jax.grad(lambda g: s2mel.flow(params, cfg, *inputs, steps=2, guidance=g).sum())(0.7)
    ends = [float(s2mel.flow(params, cfg, *inputs, steps=2, guidance=g).sum()) for g in (0.8, 0.6)]
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 0.2, rel=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pairs_turn_alike_on_every_platform(dtype):
    """And as complex numbers do."""
    x = jnp.asarray(normal(0, 2, 5, 3, 8), dtype)
    np.testing.assert_array_equal(s2mel._turn_by_product(x), s2mel._turn(x))
    cos, sin = s2mel.rotations(5, 8)
    wide = np.asarray(x, np.float64)
    turned = (wide[..., ::2] + 1j * wide[..., 1::2]) * (cos + 1j * sin)[None, :, None]
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
    y = s2mel.rotate(x, jnp.asarray(cos), jnp.asarray(sin))
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)
