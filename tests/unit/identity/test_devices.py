"""Devices: found by any name, counted, held by one and freed by two, and what a gateway's report can change."""

import os
from dataclasses import replace
from typing import Any

import pytest

from tests.support.statements import EXAMPLES
from tests.unit.identity.world import CLINIC, HOSPITAL, Bench, Caller, World
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.clock import ManualClock
from vigil.core.commands import target_root
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason

SECOND = 1000


def get(name: str) -> pb.GetDeviceRequest:
    return pb.GetDeviceRequest(device_id=name)


async def test_a_device_is_found_by_each_of_its_names(world: World) -> None:
    bench = await world.enrolled("SN-1", tag="PUMP-7")
    technician = world.person("p-t", "technician")
    carriers = (
        bench.udi,
        "0109504000059118" + "21SN-1",
        "]d2" + "0109504000059118" + "21SN-1",
        "(01)09504000059118(17)301231(10)LOT(21)SN-1",
    )
    for name in (bench.device_id, "SN-1", "PUMP-7", *carriers):
        assert (await technician.call("GetDevice", get(name))).device_id == bench.device_id, name


async def test_a_name_of_several_devices_names_them(world: World) -> None:
    benches = [await world.enrolled(f"SN-{number}", tag="ICU") for number in (1, 2)]
    elsewhere = await world.enrolled("SN-3", site="site-2", tag="ICU")
    refusal = await world.person("p-t", "technician").refusal("GetDevice", get("ICU"))
    assert refusal.reason is Reason.FIELD_INVALID
    for bench in benches:
        assert bench.device_id in refusal.refusals[0].sentence
    assert elsewhere.device_id not in str(refusal.refusals[0])
    alone = world.person("p-t2", "technician", sites=("site-2",))
    assert (await alone.call("GetDevice", get("ICU"))).device_id == elsewhere.device_id


async def test_what_is_out_of_scope_does_not_exist(world: World) -> None:
    bench = await world.enrolled("SN-1", tag="PUMP-7")
    expected = (await world.person("p-t", "technician").refusal("GetDevice", get("nothing"))).refusals
    assert expected[0].reason is Reason.NOT_IN_SCOPE
    outsiders = (
        world.person("p-a", "technician", sites=("site-2",)),
        world.person("p-b", "admin", organization=CLINIC, sites=("*",)),
        world.person("p-c", "admin", organization=CLINIC, sites=("site-1",)),
    )
    for outsider in outsiders:
        for name in (bench.device_id, bench.udi, "SN-1", "PUMP-7"):
            assert (await outsider.refusal("GetDevice", get(name))).refusals == expected
    assert await outsiders[0].reason("GetDevice", get("")) is Reason.FIELD_INVALID
    assert (await world.admin().call("GetDevice", get("SN-1"))).device_id == bench.device_id


async def test_devices_are_listed_and_counted_in_scope(world: World) -> None:
    active = [await world.active(f"SN-{number}") for number in range(3)]
    pending = [await world.enrolled(f"SN-{number}", site="site-2") for number in range(3, 5)]
    everyone = world.person("p-all", "auditor", sites=("*",))
    found: list[str] = []
    token = ""
    while True:
        page = await everyone.call("ListDevices", pb.ListDevicesRequest(page_size=2, page_token=token))
        found += [device.device_id for device in page.devices]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(bench.device_id for bench in (*active, *pending))

    async def ids(caller: Caller, **values: Any) -> set[str]:
        page = await caller.call("ListDevices", pb.ListDevicesRequest(**values))
        return {device.device_id for device in page.devices}

    at_two = {bench.device_id for bench in pending}
    assert await ids(everyone, state=pb.DEVICE_STATE_PENDING) == at_two
    assert await ids(everyone, site_id="site-2") == at_two
    assert await ids(everyone, model="other") == set()
    assert await ids(everyone, model="aria-3000", state=pb.DEVICE_STATE_BANNED) == set()
    narrow = world.person("p-narrow", "technician", sites=("site-2",))
    assert await ids(narrow) == at_two
    assert await ids(narrow, site_id="site-1") == set()
    assert await everyone.reason("ListDevices", pb.ListDevicesRequest(state=99)) is Reason.FIELD_INVALID  # type: ignore[arg-type]
    counted = (await everyone.call("CountDevices", pb.CountDevicesRequest())).by_state
    assert dict(counted) == {
        "active": 3,
        "pending": 2,
        "quarantined": 0,
        "banned": 0,
        "stored": 0,
        "retired": 0,
    }
    assert (await narrow.call("CountDevices", pb.CountDevicesRequest())).by_state["active"] == 0


