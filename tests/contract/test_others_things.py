"""Scope beyond the contract's own fields: what a handler must look up, and what a list must leave out.

Every method with such a rule stands in one of the tables below; a method that is in none fails a test. A stranger has
the right kind and role and belongs to another organization, or to another site of the same one. What is refused is
told in the very words in which something that does not exist is refused.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from tests.contract.callers import (
    ELSEWHERE,
    METHODS,
    Callers,
    Contents,
    Method,
    assert_unchanged,
    is_alone,
    settled,
)
from tests.contract.strangers import (
    ABSENT,
    ASKED,
    COUNTED,
    FILTERED,
    LOOKED_UP,
    MALLORY,
    NO_DEVICE,
    OPEN,
    SEEN_BY_SITE,
    TAKES_TWO,
    Known,
    Stranger,
)
from tests.faults.acts import enforced_everywhere, newcomer, revoke_credential, set_pressure
from tests.support.stack import PRESSURE, Issued, Stack
from vigil.api.access.v1 import access_pb2
from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.feed.v1 import feed_pb2
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import EVERY, Kind
from vigil.core.statements.bodies import (
    Baseline,
    Revocation,
)
from vigil.core.statements.envelope import read
from vigil.demo.places import HOSPITALS, MODEL
from vigil.errors import Reason, Refused
from vigil.rpc.status import from_status, translated_stream

pytestmark = pytest.mark.asyncio(loop_scope="session")


def rules(method: Method, *wanted: int) -> bool:
    return any(rule.rule in wanted for rule in method.rules)


RESOURCE = [one for one in METHODS if rules(one, access_pb2.SCOPE_RULE_RESOURCE)]
NONE = [one for one in METHODS if rules(one, access_pb2.SCOPE_RULE_NONE)]


def methods(names: Any) -> Any:
    found = [one for one in METHODS if one.name in names]
    return pytest.mark.parametrize("method", found, ids=lambda one: f"{one.process}:{one.name}")


async def test_every_method_stands_in_a_table() -> None:
    assert {one.name for one in RESOURCE} == {*LOOKED_UP, *TAKES_TWO}
    assert {one.name for one in NONE} == {*FILTERED, *COUNTED, *OPEN}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def known(stack: Stack) -> Known:
    """One thing of each kind at the first hospital; made, where there is none yet."""
    people, pump = stack.world.people, stack.pumps(stack.first)[0]
    done = await set_pressure(stack, pump, 271)
    ada = stack.hand("ada", stack.first)
    pending = ada.intent(pump, "release-quarantine", {})
    await ada.create_intent(pump, pending)
    tim = await newcomer(stack)
    epoch = await revoke_credential(stack, tim)
    await enforced_everywhere(stack, epoch)
    await stack.calm()
    with closing(sqlite3.connect(stack.folder.path / "identity" / "identity.db")) as connection:
        [[enrolment]] = connection.execute(
            "SELECT enrolment_id FROM enrolment WHERE site_id = ? LIMIT 1", (stack.first,)
        )
    rita = people["rita"]
    request = revocation_pb2.GetRevocationRequest(epoch=epoch)
    entry = await rita.call("revocation", rita.revocations.GetRevocation, request)
    pia = people["pia"]
    model = await pia.call("release", pia.releases.GetModel, release_pb2.GetModelRequest(model=MODEL))
    releases = await pia.every(
        "release", pia.releases.ListReleases, release_pb2.ListReleasesRequest(), "releases"
    )
    bea = people["bea"]
    baselines = await bea.every(
        "release",
        bea.releases.ListBaselines,
        release_pb2.ListBaselinesRequest(site_id=stack.first),
        "baselines",
    )
    return Known(
        organization=HOSPITALS,
        site=stack.first,
        gateway=stack.world.gateways[stack.first],
        device=pump.device_id,
        principal="p-ada",
        credential=people["ada"].person.thumbprint.hex(),
        enrolment=enrolment,
        command=done.command_id,
        intent=pending.digest.hex(),
        request=done.intent.body.request_id,
        epoch=epoch,
        record=done.receipt.digest,
        profile=model.profile,
        release=releases[0].statement,
        baseline=baselines[0].statement,
        revocation=read(entry.statements[0], Revocation).digest,
        revoked=people[tim].person.thumbprint.hex(),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def before(stack: Stack, known: Known) -> Contents:
    assert known.site == stack.first
    return await settled(stack)


def strangers(callers: Callers, method: Method, *, own_site: bool) -> list[Stranger]:
    """The right kind and role, of another organization; and, where that is a stranger, of another site."""
    second = callers.stack.second
    people = [rule for rule in method.rules if rule.kind is Kind.PERSON]
    if not people:
        others = [
            callers.of(Kind.GATEWAY, "gw-elsewhere", organization=ELSEWHERE, sites=("elsewhere",)),
            callers.of(Kind.GATEWAY, callers.another_id(Kind.GATEWAY), sites=(second,)),
        ]
    else:
        roles = people[0].roles[:1] or ("technician",)
        others = [
            callers.of(Kind.PERSON, MALLORY, organization=ELSEWHERE, sites=(EVERY,), roles=roles),
            callers.of(Kind.PERSON, MALLORY, organization=HOSPITALS, sites=(second,), roles=roles),
        ]
    return [Stranger(one) for one in (others if own_site else others[:1])]


@pytest.mark.holds("speaks-as-another")
@methods(LOOKED_UP)
async def test_nobody_gets_at_what_is_anothers(callers: Callers, known: Known, method: Method) -> None:
    case = LOOKED_UP[method.name]
    absent = replace(known, **ABSENT)
    for stranger in strangers(callers, method, own_site=case.own_site):
        channel = callers.channel(method, stranger.credential)
        refusal = await method.refusal(channel, method.request(**case.fields(known, stranger)))
        assert is_alone(refusal, Reason.NOT_IN_SCOPE), (method.name, refusal.refusals)
        assert refusal.status == "PERMISSION_DENIED"
        if case.same_words:
            none = await method.refusal(channel, method.request(**case.fields(absent, stranger)))
            assert none.refusals == refusal.refusals


@pytest.mark.holds("speaks-as-another")
@methods(TAKES_TWO)
async def test_nobody_frees_what_is_anothers(callers: Callers, known: Known, method: Method) -> None:
    """Two people of another organization, with the roles for it."""
    credentials = [
        callers.of(Kind.PERSON, name, organization=ELSEWHERE, sites=(EVERY,), roles=("recall", "admin"))
        for name in (MALLORY, "p-moll")
    ]
    first, second = (Stranger(one) for one in credentials)
    said = [TAKES_TWO[method.name](known, one) for one in (first, second)]
    request = method.request(**{field: [one[field] for one in said] for field in said[0]})
    refusal = await method.refusal(callers.channel(method, first.credential), request)
    assert is_alone(refusal, Reason.NOT_IN_SCOPE), refusal.refusals


@methods(FILTERED)
async def test_lists_leave_out_what_is_anothers(callers: Callers, known: Known, method: Method) -> None:
    at_site = {known.site, known.gateway, known.device}
    everything = {*at_site, known.organization, known.principal, known.credential, known.revoked}
    watch = method.name == "FeedService/Watch"
    if watch:
        # People and organizations concern every gateway; what belongs to a site does not.
        everything = at_site = {known.device, SEEN_BY_SITE[method.process](known)}
        request, rightful = method.request(start=feed_pb2.WatchStart()), callers.of(Kind.GATEWAY)
    else:
        request = method.request(**ASKED.get(method.name, {}))
        rightful = callers.of(Kind.PERSON, roles=("admin", "technician"))
    # Whoever may reads of it, so that an empty list is a proof.
    shown = await method.call(callers.channel(method, rightful), request)
    if not (watch and method.process == "revocation"):  # what is revoked concerns every gateway
        assert any(name.encode() in shown.SerializeToString() for name in everything), shown
    admitted = replace(method, rules=tuple(rule for rule in method.rules if rule.kind is not Kind.SERVICE))
    for stranger, names in zip(
        strangers(callers, admitted, own_site=FILTERED[method.name]), (everything, at_site), strict=False
    ):
        seen = await method.call(callers.channel(method, stranger.credential), request)
        text = b"" if seen is None else seen.SerializeToString()
        assert {name for name in names if name.encode() in text} == set()


@methods(COUNTED)
async def test_counts_leave_out_what_is_anothers(callers: Callers, method: Method) -> None:
    field = COUNTED[method.name]

    async def total(credential: Issued) -> int:
        answer = await method.call(callers.channel(method, credential), method.request())
        return sum(getattr(answer, field).values())

    pumps = callers.stack.pumps
    assert await total(callers.of(Kind.PERSON, roles=("auditor",))) == len(pumps())
    elsewhere, second = strangers(callers, method, own_site=True)
    assert await total(elsewhere.credential) == 0
    assert await total(second.credential) == len(pumps(callers.stack.second))


def _method(name: str) -> Method:
    return next(one for one in METHODS if one.name == name)


def _of_second_site(callers: Callers) -> Issued:
    return callers.of(Kind.GATEWAY, callers.another_id(Kind.GATEWAY), sites=(callers.stack.second,))


@pytest.mark.holds("speaks-as-another")
async def test_gateway_appends_for_its_own_site_only(callers: Callers, known: Known) -> None:
    method, gateway = _method("EvidenceLogService/Append"), _of_second_site(callers)
    item = evidence_pb2.AppendItem(
        call_id=1,
        statement=known.profile,
        subjects=[f"device/{known.device}"],
        organization_id=known.organization,
        site_id=known.site,
    )
    answer = await method.call(callers.channel(method, gateway), method.request(items=[item]))
    [outcome] = answer.items
    assert from_status(outcome.error).reason is Reason.NOT_IN_SCOPE


@pytest.mark.holds("speaks-as-another")
async def test_gateway_attests_for_its_own_site_only(callers: Callers, known: Known) -> None:
    method, gateway = _method("AttestationService/Attest"), _of_second_site(callers)
    words = []
    for device in (known.device, NO_DEVICE):
        item = attestation_pb2.AttestItem(
            call_id=1, device_id=device, challenge=attestation_pb2.ChallengeRequest()
        )
        request = method.request(gateway_id=gateway.id, items=[item])
        [outcome] = (await method.call(callers.channel(method, gateway), request)).items
        words.append(from_status(outcome.error).refusals)
    assert [one.reason for one in words[0]] == [Reason.NOT_IN_SCOPE]
    assert words[0] == words[1]


@pytest.mark.holds("speaks-as-another")
async def test_gateway_reports_its_own_sites_devices_only(callers: Callers, known: Known) -> None:
    method, gateway = _method("DeviceService/ReportDevices"), _of_second_site(callers)
    report = identity_pb2.DeviceReport(device_id=known.device)
    request = method.request(gateway_id=gateway.id, reports=[report])
    answer = await method.call(callers.channel(method, gateway), request)
    assert [(one.device_id, one.reason) for one in answer.refused] == [(known.device, "NOT_IN_SCOPE")]


@pytest.mark.holds("speaks-as-another")
async def test_gateway_previews_for_its_own_site_only(stack: Stack, callers: Callers, known: Known) -> None:
    """The intent is a good one, by somebody who may; the gateway is not the device's."""
    method, gateway = _method("DecisionService/PreviewDecision"), _of_second_site(callers)
    pump = stack.pumps(stack.first)[0]
    assert pump.device_id == known.device
    intent = stack.hand("ada", stack.first).intent(pump, PRESSURE, {"occlusion_pressure": 300})
    request = method.request(gateway_id=gateway.id, device_id=known.device, intent=intent.data)
    refusal = await method.refusal(callers.channel(method, gateway), request)
    assert is_alone(refusal, Reason.NOT_IN_SCOPE), refusal.refusals


