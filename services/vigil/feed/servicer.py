"""``FeedService.Watch``: a snapshot, then the tail, with beats that answer the reader's challenges."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from sqlalchemy import Connection

from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.certificates import Kind
from vigil.core.clock import Clock
from vigil.errors import Reason, Refused, refused
from vigil.feed.change import START, Position, Row, Scope
from vigil.feed.hub import POLL_S, Hub, Watcher
from vigil.feed.outbox import Outbox
from vigil.feed.reading import StatePage, continues, read_head, read_state, read_tail
from vigil.rpc.call import Call
from vigil.rpc.caller import caller_of

NONCE_BYTES = 16
MAX_CHALLENGES = 16
"""Challenges of one reader that wait for their beat."""
MAX_KINDS = 64
SNAPSHOTS_AT_ONCE = 16
"""Each holds a read transaction; a fleet that returns at once is let in gradually."""
SNAPSHOT_S = 300.0
"""A reader that takes longer for a snapshot keeps the database's log from being shortened."""

Context = grpc.aio.ServicerContext[feed_pb2.WatchRequest, feed_pb2.WatchResponse]


def sites_of_caller(context: Context) -> frozenset[str] | None:
    """Sites that the caller may see: everywhere (None) for services, a gateway's own, nothing for others."""
    caller = caller_of(context)
    if caller.kind is Kind.SERVICE:
        return None
    if caller.kind is Kind.GATEWAY:
        return frozenset(caller.sites)
    raise refused(Reason.ROLE_NOT_PERMITTED, "Only services and gateways read feeds.")


