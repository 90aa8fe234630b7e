"""How long a safety action and a revocation take, now: measured beside whatever else goes on."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.benchmarks.result import percentile
from tests.soak.book import Book
from tests.support.revoking import revoke_credential
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.statements.bodies import (
    Intent,
    Outcome,
)
from vigil.core.statements.envelope import Statement
from vigil.demo.technician import Done, Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, Refused

POLL_S: Final = 0.01
SAFETY_S: Final = 10.0
"""The bound of a safety action at a connected gateway, and of a revocation for it (protocol.md, Classes)."""


AGAIN: Final = frozenset({Reason.DEVICE_OFFLINE, Reason.NONCE_EXPIRED, Reason.OUTCOME_UNKNOWN})


@dataclass
class Latencies:
    """Seconds, and what failed."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def ms(self, part: float) -> float:
        return percentile(self.seconds, part) * 1000 if self.seconds else float("inf")

    @property
    def most(self) -> float:
        """The longest, in ms."""
        return self.ms(1.0)


async def safety(
    hands: Sequence[tuple[Hand, PumpAt]], book: Book, *, every: float, seconds: float
) -> Latencies:
    """Class S1 (`local-alert`) at each pump in turn, from the signature to the device's own signed word."""
    found, began = Latencies(), time.monotonic()

    async def one(hand: Hand, pump: PumpAt) -> None:
        while time.monotonic() - began < seconds:
            started = time.monotonic()
            intent = hand.intent(pump, "local-alert", {"message": os.urandom(4).hex()})
            book.ask(pump.device_id, intent.body.request_id)
            try:
                done = await _until_late(hand, pump, intent, started)
            except Refused as refusal:
                found.failed.append(str(refusal))
            else:
                assert done.outcome is Outcome.APPLIED, done.reason
                assert done.permit is None
                book.done(pump.device_id, intent.body.request_id)
                found.seconds.append(time.monotonic() - started)
            await asyncio.sleep(max(0.0, started + every - time.monotonic()))

    await asyncio.gather(*(one(*each) for each in hands))
    return found


async def _until_late(hand: Hand, pump: PumpAt, intent: Statement[Intent], started: float) -> Done:
    """The same request again while it is in time, as a person asks again whose pump was busy. Raises what was last."""
    while True:
        try:
            return await hand.finish(pump, intent, seconds=SAFETY_S)
        except Refused as refusal:
            if refusal.reason not in AGAIN or time.monotonic() - started > SAFETY_S:
                raise


async def revocations(world: World, people: Sequence[str], *, every: float, seconds: float) -> Latencies:
    """Credentials revoked one after the other, from the call to the last gateway's signed word that it enforces it."""
    found, began, number = Latencies(), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        started = time.monotonic()
        who = people[number % len(people)]
        number += 1
        try:
            epoch = await revoke_credential(world.people[who], os.urandom(32).hex())
            await enforced(world, who, epoch)
        except Refused as refusal:
            found.failed.append(str(refusal))
        else:
            found.seconds.append(time.monotonic() - started)
        await asyncio.sleep(max(0.0, started + every - time.monotonic()))
    return found


async def enforced(world: World, who: str, epoch: int) -> None:
    """Wait until every gateway has said, signed and after persisting, that it enforces the epoch."""
    session = world.people[who]
    request = revocation_pb2.GetCoverageRequest(epoch=epoch)
    while True:
        coverage = await session.call("revocation", session.revocations.GetCoverage, request)
        if coverage.enforcing == coverage.known:
            return
        await asyncio.sleep(POLL_S)
