"""gRPC handlers of the revocation service: convert, call, convert."""

from typing import Any

import grpc
import structlog

from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.revocations import PathStep
from vigil.revocation.chain import Chain
from vigil.revocation.coverage import Acknowledgements
from vigil.revocation.heads import HeadAnswerer
from vigil.revocation.service import Revocations
from vigil.rpc.caller import caller_of, scope_filtered

Context = grpc.aio.ServicerContext[Any, Any]
_Entry = revocation_pb2.RevocationEntry


class RevocationServicer(revocation_pb2_grpc.RevocationServiceServicer):
    """For people."""

    def __init__(self, *, revocations: Revocations, acknowledgements: Acknowledgements, chain: Chain) -> None:
        self._revocations = revocations
        self._acknowledgements = acknowledgements
        self._chain = chain

    async def Revoke(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.RevokeRequest, context: Context
    ) -> revocation_pb2.RevocationEntry:
        caller = caller_of(context)
        value = await self._revocations.revoke(caller, request.revocation)
        scope_filtered(caller)
        return _Entry.FromString(value)

    async def Reinstate(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.ReinstateRequest, context: Context
    ) -> revocation_pb2.RevocationEntry:
        caller = caller_of(context)
        value = await self._revocations.reinstate(caller, list(request.reinstatements))
        scope_filtered(caller)
        return _Entry.FromString(value)

    async def GetRevocation(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.GetRevocationRequest, context: Context
    ) -> revocation_pb2.RevocationEntry:
        caller = caller_of(context)
        value = await self._revocations.get(caller, request.epoch)
        scope_filtered(caller)
        return _Entry.FromString(value)

    async def ListRevocations(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.ListRevocationsRequest, context: Context
    ) -> revocation_pb2.ListRevocationsResponse:
        page = await self._revocations.list(
            caller_of(context), page_size=request.page_size, page_token=request.page_token
        )
        return revocation_pb2.ListRevocationsResponse(
            entries=[_Entry.FromString(value) for value in page.entries],
            next_page_token=page.next_token,
            epoch=self._chain.state.epoch,
        )

    async def GetCoverage(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.GetCoverageRequest, context: Context
    ) -> revocation_pb2.Coverage:
        coverage = await self._acknowledgements.coverage(caller_of(context), request.epoch)
        return revocation_pb2.Coverage(
            epoch=coverage.epoch,
            known=len(coverage.gateways),
            enforcing=coverage.enforcing,
            gateways=[
                revocation_pb2.GatewayCoverage(
                    gateway_id=one.gateway_id,
                    edge=one.edge,
                    epoch=one.epoch,
                    enforced_time_ms=one.enforced_at,
                )
                for one in coverage.gateways
            ],
            devices=coverage.devices,
        )


class HeadServicer(revocation_pb2_grpc.HeadServiceServicer):
    """For the edges, and for services that want a head of their own."""

    def __init__(self, *, answerer: HeadAnswerer, acknowledgements: Acknowledgements, chain: Chain) -> None:
        self._answerer = answerer
        self._acknowledgements = acknowledgements
        self._chain = chain
        self._log = structlog.get_logger("vigil.revocation.heads")

    async def AnswerChallenges(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.AnswerChallengesRequest, context: Context
    ) -> revocation_pb2.AnswerChallengesResponse:
        if request.after_epoch > self._chain.state.epoch:
            # A claim without the signed statements up to it strands nobody; a true one means a lost database.
            self._log.error(
                "reader_ahead",
                reader=caller_of(context).id,
                claimed=request.after_epoch,
                epoch=self._chain.state.epoch,
            )
        answered = await self._answerer.answer(request.challenge)
        values = await self._chain.after(request.after_epoch, limit=request.max_entries)
        return revocation_pb2.AnswerChallengesResponse(
            head=revocation_pb2.AnsweredHead(head=answered.head, paths=[challenge_path(answered.step)]),
            entries=[_Entry.FromString(value) for value in values],
        )

    async def ReportAcknowledgements(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.ReportAcknowledgementsRequest, context: Context
    ) -> revocation_pb2.ReportAcknowledgementsResponse:
        caller_of(context)
        await self._acknowledgements.take(request.edge, list(request.acknowledgements))
        return revocation_pb2.ReportAcknowledgementsResponse()


def challenge_path(step: PathStep) -> revocation_pb2.ChallengePath:
    """One level of a path in the contract's form."""
    return revocation_pb2.ChallengePath(index=step.index, size=step.size, path=step.path)
