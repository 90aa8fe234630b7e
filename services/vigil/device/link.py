"""The link to the gateway: the device dials out, keeps one stream, and dials again when it breaks.

Certificate files are read at each dialling, so that renewed ones are presented at once. The server must prove the
DNS name of the gateway that the device was told to dial, through the intermediate for gateways.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from vigil.api.gateway.v1 import gateway_pb2_grpc
from vigil.core.clock import Clock, Entropy
from vigil.device.agent import DeviceAgent
from vigil.device.convert import from_proto, to_proto
from vigil.device.messages import Outgoing
from vigil.rpc.channel import Channels
from vigil.rpc.network import GRPC, Network
from vigil.rpc.tls import TlsFiles, TlsFilesError

FIRST_PAUSE_S: Final = 0.5
LAST_PAUSE_S: Final = 15.0
STABLE_S: Final = 10.0
"""A link that lasted this long begins again with the first pause."""
MAX_QUEUED: Final = 1_000
"""Messages that wait for a stream; a gateway that takes none is left and dialled anew."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where to dial (``host:port``), and who must answer."""

    address: str
    gateway_id: str


class Link:
    """Carries one agent's messages. ``heard`` is called after each message that came in."""

    def __init__(
        self,
        *,
        agent: DeviceAgent,
        tls: TlsFiles,
        trust_domain: str,
        clock: Clock,
        entropy: Entropy,
        heard: Callable[[], None],
        network: Network = GRPC,
    ) -> None:
        self._agent = agent
        self._tls = tls
        self._trust_domain = trust_domain
        self._clock = clock
        self._entropy = entropy
        self._heard = heard
        self._network = network
        self._queue: asyncio.Queue[Outgoing | None] | None = None

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Queue messages for the stream; without one they are dropped, as the agent knows that it is offline."""
        queue = self._queue
        if queue is None:
            return
        for message in messages:
            queue.put_nowait(message)
        if queue.qsize() > MAX_QUEUED:
            queue.put_nowait(None)

    async def run(self, gateway: Gateway) -> None:
        """Keep the link up until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            began = self._clock.monotonic()
            try:
                await self._connect(gateway)
            except (grpc.RpcError, TlsFilesError) as error:
                _LOG.info("%s: no link to %s: %s", self._agent.device_id, gateway.gateway_id, _words(error))
            if self._agent.reconnect_wanted:
                self._agent.reconnect_wanted = False
                continue
            lasted = self._clock.monotonic() - began
            pause = FIRST_PAUSE_S if lasted >= STABLE_S else min(LAST_PAUSE_S, pause * 2)
            # Full jitter: pumps that lost one gateway together do not come back together.
            await asyncio.sleep(pause * (0.2 + 0.8 * self._entropy(1)[0] / 255))

    async def _connect(self, gateway: Gateway) -> None:
        """One stream, from hello to its end."""
        queue: asyncio.Queue[Outgoing | None] = asyncio.Queue()
        channels = Channels(
            tls=self._tls, trust_domain=self._trust_domain, clock=self._clock, network=self._network
        )
        try:
            channel = channels.gateway(gateway.address, gateway.gateway_id)
            stub = gateway_pb2_grpc.DeviceLinkServiceStub(channel)
            self._queue = queue
            self.send(self._agent.connected())
            call = stub.Connect(self._outgoing(queue))
            try:
                async for response in call:
                    message = from_proto(response)
                    if message is not None:
                        self.send(self._agent.handle(message))
                        self._heard()
                    if self._agent.reconnect_wanted:
                        return
            finally:
                call.cancel()
        finally:
            self._queue = None
            queue.put_nowait(None)
            self._agent.disconnected()
            await channels.close()

    async def _outgoing(self, queue: "asyncio.Queue[Outgoing | None]") -> AsyncIterator[Any]:
        while (message := await queue.get()) is not None:
            yield to_proto(self._agent.device_id, message)


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return str(error)
