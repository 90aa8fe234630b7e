"""The witness's memory: for each log the newest head that it cosigned, and what contradicted it."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from vigil.witness.domain import TreeHead

METADATA = MetaData()
MAX_CONTRADICTIONS: Final = 64
"""Kept of each log: one proves what a log did, more only tell how often."""

OWN_KEY = Table("own_key", METADATA, Column("verifier_key", Text, primary_key=True))
HEAD = Table(
    "head",
    METADATA,
    Column("origin", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False),  # s, of the newest cosignature
    Column("note", Text, nullable=False),
)
CONTRADICTION = Table(
    "contradiction",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("origin", Text, nullable=False, index=True),
    Column("time", BigInteger, nullable=False),  # s
    Column("why", Text, nullable=False),
    Column("request", Text, nullable=False),  # as it was sent; the log's signature stands in it
    Column("known", Text, nullable=False),  # the note that it contradicts
)


@dataclass(frozen=True, slots=True)
class Known:
    """What was cosigned last of one log; ``time`` in seconds."""

    head: TreeHead
    time: int
    note: str


def put_own_key(connection: Connection, verifier_key: str) -> None:
    """Bind a new memory to its key."""
    connection.execute(insert(OWN_KEY), {"verifier_key": verifier_key})


def own_key(connection: Connection) -> str | None:
    """The key whose memory this is; None for a memory that was never made."""
    return connection.execute(select(OWN_KEY.c.verifier_key)).scalar()


def load_known(connection: Connection, origin: str) -> Known | None:
    """What was cosigned last of a log."""
    row = connection.execute(select(HEAD).where(HEAD.c.origin == origin)).one_or_none()
    return None if row is None else Known(TreeHead(row.origin, row.size, row.root), row.time, row.note)


def put_known(connection: Connection, known: Known) -> None:
    """Remember what is about to be cosigned."""
    head = known.head
    values = {"size": head.size, "root": head.root, "time": known.time, "note": known.note}
    changed = connection.execute(update(HEAD).where(HEAD.c.origin == head.origin).values(values))
    if not changed.rowcount:
        connection.execute(insert(HEAD), {"origin": head.origin, **values})


def put_contradiction(
    connection: Connection, origin: str, *, time: int, why: str, request: str, known: str
) -> None:
    """Keep what a log signed and what it contradicts, once, and the newest of many."""
    same = select(CONTRADICTION.c.id).where(
        CONTRADICTION.c.origin == origin, CONTRADICTION.c.request == request
    )
    if connection.execute(same).first() is not None:
        return
    connection.execute(
        insert(CONTRADICTION),
        {"origin": origin, "time": time, "why": why, "request": request, "known": known},
    )
    of_log = select(CONTRADICTION.c.id).where(CONTRADICTION.c.origin == origin)
    kept = of_log.order_by(CONTRADICTION.c.id.desc()).limit(MAX_CONTRADICTIONS)
    connection.execute(
        delete(CONTRADICTION).where(CONTRADICTION.c.origin == origin, CONTRADICTION.c.id.not_in(kept))
    )
