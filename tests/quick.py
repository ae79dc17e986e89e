"""Programs that are soon compiled: most of the tests' time is compilation, of programs that run for milliseconds."""

import importlib.util
import mmap
from pathlib import Path

# Machine code of the lowest effort, made by XLA's older emitters, each program in one piece.
QUICK = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def flags() -> str:
    """For XLA_FLAGS: those that this jaxlib has. One that it does not know would end the process."""
    spec = importlib.util.find_spec("jaxlib")
    for library in Path(spec.origin).parent.glob("*jax_common.*") if spec and spec.origin else ():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return " ".join(f"--{name}={value}" for name, value in QUICK.items() if content.find(name.encode()) >= 0)
    return ""
