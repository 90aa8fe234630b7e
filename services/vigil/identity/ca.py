"""The online authority: the intermediates' keys, and what may be issued with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import (
    TLS_KINDS,
    ChainVerifier,
    Grant,
    Identity,
    Kind,
    TrustBundle,
    load_pair,
    milliseconds,
    read_request,
)
from vigil.core.clock import Clock, Entropy
from vigil.core.keys import PublicKey
from vigil.errors import Reason, Refused, refused
from vigil.identity import pki


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate just issued: its chain (leaf, intermediate) and what verifiers will make of it."""

    chain_pem: bytes
    chain_der: tuple[bytes, ...]
    identity: Identity


class CertificateAuthority:
    """Issues certificates of the four TLS kinds, each through its own intermediate."""

    def __init__(
        self,
        *,
        bundle: TrustBundle,
        issuers: Mapping[Kind, pki.Issuer],
        clock: Clock,
        entropy: Entropy,
        on_issued: Callable[[int], object] = lambda _time: None,
    ) -> None:
        """``on_issued`` hears when (ms) each certificate was issued.

        Raise CERTIFICATE_INVALID if an issuer is not the bundle's intermediate of that kind.
        """
        for kind, issuer in issuers.items():
            if issuer.certificate not in bundle.intermediates.get(kind, ()):
                raise refused(
                    Reason.CERTIFICATE_INVALID, f"The issuer for {kind} is not in the trust bundle."
                )
        self._bundle = bundle
        self._issuers = dict(issuers)
        self._clock = clock
        self._entropy = entropy
        self._on_issued = on_issued
        self._verifier = ChainVerifier(bundle, max_cached=1)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        clock: Clock,
        entropy: Entropy,
        on_issued: Callable[[int], object] = lambda _time: None,
    ) -> "CertificateAuthority":
        """Load a ``pki`` folder that `ceremony.first_start` made. Raises CERTIFICATE_INVALID, OSError."""
        bundle = TrustBundle.from_json((directory / "trust.json").read_text())
        folder = directory / "intermediates"
        issuers = {kind: load_issuer(folder / f"{kind}.pem", folder / f"{kind}.key") for kind in TLS_KINDS}
        return cls(bundle=bundle, issuers=issuers, clock=clock, entropy=entropy, on_issued=on_issued)

    @property
    def bundle(self) -> TrustBundle:
        """What the certificates issued here are verified against."""
        return self._bundle

    def issue_from_csr(self, csr_pem: bytes, grant: Grant, profile: pki.Profile) -> Issued:
        """Issue for the key of a request whose signature proves possession; its names are ignored.

        Raises FIELD_INVALID, POSSESSION_NOT_PROVED and what `issue` raises.
        """
        return self.issue(read_request(csr_pem), grant, profile)

    def issue(self, public_key: PublicKey, grant: Grant, profile: pki.Profile) -> Issued:
        """Issue for a key whose possession was proved. The grant may end before the profile, never later.

        Raises FIELD_INVALID when grant and profile do not fit, STATE_CONFLICT when the issuer has ended or the clock
        leaps: what is issued by a clock that stands years ahead would last for years.
        """
        _check_profile(grant, profile)
        now = self._clock.now()
        longest = now + profile.operational
        until = grant.operational_until or longest
        if not now < until <= longest:
            raise _unfit("a certificate's ordinary use ends after now and within its profile")
        issuer = self._issuers.get(grant.kind)
        if issuer is None:
            raise refused(Reason.STATE_CONFLICT, f"This authority issues no certificates to a {grant.kind}.")
        root_begin = milliseconds(self._bundle.root.not_valid_before_utc)
        certificate = pki.issue(
            issuer=issuer,
            trust_domain=self._bundle.trust_domain,
            grant=replace(grant, operational_until=until),
            public_key=public_key,
            # So that a device or gateway that lost its clock can connect.
            not_before=root_begin if profile.from_root else max(now - pki.SKEW, root_begin),
            not_after=until + profile.grace,
            entropy=self._entropy,
        )
        issued = self._checked(certificate, issuer.certificate, at=now)
        self._on_issued(now)
        return issued

    def _checked(self, leaf: x509.Certificate, intermediate: x509.Certificate, *, at: int) -> Issued:
        """Show that what leaves this authority is what verifiers accept."""
        chain = tuple(one.public_bytes(Encoding.DER) for one in (leaf, intermediate))
        identity = self._verifier.verify(chain, at=at)
        return Issued(pki.chain_pem(leaf, intermediate), chain, identity)


def load_issuer(certificate: Path, key: Path, passphrase: bytes | None = None) -> pki.Issuer:
    """Load an authority's certificate and key. Raises CERTIFICATE_INVALID, FIELD_INVALID, OSError."""
    pair = load_pair(certificate, key, passphrase)
    if not isinstance(pair.private_key, ec.EllipticCurvePrivateKey):
        raise refused(Reason.CERTIFICATE_INVALID, f"The key of {certificate.name} is not on P-256.")
    return pki.Issuer(x509.load_der_x509_certificate(pair.chain_der[0]), pair.private_key)


def _check_profile(grant: Grant, profile: pki.Profile) -> None:
    if profile.kind is not grant.kind:
        raise _unfit(f"a {grant.kind} is not issued the certificate of a {profile.kind}")
    # Classes, S1: a safety credential names one site; only it lives on without a lease.
    if profile is pki.SAFETY and not (
        pki.SAFETY_ROLE in grant.roles and len(grant.sites) == 1 and grant.sites != ("*",)
    ):
        raise _unfit("a safety credential has the safety role and names one site")


def _unfit(sentence: str) -> Refused:
    return refused(Reason.FIELD_INVALID, f"This certificate cannot be issued: {sentence}.", field="grant")
