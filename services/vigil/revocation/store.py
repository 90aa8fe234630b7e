"""The tables of the chain; every function takes the connection of its transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from vigil.core.certificates import EVERY
from vigil.core.revocations import EMPTY_CHAIN
from vigil.feed import tables as feed_tables
from vigil.feed.evidence import spool_table
from vigil.revocation.domain import ALONE_PERIOD_MS, PROPOSAL_MS, Recent
from vigil.storage import RESERVE

METADATA = MetaData(info={RESERVE: 16 << 20})
"""With room for a thousand revocations on a disk that is full."""
FEED = feed_tables(METADATA)
SPOOL = spool_table(METADATA)
_KEYS_A_QUERY: Final = 400
_EPOCH = BigInteger().with_variant(Integer, "sqlite")
"""SQLite makes only an INTEGER the key of the table itself; there it holds 64 bits too."""

ENTRY = Table(
    "revocation_entry",
    METADATA,
    Column("epoch", _EPOCH, primary_key=True, autoincrement=False),
    Column("value", LargeBinary, nullable=False),  # RevocationEntry
    Column("chain", LargeBinary, nullable=False),
    Column("revoker", String(64), nullable=False),
    Column("revoker_organization", String(63), nullable=False),
    Column("organization", String(63), nullable=False),  # whose the ids are; '*' everybody's, '' several's
    Column("ids", Integer, nullable=False),
    Column("alone", Integer, nullable=False),  # 1: counts against what its signer may revoke alone
    Column("create_time", BigInteger, nullable=False),
    Index("revocation_entry_by_revoker", "revoker", "create_time"),
)
STATEMENT = Table(
    "revocation_statement",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)
CHAIN = Table(
    "revocation_chain",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("era", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("chain", LargeBinary, nullable=False),
)
LEASE = Table(
    "head_lease",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("holder", String(63), nullable=False),
    Column("until", BigInteger, nullable=False),  # a mark that rises with each renewal
    Column("head_time", BigInteger, nullable=False),  # the newest signed time that is durable; 0: none
)
PROPOSAL = Table(
    "revocation_proposal",
    METADATA,
    Column("content", LargeBinary, primary_key=True),  # SHA-256 of the body's encoding
    Column("revoker", String(64), primary_key=True),
    Column("statement", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
ACKNOWLEDGEMENT = Table(
    "acknowledgement",
    METADATA,
    Column("kind", String(16), primary_key=True),
    Column("subject_id", String(63), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("era", BigInteger, nullable=False),
    Column("enforced_at", BigInteger, nullable=False),
    Column("edge", String(63), nullable=False),
    Index("acknowledgement_by_epoch", "kind", "epoch"),
)
_FORGET_ACKNOWLEDGEMENT = delete(ACKNOWLEDGEMENT).where(
    ACKNOWLEDGEMENT.c.kind == bindparam("k"), ACKNOWLEDGEMENT.c.subject_id == bindparam("s")
)


@dataclass(frozen=True, slots=True)
class Position:
    """Where the chain stands."""

    era: int = 0
    epoch: int = 0
    chain: bytes = EMPTY_CHAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """A step of the chain as it is written."""

    epoch: int
    chain: bytes
    value: bytes
    digests: tuple[bytes, ...]
    revoker: str
    revoker_organization: str
    organization: str
    ids: int
    alone: bool
    create_time: int


def position(connection: Connection) -> Position:
    """Where the chain stands in this transaction."""
    row = connection.execute(select(CHAIN.c.era, CHAIN.c.epoch, CHAIN.c.chain)).one_or_none()
    return Position() if row is None else Position(*row)


def put_entry(connection: Connection, entry: NewEntry) -> None:
    """Write the step that follows, and where the chain stands now, in one transaction."""
    before = position(connection)
    if entry.epoch != before.epoch + 1:
        raise ValueError(f"epoch {entry.epoch} does not follow {before.epoch}")
    connection.execute(
        insert(ENTRY).values(
            epoch=entry.epoch,
            value=entry.value,
            chain=entry.chain,
            revoker=entry.revoker,
            revoker_organization=entry.revoker_organization,
            organization=entry.organization,
            ids=entry.ids,
            alone=int(entry.alone),
            create_time=entry.create_time,
        )
    )
    connection.execute(
        insert(STATEMENT), [{"digest": digest, "epoch": entry.epoch} for digest in entry.digests]
    )
    values = {"epoch": entry.epoch, "chain": entry.chain}
    if before.epoch == 0:
        connection.execute(delete(CHAIN))
        connection.execute(insert(CHAIN).values(id=1, era=before.era, **values))
    else:
        connection.execute(update(CHAIN).values(**values))


def epoch_of(connection: Connection, digest: bytes) -> int | None:
    """The epoch at which a statement stands."""
    return connection.execute(
        select(STATEMENT.c.epoch).where(STATEMENT.c.digest == digest)
    ).scalar_one_or_none()


def entry_value(connection: Connection, epoch: int) -> bytes | None:
    """One entry as the contract encodes it."""
    if not 0 < epoch < 2**63:
        return None
    return connection.execute(select(ENTRY.c.value).where(ENTRY.c.epoch == epoch)).scalar_one_or_none()


def values_after(connection: Connection, epoch: int, *, limit: int) -> list[tuple[int, bytes]]:
    """``(epoch, value)`` of the entries after an epoch, in order."""
    if epoch >= 2**63:
        return []
    query = (
        select(ENTRY.c.epoch, ENTRY.c.value).where(ENTRY.c.epoch > epoch).order_by(ENTRY.c.epoch).limit(limit)
    )
    return [(row.epoch, row.value) for row in connection.execute(query)]


def visible_page(
    connection: Connection, *, organization: str, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """Entries that an organization may see; EVERY for everything."""
    query = select(ENTRY.c.epoch, ENTRY.c.value).where(ENTRY.c.epoch > after)
    if organization != EVERY:
        query = query.where(
            or_(ENTRY.c.organization.in_((EVERY, organization)), ENTRY.c.revoker_organization == organization)
        )
    return [(row.epoch, row.value) for row in connection.execute(query.order_by(ENTRY.c.epoch).limit(limit))]


def visible_entry(connection: Connection, epoch: int, *, organization: str) -> bytes | None:
    """One entry, if that organization may see it."""
    if not 0 < epoch < 2**63:
        return None
    rows = visible_page(connection, organization=organization, after=epoch - 1, limit=1)
    return rows[0][1] if rows and rows[0][0] == epoch else None


def recent_of(connection: Connection, revoker: str, *, now: int) -> Recent:
    """What one person revoked alone in the last 10 minutes."""
    query = select(func.count(), func.coalesce(func.sum(ENTRY.c.ids), 0)).where(
        ENTRY.c.revoker == revoker, ENTRY.c.create_time > now - ALONE_PERIOD_MS, ENTRY.c.alone == 1
    )
    statements, ids = connection.execute(query).one()
    return Recent(statements, ids)


def propose(connection: Connection, *, content: bytes, revoker: str, statement: bytes, now: int) -> None:
    """Keep the first person's statement until a second person says the same."""
    connection.execute(delete(PROPOSAL).where(PROPOSAL.c.create_time <= now - PROPOSAL_MS))
    connection.execute(delete(PROPOSAL).where(PROPOSAL.c.content == content, PROPOSAL.c.revoker == revoker))
    connection.execute(
        insert(PROPOSAL).values(content=content, revoker=revoker, statement=statement, create_time=now)
    )


