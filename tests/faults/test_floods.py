"""Valid credentials that ask for far too much, and readers that take nothing: nobody else pays for either."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import pytest

from tests.faults.acts import (
    alert,
    enforced_everywhere,
    is_refused,
    newcomer,
    recorded,
    revoke_credential,
    set_pressure,
    works_again,
)
from tests.soak import book, slow
from tests.soak.flood import Order, Outcome, flooded
from tests.soak.sampler import look
from tests.support.stack import Stack, eventually, state_of
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.statements.bodies import Outcome as CommandOutcome
from vigil.core.statements.bodies import Revocation, RevocationEffect, RevocationReason, Scope
from vigil.errors import Reason, Refused

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.thorough]

RATE: Final = 500.0
"""Calls a second: several times what a machine of two cores does with two gateways and four pumps on it."""
SECONDS: Final = 15.0
TURNED_AWAY: Final = (Reason.QUOTA_EXCEEDED, Reason.SERVICE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE)
ENTRIES: Final = 6
"""At most, that one command leaves in the log: intent, command, decision, receipt, and a change's attestation."""


async def order(stack: Stack, people: list[str], *, revoked: str = "") -> Order:
    return Order(
        data=str(stack.folder.path),
        domain=stack.installation.trust_domain,
        people=dict.fromkeys(people, stack.first),
        gateways={stack.first: stack.world.gateways[stack.first]},
        pumps={stack.first: [pump.device_id for pump in stack.pumps(stack.first)]},
        rate=RATE,
        seconds=SECONDS,
        revoked=revoked,
    )


@asynccontextmanager
async def flood(
    stack: Stack, people: list[str], *, revoked: str = ""
) -> AsyncIterator[asyncio.Task[Outcome]]:
    """A flood that is under way inside; whoever leaves waits for its end."""
    task = asyncio.create_task(
        flooded(await order(stack, people, revoked=revoked), stack.home / "flood.json")
    )
    await asyncio.sleep(SECONDS / 5)
    assert not task.done()
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.holds("floods", "floods-by-credential")
async def test_a_flood_is_refused_beside_safety_actions_and_revocations(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    pump, other = stack.pumps(stack.first)
    # Two credentials: each asks for more than it may, whatever this machine can send.
    loud, tim = await newcomer(stack), await newcomer(stack)
    size, pids = await stack.log_size(), stack.pids()
    async with flood(stack, [loud, tim], revoked=tim) as task:
        alerts = [await alert(stack, pump) for _ in range(3)]
        epoch = await revoke_credential(stack, tim)
        committed = time.monotonic()
        await enforced_everywhere(stack, epoch)
        alerts.append(await alert(stack, other))
        # All of that happened in the middle of it.
        assert not task.done()
    outcome = await task
    assert not outcome.wrong, outcome.wrong[:5]
    turned_away = sum(outcome.answered[reason] for reason in TURNED_AWAY)
    assert outcome.answered[Reason.QUOTA_EXCEEDED] > 0, outcome.answered
    assert turned_away > outcome.sent / 10, outcome.answered
    injected(turned_away)
    assert outcome.revoked_allowed_at - committed < 10.0
    await stack.calm()
    assert stack.pids() == pids
    for request_id in alerts:
        await recorded(stack, pump if request_id != alerts[-1] else other, request_id)
    # What was turned away left nothing in the log, what was let through all that it had to.
    let_through = outcome.sent - turned_away - outcome.answered["a list"] - outcome.answered["a nonce"]
    assert await stack.log_size() - size <= ENTRIES * (let_through + len(alerts) + 10) + 60
    await nothing_lost(stack, outcome)
    await works_again(stack, pump, 261)
    await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)


async def nothing_lost(stack: Stack, outcome: Outcome) -> None:
    """Every command of the flood that was acknowledged is on record, once, with its permit."""
    asked = outcome.book()
    for pump in stack.pumps(stack.first):
        held = await book.check(stack.world, asked, [pump.device_id], others=True)
        assert not held.faults, held.faults


