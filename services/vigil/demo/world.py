"""The world of the demonstration: a manufacturer, twelve hospitals, their people, and pumps at every site."""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.cli.session import GatewayEnd, Session
from vigil.core.certificates import make_request
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.keys import new_private_key
from vigil.core.statements.bodies import Voucher
from vigil.core.statements.envelope import Scribe
from vigil.demo.cast import cast_of
from vigil.demo.fleet import ControlLine, FleetProcess
from vigil.demo.installation import START_S, RunningInstallation
from vigil.demo.people import admin_session, appoint
from vigil.demo.places import CUT_SITE, GTIN, HOSPITALS, HOSTILE_SITE, MAKER, MODEL, OPERATOR
from vigil.demo.processes import TAP_VARIABLE, Child
from vigil.demo.publishing import Build, Maker, Progress, demo_file, publish_everything
from vigil.demo.relay import Relay
from vigil.device.factory import FirstBuild, Manufactured, make_pump
from vigil.errors import Reason, Refused, refused
from vigil.run.configs import GATEWAY_PEERS
from vigil.run.gateways import choose_address, write_gateway
from vigil.run.layout import DataFolder, runtime_folder

ENROL_AT_ONCE = 8


def asset_tag(name: str) -> str:
    """What a pump's own hospital calls it."""
    return f"TAG-{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpAt:
    """One enrolled pump: where it stands and who it is."""

    name: str
    device_id: str
    udi: str
    site: str
    fleet: FleetProcess

    @property
    def tag(self) -> str:
        """Its asset tag."""
        return asset_tag(self.name)


@dataclass
class World:
    """Everything the steps act on."""

    installation: RunningInstallation
    home: Path
    sites: list[str]
    people: dict[str, Session] = field(default_factory=dict)
    gateways: dict[str, str] = field(default_factory=dict)  # by site
    pumps: dict[str, list[PumpAt]] = field(default_factory=dict)  # by site
    fleets: list[FleetProcess] = field(default_factory=list)
    builds: list[Build] = field(default_factory=list)
    sockets: Path = field(default_factory=runtime_folder)  # a socket's path may have 107 bytes
    relays: dict[str, Relay] = field(default_factory=dict)  # service -> the wire of the fourth site's gateway
    hostile: Child | None = None
    tap: ControlLine | None = None  # the attacker's hand on the third site's gateway

    @property
    def folder(self) -> DataFolder:
        return self.installation.folder

    def gateway_end(self, who: str, site: str) -> GatewayEnd:
        """The way of one person to the gateway of a site."""
        gateway_id = self.gateways[site]
        return self.people[who].gateway_end(gateway_id, self.folder.read_endpoints()[gateway_id], site)

    async def close(self) -> None:
        """Stop the pumps and forget the sessions."""
        await asyncio.gather(*(fleet.stop() for fleet in self.fleets))
        if self.tap is not None:
            self.tap.close()
        if self.hostile is not None:
            await self.hostile.stop()
        await asyncio.gather(*(relay.stop() for relay in self.relays.values()))
        for session in self.people.values():
            await session.close()
        shutil.rmtree(self.sockets, ignore_errors=True)


async def build_world(world: World, *, pumps: int, progress: Progress) -> None:
    """Set everything up, from organisations to attested pumps."""
    domain = world.installation.trust_domain
    maker = Maker(world.home / "manufacturer", f"{MAKER}.example")
    world.people["admin"] = admin_session(world.folder, 1, domain)
    world.people["admin-2"] = admin_session(world.folder, 2, domain)
    progress("organisations, people and sites", 0, 3)
    await _register(world, maker)
    progress("organisations, people and sites", 1, 3)
    await _appoint_everybody(world)
    progress("organisations, people and sites", 2, 3)
    await _open_sites(world)
    progress("organisations, people and sites", 3, 3)
    world.builds = await publish_everything(
        world.people["pia"], world.people["bea"], maker, world.sites, progress
    )
    await _enrol(world, maker, pumps, progress)
    await wait_attested(world, progress)


