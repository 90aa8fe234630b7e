"""One gated command, from the technician to the pump's signed receipt, beside the frozen echo of the same run.

Everything is real: `vigil up` with every service in a process of its own, a gateway, 64 pumps in a fleet process, mTLS
everywhere, every signature and every check, Rego in WebAssembly, every record durable. The client signs, and believes
signed receipts only. The main figures are of class R, which changes nothing that is attested; each change of class C
brings an attestation with it, which the next one waits for.
"""

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks import parts
from tests.benchmarks.echo.client import Echo
from tests.benchmarks.result import (
    Progress,
    Result,
    Row,
    percentile,
    ratio_at_least,
    split,
    under,
)
from tests.benchmarks.site import Site, cpu_seconds
from vigil.core.statements.bodies import Outcome
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused

TITLE = "One gated command, technician to receipt"

PUMPS = CALLERS = 64
TECHNICIANS = 16
"""A credential may send ten commands a second and prepare 600 in a burst: the quotas stand as they are."""
RATE = 200
"""Commands a second of the open loop."""
ECHO_IS = "the frozen echo"

LATE = frozenset(
    {
        Reason.ATTESTATION_STALE,
        Reason.DEADLINE_EXCEEDED,
        Reason.DEVICE_OFFLINE,
        Reason.EVIDENCE_UNAVAILABLE,
        Reason.LEASE_EXPIRED,
        Reason.NONCE_EXPIRED,
        Reason.OUTCOME_UNKNOWN,
        Reason.POLICY_UNAVAILABLE,
        Reason.REPLICA_STALE,
    }
)
"""What a machine that does too much else at the same time makes of a command; counted, and no failure."""

Command = Callable[[int], Awaitable[None]]
"""One command of a caller: its number, which is also its pump's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was seen under one load. Latencies in seconds; CPU in ms a command, by process."""

    latencies: list[float]
    seconds: float
    cpu: Mapping[str, float]
    late: int

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def ms(self, part: float) -> float:
        return percentile(self.latencies, part) * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long each load lasts."""

    warm: float
    alone: float
    many: float
    open: float
    change: float


FULL = Seconds(warm=4.0, alone=6.0, many=10.0, open=10.0, change=6.0)
QUICK = Seconds(warm=1.5, alone=1.5, many=3.0, open=1.5, change=1.5)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure the echo, then the command."""
    seconds = QUICK if quick else FULL
    async with Echo(channels=TECHNICIANS) as echo:
        progress(0.1)
        pids = {**echo.pids, "client": os.getpid()}
        await closed_loop(echo.command, callers=CALLERS, seconds=seconds.warm / 2, pids=pids)
        echo_many = await closed_loop(echo.command, callers=CALLERS, seconds=seconds.many / 2, pids=pids)
        echo_alone = await closed_loop(echo.command, callers=1, seconds=seconds.alone / 2, pids=pids)
    building = split(progress, 0.2, 0.6)
    async with Site(pumps=PUMPS, technicians=TECHNICIANS, progress=building) as site:
        hands, pumps, pids = site.hands(), site.pumps, site.processes()
        command = reading(hands, pumps)
        await closed_loop(command, callers=CALLERS, seconds=seconds.warm, pids=pids)
        many = await closed_loop(command, callers=CALLERS, seconds=seconds.many, pids=pids)
        progress(0.75)
        alone = await closed_loop(command, callers=1, seconds=seconds.alone, pids=pids)
        progress(0.85)
        opened = await open_loop(command, rate=RATE, seconds=seconds.open, pids=pids)
        progress(0.95)
        stale: Counter[str] = Counter()
        changed = await closed_loop(
            changing(hands, pumps, stale), callers=8, seconds=seconds.change, pids=pids
        )
    measured = await asyncio.to_thread(parts.measure)
    progress(1.0)
    return _result(
        measured=measured,
        echo=(echo_many, echo_alone),
        real=(many, alone),
        opened=opened,
        changed=changed,
        stale=stale["again"],
    )


def reading(hands: list[Hand], pumps: list[PumpAt]) -> Command:
    """`read-diagnostics`: decided, recorded, permitted, checked, journaled, executed, receipted."""

    async def command(number: int) -> None:
        done = await hands[number % len(hands)].send(pumps[number], "read-diagnostics")
        assert done.outcome is Outcome.APPLIED, done.reason

    return command


def changing(hands: list[Hand], pumps: list[PumpAt], stale: Counter[str]) -> Command:
    """`set-occlusion-pressure` of the pump that rested longest; asked again while its attestation is on its way."""
    rested: asyncio.Queue[int] = asyncio.Queue()
    for place in range(len(pumps)):
        rested.put_nowait(place)
    values = itertools.cycle(range(100, 500))

    async def command(_number: int) -> None:
        place = await rested.get()
        try:
            while True:
                parameters = {"occlusion_pressure": next(values)}
                done = await hands[place % len(hands)].send(
                    pumps[place], "set-occlusion-pressure", parameters
                )
                if done.outcome is Outcome.APPLIED:
                    return
                assert done.reason == Reason.ATTESTATION_STALE, done.reason
                stale["again"] += 1
        finally:
            rested.put_nowait(place)

    return command


