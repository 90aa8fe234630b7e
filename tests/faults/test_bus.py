"""What a slow subscriber loses, what a half-open bus hides, what a hostile one says: delays, and nothing else."""

from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.acts import (
    alert,
    enforced_everywhere,
    is_refused,
    newcomer,
    revoke_credential,
    set_pressure,
    works_again,
)
from tests.faults.harness.bus import Bus, half_open
from tests.faults.harness.under import counting
from tests.support.stack import Stack, eventually
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.statements.bodies import Head, Outcome
from vigil.core.statements.envelope import read
from vigil.errors import Reason

pytestmark = pytest.mark.asyncio(loop_scope="session")

MEGABYTE = 1 << 20
MESSAGE, BATCH = 8 << 10, 256
"""Bytes of a message that fills an edge's queue (Valkey counts shared large ones once), and how many go at a time."""
DROPPED = "client_output_buffer_limit_disconnections"


@pytest.mark.holds("slow-subscriber")
async def test_a_subscriber_too_slow_for_redis(breakable: Stack, injected: Callable[[int], None]) -> None:
    """An edge that takes nothing is dropped at 32 MB; meanwhile the lease runs out, and then it catches up."""
    stack = breakable
    await stack.calm()
    pump, tim = stack.pumps(stack.first)[0], await newcomer(stack)
    assert (await set_pressure(stack, pump, 281, who=tim)).outcome is Outcome.APPLIED
    async with Bus.of(stack) as bus:
        assert len(await bus.subscribers()) >= 2  # the edge and our own ears
        async with stack.stopped("edge"):
            before = int((await bus.client.info("stats")).get(DROPPED, 0))
            listening = len(await bus.subscribers())

            async def dropped() -> bool:
                # Our own ears go on listening, so that the edge alone is too slow.
                for _ in range(BATCH):
                    await bus.publish(bytes(MESSAGE))
                bus.overheard.clear()
                return len(await bus.subscribers()) < listening

            await eventually(dropped, what="Redis drops the edge", pause=0.01)
            assert int((await bus.client.info("stats")).get(DROPPED, before + 1)) > before
            injected(1)
            epoch = await revoke_credential(stack, tim)

            async def lease_is_over() -> bool:
                return (await stack.gateway_status(stack.first, who="ada")).lease_left_ms == 0

            await eventually(lease_is_over, what="the lease runs out")
            await is_refused(stack, pump, [Reason.LEASE_EXPIRED])
            await alert(stack, pump)
        await enforced_everywhere(stack, epoch)
        await eventually(lambda: _subscribed(bus, listening), what="the edge subscribes again")
    await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)
    await works_again(stack, pump, 282)
    await stack.calm()


async def _subscribed(bus: Bus, count: int) -> bool:
    return len(await bus.subscribers()) >= count


@pytest.mark.holds("redis-outages")
async def test_publish_counts_a_subscriber_that_hears_nothing(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    """Half-open: Redis still counts the edge; the revocation comes by the poll, and coverage by signed words alone."""
    stack = breakable
    await stack.calm()
    pump, tim = stack.pumps(stack.first)[0], await newcomer(stack)
    async with Bus.of(stack) as bus, half_open(stack) as wire:
        await stack.calm()
        await eventually(lambda: _subscribed(bus, 2), what="the edge hears the bus")
        wire.silence()
        assert await bus.publish(b"does anybody hear this?") == 2
        await eventually(lambda: wire.dropped_bytes, what="bytes are lost")
        injected(1)
        epoch = await revoke_credential(stack, tim)
        await eventually(lambda: len(bus.overheard) >= 2, what="the service published")
        await enforced_everywhere(stack, epoch)
        await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)
        await works_again(stack, pump, 283)
    await stack.calm()


@pytest.mark.holds("hostile-bus", "claimed-epoch", "captured-bus")
async def test_a_hostile_bus_is_ignored_and_counted(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    pump, tim, tom = stack.pumps(stack.first)[0], await newcomer(stack), await newcomer(stack)
    async with counting(stack, "edge") as counted, Bus.of(stack) as bus:
        await stack.calm()
        await eventually(lambda: _subscribed(bus, 2), what="the edge hears the bus")
        first = await revoke_credential(stack, tim)
        await eventually(lambda: len(bus.overheard) == 1, what="the first is published")
        second = await revoke_credential(stack, tom)
        await eventually(lambda: len(bus.overheard) == 2, what="the second is published")
        assert second == first + 1
        await enforced_everywhere(stack, second)
        older, newer = bus.overheard[:2]

        for outcome, message in _lies(stack, older, newer):
            before = (await counted("vigil_edge_bus_messages_total")).get(outcome, 0)
            assert await bus.publish(message) == 2
            await eventually(partial(_grew, counted, outcome, before), what=f"{outcome} is counted")
            injected(1)

        # Nobody's epoch moved, nobody is stranded, and the next revocation comes in order.
        status = await stack.gateway_status(stack.first, who="ada")
        assert status.revocation_epoch == second
        await works_again(stack, pump, 284)
        third = await revoke_credential(stack, await newcomer(stack))
        assert third == second + 1
        await enforced_everywhere(stack, third)
    await stack.calm()


def _lies(stack: Stack, older: bytes, newer: bytes) -> list[tuple[str, bytes]]:
    message = revocation_pb2.BusMessage.FromString(newer)
    truth = read(message.head, Head).body
    forger = stack.world.people["rita"].scribe

    def claim(epoch: int) -> bytes:
        body = Head(epoch=epoch, chain=truth.chain, era=truth.era, issued=truth.issued + 1)
        head = forger.sign(body, subject="revocation/head").data
        return revocation_pb2.BusMessage(entries=message.entries, head=head).SerializeToString()

    return [
        ("known", newer),  # a duplicate
        ("known", older),  # a replay, out of order
        ("malformed", b"anything"),
        ("malformed", newer[: len(newer) // 2]),
        ("malformed", bytes(8 * MEGABYTE)),
        ("forged", claim(2**63 - 1)),  # fast-forwarded
        ("forged", claim(truth.epoch + 1)),
    ]


async def _grew(counted: Callable[..., object], outcome: str, before: float) -> bool:
    found = await counted("vigil_edge_bus_messages_total")  # type: ignore[misc]
    return bool(found.get(outcome, 0) > before)


@pytest.mark.holds("redis-outages")
async def test_a_bus_that_falls_silent_and_comes_back_repeats_nothing(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    people = [await newcomer(stack) for _ in range(3)]
    async with Bus.of(stack) as bus:
        async with stack.stopped("redis"):
            epochs = [await revoke_credential(stack, people[0])]
            await enforced_everywhere(stack, epochs[0])
            injected(1)
        epochs.append(await revoke_credential(stack, people[1]))
        await eventually(lambda: bus.overheard, what="the bus is back")
        former = await stack.kill("redis")
        injected(1)
        epochs.append(await revoke_credential(stack, people[2]))
        await enforced_everywhere(stack, epochs[2])
        await stack.restarted("redis", former=former)
    assert epochs == list(range(epochs[0], epochs[0] + 3))
    await stack.calm()
