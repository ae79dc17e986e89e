"""What several commands do: settings from options, JAX, loading, a bar of progress."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indextts_jax.audio import Recording
    from indextts_jax.checkpoint import Model
    from indextts_jax.pipeline import Options, Progress
    from indextts_jax.text import Analysis


def read_settings(options: argparse.Namespace, batch: int) -> "Options":
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


def load(
    folder: Path,
    dtype: str | None,
    recording: "Recording | None",
    analysis: "Analysis | None" = None,
    settings: "Options | None" = None,
) -> "Model":
    """The model, and meanwhile the programs for listening to the recording and for drawing codes of the text."""
    from indextts_jax import checkpoint, features, warmup

    kind = configure_jax(dtype)
    seconds = len(recording.samples_16k) / features.SPEECH_RATE if recording else None
    texts = [len(ids) for ids in analysis.segment_ids] if analysis else []
    with warmup.ahead(folder, kind, seconds, texts, settings):
        return checkpoint.load(folder, kind)


def configure_jax(dtype: str | None) -> str:
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


def check_writable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path.parent}: no such folder, so {path.name} cannot be written there; create it first"
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: not writable; choose another folder for {path.name}")


@contextlib.contextmanager
def progress_bar() -> "Iterator[Progress]":
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
