"""The evidence service as it runs: over mTLS, for callers of every kind, killed and started again."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection, MetaData

from tests.support.crowd import OWNER, Crowd, check_everything, history, taken, tree_of
from tests.support.databases import KINDS
from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.salted import unsalted
from vigil.errors import Reason, Refused
from vigil.feed import evidence as feed_evidence
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool, Record, spool_table
from vigil.rpc import status
from vigil.rpc.channel import Channels
from vigil.storage import Database, open_database
from vigil.verify import (
    Document,
    Proven,
    SubjectClaim,
    check_inclusion,
    check_recorded,
    check_statement,
    check_subject,
    document_from_json,
    document_to_json,
    verify_document,
)

DEVICE = "dev-aaaaaaaaaaaaaaaa"


class World:
    """The service, and clients of it with their own certificates."""

    def __init__(self, folder: Path, *, database_url: str = "") -> None:
        self.pki = TestPki(folder)
        self.folder = folder
        self.process = EvidenceProcess(self.pki, folder, settings={"database_url": database_url})
        self.writer = HoldWriter(self.pki.person("p-safety", "safety"))
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def channel(self, credential: Credential) -> grpc.aio.Channel:
        channels = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self._closing.append(channels.close)
        return channels.service(self.process.address, "evidence")

    def appender(self, credential: Credential | None = None, *, streams: int = 2) -> EvidenceAppender:
        channel = self.channel(credential or self.pki.service("policy"))
        appender = EvidenceAppender(channel=channel, entropy=os.urandom, streams=streams)
        self._closing.insert(0, appender.close)
        return appender

    def reader(self, *roles: str, **values: Any) -> Any:
        person = self.pki.person("p-reader", *(roles or ("technician",)), **values)
        return evidence_pb2_grpc.EvidenceReadServiceStub(self.channel(person))

    async def close(self) -> None:
        for close in self._closing:
            await close()
        await self.process.stop()


@pytest.fixture
def kind() -> str:
    """Of the log's database; what reaches down to it is tried over both."""
    return "sqlite"


