"""A gateway that starts while there is no control plane serves what makes a pump safer, and nothing else."""

import pytest

from tests.faults.acts import alert, is_refused, recorded, works_again
from tests.support.stack import Stack, eventually
from vigil.errors import Reason
from vigil.run.layout import SERVICES

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_gateway_starts_alone(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    gateway_id, pump = stack.world.gateways[stack.first], stack.pumps(stack.first)[0]
    async with stack.stopped("redis", *SERVICES):
        former = await stack.kill(gateway_id)
        assert await stack.restarted(gateway_id, former=former) != former

        async def pumps_are_back() -> bool:
            status = await stack.gateway_status(stack.first, who="ada")
            return status.connected_devices == len(stack.pumps(stack.first))

        await eventually(pumps_are_back, what="the pumps dial again")
        await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
        request_id = await alert(stack, pump)
        status = await stack.gateway_status(stack.first, who="ada")
        assert status.lease_left_ms == 0
        assert status.spool_length > 0
    await works_again(stack, pump, 251)
    await recorded(stack, pump, request_id)
    await stack.calm()
