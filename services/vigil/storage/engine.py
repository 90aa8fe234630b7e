"""The one place where database engines are made: which kind of database a URL names, and the ways into it."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from vigil.errors import Reason, refused
from vigil.storage import postgres, sqlite
from vigil.storage.pulse import Pulse
from vigil.storage.reserve import Reserve

BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process's lock before it counts as unavailable."""
KEPT_VIEWS = 16
"""Connections kept open for views besides the reading threads' own: opening one costs a millisecond or more."""


class Kind(Protocol):
    """What differs between kinds of databases; a module each."""

    def names_one(self, url: URL) -> bool:
        """Whether the URL names a database that stays."""
        ...

    def create_engines(
        self, url: URL, *, pool_size: int, busy_timeout: float
    ) -> tuple[Engine, Engine, Engine]:
        """Make the engines of writer, readers and schema."""
        ...

    def reserve(self, url: URL, size: int) -> Reserve | None:
        """Room for vital writes, where this side can keep any."""
        ...

    def pulse(self, url: URL, holder: str) -> Pulse:
        """How others see that this process lives."""
        ...

    def check_foreign_keys(self, connection: Connection) -> None:
        """After a migration. Raises RuntimeError."""
        ...

    def describe(self, connection: Connection) -> dict[str, object]:
        """What SQLAlchemy's inspector does not tell of a schema, by name."""
        ...


_KINDS: Final = MappingProxyType[str, Kind]({"sqlite": sqlite, "postgresql": postgres})


@dataclass(frozen=True, slots=True)
class Engines:
    """The three ways into one database."""

    kind: Kind
    url: URL
    writer: Engine
    """A transaction that started can finish."""
    reader: Engine
    """Read-only connections, one transaction each, which sees one moment."""
    schema: Engine
    """For making and changing tables, by one process at a time."""

    def dispose(self) -> None:
        """Close every pooled connection."""
        for engine in (self.writer, self.reader, self.schema):
            engine.dispose()


def database_url(path_or_url: Path | str) -> URL:
    """Read a file path or an SQLAlchemy URL; refuses what this version cannot open (FIELD_INVALID)."""
    url = None
    if isinstance(path_or_url, str) and "://" in path_or_url:
        try:
            url = make_url(path_or_url)
        except (ArgumentError, ValueError):
            url = None  # the error would repeat it, password and all
    else:
        url = URL.create("sqlite", database=str(path_or_url))
    kind = None if url is None else _KINDS.get(url.get_backend_name())
    if url is None or kind is None or not kind.names_one(url):
        raise refused(
            Reason.FIELD_INVALID,
            "The database must be a file path, a sqlite:/// URL that names a file, or a postgresql:// URL that names"
            " a database.",
            field="database",
        )
    return url


def create_engines(url: URL, *, readers: int, busy_timeout: float = BUSY_TIMEOUT_S) -> Engines:
    """Make the engines of one database."""
    kind = _KINDS[url.get_backend_name()]
    engines = kind.create_engines(url, pool_size=readers + KEPT_VIEWS, busy_timeout=busy_timeout)
    return Engines(kind, url, *engines)
