"""What technicians were told about their commands, and whether the record agrees: nothing lost, doubled, unrecorded."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from vigil.api.evidence.v1 import evidence_pb2
from vigil.core.statements.bodies import Answer, Decision, Outcome, Receipt
from vigil.core.statements.envelope import read
from vigil.demo.world import World
from vigil.errors import STATUS_OF, Reason, Status

READERS: Final = 4
_NOT_NOW: Final = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.RESOURCE_EXHAUSTED)
OVERLOAD: Final = frozenset(
    {
        *(reason for reason, status in STATUS_OF.items() if status in _NOT_NOW),
        *(Reason.NONCE_EXPIRED, Reason.NONCE_UNKNOWN, Reason.NONCE_USED, Reason.EPOCH_ROLLED_BACK),
        *(Reason.ATTESTATION_MISSING, Reason.ATTESTATION_STALE),
    }
)
"""With what a caller may be turned away because too much is asked for: each is lifted by asking again."""


@dataclass
class Book:
    """Every command by device: asked for, and acknowledged with a signed receipt."""

    asked: dict[str, set[bytes]] = field(default_factory=dict)
    acknowledged: dict[str, set[bytes]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def ask(self, device_id: str, request_id: bytes) -> None:
        """Note a request before it is sent."""
        self.asked.setdefault(device_id, set()).add(request_id)

    def done(self, device_id: str, request_id: bytes) -> None:
        """Note that the requester holds the device's signed *applied*."""
        self.acknowledged.setdefault(device_id, set()).add(request_id)

    def add(self, other: "Book") -> None:
        """Take another book's entries in."""
        for mine, theirs in ((self.asked, other.asked), (self.acknowledged, other.acknowledged)):
            for device_id, requests in theirs.items():
                mine.setdefault(device_id, set()).update(requests)
        self.refused += other.refused

    @property
    def commands(self) -> int:
        return sum(map(len, self.asked.values()))

    @property
    def applied(self) -> int:
        return sum(map(len, self.acknowledged.values()))


@dataclass(frozen=True, slots=True)
class Held:
    """What the record holds of a book's commands."""

    executions: int
    permits: int
    faults: tuple[str, ...]


async def check(world: World, book: Book, device_ids: Iterable[str], *, others: bool = False) -> Held:
    """Hold the book against the log, device by device; ``faults`` says what is wrong.

    ``others``: the devices have also done what stands in no book, so only the book's own requests are judged.
    """
    turns = asyncio.Semaphore(READERS)

    async def one(device_id: str) -> Held:
        async with turns:
            return await _device(world, book, device_id, others=others)

    found = await asyncio.gather(*(one(device_id) for device_id in device_ids))
    return Held(
        executions=sum(one.executions for one in found),
        permits=sum(one.permits for one in found),
        faults=tuple(fault for one in found for fault in one.faults),
    )


async def _device(world: World, book: Book, device_id: str, *, others: bool) -> Held:
    otto = world.people["otto"]
    request = evidence_pb2.ListHistoryRequest(subject=f"device/{device_id}", kinds=("receipt", "decision"))
    entries = await otto.every("evidence", otto.evidence.ListHistory, request, "entries")
    permits: Counter[bytes] = Counter()
    executed: Counter[bytes] = Counter()
    commands: dict[bytes, bytes] = {}
    counted = 0
    for entry in entries:
        if entry.kind == "decision":
            decision = read(entry.statement, Decision).body
            permits[decision.command] += decision.answer is Answer.ALLOW
            continue
        receipt = read(entry.statement, Receipt).body
        if others and receipt.request_id not in book.asked.get(device_id, set()):
            continue
        if receipt.outcome is Outcome.APPLIED:
            executed[receipt.request_id] += 1
            counted = max(counted, receipt.applied)
            if receipt.permit:
                commands[receipt.request_id] = receipt.command
    faults = list(_faults(device_id, book, executed, permits, commands))
    if counted != len(executed) and not others:
        faults.append(f"{device_id} counts {counted} executions, of which {len(executed)} are on record")
    return Held(sum(executed.values()), sum(permits.values()), tuple(faults))


def _faults(
    device_id: str,
    book: Book,
    executed: Counter[bytes],
    permits: Counter[bytes],
    commands: dict[bytes, bytes],
) -> Iterable[str]:
    for request_id in book.acknowledged.get(device_id, set()) - set(executed):
        yield f"{device_id}: {request_id.hex()} was acknowledged and is not on record"
    for request_id, count in executed.items():
        if count != 1:
            yield f"{device_id}: {request_id.hex()} was executed {count} times"
        if request_id not in book.asked.get(device_id, set()):
            yield f"{device_id}: {request_id.hex()} was executed and nobody asked for it"
    for request_id, command in commands.items():
        if permits[command] != 1:
            yield f"{device_id}: {request_id.hex()} was executed with {permits[command]} recorded permits"
