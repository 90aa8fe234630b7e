"""Which records tell what a device was at one moment, each with its proof under one checkpoint.

The log picks, and says nothing of its own: what follows from the records is for the reader to work out
(`vigil.verify.moment`), who need not believe that the right ones were picked. The device's numbered records between the
two measurements come along without a gap, so that nothing in between can be left out.
"""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from vigil.core import cbor, cose
from vigil.core.certificates import Identity
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.clock import Clock
from vigil.core.moment import REVOCATION_LOG, STEPS, Role
from vigil.errors import Reason, Refused, refused
from vigil.evidence import index_store
from vigil.evidence.domain import Checkpoint, Leaf, Scope, field_invalid, is_subject, not_in_scope, scope_of
from vigil.evidence.indexer import Indexer
from vigil.evidence.proved import Records, Row
from vigil.evidence.service import Checkpointer
from vigil.evidence.store import StoredEntry, has_visible_record

_IAT: Final = 6
MAX_HOLDS: Final = 32
MAX_REVOCATIONS: Final = 16
"""Of each thing that can be revoked."""
MAX_RECEIPTS: Final = 32
MAX_CHAIN: Final = 128
"""Records of the device from one measurement to the next; more are not shown, and the answer is less sure."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A record with what it tells and its inclusion path; a withheld one has no statement."""

    entry: StoredEntry
    leaf: Leaf
    roles: tuple[Role, ...]
    path: tuple[bytes, ...]
    withheld: bool


@dataclass(frozen=True, slots=True)
class State:
    """The answer; ``chain`` are leaves of the device's records from ``first_number`` on."""

    considered: int
    checkpoint: Checkpoint
    records: tuple[Shown, ...]
    chain: tuple[bytes, ...]
    first_number: int
    newest_number: int
    truncated: bool


class Moments:
    """Answers what is on record about a device at a moment."""

    def __init__(
        self,
        *,
        checkpointer: Checkpointer,
        indexer: Indexer,
        size: Callable[[], Awaitable[int]],
        clock: Clock,
    ) -> None:
        self._checkpointer = checkpointer
        self._indexer = indexer
        self._size = size
        self._clock = clock

    async def state_at(
        self,
        reader: Identity,
        device_id: str,
        *,
        time: int,
        as_of: int = 0,
        covering: int = 0,
        under: Checkpoint | None = None,
    ) -> State:
        """The records about one moment (ms), under the newest checkpoint or the one that is given.

        Raises FIELD_INVALID for a moment that cannot be asked about, NOT_IN_SCOPE, RESOURCE_NOT_FOUND for a size that
        the log has not reached, EVIDENCE_UNAVAILABLE while the index is behind.
        """
        subject = f"device/{device_id}"
        if not device_id or not is_subject(subject):
            raise field_invalid("device_id", "A device's id is printable and without spaces.")
        check_moment(time, as_of, now=self._clock.now())
        if covering > await self._size():
            raise refused(Reason.RESOURCE_NOT_FOUND, f"The log has no {covering} entries.", number=covering)
        checkpoint = under or await self._checkpointer.newest(covering=covering or None)
        scope = scope_of(reader)

        return await self._indexer.read(
            checkpoint.size,
            lambda connection: read_state(
                connection, subject, time=time, as_of=as_of, checkpoint=checkpoint, scope=scope
            ),
        )


def read_state(
    connection: Connection, subject: str, *, time: int, as_of: int, checkpoint: Checkpoint, scope: Scope
) -> State:
    """Choose and read, in one read transaction in which the index covers the checkpoint. Raises NOT_IN_SCOPE."""
    if not _is_visible(connection, subject, scope):
        raise not_in_scope("device")
    below = checkpoint.size
    if as_of:
        below = index_store.entries_until(connection, as_of, size=below)
    chosen = _Choice(connection, subject, time=time, below=below).made()
    return _answer(chosen, checkpoint, scope, below)


def _is_visible(connection: Connection, subject: str, scope: Scope) -> bool:
    """Whether the scope covers any record of the subject; most often its newest."""
    newest = index_store.newest_of(connection, subject)
    if newest is None:
        return False
    row = Records(connection).row(newest)
    return scope.covers(row.organization, row.site) or has_visible_record(connection, subject, scope)


def check_moment(time: int, as_of: int, *, now: int) -> None:
    """Whether a moment can be asked about. Raises FIELD_INVALID."""
    latest = now + MAX_CLOCK_SKEW_MS
    if time <= 0:
        raise field_invalid("time_ms", "A moment lies after 1970.")
    if time > latest:
        raise field_invalid("time_ms", "That moment lies in the future: nothing can be on record about it.")
    if as_of and as_of < time:
        raise field_invalid("as_of_ms", "What the log held before the moment says nothing about it.")
    if as_of > latest:
        raise field_invalid("as_of_ms", "What the log will hold in the future is not known.")


