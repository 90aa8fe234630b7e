"""The policy service as it runs: over mTLS, between its owners, with decisions on record in a real log."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.opa import OpaServer
from tests.support.pki import DEVICE, ORGANIZATION, SITE
from tests.support.policy_world import PolicyWorld, decide_item
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.policy.v1 import policy_pb2
from vigil.core import cbor
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.core.commands import RecordedProof, check_recorded
from vigil.core.digest import sha256
from vigil.core.salted import unsalted
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import check, read
from vigil.errors import Reason, Refused
from vigil.policy.engine.bundle import DEFAULT_BUNDLE
from vigil.rpc import status
from vigil.rpc.channel import Channels

EFFECT, SCOPE = b.RevocationEffect, b.Scope


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PolicyWorld]:
    async with PolicyWorld(tmp_path) as world:
        yield world


def proof(item: evidence_pb2.RecordedItem) -> RecordedProof:
    return RecordedProof(item.recorded, item.index, tuple(item.path))


def reasons(decided: policy_pb2.Decided) -> list[Reason]:
    if not decided.HasField("refusal"):
        return []
    return [one.reason for one in status.from_status(decided.refusal).refusals]


async def entry(world: PolicyWorld, digest: bytes) -> evidence_pb2.Entry:
    auditor = world.room.pki.person("p-auditor", "auditor")
    channels = Channels(tls=auditor.tls_files, trust_domain=world.room.pki.trust_domain, clock=SystemClock())
    try:
        stub: Any = evidence_pb2_grpc.EvidenceReadServiceStub(
            channels.service(world.evidence.address, "evidence")
        )
        return await status.translated(stub.GetEntry(evidence_pb2.GetEntryRequest(digest=digest)))  # type: ignore[no-any-return]
    finally:
        await channels.close()


async def test_a_permit_comes_with_every_proof_that_the_device_asks_for(world: PolicyWorld) -> None:
    room, exchange = world.room, world.exchange()
    item = room.item("update-firmware", approvers=(room.approver,))
    assert item.command is not None
    decided = (await exchange.call(decide_item(item))).decided
    assert reasons(decided) == []
    decision = read(decided.decision, b.Decision)
    signer = room.verifier.verify(decision.chain, at=room.clock.now(), kinds=frozenset({Kind.SIGNER}))
    check(decision, signer)
    body = decision.body
    assert body.answer is b.Answer.ALLOW
    assert (body.command, body.intent, body.device) == (item.command.digest, item.intent.digest, DEVICE)
    assert body.nonce == item.command.body.nonce
    assert body.profile == room.profile_statement.digest
    assert (body.boot_count, body.log_size, body.epoch, body.era) == (7, 42, 0, 0)
    assert body.action_class is b.ActionClass.U
    assert [(one.kind, dict(one.values)) for one in body.obligations] == [("stage", {"until": "idle"})]
    assert body.apply_not_after == item.intent.body.expires
    assert decision.number is not None
    check_recorded(proof(decided.recorded), decision.digest, room.verifier)
    digests = [item.intent.digest, item.approvals[0].digest]
    for recorded, digest in zip(decided.statements_recorded, digests, strict=True):
        check_recorded(proof(recorded), digest, room.verifier)
    assert read(decided.result, b.Result).body.device == DEVICE

    kept = await entry(world, decision.digest)
    assert {one.subject for one in kept.subjects} == {
        f"device/{DEVICE}",
        "person/p-technician",
        f"intent/{item.intent.digest.hex()}",
    }
    (document,) = map(unsalted, kept.bodies)
    assert body.input == sha256(document)
    question = json.loads(cbor.decode(document)["question"])
    assert question["device"] == {
        "id": DEVICE,
        "organization": ORGANIZATION,
        "site": SITE,
        "model": "aria-3000",
        "state": "active",
        "holds": 0,
    }
    assert body.bundle == (await world.status()).revision


async def test_a_permit_for_now_lives_a_minute_and_recorded_intents_are_not_appended_again(
    world: PolicyWorld,
) -> None:
    room, exchange = world.room, world.exchange()
    first = room.item(expires=room.clock.now() + 3_600_000)
    decided = (await exchange.call(decide_item(first))).decided
    body = read(decided.decision, b.Decision).body
    assert body.apply_not_after == body.decided_at + 60_000
    asked = decide_item(room.item(intent=first.intent))
    asked.recorded.extend(decided.statements_recorded)
    again = (await exchange.call(asked)).decided
    assert reasons(again) == []
    assert not again.statements_recorded
    assert read(again.decision, b.Decision).body.nonce != body.nonce


@pytest.mark.holds("captured-policy")
async def test_a_refusal_is_signed_and_on_record_too(world: PolicyWorld) -> None:
    room = world.room
    item = room.item(parameters={"pressure": 900}, work_order=None)
    decided = (await world.exchange().call(decide_item(item))).decided
    assert reasons(decided) == [Reason.PARAMETER_OUT_OF_RANGE, Reason.WORK_ORDER_MISSING]
    decision = read(decided.decision, b.Decision)
    assert decision.body.answer is b.Answer.REFUSE
    assert decision.body.nonce is None
    assert {one.reason for one in decision.body.reasons} == {"PARAMETER_OUT_OF_RANGE", "WORK_ORDER_MISSING"}
    check_recorded(proof(decided.recorded), decision.digest, room.verifier)


@pytest.mark.holds("captured-policy")
async def test_one_command_has_one_decision(world: PolicyWorld) -> None:
    exchange = world.exchange()
    item = decide_item(world.room.item())

    def copy() -> policy_pb2.DecideItem:
        return policy_pb2.DecideItem.FromString(item.SerializeToString())

    answers = await asyncio.gather(*(exchange.call(copy()) for _ in range(20)))
    stolen = await world.exchange(world.room.pki.gateway("gateway-2")).call(copy())
    assert len({answer.decided.decision for answer in (*answers, stolen)}) == 1
    assert (await world.status()).decisions == 1


@pytest.mark.holds("speaks-as-another")
async def test_another_sites_gateway_learns_nothing(world: PolicyWorld) -> None:
    foreign = world.exchange(world.room.pki.gateway("gateway-9", sites=("site-2",)))
    told = []
    for device_id in (DEVICE, "dev-cccccccccccccccc"):
        with pytest.raises(Refused) as refusal:
            await foreign.call(decide_item(world.room.item(device_id=device_id)))
        told.append(refusal.value.refusals)
    assert told[0] == told[1]
    assert [one.reason for one in told[0]] == [Reason.NOT_IN_SCOPE]
    assert (await world.status()).decisions == 0


@pytest.mark.holds("speaks-as-another")
async def test_only_gateways_ask_and_only_for_themselves(world: PolicyWorld) -> None:
    request = policy_pb2.PreviewDecisionRequest(gateway_id="gateway-1", device_id=DEVICE, intent=b"x")
    for credential in (
        world.room.technician,
        world.room.pki.service("identity"),
        world.room.pki.gateway("gateway-2"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.stub(credential).PreviewDecision(request)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.stub().PreviewDecision(request)
    assert status.from_rpc_error(error.value).reason is Reason.STATEMENT_MALFORMED


async def test_a_preview_tells_and_does_nothing(world: PolicyWorld) -> None:
    room = world.room
    intent = room.intent("update-firmware")

    async def preview(*approvals: bytes) -> policy_pb2.PreviewDecisionResponse:
        request = policy_pb2.PreviewDecisionRequest(
            gateway_id="gateway-1", device_id=DEVICE, intent=intent.data, approvals=approvals
        )
        return await world.stub().PreviewDecision(request)  # type: ignore[no-any-return]

    refused = await preview()
    assert not refused.allowed
    assert status.from_status(refused.refusal).reason is Reason.APPROVALS_MISSING
    allowed = await preview(room.approval(intent).data)
    assert allowed.allowed
    assert list(allowed.obligations) == ["stage until=idle"]
    assert not allowed.HasField("refusal")
    assert (await world.status()).decisions == 0


async def test_facts_arrive_and_count_at_once(world: PolicyWorld) -> None:
    room, exchange = world.room, world.exchange()

    async def told() -> list[Reason]:
        return reasons((await exchange.call(decide_item(room.item()))).decided)

    async def until(wanted: list[Reason]) -> None:
        async with asyncio.timeout(20):
            while True:
                if await told() == wanted:
                    return
                await asyncio.sleep(0.05)

    assert await told() == []
    await world.put(("result", DEVICE, room.result_row(status=b.TrustTier.CONTRAINDICATED)))
    await until([Reason.ATTESTATION_CONTRAINDICATED])
    await world.put(("result", DEVICE, room.result_row()))
    await until([])
    freed = room.revoke(SCOPE.CREDENTIAL, "principal/p-technician")
    await until([Reason.CREDENTIAL_REVOKED])
    room.reinstate(freed)
    await until([])
    assert (await world.status()).revocation_epoch == 2


async def test_entries_come_in_pages_and_count_only_together(world: PolicyWorld) -> None:
    world.heads.page = 2
    for number in range(9):
        world.room.revoke(SCOPE.DEVICE, f"dev-{'b' * 15}{'abcdefghi'[number]}")
    world.room.revoke(SCOPE.GATEWAY, "gateway-2")
    await world.until(revocation_epoch=10)
    with pytest.raises(Refused) as refusal:
        await world.exchange(world.room.pki.gateway("gateway-2")).call(decide_item(world.room.item()))
    assert refusal.value.reason is Reason.GATEWAY_REVOKED


@pytest.mark.parametrize("fault", ["silent", "forged"])
async def test_without_heads_that_answer_it_nothing_changes_after_three_seconds(
    world: PolicyWorld, fault: str
) -> None:
    exchange = world.exchange()
    assert reasons((await exchange.call(decide_item(world.room.item()))).decided) == []
    setattr(world.heads, fault, True)
    calls = world.heads.calls
    await world.aged("revocation", 3_001)
    assert world.heads.calls > calls
    change, reading = world.room.item(), world.room.item("read-diagnostics")
    assert reasons((await exchange.call(decide_item(change))).decided) == [Reason.REPLICA_STALE]
    assert reasons((await exchange.call(decide_item(reading))).decided) == []


async def test_a_restart_begins_with_everything_that_is_revoked(world: PolicyWorld) -> None:
    world.room.revoke(SCOPE.CREDENTIAL, "principal/p-colleague")
    await world.kill()
    await world.start()
    await world.fresh()
    assert (await world.status()).revocation_epoch == 1
    assert reasons((await world.exchange().call(decide_item(world.room.item()))).decided) == []


@pytest.mark.holds("captured-policy")
async def test_no_permit_leaves_without_its_record(world: PolicyWorld) -> None:
    room, exchange = world.room, world.exchange()
    item = decide_item(room.item())
    await world.evidence.kill()
    assert not world.evidence.running
    with pytest.raises(Refused) as refusal:
        await exchange.call(item)
    assert refusal.value.reason is Reason.EVIDENCE_UNAVAILABLE
    told = (await exchange.call(decide_item(room.item(parameters={"pressure": 9})))).decided
    assert reasons(told) == [Reason.PARAMETER_OUT_OF_RANGE]
    assert not told.HasField("recorded")
    taken = (await world.status()).decisions
    await world.evidence.start()
    # The very decision that could not be recorded is recorded now; none is taken anew.
    async with asyncio.timeout(20):
        while True:
            try:
                decided = (await exchange.call(item)).decided
                break
            except Refused:
                await asyncio.sleep(0.2)
    check_recorded(proof(decided.recorded), read(decided.decision, b.Decision).digest, room.verifier)
    assert (await world.status()).decisions == taken


async def test_a_deadline_in_the_past_refuses(world: PolicyWorld) -> None:
    item = decide_item(world.room.item())
    item.deadline_ms = world.room.clock.now() - 1
    with pytest.raises(Refused) as refusal:
        await world.exchange().call(item)
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE


@pytest.mark.holds("opa-failures")
async def test_an_opa_server_answers_the_same_and_its_absence_refuses(tmp_path: Path) -> None:
    with OpaServer(DEFAULT_BUNDLE) as server:
        await server.ready()
        url = f"http://127.0.0.1:{server.port}"
        async with PolicyWorld(tmp_path, engine="opa", opa_url=url) as world:
            exchange = world.exchange()
            assert (await world.status()).engine == "opa"
            assert reasons((await exchange.call(decide_item(world.room.item()))).decided) == []
            late = world.room.item(work_order=None)
            assert reasons((await exchange.call(decide_item(late))).decided) == [Reason.WORK_ORDER_MISSING]
            server.kill()
            gone = (await exchange.call(decide_item(world.room.item()))).decided
            assert reasons(gone) == [Reason.POLICY_UNAVAILABLE]
