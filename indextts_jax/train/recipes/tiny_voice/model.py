"""python -m indextts_jax.train.recipes.tiny_voice.model CORPUS OUT: the untrained model, in the converted layout.

Its architecture is that of IndexTTS-2 and its sizes are small. Of the corpus (`corpus.py`) it has its SentencePiece
pieces, and the means with which training begins well.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from indextts_jax import audio, checkpoint, features, files, models, text, voice
from indextts_jax.config import Config
from indextts_jax.convert import rest
from indextts_jax.errors import Error, NotFound
from indextts_jax.models import Params, conditioner
from indextts_jax.models.bigvgan import BigVGANConfig
from indextts_jax.models.campplus import CAMPPlusConfig
from indextts_jax.models.conditioner import ConditionerConfig, EncoderConfig
from indextts_jax.models.gpt import GPTConfig
from indextts_jax.models.prototypes import PrototypesConfig
from indextts_jax.models.repcodec import RepCodecConfig
from indextts_jax.models.s2mel import S2MelConfig
from indextts_jax.models.w2vbert import W2VBertConfig
from indextts_jax.train.recipes.tiny_voice import command

SOURCE = "indextts_jax.train.recipes.tiny_voice"
PIECES = 512  # of texts
MARKS = (".", "!", "?", ",", "-", "'")  # pieces of their own: the text front end cuts at them
LAST = r"perceiver/(attention_\d+/out|down_\d+)/kernel"  # of the conditioner: what it adds to its latents
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_BYTES = 30_000_000  # of all weights in 16 bits
_HEARD = 48  # recordings from which means are measured
_BATCH = 8

SEMANTIC, STYLE, WIDTH, CODES = 96, 32, 192, 1024  # of semantic features, a speaker's style, the GPT; of the codebook
_ENCODER = EncoderConfig(
    width=64, heads=4, units=128, layers=2, latents=8, latent_width=WIDTH, perceiver_units=128, perceiver_layers=1,
    perceiver_head=32,
)  # fmt: skip
# What stays as it is in IndexTTS-2: 17 layers that are heard, 160 features, 80 bands, 256 samples of a frame.
SIZES = Config(
    w2vbert=W2VBertConfig(width=SEMANTIC, heads=4, intermediate=256, kernel=15),
    repcodec=RepCodecConfig(SEMANTIC, CODES, code_width=8, channels=96, intermediate=192, layers=4),
    campplus=CAMPPlusConfig(
        embedding=STYLE, head_channels=8, channels=32, growth=16, bottleneck=32, blocks=(2, 2, 2)
    ),
    conditioner=ConditionerConfig(
        SEMANTIC, WIDTH, _ENCODER, replace(_ENCODER, latents=1, latent_width=SEMANTIC, perceiver_units=64)
    ),
    prototypes=PrototypesConfig((1,) * 8, STYLE, WIDTH),
    gpt=GPTConfig(
        width=WIDTH, layers=6, heads=4, text_vocabulary=PIECES + 1, text_positions=122, code_vocabulary=CODES + 2,
        code_positions=503, start_code=CODES, stop_code=CODES + 1,
        repetition_penalty=1.0,  # of 1024 codes, speech repeats many
    ),
    s2mel=S2MelConfig(
        style=STYLE, semantic=SEMANTIC, latent=WIDTH, latent_layers=(128, 64, SEMANTIC), regulator_channels=160,
        content=160, width=160, heads=5, depth=5, wavenet_width=160, wavenet_layers=5,
    ),
    bigvgan=BigVGANConfig(80, 256, (4, 4, 4, 4), (8, 8, 8, 8), (7,), ((1, 3),)),
)  # fmt: skip


def pieces(texts: Iterator[str], count: int) -> bytes:
    """A SentencePiece model of normalised texts as the front end has them, upper case: at most `count` pieces.

    The ids 0 and 1 are the GPT's start and stop of texts, and 2 is what the vocabulary lacks.
    """
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(one.upper() for one in texts), model_writer=content, model_type="bpe", vocab_size=count,
        hard_vocab_limit=False, character_coverage=1.0, required_chars=LETTERS, user_defined_symbols=list(MARKS),
        bos_id=0, eos_id=1, unk_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return content.getvalue()


def normalized(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The texts of a manifest's rows as they are spoken."""
    front = text.TextFrontEnd(sentencepiece.SentencePieceProcessor())
    return (front.normalize(row["text"], "en") for row in rows)


