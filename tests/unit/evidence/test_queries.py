"""Who was shown what is on record before it is shown; and who sees that."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.support.pki import ORGANIZATION, SITE
from tests.unit.evidence.conftest import DEVICE, Log, World, submission
from vigil.core import cose
from vigil.core.statements.envelope import Scribe, check, read
from vigil.core.statements.log_bodies import MAX_READS, Query
from vigil.errors import Reason, Refused
from vigil.evidence import store
from vigil.evidence.domain import decode_leaf, scope_of
from vigil.evidence.intake import Submission
from vigil.evidence.queries import QueryLog
from vigil.evidence.store import StoredEntry

SUBJECT = f"device/{DEVICE}"


def queries_of(world: World, log: Log) -> QueryLog:
    recorded = world.pki.signer_credential("recorded")

    def scribe() -> Scribe:
        return Scribe(
            signer=recorded.signer,
            issuer=recorded.issuer_name,
            clock=world.clock,
            entropy=os.urandom,
            numbered=True,
        )

    return QueryLog(sequencer=log.sequencer, scribes=scribe, clock=world.clock)


async def all_entries(log: Log) -> list[StoredEntry]:
    size = (await log.sequencer.state()).size

    def look(connection: store.Connection) -> list[StoredEntry | None]:
        commits = store.CommitReader(connection)
        return [store.load_entry(connection, index, commits) for index in range(size)]

    return [entry for entry in await log.database.read(look) if entry is not None]


async def recorded_queries(world: World, log: Log) -> list[tuple[StoredEntry, Query]]:
    found = []
    for entry in await all_entries(log):
        if decode_leaf(entry.leaf).kind == "query":
            statement = read(cose.with_chain(entry.statement, entry.chain), Query)
            signer = world.pki.signer_credential("recorded").identity
            check(statement, signer)
            found.append((entry, statement.body))
    return found


@pytest.fixture
async def written(world: World, log: Log) -> list[StoredEntry]:
    log.start()
    writer = world.writer()
    for _ in range(3):
        await log.sequencer.append(submission(writer.hold()))
    return await all_entries(log)


async def test_a_page_of_reads_is_one_record_under_reader_and_subject(
    world: World, log: Log, written: list[StoredEntry]
) -> None:
    queries = queries_of(world, log)
    reader = world.reader("auditor")
    await queries.shown(reader, method="history", subject=SUBJECT, entries=written)
    ((entry, body),) = await recorded_queries(world, log)
    assert (body.reader, body.organization, body.credential) == ("p-reader", ORGANIZATION, reader.thumbprint)
    (one,) = body.reads
    assert (one.method, one.subject, one.count, one.first, one.last) == ("history", SUBJECT, 3, 0, 2)
    assert one.at == world.clock.now()
    subjects = [link.subject for link in decode_leaf(entry.leaf).subjects]
    assert subjects == ["person/p-reader", f"read/{SUBJECT}"]
    assert (entry.organization, entry.site) == (ORGANIZATION, SITE)


async def test_reading_what_was_read_ends(world: World, log: Log, written: list[StoredEntry]) -> None:
    queries = queries_of(world, log)
    reader = world.reader("auditor")
    await queries.shown(reader, method="history", subject=SUBJECT, entries=written)
    for size in (4, 5):
        assert (await log.sequencer.state()).size == size
        entries = [entry for entry, _ in await recorded_queries(world, log)]
        await queries.shown(reader, method="history", subject=f"read/{SUBJECT}", entries=entries)
    last = (await recorded_queries(world, log))[-1][0]
    assert [link.subject for link in decode_leaf(last.leaf).subjects] == ["person/p-reader"]


async def test_a_flood_of_reads_becomes_few_records_and_each_waits_for_its_own(
    world: World, log: Log, written: list[StoredEntry]
) -> None:
    queries = queries_of(world, log)
    reader = world.reader("auditor")
    count = 150
    await asyncio.gather(
        *(queries.shown(reader, method="record", subject=SUBJECT, entries=written[:1]) for _ in range(count))
    )
    found = await recorded_queries(world, log)
    assert sum(len(body.reads) for _, body in found) == count
    assert len(found) <= 1 + -(-count // MAX_READS)


async def test_what_others_own_is_recorded_apart(world: World, log: Log, written: list[StoredEntry]) -> None:
    hold = world.writer().hold()
    await log.sequencer.append(submission(hold, organization="clinic", site="site-9"))
    theirs = (await all_entries(log))[-1]
    queries = queries_of(world, log)
    reader = world.reader("auditor", organization="operator", sites=("*",))
    await asyncio.gather(
        queries.shown(reader, method="record", subject=SUBJECT, entries=written[:1]),
        queries.shown(reader, method="record", subject=SUBJECT, entries=[theirs]),
        queries.shown(reader, method="completeness", subject=SUBJECT, entries=[]),
        queries.shown(reader, method="history", subject=SUBJECT, entries=[*written, theirs]),
    )
    owners = sorted((entry.organization, entry.site) for entry, _ in await recorded_queries(world, log))
    assert owners == sorted([(ORGANIZATION, SITE), ("clinic", "site-9"), ("operator", ""), ("clinic", "")])
    # The clinic sees that its record was read, and nobody else's reading.
    auditor = scope_of(world.reader("auditor", organization="clinic", sites=("*",)))
    seen = [
        entry
        for entry, _ in await recorded_queries(world, log)
        if auditor.covers(entry.organization, entry.site)
    ]
    assert len(seen) == 2


async def test_services_are_no_readers(world: World, log: Log, written: list[StoredEntry]) -> None:
    service = world.pki.service("revocation").identity
    await queries_of(world, log).shown(service, method="history", subject=SUBJECT, entries=written)
    assert await recorded_queries(world, log) == []


async def test_what_cannot_be_recorded_is_not_shown(
    world: World, log: Log, written: list[StoredEntry]
) -> None:
    queries = queries_of(world, log)
    reader = world.reader("auditor")
    world.clock.set_now(
        world.clock.now() + 100 * 365 * 86_400_000
    )  # nothing is recorded while the clock leaps

    async def reason_of(call: Awaitable[Any]) -> Reason:
        with pytest.raises(Refused) as caught:
            await call
        return caught.value.reason

    asked = queries.shown(reader, method="history", subject=SUBJECT, entries=written)
    assert await reason_of(asked) in (Reason.EVIDENCE_UNAVAILABLE, Reason.SIGNATURE_INVALID)
    world.clock.set_now(world.clock.now() - 100 * 365 * 86_400_000)
    await queries.shown(reader, method="history", subject=SUBJECT, entries=written)
    assert len(await recorded_queries(world, log)) == 1


async def test_nobody_else_appends_a_query(world: World, log: Log, written: list[StoredEntry]) -> None:
    await queries_of(world, log).shown(
        world.reader("auditor"), method="history", subject=SUBJECT, entries=written
    )
    ((entry, _),) = await recorded_queries(world, log)
    with pytest.raises(Refused) as caught:
        await log.sequencer.append(
            Submission(statement=entry.statement, organization=ORGANIZATION, site=SITE, sender="gateway")
        )
    assert caught.value.reason is Reason.FIELD_INVALID
