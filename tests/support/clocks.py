"""Processes of an installation with clocks of their own, moved while they run (libfaketime).

async with clocks.of(stack, "policy") as moved:     # started again under libfaketime, with the right time
    await moved["policy"].step(3600)                # an hour ahead, from within two seconds on
    await moved["policy"].freeze()

The wall clock of a process is what its file says; its monotonic clock stays the machine's. That the time it takes
is really another is for the test to show, by what the process signs or writes.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tests.support.stack import Stack
    from vigil.demo.fleet import FleetProcess

STARTUP: Final = Path(__file__).parent / "startup"
"""A folder for PYTHONPATH: see the module in it."""
LIBRARIES: Final = (
    "/usr/lib/{}/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)
FLEET: Final = "fleet"
SETTLED_S: Final = 2.5
"""libfaketime reads the file anew each second."""
DAY: Final = 86_400
YEAR: Final = 365 * DAY


def library() -> Path | None:
    """Where libfaketime is; None when it is not installed (Debian's package `faketime`)."""
    machine = f"{os.uname().machine}-linux-gnu"
    found = (Path(pattern.format(machine)) for pattern in LIBRARIES)
    return next((path for path in found if path.exists()), None)


def required() -> Path:
    """libfaketime, or the test is skipped."""
    found = library()
    if found is None:
        pytest.skip("libfaketime is missing: bash deploy/tools/faults.sh installs it")
    return found


def environment(folder: Path) -> Mapping[str, str]:
    """With which a process may be given a clock or a network of its own later, by a file in this folder."""
    folder.mkdir(exist_ok=True)
    before = os.environ.get("PYTHONPATH")
    return {
        "VIGIL_CLOCKS": str(folder),
        "VIGIL_CLOCKS_LIBRARY": str(library() or ""),
        "PYTHONPATH": str(STARTUP) if not before else f"{STARTUP}{os.pathsep}{before}",
    }


@dataclass
class Moved:
    """The clock of one process."""

    path: Path

    def write(self, words: str) -> None:
        """Atomically, as libfaketime may read at any moment."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(words + "\n")
        fresh.replace(self.path)

    def step(self, seconds: float) -> None:
        """From the right time; the process notices within two seconds."""
        self.write(f"{seconds:+.3f}")

    def freeze(self, seconds: float = 0.0) -> None:
        """Stand still, at this distance from the right time."""
        self.write(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + seconds)))

    def right(self) -> None:
        """The right time again."""
        self.write("+0")


def preloaded(pid: int) -> bool:
    """Whether a process runs with libfaketime."""
    return "libfaketime" in Path(f"/proc/{pid}/maps").read_text()


def pid_of(fleet: "FleetProcess") -> int:
    """The process of a fleet of pumps."""
    process = fleet._child.process
    assert process is not None
    return process.pid


async def _again(stack: "Stack", names: tuple[str, ...], *, serving: bool) -> None:
    for name in names:
        if name == FLEET:
            with stack.besides_ours():
                for fleet in stack.world.fleets:
                    await fleet.stop()
                    await fleet.start()
        else:
            await stack.restarted(name, former=await stack.kill(name), serving=serving)


@contextlib.asynccontextmanager
async def of(
    stack: "Stack", *names: str, seconds: float = 0.0, serving: bool = True
) -> AsyncIterator[Mapping[str, Moved]]:
    """Start these processes again, each with a clock of its own that stands ``seconds`` off; as before afterwards.

    ``serving``: wait until they answer, which they do not where our certificate has ended by their clock.
    """
    required()
    clocks = {name: Moved(stack.clocks / name) for name in names}
    try:
        for moved in clocks.values():
            moved.step(seconds)
        await _again(stack, names, serving=serving)
        for name, pid in stack.pids().items():
            assert preloaded(pid) == (name in names), name
        yield clocks
    finally:
        for moved in clocks.values():
            moved.path.unlink()
        await _again(stack, names, serving=serving)
