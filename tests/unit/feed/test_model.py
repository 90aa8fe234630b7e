"""Whatever is cut, restarted, trimmed or restored, and whenever: a replica ends where its owner stands."""

import asyncio
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from tests.unit.feed.support import Owner, Reader, open_feed, until
from vigil.feed import Outbox
from vigil.feed.change import Scope
from vigil.feed.reading import read_state

KEYS = st.sampled_from(("a", "b", "c", "d"))
PLACES = st.sampled_from(("", "st-mary", "st-john", "delete"))
CHANGES = st.lists(st.tuples(KEYS, PLACES), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), CHANGES),
        st.tuples(st.just("write elsewhere"), CHANGES),
        st.tuples(st.just("write much"), st.just([("a", ""), ("b", "st-mary")] * 12)),
        st.tuples(st.sampled_from(("disconnect", "restart", "restore", "settle", "yield")), st.just([])),
    ),
    min_size=3,
    max_size=12,
)


def _apply(outbox: Outbox, connection: Connection, changes: list[tuple[str, str]], value: int) -> None:
    for key, place in changes:
        if place == "delete":
            outbox.delete(connection, "device", key)
        else:
            outbox.put(connection, "device", key, b"%d" % value, site=place)


class World:
    """One owner and two readers: one that sees everything, one that sees a site."""

    def __init__(self, folder: Path) -> None:
        self.owner = Owner(folder / "a.db", retained=20)
        self.readers = [Reader(lambda: self.owner.port), Reader(lambda: self.owner.port, sites="st-mary")]
        self._backup: bytes | None = None
        self._value = 0

    async def step(self, name: str, changes: list[tuple[str, str]]) -> None:
        self._value += 1
        value = self._value
        match name:
            case "write" | "write much":
                outbox = self.owner.outbox
                await self.owner.database.write(lambda c: _apply(outbox, c, changes, value))
            case "write elsewhere":
                other = open_feed(self.owner.path)
                outbox = Outbox(other, retained=20)
                await other.write(lambda c: _apply(outbox, c, changes, value))
                other.close()
            case "disconnect":
                for reader in self.readers:
                    await reader.disconnect()
            case "restart":
                await self.owner.stop()
                self._backup = self._backup or self.owner.path.read_bytes()
                await self.owner.start()
            case "restore":
                await self.owner.stop()
                if self._backup is not None:
                    self.owner.path.write_bytes(self._backup)
                await self.owner.start()
            case "settle":
                await self.settle()
            case _:
                await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until both readers have a beat for something sent after now, and compare."""
        head = self.owner.head()
        for reader in self.readers:
            marked = reader.replica._clock.monotonic()
            await until(
                lambda r=reader, m=marked: (  # type: ignore[misc]
                    r.replica._answered is not None
                    and r.replica._answered >= m
                    and r.replica.sequence >= head
                )
            )
        assert [reader.state for reader in self.readers] == [
            self._expected(frozenset(reader._sites.split(",")) if reader._sites else None)
            for reader in self.readers
        ]
        assert all(reader.replica.age() < math.inf for reader in self.readers)

    def _expected(self, sites: frozenset[str] | None) -> dict[tuple[str, str], tuple[bytes, str]]:
        scope = Scope(sites, frozenset())
        page = self.owner.database.read_now(lambda c: read_state(c, scope=scope, after=None))
        return {(change.kind, change.key): (change.value, change.site_id) for change in page.changes}


async def _run(steps: list[tuple[str, list[tuple[str, str]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        await world.owner.start()
        async with world.readers[0], world.readers[1]:
            for name, changes in steps:
                await world.step(name, changes)
            await world.settle()
        await world.owner.stop()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_a_replica_ends_where_its_owner_stands(steps: list[tuple[str, list[tuple[str, str]]]]) -> None:
    asyncio.run(_run(steps))


@pytest.mark.parametrize("again", range(2))
async def test_the_hard_cases_in_one_run(again: int) -> None:
    much = ("write much", [("a", ""), ("b", "st-mary")] * 12)
    one: tuple[str, list[tuple[str, str]]] = ("write", [("c", "st-mary")])
    move: tuple[str, list[tuple[str, str]]] = ("write", [("c", "st-john"), ("d", "")])
    steps = [one, ("restart", []), ("settle", []), much, ("disconnect", []), move, ("settle", [])]
    steps += [
        one,
        ("restore", []),
        move,
        ("settle", []),
        much,
        much,
        ("restart", []),
        ("disconnect", []),
        move,
    ]
    await _run(steps[again:])
