"""gRPC messages through the servicers: a real server on loopback mTLS over a real database, wire bytes as they come.

The first byte chooses the method and who calls it, always somebody whom the contract admits. What is refused is
refused with a reason of ours, and the database has not been written.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.descriptor_pool import Default

from tests.fuzz.generator import Generator
from tests.fuzz.harness import Harness, Run, expect
from tests.fuzz.world import folder, live
from tests.support.pki import Credential, TestPki
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.errors import Reason
from vigil.rpc.access import CallerRule, access_of
from vigil.rpc.channel import Channels
from vigil.rpc.status import from_rpc_error

PATIENCE_S: Final = 120.0
IDENTITY: Final = (
    "vigil.api.identity.v1.RegistryService",
    "vigil.api.identity.v1.CertificateService",
    "vigil.api.identity.v1.EnrolmentService",
    "vigil.api.identity.v1.DeviceService",
)
RELEASE: Final = ("vigil.api.release.v1.ReleaseService", "vigil.api.release.v1.ArtifactService")


class Method:
    """A method of a server under test."""

    def __init__(self, descriptor: Any, rule: CallerRule) -> None:
        self.descriptor, self.rule = descriptor, rule
        self.path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"

    async def call(self, channel: grpc.aio.Channel, data: bytes) -> list[bytes]:
        """Send one message of whatever bytes; answers the first answers, at most two."""
        asked, answered = self.descriptor.client_streaming, self.descriptor.server_streaming
        make = getattr(channel, f"{'stream' if asked else 'unary'}_{'stream' if answered else 'unary'}")
        call = make(self.path)(_once(data) if asked else data, timeout=PATIENCE_S)
        if not answered:
            return [await call]
        found: list[bytes] = []
        async for answer in call:
            found.append(answer)
            if len(found) == 2:
                break
        call.cancel()
        return found


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def methods_of(services: Sequence[str]) -> tuple[Method, ...]:
    """Each method once for each rule that admits somebody."""
    return tuple(
        Method(descriptor, rule)
        for service in services
        for descriptor in Default().FindServiceByName(service).methods
        for rule in access_of(service)[f"/{service}/{descriptor.name}"].callers or ()
    )


def credential_of(pki: TestPki, rule: CallerRule) -> Credential:
    """Whom a rule admits."""
    match rule.kind:
        case Kind.SERVICE:
            return pki.service(rule.roles[0] if rule.roles else "policy")
        case Kind.GATEWAY:
            return pki.gateway()
        case Kind.PERSON:
            role = rule.roles[0] if rule.roles else "technician"
            return pki.person(f"p-{role}", role, organization="operator", sites=("*",))
        case _:
            return pki.device()


class Served:
    """A server with the channels of everybody who may call it, on an event loop of this thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, role: str, database: Path) -> None:
        self._loop, self._address, self._role = loop, address, role
        self._channels: dict[Any, grpc.aio.Channel] = {}
        self._reader = sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)

    def channel(self, rule: CallerRule) -> grpc.aio.Channel:
        key = rule.kind, rule.roles[:1]
        if key not in self._channels:
            files = credential_of(live(), rule).tls_files
            channels = Channels(tls=files, trust_domain=live().trust_domain, clock=SystemClock())
            self._channels[key] = channels.service(self._address, self._role)
        return self._channels[key]

    def written(self) -> int:
        """Changes whenever anybody commits a change to the database (SQLite, PRAGMA data_version)."""
        return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def call(self, method: Method, data: bytes) -> bool:
        before = self.written()
        try:
            self._loop.run_until_complete(method.call(self.channel(method.rule), data))
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            known = error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
            expect(known, f"{method.path} failed: {error.code()} {error.details()}")
            expect(refusal.reason is not Reason.INTERNAL, f"{method.path} failed inside: {refusal}")
            trailers = dict(error.trailing_metadata() or ())
            expect(
                "grpc-status-details-bin" in trailers,
                f"{method.path} refused without a reason: {error.details()}",
            )
            expect(self.written() == before, f"{method.path} refused an input and wrote")
            return False
        return True


def _run(start: Callable[[asyncio.AbstractEventLoop], Served], services: Sequence[str]) -> Run:
    loop = asyncio.new_event_loop()
    served = start(loop)
    methods = methods_of(services)

    def run(data: bytes) -> bool:
        if not data:
            return False
        return served.call(methods[data[0] % len(methods)], data[1:])

    return run


def _seeds(services: Sequence[str]) -> Iterator[bytes]:
    """For each method a message with every field."""
    for place, method in enumerate(methods_of(services)):
        for seed in range(2):
            message = Generator(seed).message(method.descriptor.input_type, full=True)
            yield bytes((place % 256,)) + message.SerializeToString()
        yield bytes((place % 256,))


def _identity(loop: asyncio.AbstractEventLoop) -> Served:
    from tests.unit.identity.world import World

    home = folder() / "identity"
    home.mkdir()

    async def begin() -> World:
        world = await World(live(), live().manufacturer(), home).start()
        await world.furnish()
        await world.active("SN-1")
        return world

    world = loop.run_until_complete(begin())
    return Served(loop, world.address, "identity", home / "identity.db")


def _release(loop: asyncio.AbstractEventLoop) -> Served:
    from tests.unit.revocation.support import Running
    from vigil.release.__main__ import serve
    from vigil.release.config import ReleaseConfig

    home = folder() / "release"
    home.mkdir()
    tls = live().service("release").tls_files
    config = ReleaseConfig(
        data_dir=home,
        listen="127.0.0.1:0",
        trust_domain=live().trust_domain,
        certificate=tls.certificate,
        key=tls.key,
        trust=tls.trust,
        peers={"evidence": "127.0.0.1:1"},
    )

    async def begin() -> int:
        running = Running("release", lambda process: serve(config, process), None)
        return (await running.ready()).port

    return Served(loop, f"127.0.0.1:{loop.run_until_complete(begin())}", "release", config.database)


HARNESSES: Final = (
    Harness(
        name="identity-servicers",
        reads="every method of identity, over loopback mTLS",
        prepare=lambda: _run(_identity, IDENTITY),
        seeds=lambda: _seeds(IDENTITY),
    ),
    Harness(
        name="release-servicers",
        reads="every method of release, over loopback mTLS",
        prepare=lambda: _run(_release, RELEASE),
        seeds=lambda: _seeds(RELEASE),
    ),
)
