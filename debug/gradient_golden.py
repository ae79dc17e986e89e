"""Save losses and their gradients, as autograd finds them on the PyTorch reference's modules.

    python debug/gradient_golden.py --reference INDEX_TTS_CHECKOUT [--model-dir DIR] [--output FOLDER]

It needs an environment that holds both the reference's requirements (torch, transformers 4.52) and this project. On the
tiny checkpoint it computes the losses of GPT, flow and vocoder (indextts_jax/train/losses.py) with the reference's
modules, each row alone, without padding, and adds the rows up by their lengths. tests/test_train_parity.py compares.

A file holds the batch (`batch.*`), what was drawn (`draw.*`), `loss`, its parts (`part.*`), and gradients by our names
and layouts, which the tables of convert/ give: `names`, `norms`, and `sketches` one after the other
(`debug.golden.sketch`). Weight norms are folded before, so that gradients are those of the folded weights.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from debug import dump_python
from debug.golden import FIXTURES, sketch
from indextts_jax import convert, models
from indextts_jax.audio import load_speaker
from indextts_jax.config import Config, read_yaml
from indextts_jax.convert.table import fill
from indextts_jax.convert.tensors import Tensor
from indextts_jax.models.s2mel import FRAMES_PER_CODE

Arrays = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description="Save losses and gradients of the PyTorch reference.")
    parser.add_argument("--reference", type=Path, required=True, help="checkout of github.com/index-tts/index-tts")
    parser.add_argument(
        "--model-dir", type=Path, default=FIXTURES / "tiny", help="folder with config.yaml, gpt.pth, ..."
    )
    parser.add_argument("--output", type=Path, default=FIXTURES / "golden", help="folder for gradients_*.npz")
    options = parser.parse_args()
    sys.path.insert(0, str(options.reference.resolve()))
    reference = Reference(options.model_dir)
    for name, compute in (("gpt", gpt), ("flow", flow), ("vocoder", vocoder)):
        arrays = compute(reference, np.random.default_rng(16))
        path = options.output / f"gradients_{name}.npz"
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        print(
            f"{path}: loss {arrays['loss']:.6f}, {len(arrays['names'])} gradients, {path.stat().st_size / 1e6:.2f} MB"
        )


class Reference:
    """The reference's modules with the weights of a model folder, in float32, evaluating."""

    def __init__(self, folder: Path) -> None:
        import safetensors.torch
        import torch

        # The modules of the reference, which no type checker finds
        from indextts.codec.maskgct_codec import build_semantic_codec  # type: ignore[import-not-found]
        from indextts.gpt.model_v2 import UnifiedVoice  # type: ignore[import-not-found]
        from indextts.s2mel.modules.audio import mel_spectrogram  # type: ignore[import-not-found]
        from indextts.s2mel.modules.bigvgan import bigvgan  # type: ignore[import-not-found]
        from indextts.s2mel.modules.campplus.DTDNN import CAMPPlus  # type: ignore[import-not-found]
        from indextts.s2mel.modules.commons import MyModel, load_checkpoint2  # type: ignore[import-not-found]
        from omegaconf import OmegaConf

        self.torch, self.folder, self.mel_spectrogram = torch, folder, mel_spectrogram
        self.cfg: Config = convert.read_config(folder)
        self.settings = read_yaml(folder / "config.yaml")
        cfg: Any = OmegaConf.load(folder / "config.yaml")
        names = {name: folder / cfg[f"{name}_checkpoint"] for name in ("gpt", "s2mel")}
        names["campplus"] = folder / dump_python.AUXILIARY["campplus"]
        states = {name: dump_python.tensors(torch, path) for name, path in names.items()}
        classes: Any = SimpleNamespace(UnifiedVoice=UnifiedVoice, MyModel=MyModel, CAMPPlus=CAMPPlus)
        dump_python.fit_sizes(torch, classes, states)
        self.gpt = classes.UnifiedVoice(**cfg.gpt)
        self.gpt.load_state_dict(states["gpt"])
        self.s2mel, *_ = load_checkpoint2(classes.MyModel(cfg.s2mel, use_gpt_latent=True), None, names["s2mel"])
        self.s2mel.models["cfm"].estimator.setup_caches(max_batch_size=1, max_seq_length=8192)
        self.codec = build_semantic_codec(cfg.semantic_codec)
        safetensors.torch.load_model(self.codec, folder / dump_python.AUXILIARY["semantic_codec"])
        self.bigvgan = bigvgan.BigVGAN.from_pretrained(str(folder / dump_python.AUXILIARY["bigvgan"]))
        for whole in (self.gpt, self.s2mel, self.codec, self.bigvgan):
            whole.eval()
            for module in whole.modules():
                if hasattr(module, "weight_g"):
                    torch.nn.utils.remove_weight_norm(module)

    def tensor(self, array: Any) -> Any:
        return self.torch.from_numpy(np.array(array))[None]


