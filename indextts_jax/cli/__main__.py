"""python -m indextts_jax.cli."""

import sys

from indextts_jax import interrupts
from indextts_jax.cli import main


def run() -> None:
    """Run the command of this process, and end it."""
    status = main()
    if status - 128 in interrupts.SIGNALS:  # compilers and readers of files may still be busy
        interrupts.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