def random(cfg: Config, seed: int) -> Params:
    """Random float32 parameters of every component, drawn by numpy: compiling for 17 layers would take longer."""
    first = len(models.COMPONENTS) * seed
    made = {n: models.random(n, getattr(cfg, n), first + i, "float32") for i, n in enumerate(models.COMPONENTS)}
    # Codes are chosen by angle, but what is chosen stands for the encoder's output: both are of one size.
    codebook = made["repcodec"]["quantizer"]["codebook"]
    codebook["embedding"] = codebook["embedding"] * cfg.repcodec.codes**0.5
    # Emotions by weights: there is nobody yet whose vectors they could lend, so they lend none.
    made["prototypes"]["vector"] = jnp.zeros_like(made["prototypes"]["vector"])
    return made


def near_identity(w2vbert: Any) -> Any:
    """A semantic encoder's random parameters in which every layer adds little to what it is given.

    As drawn, little of the sound is left after 17 layers: training took some three times as many steps to the same
    loss.
    """
    return _scaled(w2vbert, r"layer_\d+/(feed_forward_\d/down|attention/out|convolution/out)/kernel", 0.2)


def text_first(gpt: Any) -> Any:
    """A GPT's random parameters in which every layer adds little to the embeddings, which begin large.

    As drawn, embeddings are small beside what the first layer adds, and codes learn late what text they belong to.
    """
    gpt = _scaled(gpt, r"layer_\d+/(out|down)/weight", 0.2)
    return _scaled(_scaled(gpt, r"(text|code)/embedding", 25.0), r"(text_position|code_position|speed)/embedding", 12.5)


def _scaled(tree: Any, pattern: str, factor: float) -> Any:
    """The tree with those leaves multiplied whose path ends as the pattern says. Raises ValueError where none is."""
    leaves: dict[Any, Any] = dict(flatten_dict(tree))
    chosen = [path for path in leaves if re.search(f"(^|/)(?:{pattern})$", "/".join(path))]
    if not chosen:
        raise ValueError(f"no parameter is named {pattern}")
    return unflatten_dict(leaves | {path: factor * leaves[path] for path in chosen})


