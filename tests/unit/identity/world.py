"""An identity service on a loopback port over a real database, people who call it, and devices on a bench."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from tests.support.pki import Credential, Manufacturer, TestPki
from vigil.api.evidence.v1.evidence_pb2 import AppendItem
from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.api.identity.v1 import identity_pb2_grpc
from vigil.core import keys
from vigil.core.certificates import make_request
from vigil.core.clock import SystemClock
from vigil.core.keys import key_thumbprint, new_private_key
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason, Refused
from vigil.feed import FeedServicer, Outbox
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool
from vigil.identity import domain, store
from vigil.identity.__main__ import GRACE_METHODS, servicers
from vigil.identity.ca import CertificateAuthority
from vigil.identity.ports import Ports
from vigil.identity.service import IdentityService
from vigil.identity.trust import Trust
from vigil.rpc.channel import Channels
from vigil.rpc.options import StreamSettings
from vigil.rpc.server import GrpcServer
from vigil.rpc.status import translated
from vigil.storage import open_database

T = TypeVar("T")
MODEL = "aria-3000"
HOSPITAL, CLINIC = "hospital", "clinic"


class SteppedClock(SystemClock):
    """The machine's clocks, with the wall clock ahead by ``ahead`` ms."""

    def __init__(self) -> None:
        self.ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead


