"""The trust bundle: what a process must hold to judge any chain of this trust domain, with no network."""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core import strict_json
from vigil.core.certificates.grant import EVERY, SLUG, TLS_KINDS, TRUST_DOMAIN, Kind, name_constraints
from vigil.core.keys import UNREADABLE
from vigil.errors import Reason, Refused, refused

MAX_BUNDLE_BYTES = 1 << 20
"""A few dozen certificates of a kilobyte each, with two orders of magnitude to spare."""

_VERSION = 1
_MEMBERS = {"version", "trust_domain", "operator", "root", "intermediates", "signers", "manufacturers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots, the intermediates by kind and the known signers. Raises CERTIFICATE_INVALID.

    ``operator`` is the organization that runs the trust domain. ``manufacturers`` maps an organization to the
    separate root that vouches for its vouchers, profiles, releases and downgrade authorisations.
    """

    trust_domain: str
    root: x509.Certificate
    intermediates: Mapping[Kind, tuple[x509.Certificate, ...]]
    signers: tuple[x509.Certificate, ...] = ()
    manufacturers: Mapping[str, x509.Certificate] = field(default_factory=dict)
    operator: str = EVERY

    def __post_init__(self) -> None:
        if not TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise _unsound("its trust domain is not a DNS name of lowercase letters")
        if not (self.operator == EVERY or SLUG.fullmatch(self.operator)):
            raise _unsound("its operator is not an organization")
        _check_root(self.root)
        if trust_domain_of(self.root) != self.trust_domain:
            raise _unsound("its root is of another trust domain")
        for kind, certificates in self.intermediates.items():
            if kind not in TLS_KINDS:
                raise _unsound(f"a {kind} has no intermediate")
            for certificate in certificates:
                _check_intermediate(certificate, kind=kind, root=self.root, trust_domain=self.trust_domain)
        for organization, root in self.manufacturers.items():
            if not SLUG.fullmatch(organization):
                raise _unsound("a manufacturer is not an organization")
            _check_root(root)
            if root.public_key() == self.root.public_key():
                raise _unsound("a manufacturer's root is the trust domain's own")

    @property
    def root_pem(self) -> bytes:
        """The trust domain's root alone: what a TLS stack trusts."""
        return self.root.public_bytes(Encoding.PEM)

    def with_manufacturer(self, organization: str, root: x509.Certificate) -> "TrustBundle":
        """Make the same bundle, trusting a manufacturer's root too."""
        return replace(self, manufacturers={**self.manufacturers, organization: root})

    def with_signers(self, *signers: x509.Certificate) -> "TrustBundle":
        """Make the same bundle, knowing these signers too."""
        return replace(self, signers=(*self.signers, *signers))

    def to_json(self) -> str:
        """Write the bundle as the text of a ``trust.json``."""
        value = {
            "version": _VERSION,
            "trust_domain": self.trust_domain,
            "operator": self.operator,
            "root": _pem(self.root),
            "intermediates": {
                str(kind): [_pem(one) for one in self.intermediates[kind]]
                for kind in sorted(self.intermediates)
            },
            "signers": [_pem(one) for one in self.signers],
            "manufacturers": {name: _pem(self.manufacturers[name]) for name in sorted(self.manufacturers)},
        }
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrustBundle":
        """Read a ``trust.json``. Raises CERTIFICATE_INVALID."""
        try:
            value = strict_json.parse(text.encode(errors="surrogatepass"), max_bytes=MAX_BUNDLE_BYTES)
        except ValueError as error:
            raise _unsound(str(error)) from error
        if not isinstance(value, dict) or set(value) != _MEMBERS or value["version"] != _VERSION:
            raise _unsound("its members are not those of version 1")
        intermediates = _member(value, "intermediates", dict)
        if not set(intermediates) <= set(TLS_KINDS):
            raise _unsound("it has intermediates of an unknown kind")
        return cls(
            trust_domain=_member(value, "trust_domain", str),
            operator=_member(value, "operator", str),
            root=_certificate(value["root"]),
            intermediates={
                Kind(kind): tuple(_certificate(one) for one in _member(intermediates, kind, list))
                for kind in intermediates
            },
            signers=tuple(_certificate(one) for one in _member(value, "signers", list)),
            manufacturers={
                name: _certificate(one) for name, one in _member(value, "manufacturers", dict).items()
            },
        )


def trust_domain_of(root: x509.Certificate) -> str:
    """Read the trust domain that a root names in its one URI, ``spiffe://<trust domain>`` (X509-SVID 3.2)."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE as error:
        raise _unsound("a root names no trust domain") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise _unsound("a root names no trust domain")
    return uris[0].removeprefix("spiffe://")


def milliseconds(instant: dt.datetime) -> int:
    """Convert an aware datetime to ms since the epoch, exactly."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (instant - epoch) // dt.timedelta(milliseconds=1)


def _check_root(root: x509.Certificate) -> None:
    # RFC 5280 6.1.1 (d): the anchor is trusted as given; that it is self-signed only shows that it is whole.
    _check_ca(root, path_length=1)
    _check_issued(root, root)


def _check_intermediate(
    certificate: x509.Certificate, *, kind: Kind, root: x509.Certificate, trust_domain: str
) -> None:
    _check_issued(certificate, root)
    _check_ca(certificate, path_length=0)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except UNREADABLE as error:
        raise _unsound(f"its intermediate for {kind} has no name constraints") from error
    # The constraints are what binds an intermediate to its kind inside the certificate itself.
    if not constraints.critical or constraints.value != name_constraints(trust_domain, kind):
        raise _unsound(f"its intermediate for {kind} is not of that kind")


def _check_ca(certificate: x509.Certificate, *, path_length: int) -> None:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        key = certificate.public_key()
    except UNREADABLE as error:
        raise _unsound("an authority lacks basic constraints, key usage or a key") from error
    # RFC 5280 4.2.1.9 and 4.2.1.3.
    if not basic.ca or basic.path_length != path_length or not usage.key_cert_sign:
        raise _unsound("an authority may not sign certificates, or signs further down than it should")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _unsound("an authority's key is not on P-256")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE) as error:
        raise _unsound("a certificate in it was not issued by its root") from error


def _member(value: Mapping[str, Any], name: str, of_type: type) -> Any:
    if not isinstance(value[name], of_type):
        raise _unsound(f"its member {name} has another type")
    return value[name]


def _certificate(value: object) -> x509.Certificate:
    if not isinstance(value, str):
        raise _unsound("a certificate in it is no text")
    try:
        return x509.load_pem_x509_certificate(value.encode())
    except UNREADABLE as error:
        raise _unsound("a certificate in it cannot be read") from error


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _unsound(sentence: str) -> Refused:
    return refused(Reason.CERTIFICATE_INVALID, f"The trust bundle is not accepted: {sentence}.")
