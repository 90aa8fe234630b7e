"""Certificate files: signing requests, and a key with its chain replaced as one.

Two files cannot be renamed at once. ``store_pair`` therefore lays the new chain beside the old one first,
then replaces the key, then the chain; ``load_pair`` reads either side of a crash between the two, and never
hands out a key that is not the chain's.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from vigil.core.keys import (
    UNREADABLE,
    KeySigner,
    PrivateKey,
    PublicKey,
    algorithm_of,
    load_private_key,
    store_private_key,
)
from vigil.errors import Reason, refused

MAX_REQUEST_BYTES = 8192
"""A request carries one key and names that are ignored; real ones have under 600 bytes."""


def make_request(private_key: PrivateKey) -> bytes:
    """Make a PKCS #10 request (RFC 2986, PEM): it proves possession; the names come from a grant."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = hashes.SHA256() if isinstance(private_key, ec.EllipticCurvePrivateKey) else None
    return builder.sign(private_key, algorithm).public_bytes(Encoding.PEM)


def read_request(request_pem: bytes) -> PublicKey:
    """Read the key of a request whose maker proved it. Raises FIELD_INVALID, POSSESSION_NOT_PROVED."""
    if len(request_pem) > MAX_REQUEST_BYTES:
        raise refused(Reason.FIELD_INVALID, "The certificate request is too large.", field="csr")
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        algorithm_of(key)
        proved = request.is_signature_valid
    except UNREADABLE as error:
        raise refused(Reason.FIELD_INVALID, "The certificate request cannot be read.", field="csr") from error
    if not proved:  # RFC 2986 3: the signature is made with the subject's own key.
        raise refused(
            Reason.POSSESSION_NOT_PROVED,
            "The certificate request was not signed with the key in it.",
            field="csr",
        )
    return cast(PublicKey, key)  # algorithm_of refuses every other key


def read_chain(chain_pem: bytes) -> tuple[bytes, ...]:
    """Read the certificates of a PEM text as DER, in their order. Raises CERTIFICATE_INVALID."""
    try:
        return tuple(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(chain_pem))
    except UNREADABLE as error:
        raise refused(Reason.CERTIFICATE_INVALID, "A certificate file cannot be read.") from error


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and its chain as they lie on disk; ``chain_der`` is leaf first."""

    certificate_pem: bytes
    chain_der: tuple[bytes, ...]
    private_key: PrivateKey

    @property
    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS #8 PEM, for a TLS stack; never read from the file a second time."""
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def signer(self) -> KeySigner:
        """A signer with this key."""
        return KeySigner(self.private_key, self.chain_der)


def store_pair(certificate: Path, key: Path, *, chain_pem: bytes, private_key: PrivateKey) -> None:
    """Write or replace a chain and its key so that a reader, or a crash, never meets half of the change."""
    next_certificate, next_key = _next(certificate), _next(key)
    for leftover in (next_certificate, next_key):
        leftover.unlink(missing_ok=True)
    store_private_key(next_key, private_key)
    write_file(next_certificate, chain_pem)
    sync_directory(certificate.parent)
    next_key.replace(key)
    sync_directory(key.parent)
    next_certificate.replace(certificate)
    sync_directory(certificate.parent)


def load_pair(certificate: Path, key: Path, passphrase: bytes | None = None) -> Pair:
    """Read a chain and its key.

    Raises CERTIFICATE_INVALID when they do not belong together, FIELD_INVALID for an unreadable key, OSError.
    """
    private_key = load_private_key(key, passphrase)
    for path in (certificate, _next(certificate)):
        if path is not certificate and not path.exists():
            continue
        chain_pem = path.read_bytes()
        chain = read_chain(chain_pem)
        if _same_key(chain, private_key):
            return Pair(chain_pem, chain, private_key)
    raise refused(
        Reason.CERTIFICATE_INVALID,
        f"The key in {key.name} is not that of {certificate.name}.",
        lifted_by="a renewed certificate",
        who="operator",
    )


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a new file durably. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor is already open, exclusively
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write or replace one file atomically and durably."""
    staged = _next(path)
    staged.unlink(missing_ok=True)
    write_file(staged, data, mode=mode)
    staged.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _same_key(chain: tuple[bytes, ...], private_key: PrivateKey) -> bool:
    return bool(chain) and x509.load_der_x509_certificate(chain[0]).public_key() == private_key.public_key()
