"""As dump_python.py, of IndexTTS-2.5: save what the PyTorch reference computes, stage by stage.

    python debug/dump_25.py --reference INDEX_TTS_CHECKOUT --model-dir MODEL_DIR --ids 345,17,902 --language en \\
        --speaker voice.wav --output golden.npz

The text front end does not run: what it would give is given as ids, segments separated by semicolons. So neither its
packages nor its vocabulary are needed; modules that the reference imports for them alone are left empty where missing.
Keys are those of dump_python.py. Of its own 2.5 has `seg{n}.language`, `seg{n}.gpt.spk_emb_proj.*` and
`seg{n}.codec.*`: what the codec's decoder makes of codes.
"""

import argparse
import contextlib
import importlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import dump_python
from dump_python import Recorder, wrap

FRONT = ("whisper", "tiktoken", "modelscope", "audiotools", "argbind", "sentencepiece", "matplotlib", "randomname")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one golden file; -> the exit status: 0, or 2 for what is refused."""
    options = _parse(arguments)
    try:
        if options.output.exists():
            raise dump_python.Refusal(f"{options.output} exists; remove it or choose another --output")
        arrays = dump(options)
        with dump_python._appears(options.output, folder=False) as path:
            dump_python._save(path, arrays, folder=False)
    except dump_python.Refusal as refusal:
        print(f"dump_25.py: error: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    print(f"{options.output}: {len(arrays)} arrays, {sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dump_25.py", description="Save what IndexTTS-2.5 computes, stage by stage.")
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="DIR", help="checkout of github.com/index-tts/index-tts")
    add("--model-dir", type=Path, required=True, metavar="DIR", help="folder with config.yaml, gpt.pth, codec.pth, ...")
    add("--ids", type=_ids, required=True, help="text ids, separated by commas; segments by semicolons")
    add("--language", default="en", help="of the text, a code (%(default)s)")
    add("--speaker", type=Path, required=True, metavar="FILE", help="recording of the voice")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write (.npz); must not exist")
    add("--layers", type=dump_python._layers, metavar="L", help="0,12,23 of each network, all, none")
    felt = parser.add_mutually_exclusive_group()
    felt.add_argument("--emotion-audio", type=Path, metavar="FILE", help="recording of the emotion")
    felt.add_argument("--emotion-vector", type=dump_python._vector, metavar="W", help="eight weights")
    add("--emotion-alpha", type=float, default=1.0, metavar="A", help="how much of the emotion (%(default)s)")
    add("--beams", type=dump_python._positive, default=1, help="continuations kept while codes are drawn (%(default)s)")
    add("--sample", action="store_true", help="draw the codes instead of taking the best at each step")
    add("--seed", type=int, default=0, help="of drawing the codes (%(default)s)")
    add("--max-codes", type=dump_python._positive, default=24, help="per segment, 25 a second (%(default)s)")
    add("--duration", type=float, default=1.0, help="factor of the target's length (%(default)s)")
    add("--noise-seed", type=int, default=0, help="of the noise: segment n has it + n (%(default)s)")
    return parser.parse_args(arguments)


def _ids(value: str) -> list[list[int]]:
    return [[int(part) for part in segment.split(",")] for segment in value.split(";")]


class _Empty(MetaPathFinder, Loader):
    """Modules of FRONT that are not installed: their classes are empty, and everything else can be called."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in FRONT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _EmptyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else MagicMock()


def imported(reference: Path) -> Any:
    """The reference's infer_v2_5, with empty modules for what is missing and has no part in the networks."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(reference.resolve()))
    importlib.import_module("transformers")  # which looks for some of these itself
    sys.meta_path.append(_Empty())
    for name in ("dac", "dac.model"):  # whose other files need audiotools, for training
        package = ModuleType(f"indextts.s2mel.{name}")
        package.__path__ = [str(reference / "indextts" / "s2mel" / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    return importlib.import_module("indextts.infer_v2_5")


def build(options: argparse.Namespace, device: str = "cpu") -> tuple[Any, Any, int]:
    """The reference's system with the weights of `options.model_dir`: -> (it, torch, its semantic width)."""
    paths = {
        "gpt": "gpt.pth",
        "s2mel": "s2mel.pth",
        "codec": "codec.pth",
        "campplus": dump_python.AUXILIARY["campplus"],
    }
    for path in ("config.yaml", *paths.values()):
        if not (options.model_dir / path).is_file():
            raise dump_python.Refusal(f"{options.model_dir / path} is missing")
    import torch

    infer = imported(options.reference)
    states = {name: dump_python.tensors(torch, options.model_dir / path) for name, path in paths.items()}
    width = dump_python.fit_sizes(torch, infer, states)
    nothing = SimpleNamespace(
        clean_pattern=re.compile(r"(?!)"), normalize=str, load=lambda: None, load_glossary_from_yaml=lambda path: None
    )
    infer.TextNormalizer = lambda **_: nothing
    infer.JapaneseG2PProcessor = lambda **_: SimpleNamespace(process_ja_text=lambda text: text)
    infer.nemo_text_normalize = lambda text, language: text
    infer.get_tokenizer = lambda **_: SimpleNamespace(encode=lambda text, **_: options.ids[int(text.split()[-1])])
    tts = infer.IndexTTS2(
        cfg_path=str(options.model_dir / "config.yaml"), model_dir=str(options.model_dir), device=device,
        use_cuda_kernel=False,
    )  # fmt: skip
    tts.split_text_by_tokens = lambda *_: [str(i) for i in range(len(options.ids))]
    tts.semantic_codec.eval()
    for name, module in (("gpt", tts.gpt), ("s2mel", tts.s2mel.models), ("codec", tts.semantic_codec)):
        for key, weight in module.named_parameters():  # the reference loads what fits
            if key not in states[name] or states[name][key].shape != weight.shape:
                raise dump_python.Refusal(f"{name}.pth has no {key} of shape {list(weight.shape)}")
    return tts, torch, width


