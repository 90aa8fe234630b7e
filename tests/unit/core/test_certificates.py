"""Who is accepted, and every way of not being."""

import datetime as dt
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import DEVICE, ORGANIZATION, SITE, Credential, Manufacturer, TestPki
from vigil.core import cbor
from vigil.core.certificates import (
    EVERY,
    GRANT_OID,
    STATEMENT_SIGNING_OID,
    ChainVerifier,
    Grant,
    Kind,
    TrustBundle,
    decode_grant,
    encode_grant,
    load_pair,
    make_request,
    milliseconds,
    name_constraints,
    read_request,
    spiffe_id,
    store_pair,
)
from vigil.core.digest import sha256
from vigil.core.keys import P256_ORDER, new_private_key
from vigil.errors import Reason, Refused
from vigil.identity import pki as issuing

DAY = 86_400_000


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("domain"))


@pytest.fixture(scope="module")
def maker(domain: TestPki) -> Manufacturer:
    return domain.manufacturer("maker")


@pytest.fixture(scope="module")
def foreign(domain: TestPki) -> TestPki:
    return domain.other_domain()


def refusal(domain: TestPki, credential: Credential, at: int | None = None, **options: object) -> Refused:
    with pytest.raises(Refused) as caught:
        # A verifier of its own: nothing is cached.
        ChainVerifier(domain.bundle).verify(
            credential.chain,
            at=domain.clock.now() if at is None else at,
            **options,  # type: ignore[arg-type]
        )
    return caught.value


def forge(domain: TestPki, kind: Kind = Kind.GATEWAY, **changes: object) -> Credential:
    """A gateway's certificate by the right issuer, with one thing wrong."""
    key = new_private_key()
    issuer = changes.pop("issuer", domain.issuers[kind] if kind is not Kind.SIGNER else domain.root)
    assert isinstance(issuer, issuing.Issuer)
    subject = "gateway-1" if kind is Kind.GATEWAY else "decision"
    grant = encode_grant(
        Grant(kind=kind, subject_id=subject, organization=ORGANIZATION, sites=(SITE,))
        if kind is Kind.GATEWAY
        else Grant(kind=kind, subject_id=subject, organization="operator", statements=("decision",))
    )
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(spiffe_id(domain.trust_domain, kind, subject)),
    ]
    if kind is Kind.GATEWAY:
        names.append(x509.DNSName(f"{subject}.gateway.{domain.trust_domain}"))
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    extensions: dict[str, tuple[x509.ExtensionType, bool] | None] = {
        "basic": (x509.BasicConstraints(ca=False, path_length=None), True),
        "usage": (issuing._key_usage(digital_signature=True), True),
        "extended": (
            x509.ExtendedKeyUsage(usage if kind is Kind.GATEWAY else [STATEMENT_SIGNING_OID]),
            kind is Kind.SIGNER,
        ),
        "names": (x509.SubjectAlternativeName(names), False),
        "grant": (x509.UnrecognizedExtension(GRANT_OID, grant), False),
        "identifier": (
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.private_key.public_key()),
            False,
        ),
        **changes,  # type: ignore[dict-item]
    }
    now = domain.clock.now()
    builder = issuing._builder(
        (subject, issuing._name_of(issuer)), key.public_key(), (now - 1000, now + DAY), os.urandom
    )
    for extension in extensions.values():
        if extension is not None:
            builder = builder.add_extension(extension[0], critical=extension[1])
    leaf = issuing._signed(builder, issuer.private_key)
    return domain._stored(
        subject, key, (leaf, *(() if kind is Kind.SIGNER else (issuer.certificate,))), known=False
    )


def names_of(*names: x509.GeneralName) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName(names), False


# What is accepted


