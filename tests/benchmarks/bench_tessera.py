"""The log beside Tessera's on POSIX files, from 64 and from 1,024 writers that each wait for their entry's index.

Tessera is called in its own process (`tessera/main.go`, built by Go where there is one); its entries are random bytes
that nobody signed. Ours come over mTLS from another process, each is a signed statement that is verified, numbered
among its subjects' records and durable in SQLite with synchronous=FULL before it is answered.
"""

import asyncio
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.benchmarks import bench_evidence
from tests.benchmarks.result import Progress, Result, Row, percentile, ratio_at_least, split
from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE, TestPki
from vigil.core.clock import SystemClock
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels

TITLE = "Beside Tessera's log on POSIX files"

WRITERS: Final = (64, 1_024)
SECONDS: Final = 8
QUICK_SECONDS: Final = 3
STATEMENTS: Final = 24_000
QUICK_STATEMENTS: Final = 8_000
SOURCE: Final = Path(__file__).parent / "tessera"
PATIENCE_S: Final = 300.0
FEW: Final = (
    "few writers do not fill a batch of Tessera's, which then waits a second; ours is written as soon as the one "
    "before it is durable"
)
MANY: Final = (
    "many writers fill its batches, and then an entry costs it a hash and its share of a file; ours costs a message "
    "over mTLS, a verified signature, its numbers among its subjects' records and its share of a transaction"
)


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure both in turn; without Go, ours alone."""
    with tempfile.TemporaryDirectory() as folder:
        program = await _built(Path(folder))
        progress(0.1)
        count = QUICK_STATEMENTS if quick else STATEMENTS
        ours = await _ours(Path(folder), count, split(progress, 0.1, 0.8))
        theirs: dict[int, dict[str, float]] = {}
        for writers in WRITERS:
            if program is not None:
                place = Path(folder) / f"log-{writers}"
                theirs[writers] = await _theirs(program, place, writers, QUICK_SECONDS if quick else SECONDS)
    progress(1.0)
    return Result(
        rows=tuple(_row(writers, ours[writers], theirs.get(writers)) for writers in WRITERS),
        parts=_parts(program),
    )


def _row(writers: int, ours: dict[str, float], theirs: dict[str, float] | None) -> Row:
    note = f"p50 {ours['p50_ms']:.0f} ms, p99 {ours['p99_ms']:.0f} ms"
    if theirs is not None:
        note += f"; Tessera's {theirs['p50_ms']:.0f} and {theirs['p99_ms']:.0f} ms"
    return Row(
        work=f"{writers:,} writers",
        figure=ours["appends"] / ours["seconds"],
        unit="appends/s",
        floor=None if theirs is None else theirs["appends"] / theirs["seconds"],
        floor_is="Tessera 1.0 on POSIX files, in its own process, nothing signed or verified",
        target=ratio_at_least(1.0),
        note=note,
    )


def _parts(program: Path | None) -> tuple[str, ...]:
    if program is None:
        return ("there is no Go on this machine: Tessera was not measured",)
    return (FEW, MANY)


async def _built(folder: Path) -> Path | None:
    """The program, or None where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    program = folder / "tessera"
    building = await asyncio.create_subprocess_exec(
        go, "build", "-o", str(program), ".", cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0"}
    )
    async with asyncio.timeout(PATIENCE_S):
        if await building.wait() != 0:
            raise RuntimeError("Tessera's side of the benchmark could not be built")
    return program


async def _theirs(program: Path, folder: Path, writers: int, seconds: int) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        str(program),
        f"-folder={folder}",
        f"-writers={writers}",
        f"-for={seconds}s",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"Tessera's side of the benchmark ended with {process.returncode}")
    figures: dict[str, float] = json.loads(out)
    return figures


async def _ours(folder: Path, count: int, progress: Progress) -> dict[int, dict[str, float]]:
    pki = TestPki(folder)
    statements = iter(
        [one.data for one in bench_evidence.statements(pki, 2 * count, split(progress, 0, 0.5))]
    )
    process = EvidenceProcess(pki, folder)
    await process.start()
    try:
        tls: Any = pki.service("policy").tls_files
        channels = Channels(tls=tls, trust_domain=pki.trust_domain, clock=SystemClock())
        channel = channels.service(process.address, "evidence")
        async with EvidenceAppender(channel=channel, entropy=os.urandom) as appender:
            found = {}
            for place, writers in enumerate(WRITERS, 1):
                found[writers] = await _written(appender, list(itertools.islice(statements, count)), writers)
                progress(0.5 + 0.5 * place / len(WRITERS))
        await channels.close()
    finally:
        await process.stop()
    return found


async def _written(appender: EvidenceAppender, statements: list[bytes], writers: int) -> dict[str, float]:
    """All of them, from so many writers; the first sixth warms caches and connections."""
    warm = len(statements) // 6
    latencies: list[float] = []

    async def write(left: Any) -> None:
        for data in left:
            began = time.perf_counter()
            await appender.append(
                data, subjects=(f"site/{SITE}",), organization_id=ORGANIZATION, site_id=SITE
            )
            latencies.append(time.perf_counter() - began)

    seconds = 0.0
    for part in (statements[:warm], statements[warm:]):
        latencies.clear()
        left, began = iter(part), time.perf_counter()
        await asyncio.gather(*(write(left) for _ in range(writers)))
        seconds = time.perf_counter() - began
    return {
        "appends": float(len(latencies)),
        "seconds": seconds,
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
    }