def hold(
    world: World, person: Caller, bench: Bench, action: bodies.HoldAction, **values: Any
) -> Statement[bodies.Hold]:
    clock = values.pop("clock", world.clock)
    given = {"device": bench.device_id, "action": action, "reason": "incident 7"} | values
    return person.scribe(clock).sign(bodies.Hold(**given), subject=f"device/{bench.device_id}")


def placed(world: World, person: Caller, bench: Bench, **values: Any) -> pb.PlaceHoldRequest:
    data = hold(world, person, bench, bodies.HoldAction.PLACE, **values).data
    return pb.PlaceHoldRequest(device_id=bench.device_id, hold=data)


def lifted(world: World, bench: Bench, *people: Caller, **values: Any) -> pb.LiftHoldRequest:
    lifts = [hold(world, person, bench, bodies.HoldAction.LIFT, **values).data for person in people]
    return pb.LiftHoldRequest(device_id=bench.device_id, lifts=lifts)


@pytest.fixture
def safety(world: World) -> Caller:
    return world.person("p-safety", "safety")


@pytest.fixture
def second(world: World) -> Caller:
    return world.person("p-second", "technician")


@pytest.mark.holds("stolen-safety")
async def test_one_places_a_hold_and_two_lift_it(world: World, safety: Caller, second: Caller) -> None:
    bench = await world.active("SN-1")
    request = placed(world, safety, bench)
    for _ in range(2):  # the same statement again is the same hold
        assert (await safety.call("PlaceHold", request)).holds == 1
    assert (await second.call("PlaceHold", placed(world, second, bench))).holds == 2
    told = pb.Device.FromString((await world.told("device"))[bench.device_id][1])
    assert told.holds == 2
    free = lifted(world, bench, safety, second)
    for _ in range(2):
        assert (await second.call("LiftHold", free)).holds == 0
    items = (await world.spooled())[1:]
    assert [list(item.subjects) for item in items] == [
        [f"device/{bench.device_id}", f"person/{name}"]
        for name in ("p-safety", "p-second", "p-safety", "p-second")
    ]
    assert items[0].statement == request.hold
    assert [item.statement for item in items[2:]] == list(free.lifts)


async def test_statements_that_lifted_lift_nothing_more(world: World, safety: Caller, second: Caller) -> None:
    bench = await world.active("SN-1")
    await safety.call("PlaceHold", placed(world, safety, bench))
    free = lifted(world, bench, safety, second)
    await safety.call("LiftHold", free)
    assert (await safety.call("PlaceHold", placed(world, safety, bench))).holds == 1
    assert (await safety.call("LiftHold", free)).holds == 1
    mixed = lifted(world, bench, safety)
    mixed.lifts.append(free.lifts[1])
    assert await safety.reason("LiftHold", mixed) is Reason.REQUEST_ID_REUSED
    assert (await safety.call("LiftHold", lifted(world, bench, safety, second))).holds == 0


async def test_statements_older_than_the_hold_do_not_lift_it(
    world: World, safety: Caller, second: Caller
) -> None:
    bench = await world.active("SN-1")
    old = lifted(world, bench, safety, second)
    later = ManualClock(world.clock.now() + 60 * SECOND)
    await safety.call("PlaceHold", placed(world, safety, bench, clock=later))
    assert await safety.reason("LiftHold", old) is Reason.STATE_CONFLICT
    assert (await safety.call("GetDevice", get(bench.device_id))).holds == 1


