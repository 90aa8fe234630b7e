"""The gateway as it runs, in a hospital where everything is real: every service, a bus-less edge, and a pump.

Each service serves over mTLS as its own process would, in this process's loop; the pump is made in the factory,
vouched for, enrolled through identity and dials the gateway by itself.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.support.opa import free_port
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.api.release.v1 import release_pb2, release_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.attestation.__main__ import serve as serve_attestation
from vigil.attestation.config import AttestationConfig
from vigil.core.baselines import content_of_settings
from vigil.core.certificates import make_request, store_pair
from vigil.core.clock import SystemClock
from vigil.core.commands import target_path, target_root
from vigil.core.digest import sha256
from vigil.core.dsse import in_toto_statement, make_dsse
from vigil.core.keys import new_private_key
from vigil.core.profiles import profile_from_json
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.demo.publishing import Build, make_builds
from vigil.device import messages
from vigil.device.convert import certificates, possession_to_proto
from vigil.device.factory import FirstBuild, make_pump
from vigil.device.link import Gateway as Dialled
from vigil.device.runner import PumpRunner
from vigil.device.trust import SharedTrust
from vigil.errors import Reason, Refused
from vigil.evidence.__main__ import serve as serve_evidence
from vigil.evidence.config import EvidenceConfig
from vigil.gateway.__main__ import serve as serve_gateway
from vigil.gateway.config import GatewayConfig
from vigil.identity.__main__ import serve as serve_identity
from vigil.identity.config import IdentityConfig
from vigil.policy.__main__ import serve as serve_policy
from vigil.policy.config import PolicyConfig
from vigil.release.__main__ import serve as serve_release
from vigil.release.config import ReleaseConfig
from vigil.revocation.__main__ import serve as serve_revocation
from vigil.revocation.config import EdgeConfig, RevocationConfig
from vigil.revocation.edge import serve as serve_edge
from vigil.rpc.channel import Channels
from vigil.rpc.service_main import Process
from vigil.rpc.status import translated
from vigil.rpc.tls import TlsFiles

MAKER, MODEL, GATEWAY = "maker", "aria-3000", "gateway-1"
UDI = "(01)09504000059118(21)SN-0001"
DATA = Path(__file__).parents[2] / "services" / "vigil" / "demo" / "data"
HOUR = 3_600_000

SERVICES: dict[str, tuple[Any, Any, str]] = {
    "evidence": (serve_evidence, EvidenceConfig, "recorded"),
    "identity": (serve_identity, IdentityConfig, ""),
    "release": (serve_release, ReleaseConfig, ""),
    "revocation": (serve_revocation, RevocationConfig, "head"),
    "edge": (serve_edge, EdgeConfig, ""),
    "attestation": (serve_attestation, AttestationConfig, "result"),
    "policy": (serve_policy, PolicyConfig, "decision"),
}


class Running(Process):
    """One service in this loop."""

    def __init__(self, role: str, serve: Any, config: Any) -> None:
        super().__init__(role=role, ready_fd=None)
        self.metrics = CollectorRegistry()
        self._up = asyncio.Event()
        self._task = asyncio.create_task(serve(config, self))

    def ready(self, port: int) -> None:
        assert port
        self._up.set()

    async def started(self) -> None:
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait({up, self._task}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            self._task.result()
        assert self._up.is_set(), f"{self.role} has not started"

    async def stopped(self) -> None:
        self.stop()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.end()


class Hospital:
    """Everything, and the people who act."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.pki = TestPki(folder)
        self.maker = self.pki.manufacturer(MAKER)
        self.ports = {role: free_port() for role in (*SERVICES, "gateway")}
        self.running: dict[str, Running] = {}
        self.technician = self.pki.person("p-technician", "technician")
        self.approver = self.pki.person("p-approver", "approver")
        self.second_approver = self.pki.person("p-second", "approver")
        self.recall = self.pki.person("p-recall", "recall", organization="operator", sites=("*",))
        self.enroller = self.pki.person("p-enroller", "enroller")
        self.auditor = self.pki.person("p-auditor", "auditor")
        self.publisher = self.pki.person("p-publisher", "publisher", organization=MAKER)
        self.pharmacist = self.pki.person("p-pharmacist", "baseline-signer")
        self.builds = make_builds()
        self.channels: list[Channels] = []
        self.device_id = ""
        self.runner: PumpRunner
        self.pump_task: asyncio.Task[None] | None = None

    # --- services

    def address(self, role: str) -> str:
        return f"127.0.0.1:{self.ports[role]}"

    async def start(self, role: str) -> None:
        serve, config, signer = SERVICES[role]
        pki = self.pki.directory / "pki"
        values: dict[str, Any] = {
            "data_dir": self.folder / role,
            "listen": self.address(role),
            "trust_domain": self.pki.trust_domain,
            "certificate": pki / "services" / role / "tls.pem",
            "key": pki / "services" / role / "tls.key",
            "trust": self.pki.trust,
            "peers": {peer: self.address(peer) for peer in SERVICES},
        }
        if signer:
            values["signer_certificate"] = pki / "signers" / f"{signer}.pem"
            values["signer_key"] = pki / "signers" / f"{signer}.key"
        if role == "identity":
            values["pki_dir"] = pki
        (self.folder / role).mkdir(exist_ok=True)
        self.running[role] = Running(role, serve, config(**values))
        await self.running[role].started()

    async def start_gateway(self) -> None:
        home = self.folder / "gateway-home"
        config = GatewayConfig(
            data_dir=home / "data",
            listen=self.address("gateway"),
            trust_domain=self.pki.trust_domain,
            certificate=home / "tls.pem",
            key=home / "tls.key",
            trust=home / "trust.json",
            peers={
                role: self.address(role)
                for role in ("identity", "release", "attestation", "policy", "evidence")
            },
            gateway_id=GATEWAY,
            site_id=SITE,
            organization_id=ORGANIZATION,
            edges=(self.address("edge"),),
        )
        self.running["gateway"] = Running("gateway", serve_gateway, config)
        await self.running["gateway"].started()

    async def stop(self, *roles: str) -> None:
        for role in roles:
            running = self.running.pop(role, None)
            if running is not None:
                await running.stopped()

    async def close(self) -> None:
        if self.pump_task is not None:
            self.pump_task.cancel()
            await asyncio.gather(self.pump_task, return_exceptions=True)
        for channels in self.channels:
            await channels.close()
        await self.stop("gateway", *reversed(SERVICES))

    # --- people

    def channel(self, credential: Credential, role: str) -> grpc.aio.Channel:
        channels = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=self.clock)
        self.channels.append(channels)
        if role == "gateway":
            return channels.gateway(self.address(role), GATEWAY)
        return channels.service(self.address(role), role)

    def sign(self, credential: Credential, body: Any, *, subject: str = "device/any") -> Statement[Any]:
        scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        return scribe.sign(body, subject=subject)

    # --- setting up

    async def set_up(self) -> None:
        for role in SERVICES:
            await self.start(role)
        await self._register()
        await self._publish()
        await self._enrol()
        await self.start_gateway()
        self.runner.dial(Dialled(self.address("gateway"), GATEWAY))

    async def _register(self) -> None:
        registry: Any = identity_pb2_grpc.RegistryServiceStub(self.channel(self.pki.admin(), "identity"))
        root = self.maker.root.public_bytes(_pem()).decode()
        for organization in (
            identity_pb2.Organization(organization_id=ORGANIZATION, display_name="Hospital"),
            identity_pb2.Organization(
                organization_id=MAKER, display_name="Maker", manufacturer_root_pem=root
            ),
        ):
            request = identity_pb2.CreateOrganizationRequest(organization=organization)
            await translated(registry.CreateOrganization(request, timeout=20))
        site = identity_pb2.Site(
            site_id=SITE, organization_id=ORGANIZATION, display_name="Main", time_zone="Europe/Berlin"
        )
        await translated(registry.CreateSite(identity_pb2.CreateSiteRequest(site=site), timeout=20))
        key = new_private_key()
        gateway = identity_pb2.Gateway(
            gateway_id=GATEWAY,
            organization_id=ORGANIZATION,
            site_id=SITE,
            address=self.address("gateway"),
        )
        request = identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode())
        made = await translated(registry.CreateGateway(request, timeout=20))
        home = self.folder / "gateway-home"
        home.mkdir()
        store_pair(
            home / "tls.pem",
            home / "tls.key",
            chain_pem=made.certificate.certificate_pem.encode(),
            private_key=key,
        )
        (home / "trust.json").write_text(made.certificate.trust_json)

    async def _publish(self) -> None:
        releases: Any = release_pb2_grpc.ReleaseServiceStub(self.channel(self.publisher, "release"))
        profile = profile_from_json((DATA / "pump-profile.json").read_text())
        statement = self.sign(self.maker.credential("profile"), profile, subject=f"model/{profile.model}")
        request = release_pb2.PublishModelRequest(profile=statement.data)
        # The manufacturer's root reaches the services through the trust bundle, which they look at each second.
        await until(lambda: translated(releases.PublishModel(request, timeout=20)))
        artifacts: Any = release_pb2_grpc.ArtifactServiceStub(self.channel(self.publisher, "release"))
        for build in self.builds:
            await translated(artifacts.UploadArtifact(pieces(build.image), timeout=20))
            await translated(releases.PublishRelease(self._release(build), timeout=20))
        content = content_of_settings((DATA / "baseline-configuration.json").read_text())
        now = self.clock.now()
        body = b.Baseline(
            baseline_kind=b.BaselineKind.CONFIGURATION,
            name="general-ward",
            site=SITE,
            organization=ORGANIZATION,
            content=sha256(content),
            size=len(content),
            models=(MODEL,),
            valid_from=now,
            valid_to=now + 24 * HOUR,
        )
        site: Any = release_pb2_grpc.ReleaseServiceStub(self.channel(self.pharmacist, "release"))
        signed = self.sign(self.pharmacist, body, subject=f"site/{SITE}")
        baseline = release_pb2.PublishBaselineRequest(baseline=signed.data, content=content)
        await translated(site.PublishBaseline(baseline, timeout=20))

    def _release(self, build: Build) -> release_pb2.PublishReleaseRequest:
        body = b.Release(
            model=MODEL,
            version=build.version,
            firmware=build.digest,
            size=len(build.image),
            security_version=build.security_version,
            sbom=sha256(build.sbom),
            udi_di="09504000059118",
        )
        attested = in_toto_statement(
            name=f"{build.version}.bin", sha256=build.digest, predicate=json.loads(build.sbom)
        )
        credential = self.maker.credential("release")
        return release_pb2.PublishReleaseRequest(
            release=self.sign(credential, body, subject=f"build/{build.digest.hex()}").data,
            sbom_attestation=make_dsse(attested, signer=credential.signer),
            sbom=build.sbom,
        )

    async def _enrol(self) -> None:
        folder = self.folder / "pumps" / "pump-1"
        folder.parent.mkdir()
        made = make_pump(
            folder,
            udi=UDI,
            model=MODEL,
            manufacturer=MAKER,
            firmware=FirstBuild(
                image=self.builds[0].image,
                version=self.builds[0].version,
                security_version=self.builds[0].security_version,
                sbom=sha256(self.builds[0].sbom),
            ),
            settings=json.loads((DATA / "baseline-configuration.json").read_text())["settings"],
            clock=self.clock,
            entropy=os.urandom,
        )
        self.runner = PumpRunner(
            folder, gateway=None, shared=SharedTrust(), clock=self.clock, entropy=os.urandom
        )
        self.pump_task = asyncio.create_task(self.runner.run())
        await self.runner.started()
        enrolment: Any = identity_pb2_grpc.EnrolmentServiceStub(self.channel(self.enroller, "identity"))
        voucher = self.sign(
            self.maker.credential("voucher"),
            b.Voucher(udi=made.udi, model=made.model, identity_key=made.identity_key),
            subject=f"udi/{made.udi}",
        )
        begin = identity_pb2.StartEnrolmentRequest(
            voucher=voucher.data, organization_id=ORGANIZATION, site_id=SITE, asset_tag="P-17"
        )
        started = await translated(enrolment.StartEnrolment(begin, timeout=20))
        proof = possession_to_proto(self.runner.possession(started.nonce))
        complete = identity_pb2.CompleteEnrolmentRequest(enrolment_id=started.enrolment_id, possession=proof)
        completed = await translated(enrolment.CompleteEnrolment(complete, timeout=20))
        self.device_id = completed.device.device_id
        taken: messages.Certificates = certificates(completed.certificates)
        assert self.runner.install(taken).id == self.device_id
        activator: Any = identity_pb2_grpc.EnrolmentServiceStub(self.channel(self.approver, "identity"))
        activate = identity_pb2.ActivateDeviceRequest(device_id=self.device_id)
        await translated(activator.ActivateDevice(activate, timeout=20))


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


