"""Waiting for news that a commit brings."""

import asyncio
import contextlib
from typing import Final

LOOK_AGAIN_S: Final = 5.0
"""A commit of which nobody heard, since the disk failed while it was made, wakes nobody."""


async def news(wake: asyncio.Event) -> None:
    """Wait until ``wake``, which commits set, is set; at most until it is time to look again all the same."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_AGAIN_S):
            await wake.wait()
