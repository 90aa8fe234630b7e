"""Asks policy: a pool of streams for decisions, one call for previews. Whatever fails refuses."""

from typing import Final

from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.core.classes import DECISION_DEADLINE_S
from vigil.errors import Reason, Refused, refused
from vigil.rpc import status
from vigil.rpc.streams import Exchange

STREAMS: Final = 16
"""Few messages in flight on each: three times the rate of one stream (docs/benchmarks.md)."""

_UNREACHED = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.INTERNAL})


class Decisions:
    """The client of the decision service."""

    def __init__(
        self,
        *,
        gateway_id: str,
        exchange: Exchange[policy_pb2.DecideItem, policy_pb2.DecideOutcome],
        stub: "policy_pb2_grpc.DecisionServiceAsyncStub",
    ) -> None:
        self._gateway_id = gateway_id
        self._exchange = exchange
        self._stub = stub

    async def decide(self, item: policy_pb2.DecideItem) -> policy_pb2.Decided:
        """Gateway check 6: a decision within 2 s. Raises POLICY_UNAVAILABLE, or what policy could not get past."""
        try:
            outcome = await self._exchange.call(item, timeout=DECISION_DEADLINE_S)
        except Refused as refusal:
            raise _translated(refusal) from refusal
        if outcome.WhichOneof("message") != "decided":
            raise unavailable()
        return outcome.decided

    async def preview(
        self, device_id: str, intent: bytes, approvals: list[bytes]
    ) -> policy_pb2.PreviewDecisionResponse:
        """What would be refused. Raises POLICY_UNAVAILABLE."""
        request = policy_pb2.PreviewDecisionRequest(
            gateway_id=self._gateway_id, device_id=device_id, intent=intent, approvals=approvals
        )
        try:
            return await status.translated(self._stub.PreviewDecision(request, timeout=DECISION_DEADLINE_S))
        except Refused as refusal:
            raise _translated(refusal) from refusal


def unavailable() -> Refused:
    """Policy gave no answer that could be used."""
    return refused(
        Reason.POLICY_UNAVAILABLE,
        "The policy service did not decide in time; without its decision nothing but safety actions goes on.",
        lifted_by="the policy service answering again; then a new command with a new nonce",
        who="the operator",
    )


def _translated(refusal: Refused) -> Refused:
    return unavailable() if refusal.reason in _UNREACHED else refusal
