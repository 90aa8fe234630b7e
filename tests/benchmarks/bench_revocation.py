"""A revocation to the last gateway's stored acknowledgement, beside a bare gRPC fan-out of the same bytes.

Two processes: service, edge, evidence and bus in one, all gateways in the other. A gateway's own work (checking the
head, signing its word) happens on as many machines as there are gateways: here their words are signed beforehand, and
one of them checks everything. The service verifies each word, as ever.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop
from sqlalchemy import func, select

from tests.benchmarks.result import Progress, Result, Row, ratio_under, split, under
from tests.support.pki import TRUST_DOMAIN, Credential, TestPki
from tests.unit.revocation.support import RedisServer, World, revocation, scribe_of
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.core.revocations import EMPTY_CHAIN, Entry, RevocationState, chain_hash
from vigil.core.statements.bodies import Acknowledgement, Head
from vigil.core.statements.envelope import read
from vigil.revocation import store
from vigil.rpc.channel import Channels
from vigil.storage import open_database

TITLE = "A revocation to every gateway"

GATEWAYS = 1_200
ROUNDS = 7
QUICK_GATEWAYS = 120
QUICK_ROUNDS = 3
CHALLENGE_S = 2.0
OPENING = 50
"""Connections opened at once."""
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def _device(number: int) -> str:
    return "dev-" + "".join(LETTERS[number >> (5 * place) & 31] for place in range(16))


class _Bare:
    """The floor: every stream gets the same bytes at once; done when each has answered."""

    def __init__(self) -> None:
        self.streams: dict[object, asyncio.Queue[bytes]] = {}
        self.left = 0
        self.done = asyncio.Event()

    async def follow(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.streams[queue] = queue

        async def listen() -> None:
            async for _ in requests:
                self.left -= 1
                if not self.left:
                    self.done.set()

        listening = asyncio.create_task(listen())
        try:
            while True:
                yield await queue.get()
        finally:
            listening.cancel()

    async def go(self, request: bytes, _context: Any) -> bytes:
        first, second = request[: len(request) // 2], request[len(request) // 2 :]
        self.left, self.done = len(self.streams), asyncio.Event()
        for queue in self.streams.values():
            queue.put_nowait(first)
        for queue in self.streams.values():
            queue.put_nowait(second)
        await self.done.wait()
        return b""

    async def count(self, _request: bytes, _context: Any) -> bytes:
        return str(len(self.streams)).encode()


def serve(folder: Path, pki: TestPki, pipe: Connection) -> None:
    """The served side, until the pipe says so: service, edge, evidence, bus and the floor's own server."""
    uvloop.run(_serve_all(folder, pki, pipe))


async def _serve_all(folder: Path, pki: TestPki, pipe: Connection) -> None:
    bus = await RedisServer().start()
    world = World(folder, pki=pki)
    world.redis_url = bus.url
    await world.start()
    await world.start_edge()
    reading = open_database(
        folder / "revocation" / "revocation.db",
        metadata=store.METADATA,
        migrations="vigil.revocation.migrations",
    )
    enforcing = select(func.count()).select_from(store.ACKNOWLEDGEMENT)

    async def wait(request: bytes, _context: Any) -> bytes:
        """Wait until so many gateways' acknowledgements of an epoch are durable."""
        epoch, wanted = json.loads(request)
        query = enforcing.where(store.ACKNOWLEDGEMENT.c.epoch >= epoch)
        while await reading.read(lambda conn: conn.execute(query).scalar_one()) < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return b""

    bare = _Bare()
    files = pki.service("bare").tls_files
    server = grpc.aio.server(options=[("grpc.server.max_pending_requests", 20_000)])
    handlers: Any = {
        "Follow": grpc.stream_stream_rpc_method_handler(bare.follow),
        "Go": grpc.unary_unary_rpc_method_handler(bare.go),
        "Count": grpc.unary_unary_rpc_method_handler(bare.count),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.certificate.read_bytes())],
        pki.bundle.root_pem,
        require_client_auth=True,
    )
    world.ports["bare"] = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    pipe.send(world.ports)
    await asyncio.to_thread(pipe.recv)
    await server.stop(None)
    await world.stop()
    await bus.stop()
    reading.close()


