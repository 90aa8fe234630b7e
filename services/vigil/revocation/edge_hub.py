"""An edge's readers: the gateways' streams, each sent what it lacks and the newest head, never a queue of old ones.

A slow reader holds nothing up and holds no memory: what it is sent is decided when it can take a message. Heads go
out to a reader in the order of their epochs; what answers challenges carries each reader's own path.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.clock import Clock
from vigil.core.ordered import OrderedSet
from vigil.core.revocations import PathStep
from vigil.errors import Reason, Refused, refused
from vigil.revocation.domain import CHALLENGE_BYTES
from vigil.revocation.edge_chain import EdgeChain, RevocationEntry
from vigil.revocation.servicer import challenge_path
from vigil.rpc.call import Call
from vigil.rpc.caller import caller_of

STALL_S: Final = 15.0
"""A reader that has not taken one message for this long is cut off; it catches up when it comes back."""
MAX_ACKNOWLEDGEMENT: Final = 16_384
BATCHES: Final = 64
"""Encoded batches kept: a fleet that returns at once asks for the same ones."""
SERVICE: Final = "vigil.api.revocation.v1.EdgeService"

Context = grpc.aio.ServicerContext[Any, Any]
Place = tuple[int, int]
"""Era and epoch of a head."""


class Reader:
    """One gateway's stream."""

    def __init__(self, *, gateway_id: str, epoch: int, cut: Callable[[], None]) -> None:
        self.gateway_id = gateway_id
        self.epoch = epoch
        """Everything up to here was sent, or is persisted there."""
        self.told: Place = (-1, -1)
        """The newest head that was sent."""
        self.challenge: bytes | None = None
        self.answer: tuple[Place, bytes] | None = None
        self.wake = asyncio.Event()
        self.sending_since: float | None = None
        self.cut = cut


class Hub:
    """All readers of one edge."""

    def __init__(self, *, chain: EdgeChain, clock: Clock, metrics: CollectorRegistry) -> None:
        self._chain = chain
        self._clock = clock
        self._readers: OrderedSet[Reader] = OrderedSet()
        self._announcement = b""
        self._announced: Place = (-1, -1)
        self._batches: dict[tuple[int, int], asyncio.Task[tuple[int, bytes]]] = {}
        self._log = structlog.get_logger("vigil.edge.hub")
        self._open = Gauge("vigil_edge_readers", "Gateways that follow.", registry=metrics)
        self._cut = Counter(
            "vigil_edge_readers_cut", "Readers that took nothing and were cut.", registry=metrics
        )

    def join(self, reader: Reader) -> None:
        self._readers.add(reader)
        self._open.set(len(self._readers))

    def leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._open.set(len(self._readers))

    def challenges(self) -> list[tuple[Reader, bytes]]:
        """The newest challenge of each reader that waits for an answer."""
        return [(reader, reader.challenge) for reader in self._readers if reader.challenge is not None]

    def answered(
        self, asked: Sequence[tuple[Reader, bytes]], steps: Sequence[PathStep], upper: Sequence[PathStep]
    ) -> None:
        """The chain's newest head answers these challenges: each reader gets it with its own path."""
        head = self._chain.head
        if head is None:
            return
        above = [challenge_path(step) for step in upper]
        place = (head.body.era, head.body.epoch)
        for (reader, challenge), step in zip(asked, steps, strict=True):
            answered = revocation_pb2.AnsweredHead(head=head.data, paths=[challenge_path(step), *above])
            message = revocation_pb2.FollowResponse(head=answered).SerializeToString()
            reader.answer = (place, message)
            if reader.challenge == challenge:
                reader.challenge = None
        self._announce(place, head.data)
        for reader in self._readers:
            reader.wake.set()

    def announce(self) -> None:
        """The chain advanced without an answer: everybody gets entries and head at once; no lease runs from it."""
        head = self._chain.head
        if head is None:
            return
        self._announce((head.body.era, head.body.epoch), head.data)
        for reader in self._readers:
            reader.wake.set()

    def _announce(self, place: Place, head: bytes) -> None:
        if place > self._announced or not self._announcement:
            answered = revocation_pb2.AnsweredHead(head=head)
            self._announcement = revocation_pb2.FollowResponse(head=answered).SerializeToString()
            self._announced = place

    async def messages(self, reader: Reader) -> AsyncGenerator[bytes, None]:
        """What this reader lacks now, encoded: entries first, then the heads that confirm them."""
        while self._announcement and reader.epoch < self._chain.state.epoch:
            epoch, message = await self._batch(reader.epoch)
            yield message
            reader.epoch = max(reader.epoch, epoch)
        answer, reader.answer = reader.answer, None
        if answer is not None and answer[0] >= reader.told and answer[0][1] <= reader.epoch:
            reader.told = answer[0]
            yield answer[1]
        # A reader that knows more than this edge is told nothing older: it would have to refuse it.
        if self._announcement and reader.told < self._announced and self._announced[1] == reader.epoch:
            reader.told = self._announced
            yield self._announcement

    async def _batch(self, after: int) -> tuple[int, bytes]:
        key = (after, self._chain.state.epoch)
        task = self._batches.get(key)
        if task is None:
            while len(self._batches) >= BATCHES:
                self._batches.pop(next(iter(self._batches)))
            task = self._batches[key] = asyncio.create_task(self._encode(after))
        return await asyncio.shield(task)

    async def _encode(self, after: int) -> tuple[int, bytes]:
        values = await self._chain.after(after)
        if not values or values[0][0] != after + 1:
            raise refused(Reason.SERVICE_UNAVAILABLE, "The edge has no gapless entries to send.")
        batch = revocation_pb2.EntryBatch(entries=[RevocationEntry.FromString(value) for _, value in values])
        return values[-1][0], revocation_pb2.FollowResponse(entries=batch).SerializeToString()

    def cut_all(self) -> None:
        """Another chain took the place of this one: everybody says anew where it stands."""
        self._batches.clear()
        self._announcement, self._announced = b"", (-1, -1)
        for reader in tuple(self._readers):
            reader.answer = None
            reader.cut()

    def sweep(self) -> None:
        """Cut readers that take nothing."""
        now = self._clock.monotonic()
        for reader in tuple(self._readers):
            if reader.sending_since is not None and now - reader.sending_since > STALL_S:
                self._cut.inc()
                self._log.info("reader_cut", gateway=reader.gateway_id)
                reader.cut()


