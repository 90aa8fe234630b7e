"""What a pump keeps on disk: one SQLite file, shared by both firmware slots, durable before anything is done.

A commit returns after the file was synchronised (WAL, ``synchronous=FULL``). The file belongs to one process at a
time. Values that are cached in memory follow a rollback by the ``on_rollback`` hooks.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vigil.core import cbor
from vigil.errors import Reason, Refused, refused

MAX_FACT_BYTES: Final = 1 << 20
"""The largest fact is the trust bundle or a drug library's settings."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaves (place INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS journal (
    request_id BLOB PRIMARY KEY, intent BLOB NOT NULL, command BLOB NOT NULL, permit BLOB, permit_statement BLOB,
    state TEXT NOT NULL, action TEXT NOT NULL, performed_by TEXT NOT NULL, work_order TEXT,
    bundle BLOB, times BLOB, apply_not_after INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS journal_permit ON journal (permit);
CREATE INDEX IF NOT EXISTS journal_state ON journal (state) WHERE state <> 'final';
CREATE TABLE IF NOT EXISTS receipts (
    request_id BLOB NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, sent INTEGER NOT NULL,
    PRIMARY KEY (request_id, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS receipts_unsent ON receipts (sent) WHERE sent = 0;
CREATE TABLE IF NOT EXISTS entries (
    epoch INTEGER PRIMARY KEY, statements BLOB NOT NULL, chain BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS builds (
    digest BLOB PRIMARY KEY, version TEXT NOT NULL, security_version INTEGER NOT NULL, sbom BLOB NOT NULL
) WITHOUT ROWID;
"""


class DeviceStore:
    """Facts by name (deterministic CBOR) and the tables of log, journal and revocations. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises STORAGE_UNAVAILABLE."""
        self._facts: dict[str, Any] = {}
        self._open = False
        self.on_rollback: list[Callable[[], None]] = [self._facts.clear]
        self.before_commit: list[Callable[[], None]] = []
        self.on_commit: list[Callable[[], None]] = []
        try:
            self._connection = self._connect(path)
            for pragma in (
                "locking_mode = EXCLUSIVE",
                "journal_mode = WAL",
                "synchronous = FULL",
                "cache_size = -64",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise _unavailable() from error

    def _connect(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside become durable together, or none. Nested ones join. Raises STORAGE_UNAVAILABLE."""
        if self._open:
            yield
            return
        self.execute("BEGIN IMMEDIATE")
        self._open = True
        try:
            yield
            for hook in self.before_commit:
                hook()
            self._commit()
        except BaseException:
            self._open = False
            self._rollback()
            raise
        self._open = False
        for hook in self.on_commit:
            hook()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and answer its rows. Raises STORAGE_UNAVAILABLE."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unavailable() from error

    def get(self, name: str, default: Any = None) -> Any:
        """The fact of this name, or ``default``."""
        if name not in self._facts:
            rows = self.execute("SELECT value FROM facts WHERE name = ?", (name,))
            if not rows:
                return default
            self._facts[name] = cbor.decode(rows[0][0], max_bytes=MAX_FACT_BYTES)
        return self._facts[name]

    def put(self, name: str, value: Any) -> None:
        """Keep a fact; inside a transaction."""
        self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, cbor.encode(value)))
        self._facts[name] = value

    def _commit(self) -> None:
        self.execute("COMMIT")

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self.execute("ROLLBACK")
        # What is cached is read again from what is stored.
        for hook in self.on_rollback:
            hook()


def _unavailable() -> Refused:
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        "the device cannot write to its own storage",
        lifted_by="service of the device",
        who="biomedical engineering",
    )
