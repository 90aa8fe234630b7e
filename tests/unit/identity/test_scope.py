"""Every method, asked by the right kind of caller for what is somebody else's, and by the wrong kind."""

from typing import Any

import pytest

from tests.unit.identity.test_devices import hold, lifted
from tests.unit.identity.test_registry import gateway, organization, principal
from tests.unit.identity.world import (
    CLINIC,
    Bench,
    Caller,
    World,
    complete_request,
    csr,
    site_request,
    start_request,
)
from vigil.api.feed.v1 import feed_pb2
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.statements import bodies
from vigil.errors import Reason, Refused
from vigil.rpc.status import translated

EVERY_METHOD = sorted(
    method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods
)
FILTERED = {
    "ListOrganizations",
    "ListSites",
    "ListGateways",
    "ListPrincipals",
    "ListCredentials",
    "ListDevices",
    "CountDevices",
}
OF_GATEWAYS = {"RenewGatewayCertificate", "RenewDeviceCertificates", "ReportDevices"}
OF_SERVICES = {"RenewServiceCertificate"}
ROLES = ("admin", "enroller", "technician", "approver", "auditor", "recall")


class Scene:
    """A hospital with one of everything, and the clinic's people and gateway, who want it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.person = world.person("p-out", *ROLES, organization=CLINIC, sites=("*",))
        self.gateway = world.gateway("clinic-gw", organization=CLINIC, sites=("clinic-1",))
        self.service = world.caller(world.pki.service("policy"))

    async def set_up(self) -> "Scene":
        world = self.world
        admin = world.person("p-local", "admin")
        await admin.call("CreateGateway", gateway())
        await admin.call("CreatePrincipal", principal("p-new"))
        await admin.call("CreatePrincipal", principal("p-waiting", "approver"))
        issue = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr())
        self.credential = await admin.call("IssueCredential", issue)
        self.device = await world.enrolled("SN-1")
        self.bench = Bench(world.maker, "SN-2")
        self.begun = await world.begun(self.bench)
        return self

    def caller(self, method: str) -> Caller:
        if method in OF_GATEWAYS:
            return self.gateway
        return self.service if method in OF_SERVICES else self.person

    def foreign(self, method: str) -> Any:
        """A request for what is the hospital's."""
        device = self.device.device_id
        lift = lifted(self.world, self.device, self.person, self.world.person("p-s", "safety"))
        placing = hold(self.world, self.person, self.device, bodies.HoldAction.PLACE).data
        return {
            "CreateOrganization": organization(),
            "GetOrganization": pb.GetOrganizationRequest(organization_id="hospital"),
            "CreateSite": site_request("hospital", "site-3"),
            "GetSite": pb.GetSiteRequest(site_id="site-1"),
            "CreateGateway": gateway("gateway-9"),
            "GetGateway": pb.GetGatewayRequest(gateway_id="gateway-1"),
            "CreatePrincipal": principal("p-x"),
            "ApprovePrincipal": pb.ApprovePrincipalRequest(principal_id="p-waiting"),
            "GetPrincipal": pb.GetPrincipalRequest(principal_id="p-new"),
            "DisablePrincipal": pb.DisablePrincipalRequest(principal_id="p-new"),
            "IssueCredential": pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr()),
            "RenewCredential": pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr()),
            "GetCredential": pb.GetCredentialRequest(thumbprint=self.credential.thumbprint),
            "RenewGatewayCertificate": pb.RenewGatewayCertificateRequest(
                gateway_id="gateway-1", csr_pem=csr()
            ),
            "RenewServiceCertificate": pb.RenewServiceCertificateRequest(role="identity", csr_pem=csr()),
            "RenewDeviceCertificates": pb.RenewDeviceCertificatesRequest(
                device_id=device, possession=self.device.possession(b"")
            ),
            "StartEnrolment": start_request(Bench(self.world.maker, "SN-3")),
            "CompleteEnrolment": complete_request(self.bench, self.begun),
            "ActivateDevice": pb.ActivateDeviceRequest(device_id=device),
            "GetDevice": pb.GetDeviceRequest(device_id=device),
            "PlaceHold": pb.PlaceHoldRequest(device_id=device, hold=placing),
            "LiftHold": lift,
            "ReportDevices": pb.ReportDevicesRequest(gateway_id="gateway-1"),
        }[method]


