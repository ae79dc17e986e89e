"""Make tests/fixtures/golden/qwen3.npz: python -m debug.qwen3_golden. Needs torch and transformers 4.52.

The tiny folder's model as Hugging Face computes it in float32, two prompts of different lengths, each alone. Its
weights are those of a fresh model, whose answer repeats the last id of the prompt whatever stands before it: they are
sharpened, so that every part of the network decides what is drawn.
"""

from typing import Any

import numpy as np

from debug.golden import FIXTURES

FOLDER = FIXTURES / "tiny" / "qwen0.6bemo4-merge"
LENGTHS, DRAWN = (16, 11), 24
# Powers of two: a weight of bfloat16 stays one.
FACTORS = {
    "q_norm": 2, "k_norm": 2, "v_proj": 8, "o_proj": 8, "gate_proj": 8, "up_proj": 8, "down_proj": 8, "model.norm": 4,
}  # fmt: skip


def factor(name: str) -> int:
    """By how much the tensor of that name is multiplied."""
    return next((value for part, value in FACTORS.items() if part in name), 1)


def arrays() -> dict[str, np.ndarray]:
    """The golden tensors by name; rows are padded with zeros."""
    import torch
    from transformers import Qwen3ForCausalLM
    from transformers.models.qwen3 import modeling_qwen3

    model: Any = Qwen3ForCausalLM.from_pretrained(FOLDER, torch_dtype=torch.float32, attn_implementation="eager")
    for name, parameter in model.eval().named_parameters():
        parameter.data *= factor(name)

    seen: dict[str, torch.Tensor] = {}
    layers = model.model.layers
    model.model.embed_tokens.register_forward_hook(lambda *call: seen.update(embeddings=call[2]))
    for i, name in ((0, "layer_0"), (len(layers) - 1, "last_layer")):
        layers[i].register_forward_hook(lambda *call, name=name: seen.update({name: call[2][0]}))
    rotate = modeling_qwen3.apply_rotary_pos_emb

    def recorded(*arguments: Any, **more: Any) -> Any:
        q, k = rotate(*arguments, **more)
        if "q" not in seen:  # of layer 0
            seen.update(q=q.transpose(1, 2), k=k.transpose(1, 2))
        return q, k

    modeling_qwen3.apply_rotary_pos_emb = recorded
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (len(LENGTHS), max(LENGTHS)), np.int32)
    rows = []
    for row, length in zip(ids, LENGTHS, strict=True):
        prompt = torch.from_numpy(row[None, :length]).long()
        seen.clear()
        with torch.no_grad():
            seen["logits"] = model(prompt).logits
            found = {name: tensor[0].numpy().copy() for name, tensor in seen.items()}
            answer = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=DRAWN, do_sample=False,
                eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        found |= {"answer": answer.sequences[0, length:].numpy(), "answer_logits": torch.cat(answer.logits).numpy()}
        rows.append(found | {"ids": row[:length]})

    def padded(parts: list[np.ndarray]) -> np.ndarray:
        longest = max(map(len, parts))
        return np.stack([np.pad(part, [(0, longest - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in parts])

    batch = {name: padded([row[name] for row in rows]) for name in rows[0]}
    return batch | {"lengths": np.array(LENGTHS), "ids": batch["ids"].astype(np.int32)}


if __name__ == "__main__":
    np.savez_compressed(FIXTURES / "golden" / "qwen3.npz", **arrays())  # type: ignore[arg-type]
