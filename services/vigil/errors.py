"""The one error tree of Vigil. Nothing in it knows about gRPC.

    VigilError
    └── Refused             one or more refusals, each with a stable reason
        (every expected failure, from a malformed field to a policy's no)

A refusal has a *reason* (stable, documented in ``docs/protocol.md``, never reused), the canonical status
that the reason maps to, a sentence for the person, and what would lift it and who can. ``vigil.rpc.status``
is the only place that turns these into gRPC statuses and back. Anything else that escapes a handler becomes
INTERNAL and tells the caller nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """The canonical status codes of ``google.rpc.Code`` that Vigil answers with."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"


class Reason(StrEnum):
    """Why something was refused. The order is from the most fundamental to the least."""

    # Who is calling (answered alone).
    TLS_VERSION = "TLS_VERSION"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    ROLE_NOT_PERMITTED = "ROLE_NOT_PERMITTED"
    NOT_IN_SCOPE = "NOT_IN_SCOPE"
    SIGNER_NOT_CALLER = "SIGNER_NOT_CALLER"
    # What is known revoked.
    CREDENTIAL_REVOKED = "CREDENTIAL_REVOKED"
    GATEWAY_REVOKED = "GATEWAY_REVOKED"
    SIGNER_REVOKED = "SIGNER_REVOKED"
    DEVICE_REVOKED = "DEVICE_REVOKED"
    DEVICE_QUARANTINED = "DEVICE_QUARANTINED"
    FIRMWARE_REVOKED = "FIRMWARE_REVOKED"
    # The statement itself.
    STATEMENT_MALFORMED = "STATEMENT_MALFORMED"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    ACTION_UNKNOWN = "ACTION_UNKNOWN"
    PARAMETER_UNKNOWN = "PARAMETER_UNKNOWN"
    PARAMETER_INVALID = "PARAMETER_INVALID"
    PARAMETER_OUT_OF_RANGE = "PARAMETER_OUT_OF_RANGE"
    WORK_ORDER_MISSING = "WORK_ORDER_MISSING"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    NOT_IN_TARGET = "NOT_IN_TARGET"
    INTENT_EXPIRED = "INTENT_EXPIRED"
    INTENT_CANCELLED = "INTENT_CANCELLED"
    # What we cannot know now.
    LEASE_EXPIRED = "LEASE_EXPIRED"
    REPLICA_STALE = "REPLICA_STALE"
    POLICY_UNAVAILABLE = "POLICY_UNAVAILABLE"
    POLICY_UNDEFINED = "POLICY_UNDEFINED"
    EVIDENCE_UNAVAILABLE = "EVIDENCE_UNAVAILABLE"
    DEVICE_OFFLINE = "DEVICE_OFFLINE"
    # The device's state, the approvals, the circumstances.
    THERAPY_NOT_ENABLED = "THERAPY_NOT_ENABLED"
    EVIDENCE_HOLD = "EVIDENCE_HOLD"
    ATTESTATION_MISSING = "ATTESTATION_MISSING"
    ATTESTATION_CONTRAINDICATED = "ATTESTATION_CONTRAINDICATED"
    ATTESTATION_STALE = "ATTESTATION_STALE"
    ATTESTATION_WARNING = "ATTESTATION_WARNING"
    FIRMWARE_ROLLBACK = "FIRMWARE_ROLLBACK"
    APPROVALS_MISSING = "APPROVALS_MISSING"
    APPROVER_NOT_DISTINCT = "APPROVER_NOT_DISTINCT"
    BEDSIDE_CONFIRMATION_MISSING = "BEDSIDE_CONFIRMATION_MISSING"
    PATIENT_CONNECTED = "PATIENT_CONNECTED"
    OUTSIDE_WINDOW = "OUTSIDE_WINDOW"
    # Proofs, as the device finds them.
    NOT_RECORDED = "NOT_RECORDED"
    NOT_WITNESSED = "NOT_WITNESSED"
    NONCE_UNKNOWN = "NONCE_UNKNOWN"
    NONCE_USED = "NONCE_USED"
    NONCE_EXPIRED = "NONCE_EXPIRED"
    PROFILE_MISMATCH = "PROFILE_MISMATCH"
    EPOCH_ROLLED_BACK = "EPOCH_ROLLED_BACK"
    # The end of the list.
    POLICY_DENIED = "POLICY_DENIED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    # Everything that is not a command: registries, artifacts, streams.
    FIELD_INVALID = "FIELD_INVALID"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    RESOURCE_EXISTS = "RESOURCE_EXISTS"
    DEVICE_ALREADY_ENROLLED = "DEVICE_ALREADY_ENROLLED"
    KEY_ALREADY_ENROLLED = "KEY_ALREADY_ENROLLED"
    VOUCHER_INVALID = "VOUCHER_INVALID"
    UDI_INVALID = "UDI_INVALID"
    POSSESSION_NOT_PROVED = "POSSESSION_NOT_PROVED"
    SECOND_PERSON_REQUIRED = "SECOND_PERSON_REQUIRED"
    STATE_CONFLICT = "STATE_CONFLICT"
    ARTIFACT_CORRUPT = "ARTIFACT_CORRUPT"
    SBOM_INVALID = "SBOM_INVALID"
    SNAPSHOT_REQUIRED = "SNAPSHOT_REQUIRED"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


