"""What the index says of one record: whom it is about, of which kind, when, and what it refers to.

Pure, and made from the log alone: the same record always gives the same rows, so that the index can be made again and
held against the log. Only an erased statement gives fewer: its leaf's subjects, kind and bodies, at the log's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from vigil.core import cbor, cose
from vigil.core.moment import STEPS, Step, read_step
from vigil.errors import Refused
from vigil.evidence.domain import Leaf

INDEX_VERSION: Final = 1
"""Another one has the whole index made again."""


class Refers(StrEnum):
    """What a record can be found by, besides its subjects, kind, time and digest."""

    REQUEST = "request"  # of a command, 16 bytes
    INTENT = "intent"  # digests of statements, from here
    COMMAND = "command"
    DECISION = "decision"
    EVIDENCE = "evidence"
    REVOCATION = "revocation"
    EPOCH = "epoch"  # of the chain of revocations, 8 bytes big endian
    BODY = "body"  # digest of bytes that were kept beside it


_REFERENCES: Final = {
    "request_id": Refers.REQUEST,
    "intent": Refers.INTENT,
    "command": Refers.COMMAND,
    "permit": Refers.DECISION,
    "evidence": Refers.EVIDENCE,
    "revocation": Refers.REVOCATION,
}
_TIMES: Final = ("appraised_at", "decided_at", "device_time")
"""Fields that say to the millisecond when what the statement tells of happened; `iat` has whole seconds."""
_IAT: Final = 6
SubjectRow = tuple[str, str, int, int]
KindRow = tuple[str, int, int]
ReferenceRow = tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class Rows:
    """The index's rows: (subject, kind, time, index), (kind, time, index), (what, value, index)."""

    subjects: list[SubjectRow]
    kinds: list[KindRow]
    references: list[ReferenceRow]

    @classmethod
    def of(cls, entries: Sequence[tuple[int, Leaf, bytes, Sequence[bytes]]]) -> "Rows":
        """The rows of several records: index, leaf, statement (empty once erased), bodies."""
        made = cls([], [], [])
        for index, leaf, statement, bodies in entries:
            made._add(index, leaf, statement, bodies)
        return made

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.subjects) + len(self.kinds) + len(self.references)

    def _add(self, index: int, leaf: Leaf, statement: bytes, bodies: Sequence[bytes]) -> None:
        claims, payload = _read(statement)
        step = next(filter(None, map(read_step, bodies)), None) if leaf.kind in STEPS else None
        time = _time(leaf, claims, payload, step)
        self.subjects.extend((link.subject, leaf.kind, time, index) for link in leaf.subjects)
        self.kinds.append((leaf.kind, time, index))
        found = {(Refers.BODY, digest) for digest in leaf.bodies}
        for name, what in _REFERENCES.items():
            value = payload.get(name)
            if type(value) is bytes and len(value) in (16, 32):
                found.add((what, value))
        if step is not None:
            found.add((Refers.EPOCH, epoch_key(step.epoch)))
        self.references.extend((str(what), value, index) for what, value in found)


def epoch_key(epoch: int) -> bytes:
    """An epoch as the index writes it."""
    return epoch.to_bytes(8, "big")


def _time(leaf: Leaf, claims: dict[Any, Any], payload: dict[Any, Any], step: Step | None) -> int:
    """When it happened, by its signer's clock; never later than the log took it. Erased: when the log took it."""
    if step is not None:
        return min(step.time, leaf.log_time)
    for name in _TIMES:
        value = payload.get(name)
        if type(value) is int and value >= 0:
            return min(value, leaf.log_time)
    issued = claims.get(_IAT)
    return min(issued * 1000, leaf.log_time) if type(issued) is int and issued >= 0 else leaf.log_time


def _read(statement: bytes) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Claims and payload; empty where there is none, or none that this version can read."""
    if not statement:
        return {}, {}
    try:
        sign1 = cose.parse(statement)
        payload = cbor.decode(sign1.payload)
    except Refused:
        return {}, {}
    return dict(sign1.claims), payload if isinstance(payload, dict) else {}
