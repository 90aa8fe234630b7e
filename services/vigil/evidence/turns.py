"""Which of several processes on one database writes the log now, and what this one does meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from vigil.errors import Refused
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.service import Checkpointer
from vigil.evidence.witness_book import WitnessBook
from vigil.storage import Fence

FOLLOW_S: Final = 1.0
"""How often whoever stands by looks what has been signed: as often as the writer signs."""

Work = Callable[[], Coroutine[Any, Any, None]]
_log = logging.getLogger(__name__)


class Turns:
    """Writes while this process holds the term; stands by otherwise, and serves what can be read.

    ``works``: what the writer alone does, each until cancelled. ``announce`` tells whoever balances load.
    """

    def __init__(
        self,
        *,
        fence: Fence,
        sequencer: Sequencer,
        checkpointer: Checkpointer,
        book: WitnessBook,
        metrics: LogMetrics,
        announce: Callable[[bool], Awaitable[None]],
        works: Sequence[Work],
    ) -> None:
        self._fence = fence
        self._sequencer = sequencer
        self._checkpointer = checkpointer
        self._book = book
        self._metrics = metrics
        self._announce = announce
        self._works = works

    async def begin(self) -> None:
        """Take the writing where nobody does it, once, so that a process alone writes from its first call on.

        Raises LogDamagedError for a log that must not be continued, and STORAGE_UNAVAILABLE.
        """
        if await self._fence.take():
            await self._lead()
        else:
            _log.warning("standing by: another process writes the log")

    async def run(self) -> None:
        """Write and stand by in turns, until cancelled or until a work fails. Raises what it raised."""
        while True:
            await self._announce(self._sequencer.leading)
            if self._sequencer.leading:
                await self._work()
                self._sequencer.stand_by()
                self._metrics.leads(0)
                continue
            await self._stand_by()
            try:
                await self._lead()
            except Refused as refusal:
                # The database went away just now. Whoever sees it again first takes the next term.
                _log.warning("the log cannot be written yet: %s", refusal)
                self._fence.give_up()
                await asyncio.sleep(FOLLOW_S)

    async def _lead(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._sequencer.lead)
        await self._checkpointer.follow()
        await self._book.follow()
        self._metrics.leads(self._fence.term or 0)

    async def _stand_by(self) -> None:
        """Follow what the writer signs, until this process is the writer."""
        taken = asyncio.create_task(self._fence.taken())
        try:
            while not taken.done():
                try:
                    await self._checkpointer.follow()
                    await self._book.follow()
                except Refused as refusal:
                    _log.warning("the writer cannot be followed: %s", refusal)
                await asyncio.wait((taken,), timeout=FOLLOW_S)
            taken.result()
        finally:
            taken.cancel()

    async def _work(self) -> None:
        """Do what the writer alone does, until another has taken over."""
        tasks = [
            asyncio.create_task(self._fence.hold()),
            *(asyncio.create_task(work()) for work in self._works),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