async def _register(world: World, maker: Maker) -> None:
    admin = world.people["admin"]
    for organization in (
        identity_pb2.Organization(organization_id=OPERATOR, display_name="The operator"),
        identity_pb2.Organization(
            organization_id=MAKER, display_name="Aria Medical", manufacturer_root_pem=maker.root.read_text()
        ),
        identity_pb2.Organization(organization_id=HOSPITALS, display_name="Northern Hospitals"),
    ):
        request = identity_pb2.CreateOrganizationRequest(organization=organization)
        try:
            await admin.call("identity", admin.registry.CreateOrganization, request)
        except Refused as error:
            if error.reason is not Reason.RESOURCE_EXISTS:
                raise
    for site in world.sites:
        value = identity_pb2.Site(
            site_id=site, organization_id=HOSPITALS, display_name=site.title(), time_zone="Europe/Berlin"
        )
        await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=value))


async def _appoint_everybody(world: World) -> None:
    for cast in cast_of(world.sites):
        world.people[cast.name] = await appoint(
            world.folder,
            cast,
            admin=world.people["admin"],
            second=world.people["admin-2"],
            trust_domain=world.installation.trust_domain,
        )


async def _open_sites(world: World) -> None:
    """A gateway at every site; `vigil up` finds their folders and starts them.

    The third site's gateway is a captured one, started apart; the fourth one's wires to the control plane lead
    through relays that can fall silent.
    """
    endpoints = world.folder.read_endpoints()
    for place, site in enumerate(world.sites):
        if place == HOSTILE_SITE:
            captured = DataFolder(world.home / "captured")
            captured.path.mkdir(mode=0o700)
            captured.write_endpoints(endpoints)
            await _open_site(world, site, folder=captured)
            await _start_hostile(world, captured, site)
        elif place == CUT_SITE:
            for service in (*GATEWAY_PEERS, "edge"):
                world.relays[service] = Relay(endpoints[service])
            wires = {service: await relay.start() for service, relay in world.relays.items()}
            await _open_site(world, site, folder=world.folder, endpoints=wires)
        else:
            await _open_site(world, site, folder=world.folder)


async def _open_site(
    world: World, site: str, *, folder: DataFolder, endpoints: dict[str, str] | None = None
) -> None:
    admin, gateway_id = world.people["admin"], f"gw-{site}"
    key = new_private_key()
    address = choose_address(world.folder)
    gateway = identity_pb2.Gateway(
        gateway_id=gateway_id, organization_id=HOSPITALS, site_id=site, address=address
    )
    request = identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode())
    made = await admin.call("identity", admin.registry.CreateGateway, request)
    write_gateway(
        folder,
        gateway_id=gateway_id,
        site_id=site,
        organization_id=HOSPITALS,
        address=address,
        trust_domain=world.installation.trust_domain,
        certificate_pem=made.certificate.certificate_pem,
        trust_json=world.folder.trust.read_text(),
        private_key=key,
        endpoints=endpoints,
    )
    world.folder.write_endpoints({**world.folder.read_endpoints(), gateway_id: address})
    world.gateways[site] = gateway_id


async def _start_hostile(world: World, captured: DataFolder, site: str) -> None:
    home = captured.gateway(world.gateways[site])
    arguments = ["vigil.demo.hostile", "--config", str(home / "gateway.toml")]
    tap = world.sockets / "tap.sock"
    world.hostile = Child(arguments, world.home / "hostile.log", {TAP_VARIABLE: str(tap)})
    await world.hostile.start()
    await world.hostile.line(seconds=START_S)
    world.tap = ControlLine(tap)
    await world.tap.open()


async def _enrol(world: World, maker: Maker, count: int, progress: Progress) -> None:
    """Make the pumps, start them, enrol each by voucher, and have another person activate it."""
    made = _make_pumps(world, count)
    scribe = maker.scribe("voucher")
    turns = asyncio.Semaphore(ENROL_AT_ONCE)
    done = 0

    async def one(pump: Manufactured, site: str, fleet: FleetProcess) -> None:
        nonlocal done
        async with turns:
            enrolled = await enrol_pump(world, scribe, pump, site=site, fleet=fleet)
        world.pumps.setdefault(site, []).append(enrolled)
        done += 1
        progress("pumps enrolled", done, count)

    await asyncio.gather(*(fleet.start() for fleet in world.fleets))
    await asyncio.gather(*(one(*each) for each in made))
    for pumps in world.pumps.values():
        pumps.sort(key=lambda pump: pump.name)


