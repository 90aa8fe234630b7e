"""``make flames``: what each process of a gated command does under load, as flame graphs in docs/flames/.

py-spy looks at the running processes from outside, a hundred times a second, at the threads that compute. What waits is
not in the pictures, nor threads that know nothing of Python. What each kind of work took of the process's CPU goes to
docs/flames/parts.json.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.benchmarks.bench_command import CALLERS, PUMPS, TECHNICIANS, closed_loop, reading
from tests.benchmarks.flame_parts import parts_of
from tests.benchmarks.flame_svg import stacks_of, svg
from tests.benchmarks.result import Progress, split
from tests.benchmarks.site import Site

PROCESSES: Final = ("client", "gateway", "policy", "evidence", "pumps")
PARTS: Final = "parts.json"
"""Milliseconds of CPU a command, by process and kind of work."""
SECONDS: Final = 10
WARM: Final = 3.0
SAMPLES_A_SECOND: Final = 100


async def record(folder: Path, progress: Progress) -> None:
    """Run an installation under the load of 64 callers and write a picture of each process."""
    folder.mkdir(exist_ok=True)
    async with Site(pumps=PUMPS, technicians=TECHNICIANS, progress=split(progress, 0.0, 0.4)) as site:
        pids = site.processes()
        command = reading(site.hands(), site.pumps)
        await closed_loop(command, callers=CALLERS, seconds=WARM, pids=pids)
        parts = {}
        for place, name in enumerate(PROCESSES):
            load = asyncio.create_task(
                closed_loop(command, callers=CALLERS, seconds=SECONDS + 1.0, pids=pids)
            )
            stacks = stacks_of((await _sampled(pids[name])).splitlines())
            cpu = (await load).cpu[name]
            parts[name] = {kind: round(share * cpu, 4) for kind, share in parts_of(stacks).items()}
            title = f"{name}: {cpu:.2f} ms of CPU a command; who computes, {CALLERS} callers, class R"
            (folder / f"{name}.svg").write_text(svg(title, stacks), encoding="utf-8")
            progress(0.4 + 0.6 * (place + 1) / len(PROCESSES))
    (folder / PARTS).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")


async def _sampled(pid: int) -> str:
    """The stacks of one process, in py-spy's raw form. Raises RuntimeError with what py-spy says."""
    with tempfile.TemporaryDirectory(prefix="vigil-flames-") as folder:
        out = Path(folder) / "raw"
        spy = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("py-spy")),
            *("record", "--format", "raw", "--pid", str(pid)),
            *("--duration", str(SECONDS), "--rate", str(SAMPLES_A_SECOND), "--output", str(out)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await spy.communicate()
        if spy.returncode != 0:
            raise RuntimeError(
                f"py-spy cannot look at a process of another parent here: {said.decode()[-500:]}"
            )
        return await asyncio.to_thread(out.read_text)
