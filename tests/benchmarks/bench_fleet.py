"""Revocations across a whole fleet: its return, one to every pump, many at once, and a gateway that hears nothing.

Three processes on these cores: service, edge, evidence and bus in one; all gateways in another; all devices in a
third. The gateways follow, verify, persist, sign and acknowledge with their own code over real mTLS, each with its own
key; each device keeps its own state and checks head, signature and chain. What is simulated: the gateways share one
disk, a gateway's devices share one message in which each has a frame of its own (no device's own link), and a device
keeps what it learns in memory, not in flash. So a few cores do here what 1,200 gateways and 50,000 pumps do on as
many machines, and the figures are the whole of it.
"""

import asyncio
import contextlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop

from tests.benchmarks.bench_revocation import bare_channel, bare_fan_out, serve
from tests.benchmarks.fleet import (
    PATIENCE_S,
    DeviceLinks,
    DeviceSide,
    FleetGateway,
    LightGateway,
    Plug,
    device_id,
    sync_frame,
)
from tests.benchmarks.result import Growth, Progress, Result, Row, percentile, ratio_under, split, under
from tests.support.followers import own_database
from tests.support.pki import TRUST_DOMAIN, TestPki
from tests.unit.revocation.support import revocation
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core import cose
from vigil.core.certificates import Kind
from vigil.core.classes import LEASE_S
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import ActionClass
from vigil.errors import Reason
from vigil.gateway.domain import lease_refusal
from vigil.rpc import status
from vigil.rpc.channel import Channels
from vigil.storage import Database

TITLE = "Revocations across a fleet"

BARE = "a bare gRPC fan-out of the same bytes, all answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the fleet is, and how much is revoked: ``statements`` of ``ids`` each at once; ``missed`` before."""

    gateways: int
    devices_each: int
    statements: int
    ids: int
    missed: int
    rounds: int


FULL = Size(gateways=1_200, devices_each=42, statements=10, ids=1_000, missed=8, rounds=3)
QUICK = Size(gateways=40, devices_each=10, statements=2, ids=150, missed=4, rounds=1)
"""A statement has at most 1,024 ids; these are more than one person may revoke alone."""


class _Fleet:
    """Everything that runs, and who revokes."""

    def __init__(
        self, pki: TestPki, folder: Path, size: Size, ports: dict[str, int], devices_port: int
    ) -> None:
        self.pki = pki
        self.size = size
        self.ports = ports
        self.target = f"127.0.0.1:{ports['edge']}"
        self.credentials = [pki.issue(Kind.GATEWAY, f"gateway-{number}") for number in range(size.gateways)]
        self._people = (pki.admin(1), pki.admin(2))
        self._channels = [
            Channels(tls=one.tls_files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
            for one in self._people
        ]
        address = f"127.0.0.1:{ports['revocation']}"
        self._stubs: list[Any] = [
            revocation_pb2_grpc.RevocationServiceStub(one.service(address, "revocation"))
            for one in self._channels
        ]
        self.control = bare_channel(pki, self._people[0], ports["bare"])
        self.to_devices = bare_channel(pki, self._people[0], devices_port)
        self.database: Database = own_database(folder / "gateways.db")
        self._number = 0

    async def devices(self, method: str, request: bytes = b"") -> bytes:
        """Call the devices' side."""
        answer: bytes = await self.to_devices.unary_unary(f"/fleet/{method}")(request, timeout=PATIENCE_S)
        return answer

    async def revoke(self) -> int:
        """Revoke one more device, by the two people in turn: each of them may revoke a few alone."""
        self._number += 1
        who = self._number % 2
        return await self._sent(who, revocation(self._people[who], device_id(self._number)).data)

    async def proposed(self, count: int) -> bytes:
        """One person's word on so many devices, which needs a second one's; answers that one's, not yet given."""
        names = [device_id(self._number + place) for place in range(1, count + 1)]
        self._number += count
        first, second = (revocation(one, *names).data for one in self._people)
        try:
            await self._sent(0, first)
        except grpc.aio.AioRpcError as error:
            if status.from_rpc_error(error).reason is not Reason.SECOND_PERSON_REQUIRED:
                raise
        else:
            raise AssertionError("one person revoked many alone")
        return second

    async def confirm(self, word: bytes) -> int:
        """Give the second person's word."""
        return await self._sent(1, word)

    async def _sent(self, who: int, data: bytes) -> int:
        request = revocation_pb2.RevokeRequest(revocation=data)
        return int((await self._stubs[who].Revoke(request, timeout=PATIENCE_S)).epoch)

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._channels))
        await self.control.close()
        await self.to_devices.close()
        self.database.close()


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure one thing after the other, in one installation."""
    size = QUICK if quick else FULL
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki = TestPki(folder)
        async with _processes(folder, pki) as (ports, devices_port):
            fleet = _Fleet(pki, folder, size, ports, devices_port)
            progress(0.1)
            try:
                result = await _measured(fleet, split(progress, 0.1, 1.0))
            finally:
                await fleet.close()
    progress(1.0)
    return result


@asynccontextmanager
async def _processes(folder: Path, pki: TestPki) -> AsyncIterator[tuple[dict[str, int], int]]:
    """The served side and the devices' side, forked before this process opens its first channel."""
    forking = multiprocessing.get_context("fork")
    ours, theirs = multiprocessing.Pipe()
    devices_ours, devices_theirs = multiprocessing.Pipe()
    children = [
        forking.Process(target=serve, args=(folder, pki, theirs)),
        forking.Process(target=_serve_devices, args=(pki, devices_theirs)),
    ]
    for child in children:
        child.start()
    try:
        yield await asyncio.to_thread(ours.recv), await asyncio.to_thread(devices_ours.recv)
    finally:
        for pipe in (ours, devices_ours):
            with contextlib.suppress(OSError):
                pipe.send(None)
        for child in children:
            await asyncio.to_thread(child.join, 20)
            child.kill()


