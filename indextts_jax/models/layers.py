"""What two or more components share: precision, how inputs enter, masks, edges of padded rows, norms, attention.

Products run in the dtype of the weights, int8 ones in that of their inputs, and those of float32 weights in full
float32, whatever JAX's global setting says. Norms, scores and softmax are float32 in any case.

Dimensions: B batch, T time, C channels, Q queries, K keys, N heads, H head width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, reduce
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def valid(lengths: Array, frames: int) -> Array:
    """Which of `frames` positions lie inside each row: [B] -> [B, T] bool."""
    return jnp.arange(frames)[None, :] < lengths[:, None]


def zero_padding(x: Array, lengths: Array) -> Array:
    """`x` [B, T, C] with everything past each row's own length set to zero."""
    return jnp.where(valid(lengths, x.shape[1])[:, :, None], x, jnp.zeros((), x.dtype))


def dtype_of(params: Any) -> jnp.dtype:
    """The dtype in which a component computes: that of its weights, and not of its norms, which may be wider."""
    return min(_floating(params), key=lambda dtype: dtype.itemsize)


def _floating(params: Any) -> set[jnp.dtype]:
    return {leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def precision_of(params: Any) -> AbstractContextManager[Any]:
    """A context in which products and convolutions of float32 weights are traced at the highest precision.

    An accelerator would otherwise round their factors to 8 or 11 bits. With other weights the caller's setting holds.
    Gradients keep the precision of the product that they come from.
    """
    exact = _floating(params) == {jnp.dtype(jnp.float32)}
    return jax.default_matmul_precision("highest") if exact else nullcontext()


def enter(x: Array, lengths: Array, params: Any) -> Array:
    """An input as its component takes it: [B, T, C] in the dtype of the weights, zero past each row's own length.

    A product spreads NaN even where its weight is zero, so whatever lies in the padding of a buffer is dropped here,
    once, before it can reach a valid frame or a gradient.
    """
    return zero_padding(x, lengths).astype(dtype_of(params))


def apply(module: nn.Module, params: Any, *inputs: Any) -> Any:
    """The output of a module that has parameters and no other state, at the precision of its weights."""
    with precision_of(params):
        return module.apply({"params": params}, *inputs)


_apart = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """What is traced in this context has every part in its own place: for those who look at modules as they run."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def alike(parent: nn.Module, name: str, child: nn.Module, *inputs: Any) -> Any:
    """`child`, made with parent=None, as that part of `parent`: traced once for all parts that are equal.

    Children that differ in their weights alone are one function, which XLA gets once and puts where it is called.
    """
    if _apart.get():
        return child.clone(parent=parent, name=name)(*inputs)
    if parent.is_initializing():
        params = parent.param(name, lambda key: _drawn(child, key, *inputs))
    else:
        params = parent.variables["params"][name]
    return _alike(child, params, *inputs)


@partial(jax.jit, static_argnums=0)
def _drawn(module: nn.Module, key: Array, *inputs: Any) -> Any:
    return module.init(key, *inputs)["params"]


@partial(jax.jit, static_argnums=0)
def _alike(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def on_tpu(tiled: Callable[..., Array], plain: Callable[..., Array]) -> Callable[..., Array]:
    """`plain`, in whose place a program for TPUs computes `tiled`, which equals it; both give one array.

    As jax.lax.platform_dependent, which traces every form wherever it runs: here the kernels are traced where they are
    compiled, and nobody else waits for that. With derivatives, it is the plain form on a TPU as well.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    def function(*inputs: Any) -> Array:
        leaves, tree = jax.tree.flatten(inputs)

        def flat(form: Callable[..., Array]) -> Callable[..., Array]:
            def run(*leaves: Any) -> Array:
                with jax.default_matmul_precision(precision):  # what is traced later finds another one
                    return form(*jax.tree.unflatten(tree, leaves))

            return run

        return _on_tpu.bind(*leaves, plain=jax.make_jaxpr(flat(plain))(*leaves), tiled=flat(tiled))

    return function


def _plainly(*inputs: Any, plain: ClosedJaxpr) -> Array:
    return jaxpr_as_fun(plain)(*inputs)[0]


def _elsewhere(*inputs: Any, plain: ClosedJaxpr, tiled: Callable[..., Array]) -> Array:
    """What platforms that are not TPUs compute."""
    return _plainly(*inputs, plain=plain)


def _on_tpu_batched(inputs: Any, axes: Any, *, plain: ClosedJaxpr, tiled: Callable[..., Array]) -> tuple[Array, int]:
    batched = jax.make_jaxpr(jax.vmap(partial(_plainly, plain=plain), in_axes=axes))(*inputs)
    return _on_tpu.bind(*inputs, plain=batched, tiled=jax.vmap(tiled, in_axes=axes)), 0


def _on_tpu_derived(inputs: Any, tangents: Any, *, plain: ClosedJaxpr, tiled: Any) -> tuple[Array, Array]:
    """By the plain form alone: a choice of platforms in reverse keeps all that is between, and costs four times."""
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def function(*moved: Any) -> Array:
        whole = list(inputs)
        for i, leaf in zip(moving, moved, strict=True):
            whole[i] = leaf
        return _plainly(*whole, plain=plain)

    return jax.jvp(function, tuple(inputs[i] for i in moving), tuple(tangents[i] for i in moving))


_on_tpu = Primitive("on_tpu")
_on_tpu.def_impl(lambda *inputs, **forms: jax.jit(partial(_on_tpu.bind, **forms))(*inputs))
_on_tpu.def_abstract_eval(lambda *inputs, plain, tiled: plain.out_avals[0])
for _platform, _form in (
    (None, lambda *inputs, **forms: _elsewhere(*inputs, **forms)),  # looked up late: tests have a TPU's form there
    ("tpu", lambda *inputs, plain, tiled: tiled(*inputs)),
):
    mlir.register_lowering(_on_tpu, mlir.lower_fun(_form, multiple_results=False), platform=_platform)
batching.primitive_batchers[_on_tpu] = _on_tpu_batched
ad.primitive_jvps[_on_tpu] = _on_tpu_derived


def pad_edges(x: Array, lengths: Array, left: int, right: int, mode: Literal["zeros", "replicate", "reflect"]) -> Array:
    """Pad in time at each row's own ends, so that a convolution sees there what it would see in the row alone.

    x [B, T, C], lengths [B] -> [B, left + T + right, C]; valid frames of row b start at `left`, and the `right` frames
    after its last one are zeros, that last frame, or the mirrored frames. What follows them is unspecified.
    "reflect" needs lengths > max(left, right), as every framework does; raises ValueError where T is not.
    """
    T = x.shape[1]
    if mode == "reflect" and max(left, right) >= T:
        raise ValueError(f"{T} frames cannot be mirrored by {max(left, right)}: at least one more is needed")
    if mode == "zeros":
        return jnp.pad(zero_padding(x, lengths), ((0, 0), (left, right), (0, 0)))
    last = lengths - 1
    if mode == "replicate":
        tail = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)  # [B, 1, C]
        x = jnp.where(valid(lengths, T)[:, :, None], x, tail)
        head = jnp.broadcast_to(x[:, :1], (x.shape[0], left, x.shape[2]))
        return jnp.concatenate([head, x, jnp.broadcast_to(tail, (x.shape[0], right, x.shape[2]))], axis=1)
    mirrored = jnp.clip(last[:, None] - 1 - jnp.arange(right)[None, :], 0, T - 1)  # [B, right]
    tail = jnp.take_along_axis(x, mirrored[:, :, None], axis=1)
    padded = jnp.concatenate([x[:, 1 : left + 1][:, ::-1], x, jnp.zeros_like(tail)], axis=1)
    write = _write_by_selection if right <= _FEW else on_tpu(_write_by_selection, _write)
    return write(padded, tail, left + lengths)


