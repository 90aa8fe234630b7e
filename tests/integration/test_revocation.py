"""Revocation as it runs: service, edges, evidence and the neighbours' feeds over mTLS, with a real bus."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio
from sqlalchemy import Connection

from tests.unit.revocation.support import (
    FIRMWARE,
    PUMP,
    Gateway,
    RedisServer,
    World,
    a_world,
    reinstatement,
    revocation,
    scribe_of,
    signed_era,
    until,
)
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.certificates import EVERY
from vigil.core.clock import SystemClock
from vigil.core.revocations import EMPTY_CHAIN, PathStep, answers, chain_hash
from vigil.core.statements import bodies
from vigil.core.statements.bodies import Head, RevocationEffect, Scope
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.revocation import store
from vigil.revocation.__main__ import serve
from vigil.revocation.bus import CHANNEL
from vigil.rpc.paging import token_after
from vigil.rpc.status import from_rpc_error, translated
from vigil.run.configs import toml
from vigil.storage import open_database

ROOT = Path(__file__).parents[2]
OTHER = "dev-bbbbbbbbbbbbbbbb"


def pump(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "dev-" + "".join(letters[number >> (5 * place) & 31] for place in range(16))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield await world.start()


@pytest.fixture
async def bus() -> AsyncIterator[RedisServer]:
    server = await RedisServer().start()
    yield server
    await server.stop()


async def coverage(world: World) -> Any:
    stub = world.people(world.operator)
    return await translated(stub.GetCoverage(revocation_pb2.GetCoverageRequest(), timeout=10))


async def test_a_revocation_gets_an_epoch_and_a_head_confirms_it(world: World) -> None:
    statement = revocation(world.operator, PUMP)
    entry = await world.revoke(world.operator, statement)
    assert entry.epoch == 1
    assert entry.chain == chain_hash(EMPTY_CHAIN, 1, [statement.digest])
    assert await world.revoke(world.operator, statement) == entry
    challenge = os.urandom(32)
    answered = await world.head(challenge, after_epoch=0, max_entries=10)
    head = read(answered.head.head, Head)
    assert (head.body.epoch, head.body.chain) == (1, entry.chain)
    steps = [PathStep(path.index, path.size, tuple(path.path)) for path in answered.head.paths]
    assert answers(head, challenge, steps)
    assert not answers(head, os.urandom(32), steps)
    assert list(answered.entries) == [entry]


async def test_epochs_are_gapless_under_concurrency(world: World) -> None:
    people = (world.operator, world.second)
    statements = [(people[n % 2], revocation(people[n % 2], pump(n))) for n in range(30)]
    entries = await asyncio.gather(*(world.revoke(who, statement) for who, statement in statements))
    assert sorted(entry.epoch for entry in entries) == list(range(1, 31))
    answered = await world.head(after_epoch=0, max_entries=100)
    chain = EMPTY_CHAIN
    digests = {statement.data: statement.digest for _, statement in statements}
    for epoch, entry in enumerate(answered.entries, 1):
        chain = chain_hash(chain, epoch, [digests[entry.statements[0]]])
        assert (entry.epoch, entry.chain) == (epoch, chain)
    assert read(answered.head.head, Head).body.chain == chain


async def test_many_challenges_at_once_share_a_head(world: World) -> None:
    challenges = [os.urandom(32) for _ in range(40)]
    found = await asyncio.gather(*(world.head(challenge) for challenge in challenges))
    for challenge, answered in zip(challenges, found, strict=True):
        steps = [PathStep(path.index, path.size, tuple(path.path)) for path in answered.head.paths]
        assert answers(read(answered.head.head, Head), challenge, steps)
    assert len({answered.head.head for answered in found}) < len(found)


@pytest.mark.holds("rogue-revoker")
async def test_only_the_signer_revokes_and_only_in_scope(world: World) -> None:
    hospital = world.pki.person("p-recall", "recall", sites=(EVERY,))
    with pytest.raises(Refused) as caught:
        await world.revoke(hospital, revocation(world.operator, PUMP))
    assert caught.value.reason is Reason.SIGNER_NOT_CALLER
    assert (await world.revoke(hospital, revocation(hospital, PUMP))).epoch == 1
    for name, scope in (
        (OTHER, Scope.DEVICE),
        ("dev-cccccccccccccccc", Scope.DEVICE),
        ("principal/p-stranger", Scope.CREDENTIAL),
        (FIRMWARE.hex(), Scope.BUILD),
        (os.urandom(32).hex(), Scope.SIGNER),
    ):
        with pytest.raises(Refused) as caught:
            await world.revoke(hospital, revocation(hospital, name, scope=scope))
        assert caught.value.reason is Reason.NOT_IN_SCOPE, (name, scope)
    maker = world.pki.person("p-maker", "recall", organization="maker", sites=(EVERY,))
    build = revocation(maker, FIRMWARE.hex(), scope=Scope.BUILD, effect=RevocationEffect.CORRECTIVE_ONLY)
    assert (await world.revoke(maker, build)).epoch == 2
    nurse = world.pki.person("p-nurse", "technician")
    with pytest.raises(Refused) as caught:
        await world.revoke(nurse, revocation(nurse, PUMP))
    assert caught.value.reason is Reason.ROLE_NOT_PERMITTED


async def test_people_see_what_concerns_their_organization(world: World) -> None:
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    await world.revoke(world.operator, revocation(world.operator, OTHER))
    build = revocation(world.operator, FIRMWARE.hex(), scope=Scope.BUILD)
    await world.revoke(world.operator, build)
    nurse = world.people(world.pki.person("p-nurse", "technician"))
    listed = await nurse.ListRevocations(revocation_pb2.ListRevocationsRequest(), timeout=10)
    assert [entry.epoch for entry in listed.entries] == [1, 3]
    assert (await nurse.GetRevocation(revocation_pb2.GetRevocationRequest(epoch=3), timeout=10)).epoch == 3
    for hidden in (2, 4, 2**63, 2**64 - 1):
        with pytest.raises(Refused) as caught:
            await translated(
                nurse.GetRevocation(revocation_pb2.GetRevocationRequest(epoch=hidden), timeout=10)
            )
        assert caught.value.reason is Reason.NOT_IN_SCOPE
    pages = world.people(world.operator)
    first = await pages.ListRevocations(revocation_pb2.ListRevocationsRequest(page_size=2), timeout=10)
    request = revocation_pb2.ListRevocationsRequest(page_size=2, page_token=first.next_page_token)
    rest = await pages.ListRevocations(request, timeout=10)
    assert [entry.epoch for entry in (*first.entries, *rest.entries)] == [1, 2, 3]
    assert rest.next_page_token == ""
    for token in ("2", "x" * 2000, token_after("2", "devices"), token_after("two", "revocations")):
        request = revocation_pb2.ListRevocationsRequest(page_size=2, page_token=token)
        with pytest.raises(Refused) as caught:
            await translated(pages.ListRevocations(request, timeout=10))
        assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.holds("stolen-signers", "rogue-revoker")
async def test_signers_of_heads_and_the_last_reinstaters_are_out_of_reach(world: World) -> None:
    head = world.pki.signer_credential("head").identity.thumbprint.hex()
    for thumbprint in (head, world.pki.signer_credential("head", spare=True).identity.thumbprint.hex()):
        with pytest.raises(Refused) as caught:
            await world.revoke(world.operator, revocation(world.operator, thumbprint, scope=Scope.SIGNER))
        assert caught.value.reason is Reason.STATE_CONFLICT
    result = world.pki.signer_credential("result").identity.thumbprint.hex()
    assert (
        await world.revoke(world.operator, revocation(world.operator, result, scope=Scope.SIGNER))
    ).epoch == 1
    statement = revocation(world.operator, "principal/p-admin-2", scope=Scope.CREDENTIAL)
    with pytest.raises(Refused) as caught:
        await world.revoke(world.operator, statement)
    assert caught.value.reason is Reason.STATE_CONFLICT
    statement = revocation(world.operator, "principal/p-nurse", scope=Scope.CREDENTIAL)
    assert (await world.revoke(world.operator, statement)).epoch == 2


@pytest.mark.holds("rogue-revoker")
async def test_a_revoked_person_is_turned_away(world: World) -> None:
    recall = world.pki.person("p-recall", "recall", sites=(EVERY,))
    await world.revoke(recall, revocation(recall, PUMP))
    thumbprint = recall.identity.thumbprint.hex()
    await world.revoke(world.operator, revocation(world.operator, thumbprint, scope=Scope.CREDENTIAL))
    with pytest.raises(Refused) as caught:
        await world.revoke(recall, revocation(recall, PUMP))
    assert caught.value.reason is Reason.CREDENTIAL_REVOKED


@pytest.mark.holds("rogue-revoker")
async def test_many_revocations_need_a_second_person(world: World) -> None:
    many = [pump(n) for n in range(101)]
    with pytest.raises(Refused) as caught:
        await world.revoke(world.operator, revocation(world.operator, *many))
    assert caught.value.reason is Reason.SECOND_PERSON_REQUIRED
    with pytest.raises(Refused):  # the same person again is no second one
        await world.revoke(world.operator, revocation(world.operator, *many))
    with pytest.raises(Refused):  # other words are not the same
        await world.revoke(world.second, revocation(world.second, *many[:-1], pump(999)))
    assert (await world.revoke(world.second, revocation(world.second, *many))).epoch == 1
    await recorded(world, 2)  # both people's words, one of them the step of the chain
    for n in range(20):
        await world.revoke(world.operator, revocation(world.operator, pump(200 + n)))
    with pytest.raises(Refused) as caught:
        await world.revoke(world.operator, revocation(world.operator, pump(300)))
    assert caught.value.reason is Reason.SECOND_PERSON_REQUIRED


@pytest.mark.holds("stolen-signers", "rogue-revoker")
async def test_two_people_reinstate(world: World) -> None:
    await world.start_edge()
    statement = revocation(world.operator, PUMP, OTHER)
    await world.revoke(world.operator, statement)
    one, two = (reinstatement(who, statement, PUMP) for who in (world.operator, world.second))
    recall = world.pki.person("p-recall", "recall", sites=(EVERY,))
    refusals = [
        ([one], world.operator, Reason.SECOND_PERSON_REQUIRED),
        ([one, reinstatement(world.operator, statement, PUMP)], world.operator, Reason.APPROVER_NOT_DISTINCT),
        ([one, reinstatement(world.second, statement, OTHER)], world.operator, Reason.SECOND_PERSON_REQUIRED),
        ([one, two], recall, Reason.SIGNER_NOT_CALLER),
        (
            [reinstatement(who, statement, OTHER) for who in (world.operator, recall)],
            world.operator,
            Reason.NOT_IN_SCOPE,
        ),
        (
            [reinstatement(who, statement, pump(77)) for who in (world.operator, world.second)],
            world.operator,
            Reason.FIELD_INVALID,
        ),
    ]
    for statements, caller, reason in refusals:
        with pytest.raises(Refused) as caught:
            await world.reinstate(caller, statements)
        assert caught.value.reason is reason
    entry = await world.reinstate(world.second, [one, two])
    assert entry.epoch == 2
    assert await world.reinstate(world.second, [one, two]) == entry
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.state.epoch == 2)
    assert gateway.effect(PUMP) is None
    assert gateway.effect(OTHER) is RevocationEffect.DENY
    await gateway.stop()


# --- edges


async def test_an_edge_carries_entries_heads_and_acknowledgements(world: World) -> None:
    await world.start_edge()
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.age() < 3)
    assert (await coverage(world)).known == 1
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    await until(lambda: gateway.effect(PUMP) is RevocationEffect.DENY)
    found = await coverage(world)
    while not found.enforcing:
        await asyncio.sleep(0.02)
        found = await coverage(world)
    assert [(one.gateway_id, one.edge, one.epoch) for one in found.gateways] == [("gateway-1", "edge", 1)]
    assert gateway.ended is None
    epochs = [head.body.epoch for head in gateway.heads]
    assert epochs == sorted(epochs)
    await gateway.stop()


@pytest.mark.holds("captured-bus", "claimed-epoch")
async def test_claims_about_epochs_that_never_were_strand_nobody(world: World) -> None:
    await world.start_edge()
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    liar = Gateway(world, world.pki.gateway("gateway-2"))
    await until(lambda: liar.state.epoch == 1)
    for changes in ({"epoch": 2**63 - 1}, {"chain": bytes(32)}, {"era": 7}):
        await liar.acknowledge(**changes)
    honest = Gateway(world, world.pki.gateway())
    await until(lambda: honest.state.epoch == 1)
    await world.head(after_epoch=2**63, max_entries=10)
    await world.head(after_epoch=2**64 - 1, max_entries=10)
    metrics = world.running["revocation"].process.metrics
    name = "vigil_revocation_acknowledgements_ignored_total"
    await until(lambda: (metrics.get_sample_value(name, {"reason": "EPOCH_ROLLED_BACK"}) or 0) >= 3)
    found = await coverage(world)
    while not found.enforcing:
        await asyncio.sleep(0.02)
        found = await coverage(world)
    assert [one.epoch for one in found.gateways] == [1]
    await liar.stop()
    channel = world.channel(world.pki.gateway("gateway-3"), "edge")
    call: Any = revocation_pb2_grpc.EdgeServiceStub(channel).Follow()  # type: ignore[no-untyped-call]
    start = revocation_pb2.FollowStart(epoch=2**63, chain=bytes(32))
    await call.write(revocation_pb2.FollowRequest(gateway_id="gateway-3", start=start))
    await world.revoke(world.operator, revocation(world.operator, OTHER))
    await until(lambda: honest.state.epoch == 2)
    call.cancel()
    await honest.stop()


async def test_a_gateway_that_is_revoked_is_cut(world: World) -> None:
    await world.start_edge()
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.age() < 3)
    await world.revoke(world.operator, revocation(world.operator, "gateway-1", scope=Scope.GATEWAY))
    await until(lambda: gateway.ended is not None)
    assert isinstance(gateway.ended, grpc.aio.AioRpcError)
    assert from_rpc_error(gateway.ended).reason is Reason.GATEWAY_REVOKED


async def test_a_reader_far_behind_catches_up_in_batches(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.start()
        await world.start_edge()
        await world.stop_one("edge")
        await world.stop_one("revocation")
        fill(world, 2_300)
        await world.start_revocation()
        await world.start_edge()
        gateway = Gateway(world, world.pki.gateway())
        await until(lambda: gateway.state.epoch == 2_300)
        assert gateway.entries == list(range(1, 2_301))
        await gateway.stop()
        await world.stop_one("edge")
        await world.start_edge()
        metrics = world.running["edge"].process.metrics
        again = Gateway(world, world.pki.gateway())
        await until(lambda: again.state.epoch == 2_300)
        assert metrics.get_sample_value("vigil_edge_polls_failed_total") == 0
        await again.stop()


def fill(world: World, count: int) -> None:
    """Write a long chain as the service does, without its thresholds."""
    database = open_database(
        world.folder / "revocation" / "revocation.db",
        metadata=store.METADATA,
        migrations="vigil.revocation.migrations",
    )
    statements = [revocation(world.operator, pump(n)) for n in range(count)]

    def run(connection: Connection) -> None:
        chain = EMPTY_CHAIN
        for epoch, statement in enumerate(statements, 1):
            chain = chain_hash(chain, epoch, [statement.digest])
            value = revocation_pb2.RevocationEntry(epoch=epoch, statements=[statement.data], chain=chain)
            store.put_entry(
                connection,
                store.NewEntry(
                    epoch=epoch,
                    chain=chain,
                    value=value.SerializeToString(),
                    digests=(statement.digest,),
                    revoker="p-admin-1",
                    revoker_organization="operator",
                    organization="",
                    ids=1,
                    alone=False,
                    create_time=1,
                ),
            )

    database.write_now(run)
    database.close()


# --- the bus


@pytest.mark.holds("captured-bus", "redis-outages")
async def test_the_bus_brings_a_revocation_at_once_and_its_death_costs_a_second(
    tmp_path: Path, bus: RedisServer
) -> None:
    async with a_world(tmp_path) as world:
        world.redis_url = bus.url
        await world.start()
        await world.start_edge()
        metrics = world.running["edge"].process.metrics
        gateway = Gateway(world, world.pki.gateway())
        await until(lambda: gateway.age() < 3)
        async with redis.asyncio.from_url(bus.url) as client:
            for _ in range(200):
                if dict(await client.pubsub_numsub(CHANNEL)).get(CHANNEL.encode()):
                    break
                await asyncio.sleep(0.02)
        await world.revoke(world.operator, revocation(world.operator, PUMP))
        await until(lambda: gateway.effect(PUMP) is not None)
        await until(
            lambda: sum(
                metrics.get_sample_value("vigil_edge_bus_messages_total", {"outcome": outcome}) or 0
                for outcome in ("taken", "known")
            )
        )
        await bus.kill()
        await world.revoke(world.operator, revocation(world.operator, OTHER))
        await until(lambda: gateway.effect(OTHER) is not None)
        service = world.running["revocation"].process.metrics
        await until(lambda: service.get_sample_value("vigil_revocation_publish_failed_total"))
        assert gateway.ended is None
        await gateway.stop()


@pytest.mark.holds("captured-bus", "hostile-bus")
async def test_what_a_captured_bus_says_is_ignored_and_counted(tmp_path: Path, bus: RedisServer) -> None:
    async with a_world(tmp_path) as world:
        world.redis_url = bus.url
        await world.start()
        first = await world.revoke(world.operator, revocation(world.operator, PUMP))
        old = await world.head(after_epoch=0, max_entries=10)
        second = await world.revoke(world.operator, revocation(world.operator, OTHER))
        new = await world.head(after_epoch=0, max_entries=10)
        # An edge that only hears the bus: what it takes, it took from there.
        world.ports["revocation"], real = 1, world.ports["revocation"]
        await world.start_edge()
        edge = world.running["edge"]
        gateway = Gateway(world, world.pki.gateway())

        def counted(outcome: str) -> float:
            name = "vigil_edge_bus_messages_total"
            return edge.process.metrics.get_sample_value(name, {"outcome": outcome}) or 0.0

        async def say(outcome: str, *, head: bytes, entries: Any = ()) -> None:
            message = revocation_pb2.BusMessage(entries=entries, head=head)
            before = counted(outcome)
            for _ in range(300):
                if await client.publish(CHANNEL, message.SerializeToString()):
                    break
                await asyncio.sleep(0.02)
            await until(lambda: counted(outcome) > before)

        person = scribe_of(world.operator)
        forger = scribe_of(world.pki.signer_credential("result"))
        claim = bodies.Head(epoch=2**63 - 1, chain=bytes(32), era=0, issued=1)
        async with redis.asyncio.from_url(bus.url) as client:
            await say("malformed", head=b"\xff\xff")
            await say("malformed", head=person.sign(claim, subject="x").data[:-1])
            await say("forged", head=forger.sign(claim, subject="x").data)
            await say("forged", head=person.sign(claim, subject="x").data, entries=[first, second])
            altered = revocation_pb2.RevocationEntry()
            altered.CopyFrom(second)
            altered.statements[0] = revocation(world.second, OTHER).data
            await say("forged", head=new.head.head, entries=[first, altered])
            await say("gap", head=new.head.head, entries=[second])
            assert gateway.heads == []
            await say("taken", head=new.head.head, entries=[second, first])
            await until(lambda: gateway.state.epoch == 2)
            await say("known", head=new.head.head, entries=[first, second])
            await say("known", head=old.head.head, entries=[first])
        assert gateway.ended is None
        # A head that nobody asked for gives no lease, however often the bus repeats it.
        assert gateway.age() == float("inf")
        world.ports["revocation"] = real
        await gateway.stop()


# --- ends and beginnings


@pytest.mark.holds("killed-between-steps")
async def test_a_restart_of_service_and_edge_loses_nothing(world: World) -> None:
    await world.start_edge()
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.state.epoch == 1)
    await world.stop_one("revocation")
    await world.start_revocation()
    assert (await world.revoke(world.operator, revocation(world.operator, OTHER))).epoch == 2
    await until(lambda: gateway.state.epoch == 2)
    assert gateway.ended is None
    await gateway.stop()


@pytest.mark.holds("restored-revocations")
async def test_a_restored_database_does_not_unrevoke(world: World) -> None:
    database = world.folder / "revocation"
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    await world.stop_one("revocation")
    shutil.copytree(database, world.folder / "copy")
    await world.start_revocation()
    later = revocation(world.operator, OTHER)
    entry = await world.revoke(world.operator, later)
    pair = [reinstatement(who, later) for who in (world.operator, world.second)]
    freed = await world.reinstate(world.operator, pair)
    last = await world.revoke(world.operator, revocation(world.operator, pump(5)))
    await recorded(world, 3 + 2)
    await world.stop_one("revocation")
    shutil.rmtree(database)
    (world.folder / "copy").rename(database)
    await world.start_revocation()
    answered = await world.head(after_epoch=0, max_entries=10)
    assert [one.chain for one in answered.entries[1:]] == [entry.chain, freed.chain, last.chain]
    assert list(answered.entries[1:]) == [entry, freed, last]
    assert read(answered.head.head, Head).body.chain == last.chain


async def recorded(world: World, count: int) -> None:
    """Wait until the log has that many statements."""
    metrics = world.running["evidence"].process.metrics
    await until(lambda: (metrics.get_sample_value("vigil_evidence_size") or 0) >= count)


@pytest.mark.holds("restored-revocations")
async def test_the_root_and_two_people_open_an_era_and_a_restore_keeps_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await world.revoke(world.operator, revocation(world.operator, PUMP))
    await world.start_edge()
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.state.epoch == 1)
    await world.stop_one("revocation")
    folder = world.folder / "revocation" / "root-statements"
    folder.mkdir()
    floor = SystemClock().now()
    said = f"--era=1 --floor={floor} --epoch=2 --chain={entry.chain.hex()} --reason=repaired"
    for count, (name, data) in enumerate(signed_era(world, monkeypatch, said).items()):
        (folder / f"{name}.cose").write_bytes(data)
        if count == 1:  # the root and one person: not enough
            await world.start_revocation()
            assert read((await world.head()).head.head, Head).body.era == 0
            await world.stop_one("revocation")
    await world.start_revocation()
    await until(lambda: gateway.state.era == 1)
    assert gateway.state.effect(bodies.Scope.DEVICE, PUMP, at=0) is bodies.RevocationEffect.DENY
    assert gateway.ended is None
    await gateway.stop()
    later = await world.revoke(world.operator, revocation(world.operator, OTHER))
    await recorded(world, 1 + 3 + 1)
    await world.stop_one("revocation")
    shutil.rmtree(world.folder / "revocation")
    await world.start_revocation()
    body = read((await world.head()).head.head, Head).body
    assert (body.era, body.epoch, body.chain) == (1, 3, later.chain)


@pytest.mark.holds("restored-revocations")
async def test_nothing_is_served_before_the_log_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.start(evidence=False, revocation=False)
        starting = asyncio.create_task(world.start_revocation())
        await asyncio.sleep(1.0)
        assert not starting.done()
        assert world.running["revocation"].port == 0
        # The configuration named this address before anybody listened there.
        world.running["revocation"].process.stop()
        world.running["revocation"].task.cancel()
        starting.cancel()
        await asyncio.gather(starting, world.running.pop("revocation").task, return_exceptions=True)
        await world.start_evidence()
        await world.start_revocation()
        await world.head()


@pytest.mark.holds("killed-between-steps", "redis-outages")
async def test_killed_between_commit_and_publish_the_poll_brings_it(tmp_path: Path, bus: RedisServer) -> None:
    async with a_world(tmp_path) as world:
        await world.start(revocation=False)
        # A bus that accepts and never answers: the commit is durable, the publication hangs.
        silent = await asyncio.start_unix_server(_never_answer, path=str(bus.folder / "silent.sock"))
        folder = world.folder / "revocation"
        folder.mkdir()
        config = world.revocation_config(redis_url=f"unix://{bus.folder}/silent.sock")
        values = config.model_dump(exclude_none=True, exclude={"peers", "edges"})
        text = toml({**{name: str(value) for name, value in values.items()}, "peers": config.peers})
        (folder / "revocation.toml").write_text(text)
        process = await _spawn(folder / "revocation.toml")
        world.ports["revocation"] = await _ready(process)
        await world.start_edge()
        gateway = Gateway(world, world.pki.gateway())
        await until(lambda: gateway.age() < 3)
        entry = await world.revoke(world.operator, revocation(world.operator, PUMP))
        process.kill()
        await process.wait()
        assert entry.epoch == 1
        again = await _spawn(folder / "revocation.toml", port=world.ports["revocation"])
        await _ready(again)
        await until(lambda: gateway.effect(PUMP) is not None)
        assert (await world.revoke(world.operator, revocation(world.operator, OTHER))).epoch == 2
        await gateway.stop()
        again.terminate()
        assert await again.wait() == 0
        silent.close()
        await silent.wait_closed()


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


def _listen_on(config: Path, port: int) -> None:
    config.write_text(config.read_text().replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"'))


async def _spawn(config: Path, *, port: int = 0) -> asyncio.subprocess.Process:
    if port:
        _listen_on(config, port)
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "vigil.revocation", "--config", str(config), "--ready-fd", str(writing)),
        pass_fds=(writing,),
        env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(writing)
    process.ready_pipe = reading  # type: ignore[attr-defined]
    return process


async def _ready(process: asyncio.subprocess.Process) -> int:
    pipe = process.ready_pipe  # type: ignore[attr-defined]
    line = await asyncio.to_thread(os.read, pipe, 4096)
    os.close(pipe)
    return int(json.loads(line)["port"])


@pytest.mark.holds("killed-between-steps")
async def test_a_second_process_stands_by_and_takes_over(world: World) -> None:
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    standby = asyncio.create_task(
        world._run(
            "standby",
            lambda process: _serve_standby(world, process),
        )
    )
    await asyncio.sleep(1.0)
    assert not standby.done()
    await world.stop_one("revocation")
    await asyncio.wait_for(standby, 10)
    world.ports["revocation"] = world.ports["standby"]
    assert read((await world.head()).head.head, Head).body.epoch == 1


async def _serve_standby(world: World, process: Any) -> None:
    spare = world.pki.signer_credential("head", spare=True).tls_files
    await serve(
        world.revocation_config(
            instance="standby",
            listen="127.0.0.1:0",
            signer_certificate=spare.certificate,
            signer_key=spare.key,
        ),
        process,
    )
