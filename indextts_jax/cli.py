"""The command line: parse, call, report. What a command needs is imported when it runs, so that --help is quick."""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts_jax.audio import Recording
    from indextts_jax.checkpoint import Model
    from indextts_jax.pipeline import Audio, Given, Options, Progress
    from indextts_jax.text import Analysis
    from indextts_jax.voice import Voice

log = logging.getLogger("indextts_jax")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit status. Every expected failure is one line on stderr and a status that is not 0."""
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("indextts-jax: %(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("absl", "asyncio"):  # Orbax logs tracebacks of errors that it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        options.command(options)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory; use --dtype bfloat16, a shorter text or a larger machine")
    except (ValueError, OSError) as error:
        if os.environ.get("INDEXTTS_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail("out of memory on the device; use --dtype bfloat16, a shorter text or a larger device")
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"indextts-jax: error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("indextts-jax", description="IndexTTS-2 speech synthesis in JAX.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    sub = command("convert", _convert, "Convert a model folder in the official layout; PyTorch is not needed.")
    sub.add_argument(
        "model_dir", type=Path, metavar="MODEL_DIR", help="folder with config.yaml, gpt.pth, hf_cache/, ..."
    )
    sub.add_argument("out", type=Path, metavar="OUT", help="folder to make; must not exist")
    sub.add_argument("--strict", action="store_true", help="refuse files with unknown tensors")

    sub = command("info", _info, "Say what a converted model is made of.")
    sub.add_argument("model", type=Path, metavar="OUT", help="converted model")

    sub = command("voice", _voice, "Make a Voice file of a recording, or say what is in one.")
    sub.add_argument("source", type=Path, metavar="FILE", help="recording, or a Voice file (.safetensors) to inspect")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--output", type=Path, help="Voice file to write (.safetensors)")
    _add_dtype(sub)

    sub = command("emotion", _emotion, "Read an emotion off a text or a recording, or make one of weights.")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("text", nargs="?", help="a text that Qwen reads; - is standard input")
    source.add_argument("--audio", type=Path, metavar="FILE", help="recording, or an Emotion file to inspect")
    source.add_argument("--weights", metavar="W", help="happy=0.6,calm=0.2 or all eight")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--output", type=Path, help="Emotion file to write (.safetensors)")
    sub.add_argument("--json", action="store_true", help="print the weights as JSON")
    _add_dtype(sub)

    sub = command("text", _text, "Show what the text front end makes of a text.")
    sub.add_argument("text", help="the text; - reads it from standard input")
    sub.add_argument("--model", type=Path, help="converted model", required=True)
    sub.add_argument("--json", action="store_true", help="print normalized, pieces, ids and segments as JSON")
    sub.add_argument("--segment-tokens", type=int, default=120, metavar="N", help="pieces per segment (%(default)s)")

    sub = command("speak", _speak, "Speak a text in the voice of a recording.")
    model = sub.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help="converted model")
    model.add_argument(
        "--random-init",
        type=Path,
        metavar="CONFIG",
        help="random weights of config.yaml's sizes: noise, for benchmarks",
    )
    sub.add_argument(
        "--voice", type=Path, required=True, help="recording of the speaker, or a Voice file (.safetensors)"
    )
    felt = sub.add_mutually_exclusive_group()
    felt.add_argument(
        "--emotion",
        metavar="W",
        help="happy=0.6,calm=0.2, or eight weights of 0 to 1.2 in the order "
        "happy, angry, sad, afraid, disgusted, melancholic, surprised, calm",
    )
    felt.add_argument("--emotion-audio", type=Path, metavar="FILE", help="recording of it, or an Emotion file")
    felt.add_argument("--emotion-text", metavar="TEXT", help="a text that says it; Qwen reads it")
    felt.add_argument("--emotion-from-text", action="store_true", help="let Qwen read it off the spoken text")
    sub.add_argument("--emotion-alpha", type=float, metavar="A", help="how much of it, 0 to 1 (1)")
    sub.add_argument(
        "--emotion-random",
        action="store_true",
        help="weights: take other speakers' vectors, by --seed, not those most like the voice",
    )
    sub.add_argument(
        "--emotion-normalize", action="store_true", help="weights: the reference's bias, and a sum of 0.8 at most"
    )
    text = sub.add_mutually_exclusive_group()
    text.add_argument("--text", help="what to say (default: standard input)")
    text.add_argument("--text-file", type=Path, help="file with what to say, UTF-8")
    sub.add_argument("--output", type=Path, required=True, help="WAV file to write: 22.05 kHz, mono, 16 bit")
    sub.add_argument("--save", type=Path, metavar="FILE", help="also write codes and mel of every segment (.npz)")
    sub.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the mel of every segment (.png, needs matplotlib)"
    )
    sub.add_argument(
        "--flow-noise", type=Path, metavar="FILE", help=".npz with seg0, seg1, ... [1, mels, frames] to start from"
    )
    sub.add_argument("--seed", type=int, default=0, help="of sampling and noise (%(default)s)")
    _add_settings(sub)
    sub.add_argument("--batch", type=int, default=8, help="segments spoken side by side (%(default)s)")
    sub.add_argument(
        "--segment-tokens", type=int, default=120, metavar="N", help="text pieces per segment (%(default)s)"
    )
    _add_dtype(sub)

    sub = command("warmup", _warmup, "Compile ahead what speak will need; list the sizes to be ready for.")
    sub.add_argument("--model", type=Path, required=True, help="converted model")
    sub.add_argument("--batch", type=integers, default=[1], help="segments side by side, e.g. 1,8 (1)")
    sub.add_argument("--pieces", type=integers, default=[32], help="text pieces of a segment, e.g. 16,32 (32)")
    sub.add_argument("--codes", type=integers, default=[256], help="codes of a segment, 50 a second (256)")
    sub.add_argument("--voice-seconds", type=numbers, default=[6.0], help="of recordings, e.g. 4.6 (6)")
    _add_settings(sub)
    _add_dtype(sub)

    sub = command("bench", _bench, "Time every stage and the whole chain, beside what the machine could do.")
    sub.add_argument("--model", type=Path, help="converted model (random parameters of the official sizes)")
    sub.add_argument("--dtype", type=names, help="float32, bfloat16 or both, separated by commas (the device's)")
    sub.add_argument("--batch", type=integers, default=[1], help="utterances side by side, e.g. 1,8,32 (1)")
    sub.add_argument("--beams", type=integers, default=[3], help="e.g. 1,3 (3)")
    sub.add_argument("--codes", type=integers, default=[150], help="codes of an utterance, 50 a second (150)")
    sub.add_argument("--voice-seconds", type=numbers, default=[4.56], help="of the recording (4.56)")
    sub.add_argument("--pieces", type=integers, default=[30], help="of the text (30)")
    sub.add_argument("--steps", type=int, default=25, help="of the flow (%(default)s)")
    sub.add_argument("--repeat", type=int, default=3, help="runs of which the median counts (%(default)s)")
    sub.add_argument("--reference", type=Path, metavar="DIR", help="time the PyTorch system of this checkout as well")
    sub.add_argument("--reference-model", type=Path, metavar="DIR", help="its model folder, of the same sizes")
    sub.add_argument("--reference-python", default=sys.executable, metavar="FILE", help="its interpreter (this one)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    sub.add_argument("--compare", type=Path, metavar="FILE", help="figures kept earlier: how much faster it is now")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, needs matplotlib)")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """What decides how speech is made, apart from text and voice."""
    parser.add_argument("--beams", type=int, default=3, help="continuations kept while codes are drawn (%(default)s)")
    parser.add_argument("--no-sample", action="store_true", help="take the best codes at each step instead of sampling")
    parser.add_argument("--greedy", action="store_true", help="short for --beams 1 --no-sample")
    parser.add_argument("--temperature", type=float, default=0.8, help="of sampling (%(default)s)")
    parser.add_argument("--top-k", type=int, default=30, help="sample among the k best codes, 0: all (%(default)s)")
    parser.add_argument("--top-p", type=float, default=0.8, help="sample among the best of this mass (%(default)s)")
    parser.add_argument("--repetition-penalty", type=float, default=10.0, help="of codes already drawn (%(default)s)")
    parser.add_argument(
        "--length-penalty", type=float, default=0.0, help="beams count by score / length ** this (%(default)s)"
    )
    parser.add_argument("--max-codes", type=int, default=1500, help="per segment, 50 a second (%(default)s)")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="draw a segment that meets --max-codes, or has no code, so often again (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=25, help="of the flow (%(default)s)")
    parser.add_argument("--cfg-rate", type=float, default=0.7, help="strength of the flow's guidance (%(default)s)")
    parser.add_argument("--silence-ms", type=int, default=200, help="between segments (%(default)s)")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and computation (float32 on a CPU, bfloat16 on GPU and TPU)",
    )


# ---- commands -------------------------------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> None:
    from indextts_jax.convert import convert

    print(f"{'component':12} {'tensors':>8} {'parameters':>14}  unused")

    def report(done: Any) -> None:
        print(f"{done.component:12} {done.tensors:8} {done.parameters:14,}  {_summary(done.unused)}", flush=True)

    reports = convert(options.model_dir, options.out, options.strict, report)
    print(f"{'all':12} {sum(r.tensors for r in reports):8} {sum(r.parameters for r in reports):14,}")
    print(f"converted to {options.out}")


def _summary(names: Sequence[str]) -> str:
    """Unused tensors by the first three parts of their names, all layers together, with how many there are of each."""
    groups = Counter(".".join(re.sub(r"\d+", "*", name).split(".")[:3]) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in groups.items()) or "none"


def _info(options: argparse.Namespace) -> None:
    import jax

    from indextts_jax import checkpoint, models

    cfg, source = checkpoint.read_description(options.model)
    print(f"{options.model}: converted from {source}, format {checkpoint.FORMAT}")
    for name in (*models.COMPONENTS, *(name for name in models.OPTIONAL if getattr(cfg, name))):
        folder = options.model / name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder, the {name} component is missing; convert the model again"
            )
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        count = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.shapes(options.model, name, getattr(cfg, name))))
        print(f"{name:12} {count:14,} parameters {size / 1e6:10.1f} MB  {getattr(cfg, name)}")
    print(f"{'mel':12} {cfg.mel}")


def _voice(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint
    from indextts_jax.voice import listen, load_voice, save_voice

    if options.source.suffix == ".safetensors":
        cfg, _ = checkpoint.read_description(options.model)
        voice = load_voice(options.source, cfg)
    else:
        if options.output is None or options.output.suffix != ".safetensors":
            raise ValueError(f"--output is {options.output}: give the Voice file to write, ending in .safetensors")
        _check_writable(options.output)
        recording = audio.load_speaker(options.source)
        model = _load(options.model, options.dtype, recording)
        voice = listen(model.params, model.cfg, recording)
        cfg = model.cfg
        save_voice(options.output, voice)
    seconds = len(voice.mel) * cfg.mel.hop / cfg.mel.rate
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in voice._asdict().items())
    print(f"{options.output or options.source}: a voice of {seconds:.2f} s; {shapes}")


def _emotion(options: argparse.Namespace) -> None:
    from indextts_jax import audio, checkpoint, emotion
    from indextts_jax.emotion import Emotion
    from indextts_jax.voice import feel

    if options.output is not None:
        if options.output.suffix != ".safetensors":
            raise ValueError(f"--output is {options.output}: an Emotion file is written, so let it end in .safetensors")
        _check_writable(options.output)
    checkpoint.read_description(options.model)
    if options.weights is not None:
        found = Emotion(emotion.parse(options.weights))
    elif options.audio is None:
        text = sys.stdin.read() if options.text == "-" else options.text
        found = Emotion(checkpoint.load_reader(options.model, _configure_jax(options.dtype)).read(text))
    elif options.audio.suffix == ".safetensors":
        found = emotion.load(options.audio)
    else:
        recording = audio.load_emotion(options.audio)
        model = checkpoint.load(options.model, _configure_jax(options.dtype))
        found = Emotion(vector=feel(model.params, model.cfg, recording))
    if options.output is not None:
        emotion.save(options.output, found)
    if found.weights is None:
        print(f"{options.output or options.audio}: the emotion of a recording, a vector of {len(found.vector)}")
    elif options.json:
        print(json.dumps(dict(zip(emotion.NAMES, found.weights, strict=True))))
    else:
        print(",".join(f"{name}={w:g}" for name, w in zip(emotion.NAMES, found.weights, strict=True) if w))


def _text(options: argparse.Namespace) -> None:
    from indextts_jax.checkpoint import load_text

    text = sys.stdin.read() if options.text == "-" else options.text
    analysis = load_text(options.model).analyse(text, options.segment_tokens)
    if options.json:
        fields = {name: getattr(analysis, name) for name in ("normalized", "pieces", "ids", "segments")}
        print(json.dumps(fields, ensure_ascii=False))
        return
    print(f"normalized  {analysis.normalized}")
    for i, (pieces, ids) in enumerate(zip(analysis.segments, analysis.segment_ids, strict=True)):
        print(f"segment {i}   {' '.join(pieces)}\n            {' '.join(map(str, ids))}")


def _speak(options: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from indextts_jax import audio, pipeline
    from indextts_jax.emotion import Emotion
    from indextts_jax.timing import Stopwatch
    from indextts_jax.voice import feel, listen, load_voice

    # Everything that can be wrong with the arguments is found before the weights are loaded.
    settings = _settings(options, options.batch)
    if options.output.suffix.lower() != ".wav":
        raise ValueError(f"--output is {options.output}: a WAV file is written, so let it end in .wav")
    for path in filter(None, (options.output, options.save, options.plot)):
        _check_writable(path)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'indextts-jax[plot]'")
    text = _read_text(options)
    recording = None if options.voice.suffix == ".safetensors" else audio.load_speaker(options.voice)
    noise = _read_noise(options.flow_noise) if options.flow_noise else None
    felt = _read_emotion(options, text)
    model, analysis = _model_and_text(options, text, recording, settings)
    given = _given_noise(noise, len(analysis.segments)) if noise is not None else None

    with Stopwatch() as watch, _progress() as progress:
        if recording is None:
            voice: Voice = load_voice(options.voice, model.cfg)
        else:
            progress("listen", 0, 1)
            voice = listen(model.params, model.cfg, recording)
        if isinstance(felt, np.ndarray):
            felt = Emotion(vector=feel(model.params, model.cfg, felt), alpha=_alpha(options))
        key = jax.random.key(options.seed)
        [speech] = pipeline.speak(
            model.params, model.cfg, [analysis], [voice], [key], settings, [felt], given, progress
        )
    audio.write_wav(options.output, audio.to_int16(speech.samples), speech.rate)
    if options.save:
        _save(options.save, speech)
    if options.plot:
        _plot(options.plot, speech, options.output.name)
    seconds, taken = len(speech.samples) / speech.rate, watch.seconds - watch.compiling
    print(
        f"{options.output}: {seconds:.2f} s of audio in {taken:.2f} s (real-time factor {taken / seconds:.2f}), "
        f"{watch.compiling:.1f} s of compilation apart"
    )


def _warmup(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts_jax import checkpoint, warmup
    from indextts_jax.timing import Stopwatch

    settings = _settings(options, max(options.batch))
    uses = warmup.Uses(options.batch, options.pieces, options.codes, options.voice_seconds)
    cfg, _ = checkpoint.read_description(options.model)
    dtype = _configure_jax(options.dtype)
    seconds: Counter[str] = Counter()
    count: Counter[str] = Counter()
    with Stopwatch() as watch:
        shapes = functools.partial(checkpoint.shapes, options.model)
        listed = warmup.programs(cfg, settings, uses, dtype, shapes)
        for program in tqdm(listed, disable=None, leave=False, unit="program"):
            seconds[program.stage] += program.compile()  # type: ignore[assignment]
            count[program.stage] += 1
    for stage in seconds:
        print(f"{stage:20} {count[stage]:4} programs {seconds[stage]:8.1f} s")
    print(f"{sum(count.values())} programs in {watch.seconds:.0f} s, of which {watch.fetched} were there already")


def _bench(options: argparse.Namespace) -> None:
    import itertools
    import tempfile

    import jax

    from indextts_jax import bench, checkpoint, files
    from indextts_jax.config import Config

    if options.repeat < 1:
        raise ValueError(f"repeat is {options.repeat}, but must be at least 1")
    for path in filter(None, (options.json, options.plot)):
        _check_writable(path)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'indextts-jax[plot]'")
    if options.reference and not options.reference_model:
        raise ValueError("--reference needs --reference-model, a folder in the official layout")
    before = _read_figures(options.compare) if options.compare else None
    dtypes = options.dtype or [checkpoint.default_dtype()]
    chains, stages = [], []
    # Compiled anew, whatever was compiled before; every utterance is cut off where it should be.
    with tempfile.TemporaryDirectory() as cache, _without_warnings():
        jax.config.update("jax_compilation_cache_dir", cache)
        machine = bench.measure(dtypes)
        for dtype in dtypes:
            jax.config.update("jax_default_matmul_precision", "highest" if dtype == "float32" else None)
            model = checkpoint.load(options.model, dtype) if options.model else None
            cfg = model.cfg if model else Config()
            params = model.params if model else bench.parameters(cfg, dtype)
            sizes = options.batch, options.beams, options.codes, options.voice_seconds, options.pieces
            for size in itertools.product(*sizes):
                setting = bench.Setting(dtype, *size, options.steps)
                other: Any = contextlib.nullcontext()
                if options.reference and setting.batch == 1:  # it has no batches
                    where = options.reference, options.reference_model, options.reference_python
                    other = bench.reference(*where, setting)
                with other as theirs:
                    chain, found = bench.run(params, cfg, setting, options.repeat, theirs)
                chains.append(chain)
                stages += found
            del model, params
    result = bench.report(machine, chains, stages)
    print(bench.table(result, before))
    if options.json:
        files.write_whole(options.json, (json.dumps(result, indent=1) + "\n").encode())
    if options.plot:
        files.write_whole(options.plot, bench.plot(result))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)


def _read_figures(path: Path) -> Any:
    try:
        figures = json.loads(path.read_text("utf-8"))
        if not isinstance(figures["stages"], list):
            raise TypeError("stages is no list")
        return figures
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not figures that bench --json keeps ({error})") from None


# ---- their parts ----------------------------------------------------------------------------------------------------


def _read_emotion(options: argparse.Namespace, text: str) -> Any:
    """The Emotion that is asked for, None for the voice's own, or the samples of a recording that shows it."""
    from indextts_jax import audio, checkpoint, emotion
    from indextts_jax.emotion import Emotion

    alpha = _alpha(options)
    changes = [name for name in ("random", "normalize") if getattr(options, f"emotion_{name}")]
    felt, path = None, options.emotion_audio
    if options.emotion is not None:
        felt = Emotion(emotion.parse(options.emotion), alpha=alpha)
    elif options.emotion_text is not None or options.emotion_from_text:
        if options.model is None:
            raise ValueError("--emotion-text and --emotion-from-text need a converted model, not random weights")
        reader = checkpoint.load_reader(options.model, _configure_jax(options.dtype))
        felt = Emotion(reader.read(text if options.emotion_text is None else options.emotion_text), alpha=alpha)
    elif path is not None and path.suffix == ".safetensors":
        felt = emotion.load(path)
        felt = felt if options.emotion_alpha is None else dataclasses.replace(felt, alpha=alpha)
    if changes and (felt is None or felt.weights is None):
        missing = "none is given: add --emotion" if felt is None and path is None else "a recording has no weights"
        raise ValueError(f"--emotion-{changes[0]} changes the weights of an emotion, but {missing}")
    if felt is None:
        return None if path is None else audio.load_emotion(path)
    if options.emotion_normalize and felt.weights is not None:
        felt = dataclasses.replace(felt, weights=emotion.normalize(felt.weights))
    return dataclasses.replace(felt, seed=options.seed) if options.emotion_random else felt


