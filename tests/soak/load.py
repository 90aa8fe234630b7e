"""A whole installation at work for minutes, flooded, and looked at all the while; then every promise is counted.

64 technicians command 2,000 pumps at four sites; what each process holds must stay flat. Then valid credentials ask for
many times what the machine can do: it refuses, revocations and safety actions keep their latency, nothing that may not
pass does, and afterwards everything works as before. Readers that take nothing are cut off and catch up.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.benchmarks.site import DOMAIN, Site
from tests.soak import flood, slow
from tests.soak.book import OVERLOAD, Book, Held, check
from tests.soak.probes import SAFETY_S, Latencies, enforced, revocations, safety
from tests.soak.sampler import Sampler, Verdict, look
from tests.support.revoking import revoke_credential
from tests.support.stack import eventually, free_base
from vigil.api.gateway.v1 import gateway_pb2
from vigil.core.statements.bodies import Outcome
from vigil.demo import places
from vigil.demo.people import Cast
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused

Progress = Callable[[str, float], None]
"""Told what is being done and the part of everything that is done."""

SITES: Final = tuple(f"hospital-{number:02}" for number in range(1, 5))
REVOKERS: Final = 8
"""One person revokes at most 20 statements in ten minutes alone."""
RATE: Final = 24.0
"""Commands a second of all technicians, about half of what two cores do beside everything else."""
CHANGES: Final = 4
"""Every so-manieth command is of class C, the others of class R."""
FLOOD_RATE: Final = 1_200.0
"""Calls a second of each flooding process, in an open loop; there are two of them."""
FLOOD_S: Final = 60.0
FLOODERS: Final = 2
PROBE_S: Final = 1.5
REVOKE_S: Final = 2.0
R_BOUND_S: Final = 60.0
"""After a revocation, for class R on stale replicas (COMMANDS, Classes)."""
RECOVERY_S: Final = 60.0
FILLED_MIB: Final = 192.0
"""What one process may hold more while it is flooded: queues are bounded."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the run is."""

    minutes: float
    technicians: int
    pumps: int
    flood_s: float = FLOOD_S


@dataclass
class Found:
    """Everything that the run saw."""

    size: Size
    seconds: dict[str, float] = field(default_factory=dict)
    book: Book = field(default_factory=Book)
    steady: Book = field(default_factory=Book)
    verdicts: list[Verdict] = field(default_factory=list)
    quiet: tuple[Latencies, Latencies] = field(default_factory=lambda: (Latencies(), Latencies()))
    loud: tuple[Latencies, Latencies] = field(default_factory=lambda: (Latencies(), Latencies()))
    floods: list[flood.Outcome] = field(default_factory=list)
    flood_seconds: float = 0.0
    swelling: Mapping[str, float] = field(default_factory=dict)
    last_allowed_s: float = 0.0
    recovered_s: float = 0.0
    cut: dict[str, float] = field(default_factory=dict)
    held: Held | None = None
    wrong: list[str] = field(default_factory=list)


async def run(size: Size, progress: Progress) -> Found:
    """Build, work, flood, recover, count; raises nothing for what does not hold: it stands in ``wrong``."""
    found = Found(size)
    began = time.monotonic()
    casts = [_safety(site) for site in SITES] + [_revoker(number) for number in range(REVOKERS)]
    site = Site(
        pumps=size.pumps,
        technicians=size.technicians,
        sites=SITES,
        base_port=free_base(),
        metrics=True,
        casts=casts,
        attested_s=600.0,
        apart=True,
        progress=lambda part: progress("enrolling pumps", 0.4 * part),
    )
    async with site:
        found.seconds["to set up"] = time.monotonic() - began
        soak = _Soak(site, found)
        progress("measuring at rest", 0.41)
        await soak.settle()
        found.quiet = await soak.probe(20.0)
        progress("working", 0.45)
        await soak.work(size.minutes * 60, lambda part: progress("working", 0.45 + 0.35 * part))
        progress("flooded", 0.8)
        await soak.flooded()
        progress("recovering", 0.87)
        await soak.recover()
        progress("slow readers", 0.9)
        await soak.slow_readers()
        progress("counting", 0.95)
        await soak.count()
    found.seconds["in all"] = time.monotonic() - began
    progress("done", 1.0)
    return found