@pytest.fixture
async def world(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    url = request.getfixturevalue("postgres").create() if kind == "postgresql" else ""
    world = World(tmp_path, database_url=url)
    await world.process.start()
    yield world
    await world.close()


async def reason_of(awaitable: Awaitable[Any]) -> Reason:
    with pytest.raises(Refused) as caught:
        await status.translated(awaitable)
    return caught.value.reason


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_is_proved_from_end_to_end(world: World) -> None:
    appender = world.appender()
    hold = world.writer.hold()
    item = await appender.append(hold.data, subjects=[f"site/{SITE}"], bodies=[b"input"], **OWNER)
    again = await appender.append(hold.data, **OWNER)
    assert item == again

    reader = world.reader()
    entry = await reader.GetEntry(evidence_pb2.GetEntryRequest(digest=hold.digest))
    record = taken(entry)
    verifier = world.pki.verifier
    assert check_statement(record, verifier).id == "p-safety"
    assert check_recorded(record, verifier).time == entry.log_time_ms
    assert (entry.kind, entry.index, entry.recorded) == ("hold", 0, item)
    assert [(link.subject, link.number) for link in entry.subjects] == [
        (f"device/{DEVICE}", 1),
        (f"site/{SITE}", 1),
    ]
    proof = await reader.GetInclusionProof(evidence_pb2.GetInclusionProofRequest(index=0))
    check_inclusion(record, proof.path, tree_of(world.pki, proof.checkpoint))
    assert await reader.GetEntry(evidence_pb2.GetEntryRequest(index=0)) == entry

    document = Document(
        trust_domain=world.pki.trust_domain,
        checkpoint=proof.checkpoint.note,
        records=(Proven(record, tuple(proof.path)),),
        subjects=(SubjectClaim(subject=f"device/{DEVICE}", first=1, leaves=(record.leaf,)),),
    )
    read_back = document_from_json(document_to_json(document))
    report = verify_document(read_back, verifier=verifier, verifier_key=proof.checkpoint.verifier_key)
    assert report.holds, report


async def test_only_services_and_gateways_append(world: World) -> None:
    for credential in (world.pki.person("p-x", "admin"), world.pki.device()):
        appender = world.appender(credential)
        assert (
            await reason_of(appender.append(world.writer.hold().data, **OWNER)) is Reason.ROLE_NOT_PERMITTED
        )
    stub = evidence_pb2_grpc.EvidenceReadServiceStub(world.channel(world.pki.gateway()))
    asked = stub.GetCheckpoint(evidence_pb2.GetCheckpointRequest())
    assert await reason_of(asked) is Reason.ROLE_NOT_PERMITTED


@pytest.mark.holds("speaks-as-another")
async def test_a_gateway_writes_for_its_own_site_only(world: World) -> None:
    appender = world.appender(world.pki.gateway())
    data = world.writer.hold().data
    for owner in (
        {},
        {"organization_id": ORGANIZATION},
        {"organization_id": ORGANIZATION, "site_id": "site-2"},
        {"organization_id": "clinic", "site_id": SITE},
    ):
        assert await reason_of(appender.append(data, **owner)) is Reason.NOT_IN_SCOPE
    assert (await appender.append(data, **OWNER)).index == 0


async def test_what_cannot_be_recorded_is_refused_alone(world: World) -> None:
    appender = world.appender()
    good, bad = world.writer.hold(), b"\x00"
    outcomes = await asyncio.gather(
        *(appender.append(data, **OWNER) for data in (good.data, bad, good.data)), return_exceptions=True
    )
    assert isinstance(outcomes[1], Refused)
    assert outcomes[1].reason is Reason.STATEMENT_MALFORMED
    assert outcomes[0] == outcomes[2]
    records = [Record(statement=world.writer.hold().data, **OWNER), Record(statement=bad)]
    assert await reason_of(appender.append_all(records)) is Reason.STATEMENT_MALFORMED


async def test_large_bodies_travel_and_come_back(world: World) -> None:
    appender = world.appender()
    holds = [world.writer.hold() for _ in range(6)]
    bodies = [[bytes([place, number]) * 32_768 for number in range(8)] for place in range(6)]
    await asyncio.gather(
        *(
            appender.append(hold.data, bodies=beside, **OWNER)
            for hold, beside in zip(holds, bodies, strict=True)
        )
    )
    too_large = appender.append(world.writer.hold().data, bodies=[bytes(65_537)], **OWNER)
    assert await reason_of(too_large) is Reason.REQUEST_TOO_LARGE
    reader = world.reader()
    entries = await history(reader, f"device/{DEVICE}")
    kept = {entry.digest: [unsalted(body) for body in entry.bodies] for entry in entries}
    assert kept == {hold.digest: beside for hold, beside in zip(holds, bodies, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
async def test_many_writers_each_in_their_order_and_each_statement_once(world: World) -> None:
    """Sixteen services with one stream each, everything in flight at once, every third statement sent again."""
    appenders = [world.appender(world.pki.service("policy"), streams=1) for _ in range(16)]
    sent = [[world.writer.hold() for _ in range(40)] for _ in appenders]
    answers = await asyncio.gather(
        *(
            asyncio.gather(*(appender.append(hold.data, **OWNER) for hold in (*holds, *holds[::3])))
            for appender, holds in zip(appenders, sent, strict=True)
        )
    )
    indices = []
    for holds, items in zip(sent, answers, strict=True):
        once, again = items[: len(holds)], items[len(holds) :]
        # In the order in which the stream carried them, and sent again they are where they were.
        assert [item.index for item in once] == sorted(item.index for item in once)
        assert again == once[::3]
        indices += [item.index for item in once]
    assert sorted(indices) == list(range(16 * 40))


async def test_people_read_what_is_theirs(world: World) -> None:
    appender = world.appender()
    await appender.append(world.writer.hold().data, **OWNER)
    await appender.append(world.writer.hold().data, organization_id=ORGANIZATION, site_id="site-2")
    subject = f"device/{DEVICE}"
    mine = await history(world.reader(), subject)
    assert [entry.index for entry in mine] == [0]
    everything = await history(world.reader("auditor", organization="operator", sites=("*",)), subject)
    assert [entry.index for entry in everything] == [0, 1]
    assert check_subject([taken(entry) for entry in everything], subject) == 2
    stranger = world.reader("admin", organization="clinic", sites=("*",))
    words = []
    for asked in (
        stranger.ListHistory(evidence_pb2.ListHistoryRequest(subject=subject)),
        stranger.ListHistory(evidence_pb2.ListHistoryRequest(subject="device/dev-zzzzzzzzzzzzzzzz")),
    ):
        with pytest.raises(Refused) as caught:
            await status.translated(asked)
        words.append(caught.value.refusals)
    assert words[0] == words[1]
    assert words[0][0].reason is Reason.NOT_IN_SCOPE
    for index in (0, 77):
        asked = stranger.GetEntry(evidence_pb2.GetEntryRequest(index=index))
        assert await reason_of(asked) is Reason.NOT_IN_SCOPE
    bad = world.reader().ListHistory(evidence_pb2.ListHistoryRequest(subject=subject, page_token="x"))
    assert await reason_of(bad) is Reason.FIELD_INVALID


# --- killed while it writes


@pytest.mark.slow
@pytest.mark.holds("killed-between-steps")
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.thorough)])
async def test_killed_at_any_moment_it_loses_nothing_acknowledged(world: World) -> None:
    chance = random.Random(20_260_917)
    reader = world.reader("auditor", organization="operator", sites=("*",))
    crowd = Crowd(world.appender(streams=4), world.writer, writers=24)
    checkpoints: list[evidence_pb2.Checkpoint] = []

    async def watch() -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                checkpoints.append(await reader.GetCheckpoint(evidence_pb2.GetCheckpointRequest()))
            await asyncio.sleep(0.03)

    watching = asyncio.create_task(watch())
    killed_under_load = 0
    for round_ in range(4):
        await crowd.until(len(crowd.acknowledged) + 40 + chance.randrange(200))
        while len(crowd.sent) == len(crowd.acknowledged):  # noqa: ASYNC110 - it tells of answers, not of what it sends
            # Killed with nothing under way it would show nothing.
            await asyncio.sleep(0)
        before = len(crowd.sent) - len(crowd.acknowledged)
        await world.process.kill()
        killed_under_load += before > 0
        await world.process.start()
        await crowd.until(len(crowd.acknowledged) + 1)
        assert world.process.running, round_
    await crowd.stop()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert killed_under_load == 4
    assert len(checkpoints) > 4
    await check_everything(world.pki, reader, crowd, checkpoints)


