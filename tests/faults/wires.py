"""Wires that fall silent, that delay everything evenly, and network cards whose cable is pulled."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.stack import Stack
from vigil.demo.relay import Relay

UNIX: Final = "unix:"
CHUNK: Final = 65_536


@contextlib.asynccontextmanager
async def rewired(stack: Stack, name: str, config: Path, changes: dict[str, str]) -> AsyncIterator[None]:
    """Start a process again with these texts of its configuration replaced; as it was afterwards."""
    original = config.read_text()
    text = original
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    config.write_text(text)
    try:
        await stack.restarted(name, former=await stack.kill(name))
        yield
    finally:
        config.write_text(original)
        await stack.restarted(name, former=await stack.kill(name))


@contextlib.asynccontextmanager
async def relayed(stack: Stack, gateway_id: str) -> AsyncIterator[list[Relay]]:
    """A gateway whose every wire to the control plane leads through a relay; its own wires again afterwards."""
    config = stack.folder.gateway(gateway_id) / "gateway.toml"
    # Every address but the one that it listens on itself.
    targets = set(re.findall(r'"(127\.0\.0\.1:\d+)"', config.read_text())) - {stack.address(gateway_id)}
    relays = {target: Relay(target) for target in targets}
    assert len(relays) == 6
    changes = {f'"{target}"': f'"{await relay.start()}"' for target, relay in relays.items()}
    try:
        async with rewired(stack, gateway_id, config, changes):
            await stack.calm()
            yield list(relays.values())
    finally:
        for relay in relays.values():
            await relay.stop()


# --- even delay


@dataclass
class EvenDelay:
    """A relay that lets every byte pass, each ``seconds`` after it came, in order: no gap shows.

    ``target``: host:port, or ``unix:`` and a path. The delay may be changed at any time; nothing overtakes.
    """

    target: str
    seconds: float = 0.0
    delayed_bytes: int = 0
    """That waited for as long as the delay is now, or longer."""
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> str:
        """Listen; answers the address (host:port)."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def grow(self, seconds: float, *, a_second: float = 0.4) -> None:
        """Delay a little more each moment until it is this much: what is on its way only comes more slowly."""
        step = 0.25
        while self.seconds < seconds:
            await asyncio.sleep(step)
            self.seconds = min(seconds, self.seconds + step * a_second)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target.startswith(UNIX):
            far_reader, far_writer = await asyncio.open_unix_connection(self.target.removeprefix(UNIX))
        else:
            host, _, port = self.target.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self.connections += 1
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._read(source, queue), self._write(queue, sink)):
                task = asyncio.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]") -> None:
        data = b"."
        while data:
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = b""
            queue.put_nowait((time.monotonic(), data))

    async def _write(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                came, data = await queue.get()
                while (left := came + self.seconds - time.monotonic()) > 0:  # noqa: ASYNC110 - the delay may change
                    await asyncio.sleep(min(left, 0.1))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
                now = time.monotonic()
                if self.seconds and now - came >= self.seconds:
                    self.delayed_bytes += len(data)
        writer.close()


@contextlib.asynccontextmanager
async def delayed(
    stack: Stack, name: str, config: Path, target: str, *, written: Callable[[str], str] = str
) -> AsyncIterator[EvenDelay]:
    """One wire of a process leads through a relay that can delay. ``written``: how an address stands in its file."""
    relay = EvenDelay(UNIX + target if target.startswith("/") else target)
    address = await relay.start()
    try:
        async with rewired(stack, name, config, {written(target): written(address)}):
            yield relay
    finally:
        await relay.stop()


# --- a network of its own


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@dataclass(frozen=True)
class Cable:
    """A pair of network cards with a cable between them: one here, one in the namespace."""

    here: str
    here_address: str
    there_address: str

    def pull(self) -> None:
        """The link goes down: what is sent is lost, and nobody is told."""
        _ip("link", "set", self.here, "down")

    def plug(self) -> None:
        _ip("link", "set", self.here, "up")

    @property
    def is_up(self) -> bool:
        return Path(f"/sys/class/net/{self.here}/operstate").read_text().strip() == "up"


@dataclass(frozen=True)
class Namespace:
    """A network namespace, in which a process finds nothing but its cables' ends."""

    name: str
    cables: tuple[Cable, ...]

    @property
    def file(self) -> Path:
        """What setns(2) takes."""
        return Path("/run/netns") / self.name


def missing_namespaces() -> str:
    """Why no network namespace can be made here; empty when one can."""
    if shutil.which("ip") is None:
        return "ip is missing: bash deploy/tools/faults.sh installs it"
    try:
        _ip("netns", "add", "vigil-probe")
        _ip("link", "add", "vigil-probe0", "type", "veth", "peer", "name", "vigil-probe1")
        _ip("link", "del", "vigil-probe0")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", "vigil-probe"], check=False, capture_output=True)
    return ""


@contextlib.contextmanager
def namespace(name: str, *, cables: int, first: int = 0) -> Iterator[Namespace]:
    """Make one with so many cables; skips the test, with the reason, where that is not allowed.

    ``first``: where their numbers begin, so that two tests at the same time have no cable in common.
    """
    reason = missing_namespaces()
    if reason:
        pytest.skip(reason)
    _ip("netns", "add", name)
    made = []
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        for number in range(first, first + cables):
            here, there = f"vg{number}h", f"vg{number}t"
            # 198.18.0.0/15 is for tests of networks (RFC 2544).
            cable = Cable(here, f"198.18.{number}.1", f"198.18.{number}.2")
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            _ip("addr", "add", f"{cable.here_address}/30", "dev", here)
            _ip("link", "set", here, "up")
            _ip("-n", name, "addr", "add", f"{cable.there_address}/30", "dev", there)
            _ip("-n", name, "link", "set", there, "up")
            made.append(cable)
        yield Namespace(name, tuple(made))
    finally:
        for cable in made:
            subprocess.run(["ip", "link", "del", cable.here], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
