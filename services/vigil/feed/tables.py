"""The three tables of a feed, kept in the owner's own database."""

from dataclasses import dataclass

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table

_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
"""SQLite makes only an INTEGER the key of the table itself; there it holds 64 bits too."""


@dataclass(frozen=True, slots=True)
class FeedTables:
    """The tables of one feed."""

    counter: Table
    """One row: the newest sequence, its mark, and the newest sequence that was trimmed from the tail."""
    outbox: Table
    """The tail: one row for each change, without a gap after the floor."""
    state: Table
    """The state at the newest sequence: one row for each resource that exists."""


def tables(metadata: MetaData) -> FeedTables:
    """Add the feed's tables to an owner's metadata; its migrations create them with the owner's own."""
    counter = Table(
        "feed_counter",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("sequence", BigInteger, nullable=False),
        Column("mark", LargeBinary, nullable=False),
        Column("floor", BigInteger, nullable=False),
    )
    outbox = Table(
        "feed_outbox",
        metadata,
        Column("sequence", _SEQUENCE, primary_key=True, autoincrement=False),
        Column("kind", String(32), nullable=False),
        Column("key", String(255), nullable=False),
        Column("scope_site", String(63), nullable=False),
        Column("previous_site", String(63), nullable=True),
        Column("value", LargeBinary, nullable=False),
        Column("deleted", Boolean, nullable=False),
        Column("mark", LargeBinary, nullable=False),
    )
    state = Table(
        "feed_state",
        metadata,
        Column("kind", String(32), primary_key=True),
        Column("key", String(255), primary_key=True),
        Column("scope_site", String(63), nullable=False),
        Column("value", LargeBinary, nullable=False),
        Column("sequence", BigInteger, nullable=False),
        Index("feed_state_by_site", "scope_site", "kind", "key"),
    )
    return FeedTables(counter=counter, outbox=outbox, state=state)


TABLES = tables(MetaData())
"""The same tables for the feed's own statements."""
