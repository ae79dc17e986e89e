"""Our tensors beside the reference's, stage by stage: python -m debug.validate --model OUT --golden golden.npz.

Each stage runs on the reference's own input, so that one fault does not hide the next; then the whole chain runs on its
own. Golden files are what debug/dump_python.py writes. The exit status is 0 if every tensor held, 1 if one did not, 2
if nothing could be compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from debug.follow import Case, Comparison, Golden
from debug.golden import ABSOLUTE, TOLERANCE, absolute, read, relative
from debug.stages import STAGES
from indextts_jax import audio, checkpoint, models
from indextts_jax.model import Model, load

# What a stage needs of the model; one that is not named here is its own component.
NEEDS = {
    "text": (),
    "audio": (),
    "conditioner": ("conditioner", "prototypes"),
    "qwen3": (),
    "end-to-end": models.COMPONENTS,
}
HEADER = ("component", "ours", "reference", "shape", "largest", "relative", "cosine", "allowed", "verdict")


class Verdict(NamedTuple):
    """How far a tensor of ours is from the reference's."""

    component: str
    where: str
    key: str
    shape: tuple[int, ...]
    largest: float  # absolute difference; infinite where shapes or infinities differ
    relative: float
    cosine: float
    allowed: str  # the limit that decides, as it is printed
    held: bool
    comparison: Comparison | None = None  # None: the stage could not run, and `where` says why


def judge(found: Comparison) -> Verdict:
    """Compare: ours must be infinite where the reference is, and nowhere else; there nothing is measured."""
    _, where, key, ours, reference, allowed = found
    shape = reference.shape
    if reference.dtype.kind == "U":
        same = bool(ours == reference)
        return Verdict(
            found.component, where, key, shape, 0.0 if same else np.inf, np.nan, np.nan, "equal", same, found
        )
    finite = np.isfinite(reference)
    if (
        ours.shape != shape
        or not np.array_equal(ours[~finite], reference[~finite], equal_nan=True)
        or not np.isfinite(ours[finite]).all()
    ):
        return Verdict(found.component, where, key, shape, np.inf, np.inf, np.nan, allowed or "equal", False, found)
    a, b = ours[finite].astype(np.float64), reference[finite].astype(np.float64)
    largest, share = absolute(a, b), relative(a, b)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(a @ b / norms) if norms else 1.0 if largest == 0 else 0.0
    limit = TOLERANCE[allowed] if allowed else 0.0
    held = (largest if allowed is None or allowed in ABSOLUTE else share) <= limit
    kind = "equal" if not allowed else f"{limit:.0e}" + ("" if allowed in ABSOLUTE else " relative")
    return Verdict(found.component, where, key, shape, largest, share, cosine, kind, bool(held), found)


def validate(case: Case, stages: Sequence[str] = tuple(STAGES)) -> Iterator[Verdict]:
    """Run stages and judge what they compare, in the order of the data."""
    for name in stages:
        try:
            yield from map(judge, STAGES[name](case))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            yield Verdict(name, f"cannot run on this: {reason}", "", (), np.inf, np.inf, np.nan, "", False)