def _alpha(options: argparse.Namespace) -> float:
    alpha = 1.0 if options.emotion_alpha is None else options.emotion_alpha  # None: a file keeps its own
    if not 0 <= alpha <= 1:
        raise ValueError(f"--emotion-alpha is {alpha}, but must lie between 0 and 1")
    return alpha


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= {"float32", "bfloat16"}:
        raise ValueError(text)
    return found


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _settings(options: argparse.Namespace, batch: int) -> "Options":
    from indextts_jax import pipeline
    from indextts_jax.decoding import Sampling

    return pipeline.Options(
        Sampling(
            beams=1 if options.greedy else options.beams,
            sample=not (options.greedy or options.no_sample),
            top_k=options.top_k,
            top_p=options.top_p,
            temperature=options.temperature,
            repetition_penalty=options.repetition_penalty,
            length_penalty=options.length_penalty,
        ),
        max_codes=options.max_codes,
        retries=options.retries,
        steps=options.steps,
        guidance=options.cfg_rate,
        silence_ms=options.silence_ms,
        batch=batch,
    )


def _load(
    folder: Path,
    dtype: str | None,
    recording: "Recording | None",
    analysis: "Analysis | None" = None,
    settings: "Options | None" = None,
) -> "Model":
    """The model, and meanwhile the programs for listening to the recording and for drawing codes of the text."""
    from indextts_jax import checkpoint, features, warmup

    kind = _configure_jax(dtype)
    seconds = len(recording.samples_16k) / features.SPEECH_RATE if recording else None
    texts = [len(ids) for ids in analysis.segment_ids] if analysis else []
    with warmup.ahead(folder, kind, seconds, texts, settings):
        return checkpoint.load(folder, kind)


