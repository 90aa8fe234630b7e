"""What a monitor remembers; every function takes the connection of its transaction."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
)

from vigil.core import cbor
from vigil.core.merkle import Frontier
from vigil.monitor.domain import Known, Reading, Signed, SignerKey
from vigil.storage import put_rows

METADATA = MetaData()
KEPT_NOTES: Final = 1000
_KEYS_A_QUERY: Final = 400

STATE = Table(
    "state",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("key", Text, nullable=False),  # the log's, pinned
    Column("frontier", LargeBinary, nullable=False),  # CBOR array: size, hashes
    Column("time", BigInteger, nullable=False),  # ms, of the newest entry
    Column("target", Text, nullable=False),  # the note up to which entries are being read; empty between
)
NOTE = Table(
    "note",
    METADATA,
    Column("size", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),  # ms
)
SUBJECT = Table(
    "subject",
    METADATA,
    Column("subject", String(256), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
SERIES = Table(
    "series",
    METADATA,
    Column("signer", LargeBinary, primary_key=True),
    Column("series", LargeBinary, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("missing", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


def load_key(connection: Connection) -> str | None:
    """Read the pinned key; None before the first run."""
    return connection.execute(select(STATE.c.key)).scalar()


def load_reading(connection: Connection) -> tuple[Reading, str]:
    """Read how far it came, and the note that it was reading up to; empty when it had arrived."""
    row = connection.execute(select(STATE)).one_or_none()
    if row is None:
        return Reading(Frontier.empty(), 0), ""
    size, hashes = cbor.decode(row.frontier)
    return Reading(Frontier(size, tuple(hashes)), row.time), row.target


def load_known(connection: Connection, subjects: Iterable[str], series: Iterable[SignerKey]) -> Known:
    """Read what is known of these."""
    known = Known()
    names, keys = list(subjects), list(series)
    for start in range(0, len(names), _KEYS_A_QUERY):
        page = names[start : start + _KEYS_A_QUERY]
        for row in connection.execute(select(SUBJECT).where(SUBJECT.c.subject.in_(page))):
            known.subjects[row.subject] = row.number, row.leaf
    wanted = set(keys)
    signers = list({signer for signer, _ in keys})
    for start in range(0, len(signers), _KEYS_A_QUERY):
        some = signers[start : start + _KEYS_A_QUERY]
        for row in connection.execute(select(SERIES).where(SERIES.c.signer.in_(some))):
            if (row.signer, row.series) in wanted:
                known.series[row.signer, row.series] = row.number, row.digest, row.missing
    return known


def save_reading(connection: Connection, reading: Reading, *, key: str, target: str) -> None:
    """Keep how far it came."""
    frontier = cbor.encode([reading.frontier.size, list(reading.frontier.hashes)])
    put_rows(connection, STATE, [(1, key, frontier, reading.time, target)])
    put_rows(connection, SUBJECT, [(name, *head) for name, head in reading.known.subjects.items()])
    put_rows(connection, SERIES, [(*name, *head) for name, head in reading.known.series.items()])


def save_note(connection: Connection, signed: Signed, *, seen: int) -> None:
    """Keep a checkpoint that was verified, and the newest thousand before it."""
    put_rows(connection, NOTE, [(signed.size, signed.root, signed.note, seen)])
    oldest = connection.execute(
        select(NOTE.c.size).order_by(NOTE.c.size.desc()).limit(1).offset(KEPT_NOTES)
    ).scalar()
    if oldest is not None:
        connection.execute(delete(NOTE).where(NOTE.c.size <= oldest))


def newest_note(connection: Connection) -> Signed | None:
    """Read the newest checkpoint that was verified."""
    row = connection.execute(select(NOTE).order_by(NOTE.c.size.desc()).limit(1)).one_or_none()
    return None if row is None else Signed(row.size, row.root, row.note)


def forget(connection: Connection, *, key: str) -> None:
    """Begin anew: nothing was ever verified. The key stays pinned."""
    for table in (STATE, SUBJECT, SERIES):
        connection.execute(delete(table))
    empty: dict[str, Any] = {"id": 1, "key": key, "frontier": cbor.encode([0, []]), "time": 0, "target": ""}
    connection.execute(insert(STATE), empty)


def counts(connection: Connection) -> tuple[int, int]:
    """Count the subjects, and the signers' numbers that are not in the log."""
    subjects = connection.execute(select(func.count()).select_from(SUBJECT)).scalar_one()
    missing = connection.execute(select(func.coalesce(func.sum(SERIES.c.missing), 0))).scalar_one()
    return int(subjects), int(missing)
