"""A gateway with no control plane at all, started over what an earlier run had persisted: safety actions work."""

import pytest

from tests.support.pki import DEVICE
from tests.unit.gateway.world import HOUR, World, reason_of
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.api.identity.v1 import identity_pb2
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.feed import Change
from vigil.rpc import status


@pytest.mark.holds("stolen-safety")
async def test_a_safety_action_runs_after_an_offline_restart_and_is_spooled(world: World) -> None:
    world.seed()
    async with world.running():
        pass
    async with world.running() as gateway, world.pump() as pump, world.caller(world.technician) as me:
        assert gateway.revocations.lease_age() == float("inf")
        answer = await me.give("quarantine")
        (receipt,) = [read(data, b.Receipt).body for data in answer.receipts]
        assert (receipt.outcome, receipt.device) == (b.Outcome.APPLIED, DEVICE)
        assert answer.decision == b""
        bundle = (await pump.got("bundle")).bundle
        assert not bundle.HasField("permit_recorded")
        assert bundle.permit == b""
        # Intent, command and receipt wait for the log; the receipt waits for the registry.
        assert await gateway.spool.waiting() == 3
        assert await gateway.reports.waiting() == 1
    async with world.running() as gateway:
        assert await gateway.spool.waiting() == 3


@pytest.mark.holds("stolen-technician")
async def test_everything_else_is_refused_without_a_lease(world: World) -> None:
    world.seed()
    async with world.running(), world.pump(), world.caller(world.technician) as me:
        for action in ("diagnose", "set-language", "update-firmware"):
            assert await reason_of(me.prepare(action)) is Reason.LEASE_EXPIRED


@pytest.mark.holds("stolen-safety")
async def test_an_expired_safety_credential_is_borne_for_72_hours(world: World) -> None:
    world.seed()
    async with world.running(), world.pump(), world.caller(world.safety) as me:
        world.clock.ahead_s = 71 * 3600
        assert world.safety.identity.operational_until < world.clock.now()
        answer = await me.give("quarantine", not_before=world.clock.now())
        assert answer.receipts
        assert await reason_of(me.prepare("diagnose")) is Reason.CERTIFICATE_EXPIRED
        listing = me.commands.ListCommands(pb.ListCommandsRequest(), timeout=10)
        assert await reason_of(status.translated(listing)) is Reason.CERTIFICATE_EXPIRED
        world.clock.ahead_s = 73.1 * 3600
        assert await reason_of(me.prepare("quarantine")) is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("clock-steps")
@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
async def test_a_safety_action_at_once_does_not_fail_on_the_gateways_clock(world: World, ahead: int) -> None:
    world.seed()
    window = {
        "not_before": world.clock.now() - ahead,
        "expires": world.clock.now() - ahead + 600_000,
    }
    async with world.running(), world.pump(), world.caller(world.technician) as me:
        answer = await me.give("quarantine", **window)
        assert answer.receipts
        prepared = await me.prepare("quarantine")
        executor = world.safety.identity.key_thumbprint
        intent = world.intent("quarantine", requester=me.credential, executor=executor, **window)
        async with world.caller(world.safety) as other:
            command = world.command(intent, prepared.nonce, signer=world.safety)
            reason = await reason_of(other.submit(intent, command))
        assert reason is (Reason.OUTSIDE_WINDOW if ahead < 0 else Reason.INTENT_EXPIRED)


@pytest.mark.holds("stolen-technician")
async def test_an_expired_technician_is_not(world: World) -> None:
    world.seed()
    now = world.clock.now()
    technician = world.pki.person(
        "p-late", "technician", operational_until=now + HOUR, not_after=now + 48 * HOUR
    )
    async with world.running(), world.pump(), world.caller(technician) as me:
        assert (await me.prepare("quarantine")).nonce
        world.clock.ahead_s = 2 * 3600
        assert await reason_of(me.prepare("quarantine")) is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("stolen-safety")
async def test_one_person_touches_three_devices_alone_and_no_restart_or_renewal_begins_again(
    world: World,
) -> None:
    names = [f"dev-{letter * 16}" for letter in "abcd"]
    for name in names[1:]:
        world.devices[name] = world.pki.device(name)
        world.attesters[name] = world.pki.attester(name)
    world.seed(*(world.device_row(name) for name in names))

    async def quarantine(name: str) -> pb.SubmitCommandResponse:
        async with world.pump(name), world.caller(world.technician) as me:
            prepared = await me.prepare("quarantine", name)
            intent = world.intent("quarantine", devices=[name])
            command = world.command(intent, prepared.nonce, devices=[name], device=name)
            return await me.submit(intent, command, device=name)

    async with world.running():
        for name in names[:3]:
            assert (await quarantine(name)).receipts
    async with world.running(), world.pump(names[3]), world.caller(world.technician) as me:
        prepared = await me.prepare("quarantine", names[3])
        intent = world.intent("quarantine", devices=[names[3]])
        command = world.command(intent, prepared.nonce, devices=[names[3]], device=names[3])
        alone = me.submit(intent, command, device=names[3])
        assert await reason_of(alone) is Reason.SECOND_PERSON_REQUIRED
    renewed = world.pki.person(world.technician.identity.id, *world.technician.identity.roles)
    assert renewed.identity.thumbprint != world.technician.identity.thumbprint
    async with world.running(), world.pump(names[3]), world.caller(renewed) as me:
        prepared = await me.prepare("quarantine", names[3])
        intent = world.intent("quarantine", devices=[names[3]], requester=renewed)
        command = world.command(intent, prepared.nonce, signer=renewed, devices=[names[3]], device=names[3])
        alone = me.submit(intent, command, device=names[3])
        assert await reason_of(alone) is Reason.SECOND_PERSON_REQUIRED
        seconded = await me.submit(
            intent, command, device=names[3], approvals=[world.approval(intent, world.approver)]
        )
        assert seconded.receipts


