"""One trust domain for all tests of the room, one database and server for each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.pki import Manufacturer, TestPki
from tests.unit.identity.world import World


@pytest.fixture(scope="session")
def shared_pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("identity-pki"))


@pytest.fixture(scope="session")
def maker(shared_pki: TestPki) -> Manufacturer:
    return shared_pki.manufacturer("maker")


@pytest.fixture
async def world(shared_pki: TestPki, maker: Manufacturer, tmp_path: Path) -> AsyncIterator[World]:
    made = await World(shared_pki, maker, tmp_path).start()
    await made.furnish()
    yield made
    await made.stop()
