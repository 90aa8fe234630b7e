"""One writer of several: the term decides, whatever the pulse or anybody's clock says."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, insert, select

from tests.support.databases import Place
from vigil.core.clock import ManualClock
from vigil.errors import Reason, Refused
from vigil.storage import Database, Fence, open_database, term_table
from vigil.storage.fence import GONE_S, SILENT_S

METADATA = MetaData()
TERM = term_table(METADATA)
LINE = Table(
    "line", METADATA, Column("number", Integer, primary_key=True), Column("term", Integer, nullable=False)
)


@dataclass
class World:
    """Processes on one database, each with a clock of its own."""

    place: Place
    migrations: Path
    opened: list[tuple[Database, Fence]] = field(default_factory=list)

    def process(self, clock: ManualClock | None = None) -> tuple[Database, Fence]:
        database = open_database(
            self.place.at, metadata=METADATA, migrations=self.migrations, busy_timeout=0.3
        )
        fence = Fence(
            database, clock=clock or ManualClock(), entropy=random.Random(len(self.opened)).randbytes
        )
        self.opened.append((database, fence))
        return database, fence


@pytest.fixture
async def world(place: Place, tmp_path: Path) -> AsyncIterator[World]:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    (migrations / "0001.py").write_text("revision = '0001'\ndown_revision = None\n")
    world = World(place, migrations)
    yield world
    for database, fence in world.opened:
        await fence.release()
        database.close()


def line(fence: Fence) -> Callable[[Connection], None]:
    return lambda connection: connection.execute(insert(LINE).values(term=fence.term)).close()


def terms(connection: Connection) -> list[int]:
    return list(connection.execute(select(LINE.c.term).order_by(LINE.c.number)).scalars())


async def refused(database: Database, fence: Fence) -> None:
    with pytest.raises(Refused) as caught:
        await database.write(line(fence))
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert caught.value.refusals[0].values["cause"] == "NOT_THE_WRITER"


async def test_one_writes_and_the_other_stands_by(world: World) -> None:
    (one, first), (two, second) = world.process(), world.process()
    await refused(one, first)  # nobody writes before it has the term
    assert await first.take()
    assert not await second.take()
    await one.write(line(first))
    await refused(two, second)
    assert await two.read(terms) == [1]
    assert (first.term, second.term) == (1, None)


async def test_whoever_ends_in_order_is_followed_at_once(world: World) -> None:
    (one, first), (two, second) = world.process(), world.process()
    assert await first.take()
    assert not await second.take()
    await first.release()
    assert await second.take()
    await refused(one, first)
    await two.write(line(second))
    assert second.term == 2


async def test_a_pulse_that_is_gone_is_followed_after_a_while_and_at_a_start_at_once(world: World) -> None:
    clock = ManualClock()
    (_, first), (_, second) = world.process(), world.process(clock)
    assert await first.take()
    assert not await second.take()
    first._pulse.close()
    assert not await second.take()
    clock.advance(GONE_S - 0.1)
    assert not await second.take()
    clock.advance(0.2)
    assert await second.take()
    second._pulse.close()
    _, third = world.process()
    assert await third.take()
    assert third.term == 3


@pytest.mark.holds("two-writers", "clock-steps")
async def test_a_writer_that_stood_still_commits_nothing_more(world: World) -> None:
    """Its own clock says that no time has passed; the term says that its time is over."""
    clock = ManualClock()
    (one, first), (two, second) = world.process(), world.process(clock)
    assert await first.take()
    await one.write(line(first))
    assert not await second.take()
    clock.advance(SILENT_S - 0.1)
    assert not await second.take()
    await first._beat()
    clock.advance(0.2)
    assert not await second.take()  # it lives after all
    clock.advance(SILENT_S)
    assert await second.take()
    await two.write(line(second))
    writes = await asyncio.gather(*(one.write(line(first)) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, Refused) for error in writes)
    assert first.term is None
    await refused(one, first)
    assert await two.read(terms) == [1, 2]
    # It stands by from now on, and may follow in its turn.
    await second.release()
    assert await first.take()
    await one.write(line(first))
    assert await two.read(terms) == [1, 2, 3]


async def test_whoever_holds_the_term_notices_its_end_without_a_write(world: World) -> None:
    clock = ManualClock()
    (_, first), (_, second) = world.process(), world.process(clock)
    assert await first.take()
    assert not await second.take()
    clock.advance(SILENT_S)
    assert await second.take()
    async with asyncio.timeout(30):
        await first.hold()
    assert first.term is None


@pytest.mark.holds("two-writers")
async def test_a_commit_under_way_is_waited_for(world: World) -> None:
    """Stopped between its look at the term and its commit: nobody takes over in between."""
    clock = ManualClock()
    (one, first), (two, second) = world.process(), world.process(clock)
    assert await first.take()
    assert not await second.take()
    clock.advance(SILENT_S)
    looked, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        line(first)(connection)
        looked.set()
        assert go_on.wait(30)

    write = asyncio.create_task(one.write(slow))
    await asyncio.to_thread(looked.wait, 30)
    with pytest.raises(Refused) as caught:
        await second.take()
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert second.term is None
    go_on.set()
    await write
    assert await second.take()
    await two.write(line(second))
    assert await two.read(terms) == [1, 2]


async def test_of_two_that_follow_one_does(world: World) -> None:
    clock = ManualClock()
    _, first = world.process()
    assert await first.take()
    others = [world.process(clock) for _ in range(3)]
    for _, fence in others:
        assert not await fence.take()
    clock.advance(SILENT_S)
    taken = await asyncio.gather(*(fence.take() for _, fence in others), return_exceptions=True)
    held = [database for database, fence in others if fence.term == 2]
    assert taken.count(True) == len(held) == 1


@pytest.mark.holds("two-writers")
async def test_terms_never_go_back_however_they_race(world: World) -> None:
    """Three processes with clocks that run as they like take the writing from each other while all of them write."""
    chance = random.Random(7)
    clocks = [ManualClock() for _ in range(3)]
    processes = [world.process(clock) for clock in clocks]
    kept = 0
    for _ in range(40):
        number = chance.randrange(3)
        clocks[number].advance(chance.choice((0.0, SILENT_S / 2, SILENT_S * 2)))
        asked = [processes[number][1].take(), *(one.write(line(fence)) for one, fence in processes)]
        chance.shuffle(asked)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        kept += sum(outcome is None for outcome in outcomes)
    written = await processes[0][0].read(terms)
    assert written == sorted(written)
    assert len(written) == kept > 0
    assert len(set(written)) > 3