_FEW = 4  # frames that are written faster one by one


def _write(x: Array, tail: Array, starts: Array) -> Array:
    """x [B, T, C] with tail [B, R, C] from each row's own start on: starts [B]."""
    return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(x, tail, starts)


def _write_by_selection(x: Array, tail: Array, starts: Array) -> Array:
    """The same: a TPU writes row by row."""
    place = jnp.arange(x.shape[1])[None] - starts[:, None]
    for i in range(tail.shape[1]):
        x = jnp.where((place == i)[:, :, None], tail[:, i : i + 1], x)
    return x


def take(x: Array, places: Array) -> Array:
    """Frames of each row by their places: x [..., B, T, C] of finite numbers, places [B, F] -> [..., B, F, C]."""
    return jax.lax.platform_dependent(x, places, tpu=_take_by_product, default=_take)


def _take(x: Array, places: Array) -> Array:
    places = places[:, :, None]
    return jnp.take_along_axis(x, places.reshape((1,) * (x.ndim - 3) + places.shape), axis=-2)


def _take_by_product(x: Array, places: Array) -> Array:
    """The same numbers: a TPU gathers frame by frame, but multiplies fast."""
    return by_product("...btc,bft->...bfc", x, places[:, :, None] == jnp.arange(x.shape[-2])[None, None])


