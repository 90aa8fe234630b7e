"""A pump sets its machine's clock to the floor before it dials, and only when it stands below it."""

import sys
from pathlib import Path

import pytest

from vigil.core.clock import ManualClock
from vigil.device.machine_clock import MachineClock

pytestmark = pytest.mark.holds("drawer")

FLOOR = 1_790_000_000_001
WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def told(folder: Path, now: int) -> tuple[MachineClock, Path]:
    """A clock, and where the program that sets it writes what it was told."""
    said = folder / "said"
    return MachineClock(ManualClock(now=now), [sys.executable, "-I", "-c", WRITES, str(said)]), said


async def test_below_the_floor_it_is_set(tmp_path: Path) -> None:
    clock, said = told(tmp_path, FLOOR - 1)
    await clock.raise_to(lambda: FLOOR)
    # In whole seconds, and not below the floor.
    assert said.read_text() == "@1790000001"


async def test_at_the_floor_it_is_left(tmp_path: Path) -> None:
    clock, said = told(tmp_path, FLOOR)
    await clock.raise_to(lambda: FLOOR)
    assert not said.exists()


async def test_a_program_that_fails_keeps_no_pump_from_dialling() -> None:
    for program in ([], ["/no/such/program"], [sys.executable, "-I", "-c", "raise SystemExit(3)"]):
        await MachineClock(ManualClock(now=0), program).raise_to(lambda: FLOOR)
