"""SIGKILL between each two steps: just before and just after each thing that a process makes durable, or sends.

Not at random moments: the shim counts the steps of one undisturbed command, revocation or attestation, and then the
process dies at the first, at the second, and so on. What must hold: docs/architecture.md, "What must always hold".
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.faults import rooms
from tests.faults.acts import enforced_everywhere, newcomer, recaller, revoke_credential, works_again
from tests.faults.flow import Flow
from tests.faults.harness.power import fleet_pid, switched_off, switched_on
from tests.faults.harness.shim import SOCKETS, Op, Shim
from tests.faults.harness.under import shim_of
from tests.support.revoking import compromised, revoke
from tests.support.stack import FOR_NOW, Stack, eventually
from vigil.cli.session import Session
from vigil.core.digest import hex_digest
from vigil.core.statements.bodies import (
    Revocation,
)
from vigil.core.statements.envelope import Statement
from vigil.demo.world import PumpAt
from vigil.errors import Refused

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("killed-between-steps")]

PUMPS = "pumps"
SETTLE_S = 1.0
"""After a command: what follows from it (receipts to the log, evidence of the pump) has mostly happened."""
MAX_STEPS = 12


@dataclass(frozen=True)
class Step:
    """A place to die: the nth call of a process, before or after it."""

    process: str
    ops: Op
    nth: int
    after: bool


def part_of_path(stack: Stack, process: str) -> str:
    if process == PUMPS:
        return f"/pumps/{rooms.pump_of(stack).name}/"
    return f"/{process}/"


def pid_of(stack: Stack, process: str) -> int:
    return fleet_pid(stack) if process == PUMPS else stack.pids()[process]


async def back(stack: Stack, process: str, former: int) -> None:
    if process == PUMPS:
        await switched_on(stack)
    else:
        await stack.restarted(process, former=former)


async def dies(stack: Stack, shim: Shim, step: Step, act: Callable[[], Awaitable[object]]) -> bool:
    """Do something while the process is to die at a step; whether it did. It is back when this returns."""
    former = pid_of(stack, step.process)
    # What goes out through a socket is told apart by the process alone, and a path by itself.
    where = (
        {"path": SOCKETS, "pid": former}
        if step.ops is Op.SEND
        else {"path": part_of_path(stack, step.process)}
    )
    with shim.kill(step.ops, nth=step.nth, after=step.after, **where) as fault:
        await act()
        with contextlib.suppress(AssertionError):
            await fault.met(seconds=3.0)
        if not fault.fired:
            return False
        if step.process == PUMPS:
            await switched_off(stack)
    await back(stack, step.process, former)
    return True


async def steps_of(stack: Stack, shim: Shim, process: str, act: Callable[[], Awaitable[object]]) -> int:
    """How often a process makes something durable while something is done, undisturbed."""
    with shim.watch(Op.SYNC, path=part_of_path(stack, process)) as watched:
        await act()
        await asyncio.sleep(SETTLE_S)
    return min(watched.seen, MAX_STEPS)


async def commands(stack: Stack, steps: list[Step], injected: Callable[[int], None]) -> None:
    """One command at each step; then nothing acknowledged is lost, nothing ran twice or without its record."""
    shim, pump = shim_of(stack), rooms.pump_of(stack)
    await stack.calm()
    flow = Flow(stack, 0)
    await flow.begin()
    kills = 0
    for step in steps:
        kills += await dies(stack, shim, step, lambda: flow.give("ada", pump))
        await stack.calm()
    # A step that was counted may not come again: what follows a command is written together when there is much to do.
    assert kills >= len(steps) // 2
    injected(kills)
    assert set(flow.refused) <= FOR_NOW, flow.refused
    await flow.check()
    await works_again(stack, pump, 270)


async def test_a_command_meets_the_gateways_and_the_logs_last_step(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    gateway = breakable.world.gateways[breakable.first]
    await commands(
        breakable,
        [
            Step("evidence", Op.SYNC, 1, after=False),
            Step(gateway, Op.SYNC, 1, after=False),
            Step("evidence", Op.SYNC, 1, after=True),
            Step(gateway, Op.SYNC, 1, after=True),
        ],
        injected,
    )


@pytest.mark.thorough
@pytest.mark.timeout(1800)
async def test_a_command_meets_each_durable_step(breakable: Stack, injected: Callable[[int], None]) -> None:
    stack, shim = breakable, shim_of(breakable)
    await stack.calm()
    gateway, pump = stack.world.gateways[stack.first], rooms.pump_of(stack)
    processes = ("evidence", gateway, "attestation", PUMPS)
    flow = Flow(stack, 0)
    counts = {name: await steps_of(stack, shim, name, lambda: flow.give("ada", pump)) for name in processes}
    assert all(counts.values()), counts
    # In turns, so that `vigil up` sees no process crash again and again at its start.
    steps = [
        Step(name, Op.SYNC, nth, after)
        for nth in range(1, max(counts.values()) + 1)
        for after in (False, True)
        for name in processes
        if nth <= counts[name]
    ]
    await commands(stack, steps, injected)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
async def test_a_command_meets_each_message_that_leaves(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    """Policy keeps nothing on a disk: its steps are what it sends, and so are the gateway's between its commits."""
    gateway = breakable.world.gateways[breakable.first]
    steps = [
        Step(name, Op.SEND, nth, after)
        for nth in (1, 2, 3, 5, 8)
        for after in (False, True)
        for name in ("policy", gateway)
    ]
    await commands(breakable, steps, injected)


