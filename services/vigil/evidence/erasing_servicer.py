"""gRPC handler of erasing: convert, call, convert."""

from typing import Any

import grpc

from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.evidence.erased import Erased
from vigil.evidence.erasing import Erasing
from vigil.rpc.caller import caller_of, scope_filtered

Context = grpc.aio.ServicerContext[Any, Any]


class EvidenceErasureServicer(evidence_pb2_grpc.EvidenceErasureServiceServicer):
    """Takes what two people signed."""

    def __init__(self, *, erasing: Erasing) -> None:
        self._erasing = erasing

    async def Erase(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.EraseRequest, context: Context
    ) -> evidence_pb2.EraseResponse:
        caller = caller_of(context)
        erased, records, scrubbed = await self._erasing.erase(caller, list(request.erasures))
        scope_filtered(caller)
        return evidence_pb2.EraseResponse(erased=erased_message(erased), records=records, scrubbed=scrubbed)


def erased_message(erased: Erased) -> evidence_pb2.Erased:
    """What was erased, as the contract encodes it."""
    return evidence_pb2.Erased(
        what=erased.what,
        reason=erased.reason,
        reference=erased.reference,
        time_ms=erased.time,
        people=erased.people,
        records=erased.records,
    )
