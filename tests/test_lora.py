"""Adapters: what they add, to what, and their files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from indextts_jax import lora
from indextts_jax.errors import Error, NotFound
from indextts_jax.lora import Lora
from tests import small

PARAMS = {"gpt": small.parameters("gpt", small.GPT), "s2mel": small.parameters("s2mel", small.S2MEL)}


@pytest.fixture
def adapters():
    made = lora.init(PARAMS, (*lora.TARGETS["gpt"], *lora.TARGETS["flow"]), 2, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.1, made)


def test_adapters_change_nothing_at_first():
    made = lora.init(PARAMS, lora.TARGETS["gpt"], 2, jax.random.key(0))
    for old, new in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(lora.add(PARAMS, made, 2.0)), strict=True):
        assert (old == new).all()


def test_sum_is_weight_and_scaled_product(adapters):
    added = lora.add(PARAMS, adapters, 3.0)
    own = adapters["gpt"]["decoder"]["layer_1"]["down"]["weight"]
    weight = PARAMS["gpt"]["decoder"]["layer_1"]["down"]["weight"]
    expected = np.asarray(weight, np.float64) + 3.0 * np.asarray(own["b"], np.float64) @ np.asarray(
        own["a"], np.float64
    )
    np.testing.assert_allclose(added["gpt"]["decoder"]["layer_1"]["down"]["weight"], expected, rtol=1e-5, atol=1e-6)
    assert (added["gpt"]["text"]["embedding"] == PARAMS["gpt"]["text"]["embedding"]).all()


def test_every_layer_of_gpt_and_dit_has_its_adapters(adapters):
    assert len(jax.tree.leaves(adapters["gpt"])) == 2 * 4 * small.GPT.layers
    assert len(jax.tree.leaves(adapters["s2mel"])) == 2 * 4 * small.S2MEL.depth


def test_gradient_of_adapters_is_that_of_the_weight_through_the_product(adapters):
    """∂/∂b = scale · ∂/∂W aᵀ and ∂/∂a = scale · bᵀ ∂/∂W."""
    path = ("decoder", "layer_0", "qkv", "weight")

    def loss(params):
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(params["gpt"]["decoder"]))

    slope = jax.grad(loss)(lora.add(PARAMS, adapters, 0.5))["gpt"]
    own = jax.grad(lambda adapters: loss(lora.add(PARAMS, adapters, 0.5)))(adapters)["gpt"]
    adapters = adapters["gpt"]
    for key in path:
        slope, own, adapters = slope[key], own[key], adapters[key]
    np.testing.assert_allclose(own["b"], 0.5 * slope @ adapters["a"].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own["a"], 0.5 * adapters["b"].T @ slope, rtol=1e-4, atol=1e-5)


def test_file_holds_what_was_saved(tmp_path, adapters):
    lora.save(tmp_path / "a.safetensors", Lora(adapters, 0.75))
    found = lora.load(tmp_path / "a.safetensors")
    assert found.scale == 0.75
    assert jax.tree.structure(found.adapters) == jax.tree.structure(adapters)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (found.adapters, adapters)), strict=True))


def test_a_weight_keeps_its_dtype(adapters):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora.add(narrow, adapters, 1.0))} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_adapted_is_named(adapters):
    with pytest.raises(Error, match="no weight of the model is named gpt/nothing"):
        lora.init(PARAMS, ["gpt/nothing"], 2, jax.random.key(0))
    with pytest.raises(Error, match=r"gpt/head/bias is no matrix"):
        lora.init(PARAMS, ["gpt/head/bias"], 2, jax.random.key(0))
    with pytest.raises(Error, match=r"changes gpt/decoder/layer_\d/\w+/weight .*but this model has no such weight"):
        lora.add({"s2mel": PARAMS["s2mel"]}, {"gpt": adapters["gpt"]}, 1.0)
    eight = jax.tree.map(lambda leaf: leaf.astype(jnp.int8), PARAMS)
    with pytest.raises(Error, match="has 8 bits"):
        lora.add(eight, adapters, 1.0)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_other_files_are_refused(tmp_path, adapters, content):
    path = tmp_path / "a.safetensors"
    lora.save(path, Lora(adapters, 1.0))
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(Error, match=r"a\.safetensors: not an adapter, or cut short"):
        lora.load(path)


def test_missing_file():
    with pytest.raises(NotFound, match="no such file"):
        lora.load(Path("none.safetensors"))
