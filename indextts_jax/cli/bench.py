"""indextts-jax bench: every stage and the whole chain, timed."""

import argparse
import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import CODE_RATE, MODEL_HELP, add_common, command, dtypes, model_folder, number, numbers
from indextts_jax.cli.shared import check_outputs, check_plot, read_file
from indextts_jax.errors import Error

log = logging.getLogger("indextts_jax")

TARGETS = ("v4", "v5e", "v5p", "v6e", "h100", "h200")


EXAMPLES = (
    "indextts-jax bench --model model --batch 1,8",
    "indextts-jax bench --target v5e --dtype bfloat16",
)


def add(commands: Any) -> None:
    about = "Time every stage and the whole chain, beside what the machine could do at best."
    add_arguments(command(commands, "bench", run, about, "[--model DIR] [options]", *EXAMPLES))


def add_arguments(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("settings", "Several values, separated by commas, are run one after another.")
    group.add_argument("--model", type=model_folder, metavar="DIR", help=f"{MODEL_HELP} (default: random weights)")
    group.add_argument(
        "--dtype",
        type=dtypes,
        metavar="D",
        help="float32, bfloat16 or int8, as in speak",
    )
    some = numbers(int, 1, 100_000)
    group.add_argument("--batch", type=some, default=[1], metavar="N", help="utterances side by side, e.g. 1,8,32 (1)")
    group.add_argument("--beams", type=numbers(int, 1, 64), default=[3], metavar="N", help="width of beam search (3)")
    group.add_argument("--codes", type=some, default=[150], metavar="N", help=f"codes, {CODE_RATE} (150)")
    group.add_argument(
        "--voice-seconds", type=numbers(float, 0.2), default=[4.56], metavar="S", help="length of the recording (4.56)"
    )
    group.add_argument("--pieces", type=some, default=[30], metavar="N", help="text pieces of an utterance (30)")
    group.add_argument(
        "--steps", type=number(int, 1), default=25, metavar="N", help="Euler steps of the flow (%(default)s)"
    )
    group.add_argument(
        "--repeat",
        type=number(int, 1),
        default=3,
        metavar="N",
        help="how often to run; the median counts (%(default)s)",
    )
    group = sub.add_argument_group(
        "another chip", "Compile for a chip that is not at hand, and print its compiler's estimates. Nothing runs."
    )
    group.add_argument("--target", choices=TARGETS, help="the chip; needs the extra [tpu] or [cuda]")
    group.add_argument(
        "--chips", type=number(int, 1), default=1, metavar="N", help="rows on so many TPUs: 1, 4 or 8 (1)"
    )
    group.add_argument("--stages", metavar="NAME,...", help="only these stages, e.g. decoding,flow (all)")
    group = sub.add_argument_group("figures")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    group.add_argument("--compare", type=Path, metavar="FILE", help="earlier figures: show how much faster it is now")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (.png; needs matplotlib)")
    group.add_argument("--force", action="store_true", help="replace output files that exist")
    add_common(sub)


def run(options: argparse.Namespace, reference: Any = None) -> None:
    """reference: of a setting, a context that gives what times the PyTorch system once (`debug.bench_reference`)."""
    if options.target:
        return _compile(options)
    if options.chips != 1 or options.stages:
        raise Error("--chips and --stages are of use with --target alone")
    import itertools
    import tempfile

    import jax

    from indextts_jax import files, models
    from indextts_jax.bench import chain, machine, plot, report
    from indextts_jax.config import Config
    from indextts_jax.model import load

    check_plot(options.plot)
    outputs = {"--json": options.json, "--plot": options.plot}
    check_outputs(outputs, {"--compare": options.compare}, options.force)
    before = _read_figures(options.compare) if options.compare else None
    dtypes = options.dtype or [models.default_dtype()]
    chains, stages = [], []
    # Compiled anew, whatever was compiled before; every utterance is cut off where it should be.
    with tempfile.TemporaryDirectory() as cache, _without_warnings():
        jax.config.update("jax_compilation_cache_dir", cache)
        measured = machine.measure(dtypes)
        for dtype in dtypes:
            model = load(options.model, dtype) if options.model else None
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


def _compile(options: argparse.Namespace) -> None:
    import itertools
    import tempfile

    import jax

    from indextts_jax import checkpoint, files
    from indextts_jax.bench import target
    from indextts_jax.bench.chain import Setting
    from indextts_jax.bench.chips import CHIPS
    from indextts_jax.config import Config
    from indextts_jax.stages import ALL

    if options.plot:
        raise Error("--plot: not with --target, whose figures are estimates; --json has them all")
    stages = options.stages.split(",") if options.stages else []
    if unknown := [stage for stage in stages if stage not in ALL]:
        raise Error(f"--stages {','.join(unknown)}: no such stage; there are: {', '.join(ALL)}")
    check_outputs({"--json": options.json}, {"--compare": options.compare}, options.force)
    before = _read_figures(options.compare, "settings") if options.compare else {"settings": []}
    jax.config.update("jax_platforms", "cpu")  # the chip is not looked for
    chip = CHIPS[options.target]
    cfg = checkpoint.read_description(options.model)[0] if options.model else Config()
    sizes = options.batch, options.beams, options.codes, options.voice_seconds, options.pieces
    results: list[Any] = []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        for dtype in options.dtype or ["bfloat16"]:
            for size in itertools.product(*sizes):
                setting = Setting(dtype, *size, options.steps)
                rows = []
                for row in target.measure(cfg, chip, setting, options.chips, stages):
                    log.info("%s: %.0f s of compilation", row["name"], row["compile_s"])
                    rows.append(row)
                results.append(target.report(cfg, chip, options.chips, setting, rows))
                print(target.table(results[-1], _same(before["settings"], results[-1])), flush=True)
    if options.json:
        files.write_whole(options.json, (json.dumps({"settings": results}, indent=1) + "\n").encode())


def _same(settings: list[Any], result: Any) -> Any:
    """The earlier figures of the same setting, if there are."""
    keys = ("target", "chips", "dtype", "batch", "beams", "codes", "seconds", "pieces", "flow_steps")
    return next((old for old in settings if all(old.get(key) == result[key] for key in keys)), None)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)


def _read_figures(path: Path, what: str = "stages") -> Any:
    try:
        figures = json.loads(read_file("--compare", path))
        if not isinstance(figures[what], list):
            raise TypeError(f"{what} is no list")
        return figures
    except Error:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise Error(f"--compare {path}: not figures that bench --json writes ({error})") from None