def test_every_tls_kind_is_known_by_its_own_name(domain: TestPki) -> None:
    gateway = domain.gateway("gateway-7", sites=("site-1", "site-2"), organization="hospital-b")
    identity = domain.verifier.verify(gateway.chain, at=domain.clock.now(), kinds=frozenset({Kind.GATEWAY}))
    assert (identity.kind, identity.id, identity.organization) == (Kind.GATEWAY, "gateway-7", "hospital-b")
    assert identity.sites == ("site-1", "site-2")
    assert identity.spiffe_id == "spiffe://vigil.test/gateway/gateway-7"
    assert identity.thumbprint == sha256(gateway.chain[0])
    names = gateway.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway-7.gateway.vigil.test"]
    for other in (domain.service("policy"), domain.person("p-a", "approver"), domain.device()):
        assert domain.verifier.verify(other.chain, at=domain.clock.now()) == other.identity


def test_the_unchanged_forgery_is_accepted(domain: TestPki) -> None:
    for kind in (Kind.GATEWAY, Kind.SIGNER):
        identity = domain.verifier.verify(forge(domain, kind).chain, at=domain.clock.now())
        assert identity.kind is kind


def test_an_ed25519_key_is_accepted(domain: TestPki) -> None:
    person = domain.person("p-edwards", private_key=Ed25519PrivateKey.generate())
    assert domain.verifier.verify(person.chain, at=domain.clock.now()).id == "p-edwards"


def test_a_known_leaf_is_answered_from_memory_whatever_is_sent_beside_it(domain: TestPki) -> None:
    verifier = ChainVerifier(domain.bundle, max_cached=2)
    first, second, third = (domain.gateway(f"gateway-c{n}") for n in range(3))
    at = domain.clock.now()
    one = verifier.verify(first.chain, at=at)
    assert verifier.verify(first.chain[:1], at=at) is one
    verifier.verify(second.chain, at=at)
    verifier.verify(third.chain, at=at)
    assert verifier.by_thumbprint(first.signer.certificate_thumbprint) is None
    assert verifier.by_thumbprint(third.signer.certificate_thumbprint) is not None


def test_the_peers_intermediate_is_never_used(domain: TestPki, foreign: TestPki) -> None:
    gateway = domain.gateway()
    chain = (gateway.chain[0], foreign.gateway().chain[1])
    assert ChainVerifier(domain.bundle).verify(chain, at=domain.clock.now()).id == gateway.identity.id


def test_a_device_attests_with_a_certificate_that_no_tls_stack_takes(domain: TestPki) -> None:
    attester = domain.attester()
    assert attester.identity.statements == ("acknowledgement", "evidence", "receipt")
    usage = attester.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (list(usage.value), usage.critical) == ([STATEMENT_SIGNING_OID], True)
    assert domain.device().identity.statements == ()


def test_signers_of_the_root_and_of_the_manufacturer(domain: TestPki, maker: Manufacturer) -> None:
    decision = domain.signer_credential("decision").identity
    assert decision.may_sign("decision")
    assert not decision.may_sign("recorded")
    voucher = domain.verifier.verify(maker.credential("voucher").chain, at=domain.clock.now())
    assert (voucher.organization, voucher.statements) == ("maker", ("voucher",))
    assert not domain.person("p-signer", "approver").identity.may_sign("decision")


def test_the_bundles_signers_and_root_are_known_without_their_chains(domain: TestPki) -> None:
    verifier = ChainVerifier(domain.bundle, max_cached=1)
    verifier.verify(domain.gateway("gateway-x").chain, at=domain.clock.now())
    spare = domain.signer_credential("head", spare=True)
    assert verifier.by_thumbprint(spare.signer.certificate_thumbprint) == spare.identity
    root = verifier.by_thumbprint(sha256(domain.bundle.root.public_bytes(Encoding.DER)))
    assert root is verifier.root_identity
    assert root.may_sign("era")
    assert not root.may_sign("decision")
    assert not root.operator


def test_scope_and_roles_name_what_they_cover(domain: TestPki) -> None:
    person = domain.person("p-scope", "technician", organization="hospital", sites=("site-1",)).identity
    assert person.covers_site("hospital", "site-1")
    assert not person.covers_site("hospital", "site-2")
    assert not person.covers_site("clinic", "site-1")
    assert not person.covers_site("hospital", "")
    assert not person.covers_site("", "site-1")
    assert person.has_role("admin", "technician")
    assert not person.has_role("admin")
    assert not person.has_role()
    everywhere = domain.person("p-every", organization="hospital", sites=(EVERY,)).identity
    assert everywhere.covers_site("hospital", "site-9")
    assert not everywhere.covers_site("clinic", "site-9")
    assert not everywhere.covers_site("hospital", "")
    admin = domain.admin().identity
    assert admin.operator
    assert admin.covers_organization("clinic")
    assert admin.covers_site("clinic", "site-9")
    nobody = domain.person("p-none", organization="hospital", sites=()).identity
    assert not nobody.covers_site("hospital", "site-1")
    assert domain.service("policy").identity.has_role("policy")


