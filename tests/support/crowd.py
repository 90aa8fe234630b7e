"""Writers that append to a log whatever happens to it, and what must hold of the log afterwards."""

import asyncio
from typing import Any

from tests.support.evidence import HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.evidence.v1.evidence_pb2 import RecordedItem
from vigil.errors import Reason, Refused
from vigil.feed.evidence import EvidenceAppender
from vigil.verify import Record as Taken
from vigil.verify import (
    SignedTree,
    check_checkpoint,
    check_consistency,
    check_inclusion,
    check_recorded,
    check_statement,
    check_subject,
)

OWNER = {"organization_id": ORGANIZATION, "site_id": SITE}


def taken(entry: evidence_pb2.Entry) -> Taken:
    return Taken(
        index=entry.index,
        leaf=entry.leaf,
        statement=entry.statement,
        chain=tuple(entry.chain),
        bodies=tuple(entry.bodies),
        recorded=entry.recorded.recorded,
        recorded_path=tuple(entry.recorded.path),
    )


def tree_of(pki: TestPki, checkpoint: evidence_pb2.Checkpoint) -> SignedTree:
    tree = check_checkpoint(
        checkpoint.note, verifier_key=checkpoint.verifier_key, trust_domain=pki.trust_domain
    )
    assert tree == SignedTree(checkpoint.size, checkpoint.root)
    return tree


async def history(reader: Any, subject: str, **values: Any) -> list[evidence_pb2.Entry]:
    entries: list[evidence_pb2.Entry] = []
    request = evidence_pb2.ListHistoryRequest(subject=subject, **values)
    while True:
        page = await reader.ListHistory(request)
        entries.extend(page.entries)
        if not page.next_page_token:
            return entries
        request.page_token = page.next_page_token


class Crowd:
    """Writers that append without a pause, and remember what was acknowledged."""

    def __init__(self, appender: EvidenceAppender, writer: HoldWriter, *, writers: int) -> None:
        self.acknowledged: dict[bytes, RecordedItem] = {}
        self.sent: list[bytes] = []
        self._stopping = False
        self._appender = appender
        self._writer = writer
        self._tasks = [
            asyncio.create_task(self._write(f"dev-{chr(97 + n % 7) * 16}")) for n in range(writers)
        ]

    async def _write(self, device: str) -> None:
        while not self._stopping:
            hold = self._writer.hold(device)
            self.sent.append(hold.data)
            while hold.digest not in self.acknowledged:
                try:
                    item = await self._appender.append(hold.data, timeout=5.0, **OWNER)
                except Refused as refusal:
                    assert refusal.reason is Reason.EVIDENCE_UNAVAILABLE  # noqa: PT017 - anything else is a defect
                    await asyncio.sleep(0.02)
                else:
                    self.acknowledged[hold.digest] = item

    async def until(self, count: int) -> None:
        while len(self.acknowledged) < count:
            failed = [task for task in self._tasks if task.done()]
            if failed:
                failed[0].result()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Let each writer have its last statement acknowledged."""
        self._stopping = True
        await asyncio.gather(*self._tasks)


async def check_everything(
    pki: TestPki, reader: Any, crowd: Crowd, checkpoints: list[evidence_pb2.Checkpoint]
) -> None:
    last = max(item.index for item in crowd.acknowledged.values())
    asked = evidence_pb2.GetInclusionProofRequest(index=last)
    newest = (await reader.GetInclusionProof(asked, wait_for_ready=True)).checkpoint
    tree = tree_of(pki, newest)
    # Every checkpoint that anybody saw is a prefix of the newest one, signed by one key.
    for seen in {checkpoint.size: checkpoint for checkpoint in checkpoints}.values():
        assert seen.verifier_key == newest.verifier_key
        request = evidence_pb2.GetConsistencyProofRequest(old_size=seen.size, new_size=newest.size)
        proof = await reader.GetConsistencyProof(request)
        check_consistency(tree_of(pki, seen), tree, proof.path)
    assert len({(seen.size, seen.root) for seen in checkpoints}) == len({seen.size for seen in checkpoints})
    entries = [
        entry
        for device in "abcdefg"
        for entry in await history(reader, f"device/dev-{device * 16}", page_size=500)
    ]
    # Each statement is there once, at the index that was promised, and nothing else is.
    assert len(entries) == newest.size
    assert len({entry.digest for entry in entries}) == len(entries)
    recorded = {entry.digest: entry.recorded for entry in entries}
    for digest, item in crowd.acknowledged.items():
        assert recorded[digest] == item
    for device in "abcdefg":
        subject = f"device/dev-{device * 16}"
        own = [taken(entry) for entry in entries if entry.subjects[0].subject == subject]
        assert check_subject(own, subject) == len(own)
    for entry in entries[:: max(1, len(entries) // 60)]:
        record = taken(entry)
        check_statement(record, pki.verifier)
        check_recorded(record, pki.verifier)
        request = evidence_pb2.GetInclusionProofRequest(index=entry.index, size=newest.size)
        proof = await reader.GetInclusionProof(request)
        check_inclusion(record, proof.path, tree)