def _saved(
    reference: Reference, batch: Arrays, draw: Arrays, loss: Any, parts: dict[str, Any], gradients: dict[str, Any]
) -> Arrays:
    """What becomes a file. gradients: component -> parameter tree."""
    found = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(gradients).items()}
    return {
        **{f"batch.{name}": array for name, array in batch.items()},
        **{f"draw.{name}": array for name, array in draw.items()},
        "loss": loss.detach().numpy(),
        **{f"part.{name}": value.detach().numpy() for name, value in parts.items()},
        "names": np.array(list(found)),
        "norms": np.array([np.linalg.norm(leaf.astype(np.float64)) for leaf in found.values()]),
        "sketches": np.concatenate([sketch(leaf) for leaf in found.values()]).astype(np.float32),
    }


def _gradients(reference: Reference, component: str, module: Any, prefix: str = "") -> Any:
    """The gradients of a module's parameters as a tree of ours; of those that have none, zeros."""
    converter = convert._converter(component)
    wanted = set(converter.tensors(reference.folder, reference.settings))
    found: dict[str, Tensor] = {}

    def keep(name: str, array: np.ndarray) -> None:
        found[name] = Tensor(Path("gradients"), array.shape, array.dtype, lambda: array)

    for name, parameter in module.named_parameters():
        gradient = parameter.grad if parameter.grad is not None else reference.torch.zeros_like(parameter)
        array, name = gradient.numpy(), prefix + name
        if name in wanted:
            keep(name, array)
        elif f"{name}_v" in wanted:  # a folded weight: with its norm as gain, the table leaves it as it is
            norm = np.sqrt(np.square(array, dtype=np.float64).sum(axis=tuple(range(1, array.ndim)), keepdims=True))
            keep(f"{name}_v", array)
            keep(f"{name}_g", norm.astype(np.float32))
    cfg = getattr(reference.cfg, component)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where a gradient is zero
        tree, _ = fill(component, converter.table(cfg), found, models.shapes(component, cfg))
    return tree


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.stack([np.pad(row, ((0, longest - len(row)),) + ((0, 0),) * (row.ndim - 1)) for row in rows])


def _lengths(rows: list[np.ndarray]) -> np.ndarray:
    return np.array([len(row) for row in rows], np.int32)