def record_front(recorder: Recorder, tts: Any) -> None:
    """Recordings, w2v-BERT, CAMPPlus. The speaker's is read twice and its features are computed twice."""
    put, now, seen = recorder.put, recorder.now, set()

    def once(key: str, value: Any) -> None:
        key = key.format(**now)
        if key not in seen:
            seen.add(key)
            put(key, value)

    def load(original: Any, *arguments: Any, **more: Any) -> Any:
        now["who"] = "emo" if more.get("sr") else "spk"
        audio, rate = original(*arguments, **more)
        once("audio.spk_22k_librosa" if now["who"] == "spk" else "audio.emo_16k_librosa", audio)
        return audio, rate

    def features(original: Any, audio: Any, **more: Any) -> Any:
        once("audio.{who}_16k", audio)
        out = original(audio, **more)
        for name in ("input_features", "attention_mask"):
            once(f"w2v.{{who}}.{name}", out[name])
        return out

    def semantic(original: Any, *arguments: Any) -> Any:
        out = original(*arguments)
        once("w2v.{who}.normalized", out)
        return out

    wrap(tts, "_load_and_cut_audio", load)
    wrap(tts, "extract_features", features)
    wrap(tts, "get_emb", semantic)
    recorder.call(tts, "mel_fn", "ref_mel", given="audio.spk_22k")
    dump_python.record_style(recorder, tts.campplus_model)


def record_decoder(recorder: Recorder, codec: Any) -> None:
    """What the codec's decoder makes of codes."""
    prefix = "seg{segment}.codec"
    recorder.output(codec.decoder[0].norm, f"{prefix}.decoder.embed")
    recorder.each(codec.decoder[0].convnext, f"{prefix}.decoder.layer")
    recorder.output(codec.decoder, f"{prefix}.decoder.out")
    recorder.call(codec, "decode", f"{prefix}.decode")


def record_language(recorder: Recorder, gpt: Any) -> None:
    """The language of each segment."""

    def prepare(original: Any, latents: Any, text: Any, languages: Any) -> Any:
        recorder.put("seg{segment}.language", languages)
        return original(latents, text, languages)

    wrap(gpt, "prepare_gpt_inputs", prepare)


def dump(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Run the reference once; -> every array by key."""
    tts, torch, width = build(options)
    recorder = Recorder(options.layers)
    record_front(recorder, tts)
    dump_python.record_conditioning(recorder, tts, torch, width)
    dump_python.record_gpt(recorder, tts, torch, sample=options.sample)
    record_language(recorder, tts.gpt)
    dump_python.record_codec(recorder, tts.semantic_codec)
    record_decoder(recorder, tts.semantic_codec)
    dump_python.record_s2mel(recorder, tts, torch, options.noise_seed)
    dump_python.record_bigvgan(recorder, tts.bigvgan)
    torch.manual_seed(options.seed)
    with contextlib.redirect_stdout(sys.stderr):
        generation = tts.infer_generator(
            str(options.speaker), "ids", None, options.language,
            emo_audio_prompt=options.emotion_audio and str(options.emotion_audio),
            emo_alpha=options.emotion_alpha, emo_vector=options.emotion_vector, num_beams=options.beams,
            max_mel_tokens=options.max_codes, duration_factor=options.duration,
        )  # fmt: skip
        rate, wave = next(generation)
    with torch.no_grad():  # speaking has no use for a recording's codes
        tts.semantic_codec.quantize(torch.from_numpy(recorder.arrays["w2v.spk.normalized"]))
    recorder.put("wav_int16", wave)
    recorder.put("wav_sr", rate)
    meta = {
        "ref": options.speaker.name, "emo_audio": options.emotion_audio and options.emotion_audio.name,
        "emo_alpha": options.emotion_alpha, "emo_vector": options.emotion_vector, "language": options.language,
        "beams": options.beams, "max_mel": options.max_codes, "sample": options.sample,
        "seed": options.seed, "repetition_penalty": 10.0, "length_penalty": 0.0, "noise_seed": options.noise_seed,
        "duration": options.duration,
        "segments": recorder.now["segment"] + 1, "audio_seconds": len(wave) / rate, "torch": torch.__version__,
        "model": options.model_dir.resolve().name, "layers": options.layers, "system": "2.5",
        "versions": {name: dump_python._version(name) for name in dump_python.PACKAGES}
        | {"python": platform.python_version()},
    }  # fmt: skip
    recorder.put("meta", meta)
    return recorder.arrays


if __name__ == "__main__":
    sys.exit(main())
