"""'What did this pump run at that moment', with proofs, in a log of 10 million entries, beside the bare look-up.

The real service on a log that was built once and is kept (`big_log`): mTLS, the newest checkpoint, every record with
its certificates, promise and inclusion path, the chain of the device's records. Devices and moments are random.
The log's file was read once before, so that the system keeps what its memory holds; then the same is measured when it
keeps nothing, as for questions about what nobody has looked at for months.
"""

import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.bench_evidence import statements
from tests.benchmarks.big_log import BigLog, KeptPki, big_log
from tests.benchmarks.result import Growth, Progress, Result, Row, percentile, split, under
from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE
from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.api.evidence.v1 import evidence_pb2_grpc
from vigil.cli.moment import answer_of
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Decision
from vigil.core.statements.envelope import Statement
from vigil.evidence import store
from vigil.evidence.domain import Scope
from vigil.evidence.moment import read_state
from vigil.evidence.tables import METADATA
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels
from vigil.storage import open_database
from vigil.verify import check_checkpoint
from vigil.verify.moment import Sure, work_out

TITLE = "What a pump ran at a moment, with proofs"

SMALL: Final = 1_000_000
LARGE: Final = 10_000_000
QUICK_SMALL: Final = 20_000
QUICK_LARGE: Final = 200_000
QUESTIONS: Final = 1_000
WARM: Final = 600
COLD: Final = 200
"""Questions asked while none of the log is in memory."""
VERIFIED: Final = 40
"""Answers that are also worked out as a reader does, and must hold."""
SEED: Final = 7


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure both sizes, the larger one beside its floor."""
    sizes = (QUICK_SMALL, QUICK_LARGE) if quick else (SMALL, LARGE)
    logs = [
        big_log(sizes[0], split(progress, 0.0, 0.08)),
        big_log(sizes[1], split(progress, 0.08, 0.8)),
    ]
    small = await _measured(logs[0], split(progress, 0.8, 0.9))
    large = await _measured(logs[1], split(progress, 0.9, 1.0))
    return Result(rows=_rows(large, sizes[1]), parts=_parts(large), growth=_growth(small, large, sizes))


def _rows(figures: dict[str, float], size: int) -> tuple[Row, ...]:
    where = f"in {size:,} entries"
    floor = {
        "floor": figures["bare_ms"],
        "floor_is": "the bare look-up of one row of the index, in the process",
    }
    return (
        Row(
            work=f"a moment of a device with its proofs, {where}, p99",
            figure=figures["moment_p99_ms"],
            unit="ms",
            target=under(5),
            **floor,  # type: ignore[arg-type]
        ),
        Row(
            work="the same, p50",
            figure=figures["moment_p50_ms"],
            unit="ms",
            note=f"{figures['records']:.0f} records and {figures['bytes'] / 1024:.0f} KiB an answer;"
            " who asked what is recorded, durably, before it leaves",
        ),
        Row(
            work="the same when nothing of the log is in memory, p50",
            figure=figures["cold_p50_ms"],
            unit="ms",
        ),
        Row(
            work="the same when nothing of the log is in memory, p99",
            figure=figures["cold_p99_ms"],
            unit="ms",
        ),
        Row(
            work="the reader's part: every signature and proof verified, the facts worked out, p50",
            figure=figures["verified_ms"],
            unit="ms",
        ),
        Row(
            work=f"an inclusion proof and its checkpoint alone, {where}, p50",
            figure=figures["proof_p50_ms"],
            unit="ms",
            target=under(1),
        ),
        Row(work="the same, p99", figure=figures["proof_p99_ms"], unit="ms"),
        Row(work="memory of the service", figure=figures["memory_mb"], unit="MB"),
    )


def _parts(figures: dict[str, float]) -> tuple[str, ...]:
    return (
        f"a call over mTLS that reads nothing (the newest checkpoint): p50 {figures['call_ms']:.2f} ms",
        f"CPU of the service a moment: {figures['moment_cpu_ms']:.2f} ms",
        f"the records chosen and read with their proofs, alone and warm: p50 {figures['read_ms']:.2f} ms",
        (
            f"one statement recorded durably, by a caller who waits: p50 {figures['append_p50_ms']:.2f} ms,"
            f" p99 {figures['append_p99_ms']:.2f} ms"
        ),
        (
            "a row of 600 bytes made durable on this disk, as the record of a question is:"
            f" p50 {figures['durable_p50_ms']:.2f} ms, p99 {figures['durable_p99_ms']:.2f} ms"
        ),
    )


def _growth(small: dict[str, float], large: dict[str, float], sizes: tuple[int, int]) -> tuple[Growth, ...]:
    grown = f"entries in the log, {sizes[0]:,} to {sizes[1]:,}"

    def row(what: str, name: str, unit: str, reading: str) -> Growth:
        return Growth(
            what=f"{grown}: {what}", small=small[name], large=large[name], unit=unit, reading=reading
        )

    return (
        row(
            "a moment with proofs, p50",
            "moment_p50_ms",
            "ms",
            "1.0 is an answer that does not wait for the log",
        ),
        row("a moment with proofs, p99", "moment_p99_ms", "ms", "the same"),
        row("an inclusion proof alone, p50", "proof_p50_ms", "ms", "a path has the tree's height"),
        row(
            "the service's memory, after the questions",
            "memory_mb",
            "MB",
            "1.0 is a log that is not in memory",
        ),
        row("the service's start", "start_s", "s", "1.0 is a start that reads the log's edge and no more"),
    )


async def _measured(log: BigLog, progress: Progress) -> dict[str, float]:
    pki = KeptPki(log.pki, clock=SystemClock())
    path = Path(log.folder) / "evidence" / "evidence.db"
    _read_once(path)
    questions = _questions(log, WARM + QUESTIONS + COLD)
    began = time.perf_counter()
    async with _served(log, pki) as (process, stub):
        figures = {"start_s": time.perf_counter() - began}
        await _moments(stub, questions[:WARM])
        progress(0.4)
        used = process.cpu_seconds()
        times, answers = await _moments(stub, questions[WARM : WARM + QUESTIONS])
        used = process.cpu_seconds() - used
        progress(0.7)
        figures |= {
            "moment_p50_ms": percentile(times, 0.5),
            "moment_p99_ms": percentile(times, 0.99),
            "moment_cpu_ms": used * 1000 / len(times),
            "records": sum(len(one.records) for one in answers) / len(answers),
            "bytes": sum(one.ByteSize() for one in answers) / len(answers),
        }
        figures |= await _alone(stub, log.size)
        figures["memory_mb"] = process.memory_mb()
        figures |= await _recorded(pki, process)
        figures["verified_ms"] = _verified(pki, answers[:: len(answers) // VERIFIED])
    progress(0.9)
    _forget(path)
    async with _served(log, pki) as (_, stub):
        times, _ = await _moments(stub, questions[-COLD:])
        figures |= {"cold_p50_ms": percentile(times, 0.5), "cold_p99_ms": percentile(times, 0.99)}
    figures["bare_ms"] = _bare(log)
    figures["read_ms"] = _read(log, questions[:QUESTIONS])
    figures |= _durable(log)
    progress(1.0)
    return figures


@asynccontextmanager
async def _served(log: BigLog, pki: KeptPki) -> AsyncIterator[tuple[EvidenceProcess, Any]]:
    """The service on a log, and an auditor's stub."""
    # No census of a log that is kept from run to run; what grows it are the records of these very questions. And no
    # audit: most of its entries were made without a signature of their own, and each of them would be found.
    settings = {"census_seconds": 86_400.0, "audit_entries_per_second": 0.01}
    process = EvidenceProcess(pki, log.folder, settings=settings)
    await process.start()
    try:
        reader = pki.person("p-reader", "auditor")
        channels = Channels(tls=reader.tls_files, trust_domain=pki.trust_domain, clock=SystemClock())
        yield (
            process,
            evidence_pb2_grpc.EvidenceReadServiceStub(channels.service(process.address, "evidence")),
        )
        await channels.close()
    finally:
        await process.stop()