def gpt(reference: Reference, rng: np.random.Generator) -> Arrays:
    """UnifiedVoice.forward with its heads; codes at the positions of the second pass in row 0, of decoding in row 1."""
    torch, model, cfg = reference.torch, reference.gpt, reference.cfg
    texts = [rng.integers(2, cfg.gpt.text_vocabulary, n).astype(np.int32) for n in (9, 5)]
    codes = [rng.integers(0, cfg.repcodec.codes, n).astype(np.int32) for n in (14, 20)]
    speaker, emotion = (
        [rng.standard_normal((n, cfg.conditioner.semantic)).astype(np.float32) for n in sizes]
        for sizes in ((31, 40), (26, 17))
    )
    whole = model.get_logits
    logits: list[Any] = []

    def both(*arguments: Any, **more: Any) -> Any:
        logits.append(whole(*arguments, **more | {"return_latent": False}))
        return logits[-1]

    positions: Callable[[Any], Any] = model.mel_pos_embedding.forward

    def skipping(x: Any) -> Any:
        table = model.mel_pos_embedding.emb
        return table(torch.tensor([0, *range(2, x.shape[1] + 1)]))

    model.get_logits = both
    sums = []
    for i in range(2):
        model.mel_pos_embedding.forward = skipping if i else positions
        text, code = (reference.tensor(rows[i]).long() for rows in (texts, codes))
        model(
            reference.tensor(speaker[i]), text, torch.tensor([len(texts[i])]), code, torch.tensor([len(codes[i])]),
            reference.tensor(emotion[i]), torch.tensor([len(speaker[i])]), torch.tensor([len(emotion[i])]),
            use_speed=torch.zeros(1, dtype=torch.long), do_spk_cond=True,
        )  # fmt: skip
        # All predict but the last, at the stop: what follows it counts nowhere.
        row = [
            torch.nn.functional.cross_entropy(
                scores[:, :, :-1], torch.nn.functional.pad(ids, (0, 1), value=stop), reduction="sum"
            )
            for scores, ids, stop in zip(logits[-1], (text, code), (cfg.gpt.stop_text, cfg.gpt.stop_code), strict=True)
        ]
        sums.append(row)
    text_loss, code_loss = (
        (sums[0][i] + sums[1][i]) / sum(len(row) + 1 for row in rows) for i, rows in enumerate((texts, codes))
    )
    loss = 0.8 * code_loss + 0.2 * text_loss
    loss.backward()
    head = model.text_head
    gradients = {
        "conditioner": _gradients(reference, "conditioner", model),
        "gpt": _gradients(reference, "gpt", model),
        "text_head": {"kernel": head.weight.grad.numpy().T, "bias": head.bias.grad.numpy()},
    }
    batch = {}
    for name, rows in (("texts", texts), ("codes", codes), ("speaker", speaker), ("emotion", emotion)):
        batch |= {name: _padded(rows), f"{name.removesuffix('s')}_lengths": _lengths(rows)}
    parts = {"code_loss": code_loss, "text_loss": text_loss}
    return _saved(reference, batch, {"skipped": np.array([0, 1])}, loss, parts, gradients)


def flow(reference: Reference, rng: np.random.Generator) -> Arrays:
    """The flow's own loss where nothing is dropped; its estimator, without conditions, where they are."""
    torch, cfg, nets = reference.torch, reference.cfg, reference.s2mel.models
    cfm, sigma = nets["cfm"], 1e-6
    codes = [rng.integers(0, cfg.repcodec.codes, n).astype(np.int32) for n in (18, 13, 9)]
    prompts, dropped = np.array([7, 0, 3], np.int32), np.array([False, False, True])
    # A frame more or less than 1.72 per code, as recordings have them
    mels = [
        rng.standard_normal((int(FRAMES_PER_CODE * len(row)) + i % 2, cfg.s2mel.mels)).astype(np.float32)
        for i, row in enumerate(codes)
    ]
    latents = [rng.standard_normal((len(row), cfg.s2mel.latent)).astype(np.float32) for row in codes]
    noise = [rng.standard_normal(mel.shape).astype(np.float32) for mel in mels]
    style = rng.standard_normal((len(codes), cfg.s2mel.style)).astype(np.float32)
    t = rng.uniform(size=len(codes)).astype(np.float32)
    total, frames = torch.zeros(()), 0
    for i, row in enumerate(codes):
        heard = int(FRAMES_PER_CODE * prompts[i])
        embeddings = reference.codec.quantizer.vq2emb(reference.tensor(row[None]).long()).transpose(1, 2)
        spoken = embeddings[:, prompts[i] :] + nets["gpt_layer"](reference.tensor(latents[i][prompts[i] :]))
        parts = [(spoken, len(mels[i]) - heard)]
        if heard:
            parts.insert(0, (embeddings[:, : prompts[i]], heard))
        content = torch.cat([nets["length_regulator"](x, ylens=torch.tensor([n]))[0] for x, n in parts], dim=1)
        mel, z = (reference.tensor(x[i].T) for x in (mels, noise))
        lengths, own = torch.tensor([len(mels[i])]), reference.tensor(style[i])
        if dropped[i]:
            time = torch.tensor([t[i]])
            y = ((1 - (1 - sigma) * time) * z + time * mel) * (torch.arange(len(mels[i])) >= heard)
            none = (torch.zeros_like(a) for a in (mel, own, content))
            prompt, own, content = none
            found = cfm.estimator(y, prompt, lengths, time, own, content)
            loss = (found - (mel - (1 - sigma) * z))[..., heard:].abs().mean()
        else:
            drawing: Any = torch
            drawn = drawing.rand, drawing.randn_like
            # It gives the prompts' lengths where the estimator takes a switch, which it ignores in training alone
            cfm.estimator.training, cfm.estimator.class_dropout_prob = True, -1.0
            drawing.rand = lambda *shape, i=i, **more: torch.full(shape[0] if shape[0] != 1 else (1,), float(t[i]))
            drawing.randn_like = lambda x, z=z: z.clone()
            loss, _ = cfm(mel, lengths, torch.tensor([heard]), content, own)
            drawing.rand, drawing.randn_like = drawn
            cfm.estimator.training = False
        total, frames = total + loss * (len(mels[i]) - heard), frames + len(mels[i]) - heard
    loss = total / frames
    loss.backward()
    gradients = {
        "s2mel": _gradients(reference, "s2mel", nets),
        "repcodec": {"quantizer": _gradients(reference, "repcodec", reference.codec)["quantizer"]},
    }
    batch = {
        "codes": _padded(codes), "code_lengths": _lengths(codes), "latents": _padded(latents), "mel": _padded(mels),
        "lengths": _lengths(mels), "style": style,
    }  # fmt: skip
    draw = {"t": t, "noise": _padded(noise), "prompt_codes": prompts, "dropped": dropped}
    return _saved(reference, batch, draw, loss, {}, gradients)


