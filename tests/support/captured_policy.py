"""A captured decision service: its real TLS key behind a port of its own, for a gateway that takes it for policy.

Until it is told to lie it hands everything on to the real one, and hands back what that says.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

import grpc

from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.rpc.caller import caller_of, scope_filtered
from vigil.rpc.server import GrpcServer
from vigil.rpc.tls import TlsFiles

Lie = Callable[[policy_pb2.DecideItem], Awaitable[policy_pb2.Decided | None]]
"""What is answered instead; None for silence."""


class CapturedPolicy(policy_pb2_grpc.DecisionServiceServicer):
    """``onward``: the channel to the real one, with the gateway's own key."""

    def __init__(self, *, onward: Callable[[], grpc.aio.Channel]) -> None:
        self._onward = onward
        self._server: GrpcServer
        self.lie: Lie | None = None
        self.lied = 0
        self.address = ""

    async def start(self, files: TlsFiles) -> Self:
        self._server = GrpcServer(
            role="policy",
            tls=files,
            clock=SystemClock(),
            listen="127.0.0.1:0",
            servicers=[
                (
                    policy_pb2_grpc.add_DecisionServiceServicer_to_server,
                    self,
                    "vigil.api.policy.v1.DecisionService",
                )
            ],
        )
        self.address = f"127.0.0.1:{await self._server.start()}"
        return self

    async def stop(self) -> None:
        if self.address:
            await self._server.stop(0)

    async def Decide(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[policy_pb2.DecideRequest], context: Any
    ) -> AsyncIterator[policy_pb2.DecideResponse]:
        scope_filtered(caller_of(context))
        asked: dict[int, policy_pb2.DecideItem] = {}

        async def heard() -> AsyncIterator[policy_pb2.DecideRequest]:
            async for request in request_iterator:
                asked.update({item.call_id: item for item in request.items})
                yield request

        stub = policy_pb2_grpc.DecisionServiceStub(self._onward())
        async for response in stub.Decide(heard()):
            said = await asyncio.gather(*(self._said(asked, outcome) for outcome in response.items))
            yield policy_pb2.DecideResponse(items=[one for one in said if one is not None])

    async def _said(
        self, asked: dict[int, policy_pb2.DecideItem], outcome: policy_pb2.DecideOutcome
    ) -> policy_pb2.DecideOutcome | None:
        item = asked.pop(outcome.call_id)
        if self.lie is None:
            return outcome
        self.lied += 1
        decided = await self.lie(item)
        return None if decided is None else policy_pb2.DecideOutcome(call_id=item.call_id, decided=decided)
