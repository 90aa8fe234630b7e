"""An installation with everything below it that can be made to fail: the shim and a small disk.

shim, disk = shim_of(breakable), disk_of(breakable)      # skips, with the reason, where the machine has none
async with counting(breakable, "edge") as counted:       # its metrics, by name and label values
    assert (await counted("vigil_edge_bus_messages_total"))["forged"] == 1
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.harness.disk import SmallDisk
from tests.faults.harness.shim import Shim
from tests.support.opa import free_port
from tests.support.stack import Stack
from vigil.run.configs import config_path

DISK_MB: Final = 256

Counted = Callable[[str], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True)
class Below:
    """What lies below the processes of an installation; None where the machine does not allow it."""

    shim: Shim | None
    disk: SmallDisk | None


async def start_breakable() -> Stack:
    """Start an installation with its data on a small disk and the shim below each process, pumps included."""
    home = Path(tempfile.mkdtemp(prefix="stack-"))
    shim = None if Shim.missing() else Shim.build(home / "shim")
    disk = None if SmallDisk.missing() else SmallDisk.mount(home / "data", megabytes=DISK_MB)
    try:
        stack = await Stack.start(home, environment=shim.environment if shim else None)
    except BaseException:
        if disk is not None:
            disk.unmount()
        raise
    if disk is not None:
        stack.at_end.append(disk.unmount)
    stack.below = Below(shim, disk)
    return stack


def shim_of(stack: Stack) -> Shim:
    """The shim below its processes; skips the test where there is none."""
    if stack.below is None or stack.below.shim is None:
        pytest.skip(Shim.missing() or "this installation was started without a shim")
    return stack.below.shim


def disk_of(stack: Stack) -> SmallDisk:
    """The small disk that its data lie on; skips the test where there is none."""
    if stack.below is None or stack.below.disk is None:
        pytest.skip(SmallDisk.missing() or "this installation was started without a small disk")
    return stack.below.disk


@contextlib.asynccontextmanager
async def counting(stack: Stack, name: str) -> AsyncIterator[Counted]:
    """Start a process again with its metrics served; without them again at the end."""
    config = config_path(stack.folder, name)
    original, address = config.read_text(), f"127.0.0.1:{free_port()}"
    config.write_text(f'metrics_listen = "{address}"\n{original}')
    await stack.restarted(name, former=await stack.kill(name))

    async def counted(metric: str) -> Mapping[str, float]:
        text = await asyncio.to_thread(_scrape, address)
        return {
            ",".join(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric
        }

    try:
        yield counted
    finally:
        config.write_text(original)
        await stack.restarted(name, former=await stack.kill(name))


def _scrape(address: str) -> str:
    with urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())
