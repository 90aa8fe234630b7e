"""A command from the person's side: intent, approvals, nonce, signed command, and the device's receipt, believed last.

The order is that of docs/protocol.md, "Prepare, then command". What is sent is on disk before it leaves (`journal`);
whatever happens after that ends in a verified receipt, a refusal, or *outcome unknown* with the way to ask again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.api.release.v1 import release_pb2
from vigil.cli import journal, parameters, proofs
from vigil.cli.journal import Sent
from vigil.cli.output import DONE, OTHER
from vigil.cli.places import gateway_of
from vigil.cli.session import UNREACHABLE, GatewayEnd, Session
from vigil.cli.signing import sign_command, sign_intent
from vigil.core.certificates import replace_file
from vigil.core.commands import find_action
from vigil.core.statements.bodies import (
    ActionSpec,
    BaselineKind,
    Effect,
    Intent,
    Mode,
    Outcome,
    ParameterSpec,
    Profile,
    Receipt,
)
from vigil.core.statements.envelope import Statement, read
from vigil.core.statements.schema import Scalar
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.rpc import status

PREPARE_S: Final = 15.0
"""A prepare may let the device attest first."""
WAIT_S: Final = 30.0
REASONS: Final = frozenset(str(reason) for reason in Reason)
SILENCE: Final = UNREACHABLE | {Reason.OUTCOME_UNKNOWN, Reason.INTERNAL, Reason.STORAGE_UNAVAILABLE}
"""Answers to a submitted command that do not tell whether the device acted."""
HOPELESS: Final = frozenset(
    {
        Reason.ROLE_NOT_PERMITTED,
        Reason.NOT_IN_SCOPE,
        Reason.CREDENTIAL_REVOKED,
        Reason.ACTION_UNKNOWN,
        Reason.PARAMETER_UNKNOWN,
        Reason.PARAMETER_INVALID,
        Reason.PARAMETER_OUT_OF_RANGE,
        Reason.WORK_ORDER_MISSING,
        Reason.THERAPY_NOT_ENABLED,
        Reason.FIRMWARE_ROLLBACK,
        Reason.POLICY_DENIED,
    }
)
"""Refusals that no approval and no waiting lifts: nobody is asked to approve what they would meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What was typed."""

    device: str
    action: str = ""
    texts: tuple[tuple[str, str], ...] = ()
    work_order: str = ""
    mode: Mode = Mode.NOW
    expires_ms: int = 600_000
    intent_id: str = ""
    request_id: bytes = b""
    gateway: str = ""
    dry_run: bool = False
    wait_s: float = WAIT_S


@dataclass(frozen=True, slots=True)
class Target:
    """A device behind its gateway, with the signed profile of its model."""

    end: GatewayEnd
    device: pb.ConnectedDevice

    @property
    def device_id(self) -> str:
        return self.device.device_id


@dataclass(frozen=True, slots=True)
class Done:
    """A command with the receipts that were believed, the one that speaks first."""

    target: Target
    intent: Statement[Intent]
    command_id: str
    receipts: tuple[Statement[Receipt], ...]
    proofs: tuple[proofs.Proof, ...]
    decision: bytes

    @property
    def newest(self) -> Receipt:
        found = proofs.newest(self.receipts)
        if found is None:
            raise ValueError("a command is done by a receipt")
        return found.body

    def to_value(self) -> dict[str, Any]:
        """As JSON."""
        body = self.newest
        speaking = proofs.newest(self.receipts)
        return {
            "outcome": str(body.outcome),
            "reason": body.reason or "",
            "device_id": body.device,
            "udi": body.udi,
            "gateway_id": self.target.end.gateway_id,
            "action": body.action,
            "request_id": body.request_id.hex(),
            "intent_id": self.intent.digest.hex(),
            "command_id": self.command_id,
            "receipt": proofs.receipt_value(speaking) if speaking else None,
            "decision": proofs.decision_value(self.decision),
            "proofs": [proof.to_value() for proof in self.proofs],
        }


async def find_target(session: Session, device: str, gateway: str) -> Target:
    """The device behind its gateway. Raises as `gateway_of`."""
    return Target(*await gateway_of(session, device, gateway))


async def profile_of(session: Session, target: Target, action: str) -> Statement[Profile]:
    """The verified profile of the device's model: from release, from memory, or from the gateway's prepare."""
    model = target.device.model
    kept = session.folder.path / "profiles" / f"{model}.cose"
    try:
        request = release_pb2.GetModelRequest(model=model)
        found = await session.call("release", session.releases.GetModel, request)
        statement = proofs.signed_profile(found.profile, session.verifier)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(kept, statement.data)
        return statement
    except Refused as error:
        if error.reason not in UNREACHABLE:
            raise
    if kept.exists():
        return proofs.signed_profile(kept.read_bytes(), session.verifier)
    prepared = await prepare(session, target, action)
    return proofs.signed_profile(prepared.profile, session.verifier)


def action_by_effect(profile: Profile, effect: Effect) -> ActionSpec:
    """The model's action with this effect. Raises ACTION_UNKNOWN."""
    for action in profile.actions:
        if action.effect is effect:
            return action
    raise refused(Reason.ACTION_UNKNOWN, f"the model {profile.model} has no action that does: {effect}")


