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
from vigil.core.statements.schema import malformed
from vigil.errors import Refused

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
    "request_id": Refers.REQUEST.value,
    "intent": Refers.INTENT.value,
    "command": Refers.COMMAND.value,
    "permit": Refers.DECISION.value,
    "evidence": Refers.EVIDENCE.value,
    "revocation": Refers.REVOCATION.value,
}
_TIMES: Final = ("appraised_at", "decided_at", "device_time")
"""Fields that say to the millisecond when what the statement tells of happened; `iat` has whole seconds."""
_IAT: Final = 6
_TIMED: Final = frozenset({"result", "decision", "receipt"})
"""Kinds whose payload says the time."""
_NOTHING_INSIDE: Final = frozenset({"evidence", "voucher", "profile", "release", "hold"})
"""Kinds whose payload says nothing that the index takes."""

SubjectRow = tuple[str, str, int, int]
KindRow = tuple[str, int, int]
ReferenceRow = tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class Named:
    """What the index takes of a leaf."""

    kind: str
    log_time: int
    subjects: list[str]
    bodies: list[bytes]


@dataclass(frozen=True, slots=True)
class Rows:
    """The index's rows: (subject, kind, time, index), (kind, time, index), (what, value, index)."""

    subjects: list[SubjectRow]
    kinds: list[KindRow]
    references: list[ReferenceRow]

    @classmethod
    def of(cls, entries: Sequence[tuple[int, Named, bytes, Sequence[bytes]]]) -> "Rows":
        """The rows of several records: index, what the leaf says, statement (empty once erased), bodies."""
        made = cls([], [], [])
        for index, named, statement, bodies in entries:
            made._add(index, named, statement, bodies)
        return made

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.subjects) + len(self.kinds) + len(self.references)

    def _add(self, index: int, named: Named, statement: bytes, bodies: Sequence[bytes]) -> None:
        kind = named.kind
        issued, payload = _read(kind, statement)
        step = next(filter(None, map(read_step, bodies)), None) if kind in STEPS else None
        time = min(_time(issued, payload, step, named.log_time), named.log_time)
        self.subjects.extend([(subject, kind, time, index) for subject in named.subjects])
        self.kinds.append((kind, time, index))
        found = {(Refers.BODY.value, digest) for digest in named.bodies}
        for name, what in _REFERENCES.items():
            value = payload.get(name)
            if type(value) is bytes and len(value) in (16, 32):
                found.add((what, value))
        if step is not None:
            found.add((Refers.EPOCH.value, epoch_key(step.epoch)))
        self.references.extend([(what, value, index) for what, value in found])


def epoch_key(epoch: int) -> bytes:
    """An epoch as the index writes it."""
    return epoch.to_bytes(8, "big")


def read_named(leaf: bytes) -> Named:
    """Read what the index takes of a leaf that the log itself wrote. Raises STATEMENT_MALFORMED."""
    try:
        _, kind, log_time, _, _, _, links, bodies = cbor.decode(leaf)
        named = Named(kind, log_time, [link[0] for link in links], [*bodies])
    except (ValueError, TypeError, IndexError, KeyError):
        raise malformed("this is not a leaf of the log") from None
    words, digests = {type(kind), *map(type, named.subjects)}, set(map(type, named.bodies))
    if words != {str} or digests - {bytes} or type(log_time) is not int or not 0 <= log_time < 2**63:
        raise malformed("this is not a leaf of the log")
    return named


def _time(issued: object, payload: dict[Any, Any], step: Step | None, otherwise: int) -> int:
    """When it happened, by its signer's clock. Erased: when the log took it."""
    if step is not None:
        return step.time
    for name in _TIMES:
        value = payload.get(name)
        if type(value) is int and value >= 0:
            return value
    return issued * 1000 if type(issued) is int and issued >= 0 else otherwise


def _read(kind: str, statement: bytes) -> tuple[object, dict[Any, Any]]:
    """When it was issued (s), and its payload; nothing where there is none, or none that this version can read.

    The log has read the statement before it took it. Of most only one half tells anything here, and reading the other
    one would cost as much again.
    """
    if not statement:
        return None, {}
    try:
        protected, _, encoded, _ = cbor.decode(statement)
        payload = {} if kind in _NOTHING_INSIDE else cbor.decode(encoded)
        issued = None if kind in _TIMED else cbor.decode(protected)[cose.CWT_CLAIMS][_IAT]
    except (Refused, ValueError, TypeError, KeyError):
        return None, {}
    return issued, payload if isinstance(payload, dict) else {}
