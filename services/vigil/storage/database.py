"""A database: one durable writer, many readers, brought to the schema that the code expects."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine, MetaData, inspect

from vigil.storage.engine import BUSY_TIMEOUT_S, Engines, create_engines, database_url
from vigil.storage.failures import DATABASE_ERRORS, is_storage_failure, room_is_kept, storage_unavailable
from vigil.storage.pulse import Pulse
from vigil.storage.reserve import RESERVE, Reserve
from vigil.storage.schema import migrations_folder, prepare_schema
from vigil.storage.scrub import truncate_log
from vigil.storage.writer import Writer

READERS = 4
"""Reading threads of one database."""

T = TypeVar("T")


class View:
    """One read transaction, read from in several steps: all of them see the same moment."""

    def __init__(self, *, engine: Engine, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._pool = pool
        self._connection: Connection | None = None
        self._closed = False
        self._in_use = threading.Lock()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run in the view's transaction; raises what ``run`` raised, or Refused(STORAGE_UNAVAILABLE)."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, run)

    def close(self) -> None:
        """End the transaction; waits for a step that is still running."""
        with self._in_use:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, run: Callable[[Connection], T]) -> T:
        with self._in_use:
            if self._closed:
                raise RuntimeError("the view is closed")
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                    self._connection.begin()
                return run(self._connection)
            except DATABASE_ERRORS as error:
                if is_storage_failure(error):
                    raise storage_unavailable(error) from error
                raise


class Reader:
    """A pool of threads, each read in a transaction of its own on a read-only connection."""

    def __init__(self, engine: Engine, *, threads: int) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="vigil-reader")
        self._views: set[View] = set()
        # One connection stays open: when the last one closes, SQLite removes the log, and a full disk would not
        # let the next reader make it again.
        with engine.begin() as connection:
            inspect(connection).get_table_names()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run in a read transaction; raises what ``run`` raised, or Refused(STORAGE_UNAVAILABLE)."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_now, run)

    def read_now(self, run: Callable[[Connection], T]) -> T:
        """Read in the calling thread, for start-up."""
        try:
            with self._engine.begin() as connection:
                return run(connection)
        except DATABASE_ERRORS as error:
            if is_storage_failure(error):
                raise storage_unavailable(error) from error
            raise

    @asynccontextmanager
    async def view(self) -> AsyncIterator[View]:
        """One read transaction for several steps; while it lasts, SQLite cannot shorten its log: be brief."""
        view = View(engine=self._engine, pool=self._pool)
        self._views.add(view)
        try:
            yield view
        finally:
            # Not awaited: a cancelled step may still be running in its thread, and closing waits for it.
            try:
                self._pool.submit(self._end, view)
            except RuntimeError:
                self._end(view)

    def _end(self, view: View) -> None:
        view.close()
        self._views.discard(view)

    def close(self) -> None:
        """Wait for running reads; those that wait in the queue are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for view in list(self._views):
            self._end(view)


class Database:
    """Reads and writes of one service's own tables."""

    def __init__(self, engines: Engines, *, readers: int = READERS, reserve: Reserve | None = None) -> None:
        self._engines = engines
        self._apart = engines.writer
        self.writer = Writer(engines.writer, reserve=reserve)
        self.reader = Reader(engines.reader, threads=readers)

    async def write(self, run: Callable[[Connection], T], *, vital: bool = False) -> T:
        """Run ``run(connection)`` once; returns after its effects are durable. See ``Writer``."""
        return await self.writer.write(run, vital=vital)

    def require_room(self) -> None:
        """Raises STORAGE_UNAVAILABLE while the disk is full and only vital writes find room."""
        reserve = self.writer.reserve
        if reserve is not None and not reserve.take():
            raise room_is_kept()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run ``run(connection)`` in a read transaction, in a thread of the pool."""
        return await self.reader.read(run)

    async def write_apart(self, run: Callable[[Connection], T]) -> T:
        """Run in a transaction beside the writer and past its guard: for taking the writing over.

        Raises what ``run`` raised, or Refused(STORAGE_UNAVAILABLE).
        """
        return await asyncio.get_running_loop().run_in_executor(None, self._write_apart, run)

    def _write_apart(self, run: Callable[[Connection], T]) -> T:
        try:
            with self._apart.begin() as connection:
                return run(connection)
        except DATABASE_ERRORS as error:
            if is_storage_failure(error):
                raise storage_unavailable(error) from error
            raise

    def pulse(self, holder: str) -> Pulse:
        """How other processes on this database see that this one lives."""
        return self._engines.kind.pulse(self._engines.url, holder)

    def write_now(self, run: Callable[[Connection], T]) -> T:
        """Write and block, for start-up."""
        return self.writer.write_now(run)

    def read_now(self, run: Callable[[Connection], T]) -> T:
        """Read in the calling thread, for start-up."""
        return self.reader.read_now(run)

    async def scrub(self) -> bool:
        """Have nothing older than the last commit lie in the database's own log; False while that must wait."""
        return await asyncio.get_running_loop().run_in_executor(None, truncate_log, self._engines.writer)

    def close(self) -> None:
        """Finish queued writes and running reads, close every connection."""
        self.writer.close()
        self.reader.close()
        self._engines.dispose()


class Disk(Protocol):
    """Where a service's database comes from: ``open_database``, or a simulator's."""

    def __call__(self, path_or_url: Path | str, *, metadata: MetaData, migrations: Path | str) -> Database:
        """See ``open_database``."""
        ...


def open_database(
    path_or_url: Path | str,
    *,
    metadata: MetaData,
    migrations: Path | str,
    readers: int = READERS,
    busy_timeout: float = BUSY_TIMEOUT_S,
) -> Database:
    """Open a database at the newest revision in ``migrations`` (a folder, or the name of a package).

    A new file gets its tables from ``metadata``; an older one is migrated. Room for vital writes is kept beside it
    where the metadata ask for some (`reserve.RESERVE`). Raises
    Refused(STORAGE_UNAVAILABLE) when a newer version wrote it, it is not Vigil's, or it cannot be opened.
    """
    url = database_url(path_or_url)
    engines = create_engines(url, readers=readers, busy_timeout=busy_timeout)
    try:
        prepare_schema(engines, metadata=metadata, folder=migrations_folder(migrations))
    except DATABASE_ERRORS as error:
        engines.dispose()
        if is_storage_failure(error):
            raise storage_unavailable(error) from error
        raise
    except BaseException:
        engines.dispose()
        raise
    reserve = engines.kind.reserve(url, metadata.info.get(RESERVE, 0))
    return Database(engines, readers=readers, reserve=reserve)
