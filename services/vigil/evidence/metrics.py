"""What the log counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vigil.core.tiles import CHECKPOINT_PATH

ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class LogMetrics:
    """The counters of one log, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._appended = Counter("vigil_evidence_appended", "Entries written durably.", registry=registry)
        self._repeated = Counter(
            "vigil_evidence_repeated", "Statements that were on record already.", registry=registry
        )
        self._failed = Counter("vigil_evidence_failed_commits", "Commits that failed.", registry=registry)
        self._items = Histogram(
            "vigil_evidence_commit_items", "New entries in a commit.", buckets=ITEMS, registry=registry
        )
        self._size = Gauge("vigil_evidence_size", "Entries in the log.", registry=registry)
        self._indexed = Gauge("vigil_evidence_indexed", "Entries in the index.", registry=registry)
        self._checkpoint = Gauge(
            "vigil_evidence_checkpoint_size", "Entries under the newest checkpoint.", registry=registry
        )
        self._witnessed = Gauge(
            "vigil_evidence_witnessed_size",
            "Entries under the newest checkpoint that enough witnesses hold.",
            registry=registry,
        )
        self._witness = Gauge(
            "vigil_evidence_witness_size",
            "Entries under the newest checkpoint that a witness holds.",
            ("witness",),
            registry=registry,
        )
        self._trouble = Counter(
            "vigil_evidence_witness_troubles",
            "Checkpoints that a witness did not take, by what went wrong.",
            ("witness", "what"),
            registry=registry,
        )

        self._term = Gauge(
            "vigil_evidence_writer_term",
            "The term in which this process writes; 0 while it stands by.",
            registry=registry,
        )

    def leads(self, term: int) -> None:
        self._term.set(term)

    def committed(self, *, items: int, repeated: int, size: int) -> None:
        self._appended.inc(items)
        self._repeated.inc(repeated)
        self._size.set(size)
        if items:
            self._items.observe(items)

    def failed(self) -> None:
        self._failed.inc()

    def indexed(self, covered: int) -> None:
        self._indexed.set(covered)

    def checkpoint(self, size: int) -> None:
        self._checkpoint.set(size)

    def witnessed(self, size: int) -> None:
        self._witnessed.set(size)

    def witness(self, name: str, size: int) -> None:
        self._witness.labels(name).set(size)

    def witness_trouble(self, name: str, what: str) -> None:
        self._trouble.labels(name, what).inc()


class CensusMetrics:
    """What is counted of a log's censuses."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._size = Gauge(
            "vigil_evidence_census_size", "Entries that the newest census covers.", registry=registry
        )
        self._subjects = Gauge(
            "vigil_evidence_census_subjects", "Subjects in the newest census.", registry=registry
        )
        self._seconds = Gauge(
            "vigil_evidence_census_seconds", "How long the newest census took.", registry=registry
        )
        self._broken = Counter(
            "vigil_evidence_census_breaks",
            "Subjects found whose records do not follow one another.",
            registry=registry,
        )
        self._damaged = Counter(
            "vigil_evidence_census_damages", "Stored trees found damaged, and made anew.", registry=registry
        )

    def taken(self, *, size: int, subjects: int, seconds: float) -> None:
        self._size.set(size)
        self._subjects.set(subjects)
        self._seconds.set(seconds)

    def broken(self, count: int) -> None:
        self._broken.inc(count)

    def damaged(self) -> None:
        self._damaged.inc()


class AuditMetrics:
    """What the auditor found, and how far it is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._damaged = Gauge(
            "vigil_evidence_damaged", "Places at which the stored log contradicts itself.", registry=registry
        )
        self._checked = Gauge(
            "vigil_evidence_audit_checked", "Entries checked in this pass of the audit.", registry=registry
        )
        self._size = Gauge(
            "vigil_evidence_audit_size", "Entries in this pass of the audit.", registry=registry
        )
        self._passes = Gauge("vigil_evidence_audit_passes", "Passes since the start.", registry=registry)
        self._ended = Gauge(
            "vigil_evidence_audit_ended_seconds",
            "When the last pass ended, since the epoch.",
            registry=registry,
        )

    def progress(self, checked: int, size: int, damaged: int) -> None:
        self._checked.set(checked)
        self._size.set(size)
        self._damaged.set(damaged)

    def passed(self, passes: int, ended: int) -> None:
        self._passes.set(passes)
        self._ended.set(ended / 1000)


class TileMetrics:
    """What strangers ask of the log's tiles, by what it was and how it was answered: words of ours, never theirs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "vigil_evidence_tile_requests",
            "Requests for the log's resources.",
            ("resource", "status"),
            registry=registry,
        )

    def answered(self, path: str, status: int) -> None:
        resource = "other"
        if path == CHECKPOINT_PATH:
            resource = "checkpoint"
        elif path.startswith("/tile/entries/"):
            resource = "entries"
        elif path.startswith("/tile/"):
            resource = "hashes"
        self._requests.labels(resource, str(status)).inc()
