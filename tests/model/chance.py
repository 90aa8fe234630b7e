"""One world for everybody: keys, ids and signatures come out the same in every process that makes it.

What is signed has an order: digests are sorted, ids are sets' members. A seed replays elsewhere only when these are the
same there. It concerns this checker's processes alone; the product draws from the operating system.
"""

import os
from random import Random
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from vigil.core import keys

SEED: Final = "the world of every schedule"
ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""Its AlgorithmIdentifier (RFC 5758 section 3.2)."""


def fix() -> None:
    """From here on nothing in this process is left to chance."""
    random = Random(SEED)

    def new_key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(random.randrange(1, keys.P256_ORDER), curve)

    sign = x509.CertificateBuilder.sign

    def signed(self: x509.CertificateBuilder, key: Any, algorithm: Any) -> x509.Certificate:
        # RFC 6979: the signature's nonce follows from key and words. Signing again would not lower s.
        return _low(sign(self, key, algorithm, ecdsa_deterministic=True))

    os.urandom = random.randbytes  # type: ignore[assignment]
    ec.generate_private_key = new_key  # type: ignore[assignment]
    x509.CertificateBuilder.sign = signed  # type: ignore[assignment]
    keys._ECDSA = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def _low(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate with the lower of the two values of s (RFC 5280 4.1.1)."""
    r, s = decode_dss_signature(certificate.signature)
    if s <= keys.P256_ORDER // 2:
        return certificate
    signature = b"\x00" + encode_dss_signature(r, keys.P256_ORDER - s)
    parts = certificate.tbs_certificate_bytes + ECDSA_WITH_SHA256 + _der(0x03, signature)
    return x509.load_der_x509_certificate(_der(0x30, parts))


def _der(tag: int, content: bytes) -> bytes:
    """One value of ASN.1, of at most 65,535 bytes."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    if size < 0x100:
        return bytes((tag, 0x81, size)) + content
    return bytes((tag, 0x82)) + size.to_bytes(2) + content
