"""Save what the PyTorch reference computes, stage by stage: the golden arrays that this project is compared with.

    python debug/dump_python.py --reference INDEX_TTS_CHECKOUT --model-dir MODEL_DIR \\
        --text "Hello world" --speaker voice.wav --output golden.npz

It runs in the environment of the reference, which is installed by whoever wants it (github.com/index-tts/index-tts),
and stands alone: only the standard library, NumPy and what the reference itself imports. It builds the reference's
`IndexTTS2`, hooks into it and runs its inference; nothing is computed here but what the pictures of attention need.

Keys are `text.*`, `audio.*`, `w2v.{spk,emo}.*`, `codec.*`, `ref_mel`, `campplus.*`, `prompt_condition*`, `qwen.*`, per
text segment n `seg{n}.*`, then `wav_int16`, `wav_sr` and `meta` (JSON: the inputs and the versions). Layouts are
PyTorch's, the arrays are what the modules return. `dit0` is the estimator of the flow at its first step. Layers count
from 0; what layer i of w2v-BERT returns is `hidden{i + 1}`, and `hidden17` is what becomes the feature.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import string
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

# The files of the reference that the hooks below depend on, and the sha256 over them of the versions known to fit.
FILES = (
    "infer_v2.py", "codec/maskgct_codec.py", "gpt/conformer/embedding.py", "gpt/conformer/subsampling.py",
    "gpt/conformer_encoder.py", "gpt/model_v2.py", "gpt/perceiver.py", "gpt/transformers_beam_search.py",
    "gpt/transformers_generation_utils.py", "s2mel/modules/audio.py", "s2mel/modules/bigvgan/bigvgan.py",
    "s2mel/modules/campplus/DTDNN.py", "s2mel/modules/campplus/layers.py", "s2mel/modules/commons.py",
    "s2mel/modules/diffusion_transformer.py", "s2mel/modules/encodec.py", "s2mel/modules/flow_matching.py",
    "s2mel/modules/gpt_fast/model.py", "s2mel/modules/length_regulator.py", "s2mel/modules/wavenet.py",
    "utils/checkpoint.py", "utils/front.py",
    "utils/maskgct/models/codec/amphion_codec/quantize/factorized_vector_quantize.py",
    "utils/maskgct/models/codec/amphion_codec/quantize/residual_vq.py",
    "utils/maskgct/models/codec/kmeans/repcodec_model.py", "utils/maskgct/models/codec/kmeans/vocos.py",
)  # fmt: skip
KNOWN = {"348d61b1006dc25ccee6aaa0dbc628b18198a35c154189b35256a544a7b0138b": "commit ee40fa7"}
TRANSFORMERS = "4.52."  # the reference calls, and the hooks see, its GPT-2 and its Qwen3
PACKAGES = ("torch", "torchaudio", "transformers", "numpy", "librosa", "wetext", "WeTextProcessing")
SEMANTIC = 1024  # the width of w2v-BERT's features that the reference's code is written for

AUXILIARY = {
    "w2v_bert": "hf_cache/w2v-bert-2.0",
    "semantic_codec": "hf_cache/semantic_codec_model.safetensors",
    "campplus": "hf_cache/campplus_cn_common.bin",
    "bigvgan": "hf_cache/bigvgan",
}
CONFIGURED = ("gpt_checkpoint", "s2mel_checkpoint", "w2v_stat", "emo_matrix", "spk_matrix")  # names in config.yaml


class Refusal(Exception):
    """What a person can put right; its text is the one line that they read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one golden file; -> the exit status: 0, 2 for what is refused, 130 when interrupted."""
    try:
        options = _parse(arguments)
        config = _check(options)
        with _appears(options.output, folder=options.npy) as path:
            try:
                arrays = dump(options, config)
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
                if os.environ.get("INDEXTTS_TRACEBACK"):
                    raise
                reason = f"{type(error).__name__}: {error}"[:300]
                raise Refusal(f"the reference failed ({reason}); INDEXTTS_TRACEBACK=1 shows where") from error
            try:
                _save(path, arrays, folder=options.npy)
            except OSError as error:
                raise Refusal(f"{options.output} cannot be written: {error.strerror or error}") from None
    except Refusal as refusal:
        print(f"dump_python.py: error: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dump_python.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"dump_python.py: error: {error}; install what the reference needs for {sys.executable}", file=sys.stderr)
        return 2
    print(f"{options.output}: {len(arrays)} arrays, {sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(message)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser("dump_python.py", description="Save what the PyTorch reference computes, stage by stage.")
    add = parser.add_argument
    add("--reference", type=Path, required=True, metavar="DIR", help="checkout of github.com/index-tts/index-tts")
    add("--model-dir", type=Path, required=True, metavar="DIR", help="folder with config.yaml, gpt.pth, hf_cache/, ...")
    add("--text", required=True, help="what to say")
    add("--speaker", type=Path, required=True, metavar="FILE", help="recording of the voice")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write (.npz); must not exist")
    add("--npy", action="store_true", help="write a folder of .npy files, one per array, instead")
    add("--layers", type=_layers, metavar="L", help="0,12,23 of each network, all, none (first, middle and last)")
    felt = parser.add_mutually_exclusive_group()
    felt.add_argument("--emotion-audio", type=Path, metavar="FILE", help="recording of the emotion")
    felt.add_argument("--emotion-vector", type=_vector, metavar="W", help="eight weights, separated by commas")
    felt.add_argument("--emotion-text", metavar="TEXT", help="a text that says the emotion; Qwen reads it")
    add("--emotion-text-tokens", type=_positive, metavar="N", help="at most so many tokens of Qwen's answer")
    add("--emotion-alpha", type=float, default=1.0, metavar="A", help="how much of the emotion (%(default)s)")
    add("--beams", type=_positive, default=3, help="continuations kept while codes are drawn (%(default)s)")
    add("--no-sample", action="store_true", help="take the best codes at each step instead of sampling")
    add("--greedy", action="store_true", help="short for --beams 1 --no-sample")
    add("--temperature", type=float, default=0.8, help="of sampling (%(default)s)")
    add("--top-k", type=int, default=30, help="sample among the k best codes (%(default)s)")
    add("--top-p", type=float, default=0.8, help="sample among the best of this mass (%(default)s)")
    add("--repetition-penalty", type=float, default=10.0, help="of codes already drawn (%(default)s)")
    add("--length-penalty", type=float, default=0.0, help="of beams (%(default)s)")
    add("--max-codes", type=_positive, default=1500, help="per segment, 50 a second (%(default)s)")
    add("--segment", type=_positive, default=120, help="text pieces per segment (%(default)s)")
    add("--seed", type=int, default=0, help="of sampling, set before inference (%(default)s)")
    add("--noise-seed", type=int, metavar="SEED", help="of the noise: segment n has SEED + n (that of --seed)")
    add("--device", default="cpu", help="that PyTorch computes on, in float32 (%(default)s)")
    add("--force", action="store_true", help="try an unknown version of the reference or of transformers")
    options = parser.parse_args(arguments)
    if options.greedy:
        options.beams, options.no_sample = 1, True
    if options.noise_seed is None:
        options.noise_seed = options.seed
    if not 0 <= options.noise_seed < 2**31:
        raise Refusal(f"--noise-seed {options.noise_seed} is not a number from 0 to 2147483647")
    return options


def _positive(value: str) -> int:
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return int(value)


def _layers(value: str) -> str | tuple[int, ...]:
    if value in ("all", "none"):
        return value if value == "all" else ()
    if not all(part.strip().isdecimal() for part in value.split(",")):
        raise argparse.ArgumentTypeError(f"{value!r} is neither all, none nor numbers from 0, separated by commas")
    return tuple(sorted({int(part) for part in value.split(",")}))


def _vector(value: str) -> list[float]:
    weights = [float(part) for part in value.split(",")]
    if len(weights) != 8 or not all(np.isfinite(weight) and weight >= 0 for weight in weights):
        raise argparse.ArgumentTypeError(f"{value!r} is not eight weights of 0 or more")
    return weights


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """Refuse what could not end well, before the minutes of computing; -> the model's config.yaml."""
    if options.output and (options.output.exists() or options.output.is_symlink()):
        raise Refusal(f"{options.output} exists; remove it or choose another --output")
    if not options.text.strip():
        raise Refusal("--text is empty")
    for recording in filter(None, (options.speaker, options.emotion_audio)):
        if not recording.is_file():
            raise Refusal(f"{recording} is not a file")
    config = _check_model(options.model_dir, options.max_codes, qwen=options.emotion_text is not None)

    found = digest(options.reference)
    if found not in KNOWN and not options.force:
        known = ", ".join(f"{sha[:12]} ({name})" for sha, name in KNOWN.items())
        found = f"unknown version {found[:12]} of the reference"
        raise Refusal(f"{options.reference}: {found}; known: {known}; --force tries it anyway")
    for module in ("torch", "torchaudio", "transformers", "librosa", "soundfile"):
        if importlib.util.find_spec(module) is None:
            raise Refusal(f"no Python module {module} for {sys.executable}; install what the reference needs")
    version = importlib.metadata.version("transformers")
    if not version.startswith(TRANSFORMERS) and not options.force:
        raise Refusal(f"transformers {version} is unknown; known: {TRANSFORMERS}x; --force tries it anyway")
    import soundfile

    for recording in filter(None, (options.speaker, options.emotion_audio)):
        try:
            soundfile.info(str(recording))
        except soundfile.LibsndfileError as error:
            raise Refusal(f"{recording} is not a recording that can be read: {error}") from None
    return config


