"""Organizations, sites, gateways, people: who makes them, who sees them, and what two people must agree on."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import TestPki
from tests.unit.identity.world import CLINIC, HOSPITAL, World, csr, site_request
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.certificates import Kind, TrustBundle, read_chain
from vigil.errors import Reason, Refused
from vigil.identity import ceremony, store


def organization(name: str = "lab", **values: Any) -> pb.CreateOrganizationRequest:
    return pb.CreateOrganizationRequest(
        organization=pb.Organization(**{"organization_id": name, "display_name": name, **values})
    )


def gateway(name: str = "gateway-1", **values: Any) -> pb.CreateGatewayRequest:
    given = {
        "gateway_id": name,
        "organization_id": HOSPITAL,
        "site_id": "site-1",
        "address": "gw.example:7450",
    }
    return pb.CreateGatewayRequest(
        gateway=pb.Gateway(**{**given, **{k: v for k, v in values.items() if k != "csr_pem"}}),
        csr_pem=values.get("csr_pem", csr()),
    )


def principal(name: str = "p-new", *roles: str, **values: Any) -> pb.CreatePrincipalRequest:
    given: dict[str, Any] = {
        "principal_id": name,
        "organization_id": HOSPITAL,
        "display_name": "New Person",
        "roles": roles or ("technician",),
        "site_ids": ("site-1",),
    }
    return pb.CreatePrincipalRequest(principal=pb.Principal(**{**given, **values}))


@pytest.fixture
def local_admin(world: World) -> Any:
    """An admin of one hospital, for one of its sites."""
    return world.person("p-local", "admin")


@pytest.fixture
def hospital_admin(world: World) -> Any:
    return world.person("p-hospital", "admin", sites=("*",))


async def test_the_operator_and_its_two_admins_are_there_from_the_start(world: World) -> None:
    found = await world.admin().call("GetOrganization", pb.GetOrganizationRequest(organization_id="operator"))
    assert found.organization_id == "operator"
    for number in (1, 2):
        one = await world.admin().call(
            "GetPrincipal", pb.GetPrincipalRequest(principal_id=f"p-admin-{number}")
        )
        assert (one.state, list(one.roles)) == (pb.PRINCIPAL_STATE_ACTIVE, ["admin"])


async def test_only_the_operators_admins_make_organizations(world: World, hospital_admin: Any) -> None:
    assert await hospital_admin.reason("CreateOrganization", organization()) is Reason.NOT_IN_SCOPE
    made = await world.admin().call("CreateOrganization", organization())
    assert made.create_time_ms > 0
    assert await world.admin().reason("CreateOrganization", organization()) is Reason.RESOURCE_EXISTS
    assert (await world.told("organization"))["lab"] == ("", made.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    "values",
    [
        {"organization_id": ""},
        {"organization_id": "Lab"},
        {"organization_id": "-lab"},
        {"organization_id": "l" * 64},
        {"display_name": ""},
        {"display_name": " "},
        {"display_name": "a\nb"},
        {"display_name": "x" * 129},
        {"manufacturer_root_pem": "no certificate"},
    ],
)
async def test_an_organization_that_cannot_be_is_refused(world: World, values: dict[str, str]) -> None:
    assert await world.admin().reason("CreateOrganization", organization(**values)) is Reason.FIELD_INVALID
    assert len(await world.told("organization")) == 3


def make_root(folder: Path, name: str, clock: Any) -> str:
    root = ceremony.make_manufacturer(
        folder / name,
        organization=name,
        trust_domain=f"{name}.test",
        clock=clock,
        entropy=lambda n: b"\x05" * n,
    )
    return root.public_bytes(Encoding.PEM).decode()


async def test_a_manufacturers_root_is_trusted_at_once_and_everywhere(tmp_path: Path) -> None:
    pki = TestPki(tmp_path)
    world = await World(pki, pki.manufacturer("first"), tmp_path).start()
    pem = make_root(tmp_path, "acme", world.clock)
    await world.admin().call("CreateOrganization", organization("acme", manufacturer_root_pem=pem))
    for file in (pki.trust, pki.directory / "people" / "p-admin-1" / "trust.json"):
        assert set(TrustBundle.from_json(file.read_text()).manufacturers) == {"first", "acme"}
    assert set(world.ports.trust.bundle.manufacturers) == {"first", "acme"}
    # One root for two organizations would let either sign for the other.
    again = organization("acme-2", manufacturer_root_pem=pem)
    assert await world.admin().reason("CreateOrganization", again) is Reason.RESOURCE_EXISTS
    own = pki.bundle.root_pem.decode()
    assert await world.admin().reason("CreateOrganization", organization("x", manufacturer_root_pem=own)) is (
        Reason.FIELD_INVALID
    )
    # A crash between the row and the file heals at the next start.
    ceremony.replace_file(pki.trust, pki.bundle.to_json().encode())
    assert set(world.ports.trust.bundle.manufacturers) == {"first"}
    await world.restart()
    assert set(TrustBundle.from_json(pki.trust.read_text()).manufacturers) == {"first", "acme"}
    await world.stop()


async def test_a_trust_file_that_cannot_be_read_leaves_the_former_in_use(tmp_path: Path) -> None:
    pki = TestPki(tmp_path)
    world = await World(pki, pki.manufacturer("first"), tmp_path).start()
    ceremony.replace_file(pki.trust, b"{}")
    assert set(world.ports.trust.bundle.manufacturers) == {"first"}
    await world.stop()


async def test_sites_are_made_by_their_organizations_admins(world: World, hospital_admin: Any) -> None:
    made = await hospital_admin.call("CreateSite", site_request(HOSPITAL, "site-3", "Europe/Berlin"))
    assert made.time_zone == "Europe/Berlin"
    assert (await world.told("site"))["site-3"] == ("site-3", made.SerializeToString(deterministic=True))
    assert (
        await hospital_admin.reason("CreateSite", site_request(HOSPITAL, "site-3")) is Reason.RESOURCE_EXISTS
    )
    assert await hospital_admin.reason("CreateSite", site_request(CLINIC, "clinic-2")) is Reason.NOT_IN_SCOPE
    nobody = await world.admin().reason("CreateSite", site_request("nobody", "site-4"))
    assert nobody is Reason.NOT_IN_SCOPE
    for bad in (site_request(HOSPITAL, "*"), site_request(HOSPITAL, "site-4", "Mars/Olympus")):
        assert await hospital_admin.reason("CreateSite", bad) is Reason.FIELD_INVALID


async def test_a_gateway_gets_its_certificate(world: World, local_admin: Any) -> None:
    answer = await local_admin.call("CreateGateway", gateway())
    chain = read_chain(answer.certificate.certificate_pem.encode())
    identity = world.ports.trust.verifier.verify(chain, at=world.clock.now(), kinds=frozenset({Kind.GATEWAY}))
    assert (identity.id, identity.organization, identity.sites) == ("gateway-1", HOSPITAL, ("site-1",))
    assert answer.gateway.certificate_thumbprint == identity.thumbprint.hex()
    assert answer.certificate.operational_until_ms == identity.operational_until
    assert answer.certificate.trust_json == world.ports.trust.bundle.to_json()
    site, value = (await world.told("gateway"))["gateway-1"]
    assert (site, pb.Gateway.FromString(value)) == ("site-1", answer.gateway)
    assert await local_admin.reason("CreateGateway", gateway()) is Reason.RESOURCE_EXISTS


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"gateway_id": "gateway-"}, Reason.FIELD_INVALID),
        ({"address": "gw.example"}, Reason.FIELD_INVALID),
        ({"address": "gw.example:0"}, Reason.FIELD_INVALID),
        ({"address": "gw.example:65536"}, Reason.FIELD_INVALID),
        ({"address": "gw example:7450"}, Reason.FIELD_INVALID),
        ({"csr_pem": "no request"}, Reason.FIELD_INVALID),
        ({"site_id": "site-2"}, Reason.NOT_IN_SCOPE),
        ({"site_id": "clinic-1"}, Reason.NOT_IN_SCOPE),
        ({"site_id": "nowhere"}, Reason.NOT_IN_SCOPE),
        ({"organization_id": CLINIC, "site_id": "clinic-1"}, Reason.NOT_IN_SCOPE),
    ],
)
async def test_a_gateway_that_cannot_be_is_refused(
    world: World, local_admin: Any, values: dict[str, str], reason: Reason
) -> None:
    assert await local_admin.reason("CreateGateway", gateway(**values)) is reason
    assert not await world.told("gateway")


async def test_an_operators_admin_does_not_mix_organizations(world: World) -> None:
    request = gateway(organization_id=HOSPITAL, site_id="clinic-1")
    assert await world.admin().reason("CreateGateway", request) is Reason.NOT_IN_SCOPE


@pytest.mark.holds("rogue-revoker")
async def test_a_person_without_a_privileged_role_is_active_at_once(local_admin: Any) -> None:
    made = await local_admin.call("CreatePrincipal", principal("p-new", "technician", "enroller"))
    assert made.state == pb.PRINCIPAL_STATE_ACTIVE
    assert (made.created_by, made.approved_by) == ("p-local", "")
    assert await local_admin.reason("CreatePrincipal", principal("p-new")) is Reason.RESOURCE_EXISTS
    opaque = await local_admin.call("CreatePrincipal", principal(""))
    assert opaque.principal_id.startswith("p-")
    assert len(opaque.principal_id) == 18


@pytest.mark.holds("rogue-revoker")
@pytest.mark.parametrize("role", ["admin", "recall", "publisher", "approver", "policy-editor"])
async def test_a_privileged_role_takes_two_people(world: World, local_admin: Any, role: str) -> None:
    made = await local_admin.call("CreatePrincipal", principal("p-new", "technician", role))
    assert made.state == pb.PRINCIPAL_STATE_PENDING
    issue = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr())
    assert await local_admin.reason("IssueCredential", issue) is Reason.STATE_CONFLICT
    request = pb.ApprovePrincipalRequest(principal_id="p-new")
    assert await local_admin.reason("ApprovePrincipal", request) is Reason.SECOND_PERSON_REQUIRED
    second = world.person("p-second", "admin")
    approved = await second.call("ApprovePrincipal", request)
    assert (approved.state, approved.approved_by) == (pb.PRINCIPAL_STATE_ACTIVE, "p-second")
    assert (await world.told("principal"))["p-new"][1] == approved.SerializeToString(deterministic=True)
    assert await second.reason("IssueCredential", issue) is Reason.SECOND_PERSON_REQUIRED
    await local_admin.call("IssueCredential", issue)


@pytest.mark.holds("rogue-revoker")
async def test_nobody_issues_themselves_another_admins_credential(world: World, local_admin: Any) -> None:
    """Two identities in one hand would be two people: each privileged credential takes an approval of its own."""
    second, third = world.person("p-second", "admin"), world.person("p-third", "admin")
    await local_admin.call("CreatePrincipal", principal("p-new", "admin"))
    approve = pb.ApprovePrincipalRequest(principal_id="p-new")
    issue = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr())
    await second.call("ApprovePrincipal", approve)
    await third.call("IssueCredential", issue)
    for admin in (local_admin, second, third):
        assert await admin.reason("IssueCredential", issue) is Reason.SECOND_PERSON_REQUIRED
    new = world.person("p-new", "admin")
    assert await new.reason("ApprovePrincipal", approve) is Reason.SECOND_PERSON_REQUIRED
    for admin in (1, 2):
        first = pb.IssueCredentialRequest(principal_id=f"p-admin-{admin}", csr_pem=csr())
        other = world.admin(3 - admin)
        assert await other.reason("IssueCredential", first) is Reason.SECOND_PERSON_REQUIRED
    # A renewal is the person's own, and takes nobody else.
    await new.call("RenewCredential", pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr()))
    await local_admin.call("ApprovePrincipal", approve)
    outcomes = await asyncio.gather(
        *(second.call("IssueCredential", issue) for _ in range(3)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert {one.reason for one in outcomes if isinstance(one, Refused)} == {Reason.SECOND_PERSON_REQUIRED}


async def test_a_person_who_waits_for_nobody_is_not_approved(local_admin: Any, world: World) -> None:
    await local_admin.call("CreatePrincipal", principal("p-new", "technician"))
    approve = pb.ApprovePrincipalRequest(principal_id="p-new")
    second = world.person("p-second", "admin")
    assert await second.reason("ApprovePrincipal", approve) is Reason.STATE_CONFLICT


async def test_another_credential_of_the_same_person_is_no_second_person(world: World) -> None:
    await world.person("p-local", "admin").call("CreatePrincipal", principal("p-new", "admin"))
    again = world.caller(world.pki.person("p-local", "admin", sites=("*",)))
    request = pb.ApprovePrincipalRequest(principal_id="p-new")
    assert await again.reason("ApprovePrincipal", request) is Reason.SECOND_PERSON_REQUIRED


@pytest.mark.parametrize(
    "values",
    [
        {"principal_id": "new"},
        {"principal_id": "p-New"},
        {"display_name": ""},
        {"roles": ("king",)},
        {"roles": ("technician", "technician")},
        {"site_ids": ()},
        {"site_ids": ("site-1", "site-1")},
        {"site_ids": ("*", "site-1")},
        {"roles": ("safety",), "site_ids": ("*",)},
        {"roles": ("safety",), "site_ids": ("site-1", "site-2")},
    ],
)
async def test_a_person_that_cannot_be_is_refused(
    world: World, hospital_admin: Any, values: dict[str, Any]
) -> None:
    assert await hospital_admin.reason("CreatePrincipal", principal(**{"name": "p-new", **values})) is (
        Reason.FIELD_INVALID
    )
    assert set(await world.told("principal")) == {"p-admin-1", "p-admin-2"}


async def test_nobody_without_roles(hospital_admin: Any) -> None:
    request = principal()
    del request.principal.roles[:]
    assert await hospital_admin.reason("CreatePrincipal", request) is Reason.FIELD_INVALID


@pytest.mark.holds("rogue-revoker")
@pytest.mark.parametrize("sites", [("*",), ("site-2",), ("site-1", "site-2"), ("nowhere",)])
async def test_nobody_grants_more_sites_than_they_have(
    local_admin: Any, hospital_admin: Any, sites: tuple[str, ...]
) -> None:
    request = principal(site_ids=sites)
    assert await local_admin.reason("CreatePrincipal", request) is Reason.NOT_IN_SCOPE
    if sites == ("nowhere",):
        assert await hospital_admin.reason("CreatePrincipal", request) is Reason.NOT_IN_SCOPE
        return
    await hospital_admin.call("CreatePrincipal", request)
    disable = pb.DisablePrincipalRequest(principal_id="p-new")
    assert await local_admin.reason("DisablePrincipal", disable) is Reason.NOT_IN_SCOPE
    issue = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr())
    assert await local_admin.reason("IssueCredential", issue) is Reason.NOT_IN_SCOPE


async def test_a_site_of_another_organization_is_nobodys_to_grant(world: World, hospital_admin: Any) -> None:
    request = principal(site_ids=("clinic-1",))
    assert await hospital_admin.reason("CreatePrincipal", request) is Reason.NOT_IN_SCOPE
    assert await world.admin().reason("CreatePrincipal", request) is Reason.NOT_IN_SCOPE


async def test_a_disabled_person_gets_nothing(world: World, local_admin: Any) -> None:
    await local_admin.call("CreatePrincipal", principal())
    disable = pb.DisablePrincipalRequest(principal_id="p-new")
    for _ in range(2):
        made = await local_admin.call("DisablePrincipal", disable)
        assert made.state == pb.PRINCIPAL_STATE_DISABLED
    issue = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr())
    assert await local_admin.reason("IssueCredential", issue) is Reason.STATE_CONFLICT
    approve = pb.ApprovePrincipalRequest(principal_id="p-new")
    assert (
        await world.person("p-second", "admin").reason("ApprovePrincipal", approve) is Reason.STATE_CONFLICT
    )
    renew = pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr())
    assert await world.person("p-new", "technician").reason("RenewCredential", renew) is Reason.STATE_CONFLICT


async def test_a_person_sees_themselves_and_their_organization(world: World, local_admin: Any) -> None:
    await local_admin.call("CreatePrincipal", principal())
    request = pb.GetPrincipalRequest(principal_id="p-new")
    for caller in (world.person("p-new", "technician"), world.person("p-x", "technician"), world.admin()):
        assert (await caller.call("GetPrincipal", request)).principal_id == "p-new"
    outsider = world.person("p-out", "admin", organization=CLINIC, sites=("*",))
    refusal = await outsider.refusal("GetPrincipal", request)
    assert refusal.reason is Reason.NOT_IN_SCOPE
    absent = await outsider.refusal("GetPrincipal", pb.GetPrincipalRequest(principal_id="p-absent"))
    assert absent.refusals == refusal.refusals


async def names(caller: Any, method: str, request: Any, size: int = 2) -> list[str]:
    """Every name of a list, page by page."""
    found: list[str] = []
    request.page_size = size
    while True:
        answer = await caller.call(method, request)
        (rows,) = [value for field, value in answer.ListFields() if field.name != "next_page_token"] or [[]]
        assert len(rows) <= size
        found += [row.ListFields()[0][1] for row in rows]
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_lists_are_paged_and_hold_what_the_caller_may_see(world: World, hospital_admin: Any) -> None:
    for number in range(5):
        await world.admin().call("CreateSite", site_request(HOSPITAL, f"ward-{number}"))
        await hospital_admin.call("CreatePrincipal", principal(f"p-n{number}", site_ids=("*",)))
        await hospital_admin.call("CreateGateway", gateway(f"g{number}", site_id=f"ward-{number}"))
    everything = ["clinic-1", "site-1", "site-2", *(f"ward-{number}" for number in range(5))]
    assert await names(world.admin(), "ListSites", pb.ListSitesRequest()) == everything
    assert await names(hospital_admin, "ListSites", pb.ListSitesRequest()) == everything[1:]
    narrow = world.person("p-narrow", "technician", sites=("site-2", "ward-4"))
    assert await names(narrow, "ListSites", pb.ListSitesRequest(), 1) == ["site-2", "ward-4"]
    assert await names(narrow, "ListGateways", pb.ListGatewaysRequest()) == ["g4"]
    assert await names(hospital_admin, "ListGateways", pb.ListGatewaysRequest(site_id="ward-1")) == ["g1"]
    assert await names(narrow, "ListGateways", pb.ListGatewaysRequest(site_id="ward-1")) == []
    people = [f"p-n{number}" for number in range(5)]
    assert await names(hospital_admin, "ListPrincipals", pb.ListPrincipalsRequest()) == people
    assert await names(narrow, "ListOrganizations", pb.ListOrganizationsRequest()) == [HOSPITAL]
    assert await names(world.admin(), "ListOrganizations", pb.ListOrganizationsRequest()) == [
        CLINIC,
        HOSPITAL,
        "operator",
    ]


async def test_a_token_belongs_to_its_list(world: World) -> None:
    first = await world.admin().call("ListSites", pb.ListSitesRequest(page_size=1))
    for request in (
        ("ListOrganizations", pb.ListOrganizationsRequest(page_token=first.next_page_token)),
        ("ListSites", pb.ListSitesRequest(page_token="!!!")),
        ("ListSites", pb.ListSitesRequest(page_token="x" * 1000)),
        ("ListSites", pb.ListSitesRequest(page_size=-1)),
    ):
        assert await world.admin().reason(*request) is Reason.FIELD_INVALID


async def test_a_restart_keeps_everything(world: World, local_admin: Any) -> None:
    await local_admin.call("CreateGateway", gateway())
    await local_admin.call("CreatePrincipal", principal("p-new", "admin"))
    kinds = ("organization", "site", "gateway", "principal", "device", "credential")
    before = [await world.told(kind) for kind in kinds]
    await world.restart()
    assert [await world.told(kind) for kind in kinds] == before
    found = await world.admin().call("GetGateway", pb.GetGatewayRequest(gateway_id="gateway-1"))
    assert found.address == "gw.example:7450"


def test_the_migrations_lead_to_the_tables() -> None:
    from vigil.storage import assert_migrations_match

    assert_migrations_match(store.METADATA, store.MIGRATIONS)
