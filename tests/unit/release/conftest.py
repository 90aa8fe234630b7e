from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pki import Manufacturer, TestPki
from tests.unit.release.support import World
from vigil.core.clock import ManualClock


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestPki, Manufacturer]:
    pki = TestPki(tmp_path_factory.mktemp("release-pki"), clock=ManualClock(now=1_790_000_000_000))
    return pki, pki.manufacturer()


@pytest.fixture
def world(made: tuple[TestPki, Manufacturer], tmp_path: Path) -> Iterator[World]:
    world = World(*made, tmp_path)
    yield world
    world.database.close()
