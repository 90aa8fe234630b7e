"""What is revoked, as this gateway enforces it, and the lease that says how fresh that is.

Entries and heads come from an edge; they count when a signed head confirms the chain that they make. A restriction
is enforced from memory at once, then persisted, and only then acknowledged: no acknowledgement names an epoch that a
restart could forget. The lease runs from the *sending* of the newest challenge that a head has answered.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from sqlalchemy import Connection

from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.classes import CHALLENGE_INTERVAL_S, LEASE_S
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Entry, Lease, PathStep, ReadEntry, RevocationState, answers
from vigil.core.statements.bodies import Acknowledgement, Head, RevocationReason, Scope
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused, refused
from vigil.gateway import intent_store, store
from vigil.gateway.challenges import ChallengeTree, DeviceAnswer
from vigil.gateway.own_key import OwnKey
from vigil.gateway.trust import Trust
from vigil.rpc import status
from vigil.rpc.deadline import raise_if_cancelled
from vigil.storage import Database

SILENCE_S: Final = 6.0
"""Three challenges without any word: the edge is given up before the lease is."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 3.0
RETURN_S: Final = 1.0
"""When a stream that worked is lost, everybody else has probably lost theirs: gateways come back spread over this."""
MAX_PENDING: Final = 20_000
"""Entries that wait for the head that confirms them; a forged flood ends the stream instead of memory."""
PRINCIPAL: Final = "principal/"
"""Before a person's id, in an id of scope `credential`."""
MAX_ACKNOWLEDGEMENTS: Final = 4_096


@dataclass(frozen=True, slots=True)
class Enforced:
    """What one verified head brought: new entries, itself, and the devices whose challenges it answers."""

    entries: tuple[ReadEntry, ...]
    head: bytes
    answers: tuple[DeviceAnswer, ...]


class RevocationView:
    """What is enforced, kept in the database; the lease; the newest head."""

    def __init__(self, *, database: Database, trust: Trust, clock: Clock) -> None:
        self._database = database
        self._trust = trust
        self._clock = clock
        self.state = RevocationState()
        self.lease = Lease()
        self.head = b""
        self._unsaved: list[ReadEntry] = []
        self._replaced = False
        self._saved = (0, 0)

    def restore(self) -> None:
        """Take what this gateway verified and persisted before. Raises STATEMENT_MALFORMED if it was altered."""
        entries, era, head = self._database.read_now(store.load_revocations)
        self.state.restore((entry_of(data) for data in entries), era=era)
        self.head = head
        self._saved = (self.state.era, self.state.epoch)

    def lease_age(self) -> float:
        """Seconds; infinite when no head was ever answered."""
        return self.lease.age(monotonic=self._clock.monotonic())

    def lease_left_ms(self) -> int:
        """Milliseconds until the lease runs out; 0 when it has."""
        age = self.lease_age()
        return 0 if age >= LEASE_S else int((LEASE_S - age) * 1000)

    def take(self, entries: Sequence[Entry], head: Statement[Head]) -> tuple[ReadEntry, ...]:
        """Enforce what a head confirms, in memory. Raises what `RevocationState.advance` raises.

        Another chain, given whole, counts in the place of this one where the root and two people opened a later era.
        """
        verifier, now = self._trust.verifier, self._clock.now()
        try:
            taken = self.state.advance(entries, head, verifier=verifier, at=now)
        except Refused:
            if head.body.era <= self.state.era or not any(entry.epoch == 1 for entry in entries):
                raise
            self.state, taken = self.state.renewed(entries, head, verifier=verifier, at=now)
            self._unsaved, self._replaced = [], True
        self.head = head.data
        self._unsaved.extend(taken)
        return taken

    async def persist(self) -> None:
        """Make everything that was taken durable. Raises STORAGE_UNAVAILABLE; it is tried again with the next head."""
        era, epoch, head = self.state.era, self.state.epoch, self.head
        if (era, epoch) == self._saved and not self._unsaved:
            return
        taken, replaced = self._unsaved, self._replaced
        unsaved = list(taken)
        entries = [(one.entry.epoch, proto_of(one.entry).SerializeToString()) for one in unsaved]
        credentials, people = compromised(unsaved)

        def write(connection: Connection) -> None:
            if replaced:
                store.forget_revocations(connection)
            store.keep_revocations(connection, entries, era=era, epoch=epoch, head=head)
            if credentials or people:
                # Effects of a revocation: compromise also voids pending approvals.
                intent_store.void(connection, credentials=credentials, people=people)

        await self._database.write(write, vital=True)
        if self._unsaved is taken:
            self._replaced = False
            del taken[: len(unsaved)]
            self._saved = (era, epoch)

    async def after(self, epoch: int) -> list[revocation_pb2.RevocationEntry]:
        """The enforced entries after an epoch, for a device that is behind."""
        if epoch >= self.state.epoch:
            return []
        rows = await self._database.read(lambda conn: store.revocations_after(conn, epoch))
        return [revocation_pb2.RevocationEntry.FromString(row) for row in rows]