# Time


def test_validity_is_judged_at_every_call(domain: TestPki) -> None:
    now = domain.clock.now() // 1000 * 1000
    gateway = domain.gateway("gateway-t", operational_until=now + 7 * DAY, not_after=now + 30 * DAY)
    verifier = ChainVerifier(domain.bundle)
    assert verifier.verify(gateway.chain, at=now + 7 * DAY).operational_until == now + 7 * DAY
    with pytest.raises(Refused) as caught:
        verifier.verify(gateway.chain, at=now + 7 * DAY + 1)
    assert caught.value.reason is Reason.CERTIFICATE_EXPIRED
    assert verifier.verify(gateway.chain, at=now + 30 * DAY, grace=True).not_after == now + 30 * DAY
    with pytest.raises(Refused) as caught:
        verifier.verify(gateway.chain, at=now + 30 * DAY + 1, grace=True)
    assert caught.value.reason is Reason.CERTIFICATE_EXPIRED
    with pytest.raises(Refused) as caught:
        verifier.verify(gateway.chain, at=gateway.identity.not_before - 1)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID
    thumbprint = gateway.signer.certificate_thumbprint
    assert verifier.valid_at(thumbprint, at=now) == gateway.identity
    assert verifier.valid_at(thumbprint, at=now + 8 * DAY, grace=True) == gateway.identity
    for at, grace in ((now + 8 * DAY, False), (now + 31 * DAY, True), (0, True)):
        with pytest.raises(Refused):
            verifier.valid_at(thumbprint, at=at, grace=grace)
    assert verifier.valid_at(bytes(32), at=now) is None


def test_an_operational_end_past_the_certificates_own_is_the_certificates(domain: TestPki) -> None:
    now = domain.clock.now() // 1000 * 1000
    gateway = domain.gateway("gateway-u", operational_until=now + 9 * DAY, not_after=now + DAY)
    assert gateway.identity.operational_until == now + DAY


def test_a_path_ends_with_its_first_certificate_to_end(domain: TestPki) -> None:
    intermediate_end = milliseconds(domain.issuers[Kind.PERSON].certificate.not_valid_after_utc)
    person = domain.person("p-old", not_after=intermediate_end + 400 * DAY)
    assert person.identity.not_after == intermediate_end


def test_an_expired_certificate_is_still_known_for_what_it_signed(domain: TestPki) -> None:
    now = domain.clock.now()
    person = domain.person("p-past", not_before=now - 1_800_000, not_after=now - 900_000)
    assert refusal(domain, person).reason is Reason.CERTIFICATE_EXPIRED
    assert ChainVerifier(domain.bundle).remember(person.chain).id == "p-past"
    assert domain.verifier.verify(person.chain, at=now - 1_000_000).id == "p-past"


# What is refused


def test_nothing_and_nonsense(domain: TestPki) -> None:
    gateway = domain.gateway()
    for chain in (
        (),
        (b"",),
        (b"\x30\x00",),
        (gateway.chain[0] + b"\x00",),
        (bytes(5000),),
        (gateway.chain[1],),
    ):
        with pytest.raises(Refused) as caught:
            ChainVerifier(domain.bundle).verify(chain, at=domain.clock.now())
        assert caught.value.reason is Reason.CERTIFICATE_INVALID


def test_another_kind_than_expected(domain: TestPki) -> None:
    gateway = domain.gateway()
    error = refusal(domain, gateway, kinds=frozenset({Kind.PERSON, Kind.SERVICE}))
    assert error.reason is Reason.CERTIFICATE_INVALID
    assert refusal(domain, gateway, kinds=frozenset()).reason is Reason.CERTIFICATE_INVALID
    error = refusal(domain, domain.signer_credential("decision"), kinds=frozenset({Kind.SERVICE}))
    assert error.reason is Reason.CERTIFICATE_INVALID


