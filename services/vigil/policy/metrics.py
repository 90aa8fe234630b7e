"""What the policy service counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class PolicyMetrics:
    """The counters of one process, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decided = Counter("vigil_policy_decisions", "Decisions taken.", ["answer"], registry=registry)
        self._reasons = Counter(
            "vigil_policy_refusals", "Refused decisions by reason.", ["reason"], registry=registry
        )
        self._repeated = Counter(
            "vigil_policy_repeated", "Commands answered with their stored decision.", registry=registry
        )
        self._unrecorded = Counter(
            "vigil_policy_unrecorded", "Decisions that could not be recorded.", ["answer"], registry=registry
        )
        self._seconds = Histogram(
            "vigil_policy_decision_seconds",
            "From a command's arrival to its recorded decision.",
            buckets=SECONDS,
            registry=registry,
        )

    def decided(self, answer: str, reasons: tuple[str, ...]) -> None:
        self._decided.labels(answer).inc()
        for reason in reasons:
            self._reasons.labels(reason).inc()

    def answered(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def repeated(self) -> None:
        self._repeated.inc()

    def unrecorded(self, answer: str) -> None:
        self._unrecorded.labels(answer).inc()
