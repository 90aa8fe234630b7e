"""What a device was at one moment: picked by the log, worked out and proved by the reader."""

import asyncio
from dataclasses import dataclass, replace

import pytest
from prometheus_client import CollectorRegistry

from tests.support.pki import DEVICE, ORGANIZATION, SITE
from tests.support.story import LIFETIME_MS, Story, firmware
from tests.unit.evidence.conftest import Log, World
from vigil.cli.moment import document_of
from vigil.core.certificates import Identity
from vigil.core.clock import ManualClock
from vigil.core.statements.bodies import HoldAction, Outcome, Scope
from vigil.core.statements.log_bodies import ErasureReason, ErasureWhat
from vigil.errors import Reason, Refused
from vigil.evidence.erased import Erased, erase
from vigil.evidence.indexer import Indexer
from vigil.evidence.intake import Submission
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.moment import Moments, State
from vigil.evidence.store import StoredEntry
from vigil.verify import (
    Property,
    Record,
    Report,
    SignedTree,
    document_from_json,
    document_to_json,
    verify_document,
)
from vigil.verify.facts import Fact, facts_of, holds_at, in_force
from vigil.verify.moment import Moment, StateAnswer, StateRecord, Sure, work_out

MINUTE = 60_000


@dataclass
class Room:
    """A log with its index, a device that lives, and people who ask."""

    world: World
    log: Log
    moments: Moments
    story: Story
    reader: Identity

    @property
    def now(self) -> int:
        return self.world.clock.now()

    def pass_(self, minutes: float) -> int:
        """Let time pass; answers the time then."""
        self.world.clock.advance(minutes * 60)
        return self.now

    async def append(self, *submissions: Submission) -> None:
        for submission in submissions:
            await self.log.sequencer.append(submission)

    async def state(self, time: int, **values: object) -> State:
        size = (await self.log.sequencer.state()).size
        given = {"covering": size, **values}
        return await self.moments.state_at(self.reader, self.story.device, time=time, **given)  # type: ignore[arg-type]

    async def at(self, time: int, **values: object) -> Moment:
        return self.worked_out(await self.state(time, **values), time)

    def worked_out(self, state: State, time: int) -> Moment:
        checkpoint = state.checkpoint
        return work_out(
            answer_of(state, self.story.device, time),
            tree=SignedTree(checkpoint.size, checkpoint.root),
            verifier=self.world.verifier,
        )


def record_of(entry: StoredEntry) -> Record:
    return Record(
        index=entry.index,
        leaf=entry.leaf,
        statement=entry.statement,
        chain=entry.chain,
        bodies=entry.bodies,
        recorded=entry.place.recorded,
        recorded_path=entry.place.path,
    )


def answer_of(state: State, device: str, time: int) -> StateAnswer:
    return StateAnswer(
        device=device,
        time=time,
        considered=state.considered,
        records=tuple(
            StateRecord(record=record_of(one.entry), path=one.path, roles=one.roles, withheld=one.withheld)
            for one in state.records
        ),
        chain=state.chain,
        first_number=state.first_number,
        newest_number=state.newest_number,
        truncated=state.truncated,
    )


@pytest.fixture
async def room(world: World) -> Room:
    log = world.open()

    async def size() -> int:
        return (await log.sequencer.state()).size

    indexer = Indexer(
        database=log.database, size=size, clock=world.clock, metrics=LogMetrics(CollectorRegistry())
    )
    log.tasks.append(asyncio.create_task(indexer.run()))
    moments = Moments(checkpointer=log.checkpointer, indexer=indexer, size=size, clock=world.clock)
    return Room(world, log, moments, Story(world.pki, world.clock), world.reader("auditor"))


def fact(moment: Moment, name: str) -> Fact:
    return next(one for one in facts_of(moment) if one.name == name)


# --- what it answers


async def test_between_two_measurements_that_agree(room: Room) -> None:
    await room.append(*room.story.measured())
    time = room.pass_(3)
    room.pass_(3)
    await room.append(*room.story.measured())
    moment = await room.at(time)
    assert moment.holds
    assert moment.sure["firmware"] is Sure.BRACKETED
    found = fact(moment, "firmware")
    assert found.more["digest"] == firmware("1.6.3").hex()
    assert found.value.startswith("pump-firmware 1.6.3")
    assert (found.index, found.clock) == (0, "device")
    assert moment.between.boots == 0
    assert moment.between.complete is True
    assert fact(moment, "sbom").value == firmware("sbom of 1.6.3").hex()
    assert fact(moment, "custodian").value == f"{SITE} of {ORGANIZATION}"
    assert fact(moment, "credential").value.startswith("valid")
    trust = fact(moment, "trust")
    assert (trust.value, trust.sure, trust.more["vector"]["executables"]) == (
        "affirming (attested)",
        "fresh",
        3,
    )


