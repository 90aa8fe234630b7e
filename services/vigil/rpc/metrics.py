"""What a server counts: calls, refusals, open streams and time, by method; never by caller."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds: from a look-up in memory to the two seconds that a decision may take."""


def measure_tasks(registry: CollectorRegistry, loop: asyncio.AbstractEventLoop) -> None:
    """Show how many tasks the process runs: what grows without end in a process that leaks calls."""
    tasks = Gauge("vigil_tasks", "Tasks of the event loop that have not ended.", registry=registry)
    tasks.set_function(lambda: len(asyncio.all_tasks(loop)))


class RpcMetrics:
    """The counters of one server, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "vigil_rpc_handled", "Calls that ended.", ["method", "status"], registry=registry
        )
        self._refused = Counter("vigil_rpc_refused", "Calls refused.", ["reason"], registry=registry)
        self._seconds = Histogram(
            "vigil_rpc_seconds",
            "Time to serve a unary call.",
            ["method"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._open = Gauge("vigil_rpc_streams", "Open streams.", ["method"], registry=registry)
        self._cut = Counter(
            "vigil_rpc_streams_cut", "Streams cut by the server.", ["reason"], registry=registry
        )

    def of(self, method: str) -> "MethodMetrics":
        """Look the metrics of one method up, once."""
        return MethodMetrics(
            ok=self._handled.labels(method, "OK"),
            handled=self._handled,
            method=method,
            seconds=self._seconds.labels(method),
            open_streams=self._open.labels(method),
            refused=self._refused,
        )

    def cut(self, reason: str) -> None:
        """Count a stream that the server cut."""
        self._cut.labels(reason).inc()


class MethodMetrics:
    """The metrics of one method."""

    __slots__ = ("_handled", "_method", "_ok", "_refused", "open_streams", "seconds")

    def __init__(
        self,
        *,
        ok: Counter,
        handled: Counter,
        method: str,
        seconds: Histogram,
        open_streams: Gauge,
        refused: Counter,
    ) -> None:
        self._ok = ok
        self._handled = handled
        self._method = method
        self._refused = refused
        self.seconds = seconds
        self.open_streams = open_streams

    def ended(self) -> None:
        """Count a call that ended well."""
        self._ok.inc()

    def refused(self, status: str, reason: str) -> None:
        """Count a call that ended otherwise."""
        self._handled.labels(self._method, status).inc()
        self._refused.labels(reason).inc()
