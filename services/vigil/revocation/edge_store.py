"""An edge's table: the entries that it verified itself, so that a restart asks only for what it lacks."""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    delete,
    insert,
    select,
)

METADATA = MetaData()
_EPOCH = BigInteger().with_variant(Integer, "sqlite")

ENTRY = Table(
    "edge_entry",
    METADATA,
    Column("epoch", _EPOCH, primary_key=True, autoincrement=False),
    Column("era", BigInteger, nullable=False),  # of the head that confirmed it
    Column("value", LargeBinary, nullable=False),  # RevocationEntry
)


def put(connection: Connection, values: Sequence[tuple[int, bytes]], *, era: int) -> None:
    """Keep entries that a head confirmed."""
    if values:
        rows = [{"epoch": epoch, "era": era, "value": value} for epoch, value in values]
        connection.execute(insert(ENTRY), rows)


def forget(connection: Connection) -> None:
    """Another chain takes the place of this one."""
    connection.execute(delete(ENTRY))


def after(connection: Connection, epoch: int, *, limit: int) -> list[tuple[int, bytes]]:
    """``(epoch, value)`` of the entries after an epoch, in order."""
    if epoch >= 2**63:
        return []
    query = (
        select(ENTRY.c.epoch, ENTRY.c.value).where(ENTRY.c.epoch > epoch).order_by(ENTRY.c.epoch).limit(limit)
    )
    return [(row.epoch, row.value) for row in connection.execute(query)]


def era(connection: Connection) -> int:
    """The era of the newest entry."""
    query = select(ENTRY.c.era).order_by(ENTRY.c.epoch.desc()).limit(1)
    return connection.execute(query).scalar_one_or_none() or 0