async def prepare(session: Session, target: Target, action: str) -> pb.PrepareCommandResponse:
    """The gateway's first checks, attestation if due, and the device's nonce."""
    request = pb.PrepareCommandRequest(device_id=target.device_id, action=action)
    timeout = max(PREPARE_S, session.options.timeout)
    return await session.call(target.end.whom, target.end.commands.PrepareCommand, request, timeout=timeout)


# --- the intent


async def make_intent(session: Session, target: Target, ask: Ask) -> tuple[Statement[Intent], ActionSpec]:
    """Sign what is asked for, typed by the profile. Raises ACTION_UNKNOWN, UsageError."""
    profile = (await profile_of(session, target, ask.action)).body
    action = find_action(profile, ask.action)
    find = digest_finder(session, target)
    values = await parameters.typed(action, dict(ask.texts), find=find)
    now = session.clock.now()
    statement = sign_intent(
        session.scribe,
        device_ids=[target.device_id],
        action=action.name,
        parameters=values,
        request_id=ask.request_id or session.entropy(16),
        mode=ask.mode,
        not_before=now,
        expires=now + ask.expires_ms,
        work_order=ask.work_order,
    )
    return statement, action


def digest_finder(session: Session, target: Target) -> parameters.FindDigest:
    """Looks up `model@version` or a version of firmware, and a baseline's name."""

    async def find(action: ActionSpec, spec: ParameterSpec, text: str) -> bytes:
        if action.effect is Effect.UPDATE:
            name = text if "@" in text else f"{target.device.model}@{text}"
            request = release_pb2.GetReleaseRequest(release=name)
            return (await session.call("release", session.releases.GetRelease, request)).firmware
        library = action.effect is Effect.INSTALL_LIBRARY
        kind = BaselineKind.DRUG_LIBRARY if library else BaselineKind.CONFIGURATION
        request_all = release_pb2.ListBaselinesRequest(site_id=target.end.site_id)
        rows = await session.every("release", session.releases.ListBaselines, request_all, "baselines")
        fitting = [row for row in rows if row.name == text and row.kind == kind]
        if not fitting:
            raise refused(
                Reason.PARAMETER_INVALID,
                f"{spec.name}: no {kind} is called {text!r} at this site",
                lifted_by="a published name, or its digest in hex: `vigil baseline list`",
                who="you",
                parameter=spec.name,
            )
        return bytes(max(fitting, key=lambda row: row.valid_from_ms).content)

    return find


async def create_intent(session: Session, target: Target, intent: Statement[Intent]) -> pb.IntentRecord:
    """Leave a signed intent with the gateway, where others approve it. Raises what approvals cannot lift."""
    await require_hope(session, target, intent)
    request = pb.CreateIntentRequest(device_ids=[target.device_id], intent=intent.data)
    return await session.call(target.end.whom, target.end.intents.CreateIntent, request)


async def require_hope(session: Session, target: Target, intent: Statement[Intent]) -> None:
    """Refuse now what would be refused after all approvals. What cannot be told now is told then."""
    request = pb.PreviewCommandRequest(device_id=target.device_id, intent=intent.data)
    try:
        found = await session.call(target.end.whom, target.end.commands.PreviewCommand, request)
    except Refused as error:
        if error.reason in UNREACHABLE:
            return
        raise
    if found.allowed:
        return
    refusals = status.from_status(found.refusal).refusals
    if any(refusal.reason in HOPELESS for refusal in refusals):
        raise Refused(refusals)


