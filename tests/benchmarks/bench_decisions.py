"""Decisions of the policy service, recorded durably, beside a bare query of an OPA server in the same run.

Everything is real: policy and evidence in processes of their own, mTLS, every signature, Rego in WebAssembly, group
commits with synchronous=FULL, 50,000 devices in memory. The floor asks an OPA server the same rules with the same
question through opa-python-client's async side: nothing verified, signed or kept.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opa_client import AsyncOpaClient  # type: ignore[import-untyped] # the library carries no types

from tests.benchmarks import parts
from tests.benchmarks.result import (
    Growth,
    Progress,
    Result,
    Row,
    percentile,
    ratio_at_least,
    ratio_under,
    under,
)
from tests.support.opa import OpaServer
from tests.support.policy_documents import CHANGE
from tests.support.policy_world import Exchanged, PolicyWorld, decide_item
from vigil.api.policy.v1 import policy_pb2
from vigil.errors import Reason, Refused
from vigil.policy.engine.bundle import DEFAULT_BUNDLE

TITLE = "Decisions of the policy service, recorded durably"

CALLERS = 64
TIMES = 10
"""How many times more of something growth is measured with."""
ASKED = 256
STREAMS = 16
NO_ROOM = frozenset(
    {
        Reason.QUOTA_EXCEEDED,
        Reason.DEADLINE_EXCEEDED,
        Reason.EVIDENCE_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
        Reason.SERVICE_UNAVAILABLE,
    }
)
"""How a service says that it has no place for one more now."""
AGAIN_S = 0.2
"""Whoever was refused for want of room asks again after this."""
CROWD_S = 120.0
IDLE_S = 2.0
SETTLED = 0.1
"""Cores; feeds and heads take less."""
SETTLED_IN = 20
"""Looks, of IDLE_S each: what the index is behind after so many callers is caught up in a second or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done; ``grown``: commands of each further measurement. Of the commands an eighth warms caches."""

    commands: int
    grown: int
    alone: int
    devices: int
    floor_seconds: float


FULL = Size(commands=6_000, grown=3_000, alone=400, devices=50_000, floor_seconds=3.0)
QUICK = Size(commands=1_600, grown=800, alone=150, devices=4_000, floor_seconds=1.0)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure beside the OPA server of this very run."""
    size = QUICK if quick else FULL
    measured = await asyncio.to_thread(parts.measure)
    figures = await _figures(size, progress)
    policy, evidence = figures["policy_cpu_us"], figures["evidence_cpu_us"]
    asked = "a bare query of an OPA server"
    return Result(
        rows=(
            Row(
                work="64 callers",
                figure=figures["decisions_per_s"],
                unit="decisions/s",
                floor=figures["opa_per_s"],
                floor_is=asked,
                target=ratio_at_least(0.7),
                note=f"{(policy + evidence) / 1000:.2f} ms of CPU a decision, in two processes",
            ),
            Row(
                work="1 caller, p50",
                figure=figures["decision_1_p50_ms"],
                unit="ms",
                floor=figures["opa_1_p50_ms"],
                floor_is=asked,
                target=ratio_under(2.5),
            ),
            Row(
                work="1 caller, p99",
                figure=figures["decision_1_p99_ms"],
                unit="ms",
                floor=figures["opa_1_p99_ms"],
                floor_is=asked,
            ),
            Row(
                work=f"memory of a replica with {size.devices:,} devices",
                figure=figures["resident_mb"],
                unit="MB",
                target=under(300),
            ),
        ),
        parts=(
            f"CPU ms a decision: policy {policy / 1000:.2f}, evidence {evidence / 1000:.2f}",
            *_parts(measured, figures),
        ),
        growth=_growth(size, figures),
    )


