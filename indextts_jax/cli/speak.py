"""indextts-jax speak: a text in the voice of a recording."""

import argparse
import dataclasses
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_jax import embedded, interrupts
from indextts_jax.cli.defaults import forget
from indextts_jax.cli.options import (
    add_batch,
    add_common,
    add_device,
    add_emotion,
    add_ends,
    add_format,
    add_lora,
    add_model,
    add_rendering,
    add_sampling,
    add_silence,
    add_speed,
    add_text,
    add_voice_start,
    command,
    number,
    seed,
)
from indextts_jax.cli.shared import (
    Progress,
    check_format,
    check_outputs,
    check_plot,
    configure_jax,
    load_model,
    progress_of,
    read_file,
    read_settings,
    read_stdin,
)
from indextts_jax.cli.stream import STDOUT, add_stream, check_stream, play
from indextts_jax.errors import Error, NotFound, shown

if TYPE_CHECKING:
    from indextts_jax.audio import Recording
    from indextts_jax.config import Config
    from indextts_jax.model import Model
    from indextts_jax.models import Params
    from indextts_jax.multilingual import FrontEnd
    from indextts_jax.pipeline import Audio
    from indextts_jax.request import Given, Options
    from indextts_jax.text import Analysis
    from indextts_jax.timing import Stopwatch

log = logging.getLogger(__name__)


EXAMPLES = (
    'indextts-jax speak --text "Hello." -o hello.wav',
    'indextts-jax speak --voice voice.wav --text "Hello." -o hello.wav',
    "indextts-jax speak --voice anna.safetensors --text-file chapter.txt -o a.flac",
    'indextts-jax speak --voice voice.wav --text "Hello." --stream -',
)


