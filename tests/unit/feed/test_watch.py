"""The stream itself, message by message, over a loopback connection."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from tests.unit.feed.support import Owner, open_feed, until
from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.clock import ManualClock
from vigil.feed import Outbox
from vigil.feed.change import Position, Scope
from vigil.feed.hub import MAX_PENDING, STALL_S, Hub, Watcher
from vigil.feed.reading import read_head
from vigil.feed.servicer import MAX_CHALLENGES
from vigil.storage import Database

NONCE = bytes(range(16))


@pytest.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Owner]:
    owner = await Owner(tmp_path / "a.db", retained=50).start()
    yield owner
    await owner.stop()


class Stream:
    """One call of Watch."""

    def __init__(
        self, owner: Owner, *, after: int = 0, mark: bytes = b"", sites: str = "", kinds: Any = ()
    ) -> None:
        self._channel = owner.channel(sites)
        self._start = feed_pb2.WatchStart(after_sequence=after, mark=mark, kinds=kinds)

    async def __aenter__(self) -> Self:
        self.call = feed_pb2_grpc.FeedServiceStub(self._channel).Watch()
        await self.call.write(feed_pb2.WatchRequest(start=self._start))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()

    async def challenge(self, nonce: bytes = NONCE) -> None:
        await self.call.write(feed_pb2.WatchRequest(challenge=feed_pb2.WatchChallenge(nonce=nonce)))

    async def read(self) -> feed_pb2.WatchResponse:
        async with asyncio.timeout(20):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            code, details = await self.call.code(), await self.call.details()
            raise AssertionError(f"{code}: {details}")
        assert isinstance(response, feed_pb2.WatchResponse)
        return response

    async def snapshot(self) -> list[feed_pb2.SnapshotPage]:
        pages = [(await self.read()).snapshot]
        while not pages[-1].last:
            pages.append((await self.read()).snapshot)
        return pages

    async def up_to_beat(self, nonce: bytes = NONCE) -> tuple[list[feed_pb2.Change], feed_pb2.Beat]:
        """Read changes, whose batches must follow on each other, until the beat that answers a challenge."""
        changes: list[feed_pb2.Change] = []
        while True:
            response = await self.read()
            if response.WhichOneof("message") == "beat":
                if response.beat.nonce == nonce:
                    return changes, response.beat
            else:
                changes.extend(response.changes.changes)

    async def code(self) -> grpc.StatusCode:
        """Read to the end; the status."""
        async with asyncio.timeout(20):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    continue
            except grpc.aio.AioRpcError as error:
                return error.code()
            code = await self.call.code()
        assert isinstance(code, grpc.StatusCode)
        return code


async def test_a_snapshot_comes_in_pages_of_one_moment_and_then_the_tail(owner: Owner) -> None:
    await owner.put(*((f"{n:04}", b"v") for n in range(1200)))
    async with Stream(owner) as stream:
        pages = await stream.snapshot()
        await owner.put(("new", b"v"))
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
    assert [len(page.changes) for page in pages] == [500, 500, 200]
    assert {page.sequence for page in pages} == {1200}
    assert [c.key for page in pages for c in page.changes] == [f"{n:04}" for n in range(1200)]
    assert [(c.sequence, c.key) for c in changes] == [(1201, "new")]
    assert beat.sequence == 1201


async def test_an_empty_feed_is_one_empty_page(owner: Owner) -> None:
    async with Stream(owner) as stream:
        (page,) = await stream.snapshot()
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
    assert (len(page.changes), page.sequence, changes, beat.sequence) == (0, 0, [], 0)


async def test_pages_are_bounded_in_bytes_too(owner: Owner) -> None:
    await owner.put(*((f"{n}", bytes(200_000)) for n in range(8)))
    async with Stream(owner) as stream:
        pages = await stream.snapshot()
    assert [len(page.changes) for page in pages] == [2, 2, 2, 2]


async def test_a_snapshot_taken_while_writing_is_one_moment(owner: Owner) -> None:
    """Rows that change between two pages show their old value, and their change follows in the tail."""
    await owner.put(*((f"{n}", bytes(100_000)) for n in range(40)))
    async with Stream(owner) as stream:
        pages = [(await stream.read()).snapshot]
        await owner.put(("39", b"changed"), ("0", b"changed"))
        await owner.delete("38")
        while not pages[-1].last:
            pages.append((await stream.read()).snapshot)
        await stream.challenge()
        changes, _ = await stream.up_to_beat()
    values = {change.key: change.value for page in pages for change in page.changes}
    assert values == {f"{n}": bytes(100_000) for n in range(40)}
    assert [(c.key, c.deleted) for c in changes] == [("39", False), ("0", False), ("38", True)]


async def test_a_beat_comes_after_what_another_process_committed_before(owner: Owner) -> None:
    """Neither a wake-up nor the poll (an hour away) tells the owner of it: the challenge alone makes it look."""
    async with Stream(owner) as stream:
        await stream.snapshot()
        await stream.challenge(bytes(16))
        await stream.up_to_beat(bytes(16))
        other = open_feed(owner.path)
        outbox = Outbox(other)
        await other.write(lambda c: outbox.put(c, "device", "a", b"v"))
        other.close()
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
    assert [c.key for c in changes] == ["a"]
    assert beat.sequence == 1


async def test_the_poll_sees_what_another_process_wrote(tmp_path: Path) -> None:
    owner = await Owner(tmp_path / "a.db", poll=0.005).start()
    async with Stream(owner) as stream:
        await stream.snapshot()
        other = open_feed(owner.path)
        outbox = Outbox(other)
        await other.write(lambda c: outbox.put(c, "device", "a", b"v"))
        other.close()
        response = await stream.read()
    assert [c.key for c in response.changes.changes] == ["a"]
    await owner.stop()


async def test_a_commit_wakes_the_watchers(owner: Owner) -> None:
    async with Stream(owner) as stream:
        await stream.snapshot()
        for number in range(20):
            await owner.put((f"{number}", b"v"))
            batch = (await stream.read()).changes
            assert (batch.after_sequence, batch.sequence) == (number, number + 1)
            assert batch.mark == owner.database.read_now(read_head).mark


async def test_a_reader_goes_on_where_it_was(owner: Owner) -> None:
    await owner.put(("a", b"v"), ("b", b"v"))
    head = owner.database.read_now(read_head)
    await owner.put(("c", b"v"))
    async with Stream(owner, after=head.sequence, mark=head.mark) as stream:
        batch = (await stream.read()).changes
    assert [c.key for c in batch.changes] == ["c"]
    assert batch.after_sequence == 2


@pytest.mark.parametrize("why", ["trimmed", "another history", "ahead", "further than any database counts"])
async def test_a_position_that_cannot_be_followed_needs_a_snapshot(owner: Owner, why: str) -> None:
    await owner.put(("a", b"v"))
    early = owner.database.read_now(read_head)
    await owner.put(*((f"{n}", b"v") for n in range(100)))
    head = owner.database.read_now(read_head)
    after, mark = {
        "trimmed": (early.sequence, early.mark),
        "further than any database counts": (2**64 - 1, head.mark),
        "another history": (head.sequence, early.mark),
        "ahead": (head.sequence + 1, head.mark),
    }[why]
    async with Stream(owner, after=after, mark=mark) as stream:
        assert await stream.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_gateway_sees_its_own_sites_and_what_leaves_them(owner: Owner) -> None:
    await owner.put(("mine", b"1", "a"), ("other", b"1", "b"), ("all", b"1"), ("comes", b"1", "b"))
    async with Stream(owner, sites="a,c") as stream, Stream(owner) as everything:
        (page,) = await stream.snapshot()
        await everything.snapshot()
        await owner.put(("mine", b"2", "b"), ("comes", b"2", "c"), ("other", b"2", "b"))
        await owner.put(("all", b"2", "b"))
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
        await everything.challenge()
        whole, _ = await everything.up_to_beat()
    assert {c.key for c in page.changes} == {"mine", "all"}
    assert [(c.key, c.deleted, c.value, c.site_id) for c in changes] == [
        ("mine", True, b"", "a"),
        ("comes", False, b"2", "c"),
        ("all", True, b"", ""),
    ]
    assert beat.sequence == 8
    assert [(c.key, c.deleted, c.value) for c in whole] == [
        ("mine", False, b"2"),
        ("comes", False, b"2"),
        ("other", False, b"2"),
        ("all", False, b"2"),
    ]


async def test_only_the_kinds_asked_for(owner: Owner) -> None:
    await owner.put(("a", b"1"), kind="site")
    await owner.put(("a", b"1"), kind="device")
    async with Stream(owner, kinds=["site"]) as stream:
        (page,) = await stream.snapshot()
        await owner.put(("b", b"1"), kind="device")
        await owner.put(("b", b"1"), kind="site")
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
    assert [c.kind for c in page.changes] == ["site"]
    assert [(c.kind, c.key) for c in changes] == [("site", "b")]
    assert beat.sequence == 4


@pytest.mark.parametrize(
    "request_",
    [
        feed_pb2.WatchRequest(),
        feed_pb2.WatchRequest(challenge=feed_pb2.WatchChallenge(nonce=bytes(15))),
        feed_pb2.WatchRequest(challenge=feed_pb2.WatchChallenge()),
        feed_pb2.WatchRequest(start=feed_pb2.WatchStart()),
    ],
)
async def test_what_is_no_challenge_ends_the_stream(owner: Owner, request_: feed_pb2.WatchRequest) -> None:
    async with Stream(owner) as stream:
        await stream.call.write(request_)
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_begins_with_a_start(owner: Owner) -> None:
    channel = owner.channel()
    for request in (None, feed_pb2.WatchRequest(challenge=feed_pb2.WatchChallenge(nonce=NONCE))):
        call = feed_pb2_grpc.FeedServiceStub(channel).Watch()
        if request is not None:
            await call.write(request)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()


async def test_a_reader_that_says_goodbye_is_let_go(owner: Owner) -> None:
    async with Stream(owner) as stream:
        await stream.snapshot()
        await stream.call.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
    assert owner.servicer._hub._everywhere == set()
    assert owner.servicer._hub._pump is None


async def test_a_reader_that_only_asks_is_bounded(owner: Owner) -> None:
    """It takes none of a large snapshot, so none of its challenges can be answered yet."""
    await owner.put(*((f"{n}", bytes(250_000)) for n in range(60)))
    async with Stream(owner) as stream:
        for number in range(MAX_CHALLENGES + 1):
            await stream.challenge(number.to_bytes(16))
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_slow_reader_is_left_behind_and_misses_nothing(tmp_path: Path) -> None:
    owner = await Owner(tmp_path / "a.db").start()
    async with Stream(owner) as stream:
        await stream.snapshot()
        (watcher,) = owner.servicer._hub._everywhere
        fell_behind = False
        for round_ in range(12):
            await owner.put(*((f"{n}", b"%d" % round_ + bytes(5_000)) for n in range(MAX_PENDING)))
            await until(lambda: owner.servicer._hub.head.sequence == owner.head())
            fell_behind |= watcher.behind
            assert len(watcher.pending) <= MAX_PENDING
        assert fell_behind
        await stream.challenge()
        changes, beat = await stream.up_to_beat()
    assert [c.sequence for c in changes] == list(range(1, 12 * MAX_PENDING + 1))
    assert beat.sequence == 12 * MAX_PENDING
    await owner.stop()


async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    clock = ManualClock()
    owner = await Owner(tmp_path / "a.db", poll=0.005, clock=clock).start()
    await owner.put(*((f"{n}", bytes(250_000)) for n in range(100)))
    async with Stream(owner) as stuck, Stream(owner) as idle:
        hub = owner.servicer._hub
        await idle.snapshot()
        await stuck.read()
        await until(lambda: len(hub._everywhere) == 2)
        await until(lambda: any(w.sending_since is not None for w in hub._everywhere))

        def cut_off() -> bool:
            clock.advance(STALL_S + 1)
            return len(hub._everywhere) == 1

        await until(cut_off)
        await owner.put(("after", b"v"))
        assert [c.key for c in (await idle.read()).changes.changes] == ["after"]
    await owner.stop()


async def _write_elsewhere(owner: Owner, *keys: str) -> None:
    """Commit as another process does: nobody here is told."""
    other = open_feed(owner.path)
    outbox = Outbox(other, retained=50)
    for key in keys:
        await other.write(lambda c, key=key: outbox.put(c, "device", key, b"v"))
    other.close()


async def test_a_snapshot_newer_than_the_hub_is_not_told_twice(owner: Owner) -> None:
    async with Stream(owner) as idle:
        await idle.snapshot()
        await idle.challenge()
        await idle.up_to_beat()
        await _write_elsewhere(owner, "a", "b")
        async with Stream(owner) as late:
            (page,) = await late.snapshot()
            await late.challenge()
            changes, beat = await late.up_to_beat()
            await owner.put(("c", b"v"))
            batch = (await late.read()).changes
    assert page.sequence == 2
    assert changes == []
    assert beat.sequence == 2
    assert [change.key for change in batch.changes] == ["c"]


async def test_a_tail_trimmed_past_the_hub_ends_the_streams(owner: Owner) -> None:
    await owner.put(("a", b"v"))
    async with Stream(owner) as stream:
        await stream.snapshot()
        await stream.challenge()
        await stream.up_to_beat()
        await _write_elsewhere(owner, *(f"{n % 5}" for n in range(80)))
        await stream.challenge()
        assert await stream.code() is grpc.StatusCode.OUT_OF_RANGE


class HeldReads:
    """A database whose answers wait: what they say was true when they were read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0
        self.go = asyncio.Event()

    async def read(self, run: Any) -> Any:
        answer = await self._database.read(run)
        self.reads += 1
        await self.go.wait()
        return answer


async def test_a_read_that_began_before_the_challenge_does_not_answer_it(owner: Owner) -> None:
    held = HeldReads(owner.database)
    outbox = Outbox(owner.database)
    outbox.database = held  # type: ignore[assignment]
    hub = Hub(outbox, ManualClock(), poll=3600)
    watcher = Watcher(scope=Scope(None, frozenset()), position=Position(0, b""), cut=lambda: None)
    hub.join(watcher)
    await until(lambda: held.reads == 1)
    await owner.put(("a", b"v"))
    hub.challenge(watcher, NONCE)
    held.go.set()
    await until(lambda: len(watcher.answers) == 1)
    assert watcher.answers[0] == (NONCE, 1)
    hub.leave(watcher)
