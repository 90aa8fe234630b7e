"""The single writer: many functions share one durable transaction (group commit)."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import RootTransaction

from vigil.errors import Reason, refused
from vigil.storage.failures import is_storage_failure, room_is_kept, storage_unavailable
from vigil.storage.reserve import Reserve, is_full
from vigil.storage.rows import run

MAX_BATCH = 256
"""Functions in one commit: bounds what one lost commit takes with it and how long the first one waits."""
MAX_QUEUED = 16_384
"""Functions waiting; more are refused rather than kept in memory."""

_SLOT = "vigil.unit_of_work"
_log = logging.getLogger(__name__)
T = TypeVar("T")


class _Unit:
    """What one function left to be done at and after its commit."""

    __slots__ = ("at_commit", "callbacks")

    def __init__(self) -> None:
        self.callbacks: dict[Callable[[], None], None] = {}
        self.at_commit: list[tuple[Callable[[Connection, list[Any]], None], Any]] = []


class _Job:
    __slots__ = ("error", "future", "loop", "result", "run", "unit", "vital")

    def __init__(
        self,
        run: Callable[[Connection], Any],
        future: "asyncio.Future[Any] | Future[Any]",
        loop: asyncio.AbstractEventLoop | None,
        *,
        vital: bool = False,
    ) -> None:
        self.run = run
        self.future = future
        self.loop = loop
        self.vital = vital
        self.unit = _Unit()
        self.result: Any = None
        self.error: Exception | None = None


def after_commit(connection: Connection, callback: Callable[[], None]) -> None:
    """Inside a write function: call ``callback`` on the event loop once the commit is durable, else never.

    Given twice by one function, it is called once.
    """
    _unit(connection).callbacks[callback] = None


def at_commit(connection: Connection, flush: Callable[[Connection, list[Any]], None], item: Any) -> None:
    """Inside a write function: keep ``item`` for ``flush``, called once, just before the commit, with the
    items of every function in it, in order. What a failing function kept is dropped with it.
    """
    if connection.in_nested_transaction():
        raise RuntimeError("at_commit inside a nested savepoint would survive its rollback")
    _unit(connection).at_commit.append((flush, item))


def _unit(connection: Connection) -> _Unit:
    unit = connection.info.get(_SLOT)
    if not isinstance(unit, _Unit):
        raise RuntimeError("this is possible only inside a function given to Database.write")  # noqa: TRY004
    return unit


class Writer:
    """One thread with one connection.

    A function runs once, in a transaction that others may share, under its own savepoint: if it raises, only
    its own effects are undone. It must return plain values, neither commit nor roll back the connection, and
    defer no constraint: one that fails at the commit fails everything in it. A vital one on a full disk runs again,
    from the beginning, with room of the reserve.
    """

    reserve: Reserve | None = None
    """Room for vital writes; None where the tables ask for none."""
    guard: Callable[[Connection], None] | None = None
    """Runs first in every transaction; what it raises is what everybody in it is told (`fence`)."""

    def __init__(self, engine: Engine, *, reserve: Reserve | None = None) -> None:
        self._engine = engine
        self.reserve = reserve
        self._connection: Connection | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._gate = threading.Lock()
        self._thread: threading.Thread | None = None
        self._start()

    async def write(self, run: Callable[[Connection], T], *, vital: bool = False) -> T:
        """Run in a durable transaction. Raises what ``run`` raised, or Refused(STORAGE_UNAVAILABLE).

        ``vital``: it may use the room that is kept for such writes. A caller that is cancelled while the transaction
        runs does not undo it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Job(run, future, loop, vital=vital))
        return await future

    def write_now(self, run: Callable[[Connection], T]) -> T:
        """Write and block, for start-up, where no event loop runs; callbacks run in this thread. Vital."""
        future: Future[T] = Future()
        job = _Job(run, future, None, vital=True)
        self._submit(job)
        result = future.result()
        for callback in job.unit.callbacks:
            callback()
        return result

    def close(self) -> None:
        """Finish what is queued, then stop."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="vigil-writer", daemon=True)
        self._thread.start()

    def _submit(self, job: _Job) -> None:
        with self._gate:
            if self._closed:
                raise refused(Reason.STORAGE_UNAVAILABLE, "The service is stopping.")
            if self._queue.qsize() >= MAX_QUEUED:
                raise refused(Reason.STORAGE_UNAVAILABLE, "Too many writes are waiting for the disk.")
            self._queue.put(job)

    def _work(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._take()
            batch = [job for job in batch if not job.future.cancelled()]
            if batch:
                self._commit(batch)
                _deliver(batch)
        self._drop_connection()

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for one function, then take what is queued behind it; False when this was the last."""
        batch: list[_Job] = []
        job = self._queue.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch, True
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, batch: list[_Job]) -> None:
        admitted = batch
        if self.reserve is not None and not self.reserve.take():
            # Nobody else uses up what was given back for vital writes.
            admitted = [job for job in batch if job.vital]
            _refuse([job for job in batch if not job.vital], room_is_kept)
        while admitted:
            error = self._attempt(admitted)
            if error is None:
                return
            vital = [job for job in admitted if job.vital and job.error is None]
            room = bool(vital) and self.reserve is not None and is_full(error) and self.reserve.give()
            if not room:
                _log.warning("a commit of %d writes failed: %s", len(admitted), getattr(error, "orig", error))
                vital = []
            _refuse([job for job in admitted if job not in vital], lambda: storage_unavailable(error))  # noqa: B023 - called at once
            for job in vital:
                job.unit, job.result = _Unit(), None
            admitted = vital

    def _attempt(self, batch: list[_Job]) -> Exception | None:
        """One transaction; answers what made it fail."""
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            self._transact(self._connection, batch)
        except Exception as error:  # noqa: BLE001 - the thread's outer edge: the batch is lost, the writer is not
            self._drop_connection()
            return error
        return None

    def _transact(self, connection: Connection, batch: list[_Job]) -> None:
        transaction = connection.begin()
        if self.guard is not None:
            self.guard(connection)
        if len(batch) == 1:
            # Alone: the transaction itself is the savepoint.
            _run(connection, transaction, batch[0])
            if batch[0].error is not None:
                transaction.rollback()
                return
        else:
            for job in batch:
                _run_under_savepoint(connection, transaction, job)
        _flush(connection, batch)
        transaction.commit()

    def _drop_connection(self) -> None:
        """Forget the connection; after a failure its transaction is in an unknown state."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except Exception:  # noqa: BLE001 - closing a broken connection may fail in any way; a new one is opened
            _log.debug("closing a failed connection failed", exc_info=True)


def _refuse(jobs: list[_Job], refusal: Callable[[], Exception]) -> None:
    for job in jobs:
        job.error = job.error or refusal()


def _run(connection: Connection, transaction: RootTransaction, job: _Job) -> None:
    connection.info[_SLOT] = job.unit
    try:
        job.result = job.run(connection)
    except Exception as error:
        if is_storage_failure(error):
            raise
        job.error = error
    except BaseException as error:  # noqa: BLE001 - not this thread's to obey: the caller learns of it
        job.error = RuntimeError(f"a write function raised {error!r}")
    finally:
        connection.info.pop(_SLOT, None)
    if connection.get_transaction() is not transaction or not transaction.is_active:
        job.error = RuntimeError("a write function ended the transaction that it was given")
        raise job.error
    if connection.in_nested_transaction():
        job.error = RuntimeError("a write function left a savepoint open")
        raise job.error


def _run_under_savepoint(connection: Connection, transaction: RootTransaction, job: _Job) -> None:
    run(connection, "SAVEPOINT vigil_unit")
    _run(connection, transaction, job)
    if job.error is not None:
        run(connection, "ROLLBACK TO SAVEPOINT vigil_unit")
    run(connection, "RELEASE SAVEPOINT vigil_unit")


def _flush(connection: Connection, batch: list[_Job]) -> None:
    gathered: dict[Callable[[Connection, list[Any]], None], list[Any]] = {}
    for job in batch:
        if job.error is None:
            for flush, item in job.unit.at_commit:
                gathered.setdefault(flush, []).append(item)
    for flush, items in gathered.items():
        flush(connection, items)


def _deliver(batch: list[_Job]) -> None:
    """Hand the outcomes over, one wake-up for each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        if job.loop is None:
            _settle(job)
        else:
            loops.setdefault(job.loop, []).append(job)
    for loop, jobs in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, loop, jobs)
        except RuntimeError:
            _log.debug("the event loop is closed: nobody waits for %d commits", len(jobs))


def _resolve(loop: asyncio.AbstractEventLoop, jobs: list[_Job]) -> None:
    for job in jobs:
        if job.error is None:
            for callback in job.unit.callbacks:
                loop.call_soon(callback)
        if not job.future.done():
            _settle(job)


def _settle(job: _Job) -> None:
    if job.error is None:
        job.future.set_result(job.result)
    elif isinstance(job.error, StopIteration):
        # A future cannot carry it (PEP 479).
        job.future.set_exception(RuntimeError("a write function raised StopIteration"))
    else:
        job.future.set_exception(job.error)
