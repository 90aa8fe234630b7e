"""Disks that outlive their process: SQLite in memory, where only what was committed is still there after a crash.

The service's own `Writer` and `Reader` code runs on them; its thread is a step of the schedule, some time after the
write was asked for. A disk can refuse a commit, or lose the answer to one that it kept.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from tests.model.loop import Node, SimLoop
from vigil.device.store import DeviceStore
from vigil.errors import Reason, refused
from vigil.storage import Database, Pulse, Writer
from vigil.storage.database import View
from vigil.storage.writer import _deliver, _Job

T = TypeVar("T")


class PowerCut(BaseException):
    """The process ends in the middle of a step: nothing after it runs, and no handler may take it for an error."""


class DiskConnection(sqlite3.Connection):
    """The platter: closing it is the process's affair, and a commit can fail before or after it was kept."""

    disk: "Disk | None" = None

    def close(self) -> None:
        if self.in_transaction:
            super().rollback()

    def commit(self) -> None:
        disk = self.disk
        if disk is None:
            super().commit()
            return
        fault = disk.fault_of_commit()
        if fault == "refused":
            raise _io_error()
        super().commit()
        disk.committed()
        if fault == "unanswered":
            raise _io_error()


def _io_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    error.sqlite_errorname = "SQLITE_IOERR"
    return error


class Disk:
    """One host's disk."""

    def __init__(self, host: str, loop: SimLoop, image: bytes | None = None) -> None:
        self.host = host
        self.loop = loop
        self.connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, factory=DiskConnection
        )
        if image is not None:
            self.connection.deserialize(image)
        self.connection.disk = self
        self.latency = 0.002
        self.failing = 0.0
        """The share of commits that fail."""
        self.crash: tuple[int, bool, Callable[[], None]] | None = None
        """``(the n-th commit from now, before it, kill)``."""
        self.commits = 0
        self.failures = 0
        self.after: list[Callable[[], None]] = []
        """What looks at the disk after each commit."""

    def image(self) -> bytes:
        return self.connection.serialize()

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Look at what is durable."""
        return self.connection.execute(query, values).fetchall()

    def fault_of_commit(self) -> str:
        if self.failing and self.loop.random.random() < self.failing:
            self.failures += 1
            return "unanswered" if self.loop.random.random() < 0.4 else "refused"
        return ""

    def crashes(self, *, before: bool) -> bool:
        """Whether the process ends here: at the commit that was chosen, before or after it."""
        if self.crash is None:
            return False
        left, at_before, kill = self.crash
        if before and left > 1:
            self.crash = (left - 1, at_before, kill)
        if left > 1 or at_before is not before:
            return False
        self.crash = None
        kill()
        return True

    def committed(self) -> None:
        self.commits += 1
        for look in self.after:
            look()

    def time(self) -> float:
        """How long a commit takes now."""
        return self.latency * (0.2 + self.loop.random.random())


ENGINES: dict[str, Engine] = {}
"""One for each host, kept for its compiled statements; where it leads is changed with each schedule."""
_DISKS: dict[str, Disk] = {}


def _engine(disk: Disk) -> Engine:
    _DISKS[disk.host] = disk
    engine = ENGINES.get(disk.host)
    if engine is None:
        host = disk.host
        engine = create_engine("sqlite://", creator=lambda: _DISKS[host].connection, poolclass=NullPool)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        ENGINES[host] = engine
    return engine


class SimWriter(Writer):
    """The product's writer with its thread's turns taken from the loop."""

    def __init__(self, engine: Engine, *, node: Node, disk: Disk) -> None:
        self._node = node
        self._disk = disk
        self._turning = False
        super().__init__(engine)

    def _start(self) -> None:
        """No thread: `_submit` asks for a turn."""

    def _submit(self, job: _Job) -> None:
        if self._closed:
            raise refused(Reason.STORAGE_UNAVAILABLE, "The service is stopping.")
        self._queue.put(job)
        if job.loop is None:
            self._turn()
        elif not self._turning:
            self._turning = True
            self._disk.loop.on_later(self._node, self._disk.time(), self._turn)

    def _turn(self) -> None:
        self._turning = False
        if self._queue.empty():
            return
        batch, _ = self._take()
        batch = [job for job in batch if not job.future.cancelled()]
        if not batch:
            return
        if self._disk.crashes(before=True):
            return
        self._commit(batch)
        if self._disk.crashes(before=False):
            return
        if any(job.loop is None for job in batch):
            _deliver(batch)
        else:
            # Durable, and nobody has been told yet.
            self._disk.loop.on_later(self._node, self._disk.time(), _deliver, batch)

    def close(self) -> None:
        self._turn()
        self._closed = True
        self._drop_connection()


class SimReader:
    """Reads between two commits, as a thread on a connection of its own would see them."""

    def __init__(self, engine: Engine, disk: Disk) -> None:
        self._engine = engine
        self._disk = disk

    async def read(self, run: Callable[[Connection], T]) -> T:
        result: T = await asyncio.get_running_loop().run_in_executor(None, self.read_now, run)
        return result

    def read_now(self, run: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return run(connection)

    @asynccontextmanager
    async def view(self) -> AsyncIterator[View]:
        copy = Disk(f"{self._disk.host}-view", self._disk.loop, self._disk.image())
        yield SimView(SimReader(_engine(copy), copy))  # type: ignore[misc]

    def close(self) -> None:
        """Nothing is open."""


class SimView:
    """One moment of a database: a copy of it."""

    def __init__(self, reader: SimReader) -> None:
        self._reader = reader

    async def read(self, run: Callable[[Connection], T]) -> T:
        return await self._reader.read(run)


class SimDatabase(Database):
    """`vigil.storage.Database` on a simulated disk."""

    def __init__(self, disk: Disk, node: Node) -> None:
        engine = _engine(disk)
        self._apart = engine
        self.writer = SimWriter(engine, node=node, disk=disk)
        self.reader = SimReader(engine, disk)  # type: ignore[assignment]

    def pulse(self, _holder: str) -> Pulse:
        return NoPulse()

    def close(self) -> None:
        self.writer.close()


class NoPulse:
    """A host runs one process of each service, so whoever wrote before it is gone."""

    def beat(self) -> None:
        """Nobody looks."""

    def of(self, _holder: str) -> object | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


def opener(disk: Disk, node: Node) -> Callable[..., Database]:
    """`vigil.storage.Disk` for one node: its tables are made when the disk is new."""

    def open_database(_path: Path | str, *, metadata: Any, migrations: Any) -> Database:
        assert migrations
        if not disk.rows("SELECT 1 FROM sqlite_master LIMIT 1"):
            with _engine(disk).begin() as connection:
                metadata.create_all(connection)
        return SimDatabase(disk, node)

    return open_database


class SimDeviceStore(DeviceStore):
    """A pump's own file on its flash: a power cut between two commits leaves the first."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self._disk = disk
        super().__init__(path)

    def _connect(self, _path: Path) -> sqlite3.Connection:
        if self._disk.connection.in_transaction:
            self._disk.connection.execute("ROLLBACK")
        return self._disk.connection

    def close(self) -> None:
        """The flash stays."""

    def _commit(self) -> None:
        if self._disk.crashes(before=True):
            raise PowerCut
        fault = self._disk.fault_of_commit()
        if fault:
            raise refused(Reason.STORAGE_UNAVAILABLE, "the device cannot write to its own storage")
        super()._commit()
        self._disk.committed()
        if self._disk.crashes(before=False):
            raise PowerCut
