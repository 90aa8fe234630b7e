"""Protobuf of DeviceLinkService to and from the plain values of `messages`."""

from collections.abc import Sequence

from google.rpc import status_pb2  # type: ignore[import-untyped]

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.core.commands import RecordedProof
from vigil.core.revocations import Entry, PathStep
from vigil.device import messages
from vigil.device.facts import Bundle
from vigil.device.messages import Incoming, Outgoing
from vigil.errors import Refused
from vigil.rpc.status import from_status, to_status


def from_proto(response: gateway_pb2.ConnectResponse) -> Incoming | None:
    """What a gateway said; None for a message that this version does not know."""
    match response.WhichOneof("message"):
        case "welcome":
            welcome = response.welcome
            return messages.Welcome(welcome.gateway_id, welcome.time_ms, welcome.profile, welcome.trust_json)
        case "nonce":
            nonce = response.nonce
            return messages.NonceRequest(nonce.call_id, nonce.credential, nonce.safety, nonce.profile)
        case "bundle":
            return messages.BundleMessage(response.bundle.call_id, _bundle(response.bundle))
        case "attest":
            return _attest(response.attest)
        case "artifact":
            piece = response.artifact
            return messages.ArtifactChunk(piece.digest, piece.offset, piece.chunk, _error(piece, piece.error))
        case "revocations":
            return _revocations(response.revocations)
        case "attest_now":
            return messages.AttestNow(response.attest_now.call_id)
        case "receipt_query":
            return messages.ReceiptQuery(response.receipt_query.call_id, response.receipt_query.request_id)
        case "receipts_kept":
            return messages.ReceiptsKept(response.receipts_kept.request_id, response.receipts_kept.up_to)
        case "status_interval":
            return messages.StatusInterval(response.status_interval.interval_ms)
        case "renewed":
            renewed = response.renewed
            chains = certificates(renewed.certificates) if renewed.HasField("certificates") else None
            return messages.Renewed(chains, _error(renewed, renewed.error))
        case _:
            return None


def to_proto(device_id: str, message: Outgoing) -> gateway_pb2.ConnectRequest:
    """What a device says, under its own id."""
    request = gateway_pb2.ConnectRequest(device_id=device_id)
    match message:
        case messages.Hello():
            request.hello.CopyFrom(_hello(message))
        case messages.NonceReply():
            request.nonce.call_id = message.call_id
            request.nonce.nonce = message.nonce
            if message.error is not None:
                request.nonce.error.CopyFrom(to_status(message.error))
        case messages.Receipts():
            request.receipt.call_id = message.call_id
            request.receipt.receipts.extend(message.receipts)
            if message.error is not None:
                request.receipt.error.CopyFrom(to_status(message.error))
        case messages.ChallengeRequest():
            request.attest.call_id = message.call_id
            request.attest.device_id = device_id
            request.attest.challenge.SetInParent()
        case messages.Submission():
            request.attest.CopyFrom(_submission(device_id, message))
        case messages.ArtifactRequest():
            request.artifact.digest = message.digest
            request.artifact.offset = message.offset
        case messages.Status():
            request.status.CopyFrom(_status(message))
        case messages.HeadChallenge():
            request.head_challenge = message.challenge
        case messages.AcknowledgementMessage():
            request.acknowledgement = message.acknowledgement
        case messages.Renew():
            request.renew.possession.CopyFrom(possession_to_proto(message.possession))
        case messages.RevocationsAfter():
            request.revocations_after = message.epoch
    return request


def possession_to_proto(possession: messages.Possession) -> identity_pb2.DevicePossession:
    """The proof of the identity key, as an enrolment station or a gateway hands it on."""
    return identity_pb2.DevicePossession(
        nonce=possession.nonce,
        identity_public_key=possession.identity_public_key,
        tls_csr_pem=possession.tls_csr_pem,
        attestation_csr_pem=possession.attestation_csr_pem,
        signature=possession.signature,
    )


def certificates(chains: identity_pb2.DeviceCertificates) -> messages.Certificates:
    """Certificates as identity issued them."""
    return messages.Certificates(tuple(chains.tls_chain), tuple(chains.attestation_chain), chains.trust_json)


def _bundle(bundle: gateway_pb2.Bundle) -> Bundle:
    return Bundle(
        intent=bundle.intent,
        command=bundle.command,
        approvals=tuple(bundle.approvals),
        statements_recorded=tuple(_proof(item) for item in bundle.statements_recorded),
        permit=bundle.permit,
        permit_recorded=_proof(bundle.permit_recorded) if bundle.HasField("permit_recorded") else None,
        release=bundle.release,
        downgrade=bundle.downgrade,
    )


def _proof(item: evidence_pb2.RecordedItem) -> RecordedProof:
    return RecordedProof(item.recorded, item.index, tuple(item.path))


def _attest(outcome: attestation_pb2.AttestOutcome) -> Incoming:
    if outcome.WhichOneof("message") == "challenge":
        challenge = outcome.challenge
        return messages.Challenge(outcome.call_id, challenge.nonce, challenge.log_size)
    return messages.Appraised(outcome.call_id, _error(outcome, outcome.error))


def _revocations(message: gateway_pb2.Revocations) -> messages.Revocations:
    return messages.Revocations(
        tuple(Entry(entry.epoch, tuple(entry.statements), entry.chain) for entry in message.entries),
        message.head.head,
        tuple(PathStep(step.index, step.size, tuple(step.path)) for step in message.head.paths),
        message.gateway_time_ms,
    )


def _hello(hello: messages.Hello) -> gateway_pb2.DeviceHello:
    return gateway_pb2.DeviceHello(
        model=hello.model,
        firmware_version=hello.firmware_version,
        boot_count=hello.boot_count,
        profile_version=hello.profile_version,
        revocation_epoch=hello.revocation_epoch,
        revocation_chain=hello.revocation_chain,
        attestation_chain=hello.attestation_chain,
        status=_status(hello.status),
    )


def _submission(device_id: str, submission: messages.Submission) -> attestation_pb2.AttestItem:
    return attestation_pb2.AttestItem(
        call_id=submission.call_id,
        device_id=device_id,
        submission=attestation_pb2.Submission(
            evidence=submission.evidence,
            first_leaf=submission.first_leaf,
            leaves=submission.leaves,
            permits=submission.permits,
        ),
    )


def _status(status: messages.Status) -> gateway_pb2.DeviceStatus:
    return gateway_pb2.DeviceStatus(
        therapy_state=status.therapy_state,
        patient_state=status.patient_state,
        firmware_version=status.firmware_version,
        applied_actions=status.applied_actions,
        staged_commands=status.staged_commands,
        quarantined=status.quarantined,
        holds=status.holds,
        revocation_epoch=status.revocation_epoch,
        boot_count=status.boot_count,
        readings=dict(status.readings),
        device_time_ms=status.device_time,
        alert=status.alert,
        settings=dict(status.settings),
    )


def _error(
    message: gateway_pb2.ArtifactChunk | gateway_pb2.Renewed | attestation_pb2.AttestOutcome,
    error: status_pb2.Status,
) -> Refused | None:
    return from_status(error) if message.HasField("error") else None


def chains_of(values: Sequence[str]) -> tuple[bytes, ...]:
    """A chain written as hex, for the local control socket."""
    return tuple(bytes.fromhex(value) for value in values)
