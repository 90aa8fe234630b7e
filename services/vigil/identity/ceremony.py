"""First start, offline: root, intermediates, signers, services and two admins, before any port opens.

What it lays down under a data folder (folders 0700, keys 0600)::

    pki/root/{root.pem,root.key,passphrase}     to be carried away; the key is encrypted
    pki/intermediates/<kind>.{pem,key}
    pki/signers/<statement>[-spare].{pem,key}   decision, recorded, result, head
    pki/services/<role>/{tls.pem,tls.key}
    pki/trust.json
    people/<id>/{tls.pem,tls.key,trust.json}    the two admins

Everything is made in ``.first-start`` beside them and appears by rename, ``pki`` first: its presence is
the commit. A first start that was cut short is begun again, or finished when it had got so far.
"""

import base64
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from vigil.core.certificates import (
    EVERY,
    TLS_KINDS,
    ChainVerifier,
    Grant,
    Kind,
    TrustBundle,
    load_pair,
    milliseconds,
    replace_file,
    store_pair,
    sync_directory,
    write_file,
)
from vigil.core.clock import Clock, Entropy
from vigil.core.keys import PublicKey, new_private_key, store_private_key
from vigil.errors import Reason, Refused, refused
from vigil.identity import pki
from vigil.identity.ca import CertificateAuthority, load_issuer
from vigil.identity.staging import STAGING, make_directory, staged, sync_tree

SERVICE_ROLES: Final = ("identity", "release", "attestation", "policy", "revocation", "edge", "evidence")
SIGNER_STATEMENTS: Final = ("decision", "recorded", "result", "head")
ALSO_SIGNS: Final = {"recorded": ("census", "query")}
"""The log's signer signs whatever the log itself says (docs/decisions/0014)."""
VOUCHING_STATEMENTS: Final = ("voucher", "profile", "release", "downgrade")
FIRST_ADMINS: Final = ("p-admin-1", "p-admin-2")
ADMIN_ROLES: Final = ("admin",)

MIN_PASSPHRASE: Final = 15
"""Characters of a passphrase that stands alone (NIST SP 800-63B-4, 3.1.1.2)."""

PASSPHRASE_ENTROPY: Final = 20
"""Bytes of a generated passphrase: 160 bits, more than the key it guards is worth (128)."""

RENEW_AFTER: Final = 2 / 3
"""Of a certificate's ordinary use: what is left covers an outage of a third of it."""


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What a first start made. ``passphrase_file`` is None when the passphrase was the operator's."""

    directory: Path
    bundle: TrustBundle
    root_directory: Path
    passphrase_file: Path | None
    admins: tuple[Path, ...]


def first_start(
    directory: Path,
    *,
    trust_domain: str,
    operator_organization: str,
    clock: Clock,
    entropy: Entropy,
    passphrase_file: Path | None = None,
    service_roles: Sequence[str] = SERVICE_ROLES,
) -> FirstStart:
    """Make everything, or finish what a crash interrupted. Raises RESOURCE_EXISTS when there is one already.

    Also FIELD_INVALID or CERTIFICATE_INVALID for a bad name or passphrase, STATE_CONFLICT while another
    runs, OSError.
    """
    if (directory / "pki").exists() and not (directory / STAGING).exists():
        raise _exists(directory)
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with staged(directory) as staging:
        if not (directory / "pki").exists():
            if (directory / "people").exists():
                raise refused(
                    Reason.RESOURCE_EXISTS,
                    f"{directory} already holds people's credentials, of another trust domain.",
                    lifted_by="an empty folder",
                    who="operator",
                )
            _make(
                staging,
                trust_domain=trust_domain,
                operator=operator_organization,
                passphrase=passphrase,
                service_roles=service_roles,
                clock=clock,
                entropy=entropy,
            )
            (staging / "pki").rename(directory / "pki")
            sync_directory(directory)
        elif not (staging / "people").exists():
            raise _exists(directory)
        (staging / "people").rename(directory / "people")
        sync_directory(directory)
    root_directory = directory / "pki" / "root"
    generated = root_directory / "passphrase"
    return FirstStart(
        directory=directory,
        bundle=read_bundle(directory),
        root_directory=root_directory,
        passphrase_file=generated if generated.exists() else None,
        admins=tuple(directory / "people" / name for name in FIRST_ADMINS),
    )


