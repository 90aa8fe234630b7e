"""Callers of every kind, for the installation that stays as it is."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from tests.contract.callers import Callers
    from tests.support.stack import Stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def callers(stack: "Stack", tmp_path_factory: pytest.TempPathFactory) -> "AsyncIterator[Callers]":
    from tests.contract.callers import Callers

    made = Callers(stack, tmp_path_factory.mktemp("callers"))
    yield made
    await made.close()
