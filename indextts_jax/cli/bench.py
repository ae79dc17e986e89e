"""indextts-jax bench: every stage and the whole chain, timed."""

import argparse
import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import command, integers, names, numbers
from indextts_jax.cli.shared import check_writable

log = logging.getLogger("indextts_jax")


def add(commands: Any) -> None:
    add_arguments(
        command(commands, "bench", run, "Time every stage and the whole chain, beside what the machine could do.")
    )


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", type=Path, help="converted model (random parameters of the official sizes)")
    sub.add_argument("--dtype", type=names, help="float32, bfloat16 or both, separated by commas (the device's)")
    sub.add_argument("--batch", type=integers, default=[1], help="utterances side by side, e.g. 1,8,32 (1)")
    sub.add_argument("--beams", type=integers, default=[3], help="e.g. 1,3 (3)")
    sub.add_argument("--codes", type=integers, default=[150], help="codes of an utterance, 50 a second (150)")
    sub.add_argument("--voice-seconds", type=numbers, default=[4.56], help="of the recording (4.56)")
    sub.add_argument("--pieces", type=integers, default=[30], help="of the text (30)")
    sub.add_argument("--steps", type=int, default=25, help="of the flow (%(default)s)")
    sub.add_argument("--repeat", type=int, default=3, help="runs of which the median counts (%(default)s)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    sub.add_argument("--compare", type=Path, metavar="FILE", help="figures kept earlier: how much faster it is now")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, needs matplotlib)")


def run(options: argparse.Namespace, reference: Any = None) -> None:
    """reference: of a setting, a context that gives what times the PyTorch system once (`debug.bench_reference`)."""
    import itertools
    import tempfile

    import jax

    from indextts_jax import checkpoint, files
    from indextts_jax.bench import chain, machine, plot, report
    from indextts_jax.config import Config

    if options.repeat < 1:
        raise ValueError(f"repeat is {options.repeat}, but must be at least 1")
    for path in filter(None, (options.json, options.plot)):
        check_writable(path)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'indextts-jax[plot]'")
    before = _read_figures(options.compare) if options.compare else None
    dtypes = options.dtype or [checkpoint.default_dtype()]
    chains, stages = [], []
    # Compiled anew, whatever was compiled before; every utterance is cut off where it should be.
    with tempfile.TemporaryDirectory() as cache, _without_warnings():
        jax.config.update("jax_compilation_cache_dir", cache)
        measured = machine.measure(dtypes)
        for dtype in dtypes:
            jax.config.update("jax_default_matmul_precision", "highest" if dtype == "float32" else None)
            model = checkpoint.load(options.model, dtype) if options.model else None
            cfg = model.cfg if model else Config()
            params = model.params if model else chain.parameters(cfg, dtype)
            sizes = options.batch, options.beams, options.codes, options.voice_seconds, options.pieces
            for size in itertools.product(*sizes):
                setting = chain.Setting(dtype, *size, options.steps)
                other: Any = contextlib.nullcontext()
                if reference and setting.batch == 1:  # the reference has no batches
                    other = reference(setting)
                with other as theirs:
                    timed, found = chain.run(params, cfg, setting, options.repeat, theirs)
                chains.append(timed)
                stages += found
            del model, params
    result = report.report(measured, chains, stages)
    print(report.table(result, before))
    if options.json:
        files.write_whole(options.json, (json.dumps(result, indent=1) + "\n").encode())
    if options.plot:
        files.write_whole(options.plot, plot.plot(result))


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