def _configure_jax(dtype: str | None) -> str:
    """The persistent compilation cache, and full products in float32: -> the dtype to use, the device's by default."""
    import jax

    from indextts_jax import checkpoint

    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = os.environ.get("INDEXTTS_CACHE") or str(Path(base) / "indextts-jax" / "compilation")
    with contextlib.suppress(OSError):  # without a place to keep them, programs are compiled anew each time
        Path(cache).mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    dtype = dtype or checkpoint.default_dtype()
    if dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    return dtype


def _model_and_text(
    options: argparse.Namespace, text: str, recording: "Recording | None", settings: "Options"
) -> "tuple[Model, Analysis]":
    """The model and the analysed text; the text first, since it fails sooner."""
    import jax

    from indextts_jax import checkpoint, config, models

    if options.model:
        analysis = checkpoint.load_text(options.model).analyse(text, options.segment_tokens)
        return _load(options.model, options.dtype, recording, analysis, settings), analysis
    cfg = config.from_yaml(config.read_yaml(options.random_init))
    dtype = _configure_jax(options.dtype)
    log.warning("random weights: the output is noise")
    keys = dict(
        zip(models.COMPONENTS, jax.random.split(jax.random.key(options.seed), len(models.COMPONENTS)), strict=True)
    )
    params = {name: models.random(name, getattr(cfg, name), key, dtype) for name, key in keys.items()}
    vocabulary = options.random_init.parent / "bpe.model"
    front = checkpoint.TextFrontEnd.load(vocabulary) if vocabulary.is_file() else None
    analysis = (
        front.analyse(text, options.segment_tokens) if front else _bytes_as_text(text, cfg, options.segment_tokens)
    )
    return checkpoint.Model(params, cfg, front), analysis  # type: ignore[arg-type]


