"""Who is this? A certificate chain in, a verified identity out, with no network and no clock of its own.

What is established, in this order:

* the leaf's names and grant say one and the same thing (SPIFFE URI, DNS name, extension);
* a TLS kind's path runs root - intermediate of that kind - leaf (``cryptography.x509.verification``), through
  an intermediate of the bundle: what the peer sends beside its leaf is never looked at;
* a signer's path is one step from the root that may vouch for its statements, checked here by hand, since
  signers carry no TLS usage;
* the certificate's own encoding is the only one, so that its thumbprint names it and nothing else does;
* validity at the instant that the caller asks about, on every call.

Not checked here: revocation (the caller's, at every call) and whether the role suffices (the caller's).
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from vigil.core.certificates.bundle import TrustBundle, milliseconds, trust_domain_of
from vigil.core.certificates.grant import (
    EVERY,
    GRANT_OID,
    MANUFACTURER_STATEMENTS,
    OWN_ROOT_STATEMENTS,
    STATEMENT_SIGNING_OID,
    Grant,
    Kind,
    decode_grant,
    dns_name,
    spiffe_id,
)
from vigil.core.keys import P256_ORDER, UNREADABLE, PublicKey, key_thumbprint
from vigil.errors import Reason, Refused, refused

MAX_CERTIFICATE_BYTES = 4096
"""The bound of a member of x5chain."""

MAX_CACHED = 65_536
"""More than the 50,000 devices and the people of the working size; about a kilobyte each."""

_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier of ecdsa-with-SHA256, parameters absent (RFC 5758 3.2)."""

_CRITICAL_OF_A_SIGNER = frozenset(
    {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
)
_STATEMENTS_ONLY = frozenset({STATEMENT_SIGNING_OID})
_CLIENT = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH})
_CLIENT_AND_SERVER = _CLIENT | {ExtendedKeyUsageOID.SERVER_AUTH}
_TLS_USAGES = {
    Kind.SERVICE: _CLIENT_AND_SERVER,
    Kind.GATEWAY: _CLIENT_AND_SERVER,
    Kind.PERSON: _CLIENT,
    Kind.DEVICE: _CLIENT,
}
_CA_POLICY = verification.ExtensionPolicy.webpki_defaults_ca()
_STATEMENTS_POLICY = verification.ExtensionPolicy.webpki_defaults_ee().require_present(
    x509.ExtendedKeyUsage, verification.Criticality.CRITICAL, None
)
"""The web's rules for an end entity, but for clientAuth, which the key of a device's statements lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A verified holder. Instants in ms since the epoch; thumbprints are raw SHA-256.

    ``thumbprint`` is of the certificate's DER, ``key_thumbprint`` of the key (RFC 9679). ``not_after`` is the
    end of grace, ``operational_until`` (never later) the end of ordinary use; past it the caller judges.
    """

    kind: Kind
    id: str
    organization: str
    sites: tuple[str, ...]
    roles: tuple[str, ...]
    statements: tuple[str, ...]
    thumbprint: bytes
    key_thumbprint: bytes
    not_before: int
    not_after: int
    operational_until: int
    authenticated: str
    public_key: PublicKey
    spiffe_id: str
    operator: bool = False

    def covers_organization(self, organization: str) -> bool:
        """Whether the holder belongs to this organization, or to the operator's."""
        return self.operator or (bool(organization) and self.organization == organization)

    def covers_site(self, organization: str, site: str) -> bool:
        """Whether a site of an organization lies in the holder's scope. An empty name lies in nobody's."""
        return (
            bool(site)
            and self.covers_organization(organization)
            and (EVERY in self.sites or site in self.sites)
        )

    def has_role(self, *roles: str) -> bool:
        """Whether the holder has any of these roles; a service's role is its id. None named: False."""
        return any(role in self.roles or (self.kind is Kind.SERVICE and role == self.id) for role in roles)

    def may_sign(self, statement: str) -> bool:
        """Whether this is a signer for this kind of statement."""
        return self.kind is Kind.SIGNER and statement in self.statements


