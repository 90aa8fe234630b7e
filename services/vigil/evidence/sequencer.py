"""Takes statements in, judges their signatures, and writes them in group commits.

Two tasks share the work: one admits what arrives, in short slices and taking turns among the senders, while the
other has a commit on its way to the disk; whatever was admitted meanwhile becomes the next commit. Nothing is
answered before it is durable, and after a failed commit nothing that was in memory is believed.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from vigil.core import cose
from vigil.core.clock import Clock
from vigil.core.statements import bodies as kinds
from vigil.core.statements.envelope import Scribe, check, read_any
from vigil.errors import Reason, Refused, VigilError, refused
from vigil.evidence import store
from vigil.evidence.domain import (
    Admitted,
    Commit,
    LogState,
    SubjectHead,
    body_digests,
    root_of,
    sequence,
    subjects_of,
)
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.signers import Signers
from vigil.evidence.store import NewEntry, RecordedPlace, SignedCommit
from vigil.storage import Database

MAX_COMMIT = 512
"""Items in one commit: what is lost with it, and how long the first one waits for the last."""
MAX_COMMIT_BYTES = 8 << 20
MAX_WAITING = 16_384
"""Statements waiting; more are refused rather than kept in memory."""
MAX_WAITING_BYTES = 64 << 20
SLICE = 16
"""Statements admitted before other tasks of the event loop get their turn: about 2 ms."""
MAX_HEADS = 131_072
"""Subjects whose newest record is remembered: more than the devices, sites and people of the working size."""

_SIGNER_REFUSED = frozenset({Reason.CERTIFICATE_INVALID, Reason.CERTIFICATE_EXPIRED})
_log = logging.getLogger(__name__)


class LogDamagedError(VigilError):
    """The stored log contradicts itself or what it has signed; it must not be continued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A statement on its way into the log. ``sender`` names the caller whose turn it takes."""

    statement: bytes
    subjects: Sequence[str] = ()
    bodies: Sequence[bytes] = ()
    organization: str = ""
    site: str = ""
    sender: str = ""

    @property
    def size(self) -> int:
        """Bytes that it holds in memory."""
        return len(self.statement) + sum(map(len, self.bodies))


_Answer = asyncio.Future[RecordedPlace]


@dataclass(frozen=True, slots=True)
class _Ready:
    admitted: Admitted
    entry: NewEntry
    chain: tuple[bytes, ...] | None
    size: int
    answer: _Answer


@dataclass(slots=True)
class _Outcome:
    """What one commit did: the state after it, and each answer in the batch's order."""

    state: LogState
    places: list[RecordedPlace]
    heads: Mapping[str, SubjectHead] = field(default_factory=dict)
    added: int = 0


