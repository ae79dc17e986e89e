"""Edges, masks, norms and attention against their definitions, written row by row in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from indextts_jax.models import layers
from tests.small import normal

T = 9
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)


def ragged(lengths, channels=3):
    """Rows of random frames, [B, T, C], with garbage past their ends."""
    x = normal(0, len(lengths), T, channels)
    for row, (frames, n) in enumerate(zip(x, lengths, strict=True)):
        frames[n:] = GARBAGE[row % len(GARBAGE)]
    return x


@pytest.mark.parametrize(("left", "right"), [(2, 2), (4, 1), (0, 3), (2, 6)])
@pytest.mark.parametrize(("mode", "numpy_mode"), [("zeros", "constant"), ("replicate", "edge"), ("reflect", "reflect")])
def test_pad_edges_pads_each_row_at_its_own_ends(mode, numpy_mode, left, right):
    """From the shortest rows allowed to full ones; also that the gradient is that of the rows alone."""
    shortest = max(left, right) + 1 if mode == "reflect" else 1
    lengths = list(range(shortest, T + 1))
    x, weights = ragged(lengths), normal(1, len(lengths), left + T + right, 3)
    for row, n in zip(weights, lengths, strict=True):
        row[left + n + right :] = 0  # unspecified

    @jax.jit
    def padded_and_gradient(x, lengths):
        y, pull = jax.vjp(lambda x: layers.pad_edges(x, lengths, left, right, mode), x)
        return y, pull(jnp.asarray(weights))[0]

    padded, gradient = map(np.asarray, padded_and_gradient(x, jnp.array(lengths)))
    assert padded.shape == (len(lengths), left + T + right, 3)
    for b, n in enumerate(lengths):
        places = np.pad(np.arange(n), (left, right), mode="constant" if mode == "zeros" else numpy_mode)
        copied = np.ones(left + n + right, bool)
        if mode == "zeros":
            copied[:left] = copied[left + n :] = False
        expected = np.pad(x[b, :n], ((left, right), (0, 0)), mode=numpy_mode)
        np.testing.assert_array_equal(padded[b, : left + n + right], expected)
        pulled = np.zeros((T, 3))
        np.add.at(pulled, places[copied], weights[b, : left + n + right][copied])
        np.testing.assert_allclose(gradient[b], pulled, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_convolves_each_channel_by_itself(bias):
    x, kernel = normal(0, 2, T, 3), normal(1, 4, 1, 3)
    params = {"kernel": kernel, "bias": normal(2, 3)} if bias else {"kernel": kernel}
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), 4, axis=1)  # [B, T - 3, C, K]
    expected = np.einsum("btck,kc->btc", windows, kernel[:, 0]) + params.get("bias", 0)
    y = layers.apply(layers.Depthwise(4, use_bias=bias), params, x)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    half = layers.apply(layers.Depthwise(4, use_bias=bias), params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_too_few_frames_are_not_mirrored():
    layers.pad_edges(jnp.zeros((1, 3, 1)), jnp.array([3]), 2, 2, "reflect")
    with pytest.raises(ValueError, match="2 frames cannot be mirrored by 2"):
        layers.pad_edges(jnp.zeros((1, 2, 1)), jnp.array([2]), 2, 2, "reflect")


def test_valid_and_zero_padding():
    lengths = [0, 4, T]
    np.testing.assert_array_equal(layers.valid(jnp.array(lengths), T), [[t < n for t in range(T)] for n in lengths])
    x = ragged(lengths)
    zeroed = np.asarray(layers.zero_padding(jnp.asarray(x), jnp.array(lengths)))
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(zeroed[b, :n], x[b, :n])
        assert not zeroed[b, n:].any()


def test_inputs_enter_clean_and_in_the_dtype_of_the_weights():
    entered = layers.enter(jnp.asarray(ragged([3, T])), jnp.array([3, T]), {"kernel": jnp.zeros(1, jnp.bfloat16)})
    assert entered.dtype == jnp.bfloat16
    assert not np.asarray(entered[0, 3:], np.float32).any()
    assert np.asarray(entered[1], np.float32).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (layers.LayerNorm(1e-5), {"scale", "bias"}),
        (layers.LayerNorm(1e-6, affine=False), set()),
        (layers.RMSNorm(1e-5), {"scale"}),
    ],
)
def test_norms_equal_float64(norm, names, dtype):
    """Also where the mean is a thousand times the deviation, which a variance of one pass does not survive."""
    x = jnp.asarray(normal(0, 2, 5, 64) + np.array([0.0, 1000.0])[:, None, None], dtype)
    weights = {name: jnp.asarray(normal(seed, 64), dtype) for seed, name in enumerate(("scale", "bias"))}
    variables = norm.init(jax.random.key(0), x)
    assert set(variables.get("params", {})) == names
    y = layers.apply(norm, {name: weights[name] for name in names}, x)
    assert y.dtype == dtype
    expected = np.asarray(x, np.float64)
    if isinstance(norm, layers.LayerNorm):
        expected = expected - expected.mean(-1, keepdims=True)
    expected = expected / np.sqrt(np.square(expected).mean(-1, keepdims=True) + norm.epsilon)
    if "scale" in names:
        expected = expected * np.asarray(weights["scale"], np.float64)
    if "bias" in names:
        expected = expected + np.asarray(weights["bias"], np.float64)
    # float32 holds a mean of 1000 to 1e-4; bfloat16 rounds what comes out, and nothing before.
    for row, tolerance in enumerate((2e-6, 1e-3)):
        rounding = 2**-8 if dtype == jnp.bfloat16 else 0
        np.testing.assert_allclose(np.asarray(y[row], np.float64), expected[row], atol=tolerance, rtol=rounding)


def attention(q, k, v, mask, bias):
    """Row by row, head by head, query by query, in float64: a softmax over the keys that are seen."""
    y = np.zeros(q.shape)
    for b, n, i in np.ndindex(q.shape[0], q.shape[2], q.shape[1]):
        scores = (k[b, :, n] @ q[b, i, n] + bias[b, n, i]) / np.sqrt(q.shape[-1])
        seen = mask[b, 0, i]
        weights = np.exp(scores - scores.max()) * seen if seen.any() else np.ones(len(seen))
        y[b, i, n] = weights @ v[b, :, n] / weights.sum()
    return y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attend_equals_its_definition(dtype):
    """With mask and bias; the first query of the second row sees no key, and averages all values."""
    q, k, v = (jnp.asarray(normal(i, 2, 4 if i == 0 else 6, 3, 8), dtype) for i in range(3))
    bias = jnp.asarray(3 * normal(3, 2, 3, 4, 6), dtype)
    mask = np.random.default_rng(4).random((2, 1, 4, 6)) < 0.6
    mask[:, :, :, 0], mask[1, 0, 0] = True, False
    assert not mask[0].all()
    wide_q, wide_k, wide_v = (np.asarray(a, np.float64) for a in (q, k, v))
    # In bfloat16 weights and result are rounded, the scores are not.
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-6
    y = layers.attend(q, k, v, jnp.asarray(mask), bias)
    assert y.dtype == dtype
    expected = attention(wide_q, wide_k, wide_v, mask, np.asarray(bias, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance)
    np.testing.assert_allclose(expected[1, 0], wide_v[1].mean(0))
    plain = attention(wide_q, wide_k, wide_v, np.ones_like(mask), np.zeros(bias.shape))
    np.testing.assert_allclose(np.asarray(layers.attend(q, k, v), np.float64), plain, atol=tolerance)


def test_what_is_hidden_has_no_weight_at_all():
    q, k, v = (jnp.asarray(normal(i, 1, 5, 2, 8)) for i in range(3))
    mask = jnp.arange(5)[None, None, None, :] < 3
    y = layers.attend(q, k, v, mask)
    np.testing.assert_array_equal(layers.attend(q, k.at[:, 3:].set(1e4), v.at[:, 3:].set(-1e9), mask), y)


@pytest.mark.parametrize("mask", [None, (2, 1, 1, 9), (1, 1, 7, 9), (2, 3, 7, 9), (1, 3, 1, 9)])
@pytest.mark.parametrize("bias", [None, (2, 3, 7, 9), (1, 1, 7, 9)])
@pytest.mark.parametrize("near", [None, 200, 2**24])
def test_parts_one_after_another_are_all_at_once(monkeypatch, mask, bias, near):
    """What long rows take on a CPU (None) and a TPU, which holds `near` scores; masks and biases of every form."""
    monkeypatch.setattr(layers, "NEAR", near)
    by_part = layers._attend_by_part if near else layers._attend_by_head
    q, k, v = jnp.asarray(normal(0, 2, 7, 3, 4)), jnp.asarray(normal(1, 2, 9, 3, 4)), jnp.asarray(normal(2, 2, 9, 3, 5))
    seen = None if mask is None else jnp.asarray(normal(3, *mask) > -0.5)
    more = None if bias is None else jnp.asarray(normal(4, *bias))

    def run(attend):
        def loss(*qkv):
            y = attend(*(jnp.swapaxes(x, 1, 2) for x in qkv), seen, more)
            return jnp.sin(y).sum(), y

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    whole, each = run(layers._attend), run(by_part)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_long_rows_are_computed_in_parts(monkeypatch):
    q = jnp.asarray(normal(0, 1, 7, 3, 4))
    assert "scan" not in str(jax.make_jaxpr(lambda q: layers.attend(q, q, q))(q))
    monkeypatch.setattr(layers, "LARGE", 0)
    assert "scan" in str(jax.make_jaxpr(lambda q: layers.attend(q, q, q))(q))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_frames_by_a_product_are_the_frames(dtype):
    x = jnp.asarray(normal(0, 3, 2, 9, 5) * 1e3, dtype)
    places = jnp.asarray(np.random.default_rng(1).integers(0, 9, (2, 7)))
    by_product = layers._take_by_product(x, places)
    assert by_product.dtype == dtype
    np.testing.assert_array_equal(by_product, layers.take(x, places))
    np.testing.assert_array_equal(by_product[1, 1, 3], x[1, 1, places[1, 3]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_to_a_cache_equals_attention(groups, dtype):
    """Each group of keys and values serves its heads in turn: heads 0 and 1 the first of two groups."""
    heads, repeated = 4, 4 // groups
    q = jnp.asarray(normal(0, 2, 3, heads, 8), dtype)
    k, v = (jnp.asarray(normal(seed, 2, 6, groups, 8), dtype) for seed in (1, 2))  # [B, S, G, H]
    mask = np.random.default_rng(3).random((2, 3, 6)) < 0.6
    mask[:, :, 0], mask[1, 0] = True, False  # one query sees no slot
    assert not mask[0].all()
    every_head = (jnp.repeat(x, repeated, axis=2) for x in (k, v))
    expected = layers.attend(q, *every_head, jnp.asarray(mask)[:, None])
    k, v = (x.transpose(0, 2, 3, 1) for x in (k, v))  # [B, G, H, S]
    blocks = [(k[..., at], v[..., at]) for at in (slice(0, 2), slice(2, 5), slice(5, 6))]
    y = layers.attend_cached(q, [(k, v)], jnp.asarray(mask))
    in_blocks = layers.attend_cached(q, blocks, jnp.asarray(mask))
    assert y.dtype == dtype
    # Weights and result are rounded to bfloat16 in both; a sum in another order may fall to the next number.
    tolerance = 2 * float(jnp.finfo(jnp.bfloat16).eps) if dtype == jnp.bfloat16 else 1e-6
    for found in (y, in_blocks):
        np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), atol=tolerance)


# ---- forms and parts ------------------------------------------------------------------------------------------------


def test_a_form_for_tpus_is_not_traced_elsewhere():
    def tiled(x, y):
        raise AssertionError("traced")

    form = layers.on_tpu(tiled, lambda x, y: jnp.sin(x) * y["scale"])
    x, y = normal(0, 3, 4), {"scale": normal(1, 3, 4)}
    expected = np.sin(x) * y["scale"]
    np.testing.assert_allclose(form(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(form)(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(form, (0, {"scale": 0}))(x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(form, (1, None), 1)(x, {"scale": y["scale"][:, 0]}),
                               np.sin(x) * y["scale"][:, :1], rtol=1e-6)  # fmt: skip


def test_a_program_for_tpus_has_their_form():
    form = jax.jit(lambda x: layers.on_tpu(jnp.cos, jnp.sin)(x))
    for platform, has, has_not in (("tpu", "cosine", "sine "), ("cpu", "sine ", "cosine"), ("cuda", "sine ", "cosine")):
        text = export.export(form, platforms=[platform])(jax.ShapeDtypeStruct((4,), jnp.float32)).mlir_module()
        assert f"stablehlo.{has}" in text
        assert f"stablehlo.{has_not}" not in text


def test_a_form_has_the_derivatives_of_the_plain_one():
    """In forward and in reverse, of a part of the inputs, for TPUs as well."""
    x, scale, lengths, slope = normal(0, 4), normal(1, 4), np.arange(4), normal(2, 4)

    def plain(x, scale, lengths):
        return jnp.sin(x) * scale * lengths.astype(x.dtype)

    def tiled(x, scale, lengths):
        raise AssertionError("traced")

    form = layers.on_tpu(tiled, plain)
    expected = np.cos(x) * scale * lengths
    y, moved = jax.jvp(lambda x: form(x, scale, lengths), (x,), (slope,))
    np.testing.assert_allclose(moved, expected * slope, rtol=1e-6)
    np.testing.assert_allclose(y, plain(x, scale, lengths), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x, scale: (form(x, scale, lengths) * slope).sum(), (0, 1)))
    for found, wanted in zip(gradient(x, scale), (expected * slope, np.sin(x) * lengths * slope), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    export.export(gradient, platforms=["tpu"])(x, scale)


def test_parts_that_are_alike_are_traced_once():
    traced = []

    class Part(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(x.shape)
            return jnp.tanh(nn.Dense(x.shape[1])(x))

    class Whole(nn.Module):
        shared: bool

        @nn.compact
        def __call__(self, x):
            for i in range(5):
                one = Part(parent=None)
                x = layers.alike(self, f"part_{i}", one, x) if self.shared else Part(name=f"part_{i}")(x)
            return x

    x = normal(0, 2, 3)
    variables = Whole(True).init(jax.random.key(0), x)
    kernels = [part["Dense_0"]["kernel"] for part in variables["params"].values()]
    assert len({float(kernel[0, 0]) for kernel in kernels}) == 5
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, Whole(False).init(jax.random.key(0), x))
    assert traced == [(2, 3)] * 7  # to draw the weights and to apply them, once each; and five times without
    traced.clear()
    x = normal(1, 4, 3)
    y = jax.jit(Whole(True).apply)(variables, x)
    assert traced == [(4, 3)]
    np.testing.assert_array_equal(y, jax.jit(Whole(False).apply)(variables, x))
    seen = []

    def see(call, given, more, context):
        seen.append(context.module.path)
        return call(*given)

    with nn.intercept_methods(see), layers.apart():
        again = jax.jit(lambda variables, x: Whole(True).apply(variables, x))(variables, x)
    np.testing.assert_array_equal(y, again)
    assert [path for path in seen if len(path) == 1] == [(f"part_{i}",) for i in range(5)]
