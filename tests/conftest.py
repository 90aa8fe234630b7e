"""The installations that several tests share. Nothing is started before a test asks for it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.support import postgres as support
from tests.support.databases import KINDS, Place, places
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from tests.support.stack import Stack


pytest_plugins = ["pytester", "tests.reliability.plugin"]

# Timing decides no test: a busy machine makes an example slow, not wrong.
settings.register_profile("vigil", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vigil")


INSTALLATIONS = ("breakable", "stack", "captured")
"""Fixtures that bring up everything: their tests stay together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One after the other, what needs a whole installation comes last, beside nothing else. In several processes it
    comes first, since it takes longest, each installation in one of them; other tests stay with their module's.
    """
    parallel = hasattr(config, "workerinput")
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_installation(item) or "/".join(item.path.parts[-2:])))
    items.sort(key=lambda item: INSTALLATIONS.index(_installation(item)) if _installation(item) else -1)
    if parallel:
        items.sort(key=lambda item: not _installation(item) and "integration" not in item.path.parts)


def _installation(item: pytest.Item) -> str:
    return next((name for name in INSTALLATIONS if name in getattr(item, "fixturenames", ())), "")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that nobody harms; each test makes a database of its own in it."""
    if support.missing():
        pytest.skip(support.missing())
    with PostgresServer.running() as server:
        yield server


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a test's database lies: the test runs once for each kind."""
    return places(request.param, lambda: request.getfixturevalue("postgres"))(tmp_path / "a.db")


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
    from tests.faults.acts import all_released
    from tests.faults.harness.under import start_breakable

    if not _breakable:
        _breakable.append(await start_breakable())
    running = _breakable[0]
    await all_released(running)
    failed = request.session.testsfailed
    yield running
    if request.session.testsfailed != failed:
        _breakable.remove(running)
        await running.stop()
