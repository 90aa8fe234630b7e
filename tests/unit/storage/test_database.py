import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from tests.support.databases import Place, SqlitePlace
from tests.unit.storage.schema import METADATA, SITES
from vigil.errors import Reason, Refused
from vigil.storage import Database, after_commit, at_commit, open_database

MIGRATIONS = Path(__file__).parent / "migrations"


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    database = _open(place)
    yield database
    database.close()


@pytest.fixture
async def in_a_file(tmp_path: Path) -> AsyncIterator[Database]:
    """What only SQLite knows is tried with it alone."""
    database = _open(SqlitePlace(tmp_path / "a.db"))
    yield database
    database.close()


def _open(place: Place) -> Database:
    return open_database(place.at, metadata=METADATA, migrations=MIGRATIONS, busy_timeout=0.05)


def _add(site_id: str, name: str = "") -> Callable[[Connection], str]:
    def run(connection: Connection) -> str:
        connection.execute(insert(SITES).values(site_id=site_id, name=name))
        return site_id

    return run


def _sites(connection: Connection) -> list[str]:
    return list(connection.execute(select(SITES.c.site_id).order_by(SITES.c.site_id)).scalars())


class Held:
    """Keeps the writer busy until released, so that everything written meanwhile shares one commit."""

    def __init__(self, database: Database) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = asyncio.Event()
        self._go = threading.Event()
        self._task = asyncio.ensure_future(database.write(self._hold))

    def _hold(self, _: Connection) -> None:
        self._loop.call_soon_threadsafe(self._started.set)
        self._go.wait(10)

    async def __aenter__(self) -> None:
        await self._started.wait()

    async def __aexit__(self, *_: object) -> None:
        self._go.set()
        await self._task


async def test_a_write_returns_its_result_and_others_see_it(database: Database) -> None:
    assert await database.write(_add("a")) == "a"
    assert await database.read(_sites) == ["a"]
    assert database.read_now(_sites) == ["a"]


async def test_one_failure_in_a_commit_harms_no_other(database: Database) -> None:
    def fails(connection: Connection) -> None:
        _add("half")(connection)
        raise LookupError("no")

    async with Held(database):
        writes = [
            asyncio.ensure_future(database.write(run)) for run in (_add("a"), fails, _add("a"), _add("b"))
        ]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert outcomes[0] == "a"
    assert isinstance(outcomes[1], LookupError)
    assert isinstance(outcomes[2], IntegrityError)
    assert outcomes[3] == "b"
    assert await database.read(_sites) == ["a", "b"]


async def test_writes_that_wait_share_one_commit(database: Database) -> None:
    flushed: list[list[int]] = []

    def gather(_: Connection, items: list[int]) -> None:
        flushed.append(items)

    async with Held(database):
        writes = [
            asyncio.ensure_future(database.write(lambda c, n=n: at_commit(c, gather, n))) for n in range(20)
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*writes)
    assert flushed == [list(range(20))]


async def test_what_a_failing_function_left_for_the_commit_is_dropped(database: Database) -> None:
    flushed: list[int] = []
    called: list[str] = []

    def flush(_: Connection, items: list[int]) -> None:
        flushed.extend(items)

    def leaves(connection: Connection, number: int, *, fails: bool) -> None:
        at_commit(connection, flush, number)
        after_commit(connection, lambda: called.append(f"{number}"))
        if fails:
            raise LookupError("no")

    async with Held(database):
        writes = [
            asyncio.ensure_future(database.write(lambda c, n=n: leaves(c, n, fails=n % 2 == 1)))
            for n in range(4)
        ]
        await asyncio.sleep(0)
    await asyncio.gather(*writes, return_exceptions=True)
    with pytest.raises(LookupError):
        await database.write(lambda c: leaves(c, 9, fails=True))
    await database.write(lambda _: None)
    assert flushed == [0, 2]
    assert called == ["0", "2"]


async def test_callbacks_run_after_the_commit_on_the_loop(database: Database) -> None:
    seen: list[object] = []

    def run(connection: Connection) -> None:
        _add("a")(connection)
        after_commit(connection, lambda: seen.append((threading.current_thread(), database.read_now(_sites))))

    await database.write(run)
    await asyncio.sleep(0)
    assert seen == [(threading.current_thread(), ["a"])]


