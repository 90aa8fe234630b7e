"""What a decision is about and what is known: the values that its checks (`domain`) work on. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.commands import RecordedProof
from vigil.core.statements.bodies import (
    ActionSpec,
    Approval,
    Baseline,
    Command,
    Intent,
    Profile,
    Release,
    Result,
)
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.policy.revoked import Revocations
from vigil.policy.sentences import Finding

B = TypeVar("B")

MAX_APPROVALS: Final = 8
"""As the device: two are needed at most, and some fail."""
MAX_STATEMENT: Final = 24_576
"""Bytes of one statement with its chain: two certificates of 4,096 each and a full set of parameters."""
MAX_PATH: Final = 64
"""Steps of a proof's path: no log is deeper."""


# --- what is known


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the registry."""

    organization: str
    site: str
    model: str
    state: str
    holds: int


@dataclass(frozen=True, slots=True)
class Verified(Generic[B]):
    """A statement whose signature holds, with its signer; whether that one is revoked is judged here."""

    statement: Statement[B]
    signer: Identity
    recorded_at: int | None = None  # ms; when its owner published it


Installable = Verified[Release] | Verified[Baseline]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything known at the moment of one decision. ``ages``: seconds, by the replica's name."""

    now: int
    device: Device
    verifier: ChainVerifier
    revocations: Revocations
    ages: Mapping[str, float]
    profile: Verified[Profile] | None
    result: Verified[Result] | None
    installable: Callable[[bytes], Installable | None]


# --- 1: bounds and strict parsing


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a gateway asks about; ``command`` is None in a preview, ``proofs`` are empty when nothing is recorded."""

    device_id: str
    intent: Statement[Intent]
    approvals: tuple[Statement[Approval], ...]
    command: Statement[Command] | None
    proofs: tuple[RecordedProof, ...]


def read_item(
    *,
    device_id: str,
    intent: bytes,
    approvals: Sequence[bytes],
    command: bytes | None,
    proofs: Sequence[RecordedProof] = (),
) -> Item:
    """Policy check 1. Raises STATEMENT_MALFORMED."""
    if len(approvals) > MAX_APPROVALS:
        raise _malformed(f"a command carries at most {MAX_APPROVALS} approvals")
    if len(proofs) not in (0, 1 + len(approvals)):
        raise _malformed("proofs of record come for the intent and each approval, or not at all")
    parts = [intent, *approvals, *([] if command is None else [command]), *(one.recorded for one in proofs)]
    if any(len(part) > MAX_STATEMENT for part in parts):
        raise _malformed(f"a statement is larger than {MAX_STATEMENT} bytes")
    if any(len(proof.path) > MAX_PATH for proof in proofs):
        raise _malformed("a proof's path is longer than any log is deep")
    return Item(
        device_id=device_id,
        intent=read(intent, Intent),
        approvals=tuple(read(data, Approval) for data in approvals),
        command=None if command is None else read(command, Command),
        proofs=tuple(proofs),
    )


def _malformed(sentence: str) -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        sentence,
        lifted_by="statements as docs/protocol.md says",
        who="the sender",
    )


# --- the judgement


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement and the person whose signature under it was verified."""

    statement: Statement[Any]
    person: Identity


@dataclass(slots=True)
class Judgement:
    """What the code found, and the question that is left for Rego; None when it need not be asked."""

    findings: list[Finding] = field(default_factory=list)
    signed: list[Signed] = field(default_factory=list)
    action: ActionSpec | None = None
    target: Installable | None = None
    times: tuple[int, ...] = ()
    question: dict[str, Any] | None = None

    def take(self, refusals: Iterable[Refusal], rule: str) -> None:
        """Add what a shared check found."""
        self.findings.extend(Finding(rule, refusal) for refusal in refusals)


@dataclass(frozen=True, slots=True)
class Parties:
    """Who asks, who binds the nonce, and who approved in scope and in time."""

    requester: Identity
    executor: Identity
    approvers: tuple[Identity, ...]