@dataclass(slots=True)
class _Chosen:
    records: Records
    roles: dict[int, list[Role]] = field(default_factory=dict)
    chain: tuple[bytes, ...] = ()
    first_number: int = 0
    newest_number: int = 0
    truncated: bool = False

    def add(self, role: Role, *indexes: int | None) -> None:
        for index in indexes:
            if index is not None and role not in (roles := self.roles.setdefault(index, [])):
                roles.append(role)


class _Choice:
    """Picks the records about one moment, in one read transaction."""

    def __init__(self, connection: Connection, subject: str, *, time: int, below: int) -> None:
        self._connection = connection
        self._subject = subject
        self._time = time
        self._below = below
        self._records = Records(connection)
        self._chosen = _Chosen(self._records)
        self._payloads: dict[int, dict[Any, Any]] = {}

    def made(self) -> _Chosen:
        chosen = self._chosen
        before = self._measurement(self._last("result"), Role.EVIDENCE_BEFORE, Role.RESULT_BEFORE)
        after = self._measurement(self._first("result"), Role.EVIDENCE_AFTER, Role.RESULT_AFTER)
        chosen.add(Role.DECISION_BEFORE, *self._last("decision"))
        chosen.add(Role.DECISION_AFTER, *self._first("decision"))
        chosen.add(Role.ENROLMENT, *self._first("voucher", after=index_store.NEVER))
        self._epochs()
        self._many(Role.HOLD, self._last("hold", limit=MAX_HOLDS + 1), MAX_HOLDS)
        self._revocations(before)
        self._receipts(before, after)
        self._numbers(before, after)
        return chosen

    def _last(self, kind: str, *, limit: int = 1, after: int = index_store.NEVER) -> list[int]:
        return index_store.last_of(
            self._connection,
            self._subject,
            kind,
            until=self._time,
            below=self._below,
            limit=limit,
            after=after,
        )

    def _first(self, kind: str, *, after: int | None = None) -> list[int]:
        after = self._time if after is None else after
        return index_store.first_of(self._connection, self._subject, kind, after=after, below=self._below)

    def _measurement(self, found: list[int], evidence: Role, result: Role) -> tuple[Row, Row | None] | None:
        """A result, and the evidence it was made from."""
        if not found:
            return None
        row = self._records.row(found[0])
        self._chosen.add(result, row.index)
        digest = self._payload(row).get("evidence")
        index = self._records.index_of(digest) if isinstance(digest, bytes) else None
        if index is None or index >= self._below:
            return row, None
        self._chosen.add(evidence, index)
        return row, self._records.row(index)

    def _epochs(self) -> None:
        steps = [(REVOCATION_LOG, kind) for kind in sorted(STEPS)]
        last = index_store.last_of_each(self._connection, steps, until=self._time, below=self._below)
        first = index_store.first_of_each(self._connection, steps, after=self._time, below=self._below)
        # The owner sends its steps in their order, so the log holds them in it.
        self._chosen.add(Role.EPOCH_BEFORE, max(itertools.chain.from_iterable(last), default=None))
        self._chosen.add(Role.EPOCH_AFTER, min(itertools.chain.from_iterable(first), default=None))

    def _revocations(self, before: tuple[Row, Row | None] | None) -> None:
        subjects = [self._subject]
        if before is not None:
            result, evidence = before
            measured = self._payload(result).get("measurements")
            if isinstance(measured, dict):
                for name, kind in (
                    ("firmware", "build"),
                    ("configuration", "baseline"),
                    ("library", "baseline"),
                ):
                    if isinstance(measured.get(name), bytes):
                        subjects.append(f"{kind}/{measured[name].hex()}")
                if isinstance(measured.get("firmware"), bytes):
                    self._build(f"build/{measured['firmware'].hex()}")
            if evidence is not None:
                subjects.append(f"credential/{evidence.leaf.signer.hex()}")
        asked = list(itertools.product(dict.fromkeys(subjects), ("revocation", "reinstatement")))
        for found in index_store.last_of_each(
            self._connection, asked, until=self._time, below=self._below, limit=MAX_REVOCATIONS + 1
        ):
            self._many(Role.REVOCATION, found, MAX_REVOCATIONS)

    def _build(self, subject: str) -> None:
        found = index_store.first_of(
            self._connection, subject, "release", after=index_store.NEVER, below=self._below
        )
        self._chosen.add(Role.BUILD, *found)

    def _receipts(self, before: tuple[Row, Row | None] | None, after: tuple[Row, Row | None] | None) -> None:
        """Between the measurements, by the times they carry; and the last one before the moment."""
        self._chosen.add(Role.RECEIPT, *self._last("receipt"))
        until = self._below_time(after)
        found = index_store.first_of(
            self._connection,
            self._subject,
            "receipt",
            after=self._said(before[1] or before[0]) if before else self._time,
            until=until,
            below=self._below,
            limit=MAX_RECEIPTS + 1,
        )
        self._many(Role.RECEIPT, found, MAX_RECEIPTS)

    def _said(self, row: Row) -> int:
        """When its signer says to have signed it (ms), never later than the log took it."""
        sign1 = self._sign1(row)
        issued = None if sign1 is None else sign1.claims.get(_IAT)
        return min(issued * 1000, row.leaf.log_time) if isinstance(issued, int) else row.leaf.log_time

    def _payload(self, row: Row) -> dict[Any, Any]:
        """What it says; nothing where it was erased or cannot be read."""
        found = self._payloads.get(row.index)
        if found is None:
            found = self._payloads[row.index] = _decoded(self._sign1(row))
        return found

    def _sign1(self, row: Row) -> cose.Sign1 | None:
        try:
            return cose.parse(row.statement)
        except Refused:
            return None

    def _below_time(self, after: tuple[Row, Row | None] | None) -> int:
        return index_store.EVER if after is None else after[0].leaf.log_time

    def _numbers(self, before: tuple[Row, Row | None] | None, after: tuple[Row, Row | None] | None) -> None:
        """The device's numbered records: the two neighbours of the moment, and all between the measurements."""
        connection, subject, chosen = self._connection, self._subject, self._chosen
        until = index_store.entries_until(connection, self._time, size=self._below)
        known = self._records.numbers(subject)
        newest = index_store.records_below(connection, subject, self._below)
        neighbour = newest
        if until < self._below:
            neighbour = index_store.records_below(connection, subject, until, known=known)
        chosen.newest_number = newest
        first, last = 1, min(neighbour + 1, newest)
        if before is not None:
            first = min(max(neighbour, 1), *(row.number(subject) for row in before if row is not None))
        last = newest if after is None else max(last, after[0].number(subject))
        span: dict[int, int] = {}
        if first >= 1 and last - first < MAX_CHAIN:
            chosen.first_number = first
            records = index_store.span(connection, subject, first, last)
            chosen.chain = tuple(one.leaf for one in records)
            span = {one.number: one.index for one in records}
        if neighbour:
            chosen.add(Role.NEIGHBOUR_BEFORE, span.get(neighbour) or self._numbered(neighbour))
        if neighbour < newest:
            chosen.add(Role.NEIGHBOUR_AFTER, span.get(neighbour + 1) or self._numbered(neighbour + 1))
        if after is None and newest:
            chosen.add(Role.NEWEST, span.get(newest) or self._numbered(newest))

    def _numbered(self, number: int) -> int:
        index = index_store.numbered(self._connection, self._subject, number)
        if index is None:
            raise LookupError(f"{self._subject} lacks its record {number}")
        return index

    def _many(self, role: Role, found: list[int], most: int) -> None:
        self._chosen.add(role, *found[:most])
        if len(found) > most:
            self._chosen.truncated = True


