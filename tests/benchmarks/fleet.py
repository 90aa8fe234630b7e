"""What stands in for a fleet of gateways and pumps when revocations are measured: many to a process, over real mTLS.

A `FleetGateway` is what a gateway's process is made of as far as revocation goes (`FollowingGateway`), with its own
key and its own connection. What many share is the disk: one database holds what each of them persists. A `DeviceSide`
holds what each pump knows of revocation, and checks every head for each of them.
"""

import asyncio
import contextlib
import json
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import grpc

from tests.benchmarks.result import percentile
from tests.support.followers import FollowingGateway
from tests.support.pki import TRUST_DOMAIN, Credential, TestPki
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.classes import CHALLENGE_INTERVAL_S
from vigil.core.clock import SystemClock
from vigil.core.revocations import Entry, ReadEntry, RevocationState
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import read
from vigil.gateway.revocations import Enforced, proto_of
from vigil.rpc.channel import Channels
from vigil.storage import Database

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
IN_FLIGHT: Final = 32
"""Messages to the devices' side under way at once: one core takes them anyway one after the other."""
PATIENCE_S: Final = 240.0
_LENGTHS: Final = struct.Struct(">II")


def device_id(number: int) -> str:
    """A device's id, the same for the same number."""
    return "dev-" + "".join(LETTERS[number >> (5 * place) & 31] for place in range(16))


def frame(entries: Sequence[revocation_pb2.RevocationEntry], head: bytes) -> bytes:
    """One device's message: entries and the head that confirms them."""
    batch = revocation_pb2.EntryBatch(entries=entries).SerializeToString()
    return _LENGTHS.pack(len(batch), len(head)) + batch + head


class DeviceLinks:
    """The gateways' way to the process where the devices are. A message of each gateway holds a frame a device."""

    def __init__(self, channel: Any, *, each: int) -> None:
        self.each = each
        """Devices behind a gateway; 0 while they are not told."""
        self._tell = channel.unary_unary("/fleet/Tell")
        self._room = asyncio.Semaphore(IN_FLIGHT)

    async def tell(self, enforced: Enforced) -> None:
        """Tell the devices of one gateway. Raises what the devices' side raised."""
        if enforced.entries and self.each:
            one = frame([proto_of(one.entry) for one in enforced.entries], enforced.head)
            async with self._room:
                await self._tell(one * self.each, timeout=PATIENCE_S)


class FleetGateway:
    """One gateway, from its own key to its signed acknowledgement."""

    def __init__(
        self, credential: Credential, *, database: Database, target: str, links: DeviceLinks | None = None
    ) -> None:
        self._links = links
        self.enforced = 0.0
        """When it last enforced something new, by `time.perf_counter`."""
        self._telling: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        """What its devices' side answered wrongly."""
        self.following = FollowingGateway(
            gateway_id=credential.identity.id,
            tls=credential.tls_files,
            database=database,
            edge=target,
            on_restricted=self._restricted,
            on_enforced=self._told,
        )
        self.view = self.following.view

    @property
    def dialled(self) -> int:
        """Streams opened; more than one means that the first was lost."""
        return len(self.following.stub.dialled)

    def start(self) -> None:
        self.following.start()

    def check(self) -> None:
        """Raise what must not be swallowed: a device that did not take the word, a task that ended."""
        if self.failure is not None:
            raise self.failure
        if self.following.ended:
            raise AssertionError("a gateway's task ended")

    async def stop(self) -> None:
        await self.following.stop()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    def _restricted(self, _entries: Sequence[ReadEntry]) -> None:
        self.enforced = time.perf_counter()

    async def _told(self, enforced: Enforced) -> None:
        """A gateway hands its devices the word and goes on: it does not wait for them."""
        if self._links is not None and self._links.each:
            self._telling = asyncio.create_task(self._tell(self._links, enforced))

    async def _tell(self, links: DeviceLinks, enforced: Enforced) -> None:
        try:
            await links.tell(enforced)
        except Exception as error:  # noqa: BLE001 - the edge of a task: `check` raises it in the benchmark
            self.failure = error


