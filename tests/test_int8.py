"""int8 weights of the GPT's decoder: rounded once, multiplied as what they are, kept nowhere in another form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from debug.golden import golden, relative
from indextts_jax import batch, cli, decoding, models
from indextts_jax.batch import Job
from indextts_jax.decoding import Sampling
from indextts_jax.manifest import Defaults
from indextts_jax.model import load
from indextts_jax.models import gpt, layers
from tests import jobs
from tests.small import GPT, normal, parameters
from tests.test_gpt import begin, one_beam

MATRICES = ("qkv", "out", "up", "down")


def dequantized(params: Any) -> Any:
    """The same tree with the float32 weights that int8 and its scale stand for."""
    if not isinstance(params, dict):
        return params
    found = {name: dequantized(part) for name, part in params.items()}
    if getattr(params.get("weight"), "dtype", None) == jnp.int8:
        found["weight"] = found["weight"].astype(jnp.float32) * found.pop("scale")[:, None]
    return found


def test_rounding_is_off_by_half_a_scale_at_most():
    weight = normal(0, 130, 96) * np.geomspace(1e-6, 1e3, 130, dtype=np.float32)[:, None]
    weight[7] = 0.0
    whole, scale = (np.asarray(a) for a in layers.quantize(weight))
    assert (whole.dtype, scale.dtype) == (np.int8, np.float32)
    others = np.arange(130) != 7
    np.testing.assert_array_equal(np.abs(whole.astype(np.int32)).max(axis=1), np.where(others, 127, 0))
    error = np.abs(whole * scale[:, None].astype(np.float64) - weight)
    assert (error <= scale[:, None] * (0.5 + 1e-5)).all()
    assert error[others].max(axis=1).min() > 0


@pytest.mark.parametrize("outputs", [1, 64, 130])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96)])
def test_the_product_is_that_of_the_weights_it_stands_for(shape, outputs):
    x, (weight, scale) = jnp.asarray(normal(1, *shape)), layers.quantize(normal(0, outputs, 96))
    exact = np.asarray(x, np.float64) @ (np.asarray(weight, np.float64) * np.asarray(scale, np.float64)[:, None]).T
    params = {"weight": weight, "scale": scale}
    with layers.precision_of(params):
        y = layers.multiply(x, params)
        rows = x.reshape(-1, 96)
        forms = (layers._multiply_whole, layers._multiply_in_parts, layers._multiply_in_blocks)
        each = [(form(rows, weight) * scale[None]).reshape(y.shape) for form in forms]
    for ours in (y, *each):
        assert ours.dtype == jnp.float32
        assert relative(ours, exact) <= 1e-6
    half = layers.multiply(x.astype(jnp.bfloat16), params)
    assert half.dtype == jnp.bfloat16
    assert relative(half, exact) <= 2 * 2**-8  # x and the result are rounded, once each
    assert layers.multiply(x.astype(jnp.bfloat16), params, jnp.float32).dtype == jnp.float32


def test_gradients_pass_through():
    params = {"weight": (made := layers.quantize(normal(0, 130, 96)))[0], "scale": made[1]}

    def loss(x: jax.Array, params: Any) -> jax.Array:
        with layers.precision_of(params):
            return jnp.square(layers.multiply(x, params)).sum()

    x = normal(1, 5, 96)
    ours, expected = (jax.jit(jax.grad(loss))(x, tree) for tree in (params, dequantized(params)))
    assert relative(ours, expected) <= 1e-6


def test_no_wide_weights_are_kept_for_the_steps_of_a_loop():
    """On a CPU XLA would convert them once, before the loop: five bytes of memory for each, and four to read."""

    def temporary(multiply: Any) -> int:
        def steps(x: jax.Array, weight: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda x, _: (jnp.tanh(multiply(x, weight)), None), x, length=4)[0]

        arguments = jnp.zeros((3, 1024)), jnp.ones((1024, 1024), jnp.int8)
        return jax.jit(steps).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    wide = 4 * 1024 * 1024
    assert temporary(layers._multiply_in_blocks) < wide / 4
    assert temporary(layers._multiply_whole) >= wide  # which is why there are blocks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_those_of_the_weights_it_stands_for(dtype, monkeypatch):
    """Prefill, steps and beams, under strict promotion; all else in `dtype`."""
    monkeypatch.setattr(models, "default_dtype", lambda _=None: dtype)
    params = models.cast("gpt", parameters("gpt", GPT), "int8")
    assert models.precision({"gpt": params}) == f"int8, {dtype}"
    rng, texts = np.random.default_rng(2), np.array([[5, 9, 3]], np.int32)
    prefix = gpt.prefix(params, GPT, normal(0, 1, 4, 16), normal(1, 1, 16), texts, np.array([3]))
    assert prefix.embeddings.dtype == dtype

    def drawn(params: Any) -> tuple[Any, Any]:
        scores, caches = gpt.prefill(params, GPT, prefix)
        assert caches[0].k.dtype == dtype  # type: ignore[union-attr]
        keys = jax.random.split(jax.random.key(0), 1)
        return scores, decoding.decode(params, GPT, prefix, keys, Sampling(beams=2, top_k=5), 8).codes

    (ours, codes), (expected, same) = drawn(params), drawn(models.cast("gpt", dequantized(params), dtype))
    if dtype == "float32":
        assert relative(ours, expected) <= 1e-5
        np.testing.assert_array_equal(codes, same)
    else:
        assert relative(ours, expected) <= 0.02
    latents = gpt.latents(params, GPT, prefix, rng.integers(0, 40, (1, 6), np.int32))
    assert np.isfinite(np.asarray(latents, np.float32)).all()


@pytest.mark.whole
def test_loading_rounds_the_decoder_alone_and_layer_by_layer(tiny, official, monkeypatch):
    read, restore = [], ocp.Checkpointer.restore

    def counted(self: Any, path: Any, args: Any) -> Any:
        read.append([leaf for leaf in jax.tree.leaves(args.item) if leaf is not ocp.PLACEHOLDER])
        return restore(self, path, args=args)

    monkeypatch.setattr(ocp.Checkpointer, "restore", counted)
    model = load(official, dtype="int8")
    for component in models.COMPONENTS:
        expected = models.cast(component, tiny.params(component), "int8")
        assert jax.tree.structure(model.params[component]) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, model.params[component], expected)
        narrow = {path[-2].key for path, leaf in jax.tree.leaves_with_path(expected) if leaf.dtype == jnp.int8}
        assert narrow == ({*MATRICES, "head"} if component == "gpt" else set())
        assert {leaf.dtype for leaf in jax.tree.leaves(expected) if leaf.dtype != jnp.int8} == {jnp.dtype("float32")}
    assert len(read) == len(models.COMPONENTS) + tiny.cfg.gpt.layers + 1  # and the head
    assert max(len(part) for part in read if len(part) <= len(MATRICES)) == len(MATRICES)


@pytest.mark.whole
def test_int8_stays_near_float32(tiny):
    """Logits of the reference's own codes; the bound is about twice what was measured."""
    arrays, cfg = golden("en_greedy"), tiny.cfg.gpt
    params = models.cast("gpt", tiny.params("gpt"), "int8")
    speaker, emotion = arrays["seg0.gpt.speech_conditioning_latent"], arrays["seg0.gpt.emo_vec"]
    texts, codes = arrays["seg0.text_tokens"], arrays["seg0.gpt.codes"].astype(np.int32)
    prefix = gpt.prefix(params, cfg, speaker, emotion, texts, np.array([texts.shape[1]]))
    scores, caches, recent = begin(params, cfg, prefix, 1)
    second, _ = one_beam(params, cfg, caches, recent, codes[:, 0], prefix.lengths, 0)
    for ours, expected in zip((scores, second), arrays["seg0.gpt.logits_per_step"], strict=False):
        assert 0.0016 < relative(ours, expected) < 0.016  # an error far below would mean that nothing was rounded


