"""The devices that are connected now: one stream each, answers found by call id, queues that end instead of growing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Entropy
from vigil.core.ordered import OrderedSet
from vigil.errors import Reason, Refused, refused
from vigil.gateway import domain

MAX_QUEUED: Final = 256
"""Messages that wait for one device; a device that takes nothing any more is cut off and comes back."""
MAX_TASKS: Final = 8
"""Attestations, artifact requests and renewals under way for one device."""


class Session:
    """One device's stream, from its hello to its end."""

    def __init__(
        self,
        *,
        device: identity_pb2.Device,
        hello: gateway_pb2.DeviceHello,
        caller: Identity,
        attester: Identity | None,
        connect_time: int,
        next_call_id: Callable[[], int],
    ) -> None:
        self.device_id = device.device_id
        self.hello = hello
        self.caller = caller
        self.attester = attester
        self.connect_time = connect_time
        self.profile_version = hello.profile_version
        self.revocation_epoch = hello.revocation_epoch
        self.status = hello.status if hello.HasField("status") else None
        self._next_call_id = next_call_id
        self._queue: asyncio.Queue[gateway_pb2.ConnectResponse | None] = asyncio.Queue()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._followers: OrderedSet[asyncio.Event] = OrderedSet()
        self._tasks: OrderedSet[asyncio.Task[None]] = OrderedSet()
        self._ended_by: Refused | None = None
        self.ended = False

    def send(self, message: gateway_pb2.ConnectResponse) -> None:
        """Queue one message. Raises DEVICE_OFFLINE when the device is gone or takes nothing any more."""
        if not self.ended and self._queue.qsize() >= MAX_QUEUED:
            self.end(refused(Reason.QUOTA_EXCEEDED, "the device does not read what is sent to it"))
        if self.ended:
            raise Refused([domain.offline()])
        self._queue.put_nowait(message)

    def try_send(self, message: gateway_pb2.ConnectResponse) -> None:
        """Queue one message that the device would also get after it came back."""
        if not self.ended and self._queue.qsize() < MAX_QUEUED:
            self._queue.put_nowait(message)

    async def ask(self, make: Callable[[int], gateway_pb2.ConnectResponse], *, seconds: float) -> Any:
        """Send a message that carries a call id and wait for the reply to it.

        Raises DEVICE_OFFLINE when the device goes away, or does not answer in time.
        """
        call_id = self.call_id()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self.send(make(call_id))
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise refused(
                Reason.DEVICE_OFFLINE,
                "The device is connected but did not answer in time.",
                lifted_by="asking again; if it stays so, somebody looking at the device",
                who="somebody at the device",
            ) from None
        finally:
            self._calls.pop(call_id, None)

    def call_id(self) -> int:
        """A fresh call id, unique in this process."""
        return self._next_call_id()

    def settle(self, call_id: int, reply: Any) -> None:
        """Hand a reply to whoever waits for it; nobody may."""
        future = self._calls.get(call_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def report(self, status: gateway_pb2.DeviceStatus) -> None:
        """Take the device's newest report of itself and wake whoever follows it."""
        self.status = status
        for event in self._followers:
            event.set()

    def follow(self, event: asyncio.Event) -> bool:
        """Wake this event at each report; answers whether it is the first follower."""
        self._followers.add(event)
        return len(self._followers) == 1

    def unfollow(self, event: asyncio.Event) -> bool:
        """Stop waking it; answers whether nobody follows any more."""
        self._followers.discard(event)
        return not self._followers

    def spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run something on this device's behalf that ends with the stream; False when too much runs already."""
        if self.ended or len(self._tasks) >= MAX_TASKS:
            work.close()
            return False
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def outgoing(self) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        """What is to be sent, until the session ends. Raises the refusal that ended it."""
        while (message := await self._queue.get()) is not None:
            yield message
        if self._ended_by is not None:
            raise self._ended_by

    def end(self, refusal: Refused | None = None) -> None:
        """End the stream; everything that waits for this device is told so."""
        if self.ended:
            return
        self.ended = True
        self._ended_by = refusal
        self._queue.put_nowait(None)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Refused([domain.offline()]))
        for event in self._followers:
            event.set()
        for task in self._tasks:
            task.cancel()


class DeviceSessions:
    """Connected devices by id. For one event loop."""

    def __init__(self, *, entropy: Entropy) -> None:
        self._sessions: dict[str, Session] = {}
        # Ids begin anywhere, so that a reply meant for a former process finds nobody.
        self._last_call = int.from_bytes(entropy(6), "big")

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def next_call_id(self) -> int:
        """A fresh call id."""
        self._last_call += 1
        return self._last_call

    def get(self, device_id: str) -> Session | None:
        """The device's live session."""
        return self._sessions.get(device_id)

    def require(self, device_id: str) -> Session:
        """The device's live session. Raises DEVICE_OFFLINE."""
        session = self._sessions.get(device_id)
        if session is None:
            raise Refused([domain.offline()])
        return session

    def add(self, session: Session) -> None:
        """Take a new session; of two streams of one device the newest wins."""
        former = self._sessions.get(session.device_id)
        self._sessions[session.device_id] = session
        if former is not None:
            former.end(refused(Reason.STATE_CONFLICT, "the device has connected again"))

    def remove(self, session: Session) -> None:
        """Forget a session that ended, unless a newer one took its place."""
        session.end()
        if self._sessions.get(session.device_id) is session:
            del self._sessions[session.device_id]