STATUS_OF: Mapping[Reason, Status] = {
    **dict.fromkeys(
        (Reason.TLS_VERSION, Reason.CERTIFICATE_EXPIRED, Reason.CERTIFICATE_INVALID), Status.UNAUTHENTICATED
    ),
    **dict.fromkeys(
        (
            Reason.ROLE_NOT_PERMITTED,
            Reason.NOT_IN_SCOPE,
            Reason.SIGNER_NOT_CALLER,
            Reason.CREDENTIAL_REVOKED,
            Reason.GATEWAY_REVOKED,
            Reason.SIGNER_REVOKED,
            Reason.DEVICE_REVOKED,
            Reason.DEVICE_QUARANTINED,
            Reason.FIRMWARE_REVOKED,
            Reason.POLICY_DENIED,
        ),
        Status.PERMISSION_DENIED,
    ),
    **dict.fromkeys((Reason.ACTION_UNKNOWN, Reason.RESOURCE_NOT_FOUND), Status.NOT_FOUND),
    **dict.fromkeys(
        (
            Reason.STATEMENT_MALFORMED,
            Reason.PARAMETER_UNKNOWN,
            Reason.PARAMETER_INVALID,
            Reason.PARAMETER_OUT_OF_RANGE,
            Reason.WORK_ORDER_MISSING,
            Reason.FIELD_INVALID,
            Reason.VOUCHER_INVALID,
            Reason.UDI_INVALID,
            Reason.ARTIFACT_CORRUPT,
            Reason.SBOM_INVALID,
        ),
        Status.INVALID_ARGUMENT,
    ),
    **dict.fromkeys(
        (
            Reason.SIGNATURE_INVALID,
            Reason.NOT_RECORDED,
            Reason.NOT_WITNESSED,
            Reason.NONCE_UNKNOWN,
            Reason.NONCE_USED,
            Reason.NONCE_EXPIRED,
            Reason.INTENT_EXPIRED,
            Reason.INTENT_CANCELLED,
            Reason.NOT_IN_TARGET,
            Reason.PROFILE_MISMATCH,
            Reason.EPOCH_ROLLED_BACK,
            Reason.ATTESTATION_MISSING,
            Reason.ATTESTATION_STALE,
            Reason.ATTESTATION_CONTRAINDICATED,
            Reason.ATTESTATION_WARNING,
            Reason.APPROVALS_MISSING,
            Reason.APPROVER_NOT_DISTINCT,
            Reason.OUTSIDE_WINDOW,
            Reason.PATIENT_CONNECTED,
            Reason.EVIDENCE_HOLD,
            Reason.FIRMWARE_ROLLBACK,
            Reason.THERAPY_NOT_ENABLED,
            Reason.BEDSIDE_CONFIRMATION_MISSING,
            Reason.POSSESSION_NOT_PROVED,
            Reason.SECOND_PERSON_REQUIRED,
            Reason.STATE_CONFLICT,
        ),
        Status.FAILED_PRECONDITION,
    ),
    **dict.fromkeys(
        (
            Reason.REQUEST_ID_REUSED,
            Reason.RESOURCE_EXISTS,
            Reason.DEVICE_ALREADY_ENROLLED,
            Reason.KEY_ALREADY_ENROLLED,
        ),
        Status.ALREADY_EXISTS,
    ),
    **dict.fromkeys(
        (
            Reason.POLICY_UNAVAILABLE,
            Reason.POLICY_UNDEFINED,
            Reason.REPLICA_STALE,
            Reason.LEASE_EXPIRED,
            Reason.EVIDENCE_UNAVAILABLE,
            Reason.DEVICE_OFFLINE,
            Reason.STORAGE_UNAVAILABLE,
            Reason.SERVICE_UNAVAILABLE,
        ),
        Status.UNAVAILABLE,
    ),
    **dict.fromkeys((Reason.QUOTA_EXCEEDED, Reason.REQUEST_TOO_LARGE), Status.RESOURCE_EXHAUSTED),
    **dict.fromkeys((Reason.OUTCOME_UNKNOWN, Reason.DEADLINE_EXCEEDED), Status.DEADLINE_EXCEEDED),
    Reason.SNAPSHOT_REQUIRED: Status.OUT_OF_RANGE,
    Reason.INTERNAL: Status.INTERNAL,
}

ALONE = frozenset(
    {
        Reason.TLS_VERSION,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_INVALID,
        Reason.ROLE_NOT_PERMITTED,
        Reason.NOT_IN_SCOPE,
        Reason.SIGNER_NOT_CALLER,
    }
)
"""Answered without any other reason beside them: a stranger learns nothing more (COMMANDS, Refusals)."""

_ORDER = {reason: place for place, reason in enumerate(Reason)}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, with the words a person needs."""

    reason: Reason
    sentence: str
    lifted_by: str = ""
    who: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The canonical status of this reason."""
        return STATUS_OF[self.reason]


class VigilError(Exception):
    """The root of all errors that Vigil raises on purpose."""


class Refused(VigilError):  # noqa: N818 - the domain's word: a command is refused
    """Something was refused, for one or more reasons, the most fundamental first."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        if not refusals:
            raise ValueError("a refusal needs a reason")
        ordered = tuple(sorted(refusals, key=lambda refusal: _ORDER[refusal.reason]))
        self.refusals = ordered[:1] if ordered[0].reason in ALONE else ordered
        super().__init__(f"{self.refusals[0].reason}: {self.refusals[0].sentence}")

    @property
    def reason(self) -> Reason:
        """The most fundamental reason."""
        return self.refusals[0].reason

    @property
    def status(self) -> Status:
        """The status of the most fundamental reason."""
        return self.refusals[0].status


def refused(
    reason: Reason, sentence: str, *, lifted_by: str = "", who: str = "", **values: object
) -> Refused:
    """Make a refusal with one reason; ``values`` are structured details for machines."""
    details = {name: str(value) for name, value in values.items()}
    return Refused([Refusal(reason, sentence, lifted_by, who, details)])