def _bytes_as_text(text: str, cfg: Any, budget: int) -> "Analysis":
    """A stand-in where there are weights but no vocabulary: every byte is an id."""
    from indextts_jax.text import Analysis, split

    ids = [2 + byte % (cfg.gpt.texts - 3) for byte in text.strip().encode()]
    if not ids:
        raise ValueError("the text is empty: give at least one letter")
    pieces = [chr(i) for i in ids]
    segments = split(pieces, budget)
    return Analysis(text, pieces, ids, segments, [[ord(piece) for piece in segment] for segment in segments], [])


def _read_text(options: argparse.Namespace) -> str:
    if options.text is not None:
        return options.text
    if options.text_file is None:
        if sys.stdin.isatty():
            raise ValueError("no text: give --text, --text-file or standard input")
        return sys.stdin.read()
    try:
        return options.text_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{options.text_file}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path.parent}: no such folder, so {path.name} cannot be written there; create it first"
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: not writable; choose another folder for {path.name}")


def _read_noise(path: Path) -> list[Any]:
    import zipfile

    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --flow-noise takes an .npz")
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not an .npz file ({error})") from None
    rows = [found[f"seg{i}"] for i in range(len(found)) if f"seg{i}" in found]
    if not rows or len(rows) != len(found) or any(row.ndim != 3 or len(row) != 1 for row in rows):
        shapes = {name: array.shape for name, array in found.items()}
        raise ValueError(f"{path}: expected seg0, seg1, ... of shape [1, mels, frames], found {shapes}")
    return rows


