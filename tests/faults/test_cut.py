"""A gateway cut off from the control plane, a pump cut off from its gateway: every wire silent, none closed."""

import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults.acts import (
    alert,
    is_refused,
    recorded,
    released,
    technician_of,
    works_again,
)
from tests.faults.wires import Namespace, namespace, relayed, rewired
from tests.support.stack import PRESSURE, Stack, eventually
from vigil.cli.signing import sign_intent
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Mode, Outcome, Receipt
from vigil.core.statements.envelope import read
from vigil.demo.relay import Relay
from vigil.errors import Reason

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("cut-off")]

Injected = Callable[[int], None]


async def lease_is_over(stack: Stack) -> None:
    async def over() -> bool:
        return (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0

    await eventually(over, what="the lease runs out")


async def test_gateway_is_cut_off(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump, elsewhere = stack.pumps(stack.first)[0], stack.pumps(stack.second)[0]
    async with relayed(stack, stack.world.gateways[stack.first]) as wires:
        await works_again(stack, pump, 241)
        for wire in wires:
            wire.silence()
        await lease_is_over(stack)
        assert sum(wire.dropped_bytes for wire in wires) > 0
        injected(len(wires))
        await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
        request_id = await alert(stack, pump)
        # The other hospital does not notice.
        await works_again(stack, elsewhere, 242)

        for wire in wires:
            wire.speak()
        await works_again(stack, pump, 243)
        await recorded(stack, pump, request_id)
    await stack.calm()


@contextlib.asynccontextmanager
async def own_network(stack: Stack, gateway_id: str, place: Namespace) -> AsyncIterator[None]:
    """The gateway in a namespace: one cable to the control plane, another to the hospital's pumps and people."""
    inside, hospital = place.cables
    config = stack.folder.gateway(gateway_id) / "gateway.toml"
    own = stack.address(gateway_id)
    targets = set(re.findall(r'"(127\.0\.0\.1:\d+)"', config.read_text())) - {own}
    relays = {target: Relay(target, listen_host=inside.here_address) for target in targets}
    changes = {f'"{target}"': f'"{await relay.start()}"' for target, relay in relays.items()}
    changes[f'"{own}"'] = f'"0.0.0.0:{own.rpartition(":")[2]}"'
    door = Relay(
        f"{hospital.there_address}:{own.rpartition(':')[2]}", listen_port=int(own.rpartition(":")[2])
    )
    wanted = stack.clocks / f"{gateway_id}.network"
    try:
        wanted.write_text(str(place.file))
        # Whoever dials the gateway's address reaches it through the second cable.
        await stack.restarted(gateway_id, former=await stack.kill(gateway_id), serving=False)
        await door.start()
        async with rewired(stack, gateway_id, config, changes):
            try:
                inside_of = Path(f"/proc/{stack.pids()[gateway_id]}/ns/net")
                assert inside_of.stat().st_ino == place.file.stat().st_ino
                await stack.calm()
                yield
            finally:
                wanted.unlink()
                await door.stop()
    finally:
        wanted.unlink(missing_ok=True)
        await door.stop()
        for relay in relays.values():
            await relay.stop()


@pytest.mark.thorough
async def test_cables_of_a_gateway_are_pulled(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump, gateway_id = stack.pumps(stack.first)[0], stack.world.gateways[stack.first]
    with namespace("vigil-hospital", cables=2) as place:
        to_control, to_hospital = place.cables
        async with own_network(stack, gateway_id, place):
            await works_again(stack, pump, 244)
            to_control.pull()
            assert not to_control.is_up
            await lease_is_over(stack)
            await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
            request_id = await alert(stack, pump)
            to_control.plug()
            await works_again(stack, pump, 245)
            await recorded(stack, pump, request_id)

            to_hospital.pull()
            assert not to_hospital.is_up
            before = await stack.applied(pump)

            async def pump_notices() -> bool:
                line = await pump.fleet.do("status", pump.device_id)
                return not line["status"]["online"]

            await eventually(pump_notices, what="the pump has lost its gateway", seconds=120)
            assert await stack.applied(pump) == before
            injected(2)
            to_hospital.plug()
            await works_again(stack, pump, 246)
    await stack.calm()


@pytest.mark.thorough
async def test_staged_command_on_a_cut_off_pump_waits_and_is_abandoned(
    breakable: Stack, injected: Injected
) -> None:
    stack = breakable
    await stack.calm()
    pump, gateway_id = stack.pumps(stack.first)[0], stack.world.gateways[stack.first]
    hand = stack.hand(technician_of(stack, pump), pump.site)
    wire = Relay(stack.address(gateway_id))
    await pump.fleet.do("dial", pump.name, address=await wire.start(), gateway_id=gateway_id)
    try:
        await stack.calm()
        await released(stack, pump)
        await works_again(stack, pump, 247)
        await pump.fleet.do("start-therapy", pump.name)
        now = SystemClock().now()
        intent = sign_intent(
            hand.session.scribe,
            device_ids=[pump.device_id],
            action=PRESSURE,
            parameters={"occlusion_pressure": 248},
            request_id=os.urandom(16),
            mode=Mode.IDLE,
            not_before=now,
            expires=now + 45_000,
            work_order="WO-4712",
        )

        async def staged() -> bool:
            return (await hand.finish(pump, intent)).outcome is Outcome.STAGED

        await eventually(staged, what="the command is staged", seconds=30, pause=0.5)
        wire.silence()
        before = await stack.applied(pump)
        # Nobody hangs on it any more and it could apply, but for a head that answers its own challenge.
        await pump.fleet.do("stop-therapy", pump.name)
        await pump.fleet.do("bedside-release", pump.name)

        async def abandoned() -> bool:
            return int((await stack.status(pump))["staged_commands"]) == 0

        assert int((await stack.status(pump))["staged_commands"]) == 1
        await eventually(abandoned, what="the staged command is abandoned", seconds=120, pause=0.5)
        assert SystemClock().now() >= now + 45_000 - 2_000
        assert wire.dropped_bytes > 0
        injected(1)
        assert await stack.applied(pump) == before
        wire.speak()

        async def told() -> bool:
            receipts = [read(one.statement, Receipt).body for one in await stack.history(pump, "receipt")]
            mine = [one.outcome for one in receipts if one.request_id == intent.body.request_id]
            return Outcome.ABANDONED in mine and Outcome.APPLIED not in mine

        await eventually(told, what="the record says that it was abandoned", seconds=120)
        await works_again(stack, pump, 249)
    finally:
        address = stack.address(gateway_id)
        await pump.fleet.do("dial", pump.name, address=address, gateway_id=gateway_id)
        await released(stack, pump)
        await wire.stop()
    await stack.calm()
