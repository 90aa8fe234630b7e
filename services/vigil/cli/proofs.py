"""What the client believes: signatures, verified here, over the very bytes that are shown.

Every check answers a `Proof`; a check that failed says why and is shown, never hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2
from vigil.cli.messages import instant, scalars
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.commands import RecordedProof, check_recorded, person_of
from vigil.core.statements.bodies import (
    Approval,
    Command,
    Decision,
    Intent,
    Outcome,
    Profile,
    Receipt,
)
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused

_DEVICE: Final = frozenset({Kind.DEVICE})
_SIGNER: Final = frozenset({Kind.SIGNER})


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that was checked."""

    what: str
    holds: bool
    sentence: str

    def to_value(self) -> dict[str, Any]:
        """As JSON."""
        return {"what": self.what, "holds": self.holds, "sentence": self.sentence}


def attempt(what: str, run: Callable[[], str]) -> Proof:
    """Run a check; its sentence says what it established, or why it does not hold."""
    try:
        return Proof(what, True, run())
    except Refused as error:
        return Proof(what, False, error.refusals[0].sentence)


def signed_profile(data: bytes, verifier: ChainVerifier) -> Statement[Profile]:
    """A profile whose manufacturer's signature holds. Raises as the checks do."""
    statement = read(data, Profile)
    signer = verifier.verify(statement.chain, at=statement.issued_at * 1000, kinds=_SIGNER, grace=True)
    check(statement, signer)
    return statement


def signed_intent(data: bytes, verifier: ChainVerifier) -> tuple[Statement[Intent], Identity]:
    """An intent whose requester's signature holds, at the time it was signed. Raises as the checks do."""
    statement = read(data, Intent)
    return statement, person_of(statement, verifier, at=statement.issued_at * 1000, grace=True)


def signed_receipt(
    data: bytes,
    verifier: ChainVerifier,
    *,
    intent: Statement[Intent],
    device_id: str,
    commands: Sequence[bytes],
    attestation_chain: Sequence[bytes],
    at: int,
) -> Statement[Receipt]:
    """A receipt signed by the device itself over this intent, this device, this request and one of these commands.

    ``commands`` empty: the command is not known here, and any of the intent's will do. Raises SIGNATURE_INVALID
    and the chain's refusals.
    """
    statement = read(data, Receipt)
    chain = statement.chain or tuple(attestation_chain)
    signer = verifier.verify(chain, at=at, kinds=_DEVICE, grace=True)
    check(statement, signer)
    body = statement.body
    ours = (
        signer.id == device_id
        and body.device == device_id
        and body.intent == intent.digest
        and body.request_id == intent.body.request_id
        and (not commands or body.command in commands)
    )
    if not ours:
        raise refused(
            Reason.SIGNATURE_INVALID, "the receipt is signed, but it speaks of something else than was asked"
        )
    return statement


def newest(receipts: Sequence[Statement[Receipt]]) -> Statement[Receipt] | None:
    """The receipt that speaks: a refusal only where there is nothing else, then the highest number."""
    return max(
        receipts,
        key=lambda one: (one.body.outcome is not Outcome.REFUSED, one.body.number),
        default=None,
    )


def prove_intent(data: bytes, verifier: ChainVerifier) -> Proof:
    """The requester signed it."""

    def run() -> str:
        statement, person = signed_intent(data, verifier)
        return f"signed by {person.id} of {person.organization} at {instant(statement.issued_at * 1000)}"

    return attempt("intent", run)


def prove_approval(data: bytes, intent: Statement[Intent], verifier: ChainVerifier) -> Proof:
    """Another person approved this very intent."""

    def run() -> str:
        statement = read(data, Approval)
        person = person_of(statement, verifier, at=statement.issued_at * 1000, grace=True)
        if statement.body.intent != intent.digest:
            raise refused(Reason.SIGNATURE_INVALID, "the approval is for another intent")
        if f"{person.kind}/{person.id}" == intent.issuer:
            raise refused(Reason.APPROVER_NOT_DISTINCT, "the requester approved it themselves")
        return f"{statement.body.meaning} by {person.id} of {person.organization}"

    return attempt("approval", run)


