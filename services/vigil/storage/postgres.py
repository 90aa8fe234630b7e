"""PostgreSQL, by configuration: psycopg 3, commits that are on the disk, reads of one moment, nothing that hangs.

What is PostgreSQL's alone stands here and nowhere else; `sqlite.py` has the same functions for the other kind. The
driver is imported with the first engine.
"""

import contextlib
import ipaddress
import threading
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from vigil.errors import Reason, Refused, refused
from vigil.storage.pulse import Pulse
from vigil.storage.reserve import Reserve
from vigil.storage.rows import driver, run

CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_S: Final = 30
"""No statement of ours takes seconds."""
IDLE_IN_WRITE_S: Final = 10
"""A writer that was stopped in the middle of a transaction loses it, and the locks that others wait for."""
IDLE_IN_READ_S: Final = 60
SILENT_MS: Final = 10_000
"""How long what was sent may stay unacknowledged, or a peer silent, until the connection counts as lost: both ends."""
MIGRATION_LOCK: Final = 0x5669_6769_6C
"""The advisory lock of whoever looks at the schema: 'Vigil'."""
PREPARED: Final = 512
"""Prepared statements kept by a connection: those of a group commit differ by their number of rows."""
OLDEST: Final = 140_000
"""PostgreSQL 14, the oldest with community support when this was written."""

_STORAGE_STATES: Final = ("08", "28", "3D", "40", "53", "57", "58", "F0", "XX")
"""Classes of SQLSTATE (PostgreSQL, appendix A) that say nothing about the statement itself: connection, authentication,
no such database, rolled back for another's sake, resources, intervention, system, configuration, internal."""
_STORAGE_SINGLE: Final = frozenset({"25006", "25P03", "25P04", "55P03", "55000"})
"""A read-only server; a transaction idle for too long; a lock that did not come in time."""

_KEEPALIVES: Final[Mapping[str, object]] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": SILENT_MS,
}
"""This end; the server is told the same of its own, so that a vanished writer's locks do not stay."""
_SESSION: Final[Mapping[str, object]] = {
    "synchronous_commit": "on",
    "statement_timeout": STATEMENT_TIMEOUT_S * 1000,
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 2,
    "tcp_user_timeout": SILENT_MS,
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
}


def names_one(url: URL) -> bool:
    """Whether the URL names a database; a `service` of libpq may name it too."""
    return bool(url.database or "service" in url.query)


def create_engines(url: URL, *, pool_size: int, busy_timeout: float) -> tuple[Engine, Engine, Engine]:
    """Make the engines of writer, readers and schema. Nothing is connected before it is used."""
    lock = {"lock_timeout": int(busy_timeout * 1000)}
    writing = {**lock, "idle_in_transaction_session_timeout": IDLE_IN_WRITE_S * 1000}
    reading = {
        **lock,
        "idle_in_transaction_session_timeout": IDLE_IN_READ_S * 1000,
        "default_transaction_isolation": "repeatable read",
        "default_transaction_read_only": "on",
    }
    # A migration may take longer than anything else does, and whoever comes second waits for it.
    changing = {"statement_timeout": 0, "lock_timeout": 600_000}
    writer = _engine(url, writing, poolclass=NullPool)
    reader = _engine(
        url,
        reading,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=-1,
        pool_use_lifo=True,
        pool_pre_ping=True,
    )
    schema = _engine(url, changing, poolclass=NullPool)
    for engine in (writer, schema):
        event.listen(engine, "connect", _require_durable)
    event.listen(schema, "begin", _wait_for_migrations)
    event.listen(writer, "commit", _require_sound)
    return writer, reader, schema


def _engine(url: URL, session: Mapping[str, object], **pool: Any) -> Engine:
    # libpq splits its options at spaces that no backslash precedes.
    options = [
        f"-c {name}={value}".replace("=repeatable ", "=repeatable\\ ")
        for name, value in {**_SESSION, **session}.items()
    ]
    arguments: dict[str, Any] = {
        "application_name": "vigil",
        "connect_timeout": CONNECT_TIMEOUT_S,
        **_KEEPALIVES,
        **{name: value for name, value in url.query.items() if name != "options"},
        # Ours come last: what durability rests on is not the URL's to change.
        "options": " ".join((str(url.query.get("options", "")), *options)).strip(),
    }
    engine = create_engine(
        url.set(drivername="postgresql+psycopg", query={}),
        paramstyle="format",
        hide_parameters=True,
        connect_args=arguments,
        **pool,
    )
    event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    connection.prepared_max = PREPARED
    try:
        _require_private(connection)
    except Refused:
        connection.close()
        raise