async def pieces(content: bytes) -> AsyncIterator[release_pb2.UploadArtifactRequest]:
    start = release_pb2.UploadStart(digest=sha256(content), size=len(content), offset=0)
    yield release_pb2.UploadArtifactRequest(start=start)
    for place in range(0, len(content), 65_536):
        yield release_pb2.UploadArtifactRequest(chunk=content[place : place + 65_536])


async def until(call: Callable[[], Any], accept: Callable[[Any], Any] = bool, *, seconds: float = 30) -> Any:
    """Ask again until the answer is accepted; a refusal is not. What bounds the wait decides nothing."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    last = await call()
                    if accept(last):
                        return last
                except Refused as refusal:
                    last = refusal
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"it never came to be: {last}") from None


class Client:
    """A person at the gateway."""

    def __init__(self, hospital: Hospital, credential: Credential) -> None:
        self.hospital = hospital
        self.credential = credential
        channel = hospital.channel(credential, "gateway")
        self.commands: Any = gateway_pb2_grpc.CommandServiceStub(channel)
        self.intents: Any = gateway_pb2_grpc.IntentServiceStub(channel)
        self.devices: Any = gateway_pb2_grpc.GatewayDeviceServiceStub(channel)

    def intent(
        self, action: str, parameters: dict[str, Any] | None = None, **changed: Any
    ) -> Statement[b.Intent]:
        now, device = self.hospital.clock.now(), self.hospital.device_id
        body = b.Intent(
            target_root=target_root([device]),
            target_count=1,
            action=action,
            parameters=parameters or {},
            request_id=os.urandom(16),
            mode=b.Mode.NOW,
            not_before=now,
            expires=now + HOUR,
            work_order="WO-1",
        )
        subject = f"device/{device}"
        signed: Statement[b.Intent] = self.hospital.sign(
            self.credential, replace(body, **changed), subject=subject
        )
        return signed

    async def prepare(self, action: str) -> gateway_pb2.PrepareCommandResponse:
        request = gateway_pb2.PrepareCommandRequest(device_id=self.hospital.device_id, action=action)
        prepared: gateway_pb2.PrepareCommandResponse = await translated(
            self.commands.PrepareCommand(request, timeout=20)
        )
        return prepared

    async def submit(self, intent: Statement[b.Intent]) -> gateway_pb2.SubmitCommandResponse:
        prepared = await self.prepare(intent.body.action)
        device = self.hospital.device_id
        index, path = target_path([device], device)
        body = b.Command(intent=intent.digest, device=device, index=index, path=path, nonce=prepared.nonce)
        command = self.hospital.sign(self.credential, body, subject=f"device/{device}")
        request = gateway_pb2.SubmitCommandRequest(device_id=device, intent=intent.data, command=command.data)
        answer: gateway_pb2.SubmitCommandResponse = await translated(
            self.commands.SubmitCommand(request, timeout=20)
        )
        return answer

    async def give(
        self, action: str, parameters: dict[str, Any] | None = None, **changed: Any
    ) -> list[b.Receipt]:
        """Prepare, sign, submit; the receipts, each verified as a client does."""
        answer = await self.submit(self.intent(action, parameters, **changed))
        return [read(data, b.Receipt).body for data in answer.receipts]

    async def refusals(self, action: str, parameters: dict[str, Any] | None = None) -> list[Reason]:
        with pytest.raises(Refused) as caught:
            await self.give(action, parameters)
        return [one.reason for one in caught.value.refusals]

    async def device(self) -> gateway_pb2.ConnectedDevice:
        request = gateway_pb2.GetConnectedDeviceRequest(device_id=self.hospital.device_id)
        device: gateway_pb2.ConnectedDevice = await translated(
            self.devices.GetConnectedDevice(request, timeout=10)
        )
        return device

    async def ready(self) -> None:
        """Connected, attested, and everything fresh enough for a change."""
        await until(self.device, lambda device: device.connected and device.trust_status == "affirming")
        status = gateway_pb2.GetGatewayStatusRequest()
        await until(
            lambda: translated(self.devices.GetGatewayStatus(status, timeout=10)),
            lambda answer: answer.lease_left_ms > 0,
        )


@asynccontextmanager
async def a_hospital(folder: Path) -> AsyncIterator[tuple[Hospital, Client]]:
    hospital = Hospital(folder)
    try:
        await hospital.set_up()
        me = Client(hospital, hospital.technician)
        await me.ready()
        yield hospital, me
    finally:
        await hospital.close()


async def subjects(hospital: Hospital) -> list[str]:
    """The kinds of the device's records in the log, oldest first."""
    reading: Any = evidence_pb2_grpc.EvidenceReadServiceStub(hospital.channel(hospital.auditor, "evidence"))
    request = evidence_pb2.ListHistoryRequest(subject=f"device/{hospital.device_id}", page_size=100)
    history = await translated(reading.ListHistory(request, timeout=10))
    return [entry.kind for entry in history.entries]


