"""The measurement log: an RFC 6962 tree of what the device started, ran, was told and did; it only grows.

A leaf is a deterministic CBOR map (docs/protocol.md): kind, time (ms), boot count, a digest, and where there is one
the digest of the permit that led to it and a short text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vigil.core import cbor, merkle
from vigil.core.merkle import Frontier
from vigil.core.statements.bodies import LogHead
from vigil.device.secure_element import SecureElement
from vigil.device.store import DeviceStore

MAX_DETAIL = 64
_FRONTIER = "log.frontier"
_BOUND = "log.bound"
_COUNTER = "log.counter"
_LAST = "log.last"


class LeafKind(StrEnum):
    BOOT = "boot"
    FIRMWARE = "firmware"
    CONFIGURATION = "configuration"
    LIBRARY = "library"
    COMMAND = "command"
    RECEIPT = "receipt"
    INTEGRITY = "integrity"
    QUARANTINE = "quarantine"
    HOLD = "hold"


BINDING = frozenset({LeafKind.BOOT, LeafKind.FIRMWARE, LeafKind.CONFIGURATION})
"""After one of these, what was appraised before says nothing about the device as it is (Device check 5)."""

MEASURED = frozenset({LeafKind.FIRMWARE, LeafKind.CONFIGURATION, LeafKind.LIBRARY})
"""Whoever reads the log takes the newest of each for what is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One line of the log. ``digest`` is of what was started, configured, commanded or receipted."""

    kind: LeafKind
    time: int
    boot: int
    digest: bytes
    permit: bytes | None = None
    detail: str | None = None

    def encode(self) -> bytes:
        """The leaf's bytes; what is None is absent."""
        value: dict[int | str, object] = {
            "kind": str(self.kind),
            "time": self.time,
            "boot": self.boot,
            "digest": self.digest,
        }
        if self.permit is not None:
            value["permit"] = self.permit
        if self.detail is not None:
            value["detail"] = self.detail[:MAX_DETAIL]
        return cbor.encode(value)


class MeasurementLog:
    """Appends inside the store's transactions; the secure element's counter rises once in each that appends."""

    def __init__(self, *, store: DeviceStore, secure_element: SecureElement) -> None:
        self._store = store
        self._secure_element = secure_element
        self._counted = False
        self._frontier = self._stored()
        store.before_commit.append(self._keep)
        store.on_rollback.append(self._undo)
        store.on_commit.append(self._done)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._frontier.size

    @property
    def bound_size(self) -> int:
        """How long the log was after its newest boot, firmware or configuration leaf."""
        return int(self._store.get(_BOUND, 0))

    def head(self) -> LogHead:
        """Size, root and counter at this moment."""
        return LogHead(self._frontier.size, self._frontier.root(), int(self._store.get(_COUNTER, 0)))

    def head_at(self, size: int) -> LogHead:
        """The head as of an earlier size, with today's counter; for sending a long log in parts."""
        rows = self._store.execute("SELECT data FROM leaves WHERE place < ? ORDER BY place", (size,))
        root = merkle.tree_root([merkle.leaf_hash(row[0]) for row in rows])
        return LogHead(size, root, int(self._store.get(_COUNTER, 0)))

    def raise_counter(self) -> None:
        """Let the next head count as a later one though no leaf was added."""
        with self._store.transaction():
            self._store.put(_COUNTER, self._secure_element.increment())

    def last(self, kind: LeafKind) -> bytes | None:
        """The digest in the newest leaf of a measured kind."""
        digest: bytes | None = self._store.get(_LAST, {}).get(str(kind))
        return digest

    def append(self, leaf: Leaf) -> None:
        """Append one leaf; inside a transaction. Raises STORAGE_UNAVAILABLE."""
        if not self._counted:
            self._counted = True
            self._store.put(_COUNTER, self._secure_element.increment())
        data = leaf.encode()
        self._store.execute("INSERT INTO leaves VALUES (?, ?)", (self._frontier.size, data))
        self._frontier = self._frontier.append(merkle.leaf_hash(data))
        if leaf.kind in BINDING:
            self._store.put(_BOUND, self._frontier.size)
        if leaf.kind in MEASURED:
            self._store.put(_LAST, {**self._store.get(_LAST, {}), str(leaf.kind): leaf.digest})

    def leaves(self, *, first: int, end: int | None = None) -> Sequence[bytes]:
        """The leaves from ``first`` on, in order, up to but not including ``end``."""
        rows = self._store.execute(
            "SELECT data FROM leaves WHERE place >= ? AND place < ? ORDER BY place",
            (first, self.size if end is None else end),
        )
        return [row[0] for row in rows]

    def _stored(self) -> Frontier:
        return Frontier.from_list(self._store.get(_FRONTIER, [0]))

    def _keep(self) -> None:
        """The frontier goes to disk once, with the leaves of its transaction."""
        if self._counted:
            self._store.put(_FRONTIER, self._frontier.to_list())

    def _undo(self) -> None:
        self._counted = False
        self._frontier = self._stored()

    def _done(self) -> None:
        self._counted = False
