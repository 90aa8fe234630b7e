"""Certificates for people, gateways, services and devices: to whom, for how long, and what is refused."""

import asyncio
from typing import Any

import pytest

from tests.unit.identity.test_registry import gateway, principal
from tests.unit.identity.world import CLINIC, Bench, Caller, World, csr
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.certificates import Kind, read_chain
from vigil.core.keys import key_thumbprint, new_private_key
from vigil.errors import Reason, Refused
from vigil.identity import domain

HOUR, DAY = domain.HOUR, domain.DAY


@pytest.fixture
def admin(world: World) -> Caller:
    return world.person("p-local", "admin", sites=("*",))


async def made(world: World, admin: Caller, *roles: str, **values: Any) -> None:
    await admin.call("CreatePrincipal", principal("p-new", *roles, **values))
    if not domain.PRIVILEGED.isdisjoint(roles):
        second = world.person("p-second", "admin", sites=("*",))
        await second.call("ApprovePrincipal", pb.ApprovePrincipalRequest(principal_id="p-new"))


def issue(lifetime_s: int = 0) -> pb.IssueCredentialRequest:
    return pb.IssueCredentialRequest(principal_id="p-new", csr_pem=csr(), lifetime_s=lifetime_s)


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize(
    ("roles", "asked_s", "lives"),
    [
        (("technician",), 0, (12 * HOUR, 0)),
        (("technician",), 30 * 86_400, (30 * DAY, 0)),
        (("technician",), 60, (60_000, 0)),
        (("admin",), 0, (12 * HOUR, 0)),
        (("approver", "technician"), 3600, (HOUR, 0)),
        (("safety",), 0, (12 * HOUR, 72 * HOUR)),
        (("safety", "approver"), 600, (600_000, 72 * HOUR)),
    ],
)
async def test_a_credential_lives_as_its_roles_allow(
    world: World, admin: Caller, roles: tuple[str, ...], asked_s: int, lives: tuple[int, int]
) -> None:
    operational, grace = lives
    await made(world, admin, *roles)
    before = world.clock.now()
    credential = await admin.call("IssueCredential", issue(asked_s))
    after = world.clock.now()
    # X.509 names whole seconds.
    assert before + operational - 1000 < credential.operational_until_ms <= after + operational
    assert abs(credential.not_after_ms - credential.operational_until_ms - grace) < 1000
    chain = read_chain(credential.certificate_pem.encode())
    identity = world.ports.trust.verifier.verify(chain, at=after, kinds=frozenset({Kind.PERSON}))
    assert (identity.id, identity.roles, identity.sites) == ("p-new", tuple(sorted(roles)), ("site-1",))
    assert credential.thumbprint == identity.thumbprint.hex()
    assert credential.issued_by == "p-local"
    site, value = (await world.told("credential"))[credential.thumbprint]
    told = pb.Credential.FromString(value)
    assert (site, told.certificate_pem, told.principal_id) == ("", "", "p-new")


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize(
    ("roles", "asked_s"),
    [
        (("technician",), 30 * 86_400 + 1),
        (("technician",), -1),
        (("technician",), 59),
        (("technician",), 2**62),
        (("admin",), 12 * 3600 + 1),
        (("safety",), 12 * 3600 + 1),
    ],
)
async def test_no_credential_lives_longer(
    world: World, admin: Caller, roles: tuple[str, ...], asked_s: int
) -> None:
    await made(world, admin, *roles)
    assert await admin.reason("IssueCredential", issue(asked_s)) is Reason.FIELD_INVALID
    assert not await world.told("credential")


async def test_a_person_renews_their_own_while_it_is_valid(world: World, admin: Caller) -> None:
    await made(world, admin, "technician")
    person = world.person("p-new", "technician")
    renewed = await person.call(
        "RenewCredential", pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr())
    )
    assert renewed.operational_until_ms <= world.clock.now() + 12 * HOUR
    other = pb.RenewCredentialRequest(principal_id="p-local", csr_pem=csr())
    assert await person.reason("RenewCredential", other) is Reason.NOT_IN_SCOPE
    world.clock.ahead = 13 * HOUR
    late = pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr())
    assert await person.reason("RenewCredential", late) is Reason.CERTIFICATE_EXPIRED


async def test_renewal_follows_the_registry_not_the_old_certificate(world: World, admin: Caller) -> None:
    await made(world, admin, "technician")
    inflated = world.person("p-new", "technician", "admin", sites=("*",))
    request = pb.RenewCredentialRequest(principal_id="p-new", csr_pem=csr())
    renewed = await inflated.call("RenewCredential", request)
    assert (list(renewed.roles), list(renewed.site_ids)) == (["technician"], ["site-1"])