def _serve_devices(pki: TestPki, pipe: Connection) -> None:
    async def serve_all() -> None:
        side = DeviceSide(pki)
        files = pki.service("bare").tls_files
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((side.handlers(),))
        credentials = grpc.ssl_server_credentials(
            [(files.key.read_bytes(), files.certificate.read_bytes())],
            pki.bundle.root_pem,
            require_client_auth=True,
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        pipe.send(port)
        await asyncio.to_thread(pipe.recv)
        await server.stop(None)

    uvloop.run(serve_all())


async def _measured(fleet: _Fleet, progress: Progress) -> Result:
    rows: list[Row] = []
    bytes_of_one = len(revocation(fleet.pki.admin(1), device_id(1)).data) + 1_200
    floor = await bare_fan_out(fleet.pki, fleet.credentials, fleet.ports["bare"], bytes_of_one, 5)
    progress(0.15)
    async with AsyncExitStack() as stack:
        links = DeviceLinks(fleet.to_devices, each=0)
        gateways = [
            FleetGateway(one, database=fleet.database, target=fleet.target, links=links)
            for one in fleet.credentials
        ]
        for gateway in gateways:
            stack.push_async_callback(gateway.stop)
        rows.append(await _returned(fleet, gateways))
        progress(0.35)
        rows += await _one_to_all(fleet, gateways, floor)
        progress(0.5)
        row, part, growth = await _to_devices(fleet, gateways, links, split(progress, 0.5, 0.7))
        rows.append(row)
    progress(0.7)
    rows.append(await _cut_off(fleet))
    progress(0.85)
    # Last: after so many at once nobody may revoke alone for a while.
    rows += await _many_at_once(fleet)
    return Result(rows=tuple(rows), parts=(part,), growth=(growth,))


async def _returned(fleet: _Fleet, gateways: Sequence[FleetGateway]) -> Row:
    """All gateways dial at the same moment, and lack a few revocations; current is who enforces and has a lease."""
    for _ in range(fleet.size.missed):
        epoch = await fleet.revoke()
    began = time.perf_counter()
    for gateway in gateways:
        gateway.start()
    await _until(
        lambda: all(one.view.state.epoch >= epoch and one.view.lease_age() < LEASE_S for one in gateways),
        gateways,
    )
    took = time.perf_counter() - began
    again = sum(one.dialled for one in gateways) - len(gateways)
    return Row(
        work=f"{len(gateways):,} gateways return at once, {fleet.size.missed} revocations behind: all current",
        figure=took,
        unit="s",
        target=under(10),
        note=f"{again} streams were lost and opened again; with the handshakes of both sides and the gateways' own"
        " verifying, persisting and signing on the same cores",
    )


async def _one_to_all(fleet: _Fleet, gateways: Sequence[FleetGateway], floor: float) -> list[Row]:
    """Times in ms from the call of Revoke, which commits, to each gateway's enforcing, and to the last stored word."""
    p50, p99, last, stored, cpu = [], [], [], [], []
    for _ in range(fleet.size.rounds):
        await asyncio.sleep(1.0)
        used, began = time.process_time(), time.perf_counter()
        epoch = await fleet.revoke()
        asked = json.dumps([epoch, len(gateways)]).encode()
        await fleet.control.unary_unary("/bare/Wait")(asked, timeout=PATIENCE_S)
        stored.append((time.perf_counter() - began) * 1000)
        cpu.append((time.process_time() - used) * 1e6 / len(gateways))
        for gateway in gateways:
            gateway.check()
        if any(one.view.state.epoch < epoch for one in gateways):
            raise AssertionError("a word was stored of a gateway that does not enforce it")
        times = [(one.enforced - began) * 1000 for one in gateways]
        p50.append(percentile(times, 0.5))
        p99.append(percentile(times, 0.99))
        last.append(max(times))
    many = f"{len(gateways):,} gateways with all their own work"
    return [
        Row(
            work=f"{many}, the last one enforces it",
            figure=_median(last),
            unit="ms",
            floor=floor,
            floor_is=BARE,
            target=under(1_000),
            note=f"from the call that commits it: p50 {_median(p50):.0f} ms, p99 {_median(p99):.0f} ms",
        ),
        Row(
            work=f"{many}, the last one's stored acknowledgement",
            figure=_median(stored),
            unit="ms",
            floor=floor,
            floor_is=BARE,
            note=f"{_median(cpu):.0f} µs of CPU for each gateway's stream, verify, state and signature are in it, which"
            " as many machines share in the field; `revocation` measures it without, against its target",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reached:
    """So many devices: when they enforced it, in seconds from the call; CPU in seconds of their side, and ours."""

    count: int
    p50: float
    p99: float
    last: float
    devices_cpu: float
    gateways_cpu: float


async def _reach(fleet: _Fleet, gateways: Sequence[FleetGateway], links: DeviceLinks, each: int) -> _Reached:
    """One revocation to so many devices behind each gateway, brought to the epoch before it beforehand."""
    view, count = gateways[0].view, fleet.size.gateways * each
    links.each = 0
    await _until(lambda: len({one.view.state.epoch for one in gateways}) == 1, gateways)
    synced = int(await fleet.devices("Sync", sync_frame(count, await view.after(0), view.head)))
    if synced != view.state.epoch:
        raise AssertionError(f"the devices stand at epoch {synced}, the gateways at {view.state.epoch}")
    before = float(await fleet.devices("Expect", str(synced + 1).encode()))
    links.each = each
    began, used = time.perf_counter(), time.process_time()
    waiting = asyncio.ensure_future(fleet.devices("Wait"))
    epoch = await fleet.revoke()
    if epoch != synced + 1:
        raise AssertionError(f"epoch {epoch} was revoked, {synced + 1} expected")
    await _until(waiting.done, gateways)
    told = json.loads(await waiting)
    return _Reached(
        count=count,
        **{name: told[name] - began for name in ("p50", "p99", "last")},
        devices_cpu=told["cpu"] - before,
        gateways_cpu=time.process_time() - used,
    )


async def _to_devices(
    fleet: _Fleet, gateways: Sequence[FleetGateway], links: DeviceLinks, progress: Progress
) -> tuple[Row, str, Growth]:
    """One revocation to every device, and before it one to about a tenth of them."""
    verify_s = _verify_seconds(fleet.pki, 2_000)
    few = await _reach(fleet, gateways, links, fleet.size.devices_each // 10)
    progress(0.3)
    many = await _reach(fleet, gateways, links, fleet.size.devices_each)
    progress(1.0)
    row = Row(
        work=f"one revocation to {many.count:,} devices behind them, the last one enforces it",
        figure=many.last,
        unit="s",
        floor=verify_s * many.count,
        floor_is=f"{many.count:,} bare verifies on one core",
        target=ratio_under(2),
        note=f"from the call that commits it: p50 {many.p50:.2f} s, p99 {many.p99:.2f} s; every device verifies the"
        " head's signature and the chain itself, all of them in one process. The devices of a gateway share one"
        " message here, with a frame for each, and keep their state in memory",
    )
    part = (
        f"CPU µs a device: a bare verify {verify_s * 1e6:.0f}; the device's reading, verifying and enforcing"
        f" {many.devices_cpu * 1e6 / many.count:.0f} in all; the gateways' side"
        f" {many.gateways_cpu * 1e6 / many.count:.0f}"
    )
    growth = Growth(
        what=f"devices behind {fleet.size.gateways:,} gateways, {few.count:,} to {many.count:,}: the last one enforces"
        " a revocation",
        small=few.last,
        large=many.last,
        unit="s",
        reading=f"with {many.count / few.count:.1f} times the devices; less means that the gateways' own part, which"
        " does not grow, still counts",
    )
    return row, part, growth


async def _many_at_once(fleet: _Fleet) -> list[Row]:
    """One gateway enforces with its own code, the others' streams take everything."""
    size = fleet.size
    light = [LightGateway(one, target=fleet.target) for one in fleet.credentials[1:]]
    real = FleetGateway(fleet.credentials[0], database=fleet.database, target=fleet.target)
    everybody = (real, *light)
    try:
        for number, one in enumerate(everybody):
            one.start()
            if number % 50 == 49:
                await asyncio.sleep(0.2)
        await _until(
            lambda: all(one.epoch >= 0 for one in light) and real.view.lease_age() < LEASE_S, everybody
        )
        words = [await fleet.proposed(size.ids) for _ in range(size.statements)]
        began = time.perf_counter()
        epoch = max(await asyncio.gather(*(fleet.confirm(word) for word in words)))
        await _until(
            lambda: all(one.epoch >= epoch for one in light) and real.view.state.epoch >= epoch, everybody
        )
        times = [one.reached - began for one in light] + [real.enforced - began]
    finally:
        await asyncio.gather(*(one.stop() for one in everybody))
    sent = sum(map(len, words)) * size.gateways / 1e6
    return [
        Row(
            work=f"{size.statements * size.ids:,} devices revoked at once, the last of {size.gateways:,} gateways has"
            " them all",
            figure=max(times),
            unit="s",
            target=under(5),
            note=f"in {size.statements} statements of {size.ids:,} devices each, confirmed by a second person,"
            f" {sent:,.1f} MB over mTLS; p50 {percentile(times, 0.5):.2f} s, p99 {percentile(times, 0.99):.2f} s."
            f" One gateway enforces them with its own code (after {times[-1]:.2f} s), the others' streams take them",
        )
    ]


async def _cut_off(fleet: _Fleet) -> Row:
    """The plug is pulled right after a head; then a command of class C is tried again and again until refused."""
    plug = Plug(fleet.ports["edge"])
    target = await plug.start()
    gateway = FleetGateway(fleet.credentials[0], database=fleet.database, target=target)
    try:
        gateway.start()
        await _until(lambda: gateway.view.lease_age() < LEASE_S, (gateway,))
        age = gateway.view.lease_age()

        def renewed() -> bool:
            nonlocal age
            before, age = age, gateway.view.lease_age()
            return age < before

        await _until(renewed, (gateway,))
        plug.pull()
        epoch = await fleet.revoke()
        revoked = last = time.perf_counter()
        while lease_refusal(ActionClass.C, lease_age_s=gateway.view.lease_age()) is None:
            last = time.perf_counter()
            await asyncio.sleep(0.005)
        if gateway.view.state.epoch >= epoch or not plug.held:
            raise AssertionError("the plug was not pulled")
    finally:
        await gateway.stop()
        await plug.stop()
    return Row(
        work="gateway cut off: its last allowed command of class C after the revocation",
        figure=last - revoked,
        unit="s",
        target=under(LEASE_S),
        note="class C alone is measured, by the gateway's own lease and its own check, not by whole commands; the"
        f" lease of {LEASE_S:.0f} s bounds it, and {plug.held:,} bytes came in vain meanwhile",
    )


async def _until(condition: Callable[[], bool], watched: Sequence[FleetGateway | LightGateway]) -> None:
    """Wait; raises at once what ended or failed on the way, which would be waited for in vain."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            for one in watched:
                one.check()
            await asyncio.sleep(0.02)


def _median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)


def _verify_seconds(pki: TestPki, count: int) -> float:
    """Seconds of one core for one bare verify of a statement's signature."""
    operator = pki.admin(1)
    sign1 = revocation(operator, device_id(1)).sign1
    public = operator.identity.public_key
    began = time.process_time()
    for _ in range(count):
        if not cose.check_signature(sign1, public):
            raise AssertionError("a good signature does not verify")
    return (time.process_time() - began) / count
