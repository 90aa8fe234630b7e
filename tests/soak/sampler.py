"""What every process holds while it works (private memory, descriptors, threads, tasks), and whether that grows."""

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

INTERVAL_S: Final = 2.0
SCRAPE_S: Final = 5.0
THIRDS: Final = 3
LEAST_SAMPLES: Final = 9

ALLOWED: Final[Mapping[str, tuple[float, float]]] = {
    "memory": (6.0, 0.05),
    "descriptors": (8.0, 0.02),
    "threads": (2.0, 0.0),
    "tasks": (32.0, 0.10),
}
"""By how much the median of the last third may lie above that of the middle one: so much, and this part of it.

Memory in MiB: an allocator's arenas and SQLite's page cache fill up for some minutes more. Tasks: calls under way.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process. ``tasks`` is None where it serves no metrics."""

    memory: float
    descriptors: int
    threads: int
    tasks: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure of one process: medians of the middle and the last third, and the most that was seen."""

    process: str
    measure: str
    middle: float
    last: float
    most: float

    @property
    def flat(self) -> bool:
        least, part = ALLOWED[self.measure]
        return self.last - self.middle <= max(least, part * self.middle)

    def __str__(self) -> str:
        return (
            f"{self.process}: {self.measure} {self.middle:.0f} -> {self.last:.0f} (at most {self.most:.0f})"
        )


def look(pid: int, tasks: int | None = None) -> Sample:
    """Read /proc (proc(5)): RssAnon is what the process holds for itself, mapped files aside."""
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return Sample(
        memory=int(status["RssAnon"].split()[0]) / 1024,
        descriptors=sum(1 for _ in (folder / "fd").iterdir()),
        threads=int(status["Threads"]),
        tasks=tasks,
    )


async def tasks_of(address: str) -> int | None:
    """The gauge `vigil_tasks` of the process that serves metrics at host:port; None when it did not answer in time."""
    try:
        return int(await gauge_of(address, "vigil_tasks"))
    except (OSError, TimeoutError):
        return None


async def gauge_of(address: str, name: str, **labels: str) -> float:
    """One value of Prometheus' text format; 0 for a value that is not there yet. Raises OSError, TimeoutError."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(SCRAPE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
        finally:
            writer.close()
    within = ",".join(f'{key}="{value}"' for key, value in labels.items())
    start = f"{name}{{{within}}} " if within else f"{name} "
    found = [line for line in text.splitlines() if line.startswith(start)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@dataclass
class Sampler:
    """Looks at processes, by name, until it is cancelled."""

    pids: Mapping[str, int]
    metrics: Mapping[str, str]
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    async def run(self) -> None:
        """Sample every few seconds. A process that is gone raises FileNotFoundError: nothing may end meanwhile."""
        while True:
            names = list(self.metrics)
            tasks = dict(
                zip(
                    names,
                    await asyncio.gather(*(tasks_of(self.metrics[name]) for name in names)),
                    strict=True,
                )
            )
            for name, pid in self.pids.items():
                self.samples.setdefault(name, []).append(look(pid, tasks.get(name)))
            await asyncio.sleep(INTERVAL_S)

    def verdicts(self) -> list[Verdict]:
        """One for each process and measure. The first third warms up. Raises ValueError for too few samples."""
        found = []
        for name, samples in self.samples.items():
            for measure in ALLOWED:
                values = [value for one in samples if (value := getattr(one, measure)) is not None]
                if values:
                    found.append(verdict(name, measure, values))
        return found


def verdict(process: str, measure: str, values: Sequence[float]) -> Verdict:
    """Judge one series. Raises ValueError for fewer samples than can be judged."""
    if len(values) < LEAST_SAMPLES:
        raise ValueError(f"{process}, {measure}: {len(values)} samples show no trend")
    third = len(values) // THIRDS
    return Verdict(
        process=process,
        measure=measure,
        middle=statistics.median(values[third : 2 * third]),
        last=statistics.median(values[2 * third :]),
        most=max(values),
    )
