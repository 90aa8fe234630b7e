"""A receipt swallowed, the gateway's tables wiped, the command retried with a new nonce: one execution, one receipt."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import rooms
from tests.faults.acts import recorded, technician_of, works_again
from tests.support.stack import PRESSURE, Stack, eventually
from vigil.core.statements.bodies import Evidence, Intent, Outcome, Result
from vigil.core.statements.envelope import Statement, read
from vigil.demo.relay import Relay
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("swallowed-receipt")]

KEPT = ("alembic_version",)
ATTEMPTS = 5


@contextlib.asynccontextmanager
async def dialled_through(stack: Stack, pump: PumpAt) -> AsyncIterator[Relay]:
    """A pump whose wire to its gateway leads through a relay; its own again at the end."""
    gateway_id = stack.world.gateways[pump.site]
    address = stack.address(gateway_id)
    wire = Relay(address)
    try:
        await _dial(stack, pump, await wire.start())
        yield wire
    finally:
        await _dial(stack, pump, address)
        await wire.stop()


async def _dial(stack: Stack, pump: PumpAt, address: str) -> None:
    """Switched on elsewhere, it does not know its patient: somebody looks."""
    await pump.fleet.do("dial", pump.name, address=address, gateway_id=stack.world.gateways[pump.site])
    await pump.fleet.do("bedside-release", pump.name)
    await stack.calm()


@contextlib.contextmanager
def wiped(database: Path) -> Iterator[int]:
    """Every table empty at the end, as if the gateway had never been here; nobody else writes inside.

    Gives how many rows there were.
    """
    held = sqlite3.connect(database, timeout=30.0, isolation_level=None)
    try:
        held.execute("BEGIN IMMEDIATE")
        tables = [
            name
            for (name,) in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if name not in KEPT and not name.startswith("sqlite_")
        ]
        yield sum(held.execute(f"DELETE FROM {name}").rowcount for name in tables)
        held.execute("COMMIT")
    finally:
        held.close()


async def test_one_execution_whoever_lost_their_memory(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    pump = rooms.pump_of(stack)
    gateway_id = stack.world.gateways[stack.first]
    hand = stack.hand(technician_of(stack, pump), pump.site)
    async with dialled_through(stack, pump) as wire:
        await works_again(stack, pump, 110)
        before = await stack.applied(pump)
        intent = await applied_unheard(stack, pump, hand, wire)
        assert wire.dropped_bytes > 0
        injected(1)
        with wiped(rooms.GATEWAY.file(stack)) as rows:
            former = await stack.kill(gateway_id)
        assert rows > 0
        injected(2)
        wire.speak()
        await stack.restarted(gateway_id, former=former)
        await stack.calm()

        async def again() -> bool:
            done = await hand.finish(pump, intent)
            assert done.outcome is Outcome.APPLIED
            # The receipt of the first time: it names the command that was executed then.
            return done.receipt.body.command == hand._commands[intent.digest][0]

        await eventually(again, what="the stored receipt comes back", pause=0.5)
        # And once more, by a hand that remembers nothing either.
        assert (await hand.ask_again(pump, intent)).outcome is Outcome.APPLIED
    assert await stack.applied(pump) == before + 1
    assert (await stack.status(pump))["settings"]["occlusion_pressure"] == "111"
    await recorded(stack, pump, intent.body.request_id)
    await works_again(stack, pump, 112)


async def applied_unheard(stack: Stack, pump: PumpAt, hand: Hand, wire: Relay) -> Statement[Intent]:
    """A command that the pump has carried out and of which nobody has heard; the wire swallows answers from then on.

    One that the pump turned away (policy had not yet heard of its newest state) is asked for anew.
    """
    before = await stack.applied(pump)
    for _ in range(ATTEMPTS):
        await attested(stack, pump)
        intent = hand.intent(pump, PRESSURE, {"occlusion_pressure": 111})
        with pytest.raises(Refused) as caught:
            # The bundle still passes; what the pump says from now on does not.
            await hand.finish(pump, intent, seconds=10.0, before_submit=wire.swallow_answers)
        assert caught.value.reason is Reason.OUTCOME_UNKNOWN
        if await _comes_true(lambda: _is(stack, pump, before + 1)):
            return intent
        assert await stack.applied(pump) == before
        wire.speak()
        await stack.calm()
    raise AssertionError(f"the pump has applied none of {ATTEMPTS} commands")


async def attested(stack: Stack, pump: PumpAt) -> None:
    """Its newest state has reached attestation, so that the next command is not turned away for that."""

    async def newest() -> bool:
        result = await rooms.result_of(stack, pump)
        basis = read(result.result, Result).body.evidence
        of_pump = [read(entry.statement, Evidence) for entry in await stack.history(pump, "evidence")]
        applied = {one.digest: one.body.applied for one in of_pump}
        return result.status == "affirming" and applied.get(basis) == await stack.applied(pump)

    await eventually(newest, what="the newest state is attested")


async def _comes_true(condition: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await eventually(condition, what="it comes true", seconds=10.0)
    except AssertionError:
        return False


async def _is(stack: Stack, pump: PumpAt, count: int) -> bool:
    return await stack.applied(pump) == count
