"""Clocks that are stepped forward, back, and frozen under each process while it runs (libfaketime).

Leases run on the monotonic clock, and signed time only moves forward: a clock behind changes nothing that is enforced,
a clock ahead signs nothing. Each test shows first, by what the process itself signs or writes, that its clock moved.
"""

import asyncio
import datetime as dt
import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import pytest

from tests.faults.acts import (
    alert,
    enforced_everywhere,
    is_refused,
    newcomer,
    recorded,
    released,
    revoke_credential,
    set_pressure,
    works_again,
)
from tests.support import clocks
from tests.support.stack import Stack, eventually
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Decision, Head, Result
from vigil.core.statements.envelope import KIND_OF, Statement, read
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused
from vigil.rpc.status import translated
from vigil.rpc.tls import TlsFiles

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("clock-steps")]

HOUR: Final = 3_600
BACK: Final = 240
"""Certificates of services are given five minutes for clocks that stand behind."""
NEAR_S: Final = 60
"""Nobody takes so long from signing to looking; a step is many times that."""
Injected = Callable[[int], None]
B = TypeVar("B")


def now_s() -> int:
    return SystemClock().now() // 1000


def off(seconds: float, by: float) -> bool:
    """Whether a moment stands about so far from now."""
    return abs(seconds - now_s() - by) < NEAR_S


async def head(stack: Stack) -> Statement[Head]:
    """A head that answers a challenge, as the edge asks for it. Raises what withholds it."""
    home = stack.folder.path / "pki" / "services" / "edge"
    files = TlsFiles(home / "tls.pem", home / "tls.key", stack.folder.trust)
    stub = revocation_pb2_grpc.HeadServiceStub(stack.channel(files, "revocation"))
    request = revocation_pb2.AnswerChallengesRequest(challenge=bytes(range(32)))
    response = await translated(stub.AnswerChallenges(request, timeout=5))
    return read(response.head.head, Head)


