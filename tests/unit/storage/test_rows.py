"""Many rows in one statement: inserted, put in the place of others, left alone, deleted."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.exc import IntegrityError

from tests.support.databases import Place
from vigil.storage import add_missing_rows, delete_keys, insert_rows, put_rows
from vigil.storage.engine import create_engines, database_url
from vigil.storage.rows import ROWS_A_STATEMENT

METADATA = MetaData()
PAIR = Table(
    "pair",
    METADATA,
    Column("kind", String(8), primary_key=True),
    Column("key", String(8), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
QUEUE = Table(
    "queue",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("item", String(8), nullable=False),
)


@pytest.fixture
def connection(place: Place) -> Iterator[Connection]:
    engines = create_engines(database_url(place.at), readers=1)
    with engines.writer.begin() as connection:
        METADATA.create_all(connection)
        yield connection
    engines.dispose()


def pairs(connection: Connection) -> dict[tuple[str, str], bytes]:
    return {(kind, key): value for kind, key, value in connection.execute(select(PAIR))}


def test_a_row_takes_the_place_of_the_one_with_its_key(connection: Connection) -> None:
    put_rows(connection, PAIR, [("a", "1", b"old"), ("b", "1", b"other")])
    put_rows(connection, PAIR, [("a", "1", b"new"), ("a", "2", b"more")])
    assert pairs(connection) == {("a", "1"): b"new", ("a", "2"): b"more", ("b", "1"): b"other"}


def test_what_is_there_is_left_alone(connection: Connection) -> None:
    insert_rows(connection, PAIR, [("a", "1", b"old")])
    add_missing_rows(connection, PAIR, [("a", "1", b"new"), ("a", "2", b"more")])
    assert pairs(connection) == {("a", "1"): b"old", ("a", "2"): b"more"}
    with pytest.raises(IntegrityError), connection.begin_nested():
        insert_rows(connection, PAIR, [("a", "1", b"new")])


def test_only_whole_keys_are_deleted(connection: Connection) -> None:
    insert_rows(connection, PAIR, [("a", "1", b""), ("a", "2", b""), ("b", "1", b"")])
    delete_keys(connection, PAIR, [("a", "1"), ("b", "2")])
    assert set(pairs(connection)) == {("a", "2"), ("b", "1")}
    delete_keys(connection, PAIR, [])
    assert len(pairs(connection)) == 2


def test_the_table_numbers_rows_in_their_order_however_many(connection: Connection) -> None:
    count = 2 * ROWS_A_STATEMENT + 1
    insert_rows(connection, QUEUE, [(f"n{number}",) for number in range(count)], columns=1)
    rows = connection.execute(select(QUEUE).order_by(QUEUE.c.sequence)).all()
    assert [tuple(row) for row in rows] == [(number + 1, f"n{number}") for number in range(count)]


def test_a_row_of_another_width_is_a_mistake(connection: Connection) -> None:
    with pytest.raises(ValueError, match="has 3 values"):
        insert_rows(connection, PAIR, [("a", "1")])


def test_bytes_come_back_as_they_went(connection: Connection) -> None:
    """Every byte, none at all, and a megabyte; as bytes, not as a view of the driver's memory."""
    values = [bytes(range(256)), b"", b"\x00", bytes(1 << 20)]
    insert_rows(connection, PAIR, [("b", str(number), value) for number, value in enumerate(values)])
    found = pairs(connection)
    assert [found["b", str(number)] for number in range(len(values))] == values
    assert {type(value) for value in found.values()} == {bytes}
