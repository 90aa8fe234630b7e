"""A hand on the bus of a running installation: what anybody who reaches Redis can do.

async with Bus.of(stack) as bus:
    await bus.publish(b"anything")          # answers how many subscribers Redis says it has
    heard = await bus.overhear()            # the newest message that the service published
async with half_open(stack) as wire:    # between edge and Redis: both ends stay connected
    wire.silence()                      # and from now on the edge hears nothing; wire.dropped_bytes
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio

from tests.support.stack import Stack
from vigil.demo.relay import Relay
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


@contextlib.asynccontextmanager
async def half_open(stack: Stack) -> AsyncIterator[Relay]:
    """The edge's connection to the bus through a wire that can fall silent; its own again at the end."""
    config, real = stack.folder.config("edge"), socket_of(stack)
    original = config.read_text()
    with tempfile.TemporaryDirectory(prefix="vigil-bus-") as folder:
        wire = UnixRelay(str(real), listen_path=f"{folder}/bus.sock")
        await wire.start()
        config.write_text(original.replace(str(real), wire.listen_path))
        try:
            await stack.restarted("edge", former=await stack.kill("edge"))
            yield wire
        finally:
            config.write_text(original)
            former = await stack.kill("edge")
            await wire.stop()
            await stack.restarted("edge", former=former)


@dataclass
class UnixRelay(Relay):
    """A relay between two Unix sockets: ``target`` and ``listen_path`` are their paths."""

    listen_path: str = ""

    async def start(self) -> str:
        """Listen; answers the path."""
        self._open.set()
        self._backward.set()
        self._server = await asyncio.start_unix_server(self._accept, self.listen_path)
        return self.listen_path

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.target)
