"""The command path with a lease and decisions: what goes through, what is refused where, and what is remembered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from tests.support.evidence import EvidenceProcess
from tests.support.pki import DEVICE
from tests.unit.gateway.world import HOUR, Caller, Edge, Policy, Pump, World, eventually, reason_of
from vigil.api.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused, refused
from vigil.gateway import command_store
from vigil.rpc import status
from vigil.rpc.stream_server import serve_exchange

GIVEN_UP = 1.5
"""Seconds a caller waits in tests where the device stays silent."""
UNKNOWN = (Reason.OUTCOME_UNKNOWN, Reason.DEADLINE_EXCEEDED)
"""The gateway says it just before its caller gives up; where that comes late, the caller has given up."""


@dataclass
class Hospital:
    world: World
    edge: Edge
    policy: Policy
    pump: Pump
    me: Caller

    async def command(self, command_id: str) -> pb.CommandRecord:
        request = pb.GetCommandRequest(command_id=command_id)
        record: pb.CommandRecord = await status.translated(self.me.commands.GetCommand(request, timeout=10))
        return record

    async def until(self, command_id: str, outcome: str) -> pb.CommandRecord:
        """Wait until the record of a command says so."""
        async with asyncio.timeout(15):
            while True:
                with suppress(Refused):  # not kept yet
                    record = await self.command(command_id)
                    if record.outcome == outcome:
                        return record
                await asyncio.sleep(0.02)

    async def commands(self) -> list[pb.CommandRecord]:
        listed = await status.translated(self.me.commands.ListCommands(pb.ListCommandsRequest(), timeout=10))
        return list(listed.commands)


@asynccontextmanager
async def hospital(world: World) -> AsyncIterator[Hospital]:
    """Edge, policy, gateway with a lease, one connected pump, one technician."""
    world.seed()
    edge, policy = Edge(world), Policy(world)
    async with (
        world.serving("edge", edge.servicer()) as edge_address,
        world.serving("policy", policy.servicer()) as policy_address,
    ):
        world.edges = (edge_address,)
        world.peers["policy"] = policy_address
        async with world.running(), world.pump() as pump, world.caller(world.technician) as me:
            await edge.enforced(0)
            yield Hospital(world, edge, policy, pump, me)


@pytest.fixture
async def at(world: World) -> AsyncIterator[Hospital]:
    async with hospital(world) as one:
        yield one


async def test_a_decided_command_reaches_the_pump_as_one_bundle(at: Hospital) -> None:
    answer = await at.me.give("diagnose")
    assert read(answer.receipts[0], b.Receipt).body.outcome is b.Outcome.APPLIED
    assert read(answer.decision, b.Decision).body.answer is b.Answer.ALLOW
    bundle = (await at.pump.got("bundle")).bundle
    assert bundle.permit == answer.decision
    assert bundle.permit_recorded == answer.recorded
    assert len(bundle.statements_recorded) == 1
    record = await at.command(answer.command_id)
    assert (record.outcome, record.action, record.work_order) == ("applied", "diagnose", "WO-1")
    assert (record.command, record.decision) == (bundle.command, answer.decision)
    assert list(record.receipts) == list(answer.receipts)
    assert await at.world.gateway.spool.waiting() == 1


async def test_the_nonce_comes_with_a_newer_profile_once(at: Hospital) -> None:
    # The pump said hello with version 1; its welcome brought version 2.
    assert (await at.pump.got("welcome")).welcome.profile == at.world.profile.data
    prepared = await at.me.prepare("diagnose")
    assert prepared.profile == at.world.profile.data
    assert (await at.pump.got("nonce")).nonce.profile == b""
    assert list(prepared.attestation_chain) == list(at.world.attesters[DEVICE].chain)


async def test_the_same_command_again_gets_the_same_answer_and_runs_once(at: Hospital) -> None:
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    first, second = await asyncio.gather(at.me.submit(intent, command), at.me.submit(intent, command))
    third = await at.me.submit(intent, command)
    assert first == second == third
    assert len([one for one in at.pump.seen if one.WhichOneof("message") == "bundle"]) == 1


@pytest.mark.holds("swallowed-receipt")
async def test_the_same_command_after_a_restart_gets_the_same_answer(world: World) -> None:
    async with hospital(world) as at:
        prepared = await at.me.prepare("diagnose")
        intent = world.intent("diagnose")
        command = world.command(intent, prepared.nonce)
        first = await at.me.submit(intent, command)
    async with world.running(), world.caller(world.technician) as me:
        assert await me.submit(intent, command) == first


async def test_a_refusal_by_policy_is_told_kept_and_repeated(at: Hospital) -> None:
    at.policy.refusing = Reason.PATIENT_CONNECTED
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    assert await reason_of(at.me.submit(intent, command)) is Reason.PATIENT_CONNECTED
    record = await at.command(command.digest.hex())
    assert (record.outcome, record.reason) == ("refused", "PATIENT_CONNECTED")
    assert read(record.decision, b.Decision).body.answer is b.Answer.REFUSE
    at.policy.refusing = None
    assert await reason_of(at.me.submit(intent, command)) is Reason.PATIENT_CONNECTED
    assert len(at.policy.items) == 1
    assert not any(one.WhichOneof("message") == "bundle" for one in at.pump.seen)


async def test_a_late_decision_refuses(at: Hospital) -> None:
    at.policy.hold = asyncio.Event()
    assert await reason_of(at.me.give("diagnose")) is Reason.POLICY_UNAVAILABLE
    at.policy.hold.set()
    (record,) = await at.commands()
    assert (record.outcome, record.reason) == ("refused", "POLICY_UNAVAILABLE")
    assert not any(one.WhichOneof("message") == "bundle" for one in at.pump.seen)


@pytest.mark.holds("captured-policy")
async def test_a_decision_about_another_command_is_none(at: Hospital) -> None:
    at.policy.mistaken = at.world.command(at.world.intent("diagnose"), bytes(16))
    assert await reason_of(at.me.give("diagnose")) is Reason.POLICY_UNAVAILABLE


@pytest.mark.holds("stolen-technician")
async def test_revocation_is_looked_at_again_after_the_decision(at: Hospital) -> None:
    at.policy.hold = asyncio.Event()
    giving = asyncio.create_task(reason_of(at.me.give("diagnose")))
    await eventually(lambda: at.policy.items)
    # The caller's credential would already end the call; what policy decided about stands or falls here.
    at.edge.revoke(b.Scope.DEVICE, DEVICE)
    at.edge.push()
    await at.edge.enforced(1)
    at.policy.hold.set()
    assert await giving is Reason.DEVICE_REVOKED
    assert not any(one.WhichOneof("message") == "bundle" for one in at.pump.seen)


@pytest.mark.holds("swallowed-receipt")
async def test_no_receipt_means_unknown_and_a_later_one_settles_it(at: Hospital) -> None:
    at.pump.outcomes = []
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    assert await reason_of(at.me.submit(intent, command, seconds=GIVEN_UP)) in UNKNOWN
    assert (await at.command(command.digest.hex())).outcome == "unknown"
    # Asked again, by the very command or by request id, the pump is never told to do it again.
    assert await reason_of(at.me.submit(intent, command, seconds=5)) is Reason.OUTCOME_UNKNOWN
    at.pump.kept[intent.body.request_id] = [at.pump.receipt(intent, command.digest, b.Outcome.APPLIED)]
    request = pb.GetReceiptRequest(device_id=DEVICE, request_id=intent.body.request_id)
    found = await status.translated(at.me.commands.GetReceipt(request, timeout=10))
    assert read(found.receipts[0], b.Receipt).body.outcome is b.Outcome.APPLIED
    assert (await at.command(command.digest.hex())).outcome == "applied"
    assert await at.me.submit(intent, command) == found
    assert len([one for one in at.pump.seen if one.WhichOneof("message") == "bundle"]) == 1


@pytest.mark.holds("killed-between-steps")
async def test_what_the_device_has_no_record_of_is_unknown_no_longer(at: Hospital) -> None:
    at.pump.outcomes = []
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    assert await reason_of(at.me.submit(intent, command, seconds=GIVEN_UP)) in UNKNOWN
    nothing = refused(Reason.RESOURCE_NOT_FOUND, "the device has no record of such a request")
    at.pump.forgot = status.to_status(nothing)
    request = pb.GetReceiptRequest(device_id=DEVICE, request_id=intent.body.request_id)
    asked = status.translated(at.me.commands.GetReceipt(request, timeout=10))
    assert await reason_of(asked) is Reason.RESOURCE_NOT_FOUND
    record = await at.command(command.digest.hex())
    assert (record.outcome, record.reason) == ("refused", "RESOURCE_NOT_FOUND")
    # The very command is worth nothing any more; the request is as good as ever.
    assert await reason_of(at.me.submit(intent, command, seconds=5)) is Reason.RESOURCE_NOT_FOUND
    at.pump.outcomes = [b.Outcome.APPLIED]
    another = at.world.command(intent, (await at.me.prepare("diagnose")).nonce)
    answer = await at.me.submit(intent, another)
    assert read(answer.receipts[-1], b.Receipt).body.outcome is b.Outcome.APPLIED
    assert (await at.command(command.digest.hex())).outcome == "refused"


async def test_a_staged_command_is_followed_to_its_end(at: Hospital) -> None:
    at.pump.outcomes = [b.Outcome.ACCEPTED, b.Outcome.STAGED]
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    answer = await at.me.submit(intent, command)
    assert len(answer.receipts) == 2
    assert (await at.command(answer.command_id)).outcome == "staged"
    late = at.pump.receipt(intent, command.digest, b.Outcome.APPLIED, 3)
    await at.pump.say(receipt=pb.DeviceReceipt(receipts=[late]))
    assert len((await at.until(answer.command_id, "applied")).receipts) == 3


async def test_an_earlier_command_of_an_intent_follows_the_receipts_that_answer_a_later_one(
    at: Hospital,
) -> None:
    at.pump.outcomes = [b.Outcome.STAGED]
    intent = at.world.intent("diagnose")
    first = at.world.command(intent, (await at.me.prepare("diagnose")).nonce)
    staged = (await at.me.submit(intent, first)).receipts[0]
    at.pump.outcomes = []
    second = at.world.command(intent, (await at.me.prepare("diagnose")).nonce)
    asking = asyncio.create_task(at.me.submit(intent, second))
    bundle = (await at.pump.got("bundle", 2)).bundle
    # The request is known: what became of it is the answer, in receipts that name the first command.
    ended = at.pump.receipt(intent, first.digest, b.Outcome.ABANDONED, 2)
    await at.pump.say(receipt=pb.DeviceReceipt(call_id=bundle.call_id, receipts=[staged, ended]))
    await asking
    outcomes = [(await at.command(one.digest.hex())).outcome for one in (first, second)]
    assert outcomes == ["abandoned", "abandoned"]


@pytest.mark.holds("storage-failures")
async def test_what_a_failing_disk_did_not_take_is_kept_as_what_the_device_said_last(
    at: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise refused(Reason.STORAGE_UNAVAILABLE, "the disk is full")

    at.pump.outcomes = [b.Outcome.STAGED]
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    with monkeypatch.context() as patched:
        patched.setattr(command_store, "put_command", full)
        assert await reason_of(at.me.submit(intent, command)) is Reason.STORAGE_UNAVAILABLE
        # The row is owed; meanwhile the device goes on, and that is kept.
        applied = at.pump.receipt(intent, command.digest, b.Outcome.APPLIED, 2)
        await at.pump.say(receipt=pb.DeviceReceipt(receipts=[applied]))
        await at.pump.got("receipts_kept")
        with pytest.raises(Refused):
            await at.command(command.digest.hex())
    await at.until(command.digest.hex(), "applied")


async def test_what_happened_while_a_pump_was_gone_is_asked_for_when_it_returns(at: Hospital) -> None:
    at.pump.outcomes = []
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    giving = asyncio.create_task(at.me.submit(intent, command, seconds=15))
    await at.pump.got("bundle")
    await at.pump.close()
    async with at.world.caller(at.world.devices[DEVICE]) as caller:
        back = Pump(at.world, DEVICE, caller.link)
        back.kept[intent.body.request_id] = [back.receipt(intent, command.digest, b.Outcome.APPLIED)]
        await back.connect()
        answer = await giving
        await back.close()
    assert read(answer.receipts[0], b.Receipt).body.outcome is b.Outcome.APPLIED


@pytest.mark.holds("speaks-as-another", "malicious-gateway")
@pytest.mark.parametrize("spoilt", ["signer", "device", "bytes"])
async def test_a_receipt_that_is_not_the_pumps_own_is_nothing(at: Hospital, spoilt: str) -> None:
    at.pump.outcomes = []
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    giving = asyncio.create_task(at.me.submit(intent, command, seconds=GIVEN_UP))
    bundle = (await at.pump.got("bundle")).bundle
    if spoilt == "signer":
        at.world.attesters[DEVICE] = at.world.pki.attester("dev-bbbbbbbbbbbbbbbb")
    device = "dev-bbbbbbbbbbbbbbbb" if spoilt == "device" else DEVICE
    data = bytearray(at.pump.receipt(intent, command.digest, b.Outcome.APPLIED, device=device))
    if spoilt == "bytes":
        data[data.index(b"applied")] ^= 1
    await at.pump.say(receipt=pb.DeviceReceipt(call_id=bundle.call_id, receipts=[bytes(data)]))
    assert await reason_of(giving) in UNKNOWN
    assert (await at.command(command.digest.hex())).outcome == "unknown"


async def test_a_signed_refusal_by_the_pump_is_its_receipt(at: Hospital) -> None:
    at.pump.outcomes = [b.Outcome.REFUSED]
    answer = await at.me.give("diagnose")
    assert read(answer.receipts[0], b.Receipt).body.outcome is b.Outcome.REFUSED
    assert (await at.command(answer.command_id)).outcome == "refused"


async def test_an_unsigned_refusal_by_the_pump_is_told_as_such(at: Hospital) -> None:
    at.pump.outcomes = []
    prepared = await at.me.prepare("diagnose")
    intent = at.world.intent("diagnose")
    command = at.world.command(intent, prepared.nonce)
    giving = asyncio.create_task(reason_of(at.me.submit(intent, command)))
    bundle = (await at.pump.got("bundle")).bundle
    error = status.to_status(refused(Reason.NONCE_EXPIRED, "the nonce has lapsed"))
    await at.pump.say(receipt=pb.DeviceReceipt(call_id=bundle.call_id, error=error))
    assert await giving is Reason.NONCE_EXPIRED


async def test_a_preview_tells_everything_at_once(at: Hospital) -> None:
    at.policy.refusing = Reason.APPROVALS_MISSING
    await at.pump.close()
    await eventually(lambda: at.world.gateway.sessions.get(DEVICE) is None)
    request = pb.PreviewCommandRequest(device_id=DEVICE, intent=at.world.intent("diagnose").data)
    preview = await status.translated(at.me.commands.PreviewCommand(request, timeout=10))
    refusals = [one.reason for one in status.from_status(preview.refusal).refusals]
    assert not preview.allowed
    assert refusals == [Reason.DEVICE_OFFLINE, Reason.APPROVALS_MISSING]
    assert preview.policy_revision == "r1"
    assert not at.policy.items


async def test_following_a_pump_until_its_ten_minutes_without_a_lease_are_over(at: Hospital) -> None:
    stream = at.me.devices.FollowDevice(pb.FollowDeviceRequest(device_id=DEVICE), timeout=30)
    assert (await at.pump.got("status_interval")).status_interval.interval_ms > 0
    await at.pump.say(status=pb.DeviceStatus(boot_count=7))
    report = await stream.read()
    assert (report.status.boot_count, report.degraded, report.trust_status) == (7, False, "none")
    at.edge.answering = False
    at.world.clock.ahead_s = 60.0
    await at.pump.say(status=pb.DeviceStatus(boot_count=8))
    assert (await stream.read()).degraded
    at.world.clock.ahead_s = 700.0
    await at.pump.say(status=pb.DeviceStatus(boot_count=9))
    assert await reason_of(status.translated(_read(stream))) is Reason.LEASE_EXPIRED
    assert (await at.pump.got("status_interval", 2)).status_interval.interval_ms == 0


async def _read(stream: object) -> object:
    return await stream.read()  # type: ignore[attr-defined]


async def test_a_quota_refuses_and_leaves_safety_alone(world: World) -> None:
    world.quotas = {"commands": 2}
    async with hospital(world) as at:
        for _ in range(2):
            await at.me.prepare("diagnose")
        assert await reason_of(at.me.prepare("diagnose")) is Reason.QUOTA_EXCEEDED
        assert (await at.me.prepare("quarantine")).nonce


@pytest.mark.holds("floods-by-credential", "stolen-technician")
async def test_reading_without_a_lease_has_a_smaller_quota(world: World) -> None:
    world.quotas = {"degraded": 2}
    async with hospital(world) as at:
        for _ in range(4):
            await at.me.prepare("diagnose")
        at.edge.answering = False
        at.world.clock.ahead_s = 60.0
        for _ in range(2):
            await at.me.prepare("diagnose")
        assert await reason_of(at.me.prepare("diagnose")) is Reason.QUOTA_EXCEEDED
        assert (await at.me.prepare("quarantine")).nonce


class Appraiser(attestation_pb2_grpc.AttestationServiceServicer):
    """Gives every submission a fresh result."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.items: list[attestation_pb2.AttestItem] = []

    async def Attest(self, request_iterator: object, _context: object) -> AsyncIterator[object]:  # noqa: N802
        async def serve(item: attestation_pb2.AttestItem) -> attestation_pb2.AttestOutcome:
            self.items.append(item)
            if item.WhichOneof("message") == "challenge":
                challenge = attestation_pb2.Challenge(nonce=b"n" * 16)
                return attestation_pb2.AttestOutcome(challenge=challenge)
            return attestation_pb2.AttestOutcome(result=self.world.result(item.device_id).data)

        answers = serve_exchange(
            request_iterator,  # type: ignore[arg-type]
            serve,
            unpack=lambda request: request.items,
            pack=lambda items: attestation_pb2.AttestResponse(items=items),
            failed=lambda call_id, error: attestation_pb2.AttestOutcome(call_id=call_id, error=error),
        )
        async for answer in answers:
            yield answer


