"""From nothing to sound: the commands of the README against a small hub on this machine, each timed.

    python -m debug.first_sound [--folder DIR]

The hub serves the tiny checkpoint of the tests, so that what is timed is the program and not the network. Settings and
compiled programs are those of the folder alone.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from debug.golden import FIXTURES
from tests.hub import Hub, serving

README = Path(__file__).parent.parent / "README.md"


def commands() -> list[list[str]]:
    """The commands under "From nothing to sound" in the README."""
    [block] = re.findall(r"## From nothing to sound\n\n```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line for line in lines if line[0] == "indextts-jax"]


def run(folder: Path, more: tuple[str, ...] = ()) -> Iterator[tuple[list[str], float]]:
    """Run them in an empty folder, one by one: -> each with its seconds. more: options of `speak`."""
    shutil.copyfile(FIXTURES / "audio" / "voice_24k.wav", folder / "voice.wav")
    own = {"INDEXTTS_CONFIG": str(folder / "config.toml"), "HF_HOME": str(folder / "hf"), "INDEXTTS_MODEL": ""}
    with serving(Hub(FIXTURES / "tiny")) as hub:
        environment = {"INDEXTTS_CACHE": str(folder / "cache")} | dict(os.environ) | own
        for command in commands():
            options = more if command[1] == "speak" else ()
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "indextts_jax.cli", *command[1:], *options],
                cwd=folder, env=environment | {"HF_ENDPOINT": hub.endpoint}, check=True,
            )  # fmt: skip
            yield command, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="empty folder to work in (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        times = list(run(folder))
        for command, seconds in times:
            print(f"{seconds:7.1f} s  {shlex.join(command)}")
        print(f"{sum(seconds for _, seconds in times):7.1f} s  in all")


if __name__ == "__main__":
    main()
