"""From a sender's bytes to a statement that may be recorded: turns, form, certificate, signature.

Statements wait in a lane for each sender, and lanes take turns, so that nobody's flood holds up another's one
statement. They are judged on the event loop, in short slices: handing signatures to threads was measured and costs
more (two threads that pass the interpreter's lock back and forth) than the 70 microseconds that each one takes.
"""

import asyncio
import logging
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from vigil.core.clock import Clock, Entropy
from vigil.core.statements.envelope import Statement, StatementKind, check, read_envelope
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import Admitted, keep_bodies, subjects_of
from vigil.evidence.signers import Signers
from vigil.evidence.store import NewEntry, RecordedPlace

MAX_WAITING = 16_384
"""Statements waiting; more are refused rather than kept in memory."""
MAX_WAITING_BYTES = 64 << 20
MAX_OF_SENDER = 4_096
MAX_BYTES_OF_SENDER = 16 << 20
"""Of these for one sender: a flood of one leaves room for the others."""
SLICE = 16
"""Statements judged before other tasks of the event loop get their turn: about 2 ms."""

_OWNER = re.compile(r"[!-~]{0,63}", re.ASCII)
"""What the columns take. One that a database refused would take the whole commit with it, other senders' items too."""
_SIGNER_REFUSED = frozenset({Reason.CERTIFICATE_INVALID, Reason.CERTIFICATE_EXPIRED})
OWN_KINDS = frozenset({StatementKind.ERASURE, StatementKind.QUERY, StatementKind.CENSUS})
"""What the log records by itself alone: from others such a statement would claim what the log never did."""
_log = logging.getLogger(__name__)


Effect = Callable[[Connection, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A statement on its way into the log. ``sender`` names the caller whose turn it takes.

    ``own``: the log records it by itself. ``effect`` runs in the transaction that records it, with its index, unless it
    is on record already; it must not fail.
    """

    statement: bytes
    subjects: Sequence[str] = ()
    bodies: Sequence[bytes] = ()
    organization: str = ""
    site: str = ""
    sender: str = ""
    own: bool = False
    effect: Effect | None = None

    @property
    def size(self) -> int:
        """Bytes that it holds in memory."""
        return len(self.statement) + sum(map(len, self.bodies))


Answer = asyncio.Future[RecordedPlace]


@dataclass(frozen=True, slots=True)
class Ready:
    """A statement whose form, signer and signature are right; ``chain`` is to be kept unless it is None."""

    admitted: Admitted
    entry: NewEntry
    chain: tuple[bytes, ...] | None
    size: int
    answer: Answer
    effect: Effect | None = None


class Intake:
    """Takes statements in and delivers those that may be recorded, in the order of their turns."""

    def __init__(self, *, signers: Signers, clock: Clock, entropy: Entropy) -> None:
        self._signers = signers
        self._clock = clock
        self._entropy = entropy
        self._lanes: OrderedDict[str, deque[tuple[Submission, Answer]]] = OrderedDict()
        self._arrived = asyncio.Event()
        self._waiting = 0
        self._waiting_bytes = 0
        self._waiting_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()

    def submit(self, submission: Submission) -> Answer:
        """Queue a statement; answers where its answer will be. Raises EVIDENCE_UNAVAILABLE: too much waits already."""
        size = submission.size
        sender = submission.sender
        if (
            self._waiting >= MAX_WAITING
            or self._waiting_bytes + size > MAX_WAITING_BYTES
            or self._waiting_of[sender] >= MAX_OF_SENDER
            or self._bytes_of[sender] + size > MAX_BYTES_OF_SENDER
        ):
            raise refused(
                Reason.EVIDENCE_UNAVAILABLE,
                "More statements are waiting to be recorded than the log takes.",
                lifted_by="the same statement a little later",
                who="the sender",
            )
        answer: Answer = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(sender)
        if lane is None:
            lane = self._lanes[sender] = deque()
        lane.append((submission, answer))
        self._count(sender, 1, size)
        answer.add_done_callback(lambda _: self._count(sender, -1, -size))
        self._arrived.set()
        return answer

    def _count(self, sender: str, number: int, size: int) -> None:
        self._waiting += number
        self._waiting_bytes += size
        self._waiting_of[sender] += number
        self._bytes_of[sender] += size
        if not self._waiting_of[sender]:
            del self._waiting_of[sender], self._bytes_of[sender]

    async def run(self, deliver: Callable[[Sequence[Ready]], None]) -> None:
        """Admit until cancelled."""
        while True:
            await self._arrived.wait()
            deliver(await self._slice())
            await asyncio.sleep(0)

    async def _slice(self) -> list[Ready]:
        ready: list[Ready] = []
        for _ in range(SLICE):
            turn = self._next()
            if turn is None:
                self._arrived.clear()
                break
            submission, answer = turn
            if answer.done():  # the caller went away
                continue
            try:
                ready.append(await self._judged(submission, answer))
            except Exception as error:  # noqa: BLE001 - one statement's failure, whatever it is, is that caller's answer
                if not isinstance(error, Refused):
                    _log.exception("a statement could not be judged")
                if not answer.done():
                    answer.set_exception(error)
        return ready

    def _next(self) -> tuple[Submission, Answer] | None:
        """Take the next statement of the sender whose turn it is; the sender then goes to the end of the line."""
        if not self._lanes:
            return None
        sender, lane = self._lanes.popitem(last=False)
        turn = lane.popleft()
        if lane:
            self._lanes[sender] = lane
        return turn

    async def _judged(self, submission: Submission, answer: Answer) -> Ready:
        """Check form and bounds, the signer's certificate when it signed, its signature, and that it may sign this.

        The body is the business of those who act on it: a log that refused what it is too old to know would
        stop every command in the middle of an upgrade.
        """
        statement = read_envelope(submission.statement)
        if statement.kind in OWN_KINDS and not submission.own:
            raise refused(
                Reason.FIELD_INVALID,
                f"The log records a {statement.kind} by itself, and takes none from others.",
                lifted_by="the method that makes the log do what this says",
                who="the sender",
                field="statement",
            )
        if not (_OWNER.fullmatch(submission.organization) and _OWNER.fullmatch(submission.site)):
            raise refused(
                Reason.FIELD_INVALID,
                "An owner's organisation and site are ids of at most 63 printable characters.",
                lifted_by="their ids as the identity service gave them",
                who="the sender",
                field="organization_id, site_id",
            )
        admitted, entry = admitted_of(submission, statement, self._entropy)
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
        return Ready(admitted, entry, signed.chain, submission.size, answer, submission.effect)


def admitted_of(
    submission: Submission, statement: Statement[Any], entropy: Entropy
) -> tuple[Admitted, NewEntry]:
    """What is numbered and what is stored of a statement. Raises FIELD_INVALID, REQUEST_TOO_LARGE."""
    subjects = subjects_of(submission.subjects, statement.subject)
    bodies = keep_bodies(submission.bodies, entropy)
    admitted = Admitted(
        kind=str(statement.kind),
        digest=statement.digest,
        signer=statement.signer,
        number=statement.number,
        subjects=subjects,
        bodies=tuple(bodies),
    )
    entry = NewEntry(
        digest=statement.digest,
        kind=admitted.kind,
        organization=submission.organization,
        site=submission.site,
        statement=statement.sign1.without_chain,
        bodies=bodies,
    )
    return admitted, entry