@pytest.mark.holds("floods-by-credential")
async def test_a_credentials_quota_is_its_own(breakable: Stack, injected: Callable[[int], None]) -> None:
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    loud, quiet = await newcomer(stack), await newcomer(stack)
    async with flood(stack, [loud]) as task:
        done = await set_pressure(stack, pump, 262, who=quiet)
        assert done.outcome is CommandOutcome.APPLIED
        assert not task.done()
    outcome = await task
    assert not outcome.wrong, outcome.wrong[:5]
    assert outcome.answered[Reason.QUOTA_EXCEEDED] > outcome.sent / 4, outcome.answered
    injected(outcome.answered[Reason.QUOTA_EXCEEDED])
    await works_again(stack, pump, 263)


@pytest.mark.holds("floods")
async def test_a_gateways_stream_that_nobody_reads_is_cut_and_catches_up(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    # More than a transport buffers for one stream, so that the edge has to wait for this reader.
    for _ in range(14):
        epoch = await revoke_unknown(stack, 100)
    await enforced_everywhere(stack, epoch)
    edge = stack.pids()["edge"]
    before, cuts = look(edge).memory, cut(stack)
    world, site = stack.world, stack.first
    reader = slow.channel(world, files=slow.files_of_gateway(world, site), role="edge", narrow=True)
    try:
        stub = revocation_pb2_grpc.EdgeServiceStub(reader)
        call = stub.Follow(slow.following(world.gateways[site], every=1.0))
        await call.initial_metadata()
        # Nobody else waits for it.
        tim = await newcomer(stack)
        epoch = await revoke_credential(stack, tim)
        await enforced_everywhere(stack, epoch)
        await eventually(lambda: cut(stack) > cuts, what="the edge cuts the reader off", seconds=120)
        # What its transport had taken is all that it gets.
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await asyncio.wait_for(drained(call), 30)
    finally:
        await reader.close()
    assert stack.pids()["edge"] == edge
    assert look(edge).memory - before < 32
    assert await slow.epochs_at_edge(world, site, epoch) == epoch
    injected(1)


def cut(stack: Stack) -> int:
    """How many readers the edge has cut off, by its log."""
    return stack.folder.log("edge").read_text().count('"reader_cut"')


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def revoke_unknown(stack: Stack, count: int) -> int:
    """Credentials that nobody holds, by two people of the recall team; answers the epoch."""
    body = Revocation(
        scope=Scope.CREDENTIAL,
        ids=tuple(sorted(os.urandom(32).hex() for _ in range(count))),
        effect=RevocationEffect.DENY,
        reason=RevocationReason.DEFECT,
    )
    for name in ("rita", "raj"):
        session = stack.world.people[name]
        signed = session.scribe.sign(body, subject="credential/several")
        request = revocation_pb2.RevokeRequest(revocation=signed.data)
        try:
            entry = await session.call("revocation", session.revocations.Revoke, request)
        except Refused as refusal:
            if refusal.reason is not Reason.SECOND_PERSON_REQUIRED:
                raise
        else:
            return entry.epoch
    raise AssertionError("two people do not suffice")


@pytest.mark.holds("floods")
async def test_pumps_that_stand_still_are_cut_and_catch_up(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    fleets = [fleet.pid for fleet in stack.world.fleets]
    for pid in fleets:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in fleets:
            await eventually(lambda pid=pid: state_of(pid) == "T", what="the pumps stand")
        await eventually(lambda: deserted(stack), what="the gateway lets go of pumps that take nothing")
        tim = await newcomer(stack)
        epoch = await revoke_credential(stack, tim)
        assert {state_of(pid) for pid in fleets} == {"T"}
    finally:
        for pid in fleets:
            os.kill(pid, signal.SIGCONT)
    injected(len(fleets))
    await enforced_everywhere(stack, epoch)
    await works_again(stack, stack.pumps(stack.first)[0], 264)


async def deserted(stack: Stack) -> bool:
    status = await stack.gateway_status(stack.first, who="ada")
    return status.connected_devices == 0
