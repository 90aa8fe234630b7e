"""What was deleted must not lie on in the file: for databases in which people's data can be erased.

SQLite keeps deleted bytes in its pages until they are used again, and older pages in the write-ahead log until that
is truncated. PostgreSQL keeps dead rows until its vacuum has run, and its own log as long as it is archived.
"""

from sqlalchemy import Connection, Engine

from vigil.storage.failures import DATABASE_ERRORS


def overwrite_deleted(connection: Connection) -> None:
    """From now on this connection overwrites with zeros what it deletes (SQLite's secure_delete)."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete=ON").fetchall()


def truncate_log(engine: Engine) -> bool:
    """Move everything from the write-ahead log into the file and cut it; False while a reader needs it."""
    if engine.dialect.name != "sqlite":
        return False
    connection = engine.raw_connection()
    try:
        busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    except DATABASE_ERRORS:
        return False
    finally:
        connection.close()