def approvals_missing(record: pb.IntentRecord, device: str) -> Refused:
    """What is still missing, and the two commands that lead on."""
    missing = record.approvals_needed - record.approvals_given
    return refused(
        Reason.APPROVALS_MISSING,
        f"{missing} more approval{'s' if missing > 1 else ''} needed, "
        f"{record.approvals_given} of {record.approvals_needed} given",
        lifted_by=f"`vigil command approve {record.intent_id[:16]}` by another person, then "
        f"`vigil command send {device} --intent {record.intent_id[:16]}`",
        who="an approver of the site, then you",
        intent_id=record.intent_id,
        needed=record.approvals_needed,
        given=record.approvals_given,
    )


async def own_intent(
    session: Session, target: Target, intent_id: str
) -> tuple[Statement[Intent], pb.IntentRecord]:
    """An intent that waits at the gateway: it must be what its requester signed. Raises SIGNATURE_INVALID, …"""
    request = pb.GetIntentRequest(intent_id=intent_id)
    record = await session.call(target.end.whom, target.end.intents.GetIntent, request)
    intent, _ = proofs.signed_intent(record.intent, session.verifier)
    if not intent.digest.hex().startswith(intent_id):
        raise refused(Reason.SIGNATURE_INVALID, "the gateway answered with another intent")
    return intent, record


# --- preview


async def preview(session: Session, target: Target, intent: Statement[Intent]) -> dict[str, Any]:
    """What would be refused now, and what would lift it; nothing moves. Raises all refusals there are."""
    request = pb.PreviewCommandRequest(device_id=target.device_id, intent=intent.data)
    found = await session.call(target.end.whom, target.end.commands.PreviewCommand, request)
    if not found.allowed:
        raise status.from_status(found.refusal)
    return {
        "allowed": True,
        "device_id": target.device_id,
        "action": intent.body.action,
        "obligations": list(found.obligations),
        "policy_revision": found.policy_revision,
    }


# --- the command itself


async def carry(
    session: Session, target: Target, intent: Statement[Intent], device_ids: Sequence[str], *, wait_s: float
) -> Done:
    """Nonce, signed command, receipt. Raises what refused it, or OUTCOME_UNKNOWN once it may have left."""
    prepared = await prepare(session, target, intent.body.action)
    return await submit(session, target, intent, device_ids, prepared, wait_s=wait_s)


async def submit(
    session: Session,
    target: Target,
    intent: Statement[Intent],
    device_ids: Sequence[str],
    prepared: pb.PrepareCommandResponse,
    *,
    wait_s: float,
) -> Done:
    """Sign the command for the nonce, note it on disk, send it, believe the receipt. Raises as `carry`."""
    command = sign_command(
        session.scribe,
        intent=intent,
        device_ids=device_ids,
        device_id=target.device_id,
        nonce=prepared.nonce,
    )
    sent = journal.find(session.folder, intent.body.request_id) or Sent(
        request_id=intent.body.request_id,
        principal=session.person.id,
        device_id=target.device_id,
        gateway_id=target.end.gateway_id,
        action=intent.body.action,
        intent=intent.data,
    )
    sent = sent.with_command(command.digest)
    journal.keep(session.folder, sent)
    request = pb.SubmitCommandRequest(device_id=target.device_id, intent=intent.data, command=command.data)
    try:
        response = await session.call(
            target.end.whom, target.end.commands.SubmitCommand, request, timeout=wait_s
        )
    except Refused as error:
        # Past this line the device may have acted: silence is not a no.
        if error.reason in SILENCE:
            raise unknown(target, intent, error) from error
        raise _said_by(target.end, error) from error
    return believe(
        session, target, intent, sent, response, attestation_chain=tuple(prepared.attestation_chain)
    )