class _Gateway:
    """Answers each new epoch with the word signed for it; ``checks``: verifies entries and heads before."""

    def __init__(
        self, credential: Credential, pki: TestPki, target: str, *, chains: list[bytes], checks: bool
    ) -> None:
        self._credential = credential
        self._pki = pki
        self._clock = SystemClock()
        self._channels = Channels(tls=credential.tls_files, trust_domain=TRUST_DOMAIN, clock=self._clock)
        self._target = target
        self._pending: list[Entry] = []
        self._checks = checks
        scribe = scribe_of(credential)
        self._words = [
            scribe.sign(
                Acknowledgement(epoch=epoch, chain=chain, era=0, enforced_at=self._clock.now()),
                subject=credential.issuer_name,
            ).data
            for epoch, chain in enumerate(chains, 1)
        ]
        self._epoch = 0
        self.state = RevocationState()
        self.told = False
        self.heard = 0.0

    async def run(self) -> None:
        stub: Any = revocation_pb2_grpc.EdgeServiceStub(self._channels.service(self._target, "edge"))
        call = stub.Follow()
        name = self._credential.identity.id
        one_write = asyncio.Lock()  # gRPC takes one write at a time
        start = revocation_pb2.FollowStart(epoch=0, chain=self.state.chain)
        await call.write(revocation_pb2.FollowRequest(gateway_id=name, start=start))

        async def ask() -> None:
            while True:
                request = revocation_pb2.FollowRequest(gateway_id=name, challenge=os.urandom(16))
                async with one_write:
                    await call.write(request)
                await asyncio.sleep(CHALLENGE_S)

        asking = asyncio.create_task(ask())
        try:
            async for response in call:
                word = self._take(response)
                if word:
                    request = revocation_pb2.FollowRequest(gateway_id=name, acknowledgement=word)
                    async with one_write:
                        await call.write(request)
        finally:
            asking.cancel()
            await self._channels.close()

    def _take(self, response: revocation_pb2.FollowResponse) -> bytes:
        for entry in response.entries.entries:
            self._pending.append(Entry(entry.epoch, tuple(entry.statements), entry.chain))
        if response.WhichOneof("message") == "entries":
            return b""
        self.told = True
        if self._checks:
            head, now = read(response.head.head, Head), self._clock.now()
            self.state.advance(self._pending, head, verifier=self._pki.verifier, at=now)
        if not self._pending:
            return b""
        self._epoch = self._pending[-1].epoch
        self._pending.clear()
        self.heard = time.perf_counter()
        return self._words[self._epoch - 1]


async def _opened(
    count: int, start: Callable[[int], Awaitable[None]], ready: Callable[[], Awaitable[bool]]
) -> list[asyncio.Task[None]]:
    tasks: list[asyncio.Task[None]] = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(start(number)))
        if number % OPENING == OPENING - 1:
            await asyncio.sleep(0.3)
    async with asyncio.timeout(120):
        while not await ready():  # noqa: ASYNC110 - asks the other process
            await asyncio.sleep(0.05)
    return tasks


async def _awaited(call: Any) -> None:
    await call


