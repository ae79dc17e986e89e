"""The folder under qwen_emo_path: Qwen3, which reads emotions off a text."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.config import inside
from indextts_jax.convert.table import Row, Table, beside, dense_out_in, embedding, rms_norm
from indextts_jax.convert.tensors import CheckpointError, Tensors, read_safetensors
from indextts_jax.errors import short
from indextts_jax.models.qwen3 import Qwen3Config

# What the entries of config.json must be; those that are left out mean the last value.
_KNOWN = {
    "model_type": ("qwen3", None),
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, False),
    "rope_scaling": (None, None),
    "use_sliding_window": (False, False),
    "tie_word_embeddings": (True, False),
}
_SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "groups": "num_key_value_heads",
    "head": "head_dim",
    "feed_forward": "intermediate_size",
}


def place(settings: dict[str, Any]) -> str:
    """The model's folder inside the model folder."""
    return inside(settings, "qwen_emo_path")


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    """Of one file, or of the parts of a split one."""
    whole = folder / place(settings) / "model.safetensors"
    parts = [] if whole.is_file() else sorted(whole.parent.glob("model-*-of-*.safetensors"))
    return {name: tensor for path in parts or [whole] for name, tensor in read_safetensors(path).items()}


def config(base: Qwen3Config, tensors: Tensors, extra: dict[str, Any]) -> Qwen3Config:
    """`extra`: the model's config.json, and over it generation_config.json, whose stop ids are the ones that count."""
    for name, (known, otherwise) in _KNOWN.items():
        if (value := extra.get(name, otherwise)) != known:
            raise CheckpointError(f"Qwen3's config.json: {name} is {short(value)}, only {known!r} is supported")

    def needed(name: str, *kinds: type) -> Any:
        if type(value := extra.get(name)) not in kinds:
            raise CheckpointError(
                f"Qwen3's config.json: {name} is missing or wrong ({short(value)}); download it again"
            )
        return value

    stops = needed("eos_token_id", int, list)
    stops = tuple(stops) if isinstance(stops, list) else (stops,)
    if not stops or any(type(stop) is not int for stop in stops):
        raise CheckpointError(f"Qwen3's config.json: eos_token_id is {short(stops)}, not one or more ids")
    return dataclasses.replace(
        base,
        **{ours: needed(theirs, int) for ours, theirs in _SIZES.items()},
        base=float(needed("rope_theta", int, float)),
        epsilon=float(needed("rms_norm_eps", float)),
        stops=stops,
    )


def table(cfg: Qwen3Config) -> Table:
    layer, block = "model.layers.{i}", "decoder/layer_{i}"
    attention, gated = f"{layer}.self_attn", tuple(f"{layer}.mlp.{x}_proj" for x in ("gate", "up"))
    return Table(
        rows=[
            Row("model.embed_tokens", "token", embedding),
            Row(f"{layer}.input_layernorm", f"{block}/attention_norm", rms_norm),
            Row(tuple(f"{attention}.{x}_proj" for x in "qkv"), f"{block}/qkv", beside(dense_out_in, 0)),
            Row(f"{attention}.q_norm", f"{block}/q_norm", rms_norm),
            Row(f"{attention}.k_norm", f"{block}/k_norm", rms_norm),
            Row(f"{attention}.o_proj", f"{block}/out", dense_out_in),
            Row(f"{layer}.post_attention_layernorm", f"{block}/feed_forward_norm", rms_norm),
            Row(gated, f"{block}/gated", beside(dense_out_in, 0)),
            Row(f"{layer}.mlp.down_proj", f"{block}/down", dense_out_in),
            Row("model.norm", "decoder/norm", rms_norm),
        ],
        unused=["lm_head.weight"],  # the embeddings once more, as `config` makes sure
    )