def test_another_trust_domain(domain: TestPki, foreign: TestPki) -> None:
    for credential in (foreign.gateway(), foreign.service("policy"), foreign.signer_credential("decision")):
        assert refusal(domain, credential).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.PERSON, Kind.DEVICE])
def test_an_intermediate_of_another_kind(domain: TestPki, kind: Kind) -> None:
    forged = domain.issue(Kind.GATEWAY, "gateway-1", issuer=domain.issuers[kind])
    assert refusal(domain, forged).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
def test_name_constraints_alone_stop_an_intermediate_that_is_filed_under_another_kind(
    domain: TestPki,
) -> None:
    intermediates = dict(domain.bundle.intermediates)
    intermediates[Kind.GATEWAY] = intermediates[Kind.PERSON]
    with pytest.raises(Refused):
        replace(domain.bundle, intermediates=intermediates)


def test_a_foreign_intermediate_with_the_same_name(domain: TestPki, tmp_path: Path) -> None:
    impostor = TestPki(tmp_path)  # the same trust domain, another root
    for credential in (impostor.gateway(), impostor.signer_credential("head"), impostor.admin()):
        assert refusal(domain, credential).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
def test_a_leaf_straight_from_the_root_is_no_gateway(domain: TestPki) -> None:
    forged = forge(domain, issuer=domain.root)
    assert refusal(domain, forged).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
def test_a_signer_through_an_intermediate_is_no_signer(domain: TestPki) -> None:
    forged = forge(domain, Kind.SIGNER, issuer=domain.issuers[Kind.SERVICE])
    assert refusal(domain, forged).reason is Reason.CERTIFICATE_INVALID


URI = x509.UniformResourceIdentifier("spiffe://vigil.test/gateway/gateway-1")
DNS = x509.DNSName("gateway-1.gateway.vigil.test")
WRONG: dict[str, dict[str, object]] = {
    "no grant": {"grant": None},
    "grant marked critical": {"grant": (x509.UnrecognizedExtension(GRANT_OID, b"\xa0"), True)},
    "grant malformed": {"grant": (x509.UnrecognizedExtension(GRANT_OID, b"\xa0"), False)},
    "no names": {"names": None},
    "no uri": {"names": names_of(DNS)},
    "two uris": {"names": names_of(URI, URI, DNS)},
    "no dns": {"names": names_of(URI)},
    "two dns": {"names": names_of(URI, DNS, DNS)},
    "mail": {"names": names_of(URI, DNS, x509.RFC822Name("a@vigil.test"))},
    "another id": {"names": names_of(x509.UniformResourceIdentifier(URI.value + "0"), DNS)},
    "another kind": {
        "names": names_of(x509.UniformResourceIdentifier("spiffe://vigil.test/person/gateway-1"), DNS)
    },
    "another domain": {
        "names": names_of(x509.UniformResourceIdentifier("spiffe://other.test/gateway/gateway-1"), DNS)
    },
    "another dns": {"names": names_of(URI, x509.DNSName("gateway-2.gateway.vigil.test"))},
    "dns of a service": {"names": names_of(URI, x509.DNSName("policy.vigil.test"))},
    "no usage": {"usage": None},
    "key encipherment alone": {"usage": (issuing._key_usage(), True)},
    "may sign certificates": {
        "usage": (issuing._key_usage(digital_signature=True, key_cert_sign=True), True)
    },
    "an authority": {"basic": (x509.BasicConstraints(ca=True, path_length=None), True)},
    "no basic constraints": {"basic": None},
    "no extended usage": {"extended": None},
    "server alone": {"extended": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)},
    "client alone": {"extended": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)},
    "any usage": {"extended": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)},
    "for statements": {"extended": (x509.ExtendedKeyUsage([STATEMENT_SIGNING_OID]), True)},
    "unknown critical": {
        "more": (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00"), True)
    },
}
WRONG_SIGNER: dict[str, dict[str, object]] = {
    "another id": {"names": names_of(x509.UniformResourceIdentifier("spiffe://vigil.test/signer/head"))},
    "has a dns name": {
        "names": names_of(
            x509.UniformResourceIdentifier("spiffe://vigil.test/signer/decision"),
            x509.DNSName("decision.vigil.test"),
        )
    },
    "for tls": {"extended": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)},
    "for tls too": {
        "extended": (
            x509.ExtendedKeyUsage([STATEMENT_SIGNING_OID, ExtendedKeyUsageOID.CLIENT_AUTH]),
            True,
        )
    },
    "no extended usage": {"extended": None},
    **{
        name: WRONG[name]
        for name in (
            "no grant",
            "no names",
            "no usage",
            "may sign certificates",
            "an authority",
            "no basic constraints",
            "unknown critical",
        )
    },
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_gateway_with_one_thing_wrong(domain: TestPki, wrong: dict[str, Any]) -> None:
    assert refusal(domain, forge(domain, **dict(wrong))).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.parametrize("wrong", WRONG_SIGNER.values(), ids=WRONG_SIGNER)