class RevocationFollower:
    """The client of the edges; ``run`` is its task.

    ``edges`` are dialled in turn, one at a time. ``on_enforced`` is called after something was persisted, or a
    device's challenge answered; ``on_restricted`` at once, from memory, before anything is written.
    """

    def __init__(
        self,
        *,
        gateway_id: str,
        edges: "Sequence[revocation_pb2_grpc.EdgeServiceAsyncStub]",
        view: RevocationView,
        challenges: ChallengeTree,
        key: OwnKey,
        clock: Clock,
        entropy: Entropy,
        on_restricted: Callable[[Sequence[ReadEntry]], None],
        on_enforced: Callable[[Enforced], Awaitable[None]],
    ) -> None:
        self._gateway_id = gateway_id
        self._edges = tuple(edges)
        self._view = view
        self._challenges = challenges
        self._key = key
        self._clock = clock
        self._entropy = entropy
        self._on_restricted = on_restricted
        self._on_enforced = on_enforced
        self._newest: dict[str, bytes] = {}
        self._acknowledgements: dict[str, bytes] = {}
        self._acknowledged = (-1, -1)
        self._pending: dict[int, Entry] = {}
        self._untold: list[ReadEntry] = []
        """What was taken and could not be persisted yet: the devices hear of it when it is."""
        self._wake = asyncio.Event()
        self._heard = 0.0
        self._log = structlog.get_logger("vigil.gateway.revocations")

    def acknowledge(self, subject: str, acknowledgement: bytes) -> None:
        """Pass a verified acknowledgement upward, now and again to each edge that is dialled later."""
        if subject in self._newest or len(self._newest) < MAX_ACKNOWLEDGEMENTS:
            self._newest[subject] = acknowledgement
            self._acknowledgements[subject] = acknowledgement
            self._wake.set()

    async def run(self) -> None:
        """Follow one edge after the other until cancelled."""
        place = int.from_bytes(self._entropy(2), "big")
        failures = 0
        while True:
            before = self._view.lease_age()
            try:
                await self._session(self._edges[place % len(self._edges)])
            except grpc.aio.AioRpcError as error:
                self._log.info("edge_lost", reason=str(status.from_rpc_error(error)))
            except Refused as refusal:
                # A gap, a head behind ours or a broken chain: another edge, from what was persisted.
                self._log.warning("edge_unusable", reason=str(refusal))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._log.info("edge_silent")
            except Exception:  # noqa: BLE001 - the task's outer edge: the lease runs out meanwhile, as it must
                self._log.exception("edge_failed")
            raise_if_cancelled()
            worked = self._view.lease_age() < before
            failures = 0 if worked else failures + 1
            place += 1
            pause = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 8))
            chance = int.from_bytes(self._entropy(2), "big") / 0x10000
            await asyncio.sleep(pause * (0.5 + chance / 2) + (RETURN_S * chance if worked else 0.0))

    async def _session(self, stub: "revocation_pb2_grpc.EdgeServiceAsyncStub") -> None:
        self._pending.clear()
        self._acknowledged = (-1, -1)
        self._acknowledgements = dict(self._newest)
        self._heard = self._clock.monotonic()
        state = self._view.state
        call: Any = stub.Follow()
        start = revocation_pb2.FollowStart(epoch=state.epoch, chain=state.chain, era=state.era)
        asking = asyncio.create_task(self._ask(call, start))
        try:
            async for response in call:
                self._heard = self._clock.monotonic()
                await self._take(response)
        finally:
            asking.cancel()
            call.cancel()
            # Gathered, so that a cancellation of this very task is not taken for that of the other one.
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, call: Any, start: revocation_pb2.FollowStart) -> None:
        """Say where we are, then a challenge every 2 s and acknowledgements as they come."""
        await call.write(revocation_pb2.FollowRequest(gateway_id=self._gateway_id, start=start))
        due = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now - self._heard > SILENCE_S:
                call.cancel()
                return
            if now >= due:
                challenge = self._challenges.seal(self._entropy(16))
                # The lease runs from here, before the first byte leaves.
                self._view.lease.sent(challenge, monotonic=self._clock.monotonic())
                await call.write(
                    revocation_pb2.FollowRequest(gateway_id=self._gateway_id, challenge=challenge)
                )
                due = now + CHALLENGE_INTERVAL_S
            waiting, self._acknowledgements = self._acknowledgements, {}
            for acknowledgement in waiting.values():
                await call.write(
                    revocation_pb2.FollowRequest(gateway_id=self._gateway_id, acknowledgement=acknowledgement)
                )
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - self._clock.monotonic())):
                    await self._wake.wait()

    async def _take(self, response: revocation_pb2.FollowResponse) -> None:
        match response.WhichOneof("message"):
            case "entries":
                for message in response.entries.entries:
                    self._pending[message.epoch] = _entry(message)
                if len(self._pending) > MAX_PENDING:
                    raise refused(
                        Reason.REQUEST_TOO_LARGE, "the edge sent more entries than wait for one head"
                    )
            case "head":
                await self._take_head(response.head)
            case _:
                return

    async def _take_head(self, answered: revocation_pb2.AnsweredHead) -> None:
        head = read(answered.head, Head)
        taken = self._view.take(tuple(self._pending.values()), head)
        self._pending = {
            epoch: entry for epoch, entry in self._pending.items() if epoch > self._view.state.epoch
        }
        if taken:
            self._on_restricted(taken)
            self._untold += taken
        reached = self._lease_answered(head, answered)
        try:
            await self._view.persist()
        except Refused as refusal:
            self._log.error("revocations_not_persisted", reason=str(refusal), epoch=self._view.state.epoch)
            return
        self._acknowledge_own()
        untold, self._untold = tuple(self._untold), []
        if untold or reached:
            await self._on_enforced(Enforced(untold, head.data, tuple(reached)))

    def _lease_answered(
        self, head: Statement[Head], answered: revocation_pb2.AnsweredHead
    ) -> list[DeviceAnswer]:
        steps = tuple(PathStep(path.index, path.size, tuple(path.path)) for path in answered.paths)
        for challenge in self._view.lease.outstanding():
            if answers(head, challenge, steps):
                self._view.lease.answered(challenge)
                return self._challenges.answered(challenge, steps)
        return []

    def _acknowledge_own(self) -> None:
        state = self._view.state
        if self._acknowledged == (state.era, state.epoch):
            return
        self._acknowledged = (state.era, state.epoch)
        body = Acknowledgement(
            epoch=state.epoch, chain=state.chain, era=state.era, enforced_at=self._clock.now()
        )
        subject = f"gateway/{self._gateway_id}"
        self.acknowledge(subject, self._key.scribe.sign(body, subject=subject).data)


