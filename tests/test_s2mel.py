"""Length regulator, estimator and solver: rules, and padding changes nothing. Parity: test_validate.py."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from debug.golden import TOLERANCE, golden, relative
from indextts_jax import buckets
from indextts_jax.config import read_yaml
from indextts_jax.convert import s2mel as converter
from indextts_jax.models import layers, s2mel, s2mel_kernel
from indextts_jax.models.s2mel import S2MelConfig
from tests.small import RENDERER, S2MEL, normal, parameters

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
    end, states = s2mel.integrate(lambda x, t: jnp.full_like(x, 3.0), x, 7)
    np.testing.assert_allclose(end, x + 3.0, rtol=1e-6)
    assert states.shape == (7, 2, 5)
    end, _ = s2mel.integrate(lambda x, t: jnp.broadcast_to(2 * t, x.shape), x, 1000)
    np.testing.assert_allclose(end, x + 1.0, atol=2e-3)


def curve(x, t):
    """A velocity whose flow is known: x grows to x e^(1/2 + 2)."""
    return x * (t + 2)


def slow(velocity, x, t, width):
    """A step of a user's own: Euler's, with half the velocity."""
    return x + width * velocity(x, t) / 2


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("Bosh3", 3), (slow, 0)])
def test_half_the_step_leaves_the_error_of_the_order(solver, order):
    if solver == "Bosh3":
        pytest.importorskip("diffrax")
    x, exact = jnp.ones((2, 3)), np.exp(2.5)
    errors = [np.abs(s2mel.integrate(curve, x, steps, solver)[0] - exact).max() for steps in (16, 32)]
    assert errors[0] > 1e-3 * order
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("solver", ["heun", "Tsit5"])
def test_solvers_go_backwards_and_forwards(solver):
    """By values of their own for each step, at whose bounds the velocity jumps."""
    if solver == "Tsit5":
        pytest.importorskip("diffrax")
    rates, x = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([[0.7, 1.0]])

    def end(x, rates):
        return s2mel.integrate(lambda x, t, rate: x * rate, x, 4, solver, (rates,))[0].sum()

    factor = np.prod(1 + rates / 4 + rates**2 / 32) if solver == "heun" else np.exp(rates.sum() / 4)
    value, slope = jax.jit(jax.value_and_grad(end))(x, rates)
    assert float(value) == pytest.approx(1.7 * float(factor), rel=1e-5)
    np.testing.assert_allclose(slope, np.full((1, 2), factor), rtol=1e-5)
    tangents = jnp.ones_like(x), jnp.zeros_like(rates)
    assert float(jax.jvp(end, (x, rates), tangents)[1]) == pytest.approx(2 * float(factor), rel=1e-5)


def test_solvers_of_diffrax_are_the_same():
    diffrax, x = pytest.importorskip("diffrax"), jnp.ones((2, 3))
    expected = s2mel.integrate(curve, x, 3, "heun")[1]
    assert relative(s2mel.integrate(curve, x, 3, diffrax.Heun())[1], expected) <= TOLERANCE["block"]


def test_unknown_solvers_are_refused(monkeypatch):
    with pytest.raises((ValueError, ImportError), match="'heum' is none of euler, midpoint, heun"):
        s2mel.integrate(curve, jnp.ones(1), 3, "heum")
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"'Tsit5' is none of .* pip install 'indextts-jax\[diffrax\]'"):
        s2mel.integrate(curve, jnp.ones(1), 3, "Tsit5")


def test_a_schedule_multiplies_the_guidance_step_by_step():
    """One for all rows, and one for each: what changes at a step changes the states from there on."""
    cfg, params, n = RENDERER.s2mel, parameters("s2mel", RENDERER.s2mel), np.array([12, 12])
    noise, prompt, style = normal(0, 2, 12, cfg.mels), normal(1, 2, 12, cfg.mels), normal(2, 2, cfg.style)
    content, before = normal(3, 2, 12, cfg.content), normal(4, 2, 12, cfg.content)

    @jax.jit
    def states(guidance, schedule):
        inputs = noise, content, n, prompt, before, n, style
        return s2mel.flow(params, cfg, *inputs, 3, guidance, every=True, solver="heun", schedule=schedule)

    both = jnp.float32([0.7, 0.3])
    expected = states(both, jnp.ones((3, 2)))
    np.testing.assert_array_equal(states(both * 2, jnp.full((3, 2), 0.5)), expected)
    late = states(both, jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    for row, step in ((0, 2), (1, 1)):
        np.testing.assert_array_equal(late[:step, row], expected[:step, row])
        assert relative(late[step, row], expected[step, row]) > 1e-3
    inputs = params, cfg, noise, content, n, prompt, before, n, style
    ours = jax.eval_shape(lambda s: s2mel.flow(*inputs, steps=3, schedule=s), jnp.ones(3))
    assert ours.shape == noise.shape
    with pytest.raises(ValueError, match="broadcast"):
        s2mel.flow(*inputs, steps=3, schedule=np.ones(2))


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


# ---- as a TPU computes ----------------------------------------------------------------------------------------------


@pytest.fixture
def tpu(monkeypatch):
    """From here on, what is traced is what a TPU is given, with its kernels run by an interpreter."""
    kernels = {name: partial(getattr(s2mel_kernel, name), interpret=True) for name in KERNELS}

    def switch() -> None:
        monkeypatch.setattr(layers, "_elsewhere", lambda *inputs, plain, tiled: tiled(*inputs))
        for name, kernel in kernels.items():
            monkeypatch.setattr(s2mel_kernel, name, kernel)

    return switch


KERNELS = ("attend", "project", "feed_forward")


@pytest.mark.parametrize(("width", "heads", "T"), [(128, 2, 48), (256, 8, 16)])
def test_the_kernels_equal_the_transformer(tpu, width, heads, T):
    """Of a row that fills the batch's frames, one that does not and one of a single frame."""
    cfg, lengths = S2MelConfig(width=width, heads=heads, depth=3), np.array([T, T // 2 - 3, 1])
    params = parameters("s2mel", cfg)["estimator"]["transformer"]
    x, c = normal(0, 3, T, width), normal(1, 3, width)

    def result():
        return jax.jit(lambda params, x, c: s2mel.transform(params, cfg, x, c, lengths))(params, x, c)

    plain = result()
    tpu()
    assert relative(result(), plain) <= TOLERANCE["block"]


def test_frames_that_take_several_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(s2mel_kernel, "_ROWS", 64)  # in float32, a quarter
    cfg, T = S2MelConfig(width=128, heads=2, depth=1), 48
    params, lengths = parameters("s2mel", cfg)["estimator"]["transformer"], np.array([48, 17])
    x, c = normal(0, 2, T, 128), normal(1, 2, 128)
    for name in KERNELS:
        monkeypatch.setattr(s2mel_kernel, name, partial(getattr(s2mel_kernel, name).__wrapped__, interpret=True))
    y = jax.jit(partial(s2mel._transform_in_tiles, cfg=cfg))(params, x=x, c=c, lengths=lengths)
    expected = jax.jit(s2mel.Transformer(cfg).apply)({"params": params}, x, c, lengths)
    assert relative(y, expected) <= TOLERANCE["block"]


def test_a_row_without_keys_is_finite():
    """As the plain form, it averages all values."""
    qkv, rotation = normal(0, 2, 16, 3 * 128), np.zeros((2, 16, 128), np.float32)
    y = s2mel_kernel.attend(qkv, rotation, np.array([0, 16]), 2, interpret=True)
    np.testing.assert_allclose(y[0], np.broadcast_to(qkv[0, :, 256:].mean(axis=0), (16, 128)), atol=1e-6)


def test_what_the_kernels_are_made_for():
    cfg = S2MelConfig()
    assert s2mel_kernel.fits(1024, cfg.width, cfg.width // cfg.heads, cfg.feed_forward)
    assert all(s2mel_kernel.fits(T, cfg.width, 64, cfg.feed_forward) for T in buckets.FRAMES)
    assert not s2mel_kernel.fits(1020, cfg.width, 64, cfg.feed_forward)
    assert not s2mel_kernel.fits(1024, S2MEL.width, S2MEL.width // S2MEL.heads, S2MEL.feed_forward)


def test_the_flow_with_kernels_equals_the_flow(tpu):
    cfg = S2MelConfig(6, 5, 8, 7, (6, 8), 10, 2, 12, 128, 2, 3, 8, 2, 5)
    params, P, F, prompts, targets = parameters("s2mel", cfg), 32, 16, np.array([32, 11]), np.array([13, 16])
    noise, prompt = normal(0, 2, F, cfg.mels), normal(1, 2, P, cfg.mels)
    content, before, style = normal(2, 2, F, cfg.content), normal(3, 2, P, cfg.content), normal(4, 2, cfg.style)
    solve, results = s2mel.solve.__wrapped__, []
    for switch in (lambda: None, tpu):
        switch()
        both = s2mel.join.__wrapped__(before, prompts, content, P + F)
        mel = s2mel.join.__wrapped__(prompt, prompts, jnp.zeros_like(noise), P + F)
        inputs = noise, mel, both, style, prompts, targets, np.float32([0.7, 0.3])
        y = jax.jit(lambda *given: solve(params, cfg, *given, steps=2))(*inputs)
        results.append([row[:n] for row, n in zip(np.asarray(y), targets, strict=True)])
    for expected, ours in zip(*results, strict=True):
        assert relative(ours, expected) <= TOLERANCE["block"]