@dataclass(frozen=True, slots=True)
class Standing:
    """A validated path: the identity, and the instants (ms) between which all of it is valid."""

    identity: Identity
    valid_from: int
    valid_to: int

    def ordinary(self, at: int) -> bool:
        """Whether the whole path is valid ``at`` an instant, and the holder before its operational end."""
        return self.valid_from <= at <= self.valid_to and at <= self.identity.operational_until


class ChainVerifier:
    """Verifies chains against one trust bundle; thread-safe; a known leaf costs one hash and a look-up."""

    def __init__(self, bundle: TrustBundle, *, max_cached: int = MAX_CACHED) -> None:
        self._bundle = bundle
        self._max_cached = max_cached
        self._store = verification.Store([bundle.root])
        self._paths: dict[bytes, Standing] = {}
        # The root and the signers of the bundle are never evicted: stored statements name them by thumbprint.
        root = _path_of_root(bundle)
        self.root_identity = root.identity
        self._pinned: dict[bytes, Standing] = {root.identity.thumbprint: root}
        for signer in bundle.signers:
            path = self._validate(signer.public_bytes(Encoding.DER))
            if path.identity.kind is not Kind.SIGNER:
                raise _invalid("a signer of the trust bundle is something else")
            self._pinned[path.identity.thumbprint] = path

    @property
    def bundle(self) -> TrustBundle:
        """What this verifier trusts."""
        return self._bundle

    def verify(
        self,
        chain_der: Sequence[bytes],
        *,
        at: int,
        kinds: frozenset[Kind] | None = None,
        grace: bool = False,
    ) -> Identity:
        """Verify a chain, leaf first, as it stands ``at`` an instant (ms).

        ``grace`` admits a certificate between its operational end and its last; the caller then judges by
        ``operational_until``. Raises CERTIFICATE_INVALID or CERTIFICATE_EXPIRED.
        """
        path = self._path(chain_der)
        identity = path.identity
        if kinds is not None and identity.kind not in kinds:
            raise _invalid(f"it belongs to a {identity.kind}, which has no place here")
        # RFC 5280 6.1.3 (a)(2), for every certificate of the path, at every call.
        if at < path.valid_from:
            raise _invalid("it is not valid yet")
        if at > path.valid_to:
            raise _expired(identity, "has ended")
        if at > identity.operational_until and not grace:
            raise _expired(identity, "is past its operational end")
        return identity

    def standing(self, chain_der: Sequence[bytes]) -> Standing:
        """Validate a path, for whoever asks about it many times over. Raises CERTIFICATE_INVALID."""
        return self._path(chain_der)

    def remember(self, chain_der: Sequence[bytes]) -> Identity:
        """Validate a path without judging its validity at any instant, for later look-ups by thumbprint."""
        return self._path(chain_der).identity

    def by_thumbprint(self, thumbprint: bytes) -> Identity | None:
        """Find a certificate that was verified or remembered before; judge its validity yourself."""
        path = self._pinned.get(thumbprint) or self._paths.get(thumbprint)
        return path.identity if path else None

    def valid_at(self, thumbprint: bytes, *, at: int, grace: bool = False) -> Identity | None:
        """As ``verify``, for a certificate known by thumbprint; None when it is not known."""
        path = self._pinned.get(thumbprint) or self._paths.get(thumbprint)
        if path is None:
            return None
        if not path.valid_from <= at <= path.valid_to:
            raise _expired(path.identity, "is not valid then")
        if at > path.identity.operational_until and not grace:
            raise _expired(path.identity, "is past its operational end")
        return path.identity

    def _path(self, chain_der: Sequence[bytes]) -> Standing:
        if not chain_der:
            raise _invalid("there is none")
        leaf = chain_der[0]
        if len(leaf) > MAX_CERTIFICATE_BYTES:
            raise _invalid(f"it is larger than {MAX_CERTIFICATE_BYTES} bytes")
        thumbprint = hashlib.sha256(leaf).digest()
        path = self._pinned.get(thumbprint) or self._paths.get(thumbprint)
        if path is None:
            path = self._validate(leaf)
            while len(self._paths) >= self._max_cached:
                self._paths.pop(next(iter(self._paths), b""), None)
            self._paths[thumbprint] = path
        return path

    def _validate(self, leaf_der: bytes) -> Standing:
        try:
            leaf = x509.load_der_x509_certificate(leaf_der)
            _check_one_encoding(leaf, leaf_der)
            grant = _grant_of(leaf)
            if grant.kind is Kind.SIGNER:
                return self._signer_path(leaf, grant)
            return self._tls_path(leaf, grant)
        except UNREADABLE as error:
            raise _invalid("it cannot be read") from error

    def _tls_path(self, leaf: x509.Certificate, grant: Grant) -> Standing:
        _check_names(leaf, grant, self._bundle.trust_domain)
        _check_usage(leaf, _STATEMENTS_ONLY if grant.statements else _TLS_USAGES[grant.kind])
        for intermediate in self._bundle.intermediates.get(grant.kind, ()):
            path = (leaf, intermediate, self._bundle.root)
            # Any instant at which all three are valid will do: validity at `at` is checked on every call.
            builder = verification.PolicyBuilder().store(self._store).max_chain_depth(1)
            if grant.statements:
                builder = builder.extension_policies(ca_policy=_CA_POLICY, ee_policy=_STATEMENTS_POLICY)
            verifier = builder.time(max(one.not_valid_before_utc for one in path)).build_client_verifier()
            try:
                found = verifier.verify(leaf, [intermediate]).chain
            except verification.VerificationError:
                continue
            # The library would also take a leaf straight from the root, past the name constraints of its kind.
            if tuple(found) == path:
                return self._made(path, grant)
        # An intermediate of another kind, of another trust domain, a forged signature: all end here.
        raise _invalid(f"no intermediate for {grant.kind} of this trust domain issued it")

    def _signer_path(self, leaf: x509.Certificate, grant: Grant) -> Standing:
        """One step from a root to a signer (RFC 5280 6.1 with n = 1)."""
        if MANUFACTURER_STATEMENTS.issuperset(grant.statements):
            root = self._bundle.manufacturers.get(grant.organization)
            if root is None:
                raise _invalid("no root of its manufacturer is trusted")
        else:
            root = self._bundle.root
        _check_names(leaf, grant, trust_domain_of(root))
        try:
            # 6.1.3 (a)(1) the signature, (a)(4) the issuer's name; also 4.1.1.2, both algorithms agree.
            leaf.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise _invalid("the root that vouches for its statements did not issue it") from error
        # 6.1.5 (f): a critical extension that is not understood refuses the path.
        if any(one.critical and one.oid not in _CRITICAL_OF_A_SIGNER for one in leaf.extensions):
            raise _invalid("it has a critical extension that is not understood")
        _check_usage(leaf, _STATEMENTS_ONLY)
        return self._made((leaf, root), grant)

    def _made(self, path: tuple[x509.Certificate, ...], grant: Grant) -> Standing:
        return _made(path, grant, self._bundle)


