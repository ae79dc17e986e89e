"""What the machine is, and what it can do at best."""

import datetime
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from indextts_jax import models


@dataclass(frozen=True)
class Machine:
    """What it is, and what it can do at best."""

    device: str
    count: int
    jax: str
    python: str
    date: str
    flops: dict[str, float]  # products per second by dtype, twice the multiplications
    bandwidth: float  # bytes per second, read and written


def measure(dtypes: Sequence[str]) -> Machine:
    """Time large products in what is computed in for each dtype, and what streams memory. Takes a few seconds."""
    large = jax.default_backend() != "cpu"
    n, words = (8192, 2**29) if large else (2048, 2**26)
    product = jax.jit(lambda a, b: a @ b)
    rates = {}
    for dtype in dtypes:
        a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(models.computing(dtype)) for i in range(2))
        rates[dtype] = 2 * n**3 / _best(lambda a=a, b=b: product(a, b))
    # A product with one row streams its matrix, as decoding does; on some machines an addition is faster.
    weights, row = jnp.ones((words // 8192, 8192), jnp.float32), jnp.ones((1, 8192), jnp.float32)
    stream, add = jax.jit(lambda x, w: jnp.einsum("bi,oi->bo", x, w)), jax.jit(lambda x: x + 1)
    bandwidth = weights.nbytes / min(_best(lambda: stream(row, weights)), _best(lambda: add(weights)) / 2)
    device = jax.devices()[0]
    today = datetime.date.today().isoformat()
    version = ".".join(map(str, sys.version_info[:3]))
    return Machine(device.device_kind, jax.device_count(), jax.__version__, version, today, rates, bandwidth)


def _best(run: Callable[[], Array], repeat: int = 5) -> float:
    """The shortest of several runs: what the machine can do, not what it did while something else ran."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)


def host_peak() -> int:
    """The most memory this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak() -> int | None:
    """The most memory in use on the first device, in bytes; None where it keeps no account (a CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
