"""Feeds as they run: over mTLS, with callers of every kind, and an owner that is killed."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection

from tests.support.pki import TRUST_DOMAIN, Credential, TestPki
from tests.unit.feed.support import Reader, open_feed, until
from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.certificates import EVERY, Kind
from vigil.core.clock import ManualClock, SystemClock
from vigil.feed import Change, FeedServicer, Outbox, Replica
from vigil.feed.hub import STALL_S
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.storage import Database

SERVICE = feed_pb2.DESCRIPTOR.services_by_name["FeedService"].full_name
ROOT = Path(__file__).parents[2]


class World:
    """`identity`, as far as feeds are concerned."""

    def __init__(self, folder: Path) -> None:
        self.pki = TestPki(folder)
        self.clock = ManualClock()
        self.database: Database = open_feed(folder / "a.db")
        self.outbox = Outbox(self.database)
        self.servicer = FeedServicer(self.outbox, self.clock, poll=0.01)
        self.server = GrpcServer(
            role="identity",
            tls=self.pki.service("identity").tls_files,
            clock=SystemClock(),
            listen="127.0.0.1:0",
            servicers=[(feed_pb2_grpc.add_FeedServiceServicer_to_server, self.servicer, SERVICE)],
        )
        self._channels: list[Channels] = []

    async def start(self) -> "World":
        self.port = await self.server.start()
        return self

    async def stop(self) -> None:
        for channels in self._channels:
            await channels.close()
        await self.server.stop(0)
        self.database.close()

    async def put(self, *items: tuple[str, bytes, str]) -> None:
        def run(connection: Connection) -> None:
            for key, value, site in items:
                self.outbox.put(connection, "device", key, value, site=site)

        await self.database.write(run)

    def channel(self, who: Credential) -> grpc.aio.Channel:
        channels = Channels(tls=who.tls_files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
        self._channels.append(channels)
        return channels.to(f"127.0.0.1:{self.port}", f"identity.{TRUST_DOMAIN}")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).start()
    yield world
    await world.stop()


class Follower:
    """A replica over a given channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.state: dict[str, bytes] = {}
        self.replica = Replica(
            channel_factory=lambda: channel,
            name="identity",
            clock=SystemClock(),
            entropy=os.urandom,
            on_change=self._apply,
            on_reset=self.state.clear,
            interval=0.02,
        )
        self._task = asyncio.create_task(self.replica.run())

    def _apply(self, change: Change) -> None:
        if change.deleted:
            self.state.pop(change.key, None)
        else:
            self.state[change.key] = change.value

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_services_see_everything_and_gateways_their_own_sites(world: World) -> None:
    await world.put(("a", b"1", "site-1"), ("b", b"1", "site-2"), ("all", b"1", ""))
    callers = {
        "policy": world.pki.service("policy"),
        "gateway": world.pki.gateway("gateway-1", sites=("site-1",)),
        "two sites": world.pki.gateway("gateway-2", sites=("site-1", "site-2")),
    }
    followers = {name: Follower(world.channel(who)) for name, who in callers.items()}
    for follower in followers.values():
        await asyncio.wait_for(follower.replica.synced.wait(), 20)
    assert {name: set(follower.state) for name, follower in followers.items()} == {
        "policy": {"a", "b", "all"},
        "gateway": {"a", "all"},
        "two sites": {"a", "b", "all"},
    }
    await world.put(("a", b"2", "site-2"), ("b", b"2", "site-2"))
    for follower in followers.values():
        await until(lambda f=follower: f.replica.sequence == 5)  # type: ignore[misc]
    assert {name: set(follower.state) for name, follower in followers.items()} == {
        "policy": {"a", "b", "all"},
        "gateway": {"all"},
        "two sites": {"a", "b", "all"},
    }
    for follower in followers.values():
        await follower.stop()


