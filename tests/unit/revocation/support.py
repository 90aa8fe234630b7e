"""A revocation service with its neighbours, in this process, over real loopback mTLS."""

import asyncio
import io
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection, MetaData

from tests.support.pki import TRUST_DOMAIN, Credential, TestPki
from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.certificates import EVERY
from vigil.core.clock import Clock, SystemClock
from vigil.core.revocations import Entry, Lease, PathStep, RevocationState, answers
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.errors import Refused
from vigil.evidence.__main__ import serve as serve_evidence
from vigil.evidence.config import EvidenceConfig
from vigil.feed import FeedServicer, Outbox, tables
from vigil.revocation.__main__ import serve as serve_revocation
from vigil.revocation.config import EdgeConfig, RevocationConfig
from vigil.revocation.edge import serve as serve_edge
from vigil.revocation.rooted import main as sign_rooted
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.service_main import Process
from vigil.rpc.status import translated
from vigil.run.redis_server import find_server, server_arguments
from vigil.storage import Database, open_database

FEED_METADATA = MetaData()
tables(FEED_METADATA)
FEED_MIGRATIONS = Path(__file__).parents[1] / "feed" / "migrations"
FIRMWARE = bytes(range(32))
PUMP = "dev-aaaaaaaaaaaaaaaa"


