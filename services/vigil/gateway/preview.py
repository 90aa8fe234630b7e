"""What would be refused and what would lift it, all at once; nothing is signed, recorded or moved."""

from vigil.api.gateway.v1 import gateway_pb2
from vigil.core.certificates import Identity
from vigil.core.commands import check_parameters
from vigil.core.statements.bodies import ActionClass, Approval, Intent
from vigil.core.statements.envelope import read
from vigil.errors import Refusal, Refused
from vigil.gateway import domain
from vigil.gateway.decisions import Decisions
from vigil.gateway.facts import Facts
from vigil.gateway.quotas import Quotas
from vigil.gateway.records import Records
from vigil.rpc import status


class Preview:
    """The gateway's own checks and policy's, together."""

    def __init__(self, *, facts: Facts, quotas: Quotas, decisions: Decisions, records: Records) -> None:
        self._facts = facts
        self._quotas = quotas
        self._decisions = decisions
        self._records = records

    async def of(
        self, caller: Identity, request: gateway_pb2.PreviewCommandRequest
    ) -> gateway_pb2.PreviewCommandResponse:
        """Every refusal that a submit would meet now. Raises what is answered alone, QUOTA_EXCEEDED."""
        device = self._facts.device(caller, request.device_id)
        intent = read(request.intent, Intent)
        target = self._facts.target(device, intent.body.action)
        self._quotas.take(caller.thumbprint, "previews")
        refusals: list[Refusal] = domain.own_refusals(self._facts.standing(caller, target))
        kept = await self._records.intent(intent.digest)
        if kept is not None and not domain.intent_usable(kept.state):
            refusals.append(domain.taken_back())
        approvals = list(request.approvals) if kept is None else [one.statement for one in kept.approvals]
        for approval in approvals:
            read(approval, Approval)
        response = gateway_pb2.PreviewCommandResponse()
        if target.spec.action_class is ActionClass.S1:
            refusals += check_parameters(target.spec, intent.body.parameters)
        else:
            refusals += await self._policy(device.device_id, intent.data, approvals, response)
        response.allowed = not refusals
        if refusals:
            response.refusal.CopyFrom(status.to_status(Refused(refusals)))
        return response

    async def _policy(
        self,
        device_id: str,
        intent: bytes,
        approvals: list[bytes],
        response: gateway_pb2.PreviewCommandResponse,
    ) -> list[Refusal]:
        """Policy's refusals; its obligations and revision go into the response."""
        try:
            preview = await self._decisions.preview(device_id, intent, approvals)
        except Refused as refusal:
            return list(refusal.refusals)
        response.obligations.extend(preview.obligations)
        response.policy_revision = preview.policy_revision
        if preview.allowed and not preview.HasField("refusal"):
            return []
        return list(status.from_status(preview.refusal).refusals)
