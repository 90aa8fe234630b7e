"""The reader's side: against a real owner, and against one that misbehaves as the test says."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.unit.feed.support import Owner, Reader, channel_to, until
from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.clock import ManualClock
from vigil.feed import Replica
from vigil.feed.replica import SILENCE_S

Script = Callable[["Peer"], AsyncGenerator[feed_pb2.WatchResponse, None]]


@pytest.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Owner]:
    owner = await Owner(tmp_path / "a.db", retained=50).start()
    yield owner
    await owner.stop()


class Peer:
    """What an owner's script sees of one stream."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests

    async def start(self) -> feed_pb2.WatchStart:
        first: feed_pb2.WatchRequest = await anext(self._requests)
        return first.start

    async def nonce(self) -> bytes:
        request: feed_pb2.WatchRequest = await anext(self._requests)
        return request.challenge.nonce


class Scripted(feed_pb2_grpc.FeedServiceServicer):
    """Plays one script for each stream in turn; after the last it keeps silent."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.starts: list[feed_pb2.WatchStart] = []

    async def Watch(self, request_iterator: Any, context: Any) -> AsyncIterator[feed_pb2.WatchResponse]:  # noqa: ARG002, N802
        peer = Peer(aiter(request_iterator))
        self.starts.append(await peer.start())
        if self._scripts:
            async for response in self._scripts.pop(0)(peer):
                yield response
        else:
            await asyncio.Event().wait()


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[tuple[Scripted, Callable[[], int]]]:
    servicer = Scripted(*scripts)
    server = grpc.aio.server()
    feed_pb2_grpc.add_FeedServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, lambda: port
    await server.stop(None)


def page(sequence: int = 0, *, last: bool = True, keys: tuple[str, ...] = ()) -> feed_pb2.WatchResponse:
    changes = [feed_pb2.Change(sequence=sequence, kind="device", key=key, value=b"v") for key in keys]
    return feed_pb2.WatchResponse(
        snapshot=feed_pb2.SnapshotPage(sequence=sequence, changes=changes, last=last, mark=b"%d" % sequence)
    )


def batch(after: int, *sequences: int) -> feed_pb2.WatchResponse:
    changes = [feed_pb2.Change(sequence=n, kind="device", key=f"{n}", value=b"v") for n in sequences]
    last = max(sequences)
    return feed_pb2.WatchResponse(
        changes=feed_pb2.ChangeBatch(changes=changes, after_sequence=after, sequence=last, mark=b"%d" % last)
    )


def beat(nonce: bytes, sequence: int = 0) -> feed_pb2.WatchResponse:
    return feed_pb2.WatchResponse(beat=feed_pb2.Beat(nonce=nonce, sequence=sequence, mark=b"%d" % sequence))


async def test_it_follows_and_goes_on_after_a_disconnect_without_a_reset(owner: Owner) -> None:
    await owner.put(("a", b"1"), ("b", b"1"))
    async with Reader(lambda: owner.port) as reader:
        assert reader.replica.age() == math.inf
        await asyncio.wait_for(reader.replica.synced.wait(), 20)
        await reader.disconnect()
        await owner.put(("a", b"2"))
        await owner.delete("b")
        await until(lambda: reader.replica.sequence == 4)
        assert reader.state == {("device", "a"): (b"2", "")}
        assert reader.resets == 1
        assert [change.sequence for change in reader.changes] == [1, 2, 3, 4]


async def test_a_tail_that_is_gone_means_a_new_snapshot(owner: Owner) -> None:
    await owner.put(("a", b"1"), ("gone", b"1"))
    async with Reader(lambda: owner.port) as reader:
        await asyncio.wait_for(reader.replica.synced.wait(), 20)
        port, owner.port = owner.port, 1
        await reader.disconnect()
        await owner.delete("gone")
        await owner.put(*((f"{n % 3}", b"2") for n in range(100)))
        # The old state stays, and its age with it, until the new snapshot begins.
        assert reader.replica.synced.is_set()
        owner.port = port
        await until(lambda: reader.replica.sequence == 103)
        await until(lambda: reader.replica.age() < math.inf)
        assert reader.resets == 2
        assert set(reader.state) == {("device", key) for key in ("a", "0", "1", "2")}


async def test_an_owner_restored_from_a_copy_is_noticed(tmp_path: Path) -> None:
    """The numbers go on as if nothing had happened; only the marks tell."""
    owner = await Owner(tmp_path / "a.db").start()
    await owner.put(("a", b"1"))
    await owner.stop()
    copy = (tmp_path / "a.db").read_bytes()
    await owner.start()
    async with Reader(lambda: owner.port) as reader:
        await owner.put(("lost", b"1"), ("b", b"1"))
        await until(lambda: reader.replica.sequence == 3)
        await owner.stop()
        (tmp_path / "a.db").write_bytes(copy)
        await owner.start()
        await owner.put(("c", b"1"), ("d", b"1"), ("e", b"1"))
        await until(lambda: reader.resets == 2 and reader.replica.sequence == 4)
        assert {key for _, key in reader.state} == {"a", "c", "d", "e"}
    await owner.stop()


async def test_age_runs_from_the_sending_of_the_challenge() -> None:
    clock = ManualClock()
    go = asyncio.Event()

    async def script(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(1)
        nonce = await peer.nonce()
        clock.advance(3.0)
        yield batch(1, 2)
        yield beat(nonce, 2)
        await go.wait()
        yield beat(await peer.nonce(), 2)
        await asyncio.Event().wait()

    async with scripted(script) as (_, port), Reader(port, clock=clock, interval=0.01) as reader:
        replica = reader.replica
        assert replica.age() == math.inf
        assert not replica.synced.is_set()
        await until(replica.synced.is_set)
        assert replica.age() == 3.0
        assert replica.sequence == 2
        clock.advance(1.5)
        assert replica.age() == 4.5
        go.set()
        # The next challenge had been sent before or after the clock moved, never before the first answer's.
        await until(lambda: replica.age() < 4.5)
        assert replica.age() in (0.0, 1.5)


async def test_a_snapshot_alone_is_not_fresh() -> None:
    async def script(_: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(3, last=False, keys=("a",))
        yield page(3, keys=("b",))
        await asyncio.Event().wait()

    async with scripted(script) as (_, port), Reader(port) as reader:
        await until(lambda: reader.replica.sequence == 3)
        assert set(reader.state) == {("device", "a"), ("device", "b")}
        assert reader.replica.age() == math.inf
        assert not reader.replica.synced.is_set()


async def test_age_grows_while_the_owner_is_away(owner: Owner) -> None:
    clock = ManualClock()
    await owner.put(("a", b"1"))
    async with Reader(lambda: owner.port, clock=clock) as reader:
        await until(reader.replica.synced.is_set)
        await owner.server.stop(None)
        await until(lambda: reader.replica.last_error != "")
        before = reader.replica.age()
        clock.advance(60)
        assert reader.replica.age() == before + 60
        assert reader.replica.synced.is_set()
        owner.database.close()
        await owner.start()
        await until(lambda: reader.replica.age() < 60)
        assert reader.resets == 1
        assert reader.replica.last_error == ""


async def _good_then(
    peer: Peer, *responses: feed_pb2.WatchResponse
) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
    yield page(5, keys=("a",))
    yield beat(await peer.nonce(), 5)
    for response in responses:
        yield response
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("responses", "complaint"),
    [
        ([batch(6, 7)], "a gap: 6 follows 5"),
        ([batch(4, 5)], "a gap: 4 follows 5"),
        ([batch(5, 6, 6)], "out of order"),
        ([batch(5, 7, 6)], "out of order"),
        ([batch(5, 5)], "out of order"),
        ([page(9)], "not asked for"),
        ([beat(bytes(16), 5)], "no challenge"),
        ([beat(bytes(16), 4)], "a beat at 4 follows 5"),
        ([feed_pb2.WatchResponse()], "empty"),
    ],
)
async def test_what_does_not_follow_is_not_believed(
    responses: list[feed_pb2.WatchResponse], complaint: str
) -> None:
    """The state is in doubt from that moment: its age is infinite, and the next stream begins at 0."""
    async with (
        scripted(lambda peer: _good_then(peer, *responses)) as (servicer, port),
        Reader(port) as reader,
    ):
        await until(lambda: len(servicer.starts) == 2)
        assert complaint in reader.replica.last_error
        assert reader.replica.age() == math.inf
        assert not reader.replica.synced.is_set()
        assert [start.after_sequence for start in servicer.starts] == [0, 0]


@pytest.mark.parametrize(
    "responses",
    [[batch(0, 1)], [page(3, last=False), batch(3, 4)], [page(3, last=False), page(4)]],
)
async def test_a_snapshot_must_be_whole(responses: list[feed_pb2.WatchResponse]) -> None:
    async def script(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        for response in responses:
            yield response
        while True:
            yield beat(await peer.nonce(), 9)

    async with scripted(script) as (servicer, port), Reader(port) as reader:
        await until(lambda: len(servicer.starts) == 2)
        assert reader.replica.age() == math.inf
        assert reader.replica.sequence == 0
        assert servicer.starts[1].after_sequence == 0


async def test_a_beat_before_the_snapshot_is_whole_counts_for_nothing() -> None:
    async def script(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(3, last=False)
        yield beat(await peer.nonce(), 3)
        await asyncio.Event().wait()

    async with scripted(script) as (servicer, port), Reader(port) as reader:
        await until(lambda: len(servicer.starts) == 2)
        assert reader.replica.age() == math.inf


async def test_a_beat_of_an_earlier_stream_is_not_believed() -> None:
    kept: list[bytes] = []

    async def first(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(1)
        yield beat(await peer.nonce(), 1)
        kept.append(await peer.nonce())

    async def second(_: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield beat(kept[0], 1)
        await asyncio.Event().wait()

    async with scripted(first, second) as (servicer, port), Reader(port) as reader:
        await until(lambda: len(servicer.starts) == 3)
        assert servicer.starts[1].after_sequence == 1
        assert servicer.starts[1].mark == b"1"
        assert servicer.starts[2].after_sequence == 0
        assert reader.replica.age() == math.inf


async def test_a_change_that_cannot_be_applied_begins_again(owner: Owner) -> None:
    async with Reader(lambda: owner.port) as reader:
        await until(reader.replica.synced.is_set)
        reader.broken = True
        await owner.put(("a", b"1"))
        await until(lambda: not reader.replica.synced.is_set())
        assert reader.replica.age() == math.inf
        reader.broken = False
        await until(reader.replica.synced.is_set)
        assert reader.state == {("device", "a"): (b"1", "")}
        assert reader.resets >= 2


async def test_challenges_of_one_instant_are_answered_one_by_one() -> None:
    async def script(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(1)
        nonces = [await peer.nonce() for _ in range(3)]
        for nonce in nonces:
            yield beat(nonce, 1)
        yield batch(1, 2)
        await asyncio.Event().wait()

    async with scripted(script) as (_, port), Reader(port, clock=ManualClock()) as reader:
        await until(lambda: reader.replica.sequence == 2)
        assert reader.resets == 1


async def test_silence_ends_a_stream() -> None:
    clock = ManualClock()

    async def script(peer: Peer) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        yield page(1)
        yield beat(await peer.nonce(), 1)
        await asyncio.Event().wait()

    async with scripted(script) as (servicer, port), Reader(port, clock=clock) as reader:
        await until(reader.replica.synced.is_set)
        assert len(servicer.starts) == 1
        clock.advance(SILENCE_S + 1)
        await until(lambda: len(servicer.starts) == 2)
        assert reader.replica.last_error == "the owner fell silent"
        assert servicer.starts[1].after_sequence == 1
        assert reader.replica.age() > SILENCE_S


async def test_resync_takes_a_new_snapshot(owner: Owner) -> None:
    await owner.put(("a", b"1"))
    async with Reader(lambda: owner.port) as reader:
        await until(reader.replica.synced.is_set)
        reader.replica.resync()
        assert reader.replica.age() == math.inf
        await until(reader.replica.synced.is_set)
        assert reader.resets == 2
        assert reader.state == {("device", "a"): (b"1", "")}


async def test_a_channel_that_cannot_be_made_is_tried_again(owner: Owner) -> None:
    channels: list[grpc.aio.Channel] = []
    attempts = 0

    def connect() -> grpc.aio.Channel:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError("no certificate yet")
        channels.append(channel_to(owner.port))
        return channels[-1]

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0.001)

    replica = Replica(
        channel_factory=connect,
        name="test",
        clock=ManualClock(),
        entropy=lambda length: bytes(range(length)) if len(slept) < 1 else bytes([len(slept) % 256] * length),
        on_change=lambda _: None,
        on_reset=lambda: None,
        sleep=sleep,
    )
    task = asyncio.create_task(replica.run())
    await asyncio.wait_for(replica.synced.wait(), 20)
    assert slept[0] == pytest.approx(0.05, abs=0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await channels[0].close()


def test_backoff_grows_to_a_bound_with_jitter() -> None:
    waits: list[list[float]] = []
    for byte in (b"\x00", b"\xff"):
        replica = Replica(
            channel_factory=lambda: channel_to(1),
            name="test",
            clock=ManualClock(),
            entropy=lambda length, byte=byte: byte * length,  # type: ignore[misc]
            on_change=lambda _: None,
            on_reset=lambda: None,
        )
        waits.append([replica._backoff() for _ in range(12)])
    low, high = waits
    assert low[0] == pytest.approx(0.05)
    assert low[-1] == pytest.approx(2.5)
    assert high[-1] == pytest.approx(5.0)
    assert low == sorted(low)
