"""A full disk refuses what is not vital, and the room that was kept takes what is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, MetaData, func, insert, select

from tests.faults.harness.disk import SmallDisk
from tests.unit.storage.schema import METADATA, SITES
from vigil.errors import Reason, Refused
from vigil.storage import RESERVE, Database, open_database
from vigil.storage.reserve import STEP_BYTES, Reserve

pytestmark = pytest.mark.holds("storage-failures")

MIGRATIONS = Path(__file__).parent / "migrations"
SIZE = 4 * STEP_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    if SmallDisk.missing():
        pytest.skip(SmallDisk.missing())
    return SmallDisk.mount(tmp_path / "disk", megabytes=24)


def add(key: str) -> Callable[[Connection], None]:
    return lambda connection: connection.execute(insert(SITES).values(site_id=key, name="x" * 4000)).close()


def keys(database: Database) -> int:
    return int(database.read_now(lambda c: c.execute(select(func.count()).select_from(SITES)).scalar_one()))


def opened(path: Path) -> Database:
    metadata = MetaData(info={RESERVE: SIZE})
    for table in METADATA.tables.values():
        table.to_metadata(metadata)
    return open_database(path, metadata=metadata, migrations=MIGRATIONS)


async def until_refused(database: Database, name: str, *, vital: bool = False) -> int:
    """Write until there is no room; answers how many writes there was room for."""
    for done in range(20_000):
        try:
            await database.write(add(f"{name}-{done}"), vital=vital)
        except Refused as refusal:
            if refusal.reason is not Reason.STORAGE_UNAVAILABLE:
                raise
            return done
    raise AssertionError("the disk is not full")


async def refused(database: Database, key: str) -> None:
    with pytest.raises(Refused) as caught:
        await database.write(add(key))
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE


async def test_vital_writes_find_room_on_a_full_disk(
    disk: SmallDisk, injected: Callable[[int], None]
) -> None:
    try:
        database = opened(disk.folder / "a.db")
        await database.write(add("before"))
        database.require_room()
        kept = 1
        with disk.filled():
            kept += await until_refused(database, "ordinary")
            # Ordinary writes met the full disk; vital ones go on, and everybody else waits meanwhile.
            for vital in range(100):
                await database.write(add(f"vital-{vital}"), vital=True)
                kept += 1
            await refused(database, "another")
            with pytest.raises(Refused):
                database.require_room()
            assert keys(database) == kept
            assert (disk.folder / "a.db-reserve").stat().st_size < SIZE
            injected(1)
        # Room again: the reserve is filled first, by itself.
        await database.write(add("after"))
        database.require_room()
        assert (disk.folder / "a.db-reserve").stat().st_size == SIZE
        assert keys(database) == kept + 1
        database.close()
    finally:
        disk.unmount()


async def test_what_is_vital_shares_no_fate_with_what_is_not(disk: SmallDisk) -> None:
    """In one commit on a full disk: the vital one is kept whole, the other one not at all."""
    try:
        database = opened(disk.folder / "a.db")
        await database.write(add("before"))
        with disk.filled():
            await until_refused(database, "ordinary")
            before = keys(database)
            outcomes = []
            for number in range(50):
                outcomes.append(await database.write(add(f"vital-{number}"), vital=True))
                await refused(database, f"ordinary-{number}")
            assert keys(database) == before + len(outcomes)
        database.close()
        reopened = opened(disk.folder / "a.db")
        assert keys(reopened) == before + 50
        reopened.close()
    finally:
        disk.unmount()


async def test_when_the_reserve_is_spent_even_vital_writes_are_refused(disk: SmallDisk) -> None:
    try:
        database = opened(disk.folder / "a.db")
        with disk.filled():
            done = await until_refused(database, "vital", vital=True)
            # Each commit takes several pages of the log, until it is written back.
            assert done > SIZE // 4096 // 8
            assert keys(database) == done
        await database.write(add("after"), vital=True)
        database.close()
    finally:
        disk.unmount()


def test_a_reserve_gives_and_takes(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", size=2 * STEP_BYTES)
    assert reserve.whole
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 2 * STEP_BYTES
    assert reserve.give()
    assert not reserve.whole
    assert reserve.give()
    assert not reserve.give()
    assert reserve.take()
    assert reserve.whole
    elsewhere = Reserve(tmp_path / "missing" / "reserve", size=STEP_BYTES)
    assert not elsewhere.whole
    assert not elsewhere.give()
