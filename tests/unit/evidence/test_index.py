"""The index: made behind the log, from the log alone, and held against it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, delete, insert, select, update

from tests.support.databases import KINDS
from tests.support.story import Story
from tests.unit.evidence.conftest import Log, World, submission
from vigil.core import cbor
from vigil.core.certificates import Identity
from vigil.core.salted import salted
from vigil.core.statements.bodies import Scope
from vigil.core.statements.log_bodies import ErasureReason, ErasureWhat
from vigil.errors import Reason, Refused
from vigil.evidence import erasing, index_store, indexer, paging, reindex
from vigil.evidence.erased import Erased, erase
from vigil.evidence.finding import Finder, Wanted
from vigil.evidence.index import INDEX_VERSION, Named, Refers, Rows, epoch_key, read_named
from vigil.evidence.indexer import Indexer
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.tables import ENTRY, INDEX_STATE, REFERENCE, STATEMENT, SUBJECT_TIME
from vigil.rpc.paging import token_after

ALL = 2**62


def nothing(_done: int, _all: int) -> None:
    return


async def lived(world: World, log: Log) -> Story:
    """A device's life in the log."""
    story = Story(world.pki, world.clock)
    for _ in range(3):
        for one in (*story.measured(), story.decided(), story.done(), story.hold()):
            await log.sequencer.append(one)
        world.clock.advance(60)
    await log.sequencer.append(story.revoked(Scope.DEVICE, story.device))
    return story


def rows_of(log: Log) -> dict[str, list[tuple[object, ...]]]:
    return {
        table.name: log.database.read_now(
            lambda connection: sorted(map(tuple, connection.execute(select(table))))  # noqa: B023 - called at once
        )
        for table in index_store.INDEX_TABLES
    }


