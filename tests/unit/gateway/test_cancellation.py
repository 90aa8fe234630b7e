"""A task that is stopped stops, even when gRPC takes the cancellation for its own and ends with another error."""

import asyncio

import grpc
import pytest

from vigil.core.clock import SystemClock
from vigil.feed import Replica
from vigil.rpc.status import translated


def unavailable() -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, "gone")


class Call:
    """A call that answers its cancellation as one of gRPC that was still starting."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()

    def __aiter__(self) -> "Call":
        return self

    async def __anext__(self) -> object:
        return await self.answer()

    async def answer(self) -> object:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise unavailable() from None

    async def write(self, _message: object) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


async def test_a_translated_call() -> None:
    call = Call()
    task = asyncio.create_task(translated(call.answer()))
    await call.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call()

    class Stub:
        def __init__(self, _channel: object) -> None:
            self.Watch = lambda: call

    monkeypatch.setattr("vigil.feed.replica.feed_pb2_grpc.FeedServiceStub", Stub)
    replica = Replica(
        channel_factory=lambda: None,  # type: ignore[arg-type, return-value]
        name="owner",
        clock=SystemClock(),
        entropy=bytes,
        on_change=lambda _change: None,
        on_reset=lambda: None,
    )
    task = asyncio.create_task(replica.run())
    await call.waiting.wait()
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
