"""A wire that can fall silent: a TCP relay whose ends stay connected while nothing passes any more.

A cut cable resets nothing: both sides still hold an open socket and hear nothing. That is what a relay gone silent
looks like from either end, and what leases and deadlines are for.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass
class Relay:
    """Forwards connections to ``listen_host`` (port 0 takes a free one) to ``target`` (host:port)."""

    target: str
    listen_port: int = 0
    listen_host: str = "127.0.0.1"
    _server: asyncio.Server | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _backward: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    dropped_bytes: int = 0

    async def start(self) -> str:
        """Listen; answers the address (host:port)."""
        self._open.set()
        self._backward.set()
        self._server = await asyncio.start_server(self._accept, self.listen_host, self.listen_port)
        self.listen_port = int(self._server.sockets[0].getsockname()[1])
        return f"{self.listen_host}:{self.listen_port}"

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """Let nothing pass in either direction; connections stay open."""
        self._open.clear()
        self._backward.clear()

    def swallow_answers(self) -> None:
        """Let what the dialling side sends get lost, and nothing else: its peer goes on being heard."""
        self._backward.clear()

    def speak(self) -> None:
        """Let new bytes pass again. What was lost stays lost: connections from before are closed."""
        self.cut()
        self._open.set()
        self._backward.set()

    def cut(self) -> None:
        """Close every connection."""
        for writer in tuple(self._writers):
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._dial()
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        # From the dialling side to the target, and from the target back.
        for source, sink, gate in ((reader, far_writer, self._backward), (far_reader, writer, self._open)):
            task = asyncio.create_task(self._pump(source, sink, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not gate.is_set():
                    self.dropped_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)
