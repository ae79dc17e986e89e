"""BigVGAN: its filter, its sine, and padding changes nothing. Parity: test_validate.py."""

from functools import partial

import jax
import numpy as np
import pytest

from debug.golden import TOLERANCE, relative
from indextts_jax.config import read_yaml
from indextts_jax.convert import bigvgan as converter
from indextts_jax.models import bigvgan, bigvgan_kernel, layers
from indextts_jax.models.bigvgan import Cut
from indextts_jax.models.layers import zero_padding
from tests.marks import LONG
from tests.small import BIGVGAN, normal, parameters


def test_filter_is_the_checkpoints(tiny):
    tensors = converter.tensors(tiny.folder, read_yaml(tiny.folder / "config.yaml"))
    filters = [tensor.read().ravel() for name, tensor in tensors.items() if name.endswith(".filter")]
    assert len(filters) == 218
    for taps in filters:
        np.testing.assert_allclose(bigvgan.low_pass(), taps, atol=2e-8)


def test_sine_squared():
    turns = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 16
    exact = np.pi * turns.astype(np.float64)
    assert np.abs(np.asarray(jax.jit(bigvgan.sine_squared)(turns)) - np.sin(exact) ** 2).max() < 4e-7
    slope = jax.jit(jax.vmap(jax.grad(bigvgan.sine_squared)))(turns[:1000])
    assert np.abs(np.asarray(slope) - np.pi * np.sin(2 * exact[:1000])).max() < 6e-6


def test_padding_and_neighbours_change_nothing():
    params, cfg, lengths = parameters("bigvgan", BIGVGAN), BIGVGAN, [7, 1]
    mel = normal(0, 2, 24, cfg.mels)
    mel[0, 7:], mel[1, 1:] = 30.0, -40.0
    together = np.asarray(bigvgan.vocode(params, cfg, mel, np.array(lengths)))
    for i, n in enumerate(lengths):
        alone = bigvgan.vocode(params, cfg, mel[i : i + 1, :n], np.array([n]))
        assert relative(together[i : i + 1, : n * cfg.hop], alone) <= TOLERANCE["block"]
        assert not together[i, n * cfg.hop :].any()


def test_a_sample_hears_no_further_than_the_reach():
    """A window of frames and as many before and behind it is the whole; with a third of them on either side it is not.

    At the very end of its reach a sample hears less than float32 holds.
    """
    params, cfg, n = parameters("bigvgan", BIGVGAN), BIGVGAN, 6
    reach, hop = cfg.reach, cfg.hop
    mel = normal(0, 1, 2 * reach + n + 20, cfg.mels)
    whole = np.asarray(bigvgan.vocode(params, cfg, mel, np.array([mel.shape[1]])))[0]

    def apart(before, behind, start=reach + 10):
        part = mel[:, start - before : start + n + behind]
        own = np.asarray(bigvgan.vocode(params, cfg, part, np.array([part.shape[1]])))[0]
        own = own[before * hop : (before + n) * hop]
        return relative(own, whole[start * hop : (start + n) * hop])

    assert apart(reach, reach) <= TOLERANCE["block"]
    assert apart(reach // 3, reach) > 10 * TOLERANCE["block"]
    assert apart(reach, reach // 3) > 10 * TOLERANCE["block"]
    assert bigvgan.BigVGANConfig().reach == 41


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
    y = jax.jit(bigvgan.Activation(1, 2).apply)({"params": {"alpha": zeros, "beta": zeros}}, x, np.array([9]))
    np.testing.assert_allclose(y, 0.3 + np.sin(0.3) ** 2, atol=1e-6)


# ---- as a TPU computes ----------------------------------------------------------------------------------------------


@pytest.fixture
def tpu(monkeypatch):
    """From here on, what is traced is what a TPU is given, cut as asked, with its kernels run by an interpreter."""
    kernels = {name: partial(getattr(bigvgan_kernel, name), interpret=True) for name in ("activate", "convolve")}

    def switch(cut: Cut) -> None:
        monkeypatch.setattr(layers, "_elsewhere", lambda *inputs, plain, tiled: tiled(*inputs))
        for name, kernel in kernels.items():
            monkeypatch.setattr(bigvgan_kernel, name, kernel)
        monkeypatch.setattr(bigvgan, "tiles", lambda *sizes: cut)

    return switch


# Rows, frames, channels and a cut; where the rows end: in their last segment, in another, close to its edges
CUTS = [
    pytest.param(2, 260, 8, Cut(20, 5), [260, 131], marks=LONG),
    (2, 200, 12, Cut(8, 2), [157, 161]),
    (8, 40, 4, Cut(), [40, 1, 17, 40, 2, 3, 30, 39]),
    pytest.param(1, 60, 4, Cut(8, 1), [51], marks=LONG),  # segments without a frame
]


@pytest.mark.parametrize(("B", "T", "C", "cut", "lengths"), CUTS)
def test_segments_equal_rows(tpu, B, T, C, cut, lengths):
    """A stage, on segments with the kernel and on rows without it."""
    x, ends = normal(0, B, T, C), np.array(lengths)
    module = bigvgan.Stage((3, 5), ((1, 3), (1, 3)))
    params = jax.jit(module.init)(jax.random.key(0), x, ends)["params"]
    params = jax.tree.map(lambda leaf: leaf + normal(leaf.size, *leaf.shape) * 0.1, params)

    def result():
        return jax.jit(lambda params, x: zero_padding(module.apply({"params": params}, x, ends), ends))(params, x)

    rows = result()
    tpu(cut)
    assert relative(result(), rows) <= TOLERANCE["block"]


def test_segments_of_several_tiles_equal_rows(tpu, monkeypatch):
    """A row that fills its last segment must not be heard by the next row.

    Of a shape that no other test has: kernels are traced once per shape.
    """
    monkeypatch.setattr(bigvgan_kernel, "_TILE", 32)
    test_segments_equal_rows(tpu, 2, 256, 6, Cut(4), [256, 131])


@pytest.mark.parametrize("segments", [1, 4, 16])
@pytest.mark.parametrize("end", [1, 64, 130, 192, 195, 513, 600])
def test_kernel_equals_the_plain_form(tpu, segments, end):
    """Of rows that end with a segment, after it and in it; whole, in segments of several tiles and of one."""
    x, snakes = normal(0, 4, 600, 10), bigvgan.Snakes(normal(1, 1, 10), normal(2, 1, 10))
    ends = np.array([600, end, 600, end])
    expected = jax.jit(bigvgan.alone)(x, ends, snakes)
    tpu(Cut(segments, max(1, segments // 2)))
    y = jax.jit(bigvgan._alone_in_tiles)(x, ends, snakes)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert not np.asarray(y)[1::2, end:].any()


def test_whole_network_in_segments(tpu):
    params, cfg = parameters("bigvgan", BIGVGAN), BIGVGAN
    mel, lengths = normal(0, 2, 200, cfg.mels), np.array([200, 131])
    vocode = bigvgan.vocode.__wrapped__
    rows = jax.jit(lambda mel: vocode(params, cfg, mel, lengths))(mel)
    tpu(Cut(16, 4))
    assert relative(jax.jit(lambda mel: vocode(params, cfg, mel, lengths))(mel), rows) <= TOLERANCE["block"]
