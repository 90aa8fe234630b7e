"""Group commits: what is answered is durable, numbered, provable, and there once."""

import asyncio

import pytest

from tests.support.databases import KINDS
from tests.support.pki import ORGANIZATION, SITE, Credential
from tests.support.postgres import PostgresServer
from tests.unit.evidence.conftest import DEVICE, Log, World, Writer, new_key, submission
from vigil.core import cbor, cose, merkle
from vigil.core.certificates import ChainVerifier
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash
from vigil.core.salted import unsalted
from vigil.core.statements.bodies import Recorded, Refusals
from vigil.core.statements.envelope import check, read, read_any
from vigil.errors import Reason, Refused
from vigil.evidence import intake, store
from vigil.evidence import sequencer as sequencer_module
from vigil.evidence.domain import decode_leaf, recorded_leaf
from vigil.evidence.intake import Submission
from vigil.evidence.sequencer import LogDamagedError
from vigil.evidence.store import RecordedPlace
from vigil.evidence.tables import ENTRY, METADATA
from vigil.storage import assert_migrations_match

YEAR_MS = 365 * 86_400_000


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check_place(world: World, place: RecordedPlace, digest: bytes) -> Recorded:
    """What a device does with a `recorded`, by hand."""
    recorded = read(place.recorded, Recorded)
    signer = world.verifier.verify(recorded.chain, at=world.clock.now())
    assert signer.may_sign("recorded")
    check(recorded, signer)
    body = recorded.body
    assert merkle.verify_inclusion(
        leaf=recorded_leaf(place.index, digest),
        index=place.index - body.first,
        size=body.count,
        path=place.path,
        root=body.root,
    )
    return body


async def refusal_of(log: Log, entry: Submission) -> Refused:
    with pytest.raises(Refused) as caught:
        await log.sequencer.append(entry)
    return caught.value


async def leaves_of(log: Log) -> list[bytes]:
    rows = await log.database.read(
        lambda connection: connection.execute(ENTRY.select().order_by(ENTRY.c.idx)).all()
    )
    return [row.leaf for row in rows]


def test_migrations_lead_to_the_tables() -> None:
    assert_migrations_match(METADATA, "vigil.evidence.migrations")


def test_migrations_lead_to_the_tables_in_postgresql(postgres: PostgresServer) -> None:
    assert_migrations_match(
        METADATA, "vigil.evidence.migrations", databases=(postgres.create(), postgres.create())
    )


async def test_what_arrives_together_is_one_commit(world: World, log: Log) -> None:
    writer = world.writer()
    holds = [writer.hold(reason=str(place)) for place in range(5)]
    pending = [log.sequencer.append(submission(hold)) for hold in holds]
    await asyncio.sleep(0)
    log.start()
    places = await asyncio.gather(*pending)
    assert [place.index for place in places] == [0, 1, 2, 3, 4]
    for hold, place in zip(holds, places, strict=True):
        body = check_place(world, place, hold.digest)
        assert (body.first, body.count, body.time) == (0, 5, world.clock.now())
    assert len({place.recorded for place in places}) == 1
    leaves = [decode_leaf(leaf) for leaf in await leaves_of(log)]
    assert [leaf.digest for leaf in leaves] == [hold.digest for hold in holds]
    assert [leaf.subjects[0].number for leaf in leaves] == [1, 2, 3, 4, 5]
    assert leaves[0].subjects[0].subject == f"device/{DEVICE}"
    state = await log.sequencer.state()
    assert state.frontier.root() == merkle.tree_root([leaf_hash(leaf) for leaf in await leaves_of(log)])


async def test_the_same_statement_is_on_record_once(world: World, log: Log) -> None:
    writer = world.writer()
    hold, other = writer.hold(), writer.hold()
    twice = [log.sequencer.append(submission(hold)) for _ in range(2)]
    await asyncio.sleep(0)
    log.start()
    first, second = await asyncio.gather(*twice)
    await log.sequencer.append(submission(other))
    later = await log.sequencer.append(submission(hold, subjects=["site/another"]))
    assert first == second == later
    assert (await log.sequencer.state()).size == 2


