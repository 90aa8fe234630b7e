"""What the authority issues, to whom, for how long, and what it refuses to issue."""

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.pki import DEVICE, TestPki
from vigil.core.certificates import (
    STATEMENT_SIGNING_OID,
    ChainVerifier,
    Grant,
    Kind,
    make_request,
    milliseconds,
    trust_domain_of,
)
from vigil.core.clock import ManualClock
from vigil.core.keys import P256_ORDER, new_private_key
from vigil.errors import Reason, Refused
from vigil.identity import pki
from vigil.identity.ca import CertificateAuthority, Issued

PERSON = Grant(
    kind=Kind.PERSON, subject_id="p-a", organization="hospital", sites=("site-1",), roles=("safety",)
)
GATEWAY = Grant(kind=Kind.GATEWAY, subject_id="gateway-1", organization="hospital", sites=("site-1",))
DEVICE_GRANT = Grant(kind=Kind.DEVICE, subject_id=DEVICE, organization="hospital", sites=("site-1",))
SERVICE = Grant(kind=Kind.SERVICE, subject_id="policy", organization="*", sites=("*",))


class Domain:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.pki = TestPki(folder, clock=self.clock)
        self.authority = CertificateAuthority.load(
            self.pki.directory / "pki", clock=self.clock, entropy=os.urandom
        )

    def issue(self, grant: Grant, profile: pki.Profile) -> Issued:
        return self.authority.issue_from_csr(make_request(new_private_key()), grant, profile)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return Domain(tmp_path)


@pytest.mark.parametrize(
    ("grant", "profile", "operational", "grace"),
    [
        (SERVICE, pki.SERVICE, pki.DAY, 0),
        (GATEWAY, pki.GATEWAY, 7 * pki.DAY, 23 * pki.DAY),
        (PERSON, pki.PERSON, 12 * pki.HOUR, 0),
        (PERSON, pki.SAFETY, 12 * pki.HOUR, 72 * pki.HOUR),
        (DEVICE_GRANT, pki.DEVICE, 90 * pki.DAY, 15 * pki.YEAR - 90 * pki.DAY),
    ],
)
def test_both_ends_are_the_profiles(
    domain: Domain, grant: Grant, profile: pki.Profile, operational: int, grace: int
) -> None:
    now = domain.clock.now()
    identity = domain.issue(grant, profile).identity
    assert identity.operational_until == now + operational
    assert identity.not_after == (now + operational + grace) // 1000 * 1000


def test_gateways_and_devices_begin_with_the_root_and_the_others_now(domain: Domain) -> None:
    root = milliseconds(domain.pki.bundle.root.not_valid_before_utc)
    domain.clock.advance(30 * 86_400)
    now = domain.clock.now()
    for grant, profile in ((GATEWAY, pki.GATEWAY), (DEVICE_GRANT, pki.DEVICE)):
        assert domain.issue(grant, profile).identity.not_before == root
    for grant, profile in ((SERVICE, pki.SERVICE), (PERSON, pki.PERSON)):
        assert domain.issue(grant, profile).identity.not_before == (now - pki.SKEW) // 1000 * 1000


