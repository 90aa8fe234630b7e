"""Room on the disk that is kept for what must not be refused: revocations, and the records of safety actions.

A file beside the database holds the room, really allocated. When the disk is full, a *vital* write gives some of it
back to the disk and uses that; every other write is refused until all of the room could be taken again. So what was
kept back is spent on vital writes alone, as far as this service's own writes go: COMMANDS, Refusals ("disk is
reserved for revocations and S1 records").
"""

import errno
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

RESERVE: Final = "vigil.reserve_bytes"
"""The entry in a ``MetaData.info`` by which a service's tables ask for room."""
STEP_BYTES: Final = 1 << 20
"""Given back at a time: so little that others who wait for room on the same disk do not get much of it."""


class Reserve:
    """One file of ``size`` bytes. Thread-safe: the writer gives and takes, handlers ask."""

    def __init__(self, path: Path, *, size: int) -> None:
        self._path = path
        self._size = size
        self._held = 0
        self._gate = threading.Lock()
        self.take()

    @property
    def whole(self) -> bool:
        """Whether all of the room is held."""
        return self._held >= self._size

    def take(self) -> bool:
        """Take what is not held; whether all of it is held now. Never raises: a disk that fails has no room."""
        if self.whole:
            return True
        with self._gate:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(file, 0, self._size)
                    self._held = self._size
                finally:
                    os.close(file)
            except OSError:
                # What could be taken of it before the disk was full counts as nothing, and may be given all the same.
                return False
        return True

    def give(self) -> bool:
        """Give a step back to the disk; False when nothing is left to give."""
        with self._gate:
            try:
                left = self._path.stat().st_size
                if left == 0:
                    return False
                self._held = max(0, left - STEP_BYTES)
                os.truncate(self._path, self._held)
            except OSError:
                return False
        return True


def is_full(error: BaseException) -> bool:
    """Whether a database error says that the disk has no room."""
    original = getattr(error, "orig", None) or error
    if isinstance(original, OSError):
        return original.errno == errno.ENOSPC
    code = getattr(original, "sqlite_errorcode", 0)
    # The index of the write-ahead log grows by itself, and SQLite has no code of its own for a disk that is full then.
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE
