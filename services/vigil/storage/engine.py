"""The one place where database engines are made. SQLite: WAL, synchronous=FULL, transactions begun by us."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.pool import NullPool, QueuePool

from vigil.errors import Reason, refused
from vigil.storage.rows import run

BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process's lock before it counts as unavailable."""
KEPT_VIEWS = 16
"""Connections kept open for views besides the reading threads' own: opening one costs a millisecond."""

CACHED_STATEMENTS = 512
"""Prepared statements kept by a connection: those of a group commit differ by their number of rows."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The three ways into one database."""

    writer: Engine
    """Begins IMMEDIATE: a transaction that started can finish."""
    reader: Engine
    """Read-only connections, one transaction each."""
    schema: Engine
    """Like the writer, but foreign keys are checked at the end: a rebuilt table is dropped in between."""

    def dispose(self) -> None:
        """Close every pooled connection."""
        for engine in (self.writer, self.reader, self.schema):
            engine.dispose()


def database_url(path_or_url: Path | str) -> URL:
    """Read a file path or an SQLAlchemy URL; refuses what this version cannot open (FIELD_INVALID)."""
    if isinstance(path_or_url, str) and "://" in path_or_url:
        url = make_url(path_or_url)
    else:
        url = URL.create("sqlite", database=str(path_or_url))
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise refused(
            Reason.FIELD_INVALID,
            "The database must be a file path or a sqlite:/// URL that names a file.",
            field="database",
        )
    return url


def create_engines(url: URL, *, readers: int, busy_timeout: float = BUSY_TIMEOUT_S) -> Engines:
    """Make the engines of one database; a missing file (0600) and its folder (0700) are created."""
    _create_file(Path(str(url.database)))
    arguments: dict[str, Any] = {"timeout": busy_timeout, "check_same_thread": False}
    arguments["cached_statements"] = CACHED_STATEMENTS
    writer = create_engine(url, poolclass=NullPool, connect_args=arguments)
    reader = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=readers + KEPT_VIEWS,
        max_overflow=-1,
        pool_use_lifo=True,
        connect_args=arguments,
    )
    schema = create_engine(url, poolclass=NullPool, connect_args=arguments)
    _prepare_connections(writer, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=ON",))
    _prepare_connections(reader, begin="BEGIN", pragmas=("query_only=ON",))
    _prepare_connections(schema, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=OFF",))
    return Engines(writer=writer, reader=reader, schema=schema)


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