def proposal_of_another(connection: Connection, *, content: bytes, revoker: str, now: int) -> bytes | None:
    """What another person signed over the same words within the hour."""
    query = select(PROPOSAL.c.statement).where(
        PROPOSAL.c.content == content,
        PROPOSAL.c.revoker != revoker,
        PROPOSAL.c.create_time > now - PROPOSAL_MS,
    )
    return connection.execute(query.limit(1)).scalar_one_or_none()


def forget_proposals(connection: Connection, content: bytes) -> None:
    """The same words took effect."""
    connection.execute(delete(PROPOSAL).where(PROPOSAL.c.content == content))


# --- the lease of the head


Holding = tuple[str, int]
"""Who holds the lease, and a mark that each renewal raises."""


def take_lease(connection: Connection, *, holder: str, over: Holding | None) -> Holding:
    """Take or keep the lease, if nobody else holds it but as ``over`` says; answers how it is held now."""
    row = connection.execute(select(LEASE.c.holder, LEASE.c.until)).one_or_none()
    if row is None:
        connection.execute(insert(LEASE).values(id=1, holder=holder, until=1, head_time=0))
        return holder, 1
    if row.holder != holder and (row.holder, row.until) != over:
        return row.holder, row.until
    connection.execute(update(LEASE).values(holder=holder, until=row.until + 1))
    return holder, row.until + 1