async def test_a_hold_is_signed_by_its_caller(world: World, safety: Caller, second: Caller) -> None:
    bench = await world.active("SN-1")
    assert await safety.reason("PlaceHold", placed(world, second, bench)) is Reason.SIGNER_NOT_CALLER
    await safety.call("PlaceHold", placed(world, safety, bench))
    third = world.person("p-third", "approver")
    assert await third.reason("LiftHold", lifted(world, bench, safety, second)) is Reason.SIGNER_NOT_CALLER


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_two_statements_lift(world: World, safety: Caller, second: Caller, count: int) -> None:
    bench = await world.active("SN-1")
    await safety.call("PlaceHold", placed(world, safety, bench))
    people = [safety, second, world.person("p-third", "approver")][:count]
    assert await safety.reason("LiftHold", lifted(world, bench, *people)) is Reason.SECOND_PERSON_REQUIRED


async def test_two_statements_of_one_person_are_one_person(world: World, safety: Caller) -> None:
    bench = await world.active("SN-1")
    await safety.call("PlaceHold", placed(world, safety, bench))
    other = world.caller(world.pki.person("p-safety", "technician"))
    for people in ((safety, safety), (safety, other)):
        assert await safety.reason("LiftHold", lifted(world, bench, *people)) is Reason.APPROVER_NOT_DISTINCT


async def test_the_second_signer_has_scope_and_role(world: World, safety: Caller) -> None:
    bench = await world.active("SN-1")
    await safety.call("PlaceHold", placed(world, safety, bench))
    for person, reason in (
        (world.person("p-x", "auditor"), Reason.ROLE_NOT_PERMITTED),
        (world.person("p-y", "safety", sites=("site-2",)), Reason.NOT_IN_SCOPE),
        (world.person("p-z", "safety", organization=CLINIC, sites=("*",)), Reason.NOT_IN_SCOPE),
    ):
        assert await safety.reason("LiftHold", lifted(world, bench, safety, person)) is reason
    assert (await safety.call("GetDevice", get(bench.device_id))).holds == 1
    assert len(await world.spooled()) == 2


async def test_a_statement_that_does_not_fit_is_refused(world: World, safety: Caller, second: Caller) -> None:
    bench, other = await world.active("SN-1"), await world.active("SN-2")
    wrong_device = placed(world, safety, other)
    wrong_device.device_id = bench.device_id
    assert await safety.reason("PlaceHold", wrong_device) is Reason.NOT_IN_TARGET
    lift = hold(world, safety, bench, bodies.HoldAction.LIFT).data
    wrong_action = pb.PlaceHoldRequest(device_id=bench.device_id, hold=lift)
    assert await safety.reason("PlaceHold", wrong_action) is Reason.FIELD_INVALID
    ended = placed(world, safety, bench, expires=world.clock.now() - 1)
    assert await safety.reason("PlaceHold", ended) is Reason.FIELD_INVALID
    malformed = pb.PlaceHoldRequest(device_id=bench.device_id, hold=b"\x00")
    assert await safety.reason("PlaceHold", malformed) is Reason.STATEMENT_MALFORMED
    tampered = bytearray(placed(world, safety, bench).hold)
    tampered[tampered.index(b"incident 7")] ^= 1
    forged = pb.PlaceHoldRequest(device_id=bench.device_id, hold=bytes(tampered))
    assert await safety.reason("PlaceHold", forged) is Reason.SIGNATURE_INVALID
    nothing = lifted(world, bench, safety, second)
    assert await safety.reason("LiftHold", nothing) is Reason.STATE_CONFLICT


async def test_a_hold_with_an_end_ends(world: World, safety: Caller) -> None:
    bench = await world.active("SN-1")
    end = world.clock.now() + 3600 * SECOND
    await safety.call("PlaceHold", placed(world, safety, bench))
    assert (await safety.call("PlaceHold", placed(world, safety, bench, expires=end))).holds == 2
    await world.service.sweep()
    assert (await safety.call("GetDevice", get(bench.device_id))).holds == 2
    world.clock.ahead = 3600 * SECOND
    await world.service.sweep()
    assert (await safety.call("GetDevice", get(bench.device_id))).holds == 1


