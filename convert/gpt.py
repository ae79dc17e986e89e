"""gpt.pth, second part: GPT-2 and its embeddings."""

import dataclasses
from pathlib import Path
from typing import Any

from indextts_jax.convert.conditioner import belongs, gpt_file
from indextts_jax.convert.table import Row, Table, dense_from_in_out, dense_out_in, embedding, layer_norm
from indextts_jax.convert.tensors import Tensors
from indextts_jax.models.gpt import GPTConfig


def tensors(folder: Path, settings: dict[str, Any]) -> Tensors:
    return {name: tensor for name, tensor in gpt_file(folder, settings).items() if not belongs(name)}


def config(base: GPTConfig, tensors: Tensors, extra: dict[str, Any]) -> GPTConfig:
    languages = None if base.languages is None else tensors["lang_embedding.weight"].shape[0]
    return dataclasses.replace(
        base,
        languages=languages,
        text_vocabulary=tensors["text_embedding.weight"].shape[0],
        text_positions=tensors["text_pos_embedding.emb.weight"].shape[0],
        code_positions=tensors["mel_pos_embedding.emb.weight"].shape[0],
    )


def table(cfg: GPTConfig) -> Table:
    layer, block = "gpt.h.{i}", "decoder/layer_{i}"
    own = ("speed_emb", "speed") if cfg.languages is None else ("lang_embedding", "language")
    return Table(
        rows=[
            Row("text_embedding", "text", embedding),
            Row("text_pos_embedding.emb", "text_position", embedding),
            Row("mel_embedding", "code", embedding),
            Row("mel_pos_embedding.emb", "code_position", embedding),
            Row(*own, embedding),
            Row(f"{layer}.ln_1", f"{block}/attention_norm", layer_norm),
            Row(f"{layer}.attn.c_attn", f"{block}/qkv", dense_from_in_out),
            Row(f"{layer}.attn.c_proj", f"{block}/out", dense_from_in_out),
            Row(f"{layer}.ln_2", f"{block}/feed_forward_norm", layer_norm),
            Row(f"{layer}.mlp.c_fc", f"{block}/up", dense_from_in_out),
            Row(f"{layer}.mlp.c_proj", f"{block}/down", dense_from_in_out),
            Row("gpt.ln_f", "decoder/norm", layer_norm),
            Row("final_norm", "decoder/final_norm", layer_norm),
            Row("mel_head", "head", dense_out_in),
        ],
        unused=["text_head.*"],
    )
