"""Fills the index behind the log: never in an append's way, and told to hurry by those who wait for it."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sqlalchemy import Connection

from vigil.core.clock import Clock
from vigil.errors import Reason, Refused, refused
from vigil.evidence import index_store
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.proved import damaged
from vigil.storage import Database

BATCH: Final = 512
"""Entries in one transaction: a few milliseconds of the writer's time, which appends wait for."""
PAUSE_S: Final = 0.2
BUSY: Final = 64
"""So many new entries in one pause: the log has better things to do than its index …"""
BACKLOG: Final = 16_384
"""… until so many wait."""
HOLE_S: Final = 5.0
"""How long a hole in the log is left alone before somebody looks whether it is still there."""
WAIT_S: Final = 3.0
"""How long a question waits for the index to reach what it must cover."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Indexer:
    """Keeps the index up with the log. ``size`` answers how many entries are durable."""

    def __init__(
        self, *, database: Database, size: Callable[[], Awaitable[int]], clock: Clock, metrics: LogMetrics
    ) -> None:
        self._database = database
        self._size = size
        self._clock = clock
        self._metrics = metrics
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._moved = asyncio.Event()
        self._hole = ""

    async def run(self) -> None:
        """Index until cancelled; begin again after the database was away, and now and then at a hole of the log."""
        try:
            while True:
                try:
                    await self._follow()
                except Refused as refusal:
                    _log.warning("the index stands still: %s", refusal)
                    await asyncio.sleep(PAUSE_S)
                except LookupError as hole:
                    self._stop_at(str(hole))
                    await asyncio.sleep(HOLE_S)
        finally:
            self._hole = ""

    def _stop_at(self, hole: str) -> None:
        """Remember what the index cannot pass, and say it once."""
        if hole != self._hole:
            _log.error(
                "THE LOG IS DAMAGED: %s. The index stands still; everything is recorded as before.", hole
            )
        self._hole = hole

    async def _follow(self) -> None:
        """Index what the log grows by. Raises STORAGE_UNAVAILABLE."""
        done = await self._database.write(index_store.prepare)
        seen = await self._size()
        while True:
            size = await self._size()
            busy = size - seen > BUSY and size - done < BACKLOG and not self._waiting
            seen = size
            if done < size and not busy:
                done = await self._step(done, size)
                continue
            await self._rest()
            # Somebody else may have emptied or filled it.
            done = await self._database.read(index_store.covered)

    async def reached(self, size: int) -> int:
        """Wait until every entry below ``size`` is in the index; answers what it covers.

        Raises EVIDENCE_UNAVAILABLE when it does not get there in WAIT_S.
        """
        until = self._clock.monotonic() + WAIT_S
        self._waiting += 1
        try:
            while (done := await self._database.read(index_store.covered)) < size:
                left = until - self._clock.monotonic()
                if left <= 0 or self._hole:
                    raise self._behind(done, size)
                self._wanted.set()
                await self._moves(min(left, PAUSE_S))
        finally:
            self._waiting -= 1
        return done

    async def read(self, size: int, read: Callable[[Connection], T]) -> T:
        """Run in a read transaction in which every entry below ``size`` is in the index.

        Raises as ``reached``, and NOT_RECORDED where the log has a hole.
        """

        def looked(connection: Connection) -> tuple[int, list[T]]:
            done = index_store.covered(connection)
            try:
                return done, [read(connection)] if done >= size else []
            except LookupError as hole:
                raise damaged(hole) from hole

        done, found = await self._database.read(looked)
        if not found:
            await self.reached(size)
            done, found = await self._database.read(looked)
        if not found:
            # Emptied in between, to be made anew.
            raise self._behind(done, size)
        return found[0]

    async def _step(self, done: int, size: int) -> int:
        if done == index_store.CLEARING:
            return await self._database.write(index_store.clear_some)
        end = min(size, done + BATCH)
        batch = await self._database.read(lambda connection: index_store.read_batch(connection, done, end))
        done = await self._database.write(lambda connection: index_store.write_batch(connection, batch))
        self._metrics.indexed(done)
        self._hole = ""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        return done

    async def _moves(self, seconds: float) -> None:
        """Until the index moves; whoever else moves it is seen a little later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    async def _rest(self) -> None:
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S):
                await self._wanted.wait()

    def _behind(self, done: int, size: int) -> Refused:
        why = f"it stands still: {self._hole}" if self._hole else "it is catching up"
        return refused(
            Reason.EVIDENCE_UNAVAILABLE,
            f"The index covers {max(done, 0)} of the {size} entries that this answer must rest on; {why}.",
            lifted_by="the log whole again" if self._hole else "the same question a little later",
            who="the operator" if self._hole else "the log",
            indexed=done,
            needed=size,
        )