async def test_a_pump_attests_first_where_its_class_asks_for_it(world: World) -> None:
    appraiser = Appraiser(world)
    servicer = (
        attestation_pb2_grpc.add_AttestationServiceServicer_to_server,
        appraiser,
        "vigil.api.attestation.v1.AttestationService",
    )
    async with world.serving("attestation", servicer) as address:
        world.peers["attestation"] = address
        async with hospital(world) as at:

            async def attest() -> None:
                submission = attestation_pb2.Submission(evidence=b"eat")
                await at.pump.say(attest=attestation_pb2.AttestItem(call_id=3, submission=submission))

            at.pump.on_attest_now = attest
            prepared = await at.me.prepare("set-language")
            assert read(prepared.result, b.Result).body.device == DEVICE
            assert appraiser.items[0].device_id == DEVICE
            assert (await at.pump.got("attest")).attest.call_id == 3
            # It is fresh now: the next prepare asks for none.
            await at.me.prepare("set-language")
            assert len([one for one in at.pump.seen if one.WhichOneof("message") == "attest_now"]) == 1


async def test_intents_are_on_record_before_they_are_kept(world: World) -> None:
    evidence = EvidenceProcess(world.pki, world.folder / "log-host")
    (world.folder / "log-host").mkdir()
    await evidence.start()
    world.peers["evidence"] = evidence.address
    try:
        async with hospital(world) as at, world.caller(world.approver) as approver:
            intent = world.intent("update-firmware", parameters={"firmware": bytes(32)})
            request = pb.CreateIntentRequest(device_ids=[DEVICE], intent=intent.data)
            record = await status.translated(at.me.intents.CreateIntent(request, timeout=15))
            assert (record.state, record.approvals_needed, len(record.recorded)) == ("pending", 1, 1)
            assert list(record.device_ids) == [DEVICE]
            approval = world.approval(intent, world.approver)
            approve = pb.ApproveIntentRequest(intent_id=record.intent_id[:10], approval=approval.data)
            own = world.approval(intent, world.technician)
            mine = pb.ApproveIntentRequest(intent_id=record.intent_id, approval=own.data)
            assert (
                await reason_of(status.translated(at.me.intents.ApproveIntent(mine, timeout=15)))
                is Reason.ROLE_NOT_PERMITTED
            )
            approved = await status.translated(approver.intents.ApproveIntent(approve, timeout=15))
            again = await status.translated(approver.intents.ApproveIntent(approve, timeout=15))
            assert approved == again
            assert (approved.state, approved.approvals_given, len(approved.recorded)) == ("approved", 1, 2)
            await _submit_kept(at, intent)
            item = at.policy.items[-1]
            assert [read(one, b.Approval).digest for one in item.approvals] == [approval.digest]
            assert list(item.recorded) == list(approved.recorded)
            bundle = (await at.pump.got("bundle")).bundle
            assert list(bundle.statements_recorded) == list(approved.recorded)
            used = await status.translated(
                at.me.intents.GetIntent(pb.GetIntentRequest(intent_id=record.intent_id), timeout=10)
            )
            assert used.state == "used"
            await evidence.kill()
            second = world.intent("update-firmware", parameters={"firmware": bytes(32)})
            lost = pb.CreateIntentRequest(device_ids=[DEVICE], intent=second.data)
            refusal = await reason_of(status.translated(at.me.intents.CreateIntent(lost, timeout=15)))
            assert refusal is Reason.EVIDENCE_UNAVAILABLE
            listed = await status.translated(at.me.intents.ListIntents(pb.ListIntentsRequest(), timeout=10))
            assert [one.intent_id for one in listed.intents] == [record.intent_id]
    finally:
        if evidence.running:
            await evidence.stop()


