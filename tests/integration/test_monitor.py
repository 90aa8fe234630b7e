"""A monitor, run as cron runs it, over the tiles of a real log; and that log cut back and forked under its own key."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.unit.cli.support import conforms
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.notes import open_note, parse_checkpoint_text
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc import status
from vigil.rpc.channel import Channels

OWNER = {"organization_id": ORGANIZATION, "site_id": SITE}


class World:
    def __init__(self, pki: TestPki, folder: Path) -> None:
        self.pki = pki
        self.folder = folder
        self.process = EvidenceProcess(pki, folder, tiles="http")
        self._writer = HoldWriter(pki.person("p-safety", "safety"))

    async def append(self, *reasons: str) -> str:
        """Record holds and have them signed for; answers the log's key."""
        writing, reading = (
            Channels(tls=one.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
            for one in (self.pki.service("policy"), self.pki.person("p-reader", "auditor"))
        )
        try:
            channel = writing.service(self.process.address, "evidence")
            async with EvidenceAppender(channel=channel, entropy=os.urandom, streams=1) as appender:
                for reason in reasons:
                    item = await appender.append(self._writer.hold(reason=reason).data, **OWNER)
            stub = evidence_pb2_grpc.EvidenceReadServiceStub(
                reading.service(self.process.address, "evidence")
            )
            request = evidence_pb2.GetInclusionProofRequest(index=item.index)
            proof = await status.translated(stub.GetInclusionProof(request))
            return str(proof.checkpoint.verifier_key)
        finally:
            await writing.close()
            await reading.close()

    async def monitor(self, key: str, *more: str, code: int = 0) -> Any:
        arguments = [
            *("-m", "vigil.cli", "--output", "json", "evidence", "monitor", str(self.folder / "watch")),
            *("--url", self.process.tiles, "--log", key, *more),
        ]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, errors = await process.communicate()
        assert process.returncode == code, (out, errors)
        value = json.loads(out)
        conforms(value, "error" if code == 1 else "monitor")
        return value


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    pki = TestPki(tmp_path / "test-pki", clock=SystemClock())
    world = World(pki, tmp_path)
    await world.process.start()
    yield world
    await world.process.stop()


@pytest.mark.holds("insider-evidence")
async def test_a_forked_and_a_cut_back_log_are_noticed_from_outside(world: World, injected: Any) -> None:
    key = await world.append("one", "two", "three")
    look = await world.monitor(key)
    assert (look["right"], look["size"], look["new"], look["subjects"]) == (True, 3, 3, 1)
    assert (await world.monitor(key, "--max-age", "1h"))["new"] == 0

    await world.process.stop()
    old = world.folder / "old"
    shutil.copytree(world.process.data, old)
    await world.process.start()
    await world.append("four", "five")
    assert (await world.monitor(key))["size"] == 5

    async def served(size: int) -> str:
        wrong = (await world.monitor(key, code=3))["wrong"]
        found = json.loads(Path(wrong["file"]).read_text())
        assert parse_checkpoint_text(open_note(found["kept"], key))[1] == 5
        assert parse_checkpoint_text(open_note(found["shown"], key))[1] == size
        return str(wrong["what"])

    # The operator puts the old copy back: the log's own key, and fewer records than were signed.
    await world.process.stop()
    shutil.rmtree(world.process.data)
    shutil.copytree(old, world.process.data)
    await world.process.start()
    assert await served(3) == "shrunk"
    # It goes on from there with other records: first as many as there were, then more.
    await world.append("other four", "other five")
    assert await served(5) == "forked"
    await world.append("other six")
    assert await served(6) in ("subject", "rewritten")
    injected(3)


async def test_what_cannot_be_read_and_what_was_typed_wrongly_is_said(world: World) -> None:
    key = await world.append("one")
    await world.monitor(key)
    await world.process.stop()
    error = (await world.monitor(key, code=1))["error"]
    assert "cannot be read" in error["sentence"]