class Sequencer:
    """The one writer of the log. Raises LogDamagedError, or Refused STORAGE_UNAVAILABLE, when made.

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
        metrics: LogMetrics,
    ) -> None:
        self._database = database
        self._signers = signers
        self._scribes = scribes
        self._scribe = scribes()
        self._recorded_chain = tuple(recorded_chain)
        self._subject = f"log/{origin}"
        self._clock = clock
        self._metrics = metrics
        self._state: LogState | None = database.read_now(check_log)
        database.write_now(
            lambda connection: store.put_chains(connection, {self._scribe.thumbprint: self._recorded_chain})
        )
        self._heads: OrderedDict[str, SubjectHead] = OrderedDict()
        self._lanes: OrderedDict[str, deque[tuple[Submission, _Answer]]] = OrderedDict()
        self._arrived = asyncio.Event()
        self._ready: deque[_Ready] = deque()
        self._admitted = asyncio.Event()
        self._waiting = 0
        self._waiting_bytes = 0

    async def append(self, submission: Submission) -> RecordedPlace:
        """Record one statement; returns when it is durable. The same statement again gets the same answer.

        Raises STATEMENT_MALFORMED, SIGNATURE_INVALID (its signer's certificate included), FIELD_INVALID,
        REQUEST_TOO_LARGE for what cannot be recorded; EVIDENCE_UNAVAILABLE and STORAGE_UNAVAILABLE when it may
        or may not have been: send it again.
        """
        size = submission.size
        if self._waiting >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise refused(
                Reason.EVIDENCE_UNAVAILABLE,
                "More statements are waiting to be recorded than the log takes.",
                lifted_by="the same statement a little later",
                who="the sender",
            )
        answer: _Answer = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(submission.sender)
        if lane is None:
            lane = self._lanes[submission.sender] = deque()
        lane.append((submission, answer))
        self._waiting += 1
        self._waiting_bytes += size
        self._arrived.set()
        try:
            return await answer
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    async def state(self) -> LogState:
        """The log as it is durable now."""
        if self._state is not None:
            return self._state
        return await self._database.read(store.load_state)

    async def run(self) -> None:
        """Admit and commit until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._admit_all())
            tasks.create_task(self._commit_all())

    # --- admitting

    async def _admit_all(self) -> None:
        while True:
            await self._arrived.wait()
            for _ in range(SLICE):
                turn = self._next()
                if turn is None:
                    self._arrived.clear()
                    break
                await self._admit(*turn)
            self._admitted.set()
            await asyncio.sleep(0)

    def _next(self) -> tuple[Submission, _Answer] | None:
        """Take the next statement of the sender whose turn it is; the sender then goes to the end of the line."""
        if not self._lanes:
            return None
        sender, lane = self._lanes.popitem(last=False)
        turn = lane.popleft()
        if lane:
            self._lanes[sender] = lane
        return turn

    async def _admit(self, submission: Submission, answer: _Answer) -> None:
        if answer.done():  # the caller went away
            return
        try:
            self._ready.append(await self._judged(submission, answer))
        except Exception as error:  # noqa: BLE001 - one statement's failure, whatever it is, is that caller's answer
            if not isinstance(error, Refused):
                _log.exception("a statement could not be judged")
            if not answer.done():
                answer.set_exception(error)

    async def _judged(self, submission: Submission, answer: _Answer) -> _Ready:
        """Read a statement and check its form, its signer's certificate and its signature."""
        statement = read_any(submission.statement)
        subjects = subjects_of(submission.subjects, statement.subject)
        digests = body_digests(submission.bodies)
        try:
            signed = await self._signers.identify(statement, now=self._clock.now())
        except Refused as refusal:
            # Not the caller's own certificate: what is refused here is the statement.
            if refusal.reason in _SIGNER_REFUSED:
                raise refused(
                    Reason.SIGNATURE_INVALID, refusal.refusals[0].sentence, cause=refusal.reason
                ) from refusal
            raise
        check(statement, signed.identity)
        admitted = Admitted(
            kind=str(statement.kind),
            digest=statement.digest,
            signer=statement.signer,
            number=statement.number,
            subjects=subjects,
            bodies=digests,
        )
        entry = NewEntry(
            digest=statement.digest,
            kind=str(statement.kind),
            organization=submission.organization,
            site=submission.site,
            statement=cose.without_chain(submission.statement) if statement.chain else submission.statement,
            bodies=dict(zip(digests, submission.bodies, strict=True)),
        )
        return _Ready(admitted, entry, signed.chain, submission.size, answer)

    # --- committing

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

    def _take(self) -> list[_Ready]:
        batch: list[_Ready] = []
        size = 0
        while self._ready and len(batch) < MAX_COMMIT:
            size += self._ready[0].size
            if batch and size > MAX_COMMIT_BYTES:
                break
            batch.append(self._ready.popleft())
        return batch

    def _commit(self, connection: Connection, batch: Sequence[_Ready]) -> _Outcome:
        """Write what is new of a batch, in the writer's thread. No two of these ever run at once."""
        state = self._state or store.load_state(connection)
        unique = {ready.admitted.digest: ready for ready in batch}
        known = store.find_digests(connection, list(unique))
        fresh = [ready for digest, ready in unique.items() if digest not in known]
        places = _known_places(connection, known)
        outcome = _Outcome(state, [])
        if fresh:
            commit, signed = self._write(connection, state, fresh)
            recorded = cose.with_chain(signed.statement, self._recorded_chain)
            for index, (ready, path) in enumerate(zip(fresh, commit.paths, strict=True), commit.first):
                places[ready.admitted.digest] = RecordedPlace(recorded, index, path)
            outcome.state, outcome.heads, outcome.added = commit.after, commit.heads, len(fresh)
        outcome.places = [places[ready.admitted.digest] for ready in batch]
        return outcome

    def _write(
        self, connection: Connection, state: LogState, fresh: Sequence[_Ready]
    ) -> tuple[Commit, SignedCommit]:
        items = [ready.admitted for ready in fresh]
        commit = sequence(state, items, heads=self._heads_of(connection, items), now=self._clock.now())
        body = kinds.Recorded(commit.root, commit.first, len(items), commit.after.time)
        data = self._scribe.sign(body, subject=self._subject).data
        signed = SignedCommit(cose.without_chain(data), self._scribe.thumbprint)
        chains = {ready.admitted.signer: ready.chain for ready in fresh if ready.chain is not None}
        store.write_commit(connection, commit, [ready.entry for ready in fresh], signed=signed, chains=chains)
        return commit, signed

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

    def _kept(self, batch: Sequence[_Ready], outcome: _Outcome) -> None:
        self._state = outcome.state
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

    def _lost(self, batch: Sequence[_Ready], error: Exception) -> None:
        """After a failed commit the database alone knows what is on record: read everything again."""
        if not isinstance(error, Refused):
            _log.error("a commit failed", exc_info=error)
        self._metrics.failed()
        self._state = None
        self._heads.clear()
        self._scribe = self._scribes()
        for ready in batch:
            if not ready.answer.done():
                ready.answer.set_exception(error)


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