def vocoder(reference: Reference, rng: np.random.Generator) -> Arrays:
    """BigVGAN on the log-mel of a recording, against it; the spectra by torch.stft."""
    torch, cfg = reference.torch, reference.cfg
    recording = load_speaker(FIXTURES / "audio" / "voice_24k.wav").samples_22k
    hop, sizes = cfg.bigvgan.hop, {"n_fft": cfg.mel.n_fft, "num_mels": cfg.mel.mels, "sampling_rate": cfg.mel.rate}
    sizes |= {"hop_size": cfg.mel.hop, "win_size": cfg.mel.window, "fmin": cfg.mel.fmin, "fmax": cfg.mel.fmax}
    samples = [recording[start : start + n * hop] for start, n in ((20000, 12), (50000, 7))]
    samples = [(row + 1e-3 * rng.standard_normal(len(row))).astype(np.float32) for row in samples]
    mels, totals = [], torch.zeros(2)
    for row in samples:
        other = reference.tensor(row)
        target = reference.mel_spectrogram(other, **sizes)
        mels.append(target[0].T.numpy())
        made = reference.bigvgan(target)[:, 0]
        mel_loss = (reference.mel_spectrogram(made, **sizes) - target).abs().mean()
        stft_loss = torch.zeros(())
        for points, step, window in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
            ours, theirs = (
                torch.stft(x, points, step, window, torch.hann_window(window), pad_mode="constant", return_complex=True)
                for x in (made, other)
            )
            ours, theirs = ((x.real**2 + x.imag**2).clamp(min=1e-6).sqrt() for x in (ours, theirs))
            stft_loss = stft_loss + (theirs - ours).norm() / theirs.norm() + (theirs.log() - ours.log()).abs().mean()
        totals = totals + torch.stack([mel_loss, stft_loss / 3]) * len(row)
    mel_loss, stft_loss = totals / sum(map(len, samples))
    parts = {"mel_loss": mel_loss, "stft_loss": stft_loss}
    loss = parts["mel_loss"] + parts["stft_loss"]
    loss.backward()
    batch = {"mel": _padded(mels), "samples": _padded(samples), "lengths": _lengths(mels)}
    return _saved(reference, batch, {}, loss, parts, {"bigvgan": _gradients(reference, "bigvgan", reference.bigvgan)})


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