def add(commands: Any) -> None:
    usage = "[--voice FILE] (--text TEXT | --text-file FILE) -o FILE [options]"
    sub = command(commands, "speak", run, "Speak a text in the voice of a recording.", usage, *EXAMPLES)
    group = sub.add_argument_group("everyday")
    model = group.add_mutually_exclusive_group()
    add_model(sub, model)
    model.add_argument("--random-init", type=Path, metavar="CONFIG", help=argparse.SUPPRESS)
    group.add_argument(
        "--voice",
        type=Path,
        metavar="FILE",
        help="recording of the speaker, of which 15 s are heard, or a Voice file (.safetensors) (default: of the model "
        f"{embedded.NAME}, its own)",
    )
    add_voice_start(group)
    add_lora(group)
    text = group.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="TEXT", help="what to say (default: standard input)")
    text.add_argument("--text-file", type=Path, metavar="FILE", help="file that holds what to say, in UTF-8")
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write, mono and 16 bit: .wav, .flac or .ogg",
    )
    add_format(group, None, "the output")
    group.add_argument(
        "--subtitles",
        type=Path,
        metavar="FILE",
        help="also write what is spoken when, .srt or .vtt: each segment, and in .vtt each word, whose time is an "
        "estimate from the lengths of the words",
    )
    group.add_argument("--force", action="store_true", help="replace output files that exist")
    group.add_argument("--json", action="store_true", help="print what was spoken as one line of JSON, not for people")
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="the same seed gives the same audio (%(default)s)"
    )
    pace = group.add_mutually_exclusive_group()
    add_speed(pace)
    pace.add_argument(
        "--duration",
        type=number(float, 0.1, 86_400),
        metavar="SECONDS",
        help="how long the sound is to be, silences included: it is spoken up to twice as fast or slow",
    )
    add_silence(group)
    add_ends(group)
    add_text(group)
    add_device(group)

    add_stream(sub)
    add_emotion(sub)
    add_sampling(sub)
    group = sub.add_argument_group("rendering and research")
    add_rendering(group)
    add_batch(group)
    group.add_argument("--save", type=Path, metavar="FILE", help="also write codes and mel of every segment (.npz)")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the mel of every segment (.png; needs matplotlib)"
    )
    group.add_argument(
        "--flow-noise",
        type=Path,
        metavar="FILE",
        help="noise where the flow begins: .npz with seg0, seg1, ... of shape [1, mels, frames]",
    )
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import audio, joining, pipeline
    from indextts_jax.emotion import Emotion
    from indextts_jax.streaming import stream
    from indextts_jax.timing import Stopwatch

    # Everything that can be wrong with the arguments is found before the weights are loaded.
    begin, streaming = time.perf_counter(), check_stream(options)
    heard: Any = options.voice or (embedded.VOICE if options.model == embedded.FOLDER else None)
    needed = {"--voice": heard, "-o/--output": options.output or options.stream == STDOUT}
    if missing := [name for name, given in needed.items() if not given]:
        options.parser.error(f"the following arguments are required: {', '.join(missing)}")
    own = {name: getattr(options, name) for name in ("silence_ms", "fade_ms", "trim_tail", "speed")}
    settings = read_settings(options, options.batch, **own)
    kind = "wav" if options.output is None else _kind(options)
    inputs = {f"--{name}": getattr(options, name.replace("-", "_")) for name in INPUTS}
    check_plot(options.plot)
    if options.subtitles and options.subtitles.suffix.lower() not in (".srt", ".vtt"):
        raise Error(f"--subtitles {options.subtitles}: let its name end in .srt or .vtt")
    outputs = {f"--{name}": getattr(options, name) for name in ("output", "subtitles", "save", "plot")}
    check_outputs(outputs, inputs, options.force)
    text = _read_text(options)
    recording = None
    if heard.suffix != ".safetensors":
        recording = audio.load_speaker(heard, options.voice_start)
    noise = _read_noise(options.flow_noise) if options.flow_noise else None
    felt = _read_emotion(options, text)

    with progress_of(options) as progress:
        with Stopwatch() as reading:
            model, analysis = _model_and_text(options, text, recording, settings, progress)
        given = _given_noise(noise, len(analysis.segments)) if noise is not None else None
        with Stopwatch() as speaking:
            progress("listening", 0, 1)
            voice = model.listen(heard if recording is None else recording)
            if felt is not None and not isinstance(felt, Emotion):
                felt = model.feel(felt, 1.0 if options.emotion_alpha is None else options.emotion_alpha)
            if streaming is not None:
                cues: list[joining.Cue] = []
                chunks = stream(
                    model.params, model.cfg, analysis, voice, options.seed, settings, felt, streaming, interrupts.check,
                    cues.append,
                )  # fmt: skip
                done = play(options, chunks, model.cfg.mel.rate, begin)
                if options.subtitles:
                    joining.write(options.subtitles, cues, model.cfg.mel.rate)
                if not options.quiet:
                    print(done, file=sys.stderr if options.stream == STDOUT else sys.stdout)
                return
            [speech] = pipeline.speak(
                model.params, model.cfg, [analysis], [voice], [options.seed], settings, [felt], given, progress,
                options.duration,
            )  # fmt: skip
    interrupts.check()
    assert options.output is not None
    if options.save:
        _save(options.save, speech)
    if options.plot:
        _plot(options.plot, speech, options.output.name)
    if options.subtitles:
        joining.write(options.subtitles, [segment.cue for segment in speech.segments], speech.rate)
    speech.save(options.output, kind, options.sample_rate, options.normalize)  # last: where it is, all is
    if options.json:
        print(json.dumps(_report(options.output, speech, reading, speaking), ensure_ascii=False))
    elif not options.quiet:
        print(_summary(options.output, speech, reading, speaking))


def _kind(options: argparse.Namespace) -> str:
    """What is to be written, of `audio.FORMATS`. Raises Error."""
    from indextts_jax import audio

    named = audio.kind_of(options.output)
    if named:
        forget(options, "format")
    if options.format is None and named is None:
        raise Error(f"--output {options.output}: let its name end in .wav, .flac or .ogg, or add --format")
    if options.format and named and named != options.format:
        raise Error(f"--output {options.output}: its name must end in .{options.format}, the --format")
    kind = options.format or named or "wav"
    check_format(kind, options)
    return kind