async def test_a_restart_between_leaves_a_doubt(room: Room) -> None:
    await room.append(*room.story.measured())
    time = room.pass_(3)
    room.story.boots += 1
    room.pass_(3)
    await room.append(*room.story.measured())
    moment = await room.at(time)
    assert (moment.sure["firmware"], moment.between.boots) == (Sure.SAME_ON_BOTH_SIDES, 1)


async def test_an_update_between_is_told(room: Room) -> None:
    await room.append(*room.story.measured())
    time = room.pass_(3)
    await room.append(room.story.decided(), room.story.done())
    room.story.version, room.story.boots = "1.7.0", 2
    room.pass_(1)
    await room.append(*room.story.measured())
    moment = await room.at(time)
    assert moment.holds
    assert moment.sure["firmware"] is Sure.CHANGED_BETWEEN
    assert moment.sure["configuration"] is Sure.SAME_ON_BOTH_SIDES
    assert fact(moment, "firmware").more["afterwards"] == firmware("1.7.0").hex()
    [(index, receipt)] = moment.between.receipts
    assert (index, receipt.action, receipt.outcome) == (3, "update-firmware", Outcome.APPLIED)
    assert dict(moment.between.records) == {"decision": 1, "receipt": 1}
    # What is true afterwards is asked afterwards.
    later = await room.at(room.now)
    assert fact(later, "firmware").more["digest"] == firmware("1.7.0").hex()
    assert later.sure["firmware"] is Sure.LAST_KNOWN


async def test_what_was_not_measured_in_time_is_stale(room: Room) -> None:
    await room.append(*room.story.measured())
    moment = await room.at(room.pass_(LIFETIME_MS / MINUTE + 1))
    assert fact(moment, "trust").sure == "stale"
    assert moment.sure["firmware"] is Sure.LAST_KNOWN
    assert moment.quiet.after is None
    assert not moment.quiet.proved


async def test_before_the_device_existed_nothing_is_said_and_that_is_proved(room: Room) -> None:
    before = room.now
    room.pass_(5)
    await room.append(*room.story.measured())
    moment = await room.at(before)
    assert (moment.before, moment.sure["firmware"]) == (None, Sure.NOT_YET_MEASURED)
    assert all(fact(moment, name).value == "" for name in ("firmware", "trust", "custodian", "policy"))
    assert moment.holds
    assert moment.quiet.before is None
    assert moment.quiet.proved
    assert moment.quiet.after is not None
    assert moment.quiet.after.number(room.story.subject) == 1


async def test_an_interval_without_evidence_has_its_proof(room: Room) -> None:
    """Two neighbours in the device's numbered chain: nothing about it was recorded in between."""
    await room.append(room.story.hold())
    time = room.pass_(60)
    room.pass_(60)
    await room.append(room.story.hold(person="p-other"))
    moment = await room.at(time)
    assert not moment.evidence
    assert moment.quiet.proved
    numbers = [one.number(room.story.subject) for one in (moment.quiet.before, moment.quiet.after) if one]
    assert numbers == [1, 2]


async def test_what_arrived_late_counts_when_it_happened(room: Room) -> None:
    """A gateway was cut off: the receipt is recorded an hour after the device signed it."""
    await room.append(*room.story.measured())
    room.pass_(1)
    late = room.story.done("set-rate")
    room.pass_(5)
    asked = room.now
    room.pass_(5)
    await room.append(*room.story.measured())
    known_then = room.now
    room.pass_(60)
    await room.append(late)
    moment = await room.at(asked)
    assert [receipt.action for _, receipt in moment.between.receipts] == ["set-rate"]
    # And what the log knew before that is still what it was.
    earlier = await room.at(asked, as_of=known_then)
    assert earlier.between.receipts == ()
    assert earlier.holds


async def test_the_policy_and_the_epoch_of_that_moment(room: Room) -> None:
    story = room.story
    await room.append(*story.measured(), story.decided("r1"))
    room.pass_(1)
    await room.append(story.revoked(Scope.BUILD, firmware("else").hex()))
    time = room.pass_(1)
    room.pass_(1)
    await room.append(story.revoked(Scope.BUILD, firmware("more").hex()), story.decided("r2"))
    moment = await room.at(time)
    assert (fact(moment, "policy").value, fact(moment, "policy").sure) == ("r1", Sure.CHANGED_BETWEEN)
    epoch = fact(moment, "revocation epoch")
    assert (epoch.value, epoch.sure, epoch.more["next"]) == ("1", Sure.BRACKETED, 2)


async def test_holds_end_when_two_lift_them(room: Room) -> None:
    story = room.story
    await room.append(*story.measured(), story.hold())
    held = room.pass_(1)
    room.pass_(1)
    await room.append(story.hold(HoldAction.LIFT, person="p-one"))
    half = room.pass_(1)
    room.pass_(1)
    await room.append(story.hold(HoldAction.LIFT, person="p-two"))
    lifted = room.pass_(1)
    assert [len(holds_at(await room.at(time))) for time in (held, half, lifted)] == [1, 1, 0]