async def test_a_callback_that_fails_harms_no_write(database: Database) -> None:
    problems: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["message"]))

    def run(connection: Connection) -> str:
        after_commit(connection, lambda: 1 // 0 and None)
        return "done"

    assert await database.write(run) == "done"
    await asyncio.sleep(0)
    assert len(problems) == 1


@pytest.mark.holds("storage-failures")
async def test_a_lock_held_elsewhere_is_unavailable_and_then_over(database: Database, place: Place) -> None:
    with place.locked("sites"):
        with pytest.raises(Refused) as refusal:
            await database.write(_add("a"))
        assert refusal.value.reason is Reason.STORAGE_UNAVAILABLE
        assert refusal.value.refusals[0].values["cause"] in ("SQLITE_BUSY", "LockNotAvailable")
        assert await database.read(_sites) == []
    assert await database.write(_add("a")) == "a"


@pytest.mark.holds("storage-failures")
async def test_a_full_disk_takes_the_whole_commit_and_reads_go_on(in_a_file: Database) -> None:
    database = in_a_file
    await database.write(_add("before"))
    pages = await database.read(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
    await database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").close())
    async with Held(database):
        writes = [
            asyncio.ensure_future(database.write(run))
            for run in (_add("a"), _add("b", "x" * 100_000), _add("c"))
        ]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [getattr(outcome, "reason", outcome) for outcome in outcomes] == [Reason.STORAGE_UNAVAILABLE] * 3
    assert await database.read(_sites) == ["before"]
    # The next transaction has a new connection, without the limit.
    assert await database.write(_add("after", "x" * 100_000)) == "after"


@pytest.mark.holds("storage-failures")
async def test_a_commit_that_fails_is_told_to_everybody(in_a_file: Database) -> None:
    """Deferred foreign keys fail at COMMIT itself, after every function has run."""
    database = in_a_file

    def dangling(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        connection.execute(text("INSERT INTO pumps VALUES (1, 'nowhere', 'S')"))

    async with Held(database):
        writes: list[asyncio.Future[object]] = [
            asyncio.ensure_future(database.write(run)) for run in (_add("a"), dangling)
        ]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [getattr(outcome, "reason", outcome) for outcome in outcomes] == [Reason.STORAGE_UNAVAILABLE] * 2
    assert await database.read(_sites) == []
    assert await database.write(_add("a")) == "a"


async def test_a_programmers_error_is_not_called_unavailable(database: Database) -> None:
    wrong = (OperationalError, ProgrammingError)
    with pytest.raises(wrong):
        await database.write(lambda c: c.execute(text("SELECT * FROM nothing")).close())
    with pytest.raises(wrong):
        await database.read(lambda c: c.execute(text("SELECT * FROM nothing")).close())


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(Refused) as refusal:
        await database.read(_add("a"))
    assert refusal.value.refusals[0].values["cause"] in ("SQLITE_READONLY", "ReadOnlySqlTransaction")


async def test_ending_the_shared_transaction_is_refused(database: Database) -> None:
    for run in (Connection.commit, Connection.rollback, Connection.begin_nested):
        with pytest.raises(RuntimeError, match="write function"):
            await database.write(run)
    assert await database.write(_add("a")) == "a"


async def test_savepoints_of_a_functions_own(database: Database) -> None:
    def run(connection: Connection) -> None:
        _add("a")(connection)
        try:
            with connection.begin_nested():
                _add("b")(connection)
                _add("a")(connection)
        except IntegrityError:
            _add("c")(connection)

    def misplaced(connection: Connection) -> None:
        with connection.begin_nested():
            at_commit(connection, lambda *_: None, 1)

    await database.write(run)
    assert await database.read(_sites) == ["a", "c"]
    with pytest.raises(RuntimeError, match="savepoint"):
        await database.write(misplaced)


async def test_odd_exceptions_reach_the_caller_and_the_thread_lives(database: Database) -> None:
    def stop(_: Connection) -> None:
        next(iter(()))

    def leave(_: Connection) -> None:
        raise SystemExit(3)

    for run in (stop, leave):
        with pytest.raises(RuntimeError, match="write function raised"):
            await database.write(run)
    assert await database.write(_add("a")) == "a"


async def test_a_cancelled_write_that_has_not_begun_does_not_happen(database: Database) -> None:
    async with Held(database):
        write = asyncio.ensure_future(database.write(_add("a")))
        await asyncio.sleep(0)
        write.cancel()
        await asyncio.sleep(0)
    await database.write(_add("b"))
    assert await database.read(_sites) == ["b"]


async def test_a_view_sees_one_moment(database: Database) -> None:
    await database.write(_add("a"))
    async with database.reader.view() as view:
        assert await view.read(_sites) == ["a"]
        await database.write(_add("b"))
        assert await view.read(_sites) == ["a"]
    assert await database.read(_sites) == ["a", "b"]
    with pytest.raises(RuntimeError, match="closed"):
        await view.read(_sites)


async def test_more_views_than_reading_threads(database: Database) -> None:
    async def look() -> list[str]:
        async with database.reader.view() as view:
            await view.read(_sites)
            await barrier.wait()
            return await view.read(_sites)

    barrier = asyncio.Barrier(12)
    assert await asyncio.gather(*(look() for _ in range(12))) == [[]] * 12


async def test_closing_finishes_what_is_queued(place: Place) -> None:
    database = _open(place)
    writes = [asyncio.ensure_future(database.write(_add(f"s{n}"))) for n in range(50)]
    await asyncio.sleep(0)
    database.close()
    assert len(await asyncio.gather(*writes)) == 50
    with pytest.raises(Refused) as refusal:
        await database.write(_add("late"))
    assert refusal.value.reason is Reason.STORAGE_UNAVAILABLE
    database.close()
    again = _open(place)
    assert again.read_now(lambda c: c.execute(select(func.count()).select_from(SITES)).scalar()) == 50
    again.close()


def test_writing_before_any_loop_runs(place: Place) -> None:
    database = _open(place)
    called: list[int] = []

    def run(connection: Connection) -> str:
        after_commit(connection, lambda: called.append(1))
        return _add("a")(connection)

    assert database.write_now(run) == "a"
    assert called == [1]
    with pytest.raises(IntegrityError):
        database.write_now(run)
    assert called == [1]
    database.close()


async def test_outside_a_write_there_is_no_commit_to_wait_for(database: Database) -> None:
    with pytest.raises(RuntimeError, match=r"Database\.write"):
        await database.read(lambda c: after_commit(c, lambda: None))


async def test_a_commit_is_on_the_disk_before_it_is_acknowledged(in_a_file: Database) -> None:
    database = in_a_file
    full = 2  # https://sqlite.org/pragma.html#pragma_synchronous
    assert await database.write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar()) == full
    assert await database.write(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"
