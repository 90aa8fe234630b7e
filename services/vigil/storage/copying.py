"""A copy of a SQLite database while others write to it: one moment of it, whole, in a file of its own."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from vigil.storage.failures import storage_unavailable

PAGES: Final = 4096
"""Pages copied at a time: 16 MiB, then the progress is told."""
BUSY_S: Final = 30.0


def copy_database(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Copy one database (SQLite's backup API) as it is at one moment; ``target`` must not exist, and gets mode 0600.

    ``progress`` hears how many pages of how many. Raises STORAGE_UNAVAILABLE, FileExistsError, FileNotFoundError.
    """
    if not source.exists():
        raise FileNotFoundError(source)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        with closing(_connected(source)) as reading, closing(sqlite3.connect(target)) as writing:
            # Held while it is copied: a write in between would make SQLite begin the copy anew, again and again.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reading.backup(writing, pages=PAGES, progress=lambda _, left, size: progress(size - left, size))
            reading.execute("COMMIT")
            # A copy begins without a log of its own beside it.
            writing.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise storage_unavailable(error) from error


def check_database(path: Path) -> list[str]:
    """What SQLite finds wrong with a file; nothing in one that is whole. Raises STORAGE_UNAVAILABLE."""
    try:
        with closing(_connected(path)) as reading:
            found = [str(row[0]) for row in reading.execute("PRAGMA quick_check(10)")]
    except sqlite3.Error as error:
        raise storage_unavailable(error) from error
    return [] if found == ["ok"] else found


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA query_only=ON")
    return connection