class _Soak:
    """One run on one installation."""

    def __init__(self, site: Site, found: Found) -> None:
        self._site = site
        self._world = site.world
        self._found = found
        self._revokers = [_revoker(number).name for number in range(REVOKERS)]
        self._guarded = [
            (Hand(site.world, _safety(one).name, one), site.world.pumps[one][0]) for one in SITES
        ]
        self._metrics = site.metrics_of()
        self._pids = site.processes()

    async def settle(self) -> None:
        """Every gateway has its pumps and has nothing to tell any more."""
        for site in SITES:
            await eventually(lambda site=site: self._calm(site), what=f"{site} is calm", seconds=300.0)

    async def _calm(self, site: str) -> bool:
        # The last one: the first technician of all loses a credential in the flood.
        who = [name for name, place in self._site.technicians() if place == site][-1]
        end = self._world.gateway_end(who, site)
        state = await self._world.people[who].call(
            end.whom, end.devices.GetGatewayStatus, gateway_pb2.GetGatewayStatusRequest(), timeout=10.0
        )
        return (
            state.connected_devices == len(self._world.pumps[site])
            and state.lease_left_ms > 0
            and not state.spool_length
        )

    async def probe(self, seconds: float) -> tuple[Latencies, Latencies]:
        """A safety action and a revocation every second or two."""
        acted, revoked = await asyncio.gather(
            safety(self._guarded, self._found.book, every=PROBE_S, seconds=seconds),
            revocations(self._world, self._revokers, every=REVOKE_S, seconds=seconds),
        )
        return acted, revoked

    async def work(self, seconds: float, progress: Callable[[float], None]) -> None:
        """Everybody works, and every process is looked at."""
        found, book = self._found, self._found.steady
        sampler = Sampler({name: pid for name, pid in self._pids.items() if name != "client"}, self._metrics)
        sampling = asyncio.create_task(sampler.run())
        rested: dict[str, asyncio.Queue[PumpAt]] = {site: asyncio.Queue() for site in SITES}
        for site in SITES:
            for pump in random.sample(self._world.pumps[site], len(self._world.pumps[site])):
                rested[site].put_nowait(pump)
        until = time.monotonic() + seconds
        each = self._found.size.technicians / RATE
        workers = [
            asyncio.create_task(_work(Hand(self._world, name, site), rested[site], book, until, each))
            for name, site in self._site.technicians()
        ]
        while (left := until - time.monotonic()) > 0:
            progress(1 - left / seconds)
            await asyncio.wait({sampling, *workers}, timeout=2.0, return_when=asyncio.FIRST_EXCEPTION)
            for task in (sampling, *workers):
                if task.done():
                    task.result()
        await asyncio.gather(*workers)
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        found.verdicts = sampler.verdicts()
        found.wrong += [f"grows: {one}" for one in found.verdicts if not one.flat]
        found.wrong += [
            f"refused while it worked: {reason} {count} times"
            for reason, count in book.refused.items()
            if Reason(reason) not in OVERLOAD
        ]
        found.book.add(book)

    async def flooded(self) -> None:
        """Two processes ask for far too much; one of their credentials is revoked in the middle."""
        found, size = self._found, self._found.size
        before = {name: look(pid).memory for name, pid in self._pids.items()}
        most = dict(before)
        people = self._site.technicians()
        victim = people[0][0]
        orders = [self._order(people[number::FLOODERS], victim) for number in range(FLOODERS)]
        began = time.monotonic()
        floods = [
            asyncio.create_task(flood.flooded(order, self._world.home / f"flood-{number}.json"))
            for number, order in enumerate(orders)
        ]
        watching = asyncio.create_task(self._watch(most))
        await asyncio.sleep(size.flood_s / 6)
        revoking = asyncio.create_task(self._revoke(victim, size.flood_s / 4))
        found.loud = await self.probe(size.flood_s * 2 / 3)
        committed = await revoking
        found.floods = list(await asyncio.gather(*floods))
        found.flood_seconds = time.monotonic() - began
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        found.swelling = {name: most[name] - before[name] for name in before if name != "client"}
        found.last_allowed_s = max(one.revoked_allowed_at for one in found.floods) - committed
        self._judge_flood()

    def _order(self, people: Sequence[tuple[str, str]], victim: str) -> flood.Order:
        sites = sorted({site for _, site in people})
        return flood.Order(
            data=str(self._world.folder.path),
            domain=DOMAIN,
            people=dict(people),
            gateways={site: self._world.gateways[site] for site in sites},
            pumps={site: [pump.device_id for pump in self._world.pumps[site][1:]] for site in sites},
            rate=FLOOD_RATE,
            seconds=self._found.size.flood_s,
            revoked=victim,
        )

    async def _revoke(self, name: str, after: float) -> float:
        """Revoke one person's credential; answers when it was committed, on the machine's monotonic clock."""
        await asyncio.sleep(after)
        thumbprint = self._world.people[name].person.thumbprint.hex()
        epoch = await revoke_credential(self._world.people[self._revokers[-1]], thumbprint)
        committed = time.monotonic()
        await enforced(self._world, self._revokers[-1], epoch)
        return committed

    async def _watch(self, most: dict[str, float]) -> None:
        while True:
            for name, pid in self._pids.items():
                most[name] = max(most[name], look(pid).memory)
            await asyncio.sleep(1.0)

    def _judge_flood(self) -> None:
        found = self._found
        for one in found.floods:
            found.wrong += one.wrong[:20]
            found.book.add(one.book())
        if not any(one.acknowledged for one in found.floods):
            found.wrong.append("no command of the flood was done at all")
        for what, latencies in zip(("safety action", "revocation"), found.loud, strict=True):
            found.wrong += [f"a {what} failed while flooded: {words}" for words in latencies.failed[:5]]
            if latencies.most > SAFETY_S * 1000:
                found.wrong.append(f"a {what} took {latencies.most:.0f} ms while flooded")
        if found.last_allowed_s > R_BOUND_S:
            found.wrong.append(
                f"a revoked credential commanded {found.last_allowed_s:.1f} s after its revocation"
            )
        found.wrong += [
            f"{name} held {more:.0f} MiB more while flooded"
            for name, more in found.swelling.items()
            if more > FILLED_MIB
        ]
        gone = [name for name, pid in self._site.processes().items() if self._pids[name] != pid]
        found.wrong += [f"{name} did not survive the flood" for name in gone]

    async def recover(self) -> None:
        """A change of class C goes through again, at every site, without anybody's help."""
        began = time.monotonic()
        for name, site in self._site.technicians()[1 : len(SITES) + 1]:
            hand, pump = Hand(self._world, name, site), self._world.pumps[site][1]

            async def changes(hand: Hand = hand, pump: PumpAt = pump) -> bool:
                return await _command(hand, pump, self._found.book, change=True)

            await eventually(changes, what=f"{site} works again", seconds=RECOVERY_S, pause=0.5)
        self._found.recovered_s = time.monotonic() - began

    async def slow_readers(self) -> None:
        """A feed's, an edge's and a pump's stream that nobody reads from."""
        world, site, found = self._world, SITES[0], self._found
        name, place = self._site.technicians()[-1]
        followed = [pump.device_id for pump in world.pumps[place][:16]]
        calls = await slow.stalled_followers(world, name, place, followed)
        gateway = f"gateway {place}"
        before = look(self._pids[gateway]).memory
        try:
            found.cut["a feed"], found.cut["an edge"] = await asyncio.gather(
                slow.stalled_feed(world, self._metrics["identity"], seconds=120.0),
                slow.stalled_edge(world, site, self._metrics["edge"], seconds=120.0),
            )
            swollen = look(self._pids[gateway]).memory - before
        finally:
            for call in calls[:-1]:
                call.cancel()
            await calls[-1].close()
        if swollen > 16:
            found.wrong.append(f"16 followers that read nothing cost {gateway} {swollen:.0f} MiB")
        seen = await slow.devices_in_feed(world)
        if seen != len(self._site.pumps):
            found.wrong.append(f"a feed shows {seen} of {len(self._site.pumps)} devices after the cut")
        epoch = await revoke_credential(world.people[self._revokers[-1]], "ab" * 32)
        if await slow.epochs_at_edge(world, site, epoch) != epoch:
            found.wrong.append("an edge does not show every entry after the cut")

    async def count(self) -> None:
        """Hold every command of this run against the log."""
        found = self._found
        await self.settle()
        found.held = await check(self._world, found.book, sorted(found.book.asked))
        found.wrong += list(found.held.faults[:20])


