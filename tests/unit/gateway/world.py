"""A real gateway on a loopback port, people who call it, a pump's end of the link, and what the control plane signs.

The gateway is the real one, over a real database and real mutual TLS. The peers behind it answer at loopback ports
with statements that the ceremony's real signers made; a peer that is not started is simply not there.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2
from prometheus_client import CollectorRegistry

from tests.support.pki import DEVICE, ORGANIZATION, SITE, Credential, TestPki
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.api.gateway.v1 import gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2
from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core import merkle
from vigil.core.clock import SystemClock
from vigil.core.commands import record_leaf, target_path, target_root
from vigil.core.digest import sha256
from vigil.core.revocations import EMPTY_CHAIN, chain_hash
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.errors import Reason, Refused, refused
from vigil.gateway import store
from vigil.gateway.__main__ import Gateway
from vigil.gateway.config import GatewayConfig
from vigil.rpc import status
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.service_main import Process
from vigil.rpc.stream_server import serve_exchange
from vigil.storage import open_database

GATEWAY, MODEL, MAKER = "gateway-1", "aria-3000", "maker"
NOWHERE = "127.0.0.1:1"
HOUR = 3_600_000


class SteppedClock(SystemClock):
    """The machine's clocks, moved ahead together."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> int:
        return super().now() + int(self.ahead_s * 1000)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def action(name: str, action_class: b.ActionClass, effect: b.Effect, **changed: Any) -> b.ActionSpec:
    values = {"parameters": (), "approvals": 0, "states": tuple(b.TherapyState), **changed}
    return b.ActionSpec(name=name, action_class=action_class, effect=effect, **values)


FIRMWARE = b"firmware" * 30_000
ACTIONS = (
    action("quarantine", b.ActionClass.S1, b.Effect.QUARANTINE),
    action("diagnose", b.ActionClass.R, b.Effect.DIAGNOSE),
    action("set-language", b.ActionClass.C, b.Effect.SET),
    action(
        "update-firmware",
        b.ActionClass.U,
        b.Effect.UPDATE,
        approvals=1,
        parameters=(b.ParameterSpec("firmware", b.ParameterType.DIGEST, required=True),),
    ),
)


