"""One writer of several processes on one database, whatever any clock or network says.

A row holds the *term* of whoever writes. Each of its commits reads the row first, in the same transaction; who takes
the writing over raises the term in a transaction of its own. So a writer that was stopped and goes on, or that only
lost its connection, finds another's term at its next commit, which then does not happen. That decides. When to take
over is a guess that may be wrong without harm: who writes shows a *pulse*, and is followed when it is gone or has
stood still for SILENT_S by the follower's own clock.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Dialect,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from vigil.core.clock import Clock, Entropy
from vigil.errors import Reason, Refused, refused
from vigil.storage.database import Database
from vigil.storage.rows import compiled, run

BEAT_S: Final = 1.0
"""How often a writer shows that it lives, and looks whether it still is one."""
LOOK_S: Final = 0.5
"""How often whoever stands by looks."""
GONE_S: Final = 2.0
"""A pulse that is gone for so long: a writer that lives shows it again within a beat."""
SILENT_S: Final = 6.0
"""A pulse that stands still for so long belongs to a process that is stopped, or cut off."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


def term_table(metadata: MetaData) -> Table:
    """Add the row's table to an owner's metadata; its migrations create it with the owner's own."""
    return Table(
        "writer_term",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
        Column("term", BigInteger, nullable=False),
        Column("holder", String(32), nullable=False),  # empty: nobody, after an end in order
    )


_TERM = term_table(MetaData())
_ROW = select(_TERM.c.term, _TERM.c.holder).where(_TERM.c.id == bindparam("id"))


@cache
def _row_sql(dialect: Dialect) -> str:
    # Shared: whoever takes over waits for the commit that has read it. (SQLite lets one transaction write at a time.)
    return compiled(_ROW.with_for_update(read=True), dialect)


def not_the_writer() -> Refused:
    """Make STORAGE_UNAVAILABLE for a write of a process that is not, or no longer, the writer."""
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        "This process stands by: another one writes to the database.",
        lifted_by="the same request at the process that writes",
        who="you",
        cause="NOT_THE_WRITER",
    )


class Fence:
    """This process's place among those that may write; from now on its writer commits nothing without the term.

    For one event loop. ``holder`` is this process's name there, an id of its own.
    """

    def __init__(self, database: Database, *, clock: Clock, entropy: Entropy) -> None:
        self.holder = entropy(8).hex()
        self._database = database
        self._clock = clock
        self._pulse = database.pulse(self.holder)
        self._loop = asyncio.get_running_loop()
        self._term: int | None = None
        self._lost = asyncio.Event()
        self._seen: tuple[int, object | None] | None = None
        self._since = 0.0
        database.writer.guard = self._check

    @property
    def term(self) -> int | None:
        """The term in which this process writes; None while it stands by."""
        return self._term

    async def take(self) -> bool:
        """Look once, and take the writing over where nobody does it; whether this process writes now.

        Raises STORAGE_UNAVAILABLE when the database does not answer.
        """
        term, holder = await self._database.read(_read)
        if not await self._vacant(term, holder):
            return False
        await self._beat()
        taken = await self._database.write_apart(lambda connection: _take(connection, term, self.holder))
        self._seen = None
        if taken is None:
            return False
        self._lost.clear()
        self._term = taken
        _log.warning("writing in term %d as %s%s", taken, self.holder, f" after {holder}" if holder else "")
        return True

    async def taken(self) -> None:
        """Stand by until this process writes."""
        while True:
            with contextlib.suppress(Refused):
                if await self.take():
                    return
            await asyncio.sleep(LOOK_S)

    async def hold(self) -> None:
        """Show a pulse until another process has taken the writing over."""
        while not self._lost.is_set():
            await self._beat()
            with contextlib.suppress(Refused):
                term, _ = await self._database.read(_read)
                if term != self._term:
                    self._give_up(self._term)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._lost.wait()

    def give_up(self) -> None:
        """Stand by again, without the use of what was taken."""
        self._give_up(self._term)

    async def release(self) -> None:
        """Tell whoever stands by that this process ends, in order."""
        if self._term is not None:
            with contextlib.suppress(Refused):
                await self._database.write(_release)
        self._term = None
        await self._in_a_thread(self._pulse.close)

    async def _vacant(self, term: int, holder: str) -> bool:
        if holder in ("", self.holder):
            return True
        try:
            beat = await self._in_a_thread(lambda: self._pulse.of(holder))
        except (OSError, SQLAlchemyError) as error:
            _log.warning("the writer's pulse cannot be seen: %s", type(error).__name__)
            return False
        now = self._clock.monotonic()
        first = self._seen is None
        if (term, beat) != self._seen:
            self._seen, self._since = (term, beat), now
            # At the start, whoever is gone has been gone before.
            return first and beat is None
        return now - self._since >= (GONE_S if beat is None else SILENT_S)

    async def _beat(self) -> None:
        try:
            await self._in_a_thread(self._pulse.beat)
        except (OSError, SQLAlchemyError) as error:
            # Others may think that this process is gone. The term decides, not they.
            _log.warning("no pulse: %s", type(error).__name__)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(None, work)

    def _check(self, connection: Connection) -> None:
        """In the writer's thread, at the beginning of each of its transactions. Raises STORAGE_UNAVAILABLE."""
        term = self._term
        if term is not None:
            row = run(connection, _row_sql(connection.dialect), (1,)).fetchone()
            if row is not None and row[0] == term:
                return
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._give_up, term)
        raise not_the_writer()

    def _give_up(self, term: int | None) -> None:
        if term is not None and self._term == term:
            _log.warning("term %d is over: another process writes", term)
            self._term = None
            self._lost.set()


def _read(connection: Connection) -> tuple[int, str]:
    row = connection.execute(_ROW, {"id": 1}).one_or_none()
    return (0, "") if row is None else (row.term, row.holder)


def _take(connection: Connection, term: int, holder: str) -> int | None:
    """Raise the term that was read, unless somebody else was faster."""
    if term:
        mine = _TERM.c.id == 1, _TERM.c.term == term
        raised = connection.execute(update(_TERM).where(*mine).values(term=term + 1, holder=holder))
        return term + 1 if raised.rowcount == 1 else None
    try:
        connection.execute(insert(_TERM).values(id=1, term=1, holder=holder))
    except IntegrityError:
        connection.rollback()
        return None
    return 1


def _release(connection: Connection) -> None:
    connection.execute(update(_TERM).where(_TERM.c.id == 1).values(holder=""))
