"""Signing keys: ECDSA on P-256 with SHA-256 (COSE ES256) by default, Ed25519 accepted.

ECDSA signatures are raw ``r || s`` (RFC 9053 section 2.1) with the lower of the two valid values of s, so
that one signature has one form; the higher value is refused.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from vigil.core import cbor
from vigil.core.digest import sha256
from vigil.errors import Reason, Refused, refused

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey

ES256: Final = -7
EDDSA: Final = -8
ALGORITHMS: Final = frozenset({ES256, EDDSA})
"""COSE algorithm identifiers (RFC 9053 section 2) that Vigil signs with and accepts."""
SIGNATURE_BYTES: Final = 64

P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
"""The order n of P-256 (SP 800-186 section 3.2.1.3)."""
UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""Everything that `cryptography` raises while it reads a stranger's certificate, request or key. It reads lazily, so
the parts raise as well as the whole; no base class but Exception joins them."""

_HIGHEST_LOW_S: Final = P256_ORDER // 2
_ECDSA = ec.ECDSA(hashes.SHA256())


class Signer(Protocol):
    """Something that signs: a key in memory, in a secure element or in an HSM."""

    @property
    def certificate_thumbprint(self) -> bytes:
        """SHA-256 of the DER certificate, as x5t names it (RFC 9360)."""
        ...

    @property
    def algorithm(self) -> int:
        """The COSE algorithm: -7 (ES256) or -8 (EdDSA)."""
        ...

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER certificates, the signer's first, without the root."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign ``data``: 64 bytes, raw r || s with low s, or an Ed25519 signature."""
        ...


class KeySigner:
    """A signer whose private key lies in this process's memory."""

    def __init__(self, private_key: PrivateKey, chain_der: Sequence[bytes]) -> None:
        """Take ``chain_der``, the signer's certificate first, without the root.

        Raises Refused CERTIFICATE_INVALID if the chain is empty or its first certificate is for another key.
        """
        self.algorithm = algorithm_of(private_key.public_key())
        self.chain = tuple(chain_der)
        self._key = private_key
        if not self.chain:
            raise _certificate_invalid("A signer needs its certificate.")
        try:
            certified = x509.load_der_x509_certificate(self.chain[0]).public_key()
        except UNREADABLE:
            raise _certificate_invalid("The signer's certificate cannot be read.") from None
        if certified != private_key.public_key():
            raise _certificate_invalid("The certificate is for another key than the signer's.")
        self.certificate_thumbprint = sha256(self.chain[0])

    def sign(self, data: bytes) -> bytes:
        return sign(self._key, data)


def sign(private_key: PrivateKey, data: bytes) -> bytes:
    """Sign ``data``: raw r || s with low s for P-256, RFC 8032 for Ed25519; 64 bytes."""
    if isinstance(private_key, Ed25519PrivateKey):
        return private_key.sign(data)
    r, s = decode_dss_signature(private_key.sign(data, _ECDSA))
    if s > _HIGHEST_LOW_S:
        s = P256_ORDER - s
    return (r << 256 | s).to_bytes(SIGNATURE_BYTES, "big")


def verify(public_key: PublicKey, algorithm: int, data: bytes, signature: bytes) -> bool:
    """Say whether ``signature`` over ``data`` is valid; a high s or another key's algorithm is not."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        if isinstance(public_key, Ed25519PublicKey):
            if algorithm != EDDSA:
                return False
            public_key.verify(signature, data)
            return True
        if algorithm != ES256 or public_key.curve.name != "secp256r1":
            return False
        s = int.from_bytes(signature[32:], "big")
        if s > _HIGHEST_LOW_S:
            return False
        public_key.verify(encode_dss_signature(int.from_bytes(signature[:32], "big"), s), data, _ECDSA)
    except InvalidSignature:
        return False
    return True


def algorithm_of(public_key: object) -> int:
    """Name the COSE algorithm of a key. Raises Refused FIELD_INVALID for keys that Vigil does not use."""
    if isinstance(public_key, Ed25519PublicKey):
        return EDDSA
    if isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name == "secp256r1":
        return ES256
    raise refused(
        Reason.FIELD_INVALID,
        "Vigil uses P-256 and Ed25519 keys only.",
        lifted_by="Make a key with one of these algorithms.",
        who="owner of the key",
    )


def key_thumbprint(public_key: PublicKey) -> bytes:
    """Compute the COSE Key Thumbprint of RFC 9679: SHA-256 over the required members of the COSE_Key."""
    if isinstance(public_key, Ed25519PublicKey):
        raw = public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return sha256(cbor.encode({1: 1, -1: 6, -2: raw}))  # kty OKP, crv Ed25519, x
    algorithm_of(public_key)
    point = public_key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return sha256(cbor.encode({1: 2, -1: 1, -2: point[1:33], -3: point[33:]}))  # kty EC2, crv P-256, x, y


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Make a fresh P-256 key from the library's own random source."""
    return ec.generate_private_key(ec.SECP256R1())


def load_private_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Read a PKCS #8 PEM key. Raises OSError, or Refused FIELD_INVALID without a word of the content."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise refused(
            Reason.FIELD_INVALID,
            f"{path} holds no private key that can be read with the passphrase given, or without one.",
            lifted_by="Give the right file and passphrase.",
            who="operator",
        ) from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, Ed25519PrivateKey)):
        algorithm_of(key)
        raise TypeError("unreachable: algorithm_of refuses every other key")
    algorithm_of(key.public_key())
    return key


def store_private_key(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Write ``key`` as PKCS #8 PEM into a new file of mode 0600, durably. Raises OSError if one exists."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor is already open, exclusively
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def _certificate_invalid(sentence: str) -> Refused:
    return refused(
        Reason.CERTIFICATE_INVALID, sentence, lifted_by="Give the certificate of this key.", who="operator"
    )