class World:
    """One hospital's gateway and everybody around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SteppedClock()
        self.pki = TestPki(folder, clock=self.clock)
        self.maker = self.pki.manufacturer(MAKER)
        self.gateway_credential = self.pki.gateway(GATEWAY)
        self.technician = self.pki.person("p-technician", "technician")
        self.approver = self.pki.person("p-approver", "approver")
        now = self.clock.now()
        self.safety = self.pki.person(
            "p-safety", "safety", operational_until=now + HOUR, not_after=now + 73 * HOUR
        )
        self.recall = self.pki.person("p-recall", "recall")
        self.devices = {DEVICE: self.pki.device(DEVICE)}
        self.attesters = {DEVICE: self.pki.attester(DEVICE)}
        self.profile = self.sign(
            self.maker.credential("profile"),
            b.Profile(MODEL, 2, b.RiskClass.IIB, 600, 60, "sensor", ACTIONS),
            subject=f"model/{MODEL}",
        )
        self.peers = dict.fromkeys(("identity", "release", "attestation", "policy", "evidence"), NOWHERE)
        self.edges: tuple[str, ...] = (NOWHERE,)
        self.quotas: dict[str, int] = {}
        self.gateway: Gateway
        self.port = 0

    # --- statements

    def sign(self, credential: Credential, body: Any, *, subject: str = "device/any") -> Statement[Any]:
        scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        return scribe.sign(body, subject=subject)

    def by(self, statement: str, body: Any) -> Statement[Any]:
        """Signed by the ceremony's signer for this kind."""
        return self.sign(self.pki.signer_credential(statement), body)

    def intent(
        self,
        name: str,
        *,
        requester: Credential | None = None,
        devices: Sequence[str] = (DEVICE,),
        **changed: Any,
    ) -> Statement[b.Intent]:
        now = self.clock.now()
        body = b.Intent(
            target_root=target_root(devices),
            target_count=len(devices),
            action=name,
            parameters={},
            request_id=os.urandom(16),
            mode=b.Mode.NOW,
            not_before=now,
            expires=now + HOUR,
            work_order="WO-1",
        )
        signed: Statement[b.Intent] = self.sign(requester or self.technician, replace(body, **changed))
        return signed

    def command(
        self,
        intent: Statement[b.Intent],
        nonce: bytes,
        *,
        signer: Credential | None = None,
        devices: Sequence[str] = (DEVICE,),
        device: str = DEVICE,
    ) -> Statement[b.Command]:
        index, path = target_path(devices, device)
        body = b.Command(intent=intent.digest, device=device, index=index, path=path, nonce=nonce)
        signed: Statement[b.Command] = self.sign(signer or self.technician, body)
        return signed

    def approval(self, intent: Statement[b.Intent], approver: Credential) -> Statement[b.Approval]:
        body = b.Approval(intent=intent.digest, meaning="approval", expires=intent.body.expires)
        signed: Statement[b.Approval] = self.sign(approver, body)
        return signed

    def record(self, digest: bytes) -> evidence_pb2.RecordedItem:
        """As a log would: one commit with this statement alone."""
        leaf = record_leaf(0, digest)
        body = b.Recorded(root=merkle.tree_root([leaf]), first=0, count=1, time=self.clock.now())
        return evidence_pb2.RecordedItem(recorded=self.by("recorded", body).data, index=0)

    def result(self, device: str = DEVICE, *, lifetime_s: int = 600) -> Statement[b.Result]:
        now = self.clock.now()
        signed: Statement[b.Result] = self.by(
            "result",
            b.Result(
                device=device,
                evidence=bytes(32),
                status=b.TrustTier.AFFIRMING,
                vector={},
                reasons=(),
                basis=b.EvidenceBasis.ATTESTED,
                boot_count=1,
                log_size=1,
                measurements=b.Measurements(bytes(32), bytes(32), bytes(32), bytes(32)),
                security_version=1,
                therapy=b.Therapy(b.TherapyState.IDLE, b.PatientState.DISCONNECTED, now),
                quarantined=False,
                holds=0,
                appraised_at=now,
                stale_at=now + lifetime_s * 1000,
                therapy_stale_at=now + lifetime_s * 1000,
            ),
        )
        return signed

    # --- the gateway

    def config(self) -> GatewayConfig:
        files = self.gateway_credential.tls_files
        return GatewayConfig(
            data_dir=self.folder / "gateway",
            listen="127.0.0.1:0",
            trust_domain=self.pki.trust_domain,
            certificate=files.certificate,
            key=files.key,
            trust=files.trust,
            peers=self.peers,
            gateway_id=GATEWAY,
            site_id=SITE,
            organization_id=ORGANIZATION,
            edges=self.edges,
            quotas=self.quotas,
        )

    def device_row(self, device: str = DEVICE, **changed: Any) -> identity_pb2.Device:
        values = {
            "device_id": device,
            "udi": f"(01)09504000059118(21){device}",
            "serial": f"sn-{device}",
            "model": MODEL,
            "organization_id": ORGANIZATION,
            "site_id": SITE,
            "state": identity_pb2.DEVICE_STATE_ACTIVE,
        }
        return identity_pb2.Device(**{**values, **changed})

    def seed(self, *devices: identity_pb2.Device) -> None:
        """What an earlier run of the gateway had persisted of its site."""
        rows = [("device", one.device_id, one.SerializeToString()) for one in devices or (self.device_row(),)]
        model = release_pb2.Model(model=MODEL, version=2, profile=self.profile.data)
        build = release_pb2.Release(firmware=sha256(FIRMWARE), model=MODEL, size=len(FIRMWARE))
        database = open_database(
            self.folder / "gateway" / "gateway.db", metadata=store.METADATA, migrations=store.MIGRATIONS
        )
        database.write_now(lambda conn: store.replace_directory(conn, "identity", rows))
        database.write_now(
            lambda conn: store.replace_directory(
                conn,
                "release",
                [
                    ("model", MODEL, model.SerializeToString()),
                    ("release", build.firmware.hex(), build.SerializeToString()),
                ],
            )
        )
        database.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        """From start to stop; again and again over the same folder."""
        process = Process(role="gateway", ready_fd=None, clock=self.clock)
        process.metrics = CollectorRegistry()
        self.gateway = Gateway(self.config(), process)
        self.port = await self.gateway.start()
        try:
            yield self.gateway
        finally:
            await self.gateway.stop()
        assert not process.failed

    # --- callers

    @asynccontextmanager
    async def caller(self, credential: Credential) -> AsyncIterator["Caller"]:
        channels = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=self.clock)
        try:
            yield Caller(self, credential, channels.gateway(f"127.0.0.1:{self.port}", GATEWAY))
        finally:
            await channels.close()

    @asynccontextmanager
    async def pump(self, device: str = DEVICE, **changed: Any) -> AsyncIterator["Pump"]:
        """A pump's end of the link, connected and welcomed."""
        async with self.caller(self.devices[device]) as caller:
            pump = Pump(self, device, caller.link, **changed)
            try:
                await pump.connect()
                yield pump
            finally:
                await pump.close()

    @asynccontextmanager
    async def serving(self, role: str, *servicers: Any) -> AsyncIterator[str]:
        """A peer at a loopback port; answers its address."""
        server = GrpcServer(
            role=role,
            tls=self.pki.service(role).tls_files,
            clock=self.clock,
            listen="127.0.0.1:0",
            servicers=servicers,
        )
        port = await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


