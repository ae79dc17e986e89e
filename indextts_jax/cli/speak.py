"""indextts-jax speak: a text in the voice of a recording."""

import argparse
import dataclasses
import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_jax.cli.options import add_dtype, add_settings, command
from indextts_jax.cli.shared import check_writable, configure_jax, load, progress_bar, read_settings

if TYPE_CHECKING:
    from indextts_jax.audio import Recording
    from indextts_jax.checkpoint import Model
    from indextts_jax.pipeline import Audio, Given, Options
    from indextts_jax.text import Analysis
    from indextts_jax.voice import Voice

log = logging.getLogger("indextts_jax")


def add(commands: Any) -> None:
    sub = command(commands, "speak", run, "Speak a text in the voice of a recording.")
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
    add_settings(sub)
    sub.add_argument("--batch", type=int, default=8, help="segments spoken side by side (%(default)s)")
    sub.add_argument(
        "--segment-tokens", type=int, default=120, metavar="N", help="text pieces per segment (%(default)s)"
    )
    add_dtype(sub)


def run(options: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from indextts_jax import audio, pipeline
    from indextts_jax.emotion import Emotion
    from indextts_jax.timing import Stopwatch
    from indextts_jax.voice import feel, listen, load_voice

    # Everything that can be wrong with the arguments is found before the weights are loaded.
    settings = read_settings(options, options.batch)
    if options.output.suffix.lower() != ".wav":
        raise ValueError(f"--output is {options.output}: a WAV file is written, so let it end in .wav")
    for path in filter(None, (options.output, options.save, options.plot)):
        check_writable(path)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'indextts-jax[plot]'")
    text = _read_text(options)
    recording = None if options.voice.suffix == ".safetensors" else audio.load_speaker(options.voice)
    noise = _read_noise(options.flow_noise) if options.flow_noise else None
    felt = _read_emotion(options, text)
    model, analysis = _model_and_text(options, text, recording, settings)
    given = _given_noise(noise, len(analysis.segments)) if noise is not None else None

    with Stopwatch() as watch, progress_bar() as progress:
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
        reader = checkpoint.load_reader(options.model, configure_jax(options.dtype))
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


def _model_and_text(
    options: argparse.Namespace, text: str, recording: "Recording | None", settings: "Options"
) -> "tuple[Model, Analysis]":
    """The model and the analysed text; the text first, since it fails sooner."""
    import jax

    from indextts_jax import checkpoint, config, models

    if options.model:
        analysis = checkpoint.load_text(options.model).analyse(text, options.segment_tokens)
        return load(options.model, options.dtype, recording, analysis, settings), analysis
    cfg = config.from_yaml(config.read_yaml(options.random_init))
    dtype = configure_jax(options.dtype)
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

    ids = [2 + byte % (cfg.gpt.text_vocabulary - 3) for byte in text.strip().encode()]
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
