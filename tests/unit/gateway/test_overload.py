"""A gateway that is asked for more than it takes on refuses at once; safety actions have places of their own."""

import asyncio
from typing import Any

import pytest

from tests.support.pki import DEVICE
from tests.unit.gateway.test_command_path import hospital
from tests.unit.gateway.world import World, eventually, reason_of
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason
from vigil.gateway import command_path

pytestmark = pytest.mark.holds("floods")


async def test_commands_beyond_the_bound_are_refused_and_safety_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_path, "MAX_UNDER_WAY", 2)
    async with hospital(world) as at, world.caller(world.safety) as officer:
        nonces: list[Any] = [await at.me.prepare("diagnose")]
        at.policy.hold = asyncio.Event()
        held = [asyncio.ensure_future(at.me.give("diagnose")) for _ in range(1)]
        await eventually(lambda: len(at.policy.items) == 1)
        intent = world.intent("diagnose")
        command = world.command(intent, (await at.me.prepare("diagnose")).nonce)
        held.append(asyncio.ensure_future(at.me.submit(intent, command)))
        await eventually(lambda: len(at.policy.items) == 2)
        # Full: neither a preparation nor a command, whoever asks; what is under way stays under way.
        assert await reason_of(at.me.prepare("diagnose")) is Reason.SERVICE_UNAVAILABLE
        late = world.intent("diagnose")
        signed = world.command(late, nonces[0].nonce)
        assert await reason_of(at.me.submit(late, signed)) is Reason.SERVICE_UNAVAILABLE
        assert len(at.policy.items) == 2
        for me in (officer, at.me):
            answer = await me.give("quarantine")
            receipt = read(answer.receipts[0], b.Receipt).body
            assert (receipt.outcome, receipt.device) == (b.Outcome.APPLIED, DEVICE)
        at.policy.hold.set()
        await asyncio.gather(*held)
        assert (await at.me.prepare("diagnose")).nonce


async def test_no_decision_is_taken_for_a_nonce_that_is_dead(world: World) -> None:
    async with hospital(world) as at:
        nonce = (await at.me.prepare("diagnose")).nonce
        at.world.gateway.quotas._usage[at.me.credential.identity.thumbprint].dead[DEVICE] = 0.0
        intent = world.intent("diagnose")
        assert await reason_of(at.me.submit(intent, world.command(intent, nonce))) is Reason.NONCE_EXPIRED
        assert not at.policy.items
        assert read((await at.me.give("diagnose")).receipts[0], b.Receipt).body.outcome is b.Outcome.APPLIED
