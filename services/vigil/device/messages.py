"""What a device and its gateway say to each other, as plain values (`convert` knows the protobuf of it)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vigil.core.revocations import Entry, PathStep
from vigil.device.facts import Bundle
from vigil.errors import Refused

# From the gateway.


@dataclass(frozen=True, slots=True)
class Welcome:
    gateway_id: str
    time: int
    profile: bytes
    trust_json: str


@dataclass(frozen=True, slots=True)
class NonceRequest:
    call_id: int
    credential: bytes
    safety: bool
    profile: bytes


@dataclass(frozen=True, slots=True)
class BundleMessage:
    call_id: int
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Challenge:
    call_id: int
    nonce: bytes
    log_size: int


@dataclass(frozen=True, slots=True)
class Appraised:
    """The end of an attestation: a result, or why there is none."""

    call_id: int
    error: Refused | None


@dataclass(frozen=True, slots=True)
class ArtifactChunk:
    digest: bytes
    offset: int
    chunk: bytes
    error: Refused | None


@dataclass(frozen=True, slots=True)
class Revocations:
    entries: tuple[Entry, ...]
    head: bytes
    steps: tuple[PathStep, ...]
    gateway_time: int


@dataclass(frozen=True, slots=True)
class AttestNow:
    call_id: int


@dataclass(frozen=True, slots=True)
class ReceiptQuery:
    call_id: int
    request_id: bytes


@dataclass(frozen=True, slots=True)
class ReceiptsKept:
    """The gateway has the receipts of a request up to this number on its disk."""

    request_id: bytes
    up_to: int


@dataclass(frozen=True, slots=True)
class StatusInterval:
    interval_ms: int


@dataclass(frozen=True, slots=True)
class Certificates:
    """DER chains, leaf first."""

    tls_chain: tuple[bytes, ...]
    attestation_chain: tuple[bytes, ...]
    trust_json: str


@dataclass(frozen=True, slots=True)
class Renewed:
    certificates: Certificates | None
    error: Refused | None


Incoming = (
    Welcome
    | NonceRequest
    | BundleMessage
    | Challenge
    | Appraised
    | ArtifactChunk
    | Revocations
    | AttestNow
    | ReceiptQuery
    | ReceiptsKept
    | StatusInterval
    | Renewed
)

# To the gateway.


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A pump's own report of itself, unsigned."""

    therapy_state: str
    patient_state: str
    firmware_version: str
    applied_actions: int
    staged_commands: int
    quarantined: bool
    holds: int
    revocation_epoch: int
    boot_count: int
    device_time: int
    alert: str
    readings: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    model: str
    firmware_version: str
    boot_count: int
    profile_version: int
    revocation_epoch: int
    revocation_chain: bytes
    attestation_chain: tuple[bytes, ...]
    status: Status


@dataclass(frozen=True, slots=True)
class NonceReply:
    call_id: int
    nonce: bytes = b""
    error: Refused | None = None


@dataclass(frozen=True, slots=True)
class Receipts:
    """``call_id`` 0: news of a request that nobody is waiting for."""

    call_id: int
    receipts: tuple[bytes, ...] = ()
    error: Refused | None = None


@dataclass(frozen=True, slots=True)
class ChallengeRequest:
    call_id: int


@dataclass(frozen=True, slots=True)
class Submission:
    call_id: int
    evidence: bytes
    first_leaf: int
    leaves: tuple[bytes, ...]
    permits: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    digest: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class HeadChallenge:
    challenge: bytes


@dataclass(frozen=True, slots=True)
class AcknowledgementMessage:
    acknowledgement: bytes


@dataclass(frozen=True, slots=True)
class Possession:
    """What proves the identity key for two signing requests (identity.proto, DevicePossession)."""

    nonce: bytes
    identity_public_key: bytes
    tls_csr_pem: str
    attestation_csr_pem: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Renew:
    possession: Possession


@dataclass(frozen=True, slots=True)
class RevocationsAfter:
    epoch: int


Outgoing = (
    Hello
    | NonceReply
    | Receipts
    | ChallengeRequest
    | Submission
    | ArtifactRequest
    | Status
    | HeadChallenge
    | AcknowledgementMessage
    | Renew
    | RevocationsAfter
)