def read_bundle(directory: Path) -> TrustBundle:
    """Read the trust bundle of a data folder. Raises CERTIFICATE_INVALID, OSError."""
    return TrustBundle.from_json((directory / "pki" / "trust.json").read_text())


def read_passphrase(path: Path) -> bytes:
    """Read the first line of a file. Raises FIELD_INVALID when it is too short, OSError."""
    passphrase = path.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
    if len(passphrase) < MIN_PASSPHRASE:
        raise refused(
            Reason.FIELD_INVALID,
            f"The passphrase in {path} has fewer than {MIN_PASSPHRASE} characters.",
            lifted_by="a longer passphrase on its first line",
            who="operator",
        )
    return passphrase


def open_root(root_directory: Path, passphrase: bytes) -> pki.Issuer:
    """Open a root that was brought back. Raises FIELD_INVALID for a wrong passphrase, OSError."""
    return load_issuer(root_directory / "root.pem", root_directory / "root.key", passphrase)


def renew_services(
    directory: Path, *, clock: Clock, entropy: Entropy, roles: Sequence[str] = SERVICE_ROLES
) -> tuple[str, ...]:
    """Renew the certificates of services that are past two thirds of their life, missing or torn.

    Needs no network and no root: so a machine that slept for a week starts again. Returns the roles renewed.
    """
    authority = CertificateAuthority.load(directory / "pki", clock=clock, entropy=entropy)
    verifier = ChainVerifier(authority.bundle)
    renewed = []
    for role in roles:
        folder = directory / "pki" / "services" / role
        if not _due(folder, verifier, clock.now()):
            continue
        make_directory(folder, exist_ok=True)
        _store_leaf(folder, authority, _service_grant(role), pki.SERVICE)
        renewed.append(role)
    return tuple(renewed)


def renew_admin(directory: Path, person_id: str, *, root: pki.Issuer, clock: Clock, entropy: Entropy) -> Path:
    """Make a new credential for one of the first admins; the open root shows that this is a ceremony.

    The way back in when both have ended. Raises STATE_CONFLICT when it is another root, FIELD_INVALID.
    """
    authority = CertificateAuthority.load(directory / "pki", clock=clock, entropy=entropy)
    if root.certificate != authority.bundle.root or person_id not in FIRST_ADMINS:
        raise refused(Reason.STATE_CONFLICT, "This root has no such first admin here.", who="operator")
    folder = directory / "people" / person_id
    make_directory(folder.parent, exist_ok=True)
    make_directory(folder, exist_ok=True)
    _store_leaf(folder, authority, _admin_grant(person_id, authority.bundle.operator), pki.FIRST_ADMIN)
    replace_file(folder / "trust.json", authority.bundle.to_json().encode())
    return folder


def renew_signers(directory: Path, *, root: pki.Issuer, clock: Clock, entropy: Entropy) -> TrustBundle:
    """Make the yearly signers and spares anew. Old ones stay in the bundle: what they signed stays known."""
    bundle = read_bundle(directory)
    if root.certificate != bundle.root:
        raise refused(Reason.STATE_CONFLICT, "This is the root of another trust domain.", who="operator")
    made = []
    for name, grant in _signer_grants(bundle.operator, SIGNER_STATEMENTS):
        key = new_private_key()
        leaf = _signer(
            root,
            trust_domain=bundle.trust_domain,
            grant=grant,
            public_key=key.public_key(),
            clock=clock,
            entropy=entropy,
        )
        folder = directory / "pki" / "signers"
        store_pair(
            folder / f"{name}.pem", folder / f"{name}.key", chain_pem=pki.chain_pem(leaf), private_key=key
        )
        made.append(leaf)
    bundle = bundle.with_signers(*made)
    replace_file(directory / "pki" / "trust.json", bundle.to_json().encode())
    return bundle


