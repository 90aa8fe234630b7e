"""The gateway's tables. All of them are a shortcut or a cache: the truth is in statements.

What class S1 needs after an offline restart lies here: devices, profiles, releases, baselines and revocations.
Statements are kept as they travelled, certificates included, so that they can be sent on with no network.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
)

from vigil.feed.evidence import spool_table
from vigil.storage import RESERVE

METADATA = MetaData(info={RESERVE: 16 << 20})
"""With room for what class S1 and revocations leave here: a thousand actions with their receipts."""
SPOOL = spool_table(METADATA)
MIGRATIONS = "vigil.gateway.migrations"

_ROWID = BigInteger().with_variant(Integer, "sqlite")
"""SQLite makes only an INTEGER the key of the table itself; there it holds 64 bits too."""

DIRECTORY = Table(
    "directory_row",
    METADATA,
    Column("source", String(32), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
REVOCATION = Table(
    "revocation_entry",
    METADATA,
    Column("epoch", _ROWID, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),  # RevocationEntry
)
HEAD = Table(
    "revocation_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("era", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),  # COSE_Sign1
)
INTENT = Table(
    "intent",
    METADATA,
    Column("id", _ROWID, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("action", String(256), nullable=False),
    Column("requester", String(64), nullable=False),
    Column("credential", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),  # open, cancelled, used
    Column("needed", Integer, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("devices", Text, nullable=False),  # JSON array, in the target's order
    Column("done", Text, nullable=False),  # JSON array of the devices that were commanded
    Column("statement", LargeBinary, nullable=False),
    Column("recorded", LargeBinary, nullable=False),  # RecordedItem
    Column("create_time", BigInteger, nullable=False),
)
APPROVAL = Table(
    "approval",
    METADATA,
    Column("intent", LargeBinary, primary_key=True),
    Column("approver", String(64), primary_key=True),
    Column("credential", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("recorded", LargeBinary, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("voided", Boolean, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
COMMAND = Table(
    "command",
    METADATA,
    Column("id", _ROWID, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("intent", LargeBinary, nullable=False),
    Column("device", String(64), nullable=False),
    Column("action", String(256), nullable=False),
    Column("action_class", String(2), nullable=False),
    Column("requester", String(64), nullable=False),
    Column("credential", LargeBinary, nullable=False),
    Column("alone", Boolean, nullable=False),  # an S1 command without a second person
    Column("request_id", LargeBinary, nullable=False),
    Column("work_order", String(256), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", String(256), nullable=False),
    Column("settled", Boolean, nullable=False),  # a retry gets the same answer
    Column("status", LargeBinary, nullable=False),  # google.rpc.Status of a refusal, else empty
    Column("statement", LargeBinary, nullable=False),
    Column("intent_statement", LargeBinary, nullable=False),
    Column("approvals", LargeBinary, nullable=False),  # deterministic CBOR array of COSE_Sign1
    Column("decision", LargeBinary, nullable=False),
    Column("recorded", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Index("command_by_intent", "intent"),
    Index("command_by_device", "device", "id"),
    Index("command_by_outcome", "outcome", "id"),
)
RECEIPT = Table(
    "receipt",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("intent", LargeBinary, nullable=False),
    Column("command", LargeBinary, nullable=False),
    Column("device", String(64), nullable=False),
    Column("request_id", LargeBinary, nullable=False),
    Column("number", Integer, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("receipt_by_intent", "intent", "device"),
    Index("receipt_by_request", "device", "request_id"),
)
REPORT = Table(
    "device_report",
    METADATA,
    Column("id", _ROWID, primary_key=True),
    Column("report", LargeBinary, nullable=False),  # DeviceReport
)


SHORTEST_PREFIX = 8
"""Hex digits of a digest that a person may shorten it to."""


def is_prefix(text: str) -> bool:
    """Whether this is a digest in hex, or its beginning."""
    return SHORTEST_PREFIX <= len(text) <= 64 and set(text) <= set("0123456789abcdef")


def digest_range(prefix: str) -> tuple[bytes, bytes]:
    """The lowest and the highest digest that begin so."""
    return bytes.fromhex(prefix.ljust(64, "0")), bytes.fromhex(prefix.ljust(64, "f"))


def load_directory(connection: Connection, source: str) -> list[tuple[str, str, bytes]]:
    """Every row of one source: kind, key, value."""
    rows = connection.execute(
        select(DIRECTORY.c.kind, DIRECTORY.c.key, DIRECTORY.c.value).where(DIRECTORY.c.source == source)
    )
    return [(row.kind, row.key, row.value) for row in rows]


def replace_directory(connection: Connection, source: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
    """Put a whole snapshot in the place of what was kept of one source."""
    connection.execute(delete(DIRECTORY).where(DIRECTORY.c.source == source))
    values = [{"source": source, "kind": kind, "key": key, "value": value} for kind, key, value in rows]
    if values:
        connection.execute(insert(DIRECTORY), values)


def change_directory(
    connection: Connection, source: str, changes: Sequence[tuple[str, str, bytes | None]]
) -> None:
    """Write the newest value of each changed row; None deletes it."""
    keys = [{"k": kind, "n": key} for kind, key, _ in changes]
    if not keys:
        return
    connection.execute(
        delete(DIRECTORY).where(
            DIRECTORY.c.source == source,
            DIRECTORY.c.kind == bindparam("k"),
            DIRECTORY.c.key == bindparam("n"),
        ),
        keys,
    )
    values = [
        {"source": source, "kind": kind, "key": key, "value": value}
        for kind, key, value in changes
        if value is not None
    ]
    if values:
        connection.execute(insert(DIRECTORY), values)


def load_revocations(connection: Connection) -> tuple[list[bytes], int, bytes]:
    """The entries in their order, the era, and the newest head (empty before the first)."""
    entries = [
        row.entry for row in connection.execute(select(REVOCATION.c.entry).order_by(REVOCATION.c.epoch))
    ]
    head = connection.execute(select(HEAD.c.era, HEAD.c.head)).first()
    return (entries, head.era, head.head) if head else (entries, 0, b"")


def keep_revocations(
    connection: Connection, entries: Sequence[tuple[int, bytes]], *, era: int, epoch: int, head: bytes
) -> None:
    """Persist the entries that a head confirmed, together with that head."""
    if entries:
        connection.execute(
            insert(REVOCATION).prefix_with("OR REPLACE"),
            [{"epoch": number, "entry": entry} for number, entry in entries],
        )
    connection.execute(
        insert(HEAD).prefix_with("OR REPLACE"), {"id": 1, "era": era, "epoch": epoch, "head": head}
    )


def forget_revocations(connection: Connection) -> None:
    """Another chain takes the place of this one."""
    connection.execute(delete(REVOCATION))


def revocations_after(connection: Connection, epoch: int) -> list[bytes]:
    """Entries after an epoch, in their order."""
    rows = connection.execute(
        select(REVOCATION.c.entry).where(REVOCATION.c.epoch > epoch).order_by(REVOCATION.c.epoch)
    )
    return [row.entry for row in rows]


def add_report(connection: Connection, report: bytes) -> None:
    """Spool one report for the registry of devices."""
    connection.execute(insert(REPORT), {"report": report})


def first_reports(connection: Connection, limit: int) -> list[tuple[int, bytes]]:
    """The oldest spooled reports: id and bytes."""
    rows = connection.execute(select(REPORT.c.id, REPORT.c.report).order_by(REPORT.c.id).limit(limit))
    return [(row.id, row.report) for row in rows]


def drop_reports(connection: Connection, up_to: int) -> None:
    """Forget reports that the registry took."""
    connection.execute(delete(REPORT).where(REPORT.c.id <= up_to))


def count_reports(connection: Connection) -> int:
    """How many reports wait."""
    return int(connection.execute(select(func.count()).select_from(REPORT)).scalar_one())