class Caller:
    """A client with its own certificate, and a stub for every contract."""

    def __init__(self, credential: Credential, channels: Channels, address: str) -> None:
        channel = channels.service(address, "identity")
        self.credential = credential
        self.id = credential.identity.id
        self.registry: Any = identity_pb2_grpc.RegistryServiceStub(channel)
        self.certificates: Any = identity_pb2_grpc.CertificateServiceStub(channel)
        self.enrolment: Any = identity_pb2_grpc.EnrolmentServiceStub(channel)
        self.devices: Any = identity_pb2_grpc.DeviceServiceStub(channel)
        self.feed: Any = feed_pb2_grpc.FeedServiceStub(channel)

    async def call(self, method: str, request: Any) -> Any:
        """Call a method by its name, which no two of the contracts share."""
        for stub in (self.registry, self.certificates, self.enrolment, self.devices):
            if hasattr(stub, method):
                return await translated(getattr(stub, method)(request, timeout=20))
        raise AssertionError(method)

    async def refusal(self, method: str, request: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.call(method, request)
        return caught.value

    async def reason(self, method: str, request: Any) -> Reason:
        return (await self.refusal(method, request)).reason

    def scribe(self, clock: SystemClock) -> Scribe:
        return Scribe(
            signer=self.credential.signer,
            issuer=self.credential.issuer_name,
            clock=clock,
            entropy=os.urandom,
            numbered=False,
        )


class Bench:
    """A device on the bench: its three keys, and the voucher that came with it."""

    def __init__(self, maker: Manufacturer, serial: str, *, identity_key: Any = None) -> None:
        self.identity_key = identity_key or new_private_key()
        self.attestation_key = new_private_key()
        self.tls_key = new_private_key()
        self.thumbprint = key_thumbprint(self.identity_key.public_key())
        self.device_id = domain.device_id(self.thumbprint)
        self.udi = f"(01)09504000059118(21){serial}"
        self.voucher = self.vouched(maker).data

    def vouched(self, maker: Manufacturer, clock: Any = None, **changed: Any) -> Statement[bodies.Voucher]:
        values = {"udi": self.udi, "model": MODEL, "identity_key": self.thumbprint} | changed
        scribe = Scribe(
            signer=maker.signer("voucher"),
            issuer=maker.credential("voucher").issuer_name,
            clock=clock or SystemClock(),
            entropy=os.urandom,
            numbered=False,
        )
        return scribe.sign(bodies.Voucher(**values), subject=f"device/{self.device_id}")

    def possession(self, nonce: bytes, /, **changed: Any) -> pb.DevicePossession:
        tls = changed.pop("tls", make_request(self.tls_key).decode())
        attestation = changed.pop("attestation", make_request(self.attestation_key).decode())
        signing = changed.pop("signing", self.identity_key)
        message = domain.possession_message(nonce, tls, attestation)
        point = signing.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        values = {
            "nonce": nonce,
            "identity_public_key": point,
            "tls_csr_pem": tls,
            "attestation_csr_pem": attestation,
            "signature": keys.sign(signing, message),
        }
        return pb.DevicePossession(**{**values, **changed})


@dataclass
class World:
    pki: TestPki
    maker: Manufacturer
    folder: Path
    clock: SteppedClock = field(default_factory=SteppedClock)
    closing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def start(self) -> "World":
        self.database = open_database(
            self.folder / "identity.db", metadata=store.METADATA, migrations=store.MIGRATIONS
        )
        channels = self._channels(self.pki.service("identity"))
        self.ports = Ports(
            database=self.database,
            outbox=Outbox(self.database),
            spool=EvidenceSpool(
                database=self.database,
                appender=EvidenceAppender(
                    channel=channels.service("127.0.0.1:1", "evidence"), entropy=os.urandom
                ),
                entropy=os.urandom,
            ),
            authority=CertificateAuthority.load(
                self.pki.directory / "pki", clock=self.clock, entropy=os.urandom
            ),
            trust=Trust(self.pki.directory / "pki"),
            clock=self.clock,
            entropy=os.urandom,
            time_zones=frozenset({"UTC", "Europe/Berlin"}),
        )
        self.service = IdentityService(self.ports)
        await self.service.registry.begin()
        self.server = GrpcServer(
            role="identity",
            tls=self.pki.service("identity").tls_files,
            clock=self.clock,
            listen="127.0.0.1:0",
            servicers=servicers(self.service, FeedServicer(self.ports.outbox, self.clock, poll=3600.0)),
            grace_methods=GRACE_METHODS,
            settings=StreamSettings(sweep_seconds=60),
        )
        self.address = f"127.0.0.1:{await self.server.start()}"
        self._people: dict[Any, Caller] = {}
        return self

    async def stop(self) -> None:
        for close in self.closing:
            await close()
        self.closing.clear()
        await self.server.stop(0.1)
        self.database.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def furnish(self) -> None:
        """Two organizations with their sites, as the operator's admin makes them."""
        for organization, sites in ((HOSPITAL, ("site-1", "site-2")), (CLINIC, ("clinic-1",))):
            await self.admin().call(
                "CreateOrganization",
                pb.CreateOrganizationRequest(
                    organization=pb.Organization(organization_id=organization, display_name=organization)
                ),
            )
            for site in sites:
                await self.admin().call("CreateSite", site_request(organization, site))

    def caller(self, credential: Credential) -> Caller:
        return Caller(credential, self._channels(credential), self.address)

    def admin(self, number: int = 1) -> Caller:
        return self._once(("admin", number), lambda: self.pki.admin(number))

    def person(self, person_id: str, *roles: str, **values: Any) -> Caller:
        key = (person_id, roles, tuple(sorted(values.items())))
        return self._once(key, lambda: self.pki.person(person_id, *roles, **values))

    def gateway(self, gateway_id: str = "gateway-1", **values: Any) -> Caller:
        key = (gateway_id, tuple(sorted(values.items())))
        return self._once(key, lambda: self.pki.gateway(gateway_id, **values))

    def enroller(self, **values: Any) -> Caller:
        return self.person("p-enroller", "enroller", **values)

    def approver(self) -> Caller:
        return self.person("p-approver", "approver")

    async def begun(self, bench: Bench, *, site: str = "site-1", tag: str = "") -> pb.StartEnrolmentResponse:
        made: pb.StartEnrolmentResponse = await self.enroller(sites=(site,)).call(
            "StartEnrolment", start_request(bench, site=site, tag=tag)
        )
        return made

    async def enrolled(self, serial: str, *, site: str = "site-1", tag: str = "") -> Bench:
        bench = Bench(self.maker, serial)
        begun = await self.begun(bench, site=site, tag=tag)
        await self.enroller(sites=(site,)).call("CompleteEnrolment", complete_request(bench, begun))
        return bench

    async def active(self, serial: str, **values: Any) -> Bench:
        bench = await self.enrolled(serial, **values)
        site = values.get("site", "site-1")
        approver = self.person("p-approver", "approver", sites=(site,))
        await approver.call("ActivateDevice", pb.ActivateDeviceRequest(device_id=bench.device_id))
        return bench

    async def spooled(self) -> list[AppendItem]:
        """What waits for the log, oldest first."""
        table = store.SPOOL
        query = select(table.c.item).order_by(table.c.sequence)
        rows = await self.database.read(lambda connection: list(connection.execute(query).scalars()))
        return [AppendItem.FromString(row) for row in rows]

    async def told(self, kind: str) -> dict[str, tuple[str, bytes]]:
        """The feed's state: key to site and value."""
        table = store.FEED.state
        query = select(table).where(table.c.kind == kind)
        rows = await self.database.read(lambda connection: connection.execute(query).all())
        return {row.key: (row.scope_site, row.value) for row in rows}

    def _once(self, key: Any, make: Callable[[], Credential]) -> Caller:
        if key not in self._people:
            self._people[key] = self.caller(make())
        return self._people[key]

    def _channels(self, credential: Credential) -> Channels:
        channels = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self.closing.append(channels.close)
        return channels


def site_request(organization: str, site: str, time_zone: str = "UTC") -> pb.CreateSiteRequest:
    return pb.CreateSiteRequest(
        site=pb.Site(site_id=site, organization_id=organization, display_name=site, time_zone=time_zone)
    )


def start_request(
    bench: Bench, *, site: str = "site-1", organization: str = HOSPITAL, tag: str = "", voucher: bytes = b""
) -> pb.StartEnrolmentRequest:
    return pb.StartEnrolmentRequest(
        voucher=voucher or bench.voucher, organization_id=organization, site_id=site, asset_tag=tag
    )


def complete_request(
    bench: Bench, begun: pb.StartEnrolmentResponse, **changed: Any
) -> pb.CompleteEnrolmentRequest:
    return pb.CompleteEnrolmentRequest(
        enrolment_id=begun.enrolment_id, possession=bench.possession(begun.nonce, **changed)
    )


def csr() -> str:
    """A signing request for a new key."""
    return make_request(new_private_key()).decode()