async def test_credentials_are_shown_to_their_organization(world: World, admin: Caller) -> None:
    await made(world, admin, "technician")
    credentials = [await admin.call("IssueCredential", issue()) for _ in range(3)]
    thumbprints = sorted(one.thumbprint for one in credentials)
    page = await admin.call("ListCredentials", pb.ListCredentialsRequest(page_size=2, principal_id="p-new"))
    rest = await admin.call(
        "ListCredentials",
        pb.ListCredentialsRequest(page_size=2, principal_id="p-new", page_token=page.next_page_token),
    )
    assert [one.thumbprint for one in (*page.credentials, *rest.credentials)] == thumbprints
    request = pb.GetCredentialRequest(thumbprint=thumbprints[0])
    for caller in (admin, world.person("p-new", "technician"), world.person("p-x", "auditor")):
        assert (await caller.call("GetCredential", request)).principal_id == "p-new"
    outsider = world.person("p-out", "admin", organization=CLINIC, sites=("*",))
    absent = pb.GetCredentialRequest(thumbprint="0" * 64)
    assert (await outsider.refusal("GetCredential", request)).refusals == (
        await outsider.refusal("GetCredential", absent)
    ).refusals
    assert not (await outsider.call("ListCredentials", pb.ListCredentialsRequest())).credentials


@pytest.mark.parametrize("bad", ["", "no request", "-----BEGIN CERTIFICATE REQUEST-----\n"])
async def test_a_request_that_is_none_is_refused(world: World, admin: Caller, bad: str) -> None:
    await made(world, admin, "technician")
    request = pb.IssueCredentialRequest(principal_id="p-new", csr_pem=bad)
    assert await admin.reason("IssueCredential", request) is Reason.FIELD_INVALID


async def test_a_gateway_renews_itself_even_past_its_operational_end(world: World, admin: Caller) -> None:
    await admin.call("CreateGateway", gateway())
    caller = world.gateway()
    request = pb.RenewGatewayCertificateRequest(gateway_id="gateway-1", csr_pem=csr())
    first = await caller.call("RenewGatewayCertificate", request)
    now = world.clock.now()
    ended = world.caller(world.pki.gateway(operational_until=now + 1000, not_after=now + 20 * DAY))
    world.clock.ahead = DAY
    report = pb.ReportDevicesRequest(gateway_id="gateway-1")
    assert await ended.reason("ReportDevices", report) is Reason.CERTIFICATE_EXPIRED
    again = pb.RenewGatewayCertificateRequest(gateway_id="gateway-1", csr_pem=csr())
    second = await ended.call("RenewGatewayCertificate", again)
    assert second.operational_until_ms > first.operational_until_ms
    thumbprint = world.ports.trust.verifier.remember(read_chain(second.certificate_pem.encode())).thumbprint
    world.clock.ahead = 0
    shown = await admin.call("GetGateway", pb.GetGatewayRequest(gateway_id="gateway-1"))
    assert shown.certificate_thumbprint == thumbprint.hex()
    other = pb.RenewGatewayCertificateRequest(gateway_id="gateway-2", csr_pem=csr())
    assert await caller.reason("RenewGatewayCertificate", other) is Reason.NOT_IN_SCOPE
    unknown = world.gateway("gateway-9")
    unregistered = pb.RenewGatewayCertificateRequest(gateway_id="gateway-9", csr_pem=csr())
    assert await unknown.reason("RenewGatewayCertificate", unregistered) is Reason.NOT_IN_SCOPE


async def test_a_service_renews_itself(world: World) -> None:
    caller = world.caller(world.pki.service("policy"))
    request = pb.RenewServiceCertificateRequest(role="policy", csr_pem=csr())
    answer = await caller.call("RenewServiceCertificate", request)
    identity = world.ports.trust.verifier.remember(read_chain(answer.certificate_pem.encode()))
    assert (identity.kind, identity.id, identity.has_role("policy")) == (Kind.SERVICE, "policy", True)
    other = pb.RenewServiceCertificateRequest(role="evidence", csr_pem=csr())
    assert await caller.reason("RenewServiceCertificate", other) is Reason.NOT_IN_SCOPE


def renewal(bench: Bench, at: int, **changed: Any) -> pb.RenewDeviceCertificatesRequest:
    nonce = changed.pop("nonce", domain.renewal_nonce(bench.device_id, at))
    return pb.RenewDeviceCertificatesRequest(
        device_id=bench.device_id, possession=bench.possession(nonce, **changed)
    )


