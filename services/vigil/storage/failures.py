"""Which database errors mean that the storage is unavailable, and which are a programmer's."""

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from vigil.errors import Reason, Refused, refused

DATABASE_ERRORS = (DBAPIError, sqlite3.Error)
"""What a statement raises: through SQLAlchemy, and on the driver's own cursor."""

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


def is_storage_failure(error: BaseException) -> bool:
    """Tell whether the disk, the file or another process's lock is to blame, rather than the statement."""
    if isinstance(error, sqlite3.Error):
        return _is_storage_code(error)
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return _is_storage_code(error.orig)
    return isinstance(error, OperationalError | InterfaceError)


def _is_storage_code(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _STORAGE_CODES


def storage_unavailable(error: BaseException | None = None) -> Refused:
    """Make STORAGE_UNAVAILABLE. The write may or may not have been kept: ask again with the same id."""
    original = getattr(error, "orig", error)
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        "The service cannot write to or read from its database at the moment.",
        lifted_by="Free disk space or a healthy disk; then the same request again.",
        who="the operator of the service",
        cause=getattr(original, "sqlite_errorname", type(original).__name__),
    )


def room_is_kept() -> Refused:
    """Make STORAGE_UNAVAILABLE for a write that is not vital while the disk is full."""
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        "The disk is full; what is left is kept for revocations and the records of safety actions.",
        lifted_by="Free disk space; then the same request again.",
        who="the operator of the service",
        cause="SQLITE_FULL",
    )
