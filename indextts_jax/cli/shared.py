"""What several commands do: check where they write, set JAX up, load, show progress."""

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_jax import interrupts
from indextts_jax.cli.defaults import forget
from indextts_jax.errors import Error, NotFound

if TYPE_CHECKING:
    from indextts_jax.audio import Recording
    from indextts_jax.model import Model
    from indextts_jax.request import Options
    from indextts_jax.text import Analysis

log = logging.getLogger(__name__)


def read_settings(options: argparse.Namespace, batch: int | None, **more: Any) -> "Options":
    """The options of sampling and rendering; `more`: others, by their names in `Options`."""
    from indextts_jax.decoding import Sampling
    from indextts_jax.request import Options

    sample = not (options.greedy or options.no_sample)
    if not sample:
        forget(options, "retries")
    if options.retries and not sample:
        raise Error(
            f"--retries {options.retries} with {'--greedy' if options.greedy else '--no-sample'}: without sampling the "
            "same codes would come again; leave one of the two out"
        )
    return Options(
        Sampling(
            beams=1 if options.greedy else options.beams,
            sample=sample,
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
        batch=batch,
        **more,
    )


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None], force: bool) -> None:
    """See that every output can be written before any work is done; both by the option that names them.

    Raises Error where a folder is missing or closed, where an output is an input or another output, and, without
    `force`, where it exists already.
    """
    taken = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise Error(f"{name} {path}: is a folder; give a file name")
        if not path.parent.is_dir():
            raise NotFound(f"{name} {path}: there is no folder {path.parent}; create it first")
        if not os.access(path.parent, os.W_OK):
            raise Error(f"{name} {path}: the folder {path.parent} is not writable; choose another one")
        if other := taken.get(os.path.realpath(path)):
            raise Error(f"{name} and {other} are the same file, {path}: it would be overwritten; choose another name")
        taken[os.path.realpath(path)] = name
        if path.exists() and not force:
            raise Error(f"{name} {path}: exists already; add --force to replace it, or choose another name")


def check_format(kind: str, options: argparse.Namespace) -> None:
    """See that --sample-rate and --normalize can be had for files of `kind`. Raises Error."""
    import numpy as np

    from indextts_jax import audio, loudness

    if options.normalize is not None:
        loudness.require("--normalize")
    try:
        audio.encode(np.zeros(1, np.float32), audio.MEL_RATE, kind, options.sample_rate)
    except Error:
        raise Error(
            f"--sample-rate {options.sample_rate}: {kind} cannot have it; choose another, for example 48000"
        ) from None


def check_plot(path: Path | None) -> None:
    """Pictures need matplotlib."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise Error(f"--plot {path}: a PNG file is written, so let its name end in .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise Error("--plot needs matplotlib: pip install 'indextts-jax[plot]'")


def read_file(option: str, path: Path) -> str:
    """A text file in UTF-8. Raises NotFound and Error, naming the option."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"{option} {path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise Error(
            f"{option} {path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise Error(f"{option} {path}: cannot be read ({error.strerror})") from None


def read_stdin() -> str:
    """The text on standard input. Raises Error for what is not UTF-8."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise Error(f"standard input: not UTF-8 text ({error.reason} at byte {error.start})") from None


def configure_jax(options: argparse.Namespace) -> str:
    """Choose the device, and keep compiled programs: -> the dtype to use."""
    import jax

    from indextts_jax import models, warmup

    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    warmup.keep_programs()
    device = jax.devices()[0]
    if options.device and device.platform != options.device:
        raise Error(
            f"--device {options.device}: JAX finds none here, only {device.platform}; the README says how to install it"
        )
    dtype = options.dtype or models.default_dtype()
    log.info("computing in %s on %s", dtype, device.device_kind)
    return dtype


def load_model(
    options: argparse.Namespace,
    progress: "Progress",
    recording: "Recording | None",
    analysis: "Analysis | None" = None,
    settings: "Options | None" = None,
) -> "Model":
    """The model, and meanwhile the programs for listening to the recording and for drawing codes of the text."""
    from indextts_jax import features, lora, warmup
    from indextts_jax.model import load

    adapters = lora.load(options.lora) if getattr(options, "lora", None) else None
    dtype = configure_jax(options)
    seconds = len(recording.samples_16k) / features.SPEECH_RATE if recording else None
    texts = [len(ids) for ids in analysis.segment_ids] if analysis else []
    with warmup.ahead(options.model, dtype, seconds, texts, settings):
        model = load(options.model, dtype, progress=progress)
        if adapters is None:
            return model
        try:
            return model.adapt(adapters)
        except Error as error:
            raise Error(f"--lora {options.lora}: {error}") from None


class Progress:
    """What is being done: a bar on a terminal; elsewhere, with --verbose, a line when it changes and every ten seconds.

    Called between steps with the stage that begins, the steps done and the steps in all; raises Interrupted there when
    a signal came.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._bar, self._lines = None, options.verbose and not sys.stderr.isatty()
        self._text, self._said, self._begin = "", 0.0, time.monotonic()
        self._over = threading.Event()
        if sys.stderr.isatty() and not options.quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=1, leave=False, bar_format="{desc:32} {bar} {n_fmt}/{total_fmt} [{elapsed}]")
        self._thread = threading.Thread(target=self._tick, daemon=True)
        if self._bar is not None or self._lines:
            self._thread.start()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        interrupts.check()
        self.show(stage, done, total, note)

    def show(self, stage: str, done: int, total: int, note: str = "") -> None:
        """As a call, but a signal raises nothing."""
        changed = not self._text.startswith(stage)
        self._text = f"{stage}: {done} of {total}{note}"
        if self._bar is not None:
            self._bar.total, self._bar.n = max(total, 1), done
            self._bar.set_description_str(f"{stage}{note}")
        elif self._lines and changed:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        log.info("%s, after %.0f s", self._text, self._said - self._begin)

    def _tick(self) -> None:
        """The clock of the bar goes on while a step takes long."""
        while not self._over.wait(1.0):
            if self._bar is not None:
                self._bar.refresh()
            elif self._text and time.monotonic() - self._said >= 10:
                self._say()

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def progress_of(options: argparse.Namespace) -> Iterator[Progress]:
    """Progress while the block runs; messages are written above the bar."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    progress = Progress(options)
    try:
        with logging_redirect_tqdm():
            yield progress
    finally:
        progress.close()