async def test_a_device_renews_with_its_identity_key(world: World) -> None:
    bench = await world.active("SN-1")
    bench.tls_key = new_private_key()
    now = world.clock.now()
    answer = await world.gateway().call("RenewDeviceCertificates", renewal(bench, now))
    verifier = world.ports.trust.verifier
    tls = verifier.verify(list(answer.tls_chain), at=world.clock.now())
    assert tls.key_thumbprint == key_thumbprint(bench.tls_key.public_key())
    attestation = verifier.verify(list(answer.attestation_chain), at=world.clock.now())
    told = pb.Device.FromString((await world.told("device"))[bench.device_id][1])
    assert told.attestation_certificate == attestation.thumbprint
    assert list(told.attestation_chain) == list(answer.attestation_chain)
    # The same nonce, or one before it, never again.
    for at in (now, now - 1):
        assert (
            await world.gateway().reason("RenewDeviceCertificates", renewal(bench, at)) is Reason.NONCE_USED
        )
    await world.gateway().call("RenewDeviceCertificates", renewal(bench, now + 1))


@pytest.mark.holds("cloned-device")
async def test_one_renewal_wins_a_race(world: World) -> None:
    bench = await world.active("SN-1")
    now = world.clock.now()
    outcomes = await asyncio.gather(
        *(world.gateway().call("RenewDeviceCertificates", renewal(bench, now)) for _ in range(4)),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert {one.reason for one in outcomes if isinstance(one, Refused)} == {Reason.NONCE_USED}


@pytest.mark.holds("cloned-device")
@pytest.mark.parametrize(
    ("offset", "changed", "reason"),
    [
        (-domain.RENEWAL_FRESHNESS - 5_000, {}, Reason.NONCE_EXPIRED),
        (domain.RENEWAL_FRESHNESS + 60_000, {}, Reason.NONCE_EXPIRED),
        (0, {"nonce": b"\x01" * 32}, Reason.NONCE_UNKNOWN),
        (0, {"nonce": b""}, Reason.NONCE_UNKNOWN),
        (0, {"nonce": b"dev-aaaaaaaaaaaaaaaa" + b"\x00" * 8}, Reason.NONCE_UNKNOWN),
        (0, {"signing": new_private_key()}, Reason.POSSESSION_NOT_PROVED),
        (0, {"signature": b"\x00" * 64}, Reason.POSSESSION_NOT_PROVED),
    ],
)
async def test_a_renewal_without_proof_is_refused(
    world: World, offset: int, changed: dict[str, Any], reason: Reason
) -> None:
    bench = await world.active("SN-1")
    before = await world.told("device")
    request = renewal(bench, world.clock.now() + offset, **changed)
    assert await world.gateway().reason("RenewDeviceCertificates", request) is reason
    assert await world.told("device") == before


@pytest.mark.holds("speaks-as-another")
async def test_a_renewal_comes_through_a_gateway_of_the_site(world: World) -> None:
    bench = await world.active("SN-1")
    request = renewal(bench, world.clock.now())
    elsewhere = world.gateway("gateway-2", sites=("site-2",))
    refusal = await elsewhere.refusal("RenewDeviceCertificates", request)
    absent = Bench(world.maker, "SN-9")
    nowhere = await elsewhere.refusal("RenewDeviceCertificates", renewal(absent, world.clock.now()))
    assert refusal.reason is Reason.NOT_IN_SCOPE
    assert refusal.refusals == nowhere.refusals


@pytest.mark.holds("speaks-as-another")
async def test_a_renewal_does_not_take_another_devices_key(world: World) -> None:
    first, second = await world.active("SN-1"), await world.active("SN-2")
    second.attestation_key = first.attestation_key
    request = renewal(second, world.clock.now())
    assert await world.gateway().reason("RenewDeviceCertificates", request) is Reason.KEY_ALREADY_ENROLLED


@pytest.mark.parametrize(
    ("state", "reason"),
    [(domain.DeviceState.BANNED, Reason.DEVICE_REVOKED), (domain.DeviceState.RETIRED, Reason.STATE_CONFLICT)],
)
async def test_a_banned_or_retired_device_gets_nothing(
    world: World, state: domain.DeviceState, reason: Reason
) -> None:
    from vigil.identity import store

    bench = await world.active("SN-1")
    await world.database.write(
        lambda connection: store.change(connection, domain.Device, bench.device_id, state=state)
    )
    request = renewal(bench, world.clock.now())
    assert await world.gateway().reason("RenewDeviceCertificates", request) is reason
