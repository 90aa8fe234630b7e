"""Which database errors mean that the storage is unavailable, and which are a programmer's."""

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from vigil.errors import Reason, Refused, refused
from vigil.storage import postgres, sqlite

DATABASE_ERRORS = (DBAPIError, sqlite3.Error)
"""What a statement raises; SQLite's own is that of a connection being prepared."""


def is_storage_failure(error: BaseException) -> bool:
    """Tell whether the disk, the server, the file or another's lock is to blame, rather than the statement."""
    original = getattr(error, "orig", None) or error
    for blames in (sqlite.blames_storage, postgres.blames_storage):
        verdict = blames(original)
        if verdict is not None:
            return verdict or bool(getattr(error, "connection_invalidated", False))
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def storage_unavailable(error: BaseException | None = None) -> Refused:
    """Make STORAGE_UNAVAILABLE. The write may or may not have been kept: ask again with the same id."""
    if isinstance(error, Refused):
        # It has a sentence of its own.
        return Refused(error.refusals)
    original = getattr(error, "orig", error)
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        "The service cannot write to or read from its database at the moment.",
        lifted_by="Free disk space, a healthy disk, a database server that answers; then the same request again.",
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