def _answer(chosen: _Chosen, checkpoint: Checkpoint, scope: Scope, below: int) -> State:
    indexes = sorted(chosen.roles)
    return State(
        considered=below,
        checkpoint=checkpoint,
        records=tuple(
            _shown(chosen.records, index, chosen.roles[index], path, scope)
            for index, path in zip(indexes, chosen.records.paths(indexes, checkpoint.size), strict=True)
        ),
        chain=chosen.chain,
        first_number=chosen.first_number,
        newest_number=chosen.newest_number,
        truncated=chosen.truncated,
    )


def _shown(records: Records, index: int, roles: list[Role], path: tuple[bytes, ...], scope: Scope) -> Shown:
    entry, row = records.entry(index), records.row(index)
    withheld = not scope.covers(entry.organization, entry.site)
    if withheld:
        entry = _withheld(entry, row)
    return Shown(entry, row.leaf, tuple(roles), path, withheld)


def _withheld(entry: StoredEntry, row: Row) -> StoredEntry:
    """What anybody may see: the leaf, and of a step of the chain of revocations its epoch, which is no secret."""
    bodies = entry.bodies if row.leaf.kind in STEPS else ()
    return StoredEntry(
        index=entry.index,
        leaf=entry.leaf,
        digest=entry.digest,
        statement=b"",
        chain=(),
        bodies=bodies,
        place=entry.place,
        organization="",
        site="",
        erased=entry.erased,
    )


def _decoded(sign1: cose.Sign1 | None) -> dict[Any, Any]:
    try:
        payload = None if sign1 is None else cbor.decode(sign1.payload)
    except Refused:
        return {}
    return payload if isinstance(payload, dict) else {}