def test_a_signer_with_one_thing_wrong(domain: TestPki, wrong: dict[str, object]) -> None:
    assert refusal(domain, forge(domain, Kind.SIGNER, **dict(wrong))).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
def test_a_manufacturers_signer_for_the_operators_statement(domain: TestPki, maker: Manufacturer) -> None:
    root = issuing.Issuer(maker.root, load_pair_of_root(maker.directory))
    for organization in ("maker", "operator"):
        forged = domain.issue(
            Kind.SIGNER, "decision", organization=organization, statements=("decision",), issuer=root
        )
        assert refusal(domain, forged).reason is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
def test_the_operators_signer_for_a_manufacturers_statement(domain: TestPki, maker: Manufacturer) -> None:
    for organization in ("maker", "operator"):
        forged = domain.issue(
            Kind.SIGNER,
            "voucher",
            organization=organization,
            statements=("voucher",),
            issuer=domain.root,
        )
        assert refusal(domain, forged).reason is Reason.CERTIFICATE_INVALID
    assert maker.credential("voucher").identity.may_sign("voucher")


@pytest.mark.holds("stolen-signers")
def test_one_manufacturer_for_another(domain: TestPki, maker: Manufacturer, tmp_path: Path) -> None:
    rival = TestPki(tmp_path).manufacturer("rival")
    assert refusal(domain, rival.credential("voucher")).reason is Reason.CERTIFICATE_INVALID
    both = ChainVerifier(domain.bundle.with_manufacturer("rival", rival.root))
    assert both.verify(rival.credential("voucher").chain, at=domain.clock.now()).organization == "rival"
    root = issuing.Issuer(rival.root, load_pair_of_root(rival.directory))
    forged = domain.issue(Kind.SIGNER, "voucher", organization="maker", statements=("voucher",), issuer=root)
    with pytest.raises(Refused):
        both.verify(forged.chain, at=domain.clock.now())
    assert maker.organization == "maker"


def load_pair_of_root(directory: Path) -> ec.EllipticCurvePrivateKey:
    root = directory / "root"
    pair = load_pair(root / "root.pem", root / "root.key", (root / "passphrase").read_bytes().strip())
    assert isinstance(pair.private_key, ec.EllipticCurvePrivateKey)
    return pair.private_key


def test_the_second_form_of_a_signature_is_another_certificate_and_refused(domain: TestPki) -> None:
    """Anybody can make it; a revocation of the first thumbprint would not name it."""
    leaf = domain.gateway("gateway-s").certificate
    r, s = decode_dss_signature(leaf.signature)
    assert s <= P256_ORDER // 2
    signature = encode_dss_signature(r, P256_ORDER - s)
    tail = b"\x03" + bytes([len(signature) + 1, 0]) + signature
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    body = leaf.tbs_certificate_bytes + algorithm + tail
    other = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    issuer = domain.issuers[Kind.GATEWAY].certificate
    x509.load_der_x509_certificate(other).verify_directly_issued_by(issuer)  # it would be valid
    with pytest.raises(Refused) as caught:
        domain.verifier.verify((other,), at=domain.clock.now())
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