def compromised(entries: Sequence[ReadEntry]) -> tuple[list[bytes], list[str]]:
    """Credentials (thumbprints) and people that these entries call compromised."""
    names = [
        name
        for one in entries
        if one.revocation is not None
        and one.revocation.body.scope is Scope.CREDENTIAL
        and one.revocation.body.reason is RevocationReason.COMPROMISE
        for name in one.revocation.body.ids
    ]
    people = [name.removeprefix(PRINCIPAL) for name in names if name.startswith(PRINCIPAL)]
    return [thumbprint for name in names if (thumbprint := thumbprint_of(name))], people


def thumbprint_of(name: str) -> bytes:
    """The certificate that an id of scope `credential` names; empty for a person's name, or for no digest at all."""
    try:
        return b"" if name.startswith(PRINCIPAL) else bytes.fromhex(name)
    except ValueError:
        return b""


def entry_of(data: bytes) -> Entry:
    """An entry from its bytes in the contract's form."""
    return _entry(revocation_pb2.RevocationEntry.FromString(data))


def proto_of(entry: Entry) -> revocation_pb2.RevocationEntry:
    """An entry in the contract's form."""
    return revocation_pb2.RevocationEntry(
        epoch=entry.epoch, statements=list(entry.statements), chain=entry.chain
    )


def _entry(message: revocation_pb2.RevocationEntry) -> Entry:
    return Entry(message.epoch, tuple(message.statements), message.chain)
