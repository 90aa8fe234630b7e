"""One admitted call: the context that handlers see, which judges every message that passes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from vigil.core.certificates import Identity
from vigil.errors import Reason, Refused, refused
from vigil.rpc.access import Scope
from vigil.rpc.caller import Obligation

Context = grpc.aio.ServicerContext[Any, Any]


class ObligationError(Exception):
    """A handler answered without holding what it looked up against the caller's scope: a defect of ours."""


class Call(grpc.aio.ServicerContext[Any, Any]):
    """Stands between a handler and gRPC's context.

    ``judge`` verifies the caller as of now and raises Refused; a refusal sticks: whatever the handler makes of
    it, the call ends with it.
    """

    def __init__(
        self,
        *,
        context: Context,
        caller: Identity,
        scope: Scope,
        judge: Callable[[], Identity],
        parse: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
        report: Callable[[BaseException], Refused],
        now: Callable[[], float],
    ) -> None:
        self._context = context
        self._scope = scope
        self._judge = judge
        self._parse = parse
        self._serialize = serialize
        self.report = report
        self._now = now
        self._sending_since: float | None = None
        self._caller = caller
        self._task = asyncio.current_task()
        self._drain: Callable[[], None] | None = None
        self._draining = False
        self.obligation = Obligation()
        self.ended_by: Refused | None = None

    @property
    def caller(self) -> Identity:
        """The verified identity behind the call."""
        return self._caller

    @property
    def drains(self) -> bool:
        return self._drain is not None

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Have a handler told when the server stops, so that it can end the stream in order."""
        self._drain = callback
        if self._draining:
            callback()

    def drain(self) -> None:
        self._draining = True
        if self._drain is not None:
            self._drain()

    def check(self) -> None:
        if self.ended_by is not None:
            raise self.ended_by
        try:
            self._judge()
        except Refused as refusal:
            self.ended_by = refusal
            raise

    def cut(self, refusal: Refused) -> None:
        if self._task is None:
            return
        if self.ended_by is None:
            self.ended_by = refusal
        self._task.cancel()

    def close(self) -> None:
        """Note that the handler has ended: nothing is left to cut."""
        self._task = None

    def accept(self, raw: bytes, *, just_judged: bool = False) -> Any:
        """Parse one message and hold it against expiry, revocation and scope.

        ``just_judged`` spares the first two where the message came with the admission, as a unary request does.
        """
        if not just_judged:
            self.check()
        try:
            message = self._parse(raw)
            if isinstance(message, Message):
                self._scope.check(message)
        except DecodeError:
            self.ended_by = refused(Reason.FIELD_INVALID, "The request is not a message of this method.")
            raise self.ended_by from None
        except Refused as refusal:
            self.ended_by = refusal
            raise
        return message

    def release(self, message: Any) -> bytes:
        """Hold an answer against expiry, revocation and the handler's obligation, and serialize it."""
        self.check()
        if self._scope.obliged and not self.obligation.met:
            raise ObligationError("the handler did not call require_site, require_organization or their like")
        return self._serialize(message)

    def requests(self) -> AsyncIterator[Any]:
        """Iterate over the checked messages of the caller."""
        return Requests(self)

    async def read(self) -> Any:
        raw = await self._context.read()
        return raw if raw is grpc.aio.EOF else self.accept(raw)

    async def write(self, message: Any) -> None:
        data = self.release(message)
        self._sending_since = self._now()
        await self._context.write(data)
        self._sending_since = None

    def sending_for(self) -> float:
        """Seconds for which the newest message has waited for its reader; 0 when none waits."""
        return 0.0 if self._sending_since is None else self._now() - self._sending_since

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Any:
        await self._context.abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: grpc.Status) -> Any:
        await self._context.abort_with_status(status)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        await self._context.send_initial_metadata(initial_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata(trailing_metadata)

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        self._context.set_details(details)

    def set_compression(self, compression: grpc.Compression) -> None:
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._context.disable_next_message_compression()

    def peer(self) -> str:
        return self._context.peer()

    def peer_identities(self) -> Any:
        return self._context.peer_identities()

    def peer_identity_key(self) -> str | None:
        return self._context.peer_identity_key()

    def auth_context(self) -> Any:
        return self._context.auth_context()

    def time_remaining(self) -> Any:
        return self._context.time_remaining()

    def add_done_callback(self, callback: Any) -> None:
        self._context.add_done_callback(callback)

    def cancelled(self) -> bool:
        return self._context.cancelled()

    def done(self) -> bool:
        return self._context.done()

    def code(self) -> Any:
        return self._context.code()

    def details(self) -> Any:
        return self._context.details()

    def trailing_metadata(self) -> Any:
        return self._context.trailing_metadata()


class Requests(AsyncIterator[Any]):
    """The caller's messages, each checked before the handler sees it."""

    def __init__(self, call: Call) -> None:
        self.call = call

    async def __anext__(self) -> Any:
        message = await self.call.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
