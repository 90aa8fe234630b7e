"""kill -9 of each process while commands flow: nothing acknowledged is lost, nothing happens twice or unrecorded."""

import pytest

from tests.faults.flow import Flow
from tests.support.stack import FOR_NOW, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

EACH = 10
"""Commands that each of the four technicians gets through: 40 a process and more, 280 over all."""
GAP = 6
"""Acknowledged commands before each kill, so that it meets the process at whatever it is doing then."""

FELT = ("gw-hospital-01", "policy", "evidence")
"""Without these nothing goes, and they are killed twice; the others' facts are in memory where a command needs them."""
OTHERS = ("attestation", "revocation", "identity", "edge")
PROCESSES = (
    FELT[2],
    *(pytest.param(name, marks=pytest.mark.thorough) for name in (*FELT[:2], *OTHERS)),
)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.holds("killed-between-steps")
async def test_killed_while_commands_flow(breakable: Stack, name: str) -> None:
    await breakable.calm()
    flow = Flow(breakable, EACH)
    async with flow.flowing():
        for _ in range(2 if name in FELT else 1):
            await flow.reached(flow.acknowledged + GAP)
            former = await breakable.kill(name)
            assert await breakable.restarted(name, former=former) != former
            await flow.reached(flow.acknowledged + GAP)
    assert flow.acknowledged >= 4 * EACH
    assert set(flow.refused) <= FOR_NOW
    assert bool(flow.refused) or name not in FELT
    await breakable.calm()
    await flow.check()
