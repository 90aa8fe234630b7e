"""The server's side of `vigil.rpc.streams.Exchange`: the items of a stream answered out of order, coalesced."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic

from google.rpc import status_pb2  # type: ignore[import-untyped]

from vigil.core.ordered import OrderedSet
from vigil.errors import Refused
from vigil.rpc import status
from vigil.rpc.call import Requests
from vigil.rpc.streams import MAX_BATCH, MAX_IN_FLIGHT, ItemT, ReplyT


def _numbered(call_id: int, reply: ReplyT) -> ReplyT:
    reply.call_id = call_id
    return reply


async def serve_exchange(
    requests: AsyncIterator[Any],
    handler: Callable[[ItemT], Awaitable[Any]],
    *,
    unpack: Callable[[Any], Iterable[ItemT]],
    pack: Callable[[list[Any]], Any],
    failed: Callable[[int, status_pb2.Status], Any],
    reply: Callable[[int, Any], Any] = _numbered,
    max_in_flight: int = MAX_IN_FLIGHT,
    max_batch: int = MAX_BATCH,
) -> AsyncGenerator[Any, None]:
    """Answer the items of a stream out of order, coalesced: the server's side of ``Exchange``.

    ``handler`` serves one item: a coroutine function, or one that answers a future and so costs no task.
    ``reply(call_id, result)`` makes what ``pack`` takes, by default the result itself with its ``call_id`` set; what
    ``handler`` raises becomes ``failed(call_id, status)``. Beyond ``max_in_flight`` nothing more is read. When the
    server stops, what was read is still answered.
    """
    session = _Session(
        requests, handler, unpack=unpack, failed=failed, reply=reply, max_in_flight=max_in_flight
    )
    session.start()
    try:
        while await session.wait():
            while session.ready:
                batch, session.ready = session.ready[:max_batch], session.ready[max_batch:]
                yield pack(batch)
    finally:
        await session.stop()


class _Session(Generic[ItemT]):
    """The items of one stream that are being served."""

    def __init__(
        self,
        requests: AsyncIterator[Any],
        handler: Callable[[ItemT], Awaitable[Any]],
        *,
        unpack: Callable[[Any], Iterable[ItemT]],
        failed: Callable[[int, status_pb2.Status], Any],
        reply: Callable[[int, Any], Any],
        max_in_flight: int,
    ) -> None:
        self._requests = requests
        self._handler = handler
        self._unpack = unpack
        self._failed = failed
        self._reply = reply
        self._max_in_flight = max_in_flight
        self._room = asyncio.Event()
        self._running: OrderedSet[asyncio.Future[Any]] = OrderedSet()
        self._wake = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._defect: Exception | None = None
        self.ready: list[Any] = []

    def start(self) -> None:
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _task: self._wake.set())
        if isinstance(self._requests, Requests):
            self._requests.call.on_drain(self._end_reading)

    def _end_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    async def wait(self) -> bool:
        """Wait for something to send; False at the end. Raises what ended the reading."""
        while not self.ready:
            if self._defect is not None:
                raise self._defect
            reader = self._reader
            if reader is not None and reader.done():
                if not reader.cancelled() and reader.exception() is not None:
                    reader.result()
                if not self._running:
                    return False
            self._wake.clear()
            await self._wake.wait()
        return True

    async def stop(self) -> None:
        tasks = [*self._running, *([self._reader] if self._reader else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for request in self._requests:
            for item in self._unpack(request):
                while len(self._running) >= self._max_in_flight:
                    self._room.clear()
                    await self._room.wait()
                self._begin(item)

    def _begin(self, item: ItemT) -> None:
        call_id = item.call_id
        try:
            answer = self._handler(item)
        except Exception as error:  # noqa: BLE001 - an outermost edge: one item's defect is not the others'
            self._fail(call_id, error)
            return
        serving = asyncio.ensure_future(answer)
        self._running.add(serving)
        serving.add_done_callback(lambda served: self._served(call_id, served))

    def _served(self, call_id: int, serving: asyncio.Future[Any]) -> None:
        self._running.discard(serving)
        self._room.set()
        if serving.cancelled():
            self._wake.set()
            return
        error = serving.exception()
        if error is None:
            self.ready.append(self._reply(call_id, serving.result()))
            self._wake.set()
        elif isinstance(error, Exception):
            self._fail(call_id, error)
        else:
            raise error  # KeyboardInterrupt and its like end the process

    def _fail(self, call_id: int, error: Exception) -> None:
        try:
            refusal = error if isinstance(error, Refused) else self._report(error)
        except Exception as defect:  # noqa: BLE001 - nobody to report to: the stream ends with it
            self._defect = defect
        else:
            self.ready.append(self._failed(call_id, status.to_status(refusal)))
        self._wake.set()

    def _report(self, error: Exception) -> Refused:
        if not isinstance(self._requests, Requests):
            raise error
        return self._requests.call.report(error)
