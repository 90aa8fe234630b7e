"""Commands that flow while something is done to the installation, and what must be true of them afterwards."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.stack import PRESSURE, Stack, eventually
from vigil.core.statements.bodies import Answer, Decision, Intent, Outcome, Receipt
from vigil.core.statements.envelope import Statement, read
from vigil.demo.technician import Done
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused

PAUSE_S = 0.1
"""At most, between two commands of a technician, and as much more after a refusal: however long an outage lasts, one
credential stays near the ten commands a second that its quota grants."""
SUBMIT_S = 8.0


@dataclass(frozen=True)
class Attempt:
    """One command that a technician gave, and what the technician was told."""

    pump: PumpAt
    who: str
    intent: Statement[Intent]
    done: Done | None
    refusal: Refused | None

    @property
    def acknowledged(self) -> bool:
        return self.done is not None and self.done.outcome is Outcome.APPLIED


@dataclass
class Flow:
    """Four technicians' tasks, one at each pump, until told to end and ``each`` commands of each are acknowledged."""

    stack: Stack
    each: int
    attempts: list[Attempt] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _enough: bool = False

    @property
    def acknowledged(self) -> int:
        return sum(attempt.acknowledged for attempt in self.attempts)

    @property
    def refused(self) -> Counter[Reason]:
        """How often each reason was given."""
        return Counter(one.refusal.reason for one in self.attempts if one.refusal is not None)

    async def reached(self, count: int) -> None:
        """Wait until so many commands were acknowledged."""
        while self.acknowledged < count:
            self._news.clear()
            await self._news.wait()

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Flow"]:
        """Commands flow inside, and go on until every task has reached its count."""
        await self.begin()
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for who, pump in self._technicians():
                tasks.create_task(self._work(who, pump))
            yield self
            self._enough = True

    async def begin(self) -> None:
        """Note where every pump stands."""
        self.before = {pump.device_id: await self.stack.applied(pump) for pump in self.stack.pumps()}

    async def give(self, who: str, pump: PumpAt) -> Attempt:
        """One command, and what the technician was told."""
        hand = self.stack.hand(who, pump.site)
        # A value that is never the one in force, so that an execution always is a change.
        pressure = 100 + (len(self.attempts) * 7 + random.randrange(7)) % 400
        intent = hand.intent(pump, PRESSURE, {"occlusion_pressure": pressure})
        done, refusal = None, None
        try:
            done = await hand.finish(pump, intent, seconds=SUBMIT_S)
        except Refused as error:
            refusal = error
        attempt = Attempt(pump, who, intent, done, refusal)
        self.attempts.append(attempt)
        self._news.set()
        return attempt

    def _technicians(self) -> list[tuple[str, PumpAt]]:
        first, second = self.stack.pumps(self.stack.first), self.stack.pumps(self.stack.second)
        return [*zip(("ada", "eve"), first, strict=True), *zip(("ben", "ben"), second, strict=True)]

    async def _work(self, who: str, pump: PumpAt) -> None:
        mine = 0
        while mine < self.each or not self._enough:
            attempt = await self.give(who, pump)
            mine += attempt.acknowledged
            await asyncio.sleep(random.uniform(0, PAUSE_S) + (PAUSE_S if attempt.refusal else 0.0))

    # --- afterwards

    async def check(self) -> None:
        """Invariants 3, 5 and 6: nothing acknowledged is lost, nothing runs twice or without its record."""
        executed = [attempt for attempt in self.attempts if await self._was_executed(attempt)]
        assert {id(one) for one in self.attempts if one.acknowledged} <= {id(one) for one in executed}
        for pump in self.stack.pumps():
            requests = {one.intent.body.request_id for one in executed if one.pump == pump}
            counter = await self.stack.applied(pump)
            assert counter - self.before[pump.device_id] == len(requests), pump.name
            await eventually(
                lambda pump=pump, requests=requests: self._is_on_record(pump, requests),
                what=f"{len(requests)} executions of {pump.name} on record",
            )
            await self._check_record(pump, requests)

    async def _was_executed(self, attempt: Attempt) -> bool:
        """Ask again about whatever was not acknowledged: GetReceipt, without a permit."""
        if attempt.acknowledged:
            return True
        hand = self.stack.hand(attempt.who, attempt.pump.site)

        async def asked() -> str:
            try:
                done = await hand.ask_again(attempt.pump, attempt.intent)
            except Refused as error:
                if error.reason is Reason.RESOURCE_NOT_FOUND:
                    return "not executed"
                raise
            return str(done.outcome)

        outcome = await eventually(asked, what=f"{attempt.refusal} is resolved")
        # What was interrupted left no effect: that is durable with its receipt, or not at all.
        assert outcome in ("not executed", Outcome.REFUSED, Outcome.INTERRUPTED, Outcome.APPLIED), outcome
        return outcome == Outcome.APPLIED

    async def _receipts(self, pump: PumpAt, requests: set[bytes]) -> list[Receipt]:
        found = [read(entry.statement, Receipt).body for entry in await self.stack.history(pump, "receipt")]
        return [one for one in found if one.request_id in requests and one.outcome is Outcome.APPLIED]

    async def _is_on_record(self, pump: PumpAt, requests: set[bytes]) -> bool:
        return {one.request_id for one in await self._receipts(pump, requests)} == requests

    async def _check_record(self, pump: PumpAt, requests: set[bytes]) -> None:
        receipts = await self._receipts(pump, requests)
        assert Counter(one.request_id for one in receipts) == Counter(requests)
        decisions = [
            (entry.digest, read(entry.statement, Decision).body)
            for entry in await self.stack.history(pump, "decision")
        ]
        assert len({digest for digest, _ in decisions}) == len(decisions)
        permits = Counter(body.command for _, body in decisions if body.answer is Answer.ALLOW)
        for receipt in receipts:
            assert permits[receipt.command] == 1, receipt
        # Whatever the pump applied since the beginning of this flow was asked for in it.
        applied = [
            read(entry.statement, Receipt).body.request_id
            for entry in await self.stack.history(pump, "receipt")
        ]
        mine = {one.intent.body.request_id for one in self.attempts if one.pump == pump}
        assert set(applied) & mine >= requests