async def test_a_hold_between_two_words_of_a_lift_stands(room: Room) -> None:
    story = room.story
    await room.append(*story.measured(), story.hold())
    await room.append(story.hold(HoldAction.LIFT, person="p-one"), story.hold(person="p-three"))
    await room.append(story.hold(HoldAction.LIFT, person="p-two"))
    mixed = room.pass_(1)
    room.pass_(1)
    await room.append(story.hold(HoldAction.LIFT, person="p-two"))
    again = room.pass_(1)
    room.pass_(1)
    await room.append(story.hold(HoldAction.LIFT, person="p-one"))
    lifted = room.pass_(1)
    assert [len(holds_at(await room.at(time))) for time in (mixed, again, lifted)] == [2, 2, 0]


async def test_what_was_revoked_of_the_device_at_that_moment(room: Room) -> None:
    story = room.story
    await room.append(*story.measured())
    clean = room.pass_(1)
    room.pass_(1)
    # The first word of two is on record, and nothing is revoked yet.
    await room.append(story.revoked(Scope.BUILD, firmware("1.6.3").hex(), step=False))
    asked = room.pass_(1)
    room.pass_(1)
    await room.append(story.revoked(Scope.BUILD, firmware("1.6.3").hex()))
    revoked = room.pass_(1)
    room.pass_(1)
    await room.append(story.revoked(Scope.CREDENTIAL, story.attester.identity.thumbprint.hex()))
    cut = room.pass_(1)
    assert in_force(await room.at(clean)) == in_force(await room.at(asked)) == []
    [build] = in_force(await room.at(revoked))
    assert (build["scope"], build["effect"]) == ("build", "corrective_only")
    assert fact(await room.at(cut), "credential").value.startswith("revoked")


async def test_the_answer_is_taken_away_and_checked_with_no_network(room: Room) -> None:
    await room.append(*room.story.measured(), room.story.decided(), room.story.done())
    time = room.pass_(1)
    room.pass_(1)
    await room.append(*room.story.measured())
    state = await room.state(time)
    domain = room.world.pki.trust_domain
    document = document_of(
        answer_of(state, room.story.device, time), note=state.checkpoint.note, trust_domain=domain
    )

    def check(text: str) -> Report:
        key = room.world.key.verifier_key
        return verify_document(document_from_json(text), verifier=room.world.verifier, verifier_key=key)

    text = document_to_json(document)
    report = check(text)
    assert report.holds
    assert any(one.property is Property.COMPLETENESS and one.holds for one in report.findings)
    leaves = document.subjects[0].leaves
    shorter = replace(document.subjects[0], leaves=leaves[:1] + leaves[2:])
    assert not check(document_to_json(replace(document, subjects=(shorter,)))).holds


# --- who may see it


async def test_another_hospital_is_told_of_no_such_device(room: Room) -> None:
    await room.append(*room.story.measured())
    for reader in (
        room.world.reader("auditor", organization="other"),
        room.world.reader("technician", sites=("site-2",)),
    ):
        room.reader = reader
        with pytest.raises(Refused) as caught:
            await room.at(room.now)
        assert caught.value.reason is Reason.NOT_IN_SCOPE


async def test_anothers_record_is_withheld_and_still_counts(room: Room) -> None:
    """Not an older one instead: the newest record before the moment is the one that tells, or nothing does."""
    await room.append(*room.story.measured())
    room.pass_(1)
    await room.append(*(replace(one, site="site-2") for one in room.story.measured()))
    time = room.pass_(1)
    room.reader = room.world.reader("technician")
    state = await room.state(time)
    withheld = [one for one in state.records if one.withheld]
    assert [one.entry.index for one in withheld] == [2, 3]
    moment = room.worked_out(state, time)
    assert (moment.holds, moment.before, moment.unreadable) == (True, None, True)
    assert [one.holds for one in moment.findings] == [None]
    assert (moment.sure["firmware"], fact(moment, "firmware").value) == (Sure.NO_EVIDENCE, "")
    assert "withheld" in fact(moment, "trust").note
    assert all(not one.entry.statement and not one.entry.chain for one in withheld)
    assert room.worked_out(state, time).before is None


# --- what it refuses


@pytest.mark.parametrize(
    ("time", "as_of", "word"),
    [(0, 0, "1970"), (-5, 0, "1970"), (10**15, 0, "future"), (-1, 5, "1970"), (None, 5, "before the moment")],
)
async def test_moments_that_cannot_be_asked_about(
    room: Room, time: int | None, as_of: int, word: str
) -> None:
    await room.append(*room.story.measured())
    with pytest.raises(Refused) as caught:
        await room.state(room.now if time is None else time, as_of=as_of)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert word in caught.value.refusals[0].sentence


