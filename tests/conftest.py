"""The installations that several tests share. Nothing is started before a test asks for it."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.support.stack import Stack


pytest_plugins = ["tests.reliability.plugin"]

# Timing decides no test: a busy machine makes an example slow, not wrong.
settings.register_profile("vigil", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vigil")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a whole installation comes last, so that none of them runs beside the other tests."""
    items.sort(
        key=lambda item: [name in getattr(item, "fixturenames", ()) for name in ("breakable", "stack")]
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack() -> AsyncIterator["Stack"]:
    """The installation of the tests that leave it as they found it."""
    from tests.support.stack import Stack

    running = await Stack.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _breakable() -> AsyncIterator[list["Stack"]]:
    holder: list[Stack] = []
    yield holder
    for running in holder:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def breakable(_breakable: list["Stack"], request: pytest.FixtureRequest) -> AsyncIterator["Stack"]:
    """Another installation, for faults: fresh at first, and again after a test that failed on it.

    Its data lie on a small disk, and a shim below its processes waits for rules, where the machine allows it
    (`tests.faults.harness`).
    """
    from tests.faults.harness.under import start_breakable

    if not _breakable:
        _breakable.append(await start_breakable())
    running = _breakable[0]
    failed = request.session.testsfailed
    yield running
    if request.session.testsfailed != failed:
        _breakable.remove(running)
        await running.stop()
