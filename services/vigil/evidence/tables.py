"""The log's tables, in one place: whoever opens the database makes and migrates every one of them."""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

from vigil.storage import term_table

METADATA = MetaData()
WRITER_TERM = term_table(METADATA)
_INDEX = BigInteger().with_variant(Integer, "sqlite")
"""SQLite makes only an INTEGER the key of the table itself; there it holds 64 bits too."""

ENTRY = Table(
    "entry",
    METADATA,
    Column("idx", _INDEX, primary_key=True, autoincrement=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("organization", String(63), nullable=False),
    Column("site", String(63), nullable=False),
)
STATEMENT = Table(
    "statement",
    METADATA,
    Column("idx", _INDEX, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),  # COSE_Sign1, certificates emptied
)
BODY = Table(
    "body",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("data", LargeBinary, nullable=False),  # salt and content, as the digest was taken
)
CERTIFICATE = Table(
    "certificate",
    METADATA,
    Column("thumbprint", LargeBinary, primary_key=True),
    Column("chain", LargeBinary, nullable=False),  # CBOR array of DER, leaf first, without the root
)
SUBJECT_RECORD = Table(
    "subject_record",
    METADATA,
    Column("subject", String(256), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
NODE = Table(
    "node",
    METADATA,
    Column("level", Integer, primary_key=True, autoincrement=False),  # 1 and above
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
GROUP_COMMIT = Table(
    "group_commit",
    METADATA,
    Column("first", _INDEX, primary_key=True, autoincrement=False),
    Column("items", Integer, nullable=False),
    Column("log_time", BigInteger, nullable=False),  # ms
    Column("signer", LargeBinary, nullable=False),
    Column("recorded", LargeBinary, nullable=False),  # COSE_Sign1, certificates emptied
    # Log time never goes back: its rows come in the order of the key, and "which entry at this time" is one look-up.
    Index("group_commit_log_time", "log_time", "first"),
)
CHECKPOINT = Table(
    "checkpoint",
    METADATA,
    Column("size", _INDEX, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False),  # ms
    Column("origin", Text, nullable=False),
    Column("note", Text, nullable=False),
)
OWN_KEY = Table("own_key", METADATA, Column("verifier_key", Text, primary_key=True))
"""The log's key, before there is one. A start that came no further leaves one that nobody has."""
COSIGNATURE = Table(
    "cosignature",
    METADATA,
    Column("size", _INDEX, primary_key=True, autoincrement=False),
    Column("witness", String(512), primary_key=True),  # its verifier key, as C2SP writes it
    Column("time", BigInteger, nullable=False),  # s, the witness's
    Column("line", Text, nullable=False),
)

# --- the index: made behind the log from the log alone, and made again by `vigil evidence reindex`

SUBJECT_TIME = Table(
    "subject_time",
    METADATA,
    Column("subject", String(256), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("time", BigInteger, primary_key=True, autoincrement=False),  # ms, the statement's own
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
KIND_TIME = Table(
    "kind_time",
    METADATA,
    Column("kind", String(32), primary_key=True),
    Column("time", BigInteger, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
REFERENCE = Table(
    "reference",
    METADATA,
    Column("what", String(16), primary_key=True),  # request, intent, decision …
    Column("value", LargeBinary, primary_key=True),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
INDEX_STATE = Table(
    "index_state",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("version", Integer, nullable=False),
    Column("covered", BigInteger, nullable=False),  # entries in the index: all below this
)
ERASED = Table(
    "erased",
    METADATA,
    Column("idx", _INDEX, primary_key=True, autoincrement=False),
    Column("what", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("reference", String(128), nullable=False),
    Column("time", BigInteger, nullable=False),  # ms, the log's
    Column("first_person", String(64), nullable=False),
    Column("second_person", String(64), nullable=False),
    Column("first_idx", BigInteger, nullable=False),  # the records of what they signed
    Column("second_idx", BigInteger, nullable=False),
)
CENSUS = Table(
    "census",
    METADATA,
    Column("size", _INDEX, primary_key=True, autoincrement=False),  # entries of the log that it covers
    Column("subjects", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of the signed census; empty: a step on the way to one
    Column("pages", LargeBinary, nullable=False),  # 64 bytes a page: its first key and its root
)
CENSUS_PAGE = Table(
    "census_page",
    METADATA,
    Column("size", _INDEX, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),  # 72 bytes an item (core.census)
    sqlite_with_rowid=False,
)
