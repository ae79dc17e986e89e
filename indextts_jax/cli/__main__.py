"""python -m indextts_jax.cli."""

import sys

from indextts_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
