"""Intents that wait for approvals, and the approvals, as rows."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from vigil.gateway.store import APPROVAL, INTENT, digest_range, is_prefix

OPEN, CANCELLED, USED = "open", "cancelled", "used"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRow:
    """One approval that is on record; ``recorded`` is a serialized RecordedItem."""

    intent: bytes
    approver: str
    credential: bytes
    digest: bytes
    statement: bytes
    recorded: bytes
    expires: int
    voided: bool
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentRow:
    """One intent that is on record, with the approvals that stand."""

    digest: bytes
    action: str
    requester: str
    credential: bytes
    state: str
    needed: int
    expires: int
    devices: tuple[str, ...]
    done: tuple[str, ...]
    statement: bytes
    recorded: bytes
    create_time: int
    approvals: tuple[ApprovalRow, ...] = ()


_INTENT_COLUMNS = tuple(name for name in IntentRow.__slots__ if name != "approvals")


def put_intent(connection: Connection, row: IntentRow) -> None:
    """Keep a new intent; one that is kept already stays as it is."""
    values = {name: getattr(row, name) for name in _INTENT_COLUMNS}
    values["devices"], values["done"] = json.dumps(row.devices), json.dumps(row.done)
    connection.execute(insert(INTENT).prefix_with("OR IGNORE"), values)


def put_approval(connection: Connection, row: ApprovalRow) -> None:
    """Keep an approval; the first one of a person stays, unless a revocation voided it."""
    connection.execute(
        delete(APPROVAL).where(
            APPROVAL.c.intent == row.intent, APPROVAL.c.approver == row.approver, APPROVAL.c.voided
        )
    )
    connection.execute(
        insert(APPROVAL).prefix_with("OR IGNORE"),
        {name: getattr(row, name) for name in ApprovalRow.__slots__},
    )


def find_intent(connection: Connection, digest: bytes) -> IntentRow | None:
    """One intent with its standing approvals."""
    row = connection.execute(select(INTENT).where(INTENT.c.digest == digest)).first()
    return _row(connection, row) if row else None


def known_digests(connection: Connection) -> list[bytes]:
    """Every intent that is kept."""
    return [row.digest for row in connection.execute(select(INTENT.c.digest))]


def find_intents_by_prefix(connection: Connection, prefix: str) -> list[IntentRow]:
    """Intents whose id begins so (hex): at most two."""
    if not is_prefix(prefix):
        return []
    matching = INTENT.c.digest.between(*digest_range(prefix))
    rows = connection.execute(select(INTENT).where(matching).order_by(INTENT.c.id.desc()).limit(2)).fetchall()
    return [_row(connection, row) for row in rows]


def list_intents(connection: Connection, *, before: int | None, limit: int) -> list[tuple[int, IntentRow]]:
    """Newest first, from before a row id on; with the row ids."""
    query = select(INTENT).order_by(INTENT.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(INTENT.c.id < before)
    return [(int(row.id), _row(connection, row)) for row in connection.execute(query).fetchall()]


def cancel_intent(connection: Connection, digest: bytes) -> None:
    """Take an intent back."""
    connection.execute(update(INTENT).where(INTENT.c.digest == digest).values(state=CANCELLED))


def use_intent(connection: Connection, digest: bytes, device: str) -> None:
    """Note that a device was commanded; the intent is used up when all of its devices were."""
    row = connection.execute(
        select(INTENT.c.devices, INTENT.c.done, INTENT.c.state).where(INTENT.c.digest == digest)
    ).first()
    if row is None:
        return
    done = json.loads(row.done)
    if device not in done:
        done.append(device)
    used = set(json.loads(row.devices)) <= set(done) and row.state == OPEN
    connection.execute(
        update(INTENT)
        .where(INTENT.c.digest == digest)
        .values(done=json.dumps(done), state=USED if used else row.state)
    )


def void(connection: Connection, *, credentials: Sequence[bytes], people: Iterable[str]) -> None:
    """A compromise: the open intents and the approvals that these credentials or people signed are worth nothing."""
    people = tuple(people)
    connection.execute(
        update(APPROVAL)
        .where(or_(APPROVAL.c.credential.in_(credentials), APPROVAL.c.approver.in_(people)))
        .values(voided=True)
    )
    connection.execute(
        update(INTENT)
        .where(
            INTENT.c.state == OPEN, or_(INTENT.c.credential.in_(credentials), INTENT.c.requester.in_(people))
        )
        .values(state=CANCELLED)
    )


def prune_intents(connection: Connection, *, expired_before: int) -> None:
    """Drop intents that expired long ago."""
    old = select(INTENT.c.digest).where(INTENT.c.expires < expired_before)
    connection.execute(delete(APPROVAL).where(APPROVAL.c.intent.in_(old)))
    connection.execute(delete(INTENT).where(INTENT.c.expires < expired_before))


def _row(connection: Connection, row: Row[Any]) -> IntentRow:
    approvals = connection.execute(
        select(APPROVAL)
        .where(APPROVAL.c.intent == row.digest, APPROVAL.c.voided.is_(False))
        .order_by(APPROVAL.c.create_time, APPROVAL.c.approver)
    ).fetchall()
    values = {name: getattr(row, name) for name in _INTENT_COLUMNS}
    values["devices"], values["done"] = tuple(json.loads(row.devices)), tuple(json.loads(row.done))
    return IntentRow(
        **values,
        approvals=tuple(
            ApprovalRow(**{name: getattr(one, name) for name in ApprovalRow.__slots__}) for one in approvals
        ),
    )
