"""A whole installation: sites with their gateways, technicians, and pumps in processes of their own. All of it real."""

import asyncio
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
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
from vigil.run.layout import SERVICES, DataFolder, free_ports, port_of
from vigil.run.up import METRICS_BEHIND

DOMAIN = "vigil.internal"
SITE = "hospital-01"
BASE_PORT = 9400
ENROL_AT_ONCE = 8
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Site:
    """``async with Site(pumps=64, technicians=16)``: `vigil up`, and a gateway with a fleet at each of ``sites``.

    The pumps and the technicians stand at the sites in turn. ``metrics``: every process but the fleets serves
    Prometheus (`metrics_of`). ``casts``: people besides the technicians and those who set everything up. ``apart``: the
    first pump of each site has a process to itself, as every pump has a processor to itself.
    """

    def __init__(
        self,
        *,
        pumps: int,
        technicians: int,
        progress: Progress,
        sites: Sequence[str] = (SITE,),
        base_port: int = BASE_PORT,
        metrics: bool = False,
        casts: Sequence[Cast] = (),
        attested_s: float = 120.0,
        apart: bool = False,
    ) -> None:
        self.sites = tuple(sites)
        self._pumps = pumps
        self._technicians = technicians
        self._progress = progress
        self._base_port = base_port
        self._metrics = metrics
        self._casts = tuple(casts)
        self._attested_s = attested_s
        self._apart = apart
        self._fleets: dict[str, FleetProcess] = {}
        self._given: set[int] = set()
        self._stack = AsyncExitStack()
        self.world: demo.World

    async def __aenter__(self) -> Self:
        home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vigil-bench-")))
        data = home / "data"
        data.mkdir(mode=0o700)
        installation = RunningInstallation(
            DataFolder(data), DOMAIN, base_port=self._base_port, metrics=self._metrics
        )
        self._stack.push_async_callback(installation.stop)
        try:
            await installation.start()
            self._progress(0.1)
            self.world = demo.World(installation, home, list(self.sites))
            self._stack.push_async_callback(self.world.close)
            await self._build()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._stack.aclose()

    @property
    def pumps(self) -> list[demo.PumpAt]:
        """Every pump, site by site."""
        return [pump for site in self.sites for pump in self.world.pumps[site]]

    def technicians(self) -> list[tuple[str, str]]:
        """Name and site of each."""
        return [
            (technician_of(number), self.sites[number % len(self.sites)])
            for number in range(self._technicians)
        ]

    def hands(self) -> list[Hand]:
        """One for each technician: a credential and a connection of its own."""
        return [Hand(self.world, name, site) for name, site in self.technicians()]

    def processes(self) -> dict[str, int]:
        """The pids of everything that runs, by name; with one site its two are called gateway and pumps."""
        found = dict(self.world.installation.pids)
        marks: dict[str, str] = {}
        for site in self.sites:
            gateway = self.world.folder.gateway(self.world.gateways[site])
            marks[str(gateway / "gateway.toml")] = f"gateway{self._of(site)}"
        marks |= {str(fleet.folder): name for name, fleet in self._fleets.items()}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            found.update({marks[word]: int(process.name) for word in words if word in marks})
        return {**found, "client": os.getpid()}

    def _of(self, site: str) -> str:
        return f" {site}" if len(self.sites) > 1 else ""

    def metrics_of(self) -> dict[str, str]:
        """Where each process serves its metrics, by the names of `processes`."""
        folder = self.world.folder
        configs = {service: folder.config(service) for service in SERVICES}
        for site in self.sites:
            name = f"gateway {site}" if len(self.sites) > 1 else "gateway"
            configs[name] = folder.gateway(self.world.gateways[site]) / "gateway.toml"
        served = {
            name: tomllib.loads(path.read_text()).get("metrics_listen", "") for name, path in configs.items()
        }
        return {name: address for name, address in served.items() if address}

    async def _build(self) -> None:
        world = self.world
        maker = publishing.Maker(world.home / "manufacturer", f"{places.MAKER}.example")
        world.people["admin"] = admin_session(world.folder, 1, DOMAIN)
        world.people["admin-2"] = admin_session(world.folder, 2, DOMAIN)
        await self._register(maker)
        for cast in (*_cast(self.technicians()), *self._casts):
            world.people[cast.name] = await appoint(
                world.folder,
                cast,
                admin=world.people["admin"],
                second=world.people["admin-2"],
                trust_domain=DOMAIN,
            )
        for site in self.sites:
            await self._open_gateway(site)
        self._progress(0.2)
        await self._publish(maker)
        await self._enrol(maker)
        await demo.wait_attested(world, lambda *_: None, seconds=self._attested_s)
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
        for name in self.sites:
            site = identity_pb2.Site(
                site_id=name, organization_id=places.HOSPITALS, display_name=name, time_zone="UTC"
            )
            await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=site))

    async def _open_gateway(self, site: str) -> None:
        world, gateway_id = self.world, f"gw-{site}"
        admin, key, address = world.people["admin"], new_private_key(), choose_address(world.folder)
        gateway = identity_pb2.Gateway(
            gateway_id=gateway_id, organization_id=places.HOSPITALS, site_id=site, address=address
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
            organization_id=places.HOSPITALS,
            address=address,
            trust_domain=DOMAIN,
            certificate_pem=made.certificate.certificate_pem,
            trust_json=world.folder.trust.read_text(),
            private_key=key,
            metrics_listen=self._metrics_address(),
        )
        world.gateways[site] = gateway_id

    def _metrics_address(self) -> str:
        """A free port for a gateway's metrics that no other gateway of this run was given; empty for none."""
        if not self._metrics:
            return ""
        first = port_of(self.world.folder.read_endpoints()["identity"]) + 2 * METRICS_BEHIND
        (port,) = free_ports(1, first, self._given)
        self._given.add(port)
        return f"127.0.0.1:{port}"

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
        for site in self.sites:
            await publishing.publish_baseline(world.people["bea"], content, site=site, name="general-ward")

    async def _enrol(self, maker: publishing.Maker) -> None:
        world = self.world
        made: list[tuple[str, FleetProcess, Manufactured]] = []
        for place, site in enumerate(self.sites):
            world.pumps[site] = []
            numbers = range(place, self._pumps, len(self.sites))
            if self._apart:
                made += await self._fleet(site, f"pump apart{self._of(site)}", numbers[:1])
                numbers = numbers[1:]
            made += await self._fleet(site, f"pumps{self._of(site)}", numbers)
        scribe, turns, done = maker.scribe("voucher"), asyncio.Semaphore(ENROL_AT_ONCE), 0

        async def one(site: str, fleet: FleetProcess, pump: Manufactured) -> None:
            nonlocal done
            async with turns:
                world.pumps[site].append(await demo.enrol_pump(world, scribe, pump, site=site, fleet=fleet))
            done += 1
            self._progress(0.4 + 0.5 * done / len(made))

        await asyncio.gather(*(one(*each) for each in made))
        for pumps in world.pumps.values():
            pumps.sort(key=lambda pump: pump.name)

    async def _fleet(
        self, site: str, name: str, numbers: Iterable[int]
    ) -> list[tuple[str, FleetProcess, Manufactured]]:
        """Make pumps and switch them on in a process of their own."""
        mark = f"{site}-{len(self._fleets)}"
        folder = self.world.home / "pumps" / mark
        folder.mkdir(mode=0o700, parents=True)
        fleet = FleetProcess(
            folder,
            control=self.world.sockets / f"{mark}.sock",
            log=self.world.home / f"fleet-{mark}.log",
        )
        self._fleets[name] = fleet
        self.world.fleets.append(fleet)
        made = await asyncio.to_thread(self._make_pumps, folder, numbers)
        await fleet.start()
        return [(site, fleet, pump) for pump in made]

    def _make_pumps(self, folder: Path, numbers: Iterable[int]) -> list[Manufactured]:
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
                folder / f"pump-{number + 1:04}",
                udi=f"(01){places.GTIN}(21)SN-{number + 1:05}",
                model=places.MODEL,
                manufacturer=places.MAKER,
                firmware=first,
                settings=settings,
                clock=SystemClock(),
                entropy=os.urandom,
            )
            for number in numbers
        ]


def technician_of(number: int) -> str:
    return f"tech-{number + 1:02}"


def _cast(technicians: Sequence[tuple[str, str]]) -> list[Cast]:
    hospitals = places.HOSPITALS

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
        *(person(name, "technician", hospitals, (site,)) for name, site in technicians),
    ]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