def _report(path: Path, speech: "Audio", reading: "Stopwatch", speaking: "Stopwatch") -> dict[str, Any]:
    """What a script wants to know of what was spoken; times in seconds."""
    segments = [
        {"text": segment.text, "start": segment.start / speech.rate, "end": segment.end / speech.rate}
        for segment in speech.segments
    ]
    times = {"reading": reading.seconds, "preparing": speaking.preparing, "total": reading.seconds + speaking.seconds}
    sound = {"output": str(path), "seconds": len(speech.samples) / speech.rate, "segments": segments}
    return sound | {"times": {name: round(seconds, 3) for name, seconds in times.items()}}


def _summary(path: Path, speech: "Audio", reading: "Stopwatch", speaking: "Stopwatch") -> str:
    """How long the audio is, and how long it took: without what a second run in the same process would not need."""
    seconds, taken = len(speech.samples) / speech.rate, speaking.seconds - speaking.preparing
    programs = f"tracing {speaking.tracing:.1f}, loading {speaking.loading:.1f}, compiling {speaking.compiling:.1f}"
    return (
        f"{path}: {seconds:.2f} s of audio in {taken:.2f} s (real-time factor {taken / seconds:.2f}); besides, "
        f"{reading.seconds:.1f} s of reading weights and {speaking.preparing:.1f} s of making programs ({programs})"
    )


INPUTS = ("voice", "text-file", "emotion-audio", "flow-noise", "glossary", "random-init")


def _read_emotion(options: argparse.Namespace, text: str) -> Any:
    """The Emotion that is asked for, None for the voice's own, or the samples of a recording that shows it."""
    from indextts_jax import audio, checkpoint, emotion, pauses
    from indextts_jax.emotion import Emotion

    felt, path = None, options.emotion_audio
    if options.emotion is None and options.emotion_text is None and not options.emotion_from_text:
        if path is None or path.suffix != ".safetensors":  # without weights
            forget(options, "emotion_random", "emotion_normalize")
        if path is None:
            forget(options, "emotion_alpha")
    alpha = 1.0 if options.emotion_alpha is None else options.emotion_alpha
    changes = [name for name in ("random", "normalize") if getattr(options, f"emotion_{name}")]
    if options.emotion is not None:
        felt = Emotion(emotion.parse(options.emotion), alpha=alpha)
    elif options.emotion_text is not None or options.emotion_from_text:
        if options.model is None:
            raise Error("--emotion-text and --emotion-from-text need --model: there are no random weights of Qwen")
        reader = checkpoint.load_reader(options.model, configure_jax(options))
        read = pauses.without(text) if options.emotion_text is None else options.emotion_text
        felt = Emotion(reader.read(read), alpha=alpha)
    elif path is not None and path.suffix == ".safetensors":
        felt = emotion.load(path)  # which keeps its own strength unless another one is asked for
        felt = felt if options.emotion_alpha is None else dataclasses.replace(felt, alpha=alpha)
    elif options.emotion_alpha is not None and path is None:
        raise Error("--emotion-alpha is the strength of an emotion, but none is given: add --emotion")
    if changes and (felt is None or felt.weights is None):
        missing = "none is given: add --emotion" if felt is None and path is None else "a recording has no weights"
        raise Error(f"--emotion-{changes[0]} changes the weights of an emotion, but {missing}")
    if felt is None:
        return None if path is None else audio.load_emotion(path)
    if options.emotion_normalize and felt.weights is not None:
        felt = dataclasses.replace(felt, weights=emotion.normalize(felt.weights))
    return dataclasses.replace(felt, seed=options.seed) if options.emotion_random else felt


def _model_and_text(
    options: argparse.Namespace, text: str, recording: "Recording | None", settings: "Options", progress: Progress
) -> "tuple[Model, Analysis]":
    """The model and the analysed text; the text first, since it fails sooner."""
    from indextts_jax import checkpoint

    if options.random_init:
        forget(options, "lora")
        if options.lora:
            raise Error(f"--lora {options.lora}: belongs to a model, not to random weights; leave out --random-init")
        return _random(options, text)
    analysis = analyse(options, text)
    cfg, _ = checkpoint.read_description(options.model)
    longest = max(map(len, analysis.segment_ids))
    if longest > cfg.gpt.most_texts:
        raise Error(
            f"--segment-tokens {options.segment_tokens}: a segment has {longest} text pieces, but the model takes "
            f"{cfg.gpt.most_texts}; use a smaller number"
        )
    return load_model(options, progress, recording, analysis, settings), analysis