@contextmanager
def running(world: World, log: Log) -> Iterator[Indexer]:
    async def size() -> int:
        return (await log.sequencer.state()).size

    made = Indexer(
        database=log.database, size=size, clock=world.clock, metrics=LogMetrics(CollectorRegistry())
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()


async def test_what_the_service_makes_is_what_the_log_gives(world: World) -> None:
    log = world.open()
    story = await lived(world, log)
    with running(world, log) as made:
        assert await made.reached(16) == 16
    behind = rows_of(log)
    assert reindex.check(log.database, nothing).holds
    assert reindex.rebuild(log.database, nothing) == 16
    assert rows_of(log) == behind
    assert {(row[0], row[1]) for row in behind["subject_time"]} >= {
        (story.subject, kind) for kind in ("evidence", "result", "decision", "receipt", "hold", "revocation")
    }


async def test_records_are_found_by_what_they_refer_to(world: World) -> None:
    log = world.open()
    story = await lived(world, log)
    reindex.rebuild(log.database, nothing)

    def at(what: Refers, value: bytes, **values: int) -> list[int]:
        return log.database.read_now(
            lambda connection: index_store.referring(connection, what, value, below=ALL, limit=9, **values)
        )

    entry = log.database.read_now(
        lambda connection: connection.execute(select(ENTRY.c.digest).where(ENTRY.c.idx == 0)).scalar_one()
    )
    assert at(Refers.EVIDENCE, entry) == [1]
    assert at(Refers.REQUEST, bytes(16)) == [3, 8, 13]
    assert at(Refers.REQUEST, bytes(16), after=3) == [8, 13]
    assert at(Refers.EPOCH, epoch_key(1)) == [15]
    assert at(Refers.EPOCH, epoch_key(2)) == []
    assert story.epoch == 1


async def found(
    world: World, log: Log, wanted: Wanted, reader: Identity, **page: object
) -> tuple[list[int], str]:
    async def size() -> int:
        return (await log.sequencer.state()).size

    with running(world, log) as made:
        finder = Finder(indexer=made, size=size, clock=world.clock)
        given = {"page_size": 0, "page_token": "", **page}
        answer = await finder.find(reader, wanted, **given)  # type: ignore[arg-type]
    assert given["page_token"] or answer.covered == await size()
    return [entry.index for entry in answer.entries], answer.next_token


async def test_people_find_records_by_what_they_refer_to_and_by_kind_and_time(world: World) -> None:
    log, began = world.open(), world.clock.now()
    await lived(world, log)
    reader = world.reader("auditor")
    assert await found(world, log, Wanted(what=Refers.REQUEST, value=bytes(16)), reader) == ([3, 8, 13], "")
    kind = Wanted(kind="decision")
    assert (await found(world, log, kind, reader))[0] == [2, 7, 12]
    window = Wanted(kind="decision", since=began + 60_000, until=began + 60_000)
    assert (await found(world, log, window, reader))[0] == [7]
    pages, token = [], ""
    while True:
        indexes, token = await found(world, log, kind, reader, page_size=1, page_token=token)
        pages.append(indexes)
        if not token:
            break
    assert pages == [[2], [7], [12]]
    assert (await found(world, log, kind, world.reader("auditor", organization="other")))[0] == []


async def test_what_comes_to_the_record_while_pages_are_turned_is_another_answer(world: World) -> None:
    log = world.open()
    log.start()
    for _ in range(3):
        await log.sequencer.append(submission(world.writer().hold()))
    pages, token = [], ""
    while True:
        indexes, token = await found(
            world, log, Wanted(kind="hold"), world.reader("auditor"), page_size=1, page_token=token
        )
        pages.append(indexes)
        if not token:
            break
        await log.sequencer.append(submission(world.writer().hold()))
    assert pages == [[0], [1], [2]]
    assert (await found(world, log, Wanted(kind="hold"), world.reader("auditor")))[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(kind="No Kind"),
        Wanted(what=Refers.REQUEST, value=bytes(15)),
        Wanted(what=Refers.DECISION, value=b""),
        Wanted(what=Refers.DECISION, value=bytes(32), since=5),
        Wanted(kind="hold", since=9, until=8),
        Wanted(kind="hold", since=10**15),
    ],
)
async def test_what_cannot_be_asked_for_is_refused(world: World, wanted: Wanted) -> None:
    with pytest.raises(Refused) as caught:
        await found(world, world.open(), wanted, world.reader("auditor"))
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_a_page_token_of_somebody_else_is_refused(world: World) -> None:
    asked = (str(None), "", "hold")
    for token in (
        "x",
        "1:2:3",
        paging.token_after((1, 2), 3, "another question"),
        token_after("1:2", *asked),
        token_after("-1:2:3", *asked),
        token_after("1:2:٣", *asked),
    ):
        with pytest.raises(Refused) as caught:
            await found(world, world.open(), Wanted(kind="hold"), world.reader("auditor"), page_token=token)
        assert caught.value.reason is Reason.FIELD_INVALID


async def test_log_time_leads_to_an_index(world: World) -> None:
    log = world.open()
    began = world.clock.now()
    await lived(world, log)

    def until(time: int) -> int:
        return log.database.read_now(lambda connection: index_store.entries_until(connection, time, size=16))

    assert [until(began - 1), until(began), until(began + 59_999), until(began + 60_000)] == [0, 5, 5, 10]
    assert until(began + 10**9) == 16


async def test_how_many_records_stand_below_an_index(world: World) -> None:
    log = world.open()
    story = await lived(world, log)
    found = [
        log.database.read_now(
            lambda connection: index_store.records_below(connection, story.subject, below)  # noqa: B023 - called at once
        )
        for below in range(17)
    ]
    assert found == list(range(17))
    assert log.database.read_now(lambda c: index_store.records_below(c, "device/none", 5)) == 0
    assert found == [
        log.database.read_now(
            lambda connection: index_store.records_below(
                connection,
                story.subject,
                below,  # noqa: B023 - called at once
                known=[(4, 3), (9, 8), (16, 15)],
            )
        )
        for below in range(17)
    ]


async def test_several_questions_in_one_look_find_what_each_finds_alone(world: World) -> None:
    log = world.open()
    story = await lived(world, log)
    reindex.rebuild(log.database, nothing)
    kinds = ("hold", "result", "voucher", "receipt")
    asked = [(story.subject, kind) for kind in kinds]
    now = world.clock.now()

    def look(connection: Connection) -> None:
        last = index_store.last_of_each(connection, asked, until=now, below=14, limit=2)
        assert last == [
            index_store.last_of(connection, story.subject, kind, until=now, below=14, limit=2)
            for kind in kinds
        ]
        assert [len(found) for found in last] == [2, 2, 0, 2]
        after = now - 120_000
        assert index_store.first_of_each(connection, asked, after=after, below=ALL) == [
            index_store.first_of(connection, story.subject, kind, after=after, below=ALL) for kind in kinds
        ]
        assert index_store.last_of_each(connection, [], until=now, below=14) == []

    log.database.read_now(look)


