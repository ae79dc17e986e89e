"""Make a tiny IndexTTS-2.5 with random weights, from the reference's own modules: what tests compare with.

    python debug/tiny_25.py --reference INDEX_TTS_CHECKOUT --like tests/fixtures/tiny --output tests/fixtures/tiny25

It runs in the environment of the reference, as dump_python.py does, and writes what 2.5 has of its own: config.yaml,
gpt.pth, s2mel.pth, codec.pth, feat2.pt and a vocabulary. The rest of a model folder, which fits it, is that of --like.
Every tensor is drawn by its name alone, in a scale that keeps what passes through it of one size.
"""

import argparse
import base64
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

DUMP = Path(__file__).parent
sys.path.insert(0, str(DUMP))
import dump_25  # noqa: E402
import dump_python  # noqa: E402

TEXTS, CODES, WIDTH, SEMANTIC, CONTENT = 2000, 128, 48, 64, 32
GPT = {
    "model_dim": WIDTH, "max_mel_tokens": 400, "max_text_tokens": 200, "heads": 4, "use_mel_codes_as_input": True,
    "mel_length_compression": 1024, "layers": 2, "number_text_tokens": TEXTS, "number_mel_codes": CODES + 2,
    "start_mel_token": CODES, "stop_mel_token": CODES + 1, "start_text_token": 0, "stop_text_token": 1,
    "train_solo_embeddings": False, "condition_type": "conformer_perceiver",
    "condition_module": {
        "output_size": 16, "linear_units": 40, "attention_heads": 2, "num_blocks": 1, "input_layer": "conv2d2",
        "perceiver_mult": 2,
    },
    "emo_condition_module": {
        "output_size": 16, "linear_units": 40, "attention_heads": 2, "num_blocks": 1, "input_layer": "conv2d2",
        "perceiver_mult": 2,
    },
}  # fmt: skip
CODEC = {
    "codebook_size": CODES, "hidden_size": SEMANTIC, "codebook_dim": 8, "vocos_dim": 24, "vocos_intermediate_dim": 40,
    "vocos_num_layers": 2,
}  # fmt: skip
SMALLER = {  # of --like's s2mel
    "length_regulator": {"channels": CONTENT, "in_channels": SEMANTIC},
    "DiT": {"hidden_dim": 32, "num_heads": 2, "depth": 3, "content_dim": CONTENT},
    "wavenet": {"hidden_dim": 32, "num_layers": 2},
}


def vocabulary() -> bytes:
    """Lines of a tiktoken file: all bytes, then pairs of earlier tokens, until there are TEXTS with the specials."""
    pairs = (
        "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri "
        "ro ic ne ea ra ce li ch ll be ma si om ur la el us ta no di lo sa ca wa so ho the ing and tion"
    )
    tokens = [bytes([i]) for i in range(256)] + [pair.encode() for pair in pairs.split()]
    tokens += [b" t", b" a", b" w", b" s", b" the", b" and"]
    tokens = tokens[: TEXTS - 1673]  # beside the reference's specials, utils/tokenizer.py
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def drawn(name: str, tensor: Any) -> Any:
    """A parameter in place of what its module began with; constants stay."""
    import torch

    if not tensor.is_floating_point() or name.endswith((".pe", "freqs", "mask_token")):
        return tensor
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    last = name.rpartition(".")[2]
    if last in ("weight_g", "gamma") or (tensor.ndim == 1 and last == "weight"):
        values = rng.uniform(0.7, 1.3, tensor.shape)
    elif tensor.ndim == 1:
        values = 0.1 * rng.standard_normal(tensor.shape)
    else:
        inputs = tensor.shape[0] if ".c_" in name else np.prod(tensor.shape[1:])  # GPT-2's layers are [in, out]
        scale = 0.5 if "embedding" in name or last == "latents" else float(inputs) ** -0.5
        values = (3.0 if name == "mel_head.weight" else 1.0) * scale * rng.standard_normal(tensor.shape)
    if name == "mel_head.bias":
        values[CODES:] = -20.0  # neither start nor stop is drawn
    return torch.from_numpy(values.astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser("tiny_25.py", description="Make a tiny IndexTTS-2.5 with random weights.")
    for option in ("--reference", "--like", "--output"):
        parser.add_argument(option, type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    import torch
    import yaml

    infer = dump_25.imported(options.reference)
    config = yaml.safe_load((options.like / "config.yaml").read_text("utf-8"))
    del config["dataset"]
    config |= {"gpt": GPT, "semantic_codec": CODEC, "version": 2.5, "vocoder": {"name": "bigvgan_generator.pt"}}
    for part, sizes in SMALLER.items():
        config["s2mel"][part] |= sizes
    dump_python.fit_semantic(torch, infer, SEMANTIC, WIDTH)
    whole = infer.OmegaConf.create(config)
    modules = {
        "gpt": infer.UnifiedVoice(**whole.gpt, spk_cond_mode="campplus"), "s2mel": infer.MyModel(whole.s2mel),
        "codec": infer.EnhancedCodec(**whole.semantic_codec, cfg=whole.semantic_codec),
    }  # fmt: skip
    states = {
        name: {key: drawn(key, value) for key, value in module.state_dict().items()} for name, module in modules.items()
    }
    net: dict[str, dict[str, Any]] = {}
    for name, value in states["s2mel"].items():
        _, part, rest = name.split(".", 2)
        net.setdefault(part, {})[rest] = value
    emotions = np.random.RandomState(25).standard_normal((sum(config["emo_num"]), WIDTH)).astype(np.float32)
    files = {
        "gpt.pth": {"model": states["gpt"]}, "s2mel.pth": {"net": net}, "codec.pth": {"model": states["codec"]},
        "feat2.pt": torch.from_numpy(emotions),
    }  # fmt: skip
    options.output.mkdir(exist_ok=True)
    for name, content in files.items():
        torch.save(content, options.output / name)
    (options.output / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    (options.output / "multilingual_zh_ja_yue_char_del.tiktoken").write_bytes(vocabulary())


if __name__ == "__main__":
    main()