class FeedServicer(feed_pb2_grpc.FeedServiceServicer):
    """Serves one owner's feed."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        *,
        sites_of: Callable[[Any], frozenset[str] | None] = sites_of_caller,
        poll: float = POLL_S,
    ) -> None:
        self._database = outbox.database
        self._clock = clock
        self._sites_of = sites_of
        self._hub = Hub(outbox, clock, poll=poll)
        self._snapshots = asyncio.Semaphore(SNAPSHOTS_AT_ONCE)

    async def Watch(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[feed_pb2.WatchRequest], context: Context
    ) -> AsyncIterator[feed_pb2.WatchResponse]:
        sites = self._sites_of(context)
        start = await _start(request_iterator)
        watcher = Watcher(
            scope=Scope(sites=sites, kinds=frozenset(start.kinds)),
            position=Position(start.after_sequence, start.mark),
            cut=_cutter(context),
        )
        self._hub.join(watcher)
        listening = asyncio.create_task(self._listen(request_iterator, watcher))
        listening.add_done_callback(lambda _: watcher.wake.set())
        try:
            async with aclosing(self._responses(watcher, listening)) as responses:
                async for response in responses:
                    watcher.sending_since = self._clock.monotonic()
                    yield response
                    watcher.sending_since = None
        finally:
            listening.cancel()
            self._hub.leave(watcher)

    async def _listen(self, requests: AsyncIterator[feed_pb2.WatchRequest], watcher: Watcher) -> None:
        async for request in requests:
            if request.WhichOneof("message") != "challenge" or len(request.challenge.nonce) != NONCE_BYTES:
                raise _malformed("After the start a reader sends challenges of 16 bytes.", "challenge.nonce")
            if len(watcher.asked) + len(watcher.answers) >= MAX_CHALLENGES:
                raise refused(
                    Reason.QUOTA_EXCEEDED, f"At most {MAX_CHALLENGES} challenges may wait for an answer."
                )
            self._hub.challenge(watcher, request.challenge.nonce)

    async def _responses(
        self, watcher: Watcher, listening: asyncio.Task[None]
    ) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        if watcher.position.sequence == START.sequence:
            async with aclosing(self._snapshot(watcher)) as pages:
                async for page in pages:
                    yield page
        while True:
            watcher.wake.clear()
            if listening.done():
                listening.result()
                return
            changes = await self._catch_up(watcher) if watcher.behind else watcher.take(self._hub.head)
            if changes:
                yield _batch(watcher, changes)
            for nonce in watcher.due():
                yield _beat(watcher, nonce)
            if not watcher.behind and not watcher.pending:
                await watcher.wake.wait()

    async def _snapshot(self, watcher: Watcher) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        """Send the state at one moment, in pages; the watcher then stands at that moment."""
        async with self._snapshots, self._database.reader.view() as view:
            begun = self._clock.monotonic()
            after: tuple[str, ...] | None = None
            last = False
            while not last:
                if self._clock.monotonic() - begun > SNAPSHOT_S:
                    raise refused(
                        Reason.SERVICE_UNAVAILABLE, "The snapshot was taken too slowly; begin again."
                    )

                def run(
                    connection: Connection, after: tuple[str, ...] | None = after
                ) -> tuple[Position, StatePage]:
                    return read_head(connection), read_state(connection, scope=watcher.scope, after=after)

                head, page = await view.read(run)
                after = page.after
                last = after is None
                yield feed_pb2.WatchResponse(
                    snapshot=feed_pb2.SnapshotPage(
                        sequence=head.sequence, mark=head.mark, changes=page.changes, last=last
                    )
                )
            watcher.position = head
            watcher.told = head.sequence

    async def _catch_up(self, watcher: Watcher) -> list[feed_pb2.Change]:
        """Read the tail up to where the hub stands; there the watcher joins the others."""
        target = self._hub.head

        def run(connection: Connection) -> tuple[list[Row], bool] | None:
            if not continues(connection, watcher.position):
                return None
            return read_tail(connection, watcher.position, up_to=target.sequence, scope=watcher.scope)

        found = await self._database.read(run)
        if found is None:
            raise _snapshot_required()
        rows, all_ = found
        if not all_:
            watcher.position = rows[-1].position
        elif target.sequence > watcher.position.sequence:
            watcher.position = target
        # No await since the comparison: whatever the hub hands out from here on lies behind this position.
        watcher.behind = watcher.position.sequence < self._hub.head.sequence
        return [change for row in rows if (change := watcher.scope.visible(row)) is not None]


async def _start(requests: AsyncIterator[feed_pb2.WatchRequest]) -> feed_pb2.WatchStart:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("message") != "start":
        raise _malformed("The first message of a reader says where to begin.", "start")
    if len(first.start.kinds) > MAX_KINDS:
        raise _malformed(f"At most {MAX_KINDS} kinds can be asked for.", "start.kinds")
    return first.start


def _cutter(context: Context) -> Callable[[], None]:
    """Make what ends this call from outside, with a status where the server can give one."""
    task = asyncio.current_task()

    def cut() -> None:
        if isinstance(context, Call):
            context.cut(refused(Reason.SERVICE_UNAVAILABLE, "The changes were not taken; watch again."))
        elif task is not None:
            task.cancel()

    return cut


def _batch(watcher: Watcher, changes: list[feed_pb2.Change]) -> feed_pb2.WatchResponse:
    after, watcher.told = watcher.told, watcher.position.sequence
    return feed_pb2.WatchResponse(
        changes=feed_pb2.ChangeBatch(
            changes=changes,
            after_sequence=after,
            sequence=watcher.position.sequence,
            mark=watcher.position.mark,
        )
    )


def _beat(watcher: Watcher, nonce: bytes) -> feed_pb2.WatchResponse:
    watcher.told = watcher.position.sequence
    return feed_pb2.WatchResponse(
        beat=feed_pb2.Beat(nonce=nonce, sequence=watcher.position.sequence, mark=watcher.position.mark)
    )


def _malformed(sentence: str, field: str) -> Refused:
    return refused(Reason.FIELD_INVALID, sentence, field=field)


def _snapshot_required() -> Refused:
    return refused(
        Reason.SNAPSHOT_REQUIRED,
        "The changes since that sequence are no longer kept, or belong to another history.",
        lifted_by="Watch again from sequence 0.",
    )
