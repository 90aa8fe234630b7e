"""gRPC handlers: convert, call, convert."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import grpc

from vigil.api.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from vigil.attestation.service import Attestation, Results, Submitted
from vigil.attestation.store import Visible
from vigil.core.certificates import Identity
from vigil.errors import Reason, refused
from vigil.rpc.access import not_in_scope
from vigil.rpc.caller import caller_of, require_site
from vigil.rpc.paging import after_of, page_size, token_after
from vigil.rpc.room import Room
from vigil.rpc.stream_server import serve_exchange

MAX_UNDER_WAY: Final = 1_024
"""Challenges and appraisals at once; a device that is turned away attests again by itself."""
SHARE_OF_GATEWAY: Final = 0.5

Context = grpc.aio.ServicerContext[Any, Any]


class AttestationServicer(attestation_pb2_grpc.AttestationServiceServicer):
    """Serves `AttestationService`."""

    def __init__(self, *, attestation: Attestation, results: Results) -> None:
        self._attestation = attestation
        self._results = results
        self._room = Room(MAX_UNDER_WAY, share=SHARE_OF_GATEWAY)

    def Attest(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[attestation_pb2.AttestRequest], context: Context
    ) -> AsyncGenerator[attestation_pb2.AttestResponse, None]:
        gateway = caller_of(context)

        async def handle(item: attestation_pb2.AttestItem) -> attestation_pb2.AttestOutcome:
            with self._room.place(gateway.id):
                return await self._attest(gateway, item)

        return serve_exchange(
            request_iterator,
            handle,
            unpack=lambda request: request.items,
            pack=lambda items: attestation_pb2.AttestResponse(items=items),
            failed=lambda call_id, error: attestation_pb2.AttestOutcome(call_id=call_id, error=error),
        )

    async def _attest(
        self, gateway: Identity, item: attestation_pb2.AttestItem
    ) -> attestation_pb2.AttestOutcome:
        if item.HasField("challenge"):
            challenge = await self._attestation.challenge(gateway, item.device_id)
            answer = attestation_pb2.Challenge(
                nonce=challenge.nonce, expire_time_ms=challenge.expires, log_size=challenge.log_size
            )
            return attestation_pb2.AttestOutcome(call_id=item.call_id, challenge=answer)
        if item.HasField("submission"):
            given = item.submission
            submitted = Submitted(
                evidence=given.evidence,
                first_leaf=given.first_leaf,
                leaves=tuple(given.leaves),
                permits=tuple(given.permits),
            )
            result = await self._attestation.submit(gateway, item.device_id, submitted)
            return attestation_pb2.AttestOutcome(call_id=item.call_id, result=result)
        raise refused(Reason.FIELD_INVALID, "an item is a challenge or a submission", field="items.message")

    async def GetResult(  # noqa: N802
        self, request: attestation_pb2.GetResultRequest, context: Context
    ) -> attestation_pb2.DeviceTrust:
        found = await self._results.get(request.device_id)
        if found is None:
            raise not_in_scope()
        organization, site, trust = found
        require_site(caller_of(context), organization, site)
        return trust

    async def ListResults(  # noqa: N802
        self, request: attestation_pb2.ListResultsRequest, context: Context
    ) -> attestation_pb2.ListResultsResponse:
        asked = (request.status, request.firmware.hex(), request.site_id)
        size = page_size(request.page_size)
        rows = await self._results.page(
            _visible(caller_of(context)),
            after=after_of(request.page_token, *asked),
            limit=size + 1,
            status=request.status,
            firmware=request.firmware,
            site=request.site_id,
        )
        more = token_after(rows[size - 1][0], *asked) if len(rows) > size else ""
        return attestation_pb2.ListResultsResponse(
            results=[trust for _, trust in rows[:size]], next_page_token=more
        )

    async def CountResults(  # noqa: N802
        self, request: attestation_pb2.CountResultsRequest, context: Context
    ) -> attestation_pb2.CountResultsResponse:
        by_status, stale = await self._results.count(_visible(caller_of(context)), firmware=request.firmware)
        return attestation_pb2.CountResultsResponse(by_status=by_status, stale=stale)


def _visible(caller: Identity) -> Visible:
    return Visible(organization="" if caller.operator else caller.organization, sites=caller.sites)