@pytest.mark.whole
def test_a_job_is_done_again_with_other_weights(converted, model, tmp_path):
    manifest = jobs.write(tmp_path / "texts.jsonl", [{"id": "a", "text": "One."}])
    defaults = Defaults(voice=jobs.VOICE, beams=1, max_codes=6, steps=1, seed=3)
    asked = Job(manifest, tmp_path / "out", converted, defaults, batch=1)
    asked.folder.mkdir()
    narrow = load(converted, dtype="int8")
    done = [(s.before, s.done) for s in (batch.run(asked, [own]) for own in (model, narrow, narrow))]
    assert done == [(0, 1), (0, 1), (1, 0)]


def test_random_weights_and_their_shapes_agree():
    made = models.random("gpt", GPT, 0, "int8")
    expected = models.cast("gpt", models.random("gpt", GPT, 0, "float32"), "int8")
    jax.tree.map(np.testing.assert_array_equal, made, expected)
    described = models.cast("gpt", models.shapes("gpt", GPT), "int8")
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), described
    )


def test_the_command_line_names_what_there_is(capsys):
    for command, what in (("speak", "invalid choice: 'int7'"), ("bench", "'float32,int7' is not one of float32, ")):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--dtype", "float32,int7" if command == "bench" else "int7"])
        assert end.value.code == 2
        _, line, _ = capsys.readouterr().err.splitlines()
        assert f"argument --dtype: {what}" in line
