"""The installation under simulation: every service wired by its own `serve`, pumps by their own runner, and people.

Two gateways of one site, three pumps, two edges, and one each of policy, evidence, revocation, attestation, identity
and release. A host keeps its disk; its process can end at any step and be started again.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc

from tests.model.bus import SimBus
from tests.model.disk import Disk, SimDeviceStore, opener
from tests.model.loop import Node, NodeClock, SimLoop
from tests.model.network import SimNetwork
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from vigil.attestation.__main__ import serve as serve_attestation
from vigil.attestation.config import AttestationConfig
from vigil.device.link import Gateway as Dialled
from vigil.device.runner import PumpRunner
from vigil.device.trust import SharedTrust
from vigil.evidence.__main__ import serve as serve_evidence
from vigil.evidence.config import EvidenceConfig
from vigil.gateway.__main__ import serve as serve_gateway
from vigil.gateway.config import GatewayConfig, QuotaConfig
from vigil.identity.__main__ import serve as serve_identity
from vigil.identity.config import IdentityConfig
from vigil.policy.__main__ import serve as serve_policy
from vigil.policy.config import PolicyConfig
from vigil.policy.engine.port import PolicyEngine
from vigil.release.__main__ import serve as serve_release
from vigil.release.config import ReleaseConfig
from vigil.revocation.__main__ import serve as serve_revocation
from vigil.revocation.config import EdgeConfig, RevocationConfig
from vigil.revocation.edge import serve as serve_edge
from vigil.rpc.channel import Channels
from vigil.rpc.service_main import Process

GATEWAYS: Final = ("gateway-1", "gateway-2")
EDGES: Final = ("edge-1", "edge-2")
PUMPS: Final = ("pump-1", "pump-2", "pump-3")
SERVICES: Final[dict[str, tuple[Any, Any, str, str]]] = {
    # host: (serve, its configuration, role, signer)
    "evidence": (serve_evidence, EvidenceConfig, "evidence", "recorded"),
    "identity": (serve_identity, IdentityConfig, "identity", ""),
    "release": (serve_release, ReleaseConfig, "release", ""),
    "revocation": (serve_revocation, RevocationConfig, "revocation", "head"),
    "edge-1": (serve_edge, EdgeConfig, "edge", ""),
    "edge-2": (serve_edge, EdgeConfig, "edge", ""),
    "attestation": (serve_attestation, AttestationConfig, "attestation", "result"),
    "policy": (serve_policy, PolicyConfig, "policy", "decision"),
}
WITH_BUS: Final = ("revocation", *EDGES)
WITHOUT_DISK: Final = ("policy",)
DIALS: Final = {"pump-1": "gateway-1", "pump-2": "gateway-1", "pump-3": "gateway-2"}
EPOCH_MS: Final = 1_790_000_000_000
RESTART_S: Final = 0.5
"""How soon a process that ended by itself is started again."""


def address(host: str) -> str:
    return f"{host}:1"


class SimProcess(Process):
    """The process around a service, in its node."""

    def __init__(self, world: "World", node: Node, role: str) -> None:
        super().__init__(
            role=role,
            ready_fd=None,
            clock=world.clocks[node.name],
            entropy=world.entropy[node.name],
            network=world.net.of(node),
        )
        self._up = world.up
        self._node = node

    def ready(self, port: int) -> None:
        assert port
        self._up[self._node.name] = self._node


@dataclass
class World:
    """Hosts, what runs on them, and how to start and end it."""

    loop: SimLoop
    folder: Path
    images: dict[str, bytes]
    pki: TestPki
    engine: PolicyEngine
    seed: int
    net: SimNetwork = field(init=False)
    bus: SimBus = field(init=False)
    disks: dict[str, Disk] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    up: dict[str, Node] = field(default_factory=dict)
    clocks: dict[str, NodeClock] = field(default_factory=dict)
    randoms: dict[str, Random] = field(default_factory=dict)
    entropy: dict[str, Callable[[int], bytes]] = field(default_factory=dict)
    runners: dict[str, PumpRunner] = field(default_factory=dict)
    gateways: dict[str, Any] = field(default_factory=dict)
    starts: int = 0
    exits: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.net = SimNetwork(self.loop)
        self.bus = SimBus(self.loop)
        for host in (*SERVICES, *GATEWAYS, *PUMPS):
            self.host(host)
            if host not in WITHOUT_DISK:
                self.disks[host] = Disk(host, self.loop, self.images.get(host))

    def host(self, name: str) -> None:
        """A machine: its clock, and its source of randomness."""
        self.clocks[name] = NodeClock(self.loop, epoch_ms=EPOCH_MS)
        self.randoms[name] = Random(f"{self.seed} {name}")
        self.entropy[name] = self.randoms[name].randbytes

    def begin(self, seed: int, folder: Path) -> None:
        """From here on this world is one of its own: its randomness, and its copy of the files."""
        self.seed = seed
        self.loop.random.seed(seed)
        for name, random in self.randoms.items():
            random.seed(f"{seed} {name}")
        copy_folder(self.folder, folder)
        self.folder = folder
        for pump, runner in self.runners.items():
            hardware = runner._hardware
            assert hardware is not None
            hardware.secure_element._path = folder / "pumps" / pump / "secure-element" / "counter"

    # --- processes

    def start(self, host: str) -> None:
        """Start a host's process, unless it runs."""
        running = self.nodes.get(host)
        if running is not None and not running.dead:
            return
        node = self.nodes[host] = Node(host)
        self.starts += 1
        self.loop.on(node, self._boot, host, node)

    def kill(self, host: str) -> None:
        """End it at once."""
        node = self.nodes.get(host)
        if node is not None:
            self.up.pop(host, None)
            self.runners.pop(host, None)
            self.gateways.pop(host, None)
            self.loop.kill(node)

    def running(self, host: str) -> bool:
        node = self.nodes.get(host)
        return node is not None and not node.dead

    def _boot(self, host: str, node: Node) -> None:
        work = self._pump(host, node) if host in PUMPS else self._service(host, node)
        task = self.loop.create_task(work)
        task.add_done_callback(lambda done: self._ended(host, node, done))

    def _ended(self, host: str, node: Node, task: "asyncio.Task[None]") -> None:
        if node.dead:
            return
        why = "cancelled" if task.cancelled() else repr(task.exception())
        self.exits.append((host, why))
        self.kill(host)
        self.loop.on_later(self.loop.world, RESTART_S, self.start, host)

    def _service(self, host: str, node: Node) -> Coroutine[Any, Any, None]:
        if host in GATEWAYS:
            process = SimProcess(self, node, "gateway")
            return serve_gateway(self._gateway_config(host), process, disk=opener(self.disks[host], node))
        serve, config, role, signer = SERVICES[host]
        ports: dict[str, Any] = {}
        if host == "policy":
            ports["opened"] = self._engine
        else:
            ports["disk"] = opener(self.disks[host], node)
        if host in WITH_BUS:
            ports["bus"] = lambda _url: self.bus.client(node)
        values = self._config(host, role, signer)
        return serve(config(**values), SimProcess(self, node, role), **ports)  # type: ignore[no-any-return]

    async def _engine(self, _config: PolicyConfig) -> PolicyEngine:
        return self.engine

    def _config(self, host: str, role: str, signer: str) -> dict[str, Any]:
        pki = self.folder / f"pki-of-{self.pki.trust_domain}" / "pki"
        values: dict[str, Any] = {
            "data_dir": self.folder / host,
            "listen": address(host),
            "trust_domain": self.pki.trust_domain,
            "certificate": pki / "services" / role / "tls.pem",
            "key": pki / "services" / role / "tls.key",
            "trust": pki / "trust.json",
            "peers": {peer: address(peer) for peer in SERVICES if peer != host},
        }
        if signer:
            values["signer_certificate"] = pki / "signers" / f"{signer}.pem"
            values["signer_key"] = pki / "signers" / f"{signer}.key"
        if role == "identity":
            values["pki_dir"] = pki
        if role == "evidence":
            # The log is as small as a schedule is short: at the default rate it would be read over and over.
            values["audit_entries_per_second"] = 5.0
        if role == "edge":
            values["edge_id"] = host
        if host in WITH_BUS:
            values["redis_url"] = "unix:///bus"
        (self.folder / host).mkdir(exist_ok=True)
        return values

    def _gateway_config(self, host: str) -> GatewayConfig:
        home = self.folder / f"{host}-home"
        edges = EDGES if host == GATEWAYS[0] else EDGES[::-1]
        return GatewayConfig(
            data_dir=home / "data",
            listen=address(host),
            trust_domain=self.pki.trust_domain,
            certificate=home / "tls.pem",
            key=home / "tls.key",
            trust=home / "trust.json",
            peers={
                role: address(role) for role in ("identity", "release", "attestation", "policy", "evidence")
            },
            gateway_id=host,
            site_id=SITE,
            organization_id=ORGANIZATION,
            edges=tuple(address(edge) for edge in edges),
            quotas=QuotaConfig(commands=600, safety=600, reads=600, intents=600),
        )

    async def _pump(self, host: str, node: Node) -> None:
        runner = self.runners[host] = PumpRunner(
            self.folder / "pumps" / host,
            gateway=Dialled(address(DIALS[host]), DIALS[host]),
            shared=SharedTrust(),
            clock=self.clocks[host],
            entropy=self.entropy[host],
            network=self.net.of(node),
            open_store=lambda path: SimDeviceStore(path, disk=self.disks[host]),
        )
        self.up[host] = node
        await runner.run()

    # --- people

    def channel(self, node: Node, credential: Credential, host: str) -> grpc.aio.Channel:
        """A person's way to a service or a gateway."""
        channels = Channels(
            tls=credential.tls_files,
            trust_domain=self.pki.trust_domain,
            clock=self.clocks[node.name],
            network=self.net.of(node),
        )
        if host in GATEWAYS:
            return channels.gateway(address(host), host)
        return channels.service(address(host), SERVICES[host][2])


def copy_folder(source: Path, target: Path) -> None:
    """What a schedule may change is copied, the rest is linked."""
    shutil.copytree(source, target, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    # Everything else is replaced by renaming when it changes; the counter is written in place.
    if Path(source).name == "counter":
        shutil.copyfile(source, target)
    else:
        os.link(source, target)
