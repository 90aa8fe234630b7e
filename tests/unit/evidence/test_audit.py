"""The auditor on a real log: whole ones pass, and each row that is rewritten behind the service's back is found."""

import asyncio
import os

import pytest
from prometheus_client import CollectorRegistry

from tests.support.databases import SqlitePlace
from tests.unit.evidence.conftest import DEVICE, Log, World, submission
from vigil.evidence.audit import Auditor, Finding
from vigil.evidence.metrics import AuditMetrics

SIZE = 520
"""Two full tiles and a part of one; a subtree above a tile."""


class Audited:
    def __init__(self, world: World, log: Log) -> None:
        self.world = world
        self.log = log
        self.registry = CollectorRegistry()
        self.auditor = self.made()

    def made(self) -> Auditor:
        return Auditor(
            database=self.log.database,
            verifier=lambda: self.world.verifier,
            rate=1e9,
            clock=self.world.clock,
            entropy=os.urandom,
            metrics=AuditMetrics(self.registry if not hasattr(self, "auditor") else CollectorRegistry()),
        )

    async def findings(self) -> list[Finding]:
        """What one pass finds."""
        await self.auditor._pass()
        assert self.auditor.progress.checked == self.auditor.progress.size
        return self.auditor.progress.shown()

    def execute(self, script: str) -> None:
        self.world.place.execute(script)

    def gauge(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


@pytest.fixture
async def audited(world: World, log: Log) -> Audited:
    log.start()
    writer = world.writer()
    await asyncio.gather(
        *(
            log.sequencer.append(
                submission(
                    writer.hold(f"dev-{chr(97 + n % 3) * 16}"), bodies=[b"beside"] if n % 50 == 0 else []
                )
            )
            for n in range(SIZE)
        )
    )
    await log.checkpointer.sign()
    return Audited(world, log)


async def test_a_whole_log_passes_and_the_progress_is_told(audited: Audited) -> None:
    assert await audited.findings() == []
    progress = audited.auditor.progress
    assert (progress.checked, progress.size, progress.passes) == (SIZE, SIZE, 1)
    assert progress.ended == audited.world.clock.now()
    assert audited.gauge("vigil_evidence_damaged") == 0
    assert audited.gauge("vigil_evidence_audit_checked") == SIZE


UNREADABLE = {
    "a statement of one byte": ("UPDATE statement SET data = x'00' WHERE idx = 7", 7),
    "a statement of text": ("UPDATE statement SET data = 'text' WHERE idx = 7", 7),
    "a statement of no text": ("UPDATE statement SET data = CAST(x'ff' AS TEXT) WHERE idx = 7", 7),
    "a leaf of text": ("UPDATE entry SET leaf = 'text' WHERE idx = 7", 7),
    "a leaf of no text": ("UPDATE entry SET leaf = CAST(x'ff' AS TEXT) WHERE idx = 7", 7),
    "a body of text": ("UPDATE body SET data = 'text'", 0),
    "a chain of one byte": ("UPDATE certificate SET chain = x'00'", 7),
    "a commit of text": ("UPDATE group_commit SET recorded = 'text' WHERE first = 0", 0),
    "a commit of so many": ("UPDATE group_commit SET items = 'many' WHERE first = 0", 0),
    "a node of text": ("UPDATE node SET hash = 'text' WHERE level = 9 AND position = 0", -1),
    "an erasure of something": (
        """DELETE FROM statement WHERE idx = 7;
        INSERT INTO erased VALUES (7, 'everything', 'request', '', 1, 'p-one', 'p-two', 8, 9)""",
        7,
    ),
}
"""What the code that reads it was not written for; and where that is found."""
CHANGES = {
    **{change: (script, "unreadable") for change, (script, _) in UNREADABLE.items()},
    "a statement of another": (
        "UPDATE statement SET data = (SELECT data FROM statement WHERE idx = 8) WHERE idx = 7",
        "statement",
    ),
    "a signature": (
        "UPDATE statement SET data = CAST(substr(data, 1, length(data) - 1) || x'00' AS BLOB) WHERE idx = 7",
        "signature",
    ),
    "a statement is gone": ("DELETE FROM statement WHERE idx = 7", "missing"),
    "a kind": ("UPDATE entry SET kind = 'receipt' WHERE idx = 7", "leaf"),
    "a leaf": ("UPDATE entry SET leaf = (SELECT leaf FROM entry WHERE idx = 8) WHERE idx = 7", "leaf"),
    "a body": ("UPDATE body SET data = x'00'", "body"),
    "a body is gone": ("DELETE FROM body", "missing"),
    "a subject's number": ("UPDATE subject_record SET number = 900 WHERE idx = 7", "subject"),
    "two reordered": (
        """UPDATE subject_record SET idx = -1 WHERE idx = 7; UPDATE subject_record SET idx = 7 WHERE idx = 10;
        UPDATE subject_record SET idx = 10 WHERE idx = -1""",
        "subject",
    ),
    "an entry is gone": ("DELETE FROM entry WHERE idx = 7", "missing"),
    "a node": ("UPDATE node SET hash = zeroblob(32) WHERE level = 3 AND position = 5", "tree"),
    "a node above a tile": ("UPDATE node SET hash = zeroblob(32) WHERE level = 9 AND position = 0", "tree"),
    "a chain of another": ("UPDATE certificate SET chain = x'814100'", "statement"),
    "what was promised": (
        """UPDATE group_commit SET recorded = (SELECT recorded FROM group_commit ORDER BY first DESC LIMIT 1)
        WHERE first = 0""",
        "recorded",
    ),
}


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_rewritten_is_found_said_and_forgotten_when_it_is_mended(
    audited: Audited, change: str, caplog: pytest.LogCaptureFixture, injected: object
) -> None:
    script, what = CHANGES[change]
    assert isinstance(audited.world.place, SqlitePlace)
    before = audited.world.place.path.with_suffix(".before")
    assert await audited.findings() == []
    audited.execute(f"VACUUM INTO '{before}'")
    audited.execute(script)
    found = await audited.findings()
    injected(1)  # type: ignore[operator]
    assert what in {one.what for one in found}, found
    assert "THE LOG IS DAMAGED" in caplog.text
    assert audited.gauge("vigil_evidence_damaged") == len(audited.auditor.progress.findings)
    # It goes on recording.
    await audited.log.sequencer.append(submission(audited.world.writer().hold(DEVICE)))
    tables = ("entry", "statement", "body", "certificate", "subject_record", "node", "group_commit", "erased")
    copied = "".join(f"DELETE FROM {one}; INSERT INTO {one} SELECT * FROM was.{one};" for one in tables)
    audited.execute(f"ATTACH '{before}' AS was; BEGIN; {copied} COMMIT; DETACH was")
    assert await audited.findings() == []


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("change", UNREADABLE)
async def test_what_cannot_be_read_hides_nothing_else(
    audited: Audited, change: str, injected: object
) -> None:
    script, where = UNREADABLE[change]
    assert isinstance(audited.world.place, SqlitePlace)
    audited.execute(script)
    audited.execute("DELETE FROM statement WHERE idx = 301")
    await audited.findings()
    injected(2)  # type: ignore[operator]
    findings = audited.auditor.progress.findings
    assert {where, 301} <= findings.keys()
    assert findings[301].what == "missing"
    assert audited.auditor.progress.passes == 1