async def test_a_span_of_a_subjects_records_is_whole_or_refused(world: World) -> None:
    log = world.open()
    story = await lived(world, log)

    def span(last: int) -> list[index_store.Numbered]:
        return log.database.read_now(lambda c: index_store.span(c, story.subject, 2, last))

    assert [(one.number, one.index) for one in span(5)] == [(2, 1), (3, 2), (4, 3), (5, 4)]
    leaves = log.database.read_now(lambda c: [row.leaf for row in c.execute(select(ENTRY).order_by("idx"))])
    assert [one.leaf for one in span(5)] == leaves[1:5]
    with pytest.raises(LookupError, match="lacks one of its records 2 to 17"):
        span(17)


# --- what is wrong is found


async def differing(log: Log, statement: object) -> reindex.Checked:
    log.database.write_now(lambda connection: connection.execute(statement) and None)  # type: ignore[call-overload]
    return reindex.check(log.database, nothing)


async def test_a_row_too_few_is_named(world: World) -> None:
    log = world.open()
    story = await lived(world, log)
    reindex.rebuild(log.database, nothing)
    gone = delete(SUBJECT_TIME).where(SUBJECT_TIME.c.subject == story.subject, SUBJECT_TIME.c.idx == 7)
    found = await differing(log, gone)
    assert (found.holds, found.differing, found.extra) == (False, 1, [])
    assert found.missing[0].startswith(f"subject_time: {story.subject}, decision, ")


async def test_a_row_too_many_is_named(world: World) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    found = await differing(log, insert(REFERENCE).values(what="request", value=b"\x07" * 16, idx=3))
    assert (found.holds, found.differing, found.missing) == (False, 1, [])
    assert found.extra == [f"reference: request, {'07' * 16}, 3"]


async def test_a_row_that_says_another_time_is_named_twice(world: World) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    moved = update(SUBJECT_TIME).where(SUBJECT_TIME.c.idx == 7).values(time=5)
    found = await differing(log, moved)
    assert (found.holds, found.differing, len(found.missing), len(found.extra)) == (False, 2, 1, 1)
    assert reindex.rebuild(log.database, nothing) == 16
    assert reindex.check(log.database, nothing).holds


async def test_what_was_erased_since_is_no_difference(world: World) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    found = await differing(log, delete(STATEMENT).where(STATEMENT.c.idx == 4))
    assert found.holds
    assert found.erased == {4}
    # And an index made afterwards finds it by what its leaf says.
    reindex.rebuild(log.database, nothing)
    assert reindex.check(log.database, nothing).holds


def erase_statement(log: Log, index: int) -> None:
    """As an erasure's second half does, in its transaction."""
    erased = Erased(
        what=ErasureWhat.STATEMENTS,
        reason=ErasureReason.REQUEST,
        reference="",
        time=1,
        people=("p-one", "p-two"),
        records=(14, 15),
    )

    def gone(connection: Connection) -> None:
        erasing._unindex(connection, index)
        erase(connection, [(index, ())], erased)

    log.database.write_now(gone)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_erased_while_a_batch_is_under_way_is_not_in_the_index(world: World) -> None:
    log = world.open()
    await lived(world, log)
    erase_statement(log, 7)
    first = log.database.read_now(lambda connection: index_store.read_batch(connection, 0, 5))
    second = log.database.read_now(lambda connection: index_store.read_batch(connection, 5, 16))
    erase_statement(log, 3)
    # What was erased before it was read, or outside of it, holds no batch up; what was erased since does.
    assert log.database.write_now(lambda connection: index_store.write_batch(connection, first)) == 0
    assert all(not rows for rows in rows_of(log).values())
    first = log.database.read_now(lambda connection: index_store.read_batch(connection, 0, 5))
    assert log.database.write_now(lambda connection: index_store.write_batch(connection, first)) == 5
    assert log.database.write_now(lambda connection: index_store.write_batch(connection, second)) == 16
    made = rows_of(log)
    assert all(row[2] not in (3, 7) or row[0] == Refers.BODY for row in made["reference"])
    reindex.rebuild(log.database, nothing)
    assert rows_of(log) == made


