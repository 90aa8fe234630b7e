import itertools
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.core.certificates_for import self_signed
from vigil.core import cbor, cose, keys
from vigil.core.digest import sha256
from vigil.errors import Reason, Refused

KEY = keys.new_private_key()
CERTIFICATE = self_signed(KEY)
SIGNER = keys.KeySigner(KEY, [CERTIFICATE, b"\x30intermediate"])
CLAIMS: dict[int | str, Any] = {
    1: "person/p-1",
    2: "dev-1",
    6: 1_790_000_000,
    7: bytes(16),
    "vigil.series": [1],
}
CONTENT_TYPE = "application/vigil.intent+cbor"
PAYLOAD = cbor.encode({"action": "set-rate", "rate": 1200})
X5T = [cose.SHA_256, sha256(CERTIFICATE)]
HEADERS = {1: -7, 3: CONTENT_TYPE, 15: CLAIMS, 34: X5T}


def signed(**changes: Any) -> bytes:
    arguments = {"content_type": CONTENT_TYPE, "claims": CLAIMS, "payload": PAYLOAD} | changes
    return cose.sign(SIGNER, **arguments)


def assembled(
    headers: Any = None, unprotected: Any = None, payload: Any = PAYLOAD, signature: Any = None
) -> bytes:
    """Encode a statement of any shape, with a true signature unless another is given."""
    protected = (
        headers if isinstance(headers, bytes) else cbor.encode(HEADERS if headers is None else headers)
    )
    if signature is None:
        signature = SIGNER.sign(cose.sig_structure(protected, payload if isinstance(payload, bytes) else b""))
    return cbor.encode([protected, {} if unprotected is None else unprotected, payload, signature])


def test_what_is_signed_is_read_back() -> None:
    sign1 = cose.parse(signed())
    assert sign1.payload == PAYLOAD
    assert sign1.content_type == CONTENT_TYPE
    assert sign1.claims == CLAIMS
    assert sign1.algorithm == keys.ES256
    assert sign1.signer == SIGNER.certificate_thumbprint
    assert sign1.chain == SIGNER.chain
    assert cose.check_signature(sign1, KEY.public_key())
    assert not cose.check_signature(sign1, keys.new_private_key().public_key())


def test_the_signature_covers_the_sig_structure_of_rfc_9052() -> None:
    sign1 = cose.parse(signed())
    structure = cbor.encode(["Signature1", sign1.protected, b"", PAYLOAD])
    assert sign1.to_be_signed == structure
    assert sign1.digest == sha256(structure)
    assert keys.verify(KEY.public_key(), keys.ES256, structure, sign1.signature)


def test_ed25519_is_accepted() -> None:
    key = Ed25519PrivateKey.generate()
    signer = keys.KeySigner(key, [self_signed(key)])
    sign1 = cose.parse(cose.sign(signer, content_type="a", claims={}, payload=b""))
    assert sign1.algorithm == keys.EDDSA
    assert cose.check_signature(sign1, key.public_key())
    assert not cose.check_signature(sign1, KEY.public_key())


def test_another_signature_and_another_chain_are_the_same_statement() -> None:
    first, second = signed(), signed(with_chain=False)
    assert first != second
    assert cose.parse(first).digest == cose.parse(second).digest
    assert cose.parse(signed(payload=b"other")).digest != cose.parse(first).digest
    assert cose.parse(signed(claims={})).digest != cose.parse(first).digest


def test_the_chain_travels_and_is_not_stored() -> None:
    travelling = signed()
    stored = cose.without_chain(travelling)
    assert cose.parse(stored).chain == ()
    assert cose.without_chain(stored) == stored
    assert cose.with_chain(stored, SIGNER.chain) == travelling
    assert cose.with_chain(travelling, ()) == stored
    alone = cose.with_chain(stored, [CERTIFICATE])
    assert cose.parse(alone).chain == (CERTIFICATE,)
    assert cose.check_signature(cose.parse(alone), KEY.public_key())
    with pytest.raises(Refused):
        cose.with_chain(stored, [CERTIFICATE] * 5)
    with pytest.raises(Refused):
        cose.without_chain(b"\x80")


