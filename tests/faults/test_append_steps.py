"""Each call to the kernel that an append makes fails, is torn, or is its process's last; the log stays what it was.

One evidence service of its own, with the shim below it. After every fault: what was acknowledged stands where the
acknowledgement said, once, and each checkpoint that anybody was shown is a prefix of the next one.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness.shim import Fault, Op, Shim
from tests.soak.append import Found, judge
from tests.support.databases import SqlitePlace
from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.merkle import verify_consistency
from vigil.errors import Reason, Refused
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.holds("storage-failures", "killed-between-steps", "insider-evidence"),
]

FILES = "/evidence/"
MET_S = 1.5
"""After an append: its checkpoint is signed within a second."""


class Log:
    """The service, somebody who appends, and somebody who keeps every checkpoint that was shown."""

    def __init__(self, folder: Path, shim: Shim) -> None:
        self.shim = shim
        self.pki = TestPki(folder)
        self.process = EvidenceProcess(self.pki, folder, environment=shim.environment)
        self.writer = HoldWriter(self.pki.person("p-safety", "safety"))
        self.found = Found(0)
        self._shown = evidence_pb2.Checkpoint()
        self._closing: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        await self.process.start()
        people = Channels(
            tls=self.pki.person("p-reader", "technician").tls_files,
            trust_domain=self.pki.trust_domain,
            clock=SystemClock(),
        )
        services = Channels(
            tls=self.pki.service("policy").tls_files,
            trust_domain=self.pki.trust_domain,
            clock=SystemClock(),
        )
        self._reader: Any = evidence_pb2_grpc.EvidenceReadServiceStub(
            people.service(self.process.address, "evidence")
        )
        self._appender = EvidenceAppender(
            channel=services.service(self.process.address, "evidence"), entropy=os.urandom
        )
        self._closing = [self._appender.close, people.close, services.close]

    async def stop(self) -> None:
        for close in self._closing:
            await close()
        await self.process.stop()

    async def revive(self) -> None:
        """Start it again if it died."""
        if not self.process.running:
            await self.process.exit_code()
            await self.process.start()

    async def append(self) -> None:
        """One statement, sent until it is acknowledged, as every service does it."""
        statement = self.writer.hold(reason=str(self.found.appends))
        self.found.appends += 1
        while True:
            try:
                recorded = await self._appender.append(
                    statement.data, organization_id=ORGANIZATION, site_id=SITE, timeout=5.0
                )
            except Refused as refusal:
                if refusal.reason is not Reason.EVIDENCE_UNAVAILABLE:
                    raise
                self.found.again += 1
                await self.revive()
                await asyncio.sleep(0.05)
            else:
                self.found.acknowledged[statement.digest] = recorded.index
                return

    async def look(self) -> None:
        """Take the newest checkpoint and hold it against the last one."""
        newest = await self._reader.GetCheckpoint(evidence_pb2.GetCheckpointRequest(), wait_for_ready=True)
        if self._shown.size:
            request = evidence_pb2.GetConsistencyProofRequest(old_size=self._shown.size, new_size=newest.size)
            proof = await self._reader.GetConsistencyProof(request)
            assert verify_consistency(
                old_size=self._shown.size,
                new_size=newest.size,
                old_root=self._shown.root,
                new_root=newest.root,
                path=list(proof.path),
            )
        self._shown = newest

    async def meets(self, rule: AbstractContextManager[Fault]) -> int:
        """Append while a fault waits for a call; whether it came."""
        with rule as fault:
            await self.append()
            with contextlib.suppress(AssertionError):
                await fault.met(seconds=MET_S)
            fired = fault.fired
        await self.revive()
        self.found.kills += fired
        await self.append()
        await self.look()
        return fired

    async def calls(self) -> int:
        """What one append asks of the kernel below the log's folder, its checkpoint included."""
        with self.shim.watch(Op.DURABLE, path=FILES) as watched:
            await self.append()
            await asyncio.sleep(MET_S)
        return watched.seen


@pytest.fixture
async def log(tmp_path: Path) -> Any:
    if Shim.missing():
        pytest.skip(Shim.missing())
    made = Log(tmp_path, Shim.build(tmp_path / "shim"))
    await made.start()
    await made.append()
    await made.look()
    yield made
    await made.stop()


def faults(shim: Shim, nth: int) -> Iterator[AbstractContextManager[Fault]]:
    """What can become of the nth call."""
    yield shim.fail(Op.DURABLE, path=FILES, error=errno.EIO, nth=nth, count=1)
    yield shim.fail(Op.DURABLE, path=FILES, error=errno.ENOSPC, nth=nth, count=1)
    yield shim.kill(Op.DURABLE, path=FILES, nth=nth)
    yield shim.kill(Op.DURABLE, path=FILES, nth=nth, after=True)
    yield shim.tear(path=FILES, nth=nth)


async def holds(
    log: Log, rules: list[AbstractContextManager[Fault]], injected: Callable[[int], None]
) -> None:
    met = 0
    for rule in rules:
        met += await log.meets(rule)
    assert met >= len(rules) * 2 // 3, f"{met} of {len(rules)} faults happened"
    injected(met)
    assert log.found.again, "no append was under way when its process died"
    await log.process.stop()
    judge(SqlitePlace(log.process.data / "evidence.db"), log.found)
    assert log.found.wrong == []


async def test_an_append_meets_its_fsync(log: Log, injected: Callable[[int], None]) -> None:
    shim = log.shim
    rules = [
        shim.fail(Op.SYNC, path=FILES, error=errno.EIO, count=1),
        shim.kill(Op.SYNC, path=FILES),
        shim.kill(Op.SYNC, path=FILES, after=True),
        shim.tear(path=FILES, nth=2),
    ]
    await holds(log, rules, injected)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
async def test_an_append_meets_each_of_its_calls(log: Log, injected: Callable[[int], None]) -> None:
    calls = await log.calls()
    assert calls >= 3, calls
    rules = [rule for nth in range(1, calls + 1) for rule in faults(log.shim, nth)]
    await holds(log, rules, injected)
