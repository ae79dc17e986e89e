"""Figures of a running server, as Prometheus reads them."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Of one server; `service` gives its service, None while there is none."""

    def __init__(self, service: Callable[[], Any]):
        self.registry = CollectorRegistry()
        self._service = service
        self.requests = Counter(
            "indextts_requests", "Answers, by path and status", ["path", "status"], registry=self.registry
        )
        self.first_audio = Histogram(
            "indextts_first_audio_seconds", "From a request to its first sound", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.whole = Histogram(
            "indextts_request_seconds", "From a request for speech to the end of its answer", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        for name, help, read in (
            ("indextts_under_way", "Requests for speech under way or waiting", lambda s: s.places),
            ("indextts_queue", "Of them, those of which nothing is spoken yet", lambda s: s.waiting),
            ("indextts_rows_in_use", "Segments that are being drawn", lambda s: s.rows_in_use),
            ("indextts_rows", "Segments that can be drawn at once", lambda s: s.rows),
        ):
            Gauge(name, help, registry=self.registry).set_function(lambda read=read: self._read(read))
        self.registry.register(_Counted(self))  # type: ignore[arg-type]

    def _read(self, read: Callable[[Any], float]) -> float:
        service = self._service()
        return 0.0 if service is None else read(service)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _Counted:
    """What the service counts itself."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def collect(self) -> Any:
        for name, help, read in (
            ("indextts_audio_seconds", "Seconds of audio made: its rate is audio per second", lambda s: s.seconds),
            ("indextts_row_steps", "Steps of decoding times rows", lambda s: s.usage.row_steps),
            ("indextts_used_row_steps", "Of them, those that drew a code", lambda s: s.usage.used_row_steps),
        ):
            yield CounterMetricFamily(name, help, value=self._metrics._read(read))
