"""Pumps in a process: enrolled through the control socket, linked to a real gRPC server, updated, unplugged."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.pki import DEVICE
from tests.support.pumps import NEW_FIRMWARE, PumpSite
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.core import merkle
from vigil.core.certificates import Grant, Kind, read_request
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.device.agent import DeviceAgent
from vigil.device.config import DeviceConfig, read_config
from vigil.device.fleet import Control, Fleet
from vigil.device.link import Gateway
from vigil.errors import Reason, Refused
from vigil.identity import pki as issuing
from vigil.rpc.server import GrpcServer

PATIENCE_S = 30.0
FULL_NAME = "vigil.api.gateway.v1.DeviceLinkService"


class TestGateway(gateway_pb2_grpc.DeviceLinkServiceServicer):
    """Welcomes devices, keeps what they say, sends what the test wants, serves artifacts."""

    __test__ = False

    def __init__(self, site: PumpSite) -> None:
        self.site = site
        self.artifacts: dict[bytes, bytes] = {}
        self.heard: asyncio.Queue[gateway_pb2.ConnectRequest] = asyncio.Queue()
        self.outgoing: asyncio.Queue[gateway_pb2.ConnectResponse] = asyncio.Queue()
        self.gone = asyncio.Event()

    async def Connect(  # noqa: N802 - the generated base's name
        self, request_iterator: AsyncIterator[gateway_pb2.ConnectRequest], context: Any
    ) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        del context
        self.outgoing = asyncio.Queue()
        self.gone.clear()
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while True:
                yield await self.outgoing.get()
        finally:
            reader.cancel()
            self.gone.set()

    async def _read(self, requests: AsyncIterator[gateway_pb2.ConnectRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    welcome = gateway_pb2.GatewayWelcome(
                        gateway_id="gateway-1",
                        time_ms=self.site.clock.now(),
                        profile=self.site.profile.data,
                        trust_json=self.site.pki.bundle.to_json(),
                    )
                    self.send(gateway_pb2.ConnectResponse(welcome=welcome))
                case "artifact":
                    data = self.artifacts[request.artifact.digest]
                    offset = request.artifact.offset
                    piece = gateway_pb2.ArtifactChunk(
                        digest=request.artifact.digest,
                        offset=offset,
                        size=len(data),
                        chunk=data[offset : offset + 500],
                    )
                    self.send(gateway_pb2.ConnectResponse(artifact=piece))
                    continue
                case "head_challenge":
                    self._answer_head(request.head_challenge)
                    continue
            self.heard.put_nowait(request)

    def _answer_head(self, challenge: bytes) -> None:
        revocations = gateway_pb2.Revocations(gateway_time_ms=self.site.clock.now())
        revocations.head.head = self.site.head(merkle.leaf_hash(challenge)).data
        revocations.head.paths.add(index=0, size=1)
        self.send(gateway_pb2.ConnectResponse(revocations=revocations))

    def send(self, message: gateway_pb2.ConnectResponse) -> None:
        self.outgoing.put_nowait(message)

    async def hear(self, kind: str) -> Any:
        """The next message of a kind; others are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while (request := await self.heard.get()).WhichOneof("message") != kind:
                pass
        assert request.device_id == DEVICE
        return getattr(request, kind)

    async def receipt_of(self, outcome: b.Outcome) -> b.Receipt:
        while True:
            message = await self.hear("receipt")
            for data in message.receipts:
                body = read(data, b.Receipt).body
                if body.outcome is outcome:
                    return body


