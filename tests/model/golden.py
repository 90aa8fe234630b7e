"""The world as every schedule finds it: made once, by the calls that anybody would make, with nothing failing.

People and certificates by the real ceremony, everything else through the services' own contracts, in virtual time.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from tests.model.loop import SimLoop
from tests.model.world import DIALS, EPOCH_MS, GATEWAYS, PUMPS, SERVICES, World, address
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.api.release.v1 import release_pb2, release_pb2_grpc
from vigil.core.baselines import content_of_settings
from vigil.core.certificates import make_request, store_pair
from vigil.core.clock import ManualClock
from vigil.core.digest import sha256
from vigil.core.dsse import in_toto_statement, make_dsse
from vigil.core.keys import new_private_key
from vigil.core.profiles import profile_from_json
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement
from vigil.device.convert import certificates, possession_to_proto
from vigil.device.factory import FirstBuild, make_pump
from vigil.errors import Reason, Refused, refused
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, read_bundle
from vigil.policy.engine.wasm import WasmEngine
from vigil.rpc.status import translated

MAKER, MODEL = "maker", "aria-3000"
DATA = Path(__file__).parents[2] / "services" / "vigil" / "demo" / "data"
HOUR_MS = 3_600_000
FIRMWARE = b"aria firmware 1.6.3\n" * 50
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Golden:
    """What a schedule starts from."""

    world: World
    people: dict[str, Credential]
    devices: dict[str, str]
    """Device ids by pump."""


def people_of(pki: TestPki) -> dict[str, Credential]:
    """Everybody who acts, by a short name."""
    return {
        "tess": pki.person("p-tess", "technician"),
        "theo": pki.person("p-theo", "technician"),
        "sam": pki.person("p-sam", "safety"),
        "sue": pki.person("p-sue", "safety"),
        "abe": pki.person("p-abe", "approver"),
        "rita": pki.person("p-rita", "recall", organization="operator", sites=("*",)),
        "ruth": pki.person("p-ruth", "recall", organization="operator", sites=("*",)),
        "erin": pki.person("p-erin", "enroller"),
        "pia": pki.person("p-pia", "publisher", organization=MAKER),
        "bea": pki.person("p-bea", "baseline-signer"),
    }


def build(folder: Path) -> Golden:
    """Make it. It stands still, with every process up and every pump attested, and goes on in a schedule."""
    pki = TestPki(folder, clock=ManualClock(now=EPOCH_MS))
    maker = pki.manufacturer(MAKER)
    people = people_of(pki)
    engine = WasmEngine(read_bundle(DEFAULT_BUNDLE.read_bytes()))
    loop = SimLoop(Random(0))
    world = World(loop=loop, folder=folder, images={}, pki=pki, engine=engine, seed=0)
    made = _Maker(world, people, maker)
    loop.run_until_complete(made.everything())
    return Golden(world, people, made.devices)


class _Maker:
    def __init__(self, world: World, people: dict[str, Credential], maker: Any) -> None:
        self.world = world
        self.people = people
        self.maker = maker
        self.node = world.loop.world
        self.devices: dict[str, str] = {}
        world.host("world")

    async def everything(self) -> None:
        for host in SERVICES:
            self.world.start(host)
        await self._until(lambda: set(SERVICES) <= set(self.world.up))
        await self._register()
        await self._publish()
        for pump in PUMPS:
            await self._enrol(pump)
        for gateway in GATEWAYS:
            self.world.start(gateway)
        await self._attested()

    async def _until(self, there: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not there():  # noqa: ASYNC110 - what is looked at knows no events
                await asyncio.sleep(0.05)

    def _stub(self, stub: Any, who: Credential, host: str) -> Any:
        return stub(self.world.channel(self.node, who, host))

    def _sign(
        self, credential: Credential, body: Any, subject: str, *, numbered: bool = False
    ) -> Statement[Any]:
        scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.world.clocks["world"],
            entropy=os.urandom,
            numbered=numbered,
        )
        return scribe.sign(body, subject=subject)

    async def _again(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Until it is not refused any more: trust and rows spread in seconds."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await call()
                except Refused:
                    await asyncio.sleep(0.5)

    async def _register(self) -> None:
        registry = self._stub(identity_pb2_grpc.RegistryServiceStub, self.world.pki.admin(), "identity")
        root = self.maker.root.public_bytes(Encoding.PEM).decode()
        for organization in (
            identity_pb2.Organization(organization_id=ORGANIZATION, display_name="Hospital"),
            identity_pb2.Organization(
                organization_id=MAKER, display_name="Maker", manufacturer_root_pem=root
            ),
        ):
            request = identity_pb2.CreateOrganizationRequest(organization=organization)
            await translated(registry.CreateOrganization(request, timeout=20))
        site = identity_pb2.Site(
            site_id=SITE, organization_id=ORGANIZATION, display_name="Main", time_zone="Europe/Berlin"
        )
        await translated(registry.CreateSite(identity_pb2.CreateSiteRequest(site=site), timeout=20))
        for gateway_id in GATEWAYS:
            key = new_private_key()
            gateway = identity_pb2.Gateway(
                gateway_id=gateway_id,
                organization_id=ORGANIZATION,
                site_id=SITE,
                address=address(gateway_id),
            )
            request = identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode())
            made = await translated(registry.CreateGateway(request, timeout=20))
            home = self.world.folder / f"{gateway_id}-home"
            home.mkdir()
            pem = made.certificate.certificate_pem.encode()
            store_pair(home / "tls.pem", home / "tls.key", chain_pem=pem, private_key=key)
            (home / "trust.json").write_text(made.certificate.trust_json)

    async def _publish(self) -> None:
        pia, bea = self.people["pia"], self.people["bea"]
        releases = self._stub(release_pb2_grpc.ReleaseServiceStub, pia, "release")
        profile = profile_from_json((DATA / "pump-profile.json").read_text())
        statement = self._sign(self.maker.credential("profile"), profile, f"model/{MODEL}")
        model = release_pb2.PublishModelRequest(profile=statement.data)
        await self._again(lambda: translated(releases.PublishModel(model, timeout=20)))
        artifacts = self._stub(release_pb2_grpc.ArtifactServiceStub, pia, "release")
        await translated(artifacts.UploadArtifact(_pieces(FIRMWARE), timeout=20))
        await translated(releases.PublishRelease(self._release(), timeout=20))
        content = content_of_settings((DATA / "baseline-configuration.json").read_text())
        now = self.world.clocks["world"].now()
        body = b.Baseline(
            baseline_kind=b.BaselineKind.CONFIGURATION,
            name="general-ward",
            site=SITE,
            organization=ORGANIZATION,
            content=sha256(content),
            size=len(content),
            models=(MODEL,),
            valid_from=now,
            valid_to=now + 24 * HOUR_MS,
        )
        baseline = release_pb2.PublishBaselineRequest(
            baseline=self._sign(bea, body, f"site/{SITE}").data, content=content
        )
        site = self._stub(release_pb2_grpc.ReleaseServiceStub, bea, "release")
        await translated(site.PublishBaseline(baseline, timeout=20))

    def _release(self) -> release_pb2.PublishReleaseRequest:
        sbom = (DATA / "proton-bridge-v1.6.3.cdx.json").read_bytes()
        body = b.Release(
            model=MODEL,
            version="1.6.3",
            firmware=sha256(FIRMWARE),
            size=len(FIRMWARE),
            security_version=1,
            sbom=sha256(sbom),
            udi_di="09504000059118",
        )
        attested = in_toto_statement(name="1.6.3.bin", sha256=sha256(FIRMWARE), predicate=json.loads(sbom))
        credential = self.maker.credential("release")
        return release_pb2.PublishReleaseRequest(
            release=self._sign(credential, body, f"build/{sha256(FIRMWARE).hex()}").data,
            sbom_attestation=make_dsse(attested, signer=credential.signer),
            sbom=sbom,
        )

    async def _enrol(self, pump: str) -> None:
        made = make_pump(
            self.world.folder / "pumps" / pump,
            udi=f"(01)09504000059118(21)SN-000{pump[-1]}",
            model=MODEL,
            manufacturer=MAKER,
            firmware=FirstBuild(
                image=FIRMWARE,
                version="1.6.3",
                security_version=1,
                sbom=sha256((DATA / "proton-bridge-v1.6.3.cdx.json").read_bytes()),
            ),
            settings=json.loads((DATA / "baseline-configuration.json").read_text())["settings"],
            clock=self.world.clocks[pump],
            entropy=os.urandom,
        )
        self._take_flash(pump)
        self.world.start(pump)
        await self._until(lambda: pump in self.world.runners)
        runner = self.world.runners[pump]
        await runner.started()
        enrolment = self._stub(identity_pb2_grpc.EnrolmentServiceStub, self.people["erin"], "identity")
        body = b.Voucher(udi=made.udi, model=made.model, identity_key=made.identity_key)
        voucher = self._sign(self.maker.credential("voucher"), body, f"udi/{made.udi}")
        begin = identity_pb2.StartEnrolmentRequest(
            voucher=voucher.data, organization_id=ORGANIZATION, site_id=SITE, asset_tag=pump
        )
        started = await self._again(lambda: translated(enrolment.StartEnrolment(begin, timeout=20)))
        proof = possession_to_proto(runner.possession(started.nonce))
        complete = identity_pb2.CompleteEnrolmentRequest(enrolment_id=started.enrolment_id, possession=proof)
        completed = await translated(enrolment.CompleteEnrolment(complete, timeout=20))
        self.devices[pump] = completed.device.device_id
        runner.install(certificates(completed.certificates))
        activator = self._stub(identity_pb2_grpc.EnrolmentServiceStub, self.people["abe"], "identity")
        activate = identity_pb2.ActivateDeviceRequest(device_id=self.devices[pump])
        await translated(activator.ActivateDevice(activate, timeout=20))

    def _take_flash(self, pump: str) -> None:
        """The factory wrote a file; from here on the pump lives on a simulated flash."""
        import sqlite3

        path = self.world.folder / "pumps" / pump / "pump.db"
        with sqlite3.connect(path) as source:
            source.execute("PRAGMA journal_mode = DELETE").fetchall()
            self.world.disks[pump].connection.deserialize(source.serialize())
        source.close()

    async def _attested(self) -> None:
        """Until every pump is connected and called affirming at its gateway, and leases run."""
        tess = self.people["tess"]
        for pump, device in self.devices.items():
            devices = self._stub(gateway_pb2_grpc.GatewayDeviceServiceStub, tess, DIALS[pump])
            request = gateway_pb2.GetConnectedDeviceRequest(device_id=device)

            async def good(devices: Any = devices, request: Any = request) -> None:
                answer = await translated(devices.GetConnectedDevice(request, timeout=5))
                if not answer.connected or answer.trust_status != "affirming":
                    raise refused(Reason.STATE_CONFLICT, "It has not attested yet.")

            await self._again(good)
        await asyncio.sleep(5)


async def _pieces(content: bytes) -> Any:
    start = release_pb2.UploadStart(digest=sha256(content), size=len(content), offset=0)
    yield release_pb2.UploadArtifactRequest(start=start)
    yield release_pb2.UploadArtifactRequest(chunk=content)
