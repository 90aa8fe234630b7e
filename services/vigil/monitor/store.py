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
    Row,
    String,
    Table,
    Text,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
)

from vigil.core import cbor
from vigil.core.merkle import Frontier
from vigil.monitor.domain import Known, Reading, Signed, SignerKey
from vigil.storage import add_missing_rows, put_rows

METADATA = MetaData()
KEPT_NOTES: Final = 1000
_KEYS_A_QUERY: Final = 400


def _subjects(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("subject", String(256), primary_key=True),
        Column("number", BigInteger, nullable=False),
        Column("leaf", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def _series(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("signer", LargeBinary, primary_key=True),
        Column("series", LargeBinary, primary_key=True),
        Column("number", BigInteger, nullable=False),
        Column("digest", LargeBinary, nullable=False),
        Column("missing", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


STATE = Table(
    "state",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("key", Text, nullable=False),  # the log's, pinned
    Column("frontier", LargeBinary, nullable=False),  # CBOR array: size, hashes
    Column("time", BigInteger, nullable=False),  # ms, of the newest entry
)
NOTE = Table(
    "note",
    METADATA,
    Column("size", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),  # ms
)
SUBJECT = _subjects("subject")
SERIES = _series("series")
# Of a reading that goes on: what was read since the state and is proved by no root yet.
UNPROVED = Table(
    "unproved",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("frontier", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("target", Text, nullable=False),  # the note up to which entries are being read
)
UNPROVED_SUBJECT = _subjects("unproved_subject")
UNPROVED_SERIES = _series("unproved_series")


def load_key(connection: Connection) -> str | None:
    """Read the pinned key; None before the first run."""
    return connection.execute(select(STATE.c.key)).scalar()


def load_proved(connection: Connection) -> Reading:
    """Read how far what was read is proved."""
    row = connection.execute(select(STATE)).one_or_none()
    return Reading(Frontier.empty(), 0) if row is None else _reading(row)


def load_unproved(connection: Connection) -> tuple[Reading, str] | None:
    """Read how far a reading came, and the note that it was reading up to; None when it had arrived."""
    row = connection.execute(select(UNPROVED)).one_or_none()
    return None if row is None else (_reading(row), row.target)


def load_known(connection: Connection, subjects: Iterable[str], series: Iterable[SignerKey]) -> Known:
    """Read what is known of these, the unproved before the proved."""
    known = Known()
    names, wanted = list(subjects), set(series)
    signers = list({signer for signer, _ in wanted})
    for table in (SUBJECT, UNPROVED_SUBJECT):
        for start in range(0, len(names), _KEYS_A_QUERY):
            page = names[start : start + _KEYS_A_QUERY]
            for row in connection.execute(select(table).where(table.c.subject.in_(page))):
                known.subjects[row.subject] = row.number, row.leaf
    for table in (SERIES, UNPROVED_SERIES):
        for start in range(0, len(signers), _KEYS_A_QUERY):
            some = signers[start : start + _KEYS_A_QUERY]
            for row in connection.execute(select(table).where(table.c.signer.in_(some))):
                if (row.signer, row.series) in wanted:
                    known.series[row.signer, row.series] = row.number, row.digest, row.missing
    return known


def save_unproved(connection: Connection, reading: Reading, *, key: str, target: str) -> None:
    """Keep how far a reading came, apart from what is proved."""
    _pin(connection, key)
    put_rows(connection, UNPROVED, [(1, _frontier(reading), reading.time, target)])
    _save_known(connection, reading.known, UNPROVED_SUBJECT, UNPROVED_SERIES)


def save_proved(connection: Connection, reading: Reading, signed: Signed, *, key: str, seen: int) -> None:
    """Keep a checkpoint that was verified, and everything that was read up to it."""
    for table, unproved in ((SUBJECT, UNPROVED_SUBJECT), (SERIES, UNPROVED_SERIES)):
        same = and_(*(column == unproved.c[column.name] for column in table.primary_key))
        connection.execute(delete(table).where(exists().where(same)))
        connection.execute(insert(table).from_select(unproved.c.keys(), select(unproved)))
        connection.execute(delete(unproved))
    connection.execute(delete(UNPROVED))
    put_rows(connection, STATE, [(1, key, _frontier(reading), reading.time)])
    _save_known(connection, reading.known, SUBJECT, SERIES)
    save_note(connection, signed, seen=seen)


def drop_unproved(connection: Connection, *, key: str) -> bool:
    """Forget what no root proved, but not the note up to which it was read; whether there was any. Pins the key."""
    _pin(connection, key)
    found, proved = load_unproved(connection), load_proved(connection)
    for table in (UNPROVED_SUBJECT, UNPROVED_SERIES):
        connection.execute(delete(table))
    if found is None:
        return False
    reading, target = found
    put_rows(connection, UNPROVED, [(1, _frontier(proved), proved.time, target)])
    return reading.frontier != proved.frontier


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


def counts(connection: Connection) -> tuple[int, int]:
    """Count the subjects, and the signers' numbers that are not in the log, as far as it is proved."""
    subjects = connection.execute(select(func.count()).select_from(SUBJECT)).scalar_one()
    # Not summed up by the database: two signers' numbers can lead beyond its integers.
    missing = connection.execute(select(SERIES.c.missing).where(SERIES.c.missing > 0)).scalars()
    return int(subjects), sum(missing)


def _pin(connection: Connection, key: str) -> None:
    add_missing_rows(connection, STATE, [(1, key, _frontier(Reading(Frontier.empty(), 0)), 0)])


def _save_known(connection: Connection, known: Known, subjects: Table, series: Table) -> None:
    put_rows(connection, subjects, [(name, *head) for name, head in known.subjects.items()])
    put_rows(connection, series, [(*name, *head) for name, head in known.series.items()])


def _frontier(reading: Reading) -> bytes:
    return cbor.encode([reading.frontier.size, list(reading.frontier.hashes)])


def _reading(row: Row[Any]) -> Reading:
    size, hashes = cbor.decode(row.frontier)
    return Reading(Frontier(size, tuple(hashes)), row.time)
