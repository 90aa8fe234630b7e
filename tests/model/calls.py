"""Both halves of a call over a simulated connection, with the surface of `grpc.aio` that the product uses."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import EOF, AbortError, AioRpcError, Metadata

if TYPE_CHECKING:
    from tests.model.network import Connection, SimChannel, SimServer

OK = grpc.StatusCode.OK


class Rpc:
    """One call as the connection knows it: what joins its two halves."""

    def __init__(self, connection: "Connection", call: "ClientCall") -> None:
        self.connection = connection
        self.call = call
        self.context: ServerContext | None = None
        connection.rpcs[self] = None

    def up(self, deliver: Callable[[], None]) -> None:
        self.connection.send(to_server=True, deliver=deliver)

    def down(self, deliver: Callable[[], None]) -> None:
        self.connection.send(to_server=False, deliver=deliver)

    def client_lost(self) -> None:
        self.call.unavailable("the connection was lost")

    def server_lost(self) -> None:
        if self.context is not None:
            self.context.break_off()

    def over(self) -> None:
        self.connection.rpcs.pop(self, None)


class Multicallable:
    """One method of a channel."""

    def __init__(self, channel: "SimChannel", kind: str, method: str, serialize: Any, parse: Any) -> None:
        self.channel, self.kind, self.method = channel, kind, method
        self.serialize = serialize or bytes
        self.parse = parse or bytes

    def __call__(
        self,
        request: Any = None,
        *,
        request_iterator: Any = None,
        timeout: float | None = None,
        wait_for_ready: bool | None = None,
        **_: Any,
    ) -> "ClientCall":
        return ClientCall(self, request, request_iterator, timeout, wait_for_ready=bool(wait_for_ready))


class ClientCall:
    """The client's half, of whatever arity."""

    def __init__(
        self, of: Multicallable, request: Any, requests: Any, timeout: float | None, *, wait_for_ready: bool
    ) -> None:
        self.of = of
        self.channel = of.channel
        self.loop = of.channel.net.loop
        self.wait_for_ready = wait_for_ready
        self._rpc: Rpc | None = None
        self._started = self.loop.create_future()
        self._metadata = self.loop.create_future()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing = Metadata()
        self._cancelled = False
        self._replies: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._timeout = timeout
        self._timer = None if timeout is None else self.loop.call_later(max(0.0, timeout), self._late)
        self._writing: asyncio.Task[None] | None = None
        self._unary = request
        if of.kind.startswith("stream") and requests is not None:
            self._writing = self.loop.create_task(self._write_all(requests))
        of.channel.begin(self)

    # --- from the network

    def go(self, connection: "Connection") -> None:
        """There is a connection: the call leaves."""
        self._rpc = rpc = Rpc(connection, self)
        method, timeout, server = self.of.method, self._timeout, connection.server
        rpc.up(lambda: begin_serving(server, rpc, method, timeout))
        if self.of.kind.startswith("unary"):
            self._send(self._unary)
            rpc.up(lambda: rpc.context.half_close() if rpc.context else None)
        if not self._started.done():
            self._started.set_result(None)

    def unavailable(self, why: str) -> None:
        self.finish(grpc.StatusCode.UNAVAILABLE, why, ())

    def got_metadata(self) -> None:
        if not self._metadata.done():
            self._metadata.set_result(Metadata())

    def got_message(self, data: bytes) -> None:
        if self._code is None:
            self._replies.append(self.of.parse(data))
            self._wake()

    def finish(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        if self._code is not None:
            return
        self._code, self._details, self._trailing = code, details, Metadata(*trailing)
        if self._timer is not None:
            self._timer.cancel()
        self.got_metadata()
        if not self._started.done():
            self._started.set_result(None)
        if self._writing is not None:
            self._writing.cancel()
        if self._rpc is not None:
            self._rpc.over()
        self.channel.calls.pop(self, None)
        self._wake()
        for callback in self._callbacks:
            self.loop.call_soon(callback, self)

    def _late(self) -> None:
        self._tell_cancelled()
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())

    def _tell_cancelled(self) -> None:
        rpc = self._rpc
        if rpc is not None and self._code is None:
            rpc.up(lambda: rpc.context.break_off() if rpc.context else None)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _send(self, message: Any) -> None:
        data, rpc = self.of.serialize(message), self._rpc
        assert rpc is not None
        self.channel.net.tap(
            self.of.method, self.channel.node.name, rpc.connection.server_node.name, request=True, data=data
        )
        rpc.up(lambda: rpc.context.got_message(data) if rpc.context else None)

    # --- for the caller

    def done(self) -> bool:
        return self._code is not None

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        if self._code is not None:
            return False
        self._cancelled = True
        self._tell_cancelled()
        self.finish(grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ())
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._code is None:
            self._callbacks.append(callback)
        else:
            callback(self)

    async def initial_metadata(self) -> Metadata:
        return await self._guarded(self._metadata)

    async def code(self) -> grpc.StatusCode:
        while self._code is None:
            await self._wait()
        return self._code

    async def details(self) -> str:
        await self.code()
        return self._details

    async def trailing_metadata(self) -> Metadata:
        await self.code()
        return self._trailing

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        while self._code is None:
            await self._wait()
        self._raise()
        return self._replies[0]

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._all()

    async def _all(self) -> AsyncIterator[Any]:
        while (message := await self._next()) is not EOF:
            yield message

    async def read(self) -> Any:
        return await self._next()

    async def _next(self) -> Any:
        while not self._replies:
            if self._code is not None:
                self._raise()
                return EOF
            await self._wait()
        return self._replies.popleft()

    async def write(self, message: Any) -> None:
        if self._code is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        await self._guarded(self._started)
        if self._code is not None:
            self._raise()
            raise asyncio.InvalidStateError("RPC already finished.")
        self._send(message)

    async def done_writing(self) -> None:
        await self._guarded(self._started)
        rpc = self._rpc
        if rpc is not None and self._code is None:
            rpc.up(lambda: rpc.context.half_close() if rpc.context else None)

    async def _write_all(self, requests: Any) -> None:
        try:
            async for request in requests:
                await self.write(request)
            await self.done_writing()
        except (AioRpcError, asyncio.InvalidStateError):
            return

    async def _wait(self) -> None:
        if self._waiter is None:
            self._waiter = self.loop.create_future()
        await self._guarded(asyncio.shield(self._waiter))

    async def _guarded(self, future: Any) -> Any:
        """A caller that is cancelled cancels its call."""
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError
        if self._code is not OK:
            raise AioRpcError(self._code, Metadata(), self._trailing, details=self._details)


