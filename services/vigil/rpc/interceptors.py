"""Around every handler: admission before it, refusals and failures after it, counts beside it.

Handlers are wrapped when they are registered, not intercepted at each call: the wrapper gets the bytes, so
that nothing is parsed for a caller that was not admitted, and a method's rule and metrics are looked up once.
"""

import asyncio
import contextlib
import inspect
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import grpc
import structlog

from vigil.core.certificates import Identity
from vigil.core.clock import Clock, Entropy
from vigil.errors import Reason, Refused, refused
from vigil.rpc import caller as caller_module
from vigil.rpc import deadline, status
from vigil.rpc.access import MethodAccess
from vigil.rpc.admission import Admission
from vigil.rpc.builtin import Handler
from vigil.rpc.call import Call, Context
from vigil.rpc.metrics import MethodMetrics, RpcMetrics
from vigil.rpc.registry import StreamRegistry
from vigil.rpc.room import Room

ABORT_SECONDS = 1.0
"""How long a handler's task waits for its refusal to leave: a peer that reads nothing holds it up."""

Behavior = Callable[[Any, Any], Any]


class Guard:
    """Wraps the handlers of one server."""

    def __init__(
        self,
        *,
        admission: Admission,
        registry: StreamRegistry,
        metrics: RpcMetrics,
        clock: Clock,
        entropy: Entropy,
        max_calls_per_caller: int | None,
        max_unary_calls: int,
        precedence: Collection[str],
    ) -> None:
        self._admission = admission
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._entropy = entropy
        self._max_calls = max_calls_per_caller
        self._calls: Counter[bytes] = Counter()
        self._precedence = tuple(precedence)
        self._rooms = {first: Room(max_unary_calls) for first in (False, True)}
        self._log = structlog.get_logger("vigil.rpc")

    def wrap(self, access: MethodAccess, handler: Handler) -> Handler:
        """Make the handler that gRPC calls instead: bytes in, bytes out."""
        guarded = _Guarded(self, access, handler, self._metrics.of(access.method))
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(guarded.stream_stream)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(guarded.stream_unary)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(guarded.unary_stream)
        return grpc.unary_unary_rpc_method_handler(guarded.unary_unary)

    def unknown(self, method: str) -> Handler:
        """Make the handler of a method that nobody registered: only verified callers are told so."""

        async def absent(_requests: Any, context: Context) -> None:
            try:
                self._admission.identify(self._admission.credential(context), method)
            except Refused as refusal:
                await self.abort(context, refusal)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There is no such method.")

        return grpc.stream_stream_rpc_method_handler(absent)

    def admit(self, access: MethodAccess, handler: Handler, context: Context) -> Call:
        """Make the admitted call. Raises a refusal that is answered alone, or that the caller is revoked."""
        method = access.method
        admission = self._admission
        credential = admission.credential(context)
        caller = admission.identify(credential, method)
        scope = access.admit(caller)
        admission.authorize(caller, method)
        self._enter(caller)
        call = Call(
            context=context,
            caller=caller,
            scope=scope,
            judge=lambda: admission.identify(credential, method),
            parse=handler.request_deserializer or bytes,
            serialize=handler.response_serializer or bytes,
            report=lambda error: self.failed(method, error),
            now=self.now,
        )
        deadline.begin(context.time_remaining())
        caller_module.begin(call.obligation)
        return call

    def leave(self, call: Call) -> None:
        """Note that a call has ended."""
        call.close()
        if self._max_calls is not None:
            self._calls[call.caller.thumbprint] -= 1
            if self._calls[call.caller.thumbprint] <= 0:
                del self._calls[call.caller.thumbprint]

    def room(self, caller: Identity) -> AbstractContextManager[None]:
        """A place for a unary call; callers with precedence have places of their own. Raises SERVICE_UNAVAILABLE."""
        return self._rooms[caller.has_role(*self._precedence)].place(caller.thumbprint)

    def opened(self, call: Call) -> None:
        """Note that a stream was admitted."""
        self._registry.add(call)

    def closed(self, call: Call) -> None:
        """Note that a stream has ended."""
        self._registry.discard(call)

    def failed(self, method: str, error: BaseException) -> Refused:
        """Log what nobody expected and make what the caller is told about it: an id and nothing else."""
        error_id = self._entropy(8).hex()
        self._log.error("call_failed", method=method, error_id=error_id, exc_info=error)
        return refused(
            Reason.INTERNAL,
            "Something failed inside the service.",
            lifted_by=f"the operator looking up error {error_id} in the service's log",
            who="the operator",
            error_id=error_id,
        )

    async def abort(self, context: Context, refusal: Refused) -> None:
        """End a call with a refusal; always raises."""
        try:
            async with asyncio.timeout(ABORT_SECONDS):
                await context.abort(
                    status.grpc_code(refusal.status), status.message(refusal), status.trailers(refusal)
                )
        except (TimeoutError, grpc.aio.InternalError):
            # The status is queued behind messages that the peer does not read, or the peer is gone: no need to wait.
            raise asyncio.CancelledError from None

    def now(self) -> float:
        """Seconds, for durations."""
        return self._clock.monotonic()

    def _enter(self, caller: Identity) -> None:
        if self._max_calls is None:
            return
        if self._calls[caller.thumbprint] >= self._max_calls:
            raise refused(
                Reason.QUOTA_EXCEEDED,
                "You have too many calls open at once.",
                lifted_by="ending some of them",
                who="you",
                limit=self._max_calls,
            )
        self._calls[caller.thumbprint] += 1


