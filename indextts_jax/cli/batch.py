"""indextts-jax batch: a manifest of texts and voices becomes a folder of audio files."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts_jax import interrupts
from indextts_jax.cli.options import (
    add_batch,
    add_common,
    add_device,
    add_emotion,
    add_ends,
    add_format,
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
from indextts_jax.cli.shared import Progress, check_format, check_outputs, configure_jax, progress_of
from indextts_jax.errors import Error, NotFound

if TYPE_CHECKING:
    from indextts_jax.batch import Job, Plan, Summary
    from indextts_jax.shards import Shard


EXAMPLES = ("indextts-jax batch texts.jsonl --voice voice.wav --output-dir spoken",)


def add(commands: Any) -> None:
    usage = "MANIFEST --output-dir DIR [options]"
    about = "Speak every item of a manifest; run the same command again after an interruption, and it goes on."
    sub = command(commands, "batch", run, about, usage, *EXAMPLES)
    group = sub.add_argument_group(
        "everyday", "Options are defaults for rows of the manifest that leave out the field of the same name."
    )
    group.add_argument("manifest", type=Path, metavar="MANIFEST", help="JSON Lines (.jsonl) or CSV (.csv), in UTF-8")
    add_model(sub, group)
    group.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="folder of the audio files and the journal"
    )
    group.add_argument("--voice", type=Path, metavar="FILE", help="recording of the speaker, or a Voice file")
    add_voice_start(group)
    group.add_argument("--dry-run", action="store_true", help="check the whole manifest, say what there is, and stop")
    add_format(group, "wav", "the files")
    group.add_argument("--force", action="store_true", help="replace files that exist and that no journal names")
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="an item without a seed has one from N and its id (%(default)s)",
    )
    add_speed(group)
    add_silence(group)
    add_ends(group)
    add_text(group)
    add_device(group)
    group = sub.add_argument_group("which items")
    group.add_argument("--limit", type=number(int, 1), metavar="N", help="only the first N items")
    group.add_argument("--only-failed", action="store_true", help="only items that have failed before")
    group.add_argument(
        "--attempts",
        type=number(int, 1, 1000),
        default=3,
        metavar="N",
        help="an item that has failed in N runs is left out (%(default)s)",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="one of N parts of the items, I from 0 (default: as SLURM, Kubernetes or jax.distributed says, else all)",
    )
    group.add_argument("--merge", action="store_true", help="join the journals of all shards, and say what is missing")
    group = sub.add_argument_group("one file of all")
    group.add_argument(
        "--concat", type=Path, metavar="FILE", help="also join all files in one, each with its silence_after_ms"
    )
    group.add_argument("--srt", type=Path, metavar="FILE", help="subtitles of that file")
    group.add_argument("--vtt", type=Path, metavar="FILE", help="the same as WebVTT")
    add_emotion(sub)
    add_sampling(sub)
    group = sub.add_argument_group("rendering")
    add_rendering(group)
    add_batch(group, ", on each device")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    try:
        job = _job(options)
        plan = None if options.merge else _planned(options, job)
    except Error as error:
        error.status = 2  # nothing has begun
        raise
    if options.merge:
        _merge(job)
    if plan is None:
        return
    summary = _spoken(options, job, plan)
    if not options.quiet:
        print(_said(summary, job))
    if summary.failed or (summary.left and not job.only_failed):
        raise Error(
            f"{summary.failed} items have failed and {summary.left} are left; {job.folder / 'failures.jsonl'} names "
            "those that failed, and the same command tries them again"
        )
    if job.joined:
        from indextts_jax import batch

        seconds = batch.join_outputs(job)
        if not options.quiet:
            print(f"{job.joined}: {seconds:.2f} s of audio")


def _merge(job: "Job") -> None:
    """Join the journals of shards. Raises Error where items are not done."""
    from indextts_jax import batch

    items, left, failed = batch.merge_shards(job)
    print(f"{job.folder / batch.JOURNAL}: {items - len(left)} of {items} items are done")
    if left:
        raise Error(
            f"{len(left)} items are not done, {len(failed)} of them have failed: {', '.join(left[:10])}"
            f"{', ...' if len(left) > 10 else ''}; run their shards again"
        )


def _planned(options: argparse.Namespace, job: "Job") -> "Plan | None":
    """What the job amounts to; None where no more is to be done."""
    from indextts_jax import batch
    from indextts_jax.journal import Journal

    with progress_of(options) as progress:
        try:
            plan = batch.check(job, lambda items: progress("checking the manifest", items, 0))
        except batch.Refused as error:
            for problem in error.problems[: batch.MOST_PROBLEMS]:
                print(f"{job.manifest}:{problem.line}: {problem.message}", file=sys.stderr)
            if (more := len(error.problems) - batch.MOST_PROBLEMS) > 0:
                print(f"... and {more} more", file=sys.stderr)
            raise
    if options.dry_run or not options.quiet:
        print(plan)
    if options.dry_run:
        return None
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"--output-dir {job.folder}: cannot be made ({error.strerror}); choose another folder") from None
    Journal.open(job.journal).close()  # nobody else has it, and it can be written
    return plan


def _job(options: argparse.Namespace) -> "Job":
    """What the options ask for. Raises Error for what does not fit together."""
    from indextts_jax import batch
    from indextts_jax.manifest import Defaults

    check_format(options.format, options)
    defaults = Defaults(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Defaults)})
    for name in ("srt", "vtt"):
        path = getattr(options, name)
        if path and not options.concat:
            raise Error(f"--{name} holds the subtitles of one file of all: add --concat FILE")
        if path and path.suffix.lower() != f".{name}":
            raise Error(f"--{name} {path}: let its name end in .{name}")
    if options.concat and options.concat.suffix.lower() != f".{options.format}":
        raise Error(f"--concat {options.concat}: its name must end in .{options.format}, the --format of its parts")
    if not options.manifest.is_file() and not options.manifest.exists():
        raise NotFound(f"{options.manifest}: no such file; check the path of the manifest")
    inputs = {"MANIFEST": options.manifest, "--voice": options.voice, "--emotion-audio": options.emotion_audio}
    check_outputs({"--concat": options.concat, "--srt": options.srt, "--vtt": options.vtt}, inputs, options.force)
    shard = _shard(options)
    if options.concat and shard.count > 1:
        raise Error(f"--concat needs all items, but this is shard {shard}; run --merge, then --concat without shards")
    return batch.Job(
        options.manifest, options.output_dir, options.model, defaults, options.format, options.sample_rate,
        options.batch, shard, options.limit, options.only_failed, options.force, options.attempts, options.concat,
        tuple(path for path in (options.srt, options.vtt) if path), options.normalize,
    )  # fmt: skip


def _shard(options: argparse.Namespace) -> "Shard":
    from indextts_jax import shards

    if options.shard:
        return shards.parse(options.shard)
    found = shards.from_environment(os.environ)
    if found.count > 1:
        return found
    import jax

    return shards.Shard(jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else found


def _spoken(options: argparse.Namespace, job: "Job", plan: "Plan") -> "Summary":
    """Load the model on every device, and speak."""
    import jax

    from indextts_jax import batch, devices
    from indextts_jax.model import Model, load

    dtype = configure_jax(options)
    with progress_of(options) as progress:
        model = load(job.model, dtype, progress=progress)
        models = [Model(params, model.cfg, model.text) for params in devices.copies(model.params, jax.local_devices())]
        interrupts.check()
        return batch.run(job, models, lambda summary, planned: _show(progress, summary, planned), plan.items)


def _show(progress: Progress, summary: "Summary", planned: int) -> None:
    done = summary.done + summary.failed + summary.before + summary.left
    computing = summary.seconds - summary.preparing
    note = f", {summary.audio / computing:.2f} s of audio a second" if summary.audio and computing > 0 else ""
    if (begun := summary.done + summary.failed) and planned > done:
        left = (planned - done) * summary.seconds / begun
        note += f", {left / 3600:.1f} h left" if left > 5400 else f", {left / 60:.0f} min left"
    if interrupts.pending():
        note += "; interrupted: finishing what is on the device, a second signal stops at once"
    progress.show("speaking", done, planned, note)


def _said(summary: "Summary", job: "Job") -> str:
    before = f"{summary.before} were done before, " if summary.before else ""
    return (
        f"{job.folder}: {summary.done} items done, {before}{summary.failed} failed; {summary.audio:.1f} s of audio in "
        f"{summary.seconds - summary.preparing:.1f} s (real-time factor {summary.real_time_factor:.2f}) and "
        f"{summary.preparing:.1f} s of making programs"
    )