class ServerContext:
    """The server's half: what a handler of `grpc.aio` gets as its context."""

    def __init__(self, server: "SimServer", rpc: Rpc, method: str, timeout: float | None) -> None:
        self.server = server
        self.rpc = rpc
        self.method = method
        self.loop = server.net.loop
        self._until = None if timeout is None else self.loop.time() + timeout
        self._timer = None if timeout is None else self.loop.call_later(max(0.0, timeout), self.break_off)
        self._requests: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._half_closed = False
        self._broken = False
        self._ended = False
        self._metadata_sent = False
        self._trailing: Any = ()
        self.task: asyncio.Task[None] | None = None

    # --- from the network

    def got_message(self, data: bytes) -> None:
        self._requests.append(data)
        self._wake()

    def half_close(self) -> None:
        self._half_closed = True
        self._wake()

    def break_off(self) -> None:
        """The client cancelled, its deadline passed, or the connection is gone."""
        if self._ended or self._broken:
            return
        self._broken = True
        self._wake()
        if self.task is not None:
            self.task.cancel()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- for the handler

    async def read(self) -> Any:
        while not self._requests:
            self._still()
            if self._half_closed or self._broken:
                return EOF
            if self._waiter is None:
                self._waiter = self.loop.create_future()
            await asyncio.shield(self._waiter)
        return self._requests.popleft()

    async def write(self, data: bytes) -> None:
        self._still()
        await self.send_initial_metadata(())
        self._reply(data)

    async def send_initial_metadata(self, _metadata: Any) -> None:
        if not self._metadata_sent:
            self._metadata_sent = True
            self.rpc.down(self.rpc.call.got_metadata)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self._still()
        self.end(code, details, trailing_metadata)
        raise AbortError("Locally aborted.")

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.rpc.connection.auth

    def time_remaining(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - self.loop.time())

    def invocation_metadata(self) -> tuple[Any, ...]:
        return ()

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._trailing = metadata

    def peer(self) -> str:
        return f"sim:{self.rpc.connection.client.name}"

    def cancelled(self) -> bool:
        return self._broken

    def done(self) -> bool:
        return self._ended or self._broken

    def _still(self) -> None:
        if self._ended:
            raise grpc.aio.UsageError("RPC already finished.")

    def _reply(self, data: bytes) -> None:
        connection, call = self.rpc.connection, self.rpc.call
        self.server.net.tap(
            self.method, connection.server_node.name, connection.client.name, request=False, data=data
        )
        self.rpc.down(lambda: call.got_message(data))

    def end(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._broken:
            call = self.rpc.call
            self.rpc.down(lambda: call.finish(code, details, tuple(trailing)))
        self.server.contexts.pop(self, None)

    async def serve(self, handler: Any) -> None:
        """Run the handler as gRPC does, and end the call with what comes of it."""
        try:
            if handler is None:
                self.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ())
                return
            request: Any = self
            if not handler.request_streaming:
                request = await self.read()
                if request is EOF:
                    return
            if handler.response_streaming:
                behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
                await behavior(request, self)
            else:
                behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
                answer = await behavior(request, self)
                if not self._ended:
                    self._reply(answer)
            self.end(OK, "", self._trailing)
        except AbortError:
            pass
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "cancelled", ())
            raise
        except Exception as error:  # noqa: BLE001 - as gRPC does
            self.loop.call_exception_handler({"message": f"handler of {self.method}", "exception": error})
            self.end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}", ())
        finally:
            self.server.contexts.pop(self, None)


def begin_serving(server: "SimServer", rpc: Rpc, method: str, timeout: float | None) -> None:
    """A call has arrived at the server's node."""
    context = rpc.context = ServerContext(server, rpc, method, timeout)
    server.contexts[context] = None
    context.task = server.net.loop.create_task(context.serve(server.handlers.get(method)))
