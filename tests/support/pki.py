"""A whole trust domain for a test, made by the real ceremony and issued from by the real `pki`.

pki = TestPki(tmp_path)
technician = pki.issue(Kind.PERSON, "p-technician", roles=("technician",), sites=("site-1",))
technician.tls_files.certificate, .key, .trust      # paths, for servers and channels
technician.signer, technician.identity              # for statements
policy = pki.signer("decision")                     # made by the ceremony, as a KeySigner
maker = pki.manufacturer("maker"); maker.signer("voucher")
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import (
    EVERY,
    TLS_KINDS,
    ChainVerifier,
    Grant,
    Identity,
    Kind,
    TrustBundle,
    load_pair,
    milliseconds,
    read_chain,
    store_pair,
)
from vigil.core.clock import Clock, SystemClock
from vigil.core.keys import KeySigner, PrivateKey, load_private_key, new_private_key
from vigil.core.statements.envelope import Scribe
from vigil.identity import ceremony, pki
from vigil.identity.ca import CertificateAuthority, load_issuer
from vigil.rpc.tls import TlsFiles

TRUST_DOMAIN = "vigil.test"
ORGANIZATION = "hospital"
SITE = "site-1"
DEVICE = "dev-aaaaaaaaaaaaaaaa"

_OPERATIONAL = {
    Kind.SERVICE: pki.SERVICE,
    Kind.GATEWAY: pki.GATEWAY,
    Kind.PERSON: pki.PERSON,
    Kind.DEVICE: pki.DEVICE,
}


@dataclass(frozen=True)
class Credential:
    """A certificate with its key, on disk and in memory."""

    tls_files: TlsFiles
    signer: KeySigner
    identity: Identity
    private_key: PrivateKey
    chain: tuple[bytes, ...]

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])

    @property
    def issuer_name(self) -> str:
        """As it stands in a statement's ``iss``."""
        return f"{self.identity.kind}/{self.identity.id}"

    def scribe(self, clock: Clock, *, numbered: bool = False) -> Scribe:
        return Scribe(
            signer=self.signer,
            issuer=self.issuer_name,
            clock=clock,
            entropy=os.urandom,
            numbered=numbered,
        )


@dataclass
class Manufacturer:
    """A manufacturer's separate root, its signers on demand."""

    organization: str
    directory: Path
    root: x509.Certificate
    credential_of: Callable[[Path, str], Credential]
    _made: dict[str, Credential] = field(default_factory=dict)

    def credential(self, statement: str, *, spare: bool = False) -> Credential:
        name = statement + ("-spare" if spare else "")
        if name not in self._made:
            self._made[name] = self.credential_of(self.directory / "signers", name)
        return self._made[name]

    def signer(self, statement: str) -> KeySigner:
        return self.credential(statement).signer


