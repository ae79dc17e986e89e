"""BigVGAN against the reference, stage by stage and whole; its filter; and that padding changes nothing."""

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, golden, relative
from indextts_jax.config import read_yaml
from indextts_jax.convert import bigvgan as converter
from indextts_jax.models import bigvgan
from tests.small import BIGVGAN, normal, parameters


@pytest.fixture(scope="module")
def stored():
    arrays = golden("en_greedy")
    start = "seg0.bigvgan."
    return {k.removeprefix(start): np.swapaxes(v, 1, 2) for k, v in arrays.items() if k.startswith(start)}


def test_filter_is_the_checkpoints(tiny):
    tensors = converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))
    filters = [tensor.read().ravel() for name, tensor in tensors.items() if name.endswith(".filter")]
    assert len(filters) == 218
    for taps in filters:
        np.testing.assert_allclose(bigvgan.low_pass(), taps, atol=2e-8)


def test_blocks_equal_reference(tiny, stored):
    cfg, params = tiny.cfg.bigvgan, tiny.params("bigvgan")
    lengths = np.array([68])
    up = bigvgan.Upsample(cfg.channels // 2, cfg.upsample_kernels[0], cfg.upsample_rates[0])
    x = jax.jit(up.apply)({"params": params["upsample_0"]}, stored["conv_pre.out"], lengths)
    assert relative(x, stored["up0.out"]) <= TOLERANCE["block"]
    x, lengths = stored["up0.out"], lengths * cfg.upsample_rates[0]
    # the first block alone: a stage of one
    stage = {}
    for name, leaves in params["stage_0"].items():
        if name.startswith("activation"):
            stage[name] = jax.tree.map(lambda leaf: np.asarray(leaf)[:1], leaves)
        elif name.endswith("_0"):
            stage[name] = leaves
    y = jax.jit(bigvgan.Activation().apply)({"params": stage["activation_0"]}, x[None], lengths)
    assert relative(y[0], stored["resblock0.act0.out"]) <= TOLERANCE["block"]
    y = jax.jit(bigvgan.Stage(cfg.kernels[:1], cfg.dilations[:1]).apply)({"params": stage}, x, lengths)
    assert relative(y, stored["resblock0.out"]) <= TOLERANCE["block"]


def test_last_layers_equal_reference(tiny, stored):
    params, x = tiny.params("bigvgan"), stored["activation_post.out"]
    assert x.shape[1] == 68 * tiny.cfg.bigvgan.hop
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x[0], ((3, 3), (0, 0))), 7, axis=0)  # [T, C, 7]
    wave = np.einsum("tck,kco->to", windows, np.asarray(params["out"]["kernel"], np.float64))
    assert relative(np.clip(wave, -1, 1)[None], stored["out"]) <= TOLERANCE["block"]


def test_sine_squared():
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 50
    expected = np.sin(x.astype(np.float64)) ** 2
    assert np.abs(np.asarray(jax.jit(bigvgan.sine_squared)(x)) - expected).max() < 4e-7
    slope = jax.jit(jax.vmap(jax.grad(bigvgan.sine_squared)))(x[:1000])
    assert np.abs(np.asarray(slope) - np.sin(2.0 * x[:1000].astype(np.float64))).max() < 2e-6


def test_waveform_from_the_golden_mel_equals_reference(tiny, stored):
    mel = stored["in"]
    wave = bigvgan.vocode(tiny.params("bigvgan"), tiny.cfg.bigvgan, mel, np.array([68]))
    assert relative(wave, stored["out"][:, :, 0]) <= TOLERANCE["waveform"]
    wave = bigvgan.vocode(tiny.params("bigvgan"), tiny.cfg.bigvgan, mel * np.float32(1.001), np.array([68]))
    assert relative(wave, stored["out"][:, :, 0]) > TOLERANCE["waveform"]


def test_padding_and_neighbours_change_nothing():
    params, cfg, lengths = parameters("bigvgan", BIGVGAN), BIGVGAN, [7, 1]
    mel = normal(0, 2, 24, cfg.mels)
    mel[0, 7:], mel[1, 1:] = 30.0, -40.0
    together = np.asarray(bigvgan.vocode(params, cfg, mel, np.array(lengths)))
    for i, n in enumerate(lengths):
        alone = bigvgan.vocode(params, cfg, mel[i : i + 1, :n], np.array([n]))
        assert relative(together[i : i + 1, : n * cfg.hop], alone) <= TOLERANCE["block"]
        assert not together[i, n * cfg.hop :].any()


def test_a_kernel_that_is_no_multiple_of_its_rate():
    """Upsampling against the plain definition: sample t R + k - crop of the output hears frame t through tap k."""
    up, x, kernel, bias = bigvgan.Upsample(3, 7, 3), normal(0, 1, 5, 2), normal(1, 2, 7, 3), normal(2, 3)
    expected = np.zeros((5 * 3 + 7, 3))
    for t in range(5):
        for k in range(7):
            expected[3 * t + k] += x[0, t] @ kernel[:, k]
    y = jax.jit(up.apply)({"params": {"kernel": kernel, "bias": bias}}, x, np.array([5]))
    np.testing.assert_allclose(y[0], expected[2:17] + bias, atol=1e-5)


def test_a_constant_passes_the_filters():
    """Snake of a constant is a constant, and both filters have sum 1: nothing may happen at the edges."""
    x, zeros = np.full((1, 1, 9, 2), 0.3, np.float32), np.zeros((1, 2), np.float32)
    y = jax.jit(bigvgan.Activation().apply)({"params": {"alpha": zeros, "beta": zeros}}, x, np.array([9]))
    np.testing.assert_allclose(y, 0.3 + np.sin(0.3) ** 2, atol=1e-6)