def head_time(connection: Connection) -> int | None:
    """The newest signed time that is durable; None before the first."""
    return connection.execute(select(LEASE.c.head_time)).scalar_one_or_none() or None


def store_head_time(connection: Connection, time: int) -> None:
    """Note a signed time; it only rises."""
    connection.execute(update(LEASE).where(LEASE.c.head_time < time).values(head_time=time))


def reset_head_time(connection: Connection, time: int) -> None:
    """An era resets signed time, forward or back."""
    connection.execute(update(LEASE).values(head_time=time))


# --- coverage


def put_acknowledgements(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep each subject's newest acknowledgement; an older one changes nothing."""
    known: dict[tuple[str, str], tuple[int, int]] = {}
    for kind in {row["kind"] for row in rows}:
        names = [row["subject_id"] for row in rows if row["kind"] == kind]
        for start in range(0, len(names), _KEYS_A_QUERY):
            query = select(
                ACKNOWLEDGEMENT.c.subject_id, ACKNOWLEDGEMENT.c.era, ACKNOWLEDGEMENT.c.epoch
            ).where(
                ACKNOWLEDGEMENT.c.kind == kind,
                ACKNOWLEDGEMENT.c.subject_id.in_(names[start : start + _KEYS_A_QUERY]),
            )
            for name, era, epoch in connection.execute(query):
                known[kind, name] = (era, epoch)
    newer: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["kind"], row["subject_id"])
        place = (row["era"], row["epoch"])
        if place >= known.get(key, (-1, -1)) and (key not in newer or place >= _place(newer[key])):
            newer[key] = row
    if not newer:
        return
    stale = [{"k": kind, "s": name} for kind, name in newer if (kind, name) in known]
    if stale:
        connection.execute(_FORGET_ACKNOWLEDGEMENT, stale)
    connection.execute(insert(ACKNOWLEDGEMENT), [dict(row) for row in newer.values()])


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return (row["era"], row["epoch"])


def acknowledgements(connection: Connection, kind: str) -> dict[str, tuple[int, str, int, int]]:
    """``(epoch, edge, enforced_at, era)`` by subject."""
    query = select(ACKNOWLEDGEMENT).where(ACKNOWLEDGEMENT.c.kind == kind)
    return {
        row.subject_id: (row.epoch, row.edge, row.enforced_at, row.era) for row in connection.execute(query)
    }


def acknowledged(connection: Connection, kind: str, *, epoch: int, era: int) -> list[str]:
    """Who enforces an epoch."""
    query = select(ACKNOWLEDGEMENT.c.subject_id).where(
        ACKNOWLEDGEMENT.c.kind == kind, ACKNOWLEDGEMENT.c.epoch >= epoch, ACKNOWLEDGEMENT.c.era == era
    )
    return list(connection.execute(query).scalars())