class Caller:
    """A person's client."""

    def __init__(self, world: World, credential: Credential, channel: grpc.aio.Channel) -> None:
        self.world = world
        self.credential = credential
        self.commands: Any = gateway_pb2_grpc.CommandServiceStub(channel)
        self.intents: Any = gateway_pb2_grpc.IntentServiceStub(channel)
        self.devices: Any = gateway_pb2_grpc.GatewayDeviceServiceStub(channel)
        self.link: Any = gateway_pb2_grpc.DeviceLinkServiceStub(channel)

    async def prepare(self, name: str, device: str = DEVICE) -> pb.PrepareCommandResponse:
        request = pb.PrepareCommandRequest(device_id=device, action=name)
        answer: pb.PrepareCommandResponse = await status.translated(
            self.commands.PrepareCommand(request, timeout=20)
        )
        return answer

    async def submit(
        self,
        intent: Statement[Any],
        command: Statement[Any],
        *,
        device: str = DEVICE,
        approvals: Sequence[Statement[Any]] = (),
        seconds: float = 20,
    ) -> pb.SubmitCommandResponse:
        request = pb.SubmitCommandRequest(
            device_id=device,
            intent=intent.data,
            command=command.data,
            approvals=[one.data for one in approvals],
        )
        answer: pb.SubmitCommandResponse = await status.translated(
            self.commands.SubmitCommand(request, timeout=seconds)
        )
        return answer

    async def give(self, name: str, *, seconds: float = 20, **how: Any) -> pb.SubmitCommandResponse:
        """Prepare, sign and submit."""
        prepared = await self.prepare(name)
        intent = self.world.intent(name, requester=self.credential, **how)
        command = self.world.command(intent, prepared.nonce, signer=self.credential)
        return await self.submit(intent, command, seconds=seconds)


async def eventually(condition: Callable[[], Any], *, seconds: float = 15) -> Any:
    """Wait until something holds; what bounds the wait decides nothing."""
    async with asyncio.timeout(seconds):
        while True:
            if found := condition():
                return found
            await asyncio.sleep(0.01)


async def reason_of(call: Any) -> Reason:
    """Why a call was refused."""
    try:
        answer = await call
    except Refused as refusal:
        return refusal.reason
    raise AssertionError(f"nothing was refused: {answer!r}")


