"""What a person does with a pump, as the command line does it: prepare, sign, submit, believe signatures only."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vigil.api.gateway.v1 import gateway_pb2
from vigil.cli.proofs import newest, signed_receipt
from vigil.cli.session import GatewayEnd, Session
from vigil.cli.signing import sign_approval, sign_command, sign_intent
from vigil.core.statements.bodies import Decision, Intent, Mode, Outcome, Receipt
from vigil.core.statements.envelope import Statement, read
from vigil.core.statements.schema import Scalar
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, refused

INTENT_MS = 10 * 60_000
SUBMIT_S = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended: the device's own signed word, and what led to it."""

    command_id: str
    outcome: Outcome
    receipts: tuple[Statement[Receipt], ...]
    intent: Statement[Intent]
    decision: bytes

    @property
    def permit(self) -> Statement[Decision] | None:
        """The decision that led to it; None where policy was not asked."""
        return read(self.decision, Decision) if self.decision else None

    @property
    def receipt(self) -> Statement[Receipt]:
        """The newest receipt."""
        return self.receipts[-1]

    @property
    def reason(self) -> str:
        """Why the device refused; empty otherwise."""
        return self.receipt.body.reason or ""


class Hand:
    """One person's hand on one gateway."""

    def __init__(self, world: World, who: str, site: str) -> None:
        self.session: Session = world.people[who]
        self.end: GatewayEnd = world.gateway_end(who, site)
        self._commands: dict[bytes, list[bytes]] = {}  # this hand's commands, by intent

    def intent(
        self,
        pump: PumpAt,
        action: str,
        parameters: Mapping[str, Scalar],
        *,
        mode: Mode = Mode.NOW,
        request_id: bytes | None = None,
        work_order: str = "WO-4711",
    ) -> Statement[Intent]:
        """Sign an intent for one pump."""
        now = self.session.clock.now()
        return sign_intent(
            self.session.scribe,
            device_ids=[pump.device_id],
            action=action,
            parameters=parameters,
            request_id=request_id or os.urandom(16),
            mode=mode,
            not_before=now,
            expires=now + INTENT_MS,
            work_order=work_order,
        )

    async def send(
        self,
        pump: PumpAt,
        action: str,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        mode: Mode = Mode.NOW,
        seconds: float = SUBMIT_S,
    ) -> Done:
        """A whole command. Raises what refuses it."""
        intent = self.intent(pump, action, parameters or {}, mode=mode)
        return await self.finish(pump, intent, seconds=seconds)

    async def finish(
        self,
        pump: PumpAt,
        intent: Statement[Intent],
        *,
        seconds: float = SUBMIT_S,
        before_submit: Callable[[], None] | None = None,
    ) -> Done:
        """Prepare, bind the nonce, submit. Raises what refuses it, or OUTCOME_UNKNOWN."""
        prepared = await self.session.call(
            self.end.whom,
            self.end.commands.PrepareCommand,
            gateway_pb2.PrepareCommandRequest(device_id=pump.device_id, action=intent.body.action),
        )
        command = sign_command(
            self.session.scribe,
            intent=intent,
            device_ids=[pump.device_id],
            device_id=pump.device_id,
            nonce=prepared.nonce,
        )
        request = gateway_pb2.SubmitCommandRequest(
            device_id=pump.device_id, intent=intent.data, command=command.data
        )
        ours = self._commands.setdefault(intent.digest, [])
        ours.append(command.digest)
        if before_submit is not None:
            before_submit()
        response = await self.session.call(
            self.end.whom, self.end.commands.SubmitCommand, request, timeout=seconds
        )
        return self._believed(pump, intent, response, ours, prepared.attestation_chain)

    async def ask_again(self, pump: PumpAt, intent: Statement[Intent]) -> Done:
        """The same request id, without a permit: what became of it?"""
        response = await self.session.call(
            self.end.whom,
            self.end.commands.GetReceipt,
            gateway_pb2.GetReceiptRequest(device_id=pump.device_id, request_id=intent.body.request_id),
        )
        return self._believed(pump, intent, response, [], ())

    async def create_intent(self, pump: PumpAt, intent: Statement[Intent]) -> gateway_pb2.IntentRecord:
        """Leave an intent for others to approve."""
        request = gateway_pb2.CreateIntentRequest(device_ids=[pump.device_id], intent=intent.data)
        return await self.session.call(self.end.whom, self.end.intents.CreateIntent, request)

    async def approve(self, intent: Statement[Intent]) -> gateway_pb2.IntentRecord:
        """Approve the very bytes that the gateway shows."""
        record = await self.session.call(
            self.end.whom,
            self.end.intents.GetIntent,
            gateway_pb2.GetIntentRequest(intent_id=intent.digest.hex()),
        )
        shown = read(record.intent, Intent)
        if shown.digest != intent.digest:
            raise refused(Reason.SIGNATURE_INVALID, "the gateway showed another intent than was asked for")
        approval = sign_approval(self.session.scribe, shown, meaning="approval")
        request = gateway_pb2.ApproveIntentRequest(intent_id=record.intent_id, approval=approval.data)
        return await self.session.call(self.end.whom, self.end.intents.ApproveIntent, request)

    async def record(self, command_id: str) -> gateway_pb2.CommandRecord:
        """What the gateway knows of a command."""
        request = gateway_pb2.GetCommandRequest(command_id=command_id)
        return await self.session.call(self.end.whom, self.end.commands.GetCommand, request)

    def _believed(
        self,
        pump: PumpAt,
        intent: Statement[Intent],
        response: gateway_pb2.SubmitCommandResponse,
        commands: Sequence[bytes],
        chain: Sequence[bytes],
    ) -> Done:
        receipts = [
            signed_receipt(
                data,
                self.session.verifier,
                intent=intent,
                device_id=pump.device_id,
                commands=commands,
                attestation_chain=tuple(chain),
                at=self.session.clock.now(),
            )
            for data in response.receipts
        ]
        last = newest(receipts)
        if last is None:
            raise refused(Reason.OUTCOME_UNKNOWN, "no signed receipt came back")
        return Done(
            command_id=response.command_id,
            outcome=last.body.outcome,
            receipts=tuple(receipts),
            intent=intent,
            decision=response.decision,
        )