# --- a revocation


async def revoke_surely(by: Session, statement: Statement[Revocation]) -> int:
    """As a person does it whose connection broke: the same statement again until it is answered."""

    async def answered() -> int:
        return await revoke(by, statement)

    return await eventually(answered, what="the revocation is answered", pause=0.2)


def statement_about(stack: Stack, name: str, *, by: Session) -> Statement[Revocation]:
    return compromised(by, hex_digest(stack.world.people[name].person.thumbprint))


async def revocations(stack: Stack, steps: list[Step], injected: Callable[[int], None]) -> None:
    """One revocation at each step: one epoch each, gapless, on record once, enforced everywhere."""
    shim = shim_of(stack)
    await stack.calm()
    people, rex = [await newcomer(stack) for _ in steps], await recaller(stack)
    first = await revoke_credential(stack, await newcomer(stack))
    told: list[int] = []
    signed = [statement_about(stack, name, by=rex) for name in people]
    kills = 0
    for step, statement in zip(steps, signed, strict=True):

        async def act(statement: Statement[Revocation] = statement) -> None:
            told.append(await revoke_surely(rex, statement))

        kills += await dies(stack, shim, step, act)
        await stack.calm()
    assert kills >= len(steps) * 2 // 3
    injected(kills)
    assert told == list(range(first + 1, first + 1 + len(steps)))
    await enforced_everywhere(stack, told[-1])
    # Asked once more, each answers the epoch that it got.
    assert [await revoke_surely(rex, statement) for statement in signed] == told
    otto = stack.world.people["otto"]
    for name, statement in zip(people, signed, strict=True):
        assert await _records_of(stack, statement) == 1, name
        with pytest.raises(Refused):
            await stack.hand(name, stack.first).send(rooms.pump_of(stack), "diagnose", {})
    assert otto


async def _records_of(stack: Stack, statement: Statement[Revocation]) -> int:
    from vigil.api.evidence.v1 import evidence_pb2

    otto = stack.world.people["otto"]

    async def found() -> int:
        request = evidence_pb2.ListHistoryRequest(subject="revocation/log", kinds=["revocation"])
        entries = await otto.every("evidence", otto.evidence.ListHistory, request, "entries")
        return sum(entry.digest == statement.digest for entry in entries)

    return await eventually(found, what="the revocation is on record")


async def test_a_revocation_meets_its_commit(breakable: Stack, injected: Callable[[int], None]) -> None:
    """The head's lease is renewed each second by a commit of its own: the calls count from the moment that is tried."""
    await revocations(
        breakable,
        [Step("revocation", Op.SYNC, 1, after=True), Step("revocation", Op.SYNC, 1, after=False)],
        injected,
    )


@pytest.mark.thorough
@pytest.mark.timeout(1800)
async def test_a_revocation_meets_each_step(breakable: Stack, injected: Callable[[int], None]) -> None:
    gateway = breakable.world.gateways[breakable.first]
    processes = ("revocation", "edge", gateway, "evidence")
    steps = [
        Step(name, Op.SYNC, nth, after) for nth in (1, 2, 3) for after in (False, True) for name in processes
    ]
    await revocations(
        breakable, [step for step in steps if step.nth == 1 or step.process == "revocation"], injected
    )


# --- an attestation


@pytest.mark.thorough
@pytest.mark.timeout(1800)
async def test_an_attestation_meets_each_step(breakable: Stack, injected: Callable[[int], None]) -> None:
    """A change at the pump has to reach its newest result, whoever died on the way."""
    stack, shim = breakable, shim_of(breakable)
    await stack.calm()
    pump: PumpAt = rooms.pump_of(stack)
    gateway = stack.world.gateways[stack.first]
    kills = 0
    steps = [
        Step(name, ops, nth, after)
        for nth in (1, 2)
        for after in (False, True)
        for name, ops in (
            ("attestation", Op.SYNC),
            (PUMPS, Op.SYNC),
            (gateway, Op.SEND),
            ("attestation", Op.SEND),
        )
    ]
    for step in steps:
        before = (await rooms.result_of(stack, pump)).result
        flow = Flow(stack, 0)
        await flow.begin()
        kills += await dies(stack, shim, step, partial(flow.give, "ada", pump))
        await stack.calm()
        await flow.check()
        await works_again(stack, pump, 500 + kills)

        async def newest(before: bytes = before) -> bool:
            found = await rooms.result_of(stack, pump)
            return found.result != before and found.status == "affirming"

        await eventually(newest, what="the newest state is attested")
    assert kills >= len(steps) * 2 // 3
    injected(kills)