def _check_model(folder: Path, codes: int, qwen: bool) -> dict[str, Any]:
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        raise Refusal(f"{path} is missing; --model-dir is a folder in the official layout")
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
        version, most = str(config.get("version")), int(config["gpt"]["max_mel_tokens"])
        names = [config[key] for key in CONFIGURED] + [config["dataset"]["bpe_model"], *AUXILIARY.values()]
        names += [config["qwen_emo_path"]] if qwen else []
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{path} is not a configuration of IndexTTS-2: {type(error).__name__}: {error}") from None
    if version not in ("2", "2.0"):
        raise Refusal(f"{path}: version {version} is not supported, only 2.0")
    if codes > most:
        raise Refusal(f"--max-codes {codes}: this model has positions for {most}")
    for name in names:
        if not (folder / name).exists():
            raise Refusal(f"{folder / name} is missing")
    return config


def digest(reference: Path) -> str:
    """The sha256 over the files of a checkout that the hooks depend on, whatever their line endings."""
    total = hashlib.sha256()
    for name in FILES:
        path = reference / "indextts" / name
        if not path.is_file():
            raise Refusal(f"{path} is missing; --reference is a checkout of github.com/index-tts/index-tts")
        total.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return total.hexdigest()


@contextlib.contextmanager
def _appears(target: Path, folder: bool) -> Iterator[Path]:
    """A temporary path beside `target`, which becomes it when the block ends well and vanishes otherwise."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir() if folder else temporary.touch(exist_ok=False)
    except OSError as error:
        raise Refusal(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if folder else temporary.unlink(missing_ok=True)


def _save(path: Path, arrays: dict[str, np.ndarray], folder: bool) -> None:
    if folder:
        for key, array in arrays.items():
            np.save(path / f"{key}.npy", array)
    else:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


class Recorder:
    """Collects arrays by key. The braces of a key are filled from `now`, which says what the reference is doing.

    While one of them is None or missing nothing is recorded: a hook on a module that runs at every step speaks only at
    the step that is asked for.
    """

    def __init__(self, layers: str | tuple[int, ...] | None) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.now: dict[str, Any] = {}
        self.layers = layers

    def put(self, key: str, value: Any) -> None:
        """Record a tensor, an array, a number or a text; what NumPy cannot hold becomes JSON."""
        names = [name for _, name, _, _ in string.Formatter().parse(key) if name]
        if any(self.now.get(name) is None for name in names):
            return
        key = key.format(**self.now)
        if key in self.arrays:
            raise RuntimeError(f"{key} was computed twice: the reference does not work as these hooks expect")
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, list) for part in value)):
            value = json.dumps(value, ensure_ascii=False)
        self.arrays[key] = np.array(value)  # a copy: the reference goes on to change some of its tensors in place

    def input(self, module: Any, *keys: str) -> None:
        """Record the first arguments of a module."""

        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            for key, value in zip(keys, inputs, strict=False):
                self.put(key, value)

        module.register_forward_pre_hook(hook)

    def output(self, module: Any, key: str) -> None:
        """Record what a module returns, of a tuple its first part."""
        module.register_forward_hook(lambda _m, _in, out: self.put(key, out[0] if isinstance(out, tuple) else out))

    def both(self, module: Any, key: str) -> None:
        """Record a module's first argument and what it returns."""
        self.input(module, f"{key}.in")
        self.output(module, f"{key}.out")

    def call(self, owner: Any, name: str, *keys: str, given: str = "") -> None:
        """Record what the method `owner.name` returns, a tuple part by part, and its first argument as `given`."""

        def recorded(original: Any, *arguments: Any, **more: Any) -> Any:
            if given:
                self.put(given, arguments[0])
            out = original(*arguments, **more)
            for key, value in zip(keys, out if isinstance(out, tuple) else (out,), strict=False):
                self.put(key, value)
            return out

        wrap(owner, name, recorded)

    def chosen(self, count: int) -> list[int]:
        """The layers to record of a network with so many."""
        if self.layers == "all":
            return list(range(count))
        if self.layers is None:
            return sorted({0, count // 2, count - 1})
        return [i for i in self.layers if isinstance(i, int) and i < count]

    def each(self, layers: Any, key: str, end: str = "") -> None:
        """Record what the chosen layers return, as `key` with their number and `end`."""
        for i in self.chosen(len(layers)):
            self.output(layers[i], f"{key}{i}{end}")


def wrap(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Let `function(original, *arguments)` stand for `owner.name`."""
    setattr(owner, name, partial(function, getattr(owner, name)))


def build(options: argparse.Namespace, config: dict[str, Any]) -> tuple[Any, Any, str, int]:
    """The reference's system with the weights of `options.model_dir`: -> (it, torch, text normaliser, its width)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(options.reference.resolve()))
    import torch

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"--device {options.device}: {error}") from None
    infer_v2: Any = importlib.import_module("indextts.infer_v2")
    normaliser = set_normaliser(infer_v2)
    paths = {name: options.model_dir / config[f"{name}_checkpoint"] for name in ("gpt", "s2mel")}
    paths["campplus"] = options.model_dir / AUXILIARY["campplus"]
    states = {name: tensors(torch, path) for name, path in paths.items()}
    width = fit_sizes(torch, infer_v2, states)
    qwen = options.emotion_text is not None
    if qwen:
        # The reference loads float16, in which results depend on the processor; what is compared is the arithmetic.
        load = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained
        infer_v2.AutoModelForCausalLM = SimpleNamespace(
            from_pretrained=lambda folder, **_: load(folder, torch_dtype=torch.float32).to(options.device)
        )
    tts = infer_v2.IndexTTS2(
        cfg_path=str(options.model_dir / "config.yaml"), model_dir=str(options.model_dir), device=options.device,
        use_cuda_kernel=False, use_qwen_emo=qwen,
        aux_paths={name: str(options.model_dir / path) for name, path in AUXILIARY.items()},
    )  # fmt: skip
    for name, module in (("gpt", tts.gpt), ("s2mel", tts.s2mel.models)):  # of which the reference loads what fits
        for key, weight in module.named_parameters():
            if key not in states[name] or states[name][key].shape != weight.shape:
                raise Refusal(f"{paths[name]} has no {key} of shape {list(weight.shape)}")
    return tts, torch, normaliser, width


def dump(options: argparse.Namespace, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run the reference once; -> every array by key."""
    tts, torch, normaliser, width = build(options, config)
    qwen = options.emotion_text is not None
    recorder = Recorder(options.layers)
    record_front(recorder, tts)
    record_conditioning(recorder, tts, torch, width)
    record_gpt(recorder, tts, torch, sample=not options.no_sample)
    record_s2mel(recorder, tts, torch, options.noise_seed)
    record_bigvgan(recorder, tts.bigvgan)
    if qwen:
        record_qwen(recorder, tts.qwen_emo, options.emotion_text_tokens)

    torch.manual_seed(options.seed)
    recorder.put("text.raw", options.text)
    generation = tts.infer_generator(  # infer() does no more than to call it, and hides its IndexError
        str(options.speaker), options.text, None,
        emo_audio_prompt=options.emotion_audio and str(options.emotion_audio),
        emo_alpha=options.emotion_alpha, emo_vector=options.emotion_vector,
        use_emo_text=qwen, emo_text=options.emotion_text, max_text_tokens_per_segment=options.segment,
        num_beams=options.beams, top_p=options.top_p, top_k=options.top_k, temperature=options.temperature,
        repetition_penalty=options.repetition_penalty, length_penalty=options.length_penalty,
        max_mel_tokens=options.max_codes,
    )  # fmt: skip
    rate, wave = next(generation)
    recorder.put("text.ids", tts.tokenizer.convert_tokens_to_ids(recorder.arrays["text.tokens"].tolist()))
    recorder.put("wav_int16", wave)
    recorder.put("wav_sr", rate)
    sha = digest(options.reference)
    meta = {
        "ref": options.speaker.name, "emo_audio": options.emotion_audio and options.emotion_audio.name,
        "emo_alpha": options.emotion_alpha, "emo_vector": options.emotion_vector, "text": options.text,
        "beams": options.beams, "max_mel": options.max_codes, "sample": not options.no_sample,
        "repetition_penalty": options.repetition_penalty, "length_penalty": options.length_penalty,
        "noise_seed": options.noise_seed, "seed": options.seed, "seg": options.segment, "qwen": qwen,
        "segments": recorder.now["segment"] + 1, "audio_seconds": len(wave) / rate,
        "torch": torch.__version__, "model": options.model_dir.resolve().name, "top_k": options.top_k,
        "top_p": options.top_p, "temperature": options.temperature, "emotion_text": options.emotion_text,
        "emotion_text_tokens": options.emotion_text_tokens, "qwen_dtype": "float32" if qwen else None,
        "layers": options.layers, "device": options.device, "normaliser": normaliser,
        "reference": KNOWN.get(sha, f"unknown {sha}"),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }  # fmt: skip
    recorder.put("meta", meta)
    return recorder.arrays


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def set_normaliser(infer_v2: Any) -> str:
    """Which text normaliser speaks: on Linux the reference takes tn, elsewhere wetext, as here where tn is missing."""
    if platform.system() == "Linux" and importlib.util.find_spec("tn") is not None:
        return "tn"
    wetext = importlib.import_module("wetext")

    class Normaliser(infer_v2.TextNormalizer):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.zh_normalizer = wetext.Normalizer(lang="zh", operator="tn", remove_erhua=False)
            self.en_normalizer = wetext.Normalizer(lang="en", operator="tn")

    infer_v2.TextNormalizer = Normaliser
    return "wetext"


def tensors(torch: Any, path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch file by key, mapped rather than read; of s2mel.pth `part.key`."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if "net" in state:
        parts = state["net"].items()
        return {f"{part}.{key.removeprefix('module.')}": value for part, keys in parts for key, value in keys.items()}
    return state.get("model", state)


def fit_sizes(torch: Any, infer_v2: Any, states: dict[str, dict[str, Any]]) -> int:
    """Where a checkpoint's sizes differ from the official ones that the code states, build by the checkpoint.

    Names are replaced in the reference's modules; with official sizes none is. -> the semantic width
    """
    linear = torch.nn.Linear
    width, model = states["gpt"]["emovec_layer.weight"].shape[::-1]
    fit_semantic(torch, infer_v2, width, model, states["gpt"])
    sizes = [
        tuple(states["s2mel"][f"gpt_layer.{i}.weight"].shape[::-1])
        for i in range(3)
        if f"gpt_layer.{i}.weight" in states["s2mel"]
    ]
    if sizes and sizes != [(1280, 256), (256, 128), (128, 1024)]:
        s2mel = infer_v2.MyModel

        def build_s2mel(*arguments: Any, **more: Any) -> Any:
            built = s2mel(*arguments, **more)
            built.models["gpt_layer"] = torch.nn.Sequential(*(linear(*size) for size in sizes))
            return built

        infer_v2.MyModel = build_s2mel

    first = states["campplus"]["xvector.tdnn.linear.weight"].shape[0]
    growth, bottleneck, _ = states["campplus"]["xvector.block1.tdnnd1.cam_layer.linear_local.weight"].shape
    style = states["campplus"]["xvector.dense.linear.weight"].shape[0]
    if (first, growth, bottleneck, style) != (128, 32, 128, 192):
        sizes_of = {"init_channels": first, "growth_rate": growth, "bn_size": bottleneck // growth}
        campplus = infer_v2.CAMPPlus
        infer_v2.CAMPPlus = lambda **more: campplus(**{**more, **sizes_of, "embedding_size": style})
    return width


def fit_semantic(torch: Any, infer_v2: Any, width: int, model: int, state: dict[str, Any] | None = None) -> None:
    """Build the GPT for semantic features of another width than the one that the code states; model: its own.

    state: the tensors of gpt.pth, of whose sizes the Perceivers are then, too.
    """
    if width == SEMANTIC:
        return
    model_v2: Any = importlib.import_module("indextts.gpt.model_v2")
    voice, conformer, perceiver = infer_v2.UnifiedVoice, model_v2.ConformerEncoder, model_v2.PerceiverResampler
    model_v2.ConformerEncoder = lambda input_size, **more: conformer(width, **more)

    def build_perceiver(dim: int, heads: int, **more: Any) -> Any:
        if state is not None:
            name = "emo_perceiver_encoder" if dim == SEMANTIC else "perceiver_encoder"
            queries = [v for n, v in state.items() if n.startswith(name) and n.endswith(".to_q.weight")]
            more |= {"depth": len(queries), "dim_head": queries[0].shape[0] // heads}
        return perceiver(width if dim == SEMANTIC else dim, heads=heads, **more)

    model_v2.PerceiverResampler = build_perceiver

    def build_voice(*arguments: Any, **more: Any) -> Any:
        built = voice(*arguments, **more)
        built.emovec_layer = torch.nn.Linear(width, model)
        return built

    infer_v2.UnifiedVoice = build_voice


def record_front(recorder: Recorder, tts: Any) -> None:
    """Text, recordings, w2v-BERT, RepCodec and CAMPPlus."""
    put, now, codec, style = recorder.put, recorder.now, tts.semantic_codec, tts.campplus_model
    recorder.call(tts.normalizer, "normalize", "text.normalized")
    recorder.call(tts.tokenizer, "tokenize", "text.tokens")
    recorder.call(tts.tokenizer, "split_segments", "text.segments")

    def load(original: Any, *arguments: Any, **more: Any) -> Any:
        now["who"] = "emo" if "who" in now else "spk"
        audio, rate = original(*arguments, **more)
        put("audio.spk_22k_librosa" if now["who"] == "spk" else "audio.emo_16k_librosa", audio)
        return audio, rate

    def features(original: Any, audio: Any, **more: Any) -> Any:
        put("audio.{who}_16k", audio)
        out = original(audio, **more)
        for name in ("input_features", "attention_mask"):
            put(f"w2v.{{who}}.{name}", out[name])
        return out

    def hidden(_module: Any, _inputs: Any, out: Any) -> None:
        count = len(out.hidden_states) - 1
        for i in sorted({0, 17, *(i + 1 for i in recorder.chosen(count))}):  # 17 is what the reference takes
            put(f"w2v.{{who}}.hidden{i}", out.hidden_states[i])

    wrap(tts, "_load_and_cut_audio", load)
    wrap(tts, "extract_features", features)
    tts.semantic_model.register_forward_hook(hidden)
    recorder.call(tts, "get_emb", "w2v.{who}.normalized")
    recorder.call(tts, "mel_fn", "ref_mel", given="audio.spk_22k")

    record_codec(recorder, codec)
    record_style(recorder, style)


def record_codec(recorder: Recorder, codec: Any) -> None:
    """The codec's encoder and quantizer."""
    recorder.both(codec.encoder, "codec.encoder")
    recorder.output(codec.encoder[0].norm, "codec.encoder.embed")
    recorder.each(codec.encoder[0].convnext, "codec.encoder.layer")
    recorder.output(codec.quantizer.quantizers[0].in_project, "codec.in_project.out")
    recorder.call(codec, "quantize", "codec.codes", "codec.S_ref")
    recorder.call(codec.quantizer, "vq2emb", "seg{segment}.vq2emb")


def record_style(recorder: Recorder, style: Any) -> None:
    """CAMPPlus."""
    recorder.both(style, "campplus")
    recorder.output(style.head, "campplus.head.out")
    for name in ("tdnn", "out_nonlinear", "stats"):
        recorder.output(getattr(style.xvector, name), f"campplus.{name}")
    for i in range(3):  # the reference counts from 1
        recorder.each(list(getattr(style.xvector, f"block{i + 1}")), f"campplus.block{i}.layer")
        recorder.output(getattr(style.xvector, f"transit{i + 1}"), f"campplus.transit{i}")


def record_conditioning(recorder: Recorder, tts: Any, torch: Any, width: int) -> None:
    """Conformers and Perceivers of the GPT, and the emotion vector that is made of them."""
    now, gpt, prefix = recorder.now, tts.gpt, "seg{segment}.gpt"
    if hasattr(gpt, "spk_emb_proj"):
        recorder.both(gpt.spk_emb_proj, f"{prefix}.spk_emb_proj")
    for name, who in (("", ""), ("emo_", ".{who}")):
        if not hasattr(gpt, f"{name}conditioning_encoder"):  # 2.5 projects the style of a speaker
            continue
        encoder, perceiver = getattr(gpt, f"{name}conditioning_encoder"), getattr(gpt, f"{name}perceiver_encoder")
        key = f"{prefix}.{name}conditioning_encoder{who}"
        recorder.both(encoder, key)
        recorder.output(encoder.embed, f"{key}.embed")
        recorder.each(encoder.encoders, f"{key}.layer")
        key = f"{prefix}.{name}perceiver_encoder{who}"
        recorder.both(perceiver, key)
        recorder.output(perceiver.proj_context, f"{key}.context")
        for j, part in enumerate(("attention", "feed_forward")):
            recorder.each([layer[j] for layer in perceiver.layers], f"{key}.layer", f".{part}")
    for name in ("emovec_layer", "emo_layer"):
        recorder.both(getattr(gpt, name), f"{prefix}.{name}.{{who}}")

    def merge(original: Any, *arguments: Any, **more: Any) -> Any:
        now["segment"] = now.get("segment", -1) + 1  # every segment begins here
        now["who"] = None
        out = original(*arguments, **more)
        now["who"] = None
        recorder.put(f"{prefix}.emovec_merged", out)
        return out

    def vector(original: Any, *arguments: Any) -> Any:
        now["who"] = "emo" if now["who"] is None else "spk"
        return original(*arguments)

    wrap(gpt, "merge_emovec", merge)
    wrap(gpt, "get_emovec", vector)
    if width != SEMANTIC:  # the reference gives the width for the length: a narrow one would mask most of a recording
        for name in ("get_conditioning", "get_emo_conditioning"):
            wrap(gpt, name, lambda call, features, lengths: call(features, torch.full_like(lengths, SEMANTIC)))


def record_gpt(recorder: Recorder, tts: Any, torch: Any, sample: bool) -> None:
    """Decoding, step by step, and the second pass."""
    put, now, gpt, prefix = recorder.put, recorder.now, tts.gpt, "seg{segment}.gpt"
    chosen = recorder.chosen(len(gpt.gpt.h))
    stages = iter(())  # of the calls of GPT-2 to come, while codes are drawn
    mask: Any = None

    def enter(_module: Any, _inputs: Any, given: dict[str, Any]) -> None:
        nonlocal mask
        drawing = given.get("attention_mask") is not None
        stage = next(stages, None) if drawing else "latent"
        now["stage"] = None if stage == "step1" else stage
        for name in ("inputs_embeds", "attention_mask", "position_ids")[: 3 if drawing else 1]:
            if stage:
                put(f"{prefix}.{stage}.{name}", given[name])
        mask = given.get("attention_mask")

    def project(i: int, _module: Any, _inputs: Any, out: Any) -> None:
        if now["stage"] != "prefill":
            return
        q, k, v = (part.unflatten(-1, (gpt.heads, -1)).transpose(1, 2) for part in out.chunk(3, dim=-1))
        put(f"{prefix}.prefill.k{i}", k)
        put(f"{prefix}.prefill.v{i}", v)
        if i == chosen[-1]:  # the fused attention keeps no weights: those of its definition
            square = torch.ones(*out.shape[1:2] * 2, dtype=torch.bool, device=out.device)
            seen = square.tril() & mask.bool()[:, None, None]
            scores = (q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5).masked_fill(~seen, torch.finfo(out.dtype).min)
            put(f"{prefix}.prefill.attention{i}", scores.softmax(-1))

    gpt.gpt.register_forward_pre_hook(enter, with_kwargs=True)
    for i in chosen:
        gpt.gpt.h[i].attn.c_attn.register_forward_hook(partial(project, i))
    recorder.each(gpt.gpt.h, f"{prefix}.{{stage}}.h")
    recorder.output(gpt.gpt.ln_f, f"{prefix}.{{stage}}.h_ln_f")
    recorder.output(gpt, f"{prefix}.latent.out")

    def search(original: Any, ids: Any, *scorer: Any, logits_processor: Any, **more: Any) -> Any:
        put(f"{prefix}.processor_chain", [type(processor).__name__ for processor in logits_processor])
        put(f"{prefix}.prompt_fake_ids", ids)
        steps: list[Any] = []

        def process(original: Any, *arguments: Any, **more: Any) -> Any:
            steps.append(original(*arguments, **more))
            return steps[-1]

        for beams in scorer:
            wrap(beams, "process", process)
        out = original(ids, *scorer, logits_processor=logits_processor, **more)
        for name, field in (("tokens", "tokens"), ("parents", "indices"), ("scores", "scores")) if scorer else ():
            put(f"{prefix}.beam_{name}", torch.stack([step[f"next_beam_{field}"] for step in steps]))
        return out

    def draw(original: Any, condition: Any, text: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal stages
        stages = iter(("prefill", "step1"))
        put("seg{segment}.text_tokens", text)
        put(f"{prefix}.emo_vec", more["emo_vec"])
        more |= {"do_sample": sample, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        out, latents = original(condition, text, *arguments, **more)
        if "sequences_scores" in out:
            put(f"{prefix}.sequence_score", out.sequences_scores)
        put(f"{prefix}.codes", out.sequences)
        put(f"{prefix}.speech_conditioning_latent", latents)
        put(f"{prefix}.logits_per_step", torch.stack(out.logits))
        put(f"{prefix}.processed_scores_per_step", torch.stack(out.scores))
        return out.sequences, latents

    wrap(gpt.inference_model, "_sample", search)
    wrap(gpt.inference_model, "_beam_search", search)
    wrap(gpt, "inference_speech", draw)


def record_s2mel(recorder: Recorder, tts: Any, torch: Any, noise_seed: int) -> None:
    """Length regulator, gpt_layer and flow matching, whose noise is drawn here."""
    put, now, models = recorder.put, recorder.now, tts.s2mel.models
    regulator, flow, estimator = models["length_regulator"], models["cfm"], models["cfm"].estimator
    if "gpt_layer" in models:
        for i, linear in enumerate(models["gpt_layer"]):
            recorder.output(linear, f"seg{{segment}}.s2mel.gpt_layer.layer{i}")
        recorder.output(models["gpt_layer"], "seg{segment}.s2mel.gpt_layer.out")

    def enter(_module: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        now["regulator"] = f"seg{now['segment']}.s2mel.length_regulator" if "segment" in now else "prompt_condition"
        put("{regulator}.in", inputs[0])
        put("{regulator}.ylens", given["ylens"])

    regulator.register_forward_pre_hook(enter, with_kwargs=True)
    recorder.output(regulator.content_in_proj, "{regulator}.project")
    for name, kind in (("conv", torch.nn.Conv1d), ("norm", torch.nn.GroupNorm)):
        recorder.each([part for part in regulator.model if isinstance(part, kind)], f"{{regulator}}.{name}")
    recorder.output(regulator, "{regulator}")

    steps: list[tuple[Any, Any]] = []  # x and t of every step

    def infer(original: Any, mu: Any, lengths: Any, prompt: Any, style: Any, f0: Any, count: int, **more: Any) -> Any:
        steps.clear()
        random = torch.randn

        def noise(shape: Any, device: Any) -> Any:
            # NumPy's old generator gives the same numbers on every machine and in every version, PyTorch's does not.
            drawn = np.random.RandomState(noise_seed + now["segment"]).standard_normal(tuple(shape)).astype(np.float32)
            put("seg{segment}.cfm.noise", drawn)
            return torch.from_numpy(drawn).to(device)

        torch.randn = noise
        try:
            mel = original(mu, lengths, prompt, style, f0, count, **more)
        finally:
            torch.randn = random
        values = {"mu": mu, "style": style, "n_steps": count, "t": torch.stack([t for _, t in steps])}
        values |= {"trajectory": torch.cat([*(x for x, _ in steps), mel]), "mel_with_prompt": mel}
        for name, value in values.items():
            put(f"seg{{segment}}.cfm.{name}", value)
        return mel

    def step(_module: Any, inputs: tuple[Any, ...]) -> None:
        now["step"] = None if steps else 0
        steps.append((inputs[0][:1].clone(), inputs[3][0].clone()))

    wrap(flow, "inference", infer)
    estimator.register_forward_pre_hook(step)
    prefix = "seg{segment}.dit{step}"
    recorder.input(estimator, *(f"{prefix}.in.{name}" for name in ("x", "prompt_x", "x_lens", "t", "style", "mu")))
    for name in (
        "t_embedder", "cond_projection", "cond_x_merge_linear", "transformer", "skip_linear", "conv1", "t_embedder2",
        "wavenet", "res_projection", "final_layer", "conv2",
    ):  # fmt: skip
        recorder.output(getattr(estimator, name), f"{prefix}.{name}")
    layers, wavenet = estimator.transformer.layers, estimator.wavenet
    recorder.each(layers, f"{prefix}.layer")
    for name in ("attention_norm", "attention", "ffn_norm", "feed_forward"):
        recorder.each([getattr(layer, name) for layer in layers], f"{prefix}.layer", f".{name}")
    if layers[0].uvit_skip_connection:  # they run only in the layers that receive a skip
        recorder.each([layer.skip_in_linear for layer in layers], f"{prefix}.layer", ".skip_in")
    recorder.output(wavenet.cond_layer, f"{prefix}.wavenet.cond")
    recorder.each(wavenet.in_layers, f"{prefix}.wavenet.in")
    recorder.each(wavenet.res_skip_layers, f"{prefix}.wavenet.res_skip")
    recorder.output(estimator, f"{prefix}.out")


def record_bigvgan(recorder: Recorder, vocoder: Any) -> None:
    """The vocoder."""
    prefix = "seg{segment}.bigvgan"
    recorder.both(vocoder, prefix)
    recorder.output(vocoder.conv_pre, f"{prefix}.conv_pre.out")
    recorder.each([up[0] for up in vocoder.ups], f"{prefix}.up", ".out")
    recorder.each(vocoder.resblocks, f"{prefix}.resblock", ".out")
    if 0 in recorder.chosen(1):
        recorder.output(vocoder.resblocks[0].activations[0], f"{prefix}.resblock0.act0.out")
    recorder.output(vocoder.activation_post, f"{prefix}.activation_post.out")


def record_qwen(recorder: Recorder, reader: Any, tokens: int | None) -> None:
    """The emotion read off a text: the prompt's pass through Qwen, its answer and what is made of it."""
    put, now, model = recorder.put, recorder.now, reader.model
    recorder.output(model.model.embed_tokens, "{qwen}.embed")
    recorder.each(model.model.layers, "{qwen}.layer")
    recorder.output(model.model.norm, "{qwen}.norm")

    def leave(_module: Any, _inputs: Any, out: Any) -> None:
        put("{qwen}.logits", out.logits)
        now["qwen"] = None  # what follows are the steps of the answer

    def generate(original: Any, input_ids: Any, **more: Any) -> Any:
        now["qwen"] = "qwen"
        put("qwen.prompt_ids", input_ids)
        out = original(input_ids=input_ids, **more | ({"max_new_tokens": tokens} if tokens else {}))
        put("qwen.answer_ids", out[:, input_ids.shape[1] :])
        return out

    model.register_forward_hook(leave)
    wrap(model, "generate", generate)
    recorder.call(reader.tokenizer, "decode", "qwen.answer")
    recorder.call(reader, "inference", "qwen.emotions")


if __name__ == "__main__":
    sys.exit(main())
