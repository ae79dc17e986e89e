"""Several devices of one host: a scheduler on each, all of them fed from one source.

Nothing waits for another device: each takes the next request when it has a place for it. docs/PERFORMANCE.md says what
that was measured against.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax

from indextts_jax import scheduling
from indextts_jax.config import Config
from indextts_jax.models import Params
from indextts_jax.request import Chunk, Request, Result
from indextts_jax.scheduling import Usage


def copies(params: Params, devices: Sequence[Any]) -> list[Params]:
    """Parameters on each of the devices; on the one where they are, they are not copied."""
    return [jax.device_put(params, device) for device in devices]


def run(
    params: Sequence[Params],
    cfg: Config,
    requests: Iterable[Request | None],
    batch: int | None = None,
    fixed: bool = False,
    tick: Callable[[], None] = lambda: None,
    usage: Usage | None = None,
    ending: Callable[[], bool] = lambda: False,
) -> Iterator[Result | Chunk]:
    """Speak requests on several devices, which each have a copy of the parameters: as `scheduling.run`, in the order in
    which results are finished.

    The source is asked by one thread at a time. `batch` rows are drawn at once on each device. tick: called now and
    then by the caller's thread.
    """
    if len(params) == 1:
        more = {"tick": lambda *_: tick(), "usage": usage, "ending": ending}
        yield from scheduling.run(params[0], cfg, requests, batch, fixed, **more)
        return
    source, results, usages = _Shared(iter(requests)), queue.Queue(maxsize=4 * len(params)), [Usage() for _ in params]
    threads = [
        threading.Thread(
            target=_work, args=(own, cfg, source, results, batch, fixed, used, ending), name=f"device {i}", daemon=True
        )
        for i, (own, used) in enumerate(zip(params, usages, strict=True))
    ]
    for thread in threads:
        thread.start()
    left = len(threads)
    try:
        while left:
            tick()
            try:
                kind, value = results.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind == "result":
                yield value
            elif value is None:
                left -= 1
            else:
                raise value
    finally:
        source.close()
        while any(thread.is_alive() for thread in threads):  # those that wait for a place among the results
            try:
                results.get(timeout=0.05)
            except queue.Empty:
                continue
        for used in usages if usage else ():
            for name, value in vars(used).items():
                setattr(usage, name, getattr(usage, name) + value)


def _work(
    params: Params,
    cfg: Config,
    source: "_Shared",
    results: queue.Queue,
    batch: int | None,
    fixed: bool,
    usage: Usage,
    ending: Callable[[], bool],
) -> None:
    """Speak what the source gives, on one device, until it has no more or nobody listens."""
    device = next(iter(jax.tree.leaves(params)[0].devices()))
    error: BaseException | None = None
    try:
        with (
            jax.default_device(device),
            closing(
                scheduling.run(params, cfg, source, batch, fixed, tick=source.check, usage=usage, ending=ending)
            ) as spoken,
        ):
            for result in spoken:
                results.put(("result", result))
    except _Closed:
        pass
    except BaseException as found:
        error = found
    results.put(("end", error))


class _Closed(Exception):
    """Nobody listens any more."""


class _Shared:
    """An iterator that several threads take from, until it is closed."""

    def __init__(self, source: Iterator[Any]):
        self._source, self._lock = source, threading.Lock()
        self._over = self._given_up = False

    def __iter__(self) -> "_Shared":
        return self

    def __next__(self) -> Any:
        with self._lock:
            if self._over:
                raise StopIteration
            try:
                return next(self._source)
            except BaseException:
                self._over = True
                raise

    def check(self, *_: int) -> None:
        """Raise where the run has been given up."""
        if self._given_up:
            raise _Closed

    def close(self) -> None:
        self._over = self._given_up = True