@pytest.mark.parametrize("device", ["", "dev with spaces", "ä", "x" * 300])
async def test_what_is_no_device(room: Room, device: str) -> None:
    await room.append(*room.story.measured())
    room.story.device = device
    with pytest.raises(Refused) as caught:
        await room.state(room.now)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_more_than_the_log_has(room: Room) -> None:
    await room.append(*room.story.measured())
    with pytest.raises(Refused) as caught:
        await room.state(room.now, covering=3)
    assert caught.value.reason is Reason.RESOURCE_NOT_FOUND


# --- what a log that lies gets


async def test_a_measurement_left_out_is_found(room: Room) -> None:
    for _ in range(3):
        await room.append(*room.story.measured())
        room.pass_(2)
    time = room.now - 3 * MINUTE
    honest = await room.state(time)
    assert room.worked_out(honest, time).holds
    # The second measurement, the one that tells, is not shown; its leaf is in the chain.
    kept = tuple(one for one in honest.records if one.entry.index not in (2, 3))
    first = await room.state(time - 2 * MINUTE)
    others = tuple(one for one in first.records if one.entry.index in (0, 1))
    lying = replace(honest, records=kept + others, chain=first.chain[:2] + honest.chain, first_number=1)
    moment = room.worked_out(lying, time)
    assert not moment.holds
    assert "not shown" in moment.findings[0].sentence


async def test_measurements_hidden_at_the_beginning_are_missed(room: Room) -> None:
    """What begins in the middle and shows no measurement before the moment may have had one."""
    await room.append(*room.story.measured(), room.story.decided())
    time = room.pass_(1)
    room.pass_(1)
    await room.append(*room.story.measured())
    honest = await room.state(time)
    assert room.worked_out(honest, time).before is not None
    for hidden in (2, 3):
        records = tuple(one for one in honest.records if one.entry.index >= hidden)
        lying = replace(
            honest, records=records, chain=honest.chain[hidden:], first_number=honest.first_number + hidden
        )
        moment = room.worked_out(lying, time)
        assert (moment.before, moment.holds, moment.between.complete) == (None, False, False)
        assert "may hold a measurement" in moment.findings[0].sentence


async def test_an_erased_measurement_is_not_one_that_was_left_out(room: Room) -> None:
    await room.append(*room.story.measured())
    room.pass_(1)
    await room.append(*room.story.measured())
    time = room.pass_(1)
    await room.state(time)
    gone = Erased(
        what=ErasureWhat.STATEMENTS,
        reason=ErasureReason.RETENTION,
        reference="",
        time=time,
        people=("a", "b"),
        records=(4, 5),
    )
    await room.log.database.write(lambda connection: erase(connection, [(3, ())], gone))
    moment = await room.at(time)
    assert (moment.holds, moment.before, moment.unreadable) == (True, None, True)
    assert moment.findings[0].holds is None


async def test_clocks_that_stand_ahead_make_nothing_later_than_the_log_took_it(room: Room) -> None:
    ahead = ManualClock(room.now + 20_000)
    story = Story(room.world.pki, ahead)
    await room.append(*room.story.measured())
    room.pass_(0.1)
    await room.append(story.hold(), story.decided(), story.done("set-rate"))
    time = room.pass_(0.1)
    moment = await room.at(time)
    assert moment.holds
    assert fact(moment, "holds").value == "1"
    assert fact(moment, "policy").value
    assert [body.action for _, body in moment.between.receipts] == ["set-rate"]


async def test_a_chain_with_a_gap_is_found(room: Room) -> None:
    await room.append(*room.story.measured(), room.story.decided(), room.story.done())
    time = room.pass_(1)
    room.pass_(1)
    await room.append(*room.story.measured())
    honest = await room.state(time)
    for place in range(1, len(honest.chain) - 1):
        cut = honest.chain[:place] + honest.chain[place + 1 :]
        assert not room.worked_out(replace(honest, chain=cut), time).holds
    assert not room.worked_out(replace(honest, chain=honest.chain[:-1]), time).holds


async def test_a_statement_of_another_device_counts_for_nothing(room: Room) -> None:
    other = Story(room.world.pki, room.world.clock, device="dev-bbbbbbbbbbbbbbbb", version="9.9.9")
    mine, theirs = room.story.measured(), other.measured()
    await room.append(*mine)
    # A sender may name more subjects than the statement does.
    await room.append(*(replace(one, subjects=(room.story.subject,)) for one in theirs))
    moment = await room.at(room.pass_(1))
    assert moment.before is None or moment.before.result.body.device == DEVICE
    assert fact(moment, "firmware").more.get("digest") != firmware("9.9.9").hex()
