"""One schedule: some seconds of work and trouble, then everything heals, and it is seen whether all is well."""

import asyncio
import hashlib
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.model.actors import Order, Person, gateway_of, orders, safety_orders
from tests.model.faults import Faults, hand
from tests.model.golden import Golden
from tests.model.ledger import Ledger
from tests.model.loop import SimTask, StuckError
from tests.model.world import DIALS, PUMPS
from vigil.core.statements import bodies as b

SHORTEST_S, LONGEST_S = 6.0, 25.0
CONVERGE_S: Final = 90.0
"""Longer than the longest pauses of all clients together: spools 15 s, links of pumps 15 s, replicas 5 s."""
PATIENCE_S: Final = 300.0
"""Of virtual time, past the end of the trouble: longer than every deadline of every call, one after the other."""


@dataclass
class Outcome:
    """What one schedule came to."""

    seed: int
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    digest: str = ""


class Schedule:
    """Plays one seed over the golden world; call it in a process of its own, which it uses up."""

    def __init__(self, golden: Golden, seed: int, folder: Path) -> None:
        self.world = golden.world
        self.world.begin(seed, folder)
        # The deadline's clock is a thread, and threads do not come along into a forked process.
        self.world.engine._ticker = threading.current_thread()  # type: ignore[attr-defined]
        self.random = Random(f"schedule {seed}")
        self.ledger = Ledger(self.world, golden.devices)
        self.people = {
            name: Person(
                name,
                golden.people[name],
                world=self.world,
                ledger=self.ledger,
                devices=golden.devices,
                random=Random(f"{seed} {name}"),
            )
            for name in ("tess", "theo", "sam", "sue", "abe", "rita", "ruth")
        }
        self.seed = seed
        self.probing = ["theo"]
        """Technicians whose commands go through in the end."""
        self.begun = self.world.loop.time()

    def play(self) -> Outcome:
        loop, ledger = self.world.loop, self.ledger
        ledger.attach()
        try:
            loop.run_until_complete(self._everything())
        except StuckError as error:
            ledger.found("converges", f"{error}; still under way: {self._under_way()}")
        except Exception:  # noqa: BLE001 - shown with its seed, as any finding is
            ledger.found("sound", traceback.format_exc())
        for error in loop.errors:
            ledger.found("sound", f"{error['node']}: {error.get('message')}: {error.get('exception')!r}")
        counts = ledger.counts
        counts["steps"] = loop.steps
        counts["messages"] = self.world.net.messages
        counts["delayed messages"] = self.world.net.delayed
        counts["connections lost"] = self.world.net.broken
        counts["bus repeats"] = self.world.bus.repeats
        counts["bus losses"] = self.world.bus.losses
        counts["commits"] = sum(disk.commits for disk in self.world.disks.values())
        counts["failed commits"] = sum(disk.failures for disk in self.world.disks.values())
        return Outcome(
            self.seed,
            loop.time() - self.begun,
            counts,
            ledger.findings,
            ledger.trace,
            hashlib.sha256("\n".join(ledger.trace).encode()).hexdigest()[:16],
        )

    def _under_way(self) -> str:
        """What people and the schedule itself still wait for."""
        nodes = {self.world.loop.world, *(person.node for person in self.people.values())}
        stacks = []
        for task in asyncio.all_tasks(self.world.loop):
            if isinstance(task, SimTask) and task.node in nodes:
                frames, awaited = [], task.get_coro()
                while awaited is not None and (frame := getattr(awaited, "cr_frame", None)) is not None:
                    frames.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                    awaited = getattr(awaited, "cr_await", None)
                stacks.append(f"{task.node.name}: {' > '.join(frames)}")
        return "; ".join(sorted(stacks)) or "nothing of theirs"

    async def _everything(self) -> None:
        random, loop = self.random, self.world.loop
        length = random.uniform(SHORTEST_S, LONGEST_S)
        loop.ends_at = loop.time() + length + PATIENCE_S
        faults = Faults(self.world, self.ledger, Random(f"faults {self.seed}"), loop.time() + length)
        for pump in PUMPS:
            hand(self.world, pump, begin=random.random() < 0.2)
        faults.start()
        work = [self._on(name, self._technician(name, faults.until)) for name in ("tess", "theo")]
        work += [self._on(name, self._safety(name, faults)) for name in ("sam", "sue")]
        if random.random() < 0.6:
            work.append(self._on("rita", self._recall(faults.until)))
        await asyncio.sleep(length)
        await faults.heal()
        await asyncio.gather(*work)
        await self._converge()

    def _on(self, name: str, work: object) -> "asyncio.Future[None]":
        """Run somebody's work on their own machine."""
        loop = self.world.loop
        done = loop.create_future()

        def begin() -> None:
            task = loop.create_task(work)

            def ended(task: "asyncio.Task[None]") -> None:
                if task.cancelled():
                    done.set_exception(RuntimeError(f"the work of {name} was cancelled"))
                elif (error := task.exception()) is not None:
                    done.set_exception(error)
                else:
                    done.set_result(None)

            task.add_done_callback(ended)

        loop.on(self.people[name].node, begin)
        return done

    async def _technician(self, name: str, until: float) -> None:
        person, random = self.people[name], Random(f"work {self.seed} {name}")
        while (left := until - self.world.loop.time()) > 0:
            await asyncio.sleep(min(left, random.random() * 3))
            order = orders(random)
            gateway = gateway_of(order, random)
            if order.approved:
                ended = await person.approved(order, gateway, self.people["abe"])
            else:
                ended = await person.command(order, gateway)
            self.ledger.counts[f"commands {'executed' if ended in ('applied', 'staged') else 'refused'}"] += 1

    async def _safety(self, name: str, faults: Faults) -> None:
        person, random = self.people[name], Random(f"work {self.seed} {name}")
        while (left := faults.until - self.world.loop.time()) > 0:
            await asyncio.sleep(min(left, 1 + random.random() * 5))
            order = safety_orders(random)
            await person.safety(order, DIALS[order.pump], faults.standing)

    async def _recall(self, until: float) -> None:
        random = Random(f"recall {self.seed}")
        left = until - self.world.loop.time()
        await asyncio.sleep(random.random() * left)
        name, rita = random.choice(("tess", "tess", "sam")), self.people["rita"]
        revocation = await rita.revoke(self.people[name].credential)
        if revocation is None or random.random() < 0.5:
            return
        await asyncio.sleep(random.random() * 12)
        if await rita.reinstate(revocation, self.people["ruth"]) and name == "tess":
            self.probing.append(name)

    async def _converge(self) -> None:
        """Wait until all is well again, and show it by a command of each class to each pump."""
        loop = self.world.loop
        for pump in PUMPS:
            hand(self.world, pump, begin=False)
        until = loop.time() + CONVERGE_S
        lacking = self.ledger.unconverged()
        while lacking and loop.time() < until:
            await asyncio.sleep(1.0)
            for pump in PUMPS:
                hand(self.world, pump, begin=False)
            lacking = self.ledger.unconverged()
        for words in lacking:
            self.ledger.found("converges", words)
        self.ledger.say("converged" if not lacking else "did not converge")
        if not lacking:
            for name in self.probing:
                await self._on(name, self._probe(self.people[name], until))

    async def _probe(self, person: Person, until: float) -> None:
        for pump in PUMPS:
            order = Order(pump, "read-diagnostics", {}, mode=b.Mode.NOW)
            ended = ""
            while ended != "applied" and self.world.loop.time() < until:
                ended = await person.command(order, DIALS[pump])
                if ended != "applied":
                    await asyncio.sleep(1.0)
            if ended != "applied":
                self.ledger.found(
                    "converges", f"in the end a reading of {pump} by {person.name} is refused: {ended}"
                )
