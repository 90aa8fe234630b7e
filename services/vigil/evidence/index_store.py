"""The index's tables: filled behind the log, in order and in transactions of their own, and asked by those who look.

Nothing here is needed to append, and nothing here is believed: what is found is read from the log and proved.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Select,
    bindparam,
    literal_column,
    or_,
    select,
    union_all,
)

from vigil.core.moment import STEPS
from vigil.errors import Refused
from vigil.evidence.index import INDEX_VERSION, Named, Refers, Rows, read_named
from vigil.evidence.store import load_bodies
from vigil.evidence.tables import (
    ENTRY,
    ERASED,
    GROUP_COMMIT,
    INDEX_STATE,
    KIND_TIME,
    REFERENCE,
    STATEMENT,
    SUBJECT_RECORD,
    SUBJECT_TIME,
)
from vigil.storage import add_missing_rows, delete_keys, put_rows
from vigil.storage.rows import compiled, run

CLEARING: Final = -1
CLEARED_AT_ONCE: Final = 8_192
"""Rows: some tens of milliseconds of the writer's time."""
INDEX_TABLES: Final = (SUBJECT_TIME, KIND_TIME, REFERENCE)

_sql = cache(compiled)
"""Statements in the driver's words, each compiled once."""

_ZERO: Final[ColumnElement[int]] = literal_column("0", Integer)
"""Said in so many words: SQLite's dialect would add it as one more value."""
_STATE = select(INDEX_STATE.c.version, INDEX_STATE.c.covered).where(INDEX_STATE.c.id == literal_column("1"))
_HELD_STATE = _STATE.with_for_update()
_ENTRIES = (
    select(ENTRY.c.idx, ENTRY.c.leaf, STATEMENT.c.data)
    .outerjoin(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
    .where(ENTRY.c.idx >= bindparam("first"), ENTRY.c.idx < bindparam("end"))
    .order_by(ENTRY.c.idx)
)
_ERASED = (
    select(ERASED.c.idx)
    .outerjoin(STATEMENT, STATEMENT.c.idx == ERASED.c.idx)
    .where(ERASED.c.idx >= bindparam("first"), ERASED.c.idx < bindparam("end"), STATEMENT.c.idx.is_(None))
)


def _one(query: Select[Any]) -> Select[Any]:
    return query.limit(literal_column("1")).offset(_ZERO)


_SUBJECT_KIND = select(SUBJECT_TIME.c.time, SUBJECT_TIME.c.idx).where(
    SUBJECT_TIME.c.subject == bindparam("subject"),
    SUBJECT_TIME.c.kind == bindparam("kind"),
    SUBJECT_TIME.c.time > bindparam("after"),
    SUBJECT_TIME.c.time <= bindparam("until"),
    SUBJECT_TIME.c.idx < bindparam("below"),
)
_LAST = (
    _SUBJECT_KIND.order_by(SUBJECT_TIME.c.time.desc(), SUBJECT_TIME.c.idx.desc())
    .limit(bindparam("limit"))
    .offset(_ZERO)
)
_FIRST = (
    _SUBJECT_KIND.order_by(SUBJECT_TIME.c.time, SUBJECT_TIME.c.idx).limit(bindparam("limit")).offset(_ZERO)
)
_REFERRED = (
    select(REFERENCE.c.idx)
    .where(
        REFERENCE.c.what == bindparam("what"),
        REFERENCE.c.value == bindparam("value"),
        REFERENCE.c.idx > bindparam("after"),
        REFERENCE.c.idx < bindparam("below"),
    )
    .order_by(REFERENCE.c.idx)
    .limit(bindparam("limit"))
    .offset(_ZERO)
)
_KIND = (
    select(KIND_TIME.c.time, KIND_TIME.c.idx)
    .where(
        KIND_TIME.c.kind == bindparam("kind"),
        KIND_TIME.c.time >= bindparam("after"),
        or_(KIND_TIME.c.time > bindparam("time"), KIND_TIME.c.idx > bindparam("index")),
        KIND_TIME.c.time <= bindparam("until"),
        KIND_TIME.c.idx < bindparam("below"),
    )
    .order_by(KIND_TIME.c.time, KIND_TIME.c.idx)
    .limit(bindparam("limit"))
    .offset(_ZERO)
)
_COMMIT_AFTER = _one(
    select(GROUP_COMMIT.c.first)
    .where(GROUP_COMMIT.c.log_time > bindparam("time"))
    .order_by(GROUP_COMMIT.c.log_time, GROUP_COMMIT.c.first)
)
_NUMBERED = select(SUBJECT_RECORD.c.idx).where(
    SUBJECT_RECORD.c.subject == bindparam("subject"), SUBJECT_RECORD.c.number == bindparam("number")
)
_NEWEST = _one(
    select(SUBJECT_RECORD.c.number, SUBJECT_RECORD.c.idx)
    .where(SUBJECT_RECORD.c.subject == bindparam("subject"))
    .order_by(SUBJECT_RECORD.c.number.desc())
)
_SPAN = (
    select(SUBJECT_RECORD.c.number, SUBJECT_RECORD.c.idx, ENTRY.c.leaf)
    .join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
    .where(
        SUBJECT_RECORD.c.subject == bindparam("subject"),
        SUBJECT_RECORD.c.number >= bindparam("first"),
        SUBJECT_RECORD.c.number <= bindparam("last"),
    )
)


# --- filling it


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of the entries from ``first`` up to ``end``."""

    first: int
    end: int
    rows: Rows
    erased: frozenset[int]


def covered(connection: Connection, *, held: bool = False) -> int:
    """Every entry below this is in the index; 0 where there is none, CLEARING while one is emptied.

    ``held``: nobody else changes it before this transaction ends; SQLite has one writer at a time anyway.
    """
    row = _row(connection, _HELD_STATE if held else _STATE)
    if row is None:
        return 0
    return int(row[1]) if row[0] == INDEX_VERSION else CLEARING


def read_batch(connection: Connection, first: int, end: int) -> Batch:
    """Make the rows of consecutive entries from the log. Raises LookupError for one that is missing or no leaf."""
    entries: list[tuple[int, Named, bytes, Sequence[bytes]]] = []
    erased: list[int] = []
    for index, data, statement in run(connection, _sql(_ENTRIES, connection.dialect), (first, end)):
        if index != first + len(entries):
            break
        try:
            named = read_named(data)
        except Refused:
            raise LookupError(f"the log's entry {index} cannot be read") from None
        bodies = load_bodies(connection, named.bodies) if named.kind in STEPS else ()
        entries.append((index, named, statement or b"", bodies))
        if not statement:
            erased.append(index)
    if len(entries) != end - first:
        raise LookupError(f"the log lacks the entry {first + len(entries)}")
    return Batch(first, end, Rows.of(entries), frozenset(erased))


def write_batch(connection: Connection, batch: Batch) -> int:
    """Add the rows that follow on what the index covers; answers what it covers then. Another's rows stay alone.

    Nothing is added of a batch in which something was erased since it was read: it is to be read again.
    """
    done = covered(connection, held=True)
    if done != batch.first or _erased(connection, batch) - batch.erased:
        return done
    rows = batch.rows
    # In the order of their keys: neighbours lie on one page.
    add_missing_rows(connection, SUBJECT_TIME, sorted(rows.subjects))
    add_missing_rows(connection, KIND_TIME, sorted(rows.kinds))
    add_missing_rows(connection, REFERENCE, sorted(rows.references))
    put_rows(connection, INDEX_STATE, [(1, INDEX_VERSION, batch.end)])
    return batch.end


def _erased(connection: Connection, batch: Batch) -> set[int]:
    rows = run(connection, _sql(_ERASED, connection.dialect), (batch.first, batch.end))
    return {index for (index,) in rows}


def prepare(connection: Connection) -> int:
    """Begin to empty an index that another version made; answers what is covered."""
    done = covered(connection)
    if done == CLEARING:
        begin_clearing(connection)
    return done


def begin_clearing(connection: Connection) -> None:
    """From now on the index is emptied, by whoever comes (`clear_some`), and nothing is added or answered."""
    put_rows(connection, INDEX_STATE, [(1, INDEX_VERSION, CLEARING)])


def clear_some(connection: Connection) -> int:
    """Remove a bounded part of an index that is being emptied; answers what is covered: 0 once nothing is left."""
    if covered(connection) != CLEARING:
        return covered(connection)
    for table in INDEX_TABLES:
        key = list(table.primary_key)
        rows = [tuple(row) for row in connection.execute(select(*key).order_by(*key).limit(CLEARED_AT_ONCE))]
        if rows:
            delete_keys(connection, table, rows)
            return CLEARING
    put_rows(connection, INDEX_STATE, [(1, INDEX_VERSION, 0)])
    return 0


# --- asking it

NEVER: Final = -1
EVER: Final = 2**62


def last_of(
    connection: Connection,
    subject: str,
    kind: str,
    *,
    until: int,
    below: int,
    limit: int = 1,
    after: int = NEVER,
) -> list[int]:
    """The newest records of a kind about a subject, by their own time up to ``until`` (ms); newest first."""
    return _indexes(connection, _LAST, (subject, kind, after, until, below, limit))


def last_of_each(
    connection: Connection, asked: Sequence[tuple[str, str]], *, until: int, below: int, limit: int = 1
) -> list[list[int]]:
    """The same of several (subject, kind), in one look."""
    return _of_each(connection, _LAST, [(*one, NEVER, until, below, limit) for one in asked], newest=True)


def first_of_each(
    connection: Connection, asked: Sequence[tuple[str, str]], *, after: int, below: int
) -> list[list[int]]:
    """As ``first_of`` of several (subject, kind), in one look."""
    return _of_each(connection, _FIRST, [(*one, after, EVER, below, 1) for one in asked], newest=False)


def first_of(
    connection: Connection,
    subject: str,
    kind: str,
    *,
    after: int,
    below: int,
    limit: int = 1,
    until: int = EVER,
) -> list[int]:
    """The oldest records of a kind about a subject, by their own time past ``after`` (ms); oldest first."""
    return _indexes(connection, _FIRST, (subject, kind, after, until, below, limit))


def referring(
    connection: Connection, what: Refers, value: bytes, *, below: int, limit: int = 1, after: int = NEVER
) -> list[int]:
    """The records that refer to this, in the order of the log, past an index."""
    return _indexes(connection, _REFERRED, (str(what), value, after, below, limit))


def of_kind(
    connection: Connection, kind: str, *, after: tuple[int, int], until: int, below: int, limit: int
) -> list[tuple[int, int]]:
    """(time, index) of records of a kind past a place in the order of (time, index), up to ``until`` (ms)."""
    time, index = after
    values = (kind, time, time, index, until, below, limit)
    return [(row[0], row[1]) for row in run(connection, _sql(_KIND, connection.dialect), values)]


def entries_until(connection: Connection, time: int, *, size: int) -> int:
    """How many of the first ``size`` entries the log took up to a time (ms): the index of the first one after it."""
    row = _row(connection, _COMMIT_AFTER, (time,))
    return size if row is None else min(int(row[0]), size)


def numbered(connection: Connection, subject: str, number: int) -> int | None:
    """The index of a subject's record of this number."""
    row = _row(connection, _NUMBERED, (subject, number))
    return None if row is None else int(row[0])


def newest_of(connection: Connection, subject: str) -> int | None:
    """The index of a subject's newest record."""
    row = _row(connection, _NEWEST, (subject,))
    return None if row is None else int(row[1])


@dataclass(frozen=True, slots=True)
class Numbered:
    """A subject's record: its number, its index and its leaf."""

    number: int
    index: int
    leaf: bytes


def span(connection: Connection, subject: str, first: int, last: int) -> list[Numbered]:
    """A subject's records from one number to another. Raises LookupError when one is missing."""
    rows = run(connection, _sql(_SPAN, connection.dialect), (subject, first, last))
    found = sorted((Numbered(*row) for row in rows), key=lambda one: one.number)
    if len(found) != last - first + 1:
        raise LookupError(f"{subject} lacks one of its records {first} to {last}")
    return found


def records_below(
    connection: Connection, subject: str, below: int, *, known: Iterable[tuple[int, int]] = ()
) -> int:
    """How many of a subject's records stand below an index: numbers and indexes rise together.

    ``known``: the (number, index) of some, which shorten the search.
    """
    row = _row(connection, _NEWEST, (subject,))
    if row is None:
        return 0
    newest, index = row
    if index < below:
        return int(newest)
    few, many = 0, int(newest)  # number `few` stands below, `many` does not
    for number, index in known:
        few, many = (max(few, number), many) if index < below else (few, min(many, number))
    while many - few > 1:
        middle = (few + many) // 2
        found = numbered(connection, subject, middle)
        if found is None:
            raise LookupError(f"{subject} lacks its record {middle}")
        few, many = (middle, many) if found < below else (few, middle)
    return few


def window(connection: Connection, subject: str, *, since: int, until: int) -> tuple[int, int]:
    """A subject's records of a time of the log (ms, both included; 0: no bound): past a number, below an index."""
    first = 0
    if since:
        first = records_below(connection, subject, entries_until(connection, since - 1, size=EVER))
    return first, entries_until(connection, until, size=EVER) if until else EVER


def _row(connection: Connection, query: Select[Any], values: tuple[object, ...] = ()) -> Any:
    return run(connection, _sql(query, connection.dialect), values).fetchone()


def _indexes(connection: Connection, query: Select[Any], values: tuple[object, ...]) -> list[int]:
    return [row[-1] for row in run(connection, _sql(query, connection.dialect), values)]


def _of_each(
    connection: Connection, query: Select[Any], values: Sequence[tuple[object, ...]], *, newest: bool
) -> list[list[int]]:
    """The indexes that a query of (time, index) finds with each of these values, in the order of their times."""
    found: list[list[int]] = [[] for _ in values]
    if values:
        sql = _sql(_each(query, len(values)), connection.dialect)
        rows = sorted(run(connection, sql, tuple(itertools.chain.from_iterable(values))), reverse=newest)
        for place, _, index in rows:
            found[place].append(index)
    return found


@cache
def _each(query: Select[Any], count: int) -> CompoundSelect[Any]:
    """A query so many times over, in one statement; each row begins with which of them found it."""
    parts = [query.subquery(f"asked_{place}") for place in range(count)]
    return union_all(
        *(select(literal_column(str(place), Integer), *part.c) for place, part in enumerate(parts))
    )