async def lease_is_over(stack: Stack) -> None:
    async def over() -> bool:
        return (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0

    await eventually(over, what="the lease runs out")


async def lease_lasts(stack: Stack) -> None:
    """Longer than one lease, whatever wall clocks say."""
    end = SystemClock().monotonic() + 12.0
    while SystemClock().monotonic() < end:
        status = await stack.gateway_status(stack.first, who="ada")
        assert status.lease_left_ms > 0
        await asyncio.sleep(0.5)
    assert (await stack.gateway_status(stack.first, who="ada")).lease_left_ms > 0


@pytest.mark.thorough
async def test_revocation(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    async with clocks.of(stack, "revocation") as moved:
        clock = moved["revocation"]
        await stack.calm()
        before = await head(stack)

        clock.step(-BACK)

        async def signs_behind() -> bool:
            return off((await head(stack)).issued_at, -BACK)

        await eventually(signs_behind, what="revocation's clock stands minutes back")
        assert (await head(stack)).body.issued >= before.body.issued
        await lease_lasts(stack)
        await works_again(stack, pump, 301)

        clock.freeze()

        async def stands() -> bool:
            return (await head(stack)).issued_at < now_s() - 3

        await eventually(stands, what="revocation's clock is frozen")
        await lease_lasts(stack)
        await works_again(stack, pump, 302)

        clock.right()

        async def is_right() -> bool:
            return (await head(stack)).body.issued > (now_s() - 3) * 1000

        await eventually(is_right, what="heads carry the right time again")
        epoch = await revoke_credential(stack, await newcomer(stack))
        await enforced_everywhere(stack, epoch)

        clock.step(HOUR)
        told: list[Refused] = []

        async def withheld() -> bool:
            try:
                await head(stack)
            except Refused as refusal:
                told.append(refusal)
            return bool(told)

        await eventually(withheld, what="revocation's clock stands an hour ahead")
        assert told[0].reason is Reason.STATE_CONFLICT
        assert off(int(told[0].refusals[0].values["now"]) / 1000, HOUR)
        injected(3)
        await lease_is_over(stack)
        await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
        await alert(stack, pump)

        clock.right()
        await works_again(stack, pump, 303)
    await stack.calm()


def logged(stack: Stack, name: str, words: str) -> list[float]:
    """When (s) a process wrote lines that hold these words, by its own clock."""
    lines = stack.folder.log(name).read_text().splitlines()
    found = [json.loads(line) for line in lines if words in line and line.startswith("{")]
    return [dt.datetime.fromisoformat(one["timestamp"]).timestamp() for one in found]


async def newest(stack: Stack, pump: PumpAt, kind: type[B]) -> Statement[B]:
    """A pump's newest record of a kind."""
    entries = await stack.history(pump, str(KIND_OF[kind]))
    return read(entries[-1].statement, kind)


async def tried(stack: Stack, pump: PumpAt, pressure: int) -> Reason | None:
    """Whether class C goes through; the reason where it does not."""
    try:
        await set_pressure(stack, pump, pressure)
    except Refused as refusal:
        return refusal.reason
    return None


async def ahead_is_told(
    stack: Stack, name: str, words: str, asked: Callable[[], Awaitable[object]], *, pause: float = 1.0
) -> None:
    """A process withholds, and says so by a clock that stands an hour ahead."""

    async def told() -> bool:
        await asked()
        return any(off(at, HOUR) for at in logged(stack, name, words))

    await eventually(told, what=f"{name}'s clock stands an hour ahead", pause=pause)


@pytest.mark.thorough
async def test_policy(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    async with clocks.of(stack, "policy") as moved:
        clock = moved["policy"]
        await works_again(stack, pump, 331)
        times = [(await newest(stack, pump, Decision)).issued_at]

        clock.step(-BACK)

        async def signs_behind() -> bool:
            await tried(stack, pump, 332)
            times.append((await newest(stack, pump, Decision)).issued_at)
            return times[-1] < now_s() - 5

        # What it signs carries a time that stands still: the clock is behind it.
        await eventually(signs_behind, what="policy's clock stands minutes back", pause=1.0)
        assert times == sorted(times)

        clock.right()
        await works_again(stack, pump, 333)

        clock.step(HOUR)
        late: list[Refused] = []

        async def is_late() -> bool:
            try:
                await set_pressure(stack, pump, 334)
            except Refused as refusal:
                late.append(refusal)
            told = [one for refusal in late for one in refusal.refusals if "late_ms" in one.values]
            return any(off(now_s() + int(one.values["late_ms"]) / 1000, HOUR) for one in told)

        # Whatever a gateway asks is an hour late to it.
        await eventually(is_late, what="policy's clock stands an hour ahead", pause=1.0)
        injected(2)
        await is_refused(stack, pump, [Reason.POLICY_UNAVAILABLE])
        assert (await newest(stack, pump, Decision)).issued_at < now_s() + NEAR_S
        await alert(stack, pump)

        clock.right()
        await works_again(stack, pump, 335)
    await stack.calm()


@pytest.mark.thorough
async def test_evidence(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    async with clocks.of(stack, "evidence") as moved:
        clock = moved["evidence"]
        await works_again(stack, pump, 341)
        before = await stack.checkpoint()

        clock.step(-BACK)

        async def stands() -> bool:
            await tried(stack, pump, 342)
            return (await stack.checkpoint()).time_ms < (now_s() - 5) * 1000

        # Log time stands still where the clock is behind; whatever is recorded is recorded all the same.
        await eventually(stands, what="evidence's clock stands minutes back", pause=1.0)
        after = await stack.checkpoint()
        assert (after.size, after.time_ms) >= (before.size, before.time_ms)
        await works_again(stack, pump, 343)

        clock.right()

        async def goes_on() -> bool:
            await tried(stack, pump, 344)
            return (await stack.checkpoint()).time_ms > (now_s() - 5) * 1000

        await eventually(goes_on, what="log time goes on with the right clock", pause=1.0)

        clock.step(HOUR)
        await ahead_is_told(stack, "evidence", "nothing is recorded", lambda: tried(stack, pump, 345))
        injected(2)
        size = (await stack.checkpoint()).size
        await is_refused(stack, pump, [Reason.EVIDENCE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE])
        request_id = await alert(stack, pump)
        assert (await stack.checkpoint()).size == size

        clock.right()
        await works_again(stack, pump, 346)
        await recorded(stack, pump, request_id)
        assert (await stack.checkpoint()).time_ms < (now_s() + NEAR_S) * 1000
    await stack.calm()


@pytest.mark.thorough
async def test_attestation(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]

    async def attests() -> None:
        """A start is an event: the pump attests at once."""
        await pump.fleet.do("power-cycle", pump.device_id)

    async def another() -> int:
        """When the next result is signed, by what it says."""
        known = (await newest(stack, pump, Result)).digest
        await attests()

        async def signed() -> int:
            result = await newest(stack, pump, Result)
            return 0 if result.digest == known else result.issued_at

        return await eventually(signed, what="another result is on record")

    async with clocks.of(stack, "attestation") as moved:
        clock = moved["attestation"]
        await stack.calm()
        # From its first signature on, a signer that was just started bears no leap.
        times = [await another()]
        clock.step(-BACK)

        async def signs_behind() -> bool:
            times.append(await another())
            return times[-1] == times[-2] and times[-1] < now_s() - 5

        await eventually(signs_behind, what="attestation's clock stands minutes back", pause=5.0)
        assert times == sorted(times)

        clock.step(HOUR)
        await ahead_is_told(stack, "attestation", "results_withheld", attests, pause=5.0)
        injected(2)
        assert (await newest(stack, pump, Result)).issued_at < now_s() + NEAR_S

        clock.right()
        await released(stack, pump)
        await works_again(stack, pump, 351)
        assert (await newest(stack, pump, Result)).issued_at < now_s() + NEAR_S
    await stack.calm()


@pytest.mark.thorough
async def test_identity(breakable: Stack, injected: Injected) -> None:
    """A registry whose clock leaps issues nothing: a credential of its would last as long as the leap."""
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    people = stack.world.people
    async with clocks.of(stack, "identity") as moved:
        clock = moved["identity"]
        await stack.calm()
        first = people[await newcomer(stack)].person

        clock.step(-BACK)
        await asyncio.sleep(clocks.SETTLED_S)
        second = people[await newcomer(stack)].person
        # What it issues ends earlier by what the clock stands back, and is valid now.
        assert first.operational_until - second.operational_until > (BACK - NEAR_S) * 1000
        assert off(second.operational_until / 1000, 12 * HOUR - BACK)
        await works_again(stack, pump, 361)

        clock.step(10 * clocks.YEAR)
        told: list[Refused] = []

        async def withheld() -> bool:
            try:
                await newcomer(stack)
            except Refused as refusal:
                told.append(refusal)
            return bool(told) and told[-1].reason is not Reason.SERVICE_UNAVAILABLE

        await eventually(withheld, what="identity's clock stands ten years ahead", pause=0.5)
        # Nobody's certificate is valid to it any more.
        assert told[-1].reason in (Reason.CERTIFICATE_EXPIRED, Reason.STATE_CONFLICT)
        injected(2)
        clock.right()
        await works_again(stack, pump, 362)

        clock.step(HOUR)

        async def refuses_to_issue() -> bool:
            try:
                await newcomer(stack)
            except Refused as refusal:
                told.append(refusal)
            return told[-1].reason is Reason.STATE_CONFLICT

        await eventually(refuses_to_issue, what="identity's clock stands an hour ahead", pause=0.5)
        assert off(int(told[-1].refusals[0].values["now"]) / 1000, HOUR)
        injected(1)
        await works_again(stack, pump, 363)
        clock.right()

        async def issues() -> bool:
            return bool(await newcomer(stack))

        await eventually(issues, what="identity issues again")
    await stack.calm()


@pytest.mark.parametrize("seconds", [-BACK, HOUR])
async def test_gateway(breakable: Stack, injected: Injected, seconds: int) -> None:
    """Safety actions never fail on a gateway's clock; what needs a decision works, or waits for the right time."""
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    gateway = stack.world.gateways[stack.first]
    async with clocks.of(stack, gateway, seconds=seconds) as moved:
        assert clocks.preloaded(stack.pids()[gateway])

        async def alerted() -> bytes:
            return await alert(stack, pump)

        # The pumps come back to the gateway that was started again.
        await eventually(alerted, what="a safety action under a clock that stands wrong", pause=0.5)
        injected(1)
        moved[gateway].right()
        await works_again(stack, pump, 391)
    await stack.calm()


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [-BACK, 20 * clocks.DAY])
async def test_pump(breakable: Stack, injected: Injected, seconds: int) -> None:
    """A pump that wakes up with another time takes the one that heads and gateway agree upon."""
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    async with clocks.of(stack, clocks.FLEET, seconds=seconds) as moved:
        assert clocks.preloaded(clocks.pid_of(pump.fleet))
        moments: list[int] = []

        async def is_right() -> bool:
            moments.append(int((await stack.status(pump))["device_time"]) // 1000)
            return off(moments[-1], 0)

        await eventually(is_right, what="the pump's time is right", pause=0.05)
        injected(1)
        await released(stack, pump)
        await works_again(stack, pump, 381)
        done = await set_pressure(stack, pump, 382)
        assert off(done.receipt.issued_at, 0)
        # A step while it runs moves nothing: its time goes by the monotonic clock.
        moved[clocks.FLEET].step(-seconds)
        await asyncio.sleep(clocks.SETTLED_S)
        assert await is_right()
        await works_again(stack, pump, 383)
    await released(stack, pump)
    await stack.calm()
