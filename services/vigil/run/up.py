"""`vigil up`: everything on one machine, from nothing to ready, until somebody stops it."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refused, refused
from vigil.rpc.channel import Channels
from vigil.rpc.service_main import PARENT_FD, watch_parent
from vigil.rpc.tls import TlsFiles
from vigil.run import first, seed
from vigil.run.configs import config_path, python_module, write_service_configs
from vigil.run.layout import SERVICES, TILES, DataFolder, free_ports, port_of, runtime_folder
from vigil.run.redis_server import find_server, server_arguments
from vigil.run.supervisor import ChildSpec, Supervisor

READY_S = 60.0
"""How long the services may take before `vigil up` gives up; they take a few seconds."""
RENEW_INTERVAL_S = 60.0
"""A machine that slept, or whose clock was set, serves again within this time."""
SCAN_INTERVAL_S = 0.5
FILES = 65_536
"""One descriptor a connection (ARCHITECTURE section 7); as many as the hard limit allows."""
METRICS_BEHIND = 100
"""Ports left for gateways to come, between the services' own and those of their metrics."""
REDIS = "redis"


class Installation:
    """One running installation: the supervisor with its services, Redis and gateways."""

    def __init__(
        self, folder: DataFolder, *, trust_domain: str, metrics: bool, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self.trust_domain = trust_domain
        self.say = say
        self._runtime = runtime_folder()
        self._channels: Channels | None = None
        self.supervisor = Supervisor(
            clock=SystemClock(),
            on_event=lambda name, words: say(f"{name} {words}"),
            parent_variable=PARENT_FD,
        )

    async def start(self) -> None:
        """Start Redis and the services together and wait until all are healthy. Raises SERVICE_UNAVAILABLE."""
        endpoints = self._folder.read_endpoints()
        redis_url = f"unix://{self._runtime}/redis.sock"
        write_service_configs(
            self._folder,
            trust_domain=self.trust_domain,
            endpoints=endpoints,
            redis_url=redis_url,
            metrics=metrics_of(endpoints) if self._metrics else {},
        )
        self.supervisor.start(self._redis())
        for service in SERVICES:
            self.supervisor.start(self._process(service))
        await self.wait_ready({service: endpoints[service] for service in SERVICES})

    async def start_gateways(self) -> list[str]:
        """Start the gateways of this machine that do not run yet; answer their names."""
        new = [name for name in self._folder.gateways() if name not in self.supervisor.children]
        for name in new:
            self.supervisor.start(self._process(name))
        return new

    async def wait_ready(self, addresses: Mapping[str, str]) -> None:
        """Wait until each address answers SERVING to a health check over mTLS. Raises SERVICE_UNAVAILABLE."""
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.gather(*(self._healthy(name, address) for name, address in addresses.items()))
        except TimeoutError:
            raise refused(
                Reason.SERVICE_UNAVAILABLE,
                f"not every service was ready within {READY_S:.0f} s",
                lifted_by=f"reading the logs in {self._folder.path / 'logs'}",
                who="the operator",
            ) from None

    async def stop(self) -> None:
        """Stop everything, Redis last, and leave no socket behind."""
        if self._channels is not None:
            await self._channels.close()
        await self.supervisor.stop_all(last=(REDIS,))
        shutil.rmtree(self._runtime, ignore_errors=True)

    async def _healthy(self, name: str, address: str) -> None:
        channel = self._channel(name, address)
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.1)

    def _channel(self, name: str, address: str) -> grpc.aio.Channel:
        if self._channels is None:
            home = self._folder.path / "pki" / "services" / first.SUPERVISOR
            tls = TlsFiles(home / "tls.pem", home / "tls.key", self._folder.trust)
            self._channels = Channels(tls=tls, trust_domain=self.trust_domain, clock=SystemClock())
        if name in SERVICES:
            return self._channels.service(address, name)
        return self._channels.gateway(address, name)

    def _redis(self) -> ChildSpec:
        arguments = server_arguments(find_server(), self._runtime)
        shim = [sys.executable, "-m", "vigil.run.child", str(os.getpid())]
        return ChildSpec(REDIS, [*shim, *arguments], self._folder.log(REDIS))

    def _process(self, name: str) -> ChildSpec:
        module = python_module(name) if name in SERVICES else "vigil.gateway"
        config = config_path(self._folder, name)
        return ChildSpec(
            name, [sys.executable, "-m", module, "--config", str(config)], self._folder.log(name)
        )


def metrics_of(endpoints: Mapping[str, str]) -> dict[str, str]:
    """An address on the loopback interface for the metrics of each service, free at this moment."""
    taken = {port_of(address) for address in endpoints.values()}
    ports = free_ports(len(SERVICES), max(taken, default=0) + METRICS_BEHIND, taken)
    return {service: f"127.0.0.1:{port}" for service, port in zip(SERVICES, ports, strict=True)}