@pytest.mark.holds("insider-evidence")
async def test_a_log_whose_key_is_gone_does_not_start(world: World) -> None:
    await world.appender().append(world.writer.hold().data, **OWNER)
    await world.reader().GetCheckpoint(evidence_pb2.GetCheckpointRequest())
    await world.process.stop()
    (world.process.data / "log.key").unlink()
    with pytest.raises(RuntimeError, match="key that signed"):
        await world.process.start()
    assert await world.process.exit_code() == 1


@pytest.mark.holds("insider-evidence")
async def test_a_log_whose_database_is_gone_does_not_start(world: World) -> None:
    """An empty one would be signed with the key that readers and witnesses know: a second history."""
    for _ in range(3):
        await world.appender().append(world.writer.hold().data, **OWNER)
    before = await world.reader().GetCheckpoint(evidence_pb2.GetCheckpointRequest())
    await world.process.stop()
    kept = {path: path.read_bytes() for path in world.process.data.glob("evidence.db*")}
    for path in kept:
        path.unlink()
    with pytest.raises(RuntimeError, match="restore the log's database, or move the key away"):
        await world.process.start()
    assert await world.process.exit_code() == 1
    for path in world.process.data.glob("evidence.db*"):
        path.unlink()
    for path, data in kept.items():
        path.write_bytes(data)
    await world.process.start()
    after = await world.reader().GetCheckpoint(evidence_pb2.GetCheckpointRequest())
    assert after.size >= before.size


