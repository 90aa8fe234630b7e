"""Many rows in few statements: what a group commit gathers is written at once.

The driver gives the interpreter's lock up at every step, and one statement is one step: row by row, each row would wait
until the event loop's thread has had its turn. And to build, bind and run a statement costs far more than its row does.
"""

import itertools
from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Any, Final

from sqlalchemy import ClauseElement, Connection, Dialect, Table, bindparam, delete, insert
from sqlalchemy.exc import DBAPIError

ROWS_A_STATEMENT: Final = 128
"""Rows in one statement; SQLite takes 32,766 parameters (https://sqlite.org/limits.html)."""
REPEATABLE: Final = ("qmark", "format")
"""Styles of placeholders (PEP 249) that are all the same, so that a statement can be written for any number of rows."""

Row = tuple[object, ...]


class Taken(Enum):
    """What a row whose primary key is there already does."""

    FAIL = "fail"
    KEEP = "keep"
    REPLACE = "replace"


def run(connection: Connection, sql: str, values: Row = ()) -> Any:
    """Run a statement on the driver's own cursor (PEP 249), which it answers: a tenth of SQLAlchemy's way there.

    For statements that every commit needs. Raises what SQLAlchemy raises.
    """
    cursor = driver(connection).cursor()
    errors = _errors(connection.dialect)
    try:
        cursor.execute(sql, values)
    except errors as error:
        raise _translated(error, sql, errors, connection.dialect) from error
    return cursor


def _errors(dialect: Dialect) -> type[Exception]:
    """The root of the driver's errors (PEP 249)."""
    errors: type[Exception] = dialect.loaded_dbapi.Error
    return errors


def _translated(error: Exception, sql: str, errors: type[Exception], dialect: Dialect) -> BaseException:
    """A driver's error as SQLAlchemy tells it: without the values, which may be anybody's."""
    return DBAPIError.instance(sql, None, error, errors, hide_parameters=True, dialect=dialect)


def driver(connection: Connection) -> Any:
    """The driver's connection under SQLAlchemy's, in the same transaction."""
    return connection.connection.dbapi_connection


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row], *, columns: int = 0) -> None:
    """Insert rows in the order of the table's columns, or of the last ``columns`` of them."""
    _write(connection, table, _names(table)[-columns:], rows, taken=Taken.FAIL)


def put_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert full rows, in the place of those that have the same primary key; no key twice."""
    _write(connection, table, _names(table), rows, taken=Taken.REPLACE)


def add_missing_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert full rows; leave those alone whose primary key is there already."""
    _write(connection, table, _names(table), rows, taken=Taken.KEEP)


def delete_keys(connection: Connection, table: Table, keys: Sequence[Row]) -> None:
    """Delete the rows with these primary keys."""
    sql = _delete_sql(table, connection.dialect)
    errors = _errors(connection.dialect)
    try:
        driver(connection).cursor().executemany(sql, keys)
    except errors as error:
        raise _translated(error, sql, errors, connection.dialect) from error


@cache
def _names(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns)


def _write(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Sequence[Row], *, taken: Taken
) -> None:
    head, group, tail = _insert_sql(table, names, taken, connection.dialect)
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        page = rows[start : start + ROWS_A_STATEMENT]
        values = tuple(itertools.chain.from_iterable(page))
        if len(values) != len(names) * len(page):
            raise ValueError(f"a row of {table.name} has {len(names)} values")
        run(connection, head + ", ".join((group,) * len(page)) + tail, values)


@cache
def _insert_sql(table: Table, names: tuple[str, ...], taken: Taken, dialect: Dialect) -> tuple[str, str, str]:
    """``INSERT INTO … VALUES``, one row's placeholders, and what is to be done where the key is taken."""
    one = insert(table).values({name: bindparam(name) for name in names}).inline()
    head, values, group = compiled(one, dialect).rpartition("VALUES ")
    if taken is Taken.FAIL:
        return head + values, group, ""
    # The same words in SQLite and PostgreSQL.
    quote = dialect.identifier_preparer.quote
    key = [column.name for column in table.primary_key]
    kept = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in names if name not in key)
    what = f"UPDATE SET {kept}" if taken is Taken.REPLACE else "NOTHING"
    return head + values, group, f" ON CONFLICT ({', '.join(map(quote, key))}) DO {what}"


@cache
def _delete_sql(table: Table, dialect: Dialect) -> str:
    return compiled(
        delete(table).where(*(column == bindparam(column.name) for column in table.primary_key)), dialect
    )


def compiled(statement: ClauseElement, dialect: Dialect) -> str:
    """A statement in the driver's own words, for callers to keep.

    Raises TypeError for a driver whose placeholders are not all alike, which none of ours is.
    """
    if dialect.paramstyle not in REPEATABLE:
        raise TypeError(f"{dialect.name} writes placeholders as {dialect.paramstyle}")
    return str(statement.compile(dialect=dialect))
