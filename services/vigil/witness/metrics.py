"""What a witness counts."""

from prometheus_client import CollectorRegistry, Counter


class WitnessMetrics:
    """The counters of one witness, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = Counter(
            "vigil_witness_answers",
            "Answers to add-checkpoint, by HTTP status.",
            ("status",),
            registry=registry,
        )

    def answered(self, status: int) -> None:
        self._answers.labels(str(status)).inc()
