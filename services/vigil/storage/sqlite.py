"""SQLite: a file of our own, WAL, synchronous=FULL, transactions begun by us. The default.

What is SQLite's alone stands here and nowhere else; `postgres.py` has the same functions for the other kind.
"""

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, QueuePool

from vigil.storage.pulse import Pulse
from vigil.storage.reserve import Reserve
from vigil.storage.rows import run

CACHED_STATEMENTS = 512
"""Prepared statements kept by a connection: those of a group commit differ by their number of rows."""

_STORAGE_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""Primary result codes (https://sqlite.org/rescode.html) that say nothing about the statement itself."""


def names_one(url: URL) -> bool:
    """Whether the URL names a database that outlives the process."""
    return url.database not in (None, "", ":memory:")


def create_engines(url: URL, *, pool_size: int, busy_timeout: float) -> tuple[Engine, Engine, Engine]:
    """Make the engines of writer, readers and schema; a missing file (0600) and its folder (0700) are created."""
    _create_file(Path(str(url.database)))
    arguments: dict[str, Any] = {"timeout": busy_timeout, "check_same_thread": False}
    arguments["cached_statements"] = CACHED_STATEMENTS
    writer = create_engine(url, poolclass=NullPool, connect_args=arguments)
    reader = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=-1,
        pool_use_lifo=True,
        connect_args=arguments,
    )
    schema = create_engine(url, poolclass=NullPool, connect_args=arguments)
    # IMMEDIATE: a transaction that started can finish.
    _prepare_connections(writer, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=ON",))
    _prepare_connections(reader, begin="BEGIN", pragmas=("query_only=ON",))
    # Foreign keys are checked at the end: a rebuilt table is dropped in between.
    _prepare_connections(schema, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=OFF",))
    return writer, reader, schema


def _create_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Only a new file is opened here: closing a descriptor of an open database would drop SQLite's locks.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return


def _prepare_connections(engine: Engine, *, begin: str, pragmas: tuple[str, ...]) -> None:
    """Turn off the driver's own transactions, so that DDL and SAVEPOINT behave, and begin ours."""

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        # synchronous=FULL: in WAL mode each commit is flushed to the disk before it is acknowledged.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", *pragmas):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    def on_begin(connection: Connection) -> None:
        run(connection, begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def blames_storage(error: BaseException) -> bool | None:
    """Whether the disk, the file or another process's lock is to blame; None for an error of another driver."""
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _STORAGE_CODES


def reserve(url: URL, size: int) -> Reserve | None:
    """Room for vital writes, kept beside the file."""
    return Reserve(Path(f"{url.database}-reserve"), size=size) if size else None


class FilePulse:
    """A file beside the database, locked while its process lives; its time of change moves with every beat.

    No beat reaches the disk: who looks is on the same machine, and a machine that stops has no writer.
    """

    def __init__(self, url: URL, holder: str) -> None:
        self._database = url.database
        self._holder = holder
        self._file: int | None = None
        self._beats = 0

    def beat(self) -> None:
        """Show that this process lives."""
        if self._file is None:
            file = os.open(self._path(self._holder), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = file
        self._beats += 1
        os.utime(self._file, ns=(self._beats, self._beats))

    def of(self, holder: str) -> object | None:
        """What changes while that process lives; None when it is gone."""
        path = self._path(holder)
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(file).st_mtime_ns
        else:
            path.unlink(missing_ok=True)
            return None
        finally:
            os.close(file)

    def close(self) -> None:
        """Be gone."""
        if self._file is not None:
            self._path(self._holder).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _path(self, holder: str) -> Path:
        return Path(f"{self._database}-{holder}.writer")


def pulse(url: URL, holder: str) -> Pulse:
    """How others on this machine see that this process lives."""
    return FilePulse(url, holder)


def check_foreign_keys(connection: Connection) -> None:
    """Check what the schema's engine left unchecked. Raises RuntimeError."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise RuntimeError(f"{len(broken)} rows lost what they refer to; nothing was changed")


def describe(connection: Connection) -> dict[str, object]:
    """What SQLAlchemy's inspector does not tell of a schema, by name."""
    found: dict[str, object] = {}
    written = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for kind, name, sql in written:
        if kind == "table":
            found[f"{name} options"] = " ".join(sql.rpartition(")")[2].upper().split())
        elif kind in ("trigger", "view"):
            found[f"{kind} {name}"] = " ".join(sql.split())
    return found