class Hands:
    """Whoever stands at the control socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def do(self, action: str, **values: Any) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 20)
        writer.write(json.dumps({"do": action, **values}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return answer


@dataclass
class OnLine:
    """The pump that commands are made for."""

    device_id: str
    agent: DeviceAgent


class World:
    """A site, its gateway, and a fleet of one pump that has just left the factory."""

    def __init__(
        self, site: PumpSite, gateway: TestGateway, fleet: Fleet, hands: Hands, address: str
    ) -> None:
        self.site, self.gateway, self.fleet, self.hands, self.address = site, gateway, fleet, hands, address

    async def enrol(self) -> None:
        proof = await self.hands.do("possession", pump="pump-1", nonce=os.urandom(16).hex())
        assert proof["ok"]
        pki = self.site.pki

        def certified(request: str, *statements: str) -> list[str]:
            grant = Grant(
                kind=Kind.DEVICE,
                subject_id=DEVICE,
                organization="hospital",
                sites=("site-1",),
                statements=statements,
            )
            issued = pki.authority.issue(read_request(request.encode()), grant, issuing.DEVICE)
            return [one.hex() for one in issued.chain_der]

        answer = await self.hands.do(
            "install",
            pump="pump-1",
            tls_chain=certified(proof["tls_csr_pem"]),
            attestation_chain=certified(
                proof["attestation_csr_pem"], "acknowledgement", "evidence", "receipt"
            ),
            trust_json=pki.bundle.to_json(),
        )
        assert answer == {"ok": True, "device_id": DEVICE, "organization": "hospital", "sites": ["site-1"]}

    async def command(self, action: str, parameters: dict[str, Any], **how: Any) -> None:
        """Prepare and send."""
        technician = self.site.technician.identity.thumbprint
        self.gateway.send(
            gateway_pb2.ConnectResponse(nonce=gateway_pb2.NonceRequest(call_id=5, credential=technician))
        )
        reply = await self.gateway.hear("nonce")
        assert not reply.HasField("error")
        agent = self.fleet.find(DEVICE).agent
        assert agent is not None
        bundle = self.site.bundle(OnLine(DEVICE, agent), action, parameters, nonce=reply.nonce, **how)
        message = gateway_pb2.Bundle(
            call_id=6,
            intent=bundle.intent,
            approvals=bundle.approvals,
            command=bundle.command,
            permit=bundle.permit,
            release=bundle.release,
        )
        for proof in bundle.statements_recorded:
            message.statements_recorded.add(recorded=proof.recorded, index=proof.index, path=proof.path)
        if bundle.permit_recorded is not None:
            proof = bundle.permit_recorded
            message.permit_recorded.recorded = proof.recorded
            message.permit_recorded.index = proof.index
            message.permit_recorded.path.extend(proof.path)
        self.gateway.send(gateway_pb2.ConnectResponse(bundle=message))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("vigil.device.link.FIRST_PAUSE_S", 0.05)
    monkeypatch.chdir(tmp_path)  # a short path for the socket
    site = PumpSite(tmp_path / "site", clock=SystemClock())
    folder = tmp_path / "fleet"
    folder.mkdir()
    site.make(folder / "pump-1")
    gateway = TestGateway(site)
    server = GrpcServer(
        role="gateway",
        tls=site.pki.gateway("gateway-1").tls_files,
        clock=SystemClock(),
        listen="127.0.0.1:0",
        servicers=[(gateway_pb2_grpc.add_DeviceLinkServiceServicer_to_server, gateway, FULL_NAME)],
    )
    address = f"127.0.0.1:{await server.start()}"
    config = DeviceConfig(fleet=folder, gateway=address, gateway_id="gateway-1")
    fleet = Fleet(folders=config.pumps, gateway=config.dialled, clock=SystemClock(), entropy=os.urandom)
    control = Control(fleet, Path("control.sock"))
    await fleet.start()
    await control.start()
    yield World(site, gateway, fleet, Hands(Path("control.sock")), address)
    await control.stop()
    await fleet.stop()
    await server.stop(0)


async def test_a_pump_is_enrolled_commanded_and_power_cycled(world: World) -> None:
    assert (await world.hands.do("list"))["pumps"][0]["enrolled"] is False
    await world.enrol()
    hello = await world.gateway.hear("hello")
    assert (hello.model, hello.boot_count, hello.profile_version) == ("aria-3000", 1, 0)
    acknowledged = read(await world.gateway.hear("acknowledgement"), b.Acknowledgement)
    assert acknowledged.body.epoch == 0
    assert (await world.gateway.hear("attest")).WhichOneof("message") == "challenge"
    assert (await world.hands.do("bedside-release", pump="pump-1"))["patient_state"] == "disconnected"
    await world.command("set-occlusion-pressure", {"occlusion_pressure": 300})
    receipt = await world.gateway.receipt_of(b.Outcome.APPLIED)
    assert receipt.work_order == "WO-1"
    assert (await world.gateway.hear("status")).settings["occlusion_pressure"] == "300"
    await world.hands.do("power-cycle", pump=DEVICE)
    hello = await world.gateway.hear("hello")
    assert (hello.boot_count, hello.profile_version) == (2, 1)
    assert hello.status.patient_state == "unknown"


async def test_a_hand_that_follows_a_power_cycle_meets_the_pump_that_came_back(world: World) -> None:
    await world.enrol()
    await world.gateway.hear("hello")
    runner = world.fleet.find("pump-1")
    before = runner.agent
    runner.power_cycle()
    await runner.started()
    assert runner.agent is not before
    await world.hands.do("bedside-release", pump="pump-1")
    assert (await world.gateway.hear("hello")).boot_count == 2
    assert (await world.hands.do("status", pump="pump-1"))["patient_state"] == "disconnected"


async def test_a_pump_is_unplugged_treats_its_patient_and_comes_back(world: World) -> None:
    await world.enrol()
    await world.gateway.hear("hello")
    started = await world.hands.do("start-therapy", pump="pump-1", rate_ml_per_h=12.5)
    assert started["readings"]["rate_ml_per_h"] == "12.5"
    await world.hands.do("plug", pump="pump-1", on=False)
    async with asyncio.timeout(PATIENCE_S):
        await world.gateway.gone.wait()
    assert (await world.hands.do("status", pump="pump-1"))["therapy_state"] == "delivering"
    await world.hands.do("plug", pump="pump-1", on=True)
    hello = await world.gateway.hear("hello")
    assert hello.status.therapy_state == "delivering"
    for action, state in (("occlusion", "alarm"), ("clear-alarm", "idle")):
        assert (await world.hands.do(action, pump="pump-1"))["therapy_state"] == state


async def test_an_update_travels_is_activated_and_the_pump_comes_back_with_it(world: World) -> None:
    await world.enrol()
    await world.gateway.hear("hello")
    release = world.site.release()
    world.gateway.artifacts[release.body.firmware] = NEW_FIRMWARE
    await world.command(
        "update-firmware",
        {"firmware": release.body.firmware},
        approvers=(world.site.approver,),
        release=release.data,
    )
    assert (await world.gateway.receipt_of(b.Outcome.STAGED)).number == 1
    await world.hands.do("bedside-release", pump="pump-1")
    hello = await world.gateway.hear("hello")
    assert (hello.firmware_version, hello.boot_count) == ("1.6.4", 2)
    assert (await world.gateway.receipt_of(b.Outcome.APPLIED)).number == 2


async def test_an_attackers_programmer_is_seen(world: World) -> None:
    await world.enrol()
    await world.gateway.hear("hello")
    asked = await world.gateway.hear("attest")
    reply = gateway_pb2.ConnectResponse()
    reply.attest.call_id = asked.call_id
    reply.attest.challenge.nonce = b"n" * 16
    await world.hands.do("tamper", pump="pump-1", hex=b"malware".hex())
    world.gateway.send(reply)
    submission = (await world.gateway.hear("attest")).submission
    assert read(submission.evidence, b.Evidence).body.measurements.firmware == sha256(b"malware")


async def test_a_pump_talks_to_its_own_gateway_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vigil.device.link")
    await world.enrol()
    await world.gateway.hear("hello")
    await world.hands.do("dial", pump="pump-1", address=world.address, gateway_id="gateway-2")
    async with asyncio.timeout(PATIENCE_S):
        while "no link to gateway-2" not in caplog.text:  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)
    while not world.gateway.heard.empty():
        assert world.gateway.heard.get_nowait().WhichOneof("message") != "hello"
    await world.hands.do("dial", pump="pump-1", address=world.address, gateway_id="gateway-1")
    await world.gateway.hear("hello")


async def test_the_socket_answers_nonsense_with_a_sentence(world: World) -> None:
    for request in ({"do": "explode", "pump": "pump-1"}, {"do": "status", "pump": "nobody"}, {"pump": 1}):
        action = request.pop("do", "")
        answer = await world.hands.do(str(action), **request)
        assert answer["ok"] is False
        assert answer["sentence"]
    assert (await world.hands.do("occlusion", pump="pump-1"))["reason"] == "STATE_CONFLICT"
    made = world.site.make(world.fleet._folders()[0].parent / "pump-2")
    assert (await world.hands.do("rescan"))["pumps"] == ["pump-1", made.name]


def test_a_configuration_is_validated_before_anything_starts(tmp_path: Path) -> None:
    for values in (
        {},
        {"data": tmp_path, "fleet": tmp_path},
        {"data": tmp_path, "gateway": "host:1"},
        {"data": tmp_path, "gateway": "host", "gateway_id": "gateway-1"},
        {"data": tmp_path, "colour": "blue"},
    ):
        with pytest.raises(Refused) as caught:
            read_config(None, **values)
        assert caught.value.reason is Reason.FIELD_INVALID
    path = tmp_path / "device.toml"
    path.write_text('fleet = "pumps"\ngateway = "gateway:7450"\ngateway_id = "gateway-1"\n')
    config = read_config(path, control=tmp_path / "c.sock")
    assert config.dialled == Gateway("gateway:7450", "gateway-1")
    assert config.control_socket == tmp_path / "c.sock"
    path.write_text("not toml")
    with pytest.raises(Refused):
        read_config(path)


async def test_the_command_line_makes_a_pump_and_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "firmware.bin").write_bytes(b"image")
    (tmp_path / "sbom.json").write_bytes(b"{}")
    python = (sys.executable, "-m", "vigil.device")
    made = await asyncio.create_subprocess_exec(
        *python,
        *("make", "pump", "--udi", "(01)09504000059118(21)SN-9", "--model", "aria-3000"),
        *("--manufacturer", "maker", "--firmware", "firmware.bin", "--version", "1.0", "--sbom", "sbom.json"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await made.communicate()
    label = json.loads(output)
    assert made.returncode == 0
    assert (label["model"], len(label["identity_key"])) == ("aria-3000", 64)
    running = await asyncio.create_subprocess_exec(
        *python, "--data", "pump", "--control", "c.sock", stdout=asyncio.subprocess.PIPE
    )
    assert running.stdout is not None
    assert json.loads(await running.stdout.readline()) == {"ready": True, "pumps": 1, "control": "c.sock"}
    listed = await Hands(Path("c.sock")).do("list")
    assert listed["pumps"][0] == {
        "pump": "pump",
        "device_id": None,
        "enrolled": False,
        "online": False,
        "gateway_id": None,
    }
    running.terminate()
    assert await running.wait() == 0
    bad = await asyncio.create_subprocess_exec(*python, stderr=asyncio.subprocess.DEVNULL)
    assert await bad.wait() == 78
