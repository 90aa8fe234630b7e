"""Looking at what stands at a gateway, and approving it: every signature is verified here before it is shown."""

import sys
from typing import Any

from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.cli import proofs
from vigil.cli.messages import plain
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED
from vigil.cli.places import first_that_knows
from vigil.cli.proofs import Proof
from vigil.cli.session import GatewayEnd, Session
from vigil.cli.signing import sign_approval
from vigil.core.commands import target_root
from vigil.core.statements.bodies import Command, Intent, Receipt
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused, refused


async def show_command(session: Session, command_id: str, gateway: str) -> int:
    """A command's whole story; exit 3 when something in it does not verify."""

    async def ask(end: GatewayEnd) -> pb.CommandRecord:
        request = pb.GetCommandRequest(command_id=command_id)
        return await session.call(end.whom, end.commands.GetCommand, request)

    try:
        end, record = await first_that_knows(session, gateway, ask)
    except Refused as error:
        if error.reason is not Reason.NOT_IN_SCOPE:
            raise
        return await _show_intent(session, command_id, gateway)
    value, holds = command_value(session, record)
    value["gateway_id"] = end.gateway_id
    if session.output.json:
        session.output.value(value)
    else:
        _draw(session, value)
    return DONE if holds else REFUSED


def command_value(session: Session, record: pb.CommandRecord) -> tuple[dict[str, Any], bool]:
    """A command's record as JSON, with what was verified; and whether all of it was."""
    verifier = session.verifier
    shown: list[Proof] = [proofs.prove_intent(record.intent, verifier)]
    intent = read(record.intent, Intent)
    shown += [proofs.prove_approval(data, intent, verifier) for data in record.approvals]
    shown.append(proofs.prove_command(record.command, intent, record.device_id, verifier))
    command = read(record.command, Command).digest
    if record.decision:
        shown += proofs.prove_decision(
            record.decision,
            record.recorded if record.HasField("recorded") else None,
            intent=intent,
            command=command,
            device_id=record.device_id,
            verifier=verifier,
        )
    receipts: list[Statement[Receipt]] = []
    for data in record.receipts:
        try:
            receipt = proofs.signed_receipt(
                data,
                verifier,
                intent=intent,
                device_id=record.device_id,
                commands=(),
                attestation_chain=(),
                at=session.clock.now(),
            )
        except Refused as error:
            shown.append(Proof("receipt", False, error.refusals[0].sentence))
            continue
        receipts.append(receipt)
        shown.append(proofs.prove_receipt(receipt))
    speaking = proofs.newest(receipts)
    value = {
        **plain(record),
        # The outcome is the device's signed word where there is one, the gateway's otherwise.
        "outcome": str(speaking.body.outcome) if speaking else record.outcome,
        "intent": proofs.intent_value(intent),
        "decision": proofs.decision_value(record.decision),
        "receipts": [proofs.receipt_value(one) for one in receipts],
        "proofs": [proof.to_value() for proof in shown],
    }
    return value, all(proof.holds for proof in shown)


async def _show_intent(session: Session, intent_id: str, gateway: str) -> int:
    end, record = await _find_intent(session, intent_id, gateway)
    value, holds = intent_record_value(session, record)
    value["gateway_id"] = end.gateway_id
    if session.output.json:
        session.output.value(value)
    else:
        _draw(session, value)
    return DONE if holds else REFUSED


def intent_record_value(session: Session, record: pb.IntentRecord) -> tuple[dict[str, Any], bool]:
    """An intent that waits, with what was verified; and whether all of it was."""
    intent = read(record.intent, Intent)
    shown = [proofs.prove_intent(record.intent, session.verifier), _prove_target(record, intent)]
    shown += [proofs.prove_approval(data, intent, session.verifier) for data in record.approvals]
    value = {
        **plain(record),
        "intent": proofs.intent_value(intent),
        "proofs": [proof.to_value() for proof in shown],
    }
    return value, all(proof.holds for proof in shown)


async def approve_intent(session: Session, intent_id: str, gateway: str, *, meaning: str, yes: bool) -> int:
    """Show what the bytes say, ask, sign those bytes. Refuses to sign for what does not verify."""
    end, record = await _find_intent(session, intent_id, gateway)
    value, holds = intent_record_value(session, record)
    intent = read(record.intent, Intent)
    if not holds:
        failed = next(proof for proof in value["proofs"] if not proof["holds"])
        raise refused(
            Reason.SIGNATURE_INVALID,
            f"this is not put before you for signing: {failed['what']}: {failed['sentence']}",
            lifted_by="a new intent",
            who="the requester",
        )
    if not session.output.json:
        session.output.say("You are about to sign for exactly this:")
        for name, item in {**value["intent"], "devices": list(record.device_ids)}.items():
            session.output.say(f"  {name.replace('_', ' '):<14} {_words(item)}")
    _confirm(session, yes=yes)
    approval = sign_approval(session.scribe, intent, meaning=meaning)
    request = pb.ApproveIntentRequest(intent_id=record.intent_id, approval=approval.data)
    made = await session.call(end.whom, end.intents.ApproveIntent, request)
    session.output.record(
        {
            **plain(made),
            "gateway_id": end.gateway_id,
            "approval": approval.digest.hex(),
            "signed": value["intent"],
        },
        hide=("signed",),
    )
    return DONE


async def _find_intent(session: Session, intent_id: str, gateway: str) -> tuple[GatewayEnd, pb.IntentRecord]:
    async def ask(end: GatewayEnd) -> pb.IntentRecord:
        return await session.call(end.whom, end.intents.GetIntent, pb.GetIntentRequest(intent_id=intent_id))

    end, record = await first_that_knows(session, gateway, ask)
    if not read(record.intent, Intent).digest.hex().startswith(intent_id):
        raise refused(Reason.SIGNATURE_INVALID, "the gateway answered with another intent")
    return end, record


def _prove_target(record: pb.IntentRecord, intent: Statement[Intent]) -> Proof:
    """The devices that are shown are the ones that the signed root was made over."""
    names = list(record.device_ids)
    holds = len(names) == intent.body.target_count and target_root(names) == intent.body.target_root
    words = f"made over {', '.join(names)}" if holds else "the signed target is not made over these devices"
    return Proof("target", holds, words)


def _confirm(session: Session, *, yes: bool) -> None:
    if yes:
        return
    if session.output.json or not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked: say --yes")
    session.output.say("Sign? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise refused(Reason.STATE_CONFLICT, "you did not sign", who="you")


def _words(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name} = {value}" for name, value in item.items())
    if isinstance(item, list):
        return ", ".join(str(one) for one in item)
    return str(item)


def _draw(session: Session, value: dict[str, Any]) -> None:
    output = session.output
    hidden = ("intent", "decision", "receipts", "proofs")
    output.record({name: item for name, item in value.items() if name not in hidden})
    for name in ("intent", "decision"):
        if value.get(name):
            output.record(value[name], title=name)
    for receipt in value.get("receipts", []):
        output.record(receipt, title="receipt")
    print()
    rows = [("yes" if one["holds"] else "NO", one["what"], one["sentence"]) for one in value["proofs"]]
    output.table(["verified", "what", "how"], rows)
