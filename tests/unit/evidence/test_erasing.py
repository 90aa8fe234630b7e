"""Erasing on a real log: what goes, what stays provable, and what is not erased."""

import os
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from tests.support.databases import KINDS
from tests.support.pki import ORGANIZATION, SITE, Credential
from tests.unit.evidence.conftest import DEVICE, Log, World, submission
from vigil.core.certificates import Identity
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash, verify_inclusion
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement
from vigil.core.statements.log_bodies import Erasure, ErasureReason, ErasureWhat
from vigil.errors import Reason, Refused
from vigil.evidence import store
from vigil.evidence.audit import Auditor
from vigil.evidence.erasing import Erasing
from vigil.evidence.intake import Submission
from vigil.evidence.metrics import AuditMetrics
from vigil.evidence.reindex import catch_up, rebuild
from vigil.verify import Property, Record, SignedTree, check_recorded, check_subject, verify_record

SECRET = b"Ottilie Krause, bed 7" * 40
DAY = 24 * 3_600_000


def scribe(world: World, credential: Credential) -> Scribe:
    return Scribe(
        signer=credential.signer,
        issuer=credential.issuer_name,
        clock=world.clock,
        entropy=os.urandom,
        numbered=False,
    )


class Office:
    """Two administrators and what they have erased."""

    def __init__(self, world: World, log: Log) -> None:
        self.world = world
        self.log = log
        self.people = [self.person("p-one"), self.person("p-two")]
        self.revoked: set[str] = set()
        self.erasing = Erasing(
            database=log.database,
            sequencer=log.sequencer,
            verifier=lambda: world.verifier,
            revoked=lambda who: Reason.CREDENTIAL_REVOKED if who.id in self.revoked else None,
            clock=world.clock,
        )

    def person(self, name: str, *roles: str, **values: object) -> Credential:
        return self.world.pki.person(name, *(roles or ("admin",)), **values)

    def body(self, *digests: bytes, what: ErasureWhat = ErasureWhat.STATEMENTS) -> Erasure:
        return Erasure(records=digests, what=what, reason=ErasureReason.REQUEST, reference="case-7")

    def halves(self, body: Erasure, *people: Credential) -> list[bytes]:
        return [
            scribe(self.world, one).sign(body, subject=f"record/{body.records[0].hex()}").data
            for one in people or self.people
        ]

    async def erase(
        self, *digests: bytes, what: ErasureWhat = ErasureWhat.STATEMENTS
    ) -> tuple[object, int, bool]:
        halves = self.halves(self.body(*digests, what=what))
        return await self.erasing.erase(self.people[1].identity, halves)

    async def refusal(self, halves: list[bytes], caller: Identity | None = None) -> Refused:
        size = (await self.log.sequencer.state()).size
        with pytest.raises(Refused) as caught:
            await self.erasing.erase(caller or self.people[1].identity, halves)
        assert (await self.log.sequencer.state()).size == size, "a refused erasure left a record"
        return caught.value

    async def intent(self, *, expires: int = 60_000) -> Statement[b.Intent]:
        now = self.world.clock.now()
        body = b.Intent(
            target_root=sha256(b"x"),
            target_count=1,
            action="set-rate",
            parameters={"rate": 3},
            request_id=os.urandom(16),
            mode=b.Mode.NOW,
            not_before=now,
            expires=now + expires,
        )
        credential = self.person("p-tech", "technician")
        statement = scribe(self.world, credential).sign(body, subject=f"device/{DEVICE}")
        await self.log.sequencer.append(submission(statement, bodies=[SECRET]))
        return statement

    def auditor(self) -> Auditor:
        return Auditor(
            database=self.log.database,
            verifier=lambda: self.world.verifier,
            rate=1e9,
            clock=self.world.clock,
            entropy=os.urandom,
            metrics=AuditMetrics(CollectorRegistry()),
        )

    async def entry(self, index: int) -> store.StoredEntry:
        found = await self.log.database.read(
            lambda connection: store.load_entry(connection, index, store.CommitReader(connection))
        )
        assert found is not None
        return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def office(world: World, log: Log) -> Office:
    log.start()
    return Office(world, log)


def record_of(entry: store.StoredEntry) -> Record:
    return Record(
        index=entry.index,
        leaf=entry.leaf,
        statement=entry.statement,
        chain=entry.chain,
        bodies=entry.bodies,
        recorded=entry.place.recorded,
        recorded_path=entry.place.path,
    )