async def _submit_kept(at: Hospital, intent: object) -> None:
    """Finish an intent with the approvals that the gateway keeps."""
    prepared = await at.me.prepare("update-firmware")
    command = at.world.command(intent, prepared.nonce)  # type: ignore[arg-type]
    await at.me.submit(intent, command)  # type: ignore[arg-type]


async def test_a_cancelled_or_voided_intent_is_worth_nothing(world: World) -> None:
    evidence = EvidenceProcess(world.pki, world.folder / "log-host")
    (world.folder / "log-host").mkdir()
    await evidence.start()
    world.peers["evidence"] = evidence.address
    try:
        async with hospital(world) as at, world.caller(world.approver) as approver:

            async def create() -> tuple[object, str]:
                intent = world.intent("diagnose", expires=world.clock.now() + HOUR)
                request = pb.CreateIntentRequest(device_ids=[DEVICE], intent=intent.data)
                record = await status.translated(at.me.intents.CreateIntent(request, timeout=15))
                return intent, record.intent_id

            async def submit(intent: object) -> object:
                prepared = await at.me.prepare("diagnose")
                return await at.me.submit(intent, world.command(intent, prepared.nonce))  # type: ignore[arg-type]

            intent, intent_id = await create()
            cancel = pb.CancelIntentRequest(intent_id=intent_id)
            not_mine = status.translated(approver.intents.CancelIntent(cancel, timeout=10))
            assert await reason_of(not_mine) is Reason.SIGNER_NOT_CALLER
            await status.translated(at.me.intents.CancelIntent(cancel, timeout=10))
            assert await reason_of(submit(intent)) is Reason.INTENT_CANCELLED
            # Taken back while policy decides: the permit is not used.
            intent, intent_id = await create()
            at.policy.hold = asyncio.Event()
            decided = len(at.policy.items)
            giving = asyncio.create_task(reason_of(submit(intent)))
            await eventually(lambda: len(at.policy.items) > decided)
            cancel = pb.CancelIntentRequest(intent_id=intent_id)
            await status.translated(at.me.intents.CancelIntent(cancel, timeout=10))
            at.policy.hold.set()
            assert await giving is Reason.INTENT_CANCELLED
            assert not any(one.WhichOneof("message") == "bundle" for one in at.pump.seen)
            # Compromise of another credential of the requester voids what that person signed.
            _, other_id = await create()

            async def state() -> str:
                request = pb.GetIntentRequest(intent_id=other_id)
                record = await status.translated(approver.intents.GetIntent(request, timeout=10))
                return str(record.state)

            at.edge.revoke(b.Scope.CREDENTIAL, "ab" * 32, reason=b.RevocationReason.COMPROMISE)
            await at.edge.enforced(1)
            assert await state() == "approved"
            at.edge.revoke(b.Scope.CREDENTIAL, "principal/p-technician", reason=b.RevocationReason.COMPROMISE)
            await at.edge.enforced(2)
            assert await state() == "cancelled"
    finally:
        await evidence.stop()
