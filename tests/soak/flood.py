"""``python -m tests.soak.flood``: valid credentials that ask for far more than they may have, in a process of its own.

An open loop: whatever became of the calls before, the next one leaves when it is due. Reads one line of JSON (`Order`)
from stdin and writes one (`Outcome`) to the file it is told. Besides commands it sends what must never be let through.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final

import uvloop

from tests.soak.book import OVERLOAD, Book
from vigil.api.gateway.v1 import gateway_pb2
from vigil.cli.contexts import read_contexts
from vigil.core.statements.bodies import Outcome as CommandOutcome
from vigil.demo.fleet import FleetProcess
from vigil.demo.installation import RunningInstallation
from vigil.demo.people import session_of
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, Refused
from vigil.run.layout import DataFolder

OUTSTANDING: Final = 400
"""Calls of this process that wait for their answers; past it the open loop leaves calls out, and counts them."""
SUBMIT_S: Final = 8.0
READ, FORBIDDEN, NONCE, LOOK = "read-diagnostics", "factory-reset", "nonce", "look"
MIX: Final = (READ, READ, READ, NONCE, FORBIDDEN, LOOK)
"""Commands, nonces that are never used, what a technician alone may never do, and lists."""
NEVER: Final = frozenset({Reason.APPROVALS_MISSING, Reason.ROLE_NOT_PERMITTED, Reason.PATIENT_CONNECTED})
"""Why the forbidden is refused when it is looked at, rather than turned away for the load."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one process is told: people by site, pumps by site, calls a second, for how long."""

    data: str
    domain: str
    people: dict[str, str]
    gateways: dict[str, str]
    pumps: dict[str, list[str]]
    rate: float
    seconds: float
    revoked: str = ""
    """A person whose credential is revoked meanwhile: being refused for that is right."""


@dataclass(slots=True)
class Outcome:
    """What it saw. Times are of the machine's monotonic clock, in seconds; ids are hex."""

    sent: int = 0
    left_out: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, str]] = field(default_factory=list)
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    revoked_allowed_at: float = 0.0
    """When the last command of the revoked person that was let through was begun."""

    def book(self) -> Book:
        """Its commands, for the comparison with the record."""
        book = Book(refused=Counter(self.answered))
        for device_id, request_id in self.asked:
            book.ask(device_id, bytes.fromhex(request_id))
        for device_id, request_id in self.acknowledged:
            book.done(device_id, bytes.fromhex(request_id))
        return book

    def to_json(self) -> str:
        # Not `asdict`, which makes a Counter of a Counter's pairs.
        return json.dumps({one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def from_json(cls, text: bytes) -> "Outcome":
        value = json.loads(text)
        value["answered"] = Counter(value["answered"])
        for name in ("asked", "acknowledged"):
            value[name] = [tuple(one) for one in value[name]]
        return cls(**value)


class Flood:
    """One process's calls."""

    def __init__(self, order: Order) -> None:
        self._order = order
        folder = DataFolder(Path(order.data))
        world = World(RunningInstallation(folder, order.domain), folder.path, list(order.gateways))
        world.gateways = dict(order.gateways)
        contexts = read_contexts(folder)
        world.people = {name: session_of(folder, contexts.get(name)) for name in order.people}
        self._world = world
        self._hands = [(name, Hand(world, name, site), site) for name, site in order.people.items()]
        nobody = FleetProcess(folder.path, control=folder.path, log=folder.path)
        self._pumps = {
            site: [PumpAt(name=one, device_id=one, udi="", site=site, fleet=nobody) for one in ids]
            for site, ids in order.pumps.items()
        }
        self.outcome = Outcome()
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcome:
        """Send for as long as ordered, then wait for what is under way."""
        order, began = self._order, time.monotonic()
        for number in range(int(order.rate * order.seconds)):
            due = began + number / order.rate
            now = time.monotonic()
            if now < due:
                await asyncio.sleep(due - now)
            elif not number % 64:
                await asyncio.sleep(0)
            if time.monotonic() - began > order.seconds:
                self.outcome.left_out += int(order.rate * order.seconds) - number
                break
            if len(self._under_way) >= OUTSTANDING:
                self.outcome.left_out += 1
                continue
            task = asyncio.create_task(self._one(number))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)
        for session in self._world.people.values():
            await session.close()
        return self.outcome

    async def _one(self, number: int) -> None:
        name, hand, site = self._hands[number % len(self._hands)]
        turn, pumps = number // len(self._hands), self._pumps[site]
        kind = MIX[turn % len(MIX)]
        # A credential has one nonce at a pump: those that it never uses are asked of the first pump alone.
        pump = pumps[0] if kind == NONCE or len(pumps) == 1 else pumps[1 + turn % (len(pumps) - 1)]
        begun, outcome = time.monotonic(), self.outcome
        outcome.sent += 1
        try:
            what = await self._send(kind, hand, pump)
        except Refused as refusal:
            reasons = {one.reason for one in refusal.refusals}
            outcome.answered[str(refusal.reason)] += 1
            fitting = reasons & (NEVER if kind == FORBIDDEN else frozenset())
            revoked = name == self._order.revoked and Reason.CREDENTIAL_REVOKED in reasons
            if not (reasons <= OVERLOAD or fitting or revoked):
                outcome.wrong.append(f"{kind} of {name}: {refusal}")
            return
        outcome.answered[what] += 1
        if name == self._order.revoked:
            outcome.revoked_allowed_at = max(outcome.revoked_allowed_at, begun)
        if kind == FORBIDDEN:
            outcome.wrong.append(f"{kind} of {name} was let through")

    async def _send(self, kind: str, hand: Hand, pump: PumpAt) -> str:
        if kind == NONCE:
            request = gateway_pb2.PrepareCommandRequest(device_id=pump.device_id, action=READ)
            await hand.session.call(
                hand.end.whom, hand.end.commands.PrepareCommand, request, timeout=SUBMIT_S
            )
            return "a nonce"
        if kind == LOOK:
            looking = gateway_pb2.ListConnectedDevicesRequest(page_size=10)
            await hand.session.call(
                hand.end.whom, hand.end.devices.ListConnectedDevices, looking, timeout=SUBMIT_S
            )
            return "a list"
        intent = hand.intent(pump, kind, {})
        request_id = intent.body.request_id.hex()
        self.outcome.asked.append((pump.device_id, request_id))
        done = await hand.finish(pump, intent, seconds=SUBMIT_S)
        if done.outcome is CommandOutcome.APPLIED:
            self.outcome.acknowledged.append((pump.device_id, request_id))
        return (
            str(done.outcome)
            if done.outcome is not CommandOutcome.REFUSED
            else f"refused by the pump: {done.reason}"
        )


async def flooded(order: Order, told: Path) -> Outcome:
    """Run one flood in a process of its own, which ends with this one; what it saw it writes to the file ``told``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.flood", str(told)),
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        start_new_session=True,
    )
    try:
        await process.communicate(json.dumps(asdict(order)).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"a flood ended with {process.returncode}")
    return Outcome.from_json(await asyncio.to_thread(told.read_bytes))


def main() -> None:
    """One order, one outcome."""
    order = Order(**json.loads(sys.stdin.buffer.read()))
    outcome = uvloop.run(Flood(order).run())
    Path(sys.argv[1]).write_text(outcome.to_json())


if __name__ == "__main__":
    main()