@pytest.mark.parametrize("kind", KINDS)
async def test_the_index_goes_on_past_an_erasure_that_came_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.open()
    await lived(world, log)
    read, left = index_store.read_batch, [3]

    def raced(connection: Connection, first: int, end: int) -> index_store.Batch:
        batch = read(connection, first, end)
        if left:
            erase_statement(log, left.pop())
        return batch

    monkeypatch.setattr(index_store, "read_batch", raced)
    with running(world, log) as made:
        assert await made.reached(16) == 16
    assert not left
    behind = rows_of(log)
    reindex.rebuild(log.database, nothing)
    assert rows_of(log) == behind


# --- faults


async def test_an_index_that_is_being_emptied_is_finished_by_whoever_comes(world: World) -> None:
    """The command was killed in the middle: the service goes on from there."""
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    whole = rows_of(log)
    log.database.write_now(index_store.begin_clearing)
    log.database.write_now(index_store.clear_some)
    assert rows_of(log) != whole
    with running(world, log) as made:
        await made.reached(16)
    assert rows_of(log) == whole


async def test_another_versions_index_is_made_anew(world: World) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    other = update(INDEX_STATE).values(version=INDEX_VERSION + 1)
    log.database.write_now(lambda connection: connection.execute(other) and None)
    with running(world, log) as made:
        await made.reached(16)
    assert reindex.check(log.database, nothing).holds


async def test_a_batch_that_does_not_follow_is_left_alone(world: World) -> None:
    log = world.open()
    await lived(world, log)
    batch = log.database.read_now(lambda connection: index_store.read_batch(connection, 5, 9))
    assert log.database.write_now(lambda connection: index_store.write_batch(connection, batch)) == 0
    assert all(not rows for rows in rows_of(log).values())


async def test_a_hole_in_the_log_is_no_index(world: World) -> None:
    log = world.open()
    await lived(world, log)
    log.database.write_now(lambda c: c.execute(delete(ENTRY).where(ENTRY.c.idx == 7)) and None)
    with pytest.raises(LookupError, match="lacks"):
        log.database.read_now(lambda connection: index_store.read_batch(connection, 5, 9))


@pytest.mark.parametrize("leaf", [None, b"\xff", cbor.encode([1, "hold", "then", 0, 0, 0, [], []])])
async def test_the_service_stands_at_a_hole_and_goes_on_when_it_is_filled(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, leaf: bytes | None
) -> None:
    """It says so once, questions are told which entry it is, and everything else is done as before."""
    monkeypatch.setattr(indexer, "HOLE_S", 0.01)
    log = world.open()
    await lived(world, log)
    row = log.database.read_now(lambda c: c.execute(select(ENTRY).where(ENTRY.c.idx == 7)).mappings().one())
    broken = delete(ENTRY) if leaf is None else update(ENTRY).values(leaf=leaf)
    log.database.write_now(lambda c: c.execute(broken.where(ENTRY.c.idx == 7)) and None)
    with running(world, log) as made:
        await asyncio.sleep(0.2)
        with pytest.raises(Refused) as caught:
            await made.reached(16)
        assert caught.value.reason is Reason.EVIDENCE_UNAVAILABLE
        assert "stands still: the log" in caught.value.refusals[0].sentence
        assert "entry 7" in caught.value.refusals[0].sentence
        await log.sequencer.append(submission(world.writer().hold()))
        assert caplog.text.count("THE LOG IS DAMAGED") == 1
        log.database.write_now(lambda c: c.execute(delete(ENTRY).where(ENTRY.c.idx == 7)) and None)
        log.database.write_now(lambda c: c.execute(insert(ENTRY).values(**row)) and None)
        await asyncio.sleep(0.2)
        assert await made.reached(17) == 17
    assert reindex.check(log.database, nothing).holds


