"""The running service finds what was rewritten in its database, says so, and goes on recording."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_witness import Log
from tests.support.evidence import EvidenceProcess
from tests.support.pki import TestPki
from tests.support.stack import eventually
from vigil.api.evidence.v1 import evidence_pb2
from vigil.rpc import status


class AuditedLog(Log):
    """Read again fast."""

    def __init__(self, pki: TestPki, folder: Path) -> None:
        super().__init__(pki, folder, folder / "witness-policy")
        self.process = EvidenceProcess(pki, folder, settings={"audit_entries_per_second": "50000"})

    async def status(self) -> evidence_pb2.LogStatus:
        return await status.translated(self.reader.GetLogStatus(evidence_pb2.GetLogStatusRequest()))


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditedLog]:
    log = AuditedLog(TestPki(tmp_path), tmp_path)
    await log.start()
    yield log
    await log.stop()


@pytest.mark.holds("insider-evidence")
async def test_a_rewritten_row_is_found_by_the_service_itself(log: AuditedLog, injected: Any) -> None:
    await log.append("one", "two", "three")
    await log.covering(3)

    async def passes(count: int) -> evidence_pb2.LogStatus | None:
        found = await log.status()
        return found if found.audit.passes >= count and found.audit.size >= 3 else None

    clean = await eventually(lambda: passes(1), what="a pass of the audit")
    assert clean is not None
    assert (clean.audit.damaged, clean.older, list(clean.witnesses)) == (0, False, [])

    path = log.process.data / "evidence.db"
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        data = connection.execute("SELECT data FROM statement WHERE idx = 1").fetchone()[0]
        connection.execute(
            "UPDATE statement SET data = ? WHERE idx = 1", (data[:-1] + bytes([data[-1] ^ 1]),)
        )
        connection.commit()
        assert connection.execute("SELECT data FROM statement WHERE idx = 1").fetchone()[0] != data
    injected(1)

    async def damaged() -> evidence_pb2.LogStatus | None:
        found = await log.status()
        return found if found.audit.damaged else None

    told = await eventually(damaged, what="the damage is found")
    assert told is not None
    assert [(one.index, one.what) for one in told.audit.damages] == [(1, "signature")]
    assert log.told("THE LOG IS DAMAGED at 1")
    await log.append("four")
    assert (await log.covering(4)).size >= 4
