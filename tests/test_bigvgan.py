"""BigVGAN: its filter, its sine, and padding changes nothing. Parity: test_validate.py."""

import jax
import numpy as np

from debug.golden import TOLERANCE, relative
from indextts_jax.config import read_yaml
from indextts_jax.convert import bigvgan as converter
from indextts_jax.models import bigvgan
from tests.small import BIGVGAN, normal, parameters


def test_filter_is_the_checkpoints(tiny):
    tensors = converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))
    filters = [tensor.read().ravel() for name, tensor in tensors.items() if name.endswith(".filter")]
    assert len(filters) == 218
    for taps in filters:
        np.testing.assert_allclose(bigvgan.low_pass(), taps, atol=2e-8)


def test_sine_squared():
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 50
    expected = np.sin(x.astype(np.float64)) ** 2
    assert np.abs(np.asarray(jax.jit(bigvgan.sine_squared)(x)) - expected).max() < 4e-7
    slope = jax.jit(jax.vmap(jax.grad(bigvgan.sine_squared)))(x[:1000])
    assert np.abs(np.asarray(slope) - np.sin(2.0 * x[:1000].astype(np.float64))).max() < 2e-6


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
