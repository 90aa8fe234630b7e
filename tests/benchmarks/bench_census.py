"""A census of every subject, beside the appends that go on meanwhile, with 5,000 subjects and with 50,000.

The real service on a log in which every subject has a record already. It counts every other second while writers
append statements about random subjects; a census's time is the service's own figure. The floor is the same tree hashed
and written at once, by one thread that does nothing else.
"""

import asyncio
import itertools
import os
import random
import re
import socket
import sqlite3
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.result import Growth, Progress, Result, Row, percentile, split, under
from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.unit.evidence.grown import grow
from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.api.evidence.v1 import evidence_pb2_grpc
from vigil.core.census import ITEM_BYTES, PAGE_BYTES, page_root
from vigil.core.clock import SystemClock
from vigil.core.merkle import tree_root
from vigil.core.statements.bodies import Hold, HoldAction
from vigil.core.statements.envelope import Scribe
from vigil.evidence.tables import METADATA
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels
from vigil.storage import open_database

TITLE = "A census of all subjects"

SMALL: Final = 5_000
LARGE: Final = 50_000
WRITERS: Final = 16
INTERVAL_S: Final = 2
CENSUSES: Final = 6
QUICK_CENSUSES: Final = 2
PACE_S: Final = 0.02
"""Each writer's pause between two appends: a log that is busy and not full."""
PROOFS: Final = 200
SEED: Final = 11


