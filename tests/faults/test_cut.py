"""A gateway cut off from the control plane: every wire silent, none closed."""

import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from tests.faults.acts import alert, is_refused, recorded, works_again
from tests.support.stack import Stack, eventually
from vigil.demo.relay import Relay
from vigil.errors import Reason

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def relayed(stack: Stack, gateway_id: str) -> AsyncIterator[list[Relay]]:
    """A gateway whose every wire to the control plane leads through a relay; its own wires again afterwards."""
    config = stack.folder.gateway(gateway_id) / "gateway.toml"
    original = config.read_text()
    relays: dict[str, Relay] = {}
    text = original
    # Every address but the one that it listens on itself.
    for target in set(re.findall(r'"(127\.0\.0\.1:\d+)"', original)) - {stack.address(gateway_id)}:
        relays[target] = Relay(target)
        text = text.replace(f'"{target}"', f'"{await relays[target].start()}"')
    assert len(relays) == 6
    config.write_text(text)
    try:
        await stack.restarted(gateway_id, former=await stack.kill(gateway_id))
        await stack.calm()
        yield list(relays.values())
    finally:
        config.write_text(original)
        former = await stack.kill(gateway_id)
        for relay in relays.values():
            await relay.stop()
        await stack.restarted(gateway_id, former=former)


async def test_gateway_is_cut_off(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    pump, elsewhere = stack.pumps(stack.first)[0], stack.pumps(stack.second)[0]
    async with relayed(stack, stack.world.gateways[stack.first]) as wires:
        await works_again(stack, pump, 241)
        for wire in wires:
            wire.silence()

        async def lease_is_over() -> bool:
            return (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0

        await eventually(lease_is_over, what="the lease runs out")
        assert sum(wire.dropped_bytes for wire in wires) > 0
        await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
        request_id = await alert(stack, pump)
        # The other hospital does not notice.
        await works_again(stack, elsewhere, 242)

        for wire in wires:
            wire.speak()
        await works_again(stack, pump, 243)
        await recorded(stack, pump, request_id)
    await stack.calm()