def _parts(measured: Sequence[parts.Part], figures: dict[str, float]) -> tuple[str, ...]:
    """What one decision with one caller is made of; its statements are intent, approvals and command."""
    given = int(figures["statements"])
    found = parts.counted(
        measured,
        {
            "a statement read": {"policy": given, "evidence": given + 1},
            "a signature verified": {"policy": given, "evidence": given + 1},
            "Rego in WebAssembly": {"policy": 1},
            "a statement signed": {"policy": 1},
            "a row made durable": {"evidence": 1},
        },
    )
    cpu = figures["alone_policy_cpu_ms"], figures["alone_evidence_cpu_ms"]
    p50 = figures["decision_1_p50_ms"]
    alone = (
        f"1 caller: of p50 {p50:.2f} ms the two processes compute {sum(cpu):.2f} ms a decision (policy {cpu[0]:.2f},"
        f" evidence {cpu[1]:.2f}), one after the other: evidence is asked when policy has signed;"
        f" {figures['alone_idle_cpu_ms']:.2f} ms of it they also spend in that time when nobody asks (feeds, heads)"
    )
    return (alone, *parts.shown("a decision with 1 caller", found, total_ms=sum(cpu)))


def _growth(size: Size, figures: dict[str, float]) -> tuple[Growth, ...]:
    few, many = size.devices // TIMES, size.devices
    refused = (
        f"refused at once for want of room {figures['crowd_refused']:,.0f} times in {size.grown:,} decisions, and asked"
        f" again {AGAIN_S:g} s later"
    )
    return (
        Growth(
            what=f"devices in the replica, {few:,} to {many:,}: policy's CPU for a decision, {CALLERS} callers",
            small=figures["few_devices_cpu_ms"],
            large=figures["many_devices_cpu_ms"],
            unit="ms",
            reading="facts are looked up by id in memory: 1.0 is no cost at all; at"
            f" {figures['few_devices_per_s']:,.0f} and {figures['many_devices_per_s']:,.0f} decisions a second",
        ),
        Growth(
            what=f"devices in the replica, {few:,} to {many:,}: memory of the policy process",
            small=figures["few_mb"],
            large=figures["resident_mb"],
            unit="MB",
            reading=f"{(figures['resident_mb'] - figures['few_mb']) * 1e3 / (many - few):.1f} kB a device more,"
            " beside what the process takes without any",
        ),
        Growth(
            what=f"callers, {CALLERS} to {TIMES * CALLERS}: decisions done",
            small=figures["many_devices_per_s"],
            large=figures["crowd_per_s"],
            unit="decisions/s",
            reading=f"1.0 is a rate that a crowd does not bring down; {refused}",
        ),
        Growth(
            what=f"callers, {CALLERS} to {TIMES * CALLERS}: p50 from the first asking",
            small=figures["many_devices_p50_ms"],
            large=figures["crowd_p50_ms"],
            unit="ms",
            reading=f"a closed loop at one rate waits as long as it is crowded: {TIMES} is a fair queue, nothing worse",
        ),
    )


