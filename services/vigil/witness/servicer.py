"""`POST /add-checkpoint` (C2SP tlog-witness): convert, call, convert."""

from collections.abc import Sequence

from aiohttp import web

from vigil.errors import Refused
from vigil.rpc.plain_http import Route, read_body
from vigil.witness.domain import MAX_BODY_BYTES, SIZE_TYPE, Rejected
from vigil.witness.metrics import WitnessMetrics
from vigil.witness.service import Witness


class WitnessServicer:
    """The witness as HTTP tells of it."""

    def __init__(self, *, witness: Witness, metrics: WitnessMetrics) -> None:
        self._witness = witness
        self._metrics = metrics

    @property
    def routes(self) -> Sequence[Route]:
        """What it serves."""
        return (("POST", "/add-checkpoint", self.add_checkpoint),)

    async def add_checkpoint(self, request: web.BaseRequest) -> web.Response:
        """200 with the cosignature; 400, 403, 404, 409 with the size known, 422; 503 while it cannot remember."""
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            response = web.Response(text=await self._witness.add_checkpoint(body))
        except Rejected as rejected:
            response = _rejection(rejected)
        except Refused as error:
            response = web.Response(status=503, text=f"{error.refusals[0].sentence}\n")
        self._metrics.answered(response.status)
        return response


def _rejection(rejected: Rejected) -> web.Response:
    if rejected.known is None:
        return web.Response(status=rejected.status, text=f"{rejected.sentence}\n")
    body = f"{rejected.known}\n".encode()
    return web.Response(status=rejected.status, body=body, headers={"Content-Type": SIZE_TYPE})
