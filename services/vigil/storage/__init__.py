"""Databases: one durable writer with group commit, readers beside it, migrations on opening."""

from vigil.storage.database import Database, Disk, Reader, View, open_database
from vigil.storage.engine import database_url
from vigil.storage.fence import Fence, term_table
from vigil.storage.pulse import Pulse
from vigil.storage.reserve import RESERVE
from vigil.storage.rows import add_missing_rows, delete_keys, insert_rows, put_rows
from vigil.storage.schema import assert_migrations_match
from vigil.storage.scrub import overwrite_deleted
from vigil.storage.wake import news
from vigil.storage.writer import Writer, after_commit, at_commit

__all__ = [
    "RESERVE",
    "Database",
    "Disk",
    "Fence",
    "Pulse",
    "Reader",
    "View",
    "Writer",
    "add_missing_rows",
    "after_commit",
    "assert_migrations_match",
    "at_commit",
    "database_url",
    "delete_keys",
    "insert_rows",
    "news",
    "open_database",
    "overwrite_deleted",
    "put_rows",
    "term_table",
]