async def _figures(size: Size, progress: Progress) -> dict[str, float]:
    figures = await _floor(size.floor_seconds, progress)
    with tempfile.TemporaryDirectory() as folder:
        async with PolicyWorld(Path(folder)) as world:
            exchange = world.exchange(streams=STREAMS)
            few = size.devices // TIMES
            devices = await _populate(world, 0, few)
            figures["few_mb"] = await _settled_mb(world)
            items = await _items(world, devices, size.grown + size.commands // 8, progress)
            await _carry(exchange, items[size.grown :], CALLERS)
            figures |= await _grown(world, exchange, items[: size.grown], CALLERS, "few_devices")
            await _populate(world, few, size.devices)
            figures["resident_mb"] = await _settled_mb(world)
            progress(0.5)
            figures |= await _measured(world, exchange, devices, size, progress)
    progress(1.0)
    return figures


async def _measured(
    world: PolicyWorld, exchange: Exchanged, devices: Sequence[str], size: Size, progress: Progress
) -> dict[str, float]:
    """The figures proper, and those of a crowd, with every device in memory."""
    figures: dict[str, float] = {}
    items = await _items(world, devices, size.commands + size.alone + 2 * size.grown, progress)
    figures["statements"] = 2 + len(items[0].approvals)
    alone, items = items[: size.alone], items[size.alone :]
    grown, many = items[: 2 * size.grown], items[2 * size.grown :]
    warm, measured = many[: size.commands // 8], many[size.commands // 8 :]
    await _attest(world, devices)
    await _carry(exchange, warm, CALLERS)
    progress(0.8)
    cpu, evidence = world.cpu_seconds(), world.evidence.cpu_seconds()
    seconds, latencies = await _carry(exchange, measured, CALLERS)
    figures["decisions_per_s"] = len(latencies) / seconds
    figures |= _latencies("decision_64", latencies)
    figures["policy_cpu_us"] = (world.cpu_seconds() - cpu) * 1e6 / len(latencies)
    figures["evidence_cpu_us"] = (world.evidence.cpu_seconds() - evidence) * 1e6 / len(latencies)
    idle = await _settled_cpu(world)
    cpu, evidence = world.cpu_seconds(), world.evidence.cpu_seconds()
    seconds, latencies = await _carry(exchange, alone, 1)
    figures["alone_idle_cpu_ms"] = idle * seconds * 1e3 / len(latencies)
    figures |= _latencies("decision_1", latencies)
    figures["alone_policy_cpu_ms"] = (world.cpu_seconds() - cpu) * 1e3 / len(latencies)
    figures["alone_evidence_cpu_ms"] = (world.evidence.cpu_seconds() - evidence) * 1e3 / len(latencies)
    progress(0.9)
    await _attest(world, devices)
    figures |= await _grown(world, exchange, grown[: size.grown], CALLERS, "many_devices")
    return figures | await _grown(world, exchange, grown[size.grown :], TIMES * CALLERS, "crowd")


async def _settled_cpu(world: PolicyWorld) -> float:
    """Cores that both processes take while nobody asks, once what was left to do behind the log is done."""
    for _ in range(SETTLED_IN):
        before = world.cpu_seconds() + world.evidence.cpu_seconds()
        await asyncio.sleep(IDLE_S)
        idle = (world.cpu_seconds() + world.evidence.cpu_seconds() - before) / IDLE_S
        if idle < SETTLED:
            break
    return idle


async def _grown(
    world: PolicyWorld,
    exchange: Exchanged,
    items: Sequence[policy_pb2.DecideItem],
    callers: int,
    name: str,
) -> dict[str, float]:
    """Decisions done a second by so many callers; who finds no room asks again, and its waiting counts."""
    left = iter(items)
    latencies: list[float] = []
    refused = 0

    async def decided(item: policy_pb2.DecideItem) -> policy_pb2.DecideOutcome:
        nonlocal refused
        while True:
            try:
                return await exchange.call(item)
            except Refused as refusal:
                if refusal.reason not in NO_ROOM:
                    raise
            refused += 1
            await asyncio.sleep(AGAIN_S)

    async def caller() -> None:
        for item in left:
            began = time.perf_counter()
            outcome = await decided(item)
            assert outcome.decided.HasField("recorded"), outcome.decided.refusal.message
            latencies.append(time.perf_counter() - began)

    cpu, began = world.cpu_seconds(), time.perf_counter()
    async with asyncio.timeout(CROWD_S):
        await asyncio.gather(*(caller() for _ in range(callers)))
    seconds = time.perf_counter() - began
    return {
        f"{name}_per_s": len(latencies) / seconds,
        f"{name}_p50_ms": percentile(latencies, 0.5) * 1000,
        f"{name}_refused": float(refused),
        f"{name}_cpu_ms": (world.cpu_seconds() - cpu) * 1e3 / len(latencies),
    }


async def _floor(seconds: float, progress: Progress) -> dict[str, float]:
    with OpaServer(DEFAULT_BUNDLE) as server:
        await server.ready()
        async with AsyncOpaClient(host="127.0.0.1", port=server.port, timeout=30.0) as client:

            async def ask() -> None:
                answer = await client.query_rule(CHANGE, "vigil/command/decision")
                assert answer["result"]["allow"] is True

            await _timed(ask, CALLERS, 0.5)
            took, many = await _timed(ask, CALLERS, seconds)
            progress(0.15)
            _, alone = await _timed(ask, 1, seconds)
    progress(0.3)
    return {"opa_per_s": len(many) / took, **_latencies("opa_64", many), **_latencies("opa_1", alone)}


async def _timed(
    ask: Callable[[], Awaitable[None]], callers: int, seconds: float
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        while (started := time.perf_counter()) - began < seconds:
            await ask()
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - began, latencies


def _device(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "dev-" + "".join(letters[(number >> 5 * place) & 31] for place in range(16))


async def _populate(world: PolicyWorld, first: int, end: int) -> list[str]:
    """Devices of these numbers into memory; commands go to the first few of all, whose results are their own."""
    room = world.room
    hour = room.clock.now() + 3_600_000
    other: Any = room.result_row()
    # One of another device stands in every further row: its bytes weigh the same.
    rows: list[tuple[str, str, Any]] = []
    asked = min(ASKED, end)
    for number in range(first, end):
        device_id = _device(number)
        own = room.result_row(device_id, therapy_stale_at=hour, stale_at=hour) if number < asked else None
        result = own or type(other)(device_id=device_id, result=other.result)
        rows += [("device", device_id, room.device_row(device_id)), ("result", device_id, result)]
    await world.put(*rows)
    last = room.intent("read-diagnostics", devices=(_device(end - 1),))
    request = policy_pb2.PreviewDecisionRequest(
        gateway_id="gateway-1", device_id=_device(end - 1), intent=last.data
    )
    stub = world.stub()
    async with asyncio.timeout(120):
        while not await _known(stub, request):  # noqa: ASYNC110 - asks the other process
            await asyncio.sleep(0.1)
    return [_device(number) for number in range(asked)]


async def _attest(world: PolicyWorld, devices: Sequence[str]) -> None:
    """Newer results of these devices: a result is worth as much time as the profile gives it, whatever it says."""
    hour = world.room.clock.now() + 3_600_000
    rows = [
        ("result", name, world.room.result_row(name, therapy_stale_at=hour, stale_at=hour))
        for name in devices
    ]
    await world.put(*rows)
    await asyncio.sleep(IDLE_S)


async def _settled_mb(world: PolicyWorld) -> float:
    """Memory of the policy process once every feed has arrived: when it has stopped growing."""
    before, now = 0, world.resident_bytes()
    while now > before:
        await asyncio.sleep(1.5)
        before, now = now, world.resident_bytes()
    return max(before, now) / 1e6


async def _known(stub: Any, request: policy_pb2.PreviewDecisionRequest) -> bool:

    try:
        await stub.PreviewDecision(request)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _items(
    world: PolicyWorld, devices: Sequence[str], count: int, progress: Progress
) -> list[policy_pb2.DecideItem]:
    made = []
    for number in range(count):
        made.append(decide_item(world.room.item(device_id=devices[number % len(devices)])))
        if not number % 20:
            # The owners of this world live here too, and answer in between.
            await asyncio.sleep(0)
            progress(0.4 + 0.3 * number / count)
    return made


async def _carry(
    exchange: Exchanged, items: Sequence[policy_pb2.DecideItem], callers: int
) -> tuple[float, list[float]]:
    """Every command once; seconds in all and of each."""
    left = iter(items)
    latencies: list[float] = []

    async def caller() -> None:
        for item in left:
            began = time.perf_counter()
            outcome = await exchange.call(item)
            latencies.append(time.perf_counter() - began)
            assert not outcome.decided.HasField("refusal"), outcome.decided.refusal.message
            assert outcome.decided.HasField("recorded")

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - began, latencies


def _latencies(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50_ms": percentile(seconds, 0.5) * 1000,
        f"{name}_p99_ms": percentile(seconds, 0.99) * 1000,
    }
