"""A hand on the bus of a running installation: what anybody who reaches Redis can do.

async with Bus.of(stack) as bus:
    await bus.publish(b"anything")          # answers how many subscribers Redis says it has
    heard = await bus.overhear()            # the newest message that the service published
counts = await metric(address, "vigil_edge_bus_messages_total")     # by label values
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio

from tests.support.stack import Stack
from vigil.revocation.bus import CHANNEL


@dataclass
class Bus:
    """One client that publishes, and one that listens, like any other."""

    client: redis.asyncio.Redis
    overheard: list[bytes] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, stack: Stack) -> AsyncIterator["Bus"]:
        """The bus of an installation, by the address in its configuration."""
        async with redis.asyncio.from_url(url_of(stack)) as client, client.pubsub() as ears:
            bus = cls(client)
            await ears.subscribe(CHANNEL)
            listening = asyncio.create_task(bus._listen(ears))
            try:
                yield bus
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, ears: "redis.asyncio.client.PubSub") -> None:
        async for message in ears.listen():
            if message["type"] == "message":
                self.overheard.append(message["data"])

    async def publish(self, data: bytes) -> int:
        """Say it to everybody; answers the number of subscribers as Redis counts them."""
        return int(await self.client.publish(CHANNEL, data))

    async def subscribers(self) -> list[dict[str, str]]:
        """Redis' own list of the connections that subscribe, its output buffers (omem, bytes) included."""
        return [one for one in await self.client.client_list() if int(one.get("sub", 0)) > 0]

    async def limit(self, words: str) -> None:
        """Set how much a slow subscriber may leave unread: class, hard limit, soft limit, seconds."""
        await self.client.config_set("client-output-buffer-limit", words)


def url_of(stack: Stack) -> str:
    """Where the edge finds the bus."""
    for line in stack.folder.config("edge").read_text().splitlines():
        if line.startswith("redis_url"):
            return line.partition("=")[2].strip().strip('"')
    raise AssertionError("the edge has no bus")


def socket_of(stack: Stack) -> Path:
    """The bus's socket."""
    return Path(url_of(stack).removeprefix("unix://"))
