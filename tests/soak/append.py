"""Statements appended to a log that is killed at random, again and again: none lost, none doubled.

64 writers append over mTLS to the service in a process of its own, over SQLite or PostgreSQL; it is killed with SIGKILL
at random moments and started again on the same database. A writer whose answer did not come sends the same bytes again,
as every service does. At the end everything that was acknowledged must stand in the log where the acknowledgement said,
once, and the log's own tree must lead to its newest checkpoint.
"""

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.benchmarks.result import percentile
from tests.reliability import report
from tests.support.databases import Place, PostgresPlace, SqlitePlace
from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.support.postgres import PostgresServer
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refused
from vigil.evidence.sequencer import check_log
from vigil.evidence.tables import METADATA
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels
from vigil.storage import open_database

WRITERS: Final = 64
DEVICES: Final = 2_000
LIFE_S: Final = (0.3, 4.0)
"""How long the service lives before it is killed."""
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass
class Found:
    """What came of it."""

    appends: int
    kind: str = "sqlite"
    """Of the log's database."""
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    """Index by statement digest."""
    kills: int = 0
    again: int = 0
    """Appends whose answer did not come, sent again."""
    seconds: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def run(appends: int, progress: Callable[[str, float], None], *, kind: str = "sqlite") -> Found:
    """Append so many statements; what does not hold stands in ``wrong``. ``kind``: of the log's database."""
    found = Found(appends, kind)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vigil-append-")))
        pki = TestPki(folder)
        server = stack.enter_context(PostgresServer.running()) if kind == "postgresql" else None
        place = SqlitePlace(folder / "evidence" / "evidence.db") if server is None else PostgresPlace(server)
        process = EvidenceProcess(
            pki, folder, settings={"database_url": "" if server is None else str(place.at)}
        )
        await process.start()
        began = time.monotonic()
        try:
            await _appended(pki, process, found, progress)
        finally:
            await process.stop()
        found.seconds = time.monotonic() - began
        progress("reading the log", 0.98)
        judge(place, found)
    progress("appended", 1.0)
    return found


async def _appended(
    pki: TestPki, process: EvidenceProcess, found: Found, progress: Callable[[str, float], None]
) -> None:
    channels = Channels(
        tls=pki.service("policy").tls_files, trust_domain=pki.trust_domain, clock=SystemClock()
    )
    writer = HoldWriter(pki.issue(Kind.PERSON, "p-holder", roles=("safety",)))
    left = iter(range(found.appends))

    async def write(appender: EvidenceAppender) -> None:
        for number in left:
            statement = writer.hold(_device(number % DEVICES), f"{number}")
            while True:
                try:
                    recorded = await appender.append(
                        statement.data, organization_id=ORGANIZATION, site_id=SITE, timeout=10.0
                    )
                except Refused as refusal:
                    if refusal.reason is not Reason.EVIDENCE_UNAVAILABLE:
                        raise
                    found.again += 1
                    await asyncio.sleep(random.uniform(0.02, 0.2))
                else:
                    break
            found.acknowledged[statement.digest] = recorded.index
            if not number % 500:
                progress("appending", 0.95 * number / found.appends)

    async with EvidenceAppender(
        channel=channels.service(process.address, "evidence"), entropy=os.urandom
    ) as appender:
        killing = asyncio.create_task(_kill_again_and_again(process, found))
        try:
            await asyncio.gather(*(write(appender) for _ in range(WRITERS)))
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
    if not process.running:
        await process.start()
    await channels.close()


async def _kill_again_and_again(process: EvidenceProcess, found: Found) -> None:
    while True:
        await asyncio.sleep(random.uniform(*LIFE_S))
        await process.kill()
        assert not process.running
        found.kills += 1
        began = time.monotonic()
        await process.start()
        found.recoveries.append(time.monotonic() - began)


def judge(place: Place, found: Found) -> None:
    """Read the log's own database, with the service gone."""
    rows = place.rows("SELECT digest, idx FROM entry ORDER BY idx")
    if [index for _, index in rows] != list(range(len(rows))):
        found.wrong.append("the log's numbers have gaps")
    stored = dict(rows)
    if len(stored) != len(rows):
        found.wrong.append(f"{len(rows) - len(stored)} statements are in the log twice")
    if not found.kills or not found.again:
        found.wrong.append("no kill met an append under way")
    missing = [digest for digest, index in found.acknowledged.items() if stored.get(digest) != index]
    if missing:
        found.wrong.append(f"{len(missing)} acknowledged statements are not where they were said to be")
    if len(found.acknowledged) != found.appends:
        found.wrong.append(f"{found.appends - len(found.acknowledged)} statements were never acknowledged")
    if len(rows) != found.appends:
        found.wrong.append(f"the log holds {len(rows)} entries of {found.appends} statements")
    database = open_database(place.at, metadata=METADATA, migrations="vigil.evidence.migrations")
    try:
        # Raises for a tree that does not lead to the newest checkpoint.
        database.read_now(check_log)
    finally:
        database.close()


def _device(number: int) -> str:
    return "dev-" + "".join(LETTERS[number >> (5 * place) & 31] for place in range(16))


def record(found: Found, docs: Path = report.DOCS) -> None:
    """Write the section "append", or "append-postgresql"."""
    elsewhere = found.kind == "postgresql"
    report.record(
        "append-postgresql" if elsewhere else "append",
        title=f"Acknowledged appends under kill -9{', over PostgreSQL' if elsewhere else ''}",
        command=f"make soak APPENDS={found.appends}{' DATABASE=postgresql' if elsewhere else ''}",
        words=(
            f"{WRITERS} writers appended {found.appends:,} statements while the evidence service was killed "
            f"{found.kills:,} times at random moments. "
            + (f"**{'; '.join(found.wrong)}.**" if found.wrong else "None was lost, none is there twice.")
        ),
        table=[
            {
                "acknowledged": len(found.acknowledged),
                "kills": found.kills,
                "sent again": found.again,
                "lost or doubled": len(found.wrong),
                "back after a kill, p50 (s)": percentile(found.recoveries, 0.5) if found.recoveries else 0.0,
                "seconds": found.seconds,
            }
        ],
        docs=docs,
    )