def test_the_algorithm_outside_the_signed_part_has_one_form(domain: TestPki) -> None:
    leaf = domain.gateway("gateway-n").certificate
    with_null = bytes.fromhex("300c06082a8648ce3d0403020500")
    tail = b"\x03" + bytes([len(leaf.signature) + 1, 0]) + leaf.signature
    body = leaf.tbs_certificate_bytes + with_null + tail
    other = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    with pytest.raises(Refused):
        domain.verifier.verify((other,), at=domain.clock.now())


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(place=st.integers(0, 2000), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_no_bit_of_a_certificate_is_free(domain: TestPki, place: int, bit: int) -> None:
    chain = domain.signer_credential("decision").chain
    changed = bytearray(chain[0])
    changed[place % len(changed)] ^= 1 << bit
    with pytest.raises(Refused) as caught:
        domain.verifier.verify((bytes(changed),), at=domain.clock.now())
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


# Grants

slugs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
instants = st.integers(0, 253_402_300_799_000)
grants = st.one_of(
    st.builds(
        Grant,
        kind=st.just(Kind.PERSON),
        subject_id=st.from_regex(r"p-[a-z0-9-]{1,61}", fullmatch=True),
        organization=slugs,
        sites=st.lists(slugs, max_size=8, unique=True).map(tuple),
        roles=st.lists(slugs, max_size=8, unique=True).map(tuple),
        authenticated=st.from_regex(r"[a-z0-9-]{0,63}", fullmatch=True),
        operational_until=instants,
    ),
    st.builds(
        Grant,
        kind=st.just(Kind.DEVICE),
        subject_id=st.from_regex(r"dev-[a-z2-7]{16}", fullmatch=True),
        organization=slugs,
        sites=slugs.map(lambda site: (site,)),
        operational_until=instants,
    ),
)


@given(grants)
@settings(max_examples=100, deadline=None)
def test_a_grant_comes_back_as_it_was(grant: Grant) -> None:
    assert decode_grant(encode_grant(grant)) == grant


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_grant(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        decode_grant(data)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


values = st.one_of(
    st.integers(-2, 2**63), st.text(max_size=5), st.booleans(), st.none(), st.lists(st.text(max_size=3))
)


@given(grant=grants, label=st.integers(0, 9), value=values, drop=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_changed_grant_is_refused_or_another_sound_one(
    grant: Grant, label: int, value: object, drop: bool
) -> None:
    members = cbor.decode(encode_grant(grant))
    if drop:
        members.pop(label, None)
    else:
        members[label] = value
    data = cbor.encode(members)
    try:
        decoded = decode_grant(data)
    except Refused:
        return
    assert encode_grant(decoded) == data


def test_lists_of_a_grant_have_one_order(domain: TestPki) -> None:
    grant = domain.person("p-order", "b", "a").identity
    assert grant.roles == ("a", "b")
    members = cbor.decode(
        encode_grant(Grant(kind=Kind.PERSON, subject_id="p-o", organization="h", roles=("a", "b")))
    )
    members[5] = ["b", "a"]
    with pytest.raises(Refused):
        decode_grant(cbor.encode(members))


GATEWAY = Grant(kind=Kind.GATEWAY, subject_id="g", organization="h", sites=("s",))
PERSON = Grant(kind=Kind.PERSON, subject_id="p-a", organization="h")
DEVICE_GRANT = Grant(kind=Kind.DEVICE, subject_id=DEVICE, organization="h", sites=("s",))
SIGNER = Grant(kind=Kind.SIGNER, subject_id="head", organization="*", statements=("head",))
SERVICE = Grant(kind=Kind.SERVICE, subject_id="policy", organization="*")
MISFITS: list[Callable[[], Grant]] = [
    lambda: replace(PERSON, organization=""),
    lambda: replace(PERSON, organization="Hospital"),
    lambda: replace(PERSON, organization="h\n"),
    lambda: replace(PERSON, subject_id="a"),
    lambda: replace(PERSON, subject_id="p-"),
    lambda: replace(PERSON, subject_id="p-a/../b"),
    lambda: replace(PERSON, sites=("*", "s")),
    lambda: replace(PERSON, sites=("s", "s")),
    lambda: replace(PERSON, sites=("",)),
    lambda: replace(PERSON, sites=tuple(f"s{n}" for n in range(33))),
    lambda: replace(PERSON, roles=("*",)),
    lambda: replace(PERSON, roles=tuple(f"r{n}" for n in range(13))),
    lambda: replace(PERSON, statements=("intent",)),
    lambda: replace(PERSON, authenticated="by hand"),
    lambda: replace(PERSON, operational_until=-1),
    lambda: replace(PERSON, operational_until=2**60),
    lambda: replace(GATEWAY, sites=()),
    lambda: replace(GATEWAY, sites=("*",)),
    lambda: replace(GATEWAY, organization="*"),
    lambda: replace(GATEWAY, subject_id="g-"),
    lambda: replace(GATEWAY, statements=("acknowledgement",)),
    lambda: replace(DEVICE_GRANT, subject_id="dev-1"),
    lambda: replace(DEVICE_GRANT, subject_id=DEVICE + "a"),
    lambda: replace(DEVICE_GRANT, sites=()),
    lambda: replace(DEVICE_GRANT, sites=("a", "b")),
    lambda: replace(DEVICE_GRANT, sites=("*",)),
    lambda: replace(DEVICE_GRANT, organization="*"),
    lambda: replace(DEVICE_GRANT, statements=("decision",)),
    lambda: replace(SERVICE, subject_id="gateway"),
    lambda: replace(SERVICE, subject_id="policy-"),
    lambda: replace(SERVICE, statements=("decision",)),
    lambda: replace(SIGNER, statements=()),
    lambda: replace(SIGNER, statements=("head", "voucher")),
    lambda: replace(SIGNER, statements=("voucher",)),
    lambda: replace(SIGNER, statements=("era",)),
    lambda: replace(SIGNER, statements=("root-list",)),
    lambda: replace(SIGNER, statements=("a", "b", "c", "d", "e")),
    lambda: replace(SIGNER, roles=("admin",)),
    lambda: replace(SIGNER, sites=("s",)),
]


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_grant_that_does_not_fit_its_kind(misfit: Callable[[], Grant]) -> None:
    with pytest.raises(Refused) as caught:
        misfit()
    assert caught.value.reason is Reason.FIELD_INVALID


# The bundle


def test_a_bundle_comes_back_as_it_was(domain: TestPki, maker: Manufacturer) -> None:
    bundle = domain.bundle
    again = TrustBundle.from_json(bundle.to_json())
    assert again == bundle
    assert again.manufacturers == {"maker": maker.root}
    assert again.operator == "operator"
    assert again.root_pem == domain.root.certificate.public_bytes(Encoding.PEM)
    assert len(again.signers) == 8


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"version": 1}', "[" * 100_000, '"' + "a" * (1 << 20) + '"']
)
def test_a_bundle_that_is_none(text: str) -> None:
    with pytest.raises(Refused) as caught:
        TrustBundle.from_json(text)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 1', '"version": 2'),
        ('"trust_domain": "vigil.test"', '"trust_domain": "other.test"'),
        ('"trust_domain": "vigil.test"', '"trust_domain": "vigil"'),
        ('"operator": "operator"', '"operator": ""'),
        ('"operator": "operator"', '"operator": 1'),
        ('"gateway": [', '"signer": ['),
        ('"gateway": [', '"robot": ['),
        ("BEGIN CERTIFICATE", "BEGIN NOTHING"),
    ],
)
def test_a_bundle_with_one_thing_changed(domain: TestPki, old: str, new: str) -> None:
    text = domain.bundle.to_json()
    assert old in text
    with pytest.raises(Refused) as caught:
        TrustBundle.from_json(text.replace(old, new))
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


