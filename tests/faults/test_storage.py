"""Disks that are full, that fail, that somebody else holds: refused, nothing half-written, well again by itself."""

import contextlib
import errno
from collections.abc import Callable, Iterator

import pytest

from tests.faults import rooms
from tests.faults.acts import (
    alert,
    enforced_everywhere,
    is_refused,
    newcomer,
    recorded,
    revoke_credential,
    works_again,
)
from tests.faults.harness.disk import locked
from tests.faults.harness.shim import Fault, Op, Shim
from tests.faults.harness.under import disk_of, shim_of
from tests.faults.rooms import ROOMS, SERVICES, Room
from tests.support.stack import Stack, eventually
from vigil.errors import Reason, Refused, Status

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("storage-failures")]

FULL = (Reason.STORAGE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE)
NOT_NOW = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED)

FAULTS = {
    "full": lambda shim, path: shim.full(path),
    "sync": lambda shim, path: shim.fail(Op.SYNC, path=path, error=errno.EIO),
    "write": lambda shim, path: shim.fail(Op.WRITE, path=path, error=errno.EIO),
}
BRIEF = {("evidence", "full"), ("gateway", "sync"), ("pump", "full"), ("identity", "full")}
"""What `make test` tries; `make faults` tries all."""
CASES = [
    pytest.param(
        room,
        fault,
        id=f"{room.name}-{fault}",
        marks=[] if (room.name, fault) in BRIEF else [pytest.mark.thorough],
    )
    for room in ROOMS
    for fault in FAULTS
]


@contextlib.contextmanager
def failing(shim: Shim, fault: str, path: str) -> Iterator[Fault]:
    with FAULTS[fault](shim, path) as found:
        yield found


@pytest.mark.parametrize(("room", "fault"), CASES)
async def test_a_disk_fails(
    breakable: Stack, room: Room, fault: str, injected: Callable[[int], None]
) -> None:
    stack, shim = breakable, shim_of(breakable)
    await stack.calm()
    pump = rooms.pump_of(stack)
    await room.write(stack)
    with failing(shim, fault, room.path(stack)) as met:
        refusal = await _refusal(room, stack)
        assert met.fired, (met.seen, refusal)
        assert refusal is not None, f"written, though {met.fired} of {met.seen} calls failed"
        assert refusal.status in NOT_NOW, refusal.refusals
        await room.read(stack)
        if room is not rooms.PUMP:
            # A pump does nothing that its own log does not hold; nobody else's disk holds up what makes it safer.
            await alert(stack, pump)
    injected(1)
    await eventually(lambda: _succeeds(room, stack), what=f"{room.name} writes again", pause=0.5)
    await stack.calm()
    if room is not rooms.PUMP:
        room.intact(stack)
    await works_again(stack, pump, 250)


async def _refusal(room: Room, stack: Stack) -> Refused | None:
    try:
        await room.write(stack)
    except Refused as refusal:
        return refusal
    return None


async def _succeeds(room: Room, stack: Stack) -> bool:
    await room.write(stack)
    return True


@pytest.mark.thorough
@pytest.mark.parametrize("room", SERVICES, ids=lambda room: room.name)
async def test_somebody_else_holds_the_database(
    breakable: Stack, room: Room, injected: Callable[[int], None]
) -> None:
    """Longer than anybody waits for it; what was asked meanwhile may come about afterwards, and whole."""
    stack = breakable
    await stack.calm()
    with locked(room.file(stack)):
        with pytest.raises(Refused) as caught:
            await room.write(stack)
        assert caught.value.status in (*NOT_NOW, Status.DEADLINE_EXCEEDED)
        await room.read(stack)
        await alert(stack, rooms.pump_of(stack))
    injected(1)
    await eventually(lambda: _succeeds(room, stack), what=f"{room.name} writes again", pause=0.5)
    await stack.calm()
    room.intact(stack)


async def test_the_disk_of_the_whole_machine_is_full(
    breakable: Stack, injected: Callable[[int], None]
) -> None:
    """Real blocks, all of them taken: commands are refused; revocations and safety actions still go through."""
    stack, disk = breakable, disk_of(breakable)
    await stack.calm()
    pump, tim, tom = rooms.pump_of(stack), await newcomer(stack), await newcomer(stack)
    with disk.filled():
        # What has some room left inside its files takes it; then everything refuses.
        await eventually(lambda: _refuses(stack), what="class C is refused")
        await is_refused(stack, pump, FULL)
        with pytest.raises(Refused) as caught:
            await _fill_identity(stack)
        assert caught.value.status in NOT_NOW
        for room in ROOMS:
            await room.read(stack)
        epoch = await revoke_credential(stack, tim)
        assert await revoke_credential(stack, tom) == epoch + 1
        await enforced_everywhere(stack, epoch + 1)
        alerts = [await alert(stack, pump) for _ in range(3)]
        await is_refused(stack, pump, [*FULL, Reason.CREDENTIAL_REVOKED], who=tim)
    injected(1)
    await works_again(stack, pump, 260)
    await stack.calm()
    for request_id in alerts:
        await recorded(stack, pump, request_id)
    for room in SERVICES:
        await room.write(stack)
        room.intact(stack)


async def _refuses(stack: Stack) -> bool:
    try:
        await rooms.command(stack)
    except Refused as refusal:
        return refusal.status in NOT_NOW
    return False


async def _fill_identity(stack: Stack) -> None:
    for _ in range(1_000):
        await rooms.IDENTITY.write(stack)
