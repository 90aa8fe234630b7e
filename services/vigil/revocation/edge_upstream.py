"""An edge's way to the service: the poll each second, the bus beside it, acknowledgements back."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import redis.asyncio
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter, Gauge
from redis.exceptions import RedisError

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Lease, PathStep, answers
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused
from vigil.revocation.bus import CHANNEL
from vigil.revocation.chain import BATCH
from vigil.revocation.domain import root_and_paths
from vigil.revocation.edge_chain import EdgeChain, RevocationEntry
from vigil.revocation.edge_hub import Hub
from vigil.rpc.status import translated

TICK_S: Final = 1.0
"""How often an edge asks (ARCHITECTURE, Revocation)."""
HINT_S: Final = 0.1
"""Hints of the bus that cannot be followed make it ask sooner, at most this often."""
TIMEOUT_S: Final = 3.0
MAX_GATHERED: Final = 200_000
"""Entries that wait for the head that confirms them."""
MAX_BUS_BYTES: Final = 4 << 20
RESUBSCRIBE_S: Final = 0.5
REPORT: Final = 1_000
"""Acknowledgements of one report."""
MAX_WAITING: Final = 100_000
RETRY_S: Final = 0.5
GATHER_S: Final = 0.02
"""Acknowledgements of one epoch come together: one report, one commit for many of them."""


class Poller:
    """Asks the service each second with the root over the readers' challenges; that is also the poll behind the bus."""

    def __init__(
        self,
        *,
        stub: Any,
        chain: EdgeChain,
        hub: Hub,
        clock: Clock,
        entropy: Entropy,
        metrics: CollectorRegistry,
    ) -> None:
        self._stub = stub
        self._chain = chain
        self._hub = hub
        self._clock = clock
        self._entropy = entropy
        self._lease = Lease()
        self._gathered: dict[int, RevocationEntry] = {}
        self._hint = asyncio.Event()
        self._anew = False
        self._failing = False
        self._log = structlog.get_logger("vigil.edge.poll")
        self._failed = Counter("vigil_edge_polls_failed", "Polls without a usable head.", registry=metrics)
        age = Gauge("vigil_edge_head_age_seconds", "Age of the newest answered challenge.", registry=metrics)
        age.set_function(self.age)

    def age(self) -> float:
        """Seconds since the edge sent the newest challenge of its own that a head answered."""
        return self._lease.age(monotonic=self._clock.monotonic())

    def hint(self) -> None:
        """Something new is said to be there: ask soon."""
        self._hint.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            began = self._clock.monotonic()
            self._hint.clear()
            try:
                await self._ask()
            except Refused as refusal:
                self._failed.inc()
                if not self._failing:
                    self._log.warning("no_head", reason=str(refusal))
                self._failing = True
            else:
                if self._failing:
                    self._log.info("heads_again")
                self._failing = False
            self._hub.sweep()
            await self._chain.persist()
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        spent = self._clock.monotonic() - began
        await asyncio.sleep(max(0.0, HINT_S - spent))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, TICK_S - max(spent, HINT_S))):
                await self._hint.wait()

    async def _ask(self) -> None:
        """One exchange, and more of them while entries are missing. Raises what the service refuses."""
        while True:
            asked = self._hub.challenges()
            own = self._entropy(32)
            self._lease.sent(own, monotonic=self._clock.monotonic())
            root, steps = root_and_paths([own, *(challenge for _, challenge in asked)])
            after = self._reached()
            response = await translated(
                self._stub.AnswerChallenges(
                    revocation_pb2.AnswerChallengesRequest(
                        challenge=root, after_epoch=after, max_entries=BATCH
                    ),
                    timeout=TIMEOUT_S,
                )
            )
            for entry in response.entries:
                if len(self._gathered) < MAX_GATHERED:
                    self._gathered[entry.epoch] = entry
            head = read(response.head.head, Head)
            if not self._take(head, progress=self._reached() > after):
                continue
            upper = tuple(PathStep(path.index, path.size, tuple(path.path)) for path in response.head.paths)
            if answers(head, own, (steps[0], *upper)):
                self._lease.answered(own)
                self._hub.answered(asked, steps[1:], upper)
            else:
                self._failed.inc()
                self._log.error("head_answers_another", epoch=head.body.epoch)
                self._hub.announce()
            return

    def _reached(self) -> int:
        """The epoch up to which entries are here, confirmed or gathered."""
        epoch = 0 if self._anew else self._chain.state.epoch
        while epoch + 1 in self._gathered:
            epoch += 1
        return epoch

    def _take(self, head: Statement[Head], *, progress: bool) -> bool:
        """Advance to the head; False when it has to be asked again. Raises what cannot be helped by that."""
        later = head.body.era > self._chain.state.era
        try:
            if self._anew and later:
                self._chain.renew(self._gathered.values(), head)
                self._hub.cut_all()
            else:
                self._chain.advance(self._gathered.values(), head)
        except Refused as refusal:
            overtaken = refusal.reason is Reason.EPOCH_ROLLED_BACK and self._overtaken(head)
            if overtaken or (refusal.reason is Reason.SNAPSHOT_REQUIRED and progress):
                return False
            self._gathered.clear()
            # Another chain counts only when the root and two people opened a later era in it: it is fetched from its
            # beginning beside the one in force, which stays in force.
            self._anew = later and not self._anew
            if self._anew:
                return False
            raise
        self._anew = False
        # What lies behind the head that was taken is of no use, whoever sent it.
        self._gathered.clear()
        return True

    def _overtaken(self, head: Statement[Head]) -> bool:
        """The bus brought a newer head while this answer was under way; the service itself is not behind."""
        newest = self._chain.head
        return newest is not None and head.body.issued <= newest.body.issued