def on_disk(world: World) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(world.folder.glob("evidence.db*")))


async def test_what_is_erased_is_gone_and_every_proof_still_holds(world: World, office: Office) -> None:
    first, second = await office.intent(), await office.intent()
    world.clock.advance(120)
    log = office.log
    before = await office.entry(0)
    path = (await log.reader.inclusion(0, 0)).path
    tree_before = (await log.checkpointer.newest()).root
    file = world.place.kind == "sqlite"
    assert not file or SECRET in on_disk(world)

    _, count, scrubbed = await office.erase(first.digest, second.digest)

    assert (count, scrubbed) == (2, file)
    assert SECRET not in on_disk(world)
    assert first.sign1.payload not in on_disk(world)
    after = await office.entry(0)
    assert (after.statement, after.bodies) == (b"", ())
    assert (after.leaf, after.digest, after.chain, after.place) == (
        before.leaf,
        before.digest,
        before.chain,
        before.place,
    )
    assert after.erased is not None
    assert after.erased == replace(
        after.erased, people=("p-one", "p-two"), reference="case-7", records=(2, 3)
    )
    assert after.erased.time == world.clock.now()
    # The same checkpoint, the same paths; and a newer one.
    assert verify_inclusion(leaf=leaf_hash(after.leaf), index=0, size=2, path=path, root=tree_before)
    proof = await log.reader.inclusion(0, 0)
    assert proof.path == path
    newest = await log.reader.inclusion(0, 4)
    findings = verify_record(
        record_of(after),
        inclusion_path=newest.path,
        tree=SignedTree(newest.checkpoint.size, newest.checkpoint.root),
        verifier=world.verifier,
    )
    holds = {one.property: one.holds for one in findings}
    assert holds == {
        Property.PROVENANCE: None,
        Property.RECORDED: True,
        Property.BODIES: None,
        Property.INTEGRITY: True,
    }
    assert check_recorded(record_of(after), world.verifier).first == 0
    entries = [await office.entry(index) for index in range(4)]
    assert check_subject([record_of(one) for one in entries], f"device/{DEVICE}") == 4
    # The erasures are records of their own, signed by both, in the history of the device too.
    assert [entry.erased for entry in entries[2:]] == [None, None]
    # After a restart the log is what it was.
    again = world.open()
    assert (await again.sequencer.state()).frontier.root() == (await log.sequencer.state()).frontier.root()


