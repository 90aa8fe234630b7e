"""A device's stream: who it is, what it is told on arrival, and what each of its messages leads to.

A device speaks under its own id alone (the contract holds `device_id` against its certificate on every message), and
its certificate's organization and site must be those that the registry names.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import structlog

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import Identity, Kind
from vigil.core.clock import Clock
from vigil.core.statements.bodies import Acknowledgement
from vigil.core.statements.envelope import check, read
from vigil.errors import Reason, Refused, refused
from vigil.gateway import command_store
from vigil.gateway.artifacts import Artifacts
from vigil.gateway.attestation import Attestation
from vigil.gateway.challenges import ChallengeTree
from vigil.gateway.device_sessions import DeviceSessions, Session
from vigil.gateway.directory import Directory
from vigil.gateway.receipts import Receipts
from vigil.gateway.reports import Reports
from vigil.gateway.revocations import Enforced, RevocationFollower, RevocationView, proto_of
from vigil.gateway.trust import Trust
from vigil.rpc import status
from vigil.rpc.access import not_in_scope
from vigil.storage import Database

RENEW_S: Final = 10.0
MAX_BATCH_BYTES: Final = 512 * 1024
"""Entries of one message; more travel in several, and the head comes with the last."""


class DeviceLink:
    """Serves the devices' streams."""

    def __init__(
        self,
        *,
        gateway_id: str,
        directory: Directory,
        sessions: DeviceSessions,
        attestation: Attestation,
        artifacts: Artifacts,
        receipts: Receipts,
        reports: Reports,
        revocations: RevocationView,
        challenges: ChallengeTree,
        certificates: "identity_pb2_grpc.CertificateServiceAsyncStub",
        trust: Trust,
        database: Database,
        clock: Clock,
    ) -> None:
        self._gateway_id = gateway_id
        self._directory = directory
        self._sessions = sessions
        self._attestation = attestation
        self._artifacts = artifacts
        self._receipts = receipts
        self._reports = reports
        self._revocations = revocations
        self._challenges = challenges
        self._certificates = certificates
        self._trust = trust
        self._database = database
        self._clock = clock
        self._follower: RevocationFollower | None = None
        self._log = structlog.get_logger("vigil.gateway.devices")

    def acknowledge_through(self, follower: RevocationFollower) -> None:
        """Where devices' acknowledgements go: to the edge, with the gateway's own."""
        self._follower = follower

    async def connect(
        self, requests: AsyncIterator[gateway_pb2.ConnectRequest], caller: Identity
    ) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        """One device's stream. Raises NOT_IN_SCOPE for a device that is not of this site, FIELD_INVALID."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise refused(Reason.FIELD_INVALID, "a device begins with its hello", field="hello")
        device = self._admit(caller)
        session = Session(
            device=device,
            hello=first.hello,
            caller=caller,
            attester=self._attester(caller, first.hello.attestation_chain),
            connect_time=self._clock.now(),
            next_call_id=self._sessions.next_call_id,
        )
        self._sessions.add(session)
        self._log.info("device_connected", device=session.device_id, epoch=session.revocation_epoch)
        reader = asyncio.create_task(self._read(session, requests))
        try:
            self._welcome(session, device)
            session.spawn(self._bring_up_to_date(session))
            self._reports.sighted(session.device_id)
            async for message in session.outgoing():
                yield message
        finally:
            self._sessions.remove(session)
            self._challenges.drop(session.device_id)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._log.info("device_gone", device=session.device_id)

    async def enforced(self, news: Enforced) -> None:
        """Tell the devices what a head brought, and answer their own challenges."""
        answered = {answer.device_id: answer for answer in news.answers}
        entries = [proto_of(one.entry) for one in news.entries]
        for session in self._sessions:
            answer = answered.get(session.device_id)
            if not entries and answer is None:
                continue
            head = revocation_pb2.AnsweredHead(head=news.head)
            if answer is not None:
                head.paths.extend(
                    revocation_pb2.ChallengePath(index=step.index, size=step.size, path=step.path)
                    for step in answer.steps
                )
            self._send_revocations(session, entries, head)

    def _admit(self, caller: Identity) -> identity_pb2.Device:
        """The device's registry entry, held against its certificate. Raises NOT_IN_SCOPE."""
        device = self._directory.device(caller.id)
        if (
            device is None
            or device.device_id != caller.id
            or device.state == identity_pb2.DEVICE_STATE_RETIRED
            or not caller.covers_site(device.organization_id, device.site_id)
        ):
            raise not_in_scope()
        return device

    def _attester(self, caller: Identity, chain: Sequence[bytes]) -> Identity | None:
        """The attestation key's holder, when the chain shows that it is this device's."""
        try:
            holder = self._trust.verifier.verify(
                chain, at=self._clock.now(), kinds=frozenset({Kind.DEVICE}), grace=True
            )
        except Refused as refusal:
            self._log.warning("attestation_chain_invalid", device=caller.id, reason=str(refusal))
            return None
        same = (holder.id, holder.organization, holder.sites) == (
            caller.id,
            caller.organization,
            caller.sites,
        )
        return holder if same else None

    def _welcome(self, session: Session, device: identity_pb2.Device) -> None:
        welcome = gateway_pb2.GatewayWelcome(
            gateway_id=self._gateway_id, time_ms=self._clock.now(), trust_json=self._trust.text
        )
        model = self._directory.model(device.model)
        if model is not None and model.profile.version > session.profile_version:
            welcome.profile = model.message.profile
            session.profile_version = model.profile.version
        session.send(gateway_pb2.ConnectResponse(welcome=welcome))

    async def _bring_up_to_date(self, session: Session) -> None:
        """What a device missed: revocations; and what the gateway missed: receipts of commands that are still open."""
        try:
            await self._send_after(session, session.revocation_epoch)
            known = await self._database.read(partial(command_store.open_requests, device=session.device_id))
            under_way = self._receipts.requests_under_way(session.device_id)
            for request_id in dict.fromkeys((*under_way, *known)):
                await self._receipts.query(session, request_id)
        except Refused as refusal:
            self._log.info("device_not_up_to_date", device=session.device_id, reason=str(refusal))

    async def _send_after(self, session: Session, epoch: int) -> None:
        entries = await self._revocations.after(epoch)
        if self._revocations.head:
            head = revocation_pb2.AnsweredHead(head=self._revocations.head)
            self._send_revocations(session, entries, head)

    def _send_revocations(
        self,
        session: Session,
        entries: Sequence[revocation_pb2.RevocationEntry],
        head: revocation_pb2.AnsweredHead,
    ) -> None:
        batch: list[revocation_pb2.RevocationEntry] = []
        size = 0
        for entry in entries:
            if batch and size + entry.ByteSize() > MAX_BATCH_BYTES:
                early = gateway_pb2.Revocations(entries=batch, gateway_time_ms=self._clock.now())
                session.try_send(gateway_pb2.ConnectResponse(revocations=early))
                batch, size = [], 0
            batch.append(entry)
            size += entry.ByteSize()
        last = gateway_pb2.Revocations(entries=batch, head=head, gateway_time_ms=self._clock.now())
        session.try_send(gateway_pb2.ConnectResponse(revocations=last))

    async def _read(self, session: Session, requests: AsyncIterator[gateway_pb2.ConnectRequest]) -> None:
        """Take what the device says until it stops, then end its session."""
        ended: Refused | None = None
        try:
            async for request in requests:
                await self._take(session, request)
        except Refused as refusal:
            ended = refusal
        finally:
            session.end(ended)

    async def _take(self, session: Session, request: gateway_pb2.ConnectRequest) -> None:
        match request.WhichOneof("message"):
            case "nonce":
                session.settle(request.nonce.call_id, request.nonce)
            case "receipt":
                await self._receipts.take(session, request.receipt)
            case "attest":
                self._spawn_attest(session, request)
            case "artifact":
                if not session.spawn(self._artifacts.serve(session, request.artifact)):
                    chunk = gateway_pb2.ArtifactChunk(
                        digest=request.artifact.digest,
                        offset=request.artifact.offset,
                        error=status.to_status(_busy()),
                    )
                    session.try_send(gateway_pb2.ConnectResponse(artifact=chunk))
            case "status":
                session.report(request.status)
            case "head_challenge":
                if not self._challenges.add(session.device_id, request.head_challenge):
                    raise refused(
                        Reason.FIELD_INVALID, "a challenge has 16 to 64 bytes", field="head_challenge"
                    )
            case "acknowledgement":
                self._acknowledge(session, request.acknowledgement)
            case "renew":
                session.spawn(self._renew(session, request.renew.possession))
            case "revocations_after":
                session.spawn(self._send_after(session, request.revocations_after))
            case _:
                raise refused(Reason.FIELD_INVALID, "a device says hello once", field="hello")

    def _spawn_attest(self, session: Session, request: gateway_pb2.ConnectRequest) -> None:
        if session.spawn(self._attestation.serve(session, request.attest)):
            return
        outcome = gateway_pb2.ConnectResponse()
        outcome.attest.call_id = request.attest.call_id
        outcome.attest.error.CopyFrom(status.to_status(_busy()))
        session.try_send(outcome)

    def _acknowledge(self, session: Session, data: bytes) -> None:
        """A device enforces an epoch: verified here, counted by the service."""
        try:
            acknowledgement = read(data, Acknowledgement)
            if session.attester is None:
                raise refused(Reason.SIGNATURE_INVALID, "the device showed no attestation certificate")
            check(acknowledgement, session.attester)
        except Refused as refusal:
            self._log.warning("acknowledgement_invalid", device=session.device_id, reason=str(refusal))
            return
        session.revocation_epoch = acknowledgement.body.epoch
        if self._follower is not None:
            self._follower.acknowledge(f"device/{session.device_id}", data)

    async def _renew(self, session: Session, possession: identity_pb2.DevicePossession) -> None:
        request = identity_pb2.RenewDeviceCertificatesRequest(
            device_id=session.device_id, possession=possession
        )
        renewed = gateway_pb2.Renewed()
        try:
            certificates = await status.translated(
                self._certificates.RenewDeviceCertificates(request, timeout=RENEW_S)
            )
            renewed.certificates.CopyFrom(certificates)
        except Refused as refusal:
            renewed.error.CopyFrom(status.to_status(refusal))
        session.try_send(gateway_pb2.ConnectResponse(renewed=renewed))


def _busy() -> Refused:
    return refused(
        Reason.QUOTA_EXCEEDED,
        "Too much is under way for this device already.",
        lifted_by="waiting for the answers to what was asked",
        who="the device",
    )