def analyse(options: argparse.Namespace, text: str) -> "Analysis":
    """The text as the model's front end reads it."""
    from indextts_jax import checkpoint
    from indextts_jax.text import load_glossary

    front = checkpoint.load_text(options.model)
    if options.glossary:
        front = dataclasses.replace(front, glossary=load_glossary(options.glossary))
    return read_by(front, options, text)


def read_by(front: "FrontEnd", options: argparse.Namespace, text: str) -> "Analysis":
    """The text as a front end reads it, by the options of texts."""
    first = getattr(options, "first_segment_tokens", 0)
    return front.analyse(text, options.segment_tokens, first, options.language, options.paragraph_ms)


def _random(options: argparse.Namespace, text: str) -> "tuple[Model, Analysis]":
    """Random weights of the sizes in a config.yaml, for those who look at speed alone."""
    from indextts_jax import checkpoint, config, languages
    from indextts_jax.model import Model
    from indextts_jax.text import Analysis, split

    cfg = config.from_yaml(config.read_yaml(options.random_init))
    dtype = configure_jax(options)
    log.warning("random weights: the output is noise")
    params = _random_parameters(options.random_init, cfg, dtype)
    kind, name = checkpoint.text_kind(cfg)
    vocabulary = options.random_init.parent / name
    if vocabulary.is_file():
        front = kind.load(vocabulary)
        return Model(params, cfg, front), read_by(front, options, text)
    # Without a vocabulary, every byte is an id.
    pieces = [chr(2 + byte % (cfg.gpt.text_vocabulary - 3)) for byte in text.strip().encode()]
    if not pieces:
        raise Error("the text is empty: give at least one letter")
    segments = split(pieces, options.segment_tokens)
    ids = [[ord(piece) for piece in segment] for segment in segments]
    language = None if cfg.gpt.languages is None else options.language or languages.guess(text)
    analysis = Analysis(text, pieces, [i for part in ids for i in part], segments, ids, [], language=language)
    return Model(params, cfg, None), analysis  # type: ignore[arg-type]


def _random_parameters(path: Path, cfg: "Config", dtype: str) -> "Params":
    """Each size may be within its limits and all of them together far beyond the machine, so they are summed first."""
    import jax

    from indextts_jax import models

    like = {}
    for name in models.COMPONENTS:
        interrupts.check()
        try:
            like[name] = models.shapes(name, getattr(cfg, name))
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise Error(f"--random-init {path}: sizes that do not fit together ({name}: {shown(error)})") from error
    kept = jax.tree.leaves([models.cast(name, tree, dtype) for name, tree in like.items()])
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise Error(
            f"--random-init {path}: weights of these sizes take {needed / 1e9:,.0f} GB in {dtype}, but this machine "
            f"has {memory / 1e9:,.0f} GB of memory; use smaller sizes"
        )
    return {name: models.random(name, getattr(cfg, name), i, dtype, like[name]) for i, name in enumerate(like)}


def _read_text(options: argparse.Namespace) -> str:
    if options.text is not None:
        return options.text
    if options.text_file is not None:
        return read_file("--text-file", options.text_file)
    if sys.stdin.isatty():
        raise Error("no text: give --text or --text-file, or write it to standard input")
    return read_stdin()


def _read_noise(path: Path) -> list[Any]:
    import zipfile

    import numpy as np

    if not path.is_file():
        raise NotFound(f"--flow-noise {path}: no such file; check the path")
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise Error(f"--flow-noise {path}: not an .npz file ({error})") from None
    rows = [found[f"seg{i}"] for i in range(len(found)) if f"seg{i}" in found]
    if not rows or len(rows) != len(found) or any(row.ndim != 3 or len(row) != 1 for row in rows):
        shapes = {name: array.shape for name, array in found.items()}
        raise Error(f"--flow-noise {path}: expected seg0, seg1, ... of shape [1, mels, frames], found {shapes}")
    return rows


def _given_noise(rows: list[Any], segments: int) -> "list[list[Given]]":
    from indextts_jax.request import Given

    if len(rows) != segments:
        raise Error(f"--flow-noise holds noise for {len(rows)} segments, but the text has {segments}")
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
