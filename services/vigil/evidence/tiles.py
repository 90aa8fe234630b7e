"""The log as static resources that anybody reads: checkpoint, hash tiles, entry bundles (C2SP tlog-tiles).

What a signed checkpoint covers, and nothing else, is served; an entry is the leaf as the tree hashes it. Statements,
bodies, certificates and whose a record is are no part of any tile.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from vigil.core.tiles import CHECKPOINT_PATH, TILE_HEIGHT, Tile, encode_bundle, parse_tile
from vigil.errors import Reason, refused
from vigil.evidence import store
from vigil.evidence.service import Checkpointer
from vigil.evidence.witness_book import WitnessBook
from vigil.storage import Database

TEXT: Final = "text/plain; charset=utf-8"
BYTES: Final = "application/octet-stream"
FOREVER: Final = "public, max-age=31536000, immutable"
"""RFC 8246, and the year that RFC 9111 readers take for always."""
A_MINUTE: Final = "public, max-age=60"
"""A partial tile never changes either, but the full one takes its place."""
A_SECOND: Final = "public, max-age=1"
"""The log signs a checkpoint a second while there is news; C2SP tlog-tiles asks for a few seconds at most."""
READS_AT_ONCE: Final = 2
"""Of the database's reading threads: strangers leave half of them to the service's own callers."""
WAITING: Final = 64


@dataclass(frozen=True, slots=True)
class Resource:
    """What is answered. ``compressible``: worth compressing on the way (hashes are not)."""

    content: bytes
    content_type: str
    caching: str
    compressible: bool = False


class TileReader:
    """Reads one resource for each request, in work that one tile bounds: at most 256 rows."""

    def __init__(self, *, database: Database, checkpointer: Checkpointer, book: WitnessBook) -> None:
        self._database = database
        self._checkpointer = checkpointer
        self._book = book
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._waiting = 0

    async def read(self, path: str) -> Resource:
        """Answer what lies at a path below the log's prefix.

        Raises FIELD_INVALID and RESOURCE_NOT_FOUND for what is no path of the log or not covered by a checkpoint,
        QUOTA_EXCEEDED while too many wait, STORAGE_UNAVAILABLE, EVIDENCE_UNAVAILABLE; LookupError for a hole.
        """
        if path == CHECKPOINT_PATH:
            checkpoint = await self._checkpointer.newest()
            async with self._turn():
                held = await self._book.held(checkpoint)
            return Resource(held.note.encode(), TEXT, A_SECOND)
        tile = parse_tile(path)
        size = (await self._checkpointer.newest()).size
        if tile.width_in(size) < tile.width:
            raise refused(
                Reason.RESOURCE_NOT_FOUND,
                f"The newest checkpoint covers {size} entries, and this tile is not in a tree of that size.",
                size=size,
            )
        async with self._turn():
            content = await self._database.read(lambda connection: _content(connection, tile))
        return Resource(content, BYTES, FOREVER if tile.full else A_MINUTE, compressible=tile.entries)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the few reads at once. Raises QUOTA_EXCEEDED when too many wait for theirs."""
        if self._waiting >= WAITING:
            raise refused(
                Reason.QUOTA_EXCEEDED,
                "Too much of the log is asked for at once.",
                lifted_by="asking again in a second",
                who="caller",
            )
        self._waiting += 1
        try:
            async with self._turns:
                yield
        finally:
            self._waiting -= 1


def _content(connection: Connection, tile: Tile) -> bytes:
    if tile.entries:
        return encode_bundle(store.load_leaves(connection, tile.start, tile.width))
    return b"".join(store.load_subtrees(connection, TILE_HEIGHT * tile.level, tile.start, tile.width))
