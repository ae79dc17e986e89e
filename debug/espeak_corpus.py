"""A small corpus of synthetic speech, free of rights: sentences of a closed grammar, spoken by espeak-ng.

    apt-get install espeak-ng
    python -m debug.espeak_corpus --output speech --count 96

It shows that training works, not how it is done well: espeak-ng is a robot, and its sentences have 40 words.
"""

import argparse
import json
import random
import shutil
import subprocess
from pathlib import Path

SUBJECTS = (
    "the cat", "a sailor", "my brother", "the old clock", "our teacher", "the green bird", "one farmer",
    "a quiet river", "the doctor", "every child",
)  # fmt: skip
VERBS = "sees", "carries", "paints", "follows", "remembers", "finds", "watches", "leaves", "mends", "hears"
OBJECTS = (
    "a small boat", "the red door", "seven apples", "the long road", "a silver coin", "the evening train",
    "some bread", "a paper lamp", "the stone wall", "two letters",
)  # fmt: skip
SPEAKERS = "en-us", "en-gb", "en-us+f3", "en-gb+m5"


def main() -> None:
    parser = argparse.ArgumentParser(description="A small corpus of synthetic speech, free of rights.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--count", type=int, default=96, metavar="N", help="sentences (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        parser.exit(1, "espeak-ng is not installed: apt-get install espeak-ng\n")
    rng = random.Random(options.seed)
    (options.output / "wavs").mkdir(parents=True)
    with (options.output / "manifest.jsonl").open("w") as manifest:
        for i in range(options.count):
            text = " ".join(map(rng.choice, (SUBJECTS, VERBS, OBJECTS))).capitalize() + "."
            speaker, path = SPEAKERS[i % len(SPEAKERS)], f"wavs/{i:04}.wav"
            subprocess.run(["espeak-ng", "-v", speaker, "-w", options.output / path, text], check=True)
            manifest.write(json.dumps({"audio": path, "text": text, "speaker": speaker}) + "\n")
    print(f"{options.output / 'manifest.jsonl'}: {options.count} sentences of {len(SPEAKERS)} speakers")


if __name__ == "__main__":
    main()
