"""indextts-jax download: the official weights from the Hugging Face hub, and their conversion."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from indextts_jax.cli.options import add_common, command
from indextts_jax.cli.shared import progress_of
from indextts_jax.errors import Error


def add(commands: Any) -> None:
    about = (
        "Download the official weights into a folder that `indextts-jax convert` reads, and convert them with "
        "--convert. The same command again goes on where it was. HF_ENDPOINT, HF_HOME and HF_TOKEN are heeded."
    )
    example = "indextts-jax download checkpoints --convert model --accept-licence"
    sub = command(commands, "download", run, about, "DIR [--convert OUT] --accept-licence [options]", example)
    group = sub.add_argument_group("everyday")
    group.add_argument("dir", type=Path, metavar="DIR", help="folder to fill; made if it is not there")
    group.add_argument("--convert", type=Path, metavar="OUT", help="also convert it into this folder, ready to speak")
    group.add_argument(
        "--accept-licence",
        "--accept-license",
        action="store_true",
        help="you accept the licences of all files; without it they are listed, and nothing is downloaded",
    )
    group.add_argument("--no-qwen", action="store_true", help="leave out Qwen, which reads emotions off texts (1.2 GB)")
    group.add_argument("--dry-run", action="store_true", help="ask for sizes, see whether they fit the disk, and stop")
    group.add_argument("--force", action="store_true", help="replace files in DIR that are not those of the hub")
    add_common(sub)


def run(options: argparse.Namespace) -> None:
    from indextts_jax import download, files, interrupts

    repositories = download.needed(qwen=not options.no_qwen)
    if not options.quiet:
        for each in repositories:
            print(f"{each.name:36} {each.licence}", flush=True)
        print(f"Their texts stand in the repositories, {download.endpoint()}/NAME", flush=True)
    if not options.accept_licence and not options.dry_run:
        names = ", ".join(dict.fromkeys(each.licence.partition(":")[0] for each in repositories))
        raise Error(f"the files come under {names}; add --accept-licence if you accept all of these")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Error("downloading needs huggingface_hub: pip install 'indextts-jax[download]'")
    folder, out = options.dir, options.convert
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder}: is a file; give a folder")
    if out is not None and out.exists():
        raise Error(f"--convert {out}: exists already; choose another folder, or leave --convert out")
    with progress_of(options) as progress:
        progress("asking the hub", 0, 1)
        described = download.describe(repositories)
        left = download.missing(folder, described)
        if not options.quiet:
            size = download.gigabytes(sum(file.size for file in described))
            print(f"{len(described)} files, {size}; to come: {download.gigabytes(sum(left.values()))}", flush=True)
        download.check_space(folder, described, out)
        if options.dry_run:
            return
        files.make_folder(folder)
        download.fetch(folder, described, lambda stage, done, total: progress(f"{stage} MB", done >> 20, total >> 20),
                       options.force)  # fmt: skip
    interrupts.check()
    if not options.quiet:
        print(f"downloaded to {folder}; every file has the checksum that the hub says", flush=True)
    if out is None:
        return
    from indextts_jax.cli import convert

    try:
        convert.run(argparse.Namespace(**vars(options) | {"model_dir": folder, "out": out, "strict": False}))
    except KeyboardInterrupt as error:
        error.add_note("all is downloaded; the same command converts it")
        raise