class Pump:
    """A pump's end of the link that does what a test tells it to: by default, apply whatever comes."""

    def __init__(
        self, world: World, device: str, link: Any, *, outcomes: Sequence[b.Outcome] = (b.Outcome.APPLIED,)
    ) -> None:
        self.world = world
        self.device = device
        self.outcomes = list(outcomes)
        self.seen: list[pb.ConnectResponse] = []
        self.kept: dict[bytes, list[bytes]] = {}
        self.answer_query = True
        self.forgot: status_pb2.Status | None = None
        self.on_attest_now: Callable[[], Any] | None = None
        self.news = asyncio.Event()
        self.call = link.Connect()
        self._reader: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        hello = pb.DeviceHello(
            model=MODEL,
            firmware_version="1",
            boot_count=1,
            profile_version=1,
            attestation_chain=self.world.attesters[self.device].chain,
        )
        await self.say(hello=hello)
        self._reader = asyncio.create_task(self._read())
        await self.got("welcome")

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await self._reader

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.ConnectRequest(device_id=self.device, **message))

    async def got(self, kind: str, count: int = 1) -> pb.ConnectResponse:
        """Wait for the n-th message of a kind."""
        async with asyncio.timeout(20):
            while len(found := [one for one in self.seen if one.WhichOneof("message") == kind]) < count:
                if self._reader is not None and self._reader.done():
                    await self._reader
                    raise AssertionError(f"the stream ended before {kind}")
                self.news.clear()
                await self.news.wait()
        return found[count - 1]

    async def entries(self, count: int) -> list[pb.Revocations]:
        """Wait until the messages about revocations hold so many entries, and a head behind them."""
        async with asyncio.timeout(20):
            while True:
                told = [one.revocations for one in self.seen if one.WhichOneof("message") == "revocations"]
                if sum(len(one.entries) for one in told) >= count and told[-1].HasField("head"):
                    return told
                self.news.clear()
                await self.news.wait()

    async def ended(self) -> Refused:
        """How the gateway ended the stream."""
        assert self._reader is not None
        try:
            async with asyncio.timeout(20):
                await self._reader
        except grpc.aio.AioRpcError as error:
            return status.from_rpc_error(error)
        raise AssertionError("the stream ended without a refusal")

    def receipt(
        self, intent: Statement[b.Intent], command: bytes, outcome: b.Outcome, number: int = 1, **changed: Any
    ) -> bytes:
        body = b.Receipt(
            intent=intent.digest,
            command=command,
            request_id=intent.body.request_id,
            number=number,
            outcome=outcome,
            device=self.device,
            udi="udi",
            action=intent.body.action,
            performed_by="p-technician",
            log=b.LogHead(1, bytes(32), 1),
            boot_count=1,
            device_time=self.world.clock.now(),
            applied=1,
        )
        return self.world.sign(self.world.attesters[self.device], replace(body, **changed)).data

    async def _read(self) -> None:
        try:
            async for message in self.call:
                self.seen.append(message)
                await self._answer(message)
                self.news.set()
        finally:
            self.news.set()

    async def _answer(self, message: pb.ConnectResponse) -> None:
        match message.WhichOneof("message"):
            case "nonce":
                await self.say(nonce=pb.NonceReply(call_id=message.nonce.call_id, nonce=os.urandom(16)))
            case "bundle":
                await self._carry_out(message.bundle)
            case "receipt_query" if self.answer_query:
                query = message.receipt_query
                kept = self.kept.get(query.request_id, [])
                reply = pb.DeviceReceipt(
                    call_id=query.call_id, receipts=kept, error=None if kept else self.forgot
                )
                await self.say(receipt=reply)
            case "attest_now" if self.on_attest_now is not None:
                await self.on_attest_now()
            case _:
                pass

    async def _carry_out(self, bundle: pb.Bundle) -> None:
        intent = read(bundle.intent, b.Intent)
        command = read(bundle.command, b.Command)
        receipts = [
            self.receipt(intent, command.digest, outcome, number)
            for number, outcome in enumerate(self.outcomes, 1)
        ]
        self.kept[intent.body.request_id] = receipts
        if receipts:
            await self.say(receipt=pb.DeviceReceipt(call_id=bundle.call_id, receipts=receipts))


