"""Statements appended durably by 64 writers, beside bare SQLite rows and bare `cwt` verifies of the same run.

Everything is real: the service in a process of its own, mTLS, signatures of numbered statements by a signer,
group commits with synchronous=FULL. The floors are the smaller of (a) rows of the same size in commits of 100
with nothing else done, and (b) signature verifications by the `cwt` library, one core, nothing else done.
"""

import asyncio
import itertools
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import cwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.benchmarks import append_parts, parts
from tests.benchmarks.result import Growth, Progress, Result, Row, percentile, ratio_at_least, under
from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE, TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core import cose
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Answer, Decision
from vigil.core.statements.envelope import Scribe, Statement
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels

TITLE = "Statements appended to the log, durably"

WRITERS = 64
DEVICES = 5_000
STATEMENTS = 24_000
"""Of these a sixth warms caches and connections."""
QUICK_STATEMENTS = 6_000
FLOOR_SECONDS = 1.0
ROWS_A_COMMIT = 100
TIMES = 10
"""How many times longer the log of the second measurement of growth is."""
PROOFS = 300
WINDOW = 1_500
"""Appends that a rate of growth is taken over, and no more than the small log has."""


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure beside the smaller floor of this very run."""
    figures, found = await _figures(QUICK_STATEMENTS if quick else STATEMENTS, progress)
    rows, verifies = figures["sqlite_rows_per_s"], figures["cwt_verifies_per_s"]
    served, writing = figures["service_cpu_us_per_append"], figures["writers_cpu_us_per_append"]
    smaller = "SQLite rows/s in commits of 100" if rows < verifies else "`cwt` verifies/s of one core"
    return Result(
        rows=(
            Row(
                work="64 writers",
                figure=figures["appends_per_s"],
                unit="appends/s",
                floor=min(rows, verifies),
                floor_is=f"the smaller floor, {smaller}",
                target=ratio_at_least(0.4),
                note=f"{served:.0f} µs of CPU in the service for each, of which {1e6 / verifies:.0f} are its verify;"
                f" {writing:.0f} µs beside it in the writers' own process",
            ),
            Row(work="64 writers, p50", figure=figures["append_p50_ms"], unit="ms", target=under(20)),
            Row(work="64 writers, p99", figure=figures["append_p99_ms"], unit="ms"),
        ),
        parts=(
            f"the other floor, for comparison: {max(rows, verifies):,.0f} a second",
            f"0.4 x the floor leaves {1e6 / (0.4 * min(rows, verifies)):.0f} µs for everything on one core",
            *parts.shown("an append", found, total_ms=served / 1000),
        ),
        growth=_growth(figures),
    )


def _growth(figures: dict[str, float]) -> tuple[Growth, ...]:
    sizes = f"entries in the log, {figures['small_log']:,.0f} to {figures['large_log']:,.0f}"
    return (
        Growth(
            what=f"{sizes}: the service's CPU for an append, {WRITERS} writers",
            small=figures["small_append_us"],
            large=figures["large_append_us"],
            unit="µs",
            reading=f"over the last {figures['window']:,.0f} appends before each size, at"
            f" {figures['small_appends_per_s']:,.0f} and {figures['large_appends_per_s']:,.0f} a second; 1.0 is a log"
            " that costs no more when it is long",
        ),
        Growth(
            what=f"{sizes}: an inclusion proof and its checkpoint over mTLS, 1 caller, p50",
            small=figures["small_proof_ms"],
            large=figures["large_proof_ms"],
            unit="ms",
            reading=f"a path has the tree's height: {figures['small_path']:.0f} hashes become"
            f" {figures['large_path']:.0f}, beside one call over mTLS",
        ),
    )


async def _figures(count: int, progress: Progress) -> tuple[dict[str, float], tuple[parts.Part, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        pki = TestPki(Path(folder))
        made = statements(pki, count, progress)
        size, data = len(made[0].data), made[0].data
        signers = pki.signer_credential("decision"), pki.signer_credential("recorded")
        alone = [one.data for one in made[: append_parts.SHARING * append_parts.COMMITS]]
        found = await asyncio.to_thread(append_parts.measure, *signers, alone)
        before = _rows(Path(folder), size), _verifies(pki, data)
        progress(0.5)
        process = EvidenceProcess(pki, Path(folder))
        await process.start()
        try:
            figures = await _appends(pki, process, [statement.data for statement in made], progress)
        finally:
            await process.stop()
        # Half of the floors before and half after: others use this machine too.
        after = _rows(Path(folder), size), _verifies(pki, data)
    figures["sqlite_rows_per_s"] = (before[0] + after[0]) / 2
    figures["cwt_verifies_per_s"] = (before[1] + after[1]) / 2
    progress(1.0)
    return figures, found


def _device(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "dev-" + "".join(letters[(number >> 5 * place) & 31] for place in range(16))


def statements(pki: TestPki, count: int, progress: Progress) -> list[Statement[Decision]]:
    signer = pki.signer_credential("decision")
    scribe = Scribe(
        signer=signer.signer,
        issuer=signer.issuer_name,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=True,
    )
    made = []
    for number in range(count):
        device = _device(number % DEVICES)
        body = Decision(
            command=os.urandom(32),
            intent=os.urandom(32),
            device=device,
            answer=Answer.ALLOW,
            input=os.urandom(32),
            bundle="revision-1",
            decided_at=1_790_000_000_000 + number,
            nonce=os.urandom(16),
            profile=os.urandom(32),
            boot_count=12,
            log_size=4_711,
            epoch=17,
            era=0,
            mode="online",
            apply_not_after=1_790_000_060_000,
        )
        made.append(scribe.sign(body, subject=f"device/{device}"))
        if not number % 1_000:
            progress(0.4 * number / count)
    return made


def _rows(folder: Path, size: int) -> float:
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    data, rows = os.urandom(size), 0
    began = time.perf_counter()
    while time.perf_counter() - began < FLOOR_SECONDS:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO record (data) VALUES (?)", [(data,)] * ROWS_A_COMMIT)
        connection.execute("COMMIT")
        rows += ROWS_A_COMMIT
    rate = rows / (time.perf_counter() - began)
    connection.close()
    return rate


def _verifies(pki: TestPki, data: bytes) -> float:
    public = pki.signer_credential("decision").identity.public_key
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = cwt.COSEKey.from_pem(pem, kid="1", alg="ES256")
    context = cwt.COSE.new(alg_auto_inclusion=False, kid_auto_inclusion=False, verify_kid=False)
    bare = b"\xd2" + cose.without_chain(data)
    context.decode(bare, key)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < FLOOR_SECONDS:
        for _ in range(50):
            context.decode(bare, key)
        done += 50
    return done / (time.perf_counter() - began)


async def _appends(
    pki: TestPki, process: EvidenceProcess, statements: list[bytes], progress: Progress
) -> dict[str, float]:
    channels = Channels(
        tls=pki.service("policy").tls_files, trust_domain=pki.trust_domain, clock=SystemClock()
    )
    channel = channels.service(process.address, "evidence")
    latencies: list[float] = []
    left = iter(statements)
    figures: dict[str, float] = {}

    async def write(appender: EvidenceAppender, count: int) -> None:
        for data in itertools.islice(left, count):
            began = time.perf_counter()
            await appender.append(
                data, subjects=(f"site/{SITE}",), organization_id=ORGANIZATION, site_id=SITE
            )
            latencies.append(time.perf_counter() - began)

    async def write_all(appender: EvidenceAppender, count: int) -> None:
        """So many in all; each writer takes its part, the first ones what is over."""
        shares = [count // WRITERS + (place < count % WRITERS) for place in range(WRITERS)]
        await asyncio.gather(*(write(appender, share) for share in shares))

    async def grown(appender: EvidenceAppender, name: str, size: int) -> None:
        """The last so many appends before the log has this size, and proofs in it."""
        began, served = time.perf_counter(), process.cpu_seconds()
        await write_all(appender, window)
        figures[f"{name}_appends_per_s"] = window / (time.perf_counter() - began)
        figures[f"{name}_append_us"] = (process.cpu_seconds() - served) * 1e6 / window
        figures.update(await _proofs(pki, process, name, size))

    count = len(statements)
    small, warm = count // TIMES, count // 6
    figures["window"] = window = min(WINDOW, small * 2 // 3)
    async with EvidenceAppender(channel=channel, entropy=os.urandom) as appender:
        await write_all(appender, small - window)
        await grown(appender, "small", small)
        await write_all(appender, warm - small)
        latencies.clear()
        progress(0.6)
        began, used, served = time.perf_counter(), time.process_time(), process.cpu_seconds()
        await write_all(appender, count - warm - window)
        seconds = time.perf_counter() - began
        used, served = time.process_time() - used, process.cpu_seconds() - served
        measured = list(latencies)
        await grown(appender, "large", count)
    await channels.close()
    progress(0.9)
    return figures | {
        "appends_per_s": len(measured) / seconds,
        "append_p50_ms": percentile(measured, 0.5) * 1000,
        "append_p99_ms": percentile(measured, 0.99) * 1000,
        "service_cpu_us_per_append": served * 1e6 / len(measured),
        "writers_cpu_us_per_append": used * 1e6 / len(measured),
    }


async def _proofs(pki: TestPki, process: EvidenceProcess, name: str, size: int) -> dict[str, float]:
    """Inclusion proofs of entries all over the log as it stands, one after the other, as a person asks for them."""
    reader = pki.person("p-reader", "technician")
    channels = Channels(tls=reader.tls_files, trust_domain=pki.trust_domain, clock=SystemClock())
    stub: Any = evidence_pb2_grpc.EvidenceReadServiceStub(channels.service(process.address, "evidence"))
    async with asyncio.timeout(60):
        while True:  # until a checkpoint is as long as the log
            newest = await stub.GetInclusionProof(evidence_pb2.GetInclusionProofRequest(index=0))
            if newest.size >= size:
                break
            await asyncio.sleep(0.1)
    times = []
    for number in range(PROOFS + PROOFS // 10):
        asked = evidence_pb2.GetInclusionProofRequest(index=number * 7_919 % size, size=newest.size)
        began = time.perf_counter()
        await stub.GetInclusionProof(asked)
        times.append((time.perf_counter() - began) * 1000)
    await channels.close()
    measured = times[PROOFS // 10 :]
    return {
        f"{name}_log": float(newest.size),
        f"{name}_path": float(len(newest.path)),
        f"{name}_proof_ms": percentile(measured, 0.5),
    }