async def _work(hand: Hand, rested: "asyncio.Queue[PumpAt]", book: Book, until: float, each: float) -> None:
    """One technician: the pump that rested longest, a command, a pause."""
    await asyncio.sleep(random.uniform(0, each))
    number = 0
    while time.monotonic() < until:
        started, number = time.monotonic(), number + 1
        pump = await rested.get()
        with suppress(Refused):
            await _command(hand, pump, book, change=not number % CHANGES)
        rested.put_nowait(pump)
        await asyncio.sleep(max(0.0, started + each * random.uniform(0.8, 1.2) - time.monotonic()))


async def _command(hand: Hand, pump: PumpAt, book: Book, *, change: bool) -> bool:
    """One command, entered in the book. Raises what refuses it."""
    action = "set-occlusion-pressure" if change else "read-diagnostics"
    parameters = {"occlusion_pressure": random.randrange(100, 500)} if change else {}
    intent = hand.intent(pump, action, parameters)
    request_id = intent.body.request_id
    book.ask(pump.device_id, request_id)
    try:
        done = await hand.finish(pump, intent)
    except Refused as refusal:
        book.refused[str(refusal.reason)] += 1
        raise
    if done.outcome is Outcome.APPLIED:
        book.done(pump.device_id, request_id)
        return True
    book.refused[done.reason] += 1
    return False


def _safety(site: str) -> Cast:
    return Cast(
        name=f"safety-{site}",
        display_name="Safety officer",
        organization=places.HOSPITALS,
        roles=("safety",),
        sites=(site,),
        privileged=False,
    )


def _revoker(number: int) -> Cast:
    return Cast(
        name=f"rita-{number + 1}",
        display_name="Recall team",
        organization="operator",
        roles=("recall",),
        sites=("*",),
        privileged=True,
    )