def test_a_bundle_whose_parts_do_not_belong_together(domain: TestPki, foreign: TestPki) -> None:
    bundle, other = domain.bundle, foreign.bundle
    gateway = domain.gateway()
    wrong: list[Callable[[], object]] = [
        lambda: replace(bundle, root=other.root),
        lambda: replace(bundle, intermediates=other.intermediates),
        lambda: replace(bundle, root=bundle.intermediates[Kind.GATEWAY][0]),
        lambda: replace(bundle, root=gateway.certificate),
        lambda: bundle.with_manufacturer("maker", bundle.root),
        lambda: bundle.with_manufacturer("maker", gateway.certificate),
        lambda: bundle.with_manufacturer("Maker", other.root),
        lambda: ChainVerifier(bundle.with_signers(other.signers[0])),
        lambda: ChainVerifier(bundle.with_signers(gateway.certificate)),
    ]
    for make in wrong:
        with pytest.raises(Refused) as caught:
            make()
        assert caught.value.reason is Reason.CERTIFICATE_INVALID


def test_services_may_not_take_the_names_of_other_kinds() -> None:
    constraints = name_constraints("vigil.test", Kind.SERVICE)
    assert constraints.excluded_subtrees is not None
    excluded = {name.value for name in constraints.excluded_subtrees}
    assert excluded == {"gateway.vigil.test", "person.vigil.test", "device.vigil.test"}


