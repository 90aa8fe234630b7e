"""Where a test's database lies: a SQLite file or a database of a real PostgreSQL server; the same tests run over both.

```
def test_it(place: Place) -> None:            # twice, once for each kind
    database = open_database(place.at, …)
    place.execute("DELETE FROM entry")        # behind its back
```
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import make_url

from tests.support.postgres import PostgresServer

KINDS = ("sqlite", "postgresql")


class Place(Protocol):
    """One place for one database."""

    kind: str
    at: Path | str

    def execute(self, script: str) -> None:
        """Change it behind the service's back."""
        ...

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Look at what is durable."""
        ...

    def locked(self, *tables: str) -> contextlib.AbstractContextManager[None]:
        """Let nobody write to these tables (SQLite: to any)."""
        ...


class SqlitePlace:
    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at: Path | str = path

    def execute(self, script: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=30)) as connection:
            connection.executescript(script)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    @contextlib.contextmanager
    def locked(self, *_tables: str) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")


class PostgresPlace:
    kind = "postgresql"

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.at: Path | str = server.create()
        self.name = str(make_url(str(self.at)).database)

    def execute(self, script: str) -> None:
        self.server.query(script, database=self.name)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.server.query(sql, database=self.name)

    @contextlib.contextmanager
    def locked(self, *tables: str) -> Iterator[None]:
        with self.server.connection(self.name) as connection:
            connection.execute(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE")  # type: ignore[call-overload]
            yield
            connection.rollback()


Places = Callable[[Path], Place]


def places(kind: str, server: Callable[[], PostgresServer]) -> Places:
    """Make places of one kind; the path names the file where the kind has one."""
    if kind == "sqlite":
        return SqlitePlace
    return lambda _: PostgresPlace(server())
