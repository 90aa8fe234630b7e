"""Writes admitted statements in group commits.

While one commit is on its way to the disk, the intake admits what arrives; all of that becomes the next commit.
Nothing is answered before it is durable, and after a failed commit nothing that was in memory is believed.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from vigil.core import cose
from vigil.core.clock import Clock, Entropy
from vigil.core.signing_clock import SigningClock
from vigil.core.statements import bodies as kinds
from vigil.core.statements.envelope import Scribe
from vigil.errors import Reason, Refused, VigilError, refused
from vigil.evidence import store
from vigil.evidence.domain import (
    Admitted,
    Commit,
    LogState,
    SubjectHead,
    root_of,
    sequence,
)
from vigil.evidence.intake import Answer, Intake, Ready, Submission
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.signers import Signers
from vigil.evidence.store import NewEntry, RecordedPlace, SignedCommit
from vigil.storage import Database

MAX_COMMIT = 512
"""Items in one commit: what is lost with it, and how long the first one waits for the last."""
MAX_COMMIT_BYTES = 8 << 20
MAX_HEADS = 131_072
"""Subjects whose newest record is remembered: more than the devices, sites and people of the working size."""

_log = logging.getLogger(__name__)


class LogDamagedError(VigilError):
    """The stored log contradicts itself or what it has signed; it must not be continued."""


@dataclass(slots=True)
class _Outcome:
    """What one commit did: the state after it, and each answer in the batch's order."""

    state: LogState
    places: list[RecordedPlace]
    heads: Mapping[str, SubjectHead] = field(default_factory=dict)
    added: int = 0


def standing_by() -> Refused:
    """Make EVIDENCE_UNAVAILABLE for a statement that came to a process which does not write."""
    return refused(
        Reason.EVIDENCE_UNAVAILABLE,
        "This process of the log stands by: another one writes.",
        lifted_by="the same statement at the process that writes; this one takes over when that one is gone",
        who="the sender",
        cause="NOT_THE_WRITER",
    )


