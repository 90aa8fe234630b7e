"""A trust domain, made once, and servers and channels for one test each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.pki import TestPki
from tests.unit.rpc.probe import SERVICE, ProbeServicer, ProbeStub, add_to_server
from vigil.core.certificates import Identity, Kind
from vigil.core.clock import SystemClock
from vigil.errors import Reason
from vigil.rpc.channel import Channels
from vigil.rpc.options import StreamSettings
from vigil.rpc.server import GrpcServer
from vigil.rpc.tls import TlsFiles


class SteppedClock(SystemClock):
    """The machine's clocks, with the wall clock ahead by ``ahead`` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> int:
        return super().now() + round(self.ahead * 1000)


@dataclass
class Caller:
    """A client with its own certificate."""

    identity: Identity
    files: TlsFiles
    channels: Channels
    stub: Any


@dataclass
class World:
    """One server and whoever calls it."""

    pki: TestPki
    clock: SteppedClock
    servicer: ProbeServicer
    server: GrpcServer
    port: int
    revoked: dict[bytes, Reason]
    closing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def caller(self, credential: Any, *, role: str = "policy") -> Caller:
        files = tls_files(credential)
        channels = Channels(tls=files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self.closing.append(channels.close)
        return Caller(credential.identity, files, channels, ProbeStub(channels.service(self.address, role)))

    def gateway(self, gateway_id: str = "gateway-1", **values: Any) -> Caller:
        return self.caller(self.pki.issue(Kind.GATEWAY, gateway_id, **values))

    def person(self, *roles: str, **values: Any) -> Caller:
        return self.caller(self.pki.issue(Kind.PERSON, "p-someone", roles=roles, **values))

    def revoke(self, caller: Caller, reason: Reason = Reason.CREDENTIAL_REVOKED) -> None:
        self.revoked[caller.identity.thumbprint] = reason


def tls_files(credential: Any) -> TlsFiles:
    paths = credential.tls_files
    return TlsFiles(paths.certificate, paths.key, paths.trust)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("rpc-pki"))


Serve = Callable[..., Awaitable[World]]


@pytest.fixture
async def serve(pki: TestPki) -> AsyncIterator[Serve]:
    """Start a server for the probe contract; keywords go to GrpcServer."""
    worlds: list[World] = []

    async def start(**values: Any) -> World:
        clock = SteppedClock()
        servicer = ProbeServicer()
        revoked: dict[bytes, Reason] = {}
        server = GrpcServer(
            role="policy",
            tls=values.pop("tls", None) or tls_files(pki.service("policy")),
            clock=clock,
            listen=values.pop("listen", "127.0.0.1:0"),
            servicers=[(add_to_server, servicer, SERVICE)],
            revocation_check=lambda caller: revoked.get(caller.thumbprint),
            settings=values.pop("settings", None) or StreamSettings(sweep_seconds=0.05),
            **values,
        )
        world = World(pki, clock, servicer, server, await server.start(), revoked)
        worlds.append(world)
        return world

    yield start
    for world in worlds:
        await asyncio.gather(*(close() for close in world.closing))
        await world.server.stop(0.2)


@pytest.fixture
async def world(serve: Serve) -> World:
    return await serve()
