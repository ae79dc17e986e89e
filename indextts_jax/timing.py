"""How long something took, and how much of it went into making programs: what JAX itself reports, laid side by side."""

import threading
import time
from types import TracebackType

import jax

_HIT = "/jax/compilation_cache/cache_hits"
_BACKEND = "/jax/core/compile/backend_compile_duration"  # compiles, or loads from the persistent cache
_running: list["Stopwatch"] = []
_thread = threading.local()  # .hit: the program that this thread is making was found in the cache


class Stopwatch:
    """Seconds since it was started, and how many of them went into programs; use as a context manager.

    JAX reports nested durations (one traced function inside another), so they are taken as intervals and the length of
    their union is measured.
    """

    def __enter__(self) -> "Stopwatch":
        self._intervals: list[tuple[str, float, float]] = []
        self.programs = 0  # compiled, or loaded from the persistent cache
        self.fetched = 0  # loaded from there
        self._begin, self._end = time.perf_counter(), 0.0
        _running.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end = time.perf_counter()
        _running.remove(self)

    @property
    def seconds(self) -> float:
        """In all."""
        return (self._end or time.perf_counter()) - self._begin

    @property
    def preparing(self) -> float:
        """Seconds that went into making programs, one way or another."""
        return self._union("tracing", "loading", "compiling")

    @property
    def tracing(self) -> float:
        """Seconds of tracing and lowering."""
        return self._union("tracing")

    @property
    def loading(self) -> float:
        """Seconds of loading compiled programs from the persistent cache."""
        return self._union("loading")

    @property
    def compiling(self) -> float:
        """Seconds of compiling."""
        return self._union("compiling")

    def _union(self, *kinds: str) -> float:
        total, reached = 0.0, self._begin
        for begin, end in sorted((begin, end) for kind, begin, end in self._intervals if kind in kinds):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total


def _listen(event: str, duration_secs: float, **_: object) -> None:
    if not event.startswith("/jax/core/compile/"):
        return
    now, kind = time.perf_counter(), "tracing"
    if event == _BACKEND:
        kind = "loading" if getattr(_thread, "hit", False) else "compiling"
        _thread.hit = False
    for watch in _running:
        watch._intervals.append((kind, now - duration_secs, now))
        watch.programs += event == _BACKEND
        watch.fetched += kind == "loading"


def _note(event: str, **_: object) -> None:
    if event == _HIT:
        _thread.hit = True


jax.monitoring.register_event_listener(_note)
jax.monitoring.register_event_duration_secs_listener(_listen)  # once: older versions of JAX cannot take it off again