class _Guarded:
    """The wrapper of one method."""

    def __init__(
        self,
        guard: Guard,
        access: MethodAccess,
        handler: Handler,
        metrics: MethodMetrics,
    ) -> None:
        self._guard = guard
        self._access = access
        self._handler = handler
        self._metrics = metrics

    async def unary_unary(self, raw: bytes, context: Context) -> bytes:
        behavior: Behavior = self._handler.unary_unary  # type: ignore[assignment]

        async def serve(call: Call) -> bytes:
            return call.release(await behavior(call.accept(raw, just_judged=True), call))

        return await self._unary(context, serve)

    async def stream_unary(self, _requests: Any, context: Context) -> bytes:
        behavior: Behavior = self._handler.stream_unary  # type: ignore[assignment]

        async def serve(call: Call) -> bytes:
            return call.release(await behavior(call.requests(), call))

        return await self._unary(context, serve, stream=True)

    async def unary_stream(self, raw: bytes, context: Context) -> None:
        behavior: Behavior = self._handler.unary_stream  # type: ignore[assignment]
        await self._stream(context, lambda call: behavior(call.accept(raw, just_judged=True), call))

    async def stream_stream(self, _requests: Any, context: Context) -> None:
        behavior: Behavior = self._handler.stream_stream  # type: ignore[assignment]
        await self._stream(context, lambda call: behavior(call.requests(), call))

    async def _unary(
        self, context: Context, serve: Callable[[Call], Awaitable[bytes]], *, stream: bool = False
    ) -> bytes:
        started = self._guard.now()

        async def work(call: Call) -> bytes:
            with self._guard.room(call.caller):
                answer = await serve(call)
            self._metrics.seconds.observe(self._guard.now() - started)
            return answer

        answer = await self._run(context, work, stream=stream)
        return b"" if answer is None else answer

    async def _stream(self, context: Context, behave: Callable[[Call], Any]) -> None:
        async def work(call: Call) -> None:
            # The caller learns at once that it was admitted, and a client may wait for that.
            await context.send_initial_metadata(())
            result = behave(call)
            if inspect.isasyncgen(result):
                await _pump(result, call)
            else:
                await result
            call.check()

        await self._run(context, work, stream=True)

    async def _run(
        self, context: Context, work: Callable[[Call], Awaitable[bytes | None]], *, stream: bool
    ) -> bytes | None:
        """Admit, work, and turn every way of ending into what the caller is told."""
        call: Call | None = None
        answer: bytes | None = None
        ended: Refused | None = None
        try:
            call = self._guard.admit(self._access, self._handler, context)
            if stream:
                self._guard.opened(call)
                self._metrics.open_streams.inc()
            answer = await work(call)
        except Refused as refusal:
            ended = refusal
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:
            # Nothing can be sent on this call any more: the peer is gone, and nobody is left to be told.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            if call is None or call.ended_by is None:
                raise
            _uncancel()
        except Exception as error:  # the outermost edge: what is unknown becomes INTERNAL
            if context.done() or context.cancelled():
                raise
            ended = self._guard.failed(self._access.method, error)
        finally:
            if call is not None:
                self._guard.leave(call)
                if stream:
                    self._guard.closed(call)
                    self._metrics.open_streams.dec()
        if call is not None and call.ended_by is not None:
            # A refused message or a cut ends the call, whatever the handler made of it.
            ended = call.ended_by
            await _swallow_cancel()
        if ended is not None:
            self._metrics.refused(ended.status.value, ended.reason.value)
            await self._guard.abort(context, ended)
        self._metrics.ended()
        return answer


async def _pump(answers: AsyncGenerator[Any, Any], call: Call) -> None:
    async with contextlib.aclosing(answers):
        async for answer in answers:
            await call.write(answer)


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _swallow_cancel() -> None:
    """Take a cancellation that a cut left pending on this task."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        _uncancel()
