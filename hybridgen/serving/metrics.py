"""What a server did, for Prometheus: requests by kind and status, how long they took, and the engine's counts."""

from hybridgen.serving.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAUGES = {
    "running": "requests that are being made",
    "waiting": "requests that wait for room",
    "rows": "rows of the backbone that the running requests take",
}
_COUNTERS = {
    "steps": "forwards of the backbone",
    "joined": "requests that took part in them, summed",
    "finished": "jobs that were made",
    "failed": "jobs that failed",
    "cancelled": "jobs whose client hung up",
    "late": "jobs whose time was over",
    "refused": "jobs that found the queue full",
    "busy_seconds": "seconds that the engine computed",
}


class Metrics:
    """A registry of its own, so that several servers fit into one process."""

    def __init__(self, engine: Engine):
        from prometheus_client import CollectorRegistry, Counter, Histogram  # an extra

        self._engine, self._registry = engine, CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        names = ("route", "status")
        self._requests = Counter("hybridgen_requests", "requests answered", names, registry=self._registry)
        self._seconds = Histogram(
            "hybridgen_request_seconds", "from the request to the end of its answer", ("route",),
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request that was answered. `route` is one of the server's, never what a client wrote."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self):
        """What the engine counts (prometheus_client asks)."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = vars(self._engine.counts())
        for name, about in _GAUGES.items():
            yield GaugeMetricFamily(f"hybridgen_engine_{name}", about, value=counts[name])
        for name, about in _COUNTERS.items():
            yield CounterMetricFamily(f"hybridgen_engine_{name}", about, value=counts[name])

    def page(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