def _given_noise(rows: list[Any], segments: int) -> "list[list[Given]]":
    from indextts_jax.pipeline import Given

    if len(rows) != segments:
        raise ValueError(f"--flow-noise holds noise for {len(rows)} segments, but the text has {segments}")
    return [[Given(noise=row[0].T) for row in rows]]


def _save(path: Path, speech: "Audio") -> None:
    import io

    import numpy as np

    from indextts_jax.files import write_whole

    arrays = {}
    for i, segment in enumerate(speech.segments):
        arrays[f"seg{i}.codes"] = segment.codes
        arrays[f"seg{i}.mel"] = segment.mel.T
        arrays[f"seg{i}.samples"] = np.array([segment.start, segment.end])
        arrays[f"seg{i}.stopped"] = np.array(segment.stopped)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def _plot(path: Path, speech: "Audio", title: str) -> None:
    import io

    import numpy as np
    from matplotlib.figure import Figure

    from indextts_jax.files import write_whole

    mels = [segment.mel.T for segment in speech.segments]
    seconds = sum(segment.end - segment.start for segment in speech.segments) / speech.rate
    figure = Figure(figsize=(max(5.0, 3 * seconds), 3.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="s", ylabel="mel band")
    image = axes.imshow(
        np.concatenate(mels, axis=1), origin="lower", aspect="auto", extent=(0, seconds, 0, len(mels[0]))
    )
    figure.colorbar(image, label="log amplitude")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(path, content.getvalue())


@contextlib.contextmanager
def _progress() -> "Iterator[Progress]":
    """A bar on a terminal that counts the steps of all segments; silent in a pipe."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with (
        tqdm(total=1, disable=None, leave=False, bar_format="{desc} {bar} {n}/{total} [{elapsed}]") as bar,
        logging_redirect_tqdm(),
    ):

        def show(stage: str, done: int, total: int) -> None:
            bar.total = 1 + total
            bar.n = done + (stage != "listen")
            bar.set_description(f"{stage:8}")

        yield show


if __name__ == "__main__":
    sys.exit(main())
