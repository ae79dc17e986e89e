"""`indextts-jax bench` beside the PyTorch reference, which runs in a process of its own, in turns with ours.

    python -m debug.bench_reference --reference PATH/TO/index-tts --reference-model PATH/TO/checkpoints --beams 1

takes the options of `indextts-jax bench` too. The reference has no batches: it runs for --batch 1.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from indextts_jax import audio
from indextts_jax.bench.chain import RATE, Setting, noise
from indextts_jax.cli import bench, run_command
from indextts_jax.cli.options import Parser
from indextts_jax.errors import Error, NotFound


@contextmanager
def reference(checkout: Path, model: Path, python: str, setting: Setting) -> Iterator[Callable[[], dict[str, Any]]]:
    """The PyTorch reference in a process of its own, on the same recording, with as many pieces and codes.

    Gives a function that lets it run once: -> its seconds so far, by stage. checkout: of the reference; model: a folder
    in the official layout; python: an interpreter with what it needs. Raises FileNotFoundError and ValueError.
    """
    script = Path(__file__).parent / "time_python.py"
    if shutil.which(python) is None:
        raise NotFound(f"{python}: no such interpreter; name one that has what the reference needs")
    with tempfile.TemporaryDirectory() as folder:
        voice, errors = Path(folder) / "voice.wav", Path(folder) / "errors"
        audio.write_wav(voice, audio.to_int16(noise(setting)), RATE)
        given = {"reference": checkout, "model-dir": model, "speaker": voice}
        given |= {"pieces": setting.pieces, "codes": setting.codes, "beams": setting.beams}
        command = [python, str(script), *(str(part) for name, value in given.items() for part in (f"--{name}", value))]
        with (
            errors.open("w") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            asked, said = process.stdin, process.stdout
            assert asked is not None
            assert said is not None

            def answer() -> dict[str, Any]:
                for line in said:
                    if line.startswith('{"torch"'):
                        return json.loads(line)
                last = errors.read_text().strip().splitlines()
                raise Error(f"the reference could not be timed: {last[-1] if last else process.wait()}")

            def run() -> dict[str, Any]:
                with suppress(BrokenPipeError):  # it has ended: its answer says why
                    os.write(asked.fileno(), b"\n")
                return answer()

            try:
                answer()  # it is warm
                yield run
            finally:
                process.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("python -m debug.bench_reference", add_help=False, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR", help="checkout of the PyTorch system")
    parser.add_argument("--reference-model", type=Path, required=True, metavar="DIR", help="its model folder")
    parser.add_argument("--reference-python", default=sys.executable, metavar="FILE", help="its interpreter (this one)")
    bench.add_arguments(parser)
    options = parser.parse_args(arguments)
    where = options.reference, options.reference_model, options.reference_python
    return run_command(partial(bench.run, reference=partial(reference, *where)), options)


if __name__ == "__main__":
    sys.exit(main())