class Field:
    """A device in the field, behind a gateway, doing what people want."""

    def __init__(self, world: World, bench: Bench, chain: Any) -> None:
        self.world, self.bench = world, bench
        self.chain = tuple(chain)
        self.log = 0

    @classmethod
    async def of(cls, world: World, bench: Bench) -> "Field":
        device = await world.person("p-t", "technician").call("GetDevice", get(bench.device_id))
        return cls(world, bench, device.attestation_chain)

    def intent(self, person: Caller, action: str, **values: Any) -> Statement[bodies.Intent]:
        now = self.world.clock.now()
        given = {
            "target_root": target_root([self.bench.device_id]),
            "target_count": 1,
            "action": action,
            "parameters": {},
            "request_id": os.urandom(16),
            "mode": bodies.Mode.NOW,
            "not_before": now,
            "expires": now + 3600 * SECOND,
        } | values
        return person.scribe(self.world.clock).sign(
            bodies.Intent(**given), subject=f"device/{self.bench.device_id}"
        )

    def approval(self, person: Caller, intent: Statement[bodies.Intent]) -> bytes:
        body = bodies.Approval(intent=intent.digest, meaning="approved", expires=intent.body.expires)
        return person.scribe(self.world.clock).sign(body, subject=f"device/{self.bench.device_id}").data

    def receipt(self, intent: Statement[bodies.Intent], **values: Any) -> bytes:
        self.log += 1
        key = values.pop("key", self.bench.attestation_key)
        chain = values.pop("chain", self.chain)
        body = replace(
            EXAMPLES[bodies.Receipt],
            intent=intent.digest,
            request_id=intent.body.request_id,
            outcome=bodies.Outcome.APPLIED,
            device=self.bench.device_id,
            udi=self.bench.udi,
            action=intent.body.action,
            performed_by=intent.issuer.removeprefix("person/"),
            log=bodies.LogHead(size=self.log, root=sha256(b""), counter=self.log),
            device_time=self.world.clock.now(),
        )
        scribe = Scribe(
            signer=KeySigner(key, chain),
            issuer=f"device/{self.bench.device_id}",
            clock=self.world.clock,
            entropy=os.urandom,
            numbered=True,
        )
        return scribe.sign(replace(body, **values), subject=f"device/{self.bench.device_id}").data

    def report(self, intent: Statement[bodies.Intent], *approvals: bytes, **values: Any) -> pb.DeviceReport:
        return pb.DeviceReport(
            device_id=self.bench.device_id,
            receipt=self.receipt(intent, **values),
            intent=intent.data,
            approvals=approvals,
        )

    async def told(self, *reports: pb.DeviceReport, gateway: Caller | None = None) -> list[str]:
        """Report through the gateway; the reasons of what was not taken."""
        caller = gateway or self.world.gateway()
        request = pb.ReportDevicesRequest(gateway_id=caller.id, reports=reports)
        answer = await caller.call("ReportDevices", request)
        return [one.reason for one in answer.refused]

    async def device(self) -> pb.Device:
        found: pb.Device = await self.world.person("p-t", "technician").call(
            "GetDevice", get(self.bench.device_id)
        )
        return found


@pytest.fixture
async def pump(world: World) -> Field:
    return await Field.of(world, await world.active("SN-1"))


async def test_a_sighting_says_where_a_device_is(world: World, pump: Field) -> None:
    seen = pb.DeviceReport(device_id=pump.bench.device_id)
    assert await pump.told(seen) == []
    device = await pump.device()
    assert (device.observed_gateway_id, device.state) == ("gateway-1", pb.DEVICE_STATE_ACTIVE)
    assert await pump.told(seen) == []
    assert await pump.device() == device
    assert await pump.told(seen, gateway=world.gateway("gateway-1b")) == []
    assert (await pump.device()).observed_gateway_id == "gateway-1b"