class EdgeServicer(revocation_pb2_grpc.EdgeServiceServicer):
    """Follow: one stream a gateway; GetEntries for a service that lost its own."""

    def __init__(
        self, *, hub: Hub, chain: EdgeChain, acknowledge: Callable[[bytes], None], clock: Clock
    ) -> None:
        self._hub = hub
        self._chain = chain
        self._acknowledge = acknowledge
        self._clock = clock
        self._log = structlog.get_logger("vigil.edge.follow")

    async def Follow(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[revocation_pb2.FollowRequest], context: Context
    ) -> AsyncIterator[Any]:
        reader = await self._begin(request_iterator, context)
        self._hub.join(reader)
        listening = asyncio.create_task(self._listen(request_iterator, reader))
        listening.add_done_callback(lambda _: reader.wake.set())
        reader.wake.set()
        try:
            while True:
                await reader.wake.wait()
                reader.wake.clear()
                if listening.done():
                    listening.result()
                    return
                async for message in self._hub.messages(reader):
                    reader.sending_since = self._clock.monotonic()
                    yield message
                    reader.sending_since = None
        finally:
            listening.cancel()
            self._hub.leave(reader)

    async def GetEntries(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.GetEntriesRequest, _context: Context
    ) -> revocation_pb2.EntryBatch:
        values = await self._chain.after(min(request.after_epoch, self._chain.state.epoch))
        return revocation_pb2.EntryBatch(entries=[RevocationEntry.FromString(value) for _, value in values])

    async def _begin(self, requests: AsyncIterator[revocation_pb2.FollowRequest], context: Context) -> Reader:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise _malformed("A gateway begins by saying where it stands.", "start")
        start = first.start
        reader = Reader(gateway_id=caller_of(context).id, epoch=start.epoch, cut=_cutter(context))
        known = self._chain.hash_at(start.epoch)
        if known != start.chain and start.era < self._chain.state.era:
            # It stands on a chain that was lost, and takes the one of the later era whole.
            self._log.warning("reader_on_former_chain", gateway=reader.gateway_id, epoch=start.epoch)
            reader.epoch = 0
        elif known is None:
            # It knows more than this edge, or says so: it is told nothing older than what it has.
            self._log.warning("reader_ahead", gateway=reader.gateway_id, claimed=start.epoch)
        elif known != start.chain:
            self._log.error("reader_on_another_chain", gateway=reader.gateway_id, epoch=start.epoch)
        return reader

    async def _listen(self, requests: AsyncIterator[revocation_pb2.FollowRequest], reader: Reader) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "challenge" if len(request.challenge) in CHALLENGE_BYTES:
                    reader.challenge = request.challenge
                case "acknowledgement" if len(request.acknowledgement) <= MAX_ACKNOWLEDGEMENT:
                    self._acknowledge(request.acknowledgement)
                case _:
                    raise _malformed(
                        "After the start a gateway sends challenges of 16 to 64 bytes and acknowledgements.",
                        "message",
                    )


def add_to_server(servicer: EdgeServicer, server: Any) -> None:
    """Register as the generated code does, but pass messages on that are encoded already."""
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.Follow,
        request_deserializer=revocation_pb2.FollowRequest.FromString,
        response_serializer=bytes,
    )
    entries = grpc.unary_unary_rpc_method_handler(
        servicer.GetEntries,
        request_deserializer=revocation_pb2.GetEntriesRequest.FromString,
        response_serializer=revocation_pb2.EntryBatch.SerializeToString,
    )
    server.add_registered_method_handlers(SERVICE, {"Follow": handler, "GetEntries": entries})


def _cutter(context: Context) -> Callable[[], None]:
    def cut() -> None:
        if isinstance(context, Call):
            context.cut(refused(Reason.SERVICE_UNAVAILABLE, "The messages were not taken; follow again."))

    return cut


def _malformed(sentence: str, field: str) -> Refused:
    return refused(Reason.FIELD_INVALID, sentence, who="caller", field=field)
