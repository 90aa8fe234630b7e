"""Power cuts at each durable step of an update: ``python -m tests.faults.power_cuts FOLDER LIBRARY RULES CASES``.

Runs below the shim. A real pump's folder is made once; for each case a copy of it goes through a whole update (staged,
downloaded, activated, started again) in a child that dies at the nth write, sync or rename: before it, after it, or in
the middle of a write. Then the pump is switched on again and must be one that runs. Prints one JSON object.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness.shim import Fault, Op, Shim
from tests.support.pumps import DEVICE, FIRMWARE, NEW_FIRMWARE, PumpSite, TestPump
from tests.unit.device.test_agent import (
    challenge_of,
    deliver,
    of_kind,
    online,
    outcomes,
    ready_update,
)
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Outcome, TherapyState
from vigil.device import messages
from vigil.device.agent import DeviceAgent
from vigil.device.hardware import power_on

ROUNDS = 20
"""Of two seconds each: until an update that goes on by itself has to have come so far."""
OLD, NEW = sha256(FIRMWARE), sha256(NEW_FIRMWARE)


@dataclass(frozen=True)
class Case:
    """Where the power is cut: at the nth call, how."""

    nth: int
    how: str

    def rule(self, shim: Shim, path: str) -> "object":
        if self.how == "torn":
            return shim.tear(path=path, nth=self.nth)
        return shim.kill(Op.DURABLE, path=path, nth=self.nth, after=self.how == "after")


def switched_on(site: PumpSite, folder: Path) -> TestPump:
    hardware = power_on(folder, clock=site.clock, entropy=os.urandom)
    agent = DeviceAgent(hardware=hardware, shared=site.shared, clock=site.clock, entropy=os.urandom)
    return TestPump(site, folder, DEVICE, hardware, agent)


def update(pump: TestPump) -> None:
    """From the intent to the start of the new build."""
    pump.release()
    _, out = ready_update(pump.site, pump)
    pump.answer_head(challenge_of(out))
    pump.hardware.power_off()
    switched_on(pump.site, pump.folder)


def in_a_child(site: PumpSite, folder: Path) -> int:
    """An update in a process of its own; answers how the process ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            update(switched_on(site, folder))
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def judge(site: PumpSite, folder: Path) -> str:
    """What the pump is after the cut; asserts that it is one that runs and that can be updated."""
    pump = switched_on(site, folder)
    slots, found = pump.hardware.slots, pump.hardware.slots.measure()
    assert found in (OLD, NEW), "a build that nobody released runs"
    assert slots.build.digest == found, "what runs is not what the slot was given"
    # Delivery waits for nothing: it starts at once, whatever became of the update.
    pump.hardware.pump.start_therapy()
    assert pump.hardware.pump.therapy is TherapyState.DELIVERING
    pump.agent.tick()
    assert pump.hardware.pump.therapy is TherapyState.DELIVERING
    pump.hardware.pump.stop_therapy()
    pump.release()
    applied = [
        row[0]
        for row in pump.hardware.store.execute("SELECT request_id FROM journal")
        if Outcome.APPLIED in outcomes(pump, row[0])
    ]
    assert bool(applied) is (found == NEW), "the receipt and the build that runs disagree"
    if found == OLD:
        finish(pump)
    pump.hardware.power_off()
    return "new" if found == NEW else "old"


def finish(pump: TestPump) -> None:
    """A staged command goes on by itself; if there is none any more, another one does it."""
    online(pump)
    if not pump.agent._executor.staged:
        release = pump.site.release(NEW_FIRMWARE)
        pump.command(
            "update-firmware",
            {"firmware": NEW},
            approvers=(pump.site.approver,),
            release=release.data,
        )
    for _ in range(ROUNDS):
        pump.site.clock.advance(2)
        for message in of_kind(deliver(pump, NEW_FIRMWARE, pump.agent.tick()), messages.HeadChallenge):
            pump.answer_head(challenge_of([message]))
        if pump.agent.restart_wanted:
            break
    pump.hardware.power_off()
    again = switched_on(pump.site, pump.folder)
    assert again.hardware.slots.measure() == NEW, "no update is possible any more"
    again.hardware.power_off()


def cases(count: int, writes: int, wanted: int) -> list[Case]:
    """All of them, or ``wanted`` evenly among them."""
    found = [Case(nth, how) for nth in range(1, count + 1) for how in ("before", "after")]
    found += [Case(nth, "torn") for nth in range(1, writes + 1)]
    if not wanted or wanted >= len(found):
        return found
    return [found[place * len(found) // wanted] for place in range(wanted)]


def main(folder: Path, shim: Shim, wanted: int) -> None:
    site = PumpSite(folder)
    made = site.pump()
    made.hardware.power_off()
    base = made.folder

    def copy(name: str) -> Path:
        target = folder / name
        shutil.copytree(base, target)
        return target

    whole = copy("whole")
    with shim.watch(Op.DURABLE, path="/whole/") as steps, shim.watch(Op.WRITE, path="/whole/") as writes:
        assert in_a_child(site, whole) == 0
    assert judge(site, whole) == "new"
    ends: Counter[str] = Counter()
    died = 0
    for number, case in enumerate(cases(steps.seen, writes.seen, wanted)):
        target = copy(f"cut-{number}")
        with case.rule(shim, f"/cut-{number}/") as fault:  # type: ignore[attr-defined]
            assert isinstance(fault, Fault)
            ended = in_a_child(site, target)
            assert bool(fault.fired) is (ended == signal.SIGKILL), (case, ended)
        if fault.fired:
            died += 1
            try:
                ends[judge(site, target)] += 1
            except Exception as error:
                raise AssertionError(f"{case}: {error!r}") from error
        shutil.rmtree(target)
    sys.stdout.write(json.dumps({"steps": steps.seen, "writes": writes.seen, "died": died, **ends}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Shim(Path(sys.argv[2]), Path(sys.argv[3])), int(sys.argv[4]))