async def test_another_signature_over_the_same_content_is_the_same_statement(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    hold = writer.hold()
    sign1 = hold.sign1
    again = writer.credential.signer.sign(sign1.to_be_signed)
    resigned = hold.data.replace(sign1.signature, again)
    assert resigned != hold.data
    first = await log.sequencer.append(submission(hold))
    second = await log.sequencer.append(Submission(statement=resigned))
    assert first == second


async def test_a_known_signer_needs_no_certificate_beside_its_statement(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    bare = Submission(statement=cose.without_chain(writer.hold().data))
    refused = await refusal_of(log, bare)
    assert refused.reason is Reason.SIGNATURE_INVALID
    assert refused.refusals[0].values["cause"] == Reason.CERTIFICATE_INVALID
    await log.sequencer.append(submission(writer.hold()))
    assert (await log.sequencer.append(bare)).index == 1
    world.verifier = ChainVerifier(world.pki.bundle)
    again = world.open()
    third = Submission(statement=cose.without_chain(writer.hold().data))
    assert (await again.sequencer.append(third)).index == 2


async def test_only_the_path_to_the_root_is_kept_of_a_chain(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    hold = writer.hold()
    leaf, intermediate = writer.credential.chain
    stranger = world.writer("p-other").credential.chain[0]
    padded = cose.with_chain(hold.data, (leaf, stranger))
    await log.sequencer.append(Submission(statement=padded))
    kept = await log.database.read(lambda connection: store.load_chain(connection, hold.signer))
    assert kept == (leaf, intermediate)


async def test_what_cannot_be_trusted_changes_nothing(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    hold = writer.hold()
    flipped = hold.data.replace(hold.sign1.signature, bytes(64))
    cases: list[tuple[bytes, Reason]] = [
        (b"", Reason.STATEMENT_MALFORMED),
        (hold.data + b"\x00", Reason.STATEMENT_MALFORMED),
        (flipped, Reason.SIGNATURE_INVALID),
        (of_another_domain(world), Reason.SIGNATURE_INVALID),
        (by_a_gateway(world), Reason.SIGNATURE_INVALID),
    ]
    for data, reason in cases:
        assert (await refusal_of(log, Submission(statement=data))).reason is reason
    many = Submission(statement=hold.data, subjects=[f"device/{place}" for place in range(65)])
    assert (await refusal_of(log, many)).reason is Reason.FIELD_INVALID
    for owner in (
        {"organization": "h\x00"},
        {"site": "s" * 64},
        {"site": "a ward"},
        {"organization": "klinik\u00e4"},
    ):
        stray = Submission(statement=hold.data, **owner)
        assert (await refusal_of(log, stray)).reason is Reason.FIELD_INVALID
    large = Submission(statement=hold.data, bodies=[bytes(65_537)])
    assert (await refusal_of(log, large)).reason is Reason.REQUEST_TOO_LARGE
    assert (await log.sequencer.state()).size == 0


def of_another_domain(world: World) -> bytes:
    return Writer(world.pki.other_domain().person("p-safety", "safety"), world.clock).hold().data


def by_a_gateway(world: World) -> bytes:
    return Writer(world.pki.gateway(), world.clock).hold().data


async def test_a_body_that_is_newer_than_the_log_is_recorded(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    hold = writer.hold()
    body = cbor.encode({**cbor.decode(hold.sign1.payload), "of-a-later-version": True})
    claims = hold.sign1.claims
    newer = cose.sign(
        writer.credential.signer, content_type="application/vigil.hold+cbor", claims=claims, payload=body
    )
    with pytest.raises(Refused):
        read_any(newer)
    assert (await log.sequencer.append(Submission(statement=newer))).index == 0


async def test_a_signer_is_judged_at_the_moment_of_signing(world: World, log: Log) -> None:
    log.start()
    now = world.clock.now()
    writer = world.writer("p-short", not_after=now + 3_600_000)
    before = writer.hold()
    world.clock.advance(7_200)
    after = writer.hold()
    assert (await log.sequencer.append(submission(before))).index == 0
    refused = await refusal_of(log, submission(after))
    assert refused.refusals[0].values["cause"] == Reason.CERTIFICATE_EXPIRED


async def test_a_date_ahead_makes_no_certificate_valid(world: World, log: Log) -> None:
    log.start()
    writer = world.writer("p-later", not_before=world.clock.now() + 3_600_000)
    world.clock.advance(7_200)
    ahead = writer.hold()
    world.clock.set_now(world.clock.now() - 7_200_000)
    refused = await refusal_of(log, submission(ahead))
    assert refused.refusals[0].values["cause"] == Reason.CERTIFICATE_INVALID


async def test_bodies_are_kept_beside_the_leaf(world: World, log: Log) -> None:
    log.start()
    first = await log.sequencer.append(submission(world.writer().hold(), bodies=[b"input", b"sbom"]))
    await log.sequencer.append(submission(world.writer().hold(), bodies=[b"input"]))
    entry = await log.database.read(
        lambda connection: store.load_entry(connection, first.index, store.CommitReader(connection))
    )
    assert entry is not None
    assert [unsalted(body) for body in entry.bodies] == [b"input", b"sbom"]
    assert decode_leaf(entry.leaf).bodies == tuple(sha256(body) for body in entry.bodies)
    assert cose.parse(entry.statement).chain == ()


async def test_a_leaf_says_nothing_to_somebody_who_guesses_a_body(world: World, log: Log) -> None:
    log.start()
    for _ in range(2):
        await log.sequencer.append(submission(world.writer().hold(), bodies=[b"left ward 7", b"left ward 7"]))
    digests = [digest for leaf in await leaves_of(log) for digest in decode_leaf(leaf).bodies]
    assert len(set(digests)) == 4
    assert sha256(b"left ward 7") not in digests


async def test_log_time_stands_still_when_the_clock_steps_back(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    await log.sequencer.append(submission(writer.hold()))
    was = world.clock.now()
    world.clock.set_now(was - 60_000)
    place = await log.sequencer.append(submission(writer.hold()))
    assert read(place.recorded, Recorded).body.time == was
    await log.close()
    again = world.open()
    await again.sequencer.append(submission(writer.hold()))
    assert [decode_leaf(leaf).log_time for leaf in await leaves_of(again)] == [was] * 3


async def test_a_clock_that_leapt_becomes_nobodys_log_time(world: World, log: Log) -> None:
    """Ten years ahead on record, and no proof of record would hold until then: every permit would be refused."""
    log.start()
    writer = world.writer(not_after=world.clock.now() + 20 * YEAR_MS)
    await log.sequencer.append(submission(writer.hold()))
    was = world.clock.now()
    ahead = was + 10 * YEAR_MS
    world.clock.set_now(ahead)
    assert (await refusal_of(log, submission(writer.hold()))).reason is Reason.EVIDENCE_UNAVAILABLE
    await log.close()
    again = world.open()
    assert (await refusal_of(again, submission(writer.hold()))).reason is Reason.EVIDENCE_UNAVAILABLE
    world.clock.set_now(was)
    place = await again.sequencer.append(submission(writer.hold()))
    assert read(place.recorded, Recorded).body.time == was
    await again.close()
    world.clock.set_now(was + YEAR_MS // 6)
    waiting = world.open()
    assert (await refusal_of(waiting, submission(writer.hold()))).reason is Reason.EVIDENCE_UNAVAILABLE
    await waiting.close()
    confirmed = world.open(confirmed=world.clock.now())
    place = await confirmed.sequencer.append(submission(writer.hold()))
    assert read(place.recorded, Recorded).body.time == world.clock.now()


@pytest.mark.holds("floods-by-credential")
async def test_senders_take_turns(world: World, log: Log) -> None:
    flood, one = world.writer(), world.writer("p-quiet")
    pending = [log.sequencer.append(submission(flood.hold(), sender="flood")) for _ in range(100)]
    await asyncio.sleep(0)
    quiet = log.sequencer.append(submission(one.hold(), sender="quiet"))
    await asyncio.sleep(0)
    log.start()
    assert (await quiet).index <= 1
    await asyncio.gather(*pending)


@pytest.mark.holds("floods-by-credential")
async def test_a_full_queue_refuses(world: World, log: Log) -> None:
    body = bytes(65_536)
    hold = world.writer().hold()
    entry = submission(hold, bodies=[body] * 8)
    pending = [
        log.sequencer.append(submission(hold, bodies=[body] * 8, sender=f"sender {number // 31}"))
        for number in range(127)
    ]
    await asyncio.sleep(0)
    assert (await refusal_of(log, entry)).reason is Reason.EVIDENCE_UNAVAILABLE
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    log.start()
    assert (await log.sequencer.append(entry)).index == 0


async def test_a_failed_commit_leaves_nothing_and_the_log_goes_on(world: World) -> None:
    log = world.open(busy_timeout=0.05)
    writer = world.writer()
    await log.sequencer.append(submission(writer.hold()))
    lost = submission(writer.hold(), subjects=["site/x"])
    with world.place.locked("entry"):
        assert (await refusal_of(log, lost)).reason is Reason.STORAGE_UNAVAILABLE
    assert (await log.sequencer.state()).size == 1
    places = [await log.sequencer.append(entry) for entry in (submission(writer.hold()), lost)]
    assert [place.index for place in places] == [1, 2]
    # The series that signed for the lost commit was never continued: no number is missing from any series.
    numbers = [read(place.recorded, Recorded).number for place in places]
    assert [number.number for number in numbers if number] == [0, 1]
    leaves = [decode_leaf(leaf) for leaf in await leaves_of(log)]
    assert [leaf.subjects[0].number for leaf in leaves] == [1, 2, 3]


@pytest.mark.holds("insider-evidence")
async def test_memory_that_disagrees_with_the_database_is_dropped(world: World, log: Log) -> None:
    """Whatever made them differ, the first commit fails and the next one stands on what is stored."""
    log.start()
    writer = world.writer()
    other = world.open()
    await other.sequencer.append(submission(writer.hold()))
    with pytest.raises(Exception, match=r"UNIQUE|unique"):
        await log.sequencer.append(submission(writer.hold()))
    assert (await log.sequencer.append(submission(writer.hold()))).index == 1
    leaves = [decode_leaf(leaf) for leaf in await leaves_of(log)]
    assert leaves[1].subjects[0].number == 2


async def test_a_restart_continues_where_the_log_was(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    for _ in range(11):
        await log.sequencer.append(submission(writer.hold()))
    state = await log.sequencer.state()
    await log.checkpointer.sign()
    again = world.open()
    assert await again.sequencer.state() == state
    place = await again.sequencer.append(submission(writer.hold()))
    assert place.index == 11
    assert decode_leaf((await leaves_of(again))[11]).subjects[0].number == 12


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE node SET hash = (SELECT hash FROM node WHERE level = 1 AND position = 0) WHERE level = 3",
        "UPDATE entry SET leaf = (SELECT leaf FROM entry WHERE idx = 9) WHERE idx = 10",
        "DELETE FROM entry WHERE idx = 10",
        "DELETE FROM entry WHERE idx = 9; DELETE FROM entry WHERE idx = 10; DELETE FROM group_commit WHERE first >= 9",
        "DELETE FROM node WHERE level = 1 AND position = 4",
        "DELETE FROM group_commit WHERE first = 10",
    ],
)
async def test_a_damaged_log_is_not_continued(world: World, log: Log, damage: str) -> None:
    log.start()
    writer = world.writer()
    for _ in range(11):
        await log.sequencer.append(submission(writer.hold()))
    await log.checkpointer.sign()
    world.place.execute(damage)
    with pytest.raises(LogDamagedError):
        world.open()


@pytest.mark.holds("insider-evidence")
async def test_another_key_does_not_continue_the_log(world: World, log: Log) -> None:
    await log.checkpointer.sign()
    with pytest.raises(LogDamagedError):
        world.open(key=new_key())


async def test_heads_come_from_the_database_when_memory_is_full(
    world: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer_module, "MAX_HEADS", 1)
    log.start()
    writer = world.writer()
    for device in ("dev-aaaaaaaaaaaaaaaa", "dev-bbbbbbbbbbbbbbbb") * 2:
        await log.sequencer.append(submission(writer.hold(device)))
    leaves = await leaves_of(log)
    links = [decode_leaf(leaf).subjects[0] for leaf in leaves]
    assert [link.number for link in links] == [1, 1, 2, 2]
    assert links[2].previous == leaf_hash(leaves[0])


@pytest.mark.holds("floods-by-credential")
async def test_a_gateways_count_of_refusals_is_recorded(world: World, log: Log) -> None:
    """Signed with the gateway's key, about a credential; nobody else signs one."""
    log.start()
    body = Refusals(
        credential=bytes(32), count=140, since=world.clock.now() - 60_000, until=world.clock.now()
    )
    subject = f"credential/{body.credential.hex()}"

    def signed(credential: Credential) -> bytes:
        return credential.scribe(world.clock).sign(body, subject=subject).data

    owner = {"organization": ORGANIZATION, "site": SITE}
    place = await log.sequencer.append(Submission(statement=signed(world.pki.gateway("gw-1")), **owner))
    assert place.index == 0
    for other in (world.pki.person("p-tech", "technician"), world.pki.signer_credential("decision")):
        with pytest.raises(Refused) as refused:
            await log.sequencer.append(Submission(statement=signed(other), **owner))
        assert refused.value.reason is Reason.SIGNATURE_INVALID


# --- overload


@pytest.mark.holds("floods")
async def test_one_senders_flood_leaves_room_for_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_OF_SENDER", 2)
    monkeypatch.setattr(intake, "MAX_BYTES_OF_SENDER", 100_000)
    log, writer = world.open(started=False), world.writer()

    def sent(sender: str, **values: object) -> asyncio.Task[RecordedPlace]:
        return log.sequencer.append(submission(writer.hold(), sender=sender, **values))

    waiting = [sent("loud"), sent("loud")]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as caught:
        await sent("loud")
    assert caught.value.reason is Reason.EVIDENCE_UNAVAILABLE
    with pytest.raises(Refused):
        await sent("large", bodies=(bytes(100_000),))
    waiting.append(sent("quiet"))
    await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    log.start()
    places = await asyncio.gather(*waiting)
    assert sorted(place.index for place in places) == [0, 1, 2]
    # What was answered gives its place back.
    assert (await sent("loud")).index == 3