async def test_bodies_alone_leave_the_statement(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    await office.erase(statement.digest, what=ErasureWhat.BODIES)
    entry = await office.entry(0)
    assert entry.statement
    assert entry.bodies == ()
    assert entry.erased is not None
    assert entry.erased.what is ErasureWhat.BODIES
    assert SECRET not in on_disk(world)
    await office.erase(statement.digest)
    entry = await office.entry(0)
    assert entry.statement == b""
    assert entry.erased is not None
    assert entry.erased.what is ErasureWhat.STATEMENTS


async def test_the_same_statements_again_change_nothing(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    halves = office.halves(office.body(statement.digest))
    caller = office.people[0].identity
    first = await office.erasing.erase(caller, halves)
    size = (await office.log.sequencer.state()).size
    assert await office.erasing.erase(caller, halves) == first
    assert await office.erasing.erase(caller, halves[::-1]) == first
    assert (await office.log.sequencer.state()).size == size


async def test_after_a_crash_between_the_two_either_order_finishes_it(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    halves = office.halves(office.body(statement.digest))
    half = Submission(statement=halves[1], organization=ORGANIZATION, site=SITE, own=True)
    await office.log.sequencer.append(half)
    assert (await office.entry(0)).statement, "one person's half erased something"
    await office.erasing.erase(office.people[0].identity, halves)
    assert (await office.entry(0)).statement == b""


async def test_two_people_who_may(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    body = office.body(statement.digest)
    one, two = office.people
    technician = office.person("p-tech", "technician")
    elsewhere = office.person("p-else", organization="clinic")
    for halves, reason in (
        (office.halves(body, two), Reason.SECOND_PERSON_REQUIRED),
        ([], Reason.SECOND_PERSON_REQUIRED),
        (office.halves(body, one, two, elsewhere), Reason.SECOND_PERSON_REQUIRED),
        (office.halves(body, two, two), Reason.APPROVER_NOT_DISTINCT),
        (office.halves(body, one, technician), Reason.SIGNER_NOT_CALLER),
        (office.halves(body, technician, two), Reason.ROLE_NOT_PERMITTED),
        (office.halves(body, elsewhere, two), Reason.NOT_IN_SCOPE),
        (
            [office.halves(body, one)[0], office.halves(replace(body, reference="other"), two)[0]],
            Reason.NOT_IN_TARGET,
        ),
        (office.halves(office.body(bytes(32))), Reason.NOT_IN_SCOPE),
        ([b"\x00", b"\x00"], Reason.STATEMENT_MALFORMED),
        ([statement.data, statement.data], Reason.STATEMENT_MALFORMED),
    ):
        assert (await office.refusal(halves)).reason is reason
    office.revoked.add("p-one")
    assert (await office.refusal(office.halves(body))).reason is Reason.CREDENTIAL_REVOKED
    office.revoked.clear()
    old = office.halves(body)
    world.clock.advance(DAY / 1000 + 1)
    assert (await office.refusal(old)).reason in (Reason.INTENT_EXPIRED, Reason.CERTIFICATE_EXPIRED)
    assert (await office.entry(0)).statement


async def test_what_may_still_run_is_not_erased(world: World, office: Office) -> None:
    statement = await office.intent(expires=3_600_000)
    refusal = await office.refusal(office.halves(office.body(statement.digest)))
    assert refusal.reason is Reason.STATE_CONFLICT
    assert "has not ended" in refusal.refusals[0].sentence
    command = sha256(b"command")
    permit = b.Decision(
        command=command,
        intent=statement.digest,
        device=DEVICE,
        answer=b.Answer.ALLOW,
        input=sha256(b"input"),
        bundle="r1",
        decided_at=world.clock.now(),
        nonce=bytes(16),
        profile=sha256(b"profile"),
    )
    signer = world.pki.signer_credential("decision")
    signed = scribe(world, signer).sign(permit, subject=f"device/{DEVICE}")
    await office.log.sequencer.append(
        submission(signed, subjects=[f"intent/{statement.digest.hex()}"])  # type: ignore[arg-type]
    )
    world.clock.advance(3_700)
    refusal = await office.refusal(office.halves(office.body(statement.digest)))
    assert "has not said how it ended" in refusal.refusals[0].sentence
    device = world.pki.attester(DEVICE)
    receipt = b.Receipt(
        intent=statement.digest,
        command=command,
        request_id=statement.body.request_id,
        number=1,
        outcome=b.Outcome.APPLIED,
        device=DEVICE,
        udi="(01)1",
        action="set-rate",
        performed_by="p-tech",
        log=b.LogHead(size=1, root=bytes(32), counter=1),
        boot_count=1,
        device_time=world.clock.now(),
        applied=1,
    )
    data = scribe(world, device).sign(receipt, subject=f"device/{DEVICE}")
    await office.log.sequencer.append(submission(data))  # type: ignore[arg-type]
    _, count, _ = await office.erase(statement.digest, signed.digest, data.digest)
    assert count == 3


async def test_a_held_devices_evidence_stays(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    log = office.log
    people = [office.person("p-s1", "safety"), office.person("p-s2", "safety")]

    async def hold(who: Credential, action: b.HoldAction) -> bytes:
        body = b.Hold(device=DEVICE, action=action, reason="incident")
        signed = scribe(world, who).sign(body, subject=f"device/{DEVICE}")
        await log.sequencer.append(submission(signed))
        return signed.digest

    placed = await hold(people[0], b.HoldAction.PLACE)
    body = office.body(statement.digest)
    assert (await office.refusal(office.halves(body))).reason is Reason.EVIDENCE_HOLD
    assert (await office.refusal(office.halves(office.body(placed)))).reason is Reason.EVIDENCE_HOLD
    await hold(people[0], b.HoldAction.LIFT)
    assert (await office.refusal(office.halves(body))).reason is Reason.EVIDENCE_HOLD
    await hold(people[1], b.HoldAction.LIFT)
    await office.erase(statement.digest, placed)
    assert (await office.entry(0)).statement == b""


async def test_what_the_control_plane_rests_on_stays(world: World, office: Office) -> None:
    person = office.person("p-recall", "recall")
    body = b.Revocation(
        scope=b.Scope.DEVICE,
        ids=(DEVICE,),
        effect=b.RevocationEffect.DENY,
        reason=b.RevocationReason.RECALL,
    )
    revocation = scribe(world, person).sign(body, subject=f"device/{DEVICE}")
    await office.log.sequencer.append(submission(revocation, bodies=[b"step"]))  # type: ignore[arg-type]
    refusal = await office.refusal(office.halves(office.body(revocation.digest)))
    assert refusal.reason is Reason.STATE_CONFLICT
    assert "never erased" in refusal.refusals[0].sentence
    bodies = office.halves(office.body(revocation.digest, what=ErasureWhat.BODIES))
    assert (await office.refusal(bodies)).reason is Reason.STATE_CONFLICT


async def test_nobody_else_appends_an_erasure(office: Office) -> None:
    statement = await office.intent()
    half = office.halves(office.body(statement.digest))[0]
    with pytest.raises(Refused) as caught:
        await office.log.sequencer.append(Submission(statement=half, organization=ORGANIZATION, site=SITE))
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_the_index_is_what_it_would_be_made_again(world: World, office: Office) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    catch_up(office.log.database, lambda _done, _all: None)
    request = statement.body.request_id
    found = "SELECT idx FROM reference WHERE what = 'request'"
    assert world.place.rows(found) == [(0,)]
    await office.erase(statement.digest)
    catch_up(office.log.database, lambda _done, _all: None)
    tables = ("subject_time", "kind_time", "reference")
    kept = [sorted(map(str, world.place.rows(f"SELECT * FROM {table}"))) for table in tables]
    assert request not in [row[0] for row in world.place.rows("SELECT value FROM reference")]
    rebuild(office.log.database, lambda _done, _all: None)
    assert [sorted(map(str, world.place.rows(f"SELECT * FROM {table}"))) for table in tables] == kept


@pytest.mark.holds("insider-evidence")
async def test_the_auditor_knows_what_two_people_erased_from_what_somebody_deleted(
    world: World, office: Office
) -> None:
    first, _second = await office.intent(), await office.intent()
    world.clock.advance(120)
    await office.erase(first.digest)
    await office.log.checkpointer.sign()
    auditor = office.auditor()
    assert await found_by(auditor) == []
    world.place.execute("DELETE FROM statement WHERE idx = 1")
    assert await found_by(auditor) == [(1, "missing")]
    # A row that says that it was erased is not enough: there is no such erasure, or it is another record's.
    for records in ("0, 1", "first_idx, second_idx"):
        world.place.execute(
            "DELETE FROM erased WHERE idx = 1; INSERT INTO erased SELECT 1, what, reason, reference, time, "
            f"first_person, second_person, {records} FROM erased"
        )
        assert await found_by(auditor) == [(1, "missing")]


async def test_what_was_erased_whole_stays_so_when_its_bodies_are_erased_with_others(
    world: World, office: Office
) -> None:
    first, second = await office.intent(), await office.intent()
    world.clock.advance(120)
    await office.erase(first.digest)
    await office.erase(first.digest, second.digest, what=ErasureWhat.BODIES)
    assert world.place.rows("SELECT idx, what FROM erased ORDER BY idx") == [(0, "statements"), (1, "bodies")]
    await office.log.checkpointer.sign()
    assert await found_by(office.auditor()) == []


CHANGED_ROWS = {
    "more than they signed": "what = 'statements'",
    "for another reason": "reason = 'order'",
    "in another case": "reference = 'case-8'",
    "at another time": "time = time - 1",
    "by somebody else": "second_person = 'p-three'",
    "each for the other": "first_person = second_person, second_person = first_person",
    "one of them twice": "second_idx = first_idx, second_person = first_person",
}


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("change", CHANGED_ROWS.values(), ids=CHANGED_ROWS)
async def test_the_auditor_holds_the_row_of_an_erasure_against_what_two_people_signed(
    world: World, office: Office, change: str, injected: object
) -> None:
    statement = await office.intent()
    world.clock.advance(120)
    await office.erase(statement.digest, what=ErasureWhat.BODIES)
    await office.log.checkpointer.sign()
    auditor = office.auditor()
    assert await found_by(auditor) == []
    world.place.execute(f"UPDATE erased SET {change}")
    injected(1)  # type: ignore[operator]
    assert await found_by(auditor) == [(0, "missing")]


async def found_by(auditor: Auditor) -> list[tuple[int, str]]:
    """What one pass finds, and where."""
    await auditor._pass()
    return [(one.index, one.what) for one in auditor.progress.shown()]