def _made(path: tuple[x509.Certificate, ...], grant: Grant, bundle: TrustBundle) -> Standing:
    leaf = path[0]
    valid_from = milliseconds(max(one.not_valid_before_utc for one in path))
    valid_to = milliseconds(min(one.not_valid_after_utc for one in path))
    not_after = milliseconds(leaf.not_valid_after_utc)
    key = _public_key(leaf)
    identity = Identity(
        kind=grant.kind,
        id=grant.subject_id,
        organization=grant.organization,
        sites=grant.sites,
        roles=grant.roles,
        statements=grant.statements,
        thumbprint=hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest(),
        key_thumbprint=key_thumbprint(key),
        not_before=milliseconds(leaf.not_valid_before_utc),
        not_after=not_after,
        operational_until=min(grant.operational_until or not_after, not_after),
        authenticated=grant.authenticated,
        public_key=key,
        spiffe_id=spiffe_id(trust_domain_of(path[-1]), grant.kind, grant.subject_id),
        operator=grant.organization in {EVERY, bundle.operator},
    )
    return Standing(identity, valid_from, valid_to)


def _path_of_root(bundle: TrustBundle) -> Standing:
    """Describe the offline root as the signer of its own statements, and of nothing else."""
    root = bundle.root
    key = _public_key(root)
    not_after = milliseconds(root.not_valid_after_utc)
    identity = Identity(
        kind=Kind.SIGNER,
        id="root",
        organization=bundle.operator,
        sites=(),
        roles=(),
        statements=OWN_ROOT_STATEMENTS,
        thumbprint=hashlib.sha256(root.public_bytes(Encoding.DER)).digest(),
        key_thumbprint=key_thumbprint(key),
        not_before=milliseconds(root.not_valid_before_utc),
        not_after=not_after,
        operational_until=not_after,
        authenticated="",
        public_key=key,
        spiffe_id=f"spiffe://{bundle.trust_domain}",
        operator=False,
    )
    return Standing(identity, identity.not_before, not_after)


