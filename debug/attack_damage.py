"""Change random bytes of a converted model, one at a time, and see whether each is found.

    python -m debug.attack_damage [--times 400] [--seed 0]

Places are drawn by file first, so that small files are hit as well as large ones.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from debug.golden import FIXTURES
from indextts_jax import checkpoint
from indextts_jax.convert import convert


def change(folder: Path, rng: random.Random) -> tuple[Path, int, bytes]:
    """Change one byte of one file; -> the file, the place, and what was there."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    place = rng.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        before = file.read(1)
        file.seek(place)
        file.write(bytes([before[0] ^ rng.randrange(1, 256)]))
    return path, place, before


def restore(path: Path, place: int, before: bytes) -> None:
    """Undo a change."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(before)


def missed(folder: Path, times: int, seed: int = 0) -> list[str]:
    """The changes of a sound converted model that nothing found, or that another file was blamed for."""
    rng, found = random.Random(seed), []
    for _ in range(times):
        path, place, before = change(folder, rng)
        lines = checkpoint.verify(folder)
        if not any(line.startswith(f"{path}: ") or path.name == "checksums.json" for line in lines):
            found.append(f"{path}, byte {place}: {lines}")
        restore(path, place, before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=400, help="changes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        convert(FIXTURES / "tiny", folder)
        if found := checkpoint.verify(folder):
            sys.exit(f"a sound model is blamed: {found}")
        found = missed(folder, options.times, options.seed)
    print(*found, f"{len(found)} of {options.times} changes were not found", sep="\n")
    sys.exit(len(found) > 0)


if __name__ == "__main__":
    main()