async def ask_receipt(session: Session, target: Target, sent: Sent) -> Done:
    """Ask the device again what became of a request. Raises OUTCOME_UNKNOWN while nobody knows."""
    request = pb.GetReceiptRequest(device_id=target.device_id, request_id=sent.request_id)
    intent = read(sent.intent, Intent)
    try:
        response = await session.call(
            target.end.whom,
            target.end.commands.GetReceipt,
            request,
            timeout=max(session.options.timeout, 5.0),
        )
    except Refused as error:
        if error.reason in UNREACHABLE or error.reason in (Reason.OUTCOME_UNKNOWN, Reason.DEVICE_OFFLINE):
            raise unknown(target, intent, error) from error
        raise
    return believe(session, target, intent, sent, response, attestation_chain=())


def believe(
    session: Session,
    target: Target,
    intent: Statement[Intent],
    sent: Sent,
    response: pb.SubmitCommandResponse,
    *,
    attestation_chain: tuple[bytes, ...],
) -> Done:
    """Take from an answer what signatures carry, and nothing else. Raises OUTCOME_UNKNOWN where none does."""
    believed: list[Statement[Receipt]] = []
    failures: list[Refused] = []
    for data in response.receipts:
        try:
            believed.append(
                proofs.signed_receipt(
                    data,
                    session.verifier,
                    intent=intent,
                    device_id=target.device_id,
                    commands=sent.commands,
                    attestation_chain=attestation_chain,
                    at=session.clock.now(),
                )
            )
        except Refused as error:
            failures.append(error)
    if not believed:
        cause = failures[0] if failures else refused(Reason.OUTCOME_UNKNOWN, "it brought no receipt")
        raise unknown(target, intent, cause)
    speaking = proofs.newest(believed)
    shown = [proofs.prove_receipt(one) for one in believed]
    shown += [proofs.Proof("receipt", False, error.refusals[0].sentence) for error in failures]
    if response.decision:
        shown += proofs.prove_decision(
            response.decision,
            response.recorded if response.HasField("recorded") else None,
            intent=intent,
            command=speaking.body.command if speaking else None,
            device_id=target.device_id,
            verifier=session.verifier,
        )
    return Done(target, intent, response.command_id, tuple(believed), tuple(shown), response.decision)


def _said_by(end: GatewayEnd, error: Refused) -> Refused:
    """A refusal without a receipt is the gateway's word, and shown as that."""
    said = {"said_by": f"the gateway {end.gateway_id}, unsigned"}
    return Refused([replace(one, values={**one.values, **said}) for one in error.refusals])


def unknown(target: Target, intent: Statement[Intent], cause: Refused) -> Refused:
    """Nobody can say whether the device acted; the next command asks it, and never repeats the action."""
    request_id = intent.body.request_id.hex()
    return refused(
        Reason.OUTCOME_UNKNOWN,
        f"no receipt of {target.device_id} has come: {cause.refusals[0].sentence}",
        lifted_by=f"vigil command receipt {target.device_id} {request_id}",
        who="you",
        request_id=request_id,
        intent_id=intent.digest.hex(),
        device_id=target.device_id,
        cause=str(cause.reason),
    )


def conclude(session: Session, done: Done, say: Callable[[Done], None]) -> int:
    """Show a command that was answered; the exit code. Raises when the device itself refused it."""
    body = done.newest
    if body.outcome is Outcome.REFUSED:
        raise Refused([_device_refusal(done)])
    if session.output.json:
        session.output.value(done.to_value())
    else:
        say(done)
    return DONE if body.outcome in (Outcome.ACCEPTED, Outcome.STAGED, Outcome.APPLIED) else OTHER


def _device_refusal(done: Done) -> Refusal:
    body = done.newest
    known = body.reason or ""
    reason = Reason(known) if known in REASONS else Reason.STATE_CONFLICT
    return Refusal(
        reason,
        f"the device {body.device} itself refused it, signed ({known or 'without a reason'})",
        "what the reason asks for",
        "see docs/protocol.md",
        {
            "device_id": body.device,
            "request_id": body.request_id.hex(),
            "intent_id": body.intent.hex(),
            "command_id": done.command_id,
            "receipt": "verified",
        },
    )


def words_of(values: "dict[str, Scalar]", action: ActionSpec | None) -> str:
    """Parameters in one line."""
    return ", ".join(f"{name} = {text}" for name, text in parameters.shown(action, values).items())
