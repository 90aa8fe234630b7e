"""An owner with a feed on a loopback port, and readers of it that keep what they are told."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

import grpc
from sqlalchemy import Connection, MetaData

from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.clock import Clock, SystemClock
from vigil.errors import Refused
from vigil.feed import Change, FeedServicer, Outbox, Replica, tables
from vigil.feed.reading import read_head
from vigil.storage import Database, open_database

METADATA = MetaData()
tables(METADATA)
MIGRATIONS = Path(__file__).parent / "migrations"


def open_feed(path: Path) -> Database:
    return open_database(path, metadata=METADATA, migrations=MIGRATIONS)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; the limit only ends a test that has failed."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - any condition at all
            await asyncio.sleep(0.002)


def sites_of(context: Any) -> frozenset[str] | None:
    """Stands in for the certificate: the reader's sites travel in its user agent."""
    agent = str(dict(context.invocation_metadata())["user-agent"]).split(" ", maxsplit=1)[0]
    return None if agent == "everything" else frozenset(agent.removeprefix("sites=").split(","))


class Translating(feed_pb2_grpc.FeedServiceServicer):
    """What the interceptor does: a refusal becomes a status."""

    def __init__(self, inner: FeedServicer) -> None:
        self._inner = inner

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[feed_pb2.WatchResponse]:  # noqa: N802
        try:
            async with aclosing(self._inner.Watch(request_iterator, context)) as responses:
                async for response in responses:
                    yield response
        except Refused as refusal:
            await context.abort(grpc.StatusCode[refusal.status.value], str(refusal))


class Owner:
    """A feed's owner that can be stopped and started on the same port, over the same file."""

    def __init__(
        self, path: Path, *, retained: int = 100_000, poll: float = 3600.0, clock: Clock | None = None
    ) -> None:
        self.path = path
        self.port = 0
        self._retained = retained
        self._poll = poll
        self._clock = clock or SystemClock()

    async def start(self) -> "Owner":
        self.database = open_feed(self.path)
        self.outbox = Outbox(self.database, retained=self._retained)
        self.servicer = FeedServicer(self.outbox, self._clock, sites_of=sites_of, poll=self._poll)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        feed_pb2_grpc.add_FeedServiceServicer_to_server(Translating(self.servicer), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()
        return self

    async def stop(self) -> None:
        await self.server.stop(None)
        self.database.close()

    async def put(self, *items: tuple[str, bytes] | tuple[str, bytes, str], kind: str = "device") -> None:
        def run(connection: Connection) -> None:
            for item in items:
                self.outbox.put(connection, kind, *item)

        await self.database.write(run)

    async def delete(self, key: str, kind: str = "device") -> None:
        await self.database.write(lambda connection: self.outbox.delete(connection, kind, key))

    def head(self) -> int:
        return self.database.read_now(read_head).sequence

    def channel(self, sites: str = "") -> grpc.aio.Channel:
        return channel_to(self.port, sites)


def channel_to(port: int, sites: str = "") -> grpc.aio.Channel:
    options: list[tuple[str, object]] = [
        ("grpc.primary_user_agent", f"sites={sites}" if sites else "everything"),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


class Reader:
    """A replica that keeps the owner's state in a dictionary."""

    def __init__(
        self,
        port: Callable[[], int],
        *,
        sites: str = "",
        clock: Clock | None = None,
        kinds: tuple[str, ...] = (),
        interval: float = 0.01,
    ) -> None:
        self.state: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.changes: list[Change] = []
        self.resets = 0
        self.broken = False
        self._port = port
        self._sites = sites
        self.channels: list[grpc.aio.Channel] = []
        self.replica = Replica(
            channel_factory=self._connect,
            name="test",
            clock=clock or SystemClock(),
            entropy=os.urandom,
            on_change=self._on_change,
            on_reset=self._on_reset,
            kinds=kinds,
            interval=interval,
            sleep=lambda seconds: asyncio.sleep(min(seconds, 0.02)),
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.replica.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for channel in self.channels:
            await channel.close()

    async def disconnect(self) -> None:
        while self.channels:
            await self.channels.pop().close()

    def _connect(self) -> grpc.aio.Channel:
        self.channels.append(channel_to(self._port(), self._sites))
        return self.channels[-1]

    def _on_change(self, change: Change) -> None:
        if self.broken:
            raise LookupError("the reader cannot take this")
        self.changes.append(change)
        if change.deleted:
            self.state.pop((change.kind, change.key), None)
        else:
            self.state[change.kind, change.key] = (change.value, change.site_id)

    def _on_reset(self) -> None:
        self.resets += 1
        self.state.clear()
