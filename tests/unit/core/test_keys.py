import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.unit.core.certificates_for import self_signed
from vigil.core import keys
from vigil.core.digest import sha256
from vigil.errors import Reason, Refused

P256 = keys.new_private_key()
OTHER = keys.new_private_key()
ED25519 = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_the_order_is_that_of_p256() -> None:
    # (n - 1) * G = -G: the same x coordinate, which holds for the true order alone.
    one = ec.derive_private_key(1, ec.SECP256R1()).public_key().public_numbers()
    last = ec.derive_private_key(keys.P256_ORDER - 1, ec.SECP256R1()).public_key().public_numbers()
    assert last.x == one.x
    assert last.y != one.y


def test_signatures_are_raw_with_low_s_and_interoperate() -> None:
    for number in range(40):
        data = b"%d" % number
        signature = keys.sign(P256, data)
        assert len(signature) == 64
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        assert s <= keys.P256_ORDER // 2
        P256.public_key().verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
        assert keys.verify(P256.public_key(), keys.ES256, data, signature)
        high = signature[:32] + (keys.P256_ORDER - s).to_bytes(32, "big")
        P256.public_key().verify(
            encode_dss_signature(r, keys.P256_ORDER - s), data, ec.ECDSA(hashes.SHA256())
        )
        assert not keys.verify(P256.public_key(), keys.ES256, data, high)


@pytest.mark.parametrize("key", [P256, ED25519], ids=["p256", "ed25519"])
def test_a_signature_is_valid_for_its_key_data_and_algorithm_alone(key: keys.PrivateKey) -> None:
    algorithm = keys.algorithm_of(key.public_key())
    signature = keys.sign(key, b"data")
    assert keys.verify(key.public_key(), algorithm, b"data", signature)
    assert not keys.verify(key.public_key(), algorithm, b"Data", signature)
    assert not keys.verify(OTHER.public_key(), keys.ES256, b"data", signature)
    assert not keys.verify(key.public_key(), keys.ES256 + keys.EDDSA - algorithm, b"data", signature)
    assert not keys.verify(key.public_key(), -35, b"data", signature)
    for wrong in (
        b"",
        signature[:-1],
        signature + b"\x00",
        bytes(64),
        b"\xff" * 64,
        bytes(32) + signature[32:],
    ):
        assert not keys.verify(key.public_key(), algorithm, b"data", wrong)


def test_another_curve_does_not_pass_for_p256() -> None:
    other = ec.generate_private_key(ec.SECP256K1())
    assert not keys.verify(other.public_key(), keys.ES256, b"data", bytes(63) + b"\x01")
    with pytest.raises(Refused):
        keys.algorithm_of(other.public_key())


def test_the_thumbprint_is_that_of_rfc_9679() -> None:
    x = "65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d"
    y = "1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c"
    key = ec.EllipticCurvePublicNumbers(int(x, 16), int(y, 16), ec.SECP256R1()).public_key()
    assert (  # RFC 9679 section 6
        keys.key_thumbprint(key).hex() == "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"
    )


def test_thumbprints_tell_keys_apart() -> None:
    keyed = {keys.key_thumbprint(key.public_key()) for key in (P256, OTHER, ED25519)}
    assert len(keyed) == 3
    raw = ED25519.public_key().public_bytes_raw()
    assert keys.key_thumbprint(ED25519.public_key()) == sha256(bytes.fromhex("a301012006215820") + raw)


def test_a_signer_knows_its_certificate() -> None:
    certificate = self_signed(P256)
    signer = keys.KeySigner(P256, [certificate, b"intermediate"])
    assert signer.certificate_thumbprint == sha256(certificate)
    assert signer.chain == (certificate, b"intermediate")
    assert signer.algorithm == keys.ES256
    assert keys.verify(P256.public_key(), signer.algorithm, b"data", signer.sign(b"data"))
    assert keys.KeySigner(ED25519, [self_signed(ED25519)]).algorithm == keys.EDDSA


@pytest.mark.parametrize("chain", [[], [b"no certificate"], [self_signed(OTHER)]])
def test_a_signer_without_its_own_certificate_is_refused(chain: list[bytes]) -> None:
    with pytest.raises(Refused) as caught:
        keys.KeySigner(P256, chain)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
@pytest.mark.parametrize("key", [P256, ED25519], ids=["p256", "ed25519"])
def test_a_stored_key_is_private_and_read_back(
    tmp_path: Path, key: keys.PrivateKey, passphrase: bytes | None
) -> None:
    path = tmp_path / "key.pem"
    keys.store_private_key(path, key, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = keys.load_private_key(path, passphrase)
    assert keys.key_thumbprint(loaded.public_key()) == keys.key_thumbprint(key.public_key())
    with pytest.raises(FileExistsError):
        keys.store_private_key(path, OTHER)
    with pytest.raises(Refused):
        keys.load_private_key(path, b"wrong" if passphrase else b"not needed")


def test_a_file_without_a_usable_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"-----BEGIN NOTHING-----\nsecret\n")
    with pytest.raises(Refused) as caught:
        keys.load_private_key(path)
    assert "secret" not in str(caught.value)
    path.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(Refused) as caught:
        keys.load_private_key(path)
    assert caught.value.reason is Reason.FIELD_INVALID
    with pytest.raises(FileNotFoundError):
        keys.load_private_key(tmp_path / "absent.pem")
