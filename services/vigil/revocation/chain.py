"""The chain in memory, as it is durable: its newest position, its effects, its newest entries."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.revocations import EMPTY_CHAIN, Entry, RevocationState
from vigil.errors import Reason, Refused
from vigil.revocation import store
from vigil.storage import Database

TAIL: Final = 4_096
"""Entries kept in memory for readers that are nearly up to date."""
BATCH: Final = 1_000
"""Entries of one answer."""
BATCH_BYTES: Final = 2 << 20
"""An answer stops growing here: one more entry still fits into a gRPC message of 4 MiB."""

FOLLOW_S: Final = 1.0

_log = logging.getLogger(__name__)

Values = list[tuple[int, bytes]]


def entry_of(value: bytes) -> Entry:
    """An entry from its bytes in the contract's form."""
    message = revocation_pb2.RevocationEntry.FromString(value)
    return Entry(message.epoch, tuple(message.statements), message.chain)


class Tail:
    """The newest entries, gapless, as bytes."""

    def __init__(self) -> None:
        self._values: deque[tuple[int, bytes]] = deque(maxlen=TAIL)

    def append(self, epoch: int, value: bytes) -> None:
        self._values.append((epoch, value))

    def after(self, epoch: int, *, limit: int) -> Values | None:
        """The entries that follow an epoch; None when memory does not reach back that far."""
        if not self._values or epoch >= self._values[-1][0]:
            return []
        first = self._values[0][0]
        if epoch + 1 < first:
            return None
        begin = epoch + 1 - first
        return [self._values[place] for place in range(begin, min(begin + limit, len(self._values)))]


def bounded(values: Values) -> Values:
    """As many of the first entries as one answer holds."""
    size = 0
    for place, (_, value) in enumerate(values):
        size += len(value)
        if place and size > BATCH_BYTES:
            return values[:place]
    return values


class Chain:
    """What is durable. ``taken`` is called in the order of the epochs, after each commit."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._tail = Tail()
        self._hashes: list[bytes] = [EMPTY_CHAIN]
        self._listeners: list[Callable[[int, bytes], None]] = []
        self.state = RevocationState()

    def load(self) -> None:
        """Take everything from the database. Raises STATEMENT_MALFORMED when it was altered."""
        state = RevocationState()
        self._tail, self._hashes = Tail(), [EMPTY_CHAIN]
        self.state = state
        while True:
            values = self._database.read_now(lambda conn: store.values_after(conn, state.epoch, limit=BATCH))
            if not values:
                break
            for _, value in values:
                self._take(entry_of(value), value)

    def listen(self, listener: Callable[[int, bytes], None]) -> None:
        """Have ``listener(epoch, value)`` called after each durable step."""
        self._listeners.append(listener)

    def taken(self, value: bytes) -> None:
        """A step became durable. One that is known changes nothing, one after a gap waits for ``follow``."""
        entry = entry_of(value)
        if entry.epoch != self.state.epoch + 1:
            return
        self._take(entry, value)
        for listener in self._listeners:
            listener(self.state.epoch, value)

    async def follow(self) -> None:
        """Until cancelled, take what is durable and nobody heard of: a disk may fail in the middle of a commit, say
        that nothing was written, and have written it all the same (ARCHITECTURE 8, invariant 4).
        """
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self.catch_up()
            except Refused as refusal:
                _log.warning("the chain cannot be read: %s", refusal)

    async def catch_up(self) -> None:
        """Take what the database holds beyond memory. Raises STORAGE_UNAVAILABLE."""
        known = -1
        while known < self.state.epoch:
            known = self.state.epoch
            for _, value in await self._database.read(partial(store.values_after, epoch=known, limit=BATCH)):
                self.taken(value)

    def _take(self, entry: Entry, value: bytes) -> None:
        self.state.append(entry)
        self._hashes.append(entry.chain)
        self._tail.append(entry.epoch, value)

    def hash_at(self, epoch: int) -> bytes | None:
        """The chain hash at an epoch; None for one that never was."""
        return self._hashes[epoch] if 0 <= epoch < len(self._hashes) else None

    def refusal(self, caller: Identity) -> Reason | None:
        """Why this caller may not act; None when nothing is known against it."""
        return self.state.identity_refusal(caller, at=self._clock.now())

    async def after(self, epoch: int, *, limit: int) -> Sequence[bytes]:
        """Entries after an epoch, at most ``limit`` and at most what one answer holds."""
        wanted = min(max(limit, 0), BATCH)
        if not wanted:
            return []
        values = self._tail.after(epoch, limit=wanted)
        if values is None:
            values = await self._database.read(lambda conn: store.values_after(conn, epoch, limit=wanted))
        return [value for _, value in bounded(values)]
