"""Another implementation of COSE and CWT reads what Vigil signs, and Vigil reads what it signs."""

from collections.abc import Callable

import cbor2
import cwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.core.certificates_for import self_signed
from vigil.core import cbor, cose, keys
from vigil.core.digest import sha256

CLAIMS: dict[int | str, object] = {1: "device/dev-1", 2: "dev-1", 6: 1_790_000_000, 7: bytes(16)}
PAYLOAD = cbor.encode({10: b"nonce", 256: b"\x01ueid", "vigil.log": [7, bytes(32)]})
MAKERS: list[Callable[[], keys.PrivateKey]] = [keys.new_private_key, Ed25519PrivateKey.generate]


def private_pem(key: keys.PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: keys.PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("make", MAKERS)
def test_cwt_verifies_what_vigil_signs(make: Callable[[], keys.PrivateKey]) -> None:
    key = make()
    signer = keys.KeySigner(key, [self_signed(key)])
    data = cose.sign(signer, content_type="application/eat+cwt", claims=CLAIMS, payload=PAYLOAD)
    cose_key = cwt.COSEKey.from_pem(public_pem(key), kid="k")
    # RFC 9052 section 2: a protocol may agree on the untagged form; the library is told by the tag.
    protected, unprotected, payload = cwt.COSE.new().decode_with_headers(
        cbor2.CBORTag(18, cbor2.loads(data)), [cose_key]
    )
    assert payload == PAYLOAD
    assert protected == {
        1: signer.algorithm,
        3: "application/eat+cwt",
        15: CLAIMS,
        34: [-16, signer.certificate_thumbprint],
    }
    assert unprotected == {33: signer.chain[0]}


@pytest.mark.parametrize("make", MAKERS)
def test_cwt_notices_a_change(make: Callable[[], keys.PrivateKey]) -> None:
    key = make()
    signer = keys.KeySigner(key, [self_signed(key)])
    data = cose.sign(signer, content_type="application/eat+cwt", claims=CLAIMS, payload=PAYLOAD)
    changed = data[:-1] + bytes((data[-1] ^ 1,))
    with pytest.raises(cwt.VerifyError):
        cwt.COSE.new().decode(
            cbor2.CBORTag(18, cbor2.loads(changed)), [cwt.COSEKey.from_pem(public_pem(key), kid="k")]
        )


@pytest.mark.parametrize("make", MAKERS)
def test_vigil_verifies_what_cwt_signs(make: Callable[[], keys.PrivateKey]) -> None:
    key = make()
    certificate = self_signed(key)
    algorithm = keys.algorithm_of(key.public_key())
    cose_key = cwt.COSEKey.from_pem(private_pem(key), kid="k")
    verified = 0
    for _ in range(24):
        encoded = cwt.COSE.new().encode_and_sign(
            PAYLOAD,
            cose_key,
            protected={
                1: algorithm,
                3: "application/eat+cwt",
                15: CLAIMS,
                34: [-16, sha256(certificate)],
            },
            unprotected={33: certificate},
        )
        untagged = cbor2.dumps(cbor2.loads(encoded).value)
        sign1 = cose.parse(untagged)
        assert sign1.payload == PAYLOAD
        assert sign1.claims == CLAIMS
        high = algorithm == keys.ES256 and int.from_bytes(sign1.signature[32:], "big") > keys.P256_ORDER // 2
        assert cose.check_signature(sign1, key.public_key()) is not high
        verified += not high
    assert verified  # of 24 ECDSA signatures by a library that does not normalise s, half have the low one