async def test_an_index_is_not_emptied_for_a_log_that_lacks_an_entry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    before = rows_of(log)
    log.database.write_now(lambda c: c.execute(delete(ENTRY).where(ENTRY.c.idx.in_([7, 9]))) and None)
    monkeypatch.setattr(reindex, "COUNTED", 4)
    with pytest.raises(reindex.HoleError, match="lacks the entry 7: the index was left as it is"):
        reindex.rebuild(log.database, nothing)
    assert rows_of(log) == before
    assert log.database.read_now(index_store.covered) == 16
    with pytest.raises(reindex.HoleError, match="lacks the entry 7: the index cannot be held against it"):
        reindex.check(log.database, nothing)


async def test_an_entry_that_is_none_is_named_when_it_is_met(world: World) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)
    log.database.write_now(
        lambda c: c.execute(update(ENTRY).values(leaf=b"").where(ENTRY.c.idx == 7)) and None
    )
    with pytest.raises(reindex.HoleError, match="entry 7 cannot be read: the index covers 0 entries"):
        reindex.rebuild(log.database, nothing)


async def test_a_question_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    log = world.open()
    await lived(world, log)

    async def size() -> int:
        return 16

    idle = Indexer(
        database=log.database, size=size, clock=world.clock, metrics=LogMetrics(CollectorRegistry())
    )
    monkeypatch.setattr(indexer, "WAIT_S", 0)
    with pytest.raises(Refused) as caught:
        await idle.reached(16)
    assert caught.value.reason is Reason.EVIDENCE_UNAVAILABLE
    assert "covers 0 of the 16" in caught.value.refusals[0].sentence


async def test_nobody_is_answered_from_an_index_that_is_being_emptied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.open()
    await lived(world, log)
    reindex.rebuild(log.database, nothing)

    async def size() -> int:
        return 16

    idle = Indexer(
        database=log.database, size=size, clock=world.clock, metrics=LogMetrics(CollectorRegistry())
    )
    assert await idle.read(16, lambda _: "answer") == "answer"
    log.database.write_now(index_store.begin_clearing)
    monkeypatch.setattr(indexer, "WAIT_S", 0)
    with pytest.raises(Refused) as caught:
        await idle.read(16, lambda _: pytest.fail("asked"))
    assert caught.value.reason is Reason.EVIDENCE_UNAVAILABLE


# --- rows


def test_a_record_says_its_own_time_but_none_later_than_the_log_took_it() -> None:
    payload = {"device_time": 5_000}
    for taken, expected in ((9_000, 5_000), (4_000, 4_000)):
        statement = cbor.encode([cbor.encode({}), {}, cbor.encode(payload), bytes(64)])
        rows = Rows.of([(3, Named("receipt", taken, ["device/a"], []), statement, ())])
        assert rows.subjects == [("device/a", "receipt", expected, 3)]


@pytest.mark.parametrize("statement", [b"", b"\xff", cbor.encode([1, 2]), cbor.encode([b"\xff"] * 4)])
def test_what_cannot_be_read_stands_at_the_time_of_the_log(statement: bytes) -> None:
    rows = Rows.of([(3, Named("intent", 9, ["a"], [bytes(32)]), statement, ())])
    assert (rows.subjects, rows.kinds) == ([("a", "intent", 9, 3)], [("intent", 9, 3)])
    assert rows.references == [("body", bytes(32), 3)]
    assert rows.count == 3


def test_a_step_counts_from_when_the_chain_took_it() -> None:
    body = salted(cbor.encode({"chain": bytes(32), "epoch": 4, "time": 77}), bytes)
    rows = Rows.of([(1, Named("revocation", 99, ["revocation/log"], []), b"", (body,))])
    assert rows.subjects == [("revocation/log", "revocation", 77, 1)]
    assert rows.references == [("epoch", epoch_key(4), 1)]


@pytest.mark.parametrize("leaf", [cbor.encode([]), cbor.encode(5), b"\xff", cbor.encode([1] * 8)])
def test_a_leaf_that_the_log_did_not_write_is_refused(leaf: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_named(leaf)
    assert caught.value.reason is Reason.STATEMENT_MALFORMED
