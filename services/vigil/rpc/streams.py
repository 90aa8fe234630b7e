"""Many calls over few long-lived streams: items correlated by ``call_id``, coalesced into batches on both sides.

A message on a stream costs a fraction of a unary call, and a batch of items costs little more than one. What waits
while a message is being written leaves together in the next. Answers come in any order. A stream that breaks fails
its calls in flight with SERVICE_UNAVAILABLE, since nobody knows whether they took effect; the next one is opened
after a jittered pause, and calls wait for it unless opening has just failed.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from vigil.core.clock import Entropy
from vigil.errors import Reason, Refused, Status, refused
from vigil.rpc import deadline, status


class Correlated(Protocol):
    """A protobuf message with a field ``call_id``."""

    call_id: int


ItemT = TypeVar("ItemT", bound=Correlated)
ReplyT = TypeVar("ReplyT", bound=Correlated)

MAX_BATCH = 64
"""Items in one message: 600 bytes each stay far below the bound of a message."""
MAX_IN_FLIGHT = 256
"""Calls in flight on one stream."""
MAX_QUEUE = 10_000
"""Calls that wait for a stream; more would only time out."""
CONNECT_SECONDS = 5.0
FIRST_PAUSE = 0.05
LAST_PAUSE = 2.0
DRAIN_SECONDS = 10.0
"""How long a stream with a replaced certificate may take to answer what is in flight."""

_WITH_CAUSE = frozenset({Status.UNAUTHENTICATED, Status.PERMISSION_DENIED})


class _Pending(Generic[ItemT, ReplyT]):
    __slots__ = ("future", "item", "stream")

    def __init__(self, item: ItemT, future: asyncio.Future[ReplyT]) -> None:
        self.item = item
        self.future = future
        self.stream: _Stream[ItemT, ReplyT] | None = None


class Exchange(Generic[ItemT, ReplyT]):
    """The client's side: a pool of streams to one method. For one event loop.

    ``open_stream`` starts a call (``stub.Decide``), ``pack`` makes a request message of items, ``unpack`` gives the
    items of a response message. A reply with ``error`` (google.rpc.Status) set is raised as Refused. ``generation``
    gives a token (``Channel.generation``): when it changes, streams move to a new call in order.
    """

    def __init__(
        self,
        *,
        name: str,
        open_stream: Callable[[], Any],
        pack: Callable[[list[ItemT]], Any],
        unpack: Callable[[Any], Iterable[ReplyT]],
        entropy: Entropy,
        streams: int = 4,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        generation: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.open_stream = open_stream
        self.pack = pack
        self.unpack = unpack
        self.max_in_flight = max_in_flight
        self.max_batch = max_batch
        self.generation = generation or (lambda: None)
        self.queue: deque[_Pending[ItemT, ReplyT]] = deque()
        self.idle: deque[asyncio.Event] = deque()
        self._entropy = entropy
        self._max_queue = max_queue
        self._count = streams
        self._workers: list[asyncio.Task[None]] = []
        self._last_id = 0
        self._up = 0
        self._failure: Refused | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    @property
    def connected(self) -> int:
        """How many streams are open."""
        return self._up

    def start(self) -> None:
        """Open the streams; without it the first call does."""
        if not self._workers and not self._closed:
            # Streams outlive whoever makes the first call: they take neither its deadline nor its caller along.
            self._workers = [
                asyncio.get_running_loop().create_task(
                    self._work(), name=f"{self.name}-{number}", context=contextvars.Context()
                )
                for number in range(self._count)
            ]

    async def close(self) -> None:
        """End the streams; calls in flight fail."""
        self._closed = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()
        self._fail_queue(_lost(self.name))

    async def call(self, item: ItemT, *, timeout: float | None = None) -> ReplyT:  # noqa: ASYNC109 - as gRPC's calls
        """Send one item and wait for its reply, at most ``timeout`` seconds and the call being served's deadline.

        Raises what the reply refuses, SERVICE_UNAVAILABLE and DEADLINE_EXCEEDED. ``item.call_id`` is overwritten.
        """
        self._check()
        self.start()
        self._last_id += 1
        item.call_id = self._last_id
        pending = _Pending[ItemT, ReplyT](item, asyncio.get_running_loop().create_future())
        self.queue.append(pending)
        self.wake()
        bound = deadline.bounded(timeout)
        try:
            if bound is None:
                return await pending.future
            async with asyncio.timeout(bound):
                return await pending.future
        except TimeoutError:
            raise refused(
                Reason.DEADLINE_EXCEEDED, "The answer did not come in time.", service=self.name
            ) from None
        finally:
            if pending.stream is not None:
                pending.stream.forget(item.call_id)

    def wake(self) -> None:
        """Have one idle stream look at the queue."""
        while self.queue and self.idle:
            event = self.idle.popleft()
            if not event.is_set():
                event.set()
                return

    def opened(self) -> None:
        """Note that a stream is open."""
        self._up += 1
        self._failure = None

    def closed(self) -> None:
        """Note that an open stream has ended."""
        self._up -= 1

    def _check(self) -> None:
        if self._closed:
            raise _lost(self.name)
        if self._failure is not None and not self._up:
            raise Refused(self._failure.refusals)
        if len(self.queue) >= self._max_queue:
            raise refused(
                Reason.SERVICE_UNAVAILABLE, "Too many calls wait for this service.", service=self.name
            )

    async def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                stream = _Stream(self)
                failure = await stream.run()
            except grpc.aio.UsageError:
                # The channel was closed under us, by our own process.
                self._closed = True
                self._fail_queue(_lost(self.name))
                return
            deadline.raise_if_cancelled()
            if stream.was_open:
                pause = FIRST_PAUSE
            elif failure is not None and not self._up:
                self._failure = failure
                self._fail_queue(failure)
            if failure is not None:
                await asyncio.sleep(pause * (0.5 + int.from_bytes(self._entropy(2)) / 0x20000))
                pause = min(LAST_PAUSE, pause * 2)

    def _fail_queue(self, failure: Refused) -> None:
        while self.queue:
            _fail(self.queue.popleft(), failure)


class _Stream(Generic[ItemT, ReplyT]):
    """One stream of an exchange, from its opening to its end."""

    def __init__(self, exchange: Exchange[ItemT, ReplyT]) -> None:
        self._exchange = exchange
        self._in_flight: dict[int, _Pending[ItemT, ReplyT]] = {}
        self._room = asyncio.Event()
        self._token = exchange.generation()
        self.was_open = False

    def forget(self, call_id: int) -> None:
        """Give the place of a call that nobody waits for any more back."""
        if self._in_flight.pop(call_id, None) is not None:
            self._room.set()

    async def run(self) -> Refused | None:
        """Serve calls until the stream ends; answers why, None when it moves to a new certificate."""
        failure: Refused | None = None
        call = self._exchange.open_stream()
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await call.initial_metadata()
            if not call.done():
                self.was_open = True
                self._exchange.opened()
                writer = asyncio.create_task(self._write(call))
                writer.add_done_callback(lambda task: _end_with(task, call))
            moved = await self._read(call, writer)
            failure = None if moved else _lost(self._exchange.name)
        except grpc.aio.AioRpcError as error:
            failure = _loss(self._exchange.name, status.from_rpc_error(error))
        except TimeoutError:
            failure = _lost(self._exchange.name)
        except asyncio.CancelledError:
            # The call was cancelled because its writer failed or it drained too long; or this task is cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failure = _lost(self._exchange.name)
        finally:
            if self.was_open:
                self._exchange.closed()
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
            in_flight, self._in_flight = self._in_flight, {}
            for pending in in_flight.values():
                _fail(pending, failure or _lost(self._exchange.name))
        return failure

    async def _read(self, call: Any, writer: asyncio.Task[None] | None) -> bool:
        """Resolve calls until the stream ends; True when the writer had ended it in order."""
        async for response in call:
            for reply in self._exchange.unpack(response):
                pending = self._in_flight.pop(reply.call_id, None)
                if pending is not None and not pending.future.done():
                    _resolve(pending, reply)
            self._room.set()
        return writer is not None and writer.done() and not writer.cancelled() and not self._in_flight

    async def _write(self, call: Any) -> None:
        exchange = self._exchange
        event = asyncio.Event()
        while True:
            if exchange.generation() is not self._token:
                await self._finish(call)
                return
            if len(self._in_flight) >= exchange.max_in_flight:
                self._room.clear()
                await self._room.wait()
                continue
            batch = self._take()
            if batch:
                exchange.wake()
                await call.write(exchange.pack(batch))
                continue
            event.clear()
            exchange.idle.append(event)
            try:
                await event.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(ValueError):
                    exchange.idle.remove(event)
                if event.is_set():
                    exchange.wake()
                raise

    def _take(self) -> list[ItemT]:
        queue = self._exchange.queue
        size = min(self._exchange.max_batch, self._exchange.max_in_flight - len(self._in_flight))
        batch: list[ItemT] = []
        while queue and len(batch) < size:
            pending = queue.popleft()
            if not pending.future.done():
                pending.stream = self
                self._in_flight[pending.item.call_id] = pending
                batch.append(pending.item)
        return batch

    async def _finish(self, call: Any) -> None:
        """End the requests and let the server answer what is in flight."""
        await call.done_writing()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, call.cancel)


def _end_with(writer: asyncio.Task[None], call: Any) -> None:
    if writer.cancelled() or writer.exception() is not None:
        call.cancel()


def _resolve(pending: _Pending[Any, Any], reply: Any) -> None:
    # Every reply's `error` is a google.rpc.Status, as in all our contracts.
    kind: Any = type(reply)
    if _has_error(kind) and reply.HasField("error"):
        pending.future.set_exception(status.from_status(reply.error))
    else:
        pending.future.set_result(reply)


@cache
def _has_error(reply: Any) -> bool:
    return "error" in reply.DESCRIPTOR.fields_by_name


def _fail(pending: _Pending[Any, Any], failure: Refused) -> None:
    if not pending.future.done():
        pending.future.set_exception(Refused(failure.refusals))


def _lost(name: str) -> Refused:
    return refused(
        Reason.SERVICE_UNAVAILABLE,
        "The connection to the service was lost; whether the call took effect is not known.",
        lifted_by="sending the same request again in a moment",
        who="you",
        service=name,
    )


def _loss(name: str, cause: Refused) -> Refused:
    """What calls in flight are told: that the caller itself was refused, or else that the stream is gone."""
    if cause.status in _WITH_CAUSE or cause.reason is Reason.SERVICE_UNAVAILABLE:
        return cause
    return refused(
        Reason.SERVICE_UNAVAILABLE,
        "The stream to the service broke; whether the call took effect is not known.",
        lifted_by="sending the same request again in a moment",
        who="you",
        service=name,
        cause=cause.reason.value,
    )
