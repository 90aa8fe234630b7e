"""gRPC handlers of policy: convert, call, convert."""

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]

from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.core.commands import RecordedProof
from vigil.core.statements.bodies import Obligation
from vigil.policy.case import read_item
from vigil.policy.service import Decisions, Outcome
from vigil.rpc import status
from vigil.rpc.caller import caller_of
from vigil.rpc.stream_server import serve_exchange

Context = grpc.aio.ServicerContext[Any, Any]


class DecisionServicer(policy_pb2_grpc.DecisionServiceServicer):
    """Decides for gateways."""

    def __init__(self, *, decisions: Decisions) -> None:
        self._decisions = decisions

    async def Decide(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[policy_pb2.DecideRequest], context: Context
    ) -> AsyncIterator[policy_pb2.DecideResponse]:
        gateway = caller_of(context)

        async def decide(item: policy_pb2.DecideItem) -> policy_pb2.DecideOutcome:
            asked = read_item(
                device_id=item.device_id,
                intent=item.intent,
                approvals=item.approvals,
                command=item.command,
                proofs=_proofs(item.recorded),
            )
            outcome = await self._decisions.decide(gateway, asked, deadline_ms=item.deadline_ms)
            return policy_pb2.DecideOutcome(decided=_decided(outcome))

        responses = serve_exchange(
            request_iterator,
            decide,
            unpack=lambda request: request.items,
            pack=lambda outcomes: policy_pb2.DecideResponse(items=outcomes),
            failed=_failed,
        )
        async for response in responses:
            yield response

    async def PreviewDecision(  # noqa: N802 - the contract's name
        self, request: policy_pb2.PreviewDecisionRequest, context: Context
    ) -> policy_pb2.PreviewDecisionResponse:
        asked = read_item(
            device_id=request.device_id, intent=request.intent, approvals=request.approvals, command=None
        )
        preview = await self._decisions.preview(caller_of(context), asked)
        response = policy_pb2.PreviewDecisionResponse(
            allowed=preview.refusal is None,
            obligations=[_words(obligation) for obligation in preview.obligations],
            policy_revision=preview.revision,
        )
        if preview.refusal is not None:
            response.refusal.CopyFrom(status.to_status(preview.refusal))
        return response


class PolicyStatusServicer(policy_pb2_grpc.PolicyStatusServiceServicer):
    """Tells what policy runs on."""

    def __init__(
        self,
        *,
        decisions: Decisions,
        engine: str,
        ages: Callable[[], Mapping[str, float]],
        epoch: Callable[[], int],
    ) -> None:
        self._decisions = decisions
        self._engine = engine
        self._ages = ages
        self._epoch = epoch

    async def GetPolicyStatus(  # noqa: N802 - the contract's name
        self, _request: policy_pb2.GetPolicyStatusRequest, context: Context
    ) -> policy_pb2.PolicyStatus:
        caller_of(context)
        return policy_pb2.PolicyStatus(
            revision=self._decisions.revision,
            engine=self._engine,
            replica_age_ms={
                name: int(age * 1000) if math.isfinite(age) else -1 for name, age in self._ages().items()
            },
            revocation_epoch=self._epoch(),
            decisions=self._decisions.taken,
        )


def _proofs(items: Iterable[evidence_pb2.RecordedItem]) -> tuple[RecordedProof, ...]:
    return tuple(RecordedProof(item.recorded, item.index, tuple(item.path)) for item in items)


def _decided(outcome: Outcome) -> policy_pb2.Decided:
    decided = policy_pb2.Decided(
        decision=outcome.decision,
        recorded=outcome.recorded,
        result=outcome.result,
        statements_recorded=outcome.statements_recorded,
    )
    if outcome.refusal is not None:
        decided.refusal.CopyFrom(status.to_status(outcome.refusal))
    return decided


def _failed(call_id: int, error: status_pb2.Status) -> policy_pb2.DecideOutcome:
    return policy_pb2.DecideOutcome(call_id=call_id, error=error)


def _words(obligation: Obligation) -> str:
    """An obligation as one text: ``stage until=idle``."""
    return " ".join([obligation.kind, *(f"{name}={value!s}" for name, value in obligation.values.items())])
