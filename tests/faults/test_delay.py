"""A wire that delays everything evenly, so that no gap shows: freshness counts from the sending of a challenge."""

import asyncio
from collections.abc import Callable
from typing import Final

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
from tests.faults.wires import delayed
from tests.support.stack import Stack, eventually
from vigil.api.policy.v1 import policy_pb2
from vigil.core.classes import LEASE_S, RULES
from vigil.core.statements.bodies import ActionClass, Outcome
from vigil.errors import Reason
from vigil.run.configs import config_path

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.holds("even-delay"),
    pytest.mark.thorough,
]

Injected = Callable[[int], None]
UNSEEN_S: Final = 2.0
"""In each direction: pings are answered within the five seconds after which a connection counts as dead."""
DELAY_S: Final = 12.0
"""In each direction: more than a lease, and more than a replica may be old. No ping is answered in time."""
GROW: Final = 0.2
"""Seconds a second: what came every second comes every 1.25 then, and no silence shows."""
LEASE_MS: Final = int(LEASE_S * 1000)


async def test_edge_is_late_evenly(breakable: Stack, injected: Injected) -> None:
    stack = breakable
    await stack.calm()
    pump, gateway_id, tim = (
        stack.pumps(stack.first)[0],
        stack.world.gateways[stack.first],
        await newcomer(stack),
    )
    config = stack.folder.gateway(gateway_id) / "gateway.toml"
    async with delayed(stack, gateway_id, config, stack.address("edge")) as wire:
        await stack.calm()
        await works_again(stack, pump, 271)
        dialled = wire.connections
        await wire.grow(UNSEEN_S, a_second=GROW)
        await eventually(lambda: wire.delayed_bytes > 10_000, what="everything comes late")
        # What was on its way before the last growth has come.
        await asyncio.sleep(3 * UNSEEN_S)
        # Heads come as often as ever, and each is as old as the challenge that it answers.
        for _ in range(20):
            assert await aged(stack)
            await asyncio.sleep(0.2)
        # The stream that was open is still open: nothing but their age tells.
        assert wire.connections == dialled
        await works_again(stack, pump, 277)
        epoch = await revoke_credential(stack, tim)
        await enforced_everywhere(stack, epoch)

        await wire.grow(DELAY_S, a_second=GROW)

        async def lease_is_over() -> bool:
            return (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0

        await eventually(lease_is_over, what="the lease runs out")
        injected(1)
        await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
        request_id = await alert(stack, pump)
        epoch = await revoke_credential(stack, await newcomer(stack))
        assert (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0
        wire.seconds = 0.0
        await works_again(stack, pump, 272)
        await enforced_everywhere(stack, epoch)
        await recorded(stack, pump, request_id)
    await stack.calm()


async def aged(stack: Stack) -> bool:
    """Whether the first gateway has a lease, short by what the wire delays."""
    left = (await stack.gateway_status(stack.first, who="ada")).lease_left_ms
    return bool(0 < left <= LEASE_MS - 2_000 * UNSEEN_S)


async def test_bus_is_late_evenly(breakable: Stack, injected: Injected) -> None:
    """Redis carries hints: a minute late they are no news, and the poll has brought everything long before."""
    stack = breakable
    await stack.calm()
    pump, tim = stack.pumps(stack.first)[0], await newcomer(stack)
    config = config_path(stack.folder, "edge")
    url = next(line for line in config.read_text().splitlines() if line.startswith("redis_url"))
    socket = url.split("unix://", 1)[1].rstrip('"')
    async with delayed(
        stack,
        "edge",
        config,
        socket,
        written=lambda where: f"unix://{where}" if where[0] == "/" else f"redis://{where}",
    ) as wire:
        await stack.calm()
        wire.seconds = 60.0
        begun = asyncio.get_running_loop().time()
        assert (await set_pressure(stack, pump, 273, who=tim)).outcome is Outcome.APPLIED
        epoch = await revoke_credential(stack, tim)
        await enforced_everywhere(stack, epoch)
        assert asyncio.get_running_loop().time() - begun < wire.seconds
        await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)
        await eventually(lambda: wire.delayed_bytes > 0, what="the hint comes a minute late", seconds=120)
        injected(1)
        await works_again(stack, pump, 274)
        wire.seconds = 0.0
    await stack.calm()


async def test_registry_is_late_evenly(breakable: Stack, injected: Injected) -> None:
    """What policy knows of devices is as old as the sending of the newest answered challenge says."""
    stack = breakable
    await stack.calm()
    pump = stack.pumps(stack.first)[0]
    async with delayed(
        stack, "policy", config_path(stack.folder, "policy"), stack.address("identity")
    ) as wire:
        await stack.calm()
        await works_again(stack, pump, 275)
        dialled = wire.connections
        await wire.grow(UNSEEN_S, a_second=GROW)
        await eventually(lambda: wire.delayed_bytes > 1_000, what="everything comes late")
        await asyncio.sleep(3 * UNSEEN_S)
        for _ in range(20):
            assert await registry_age_ms(stack) >= 2_000 * UNSEEN_S
            await asyncio.sleep(0.2)
        assert wire.connections == dialled
        await works_again(stack, pump, 278)

        await wire.grow(DELAY_S, a_second=GROW)

        async def is_stale() -> bool:
            return await registry_age_ms(stack) > 1000 * (RULES[ActionClass.C].facts_age_s or 0.0)

        await eventually(is_stale, what="the registry is stale")
        injected(1)
        await is_refused(stack, pump, [Reason.REPLICA_STALE])
        wire.seconds = 0.0
        await works_again(stack, pump, 276)
    await stack.calm()


async def registry_age_ms(stack: Stack) -> int:
    """How old what policy knows of devices is, by its own word."""
    otto = stack.world.people["otto"]
    request = policy_pb2.GetPolicyStatusRequest()
    status = await otto.call("policy", otto.policy.GetPolicyStatus, request, timeout=5.0)
    return int(status.replica_age_ms["identity"])