def _make_pumps(world: World, count: int) -> list[tuple[Manufactured, str, FleetProcess]]:
    old = world.builds[0]
    first = FirstBuild(
        image=old.image, version=old.version, security_version=old.security_version, sbom=sha256(old.sbom)
    )
    settings = json.loads(demo_file("baseline-configuration.json"))["settings"]
    made = []
    for half in range(2):
        folder = world.home / "pumps" / f"fleet-{half + 1}"
        folder.mkdir(mode=0o700, parents=True)
        control, log = world.sockets / f"fleet-{half + 1}.sock", world.home / f"fleet-{half + 1}.log"
        world.fleets.append(FleetProcess(folder, control=control, log=log))
    for number in range(count):
        fleet = world.fleets[number % 2]
        pump = make_pump(
            fleet.folder / f"pump-{number + 1:03}",
            udi=f"(01){GTIN}(21)SN-{number + 1:05}",
            model=MODEL,
            manufacturer=MAKER,
            firmware=first,
            settings=settings,
            clock=SystemClock(),
            entropy=os.urandom,
        )
        made.append((pump, world.sites[number % len(world.sites)], fleet))
    return made


async def enrol_pump(
    world: World, scribe: Scribe, pump: Manufactured, *, site: str, fleet: FleetProcess
) -> PumpAt:
    """One pump's way in: voucher, possession of its PUF-derived key, certificates, activation, its gateway."""
    erin, cleo = world.people["erin"], world.people["cleo"]
    name = pump.folder.name
    voucher = scribe.sign(
        Voucher(udi=pump.udi, model=pump.model, identity_key=pump.identity_key), subject=f"udi/{pump.udi}"
    )
    started = await erin.call(
        "identity",
        erin.enrolment.StartEnrolment,
        identity_pb2.StartEnrolmentRequest(
            voucher=voucher.data, organization_id=HOSPITALS, site_id=site, asset_tag=asset_tag(name)
        ),
    )
    proof = await fleet.do("possession", name, nonce=started.nonce.hex())
    possession = identity_pb2.DevicePossession(
        nonce=bytes.fromhex(proof["nonce"]),
        identity_public_key=bytes.fromhex(proof["identity_public_key"]),
        tls_csr_pem=proof["tls_csr_pem"],
        attestation_csr_pem=proof["attestation_csr_pem"],
        signature=bytes.fromhex(proof["signature"]),
    )
    completed = await erin.call(
        "identity",
        erin.enrolment.CompleteEnrolment,
        identity_pb2.CompleteEnrolmentRequest(enrolment_id=started.enrolment_id, possession=possession),
    )
    certificates = completed.certificates
    await fleet.do(
        "install",
        name,
        tls_chain=[item.hex() for item in certificates.tls_chain],
        attestation_chain=[item.hex() for item in certificates.attestation_chain],
        trust_json=certificates.trust_json,
    )
    device_id = completed.device.device_id
    await cleo.call(
        "identity",
        cleo.enrolment.ActivateDevice,
        identity_pb2.ActivateDeviceRequest(device_id=device_id),
    )
    gateway_id = world.gateways[site]
    address = world.folder.read_endpoints()[gateway_id]
    await fleet.do("dial", name, address=address, gateway_id=gateway_id)
    # A pump that has just been switched on does not know whether a patient hangs on it; somebody looks and says so.
    await fleet.do("bedside-release", name)
    return PumpAt(name=name, device_id=device_id, udi=pump.udi, site=site, fleet=fleet)


async def wait_attested(world: World, progress: Progress, *, seconds: float = 120.0) -> None:
    """Wait until attestation calls every pump affirming. Raises DEADLINE_EXCEEDED with what it calls them."""
    otto = world.people["otto"]
    count = sum(len(pumps) for pumps in world.pumps.values())
    request = attestation_pb2.CountResultsRequest()
    deadline = otto.clock.monotonic() + seconds
    while True:
        counts = await otto.call("attestation", otto.attestation.CountResults, request)
        affirming = int(counts.by_status.get("affirming", 0))
        progress("pumps attested", affirming, count)
        if affirming >= count:
            return
        if otto.clock.monotonic() > deadline:
            raise refused(
                Reason.DEADLINE_EXCEEDED,
                f"after {seconds:.0f} s only {affirming} of {count} pumps are affirming: {dict(counts.by_status)}",
            )
        await asyncio.sleep(0.3)
