"""Without the record nothing runs, except what makes a pump safer."""

import pytest

from tests.faults.acts import (
    SAFETY,
    is_refused,
    recorded,
    release_quarantine,
    technician_of,
    works_again,
)
from tests.support.stack import Stack
from vigil.core.statements.bodies import Outcome
from vigil.errors import Reason

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOT_WITHOUT_RECORD = (Reason.EVIDENCE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE)


@pytest.mark.holds("killed-between-steps")
async def test_evidence_stands(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    [pump, *others] = stack.pumps(stack.first) + stack.pumps(stack.second)
    before = {one.name: await stack.applied(one) for one in others}

    async with stack.stopped("evidence"):
        for one in [pump, *others]:
            await is_refused(stack, one, NOT_WITHOUT_RECORD)
        done = await stack.hand(SAFETY, pump.site).send(pump, "quarantine")
        assert done.outcome is Outcome.APPLIED
        assert (await stack.status(pump))["quarantined"]

    # A decision that reaches the record late is a permit that nobody holds.
    await stack.calm()
    assert {one.name: await stack.applied(one) for one in others} == before
    await recorded(stack, pump, done.receipt.body.request_id)
    await works_again(stack, others[0], 222)
    await is_refused(stack, pump, [Reason.DEVICE_QUARANTINED], who=technician_of(stack, pump))
    await release_quarantine(stack, pump)
    await works_again(stack, pump, 223)