@pytest.mark.holds("speaks-as-another")
async def test_a_gateway_of_another_site_is_told_so_device_by_device(world: World, pump: Field) -> None:
    other = await world.active("SN-2", site="site-2")
    absent = Bench(world.maker, "SN-9")
    reports = [pb.DeviceReport(device_id=bench.device_id) for bench in (other, absent, pump.bench)]
    caller = world.gateway()
    answer = await caller.call(
        "ReportDevices", pb.ReportDevicesRequest(gateway_id=caller.id, reports=reports)
    )
    assert [(one.device_id, one.reason) for one in answer.refused] == [
        (other.device_id, "NOT_IN_SCOPE"),
        (absent.device_id, "NOT_IN_SCOPE"),
    ]
    assert answer.refused[0].sentence == answer.refused[1].sentence
    assert (await pump.device()).observed_gateway_id == "gateway-1"
    foreign = pb.ReportDevicesRequest(gateway_id="gateway-2", reports=reports)
    assert await caller.reason("ReportDevices", foreign) is Reason.NOT_IN_SCOPE
    many = pb.ReportDevicesRequest(gateway_id=caller.id, reports=[reports[2]] * 1001)
    assert await caller.reason("ReportDevices", many) is Reason.FIELD_INVALID


async def test_quarantine_follows_the_devices_receipts(world: World, pump: Field, safety: Caller) -> None:
    entered = pump.report(pump.intent(safety, "quarantine"))
    assert await pump.told(entered) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_QUARANTINED
    leaving = pump.intent(safety, "release-quarantine")
    approval = pump.approval(world.approver(), leaving)
    assert await pump.told(pump.report(leaving, approval)) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_ACTIVE
    # Late or replayed, an older receipt changes nothing.
    assert await pump.told(entered) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_ACTIVE
    assert await pump.told(pump.report(pump.intent(safety, "quarantine"))) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_QUARANTINED


async def test_quarantine_is_no_way_to_become_active(world: World, safety: Caller) -> None:
    pump = await Field.of(world, await world.enrolled("SN-1"))
    assert await pump.told(pump.report(pump.intent(safety, "quarantine"))) == []
    activate = pb.ActivateDeviceRequest(device_id=pump.bench.device_id)
    assert await world.approver().reason("ActivateDevice", activate) is Reason.STATE_CONFLICT
    leaving = pump.intent(safety, "release-quarantine")
    assert await pump.told(pump.report(leaving, pump.approval(world.approver(), leaving))) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_PENDING


@pytest.mark.holds("stolen-safety")
@pytest.mark.parametrize("action", ["release-quarantine", "lift-hold"])
async def test_nobody_frees_a_device_alone(world: World, pump: Field, safety: Caller, action: str) -> None:
    quarantine, held = pump.intent(safety, "quarantine"), pump.intent(safety, "hold")
    assert await pump.told(pump.report(quarantine), pump.report(held)) == []
    before = await pump.device()
    leaving = pump.intent(safety, action)
    own = world.caller(world.pki.person("p-safety", "approver"))
    elsewhere = world.person("p-e", "approver", sites=("site-2",))
    other = pump.intent(safety, action)
    for approvals in (
        (),
        (pump.approval(safety, leaving),),
        (pump.approval(own, leaving),),
        (pump.approval(world.person("p-aud", "auditor"), leaving),),
        (pump.approval(elsewhere, leaving),),
        (pump.approval(world.approver(), other),),
    ):
        assert await pump.told(pump.report(leaving, *approvals)) == ["APPROVALS_MISSING"]
    after = await pump.device()
    assert (after.state, after.holds) == (before.state, before.holds) == (pb.DEVICE_STATE_QUARANTINED, 1)


