"""Issuing: keys and grants in, certificates out. Pure but for the library's own randomness in ECDSA.

What is issued here is what `vigil.core.certificates` accepts; each builder names the clause that it serves.
Ends are named twice: X.509 ``notAfter`` is the end of grace, the grant's ``operational_until`` the end of
ordinary use.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vigil.core.certificates import (
    GRANT_OID,
    STATEMENT_SIGNING_OID,
    Grant,
    Kind,
    dns_name,
    encode_grant,
    milliseconds,
    name_constraints,
    spiffe_id,
)
from vigil.core.clock import Entropy
from vigil.core.keys import P256_ORDER, PublicKey
from vigil.errors import Reason, refused

MINUTE: Final = 60_000
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
YEAR: Final = 8766 * HOUR

ROOT_LIFE: Final = 30 * YEAR
"""Twice a pump's life, so that one made in the root's fifteenth year still ends before the root does."""

ISSUERS_LIFE: Final = 10 * YEAR
"""Of the intermediates for services, gateways and people; that for devices lives as long as the root."""

SIGNER_LIFE: Final = 396 * DAY
"""13 months: a yearly ceremony with a month to spare."""

ROOT_BACKDATE: Final = HOUR
"""How far before the ceremony the root begins: for devices' floors, and clocks that are a little behind."""

SKEW: Final = 5 * MINUTE
"""How far before its issue a service's or person's begins (Kerberos' tolerance, RFC 4120)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How long a certificate serves: ordinary use, then grace, in ms. ``from_root``: notBefore is the root's."""

    name: str
    kind: Kind
    operational: int
    grace: int
    from_root: bool = False


SERVICE: Final = Profile(name="service", kind=Kind.SERVICE, operational=DAY, grace=0)
"""24 h, as service meshes renew their workloads (Istio's default)."""

GATEWAY: Final = Profile(
    name="gateway", kind=Kind.GATEWAY, operational=7 * DAY, grace=23 * DAY, from_root=True
)
"""7 days of work; to the 30th day, cut off from the control plane, it serves safety actions only."""

PERSON: Final = Profile(name="person", kind=Kind.PERSON, operational=12 * HOUR, grace=0)
"""One shift."""

SAFETY: Final = Profile(name="safety", kind=Kind.PERSON, operational=12 * HOUR, grace=72 * HOUR)
"""One shift, and 72 h more at a gateway without a lease: a long weekend's outage."""

FIRST_ADMIN: Final = Profile(name="first-admin", kind=Kind.PERSON, operational=30 * DAY, grace=0)
"""Time to set the operation up; renewed with the offline root at hand, or replaced by ordinary people."""

DEVICE: Final = Profile(
    name="device", kind=Kind.DEVICE, operational=90 * DAY, grace=15 * YEAR - 90 * DAY, from_root=True
)
"""90 days of ordinary use, renewed by proving the PUF key; the end is a pump's life of 15 years."""

PROFILES: Final = {one.name: one for one in (SERVICE, GATEWAY, PERSON, SAFETY, FIRST_ADMIN, DEVICE)}

SAFETY_ROLE: Final = "safety"

ISSUER_NAMES: Final = {
    Kind.SERVICE: "services",
    Kind.GATEWAY: "gateways",
    Kind.PERSON: "people",
    Kind.DEVICE: "devices",
}

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority's certificate with its key."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey


def make_root(
    *, trust_domain: str, name: str, private_key: ec.EllipticCurvePrivateKey, now: int, entropy: Entropy
) -> x509.Certificate:
    """Make a self-signed root that names its trust domain (X509-SVID 3.2)."""
    key = private_key.public_key()
    not_before = now - ROOT_BACKDATE
    builder = _builder((name, name), key, (not_before, not_before + ROOT_LIFE), entropy)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    builder = _authority(builder, path_length=1).add_extension(
        x509.SubjectAlternativeName([uri]), critical=False
    )
    return _signed(_identifiers(builder, key, key), private_key)