async def up(folder: DataFolder, installation: Installation, *, gateway: bool, output: str) -> None:
    """Start, show what runs where, and stay until SIGINT, SIGTERM or the end of whoever started this as its child."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parent = os.environ.get(PARENT_FD, "")
    if parent.isdecimal():
        watch_parent(int(parent), stop.set)
    starting = asyncio.ensure_future(_start(folder, installation, gateway=gateway))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        if not stop.is_set():
            show(folder, installation.supervisor, output=output)
            await _stay(folder, installation, stop)
    finally:
        stopping.cancel()
        await installation.stop()


async def _start(folder: DataFolder, installation: Installation, *, gateway: bool) -> None:
    await installation.start()
    if gateway and not folder.gateways():
        await seed.seed_first_gateway(folder, trust_domain=installation.trust_domain)
    names = await installation.start_gateways()
    endpoints = folder.read_endpoints()
    await installation.wait_ready({name: endpoints[name] for name in names})


async def _stay(folder: DataFolder, installation: Installation, stop: asyncio.Event) -> None:
    clock = SystemClock()
    renewed_at = clock.monotonic()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SCAN_INTERVAL_S)
        for name in await installation.start_gateways():
            installation.say(f"{name} found and started")
        if clock.monotonic() - renewed_at > RENEW_INTERVAL_S:
            renewed_at = clock.monotonic()
            for role in first.renew_services(folder):
                installation.say(f"the certificate of {role} was renewed")


def show(folder: DataFolder, supervisor: Supervisor, *, output: str) -> None:
    """Print what runs where: a table for people, one JSON object for machines."""
    endpoints = folder.read_endpoints()
    rows = [
        (name, endpoints.get(name, "(private socket)"), child.process.pid if child.process else 0)
        for name, child in supervisor.children.items()
    ]
    tiles = f"http://{endpoints[TILES]}"
    if output == "json":
        services = [{"name": name, "endpoint": endpoint, "pid": pid} for name, endpoint, pid in rows]
        ready = {"ready": True, "data": str(folder.path), "services": services, "tiles": tiles}
        print(json.dumps(ready), flush=True)  # noqa: T201
        return
    table = Table(title=f"Vigil is ready · data in {folder.path}", title_justify="left")
    for heading in ("process", "listens on", "pid"):
        table.add_column(heading)
    for name, endpoint, pid in rows:
        table.add_row(name, endpoint, str(pid))
    console = Console()
    console.print(table)
    console.print(f"The evidence log's tiles (docs/evidence.md): {tiles}")
    console.print(
        "In another terminal: [bold]vigil status[/], [bold]vigil device list[/], "
        "[bold]vigil command send --help[/]. Ctrl-C stops everything."
    )


def prepare(
    data: Path,
    *,
    trust_domain: str,
    base_port: int | None,
    passphrase_file: Path | None,
    say: Callable[[str], None],
) -> DataFolder:
    """Make the first start if there was none, renew what is due, raise the file limit. The caller holds the folder."""
    folder = DataFolder(data)
    if folder.exists():
        first.renew_services(folder)
        first.choose_endpoints(folder, base_port)
    else:
        made = first.first_start(
            folder, trust_domain=trust_domain, base_port=base_port, passphrase_file=passphrase_file
        )
        say(f"first start: a new trust domain {trust_domain} with its root in {made.root_directory}")
        if made.passphrase_file:
            say(f"the root's passphrase lies in {made.passphrase_file}")
        say("move the root's folder to offline storage now: nothing here needs it (docs/operations.md)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return folder


def trust_domain_of(folder: DataFolder) -> str:
    """The trust domain that the first start made."""
    from vigil.identity.ceremony import read_bundle

    return read_bundle(folder.path).trust_domain


def run(
    data: Path,
    *,
    base_port: int | None,
    trust_domain: str,
    gateway: bool,
    output: str,
    passphrase_file: Path | None = None,
    metrics: bool = False,
) -> int:
    """Run until stopped; returns the exit code. Raises Refused with what a person can do about it."""

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)  # noqa: T201 - words go to stderr

    data = data.absolute()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with DataFolder(data).exclusively():
        folder = prepare(
            data, trust_domain=trust_domain, base_port=base_port, passphrase_file=passphrase_file, say=say
        )

        async def main() -> None:
            installation = Installation(
                folder, trust_domain=trust_domain_of(folder), metrics=metrics, say=say
            )
            await up(folder, installation, gateway=gateway, output=output)

        try:
            asyncio.run(main())
        except Refused as error:
            say(f"{error.refusals[0].sentence} ({error.reason}); {error.refusals[0].lifted_by}")
            return 1
    return 0
