"""Two processes of the log on one database: one writes, the other follows, and no fault makes it two histories."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url

from tests.faults.wires import namespace
from tests.support.crowd import OWNER, Crowd, check_everything
from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import Credential, TestPki
from tests.support.postgres import PostgresServer, missing
from tests.support.stack import eventually
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refused
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels

Injected = Callable[[int], None]
WRITERS = 16
LOG_SERVICE = "vigil.api.evidence.v1.EvidenceLogService"


class Pair:
    """Two processes of one log, and callers who know both addresses."""

    def __init__(self, folder: Path, *, database_url: str) -> None:
        self.pki = TestPki(folder)
        settings = {"data_dir": str(folder / "data"), "database_url": database_url}
        self.processes = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            self.processes.append(EvidenceProcess(self.pki, folder / name, settings=settings))
        self.one, self.two = self.processes
        self.writer = HoldWriter(self.pki.person("p-safety", "safety"))
        self.checkpoints: list[evidence_pb2.Checkpoint] = []
        self._closing: list[Any] = []
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.one.start()
        await self.two.start()
        assert self.two.said("standing by")
        self._watching = asyncio.create_task(self._watch())

    @property
    def addresses(self) -> str:
        return f"{self.one.address},{self.two.address}"

    def channel(self, address: str, credential: Credential | None = None) -> grpc.aio.Channel:
        files = (credential or self.pki.service("policy")).tls_files
        channels = Channels(tls=files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self._closing.append(channels.close)
        return channels.service(address, "evidence")

    def appender(self, address: str = "", *, streams: int = 4) -> EvidenceAppender:
        appender = EvidenceAppender(
            channel=self.channel(address or self.addresses), entropy=os.urandom, streams=streams
        )
        self._closing.insert(0, appender.close)
        return appender

    def reader(self, process: EvidenceProcess) -> Any:
        person = self.pki.person("p-reader", "auditor", organization="operator", sites=("*",))
        return evidence_pb2_grpc.EvidenceReadServiceStub(self.channel(process.address, person))

    def crowd(self) -> Crowd:
        return Crowd(self.appender(), self.writer, writers=WRITERS)

    async def _watch(self) -> None:
        """Keep every checkpoint that either of them ever shows."""
        readers = [self.reader(process) for process in self.processes]
        while True:
            for reader in readers:
                try:
                    request = evidence_pb2.GetCheckpointRequest()
                    self.checkpoints.append(await reader.GetCheckpoint(request, timeout=0.5))
                except grpc.aio.AioRpcError:
                    continue
            await asyncio.sleep(0.05)

    async def check(self, crowd: Crowd, reader: Any) -> None:
        """Everything acknowledged is there once, in one history that every checkpoint is a prefix of."""
        await crowd.stop()
        await self.close_watch()
        await check_everything(self.pki, reader, crowd, self.checkpoints)

    async def close_watch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def close(self) -> None:
        await self.close_watch()
        for close in self._closing:
            await close()
        for process in self.processes:
            if process.running:
                process.thaw()
            await process.stop()


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.thorough), "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pair(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    url = request.getfixturevalue("postgres").create() if kind == "postgresql" else ""
    pair = Pair(tmp_path, database_url=url)
    await pair.start()
    yield pair
    await pair.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    await eventually(condition, what=what, seconds=60.0)


async def refusal_of(appender: EvidenceAppender, statement: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        await appender.append(statement, timeout=20.0, **OWNER)
    return caught.value


async def serves(pair: Pair, process: EvidenceProcess) -> bool:
    """What a load balancer is told."""
    stub = health_pb2_grpc.HealthStub(pair.channel(process.address))
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=LOG_SERVICE))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.holds("two-writers", "killed-between-steps")
async def test_the_one_that_stands_by_takes_over_from_the_dead(pair: Pair, injected: Injected) -> None:
    assert [await serves(pair, process) for process in pair.processes] == [True, False]
    refusal = await refusal_of(pair.appender(pair.two.address), pair.writer.hold().data)
    assert refusal.reason is Reason.EVIDENCE_UNAVAILABLE
    crowd = pair.crowd()
    await crowd.until(100)
    # What stands by shows what the writer has signed.
    reader = pair.reader(pair.two)
    size = (await pair.reader(pair.one).GetCheckpoint(evidence_pb2.GetCheckpointRequest())).size

    async def followed() -> bool:
        return bool((await reader.GetCheckpoint(evidence_pb2.GetCheckpointRequest())).size >= size)

    await eventually(followed, what="the checkpoint that the writer signed")
    await pair.one.kill()
    injected(1)
    await crowd.until(len(crowd.acknowledged) + 50)
    assert pair.two.said("writing in term 2")
    assert await serves(pair, pair.two)
    # Back again, it stands by; and takes over at once when the other one ends in order.
    await pair.one.start()
    assert not await serves(pair, pair.one)
    await pair.two.stop()
    await crowd.until(len(crowd.acknowledged) + 50)
    assert pair.one.said("writing in term 3")
    await pair.check(crowd, pair.reader(pair.one))


@pytest.mark.thorough
@pytest.mark.holds("two-writers", "killed-between-steps")
async def test_a_writer_that_was_stopped_and_goes_on_writes_nothing(
    pair: Pair, kind: str, injected: Injected
) -> None:
    """Under load with PostgreSQL, so that it may be stopped inside a transaction, which the server then ends.

    A writer of a SQLite file that is stopped inside a transaction keeps the file's lock: nobody takes over until it is
    killed or goes on.
    """
    crowd = pair.crowd()
    await crowd.until(100)
    direct = pair.appender(pair.one.address, streams=1)
    await direct.append(pair.writer.hold().data, **OWNER)
    if kind == "sqlite":
        await crowd.stop()
        await asyncio.sleep(2.5)  # checkpoint and index are done, too
    pair.one.freeze()
    injected(1)
    late = pair.writer.hold()
    refused = asyncio.create_task(refusal_of(direct, late.data))
    await until(lambda: pair.two.said("writing in term 2"), "the takeover")
    if kind == "sqlite":
        crowd = pair.crowd()
    await crowd.until(len(crowd.acknowledged) + 50)
    pair.one.thaw()
    await until(lambda: pair.one.said("term 1 is over"), "the end of the first term")
    assert (await refused).reason is Reason.EVIDENCE_UNAVAILABLE
    await crowd.until(len(crowd.acknowledged) + 50)
    assert not await serves(pair, pair.one)
    # Sent to the one that writes, it is recorded once.
    first = await pair.appender().append(late.data, **OWNER)
    assert await pair.appender().append(late.data, **OWNER) == first
    if kind == "postgresql":
        crowd.acknowledged[late.digest] = first
    await crowd.stop()


# --- the database goes


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    if missing():
        pytest.skip(missing())
    with PostgresServer.running() as server:
        yield server


@pytest.fixture
async def on_own_server(own_server: PostgresServer, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path, database_url=own_server.create())
    await pair.start()
    yield pair
    await pair.close()


@pytest.mark.holds("database-server", "storage-failures")
async def test_postgresql_is_restarted_in_the_middle_of_appends(
    own_server: PostgresServer, on_own_server: Pair, injected: Injected
) -> None:
    pair = on_own_server
    crowd = pair.crowd()
    for _ in range(3):
        await crowd.until(len(crowd.acknowledged) + 100)
        former = own_server.pid
        own_server.stop()  # immediate: no last word to the disk
        acknowledged = len(crowd.acknowledged)
        await asyncio.sleep(0.5)
        assert len(crowd.acknowledged) <= acknowledged + WRITERS
        own_server.start()
        assert own_server.pid != former
        injected(1)
    await crowd.until(len(crowd.acknowledged) + 100)
    writing = await serves(pair, pair.one)
    await pair.check(crowd, pair.reader(pair.one if writing else pair.two))


@pytest.mark.thorough
@pytest.mark.holds("database-server", "storage-failures")
async def test_the_writers_backend_is_killed(
    own_server: PostgresServer, on_own_server: Pair, injected: Injected
) -> None:
    """kill -9 of one backend: PostgreSQL ends every other one too, and recovers."""
    pair = on_own_server
    crowd = pair.crowd()
    await crowd.until(100)
    name = str(make_url(str(pair.one.settings["database_url"])).database)
    rows = own_server.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query LIKE 'COMMIT%%' ORDER BY state_change DESC",
        name,
    )
    os.kill(rows[0][0], signal.SIGKILL)
    await until(lambda: "was terminated by signal 9" in own_server.log, "the backend's end")
    injected(1)
    await crowd.until(len(crowd.acknowledged) + 100)
    writing = await serves(pair, pair.one)
    await pair.check(crowd, pair.reader(pair.one if writing else pair.two))


@pytest.mark.thorough
@pytest.mark.holds("database-server", "storage-failures")
async def test_the_way_to_postgresql_is_cut_and_nobody_is_told(tmp_path: Path, injected: Injected) -> None:
    """The server in a namespace, reached over a cable with TLS that proves its name; the cable is pulled."""
    if missing():
        pytest.skip(missing())
    with namespace("vigil-database", cables=1, first=7) as place:
        (cable,) = place.cables
        inside = ("ip", "netns", "exec", place.name)
        with PostgresServer.running(inside=inside) as server:
            issuer = server.prove_itself(cable.there_address)
            server.stop()
            server.start(listen_addresses="*", ssl="on")
            name = str(make_url(server.create()).database)
            url = f"postgresql://vigil@{cable.there_address}:5432/{name}?sslmode=verify-full&sslrootcert={issuer}"
            pair = Pair(tmp_path, database_url=url)
            await pair.start()
            try:
                crowd = pair.crowd()
                await crowd.until(100)
                before = sessions(server, name)
                cable.pull()
                assert not cable.is_up
                acknowledged = len(crowd.acknowledged)
                await asyncio.sleep(2.0)
                assert len(crowd.acknowledged) <= acknowledged + WRITERS
                # The server still believes in every connection: nobody was told.
                assert sessions(server, name) >= before > 0
                injected(1)
                # Both ends find out by themselves, with the cable still out.
                await until(lambda: sessions(server, name) == 0, "the server giving the sessions up")
                cable.plug()
                await crowd.until(len(crowd.acknowledged) + 100)
                writing = await serves(pair, pair.one)
                await pair.check(crowd, pair.reader(pair.one if writing else pair.two))
            finally:
                await pair.close()


def sessions(server: PostgresServer, name: str) -> int:
    rows = server.query("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", name)
    return int(rows[0][0])
