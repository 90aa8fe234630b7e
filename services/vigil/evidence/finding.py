"""Finds records by what they refer to, or by kind and time: through the index, in pages, inside a reader's scope."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.digest import DIGEST_BYTES
from vigil.evidence import index_store, paging
from vigil.evidence.domain import Scope, field_invalid, scope_of
from vigil.evidence.index import Refers, epoch_key
from vigil.evidence.indexer import Indexer
from vigil.evidence.proved import Records
from vigil.evidence.service import check_window
from vigil.evidence.store import StoredEntry

MAX_LOOKED_AT: Final = 2_000
"""Records that one call looks at, whether the reader may see them or not; the next call goes on from there."""
REQUEST_BYTES: Final = 16
_KIND: Final = re.compile(r"[a-z][a-z-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Either what the records refer to, or their kind; ``since`` and ``until`` (ms, both included, 0: no bound) by
    their own time, for a kind alone.
    """

    what: Refers | None = None
    value: bytes = b""
    kind: str = ""
    since: int = 0
    until: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    entries: tuple[StoredEntry, ...]
    next_token: str
    covered: int
    """The index covered so many entries: there are no others among them."""


class Finder:
    """Answers which records there are. Nothing of it is a proof; each record can be proved."""

    def __init__(self, *, indexer: Indexer, size: Callable[[], Awaitable[int]], clock: Clock) -> None:
        self._indexer = indexer
        self._size = size
        self._clock = clock

    async def find(self, reader: Identity, wanted: Wanted, *, page_size: int, page_token: str) -> Found:
        """A page of records that the reader may see, in the order of the log, or of their times for a kind.

        Raises FIELD_INVALID, EVIDENCE_UNAVAILABLE while the index is behind.
        """
        check_wanted(wanted, now=self._clock.now())
        # Not the window: whoever asks for the last 90 minutes asks for others with every page.
        asked = (str(wanted.what), wanted.value.hex(), wanted.kind)
        begun = paging.place_of(page_token, *asked, parts=2)
        limit = paging.rows(page_size)
        # What is recorded while somebody turns pages, these very questions among it, is none of the answer.
        size = await self._size()
        place, until = begun or (None, size)
        end = min(until, size)
        scope = scope_of(reader)

        def read(connection: Connection) -> Found:
            rows = _rows(connection, wanted, place, below=end)
            entries, last = _page(Records(connection), rows, scope, limit=limit)
            token = "" if last is None or last == rows[-1] else paging.token_after(last, end, *asked)
            return Found(tuple(entries), token, end)

        return await self._indexer.read(end, read)


def check_wanted(wanted: Wanted, *, now: int) -> None:
    """Whether this can be asked. Raises FIELD_INVALID."""
    if wanted.what is None:
        if not _KIND.fullmatch(wanted.kind):
            raise field_invalid("kind", "Name what the records refer to, or their kind.")
        check_window(wanted.since, wanted.until, now=now)
        return
    sizes = {Refers.REQUEST: REQUEST_BYTES, Refers.EPOCH: len(epoch_key(0))}
    size = sizes.get(wanted.what, DIGEST_BYTES)
    if len(wanted.value) != size:
        raise field_invalid(str(wanted.what), f"It has {size} bytes.")
    if wanted.since or wanted.until:
        raise field_invalid("from_ms", "A window of time goes with a kind.")


Looked = tuple[int, int]
"""The time (0 where there is none) and the index of a record that was looked at."""


def _rows(connection: Connection, wanted: Wanted, place: paging.Place | None, *, below: int) -> list[Looked]:
    if wanted.what is None:
        since = wanted.since - 1 if wanted.since else index_store.NEVER
        return index_store.of_kind(
            connection,
            wanted.kind,
            after=(place[0], place[1]) if place else (since, index_store.EVER),
            until=wanted.until or index_store.EVER,
            below=below,
            limit=MAX_LOOKED_AT + 1,
        )
    after = index_store.NEVER if place is None else place[1]
    found = index_store.referring(
        connection, wanted.what, wanted.value, after=after, below=below, limit=MAX_LOOKED_AT + 1
    )
    return [(0, index) for index in found]


def _page(
    records: Records, rows: list[Looked], scope: Scope, *, limit: int
) -> tuple[list[StoredEntry], Looked | None]:
    """The records among those found that the reader may see, and the last one that was looked at."""
    entries: list[StoredEntry] = []
    size = 0
    last: Looked | None = None
    for looked_at, place in enumerate(rows):
        if looked_at == MAX_LOOKED_AT or len(entries) == limit or size > paging.PAGE_BYTES:
            break
        row = records.row(place[1])
        last = place
        if scope.covers(row.organization, row.site):
            entry = records.entry(place[1])
            entries.append(entry)
            size += paging.size_of(entry)
    return entries, last
