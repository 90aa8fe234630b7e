"""Takes a census from time to time: reads what the log has more, merges it into the last tree, signs and records it.

All that it reads never changes again, so it holds no transaction open. It works in slices of a few milliseconds, and
appends go on between them. Its memory is bounded by the stretch of the log that it takes at once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy import Connection

from vigil.core.census import Collector, Merger, is_page, page_root
from vigil.core.clock import Clock
from vigil.core.digest import DIGEST_BYTES
from vigil.core.merkle import leaf_hash, tree_root
from vigil.core.statements.bodies import Census
from vigil.core.statements.envelope import Scribe
from vigil.errors import Refused
from vigil.evidence import census_store, store
from vigil.evidence.census_store import Tree
from vigil.evidence.domain import decode_leaf
from vigil.evidence.intake import Submission
from vigil.evidence.metrics import CensusMetrics
from vigil.evidence.sequencer import Sequencer
from vigil.storage import Database

KEPT: Final = 8
"""Trees of which proofs are made: the newest censuses. Witnesses may lag behind by some."""
STRETCH: Final = 65_536
"""Entries of the log taken at once: bounds the memory. A log that is further ahead is caught up in steps."""
LEAVES_A_READ: Final = 1024
LEAVES_A_SLICE: Final = 128
"""Leaves read before other tasks of the event loop get their turn: about two milliseconds."""
PAGES_AT_ONCE: Final = 16
"""Pages in one read or write: 300 kB."""
PAGES_A_SLICE: Final = 4
"""Pages merged and hashed before others get their turn: about three milliseconds."""
REST_S: Final = 0.002
"""After each slice: about as long as it took, so that others have half of the time."""
SHARE: Final = 20
"""A census takes at most this part of the time: the next one waits for so many times what the last one took."""
NOTHING_KNOWN: Final[Mapping[bytes, bytes]] = {}
_NAMED: Final = 5

_log = logging.getLogger(__name__)


class DamagedTreeError(Exception):
    """A stored tree is not the one that was written; the log itself is not touched by that."""


@dataclass(slots=True)
class _Pages:
    """Pages of the tree being made, and what its row will say of them."""

    size: int
    waiting: list[bytes] = field(default_factory=list)
    written: int = 0
    names: bytearray = field(default_factory=bytearray)
    roots: list[bytes] = field(default_factory=list)

    def add(self, pages: Iterable[bytes], *, known: Mapping[bytes, bytes] = NOTHING_KNOWN) -> None:
        """Hash pages; ``known`` has those whose roots were computed just now."""
        for page in pages:
            root = known.get(page) or page_root(page)
            self.roots.append(root)
            self.names += page[:DIGEST_BYTES] + root
            self.waiting.append(page)


class CensusTaker:
    """Takes censuses of one log. ``log_key``: the log's verifier key, which each census names."""

    def __init__(
        self,
        *,
        database: Database,
        sequencer: Sequencer,
        scribes: Callable[[], Scribe],
        origin: str,
        log_key: str,
        interval: float,
        clock: Clock,
        metrics: CensusMetrics,
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._scribe = scribes()
        self._subject = f"log/{origin}"
        self._log_key = log_key
        self._interval = interval
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """Take one at each interval while there is news, until cancelled; a start is left alone for one interval."""
        wait = self._interval
        while True:
            await asyncio.sleep(wait)
            began = self._clock.monotonic()
            try:
                await self.take()
            except Refused as error:
                _log.warning("no census: %s", error)
            except LookupError as error:
                _log.error("no census: %s", error)
            except DamagedTreeError as error:
                self._metrics.damaged()
                _log.error(
                    "the tree of the last census is damaged, the next one is made from the log: %s", error
                )
                await self._forget(all_of_them=True)
                wait = 0.0
                continue
            wait = max(self._interval, SHARE * (self._clock.monotonic() - began))

    async def take(self) -> Tree | None:
        """Take a census of the log as it is durable now; None when the last one knows everything.

        Raises Refused EVIDENCE_UNAVAILABLE, STORAGE_UNAVAILABLE; DamagedTreeError; LookupError for a hole in the log.
        """
        began = self._clock.monotonic()
        await self._forget()
        size = (await self._sequencer.state()).size
        trees = await self._database.read(census_store.load_trees)
        base = trees[0] if trees else None
        # A census is a record too, and no news by itself.
        if not size:
            return None
        if base is not None and base.index is not None and size - base.size <= 1:
            return None
        while base is None or base.size < size:
            base = await self._step(base, min(size, (base.size if base else 0) + STRETCH))
        signed = await self._sign(base)
        self._metrics.taken(
            size=signed.size, subjects=signed.subjects, seconds=self._clock.monotonic() - began
        )
        return signed

    # --- one tree from the last one

    async def _step(self, base: Tree | None, size: int) -> Tree:
        """Make the tree of the first ``size`` entries."""
        news = await self._news(0 if base is None else base.size, size)
        merger = Merger(news.news)
        made = _Pages(size)
        if base is not None:
            await self._feed(merger, base, made)
        await self._finish(merger, made)
        tree = Tree(size, merger.subjects, tree_root(made.roots), b"", bytes(made.names))
        await self._database.write(lambda connection: census_store.put_tree(connection, tree))
        self._report(news, merger)
        return tree

    async def _news(self, first: int, end: int) -> Collector:
        news = Collector()
        for start in range(first, end, LEAVES_A_READ):
            count = min(LEAVES_A_READ, end - start)

            def read(connection: Connection, start: int = start, count: int = count) -> list[bytes]:
                return store.load_leaves(connection, start, count)

            leaves = await self._database.read(read)
            for at in range(0, count, LEAVES_A_SLICE):
                for leaf in leaves[at : at + LEAVES_A_SLICE]:
                    hashed = leaf_hash(leaf)
                    for link in decode_leaf(leaf).subjects:
                        news.add(link.subject, number=link.number, previous=link.previous, leaf=hashed)
                await asyncio.sleep(REST_S)
        return news

    async def _feed(self, merger: Merger, base: Tree, made: _Pages) -> None:
        if not base.sound:
            raise DamagedTreeError(f"the pages of the tree of {base.size} entries do not lead to its root")
        names = base.names
        for first in range(0, len(names), PAGES_AT_ONCE):
            some = names[first : first + PAGES_AT_ONCE]

            def read(connection: Connection, first: int = first, count: int = len(some)) -> list[bytes]:
                return census_store.load_pages(connection, base.size, first, count)

            try:
                pages = await self._database.read(read)
            except LookupError as error:
                raise DamagedTreeError(str(error)) from error
            for place, ((_, root), page) in enumerate(zip(some, pages, strict=True), 1):
                if not is_page(page) or page_root(page) != root:
                    raise DamagedTreeError(f"a page of the tree of {base.size} entries was changed")
                made.add(merger.feed(page), known={page: root})
                if place % PAGES_A_SLICE == 0:
                    await asyncio.sleep(REST_S)
            await self._write(made)

    async def _finish(self, merger: Merger, made: _Pages) -> None:
        for place, page in enumerate(merger.remaining(), 1):
            made.add((page,))
            if place % PAGES_A_SLICE == 0:
                await asyncio.sleep(REST_S)
                await self._write(made)
        await self._write(made, last=True)

    async def _write(self, made: _Pages, *, last: bool = False) -> None:
        """Write the pages that wait, several at once."""
        while len(made.waiting) >= PAGES_AT_ONCE or (last and made.waiting):
            some, made.waiting = made.waiting[:PAGES_AT_ONCE], made.waiting[PAGES_AT_ONCE:]
            first = made.written

            def write(connection: Connection, some: list[bytes] = some, first: int = first) -> None:
                census_store.put_pages(connection, made.size, first, some)

            await self._database.write(write)
            made.written += len(some)

    def _report(self, news: Collector, merger: Merger) -> None:
        broken = sorted(news.names[key] for key in news.breaks.union(merger.breaks))
        if broken:
            self._metrics.broken(len(broken))
            _log.error(
                "the records of %d subjects do not follow one another: %s",
                len(broken),
                ", ".join(broken[:_NAMED]) + (", …" if len(broken) > _NAMED else ""),
            )

    # --- signing

    async def _sign(self, tree: Tree) -> Tree:
        """Sign and record a tree. What was signed is noted first: a tree is on record when its statement is."""
        body = Census(tree.root, tree.subjects, tree.size, self._sequencer.time(), self._log_key)
        statement = self._scribe.sign(body, subject=self._subject)
        digest = statement.digest
        await self._database.write(lambda connection: census_store.sign_tree(connection, tree.size, digest))
        place = await self._sequencer.append(
            Submission(statement=statement.data, sender=self._subject, own=True)
        )
        return replace(tree, digest=digest, index=place.index)

    # --- forgetting

    async def _forget(self, *, all_of_them: bool = False) -> None:
        """Keep the newest trees alone: those on record, and the newest of all. Then their pages, in slices."""
        trees = await self._database.read(census_store.load_trees)
        recorded = [tree.size for tree in trees if tree.index is not None][:KEPT]
        kept = set() if all_of_them else {*recorded, *(tree.size for tree in trees[:1])}
        sizes = [tree.size for tree in trees if tree.size not in kept]
        if sizes:
            await self._database.write(lambda connection: census_store.drop_trees(connection, sizes))
        for size, highest in (await self._database.read(census_store.leftovers)).items():
            for first in range(0, highest + 1, PAGES_AT_ONCE):

                def drop(connection: Connection, size: int = size, first: int = first) -> None:
                    census_store.drop_pages(connection, size, first, PAGES_AT_ONCE)

                await self._database.write(drop)
