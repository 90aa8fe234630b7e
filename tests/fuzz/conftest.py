"""Callers of every kind for an installation that may be written to."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from tests.contract.callers import Callers
    from tests.support.stack import Stack


@pytest_asyncio.fixture(loop_scope="session")
async def callers(breakable: "Stack", tmp_path_factory: pytest.TempPathFactory) -> "AsyncIterator[Callers]":
    from tests.contract.callers import Callers

    made = Callers(breakable, tmp_path_factory.mktemp("callers"))
    yield made
    await made.close()
