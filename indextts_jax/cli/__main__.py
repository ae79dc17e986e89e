"""python -m indextts_jax.cli."""

import sys

from indextts_jax.cli import main

sys.exit(main())
