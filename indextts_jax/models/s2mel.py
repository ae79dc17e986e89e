"""Codes and latents -> mel: length regulator, diffusion transformer with a WaveNet tail, flow matching.

A row of the estimator is its prompt followed directly by its target, padded at the end, so that positions and
attention are those of the row alone.

Dimensions: B batch, C codes, P prompt frames, F target frames, T = P + F, M mels, S semantic width, K content width,
D width, W WaveNet width, N heads, H head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from indextts_jax.models import s2mel_kernel
from indextts_jax.models.layers import (
    LayerNorm,
    RMSNorm,
    alike,
    apply,
    attend,
    by_product,
    dtype_of,
    enter,
    on_tpu,
    pad_edges,
    take,
    valid,
    zero_padding,
)

FRAMES_PER_CODE = 1.72  # 22050 / 256 mel frames against 50 codes per second, rounded as the reference rounds it


@dataclass(frozen=True)
class S2MelConfig:
    mels: int = 80
    style: int = 192
    semantic: int = 1024
    latent: int = 1280  # width of the GPT
    latent_layers: tuple[int, ...] = (256, 128, 1024)  # empty: the GPT's latents are no part of the content
    regulator_channels: int = 512
    regulator_layers: int = 4
    content: int = 512
    width: int = 512
    heads: int = 8
    depth: int = 13
    wavenet_width: int = 512
    wavenet_layers: int = 8
    wavenet_kernel: int = 5

    @property
    def reach(self) -> int:
        """How many frames before and after its own a frame of the WaveNet hears."""
        return self.wavenet_layers * (self.wavenet_kernel // 2)

    @property
    def feed_forward(self) -> int:
        """Two thirds of four times the width, rounded up to a multiple of 256."""
        return -(-int(2 * 4 * self.width / 3) // 256) * 256


class GroupNorm(nn.Module):
    """Normalisation over channels and a row's own frames at once: x [B, T, C], lengths [B]; float32 inside."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        C = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (C,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (C,)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        count = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None, None] * C
        mean = zero_padding(wide, lengths).sum((1, 2), keepdims=True) / count
        variance = jnp.square(zero_padding(wide - mean, lengths)).sum((1, 2), keepdims=True) / count
        y = (wide - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale[None, None] + bias[None, None]).astype(x.dtype)


class Latent(nn.Module):
    """The GPT's latents in the space of the codec's embeddings: three linear layers, nothing between."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.cfg.latent_layers):
            x = nn.Dense(width, name=f"layer_{i}")(x)
        return x


class Regulator(nn.Module):
    """Semantic frames at the rate of codes -> content frames at the rate of mels."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array, lengths: Array, frames: int, target_lengths: Array) -> Array:
        C = self.cfg.regulator_channels
        x = nn.Dense(C, name="project")(x)
        source = source_frames(lengths, frames, target_lengths)
        x = take(x, source)
        for i in range(self.cfg.regulator_layers):
            x = nn.Conv(C, 3, padding="VALID", name=f"conv_{i}")(pad_edges(x, target_lengths, 1, 1, "zeros"))
            x = GroupNorm(name=f"norm_{i}")(x, target_lengths)
            x = x * jnp.tanh(nn.softplus(x))  # mish
        return zero_padding(nn.Dense(self.cfg.content, name="out")(x), target_lengths)


