"""Many rows in few statements: what a group commit gathers is written at once.

The driver gives the interpreter's lock up at every step, and one statement is one step: row by row, each row would wait
until the event loop's thread has had its turn. And to build, bind and run a statement costs far more than its row does.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Final

from sqlalchemy import Connection, Delete, Dialect, Table, bindparam, delete, insert

ROWS_A_STATEMENT: Final = 128
"""Rows in one statement; SQLite takes 32,766 parameters (https://sqlite.org/limits.html)."""
REPEATABLE: Final = ("qmark", "format")
"""Styles of placeholders (PEP 249) that are all the same, so that a statement can be written for any number of rows."""

Row = tuple[object, ...]


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row], *, columns: int = 0) -> None:
    """Insert rows in the order of the table's columns, or of the last ``columns`` of them."""
    names = tuple(column.name for column in table.columns)[-columns:]
    _write(connection, table, names, rows, replace=False)


def put_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert full rows, in the place of those that have the same primary key; no key twice."""
    _write(connection, table, tuple(column.name for column in table.columns), rows, replace=True)


def delete_keys(connection: Connection, table: Table, keys: Sequence[Row]) -> None:
    """Delete the rows with these primary keys."""
    if not keys:
        return
    sql = _delete_sql(table, connection.dialect)
    if sql is None:
        names = [f"k_{column.name}" for column in table.primary_key]
        connection.execute(_delete(table), [dict(zip(names, row, strict=True)) for row in keys])
    else:
        connection.exec_driver_sql(sql, list(keys))


def _write(
    connection: Connection, table: Table, names: tuple[str, ...], rows: Sequence[Row], *, replace: bool
) -> None:
    sql = _insert_sql(table, names, replace, connection.dialect)
    for page in _pages(rows):
        if sql is None:
            if replace:
                key = tuple(table.columns).index
                places = [key(column) for column in table.primary_key]
                delete_keys(connection, table, [tuple(row[place] for place in places) for row in page])
            connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in page])
        else:
            head, group, tail = sql
            values = tuple(itertools.chain.from_iterable(page))
            if len(values) != len(names) * len(page):
                raise ValueError(f"a row of {table.name} has {len(names)} values")
            connection.exec_driver_sql(head + ", ".join((group,) * len(page)) + tail, values)


def _pages(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[start : start + ROWS_A_STATEMENT] for start in range(0, len(rows), ROWS_A_STATEMENT)]


@cache
def _insert_sql(
    table: Table, names: tuple[str, ...], replace: bool, dialect: Dialect
) -> tuple[str, str, str] | None:
    """``INSERT INTO … VALUES``, one row's placeholders and what follows them; None where the driver wants names."""
    if dialect.paramstyle not in REPEATABLE:
        return None
    quote = dialect.identifier_preparer.quote
    one = insert(table).values({name: bindparam(name) for name in names})
    head, values, group = str(one.compile(dialect=dialect)).rpartition("VALUES ")
    tail = ""
    if replace:
        # The same words in SQLite and PostgreSQL.
        key = [column.name for column in table.primary_key]
        kept = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in names if name not in key)
        tail = f" ON CONFLICT ({', '.join(map(quote, key))}) DO UPDATE SET {kept}"
    return head + values, group, tail


@cache
def _delete_sql(table: Table, dialect: Dialect) -> str | None:
    return str(_delete(table).compile(dialect=dialect)) if dialect.paramstyle in REPEATABLE else None


def _delete(table: Table) -> Delete:
    return delete(table).where(*(column == bindparam(f"k_{column.name}") for column in table.primary_key))