class TestPki:
    """A trust domain in a folder; ``clock`` moves what is issued, the ceremony happens at its now."""

    __test__ = False

    def __init__(
        self,
        tmp_path: Path,
        *,
        trust_domain: str = TRUST_DOMAIN,
        operator: str = "operator",
        clock: Clock | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.tmp_path = tmp_path
        self.directory = tmp_path / f"pki-of-{trust_domain}"
        self.trust_domain = trust_domain
        self.first = ceremony.first_start(
            self.directory,
            trust_domain=trust_domain,
            operator_organization=operator,
            clock=self.clock,
            entropy=os.urandom,
        )
        self.bundle: TrustBundle = self.first.bundle
        self.verifier = ChainVerifier(self.bundle)
        self.issuers = {
            kind: load_issuer(
                self.directory / "pki" / "intermediates" / f"{kind}.pem",
                self.directory / "pki" / "intermediates" / f"{kind}.key",
            )
            for kind in TLS_KINDS
        }
        self._issued = 0
        self._signers: dict[str, Credential] = {}
        self._others: dict[str, TestPki] = {}

    @property
    def trust(self) -> Path:
        """The trust.json that every credential's ``tls_files.trust`` names."""
        return self.directory / "pki" / "trust.json"

    @property
    def root(self) -> pki.Issuer:
        """The root, opened."""
        assert self.first.passphrase_file is not None
        passphrase = ceremony.read_passphrase(self.first.passphrase_file)
        return ceremony.open_root(self.first.root_directory, passphrase)

    @property
    def authority(self) -> CertificateAuthority:
        """The online authority over this domain's intermediates."""
        return CertificateAuthority(
            bundle=self.bundle, issuers=self.issuers, clock=self.clock, entropy=os.urandom
        )

    def issue(
        self,
        kind: Kind,
        subject_id: str,
        *,
        organization: str | None = None,
        sites: tuple[str, ...] | None = None,
        roles: tuple[str, ...] = (),
        statements: tuple[str, ...] = (),
        authenticated: str = "",
        operational_until: int = 0,
        not_before: int | None = None,
        not_after: int | None = None,
        private_key: PrivateKey | None = None,
        issuer: pki.Issuer | None = None,
    ) -> Credential:
        """Issue with defaults that fit the kind; instants in ms since the epoch.

        A ``SIGNER`` hangs under the root. ``issuer`` replaces the right issuer by a wrong one; its identity is
        then that of the right one's reading and must not be asked for.
        """
        service = kind is Kind.SERVICE
        grant = Grant(
            kind=kind,
            subject_id=subject_id,
            organization=organization or (EVERY if service or kind is Kind.SIGNER else ORGANIZATION),
            sites=sites if sites is not None else self._sites(kind),
            roles=roles or ((subject_id,) if service else ()),
            statements=statements,
            authenticated=authenticated,
            operational_until=operational_until,
        )
        now = self.clock.now()
        if kind is Kind.SIGNER:
            right, life = self.root, pki.SIGNER_LIFE
        else:
            right, life = self.issuers[kind], _OPERATIONAL[kind].operational
        key = private_key or new_private_key()
        begin = milliseconds(self.bundle.root.not_valid_before_utc)
        leaf = pki.issue(
            issuer=issuer or right,
            trust_domain=self.trust_domain,
            grant=grant,
            public_key=key.public_key(),
            not_before=begin if not_before is None else not_before,
            not_after=max(now + life, operational_until) if not_after is None else not_after,
            entropy=os.urandom,
        )
        upper = () if kind is Kind.SIGNER else ((issuer or right).certificate,)
        return self._stored(subject_id, key, (leaf, *upper), known=issuer is None)

    def service(self, role: str) -> Credential:
        """A service's certificate."""
        return self.issue(Kind.SERVICE, role)

    def gateway(self, gateway_id: str = "gateway-1", **values: object) -> Credential:
        return self.issue(Kind.GATEWAY, gateway_id, **values)  # type: ignore[arg-type]

    def person(self, person_id: str, *roles: str, **values: object) -> Credential:
        return self.issue(Kind.PERSON, person_id, roles=roles, **values)  # type: ignore[arg-type]

    def device(self, device_id: str = DEVICE, **values: object) -> Credential:
        """A device's TLS certificate."""
        return self.issue(Kind.DEVICE, device_id, **values)  # type: ignore[arg-type]

    def attester(self, device_id: str = DEVICE, **values: object) -> Credential:
        """A device's attestation certificate, which signs evidence, receipts and acknowledgements."""
        statements = ("acknowledgement", "evidence", "receipt")
        return self.issue(Kind.DEVICE, device_id, statements=statements, **values)  # type: ignore[arg-type]

    def admin(self, number: int = 1) -> Credential:
        """One of the two first admins, as the ceremony made it."""
        folder = self.directory / "people" / f"p-admin-{number}"
        pair = load_pair(folder / "tls.pem", folder / "tls.key")
        return Credential(
            TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "trust.json"),
            pair.signer,
            self.verifier.verify(pair.chain_der, at=self.clock.now()),
            pair.private_key,
            pair.chain_der,
        )

    def signer_credential(self, statement: str, *, spare: bool = False) -> Credential:
        """The ceremony's signer for a kind of statement, or its spare."""
        name = statement + ("-spare" if spare else "")
        if name not in self._signers:
            self._signers[name] = self._from_folder(self.directory / "pki" / "signers", name)
        return self._signers[name]

    def signer(self, statement: str) -> KeySigner:
        return self.signer_credential(statement).signer

    def manufacturer(self, organization: str = "maker") -> Manufacturer:
        """Make a manufacturer's root and signers, and trust it from now on (``bundle``, ``verifier``, files)."""
        directory = self.tmp_path / f"manufacturer-{organization}"
        root = ceremony.make_manufacturer(
            directory,
            organization=organization,
            trust_domain=f"{organization}.test",
            clock=self.clock,
            entropy=os.urandom,
        )
        self.bundle = ceremony.trust_manufacturer(self.directory, organization, root)
        self.verifier = ChainVerifier(self.bundle)
        return Manufacturer(organization, directory, root, self._from_folder)

    def other_domain(self, trust_domain: str = "other.test") -> "TestPki":
        """A foreign trust domain, the same one each time."""
        if trust_domain not in self._others:
            self._others[trust_domain] = TestPki(self.tmp_path, trust_domain=trust_domain, clock=self.clock)
        return self._others[trust_domain]

    def _from_folder(self, folder: Path, name: str) -> Credential:
        certificate, key_path = folder / f"{name}.pem", folder / f"{name}.key"
        chain = read_chain(certificate.read_bytes())
        key = load_private_key(key_path)
        return Credential(
            TlsFiles(certificate, key_path, self.trust),
            KeySigner(key, chain),
            self.verifier.remember(chain),
            key,
            chain,
        )

    def _stored(
        self, name: str, key: PrivateKey, certificates: tuple[x509.Certificate, ...], *, known: bool
    ) -> Credential:
        self._issued += 1
        folder = self.tmp_path / f"credentials-{self.trust_domain}" / f"{self._issued}-{name}"
        folder.mkdir(parents=True)
        paths = TlsFiles(folder / "tls.pem", folder / "tls.key", self.trust)
        store_pair(paths.certificate, paths.key, chain_pem=pki.chain_pem(*certificates), private_key=key)
        chain = tuple(one.public_bytes(Encoding.DER) for one in certificates)
        identity = self.verifier.remember(chain) if known else self.verifier.root_identity
        return Credential(paths, KeySigner(key, chain), identity, key, chain)

    @staticmethod
    def _sites(kind: Kind) -> tuple[str, ...]:
        match kind:
            case Kind.SERVICE:
                return (EVERY,)
            case Kind.SIGNER:
                return ()
            case _:
                return (SITE,)