async def _unless_one_ends(wanted: asyncio.Future[None], tasks: list[asyncio.Task[None]]) -> None:
    """Wait, and raise what ended a gateway meanwhile: it would be waited for in vain."""
    done, _ = await asyncio.wait([wanted, *tasks], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    for task in done - {wanted}:
        task.result()
    if not wanted.done():
        raise TimeoutError("a gateway's acknowledgement did not arrive")
    wanted.result()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def bare_channel(pki: TestPki, credential: Credential, port: int) -> Any:
    """A channel of plain gRPC over mTLS to a server called `bare`."""
    files = credential.tls_files
    credentials = grpc.ssl_channel_credentials(
        pki.bundle.root_pem, files.key.read_bytes(), files.certificate.read_bytes()
    )
    options = [
        ("grpc.ssl_target_name_override", f"bare.{TRUST_DOMAIN}"),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def bare_fan_out(pki: TestPki, gateways: list[Credential], port: int, size: int, rounds: int) -> float:
    """Milliseconds until the last of the bare streams answered; the median."""
    acknowledgement, half = os.urandom(900), 0
    control = bare_channel(pki, gateways[0], port)

    async def follow(number: int) -> None:
        nonlocal half
        async with bare_channel(pki, gateways[number], port) as channel:
            call: Any = channel.stream_stream("/bare/Follow")()
            await call.wait_for_connection()
            while True:
                await call.read()
                await call.read()
                await call.write(acknowledgement)

    count = control.unary_unary("/bare/Count")

    async def ready() -> bool:
        return int(await count(b"")) == len(gateways)

    tasks = await _opened(len(gateways), follow, ready)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await control.unary_unary("/bare/Go")(os.urandom(size))
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.2)
    await _end(tasks)
    await control.close()
    return statistics.median(times)


async def _real(
    pki: TestPki, credentials: list[Credential], ports: dict[str, int], rounds: int, progress: Progress
) -> tuple[float, float]:
    """Milliseconds from the call of Revoke to the last gateway's enforcing, and to its stored word; medians."""
    operator = pki.admin(1)
    statements = [revocation(operator, _device(number + 7)) for number in range(rounds)]
    chains = [EMPTY_CHAIN]
    for epoch, statement in enumerate(statements, 1):
        chains.append(chain_hash(chains[-1], epoch, [statement.digest]))
    target = f"127.0.0.1:{ports['edge']}"
    gateways = [
        _Gateway(one, pki, target, chains=chains[1:], checks=number == 0)
        for number, one in enumerate(credentials)
    ]

    async def ready() -> bool:
        return all(gateway.told for gateway in gateways)

    tasks = await _opened(len(gateways), lambda number: gateways[number].run(), ready)
    channels = Channels(tls=operator.tls_files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
    stub: Any = revocation_pb2_grpc.RevocationServiceStub(
        channels.service(f"127.0.0.1:{ports['revocation']}", "revocation")
    )
    control = bare_channel(pki, credentials[0], ports["bare"])
    enforced, stored = [], []
    for number, statement in enumerate(statements):
        progress(number / rounds)
        began = time.perf_counter()
        entry = await stub.Revoke(revocation_pb2.RevokeRequest(revocation=statement.data))
        waiting = control.unary_unary("/bare/Wait")(json.dumps([entry.epoch, len(gateways)]).encode())
        await _unless_one_ends(asyncio.ensure_future(_awaited(waiting)), tasks)
        stored.append((time.perf_counter() - began) * 1000)
        enforced.append((max(gateway.heard for gateway in gateways) - began) * 1000)
        await asyncio.sleep(0.3)
    await _end(tasks)
    await control.close()
    await channels.close()
    return statistics.median(enforced), statistics.median(stored)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure beside the bare fan-out of this very run; medians."""
    gateways, rounds = (QUICK_GATEWAYS, QUICK_ROUNDS) if quick else (GATEWAYS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki = TestPki(folder)
        credentials = [pki.issue(Kind.GATEWAY, f"gateway-{number}") for number in range(gateways)]
        progress(0.1)
        ours, theirs = multiprocessing.Pipe()
        # Forked before this process opens its first channel.
        child = multiprocessing.get_context("fork").Process(target=serve, args=(folder, pki, theirs))
        child.start()
        try:
            ports = await asyncio.to_thread(ours.recv)
            size = len(revocation(pki.admin(1), _device(1)).data) + 1_200
            floor = await bare_fan_out(pki, credentials, ports["bare"], size, rounds)
            progress(0.4)
            enforced, stored = await _real(pki, credentials, ports, rounds, split(progress, 0.4, 1.0))
        finally:
            with contextlib.suppress(OSError):
                ours.send(None)
            await asyncio.to_thread(child.join, 20)
            child.kill()
    progress(1.0)
    many, bare = f"{gateways:,} gateways", "a bare gRPC fan-out of the same bytes, all answered"
    return Result(
        rows=(
            Row(
                work=f"{many}, the last one's stored acknowledgement",
                figure=stored,
                unit="ms",
                floor=floor,
                floor_is=bare,
                target=ratio_under(2),
                note=f"beyond the echo each gateway verifies the head, makes its own state durable and signs:"
                f" {stored - floor:.0f} ms for all of them on the cores that also serve them",
            ),
            Row(
                work=f"{many}, the last one enforces it",
                figure=enforced,
                unit="ms",
                floor=floor,
                floor_is=bare,
                target=under(1_000),
            ),
        )
    )
