"""The values that the device's checks work on: a bundle, who stands behind it, what the device knows, an admission."""

from dataclasses import dataclass, field

from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.commands import Commit, RecordedProof
from vigil.core.revocations import RevocationState
from vigil.core.statements.bodies import (
    ActionSpec,
    Approval,
    Baseline,
    Command,
    Decision,
    Downgrade,
    Intent,
    PatientState,
    Profile,
    Release,
    TherapyState,
)
from vigil.core.statements.envelope import Statement
from vigil.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One command as it arrives; statements are COSE_Sign1 with their chains, empty where there is none."""

    intent: bytes
    command: bytes
    approvals: tuple[bytes, ...] = ()
    statements_recorded: tuple[RecordedProof, ...] = ()
    permit: bytes = b""
    permit_recorded: RecordedProof | None = None
    release: bytes = b""
    downgrade: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBundle:
    """The same, read (check 1); no signature has been looked at. ``commits``: of the log, as they are verified."""

    bundle: Bundle
    intent: Statement[Intent]
    command: Statement[Command]
    approvals: tuple[Statement[Approval], ...]
    permit: Statement[Decision] | None
    release: Statement[Release] | None
    baseline: Statement[Baseline] | None
    downgrade: Statement[Downgrade] | None
    commits: dict[bytes, Commit] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the device knows at this moment. Instants in ms; ``held_epoch`` is of the heads held for more than 8 s.

    ``bound_size``: how long the measurement log was after its newest boot, firmware or configuration leaf.
    """

    device_id: str
    organization: str
    site: str
    manufacturer: str
    now: int
    operational_until: int
    profile: Statement[Profile]
    verifier: ChainVerifier
    revocations: RevocationState
    distrusted: frozenset[bytes]
    held_epoch: int
    boot_count: int
    bound_size: int
    therapy: TherapyState
    patient: PatientState
    bedside_confirmed: bool
    on_mains: bool
    quarantined: bool
    holds: int
    firmware: bytes
    configuration: bytes
    library: bytes
    security_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Who stands behind a bundle, verified (check 3). Approvals come with their signer and the instant of judgement."""

    requester: Identity
    executor: Identity
    approvals: tuple[tuple[Statement[Approval], Identity, int], ...]
    intent_at: int
    recorders: tuple[Identity, ...]
    not_recorded: Refused | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an action installs, as its signed statement names it; ``authorised`` by a downgrade authorisation.

    ``signers``: who signed the one and the other.
    """

    digest: bytes
    size: int
    signers: tuple[Identity, ...]
    release: Release | None = None
    baseline: Baseline | None = None
    authorised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Checks 1 to 7 passed. A staged one is applied later, at the latest before ``apply_not_after`` (ms)."""

    read: ReadBundle
    parties: Parties
    action: ActionSpec
    signers: tuple[Identity, ...]
    target: Target | None
    staged: bool
    apply_not_after: int

    @property
    def intent(self) -> Intent:
        """What was asked for."""
        return self.read.intent.body

    @property
    def permit_digest(self) -> bytes | None:
        """The permit's digest; None for class S1."""
        return None if self.read.permit is None else self.read.permit.digest


@dataclass(frozen=True, slots=True)
class Replay:
    """The request is in the journal with this very intent: its stored receipts are the answer."""