def make_intermediate(
    *, kind: Kind, trust_domain: str, root: Issuer, public_key: PublicKey, now: int, entropy: Entropy
) -> x509.Certificate:
    """Make the intermediate of one kind; its name constraints keep it to that kind (RFC 5280 4.2.1.10)."""
    not_before = milliseconds(root.certificate.not_valid_before_utc)
    root_end = milliseconds(root.certificate.not_valid_after_utc)
    not_after = root_end if kind is Kind.DEVICE else min(now + ISSUERS_LIFE, root_end)
    name = common_name(ISSUER_NAMES[kind], trust_domain)
    builder = _builder((name, _name_of(root)), public_key, (not_before, not_after), entropy)
    builder = _authority(builder, path_length=0)
    builder = builder.add_extension(name_constraints(trust_domain, kind), critical=True)
    return _signed(_identifiers(builder, public_key, root.private_key.public_key()), root.private_key)


def issue(
    *,
    issuer: Issuer,
    trust_domain: str,
    grant: Grant,
    public_key: PublicKey,
    not_before: int,
    not_after: int,
    entropy: Entropy,
) -> x509.Certificate:
    """Issue a holder's certificate, as its grant says; instants in ms, cut to seconds."""
    # RFC 5280 6.1.3 (a)(2): a path ends with the first of its certificates to end.
    end = min(not_after, milliseconds(issuer.certificate.not_valid_after_utc))
    if end <= not_before:
        raise refused(Reason.STATE_CONFLICT, "The issuing certificate has ended.", who="operator")
    builder = _builder((grant.subject_id, _name_of(issuer)), public_key, (not_before, end), entropy)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(spiffe_id(trust_domain, grant.kind, grant.subject_id))
    ]
    dns = dns_name(trust_domain, grant.kind, grant.subject_id)
    if dns is not None:
        names.append(x509.DNSName(dns))
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_usages(grant)), critical=bool(grant.statements))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.UnrecognizedExtension(GRANT_OID, encode_grant(grant)), critical=False)
    )
    builder = _identifiers(builder, public_key, issuer.private_key.public_key())
    return _signed(builder, issuer.private_key)


def common_name(whose: str, trust_domain: str) -> str:
    """Name an authority; what tells it from the others stands first and outlives the cut at 64 (RFC 5280 A.1)."""
    return f"{whose} of {trust_domain}"[:64]


def chain_pem(*certificates: x509.Certificate) -> bytes:
    """Write a chain as PEM text, in the order given."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _usages(grant: Grant) -> list[x509.ObjectIdentifier]:
    # RFC 5280 4.2.1.12: what signs statements never speaks TLS.
    if grant.statements:
        return [STATEMENT_SIGNING_OID]
    if grant.kind in {Kind.SERVICE, Kind.GATEWAY}:
        return [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH]


def _builder(
    names: tuple[str, str], public_key: PublicKey, validity: tuple[int, int], entropy: Entropy
) -> x509.CertificateBuilder:
    subject, issuer = names
    not_before, not_after = validity
    # RFC 5280 4.1.2.2: positive and at most 20 octets; 159 random bits.
    serial = int.from_bytes(entropy(20), "big") >> 1 or 1
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(subject))
        .issuer_name(_common_name(issuer))
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(_instant(not_before))
        .not_valid_after(_instant(not_after))
    )


def _authority(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    ).add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)


def _identifiers(
    builder: x509.CertificateBuilder, subject: PublicKey, issuer: PublicKey
) -> x509.CertificateBuilder:
    """RFC 5280 4.2.1.1 and 4.2.1.2."""
    return builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(subject), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Sign until s is low (every second try): verifiers refuse the other form, so a thumbprint is unique."""
    while True:
        certificate = builder.sign(key, hashes.SHA256())
        _, s = decode_dss_signature(certificate.signature)
        if s <= P256_ORDER // 2:
            return certificate


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name_of(issuer: Issuer) -> str:
    return str(issuer.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _instant(milliseconds_since_epoch: int) -> dt.datetime:
    """Cut to a whole second: X.509 knows no finer one."""
    return _EPOCH + dt.timedelta(seconds=milliseconds_since_epoch // 1000)