@dataclass(slots=True)
class Figures:
    """What one size came to; times in seconds, of appends with when they began."""

    first_s: float = 0.0
    quiet: list[float] = field(default_factory=list)
    busy: list[tuple[float, float]] = field(default_factory=list)
    appends: list[tuple[float, float]] = field(default_factory=list)
    proofs: list[float] = field(default_factory=list)
    proof_bytes: int = 0
    memory_mb: float = 0.0
    floor_s: float = 0.0

    def during(self, *, census: bool) -> list[float]:
        """Milliseconds of the appends that a census met, or that none did."""
        return [
            took * 1000
            for began, took in self.appends
            if any(start - took <= began <= end for start, end in self.busy) is census
        ]


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure both sizes."""
    count = QUICK_CENSUSES if quick else CENSUSES
    small = await _measured(SMALL, count, split(progress, 0.0, 0.3))
    large = await _measured(LARGE, count, split(progress, 0.3, 1.0))
    return Result(rows=_rows(large), parts=_parts(large), growth=_growth(small, large))


def _rows(figures: Figures) -> tuple[Row, ...]:
    took = [end - start for start, end in figures.busy]
    return (
        Row(
            work=f"a census of {LARGE:,} subjects, p50",
            figure=percentile(figures.quiet, 0.5),
            unit="s",
            floor=figures.floor_s,
            floor_is="the same tree hashed and written at once, by one thread",
            target=under(2),
        ),
        Row(
            work=f"the same while {WRITERS} writers append, p50",
            figure=percentile(took, 0.5),
            unit="s",
            target=under(2),
        ),
        Row(
            work="an append that a census meets, p99",
            figure=percentile(figures.during(census=True), 0.99),
            unit="ms",
            floor=percentile(figures.during(census=False), 0.99),
            floor_is="an append that none meets, of the same writers",
        ),
        Row(
            work="the same, p50",
            figure=percentile(figures.during(census=True), 0.5),
            unit="ms",
            floor=percentile(figures.during(census=False), 0.5),
            floor_is="an append that none meets, of the same writers",
        ),
        Row(
            work="a subject's proof of completeness over mTLS, p50",
            figure=percentile(figures.proofs, 0.5) * 1000,
            unit="ms",
            note=f"{figures.proof_bytes / 1024:.1f} KiB, the census's own record with it",
        ),
    )


def _parts(figures: Figures) -> tuple[str, ...]:
    return (
        f"the first census, from every leaf of the log: {figures.first_s:.2f} s",
        f"{len(figures.during(census=True)):,} appends met a census and {len(figures.during(census=False)):,} none",
    )


def _growth(small: Figures, large: Figures) -> tuple[Growth, ...]:
    what = f"subjects, {SMALL:,} to {LARGE:,}"
    return (
        Growth(
            what=f"{what}: a census, p50",
            small=percentile(small.quiet, 0.5),
            large=percentile(large.quiet, 0.5),
            unit="s",
            reading="10 is a census that costs as much for each subject, however many there are",
        ),
        Growth(
            what=f"{what}: an append that a census meets, p99",
            small=percentile(small.during(census=True), 0.99),
            large=percentile(large.during(census=True), 0.99),
            unit="ms",
            reading="1.0 is an append that does not notice how much is counted",
        ),
        Growth(
            what=f"{what}: a subject's proof, p50",
            small=percentile(small.proofs, 0.5) * 1000,
            large=percentile(large.proofs, 0.5) * 1000,
            unit="ms",
            reading="a proof reads one page of 256 subjects and the names of the others",
        ),
        Growth(
            what=f"{what}: the service's memory after the censuses",
            small=small.memory_mb,
            large=large.memory_mb,
            unit="MB",
            reading="a census holds what is new, not what is there",
        ),
    )


async def _measured(subjects: int, count: int, progress: Progress) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki = TestPki(folder)
        _build(pki, folder, subjects)
        progress(0.2)
        metrics = _free_port()
        settings = {"census_seconds": str(INTERVAL_S), "metrics_listen": f"127.0.0.1:{metrics}"}
        process = EvidenceProcess(pki, folder, settings=settings)
        figures = Figures(floor_s=_floor(folder, subjects))
        await process.start()
        try:
            watch = _Watch(f"http://127.0.0.1:{metrics}/metrics")
            await _censuses(pki, process, watch, figures, subjects=subjects, count=count, progress=progress)
            figures.memory_mb = process.memory_mb()
        finally:
            await process.stop()
    progress(1.0)
    return figures


def _build(pki: TestPki, folder: Path, subjects: int) -> None:
    database = open_database(
        folder / "evidence" / "evidence.db", metadata=METADATA, migrations="vigil.evidence.migrations"
    )
    grow(database, pki, count=subjects, clock=SystemClock())
    database.close()


@dataclass(slots=True)
class _Watch:
    """The service's own figures of its newest census."""

    address: str
    size: float = 0.0

    async def next(self) -> tuple[float, float]:
        """Wait for the next census; answers when it ended and how long it took, in seconds."""
        while True:
            found = await asyncio.to_thread(self._read)
            if found["size"] != self.size:
                self.size = found["size"]
                return time.perf_counter(), found["seconds"]
            await asyncio.sleep(0.02)

    def _read(self) -> dict[str, float]:
        with urllib.request.urlopen(self.address, timeout=10) as answer:
            text = answer.read().decode()
        return {
            name: float(re.search(rf"^vigil_evidence_census_{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]
            for name in ("size", "seconds")
        }


async def _censuses(
    pki: TestPki,
    process: EvidenceProcess,
    watch: _Watch,
    figures: Figures,
    *,
    subjects: int,
    count: int,
    progress: Progress,
) -> None:
    _, figures.first_s = await watch.next()
    progress(0.4)
    channels = Channels(
        tls=pki.service("policy").tls_files, trust_domain=pki.trust_domain, clock=SystemClock()
    )
    channel = channels.service(process.address, "evidence")
    async with EvidenceAppender(channel=channel, entropy=os.urandom) as appender:
        holds = _holds(pki, subjects)
        for place in range(count):
            await appender.append(next(holds), organization_id=ORGANIZATION, site_id=SITE)
            figures.quiet.append((await watch.next())[1])
            progress(0.4 + 0.2 * place / count)
        writing = [asyncio.create_task(_write(appender, holds, figures)) for _ in range(WRITERS)]
        await watch.next()
        figures.appends.clear()
        for place in range(count):
            ended, took = await watch.next()
            figures.busy.append((ended - took, ended))
            progress(0.6 + 0.3 * place / count)
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    await channels.close()
    await _proofs(pki, process, figures, subjects)


async def _write(appender: EvidenceAppender, holds: Any, figures: Figures) -> None:
    while True:
        data = next(holds)
        began = time.perf_counter()
        await appender.append(data, organization_id=ORGANIZATION, site_id=SITE)
        figures.appends.append((began, time.perf_counter() - began))
        await asyncio.sleep(PACE_S)


def _holds(pki: TestPki, subjects: int) -> Any:
    """Statements about random subjects that have records, without end."""
    person = pki.person("p-safety", "safety")
    scribe = Scribe(
        signer=person.signer,
        issuer=person.issuer_name,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=False,
    )
    chance = random.Random(SEED)
    for _ in itertools.count():
        device = f"d-{chance.randrange(subjects)}"
        yield scribe.sign(Hold(device, HoldAction.PLACE, ""), subject=f"device/{device}").data


async def _proofs(pki: TestPki, process: EvidenceProcess, figures: Figures, subjects: int) -> None:
    channels = Channels(
        tls=pki.person("p-auditor", "auditor", organization="operator").tls_files,
        trust_domain=pki.trust_domain,
        clock=SystemClock(),
    )
    stub: Any = evidence_pb2_grpc.EvidenceReadServiceStub(channels.service(process.address, "evidence"))
    chance = random.Random(SEED)
    for place in range(PROOFS):
        request = pb.GetSubjectProofRequest(subject=f"device/d-{chance.randrange(subjects)}")
        began = time.perf_counter()
        proof = await stub.GetSubjectProof(request)
        if place >= PROOFS // 4:
            figures.proofs.append(time.perf_counter() - began)
        figures.proof_bytes = proof.ByteSize()
    await channels.close()


def _floor(folder: Path, subjects: int) -> float:
    data = os.urandom(subjects * ITEM_BYTES)
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE page (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    began = time.perf_counter()
    pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
    tree_root([page_root(page) for page in pages])
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO page (data) VALUES (?)", [(page,) for page in pages])
    connection.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return took


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
