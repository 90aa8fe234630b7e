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

from tests.benchmarks.result import Progress, Result, Row, percentile, ratio_at_least, ratio_under, under
from tests.support.opa import OpaServer
from tests.support.policy_documents import CHANGE
from tests.support.policy_world import Exchanged, PolicyWorld, decide_item
from vigil.api.policy.v1 import policy_pb2
from vigil.policy.engine.bundle import DEFAULT_BUNDLE

TITLE = "Decisions of the policy service, recorded durably"

CALLERS = 64
ASKED = 256
STREAMS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done. Of the commands an eighth warms caches and connections."""

    commands: int
    alone: int
    devices: int
    floor_seconds: float


FULL = Size(commands=6_000, alone=400, devices=50_000, floor_seconds=3.0)
QUICK = Size(commands=1_600, alone=150, devices=4_000, floor_seconds=1.0)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure beside the OPA server of this very run."""
    size = QUICK if quick else FULL
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
        parts=(f"CPU ms a decision: policy {policy / 1000:.2f}, evidence {evidence / 1000:.2f}",),
    )


async def _figures(size: Size, progress: Progress) -> dict[str, float]:
    figures = await _floor(size.floor_seconds, progress)
    with tempfile.TemporaryDirectory() as folder:
        async with PolicyWorld(Path(folder)) as world:
            devices = await _populate(world, size.devices)
            figures["resident_mb"] = await _settled_mb(world)
            progress(0.4)
            exchange = world.exchange(streams=STREAMS)
            items = await _items(world, devices, size.commands + size.alone, progress)
            few, many = items[: size.alone], items[size.alone :]
            warm, measured = many[: size.commands // 8], many[size.commands // 8 :]
            await _carry(exchange, warm, CALLERS)
            progress(0.8)
            cpu, evidence = world.cpu_seconds(), world.evidence.cpu_seconds()
            seconds, latencies = await _carry(exchange, measured, CALLERS)
            figures["decisions_per_s"] = len(latencies) / seconds
            figures |= _latencies("decision_64", latencies)
            figures["policy_cpu_us"] = (world.cpu_seconds() - cpu) * 1e6 / len(latencies)
            figures["evidence_cpu_us"] = (world.evidence.cpu_seconds() - evidence) * 1e6 / len(latencies)
            _, latencies = await _carry(exchange, few, 1)
            figures |= _latencies("decision_1", latencies)
    progress(1.0)
    return figures


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


async def _populate(world: PolicyWorld, count: int) -> list[str]:
    """A whole population in memory; commands go to a few of them, whose results are their own."""
    room = world.room
    hour = room.clock.now() + 3_600_000
    other: Any = room.result_row()
    # One of another device stands in every further row: its bytes weigh the same.
    rows: list[tuple[str, str, Any]] = []
    asked = [_device(number) for number in range(ASKED)]
    for device_id in asked:
        result = room.result_row(device_id, therapy_stale_at=hour, stale_at=hour)
        rows += [("device", device_id, room.device_row(device_id)), ("result", device_id, result)]
    for number in range(ASKED, count):
        device_id = _device(number)
        result = type(other)(device_id=device_id, result=other.result)
        rows += [("device", device_id, room.device_row(device_id)), ("result", device_id, result)]
    await world.put(*rows)
    last = room.intent("read-diagnostics", devices=(_device(count - 1),))
    request = policy_pb2.PreviewDecisionRequest(
        gateway_id="gateway-1", device_id=_device(count - 1), intent=last.data
    )
    stub = world.stub()
    while True:
        if await _known(stub, request):
            return asked
        await asyncio.sleep(0.1)


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
