"""A model and a corpus of random numbers, small enough to be trained in a test."""

from pathlib import Path

import numpy as np

from indextts_jax import checkpoint, models
from indextts_jax.convert import rest
from indextts_jax.convert.tensors import Tensor
from indextts_jax.train import corpus
from indextts_jax.train.corpus import Line, Utterance
from tests import small

LENGTHS = (9, 12, 7, 14, 10, 8, 13, 11)  # codes of each utterance


def save_model(folder: Path, cfg=small.CONFIG) -> None:
    """A converted model of random weights, of which only the text front end is missing."""
    folder.mkdir()
    for i, component in enumerate(models.COMPONENTS):
        own = getattr(cfg, component)
        checkpoint.save(folder, component, own, small.parameters(component, own, i))
    head = {
        "text_head.weight": small.normal(1, cfg.gpt.text_vocabulary, cfg.gpt.width),
        "text_head.bias": small.normal(2, cfg.gpt.text_vocabulary),
    }
    tensors = {name: Tensor(folder, a.shape, a.dtype, lambda a=a: a) for name, a in head.items()}
    rest.save(folder, {"conditioner": {}, "gpt": tensors, "s2mel": {}})
    checkpoint.save_description(folder, cfg, "random numbers")


def save_corpus(
    folder: Path, cfg=small.CONFIG, lengths: tuple[int, ...] = LENGTHS, shard: int = 5, hop: int = small.CONFIG.mel.hop
) -> None:
    """Utterances of random numbers, of two speakers, in several shards."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines, utterances = [], []
    for i, codes in enumerate(lengths):
        frames = int(codes * 1.72) + 1
        utterances.append(
            Utterance(
                texts=rng.integers(2, cfg.gpt.text_vocabulary, 3 + i % 4).astype(np.int32),
                codes=rng.integers(0, cfg.repcodec.codes, codes).astype(np.int32),
                semantic=rng.normal(size=(codes, cfg.repcodec.width)).astype(np.float16),
                mel=rng.normal(size=(frames, cfg.mel.mels)).astype(np.float32),
                samples=rng.integers(-9000, 9000, frames * hop).astype(np.int16),
                style=rng.normal(size=cfg.s2mel.style).astype(np.float32),
            )
        )
        lines.append(Line(f"u{i}", "ab"[i % 2], "HELLO"[: 2 + i % 4], "", frames * hop, codes, frames, 3 + i % 4))
    for i in range(0, len(lines), shard):
        corpus.write(folder, i // shard, f"made {i}", lines[i : i + shard], utterances[i : i + shard])