def source_frames(lengths: Array, frames: int, target_lengths: Array) -> Array:
    """Which of `lengths` source frames each of `frames` target frames copies: [B, F] int32.

    The floor of i times the float32 quotient, not exact arithmetic: the two differ for a tenth of all lengths.
    """
    ratio = lengths.astype(jnp.float32) / jnp.maximum(target_lengths, 1).astype(jnp.float32)
    source = jnp.floor(jnp.arange(frames, dtype=jnp.float32)[None] * ratio[:, None]).astype(jnp.int32)
    return jnp.clip(source, 0, jnp.maximum(lengths, 1)[:, None] - 1)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as cosines, then sines, through two layers: [B] -> [B, width]."""

    width: int
    frequencies: int = 128

    @nn.compact
    def __call__(self, t: Array, dtype: jnp.dtype) -> Array:
        # The angles need float32, whatever the network computes in.
        angles = 1000.0 * t[:, None] * jnp.asarray(time_frequencies(self.frequencies))[None]
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(dtype)
        return nn.Dense(self.width, name="down")(nn.silu(nn.Dense(self.width, name="up")(x)))


def time_frequencies(count: int) -> np.ndarray:
    """Geometric from 1 down to nearly 1/10000, float32: exponents rounded to float32 first, as in the reference."""
    exponents = np.float32(-np.log(10000.0)) * np.arange(count, dtype=np.float32) / np.float32(count)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def rotations(frames: int, head: int) -> np.ndarray:
    """Cosines and sines of the rotary angles (arXiv:2104.09864), [2, T, H / 2] float32, base 10000."""
    powers = 10000.0 ** (np.arange(0, head, 2, dtype=np.float32) / head).astype(np.float64)
    rates = np.float32(1.0) / powers.astype(np.float32)
    angles = (np.arange(frames, dtype=np.float32)[:, None] * rates).astype(np.float64)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate neighbouring pairs (2i, 2i + 1) of x [B, T, N, H] by their angle, in float32."""
    cos, sin = (jnp.repeat(a, 2, axis=-1)[None, :, None] for a in (cos, sin))
    other = jax.lax.platform_dependent(x, tpu=_turn_by_product, default=_turn)
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _turn(x: Array) -> Array:
    """Pairs (a, b) as (-b, a), in float32: without an axis of two, which accelerators fill up to 32 or 128."""
    x = x.astype(jnp.float32)
    first = (jnp.arange(x.shape[-1]) % 2 == 0).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(first, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))


def _turn_by_product(x: Array) -> Array:
    """The same numbers: a TPU moves them slowly from one place of a row to the next, but multiplies fast."""
    H = x.shape[-1]
    swap = np.zeros((H, H), np.float32)
    swap[range(1, H, 2), range(0, H, 2)], swap[range(0, H, 2), range(1, H, 2)] = -1, 1
    return by_product("...g,gh->...h", x, jnp.asarray(swap), jnp.float32)


class AdaptiveNorm(nn.Module):
    """RMS norm, then a weight and a bias projected from c [B, D]."""

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        weight, bias = jnp.split(nn.Dense(2 * x.shape[-1], name="project")(c), 2, axis=-1)
        return weight[:, None] * RMSNorm(name="norm")(x) + bias[:, None]


