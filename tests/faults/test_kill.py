"""kill -9 of each process while commands flow: nothing acknowledged is lost, nothing happens twice or unrecorded."""

import pytest

from tests.faults.flow import Flow
from tests.support.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

EACH = 10
"""Commands that each of the four technicians gets through: 40 a process, 280 over all."""
KILLS_AT = (6, 22)
"""After how many acknowledged commands the process is killed: twice, at whatever it is doing then."""


@pytest.mark.parametrize(
    "name",
    ["gw-hospital-01", "policy", "evidence", "attestation", "revocation", "identity", "edge"],
)
async def test_killed_while_commands_flow(breakable: Stack, name: str) -> None:
    await breakable.calm()
    flow = Flow(breakable, EACH)
    async with flow.flowing():
        for count in KILLS_AT:
            await flow.reached(count)
            former = await breakable.kill(name)
            assert await breakable.restarted(name, former=former) != former
    assert flow.acknowledged == 4 * EACH
    await breakable.calm()
    await flow.check()
