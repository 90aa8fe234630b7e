"""`vigil up` from nothing to ready: trust made offline, seven services, Redis, a gateway; then once more."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.result import Progress, Result, Row, under

TITLE = "Start of one machine"

BASE_PORT = 9600
ROUNDS = 3
PATIENCE_S = 90.0
SERVICES = (
    "identity",
    "release",
    "attestation",
    "policy",
    "revocation",
    "revocation.edge",
    "evidence",
    "gateway",
)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Start from nothing, stop, start again; the medians. The floor is the interpreter with what is imported."""
    firsts: list[tuple[float, float]] = []
    seconds: list[tuple[float, float]] = []
    rounds = 1 if quick else ROUNDS
    floor = None if quick else await _imports()
    progress(0.1)
    for place in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vigil-start-") as name:
            folder = Path(name) / "data"
            firsts.append(await _start(folder))
            if not quick:
                seconds.append(await _start(folder))
        progress(0.1 + 0.9 * (place + 1) / rounds)
    rows = [_row("first start, to ready", firsts, floor)]
    if seconds:
        rows.append(_row("second start, to ready", seconds, floor))
    return Result(
        rows=tuple(rows),
        parts=()
        if floor is None
        else (f"imports alone of the {len(SERVICES)} services: {floor[1]:.1f} s of CPU",),
    )


def _row(work: str, found: list[tuple[float, float]], floor: tuple[float, float] | None) -> Row:
    took = sorted(wall for wall, _ in found)[len(found) // 2]
    return Row(
        work=work,
        figure=took,
        unit="s",
        floor=None if floor is None else floor[0],
        floor_is=f"{len(SERVICES)} interpreters importing the services, side by side",
        target=under(10),
        note=f"{sorted(cpu for _, cpu in found)[len(found) // 2]:.1f} s of CPU on {os.cpu_count()} cores",
    )


async def _start(folder: Path) -> tuple[float, float]:
    """Seconds until it says that all is ready, and the CPU seconds of it and its children until they ended."""
    before, began = os.times(), time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vigil.run", "--data", str(folder)),
        *("--base-port", str(BASE_PORT), "--output", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    words = asyncio.create_task(process.stderr.read())
    try:
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        took = time.perf_counter() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
    if not line or not json.loads(line)["ready"]:
        raise RuntimeError((await words).decode())
    await words
    after = os.times()
    return took, after.children_user + after.children_system - before.children_user - before.children_system


async def _imports() -> tuple[float, float]:
    """Seconds and CPU seconds of importing every service's module, all at once."""
    before, began = os.times(), time.perf_counter()
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", f"import vigil.{one}{_MAIN.get(one, '')}")
        for one in SERVICES
    ]
    for code in await asyncio.gather(*(process.wait() for process in processes)):
        if code:
            raise RuntimeError("a service cannot be imported")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu


_MAIN = {one: ".__main__" for one in SERVICES if one != "revocation.edge"}