class DeviceSide:
    """The devices' process: each has a state of its own and checks head, signature and chain itself."""

    def __init__(self, pki: TestPki) -> None:
        self._verifier = pki.verifier
        self._states: list[RevocationState] = []
        self._next = 0
        self._epoch = 0
        self._enforced: list[float] = []
        self._done = asyncio.Event()
        self._failure: BaseException | None = None

    async def sync(self, request: bytes, _context: Any) -> bytes:
        """Untimed: so many devices at this epoch, as if each took these entries before. The first one verifies them."""
        count = int.from_bytes(request[:4])
        first = RevocationState()
        self._advance(first, request[4:])
        self._states = [replace(first, _effects=dict(first._effects)) for _ in range(count)]
        return str(first.epoch).encode()

    async def expect(self, request: bytes, _context: Any) -> bytes:
        """From now on this epoch is waited for; answers the CPU seconds of this process so far."""
        self._epoch, self._next = int(request), 0
        self._enforced, self._done = [], asyncio.Event()
        return repr(time.process_time()).encode()

    async def tell(self, request: bytes, _context: Any) -> bytes:
        """The frames of one gateway's devices, one device after the other; another gateway's may come in between."""
        place = 0
        try:
            while place < len(request):
                batch, head = _LENGTHS.unpack_from(request, place)
                size = _LENGTHS.size + batch + head
                self._one(request[place : place + size])
                place += size
                if not self._next % 16:
                    await asyncio.sleep(0)
        except Exception as error:
            self._failure = error
            self._done.set()
            raise
        return b""

    async def wait(self, _request: bytes, _context: Any) -> bytes:
        """Until the last device enforces the expected epoch: when each did, in parts, and CPU seconds. JSON."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        if any(state.epoch != self._epoch for state in self._states):
            raise AssertionError("a device is not at the expected epoch")
        told = {
            "p50": percentile(self._enforced, 0.5),
            "p99": percentile(self._enforced, 0.99),
            "last": max(self._enforced),
            "cpu": time.process_time(),
        }
        return json.dumps(told).encode()

    def handlers(self) -> Any:
        return grpc.method_handlers_generic_handler(
            "fleet",
            {
                name: grpc.unary_unary_rpc_method_handler(method)
                for name, method in {
                    "Sync": self.sync,
                    "Expect": self.expect,
                    "Tell": self.tell,
                    "Wait": self.wait,
                }.items()
            },
        )

    def _one(self, message: bytes) -> None:
        if self._next >= len(self._states):
            raise AssertionError("more frames than devices")
        state = self._states[self._next]
        self._next += 1
        self._advance(state, message)
        self._enforced.append(time.perf_counter())
        if len(self._enforced) == len(self._states):
            self._done.set()

    def _advance(self, state: RevocationState, message: bytes) -> None:
        size, head = _LENGTHS.unpack_from(message)
        middle = _LENGTHS.size + size
        batch = revocation_pb2.EntryBatch.FromString(message[_LENGTHS.size : middle])
        entries = [Entry(one.epoch, tuple(one.statements), one.chain) for one in batch.entries]
        read_head = read(message[middle : middle + head], Head)
        state.advance(entries, read_head, verifier=self._verifier, at=SystemClock().now())


def sync_frame(count: int, entries: Sequence[revocation_pb2.RevocationEntry], head: bytes) -> bytes:
    """What `DeviceSide.sync` takes."""
    return count.to_bytes(4) + frame(entries, head)


class LightGateway:
    """A stream that takes everything and looks at epochs only: a gateway's own work happens on its own machine."""

    def __init__(self, credential: Credential, *, target: str) -> None:
        self._name = credential.identity.id
        self._channels = Channels(tls=credential.tls_files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
        self._stub: Any = revocation_pb2_grpc.EdgeServiceStub(self._channels.service(target, "edge"))
        self.epoch = -1
        """Confirmed by a head, with every entry before it."""
        self.reached = 0.0
        """When, by `time.perf_counter`."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def check(self) -> None:
        """Raise what ended it."""
        if self._task is not None and self._task.done():
            self._task.result()
            raise AssertionError("an edge ended a stream")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channels.close()

    async def _run(self) -> None:
        call = self._stub.Follow()
        start = revocation_pb2.FollowStart(epoch=0, chain=RevocationState().chain)
        await call.write(revocation_pb2.FollowRequest(gateway_id=self._name, start=start))
        asking = asyncio.create_task(self._ask(call))
        entries = 0
        try:
            async for response in call:
                if response.WhichOneof("message") == "entries":
                    entries = response.entries.entries[-1].epoch
                elif entries > self.epoch or self.epoch < 0:
                    confirmed = read(response.head.head, Head).body.epoch
                    self.epoch, self.reached = min(entries, confirmed), time.perf_counter()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, call: Any) -> None:
        while True:
            await call.write(revocation_pb2.FollowRequest(gateway_id=self._name, challenge=os.urandom(16)))
            await asyncio.sleep(CHALLENGE_INTERVAL_S)


class Plug:
    """A relay between a gateway and its edge that can be pulled: no byte passes any more, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._flows: set[asyncio.Task[None]] = set()
        self.pulled = False
        self.held = 0
        """Bytes that came after it was pulled, and went nowhere."""

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def pull(self) -> None:
        self.pulled = True

    async def stop(self) -> None:
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        for pair in ((reader, back), (there, writer)):
            self._flows.add(asyncio.create_task(self._flow(*pair)))

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.pulled:
                    self.held += len(data)
                    continue
                writer.write(data)
                await writer.drain()