# --- the spool


class Owner:
    """A service with facts of its own and a spool beside them."""

    def __init__(self, world: World) -> None:
        metadata = MetaData()
        spool_table(metadata)
        migrations = world.folder / "spool-migrations"
        migrations.mkdir()
        (migrations / "0001.py").write_text("revision = '0001'\ndown_revision = None\n")
        self.database: Database = open_database(
            world.folder / "owner.db", metadata=metadata, migrations=migrations
        )
        self.recorded: list[tuple[bytes, int]] = []
        self.spool = EvidenceSpool(
            database=self.database,
            appender=world.appender(world.pki.service("revocation"), streams=1),
            entropy=os.urandom,
            on_recorded=lambda _connection, data, item: self.recorded.append((data, item.index)),
        )
        self._task = asyncio.create_task(self.spool.run())

    async def put(self, *statements: bytes, fail: bool = False) -> None:
        def write(connection: Connection) -> None:
            for data in statements:
                self.spool.put(connection, data, **OWNER)
            if fail:
                raise ValueError("the facts were not right")

        await self.database.write(write)

    async def drained(self) -> None:
        while await self.spool.waiting():
            assert not self._task.done()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.database.close()


@pytest.fixture
async def owner(world: World) -> AsyncIterator[Owner]:
    owner = Owner(world)
    yield owner
    await owner.close()


async def test_the_spool_forwards_in_order_what_was_committed(world: World, owner: Owner) -> None:
    holds = [world.writer.hold().data for _ in range(150)]
    with pytest.raises(ValueError, match="facts"):
        await owner.put(world.writer.hold().data, fail=True)
    await owner.put(*holds)
    await owner.drained()
    assert owner.recorded == [(data, index) for index, data in enumerate(holds)]


async def test_the_spool_outlives_the_log_being_away(world: World, owner: Owner) -> None:
    await world.process.kill()
    holds = [world.writer.hold().data for _ in range(3)]
    await owner.put(*holds)
    assert await owner.spool.waiting() == 3
    await world.process.start()
    await owner.drained()
    assert sorted(index for _, index in owner.recorded) == [0, 1, 2]


async def test_the_spool_sets_aside_what_the_log_refuses(
    world: World, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_evidence, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(feed_evidence, "SIGNATURE_ATTEMPTS", 3)
    foreign = HoldWriter(world.pki.other_domain().person("p-safety", "safety")).hold().data
    good = [world.writer.hold().data for _ in range(2)]
    await owner.put(good[0], b"\x00", foreign, good[1])
    await owner.drained()
    assert sorted(data for data, _ in owner.recorded) == sorted(good)
    assert await owner.spool.set_aside() == 2


@pytest.mark.holds("storage-failures")
async def test_what_a_commit_told_nobody_of_is_found_at_the_second_look(world: World, owner: Owner) -> None:
    """A commit that succeeded and was told as failed wakes nobody: the spool looks again all the same."""
    statement = world.writer.hold().data
    await owner.put(world.writer.hold().data)
    await owner.drained()
    before = owner.spool._wake.set
    owner.spool._wake.set = lambda: None  # type: ignore[method-assign]
    try:
        await owner.put(statement)
    finally:
        owner.spool._wake.set = before  # type: ignore[method-assign]
    assert not owner.spool._wake.is_set()
    await owner.drained()
    assert owner.recorded[-1][0] == statement