def make_manufacturer(
    directory: Path,
    *,
    organization: str,
    trust_domain: str,
    clock: Clock,
    entropy: Entropy,
    passphrase_file: Path | None = None,
) -> x509.Certificate:
    """Make a manufacturer's separate root in ``directory/root`` and its signers in ``directory/signers``.

    Signers: voucher, profile, release, downgrade, and a spare each. Returns the root for other domains'
    bundles (`trust_manufacturer`). Raises RESOURCE_EXISTS when the folder exists, and as `first_start`.
    """
    if directory.exists():
        raise _exists(directory)
    staging = directory.with_name(f".{directory.name}.making")
    shutil.rmtree(staging, ignore_errors=True)
    make_directory(staging)
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    root = _make_root(
        staging / "root",
        trust_domain=trust_domain,
        name=pki.common_name("manufacturer root", trust_domain),
        passphrase=passphrase,
        clock=clock,
        entropy=entropy,
    )
    _make_signers(
        staging / "signers",
        root,
        trust_domain,
        _signer_grants(organization, VOUCHING_STATEMENTS),
        clock=clock,
        entropy=entropy,
    )
    staging.rename(directory)
    sync_directory(directory.parent)
    return root.certificate


def trust_manufacturer(directory: Path, organization: str, root: x509.Certificate) -> TrustBundle:
    """Trust a manufacturer's root in this data folder, for its services and its first admins."""
    bundle = read_bundle(directory).with_manufacturer(organization, root)
    text = bundle.to_json().encode()
    replace_file(directory / "pki" / "trust.json", text)
    for name in FIRST_ADMINS:
        if (directory / "people" / name).is_dir():
            replace_file(directory / "people" / name / "trust.json", text)
    return bundle


def _make(
    staging: Path,
    *,
    trust_domain: str,
    operator: str,
    passphrase: bytes | None,
    service_roles: Sequence[str],
    clock: Clock,
    entropy: Entropy,
) -> None:
    folder = staging / "pki"
    for path in (folder, folder / "services", staging / "people"):
        make_directory(path)
    root = _make_root(
        folder / "root",
        trust_domain=trust_domain,
        name=pki.common_name("root", trust_domain),
        passphrase=passphrase,
        clock=clock,
        entropy=entropy,
    )
    issuers = _make_intermediates(folder / "intermediates", root, trust_domain, clock, entropy)
    signers = _make_signers(
        folder / "signers",
        root,
        trust_domain,
        _signer_grants(operator, SIGNER_STATEMENTS),
        clock=clock,
        entropy=entropy,
    )
    bundle = TrustBundle(
        trust_domain=trust_domain,
        root=root.certificate,
        intermediates={kind: (issuer.certificate,) for kind, issuer in issuers.items()},
        signers=signers,
        operator=operator,
    )
    text = bundle.to_json().encode()
    write_file(folder / "trust.json", text)
    authority = CertificateAuthority(bundle=bundle, issuers=issuers, clock=clock, entropy=entropy)
    for role in service_roles:
        make_directory(folder / "services" / role)
        _store_leaf(folder / "services" / role, authority, _service_grant(role), pki.SERVICE)
    for person in FIRST_ADMINS:
        home = staging / "people" / person
        make_directory(home)
        _store_leaf(home, authority, _admin_grant(person, operator), pki.FIRST_ADMIN)
        write_file(home / "trust.json", text)
    sync_tree(staging)


def _make_root(
    folder: Path,
    *,
    trust_domain: str,
    name: str,
    passphrase: bytes | None,
    clock: Clock,
    entropy: Entropy,
) -> pki.Issuer:
    make_directory(folder)
    if passphrase is None:
        passphrase = base64.b32encode(entropy(PASSPHRASE_ENTROPY)).lower()
        write_file(folder / "passphrase", passphrase + b"\n", mode=0o600)
    key = new_private_key()
    certificate = pki.make_root(
        trust_domain=trust_domain, name=name, private_key=key, now=clock.now(), entropy=entropy
    )
    store_private_key(folder / "root.key", key, passphrase)
    write_file(folder / "root.pem", pki.chain_pem(certificate))
    return pki.Issuer(certificate, key)