def by_product(equation: str, x: Array, matrix: Array, dtype: Any = None) -> Array:
    """einsum of finite x and a matrix that has one 1 or -1 per result: the numbers of x, exactly, at other places."""
    exact = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, matrix.astype(x.dtype), precision=exact, preferred_element_type=dtype)


class Depthwise(nn.Module):
    """A convolution of each channel by itself, without padding: [B, T + kernel - 1, C] -> [B, T, C].

    A sum of shifted slices in float32: XLA's grouped convolutions take ten times as long on a CPU.
    """

    kernel: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        C, T = x.shape[-1], x.shape[1] - self.kernel + 1
        taps = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel, 1, C)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        y = wide[:, :T] * taps[0][None]
        for i in range(1, self.kernel):
            y = y + wide[:, i : i + T] * taps[i][None]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (C,)).astype(jnp.float32)
            y = y + bias[None, None]
        return y.astype(x.dtype)


@jax.jit
def quantize(weight: Array) -> tuple[Array, Array]:
    """A weight [out, in] as whole numbers up to 127 of one scale per output: -> int8 [out, in], float32 [out].

    Symmetric, so that the scale can multiply the product; off by half a scale at most.
    """
    scale = jnp.maximum(jnp.abs(weight).max(axis=1), jnp.finfo(jnp.float32).tiny) / 127
    return jnp.round(weight / scale[:, None]).astype(jnp.int8), scale


def multiply(x: Array, params: Any, dtype: Any = None) -> Array:
    """x [..., in] by a "weight" [out, in], which may be int8 with a "scale" [out]: -> [..., out] in `dtype`, or x's.

    int8 is read as such and converted where it is multiplied: what a decoding step costs are the bytes of its weights.
    """
    weight = params["weight"]
    if "scale" not in params:
        return jnp.einsum("...d,fd->...f", x, weight, preferred_element_type=dtype)
    rows = x.reshape(-1, x.shape[-1])
    on_cpu = _multiply_in_parts if len(rows) <= FEW else _multiply_in_blocks
    y = jax.lax.platform_dependent(rows, weight, cpu=on_cpu, default=_multiply_whole)
    return (y * params["scale"][None]).astype(dtype or x.dtype).reshape(*x.shape[:-1], -1)


FEW = 8  # rows up to which a CPU multiplies in whole numbers


def _multiply_whole(x: Array, weight: Array) -> Array:
    """x [R, in], weight [out, in] int8 -> [R, out] float32, for compilers that convert within the product."""
    return jnp.einsum("rd,fd->rf", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)