async def test_nobody_else_reads_a_feed(world: World) -> None:
    person = world.pki.person("p-admin", "administrator", sites=(EVERY,))
    device = world.pki.device()
    for who in (person, device):
        assert who.identity.kind in (Kind.PERSON, Kind.DEVICE)
        call = feed_pb2_grpc.FeedServiceStub(world.channel(who)).Watch()
        with contextlib.suppress(grpc.aio.AioRpcError):
            # The refusal may be here before the message has left.
            await call.write(feed_pb2.WatchRequest(start=feed_pb2.WatchStart()))
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_refusal_reaches_the_reader_with_its_reason(world: World) -> None:
    from vigil.errors import Reason
    from vigil.rpc.status import from_rpc_error

    call = feed_pb2_grpc.FeedServiceStub(world.channel(world.pki.service("policy"))).Watch()
    await call.write(feed_pb2.WatchRequest(start=feed_pb2.WatchStart(after_sequence=9)))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert from_rpc_error(error.value).reason is Reason.SNAPSHOT_REQUIRED


async def test_a_reader_that_takes_nothing_is_told_when_it_wakes(world: World) -> None:
    await world.put(*((f"{n}", bytes(250_000), "") for n in range(100)))
    call = feed_pb2_grpc.FeedServiceStub(world.channel(world.pki.service("policy"))).Watch()
    await call.write(feed_pb2.WatchRequest(start=feed_pb2.WatchStart()))
    await call.read()
    hub = world.servicer._hub
    await until(lambda: any(watcher.sending_since is not None for watcher in hub._everywhere))

    def cut_off() -> bool:
        world.clock.advance(STALL_S + 1)
        return not hub._everywhere

    await until(cut_off)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _to_the_end(call)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def _to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        continue


async def test_many_watchers_at_once(world: World) -> None:
    await world.put(*((f"{n}", b"1", f"site-{n}") for n in range(50)))
    channels = [
        world.channel(world.pki.gateway(f"gateway-{n}", sites=(f"site-{n}",))) for n in range(0, 50, 5)
    ]
    followers = [Follower(channel) for channel in channels for _ in range(12)]
    for follower in followers:
        await asyncio.wait_for(follower.replica.synced.wait(), 30)
    await world.put(*((f"{n}", b"2", f"site-{n}") for n in range(50)))
    for index, follower in enumerate(followers):
        await until(lambda f=follower: f.replica.sequence == 100)  # type: ignore[misc]
        assert follower.state == {f"{index // 12 * 5}": b"2"}
    for follower in followers:
        await follower.stop()
    assert len(followers) == 120


OWNER = """
import asyncio, sys
from pathlib import Path
from typing import Any
from tests.unit.feed.support import Owner

async def main():
    owner = Owner(Path(sys.argv[1]))
    owner.port = int(sys.argv[2])
    await owner.start()
    print(owner.port, flush=True)
    number = owner.head()
    while True:
        keys = [f"{number + step}" for step in range(8)]
        await asyncio.gather(*(owner.put((key, b"v")) for key in keys))
        number += 8
        print(number, flush=True)

asyncio.run(main())
"""


async def test_an_owner_killed_while_writing_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    port = 0
    acknowledged = 0

    async def run() -> asyncio.subprocess.Process:
        nonlocal port
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OWNER,
            str(tmp_path / "a.db"),
            str(port),
            stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"},
        )
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        return process

    process = await run()
    async with Reader(lambda: port) as reader:
        await until(reader.replica.synced.is_set)
        for _ in range(3):
            assert process.stdout is not None
            for _ in range(15):
                acknowledged = int(await process.stdout.readline())
            process.kill()
            assert await process.wait() == -9
            process = await run()
            await until(lambda n=acknowledged: reader.replica.sequence >= n)  # type: ignore[misc]
            assert {("device", f"{n}") for n in range(acknowledged)} <= set(reader.state)
        assert reader.resets == 1
        # Each key is written once, so the snapshot and the tail together hold each number exactly once.
        sequences = sorted(change.sequence for change in reader.changes)
        assert sequences == list(range(1, len(sequences) + 1))
    process.kill()
    await process.wait()