async def closed_loop(command: Command, *, callers: int, seconds: float, pids: Mapping[str, int]) -> Load:
    """Each caller sends its next command when the last one is receipted."""
    latencies: list[float] = []
    late = 0
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    began = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal late
        while (started := time.perf_counter()) - began < seconds:
            if await _in_time(command, number):
                latencies.append(time.perf_counter() - started)
            else:
                late += 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return _load(latencies, late, time.perf_counter() - began, before, pids)


async def open_loop(command: Command, *, rate: float, seconds: float, pids: Mapping[str, int]) -> Load:
    """So many commands a second, whatever became of the ones before; late is counted from when it was due."""
    idle: asyncio.Queue[int] = asyncio.Queue()
    for number in range(PUMPS):
        idle.put_nowait(number)
    latencies: list[float] = []
    late = 0
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}

    async def one(due: float) -> None:
        nonlocal late
        number = await idle.get()
        if await _in_time(command, number):
            latencies.append(time.perf_counter() - due)
        else:
            late += 1
        idle.put_nowait(number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for place in range(int(rate * seconds)):
            due = began + place / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due))
    return _load(latencies, late, time.perf_counter() - began, before, pids)


async def _in_time(command: Command, number: int) -> bool:
    """Whether a command was done; False when it was refused because something was late. Raises other refusals."""
    try:
        await command(number)
    except Refused as refusal:
        if refusal.reason not in LATE:
            raise
        return False
    return True


def _load(
    latencies: list[float],
    late: int,
    seconds: float,
    before: Mapping[str, float],
    pids: Mapping[str, int],
) -> Load:
    done = latencies or [seconds]
    cpu = {name: (cpu_seconds(pid) - before[name]) * 1000 / len(done) for name, pid in pids.items()}
    return Load(latencies=done, seconds=seconds, cpu=cpu, late=late)


def _result(
    *,
    measured: Sequence[parts.Part],
    echo: tuple[Load, Load],
    real: tuple[Load, Load],
    opened: Load,
    changed: Load,
    stale: int,
) -> Result:
    """``echo`` and ``real``: with 64 callers, and with one."""
    (echo_many, echo_alone), (many, alone) = echo, real
    cores = os.cpu_count() or 1
    total, floor = sum(many.cpu.values()), sum(echo_many.cpu.values())
    bound = f"{total:.1f} ms of CPU a command let {cores} cores do {cores * 1000 / total:.0f} a second"
    series = (
        f"in series: {sum(alone.cpu.values()):.1f} ms of CPU and four durable writes (two of them the pump's)"
    )
    wanted = (
        f"it wants {RATE * sum(opened.cpu.values()) / 1000:.1f} cores; {opened.rate:.0f} a second were done"
    )
    return Result(
        rows=(
            Row(
                work="64 callers, closed loop (class R)",
                figure=many.rate,
                unit="commands/s",
                floor=echo_many.rate,
                floor_is=ECHO_IS,
                target=ratio_at_least(0.6),
                note=bound + _late(many),
            ),
            Row(
                work="1 caller, p50",
                figure=alone.ms(0.5),
                unit="ms",
                floor=echo_alone.ms(0.5),
                floor_is=ECHO_IS,
                target=under(10),
                note=series,
            ),
            Row(
                work="1 caller, p99",
                figure=alone.ms(0.99),
                unit="ms",
                floor=echo_alone.ms(0.99),
                floor_is=ECHO_IS,
            ),
            Row(
                work=f"open loop at {RATE}/s, p99",
                figure=opened.ms(0.99),
                unit="ms",
                target=under(30),
                note=wanted + _late(opened),
            ),
            Row(work=f"open loop at {RATE}/s, p50", figure=opened.ms(0.5), unit="ms"),
            Row(
                work="8 callers, class C with an attestation after each change",
                figure=changed.rate,
                unit="commands/s",
                note=f"p50 {changed.ms(0.5):.1f} ms; asked again {stale} times"
                " because the attestation was still on its way",
            ),
        ),
        parts=(
            f"CPU ms a command at 64 callers: {_words(many.cpu)}; in all {total:.2f}",
            f"CPU ms a command of the echo at 64 callers: {_words(echo_many.cpu)}; in all {floor:.2f}",
            f"CPU ms a command with 1 caller: {_words(alone.cpu)}; in all {sum(alone.cpu.values()):.2f}",
            *_bounds(measured, total=total, floor=floor),
        ),
    )


def _bounds(measured: Sequence[parts.Part], *, total: float, floor: float) -> tuple[str, ...]:
    """What the parts come to beside the echo's own cost, and what that leaves of its rate. CPU in ms a command."""
    least = sum(part.ms for part in measured)
    parted = "; ".join(part.words() for part in measured)
    bound = (
        f"Those parts and the echo's own {floor:.2f} ms come to {least + floor:.2f} ms, which is"
        f" {floor / (least + floor):.2f} x the echo's rate, where 0.6 x leaves room for {floor / 0.6:.2f} ms;"
        f" the other {max(0.0, total - least - floor):.2f} ms stand between the parts (flame graphs)"
    )
    return f"Parts of a command, measured alone and warm: {parted}; in all {least:.2f} ms of CPU", bound


def _late(load: Load) -> str:
    return f"; {load.late} refused because something was late" if load.late else ""


def _words(cpu: Mapping[str, float]) -> str:
    ordered = sorted(cpu.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {value:.2f}" for name, value in ordered if value >= 0.01)
