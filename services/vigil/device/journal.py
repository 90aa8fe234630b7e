"""The journal of requests: one request id, one execution, whoever else lost their memory.

A row goes from *staged* or *executing* to *final* and never back. Receipts are kept as the exact bytes that were
signed, and sent again as these. A row that is still executing after a restart was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vigil.core import cbor
from vigil.core.commands import RecordedProof
from vigil.device.facts import Admission, Bundle
from vigil.device.store import DeviceStore

_MAX_BUNDLE = 1 << 20
_COLUMNS = "request_id, intent, command, permit, state, action, performed_by, work_order"


class State(StrEnum):
    STAGED = "staged"
    EXECUTING = "executing"
    FINAL = "final"


_NEXT = {
    State.STAGED: frozenset({State.EXECUTING, State.FINAL}),
    State.EXECUTING: frozenset({State.FINAL}),
    State.FINAL: frozenset[State](),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a receipt is made of, long after the bundle was judged; digests of statements."""

    request_id: bytes
    intent: bytes
    command: bytes
    permit: bytes | None
    state: State
    action: str
    performed_by: str
    work_order: str | None


@dataclass(frozen=True, slots=True)
class StagedRow:
    """A staged command as it lies on disk. ``times``: the instants at which intent and approvals were judged."""

    row: Row
    bundle: Bundle
    times: tuple[int, ...]
    apply_not_after: int


class Journal:
    """Rows and receipts; every change inside one of the store's transactions."""

    def __init__(self, *, store: DeviceStore) -> None:
        self._store = store

    def find(self, request_id: bytes) -> Row | None:
        """The row of a request."""
        rows = self._rows("request_id = ?", (request_id,))
        return rows[0] if rows else None

    def executing(self) -> list[Row]:
        """Rows that were about to execute and never finished."""
        return self._rows("state = ?", (str(State.EXECUTING),))

    def staged(self) -> list[StagedRow]:
        """Every command that waits to be applied."""
        out = []
        for row in self._rows("state = ?", (str(State.STAGED),)):
            (bundle, times, until) = self._store.execute(
                "SELECT bundle, times, apply_not_after FROM journal WHERE request_id = ?", (row.request_id,)
            )[0]
            judged_at = tuple(cbor.decode(times))
            out.append(StagedRow(row, _decode(bundle), judged_at, until))
        return out

    def begin(self, admission: Admission, state: State) -> Row:
        """Note a request before anything is done; staged ones with all that is needed to judge them again."""
        read_one, intent, parties = admission.read, admission.intent, admission.parties
        row = Row(
            request_id=intent.request_id,
            intent=read_one.intent.digest,
            command=read_one.command.digest,
            permit=admission.permit_digest,
            state=state,
            action=intent.action,
            performed_by=parties.executor.id,
            work_order=intent.work_order,
        )
        times = [parties.intent_at, *(at for _, _, at in parties.approvals)]
        self._store.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.request_id,
                row.intent,
                row.command,
                row.permit,
                read_one.bundle.permit or None,
                str(row.state),
                row.action,
                row.performed_by,
                row.work_order,
                _encode(read_one.bundle) if admission.staged else None,
                cbor.encode(times) if admission.staged else None,
                admission.apply_not_after if admission.staged else None,
            ),
        )
        return row

    def move(self, request_id: bytes, state: State) -> None:
        """Take a row on. Raises ValueError for a way that there is not."""
        row = self.find(request_id)
        if row is None or state not in _NEXT[row.state]:
            raise ValueError(f"no way from {row.state if row else 'nowhere'} to {state}")
        self._store.execute("UPDATE journal SET state = ? WHERE request_id = ?", (str(state), request_id))

    def add_receipt(self, request_id: bytes, number: int, data: bytes) -> None:
        """Keep a receipt's bytes; it counts as unsent until a gateway says that it keeps it."""
        self._store.execute("INSERT INTO receipts VALUES (?, ?, ?, 0)", (request_id, number, data))

    def receipts(self, request_id: bytes) -> tuple[bytes, ...]:
        """All receipts of a request, oldest first."""
        rows = self._store.execute(
            "SELECT data FROM receipts WHERE request_id = ? ORDER BY number", (request_id,)
        )
        return tuple(row[0] for row in rows)

    def unsent(self) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """Requests with receipts that no gateway keeps yet, with all of their receipts."""
        rows = self._store.execute("SELECT DISTINCT request_id FROM receipts WHERE sent = 0")
        return [(row[0], self.receipts(row[0])) for row in rows]

    def sent(self, request_id: bytes, *, up_to: int) -> None:
        """The receipts up to this number are durable at a gateway."""
        self._store.execute(
            "UPDATE receipts SET sent = 1 WHERE request_id = ? AND number <= ? AND sent = 0",
            (request_id, up_to),
        )

    def permits(self, digests: Sequence[bytes]) -> list[bytes]:
        """The permit statements with these digests, as they came."""
        out = []
        for digest in dict.fromkeys(digests):
            rows = self._store.execute(
                "SELECT permit_statement FROM journal WHERE permit = ? LIMIT 1", (digest,)
            )
            out += [row[0] for row in rows if row[0] is not None]
        return out

    def _rows(self, condition: str, values: Sequence[object]) -> list[Row]:
        query = f"SELECT {_COLUMNS} FROM journal WHERE {condition}"  # noqa: S608 - constants of this module
        rows = self._store.execute(query, values)
        return [
            Row(
                request_id=row[0],
                intent=row[1],
                command=row[2],
                permit=row[3],
                state=State(row[4]),
                action=row[5],
                performed_by=row[6],
                work_order=row[7],
            )
            for row in rows
        ]


def _encode(bundle: Bundle) -> bytes:
    return cbor.encode(
        [
            bundle.intent,
            bundle.command,
            list(bundle.approvals),
            [_proof(proof) for proof in bundle.statements_recorded],
            bundle.permit,
            _proof(bundle.permit_recorded) if bundle.permit_recorded else None,
            bundle.release,
            bundle.downgrade,
        ]
    )


def _proof(proof: RecordedProof) -> list[object]:
    return [proof.recorded, proof.index, list(proof.path)]


def _decode(data: bytes) -> Bundle:
    intent, command, approvals, proofs, permit, permit_proof, release, downgrade = cbor.decode(
        data, max_bytes=_MAX_BUNDLE
    )

    def proof(value: list[object]) -> RecordedProof:
        recorded, index, path = value
        if not (isinstance(recorded, bytes) and isinstance(index, int) and isinstance(path, list)):
            raise TypeError("a stored proof has another form")
        return RecordedProof(recorded, index, tuple(path))

    return Bundle(
        intent=intent,
        command=command,
        approvals=tuple(approvals),
        statements_recorded=tuple(proof(one) for one in proofs),
        permit=permit,
        permit_recorded=None if permit_proof is None else proof(permit_proof),
        release=release,
        downgrade=downgrade,
    )