def prove_command(data: bytes, intent: Statement[Intent], device_id: str, verifier: ChainVerifier) -> Proof:
    """The command binds this intent to this device."""

    def run() -> str:
        statement = read(data, Command)
        person = person_of(statement, verifier, at=statement.issued_at * 1000, grace=True)
        if statement.body.intent != intent.digest or statement.body.device != device_id:
            raise refused(Reason.NOT_IN_TARGET, "the command is for another intent or another device")
        return f"signed by {person.id}, bound to {device_id} and its nonce"

    return attempt("command", run)


def prove_decision(
    data: bytes,
    recorded: evidence_pb2.RecordedItem | None,
    *,
    intent: Statement[Intent],
    command: bytes | None,
    device_id: str,
    verifier: ChainVerifier,
) -> list[Proof]:
    """The policy service signed this answer for this command, and the log holds it."""
    read_one: list[Statement[Decision]] = []

    def decided() -> str:
        statement = read(data, Decision)
        body = statement.body
        signer = verifier.verify(statement.chain, at=body.decided_at, kinds=_SIGNER, grace=True)
        check(statement, signer)
        if body.intent != intent.digest or body.device != device_id:
            raise refused(Reason.SIGNATURE_INVALID, "the decision is about something else")
        if command is not None and body.command != command:
            raise refused(Reason.SIGNATURE_INVALID, "the decision is about another command")
        read_one.append(statement)
        return f"{body.answer} by {signer.id}, policy {body.bundle}, at {instant(body.decided_at)}"

    def on_record() -> str:
        if recorded is None or not recorded.recorded:
            raise refused(Reason.NOT_RECORDED, "no proof of the record came with it")
        proof = RecordedProof(recorded.recorded, recorded.index, tuple(recorded.path))
        statement, _ = check_recorded(proof, read_one[0].digest, verifier)
        return f"on record at index {recorded.index} since {instant(statement.body.time)}"

    proofs = [attempt("decision", decided)]
    if read_one:
        proofs.append(attempt("recorded", on_record))
    return proofs


def prove_receipt(statement: Statement[Receipt]) -> Proof:
    """Words for a receipt that was verified before."""
    body = statement.body
    return Proof(
        "receipt",
        True,
        f"{body.outcome} signed by {body.device} at {instant(body.device_time)}, its log at {body.log.size}",
    )


def receipt_value(statement: Statement[Receipt]) -> dict[str, Any]:
    """A verified receipt as JSON."""
    body = statement.body
    return {
        "digest": statement.digest.hex(),
        "number": body.number,
        "outcome": str(body.outcome),
        "reason": body.reason or "",
        "device_id": body.device,
        "udi": body.udi,
        "action": body.action,
        "performed_by": body.performed_by,
        "work_order": body.work_order or "",
        "device_time": instant(body.device_time),
        "boot_count": body.boot_count,
        "log_size": body.log.size,
        "log_root": body.log.root.hex(),
        "applied": body.applied,
        "data": scalars(body.data),
    }


def intent_value(statement: Statement[Intent]) -> dict[str, Any]:
    """What an intent says, as JSON."""
    body = statement.body
    return {
        "intent_id": statement.digest.hex(),
        "requester": statement.issuer.partition("/")[2],
        "action": body.action,
        "parameters": scalars(body.parameters),
        "request_id": body.request_id.hex(),
        "mode": str(body.mode),
        "work_order": body.work_order or "",
        "target_count": body.target_count,
        "not_before": instant(body.not_before),
        "expires": instant(body.expires),
    }


def decision_value(data: bytes) -> dict[str, Any] | None:
    """What a decision says, as JSON; None without one."""
    if not data:
        return None
    body = read(data, Decision).body
    return {
        "answer": str(body.answer),
        "action_class": str(body.action_class or ""),
        "policy_revision": body.bundle,
        "decided": instant(body.decided_at),
        "reasons": [
            {"reason": one.reason, "rule": one.rule, "values": scalars(one.values)} for one in body.reasons
        ],
        "obligations": [{"kind": one.kind, "values": scalars(one.values)} for one in body.obligations],
        "apply_not_after": instant(body.apply_not_after),
    }
