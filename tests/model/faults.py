"""What goes wrong in a schedule: drawn beforehand, done at its time, and undone at the end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.model.ledger import APPEND, CONNECT, DECIDE, FOLLOW, REVOKE, SUBMIT, Ledger
from tests.model.world import DIALS, EDGES, GATEWAYS, PUMPS, SERVICES, World
from vigil.core.classes import LEASE_S
from vigil.errors import Refused

LINKS: Final = (
    *((gateway, host) for gateway in GATEWAYS for host in ("policy", "attestation", "evidence", "identity")),
    *((gateway, edge) for gateway in GATEWAYS for edge in EDGES),
    *((edge, "revocation") for edge in EDGES),
    *((pump, gateway) for pump, gateway in DIALS.items()),
    *(("policy", host) for host in ("evidence", "revocation", "attestation", "identity", "release")),
    ("revocation", "evidence"),
    ("attestation", "evidence"),
)
HOSTS: Final = (*SERVICES, *GATEWAYS, *PUMPS)
DISKS: Final = ("evidence", "revocation", "attestation", *EDGES, *GATEWAYS, *PUMPS)
STEPS: Final = (APPEND, DECIDE, SUBMIT, REVOKE, FOLLOW, CONNECT)


@dataclass
class Faults:
    """Makes them, counts what happened, and knows what is disturbed at the moment."""

    world: World
    ledger: Ledger
    random: Random
    until: float
    """Loop time at which everything heals."""
    disturbed: dict[str, float] = field(default_factory=dict)
    """Hosts and links, each until when something about it is or may still be wrong."""
    _times: Counter[str] = field(default_factory=Counter)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    # --- what is disturbed

    def standing(self, person: str, gateway: str, pump: str) -> int | None:
        """None while anything between these three is disturbed; the same number as before if nothing was since."""
        names = (person, gateway, pump)
        parts = (*names, *(_link(one, other) for one in names for other in names if one < other))
        now, runner = self.world.loop.time(), self.world.runners.get(pump)
        if any(self.disturbed.get(part, 0.0) >= now for part in parts) or gateway not in self.world.up:
            return None
        if runner is None or runner.agent is None or not runner.agent.online:
            return None
        return sum(self._times[part] for part in parts)

    def _disturb(self, name: str, seconds: float) -> None:
        self._times[name] += 1
        self.disturbed[name] = max(self.disturbed.get(name, 0.0), self.world.loop.time() + seconds)

    # --- kinds

    def plan(self) -> Iterator[tuple[float, str]]:
        """When, and what."""
        random = self.random
        length = self.until - self.world.loop.time()
        kinds = [
            "kill",
            "kill",
            "kill-at-commit",
            "kill-at-message",
            "cut",
            "cut",
            "isolate",
            "slow",
            "pause",
        ]
        kinds += ["disk", "bus", "clock", "nurse", "nurse", "power-cycle"]
        for _ in range(random.randrange(1, 3 + int(length / 3))):
            yield random.random() * length * 0.9, random.choice(kinds)

    def start(self) -> None:
        for at, kind in sorted(self.plan()):
            self._tasks.append(self.world.loop.create_task(self._later(at, kind)))
        length = self.until - self.world.loop.time()
        if length > LEASE_S + 2 and self.random.random() < 0.4:
            self._tasks.append(self.world.loop.create_task(self._later(0.0, "unleased")))

    async def _later(self, at: float, kind: str) -> None:
        await asyncio.sleep(at)
        await getattr(self, "_" + kind.replace("-", "_"))()

    def _some(self, longest: float) -> float:
        left = max(0.2, self.until - self.world.loop.time())
        return min(left, self.random.random() ** 2 * longest + 0.1)

    async def _down(self, host: str, why: str) -> None:
        """After the process has ended: it stays away for a while, then starts again."""
        away = self._some(8.0)
        self._disturb(host, away + 3.0)
        self.ledger.say(f"fault: {host} is killed{why}, and away for {away:.1f} s")
        self.ledger.counts["crashes"] += 1
        await asyncio.sleep(away)
        self.world.start(host)

    async def _kill(self) -> None:
        host = self.random.choice(HOSTS)
        if self.world.running(host):
            self.world.kill(host)
            await self._down(host, "")

    async def _kill_at_commit(self) -> None:
        """At a commit: just before it, or when it is durable and nobody was told."""
        host, before = self.random.choice(DISKS), self.random.random() < 0.5
        if not self.world.running(host):
            return
        self._disturb(host, self.until - self.world.loop.time())
        ended = asyncio.Event()

        def kill() -> None:
            # What the dead process would schedule never runs: the world is told in its own turn.
            self.world.loop.on(self.world.loop.world, ended.set)
            self.world.kill(host)

        self.world.disks[host].crash = (self.random.randrange(1, 4), before, kill)
        await self._when(ended, host, f" {'before' if before else 'after'} a commit")
        self.world.disks[host].crash = None

    async def _kill_at_message(self) -> None:
        """When a message of some step of the path leaves: its sender, or who is to get it."""
        method, sender = self.random.choice(STEPS), self.random.random() < 0.5
        wanted = self.random.random() < 0.5
        left = self.random.randrange(1, 4)
        ended, victim = asyncio.Event(), ""

        def tap(source: str, target: str, request: bool, _data: bytes) -> None:
            nonlocal left, victim
            host = source if sender else target
            if victim or request is not wanted or host not in HOSTS:
                return
            left -= 1
            if left <= 0 and self.world.running(host):
                victim = host
                self.world.loop.on(self.world.loop.world, ended.set)
                self._disturb(host, self.until - self.world.loop.time())
                # In the middle of a step of its own it cannot be taken away; right after it, it is.
                self.world.loop.on_later(self.world.loop.world, 0.0, self.world.kill, host)

        self.world.net.taps.setdefault(method, []).append(tap)
        await self._until_end(ended)
        self.world.net.taps[method].remove(tap)
        if victim:
            await self._down(victim, f" at a message of {method.rpartition('/')[2]}")

    async def _until_end(self, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(max(0.1, self.until - self.world.loop.time() - 0.5)):
                await event.wait()
        except TimeoutError:
            return

    async def _when(self, ended: asyncio.Event, host: str, why: str) -> None:
        await self._until_end(ended)
        if ended.is_set():
            await self._down(host, why)

    async def _cut(self) -> None:
        await self._cut_off([self.random.choice(LINKS)])

    async def _isolate(self) -> None:
        """One host loses everybody."""
        host = self.random.choice(HOSTS)
        await self._cut_off([link for link in LINKS if host in link])

    async def _cut_off(self, links: list[tuple[str, str]], *, seconds: float = 0.0) -> None:
        seconds = seconds or self._some(25.0)
        self.ledger.say(f"fault: cut for {seconds:.1f} s: {', '.join(' to '.join(link) for link in links)}")
        self.ledger.counts["cuts"] += len(links)
        for one, other in links:
            self._disturb(_link(one, other), seconds + 2.0)
            self.world.net.cut(one, other)
        await asyncio.sleep(seconds)
        for one, other in links:
            self.world.net.heal(one, other)

    async def _unleased(self) -> None:
        """No word of revocation reaches one gateway, or any, for longer than a lease lasts."""
        everybody = self.random.random() < 0.3
        gateway = self.random.choice(GATEWAYS)
        self.ledger.counts["leases lost"] += len(GATEWAYS) if everybody else 1
        await self._cut_off(
            [(edge, "revocation") for edge in EDGES] if everybody else [(gateway, edge) for edge in EDGES],
            seconds=self.until - self.world.loop.time(),
        )

    async def _slow(self) -> None:
        """A way that takes as long for everything, so that no gap shows."""
        one, other = self.random.choice(LINKS)
        extra, seconds = self.random.choice((0.3, 1.0, 3.0, 8.0)), self._some(20.0)
        self.ledger.say(f"fault: {one} to {other} takes {extra} s longer for {seconds:.1f} s")
        self.ledger.counts["slow links"] += 1
        self._disturb(_link(one, other), seconds + 2 * extra + 1.0)
        link = self.world.net.link(one, other)
        link.extra = extra
        await asyncio.sleep(seconds)
        link.extra = 0.0

    async def _pause(self) -> None:
        host = self.random.choice(HOSTS)
        node = self.world.nodes[host]
        if node.dead:
            return
        seconds = self._some(12.0)
        self.ledger.say(f"fault: {host} stands still for {seconds:.1f} s")
        self.ledger.counts["pauses"] += 1
        self._disturb(host, seconds + 3.0)
        self.world.loop.pause(node, seconds)

    async def _disk(self) -> None:
        host, seconds = self.random.choice(DISKS), self._some(10.0)
        disk = self.world.disks[host]
        self.ledger.say(f"fault: the disk of {host} fails for {seconds:.1f} s")
        self.ledger.counts["disk faults"] += 1
        self._disturb(host, seconds + 3.0)
        disk.failing = self.random.choice((0.2, 0.5, 1.0))
        await asyncio.sleep(seconds)
        disk.failing = 0.0

    async def _bus(self) -> None:
        bus, seconds = self.world.bus, self._some(20.0)
        kind = self.random.choice(("down", "lossy", "late", "babbling"))
        self.ledger.say(f"fault: the bus is {kind} for {seconds:.1f} s")
        self.ledger.counts["bus faults"] += 1
        bus.down = kind == "down"
        bus.lost = 0.7 if kind == "lossy" else 0.0
        bus.late = 0.8 if kind in ("late", "babbling") else 0.0
        bus.repeated = 0.9 if kind == "babbling" else 0.0
        await asyncio.sleep(seconds)
        bus.down, bus.lost, bus.late, bus.repeated = False, 0.0, 0.0, 0.0

    async def _clock(self) -> None:
        """A wall clock steps by less than what signers and pumps bear."""
        host = self.random.choice(HOSTS)
        step = self.random.randrange(-4_000, 4_000)
        self.ledger.say(f"fault: the clock of {host} steps by {step} ms")
        self.ledger.counts["clock steps"] += 1
        self.world.clocks[host].offset_ms += step
        self._disturb(host, 1.0)

    async def _power_cycle(self) -> None:
        """Somebody switches a pump off and on."""
        pump = self.random.choice(PUMPS)
        runner = self.world.runners.get(pump)
        if runner is not None and self.world.running(pump):
            self.ledger.say(f"fault: {pump} is switched off and on")
            self.ledger.counts["crashes"] += 1
            self._disturb(pump, 5.0)
            self.world.loop.on(self.world.nodes[pump], runner.power_cycle)

    async def _nurse(self) -> None:
        """A hand at a pump: a therapy begins, or ends."""
        pump = self.random.choice(PUMPS)
        hand(self.world, pump, begin=self.random.random() < 0.5)

    # --- the end

    async def heal(self) -> None:
        """Undo everything and start whatever is away."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        net, bus = self.world.net, self.world.bus
        for pair, link in list(net.links.items()):
            link.extra = 0.0
            net.heal(*pair)
        bus.down, bus.lost, bus.late, bus.repeated = False, 0.0, 0.0, 0.0
        for disk in self.world.disks.values():
            disk.failing, disk.crash = 0.0, None
        for node in self.world.nodes.values():
            node.paused_until = 0.0
        for host in HOSTS:
            self.world.clocks[host].offset_ms = 0
            self.world.start(host)
        self.ledger.say("everything heals")


def hand(world: World, pump: str, *, begin: bool) -> None:
    """A nurse starts an infusion, or stops it and releases the patient."""
    runner = world.runners.get(pump)
    if runner is None or not world.running(pump) or runner.agent is None:
        return

    def act() -> None:
        with contextlib.suppress(Refused):
            if begin:
                runner.at_bedside(lambda one: one.start_therapy(1_000))
            else:
                with contextlib.suppress(Refused):
                    runner.at_bedside(lambda one: one.stop_therapy())
                runner.at_bedside(lambda one: one.bedside_release())

    world.loop.on(world.nodes[pump], act)


def _link(one: str, other: str) -> str:
    return " to ".join(sorted((one, other)))