def test_the_grant_decides_and_the_requests_names_do_not(domain: Domain) -> None:
    key = new_private_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "policy")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("policy.vigil.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    issued = domain.authority.issue_from_csr(request, PERSON, pki.PERSON)
    leaf = x509.load_der_x509_certificate(issued.chain_der[0])
    assert issued.identity.spiffe_id == "spiffe://vigil.test/person/p-a"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["person.vigil.test"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.subject.rfc4514_string() == "CN=p-a"
    assert leaf.public_key() == key.public_key()


def test_people_and_devices_cannot_serve_and_signers_cannot_speak_tls(domain: Domain) -> None:
    def usages(leaf: x509.Certificate) -> list[x509.ObjectIdentifier]:
        return list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    def issued(grant: Grant, profile: pki.Profile) -> x509.Certificate:
        return x509.load_der_x509_certificate(domain.issue(grant, profile).chain_der[0])

    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    assert usages(issued(PERSON, pki.PERSON)) == [client]
    assert usages(issued(DEVICE_GRANT, pki.DEVICE)) == [client]
    assert usages(issued(SERVICE, pki.SERVICE)) == [client, server]
    assert usages(issued(GATEWAY, pki.GATEWAY)) == [client, server]
    assert usages(domain.pki.signer_credential("head").certificate) == [STATEMENT_SIGNING_OID]


def test_a_device_gets_a_certificate_for_its_statements_beside_that_for_tls(domain: Domain) -> None:
    grant = Grant(
        kind=Kind.DEVICE,
        subject_id=DEVICE,
        organization="hospital",
        sites=("site-1",),
        statements=("receipt", "evidence"),
    )
    issued = domain.issue(grant, pki.DEVICE)
    assert issued.identity.statements == ("evidence", "receipt")
    verifier = ChainVerifier(domain.pki.bundle)
    assert verifier.verify(issued.chain_der, at=domain.clock.now()) == issued.identity


def test_a_shorter_end_is_granted_and_a_longer_one_is_not(domain: Domain) -> None:
    now = domain.clock.now()
    asked = Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", operational_until=now + pki.HOUR)
    identity = domain.issue(asked, pki.PERSON).identity
    assert identity.operational_until == now + pki.HOUR
    for until in (now, now - 1, now + 12 * pki.HOUR + 1):
        wrong = Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", operational_until=until)
        with pytest.raises(Refused) as caught:
            domain.issue(wrong, pki.PERSON)
        assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("grant", "profile"),
    [
        (PERSON, pki.GATEWAY),
        (GATEWAY, pki.PERSON),
        (DEVICE_GRANT, pki.SERVICE),
        (Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", sites=("s",)), pki.SAFETY),
        (Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", roles=("safety",)), pki.SAFETY),
        (
            Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", roles=("safety",), sites=("*",)),
            pki.SAFETY,
        ),
        (
            Grant(kind=Kind.PERSON, subject_id="p-a", organization="h", roles=("safety",), sites=("a", "b")),
            pki.SAFETY,
        ),
    ],
)
def test_a_profile_that_does_not_fit(domain: Domain, grant: Grant, profile: pki.Profile) -> None:
    with pytest.raises(Refused) as caught:
        domain.issue(grant, profile)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_no_online_authority_issues_a_signer(domain: Domain) -> None:
    grant = Grant(kind=Kind.SIGNER, subject_id="decision", organization="*", statements=("decision",))
    profile = pki.Profile(name="signer", kind=Kind.SIGNER, operational=pki.DAY, grace=0)
    with pytest.raises(Refused) as caught:
        domain.issue(grant, profile)
    assert caught.value.reason is Reason.STATE_CONFLICT


def test_without_possession_nothing_is_issued(domain: Domain) -> None:
    request = x509.load_pem_x509_csr(make_request(new_private_key()))
    signature = bytearray(request.signature)
    signature[-1] ^= 1
    der = request.public_bytes(Encoding.DER).replace(request.signature, bytes(signature))
    broken = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    with pytest.raises(Refused) as caught:
        domain.authority.issue_from_csr(broken, PERSON, pki.PERSON)
    assert caught.value.reason is Reason.POSSESSION_NOT_PROVED


def test_an_issuer_that_has_ended_issues_nothing(domain: Domain) -> None:
    domain.clock.advance(pki.ISSUERS_LIFE / 1000 + 86_400)
    with pytest.raises(Refused) as caught:
        domain.issue(PERSON, pki.PERSON)
    assert caught.value.reason is Reason.STATE_CONFLICT
    # The devices' own lives as long as the root.
    assert domain.issue(DEVICE_GRANT, pki.DEVICE).identity.id == DEVICE


def test_an_authority_with_anothers_keys_does_not_start(domain: Domain) -> None:
    other = domain.pki.other_domain()
    with pytest.raises(Refused) as caught:
        CertificateAuthority(
            bundle=domain.pki.bundle, issuers=other.issuers, clock=domain.clock, entropy=os.urandom
        )
    assert caught.value.reason is Reason.CERTIFICATE_INVALID
    folder = domain.pki.directory / "pki" / "intermediates"
    (folder / "person.key").unlink()
    (folder / "gateway.key").rename(folder / "person.key")
    with pytest.raises((Refused, OSError)):
        CertificateAuthority.load(domain.pki.directory / "pki", clock=domain.clock, entropy=os.urandom)


def test_every_signature_has_its_low_form_and_serials_are_never_the_same(domain: Domain) -> None:
    leaves = [
        x509.load_der_x509_certificate(domain.issue(PERSON, pki.PERSON).chain_der[0]) for _ in range(16)
    ]
    assert all(decode_dss_signature(leaf.signature)[1] <= P256_ORDER // 2 for leaf in leaves)
    assert len({leaf.serial_number for leaf in leaves}) == 16
    assert all(0 < leaf.serial_number < 2**159 for leaf in leaves)


def test_the_root_names_its_trust_domain(domain: Domain) -> None:
    root = domain.pki.bundle.root
    assert trust_domain_of(root) == "vigil.test"
    assert milliseconds(root.not_valid_after_utc) - domain.clock.now() > 29 * pki.YEAR


def test_the_largest_grant_in_the_longest_trust_domain_fits_an_x5chain(tmp_path: Path) -> None:
    trust_domain = ".".join("d" * 31 for _ in range(2)) + "d"
    assert len(trust_domain) == 64
    authority = TestPki(tmp_path, trust_domain=trust_domain).authority
    grant = Grant(
        kind=Kind.PERSON,
        subject_id="p-" + "a" * 61,
        organization="o" * 63,
        sites=tuple(f"{n:02}" + "s" * 61 for n in range(32)),
        roles=tuple(f"{n:02}" + "r" * 61 for n in range(12)),
        authenticated="a" * 63,
    )
    issued = authority.issue_from_csr(make_request(new_private_key()), grant, pki.PERSON)
    assert 3500 < len(issued.chain_der[0]) <= 4096