def test_the_hand_made_statement_is_the_signed_one_where_nothing_is_wrong() -> None:
    assert cose.check_signature(cose.parse(assembled()), KEY.public_key())
    assert cose.check_signature(cose.parse(assembled(unprotected={33: CERTIFICATE})), KEY.public_key())


def without(label: int) -> dict[int, Any]:
    return {key: value for key, value in HEADERS.items() if key != label}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xd2" + assembled(),  # tag 18: one encoding only, the untagged
        assembled() + b"\x00",
        cbor.encode([b"", {}, b""]),
        cbor.encode({1: 2}),
        cbor.encode([b"", {}, b"", bytes(64), 0]),
        assembled(headers=b""),
        assembled(headers=b"\x80"),
        assembled(headers=b"\xa2\x01\x26\x01\x26"),
        assembled(headers=cbor.encode(HEADERS) + b"\x00"),
        assembled(headers=bytes.fromhex("bf0126ff")),
        assembled(headers=without(1)),
        assembled(headers=without(3)),
        assembled(headers=without(15)),
        assembled(headers=without(34)),
        assembled(headers=HEADERS | {1: -35}),
        assembled(headers=HEADERS | {1: 5}),
        assembled(headers=HEADERS | {1: "ES256"}),
        assembled(headers=HEADERS | {1: True}),
        assembled(headers=HEADERS | {2: [15]}),
        assembled(headers=HEADERS | {2: []}),
        assembled(headers=HEADERS | {3: 60}),
        assembled(headers=HEADERS | {4: b"kid"}),
        assembled(headers=HEADERS | {15: []}),
        assembled(headers=HEADERS | {33: CERTIFICATE}),
        assembled(headers=HEADERS | {34: [-15, X5T[1]]}),
        assembled(headers=HEADERS | {34: [-16, bytes(31)]}),
        assembled(headers=HEADERS | {34: [-16, "x" * 32]}),
        assembled(headers=HEADERS | {34: [-16]}),
        assembled(headers=HEADERS | {34: X5T[1]}),
        assembled(headers=HEADERS | {"private": 1}),
        assembled(unprotected=[]),
        assembled(unprotected={1: -7}),
        assembled(unprotected={33: CERTIFICATE, 4: b"kid"}),
        assembled(unprotected={33: []}),
        assembled(unprotected={33: [CERTIFICATE]}),
        assembled(unprotected={33: [CERTIFICATE, b""]}),
        assembled(unprotected={33: [CERTIFICATE] * 5}),
        assembled(unprotected={33: [CERTIFICATE, bytes(4097)]}),
        assembled(unprotected={33: "text"}),
        assembled(unprotected={33: b"\x30another certificate"}),
        assembled(payload=None),
        assembled(payload="text"),
        assembled(signature=bytes(63)),
        assembled(signature=bytes(65)),
        assembled(signature="s" * 64),
    ],
    ids=(str(place) for place in itertools.count()),  # the bytes hold a fresh signature each time
)
def test_every_other_form_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        cose.parse(data)
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


def test_a_statement_beyond_the_bound_is_refused() -> None:
    data = signed()
    assert cose.parse(data, max_bytes=len(data)).payload == PAYLOAD
    with pytest.raises(Refused):
        cose.parse(data, max_bytes=len(data) - 1)


SAMPLE = signed()


@settings(max_examples=200)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused_or_does_not_verify(at: int, change: int) -> None:
    changed = bytearray(SAMPLE)
    changed[at] ^= change
    try:
        sign1 = cose.parse(bytes(changed))
    except Refused as refusal:
        if refusal.reason is not Reason.STATEMENT_MALFORMED:
            raise
        return
    if sign1.chain[1:] != SIGNER.chain[1:]:
        return  # what travels beside the statement is not part of it
    assert not cose.check_signature(sign1, KEY.public_key())
