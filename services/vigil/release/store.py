"""The tables of models, builds and baselines. ``place`` orders a list and is what a page token carries."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
)

from vigil.feed import tables
from vigil.feed.evidence import spool_table
from vigil.release.domain import BaselineRecord, BuildRecord, ModelRecord

METADATA = MetaData()
MIGRATIONS: Final = "vigil.release.migrations"

MODEL = Table(
    "model",
    METADATA,
    Column("place", String(128), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("organization_id", String(63), nullable=False),
    Column("profile", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
BUILD = Table(
    "build",
    METADATA,
    Column("place", String(128), primary_key=True),
    Column("firmware", LargeBinary, nullable=False, unique=True),
    Column("model", String(63), nullable=False),
    Column("version", String(63), nullable=False),
    Column("security_version", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("organization_id", String(63), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("sbom", LargeBinary, nullable=False),
    Column("sbom_attestation", LargeBinary, nullable=False),
    Column("component_count", Integer, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
BASELINE = Table(
    "baseline",
    METADATA,
    Column("place", String(320), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("content", LargeBinary, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("name", String(128), nullable=False),
    Column("site_id", String(128), nullable=False),
    Column("organization_id", String(128), nullable=False),
    Column("models", Text, nullable=False),
    Column("valid_from", BigInteger, nullable=False),
    Column("valid_to", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("baseline_by_content", "content", "site_id"),
)
tables(METADATA)
spool_table(METADATA)

Record = ModelRecord | BuildRecord | BaselineRecord
R = TypeVar("R", ModelRecord, BuildRecord, BaselineRecord)

_TABLE_OF: Final[Mapping[type, Table]] = {
    ModelRecord: MODEL,
    BuildRecord: BUILD,
    BaselineRecord: BASELINE,
}


def find(
    connection: Connection, kind: type[R], *conditions: ColumnElement[bool], limit: int = 1000
) -> list[R]:
    """Read the rows that meet every condition, in the list's order."""
    table = _TABLE_OF[kind]
    rows = connection.execute(select(table).where(*conditions).order_by(table.c.place).limit(limit))
    return [_value(kind, row) for row in rows]


def page(
    connection: Connection, kind: type[R], *conditions: ColumnElement[bool], after: str, size: int
) -> tuple[list[R], str]:
    """Read one page after a place; the place of its last row, empty when nothing follows."""
    found = find(connection, kind, *conditions, _TABLE_OF[kind].c.place > after, limit=size + 1)
    return (found, "") if len(found) <= size else (found[:size], place_of(found[size - 1]))


def put(connection: Connection, value: Record) -> None:
    """Insert a value, in place of what stood at its place."""
    table = _TABLE_OF[type(value)]
    place = place_of(value)
    row: dict[str, Any] = {**asdict(value), "place": place}
    if isinstance(value, BaselineRecord):
        row["models"] = "\n".join(value.models)
    connection.execute(delete(table).where(table.c.place == place))
    connection.execute(insert(table).values(**row))


def place_of(value: Record) -> str:
    """Where a value stands in its list."""
    match value:
        case ModelRecord():
            return value.model
        case BuildRecord():
            return value.name
        case BaselineRecord():
            return value.place


def _value(kind: type[R], row: Row[Any]) -> R:
    values = dict(row._mapping)  # noqa: SLF001 - the public way to a row's names
    del values["place"]
    if "models" in values:
        values["models"] = tuple(values["models"].split("\n"))
    return kind(**values)