def plain(s2mel: Any, mean: Array) -> Any:
    """A flow's random parameters that begin near a plain answer: norms as such, layers that add little, the mean mel.

    mean [M]: of the log-mel, some -6, which would take thousands of steps of a bias to come to.
    """
    leaves: dict[Any, Any] = dict(flatten_dict(s2mel))
    for path, leaf in leaves.items():
        if path[-2:] == ("project", "bias") and path[-3].endswith("norm"):
            leaves[path] = jnp.asarray(leaf).at[: leaf.shape[0] // 2].set(1.0)  # the weight; the rest is the bias
    leaves["estimator", "out", "bias"] = mean
    made = _scaled(unflatten_dict(leaves), r"\w*norm/project/kernel", 0.1)
    made = _scaled(made, r"layer_\d+/(attention/out|feed_forward/down)/kernel|wavenet/out_\d+/kernel", 0.3)
    return _scaled(_scaled(made, r"modulation/kernel", 0.1), r"estimator/out/kernel", 0.3)


def quiet(vocoder: Any, mean: Array) -> Any:
    """A vocoder's random parameters made smaller: as drawn, its samples lie beyond ±1, where there is no gradient.

    mean [M]: of the log-mel, far from zero, which the first bias takes away.
    """
    first = {"kernel": 0.35 * vocoder["in"]["kernel"]}
    first["bias"] = -jnp.einsum("kmc,m->c", first["kernel"], mean)
    made = {**vocoder, "in": first, "out": {"kernel": 0.1 * vocoder["out"]["kernel"]}}
    for name in (name for name in vocoder if name.startswith("stage_")):
        made[name] = {
            part: {**leaves, "kernel": 0.3 * leaves["kernel"]} if part.startswith("plain_") else leaves
            for part, leaves in vocoder[name].items()
        }
    return made


def alike(campplus: Any, conditioner: Any) -> tuple[Any, Any]:
    """Both in a form that gives every recording the same: with one speaker there is nothing to tell apart.

    Of each, last layers are zero that can still be trained away from it, where there are more. What the GPT is given is
    then the conditioner's own latents: not zero, at which its norms have no gradient.
    """
    return _scaled(campplus, "out/kernel", 0.0), _scaled(conditioner, LAST, 0.0)


def one_mood(params: Params, cfg: Config) -> Array:
    """Prototypes' vectors [rows, D] that change nothing, where every recording has the same emotion: that one."""
    heard = jnp.zeros((1, 9, cfg.conditioner.semantic))
    own = conditioner.emotion_vector(params["conditioner"], cfg.conditioner, heard, jnp.array([9]))
    return jnp.broadcast_to(own, params["prototypes"]["vector"].shape)


def measured(params: Params, cfg: Config, recordings: list[np.ndarray]) -> tuple[Array, Array, Array]:
    """Of recordings at 22.05 kHz: the mean of the log-mel [M], mean and variance of the semantic features [E]."""
    mels, heard = [], []
    for first in range(0, len(recordings), _BATCH):
        part = recordings[first : first + _BATCH]
        mel, frames = features.mel(*voice.padded(part, cfg.mel.rate), cfg.mel)
        narrow = [audio.resample_sinc(one, features.MEL_RATE, features.SPEECH_RATE) for one in part]
        semantic, lengths = voice.hear(params, cfg, narrow)
        mels += [mel[i, : int(frames[i])] for i in range(len(part))]
        heard += [semantic[i, : int(lengths[i])] for i in range(len(part))]
    mel, semantic = jnp.concatenate(mels), jnp.concatenate(heard)
    return mel.mean(0), semantic.mean(0), semantic.var(0)


def make(corpus: Path, out: Path, seed: int, sizes: Config = SIZES, count: int = PIECES) -> Config:
    """Write the model into `out`, which must not exist: -> its configuration. Raises NotFound, Error and FileError."""
    path = corpus / "manifest.jsonl"
    if not path.is_file():
        raise NotFound(f"{path}: no such file; corpus.py makes it")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    bpe = pieces(normalized(rows), count)
    found = sentencepiece.SentencePieceProcessor(model_proto=bpe).vocab_size()
    cfg = replace(sizes, gpt=replace(sizes.gpt, text_vocabulary=found + 1))
    params = random(cfg, seed)
    params["w2vbert"], params["gpt"] = near_identity(params["w2vbert"]), text_first(params["gpt"])
    recordings = [audio.resample(*audio.read(corpus / row["audio"]), features.MEL_RATE) for row in rows[:_HEARD]]
    mel, mean, variance = measured(params, cfg, recordings)
    params["w2vbert"]["statistics"] = {"mean": mean, "variance": variance}
    params["bigvgan"], params["s2mel"] = quiet(params["bigvgan"], mel), plain(params["s2mel"], mel)
    if len({row.get("speaker") for row in rows}) == 1:
        params["campplus"], params["conditioner"] = alike(params["campplus"], params["conditioner"])
        params["prototypes"]["vector"] = one_mood(params, cfg)
    if (size := weight(params)) > MOST_BYTES:
        raise Error(f"the model has {size / 1e6:.1f} MB in 16 bits, more than {MOST_BYTES / 1e6:.0f}")
    with files.whole(out) as partial:
        (partial / "bpe.model").write_bytes(bpe)
        for component in models.COMPONENTS:
            checkpoint.save(partial, component, getattr(cfg, component), jax.device_get(params[component]))
        rest.save(partial, {component: {} for component in rest.COMPONENTS})
        checkpoint.save_description(partial, cfg, SOURCE)
    return cfg


def weight(params: Any) -> int:
    """Bytes of parameters in 16 bits."""
    return 2 * sum(leaf.size for leaf in jax.tree.leaves(params))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder that corpus.py made")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the model; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    return command.run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    cfg = make(options.corpus, options.out, options.seed)
    for component in models.COMPONENTS:
        print(f"{component:12} {weight(models.shapes(component, getattr(cfg, component))) / 1e6:5.2f} MB in 16 bits")


if __name__ == "__main__":
    sys.exit(main())
