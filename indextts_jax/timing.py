"""Time without compilation: what JAX itself reports of tracing, lowering and compiling, laid side by side."""

import time
from types import TracebackType

import jax

_FETCHED = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_running: list["Stopwatch"] = []


class Stopwatch:
    """Seconds since it was started, and how many of them went into compilation; use as a context manager.

    JAX reports nested durations (one traced function inside another), so they are taken as intervals and their union
    is measured.
    """

    def __enter__(self) -> "Stopwatch":
        self._intervals: list[tuple[float, float]] = []
        self.programs = 0  # compiled, or fetched from the persistent cache
        self.fetched = 0  # from there
        self._begin, self._end = time.perf_counter(), 0.0
        _running.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end = time.perf_counter()
        _running.remove(self)

    @property
    def seconds(self) -> float:
        return (self._end or time.perf_counter()) - self._begin

    @property
    def compiling(self) -> float:
        total, reached = 0.0, self._begin
        for begin, end in sorted(self._intervals):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total


def _listen(event: str, duration_secs: float, **_: object) -> None:
    if event.startswith("/jax/core/compile/"):
        now = time.perf_counter()
        for watch in _running:
            watch._intervals.append((now - duration_secs, now))
            watch.programs += event == _COMPILED


def _count(event: str, **_: object) -> None:
    for watch in _running:
        watch.fetched += event == _FETCHED


jax.monitoring.register_event_listener(_count)
jax.monitoring.register_event_duration_secs_listener(_listen)  # once: older versions of JAX cannot take it off again