class Sequencer:
    """The one writer of the log, once told to ``lead``; until then, and after ``stand_by``, it refuses statements.

    ``confirmed``: given the log's newest time (ms), an instant past it that two people confirmed, or None.
    ``scribes`` opens a new series of numbered `recorded` statements each time it is called: after a commit
    failed, the statement signed for it was never given away, and its series ends with the last one that was.
    """

    def __init__(
        self,
        *,
        database: Database,
        signers: Signers,
        scribes: Callable[[], Scribe],
        recorded_chain: Sequence[bytes],
        origin: str,
        clock: Clock,
        entropy: Entropy,
        metrics: LogMetrics,
        confirmed: Callable[[int], int | None] = lambda _: None,
    ) -> None:
        self._database = database
        self._signers = signers
        self._scribes = scribes
        self._confirmed = confirmed
        self._scribe = scribes()
        self._recorded_chain = tuple(recorded_chain)
        self._subject = f"log/{origin}"
        self._clock = clock
        self._metrics = metrics
        self._leading = False
        self._state: LogState | None = None
        self._signing_clock = SigningClock(durable=None, monotonic=clock.monotonic())
        self._heads: OrderedDict[str, SubjectHead] = OrderedDict()
        self._intake = Intake(signers=signers, clock=clock, entropy=entropy)
        self._withheld = False
        self._ready: deque[Ready] = deque()
        self._admitted = asyncio.Event()

    @property
    def leading(self) -> bool:
        """Whether this is the log's writer."""
        return self._leading

    def lead(self) -> None:
        """Begin to write, where whoever wrote before has stopped; blocks until that is durable.

        Raises LogDamagedError for a log that must not be continued, and STORAGE_UNAVAILABLE.
        """
        state = self._database.read_now(check_log)
        newest = self._confirmed(state.time) or state.time or None
        self._signing_clock = SigningClock(durable=newest, monotonic=self._clock.monotonic())
        self._forget()
        chains = {self._scribe.thumbprint: self._recorded_chain}
        self._database.write_now(lambda connection: store.put_chains(connection, chains))
        self._state = state
        self._leading = True

    def stand_by(self) -> None:
        """Write no more: another process does. What is under way fails."""
        self._leading = False
        self._forget()

    def _forget(self) -> None:
        """Believe nothing in memory: the database alone knows what is on record."""
        self._state = None
        self._heads.clear()
        self._scribe = self._scribes()

    def append(self, submission: Submission) -> Answer:
        """Record one statement; the answer is there when it is durable. The same statement again gets the same one.

        The answer, or this, raises STATEMENT_MALFORMED, SIGNATURE_INVALID (its signer's certificate included),
        FIELD_INVALID, REQUEST_TOO_LARGE for what cannot be recorded; EVIDENCE_UNAVAILABLE and STORAGE_UNAVAILABLE
        when it may or may not have been: send it again.
        """
        if not self._leading:
            raise standing_by()
        return self._intake.submit(submission)

    async def state(self) -> LogState:
        """The log as it is durable now."""
        if self._state is not None:
            return self._state
        return await self._database.read(store.load_state)

    async def run(self) -> None:
        """Admit and commit until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._intake.run(self._deliver))
            tasks.create_task(self._commit_all())

    def _deliver(self, admitted: Sequence[Ready]) -> None:
        self._ready.extend(admitted)
        self._admitted.set()

    async def _commit_all(self) -> None:
        while True:
            await self._admitted.wait()
            batch = self._take()
            if not batch:
                self._admitted.clear()
                continue
            try:
                outcome = await self._database.write(lambda connection: self._commit(connection, batch))  # noqa: B023 - awaited here
            except Exception as error:  # noqa: BLE001 - the outer edge of a commit: its callers get the error, the log goes on
                self._lost(batch, error)
            else:
                self._kept(batch, outcome)

    def _take(self) -> list[Ready]:
        batch: list[Ready] = []
        size = 0
        while self._ready and len(batch) < MAX_COMMIT:
            size += self._ready[0].size
            if batch and size > MAX_COMMIT_BYTES:
                break
            batch.append(self._ready.popleft())
        return batch

    def _commit(self, connection: Connection, batch: Sequence[Ready]) -> _Outcome:
        """Write what is new of a batch, in the writer's thread. No two of these ever run at once."""
        state = self._state or store.load_state(connection)
        unique = {ready.admitted.digest: ready for ready in batch}
        known = store.find_digests(connection, list(unique))
        fresh = [ready for digest, ready in unique.items() if digest not in known]
        places = _known_places(connection, known)
        outcome = _Outcome(state, [])
        if fresh:
            commit, signed = write_commit(
                connection,
                state,
                [(ready.admitted, ready.entry) for ready in fresh],
                chains={ready.admitted.signer: ready.chain for ready in fresh if ready.chain is not None},
                heads=self._heads_of(connection, [ready.admitted for ready in fresh]),
                now=self.time(),
                scribe=self._scribe,
                subject=self._subject,
            )
            recorded = cose.with_chain(signed.statement, self._recorded_chain)
            for index, (ready, path) in enumerate(zip(fresh, commit.paths, strict=True), commit.first):
                places[ready.admitted.digest] = RecordedPlace(recorded, index, path)
                if ready.effect is not None:
                    ready.effect(connection, index)
            outcome.state, outcome.heads, outcome.added = commit.after, commit.heads, len(fresh)
        outcome.places = [places[ready.admitted.digest] for ready in batch]
        return outcome

    def time(self) -> int:
        """The log's time now. Log time never goes back: a clock that leapt would end every permit until then.

        Raises EVIDENCE_UNAVAILABLE.
        """
        now = self._clock.now()
        try:
            time = self._signing_clock.time(now=now, monotonic=self._clock.monotonic())
        except Refused as refusal:
            if not self._withheld:
                _log.error("nothing is recorded: %s (now %d)", refusal, now)
            self._withheld = True
            raise refused(
                Reason.EVIDENCE_UNAVAILABLE,
                "Nothing is recorded: the log's clock stands too far ahead of its newest entry.",
                lifted_by="the right time, or two people confirming it",
                who="the operator",
                cause=refusal.reason,
            ) from refusal
        self._withheld = False
        return time

    def _heads_of(self, connection: Connection, items: Sequence[Admitted]) -> dict[str, SubjectHead]:
        heads: dict[str, SubjectHead] = {}
        missing: dict[str, None] = {}
        for item in items:
            for subject in item.subjects:
                head = self._heads.get(subject)
                if head is None:
                    missing[subject] = None
                else:
                    heads[subject] = head
        heads.update(store.load_heads(connection, missing))
        return heads

    def _kept(self, batch: Sequence[Ready], outcome: _Outcome) -> None:
        self._state = outcome.state if self._leading else None
        if outcome.added:
            self._signing_clock.stored(outcome.state.time, monotonic=self._clock.monotonic())
        for subject, head in outcome.heads.items():
            self._heads[subject] = head
            self._heads.move_to_end(subject)
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        self._signers.keep(tuple(ready.admitted.signer for ready in batch if ready.chain is not None))
        self._metrics.committed(
            items=outcome.added, repeated=len(batch) - outcome.added, size=outcome.state.size
        )
        for ready, place in zip(batch, outcome.places, strict=True):
            if not ready.answer.done():
                ready.answer.set_result(place)

    def _lost(self, batch: Sequence[Ready], error: Exception) -> None:
        if not isinstance(error, Refused):
            _log.error("a commit failed", exc_info=error)
        self._metrics.failed()
        self._forget()
        for ready in batch:
            if not ready.answer.done():
                ready.answer.set_exception(error)