@jax.custom_jvp
def _multiply_in_parts(x: Array, weight: Array) -> Array:
    """The same to 2^-22 of a row's largest element: x as three parts of 8 bits, multiplied in whole numbers.

    XLA converts the whole weight for a CPU otherwise, once for all steps of a loop, and reads four bytes of each again.
    """
    R, wide = len(x), x.astype(jnp.float32)
    unit = jnp.maximum(jnp.abs(wide).max(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    rest, parts = wide / unit, []
    for _ in range(3):
        whole = jnp.round(rest)
        parts.append(whole.astype(jnp.int8))
        rest = (rest - whole) * 254  # which was half of one at most
    sums = jnp.einsum("pd,fd->pf", jnp.concatenate(parts), weight, preferred_element_type=jnp.int32)
    first, second, third = sums.reshape(3, R, -1).astype(jnp.float32)
    return unit * (first + (second + third / 254) / 254)


@_multiply_in_parts.defjvp
def _slope(inputs: tuple[Array, Array], slopes: tuple[Array, Any]) -> tuple[Array, Array]:
    return _multiply_in_parts(*inputs), _multiply_whole(slopes[0], inputs[1])


def _multiply_in_blocks(x: Array, weight: Array) -> Array:
    """The same, so few outputs at once that their converted weights stay in a CPU's cache."""

    def one(row: Array) -> Array:
        return jnp.einsum("rd,d->r", x, row.astype(x.dtype), preferred_element_type=jnp.float32)

    return jax.lax.map(one, weight, batch_size=64).T


class Dense(nn.Module):
    """A dense layer whose weight lies as [out, in], maybe as int8 with a scale: [..., in] -> [..., out].

    For the decoders, which multiply few rows: a CPU does 1 to 32 of them in about 0.6 of the time so.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        params = {"weight": self.param("weight", nn.initializers.lecun_normal(1, 0), (self.features, x.shape[-1]))}
        if self.has_variable("params", "scale"):
            params["scale"] = self.get_variable("params", "scale")
        y = multiply(x, params)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return y


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in float32 with the two-pass variance."""

    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            shape = (x.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape).astype(jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape).astype(jnp.float32)
            # No einsum: it would be a product, which an accelerator rounds to fewer bits.
            scale, bias = (a.reshape((1,) * (x.ndim - 1) + shape) for a in (scale, bias))
            y = y * scale + bias
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (arXiv:1910.07467), computed in float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


LARGE = 2**18  # scores of one head; from here on they are computed part by part, so that they stay near
NEAR = 2**24  # scores of a part that a TPU's core holds


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None) -> Array:
    """Scaled dot-product attention: q [B, Q, N, H], k and v [B, K, N, H] -> [B, Q, N, H].

    `mask` (bool, True = seen) and `bias` (added before the scale) broadcast against the scores [B, N, Q, K].
    Scores and softmax in float32. A query that sees no key averages all values.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    if q.shape[2] * k.shape[2] < LARGE:
        y = _attend(q, k, v, mask, bias)
    else:
        each = {"cpu": _attend_by_head, "tpu": _attend_by_part}
        y = jax.lax.platform_dependent(q, k, v, mask, bias, default=_attend, **each)
    return jnp.swapaxes(y, 1, 2)


def _attend(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """`attend`, heads first: q [..., Q, H], k and v [..., K, H], mask and bias against [..., Q, K] -> [..., Q, H]."""
    scores = jnp.einsum("...qh,...kh->...qk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("...qk,...kh->...qh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _attend_by_head(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """`_attend` for one head of one row after another, so that the scores stay in a CPU's cache: half the time."""
    B, N = q.shape[:2]

    def part(x: Array | None, i: Array) -> Array | None:
        """The part of mask or bias for row i // N and head i % N; an axis of size 1 is shared."""
        if x is None:
            return None
        for at in (i // N, i % N):
            x = jax.lax.dynamic_index_in_dim(x, at if x.shape[0] > 1 else 0, keepdims=False)
        return x

    def one(head: tuple[Array, ...]) -> Array:
        i, q, k, v = head
        return _attend(q, k, v, part(mask, i), part(bias, i))

    heads = (x.reshape(B * N, *x.shape[2:]) for x in (q, k, v))
    y = jax.lax.map(one, (jnp.arange(B * N), *heads))
    return y.reshape(B, N, *y.shape[1:])


def _attend_by_part(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """`_attend` for one head of all rows after another, with few rows for all its queries, else for blocks of them: the
    scores stay in a TPU's core. Not for one row after another, which may lie on different chips.
    """
    B, N, Q = q.shape[:3]
    block = 2 ** max(3, (NEAR // (B * k.shape[2])).bit_length() - 1)
    blocks = -(-Q // block)
    if blocks == 1:
        block = Q

    def part(x: Any, head: Array, block_at: Array) -> Any:
        """The part [B or 1, block or 1, ...] of what lies as [B or 1, N or 1, Q or 1, ...]."""
        if x is None:
            return None
        x = jax.lax.dynamic_index_in_dim(x, head if x.shape[1] > 1 else 0, axis=1, keepdims=False)
        if x.shape[1] == 1 or blocks == 1:
            return x
        x = jnp.pad(x, ((0, 0), (0, blocks * block - Q), *((0, 0),) * (x.ndim - 2)))
        return jax.lax.dynamic_slice_in_dim(x, block_at * block, block, axis=1)

    def one(i: Array) -> Array:
        head, at = i // blocks, i % blocks
        keys, values = (jax.lax.dynamic_index_in_dim(x, head, axis=1, keepdims=False) for x in (k, v))
        return _attend(part(q, head, at), keys, values, part(mask, head, at), part(bias, head, at))

    y = jax.lax.map(one, jnp.arange(N * blocks))  # [N * blocks, B, block, H]
    return y.reshape(N, blocks, B, block, -1).transpose(2, 0, 1, 3, 4).reshape(B, N, blocks * block, -1)[:, :, :Q]


def attend_cached(q: Array, blocks: Sequence[tuple[Array, Array]], mask: Array) -> Array:
    """Attention to a cache in blocks of slots, which lie last: q [B, Q, N, H], keys and values [B, G, H, S / blocks] ->
    [B, Q, N, H].

    Each of G groups of heads shares its keys and values; G = N is plain attention. mask [B, Q, S] bool, True = seen.
    Scores and softmax in float32. Block by block: a product over more slots adds up in another order on a CPU, but so
    blocks that nobody sees change no bit.
    """
    B, Q, N, H = q.shape
    G = blocks[0][0].shape[1]
    R = N // G
    # One axis of queries, R at each position: of products with more axes, XLA makes none in bfloat16 on a CPU.
    q = q.reshape(B, Q, G, R, H).swapaxes(2, 3).reshape(B, Q * R, G, H)
    mask = jnp.repeat(mask, R, axis=1)[:, None]
    scores, at = [], 0
    for k, _ in blocks:
        seen = mask[..., at : at + k.shape[3]]
        part = jnp.einsum("bqgh,bghs->bgqs", q, k, preferred_element_type=jnp.float32) * (H**-0.5)
        scores.append(jnp.where(seen, part, jnp.finfo(jnp.float32).min))
        at += k.shape[3]
    highest = reduce(jnp.maximum, (part.max(axis=-1, keepdims=True) for part in scores))
    weights = [jnp.exp(part - jax.lax.stop_gradient(highest)) for part in scores]
    total = reduce(jnp.add, (part.sum(axis=-1, keepdims=True) for part in weights))
    parts = (
        jnp.einsum("bgqs,bghs->bqgh", (part / total).astype(q.dtype), v)
        for part, (_, v) in zip(weights, blocks, strict=True)
    )
    return reduce(jnp.add, parts).reshape(B, Q, R, G, H).swapaxes(2, 3).reshape(B, Q, N, H)
