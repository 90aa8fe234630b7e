"""What each kind of statement says, field by field.

The order is that of the table in ``docs/protocol.md``. Digests are SHA-256 (32 bytes). A digest of a *statement* is
the SHA-256 of its Sig_structure; a digest of *bytes* is of those bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from vigil.core.statements.schema import (
    Count,
    Digest,
    Identifier,
    Instant,
    Key,
    Nonce,
    Range,
    Scalar,
    Size,
    Text,
    Uuid,
)
from vigil.core.statements.words import (
    ActionClass,
    Answer,
    BaselineKind,
    Effect,
    EvidenceBasis,
    HoldAction,
    Mode,
    Outcome,
    ParameterType,
    PatientState,
    RevocationEffect,
    RevocationReason,
    RiskClass,
    Scope,
    TherapyState,
    TrustTier,
)

__all__ = [
    "Acknowledgement",
    "ActionClass",
    "ActionSpec",
    "Answer",
    "Approval",
    "Baseline",
    "BaselineKind",
    "BedsideRelease",
    "Census",
    "Command",
    "Decision",
    "Downgrade",
    "Effect",
    "Era",
    "Evidence",
    "EvidenceBasis",
    "Head",
    "Hold",
    "HoldAction",
    "Intent",
    "LogHead",
    "Measurements",
    "Mode",
    "Obligation",
    "Outcome",
    "ParameterSpec",
    "ParameterType",
    "PatientState",
    "Profile",
    "Receipt",
    "Recorded",
    "RefusalReason",
    "Refusals",
    "Reinstatement",
    "Release",
    "Result",
    "Revocation",
    "RevocationEffect",
    "RevocationReason",
    "RiskClass",
    "RootList",
    "Scope",
    "Therapy",
    "TherapyState",
    "TrustTier",
    "Voucher",
]


@dataclass(frozen=True, slots=True)
class Voucher:
    """The manufacturer says: this UDI is this model and has this PUF-derived identity key (as RFC 8366 vouchers do)."""

    udi: Identifier
    model: Identifier
    identity_key: Digest  # RFC 9679 thumbprint


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    name: Identifier
    type: ParameterType
    required: bool
    unit: Annotated[str, Size(0, 32)] = ""  # UCUM code
    scale: Annotated[int, Range(0, 9)] = 0  # decimal digits after the point that the integer carries
    minimum: int | None = None  # hard limits, in scaled units, both included
    maximum: int | None = None
    choices: tuple[Identifier, ...] = ()


@dataclass(frozen=True, slots=True)
class ActionSpec:
    name: Identifier
    action_class: ActionClass
    effect: Effect
    parameters: tuple[ParameterSpec, ...]
    approvals: Annotated[int, Range(0, 8)]  # by other persons, besides the requester
    states: tuple[TherapyState, ...]  # in which it may be applied
    corrective_when_warning: bool = False
    recovery: bool = False  # allowed on a quarantined device: it leads out of it
    therapy_enabled: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device model can be told to do, and how often it must attest. The version only rises."""

    model: Identifier
    version: Annotated[int, Range(1, 2**32)]
    risk_class: RiskClass
    attestation_lifetime_s: Annotated[int, Range(30, 86_400)]
    therapy_lifetime_s: Annotated[int, Range(5, 3_600)]
    patient_state_source: Identifier  # infusion-state, sensor, bedside
    actions: tuple[ActionSpec, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """A firmware build, signed by the manufacturer."""

    model: Identifier
    version: Identifier
    firmware: Digest
    size: Annotated[int, Range(1, 2**40)]
    security_version: Annotated[int, Range(0, 2**32)]
    sbom: Digest  # of the SBOM document's bytes
    udi_di: Identifier


@dataclass(frozen=True, slots=True)
class Downgrade:
    """The only way below a security version: a build, a population, a reason."""

    firmware: Digest
    security_version: Annotated[int, Range(0, 2**32)]
    population_root: Digest
    population_count: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class Baseline:
    """A configuration or drug library that a site approves, by the digest of its bytes."""

    baseline_kind: BaselineKind
    name: Identifier
    site: Identifier
    organization: Identifier
    content: Digest
    size: Annotated[int, Range(1, 2**32)]
    models: Annotated[tuple[Identifier, ...], Size(1, 64)]
    valid_from: Instant
    valid_to: Instant


@dataclass(frozen=True, slots=True)
class LogHead:
    """A device's measurement log at one moment, with the secure element's counter."""

    size: Count
    root: Digest
    counter: Count


@dataclass(frozen=True, slots=True)
class Therapy:
    state: TherapyState
    patient: PatientState
    at: Instant  # device time


@dataclass(frozen=True, slots=True)
class Measurements:
    """Digests of what runs: firmware image, active configuration, drug library, SBOM."""

    firmware: Digest
    configuration: Digest
    library: Digest
    sbom: Digest


@dataclass(frozen=True, slots=True)
class Evidence:
    """An Entity Attestation Token (RFC 9711) as a CWT claims set, with the log head under the same signature.

    Labels are those of the IANA CWT registry; text labels are Vigil's own.
    """

    eat_nonce: Annotated[bytes, Size(8, 64), Key(10)]
    ueid: Annotated[bytes, Size(17, 33), Key(256)]
    oemid: Annotated[bytes, Size(3, 16), Key(258)]
    hwmodel: Annotated[bytes, Size(1, 32), Key(259)]
    oemboot: Annotated[bool, Key(262)]
    dbgstat: Annotated[int, Range(0, 4), Key(263)]
    eat_profile: Annotated[str, Size(1, 128), Key(265)]
    bootcount: Annotated[int, Range(0, 2**32), Key(267)]
    swname: Annotated[str, Size(1, 128), Key(270)]
    swversion: Annotated[tuple[Annotated[str, Size(1, 64)], ...], Size(1, 1), Key(271)]
    measurements: Measurements
    log: LogHead
    therapy: Therapy
    security_version: Annotated[int, Range(0, 2**32)]
    uptime: Annotated[int, Range(0, 2**40), Key(261)]
    quarantined: bool
    holds: Annotated[int, Range(0, 1024)]
    applied: Count  # actions applied since enrolment
    submission: Digest | None = None  # of the leaves and permits beside it (core.submission)


@dataclass(frozen=True, slots=True)
class Result:
    """An attestation result about a device: AR4SI vector, reasons, and when it goes stale."""

    device: Identifier
    evidence: Digest  # of the evidence statement
    status: TrustTier
    vector: Mapping[str, Annotated[int, Range(-128, 127)]]
    reasons: tuple[Identifier, ...]
    basis: EvidenceBasis
    boot_count: Count
    log_size: Count
    measurements: Measurements
    security_version: Annotated[int, Range(0, 2**32)]
    therapy: Therapy
    quarantined: bool
    holds: Annotated[int, Range(0, 1024)]
    appraised_at: Instant
    stale_at: Instant
    therapy_stale_at: Instant


@dataclass(frozen=True, slots=True)
class Intent:
    """What a person wants done, to which devices, by when."""

    target_root: Digest  # RFC 6962 root over the UTF-8 device ids; one pump is a tree of one
    target_count: Annotated[int, Range(1, 2**20)]
    action: Identifier
    parameters: Mapping[str, Scalar]
    request_id: Uuid
    mode: Mode
    not_before: Instant
    expires: Instant
    work_order: Identifier | None = None
    reason: Digest | None = None  # salted digest of free text
    executor: Digest | None = None  # RFC 9679 thumbprint of the one key that may bind nonces for it


@dataclass(frozen=True, slots=True)
class Approval:
    """Another person approves an intent (21 CFR 11.50: the signature's meaning)."""

    intent: Digest
    meaning: Identifier
    expires: Instant
    comment: Digest | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """Binds an intent to one device and that device's nonce."""

    intent: Digest
    device: Identifier
    index: Count
    path: tuple[Digest, ...]  # inclusion of the device under the intent's target root
    nonce: Nonce


@dataclass(frozen=True, slots=True)
class RefusalReason:
    reason: Identifier
    rule: Identifier
    values: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Obligation:
    kind: Identifier  # stage, show_attestation, review
    values: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy answered. An allow is the permit; the fields from ``nonce`` on are present in an allow only."""

    command: Digest
    intent: Digest
    device: Identifier
    answer: Answer
    input: Digest  # of the whole input document
    bundle: Identifier  # policy revision
    decided_at: Instant
    action_class: ActionClass | None = None
    reasons: tuple[RefusalReason, ...] = ()
    nonce: Nonce | None = None
    profile: Digest | None = None  # of the profile statement
    boot_count: Count | None = None
    log_size: Count | None = None
    epoch: Count | None = None
    era: Count | None = None
    obligations: tuple[Obligation, ...] = ()
    mode: Identifier | None = None  # online, break-glass
    apply_not_after: Instant | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """One group commit of the evidence log. An item's path leads from leaf(index, statement digest) to ``root``."""

    root: Digest
    first: Count  # log index of the commit's first item
    count: Annotated[int, Range(1, 2**20)]
    time: Instant


@dataclass(frozen=True, slots=True)
class Census:
    """Every subject's newest record in the first ``size`` entries of the log (core.census), and the log's own key."""

    root: Digest
    subjects: Count
    size: Count
    time: Instant
    log: Annotated[str, Size(1, 256)]  # verifier key of its checkpoints, as C2SP writes it


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the device did. Carries what 21 CFR 820.35(b) wants of a service record."""

    intent: Digest
    command: Digest
    request_id: Uuid
    number: Annotated[int, Range(1, 64)]  # of this command's receipts
    outcome: Outcome
    device: Identifier
    udi: Identifier
    action: Identifier
    performed_by: Identifier  # principal
    log: LogHead
    boot_count: Count
    device_time: Instant  # date of service
    applied: Count
    permit: Digest | None = None
    work_order: Identifier | None = None
    reason: Identifier | None = None  # of a refusal or failure
    data: Mapping[str, Scalar] = field(default_factory=dict)  # test and inspection data


@dataclass(frozen=True, slots=True)
class Revocation:
    """A person revokes. The service chains it by epoch; the statement itself carries no epoch."""

    scope: Scope
    ids: Annotated[tuple[Identifier, ...], Size(1, 1024)]
    effect: RevocationEffect
    reason: RevocationReason
    comment: Digest | None = None
    expires: Instant | None = None


@dataclass(frozen=True, slots=True)
class Reinstatement:
    """Takes ids out of an earlier revocation. Needs two distinct persons, each signing the same body."""

    revocation: Digest
    scope: Scope
    ids: Annotated[tuple[Identifier, ...], Size(1, 1024)]
    reason: Text


@dataclass(frozen=True, slots=True)
class Hold:
    """An evidence hold on a device (EU MDR Art. 89(1)): one person places it, two lift it."""

    device: Identifier
    action: HoldAction
    reason: Text
    expires: Instant | None = None


@dataclass(frozen=True, slots=True)
class BedsideRelease:
    """A person at the bedside says that no patient is connected. Any start of a therapy cancels it."""

    device: Identifier
    expires: Instant


@dataclass(frozen=True, slots=True)
class Head:
    """The revocation state at one moment; answers challenges through the Merkle root over them."""

    epoch: Count
    chain: Digest
    era: Count
    issued: Instant
    challenges: Digest | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A gateway or device enforces everything up to this epoch; signed after it was persisted."""

    epoch: Count
    chain: Digest
    era: Count
    enforced_at: Instant


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often a gateway turned one credential away past its quota, instead of a record for each time."""

    credential: Digest  # thumbprint
    count: Annotated[int, Range(1, 2**32)]
    since: Instant
    until: Instant


@dataclass(frozen=True, slots=True)
class Era:
    """The way out of a bad ratchet: new floor of time and epoch. Eras only rise.

    As a step of the chain of revocations it names its own epoch and the chain hash before it.
    """

    era: Count
    floor: Instant
    epoch: Count
    reason: Text
    chain: Digest | None = None


@dataclass(frozen=True, slots=True)
class RootList:
    """Signers that the root no longer trusts. The version only rises."""

    version: Count
    signers: tuple[Digest, ...]