def _make_intermediates(
    folder: Path, root: pki.Issuer, trust_domain: str, clock: Clock, entropy: Entropy
) -> dict[Kind, pki.Issuer]:
    make_directory(folder)
    issuers = {}
    for kind in TLS_KINDS:
        key = new_private_key()
        certificate = pki.make_intermediate(
            kind=kind,
            trust_domain=trust_domain,
            root=root,
            public_key=key.public_key(),
            now=clock.now(),
            entropy=entropy,
        )
        store_private_key(folder / f"{kind}.key", key)
        write_file(folder / f"{kind}.pem", pki.chain_pem(certificate))
        issuers[kind] = pki.Issuer(certificate, key)
    return issuers


def _make_signers(
    folder: Path,
    root: pki.Issuer,
    trust_domain: str,
    grants: Sequence[tuple[str, Grant]],
    *,
    clock: Clock,
    entropy: Entropy,
) -> tuple[x509.Certificate, ...]:
    make_directory(folder)
    made = []
    for name, grant in grants:
        key = new_private_key()
        leaf = _signer(
            root,
            trust_domain=trust_domain,
            grant=grant,
            public_key=key.public_key(),
            clock=clock,
            entropy=entropy,
        )
        store_private_key(folder / f"{name}.key", key)
        write_file(folder / f"{name}.pem", pki.chain_pem(leaf))
        made.append(leaf)
    return tuple(made)


def _signer(
    root: pki.Issuer,
    *,
    trust_domain: str,
    grant: Grant,
    public_key: PublicKey,
    clock: Clock,
    entropy: Entropy,
) -> x509.Certificate:
    now = clock.now()
    return pki.issue(
        issuer=root,
        trust_domain=trust_domain,
        grant=grant,
        public_key=public_key,
        not_before=max(now - pki.SKEW, milliseconds(root.certificate.not_valid_before_utc)),
        not_after=now + pki.SIGNER_LIFE,
        entropy=entropy,
    )


def _signer_grants(organization: str, statements: Sequence[str]) -> list[tuple[str, Grant]]:
    """For each kind of statement a signer and its spare, by file name, which is the signer's id too."""
    names = [(f"{statement}{suffix}", statement) for statement in statements for suffix in ("", "-spare")]
    return [
        (
            name,
            Grant(
                kind=Kind.SIGNER,
                subject_id=name,
                organization=organization,
                statements=(statement, *ALSO_SIGNS.get(statement, ())),
            ),
        )
        for name, statement in names
    ]


def _service_grant(role: str) -> Grant:
    return Grant(kind=Kind.SERVICE, subject_id=role, organization=EVERY, sites=(EVERY,), roles=(role,))


def _admin_grant(person_id: str, operator: str) -> Grant:
    return Grant(
        kind=Kind.PERSON,
        subject_id=person_id,
        organization=operator,
        sites=(EVERY,),
        roles=ADMIN_ROLES,
        authenticated="ceremony",
    )


def _store_leaf(folder: Path, authority: CertificateAuthority, grant: Grant, profile: pki.Profile) -> None:
    key = new_private_key()
    issued = authority.issue(key.public_key(), grant, profile)
    store_pair(folder / "tls.pem", folder / "tls.key", chain_pem=issued.chain_pem, private_key=key)


def _due(folder: Path, verifier: ChainVerifier, now: int) -> bool:
    try:
        pair = load_pair(folder / "tls.pem", folder / "tls.key")
        identity = verifier.verify(pair.chain_der, at=now)
    except (OSError, Refused):  # missing, torn, ended, or of another intermediate: all are made anew
        return True
    life = identity.operational_until - identity.not_before
    return now > identity.not_before + life * RENEW_AFTER


def _exists(directory: Path) -> Refused:
    return refused(
        Reason.RESOURCE_EXISTS,
        f"{directory} already holds keys; a first start never replaces them.",
        lifted_by="another folder",
        who="operator",
    )
