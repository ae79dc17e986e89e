"""Inversion: the loop makes the steps of its optimizer; the slopes of its losses, mapped over voices and shared out."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from debug.golden import TOLERANCE
from indextts_jax.render import Rendered, Voices
from indextts_jax.train import inversion
from tests.small import normal
from tests.test_train_soft import rendering

STEPS = 2


@pytest.fixture(scope="module")
def case():
    params, cfg, voices, *line, noise = rendering()
    line = inversion.Line(*line, noise)
    mel, lengths = normal(8, 2, 12, cfg.s2mel.mels), np.array([12, 5])  # the first is longer, the second shorter
    mel[1, 5:] = np.nan
    return params, cfg, voices, line, mel, lengths


@jax.numpy_dtype_promotion("standard")  # optax raises a number to a count
def test_fit_makes_the_steps_of_its_optimizer():
    start, target = {"a": jnp.float32([2.0, -1.0]), "b": jnp.float32(0.5)}, jnp.float32([0.3, 0.1])

    def loss(tree):
        return jnp.square(tree["a"] - target).sum() + jnp.abs(tree["b"])

    optimizer = optax.adam(0.1)
    found = inversion.fit(loss, start, 20, optimizer)
    state, tree, losses = optimizer.init(start), start, []
    for _ in range(20):
        value, slope = jax.value_and_grad(loss)(tree)
        updates, state = optimizer.update(slope, state, tree)
        tree = optax.apply_updates(tree, updates)
        losses.append(value)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-6)
    assert all(np.allclose(found.tree[name], tree[name], rtol=1e-6) for name in tree)
    found = inversion.fit(loss, start, 300, optimizer)
    np.testing.assert_allclose(found.tree["a"], target, atol=1e-3)


@pytest.fixture(scope="module")
def slopes(case):
    """Losses and their slopes, each voice by itself: [B], and by name [B, ...]."""
    params, cfg, voices, line, mel, lengths = case

    @jax.jit
    @jax.vmap
    def each(found, voice, line, mel, length):
        batch = jax.tree.map(lambda a: a[None], (voice, line, mel, length))
        loss = inversion.on_mel(params, cfg, *batch, steps=STEPS)
        return jax.value_and_grad(lambda found: loss(jax.tree.map(lambda a: a[None], found)))(found)

    return each({name: getattr(voices, name) for name in ("emotion", "latents", "style")}, voices, line, mel, lengths)


def test_slopes_of_what_is_looked_for(case, slopes):
    """Of a batch by finite differences, of its voices by vmap: the mean over all frames that are compared."""
    _, _, voices, *_ = case
    values, slopes = slopes
    loss, start = jax.jit(inversion.on_mel(*case, steps=STEPS)), {name: getattr(voices, name) for name in slopes}
    shares = np.float32([10, 5]) / 15  # the shorter of target and rendering
    assert float(values @ shares) == pytest.approx(float(loss(start)), rel=1e-5)
    for name, slope in slopes.items():
        slope = np.asarray(slope) * shares.reshape((2,) + (1,) * (slope.ndim - 1))
        length = np.linalg.norm(slope)
        assert length > 1e-3, name
        up, down = (float(loss({**start, name: start[name] + step / length * slope})) for step in (0.01, -0.01))
        assert abs((up - down) / 0.02 - length) <= TOLERANCE["gradient"] * length, name


def test_a_loss_on_sound_is_given_what_is_rendered(case, monkeypatch):
    params, cfg, voices, line, *_ = case
    calls = []

    def render(params, cfg, voices, *given, **options):
        calls.append((voices, given, options))
        return Rendered(jnp.zeros(()), jnp.zeros(()), jnp.float32(3.0))

    monkeypatch.setattr(inversion, "render", render)
    loss = inversion.on_sound(params, cfg, voices, line, lambda rendered: rendered.samples * 2, steps=7)
    emotion = jnp.ones_like(voices.emotion)
    assert float(loss({"emotion": emotion})) == 6.0
    [(there, given, options)] = calls
    assert isinstance(there, Voices)
    assert there.emotion is emotion
    assert there.style is voices.style
    assert all(a is b for a, b in zip(given, line, strict=True))
    assert options == {"steps": 7}


SHARED = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from debug.golden import TOLERANCE, relative
from indextts_jax.train import inversion
from tests.test_train_soft import rendering
params, cfg, voices, *line, noise = rendering()
given = np.load(sys.argv[1])
mesh = Mesh(np.array(jax.devices()), ("batch",))
assert mesh.size == 2
def loss(emotion, params, *batch):
    return inversion.on_mel(params, cfg, *batch, steps=2)({"emotion": emotion})
batch = voices, inversion.Line(*line, noise), given["mel"], given["lengths"]
emotion, *batch = jax.device_put((voices.emotion, *batch), NamedSharding(mesh, P("batch")))
slope = jax.jit(jax.grad(loss))(emotion, jax.device_put(params, NamedSharding(mesh, P())), *batch)
assert [shard.data.shape[0] for shard in slope.addressable_shards] == [1, 1]
assert relative(slope, given["slope"]) <= TOLERANCE["component"]
"""


def test_two_devices_have_the_slope_of_one(case, slopes, tmp_path):
    *_, mel, lengths = case
    share = np.float32([[10], [5]]) / 15
    np.savez(tmp_path / "one.npz", mel=mel, lengths=lengths, slope=np.asarray(slopes[1]["emotion"]) * share)
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", SHARED, tmp_path / "one.npz"]
    subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True)
