"""A whole installation with one site: its gateway, technicians, and pumps in a process of their own. All of it real."""

import asyncio
import json
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from tests.benchmarks.result import Progress
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.core.baselines import content_of_settings
from vigil.core.certificates import make_request
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.keys import new_private_key
from vigil.core.profiles import profile_from_json
from vigil.demo import places, publishing
from vigil.demo import world as demo
from vigil.demo.fleet import FleetProcess
from vigil.demo.installation import RunningInstallation
from vigil.demo.people import Cast, admin_session, appoint
from vigil.demo.technician import Hand
from vigil.device.factory import FirstBuild, Manufactured, make_pump
from vigil.run.gateways import choose_address, write_gateway
from vigil.run.layout import DataFolder

DOMAIN = "vigil.internal"
SITE = "hospital-01"
GATEWAY = f"gw-{SITE}"
BASE_PORT = 9400
ENROL_AT_ONCE = 8
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Site:
    """``async with Site(pumps=64, technicians=16)``: `vigil up`, one gateway, one fleet."""

    def __init__(self, *, pumps: int, technicians: int, progress: Progress) -> None:
        self._pumps = pumps
        self._technicians = technicians
        self._progress = progress
        self._stack = AsyncExitStack()
        self.world: demo.World

    async def __aenter__(self) -> Self:
        home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vigil-bench-")))
        data = home / "data"
        data.mkdir(mode=0o700)
        installation = RunningInstallation(DataFolder(data), DOMAIN, base_port=BASE_PORT)
        self._stack.push_async_callback(installation.stop)
        await installation.start()
        self._progress(0.3)
        self.world = demo.World(installation, home, [SITE])
        self._stack.push_async_callback(self.world.close)
        try:
            await self._build()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._stack.aclose()

    @property
    def pumps(self) -> list[demo.PumpAt]:
        return self.world.pumps[SITE]

    def hands(self) -> list[Hand]:
        """One for each technician: a credential and a connection of its own."""
        return [Hand(self.world, _technician(number), SITE) for number in range(self._technicians)]

    def processes(self) -> dict[str, int]:
        """The pids of everything that runs, by name."""
        found = dict(self.world.installation.pids)
        config = str(self.world.folder.gateway(GATEWAY) / "gateway.toml")
        fleet = str(self.world.fleets[0].folder)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if config in words:
                found["gateway"] = int(process.name)
            elif fleet in words:
                found["pumps"] = int(process.name)
        return {**found, "client": os.getpid()}

    async def _build(self) -> None:
        world = self.world
        maker = publishing.Maker(world.home / "manufacturer", f"{places.MAKER}.example")
        world.people["admin"] = admin_session(world.folder, 1, DOMAIN)
        world.people["admin-2"] = admin_session(world.folder, 2, DOMAIN)
        await self._register(maker)
        for cast in _cast(self._technicians):
            world.people[cast.name] = await appoint(
                world.folder,
                cast,
                admin=world.people["admin"],
                second=world.people["admin-2"],
                trust_domain=DOMAIN,
            )
        await self._open_gateway()
        self._progress(0.5)
        await self._publish(maker)
        await self._enrol(maker)
        await demo.wait_attested(world, lambda *_: None)
        self._progress(1.0)

    async def _register(self, maker: publishing.Maker) -> None:
        admin = self.world.people["admin"]
        for organization in (
            identity_pb2.Organization(
                organization_id=places.MAKER,
                display_name="Manufacturer",
                manufacturer_root_pem=maker.root.read_text(),
            ),
            identity_pb2.Organization(organization_id=places.HOSPITALS, display_name="Hospitals"),
        ):
            await admin.call(
                "identity",
                admin.registry.CreateOrganization,
                identity_pb2.CreateOrganizationRequest(organization=organization),
            )
        site = identity_pb2.Site(
            site_id=SITE, organization_id=places.HOSPITALS, display_name=SITE, time_zone="UTC"
        )
        await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=site))

    async def _open_gateway(self) -> None:
        world = self.world
        admin, key, address = world.people["admin"], new_private_key(), choose_address(world.folder)
        gateway = identity_pb2.Gateway(
            gateway_id=GATEWAY, organization_id=places.HOSPITALS, site_id=SITE, address=address
        )
        made = await admin.call(
            "identity",
            admin.registry.CreateGateway,
            identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode()),
        )
        write_gateway(
            world.folder,
            gateway_id=GATEWAY,
            site_id=SITE,
            organization_id=places.HOSPITALS,
            address=address,
            trust_domain=DOMAIN,
            certificate_pem=made.certificate.certificate_pem,
            trust_json=world.folder.trust.read_text(),
            private_key=key,
        )
        world.gateways[SITE] = GATEWAY

    async def _publish(self, maker: publishing.Maker) -> None:
        world = self.world
        pia = world.people["pia"]
        world.builds = publishing.make_builds()
        body = profile_from_json(publishing.demo_file("pump-profile.json").decode())
        profile = maker.scribe("profile").sign(body, subject=f"model/{places.MODEL}")
        await pia.call(
            "release", pia.releases.PublishModel, release_pb2.PublishModelRequest(profile=profile.data)
        )
        await publishing.upload(pia, world.builds[0].image)
        await publishing.publish_build(pia, maker, world.builds[0])
        content = content_of_settings(publishing.demo_file("baseline-configuration.json").decode())
        await publishing.publish_baseline(world.people["bea"], content, site=SITE, name="general-ward")

    async def _enrol(self, maker: publishing.Maker) -> None:
        world = self.world
        folder = world.home / "pumps"
        folder.mkdir(mode=0o700)
        fleet = FleetProcess(folder, control=world.home / "fleet.sock", log=world.home / "fleet.log")
        world.fleets.append(fleet)
        made = await asyncio.to_thread(self._make_pumps, folder)
        await fleet.start()
        scribe, turns, done = maker.scribe("voucher"), asyncio.Semaphore(ENROL_AT_ONCE), 0

        async def one(pump: Manufactured) -> demo.PumpAt:
            nonlocal done
            async with turns:
                enrolled = await demo.enrol_pump(world, scribe, pump, site=SITE, fleet=fleet)
            done += 1
            self._progress(0.5 + 0.4 * done / len(made))
            return enrolled

        world.pumps[SITE] = list(await asyncio.gather(*(one(pump) for pump in made)))

    def _make_pumps(self, folder: Path) -> list[Manufactured]:
        build = self.world.builds[0]
        first = FirstBuild(
            image=build.image,
            version=build.version,
            security_version=build.security_version,
            sbom=sha256(build.sbom),
        )
        settings = json.loads(publishing.demo_file("baseline-configuration.json"))["settings"]
        return [
            make_pump(
                folder / f"pump-{number + 1:03}",
                udi=f"(01){places.GTIN}(21)SN-{number + 1:05}",
                model=places.MODEL,
                manufacturer=places.MAKER,
                firmware=first,
                settings=settings,
                clock=SystemClock(),
                entropy=os.urandom,
            )
            for number in range(self._pumps)
        ]


def _technician(number: int) -> str:
    return f"tech-{number + 1:02}"


def _cast(technicians: int) -> list[Cast]:
    hospitals, here = places.HOSPITALS, (SITE,)

    def person(
        name: str, role: str, organization: str, sites: tuple[str, ...] = ("*",), *, privileged: bool = False
    ) -> Cast:
        return Cast(
            name=name,
            display_name=name,
            organization=organization,
            roles=(role,),
            sites=sites,
            privileged=privileged,
        )

    return [
        person("cleo", "approver", hospitals, privileged=True),
        person("erin", "enroller", hospitals),
        person("bea", "baseline-signer", hospitals),
        person("pia", "publisher", places.MAKER, privileged=True),
        person("otto", "auditor", "operator"),
        *(person(_technician(number), "technician", hospitals, here) for number in range(technicians)),
    ]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