def first_divergence(verdicts: Sequence[Verdict]) -> list[str]:
    """What to look at: the first stage that differs on the reference's own input, and the first tensor of the chain."""
    lines = []
    for name, chosen in (
        ("First divergence", [v for v in verdicts if v.component != "end-to-end"]),
        ("First divergence in the chain", [v for v in verdicts if v.component == "end-to-end"]),
    ):
        if bad := next((verdict for verdict in chosen if not verdict.held), None):
            lines.append(
                f"{name}: {bad.component}, {bad.where} ({bad.key}): {bad.largest:.1e}, {bad.relative:.1e} relative"
            )
    return lines


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One line of the table."""
    numbers = (f"{x:.1e}" if not np.isnan(x) else "-" for x in (verdict.largest, verdict.relative))
    cosine = f"{verdict.cosine:.6f}" if not np.isnan(verdict.cosine) else "-"
    shape = "x".join(map(str, verdict.shape)) or "-"
    word = "held" if verdict.held else "DIFFERS"
    return (verdict.component, verdict.where, verdict.key, shape, *numbers, cosine, verdict.allowed, word)


def details(verdict: Verdict) -> list[str]:
    """The worst positions, and a histogram of the differences by powers of ten."""
    if (found := verdict.comparison) is None or found.reference.dtype.kind == "U" or found.ours.shape != verdict.shape:
        if found is not None and not verdict.held:
            return [f"    ours      {str(found.ours)[:300]}", f"    reference {str(found.reference)[:300]}"]
        return []
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.ours.astype(np.float64) - found.reference.astype(np.float64))
    difference, lines = np.nan_to_num(difference, nan=0.0), []
    if not difference.any():
        return lines
    for flat in np.argsort(difference, axis=None)[::-1][:5]:
        at = np.unravel_index(flat, difference.shape)
        place = ", ".join(map(str, map(int, at)))
        lines.append(f"    [{place}] ours {found.ours[at]:.7g} reference {found.reference[at]:.7g}")
    powers = np.floor(np.log10(np.maximum(difference, 1e-12))).astype(int)
    for power, count in zip(*np.unique(powers, return_counts=True), strict=True):
        name = "    below 1e-11" if power == -12 else f"    from 1e{power:+03d}  "
        lines.append(f"{name} {'#' * max(1, round(40 * count / difference.size))} {count}")
    return lines


def plot(folder: Path, verdicts: Sequence[Verdict]) -> list[Path]:
    """Pictures of ours, the reference and the difference: mels, and where the decoder looks. Needs matplotlib."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    written = []
    for verdict in verdicts:
        found = verdict.comparison
        if found is None or found.ours.shape != found.reference.shape:
            continue
        if verdict.key == "ref_mel" or verdict.key.endswith("bigvgan.in"):
            ours, reference = found.ours[0].T, found.reference[0].T
        elif ".attention" in verdict.key and found.ours.ndim == 4 and verdict.component == "gpt":
            ours, reference = found.ours[0].mean(0), found.reference[0].mean(0)
        else:
            continue
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        for i, (title, picture) in enumerate(
            (("ours", ours), ("reference", reference), ("difference", ours - reference))
        ):
            axes = figure.add_subplot(1, 3, i + 1, title=title)
            image = axes.imshow(picture, origin="lower", aspect="auto", interpolation="nearest")
            figure.colorbar(image)
        figure.suptitle(f"{verdict.component}: {verdict.key}")
        path = folder / f"{verdict.component}.{verdict.key}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def as_json(verdicts: Sequence[Verdict], unused: Sequence[str]) -> str:
    """Everything as one object; differences that are no number are null."""
    rows = []
    for verdict in verdicts:
        row = verdict._asdict()
        del row["comparison"]
        rows.append({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()})
    held = all(verdict.held for verdict in verdicts)
    return json.dumps(
        {"held": held, "tensors": rows, "first": first_divergence(verdicts), "unused": list(unused)}, indent=1
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m debug.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="converted model of the weights that were dumped")
    parser.add_argument("--golden", type=Path, required=True, help=".npz, folder of .npy, or the .json of cases")
    parser.add_argument("--component", action="append", choices=tuple(STAGES), help="only this one; may be repeated")
    parser.add_argument("--speaker", type=Path, help="the recording, to compare how it is read as well")
    parser.add_argument("--emotion-audio", type=Path, help="the emotion recording, likewise")
    parser.add_argument("--verbose", action="store_true", help="worst positions, histograms, and keys not compared")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw mels and attention (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    try:
        if options.plot:
            import matplotlib  # noqa: F401 (before the minutes that it takes to have something to draw)
        return _run(options)
    except ImportError as error:
        message = f"--plot needs matplotlib: pip install 'indextts-jax[plot]' ({error})"
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("validate: interrupted", file=sys.stderr)
        return 130
    print(f"validate: error: {message}", file=sys.stderr)
    return 2


def _run(options: argparse.Namespace) -> int:
    golden = Golden(read(options.golden))
    for path in filter(None, (options.speaker, options.emotion_audio)):
        audio.read(path)
    stages = [name for name in STAGES if not options.component or name in options.component]
    needed = {part for name in stages for part in NEEDS.get(name, (name,))}
    model = load(options.model, "float32", [name for name in models.COMPONENTS if name in needed])
    _same_model(options, golden, model)
    reader = partial(checkpoint.load_reader, options.model, "float32") if model.cfg.qwen3 else None
    verdicts = []
    if not options.json:
        print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for verdict in validate(Case(model, golden, reader, options.speaker, options.emotion_audio), stages):
        if not options.json:
            print("| " + " | ".join(cells(verdict)) + " |", flush=True)
            for line in details(verdict) if options.verbose else ():
                print(line)
        keep = options.plot or not verdict.held
        verdicts.append(verdict if keep else verdict._replace(comparison=None))
    if not verdicts:
        raise ValueError(f"{options.golden}: holds nothing that {', '.join(stages)} could be compared with")
    unused = sorted(set(golden) - golden.used)
    if options.json:
        print(as_json(verdicts, unused))
    else:
        bad = sum(not verdict.held for verdict in verdicts)
        print("\n".join(["", *first_divergence(verdicts), f"{len(verdicts) - bad} of {len(verdicts)} tensors held."]))
        if options.verbose:
            print(f"Not compared: {', '.join(unused) or 'nothing'}.")
    for path in plot(options.plot, verdicts) if options.plot else ():
        print(path, file=sys.stderr)
    return int(not all(verdict.held for verdict in verdicts))


def _same_model(options: argparse.Namespace, golden: Golden, model: Model) -> None:
    """See that the golden file was made with weights of this size. Raises ValueError."""
    vector = golden.get("seg0.gpt.emo_vec")
    if vector is not None and vector.shape[-1] != model.cfg.gpt.width:
        raise ValueError(
            f"{options.golden}: made with another model (width {vector.shape[-1]}) than {options.model} "
            f"(width {model.cfg.gpt.width}); convert the one that was dumped"
        )


if __name__ == "__main__":
    sys.exit(main())
