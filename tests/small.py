"""Small configurations and random parameters for properties that need no golden data."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from indextts_jax import models
from indextts_jax.config import Config
from indextts_jax.features import MelConfig
from indextts_jax.models.bigvgan import BigVGANConfig
from indextts_jax.models.campplus import CAMPPlusConfig
from indextts_jax.models.conditioner import ConditionerConfig, EncoderConfig
from indextts_jax.models.gpt import GPTConfig
from indextts_jax.models.repcodec import RepCodecConfig
from indextts_jax.models.s2mel import S2MelConfig
from indextts_jax.models.w2vbert import W2VBertConfig

W2VBERT = W2VBertConfig(features=6, width=16, layers=2, heads=2, intermediate=24, kernel=7, left=16, right=4)
REPCODEC = RepCodecConfig(width=12, codes=20, code_width=4, channels=8, intermediate=16, layers=2, kernel=5)
CAMPPLUS = CAMPPlusConfig(16, 6, 4, 8, 4, 8, (2, 1), (1, 2), segment=10)
_ENCODER = EncoderConfig(8, 2, 12, 1, 3, 16, 10, kernel=5, perceiver_layers=1, perceiver_head=4)
CONDITIONER = ConditionerConfig(semantic=12, width=16, speaker=_ENCODER, emotion=_ENCODER)
GPT = GPTConfig(
    16, 2, 2, text_vocabulary=50, text_positions=12, code_vocabulary=42, code_positions=20, start_code=40, stop_code=41
)
S2MEL = S2MelConfig(6, 5, 8, 7, (6, 8), 10, 2, 12, 16, 2, 3, 8, 2, 5)
BIGVGAN = BigVGANConfig(8, 16, (4, 2), (8, 4), (3, 7), ((1, 3), (1, 3)))

# One system of networks that fit together, with a layer of each kind: training compiles every one forth and back
CONFIG = Config(
    mel=MelConfig(n_fft=32, window=32, hop=4, mels=8),
    w2vbert=replace(W2VBERT, features=160, width=12, layers=1),
    repcodec=replace(REPCODEC, layers=1),
    campplus=replace(CAMPPLUS, features=80, blocks=(1, 1)),
    conditioner=CONDITIONER,
    gpt=replace(GPT, layers=1),
    s2mel=S2MelConfig(8, 6, 12, 16, (6, 12), 10, 1, 12, 16, 2, 3, 8, 1, 5),
    bigvgan=BigVGANConfig(8, 16, (4,), (8,), (3,), ((1,),)),
)


# What renders, as small as it gets: the GPT's vocabulary is the codec's with a start and a stop code.
RENDERER = Config(
    gpt=replace(GPT, layers=1),
    repcodec=replace(REPCODEC, codes=40),
    s2mel=S2MelConfig(6, 5, 12, 16, (6, 12), 10, 1, 12, 16, 2, 1, 8, 1, 5),
    bigvgan=BigVGANConfig(6, 8, (2,), (4,), (3,), ((1,),)),
)
VOCODER = BigVGANConfig(80, 32, (4, 4, 4, 4), (8, 8, 8, 8), (3,), ((1,),))  # for mels and the hop of the tiny model


def with_small_vocoder(params: Any, cfg: Any) -> tuple[Any, Any]:
    """The parameters and configuration of a model with a vocoder that compiles in a tenth of the time."""
    return {**params, "bigvgan": parameters("bigvgan", VOCODER)}, replace(cfg, bigvgan=VOCODER)


def parameters(component: str, cfg: Any, seed: int = 0) -> Any:
    """Random parameters in which every leaf matters: drawn by numpy, so that nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key in ("scale", "gamma", "variance"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            # Kernels keep the size of what passes through them; vectors are biases and the like.
            values = rng.normal(size=leaf.shape) * (np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2)
        return jax.device_put(values.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, models.shapes(component, cfg))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def speech(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Tones that come and go over faint noise: loud and quiet bands side by side, [N] float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time) * (1 + np.sin(2 * np.pi * 3 * time + f)) for f in (180, 410, 1230))
    return (0.1 * tones + 1e-4 * rng.standard_normal(len(time))).astype(np.float32)
