"""The bus as its clients see it: a Redis that may lose, delay, repeat and reorder what it is given, or be away."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Self

from redis.exceptions import ConnectionError as BusError

from tests.model.loop import Node, SimLoop


class SimBus:
    """One Redis. The shares say how much of what is published suffers what."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.down = False
        self.lost = 0.0
        self.repeated = 0.0
        self.late = 0.0
        self.most_late = 5.0
        self.subscribers: dict[SimSubscription, None] = {}
        self.published = self.repeats = self.losses = 0
        self.history: deque[bytes] = deque(maxlen=16)

    def client(self, node: Node) -> "SimClient":
        return SimClient(self, node)

    def publish(self, data: bytes) -> None:
        self.published += 1
        random = self.loop.random
        copies = [data]
        if random.random() < self.repeated:
            copies += [data, random.choice(self.history) if self.history else data]
            self.repeats += len(copies) - 1
        self.history.append(data)
        for copy in copies:
            for subscriber in list(self.subscribers):
                if random.random() < self.lost:
                    self.losses += 1
                    continue
                wait = random.random() * (self.most_late if random.random() < self.late else 0.003)
                self.loop.on_later(subscriber.node, wait, subscriber.hear, copy)


class SimClient:
    """`redis.asyncio.Redis`, as far as it is used."""

    def __init__(self, bus: SimBus, node: Node) -> None:
        self.bus = bus
        self.node = node

    async def publish(self, _channel: str, data: bytes) -> int:
        await asyncio.sleep(0.001)
        if self.bus.down:
            raise BusError("Connection refused.")
        self.bus.publish(data)
        return len(self.bus.subscribers)

    async def aclose(self) -> None:
        """Nothing is open."""

    def pubsub(self) -> "SimSubscription":
        return SimSubscription(self.bus, self.node)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        """Nothing is open."""


class SimSubscription:
    """`redis.asyncio.client.PubSub`, as far as it is used."""

    def __init__(self, bus: SimBus, node: Node) -> None:
        self.bus = bus
        self.node = node
        self._messages: deque[bytes] = deque()
        self._heard = asyncio.Event()
        node.on_death.append(self._leave)

    def _leave(self) -> None:
        self.bus.subscribers.pop(self, None)

    def hear(self, data: bytes) -> None:
        self._messages.append(data)
        self._heard.set()

    async def subscribe(self, _channel: str) -> None:
        await asyncio.sleep(0.001)
        if self.bus.down:
            raise BusError("Connection refused.")
        self.bus.subscribers[self] = None

    async def get_message(self, *, ignore_subscribe_messages: bool, timeout: float) -> Any:  # noqa: ASYNC109
        assert ignore_subscribe_messages
        if self.bus.down:
            raise BusError("Connection closed by server.")
        try:
            async with asyncio.timeout(timeout):
                while not self._messages:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            return None
        return {"data": self._messages.popleft()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._leave()