def _read_once(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def _forget(path: Path) -> None:
    """Have the system keep nothing of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _questions(log: BigLog, count: int) -> list[pb.GetStateAtRequest]:
    chance = random.Random(SEED)
    devices = log.asked()
    return [
        pb.GetStateAtRequest(device_id=chance.choice(devices), time_ms=chance.randrange(log.began, log.ended))
        for _ in range(count)
    ]


async def _moments(stub: Any, questions: list[pb.GetStateAtRequest]) -> tuple[list[float], list[pb.StateAt]]:
    answers: list[pb.StateAt] = []

    async def ask(question: pb.GetStateAtRequest) -> None:
        answers.append(await stub.GetStateAt(question))

    return await _timed(ask, questions), answers


async def _timed(ask: Callable[[Any], Awaitable[None]], questions: list[Any]) -> list[float]:
    """Milliseconds of each, one after the other."""
    times = []
    for question in questions:
        began = time.perf_counter()
        await ask(question)
        times.append((time.perf_counter() - began) * 1000)
    return times


async def _alone(stub: Any, size: int) -> dict[str, float]:
    chance = random.Random(SEED)
    proofs = [pb.GetInclusionProofRequest(index=chance.randrange(size)) for _ in range(QUESTIONS + WARM)]
    calls = [pb.GetCheckpointRequest()] * QUESTIONS
    times = (await _timed(stub.GetInclusionProof, proofs))[WARM:]
    return {
        "proof_p50_ms": percentile(times, 0.5),
        "proof_p99_ms": percentile(times, 0.99),
        "call_ms": percentile(await _timed(stub.GetCheckpoint, calls), 0.5),
    }


async def _recorded(pki: KeptPki, process: EvidenceProcess) -> dict[str, float]:
    """Statements appended one after the other, as the record of each question is."""
    tls = pki.service("policy").tls_files
    channels = Channels(tls=tls, trust_domain=pki.trust_domain, clock=SystemClock())
    channel = channels.service(process.address, "evidence")
    made = statements(pki, WARM, lambda _: None)
    async with EvidenceAppender(channel=channel, entropy=os.urandom) as appender:

        async def append(statement: Statement[Decision]) -> None:
            await appender.append(statement.data, organization_id=ORGANIZATION, site_id=SITE)

        times = (await _timed(append, made))[WARM // 2 :]
    await channels.close()
    return {"append_p50_ms": percentile(times, 0.5), "append_p99_ms": percentile(times, 0.99)}


def _read(log: BigLog, questions: list[pb.GetStateAtRequest]) -> float:
    """What the log reads for an answer, in this process with nothing around it: median (ms)."""
    database = open_database(
        Path(log.folder) / "evidence" / "evidence.db",
        metadata=METADATA,
        migrations="vigil.evidence.migrations",
    )
    everything = Scope("", frozenset(), siteless=True, everything=True)
    times = []
    try:
        checkpoint = database.read_now(store.load_checkpoint)
        assert checkpoint is not None
        for one in questions:
            began = time.perf_counter()
            database.read_now(
                lambda connection: read_state(
                    connection,
                    f"device/{one.device_id}",  # noqa: B023 - called at once
                    time=one.time_ms,  # noqa: B023 - called at once
                    as_of=0,
                    checkpoint=checkpoint,
                    scope=everything,
                )
            )
            times.append((time.perf_counter() - began) * 1000)
    finally:
        database.close()
    return percentile(times[len(times) // 2 :], 0.5)


def _verified(pki: KeptPki, answers: list[pb.StateAt]) -> float:
    """Work answers out as a reader does. Raises AssertionError where one does not hold."""
    times = []
    for one in answers:
        began = time.perf_counter()
        tree = check_checkpoint(
            one.checkpoint.note, verifier_key=one.checkpoint.verifier_key, trust_domain=pki.trust_domain
        )
        moment = work_out(answer_of(one), tree=tree, verifier=pki.verifier)
        times.append((time.perf_counter() - began) * 1000)
        assert moment.holds, [
            finding for seen in moment.seen for finding in seen.findings if not finding.holds
        ]
        assert moment.sure["firmware"] is not Sure.NO_EVIDENCE
    return percentile(times, 0.5)


def _durable(log: BigLog) -> dict[str, float]:
    """One small row made durable on the log's own disk, again and again, with nothing around it (ms)."""
    path = Path(log.folder) / "durable.db"
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS one (data BLOB)")
        times = []
        for _ in range(QUESTIONS):
            began = time.perf_counter()
            connection.execute("INSERT INTO one VALUES (randomblob(600))")
            times.append((time.perf_counter() - began) * 1000)
    finally:
        connection.close()
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    return {"durable_p50_ms": percentile(times, 0.5), "durable_p99_ms": percentile(times, 0.99)}


def _bare(log: BigLog) -> float:
    """One row of the index by its key, with nothing around it: median of many (ms)."""
    path = Path(log.folder) / "evidence" / "evidence.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    query = (
        "SELECT idx FROM subject_time WHERE subject = ? AND kind = 'result' AND time <= ?"
        " ORDER BY time DESC, idx DESC LIMIT 1"
    )
    times = []
    for one in _questions(log, QUESTIONS):
        began = time.perf_counter()
        connection.execute(query, (f"device/{one.device_id}", one.time_ms)).fetchone()
        times.append((time.perf_counter() - began) * 1000)
    connection.close()
    return percentile(times, 0.5)