class Edge(revocation_pb2_grpc.EdgeServiceServicer):
    """What an edge says, with heads by the ceremony's signer; ``answering`` False makes it fall silent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.entries: list[revocation_pb2.RevocationEntry] = []
        self.answering = True
        self.acknowledged: list[b.Acknowledgement] = []
        self.starts: list[revocation_pb2.FollowStart] = []
        self.queues: list[asyncio.Queue[Any]] = []
        self.sent = 0
        self.news = asyncio.Event()

    def servicer(self) -> Any:
        return (
            revocation_pb2_grpc.add_EdgeServiceServicer_to_server,
            self,
            "vigil.api.revocation.v1.EdgeService",
        )

    def revoke(
        self,
        scope: b.Scope,
        *ids: str,
        reason: b.RevocationReason = b.RevocationReason.LEAVER,
    ) -> None:
        statement = self.world.sign(
            self.world.recall, b.Revocation(scope, ids, b.RevocationEffect.DENY, reason), subject="revocation"
        )
        previous = self.entries[-1].chain if self.entries else EMPTY_CHAIN
        epoch = len(self.entries) + 1
        self.entries.append(
            revocation_pb2.RevocationEntry(
                epoch=epoch,
                statements=[statement.data],
                chain=chain_hash(previous, epoch, [statement.digest]),
            )
        )

    async def Follow(self, request_iterator: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.queues.append(queue)
        reader = asyncio.create_task(self._read(request_iterator, queue))
        try:
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self.queues.remove(queue)
            reader.cancel()

    async def _read(self, requests: Any, queue: "asyncio.Queue[Any]") -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "start":
                    self.starts.append(request.start)
                    self.sent = request.start.epoch
                case "acknowledgement":
                    self.acknowledged.append(read(request.acknowledgement, b.Acknowledgement).body)
                    self.news.set()
                case "challenge" if self.answering:
                    self._tell(queue, request.challenge)
                case _:
                    pass
        queue.put_nowait(None)

    def push(self) -> None:
        """Tell every follower at once, as the bus would, with no challenge answered."""
        for queue in self.queues:
            self._tell(queue, b"nobody asked for this")

    def _tell(self, queue: "asyncio.Queue[Any]", challenge: bytes) -> None:
        entries, self.sent = self.entries[self.sent :], len(self.entries)
        if entries:
            batch = revocation_pb2.EntryBatch(entries=entries)
            queue.put_nowait(revocation_pb2.FollowResponse(entries=batch))
        queue.put_nowait(revocation_pb2.FollowResponse(head=self.head(challenge)))

    def head(self, challenge: bytes) -> revocation_pb2.AnsweredHead:
        leaves = [merkle.leaf_hash(b"somebody else's"), merkle.leaf_hash(challenge)]
        body = b.Head(
            epoch=len(self.entries),
            chain=self.entries[-1].chain if self.entries else EMPTY_CHAIN,
            era=0,
            issued=self.world.clock.now(),
            challenges=merkle.tree_root(leaves),
        )
        path = revocation_pb2.ChallengePath(index=1, size=2, path=merkle.inclusion_path(leaves, 1))
        return revocation_pb2.AnsweredHead(head=self.world.by("head", body).data, paths=[path])

    async def enforced(self, epoch: int) -> None:
        """Wait for an acknowledgement of this epoch."""
        async with asyncio.timeout(20):
            while not any(one.epoch >= epoch for one in self.acknowledged):
                self.news.clear()
                await self.news.wait()


class Policy(policy_pb2_grpc.DecisionServiceServicer):
    """Answers every command with a signed, recorded decision: allow, unless ``refusing`` says why not."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refusing: Reason | None = None
        self.hold: asyncio.Event | None = None
        self.mistaken: Statement[b.Command] | None = None
        self.items: list[policy_pb2.DecideItem] = []

    def servicer(self) -> Any:
        return (
            policy_pb2_grpc.add_DecisionServiceServicer_to_server,
            self,
            "vigil.api.policy.v1.DecisionService",
        )

    async def Decide(self, request_iterator: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        answers = serve_exchange(
            request_iterator,
            self._decide,
            unpack=lambda request: request.items,
            pack=lambda items: policy_pb2.DecideResponse(items=items),
            failed=lambda call_id, error: policy_pb2.DecideOutcome(call_id=call_id, error=error),
        )
        async for answer in answers:
            yield answer

    async def PreviewDecision(self, _request: Any, _context: Any) -> policy_pb2.PreviewDecisionResponse:  # noqa: N802
        response = policy_pb2.PreviewDecisionResponse(
            allowed=True, policy_revision="r1", obligations=["stage"]
        )
        if self.refusing is not None:
            response.allowed = False
            response.refusal.CopyFrom(status.to_status(refused(self.refusing, "policy says no")))
        return response

    async def _decide(self, item: policy_pb2.DecideItem) -> policy_pb2.DecideOutcome:
        self.items.append(item)
        if self.hold is not None:
            await self.hold.wait()
        command = self.mistaken or read(item.command, b.Command)
        intent = read(item.intent, b.Intent)
        refusing = self.refusing
        body = b.Decision(
            command=command.digest,
            intent=intent.digest,
            device=item.device_id,
            answer=b.Answer.ALLOW if refusing is None else b.Answer.REFUSE,
            input=bytes(32),
            bundle="r1",
            decided_at=self.world.clock.now(),
        )
        decision = self.world.by("decision", body)
        decided = policy_pb2.Decided(
            decision=decision.data, recorded=self.world.record(decision.digest), result=b""
        )
        if not item.recorded:
            statements = [intent.digest, *(read(one, b.Approval).digest for one in item.approvals)]
            decided.statements_recorded.extend(self.world.record(digest) for digest in statements)
        if refusing is not None:
            decided.refusal.CopyFrom(status.to_status(refused(refusing, "policy says no")))
        return policy_pb2.DecideOutcome(call_id=item.call_id, decided=decided)
