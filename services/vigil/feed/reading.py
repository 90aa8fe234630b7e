"""What is read from a feed's tables; each function runs inside one read transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, bindparam, or_, select, tuple_

from vigil.api.feed.v1 import feed_pb2
from vigil.feed.change import START, Position, Row, Scope
from vigil.feed.tables import TABLES

PAGE = 500
"""Changes in one message at most."""
PAGE_BYTES = 512 * 1024
"""Bytes of values in one message at most, unless a single value is larger."""

_counter, _outbox, _state = TABLES.counter, TABLES.outbox, TABLES.state
# Built once: to build a statement costs several times its execution, and a head is read at each beat.
_HEAD = select(_counter.c.sequence, _counter.c.mark)
_FLOOR = select(_counter.c.floor)
_MARK = select(_outbox.c.mark).where(_outbox.c.sequence == bindparam("at"))


@dataclass(frozen=True, slots=True)
class StatePage:
    """A page of the state, and where the next one begins (None: there is none)."""

    changes: list[feed_pb2.Change]
    after: tuple[str, ...] | None


def read_head(connection: Connection) -> Position:
    """Read the newest position."""
    row = connection.execute(_HEAD).one_or_none()
    return Position(row.sequence, row.mark) if row else START


def continues(connection: Connection, position: Position) -> bool:
    """Tell whether the owner's history leads on from this position, and the tail still holds what follows."""
    head = connection.execute(_HEAD).one_or_none()
    if head is None:
        return position == START
    if position.sequence == head.sequence:
        return bool(position.mark == head.mark)
    if position == START:
        return connection.execute(_FLOOR).scalar() == 0
    if position.sequence >= 2**63:  # no database counts so far; a uint64 of the contract does
        return False
    mark = connection.execute(_MARK, {"at": position.sequence}).scalar()
    return bool(mark is not None and mark == position.mark)


def read_tail(
    connection: Connection, after: Position, *, up_to: int, scope: Scope, limit: int = PAGE
) -> tuple[list[Row], bool]:
    """Read what ``scope`` sees after a position, in order; whether this was all of it."""
    if up_to <= after.sequence:
        return [], True
    query = select(_outbox).where(_outbox.c.sequence > after.sequence, _outbox.c.sequence <= up_to)
    if scope.kinds:
        query = query.where(_outbox.c.kind.in_(sorted(scope.kinds)))
    if scope.sites is not None:
        sites = ["", *sorted(scope.sites)]
        query = query.where(or_(_outbox.c.scope_site.in_(sites), _outbox.c.previous_site.in_(sites)))
    rows: list[Row] = []
    size = 0
    with connection.execute(query.order_by(_outbox.c.sequence).limit(limit + 1)) as result:
        for found in result:
            size += len(found.value)
            if len(rows) == limit or (rows and size > PAGE_BYTES):
                return rows, False
            rows.append(_row(found))
    return rows, True


def read_state(connection: Connection, *, scope: Scope, after: tuple[str, ...] | None) -> StatePage:
    """Read one page of what ``scope`` sees of the state, by site where it is limited to sites, kind and key."""
    changes: list[feed_pb2.Change] = []
    size = 0
    last: tuple[str, ...] | None = None
    with connection.execute(_state_query(scope, after)) as result:
        for found in result:
            size += len(found.value)
            if len(changes) == PAGE or (changes and size > PAGE_BYTES):
                return StatePage(changes, last)
            changes.append(
                feed_pb2.Change(
                    sequence=found.sequence,
                    kind=found.kind,
                    key=found.key,
                    value=found.value,
                    site_id=found.scope_site,
                )
            )
            last = (found.kind, found.key)
            if scope.sites is not None:
                last = (found.scope_site, *last)
    return StatePage(changes, None)


def _state_query(scope: Scope, after: tuple[str, ...] | None) -> Select[Any]:
    order = [_state.c.kind, _state.c.key]
    query = select(_state)
    if scope.sites is not None:
        order.insert(0, _state.c.scope_site)
        query = query.where(_state.c.scope_site.in_(["", *sorted(scope.sites)]))
    if scope.kinds:
        query = query.where(_state.c.kind.in_(sorted(scope.kinds)))
    if after is not None:
        query = query.where(tuple_(*order) > tuple_(*after))
    return query.order_by(*order).limit(PAGE + 1)


def _row(found: Any) -> Row:
    shown = feed_pb2.Change(
        sequence=found.sequence,
        kind=found.kind,
        key=found.key,
        value=found.value,
        deleted=found.deleted,
        site_id=found.scope_site,
    )
    gone = shown
    if found.previous_site is not None:
        # A reader that loses sight of it does not learn where it went.
        gone = feed_pb2.Change(
            sequence=found.sequence,
            kind=found.kind,
            key=found.key,
            deleted=True,
            site_id=found.previous_site,
        )
    return Row(
        position=Position(found.sequence, found.mark),
        kind=found.kind,
        site=found.scope_site,
        previous_site=found.previous_site,
        shown=shown,
        gone=gone,
    )
