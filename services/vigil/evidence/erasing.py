"""Erases what two people signed to have erased; the leaves stay, so every proof still holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import Connection, select

from vigil.core import cose
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import Clock
from vigil.core.commands import person_of
from vigil.core.erasures import MAX_SUBJECTS
from vigil.core.holds import standing
from vigil.core.statements.bodies import Answer, Decision, Hold, Intent, Receipt, Result
from vigil.core.statements.envelope import KIND_OF, Statement, read, read_any
from vigil.core.statements.log_bodies import Erasure, ErasureWhat
from vigil.errors import Reason, refused
from vigil.evidence import erasure, index_store, store
from vigil.evidence.domain import Scope, decode_leaf, not_in_scope, scope_of
from vigil.evidence.erased import Erased, erase, load_erased
from vigil.evidence.index import Rows, read_named
from vigil.evidence.intake import Submission
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.tables import (
    ENTRY,
    KIND_TIME,
    REFERENCE,
    STATEMENT,
    SUBJECT_RECORD,
    SUBJECT_TIME,
)
from vigil.storage import Database, add_missing_rows, delete_keys, overwrite_deleted

ROWS: Final = 1000
"""Records of one kind of one subject that are looked through."""
B = TypeVar("B")

RevocationCheck = Callable[[Identity], Reason | None]


@dataclass(frozen=True, slots=True)
class Target:
    """One record that is to be erased."""

    index: int
    bodies: tuple[bytes, ...]
    subjects: tuple[str, ...]
    organization: str
    site: str
    erased: Erased | None


class Erasing:
    """The one use case. ``revoked`` answers why somebody counts no more."""

    def __init__(
        self,
        *,
        database: Database,
        sequencer: Sequencer,
        verifier: Callable[[], ChainVerifier],
        revoked: RevocationCheck,
        clock: Clock,
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._verifier = verifier
        self._revoked = revoked
        self._clock = clock

    async def erase(self, caller: Identity, erasures: Sequence[bytes]) -> tuple[Erased, int, bool]:
        """Record both statements and erase with the second; answers also how many records, and whether it is scrubbed.

        The same statements again change nothing. Raises STATEMENT_MALFORMED, SIGNATURE_INVALID, CERTIFICATE_INVALID,
        what revoked a signer, NOT_IN_SCOPE for a record that a signer may not read or that is not there, EVIDENCE_HOLD,
        STATE_CONFLICT, FIELD_INVALID, REQUEST_TOO_LARGE, and as ``erasure.check_pair``.
        """
        now = self._clock.now()
        statements = [read(data, Erasure) for data in erasures[:3]]
        people = [self._person(statement, now) for statement in statements]
        erasure.check_pair(statements, people, caller=caller, now=now)
        body = statements[0].body
        scopes = [scope_of(person) for person in people]

        def look(connection: Connection) -> tuple[list[Target], list[bool]]:
            fresh = [store.index_of(connection, one.digest) is None for one in statements]
            return _targets(connection, body, scopes=scopes, now=now), fresh

        targets, fresh = await self._database.read(look)
        done = [one.erased for one in targets if one.erased is not None and one.erased.covers(body.what)]
        if len(done) == len(targets):
            return done[0], len(targets), await self._database.scrub()
        if fresh == [True, False]:  # sent again after a crash between the two, in another order
            statements.reverse()
            people.reverse()
        owner = _owner(targets)
        first = await self._sequencer.append(self._submission(statements[0], targets, owner))
        made: list[Erased] = []

        def effect(connection: Connection, index: int) -> None:
            (leaf,) = store.load_leaves(connection, index, 1)
            made.append(
                Erased(
                    what=body.what,
                    reason=body.reason,
                    reference=body.reference or "",
                    time=decode_leaf(leaf).log_time,
                    people=(people[0].id, people[1].id),
                    records=(first.index, index),
                )
            )
            overwrite_deleted(connection)
            # Of what was erased before, as much or more, the earlier erasure tells.
            left = [one for one in targets if one.erased is None or not one.erased.covers(body.what)]
            if body.what is ErasureWhat.STATEMENTS:
                for one in left:
                    _unindex(connection, one.index)
            erase(connection, [(one.index, one.bodies) for one in left], made[-1])

        second = self._submission(statements[1], targets, owner, effect)
        await self._sequencer.append(second)
        if not made:
            raise refused(
                Reason.REQUEST_ID_REUSED,
                "The second of these statements was on record already, with another first one.",
                lifted_by="new statements by both",
                who="the signers",
            )
        return made[-1], len(targets), await self._database.scrub()

    def _person(self, statement: Statement[Erasure], now: int) -> Identity:
        person = person_of(statement, self._verifier(), at=now)
        reason = self._revoked(person)
        if reason is not None:
            raise refused(reason, f"{person.id}, who signed, is revoked.", who="the recall team")
        return person

    def _submission(
        self,
        statement: Statement[Erasure],
        targets: Sequence[Target],
        owner: tuple[str, str],
        effect: Callable[[Connection, int], None] | None = None,
    ) -> Submission:
        subjects = dict.fromkeys(subject for one in targets for subject in one.subjects)
        if len(subjects) > MAX_SUBJECTS:
            raise refused(
                Reason.REQUEST_TOO_LARGE,
                f"These records are about {len(subjects)} subjects; one erasure is about {MAX_SUBJECTS} at most.",
                lifted_by="fewer records at once",
                who="the signers",
            )
        return Submission(
            statement=statement.data,
            subjects=(statement.issuer, *subjects),
            organization=owner[0],
            site=owner[1],
            sender="log",
            own=True,
            effect=effect,
        )


def _unindex(connection: Connection, index: int) -> None:
    """Bring the index to what it would be, were it made again without this statement."""
    row = connection.execute(
        select(ENTRY.c.leaf, STATEMENT.c.data)
        .join(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
        .where(ENTRY.c.idx == index)
    ).one_or_none()
    if row is None or index_store.covered(connection, held=True) <= index:
        return
    named = read_named(row.leaf)
    before, after = (Rows.of([(index, named, statement, ())]) for statement in (row.data, b""))
    for table, old, new in (
        (SUBJECT_TIME, before.subjects, after.subjects),
        (KIND_TIME, before.kinds, after.kinds),
        (REFERENCE, before.references, after.references),
    ):
        delete_keys(connection, table, [one for one in old if one not in new])
        add_missing_rows(connection, table, [one for one in new if one not in old])


def _owner(targets: Sequence[Target]) -> tuple[str, str]:
    organizations = {one.organization for one in targets}
    if len(organizations) != 1:
        raise refused(
            Reason.FIELD_INVALID,
            "These records belong to several organizations.",
            lifted_by="an erasure for each",
            who="the signers",
            field="records",
        )
    sites = {one.site for one in targets}
    return organizations.pop(), sites.pop() if len(sites) == 1 else ""


def _targets(connection: Connection, body: Erasure, *, scopes: Sequence[Scope], now: int) -> list[Target]:
    commits = store.CommitReader(connection)
    targets, devices = [], dict[str, None]()
    for digest in body.records:
        index = store.index_of(connection, digest)
        entry = None if index is None else store.load_entry(connection, index, commits)
        if entry is None or not all(scope.covers(entry.organization, entry.site) for scope in scopes):
            raise not_in_scope("record")
        leaf = decode_leaf(entry.leaf)
        erasure.check_kind(leaf.kind, entry.index)
        subjects = tuple(link.subject for link in leaf.subjects)
        devices |= dict.fromkeys(subject for subject in subjects if subject.startswith("device/"))
        if entry.statement:
            devices |= _check_over(connection, entry, now=now)
        erased = load_erased(connection, entry.index)
        if erased is None and body.what is ErasureWhat.BODIES and not leaf.bodies:
            raise refused(Reason.STATE_CONFLICT, f"Record {entry.index} has no bodies.", index=entry.index)
        targets.append(Target(entry.index, leaf.bodies, subjects, entry.organization, entry.site, erased))
    for device in devices:
        if _is_held(connection, device, now=now):
            raise erasure.held(device)
    return targets


def _check_over(connection: Connection, entry: store.StoredEntry, *, now: int) -> dict[str, None]:
    """Nothing that this belongs to may still happen; answers the devices that it went to. Raises STATE_CONFLICT."""
    statement = read_any(cose.with_chain(entry.statement, entry.chain))
    digest = erasure.intent_digest(statement)
    if digest is None:
        return {}
    index = store.index_of(connection, digest)
    intent = None if index is None else _intent(connection, index)
    if intent is not None:
        end = intent.body.expires
    elif index is not None:
        return {}  # it is erased: it was over
    else:
        end = decode_leaf(entry.leaf).log_time + erasure.UNKNOWN_INTENT_MS
    if now < end:
        raise erasure.running(entry.index, "its intent has not ended", "the end of the intent")
    devices: dict[str, None] = {}
    for place, decision in _of(connection, f"intent/{digest.hex()}", Decision):
        if decision is None or decision.body.answer is not Answer.ALLOW:
            continue
        device = f"device/{decision.body.device}"
        devices[device] = None
        if now < end + erasure.LOST_MS and not _ended(connection, decision.body.command, device, place):
            raise erasure.running(
                entry.index,
                f"{device} has not said how it ended",
                "its last receipt, or 90 days after the intent's end",
            )
    return devices


def _ended(connection: Connection, command: bytes, device: str, after: int) -> bool:
    """Whether a final receipt of a command is on record, after the index of its decision."""
    return any(
        index > after
        and receipt is not None
        and receipt.body.command == command
        and receipt.body.outcome in erasure.FINAL
        for index, receipt in _of(connection, device, Receipt)
    )


def _is_held(connection: Connection, device: str, *, now: int) -> bool:
    """By the registry's holds, or by what the device itself said last."""
    if standing((hold for _, hold in _of(connection, device, Hold) if hold is not None), at=now):
        return True
    newest = next((one for _, one in _of(connection, device, Result, newest=True) if one is not None), None)
    return newest is not None and newest.body.holds > 0


def _of(
    connection: Connection, subject: str, body: type[B], *, newest: bool = False
) -> Iterator[tuple[int, Statement[B] | None]]:
    """A subject's records of one kind, oldest or newest first, by index; None where the statement was erased."""
    number = SUBJECT_RECORD.c.number
    query = (
        select(ENTRY.c.idx, STATEMENT.c.data)
        .select_from(
            SUBJECT_RECORD.join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx).outerjoin(
                STATEMENT, STATEMENT.c.idx == ENTRY.c.idx
            )
        )
        .where(SUBJECT_RECORD.c.subject == subject, ENTRY.c.kind == KIND_OF[body])
        .order_by(number.desc() if newest else number)
        .limit(ROWS)
    )
    for row in connection.execute(query):
        yield row.idx, None if row.data is None else read(row.data, body)


def _intent(connection: Connection, index: int) -> Statement[Intent] | None:
    data = connection.execute(select(STATEMENT.c.data).where(STATEMENT.c.idx == index)).scalar()
    return None if data is None else read(data, Intent)
