"""Commands and receipts as rows: written once with the answer, brought up to date by later receipts."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, delete, select, update

from vigil.core import cbor
from vigil.core.statements.bodies import Receipt
from vigil.core.statements.envelope import Statement, read
from vigil.gateway.domain import FORWARDED, REFUSED, UNKNOWN, UNSETTLED, outcome_of
from vigil.gateway.store import COMMAND, RECEIPT, digest_range, is_prefix

KEPT_REFUSALS: Final = 10_000
KEPT_COMMANDS: Final = 100_000
"""What the list of commands holds at most; the record of everything is the evidence log's."""
RECENT: Final = 16_384
"""Commands whose retry is recognised after a restart: far more than their nonces' 5 s let through."""
MAX_OPEN_REQUESTS: Final = 64
"""Requests of one device that are asked about when it comes back."""


def _insert(table: Table, names: Sequence[str], otherwise: str) -> str:
    """Written once, in the driver's own words: to build and bind a statement costs more than its row does."""
    marks = ", ".join("?" * len(names))
    return f"INSERT OR {otherwise} INTO {table.name} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - our names


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """One command as the gateway knows it. ``status`` is a serialized google.rpc.Status, empty unless refused."""

    digest: bytes
    intent: bytes
    device: str
    action: str
    action_class: str
    requester: str
    credential: bytes
    alone: bool
    request_id: bytes
    work_order: str
    outcome: str
    reason: str
    settled: bool
    status: bytes
    statement: bytes
    intent_statement: bytes
    approvals: tuple[bytes, ...]
    decision: bytes
    recorded: bytes
    create_time: int
    update_time: int


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A receipt whose signature was verified."""

    statement: Statement[Receipt]
    time: int


_COMMAND_COLUMNS: Final = tuple(name for name in CommandRow.__slots__ if name != "approvals")
_COMMAND_VALUES: Final = attrgetter(*_COMMAND_COLUMNS)
_PUT_COMMAND: Final = _insert(COMMAND, (*_COMMAND_COLUMNS, "approvals"), "REPLACE")
_PUT_RECEIPT: Final = _insert(
    RECEIPT,
    ("digest", "intent", "command", "device", "request_id", "number", "statement", "create_time"),
    "IGNORE",
)


def put_command(connection: Connection, row: CommandRow) -> None:
    """Write or replace a command's row."""
    values = (*_COMMAND_VALUES(row), cbor.encode(list(row.approvals)))
    connection.exec_driver_sql(_PUT_COMMAND, values)


def put_receipts(connection: Connection, receipts: Sequence[KeptReceipt]) -> list[Statement[Receipt]]:
    """Keep receipts; answers those that were new."""
    fresh = []
    for receipt in receipts:
        body = receipt.statement.body
        done = connection.exec_driver_sql(
            _PUT_RECEIPT,
            (
                receipt.statement.digest,
                body.intent,
                body.command,
                body.device,
                body.request_id,
                body.number,
                receipt.statement.data,
                receipt.time,
            ),
        )
        if done.rowcount == 1:
            fresh.append(receipt.statement)
    return fresh


def follow_receipts(connection: Connection, receipt: Statement[Receipt], *, now: int) -> None:
    """Bring the commands of one intent on one device to what the newest receipt says."""
    body = receipt.body
    statements = receipts_of(connection, intent=body.intent, device=body.device)
    newest = outcome_of(read(data, Receipt).body for data in statements)
    if newest is None:
        return
    connection.execute(
        update(COMMAND)
        .where(
            COMMAND.c.intent == body.intent,
            COMMAND.c.device == body.device,
            COMMAND.c.outcome.in_(UNSETTLED),
        )
        .values(outcome=str(newest.outcome), reason=newest.reason or "", update_time=now, settled=True)
    )


def never_begun(
    connection: Connection, *, device: str, request_id: bytes, reason: str, status: bytes, now: int
) -> None:
    """Note of what went to a device and was never answered that the device did nothing of it."""
    connection.execute(
        update(COMMAND)
        .where(
            COMMAND.c.device == device,
            COMMAND.c.request_id == request_id,
            COMMAND.c.outcome.in_((FORWARDED, UNKNOWN)),
        )
        .values(outcome=REFUSED, reason=reason, status=status, update_time=now)
    )


def receipts_of(connection: Connection, *, intent: bytes, device: str) -> list[bytes]:
    """The receipts of an intent on a device, oldest first."""
    rows = connection.execute(
        select(RECEIPT.c.statement)
        .where(RECEIPT.c.intent == intent, RECEIPT.c.device == device)
        .order_by(RECEIPT.c.number, RECEIPT.c.create_time)
    )
    return [row.statement for row in rows]