def write_commit(
    connection: Connection,
    state: LogState,
    fresh: Sequence[tuple[Admitted, NewEntry]],
    *,
    chains: Mapping[bytes, tuple[bytes, ...]],
    heads: Mapping[str, SubjectHead],
    now: int,
    scribe: Scribe,
    subject: str,
) -> tuple[Commit, SignedCommit]:
    """Number statements that are not in the log, promise them with one signature, and write them; ``now`` in ms."""
    items = [admitted for admitted, _ in fresh]
    commit = sequence(state, items, heads=heads, now=now)
    body = kinds.Recorded(commit.root, commit.first, len(items), commit.after.time)
    signed = SignedCommit(cose.without_chain(scribe.sign(body, subject=subject).data), scribe.thumbprint)
    store.write_commit(connection, commit, [entry for _, entry in fresh], signed=signed, chains=chains)
    return commit, signed


def _known_places(connection: Connection, known: Mapping[bytes, int]) -> dict[bytes, RecordedPlace]:
    """Where statements of earlier commits are recorded; each commit is read once."""
    places: dict[bytes, RecordedPlace] = {}
    commits = store.CommitReader(connection)
    for digest, index in known.items():
        places[digest] = commits.place(index)
    return places


def check_log(connection: Connection) -> LogState:
    """Read the log's state and hold it against the newest checkpoint. Raises LogDamagedError."""
    try:
        state = store.load_state(connection)
        newest = store.load_checkpoint(connection)
        if newest is not None:
            if newest.size > state.size:
                raise LogDamagedError(
                    f"the log holds {state.size} entries and has signed a checkpoint of {newest.size}"
                )
            read = store.node_reader(connection)
            if root_of(newest.size, read) != newest.root:
                raise LogDamagedError("the stored tree does not lead to the newest checkpoint's root")
        if state.size:
            store.CommitReader(connection).place(state.size - 1)
    except LookupError as error:
        raise LogDamagedError(str(error)) from error
    return state
