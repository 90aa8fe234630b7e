"""The clock of the machine that the agent runs on, which TLS goes by: set forward when it stands below the floor.

A pump whose battery was empty wakes up in another decade and would call its gateway's certificate not yet valid. Before
it dials it sets its clock to the floor (docs/protocol.md, "Time"); heads and the gateway then tell it the rest.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core.clock import Clock

DONE_S: Final = 10.0
"""How long the program that sets the clock may take."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MachineClock:
    """``program`` is run with ``@SECONDS`` as its last argument, as `date --set` takes it; without one nothing is set.

    Setting a clock concerns everything on a machine, so only a pump that has its own machine is told to.
    """

    clock: Clock
    program: Sequence[str] = ()

    async def raise_to(self, floor: Callable[[], int]) -> None:
        """Set it to the floor (ms) if it stands below. What fails is logged: the pump then dials as it is."""
        seconds = -(-floor() // 1000)
        if not self.program or self.clock.now() >= floor():
            return
        try:
            process = await asyncio.create_subprocess_exec(
                *self.program,
                f"@{seconds}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(DONE_S):
                code = await process.wait()
        except (OSError, TimeoutError) as error:
            _LOG.warning("the clock stands below the floor and could not be set: %s", error)
        else:
            _LOG.warning("the clock stood below the floor; %s ended with %d", self.program[0], code)