class Attention(nn.Module):
    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array, rotation: tuple[Array, Array], mask: Array) -> Array:
        B, T, D = x.shape
        N = self.cfg.heads
        qkv = nn.Dense(3 * D, use_bias=False, name="qkv")(x).reshape(B, T, 3 * N, D // N)
        q, k, v = jnp.split(qkv, 3, axis=2)
        y = attend(rotate(q, *rotation), rotate(k, *rotation), v, mask)
        return nn.Dense(D, use_bias=False, name="out")(y.reshape(B, T, D))


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        U = self.cfg.feed_forward
        gate, y = jnp.split(nn.Dense(2 * U, use_bias=False, name="gated")(x), 2, axis=-1)
        return nn.Dense(self.cfg.width, use_bias=False, name="down")(nn.silu(gate) * y)


class Block(nn.Module):
    """A transformer block; `skip` is the output of an early block, for a late one (arXiv:2209.12152)."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(
        self, x: Array, c: Array, rotation: tuple[Array, Array], mask: Array, skip: Array | None = None
    ) -> Array:
        if skip is not None:
            x = nn.Dense(self.cfg.width, name="skip")(jnp.concatenate([x, skip], axis=-1))
        x = x + Attention(self.cfg, name="attention")(AdaptiveNorm(name="attention_norm")(x, c), rotation, mask)
        return x + FeedForward(self.cfg, name="feed_forward")(AdaptiveNorm(name="feed_forward_norm")(x, c))


class Transformer(nn.Module):
    """x [B, T, D], c [B, D], lengths [B] -> [B, T, D]; the first half of the blocks feeds the second, last to first."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array, c: Array, lengths: Array) -> Array:
        cos, sin = jnp.asarray(rotations(x.shape[1], self.cfg.width // self.cfg.heads))
        mask = valid(lengths, x.shape[1])[:, None, None, :]
        half, skips = self.cfg.depth // 2, []
        for i in range(self.cfg.depth):
            block, skip = Block(self.cfg, parent=None), skips.pop() if i > half else None
            x = alike(self, f"layer_{i}", block, x, c, (cos, sin), mask, skip)
            if i < half:
                skips.append(x)
        return AdaptiveNorm(name="norm")(x, c)


def transform(params: dict, cfg: S2MelConfig, x: Array, c: Array, lengths: Array) -> Array:
    """`Transformer` by its parameters, on a TPU with kernels: x [B, T, D], c [B, D], lengths [B] -> [B, T, D]."""

    def plain(params: dict, x: Array, c: Array, lengths: Array) -> Array:
        return apply(Transformer(cfg, parent=None), params, x, c, lengths)

    def tiled(params: dict, x: Array, c: Array, lengths: Array) -> Array:
        return _transform_in_tiles(params, cfg, x, c, lengths)

    T, D = x.shape[1:]
    if not s2mel_kernel.fits(T, D, D // cfg.heads, cfg.feed_forward):
        return plain(params, x, c, lengths)
    return on_tpu(tiled, plain)(params, x, c, lengths)


def _transform_in_tiles(params: dict, cfg: S2MelConfig, x: Array, c: Array, lengths: Array) -> Array:
    """`Transformer`, three kernels to a block."""

    def dense(params: dict, x: Array) -> Array:
        y = x @ params["kernel"]
        return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in params else y

    def norm(params: dict) -> Array:
        """What multiplies and what is added: [B, 2, D] float32."""
        weight, bias = jnp.split(dense(params["project"], c).astype(jnp.float32), 2, axis=-1)
        return jnp.stack([weight * params["norm"]["scale"].astype(jnp.float32)[None], bias], axis=1)

    def normalised(x: Array, norm: Array) -> Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + _EPSILON)
        return (wide * norm[:, :1] + norm[:, 1:]).astype(x.dtype)

    N, half, skips = cfg.heads, cfg.depth // 2, []
    H = x.shape[2] // N
    cos, sin = np.repeat(rotations(x.shape[1], H), 2, axis=-1)
    rotation = jnp.asarray(np.tile(np.stack([cos, sin * np.tile(np.array([-1, 1], np.float32), H // 2)]), 128 // H))
    for i in range(cfg.depth):
        own = params[f"layer_{i}"]
        if i > half:
            x = dense(own["skip"], jnp.concatenate([x, skips.pop()], axis=-1))
        attention, forward = own["attention"], own["feed_forward"]
        qkv = s2mel_kernel.project(x, norm(own["attention_norm"]), attention["qkv"]["kernel"], _EPSILON)
        y = s2mel_kernel.attend(qkv, rotation, lengths, N)
        x = s2mel_kernel.feed_forward(
            x, y, attention["out"]["kernel"], norm(own["feed_forward_norm"]), forward["gated"]["kernel"],
            forward["down"]["kernel"], _EPSILON,
        )  # fmt: skip
        if i < half:
            skips.append(x)
    return normalised(x, norm(params["norm"]))


_EPSILON = RMSNorm.epsilon


class WaveNet(nn.Module):
    """Gated convolutions with reflected edges, conditioned on c [B, W] (arXiv:1609.03499): [B, T, W] -> [B, T, W]."""

    cfg: S2MelConfig

    @nn.compact
    def __call__(self, x: Array, c: Array, lengths: Array) -> Array:
        W, L, K = self.cfg.wavenet_width, self.cfg.wavenet_layers, self.cfg.wavenet_kernel
        shifts = jnp.split(nn.Dense(2 * W * L, name="condition")(c), L, axis=-1)
        total = jnp.zeros_like(x)
        for i, shift in enumerate(shifts):
            y = pad_edges(x, lengths, K - 1 - (K - 1) // 2, (K - 1) // 2, "reflect")
            y = nn.Conv(2 * W, K, padding="VALID", name=f"in_{i}")(y) + shift[:, None]
            tanh, gate = jnp.split(y, 2, axis=-1)
            y = jnp.tanh(tanh) * nn.sigmoid(gate)
            if i < L - 1:
                residual, y = jnp.split(nn.Dense(2 * W, name=f"out_{i}")(y), 2, axis=-1)
                x = x + residual
            else:
                y = nn.Dense(W, name=f"out_{i}")(y)
            total = total + y
        return total


class Estimator(nn.Module):
    """The velocity of the flow at x. x, prompt [B, T, M], content [B, T, K], style [B, style], t [B], lengths [B].

    With a window, what follows the transformer runs on `frames` frames from `starts` [B] on alone: -> [B, frames, M].
    """

    cfg: S2MelConfig
    by_platform: bool = False  # the transformer as one function, of which a TPU has a form of its own

    @nn.compact
    def __call__(
        self, x: Array, prompt: Array, content: Array, style: Array, t: Array, lengths: Array,
        starts: Array | None = None, frames: int | None = None,
    ) -> Array:  # fmt: skip
        cfg, D, W = self.cfg, self.cfg.width, self.cfg.wavenet_width
        time = TimeEmbedding(D, name="time")(t, x.dtype)
        content = nn.Dense(D, name="content")(content)
        style = jnp.broadcast_to(style[:, None], (*x.shape[:2], style.shape[-1]))
        h = nn.Dense(D, name="merge")(jnp.concatenate([x, prompt, content, style], axis=-1))
        if self.by_platform:
            h = transform(self.variables["params"]["transformer"], cfg, h, time, lengths)
        else:
            h = Transformer(cfg, name="transformer")(h, time, lengths)
        if starts is not None and frames is not None:
            h, x, lengths = window(h, starts, frames), window(x, starts, frames), lengths - starts
        h = nn.Dense(D, name="skip")(jnp.concatenate([h, x], axis=-1))
        y = nn.Dense(W, name="wavenet_in")(h)
        y = WaveNet(cfg, name="wavenet")(y, TimeEmbedding(W, name="wavenet_time")(t, x.dtype), lengths)
        y = y + nn.Dense(W, name="residual")(h)
        shift, scale = jnp.split(nn.Dense(2 * W, name="modulation")(nn.silu(time)), 2, axis=-1)
        y = LayerNorm(1e-6, affine=False, name="final_norm")(y) * (1 + scale[:, None]) + shift[:, None]
        return nn.Dense(cfg.mels, name="out")(nn.Dense(W, name="final")(y))


def init(cfg: S2MelConfig, key: Array) -> dict:
    """Random float32 parameters: {"latent": ..., "regulator": ..., "estimator": ...}; without layers no "latent"."""
    keys = jax.random.split(key, 3)
    latent = Latent(cfg).init(keys[0], jnp.zeros((1, 1, cfg.latent))) if cfg.latent_layers else {}
    T, n = 8, jnp.array([8])
    mels, content = jnp.zeros((1, T, cfg.mels)), jnp.zeros((1, T, cfg.content))
    return {
        **({"latent": latent["params"]} if latent else {}),
        "regulator": Regulator(cfg).init(keys[1], jnp.zeros((1, T, cfg.semantic)), n, T, n)["params"],
        "estimator": Estimator(cfg).init(
            keys[2], mels, mels, content, jnp.zeros((1, cfg.style)), jnp.zeros(1), n
        )["params"],
    }  # fmt: skip


@jax.jit
def target_lengths(code_lengths: Array) -> Array:
    """How many mel frames so many codes become: int32, truncated, float32 as in the reference."""
    return jnp.floor(code_lengths.astype(jnp.float32) * jnp.float32(FRAMES_PER_CODE)).astype(jnp.int32)


@partial(jax.jit, static_argnames=("cfg", "frames"))
def regulate(
    params: dict, cfg: S2MelConfig, semantic: Array, lengths: Array, frames: int, target_lengths: Array
) -> Array:
    """Stretch semantic frames to mel frames: [B, C, S], lengths [B] -> [B, frames, K], zero past target_lengths [B].

    Reference: indextts/s2mel/modules/length_regulator.py.
    """
    semantic = enter(semantic, lengths, params)
    return apply(Regulator(cfg), params["regulator"], semantic, lengths, frames, target_lengths)


@partial(jax.jit, static_argnames=("cfg", "frames"))
def content(
    params: dict,
    cfg: S2MelConfig,
    embeddings: Array,
    latents: Array,
    lengths: Array,
    frames: int,
    target_lengths: Array,
) -> Array:
    """What is to be spoken, at the rate of mels: embeddings [B, C, S] of the codes and the GPT's latents [B, C, D].

    -> [B, frames, K], zero past target_lengths [B]. A model without latents stretches its codec's features instead:
    `regulate`. Reference: indextts/infer_v2.py, gpt_layer and length_regulator.
    """
    semantic = apply(Latent(cfg), params["latent"], enter(latents, lengths, params))
    return regulate(params, cfg, enter(embeddings, lengths, params) + semantic, lengths, frames, target_lengths)


def estimate(
    params: dict, cfg: S2MelConfig, x: Array, prompt: Array, content: Array, style: Array, t: Array, lengths: Array,
    starts: Array | None = None, frames: int | None = None, by_platform: bool = False,
) -> Array:  # fmt: skip
    """The velocity at x: x, prompt [B, T, M], content [B, T, K], style [B, style], t [B], lengths [B] -> [B, T, M].

    With starts [B] and frames, only of so many frames from there on: [B, frames, M], of which those past a row's length
    are unspecified, and so are the first `cfg.reach` where a row does not start there. t is float32, the other inputs
    are in the dtype of the weights and finite in their padding. `by_platform`: on a TPU with kernels, which jit alone
    does not share out among chips; modules inside the transformer cannot be looked into then.
    Reference: indextts/s2mel/modules/diffusion_transformer.py, DiT.
    """
    estimator = Estimator(cfg, by_platform)
    return apply(estimator, params["estimator"], x, prompt, content, style, t, lengths, starts, frames)


def times(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The solver's times and step widths, float32, summed up as the reference sums them."""
    grid = np.linspace(0, 1, steps + 1, dtype=np.float32)
    widths = np.diff(grid)
    return np.concatenate([[np.float32(0)], np.cumsum(widths[:-1], dtype=np.float32)]), widths


Velocity = Callable[[Array, Array], Array]  # x [...], t [] float32 -> dx/dt at x and t, like x


def euler(velocity: Velocity, x: Array, t: Array, width: Array) -> Array:
    """One step from t to t + width: of order 1, with one evaluation of the velocity."""
    return _moved(x, width, velocity(x, t))


def midpoint(velocity: Velocity, x: Array, t: Array, width: Array) -> Array:
    """One step by the velocity in its middle: of order 2, with two evaluations."""
    return _moved(x, width, velocity(_moved(x, width / 2, velocity(x, t)), t + width / 2))


def heun(velocity: Velocity, x: Array, t: Array, width: Array) -> Array:
    """One step by the mean of the velocities at its ends: of order 2, with two evaluations."""
    begin = velocity(x, t)
    return _moved(x, width, (begin + velocity(_moved(x, width, begin), t + width)) / 2)


def _moved(x: Array, width: Array, velocity: Array) -> Array:
    return x + (width * velocity.astype(jnp.float32)).astype(x.dtype)


METHODS = {"euler": euler, "midpoint": midpoint, "heun": heun}


def integrate(
    velocity: Callable[..., Array], x: Array, steps: int, solver: Any = "euler", each: tuple[Array, ...] = ()
) -> tuple[Array, Array]:
    """Integrate dx/dt = velocity(x, t) from 0 to 1: -> (x at 1, x after each step [steps, ...]).

    solver: a name of METHODS, a function like them, a solver of diffrax, or the name of one ("Tsit5"), which makes
    `steps` steps of fixed width too: rows of a batch that chose their own would depend on each other. (An implicit one
    needs a root finder with tolerances of its own: give the solver, not its name.)
    each: arrays [steps, ...], of which every evaluation within a step is given that step's part: velocity(x, t, *part).
    Raises ValueError for an unknown name, and ImportError where diffrax is needed and missing.

    A scan over a checkpointed step: reverse differentiation keeps one state per step, not the network's activations.
    """
    first, advance = _method(solver)
    at = (*map(jnp.asarray, times(steps)), *each)

    @partial(jax.checkpoint, prevent_cse=False)
    def step(carry: tuple[Array, Any], at: tuple[Array, ...]) -> tuple[tuple[Array, Any], Array]:
        t, width, *part = at
        x, memory = advance(lambda x, t: velocity(x, t, *part), *carry, t, width, bool(part))
        return (x, memory), x

    t, width, *part = (a[0] for a in at)
    memory = first(lambda x, t: velocity(x, t, *part), x, t, width)
    (x, _), states = jax.lax.scan(step, (x, memory), at)
    return x, states


def _method(solver: Any) -> tuple[Callable[..., Any], Callable[..., tuple[Any, Any]]]:
    """What a solver remembers before the first step, and how it makes one: -> (x after it, what it remembers)."""
    method: Any = METHODS.get(solver, solver) if isinstance(solver, str) else solver
    if callable(method):
        return lambda *_: (), lambda velocity, x, memory, t, width, jump: (method(velocity, x, t, width), memory)
    own = ", ".join(METHODS)
    try:
        import diffrax
    except ImportError:
        raise ImportError(f"solver {solver!r} is none of {own}: pip install 'indextts-jax[diffrax]' for more") from None
    if isinstance(method, str):
        kind = getattr(diffrax, method, None)
        if not (isinstance(kind, type) and issubclass(kind, diffrax.AbstractSolver)):
            raise ValueError(f"solver {method!r} is none of {own}, nor of diffrax's, such as 'Tsit5'")
        method = kind()
    if getattr(method, "scan_kind", "") is None:
        method = replace(method, scan_kind="bounded")  # a loop over stages that goes backwards and forwards

    def term(velocity: Velocity) -> Any:
        def slope(t: Any, x: Any, _: Any) -> Array:
            return velocity(x, t).astype(x.dtype)

        return diffrax.ODETerm(slope)

    def first(velocity: Velocity, x: Array, t: Array, width: Array) -> Any:
        return method.init(term(velocity), t, t + width, x, None)

    def advance(velocity: Velocity, x: Array, memory: Any, t: Array, width: Array, jump: bool) -> tuple[Any, Any]:
        # Where the velocity jumps between steps, the last one of a step is not the first of the next.
        x, _, _, memory, _ = method.step(term(velocity), t, t + width, x, None, memory, jump)
        return x, memory

    return first, advance


@partial(jax.jit, static_argnames="frames")
def join(first: Array, first_lengths: Array, second: Array, frames: int) -> Array:
    """Each row's first part followed directly by its second: [B, P, C], [B], [B, F, C] -> [B, frames, C]."""
    place = jnp.broadcast_to(jnp.arange(frames)[None], (first.shape[0], frames))
    head = take(first, jnp.minimum(place, first.shape[1] - 1))
    tail = take(second, jnp.clip(place - first_lengths[:, None], 0, second.shape[1] - 1))
    return jnp.where((place < first_lengths[:, None])[:, :, None], head, tail)


@partial(jax.jit, static_argnames="frames")
def window(x: Array, starts: Array, frames: int) -> Array:
    """So many frames of each row from its own start on: [..., B, T, C], [B] -> [..., B, frames, C]."""
    return take(x, jnp.clip(starts[:, None] + jnp.arange(frames)[None], 0, x.shape[-2] - 1))


def flow(
    params: dict,
    cfg: S2MelConfig,
    noise: Array,
    content: Array,
    lengths: Array,
    prompt: Array,
    prompt_content: Array,
    prompt_lengths: Array,
    style: Array,
    steps: int = 25,
    guidance: Any = 0.7,
    frames: int | None = None,
    every: bool = False,
    guided: bool | None = None,
    solver: Any = "euler",
    schedule: Any = None,
) -> Array:
    """From noise to a log-mel in the prompt's voice, by guided flow matching (arXiv:2210.02747).

    noise [B, F, M], content [B, F, K] and lengths [B] of the target; prompt (log-mel) [B, P, M], prompt_content
    [B, P, K], prompt_lengths [B]; style [B, style]; guidance: a number, or one per row [B]. -> [B, F, M] float32, or
    with `every` the target after each step, [steps, B, F, M]. What lies past a row's length is unspecified. Prompt and
    target of a row must have 3 frames together, so that the WaveNet can mirror 2: shorter ones, which the reference
    fills up with zeros, come out wrong.

    `frames`: T, at least every row's prompt and target together (default: P + F). The solver is compiled for T alone.
    `guided`: whether the null branch is computed, which doubles the cost; by default it is, unless guidance is known to
    be 0 in every row. The state is float32 whatever the network computes in.
    solver: as in `integrate`; those of METHODS but Euler's evaluate the velocity twice per step.
    schedule: by what the guidance is multiplied in each step, [steps], or in each step of each row, [steps, B].
    Reference: indextts/s2mel/modules/flow_matching.py.
    """
    dtype = dtype_of(params)
    T = frames or prompt.shape[1] + noise.shape[1]
    prompt, prompt_content, content = (a.astype(dtype) for a in (prompt, prompt_content, content))
    mel = join(prompt, prompt_lengths, jnp.zeros(noise.shape, dtype), T)
    both = join(prompt_content, prompt_lengths, content, T)
    x, style = noise.astype(jnp.float32), style.astype(dtype)
    if guided is None:
        guided = isinstance(guidance, Tracer) or bool(np.any(np.asarray(guidance) != 0))
    if isinstance(guidance, Array):
        guidance = jnp.broadcast_to(guidance.astype(jnp.float32), x.shape[:1])
    else:
        guidance = np.broadcast_to(np.asarray(guidance, np.float32), x.shape[:1])
    if schedule is not None:
        schedule = jnp.asarray(schedule, jnp.float32)
        schedule = jnp.broadcast_to(schedule[:, None] if schedule.ndim == 1 else schedule, (steps, *x.shape[:1]))
    return solve(
        params, cfg, x, mel, both, style, prompt_lengths, lengths, guidance, steps, every, guided, solver, schedule
    )


@partial(jax.jit, static_argnames=("cfg", "steps", "every", "guided", "solver"))
def solve(
    params: dict,
    cfg: S2MelConfig,
    x: Array,
    prompt: Array,
    content: Array,
    style: Array,
    prompt_lengths: Array,
    lengths: Array,
    guidance: Array,
    steps: int = 25,
    every: bool = False,
    guided: bool = True,
    solver: Any = "euler",
    schedule: Array | None = None,
) -> Array:
    """`flow` with its conditions joined: x [B, F, M] float32 of the target, prompt [B, T, M], content [B, T, K].

    style [B, style], prompt_lengths [B], lengths [B] of the target, guidance [B] float32, of no effect where not
    `guided`, schedule [steps, B] float32 -> x at 1 [B, F, M], or after each step. On TPUs it has kernels, which jit
    alone does not share out among chips: there a batch on several chips is for jax.shard_map.
    """
    F, T, dtype = x.shape[1], prompt.shape[1], dtype_of(params)
    # The prompt's part of the state stays zero, so that its velocity is not needed: what follows the transformer hears
    # no further than `reach` frames, and runs on the target and so many frames before it.
    size = F + cfg.reach if F + cfg.reach < T else None
    starts = jnp.maximum(prompt_lengths - cfg.reach, 0)
    ahead = prompt_lengths - starts if size else prompt_lengths
    content = zero_padding(content, prompt_lengths + lengths)
    silence = jnp.zeros((x.shape[0], 1, cfg.mels), jnp.float32)
    spoken = valid(lengths, F)[:, :, None]
    # The null branch of the guidance sees no prompt, no content and no style.
    # Beside its row, so that a batch that is sharded by rows moves nothing.
    branches = 2 if guided else 1

    def beside(a: Array) -> Array:
        return jnp.stack([a, jnp.zeros_like(a)][:branches], axis=1).reshape(-1, *a.shape[1:])

    prompt, content, style = map(beside, (prompt, content, style))
    stacked, starts = (jnp.repeat(a, branches) for a in (prompt_lengths + lengths, starts))
    constant = guidance[:, None, None]

    def velocity(x: Array, t: Array, scale: Array | None = None) -> Array:
        strength = constant if scale is None else constant * scale[:, None, None]
        xs = jnp.repeat(join(silence, prompt_lengths, x, T).astype(dtype), branches, axis=0)
        times = jnp.full(stacked.shape, t)
        v = estimate(params, cfg, xs, prompt, content, style, times, stacked, starts if size else None, size, True)
        v = v.astype(jnp.float32)
        if guided:
            conditional, null = jnp.moveaxis(v.reshape(-1, 2, *v.shape[1:]), 1, 0)
            v = (1 + strength) * conditional - strength * null
        return jnp.where(spoken, window(v, ahead, F), 0.0)

    each = () if schedule is None else (schedule,)
    end, states = integrate(velocity, jnp.where(spoken, x, 0.0), steps, solver, each)
    return states if every else end


@partial(jax.jit, static_argnames=("frames", "mels"))
def noise(keys: Array, frames: int, mels: int, starts: Array | None = None) -> Array:
    """Gaussian noise [B, F, M] float32, a row from each of keys [B], from its frame starts [B] on.

    Drawn frame by frame: a frame's noise does not depend on how many are drawn.
    """

    def row(key: Array, start: Array | int) -> Array:
        each = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(frames))
        return jax.vmap(lambda k: jax.random.normal(k, (mels,)))(each)

    return jax.vmap(row, (0, None if starts is None else 0))(keys, 0 if starts is None else starts)