async def test_a_command_from_hand_to_pump_and_into_the_log(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        (receipt,) = await me.give("read-diagnostics")
        assert (receipt.outcome, receipt.device) == (b.Outcome.APPLIED, hospital.device_id)
        assert receipt.data["battery_percent"] == "100"

        # A change, now, with the pump's patient released at the bedside.
        hospital.runner.at_bedside(lambda pump: pump.bedside_release())
        # Policy believes what the pump attested, which takes a moment to come after the nurse's hand.
        change = {"occlusion_pressure": 300}
        (changed,) = await until(lambda: me.give("set-occlusion-pressure", change))
        assert changed.outcome is b.Outcome.APPLIED
        agent = hospital.runner.agent
        assert agent is not None
        assert agent.status().settings["occlusion_pressure"] == "300"

        # Refused by policy, in code, with every reason; the refusal is on record too.
        reasons = await me.refusals("set-occlusion-pressure", {"occlusion_pressure": 9_000})
        assert Reason.PARAMETER_OUT_OF_RANGE in reasons

        # Staged until the therapy is over, then applied on a head that answers the pump's own challenge.
        hospital.runner.at_bedside(lambda pump: pump.start_therapy(1_000))
        intent = me.intent("set-occlusion-pressure", {"occlusion_pressure": 350}, mode=b.Mode.IDLE)
        answer = await me.submit(intent)
        assert read(answer.receipts[-1], b.Receipt).body.outcome is b.Outcome.STAGED
        hospital.runner.at_bedside(lambda pump: pump.stop_therapy())
        hospital.runner.at_bedside(lambda pump: pump.bedside_release())
        request = gateway_pb2.GetCommandRequest(command_id=answer.command_id)
        record = await until(
            lambda: translated(me.commands.GetCommand(request, timeout=10)),
            lambda found: found.outcome == "applied",
        )
        assert len(record.receipts) == 2

        # Approved by somebody else, kept and recorded before: out of quarantine again.
        assert (await me.give("quarantine"))[0].outcome is b.Outcome.APPLIED
        identity: Any = identity_pb2_grpc.DeviceServiceStub(hospital.channel(hospital.approver, "identity"))
        asked = identity_pb2.GetDeviceRequest(device_id=hospital.device_id)
        await until(
            lambda: translated(identity.GetDevice(asked, timeout=10)),
            lambda device: device.state == identity_pb2.DEVICE_STATE_QUARANTINED,
        )
        await _release_quarantine(hospital, me)
        await until(
            lambda: translated(identity.GetDevice(asked, timeout=10)),
            lambda device: device.state == identity_pb2.DEVICE_STATE_ACTIVE,
        )
        kinds = await until(lambda: subjects(hospital), lambda found: found.count("receipt") >= 6)
        for kind in ("intent", "command", "decision", "receipt", "approval"):
            assert kind in kinds


async def _approved(hospital: Hospital, me: Client, intent: Statement[b.Intent]) -> None:
    """The intent kept at the gateway, and approved there by somebody else."""
    other = Client(hospital, hospital.approver)
    create = gateway_pb2.CreateIntentRequest(device_ids=[hospital.device_id], intent=intent.data)
    record = await translated(me.intents.CreateIntent(create, timeout=20))
    assert (record.state, record.approvals_needed) == ("pending", 1)
    body = b.Approval(intent=intent.digest, meaning="approval", expires=intent.body.expires)
    approval = hospital.sign(hospital.approver, body, subject=f"device/{hospital.device_id}")
    approve = gateway_pb2.ApproveIntentRequest(intent_id=record.intent_id, approval=approval.data)
    assert (await translated(other.intents.ApproveIntent(approve, timeout=20))).state == "approved"


async def _release_quarantine(hospital: Hospital, me: Client) -> None:
    intent = me.intent("release-quarantine")
    await _approved(hospital, me, intent)

    async def finish() -> gateway_pb2.SubmitCommandResponse:
        # Policy hears of the quarantine through identity's feed.
        return await me.submit(intent)

    answer = await until(
        finish, lambda one: read(one.receipts[-1], b.Receipt).body.outcome is b.Outcome.APPLIED
    )
    assert answer.command_id


async def test_an_update_reaches_the_pump_in_pieces_through_the_gateway(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        newer = hospital.builds[1]
        intent = me.intent("update-firmware", {"firmware": newer.digest}, mode=b.Mode.IDLE)
        await _approved(hospital, me, intent)
        answer = await me.submit(intent)
        assert read(answer.receipts[-1], b.Receipt).body.outcome is b.Outcome.STAGED
        cached = hospital.folder / "gateway-home" / "data" / "artifacts" / newer.digest.hex()
        await until(lambda: _soon(cached.exists))
        assert cached.read_bytes() == newer.image
        hospital.runner.at_bedside(lambda pump: pump.bedside_release())
        request = gateway_pb2.GetCommandRequest(command_id=answer.command_id)
        await until(
            lambda: translated(me.commands.GetCommand(request, timeout=10)),
            lambda found: found.outcome == "applied",
            seconds=60,
        )
        await until(me.device, lambda device: device.connected and device.software_version == newer.version)


async def _soon(look: Callable[[], Any]) -> Any:
    return look()


@pytest.mark.holds("stolen-technician")
async def test_a_stolen_credential_dies_with_its_revocation(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        follow = me.devices.FollowDevice(
            gateway_pb2.FollowDeviceRequest(device_id=hospital.device_id), timeout=60
        )
        first = await follow.read()
        assert first.status.boot_count >= 1
        assert first.trust_status == "affirming"
        recall: Any = revocation_pb2_grpc.RevocationServiceStub(
            hospital.channel(hospital.recall, "revocation")
        )
        body = b.Revocation(
            scope=b.Scope.CREDENTIAL,
            ids=(hospital.technician.identity.thumbprint.hex(),),
            effect=b.RevocationEffect.DENY,
            reason=b.RevocationReason.COMPROMISE,
        )
        statement = hospital.sign(hospital.recall, body, subject="person/p-technician")
        await translated(recall.Revoke(revocation_pb2.RevokeRequest(revocation=statement.data), timeout=20))

        async def drain() -> None:
            while await follow.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(Refused) as cut:
            await translated(drain())
        assert cut.value.reason is Reason.CREDENTIAL_REVOKED
        assert await me.refusals("quarantine") == [Reason.CREDENTIAL_REVOKED]
        # Enforcing here, and at the pump, both acknowledged.
        coverage = await until(
            lambda: translated(recall.GetCoverage(revocation_pb2.GetCoverageRequest(epoch=1), timeout=10)),
            lambda answer: answer.enforcing == 1 and answer.devices == 1,
        )
        assert coverage.epoch == 1


async def test_cut_off_and_restarted_the_gateway_still_does_safety_actions(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        await hospital.stop("gateway", *reversed(SERVICES))
        await hospital.start_gateway()
        await until(me.device, lambda device: device.connected)
        assert await me.refusals("read-diagnostics") == [Reason.LEASE_EXPIRED]
        (receipt,) = await me.give("quarantine")
        assert receipt.outcome is b.Outcome.APPLIED
        # Everything comes back by itself, and what was done meanwhile reaches the log and the registry.
        for role in SERVICES:
            await hospital.start(role)
        await me.ready()
        kinds = await until(lambda: subjects(hospital), lambda found: "receipt" in found)
        assert {"intent", "command", "receipt"} <= set(kinds)
        identity: Any = identity_pb2_grpc.DeviceServiceStub(hospital.channel(hospital.approver, "identity"))
        asked = identity_pb2.GetDeviceRequest(device_id=hospital.device_id)
        await until(
            lambda: translated(identity.GetDevice(asked, timeout=10)),
            lambda device: device.state == identity_pb2.DEVICE_STATE_QUARANTINED,
        )


async def test_without_policy_or_evidence_nothing_but_safety_goes_on(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        await hospital.stop("evidence")
        assert (await me.refusals("read-diagnostics"))[0] is Reason.EVIDENCE_UNAVAILABLE
        await hospital.stop("policy")
        assert (await me.refusals("read-diagnostics"))[0] is Reason.POLICY_UNAVAILABLE
        (receipt,) = await me.give("quarantine")
        assert receipt.outcome is b.Outcome.APPLIED


async def test_the_gateways_certificate_is_renewed_while_it_serves(tmp_path: Path) -> None:
    async with a_hospital(tmp_path) as (hospital, me):
        home = hospital.folder / "gateway-home"
        files = TlsFiles(home / "tls.pem", home / "tls.key", home / "trust.json")
        before = files.certificate.read_bytes()
        from vigil.gateway.own_key import OwnKey
        from vigil.gateway.renewal import Renewal
        from vigil.gateway.trust import Trust

        trust = Trust(path=files.trust, clock=hospital.clock)
        key = OwnKey(gateway_id=GATEWAY, tls=files, trust=trust, clock=hospital.clock, entropy=os.urandom)
        channels = Channels(tls=files, trust_domain=hospital.pki.trust_domain, clock=hospital.clock)
        hospital.channels.append(channels)
        stub = identity_pb2_grpc.CertificateServiceStub(
            channels.service(hospital.address("identity"), "identity")
        )
        renewal = Renewal(
            gateway_id=GATEWAY,
            stub=stub,
            tls=files,
            key=key,
            trust=trust,
            on_renewed=channels.refresh,
            clock=hospital.clock,
            entropy=os.urandom,
        )
        old = key.identity
        await renewal.renew()
        assert files.certificate.read_bytes() != before
        assert key.identity.thumbprint != old.thumbprint
        assert key.identity.id == old.id
        for _ in range(5):
            (receipt,) = await me.give("read-diagnostics")
            assert receipt.outcome is b.Outcome.APPLIED