def _require_private(connection: Any) -> None:
    """Over a network the server must have proved its name (libpq, 34.19.4: verify-full). Raises STORAGE_UNAVAILABLE."""
    host = connection.pgconn.hostaddr.decode() or connection.pgconn.host.decode()
    if host.startswith(("/", "@")):
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    mode = {name.keyword: name.val for name in connection.pgconn.info}.get(b"sslmode")
    if mode != b"verify-full":
        raise _refused(
            "The database is on another machine and was not asked to prove its name.",
            "sslmode=verify-full and sslrootcert in the URL",
            "sslmode",
        )


def _require_durable(connection: Any, _record: Any) -> None:
    """Refuse a server whose commits may be lost, or that cannot keep what we write. Raises STORAGE_UNAVAILABLE."""
    cursor = connection.execute(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'), pg_is_in_recovery(),"
        " current_setting('server_encoding'), current_setting('server_version_num')::int"
    )
    fsync, commit, replica, encoding, version = cursor.fetchone()
    connection.rollback()
    try:
        if fsync != "on":
            raise _refused(
                "The database server runs with fsync=off: a crash could lose what was acknowledged.",
                "fsync=on",
                "fsync",
            )
        if commit not in ("on", "remote_apply"):
            raise _refused(
                "The database server would acknowledge commits that are not on its disk yet.",
                "synchronous_commit=on",
                "synchronous_commit",
            )
        if replica:
            raise _refused(
                "The database server is a replica, which only reads.", "the address of the primary", "replica"
            )
        if encoding != "UTF8":
            raise _refused(
                "The database is not encoded in UTF-8.", "a database made with ENCODING 'UTF8'", "encoding"
            )
        if version < OLDEST:
            raise _refused("The database server is older than PostgreSQL 14.", "a newer server", "version")
    except Refused:
        connection.close()
        raise


def _refused(sentence: str, lifted_by: str, cause: str) -> Refused:
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        sentence,
        lifted_by=lifted_by,
        who="the operator of the database",
        cause=cause,
    )


def _wait_for_migrations(connection: Connection) -> None:
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


def _require_sound(connection: Connection) -> None:
    """Refuse to commit after a statement failed and the function went on: PostgreSQL would undo it all and say nothing.

    (COMMIT of a failed transaction is a ROLLBACK that succeeds.) Raises RuntimeError.
    """
    from psycopg.pq import TransactionStatus

    if driver(connection).info.transaction_status is TransactionStatus.INERROR:
        raise RuntimeError("a write function went on after a statement of it had failed")


def blames_storage(error: BaseException) -> bool | None:
    """Whether server, connection or another's lock is to blame; None for an error of another driver."""
    if not hasattr(error, "sqlstate"):
        return None
    state = error.sqlstate
    if state is None:
        # Without a word from the server: the connection was lost, or the driver refused the values.
        return type(error).__name__ in ("OperationalError", "InterfaceError")
    return state[:2] in _STORAGE_STATES or state in _STORAGE_SINGLE


def reserve(_url: URL, _size: int) -> Reserve | None:
    """Room is the server's to keep: no file beside it could."""
    return None


class SessionPulse:
    """A session of its own, whose name in `pg_stat_activity` changes with every beat and which ends with its process.

    What a role may see of another's sessions includes that name, and nothing has to be written for it.
    """

    def __init__(self, url: URL, holder: str) -> None:
        self._engine = _engine(url, {}, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._holder = holder
        self._connection: Connection | None = None
        self._beats = 0
        self._gate = threading.Lock()

    def beat(self) -> None:
        """Show that this process lives."""
        self._beats += 1
        self._ask("SELECT set_config('application_name', %s, false)", f"{_NAME}{self._holder} {self._beats}")

    def of(self, holder: str) -> object | None:
        """What changes while that process lives; None when it is gone."""
        # A session that it lost may be there for a while beside its new one.
        names = "SELECT string_agg(application_name, ' ' ORDER BY application_name) FROM pg_stat_activity"
        where = "WHERE application_name LIKE %s AND datname = current_database()"
        return self._ask(f"{names} {where}", f"{_NAME}{holder} %")

    def _ask(self, sql: str, value: str) -> object | None:
        with self._gate:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                return run(self._connection, sql, (value,)).fetchone()[0]  # type: ignore[no-any-return]
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()

    def close(self) -> None:
        """Be gone."""
        with self._gate:
            self._drop()
            self._engine.dispose()


_NAME: Final = "vigil-writer "


def pulse(url: URL, holder: str) -> Pulse:
    """How others, wherever they are, see that this process lives."""
    return SessionPulse(url, holder)


def check_foreign_keys(_connection: Connection) -> None:
    """Every statement was checked by itself."""


def describe(_connection: Connection) -> dict[str, object]:
    """Nothing of ours is beyond SQLAlchemy's inspector."""
    return {}
