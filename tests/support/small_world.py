"""Two hospitals, their people and four pumps, registered by the calls anybody makes."""

import asyncio
import json
import os
from typing import Final

from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import make_request
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.keys import new_private_key
from vigil.demo.fleet import FleetProcess
from vigil.demo.people import Cast, admin_session, appoint
from vigil.demo.places import GTIN, HOSPITALS, MAKER, MODEL, OPERATOR
from vigil.demo.publishing import Maker, demo_file, publish_everything
from vigil.demo.world import World, enrol_pump, wait_attested
from vigil.device.factory import FirstBuild, Manufactured, make_pump
from vigil.run.gateways import choose_address, write_gateway

FIRST, SECOND = SITES = ("hospital-01", "hospital-02")
EVERYWHERE: Final = ("*",)

_PEOPLE: Final = (
    # name, organization, role, sites, whether a second administrator must agree
    ("ada", HOSPITALS, "technician", (FIRST,), False),
    ("eve", HOSPITALS, "technician", (FIRST,), False),
    ("ben", HOSPITALS, "technician", (SECOND,), False),
    ("sam", HOSPITALS, "safety", (FIRST,), False),
    ("cleo", HOSPITALS, "approver", EVERYWHERE, True),
    ("erin", HOSPITALS, "enroller", EVERYWHERE, False),
    ("bea", HOSPITALS, "baseline-signer", EVERYWHERE, False),
    ("pia", MAKER, "publisher", EVERYWHERE, True),
    ("rita", OPERATOR, "recall", EVERYWHERE, True),
    ("raj", OPERATOR, "recall", EVERYWHERE, True),
    ("otto", OPERATOR, "auditor", EVERYWHERE, False),
)


async def build(world: World, *, pumps: int) -> None:
    """Everything, until every pump is called affirming."""
    domain = world.installation.trust_domain
    maker = Maker(world.home / "manufacturer", f"{MAKER}.example")
    world.people["admin"] = admin_session(world.folder, 1, domain)
    world.people["admin-2"] = admin_session(world.folder, 2, domain)
    await _register(world, maker)
    pia, bea = world.people["pia"], world.people["bea"]
    world.builds = await publish_everything(pia, bea, maker, world.sites, lambda *_: None)
    await _enrol(world, maker, pumps)
    await wait_attested(world, lambda *_: None)


async def _register(world: World, maker: Maker) -> None:
    admin = world.people["admin"]
    for organization in (
        identity_pb2.Organization(
            organization_id=MAKER, display_name="Aria Medical", manufacturer_root_pem=maker.root.read_text()
        ),
        identity_pb2.Organization(organization_id=HOSPITALS, display_name="Northern Hospitals"),
    ):
        request = identity_pb2.CreateOrganizationRequest(organization=organization)
        await admin.call("identity", admin.registry.CreateOrganization, request)
    for site in world.sites:
        value = identity_pb2.Site(
            site_id=site, organization_id=HOSPITALS, display_name=site, time_zone="Europe/Berlin"
        )
        await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=value))
        await _open(world, site)
    for name, organization, role, sites, privileged in _PEOPLE:
        world.people[name] = await appoint(
            world.folder,
            Cast(
                name=name,
                display_name=name.title(),
                organization=organization,
                roles=(role,),
                sites=sites,
                privileged=privileged,
            ),
            admin=admin,
            second=world.people["admin-2"],
            trust_domain=world.installation.trust_domain,
        )


async def _open(world: World, site: str) -> None:
    """A gateway; `vigil up` finds its folder and starts it."""
    admin, gateway_id, key = world.people["admin"], f"gw-{site}", new_private_key()
    address = choose_address(world.folder)
    gateway = identity_pb2.Gateway(
        gateway_id=gateway_id, organization_id=HOSPITALS, site_id=site, address=address
    )
    made = await admin.call(
        "identity",
        admin.registry.CreateGateway,
        identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode()),
    )
    write_gateway(
        world.folder,
        gateway_id=gateway_id,
        site_id=site,
        organization_id=HOSPITALS,
        address=address,
        trust_domain=world.installation.trust_domain,
        certificate_pem=made.certificate.certificate_pem,
        trust_json=world.folder.trust.read_text(),
        private_key=key,
    )
    world.gateways[site] = gateway_id


async def _enrol(world: World, maker: Maker, count: int) -> None:
    """The pumps stand in turn at the sites; one process holds them all."""
    folder = world.home / "pumps"
    folder.mkdir(mode=0o700)
    fleet = FleetProcess(folder, control=world.sockets / "fleet.sock", log=world.home / "fleet.log")
    world.fleets.append(fleet)
    made = [manufactured(world, number) for number in range(1, count + 1)]
    await fleet.start()
    scribe = maker.scribe("voucher")
    enrolled = await asyncio.gather(
        *(
            enrol_pump(world, scribe, pump, site=world.sites[number % len(world.sites)], fleet=fleet)
            for number, pump in enumerate(made)
        )
    )
    for site in world.sites:
        world.pumps[site] = [pump for pump in enrolled if pump.site == site]


def manufactured(world: World, number: int) -> Manufactured:
    """A pump as it leaves the factory, not enrolled."""
    build_of_model = world.builds[0]
    return make_pump(
        world.home / "pumps" / f"pump-{number}",
        udi=f"(01){GTIN}(21)SN-{number:05}",
        model=MODEL,
        manufacturer=MAKER,
        firmware=FirstBuild(
            image=build_of_model.image,
            version=build_of_model.version,
            security_version=build_of_model.security_version,
            sbom=sha256(build_of_model.sbom),
        ),
        settings=json.loads(demo_file("baseline-configuration.json"))["settings"],
        clock=SystemClock(),
        entropy=os.urandom,
    )