def _check_one_encoding(leaf: x509.Certificate, der: bytes) -> None:
    """Refuse every encoding of a certificate but the one that its issuer made.

    From (r, s) anybody makes (r, n - s), valid too, and with it a certificate of another thumbprint that a
    revocation of the first would not name. So s is low, and nothing outside the signed part is free.
    """
    r, s = decode_dss_signature(leaf.signature)
    if not (0 < r < P256_ORDER and 0 < s <= P256_ORDER // 2):
        raise _invalid("its signature is not in the one form that is accepted")
    bits = b"\x03" + bytes([len(leaf.signature) + 1, 0]) + leaf.signature
    content = leaf.tbs_certificate_bytes + _ECDSA_SHA256 + bits
    if der != b"\x30" + _der_length(len(content)) + content:
        raise _invalid("it is not in its one encoding")


def _der_length(length: int) -> bytes:
    """X.690 8.1.3 with 10.1: the shortest form."""
    octets = length.to_bytes((length.bit_length() + 7) // 8 or 1, "big")
    return octets if length < 0x80 else bytes([0x80 | len(octets)]) + octets


def _grant_of(leaf: x509.Certificate) -> Grant:
    try:
        extension = leaf.extensions.get_extension_for_oid(GRANT_OID)
    except x509.ExtensionNotFound as error:
        raise _invalid("it carries no grant") from error
    if extension.critical or not isinstance(extension.value, x509.UnrecognizedExtension):
        raise _invalid("its grant is marked critical")
    return decode_grant(extension.value.value)


def _check_names(leaf: x509.Certificate, grant: Grant, trust_domain: str) -> None:
    """X509-SVID 2: exactly one URI; it, the DNS name and the grant name the same holder."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    dns = names.get_values_for_type(x509.DNSName)
    expected = dns_name(trust_domain, grant.kind, grant.subject_id)
    if uris != [spiffe_id(trust_domain, grant.kind, grant.subject_id)]:
        raise _invalid("its SPIFFE id is not that of its grant in this trust domain")
    if dns != ([] if expected is None else [expected]) or len(list(names)) != len(uris) + len(dns):
        raise _invalid("its DNS name is not that of its grant")


def _check_usage(leaf: x509.Certificate, extended: frozenset[x509.ObjectIdentifier]) -> None:
    """RFC 5280 4.2.1.9, 4.2.1.3 and 4.2.1.12: no authority, a key that signs, for TLS or for statements."""
    usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if len(usages) != len(extended) or set(usages) != extended:
        raise _invalid("it is made for another use than its grant says")
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    if basic.ca or not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise _invalid("its key may do other things than sign, or not even that")


def _public_key(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _invalid("its key is neither on P-256 nor Ed25519")


def _expired(identity: Identity, what: str) -> Refused:
    until = dt.datetime.fromtimestamp(identity.operational_until / 1000, dt.UTC)
    return refused(
        Reason.CERTIFICATE_EXPIRED,
        f"The certificate of {identity.kind} {identity.id} {what}.",
        lifted_by="a renewed certificate",
        who="its holder",
        operational_until=until.isoformat(timespec="seconds"),
        thumbprint=identity.thumbprint.hex(),
    )


def _invalid(sentence: str) -> Refused:
    return refused(Reason.CERTIFICATE_INVALID, f"The certificate is not accepted: {sentence}.")