@pytest.mark.holds("speaks-as-another")
async def test_gateway_fetches_its_own_sites_baselines_only(callers: Callers, known: Known) -> None:
    method = _method("ArtifactService/FetchArtifact")
    request = method.request(digest=read(known.baseline, Baseline).body.content)
    served = await method.call(callers.channel(method, callers.of(Kind.GATEWAY)), request)
    assert served.chunk
    elsewhere = callers.of(Kind.GATEWAY, "gw-elsewhere", organization=ELSEWHERE, sites=("elsewhere",))
    refusal = await method.refusal(callers.channel(method, elsewhere), request)
    absent = await method.refusal(callers.channel(method, elsewhere), method.request(digest=bytes(32)))
    assert refusal.reason is absent.reason is Reason.RESOURCE_NOT_FOUND


@pytest.mark.holds("speaks-as-another")
async def test_device_speaks_as_itself_in_every_message(stack: Stack, callers: Callers) -> None:
    """What comes after the welcome names another device: the stream ends."""
    method = _method("DeviceLinkService/Connect")
    pump, other = stack.pumps(stack.first)
    credential = callers.of(Kind.DEVICE, pump.device_id, sites=(stack.first,))
    stub = gateway_pb2_grpc.DeviceLinkServiceStub(callers.channel(method, credential))

    welcomed = asyncio.Event()

    async def speak() -> AsyncIterator[gateway_pb2.ConnectRequest]:
        hello = gateway_pb2.DeviceHello(model=MODEL, firmware_version="1", boot_count=1)
        yield gateway_pb2.ConnectRequest(device_id=pump.device_id, hello=hello)
        await welcomed.wait()
        yield gateway_pb2.ConnectRequest(device_id=other.device_id, status=gateway_pb2.DeviceStatus())

    async def listen() -> None:
        async for _ in translated_stream(stub.Connect(speak(), timeout=20)):
            welcomed.set()

    with pytest.raises(Refused) as raised:
        await listen()
    assert welcomed.is_set()
    assert raised.value.reason is Reason.NOT_IN_SCOPE
    # The pump itself, whose place was taken, comes back.
    await stack.calm()


async def test_roles_that_the_handler_holds(stack: Stack, callers: Callers, known: Known) -> None:
    """In scope, and without a role that gives commands."""
    visitor = Stranger(
        callers.of(Kind.PERSON, MALLORY, organization=HOSPITALS, sites=(stack.first,), roles=("visitor",))
    )
    for name in (
        *("CommandService/PrepareCommand", "CommandService/SubmitCommand", "CommandService/GetReceipt"),
        *("IntentService/CreateIntent", "GatewayDeviceService/FollowDevice"),
    ):
        method = _method(name)
        request = method.request(**LOOKED_UP[name].fields(known, visitor))
        refusal = await method.refusal(callers.channel(method, visitor.credential), request)
        assert is_alone(refusal, Reason.ROLE_NOT_PERMITTED), (name, refusal.refusals)


async def test_nothing_has_changed(stack: Stack, before: Contents) -> None:
    assert_unchanged(before, await settled(stack))