async def test_holds_follow_the_devices_receipts(world: World, pump: Field, safety: Caller) -> None:
    held = pump.report(pump.intent(safety, "hold"))
    for _ in range(2):
        assert await pump.told(held) == []
        assert (await pump.device()).holds == 1
    await safety.call("PlaceHold", placed(world, safety, pump.bench))
    lifting = pump.intent(safety, "lift-hold")
    assert await pump.told(pump.report(lifting, pump.approval(world.approver(), lifting))) == []
    assert (await pump.device()).holds == 0
    assert await pump.told(held) == []
    assert (await pump.device()).holds == 0
    assert await pump.told(pump.report(pump.intent(safety, "hold"))) == []
    assert (await pump.device()).holds == 1


async def test_other_outcomes_and_actions_change_nothing(pump: Field, safety: Caller) -> None:
    for values in (
        {"outcome": bodies.Outcome.REFUSED},
        {"outcome": bodies.Outcome.ACCEPTED},
        {"outcome": bodies.Outcome.FAILED},
        {"action": "local-alert"},
    ):
        assert await pump.told(pump.report(pump.intent(safety, "quarantine"), **values)) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_ACTIVE


@pytest.mark.holds("malicious-gateway")
async def test_a_gateway_invents_nothing(world: World, pump: Field, safety: Caller) -> None:
    second = await Field.of(world, await world.active("SN-2"))
    intent = pump.intent(safety, "quarantine")
    outsider = world.person("p-e", "safety", sites=("site-2",))
    gateway = world.gateway().credential
    reports = {
        # signed by another device's key, with either chain
        "CERTIFICATE_INVALID": pump.report(intent, key=gateway.private_key, chain=gateway.chain),
        "SIGNATURE_INVALID": pump.report(intent, key=second.bench.attestation_key, chain=second.chain),
        # another device's receipt, another intent, another target, a person of elsewhere
        "NOT_IN_TARGET": pump.report(intent, device=second.bench.device_id),
        "NOT_IN_SCOPE": pump.report(pump.intent(outsider, "quarantine")),
        "STATEMENT_MALFORMED": pb.DeviceReport(
            device_id=pump.bench.device_id, receipt=pump.receipt(intent), intent=b""
        ),
    }
    for reason, report in reports.items():
        assert await pump.told(report) == [reason]
    mixed = pump.report(intent)
    mixed.intent = pump.intent(safety, "quarantine").data
    assert await pump.told(mixed) == ["NOT_IN_TARGET"]
    hold_intent = pump.intent(safety, "hold")
    assert await pump.told(pump.report(hold_intent, action="quarantine")) == ["NOT_IN_TARGET"]
    elsewhere = pump.intent(safety, "quarantine", target_root=target_root([second.bench.device_id]))
    assert await pump.told(pump.report(elsewhere)) == ["NOT_IN_TARGET"]
    not_a_receipt = pb.DeviceReport(device_id=pump.bench.device_id, receipt=intent.data, intent=intent.data)
    assert await pump.told(not_a_receipt) == ["STATEMENT_MALFORMED"]
    tls = pump.report(intent, chain=(await _tls_chain(world, pump)), key=pump.bench.tls_key)
    assert await pump.told(tls) == ["SIGNATURE_INVALID"]
    device = await pump.device()
    assert (device.state, device.observed_gateway_id) == (pb.DEVICE_STATE_ACTIVE, "")


async def _tls_chain(world: World, pump: Field) -> tuple[bytes, ...]:
    credential = world.pki.device(pump.bench.device_id, organization=HOSPITAL, private_key=pump.bench.tls_key)
    return credential.chain


async def test_a_safety_credential_is_judged_when_it_signed(world: World, pump: Field) -> None:
    now = world.clock.now()
    short = world.pki.person(
        "p-night", "safety", operational_until=now + SECOND, not_after=now + 72 * 3600 * SECOND
    )
    world.clock.ahead = 3600 * SECOND
    intent = pump.intent(world.caller(short), "quarantine")
    assert await pump.told(pump.report(intent)) == []
    assert (await pump.device()).state == pb.DEVICE_STATE_QUARANTINED
