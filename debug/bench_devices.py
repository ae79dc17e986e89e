"""Several devices of one host, two ways: a batch on each, or one batch sharded over all: python -m debug.bench_devices.

Codes alone, of the official width and few layers, on virtual CPU devices; rows stop at different lengths. On each: a
thread per device takes the next row from a common queue. Sharded: one program over a mesh, which takes its steps
together. No time contains compilation.
"""

import argparse
import threading
import time
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from indextts_jax import decoding, models, seeds
from indextts_jax.decoding import Sampling
from indextts_jax.drawing import Draw, Drawing
from indextts_jax.models.gpt import GPTConfig, Prefix

SAMPLING = Sampling(beams=1)


def draws(cfg: GPTConfig, count: int) -> deque[Draw]:
    """Rows with limits of their own, as long as sentences differ."""
    rng = np.random.default_rng(0)
    prefix = Prefix(jnp.asarray(0.1 * rng.normal(size=(1, 69, cfg.width)), jnp.float32), jnp.array([67]))
    return deque(Draw(lambda: prefix, seeds.key(i), SAMPLING, int(rng.integers(20, 120))) for i in range(count))


def drawn(drawing: Drawing, waiting: deque[Draw]) -> int:
    """Draw until nothing waits: -> codes."""
    codes = 0
    while True:
        while drawing.unfinished < 2 * drawing.rows:
            try:
                drawing.add(waiting.popleft())  # which threads may do side by side
            except IndexError:
                break
        if not drawing.unfinished:
            return codes
        codes += sum(len(draw.best.codes) for draw in drawing.step() if draw.best)


def on_each(params: dict, cfg: GPTConfig, options: argparse.Namespace) -> int:
    """A batch on each device."""
    waiting, found = draws(cfg, options.items), []

    def work(device: Any) -> None:
        with jax.default_device(device):
            found.append(drawn(Drawing(jax.device_put(params, device), cfg, SAMPLING, options.rows), waiting))

    threads = [threading.Thread(target=work, args=(device,)) for device in jax.devices()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def sharded(params: dict, cfg: GPTConfig, options: argparse.Namespace) -> int:
    """One batch over all devices."""
    mesh, empty = Mesh(np.array(jax.devices()), ("rows",)), decoding.empty
    params = jax.device_put(params, NamedSharding(mesh, P()))
    rows = options.rows * len(jax.devices())

    def spread(cfg: GPTConfig, sampling: Sampling, count: int, *more: Any) -> Any:
        state = empty(cfg, sampling, count, *more)
        return jax.device_put(state, NamedSharding(mesh, P("rows"))) if count == rows else state

    decoding.empty = spread
    try:
        return drawn(Drawing(params, cfg, SAMPLING, rows), draws(cfg, options.items))
    finally:
        decoding.empty = empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="on each device")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    cfg = GPTConfig(layers=options.layers)
    params = jax.block_until_ready(models.random("gpt", cfg, 0, "float32"))
    params["head"]["bias"] = params["head"]["bias"].at[cfg.stop_code].set(-1e4)
    print(f"{options.devices} devices, {options.rows} rows on each, {options.items} rows in all\n")
    print("| | seconds, median | codes |\n|---|---|---|")
    ways = {"a batch on each": on_each, "one batch sharded": sharded}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeat + 1):  # in turns; the first compiles
        for name, way in ways.items():
            begin = time.perf_counter()
            codes = way(params, cfg, options)
            if repeat:
                times[name].append(time.perf_counter() - begin)
                assert codes
    for name, found in times.items():
        print(f"| {name} | {np.median(found):.1f} | {codes} |")


if __name__ == "__main__":
    main()
