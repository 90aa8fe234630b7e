"""The identity service as it runs: its own process, beside a real log, killed and started again."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.evidence import START_SECONDS, EvidenceProcess
from tests.support.pki import Credential, TestPki
from tests.unit.identity.test_registry import gateway
from tests.unit.identity.world import HOSPITAL, Bench, Caller, complete_request, site_request, start_request
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.clock import SystemClock
from vigil.core.statements import bodies
from vigil.errors import Reason, Refused
from vigil.feed import Change, Replica
from vigil.rpc.channel import Channels
from vigil.rpc.service_main import EXIT_CONFIG
from vigil.rpc.status import translated


class IdentityProcess:
    """``python -m vigil.identity`` on a folder; killed and started again on the same port."""

    def __init__(self, pki: TestPki, folder: Path, evidence: EvidenceProcess) -> None:
        self.pki, self.folder, self.evidence = pki, folder, evidence
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        reading, writing = os.pipe()
        with (self.folder / "identity.log").open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vigil.identity",
                "--config",
                str(self.configuration()),
                "--ready-fd",
                str(writing),
                pass_fds=(writing,),
                stderr=stderr,
            )
        os.close(writing)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await reader.readline()
        finally:
            transport.close()
        assert line, (self.folder / "identity.log").read_text()
        self.port = json.loads(line)["port"]

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self._process.wait()

    def configuration(self, **more: Any) -> Path:
        folder = self.pki.directory / "pki"
        tls = folder / "services" / "identity"
        values = {
            "data_dir": str(self.folder / "identity"),
            "listen": self.address,
            "trust_domain": self.pki.trust_domain,
            "certificate": str(tls / "tls.pem"),
            "key": str(tls / "tls.key"),
            "trust": str(folder / "trust.json"),
            "pki_dir": str(folder),
        } | more
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += ["[peers]", f'evidence = "{self.evidence.address}"']
        path = self.folder / "identity.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


class World:
    def __init__(self, folder: Path) -> None:
        self.pki = TestPki(folder)
        self.maker = self.pki.manufacturer("maker")
        self.evidence = EvidenceProcess(self.pki, folder)
        self.identity = IdentityProcess(self.pki, folder, self.evidence)
        self.channels: list[Channels] = []

    async def start(self) -> "World":
        await self.evidence.start()
        await self.identity.start()
        self.admin = self.caller(self.pki.admin(1))
        self.enroller = self.caller(self.pki.person("p-enroller", "enroller"))
        self.safety = self.caller(self.pki.person("p-safety", "safety"))
        request = pb.CreateOrganizationRequest(
            organization=pb.Organization(organization_id=HOSPITAL, display_name="Hospital")
        )
        await self.admin.call("CreateOrganization", request)
        await self.admin.call("CreateSite", site_request(HOSPITAL, "site-1"))
        return self

    async def stop(self) -> None:
        for channels in self.channels:
            await channels.close()
        await self.identity.end(signal.SIGTERM)
        await self.evidence.stop()

    def channels_of(self, credential: Credential) -> Channels:
        made = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self.channels.append(made)
        return made

    def caller(self, credential: Credential) -> Caller:
        return Caller(credential, self.channels_of(credential), self.identity.address)

    async def again(self, caller: Caller, method: str, request: Any) -> Any:
        """Call until the service is back."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await caller.call(method, request)
                except Refused as refusal:
                    if refusal.reason is not Reason.SERVICE_UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.05)

    async def recorded(self, subject: str, count: int) -> list[evidence_pb2.Entry]:
        """The log's history of a subject, once it has so many records."""
        channels = self.channels_of(self.pki.person("p-auditor", "auditor"))
        reader: Any = evidence_pb2_grpc.EvidenceReadServiceStub(
            channels.service(self.evidence.address, "evidence")
        )
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(Refused):
                    request = evidence_pb2.ListHistoryRequest(subject=subject)
                    page = await translated(reader.ListHistory(request, timeout=5))
                    if len(page.entries) >= count:
                        return list(page.entries)
                await asyncio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World(tmp_path).start()
    yield made
    await made.stop()


async def test_enrolled_killed_and_still_there_with_its_voucher_on_record(world: World) -> None:
    bench = Bench(world.maker, "SN-1")
    begun = await world.enroller.call("StartEnrolment", start_request(bench))
    # The log is away while the device is enrolled, and identity is killed before it is back.
    await world.evidence.kill()
    request = complete_request(bench, begun)
    made = await world.enroller.call("CompleteEnrolment", request)
    hold = world.safety.scribe(SystemClock()).sign(
        bodies.Hold(device=bench.device_id, action=bodies.HoldAction.PLACE, reason="incident 7"),
        subject=f"device/{bench.device_id}",
    )
    placing = pb.PlaceHoldRequest(device_id=bench.device_id, hold=hold.data)
    held = await world.safety.call("PlaceHold", placing)
    await world.identity.end(signal.SIGKILL)
    await world.evidence.start()
    await world.identity.start()
    found = await world.again(world.enroller, "GetDevice", pb.GetDeviceRequest(device_id=bench.udi))
    assert found == held
    assert (await world.enroller.call("CompleteEnrolment", request)).certificates == made.certificates
    entries = await world.recorded(f"device/{bench.device_id}", 2)
    assert [entry.kind for entry in entries] == ["voucher", "hold"]
    assert entries[1].digest == hold.digest
    assert {link.subject for link in entries[0].subjects} == {
        f"device/{bench.device_id}",
        "person/p-enroller",
    }


async def test_a_reader_follows_the_registry_through_a_restart(world: World) -> None:
    heard: dict[tuple[str, str], bytes] = {}

    def take(change: Change) -> None:
        heard[change.kind, change.key] = change.value

    credential = world.pki.service("policy")
    channel = world.channels_of(credential).service(world.identity.address, "identity")
    replica = Replica(
        channel_factory=lambda: channel,
        name="identity",
        clock=SystemClock(),
        entropy=os.urandom,
        on_change=take,
        on_reset=heard.clear,
    )
    task = asyncio.create_task(replica.run())
    try:
        async with asyncio.timeout(60):
            await replica.synced.wait()
        assert {("organization", HOSPITAL), ("site", "site-1"), ("principal", "p-admin-1")} <= set(heard)
        await world.identity.end(signal.SIGTERM)
        await world.identity.start()
        answer = await world.again(world.admin, "CreateGateway", gateway())
        async with asyncio.timeout(60):
            while ("gateway", "gateway-1") not in heard:  # noqa: ASYNC110 - whatever brings it
                await asyncio.sleep(0.02)
        assert pb.Gateway.FromString(heard["gateway", "gateway-1"]) == answer.gateway
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_configuration_that_cannot_be_used_is_named(world: World) -> None:
    path = world.identity.configuration(sweep_seconds=0, colour="red")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vigil.identity", "--config", str(path), stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == EXIT_CONFIG
    assert b"sweep_seconds" in stderr
    assert b"colour" in stderr


async def test_it_stops_in_order(world: World) -> None:
    assert await world.identity.end(signal.SIGTERM) == 0