@pytest.mark.holds("stolen-safety")
async def test_s1_signatures_are_checked_where_no_policy_does(world: World) -> None:
    world.seed()
    async with world.running(), world.pump(), world.caller(world.technician) as me:
        prepared = await me.prepare("quarantine")
        intent = world.intent("quarantine")
        forged = world.command(intent, prepared.nonce, signer=world.approver)
        assert await reason_of(me.submit(intent, forged)) is Reason.SIGNER_NOT_CALLER
        command = world.command(intent, prepared.nonce)
        other = world.intent("quarantine", requester=world.approver)
        stolen = world.command(other, prepared.nonce)
        # The intent is another person's, and it named no executor.
        assert await reason_of(me.submit(other, stolen)) is Reason.SIGNER_NOT_CALLER
        elsewhere = world.intent("quarantine", devices=["dev-zzzzzzzzzzzzzzzz"])
        wrong = world.sign(
            world.technician,
            b.Command(intent=elsewhere.digest, device=DEVICE, index=0, path=(), nonce=prepared.nonce),
        )
        assert await reason_of(me.submit(elsewhere, wrong)) is Reason.NOT_IN_TARGET
        assert (await me.submit(intent, command)).receipts


async def test_strangers_and_unknown_devices_get_the_same_words(world: World) -> None:
    world.seed(world.device_row(), world.device_row("dev-bbbbbbbbbbbbbbbb", site_id="site-2"))
    elsewhere = world.pki.person("p-else", "technician", sites=("site-2",))
    words = set()
    async with world.running(), world.caller(world.technician) as me, world.caller(elsewhere) as stranger:
        for caller, device in (
            (me, "dev-zzzzzzzzzzzzzzzz"),
            (me, "dev-bbbbbbbbbbbbbbbb"),
            (stranger, DEVICE),
            (stranger, "dev-bbbbbbbbbbbbbbbb"),
        ):
            try:
                await caller.prepare("quarantine", device)
            except Refused as refusal:
                words.add((refusal.reason, str(refusal), len(refusal.refusals)))
    assert len(words) == 1
    assert words.pop()[0] is Reason.NOT_IN_SCOPE


@pytest.mark.holds("impostor")
async def test_a_pending_device_connects_but_gets_no_command(world: World) -> None:
    world.seed(world.device_row(state=identity_pb2.DEVICE_STATE_PENDING))
    async with world.running(), world.pump(), world.caller(world.technician) as me:
        assert await reason_of(me.prepare("quarantine")) is Reason.STATE_CONFLICT


@pytest.mark.holds("speaks-as-another")
async def test_a_device_of_another_site_is_turned_away(world: World) -> None:
    other = "dev-bbbbbbbbbbbbbbbb"
    world.devices[other] = world.pki.device(other, sites=("site-2",))
    world.attesters[other] = world.attesters[DEVICE]
    world.seed(world.device_row(), world.device_row(other))
    async with world.running(), world.caller(world.devices[other]) as caller:
        call = caller.link.Connect()
        await call.write(pb.ConnectRequest(device_id=other, hello=pb.DeviceHello(model="aria-3000")))

        async def first() -> object:
            return await call.read()

        assert await reason_of(status.translated(first())) is Reason.NOT_IN_SCOPE


@pytest.mark.holds("speaks-as-another")
async def test_a_device_speaks_under_its_own_id_alone(world: World) -> None:
    world.seed()
    async with world.running(), world.pump() as pump:
        await pump.call.write(
            pb.ConnectRequest(device_id="dev-bbbbbbbbbbbbbbbb", status=pb.DeviceStatus(boot_count=1))
        )
        assert (await pump.ended()).reason is Reason.NOT_IN_SCOPE


@pytest.mark.holds("cloned-device")
async def test_of_two_streams_of_one_device_the_newest_wins(world: World) -> None:
    world.seed()
    async with world.running(), world.pump() as old, world.pump(), world.caller(world.technician) as me:
        assert (await old.ended()).reason is Reason.STATE_CONFLICT
        assert (await me.give("quarantine")).receipts


@pytest.mark.holds("speaks-as-another")
async def test_a_device_that_moved_away_loses_its_stream(world: World) -> None:
    world.seed()
    async with world.running() as gateway, world.pump() as pump:
        moved = Change(sequence=1, kind="device", key=DEVICE, value=b"", deleted=True, site_id="")
        gateway.directory.identity.on_change(moved)
        gateway._part_with_strangers()
        assert (await pump.ended()).reason is Reason.NOT_IN_SCOPE


async def test_people_name_a_device_as_they_know_it(world: World) -> None:
    world.seed(world.device_row(asset_tag="P-17"))
    async with world.running(), world.pump(), world.caller(world.technician) as me:
        for name in (DEVICE, f"(01)09504000059118(21){DEVICE}", f"sn-{DEVICE}", "P-17"):
            assert (await me.prepare("quarantine", name)).device_id == DEVICE
