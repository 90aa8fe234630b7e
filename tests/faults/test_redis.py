"""Redis carries hints: silent, half-open, killed or come back empty, revocations reach every gateway all the same."""

import pytest

from tests.faults.acts import enforced_everywhere, is_refused, newcomer, revoke_credential, set_pressure
from tests.support.stack import Stack
from vigil.core.statements.bodies import Outcome
from vigil.errors import Reason

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.holds("redis-outages")
async def test_redis_stands_half_open(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    pump, tim = stack.pumps(stack.first)[0], await newcomer(stack)
    assert (await set_pressure(stack, pump, 231, who=tim)).outcome is Outcome.APPLIED
    async with stack.stopped("redis"):
        epoch = await revoke_credential(stack, tim)
        await enforced_everywhere(stack, epoch)
        await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)
        # Two seconds of challenges and beats: the leases of everybody else go on.
        assert (await set_pressure(stack, pump, 232)).outcome is Outcome.APPLIED
    await stack.calm()


@pytest.mark.holds("redis-outages")
async def test_redis_is_killed_and_comes_back_empty(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    pump, tim, tom = stack.pumps(stack.first)[0], await newcomer(stack), await newcomer(stack)
    former = await stack.kill("redis")
    epoch = await revoke_credential(stack, tim)
    await enforced_everywhere(stack, epoch)
    await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tim)
    assert await stack.restarted("redis", former=former) != former
    # Over the new one, which knows of nothing that was before it: no epoch is repeated or missing.
    assert await revoke_credential(stack, tom) == epoch + 1
    await enforced_everywhere(stack, epoch + 1)
    await is_refused(stack, pump, [Reason.CREDENTIAL_REVOKED], who=tom)
    assert (await set_pressure(stack, pump, 233)).outcome is Outcome.APPLIED