async def until(condition: Callable[[], Any], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions over other tasks' state
            await asyncio.sleep(0.005)


def scribe_of(credential: Credential, clock: Clock | None = None) -> Scribe:
    return credential.scribe(clock or SystemClock())


def revocation(
    credential: Credential,
    *ids: str,
    scope: bodies.Scope = bodies.Scope.DEVICE,
    effect: bodies.RevocationEffect = bodies.RevocationEffect.DENY,
    clock: Clock | None = None,
    **values: Any,
) -> Statement[bodies.Revocation]:
    body = bodies.Revocation(
        scope=scope, ids=ids, effect=effect, reason=bodies.RevocationReason.COMPROMISE, **values
    )
    return scribe_of(credential, clock).sign(body, subject=f"{scope}/{ids[0]}")


def reinstatement(
    credential: Credential, revoked: Statement[bodies.Revocation], *ids: str, reason: str = "a mistake"
) -> bytes:
    body = bodies.Reinstatement(
        revocation=revoked.digest, scope=revoked.body.scope, ids=ids or revoked.body.ids, reason=reason
    )
    return scribe_of(credential).sign(body, subject=f"{revoked.body.scope}/{revoked.body.ids[0]}").data


def signed_era(world: "World", monkeypatch: pytest.MonkeyPatch, said: str) -> dict[str, bytes]:
    """The ceremony: the root ("root") and two administrators ("one", "two") sign the same words."""
    first = world.pki.first
    one, two = world.pki.admin(1).tls_files, world.pki.admin(2).tls_files
    signed = {}
    for name, certificate, key, *others in (
        (
            "root",
            first.root_directory / "root.pem",
            first.root_directory / "root.key",
            f"--passphrase-file={first.passphrase_file}",
        ),
        ("one", one.certificate, one.key),
        ("two", two.certificate, two.key),
    ):
        with monkeypatch.context() as patched:
            out = io.TextIOWrapper(io.BytesIO())
            patched.setattr(sys, "stdout", out)
            trust = f"--trust={world.pki.trust}"
            words = [f"--certificate={certificate}", f"--key={key}", trust, *others, "era", *said.split()]
            sign_rooted(words)
            out.flush()
            signed[name] = out.buffer.getvalue()  # type: ignore[attr-defined]
    return signed


class Owner:
    """`identity` or `release`, as far as their feeds are concerned."""

    def __init__(self, pki: TestPki, role: str, folder: Path) -> None:
        self.role = role
        self.database: Database = open_database(
            folder / f"{role}-feed.db", metadata=FEED_METADATA, migrations=FEED_MIGRATIONS
        )
        self.outbox = Outbox(self.database)
        self._tls = pki.service(role).tls_files
        self.restart(0)

    def restart(self, port: int) -> None:
        """Another server, to be started at a port; the one before was stopped."""
        self.server = GrpcServer(
            role=self.role,
            tls=self._tls,
            clock=SystemClock(),
            listen=f"127.0.0.1:{port}",
            servicers=[
                (
                    feed_pb2_grpc.add_FeedServiceServicer_to_server,
                    FeedServicer(self.outbox, SystemClock(), poll=0.02),
                    "vigil.api.feed.v1.FeedService",
                )
            ],
        )

    async def put(self, *rows: tuple[str, str, Any]) -> None:
        def run(connection: Connection) -> None:
            for kind, key, message in rows:
                self.outbox.put(connection, kind, key, message.SerializeToString())

        await self.database.write(run)


class Running:
    """One service under this event loop."""

    def __init__(self, role: str, work: Callable[[Process], Any], clock: Clock | None) -> None:
        self.process = Process(role=role, ready_fd=None, clock=clock)
        self.port = 0
        ready = self.process.ready

        def noted(port: int) -> None:
            self.port = port
            ready(port)

        self.process.ready = noted  # type: ignore[method-assign]
        self.task = asyncio.create_task(work(self.process))

    async def ready(self) -> "Running":
        await until(lambda: self.port or self.task.done())
        if self.task.done():
            self.task.result()
        return self

    async def stop(self) -> None:
        self.process.stop()
        await self.task
        await self.process.end()


class World:
    """Identity's and release's feeds, evidence, revocation; edges on demand."""

    def __init__(self, folder: Path, *, pki: TestPki | None = None, clock: Clock | None = None) -> None:
        self.folder = folder
        self.pki = pki or TestPki(folder)
        self.clock = clock
        self.identity = Owner(self.pki, "identity", folder)
        self.release = Owner(self.pki, "release", folder)
        self.redis_url = ""
        self.ports: dict[str, int] = {}
        self.running: dict[str, Running] = {}
        self._channels: list[Channels] = []
        self.operator = self.pki.admin(1)
        self.second = self.pki.admin(2)

    async def start(self, *, evidence: bool = True, revocation: bool = True) -> "World":
        self.ports["identity"] = await self.identity.server.start()
        self.ports["release"] = await self.release.server.start()
        await self.seed()
        self.ports["evidence"] = 1
        if evidence:
            await self.start_evidence()
        if revocation:
            await self.start_revocation()
        return self

    async def seed(self) -> None:
        active = identity_pb2.PRINCIPAL_STATE_ACTIVE
        people = [
            ("p-admin-1", "operator", ["admin"], [EVERY]),
            ("p-admin-2", "operator", ["admin"], [EVERY]),
            ("p-nurse", "hospital", ["technician"], ["site-1"]),
            ("p-recall", "hospital", ["recall"], [EVERY]),
            ("p-stranger", "clinic", ["technician"], ["site-9"]),
        ]
        await self.identity.put(
            *(
                (
                    "principal",
                    name,
                    identity_pb2.Principal(
                        principal_id=name, organization_id=org, roles=roles, site_ids=sites, state=active
                    ),
                )
                for name, org, roles, sites in people
            ),
            (
                "device",
                PUMP,
                identity_pb2.Device(device_id=PUMP, organization_id="hospital", site_id="site-1"),
            ),
            (
                "device",
                "dev-bbbbbbbbbbbbbbbb",
                identity_pb2.Device(
                    device_id="dev-bbbbbbbbbbbbbbbb", organization_id="clinic", site_id="site-9"
                ),
            ),
            (
                "gateway",
                "gateway-1",
                identity_pb2.Gateway(gateway_id="gateway-1", organization_id="hospital", site_id="site-1"),
            ),
        )
        await self.release.put(
            (
                "release",
                FIRMWARE.hex(),
                release_pb2.Release(firmware=FIRMWARE, organization_id="maker"),
            )
        )

    def _base(self, role: str) -> dict[str, Any]:
        tls = self.pki.service(role).tls_files
        return {
            "data_dir": self.folder / role,
            "listen": f"127.0.0.1:{self.ports.get(role, 0)}",
            "trust_domain": TRUST_DOMAIN,
            "certificate": tls.certificate,
            "key": tls.key,
            "trust": tls.trust,
            "peers": {name: f"127.0.0.1:{port}" for name, port in self.ports.items()},
        }

    def revocation_config(self, **values: Any) -> RevocationConfig:
        head = self.pki.signer_credential("head").tls_files
        return RevocationConfig(
            **{
                **self._base("revocation"),
                "signer_certificate": head.certificate,
                "signer_key": head.key,
                "redis_url": self.redis_url,
                **values,
            }
        )

    async def start_evidence(self) -> None:
        recorded = self.pki.signer_credential("recorded").tls_files
        values = {
            **self._base("evidence"),
            "signer_certificate": recorded.certificate,
            "signer_key": recorded.key,
        }
        values["peers"] = {}
        if self.ports["evidence"] == 1:
            values["listen"] = "127.0.0.1:0"
        values["data_dir"].mkdir(exist_ok=True)
        config = EvidenceConfig(**values)
        await self._run("evidence", lambda process: serve_evidence(config, process))

    async def start_revocation(self, **values: Any) -> None:
        config = self.revocation_config(**values)
        await self._run("revocation", lambda process: serve_revocation(config, process))

    async def start_edge(self, name: str = "edge") -> None:
        config = EdgeConfig(
            **{**self._base("edge"), "data_dir": self.folder / name, "redis_url": self.redis_url}
        )
        await self._run(name, lambda process: serve_edge(config, process))

    async def _run(self, name: str, work: Callable[[Process], Any]) -> None:
        self.running[name] = running = Running(name, work, self.clock)
        self.ports[name] = (await running.ready()).port

    async def stop_one(self, name: str) -> None:
        await self.running.pop(name).stop()

    async def stop(self) -> None:
        for channels in self._channels:
            await channels.close()
        for name in reversed(list(self.running)):
            await self.stop_one(name)
        for owner in (self.identity, self.release):
            await owner.server.stop(0)
            owner.database.close()

    def channel(self, who: Credential, role: str = "revocation") -> grpc.aio.Channel:
        channels = Channels(tls=who.tls_files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
        self._channels.append(channels)
        return channels.service(f"127.0.0.1:{self.ports[role]}", role)

    def people(self, who: Credential) -> Any:
        return revocation_pb2_grpc.RevocationServiceStub(self.channel(who))

    def heads(self, who: Credential | None = None) -> Any:
        return revocation_pb2_grpc.HeadServiceStub(self.channel(who or self.pki.service("edge")))

    async def revoke(self, who: Credential, statement: Statement[Any] | bytes) -> Any:
        data = statement if isinstance(statement, bytes) else statement.data
        return await translated(
            self.people(who).Revoke(revocation_pb2.RevokeRequest(revocation=data), timeout=20)
        )

    async def reinstate(self, who: Credential, statements: Sequence[bytes]) -> Any:
        request = revocation_pb2.ReinstateRequest(reinstatements=statements)
        return await translated(self.people(who).Reinstate(request, timeout=20))

    async def head(self, challenge: bytes = bytes(32), **values: Any) -> Any:
        request = revocation_pb2.AnswerChallengesRequest(challenge=challenge, **values)
        return await translated(self.heads().AnswerChallenges(request, timeout=20))


@asynccontextmanager
async def a_world(folder: Path, **values: Any) -> AsyncIterator[World]:
    world = World(folder, **values)
    try:
        yield world
    finally:
        await world.stop()


class Gateway:
    """A gateway as far as revocation is concerned: state, lease and acknowledgements, over a real stream."""

    def __init__(self, world: World, credential: Credential, *, edge: str = "edge") -> None:
        self.world = world
        self.credential = credential
        self.state = RevocationState()
        self.lease = Lease()
        self.heads: list[Statement[bodies.Head]] = []
        self.entries: list[int] = []
        self.ended: BaseException | None = None
        self._pending: dict[int, Entry] = {}
        self._one_write = asyncio.Lock()
        self._clock = SystemClock()
        self._channel = world.channel(credential, edge)
        self.task = asyncio.create_task(self._run())

    def age(self) -> float:
        return self.lease.age(monotonic=self._clock.monotonic())

    async def _run(self) -> None:
        stub: Any = revocation_pb2_grpc.EdgeServiceStub(self._channel)
        self.call = call = stub.Follow()
        start = revocation_pb2.FollowStart(epoch=self.state.epoch, chain=self.state.chain, era=self.state.era)
        try:
            await self.send(start=start)
            asking = asyncio.create_task(self._ask())
            try:
                async for response in call:
                    await self._take(response)
            finally:
                asking.cancel()
        except (grpc.aio.AioRpcError, Refused) as error:
            self.ended = error

    async def send(self, **message: Any) -> None:
        request = revocation_pb2.FollowRequest(gateway_id=self.credential.identity.id, **message)
        async with self._one_write:  # gRPC takes one at a time
            await self.call.write(request)

    async def _ask(self) -> None:
        while True:
            challenge = os.urandom(16)
            self.lease.sent(challenge, monotonic=self._clock.monotonic())
            await self.send(challenge=challenge)
            await asyncio.sleep(0.3)

    async def _take(self, response: revocation_pb2.FollowResponse) -> None:
        if response.WhichOneof("message") == "entries":
            for entry in response.entries.entries:
                self.entries.append(entry.epoch)
                self._pending[entry.epoch] = Entry(entry.epoch, tuple(entry.statements), entry.chain)
            return
        head = read(response.head.head, bodies.Head)
        self.state.advance(
            list(self._pending.values()), head, verifier=self.world.pki.verifier, at=self._clock.now()
        )
        self._pending.clear()
        self.heads.append(head)
        steps = [PathStep(path.index, path.size, tuple(path.path)) for path in response.head.paths]
        for challenge in self.lease.outstanding():
            if answers(head, challenge, steps):
                self.lease.answered(challenge)
                break
        await self.acknowledge()

    async def acknowledge(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "epoch": self.state.epoch,
            "chain": self.state.chain,
            "era": self.state.era,
            "enforced_at": self._clock.now(),
        }
        body = bodies.Acknowledgement(**{**values, **changes})
        signed = scribe_of(self.credential).sign(body, subject=self.credential.issuer_name)
        await self.send(acknowledgement=signed.data)

    def effect(self, name: str, scope: bodies.Scope = bodies.Scope.DEVICE) -> Any:
        return self.state.effect(scope, name, at=self._clock.now())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class RedisServer:
    """A real server on a Unix socket."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vigil-redis-"))
        self.url = f"unix://{self.folder}/redis.sock"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "RedisServer":
        self._process = await asyncio.create_subprocess_exec(
            *server_arguments(find_server(), self.folder), stdout=asyncio.subprocess.DEVNULL
        )
        await until((self.folder / "redis.sock").exists)
        return self

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()
        shutil.rmtree(self.folder)