def receipts_of_request(connection: Connection, *, device: str, request_id: bytes) -> list[bytes]:
    """The receipts of a request id on a device, oldest first."""
    rows = connection.execute(
        select(RECEIPT.c.statement)
        .where(RECEIPT.c.device == device, RECEIPT.c.request_id == request_id)
        .order_by(RECEIPT.c.number, RECEIPT.c.create_time)
    )
    return [row.statement for row in rows]


def find_command(connection: Connection, digest: bytes) -> CommandRow | None:
    """The row of one command."""
    row = connection.execute(select(COMMAND).where(COMMAND.c.digest == digest)).first()
    return _row(row) if row else None


def find_by_request(connection: Connection, *, device: str, request_id: bytes) -> CommandRow | None:
    """The newest command that carried this request id to this device."""
    row = connection.execute(
        select(COMMAND)
        .where(COMMAND.c.device == device, COMMAND.c.request_id == request_id)
        .order_by(COMMAND.c.id.desc())
        .limit(1)
    ).first()
    return _row(row) if row else None


def find_by_prefix(connection: Connection, prefix: str) -> list[CommandRow]:
    """Commands whose id, or else whose intent's id, begins so (hex, 8 digits or more): at most two."""
    if not is_prefix(prefix):
        return []
    for column in (COMMAND.c.digest, COMMAND.c.intent):
        rows = connection.execute(
            select(COMMAND)
            .where(column.between(*digest_range(prefix)))
            .order_by(COMMAND.c.id.desc())
            .limit(2)
        ).fetchall()
        if rows:
            return [_row(row) for row in rows]
    return []


def list_commands(
    connection: Connection, *, before: int | None, limit: int, device: str
) -> list[tuple[int, CommandRow]]:
    """Newest first, from before a row id on; with the row ids."""
    query = select(COMMAND).order_by(COMMAND.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(COMMAND.c.id < before)
    if device:
        query = query.where(COMMAND.c.device == device)
    return [(int(row.id), _row(row)) for row in connection.execute(query)]


def settled_digests(connection: Connection) -> list[bytes]:
    """The newest settled commands, oldest first."""
    rows = connection.execute(
        select(COMMAND.c.digest).where(COMMAND.c.settled).order_by(COMMAND.c.id.desc()).limit(RECENT)
    ).fetchall()
    return [row.digest for row in reversed(rows)]


def open_requests(connection: Connection, device: str) -> list[bytes]:
    """Request ids of one device that may still have news, newest first."""
    rows = connection.execute(
        select(COMMAND.c.request_id)
        .where(COMMAND.c.device == device, COMMAND.c.outcome.in_(UNSETTLED))
        .order_by(COMMAND.c.id.desc())
        .limit(MAX_OPEN_REQUESTS)
    )
    return list(dict.fromkeys(row.request_id for row in rows))


def touched_alone(connection: Connection, *, since: int) -> list[tuple[str, str, int]]:
    """Class S1 commands that went out without a second person: person, device, time (ms), oldest first."""
    rows = connection.execute(
        select(COMMAND.c.requester, COMMAND.c.device, COMMAND.c.create_time)
        .where(COMMAND.c.alone, COMMAND.c.create_time >= since, COMMAND.c.outcome != REFUSED)
        .order_by(COMMAND.c.id)
    )
    return [(row.requester, row.device, row.create_time) for row in rows]


def prune(connection: Connection) -> None:
    """Drop the oldest refusals and the oldest commands beyond what the list keeps."""
    for condition, kept in ((COMMAND.c.outcome == REFUSED, KEPT_REFUSALS), (COMMAND.c.id > 0, KEPT_COMMANDS)):
        oldest = connection.execute(
            select(COMMAND.c.id).where(condition).order_by(COMMAND.c.id.desc()).limit(1).offset(kept)
        ).scalar()
        if oldest is not None:
            connection.execute(delete(COMMAND).where(condition, COMMAND.c.id <= oldest))
    oldest = connection.execute(
        select(RECEIPT.c.create_time)
        .order_by(RECEIPT.c.create_time.desc())
        .limit(1)
        .offset(2 * KEPT_COMMANDS)
    ).scalar()
    if oldest is not None:
        connection.execute(delete(RECEIPT).where(RECEIPT.c.create_time <= oldest))


def _row(row: Row[Any]) -> CommandRow:
    values = {name: getattr(row, name) for name in CommandRow.__slots__}
    values["approvals"] = tuple(cbor.decode(row.approvals, max_bytes=1 << 20))
    return CommandRow(**values)