@pytest.fixture
async def scene(world: World) -> Scene:
    return await Scene(world).set_up()


async def test_what_is_somebody_elses_is_out_of_scope_and_unchanged(scene: Scene) -> None:
    kinds = ("organization", "site", "gateway", "principal", "credential", "device")
    before = [await scene.world.told(kind) for kind in kinds]
    for method in EVERY_METHOD:
        if method not in FILTERED:
            refusal = await scene.caller(method).refusal(method, scene.foreign(method))
            assert refusal.reason is Reason.NOT_IN_SCOPE, method
    assert [await scene.world.told(kind) for kind in kinds] == before


async def test_lists_hold_nothing_of_somebody_elses(scene: Scene) -> None:
    expected = {"ListOrganizations": [CLINIC], "ListSites": ["clinic-1"]}
    for method in sorted(FILTERED - {"CountDevices"}):
        answer = await scene.person.call(method, getattr(pb, f"{method}Request")())
        (rows,) = [value for _, value in answer.ListFields()] or [[]]
        assert [row.ListFields()[0][1] for row in rows] == expected.get(method, []), method
    counted = await scene.person.call("CountDevices", pb.CountDevicesRequest())
    assert not any(counted.by_state.values())
    asked = pb.ListCredentialsRequest(principal_id="p-new")
    assert not (await scene.person.call("ListCredentials", asked)).credentials


async def test_the_wrong_kind_of_caller_is_refused_everywhere(scene: Scene) -> None:
    wrong = {
        "person": (scene.world.person("p-nobody", "psirt", sites=("*",)), OF_GATEWAYS | OF_SERVICES),
        "gateway": (scene.world.gateway(), set(EVERY_METHOD) - OF_GATEWAYS),
        "service": (scene.service, set(EVERY_METHOD) - OF_SERVICES),
        "device": (scene.world.caller(scene.world.pki.device()), set(EVERY_METHOD)),
    }
    for kind, (caller, methods) in wrong.items():
        for method in sorted(methods):
            request = getattr(pb, f"{method}Request")()
            assert await caller.reason(method, request) is Reason.ROLE_NOT_PERMITTED, (kind, method)


@pytest.mark.parametrize(
    "method",
    [
        "CreateOrganization",
        "CreateSite",
        "CreateGateway",
        "CreatePrincipal",
        "ApprovePrincipal",
        "DisablePrincipal",
        "IssueCredential",
        "ListPrincipals",
        "ListCredentials",
        "StartEnrolment",
        "CompleteEnrolment",
        "ActivateDevice",
        "PlaceHold",
        "LiftHold",
    ],
)
async def test_a_person_without_the_role_is_refused(world: World, method: str) -> None:
    caller = world.person("p-nobody", "psirt", "baseline-signer", sites=("*",))
    assert await caller.reason(method, getattr(pb, f"{method}Request")()) is Reason.ROLE_NOT_PERMITTED


@pytest.mark.holds("speaks-as-another")
async def test_a_gateway_hears_of_its_own_site_alone(scene: Scene) -> None:
    for caller, sites, devices in (
        (scene.world.gateway(), {"site-1"}, {scene.device.device_id}),
        (scene.gateway, {"clinic-1"}, set()),
        (scene.service, {"site-1", "site-2", "clinic-1"}, {scene.device.device_id}),
    ):
        heard = await snapshot(caller)
        assert {change.key for change in heard if change.kind == "site"} == sites
        assert {change.key for change in heard if change.kind == "device"} == devices
        assert {"p-new", "p-waiting"} < {change.key for change in heard if change.kind == "principal"}
        credentials = [change for change in heard if change.kind == "credential"]
        assert [pb.Credential.FromString(one.value).certificate_pem for one in credentials] == [""]
    with pytest.raises(Refused) as caught:
        await snapshot(scene.person)
    assert caught.value.reason is Reason.ROLE_NOT_PERMITTED


async def snapshot(caller: Caller) -> list[feed_pb2.Change]:
    """The feed's state as this caller is told it."""
    call = caller.feed.Watch(timeout=20)
    await call.write(feed_pb2.WatchRequest(start=feed_pb2.WatchStart()))
    found: list[feed_pb2.Change] = []
    while True:
        answer = await translated(call.read())
        found += answer.snapshot.changes
        if answer.snapshot.last:
            call.cancel()
            return found
