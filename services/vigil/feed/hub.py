"""One reader of the tail for all watchers of a feed: each change is read and encoded once, and each watcher is
woken only for what it may see. A watcher that does not keep up is left behind and reads the tail by itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from sqlalchemy import Connection

from vigil.api.feed.v1 import feed_pb2
from vigil.core.clock import Clock
from vigil.core.ordered import OrderedSet
from vigil.errors import Refused
from vigil.feed.change import START, Position, Row, Scope
from vigil.feed.outbox import Outbox
from vigil.feed.reading import PAGE, PAGE_BYTES, continues, read_head, read_tail

POLL_S = 1.0
"""How soon a change is seen that another process wrote."""
MAX_PENDING = 1_000
"""Changes kept for one watcher; with more it is behind and reads them from the tail."""
STALL_S = 30.0
"""A watcher that has not taken one message for this long is cut off."""

_EVERYTHING = Scope(sites=None, kinds=frozenset())
_log = logging.getLogger(__name__)


class Watcher:
    """One stream: where it is, and what it has still to be sent."""

    def __init__(self, *, scope: Scope, position: Position, cut: Callable[[], None]) -> None:
        self.scope = scope
        self.position = position
        """Everything up to here was sent, or is not for this watcher."""
        self.told = position.sequence
        """Where the reader believes to be."""
        self.behind = True
        """It reads the tail by itself until it has caught up."""
        self.pending: deque[tuple[Row, feed_pb2.Change]] = deque()
        self.asked: deque[tuple[bytes, int]] = deque()
        """Challenges, each with the round that must have read the tail after it arrived."""
        self.answers: deque[tuple[bytes, int]] = deque()
        """Challenges, each with the sequence that has to be sent before its beat."""
        self.wake = asyncio.Event()
        self.sending_since: float | None = None
        self.cut = cut

    def push(self, row: Row, change: feed_pb2.Change) -> None:
        """Queue one change; too many, and the watcher is behind."""
        if self.behind or row.position.sequence <= self.position.sequence:
            # By itself it may have read further than the hub.
            return
        if len(self.pending) >= MAX_PENDING:
            self.fall_behind()
        else:
            self.pending.append((row, change))
        self.wake.set()

    def fall_behind(self) -> None:
        """Drop what is queued; the tail still has it."""
        self.pending.clear()
        self.behind = True
        self.wake.set()

    def take(self, head: Position) -> list[feed_pb2.Change]:
        """Take one message's worth of what is queued; with nothing left the watcher stands at the head."""
        taken: list[feed_pb2.Change] = []
        size = 0
        while self.pending and len(taken) < PAGE:
            row, change = self.pending[0]
            size += len(change.value)
            if taken and size > PAGE_BYTES:
                break
            self.pending.popleft()
            taken.append(change)
            self.position = row.position
        if not self.pending and head.sequence > self.position.sequence:
            self.position = head
        return taken

    def due(self) -> Iterable[bytes]:
        """Take the challenges that may be answered now."""
        while self.answers and self.answers[0][1] <= self.position.sequence:
            yield self.answers.popleft()[0]


class Hub:
    """Reads the tail while anybody watches."""

    def __init__(self, outbox: Outbox, clock: Clock, *, poll: float = POLL_S) -> None:
        self._outbox = outbox
        self._clock = clock
        self._poll = poll
        self.head = START
        """What has been read and handed to the watchers."""
        self._following = False
        self._everywhere: OrderedSet[Watcher] = OrderedSet()
        self._limited: OrderedSet[Watcher] = OrderedSet()
        self._at_site: dict[str, OrderedSet[Watcher]] = {}
        self._asking: OrderedSet[Watcher] = OrderedSet()
        self._rounds = 0
        self._wanted = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def join(self, watcher: Watcher) -> None:
        """Begin to serve a watcher; the first one starts the reading."""
        if watcher.scope.sites is None:
            self._everywhere.add(watcher)
        else:
            self._limited.add(watcher)
            for site in watcher.scope.sites:
                self._at_site.setdefault(site, OrderedSet()).add(watcher)
        if self._pump is None or self._pump.done():
            self._following = False
            self._outbox.listen(self._wanted.set)
            self._pump = asyncio.create_task(self._run(), name="vigil-feed-hub")

    def leave(self, watcher: Watcher) -> None:
        """Stop serving it; the last one ends the reading."""
        self._everywhere.discard(watcher)
        self._limited.discard(watcher)
        self._asking.discard(watcher)
        for site in watcher.scope.sites or ():
            there = self._at_site.get(site, OrderedSet())
            there.discard(watcher)
            if not there:
                self._at_site.pop(site, None)
        if not self._everywhere and not self._limited and self._pump is not None:
            self._outbox.ignore(self._wanted.set)
            self._pump.cancel()
            self._pump = None

    def challenge(self, watcher: Watcher, nonce: bytes) -> None:
        """Answer ``nonce`` once all that was committed before this moment has been sent."""
        # A round under way may have begun to read before that commit: only the next one counts.
        watcher.asked.append((nonce, self._rounds + 1))
        self._asking.add(watcher)
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            self._rounds += 1
            try:
                while not await self._read():
                    continue
                self._answer(self._rounds)
            except Refused as refusal:
                # No beat is sent, so every reader's state goes stale, as it must.
                _log.warning("a feed cannot read its tail: %s", refusal)
            self._cut_stalled()
            try:
                async with asyncio.timeout(self._poll):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _read(self) -> bool:
        """Read the tail's next piece and hand it out; whether it was the last piece."""
        before = self.head if self._following else None

        def run(connection: Connection) -> tuple[Position, list[Row], bool, bool]:
            head = read_head(connection)
            if head == before:
                return head, [], True, True
            if before is None or not continues(connection, before):
                return head, [], True, False
            rows, all_ = read_tail(connection, before, up_to=head.sequence, scope=_EVERYTHING)
            return head, rows, all_, True

        head, rows, all_, unbroken = await self._outbox.database.read(run)
        if unbroken:
            for row in rows:
                self._hand_out(row)
        else:
            # We begin, the tail was trimmed past us, or the database was replaced: each watcher reads by itself
            # from where it stands, and finds out whether it can.
            for watcher in (*self._everywhere, *self._limited):
                watcher.fall_behind()
        self._following = True
        self.head = head if all_ else rows[-1].position
        return all_

    def _hand_out(self, row: Row) -> None:
        readers: Iterable[Watcher] = self._limited
        if row.site and row.previous_site != "":
            here = self._at_site.get(row.site, OrderedSet())
            readers = OrderedSet((*here, *self._at_site.get(row.previous_site or row.site, ())))
        for group in (self._everywhere, readers):
            for watcher in group:
                change = watcher.scope.visible(row)
                if change is not None:
                    watcher.push(row, change)

    def _answer(self, finished: int) -> None:
        for watcher in tuple(self._asking):
            while watcher.asked and watcher.asked[0][1] <= finished:
                watcher.answers.append((watcher.asked.popleft()[0], self.head.sequence))
                watcher.wake.set()
            if not watcher.asked:
                self._asking.discard(watcher)

    def _cut_stalled(self) -> None:
        limit = self._clock.monotonic() - STALL_S
        for watcher in (*self._everywhere, *self._limited):
            if watcher.sending_since is not None and watcher.sending_since < limit:
                _log.warning("a reader of a feed takes nothing any more and is cut off")
                watcher.cut()
