"""One hospital for all tests of a module, and a new pump for each of them."""

from collections.abc import Iterator

import pytest

from tests.support.pumps import PumpSite, TestPump


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> PumpSite:
    return PumpSite(tmp_path_factory.mktemp("hospital"))


@pytest.fixture
def site(hospital: PumpSite) -> PumpSite:
    """Nothing is revoked at the beginning of a test; its time goes on from the last one's."""
    hospital.entries.clear()
    hospital.era = 0
    return hospital


@pytest.fixture
def pump(site: PumpSite) -> Iterator[TestPump]:
    """Enrolled, with a profile, idle, and no patient connected."""
    made = site.pump()
    made.release()
    yield made
    made.hardware.power_off()