# Files


def test_a_request_proves_possession() -> None:
    for key in (new_private_key(), Ed25519PrivateKey.generate()):
        assert read_request(make_request(key)) == key.public_key()


def test_a_request_signed_with_another_key() -> None:
    ours, theirs = make_request(new_private_key()), make_request(new_private_key())
    request, other = x509.load_pem_x509_csr(ours), x509.load_pem_x509_csr(theirs)
    der = request.public_bytes(Encoding.DER)
    r, s = decode_dss_signature(request.signature)
    broken = der.replace(request.signature, encode_dss_signature(r, s ^ 1))
    assert other.is_signature_valid
    with pytest.raises(Refused) as caught:
        read_request(x509.load_der_x509_csr(broken).public_bytes(Encoding.PEM))
    assert caught.value.reason is Reason.POSSESSION_NOT_PROVED


def test_requests_that_cannot_be_read() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    keys = (
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    )
    requests = [builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) for key in keys]
    for pem in (*requests, b"", b"-----BEGIN CERTIFICATE REQUEST-----", bytes(9000)):
        with pytest.raises(Refused) as caught:
            read_request(pem)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_a_pair_is_replaced_as_one_wherever_it_is_cut(
    domain: TestPki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = domain.gateway("gateway-old"), domain.gateway("gateway-new")
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    renamed = Path.replace
    seen = []
    for cut_at in range(3):
        certificate.unlink(missing_ok=True)
        store_pair(
            certificate, key, chain_pem=old.tls_files.certificate.read_bytes(), private_key=old.private_key
        )
        count = iter(range(10))

        def cut(self: Path, target: Path, count: object = count, cut_at: int = cut_at) -> Path:
            if next(count) == cut_at:  # type: ignore[call-overload]
                raise InterruptedError
            return renamed(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut)
            if cut_at < 2:
                with pytest.raises(InterruptedError):
                    store_pair(
                        certificate,
                        key,
                        chain_pem=new.tls_files.certificate.read_bytes(),
                        private_key=new.private_key,
                    )
            else:
                store_pair(
                    certificate,
                    key,
                    chain_pem=new.tls_files.certificate.read_bytes(),
                    private_key=new.private_key,
                )
        pair = load_pair(certificate, key)
        seen.append(pair.chain_der)
        assert pair.signer.certificate_thumbprint == sha256(pair.chain_der[0])
        assert key.stat().st_mode & 0o777 == 0o600
    assert seen == [old.chain, new.chain, new.chain]


def test_a_key_that_is_not_the_chains(domain: TestPki) -> None:
    one, other = domain.gateway("gateway-1"), domain.gateway("gateway-2")
    with pytest.raises(Refused) as caught:
        load_pair(one.tls_files.certificate, other.tls_files.key)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


def test_instants_are_exact() -> None:
    instant = dt.datetime(2026, 9, 14, 3, 12, 0, 1000, tzinfo=dt.UTC)
    assert milliseconds(instant) == 1_789_355_520_001