class Subscriber:
    """Hears the bus. Whatever it says is verified; what cannot be followed becomes a poll."""

    def __init__(
        self,
        *,
        client: Callable[[], redis.asyncio.Redis],
        chain: EdgeChain,
        hub: Hub,
        hint: Callable[[], None],
        metrics: CollectorRegistry,
    ) -> None:
        self._client = client
        self._chain = chain
        self._hub = hub
        self._hint = hint
        self._log = structlog.get_logger("vigil.edge.bus")
        self._heard = Counter(
            "vigil_edge_bus_messages",
            "Messages of the bus, by what became of them.",
            ["outcome"],
            registry=metrics,
        )

    async def run(self) -> None:
        """Hear until cancelled; a bus that is away costs a second, no lease."""
        while True:
            try:
                await self._session()
            except (RedisError, OSError, TimeoutError) as error:
                self._log.warning("bus_lost", reason=str(error) or repr(error))
            await asyncio.sleep(RESUBSCRIBE_S)

    async def _session(self) -> None:
        async with self._client() as client, client.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)
            # Pub/sub never says what it missed.
            self._hint()
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                if message is not None:
                    self.hear(message["data"])
                    await self._chain.persist()

    def hear(self, data: object) -> None:
        """One message, from anybody."""
        outcome = self._judge(data)
        self._heard.labels(outcome).inc()
        if outcome == "taken":
            self._hub.announce()
        elif outcome in ("gap", "forged"):
            self._hint()

    def _judge(self, data: object) -> str:
        if not isinstance(data, bytes) or len(data) > MAX_BUS_BYTES:
            return "malformed"
        try:
            message = revocation_pb2.BusMessage.FromString(data)
            head = read(message.head, Head)
        except (DecodeError, Refused):
            return "malformed"
        state = self._chain.state
        if (head.body.era, head.body.epoch) <= (state.era, state.epoch):
            # A duplicate, a replay or a late one: nothing in it is news.
            return "known"
        try:
            self._chain.advance(message.entries, head)
        except Refused as refusal:
            return "gap" if refusal.reason is Reason.SNAPSHOT_REQUIRED else "forged"
        return "taken"


class Reporter:
    """Passes acknowledgements on, together with those that come within a moment."""

    def __init__(self, *, stub: Any, edge_id: str, metrics: CollectorRegistry) -> None:
        self._stub = stub
        self._edge_id = edge_id
        self._waiting: dict[bytes, None] = {}
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("vigil.edge.report")
        self._dropped = Counter(
            "vigil_edge_acknowledgements_dropped", "Acknowledgements that found no room.", registry=metrics
        )

    def put(self, acknowledgement: bytes) -> None:
        """Have one passed on. The service verifies it: an edge can delay it, never make one."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped.inc()
            return
        self._waiting[acknowledgement] = None
        self._wake.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            batch = list(self._waiting)[:REPORT]
            try:
                request = revocation_pb2.ReportAcknowledgementsRequest(
                    edge=self._edge_id, acknowledgements=batch
                )
                await translated(self._stub.ReportAcknowledgements(request, timeout=TIMEOUT_S))
            except Refused as refusal:
                self._log.warning("not_reported", reason=str(refusal), waiting=len(self._waiting))
                await asyncio.sleep(RETRY_S)
                continue
            for acknowledgement in batch:
                self._waiting.pop(acknowledgement, None)
            if not self._waiting:
                self._wake.clear()
