from dataclasses import replace
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import cbor, keys
from vigil.device import bch
from vigil.device.fuzzy_extractor import (
    ATTESTATION_KEY,
    CODE_BITS,
    IDENTITY_KEY,
    RESPONSE_BYTES,
    HelperData,
    RootSecret,
    enrol,
    reproduce,
)
from vigil.device.puf import SimulatedSramPuf
from vigil.errors import Reason, Refused


def chip(seed: int, *, rate: float = 0.15) -> SimulatedSramPuf:
    return SimulatedSramPuf.from_seed(
        b"%d" % seed, entropy=Random(seed * 1000 + 1).randbytes, bit_error_rate=rate
    )


def thumbprint(secret: RootSecret, info: str = IDENTITY_KEY) -> bytes:
    return keys.key_thumbprint(secret.derive_key(info).public_key())


PUF = chip(1)
HELPER = enrol(PUF, entropy=Random(7).randbytes)
THUMBPRINT = thumbprint(reproduce(PUF, HELPER))


def refuses(puf: SimulatedSramPuf, helper: HelperData) -> bool:
    with pytest.raises(Refused) as caught:
        reproduce(puf, helper)
    return caught.value.reason is Reason.POSSESSION_NOT_PROVED


def test_at_15_percent_noise_every_reading_gives_the_same_keys() -> None:
    assert len({PUF.read() for _ in range(10)}) == 10  # the noise is there
    for _ in range(100):
        assert thumbprint(reproduce(PUF, HELPER)) == THUMBPRINT


def test_many_chips_reproduce_their_own_key_and_nobody_elses() -> None:
    found = set()
    for seed in range(2, 22):
        puf = chip(seed)
        helper = enrol(puf, entropy=Random(seed).randbytes)
        found.add(thumbprint(reproduce(puf, helper)))
        assert refuses(PUF, helper)
        assert refuses(puf, HELPER)
    assert len(found) == 20


def test_one_chip_enrolled_twice_has_two_secrets() -> None:
    again = enrol(PUF, entropy=Random(8).randbytes)
    assert thumbprint(reproduce(PUF, again)) != THUMBPRINT


def test_each_purpose_has_its_own_key() -> None:
    secret = reproduce(PUF, HELPER)
    identity, attestation = secret.derive_key(IDENTITY_KEY), secret.derive_key(ATTESTATION_KEY)
    assert keys.key_thumbprint(identity.public_key()) != keys.key_thumbprint(attestation.public_key())
    signature = keys.sign(attestation, b"evidence")
    assert keys.verify(attestation.public_key(), keys.ES256, b"evidence", signature)
    assert not keys.verify(identity.public_key(), keys.ES256, b"evidence", signature)


def test_keys_follow_from_hkdf_and_fips_186_5() -> None:
    pseudorandom = bytes(range(32))
    okm = RootSecret(pseudorandom).derive(IDENTITY_KEY, 48)
    scalar = int.from_bytes(okm, "big") % (keys.P256_ORDER - 1) + 1
    derived = RootSecret(pseudorandom).derive_key(IDENTITY_KEY)
    assert derived.private_numbers().private_value == scalar
    # RFC 5869, test case 1: the expansion alone, from its PRK.
    prk = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    ikm, salt = b"\x0b" * 22, bytes(range(13))
    assert RootSecret(prk).derive("info", 42) == HKDF(hashes.SHA256(), 42, salt, b"info").derive(ikm)


def test_a_secret_does_not_show_itself() -> None:
    assert "\\x" not in repr(RootSecret(bytes(32)))
    assert not hasattr(RootSecret(bytes(32)), "__dict__")


def test_a_puf_that_is_too_noisy_is_refused_where_it_is_made() -> None:
    with pytest.raises(Refused) as caught:
        enrol(chip(30, rate=0.35), entropy=Random(9).randbytes)
    assert caught.value.reason is Reason.POSSESSION_NOT_PROVED


def test_a_puf_that_grew_too_noisy_is_refused() -> None:
    helper = enrol(chip(31, rate=0.10), entropy=Random(10).randbytes)
    assert refuses(chip(31, rate=0.40), helper)


def test_a_response_that_is_too_short_is_a_mistake() -> None:
    puf = SimulatedSramPuf(bytes(RESPONSE_BYTES - 1), entropy=Random(1).randbytes)
    with pytest.raises(ValueError, match=f"{RESPONSE_BYTES} are needed"):
        enrol(puf, entropy=Random(1).randbytes)


@settings(max_examples=60)
@given(st.integers(0, RESPONSE_BYTES * 8 - 1))
def test_one_changed_bit_of_the_sketch_is_refused(place: int) -> None:
    sketch = int.from_bytes(HELPER.sketch, "big") ^ 1 << place
    assert refuses(PUF, replace(HELPER, sketch=sketch.to_bytes(RESPONSE_BYTES, "big")))


def test_a_sketch_moved_by_a_codeword_is_refused() -> None:
    # It decodes cleanly, to a secret that differs from the right one by what the attacker chose.
    code = bch.encode(1)
    shift = sum(code << copy * CODE_BITS for copy in range(7))
    sketch = int.from_bytes(HELPER.sketch, "big") ^ shift
    assert refuses(PUF, replace(HELPER, sketch=sketch.to_bytes(RESPONSE_BYTES, "big")))


@pytest.mark.parametrize("field", ["salt", "tag"])
def test_a_changed_salt_or_tag_is_refused(field: str) -> None:
    value = bytearray(getattr(HELPER, field))
    value[-1] ^= 1
    assert refuses(PUF, replace(HELPER, **{field: bytes(value)}))


def test_helper_data_is_written_and_read_back() -> None:
    assert HelperData.decode(HELPER.encode()) == HELPER
    assert thumbprint(reproduce(PUF, HelperData.decode(HELPER.encode()))) == THUMBPRINT


GOOD: dict[int, Any] = {1: 1, 2: bytes(32), 3: bytes(RESPONSE_BYTES), 4: bytes(32)}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        GOOD | {1: 2},
        GOOD | {1: True},
        GOOD | {2: bytes(31)},
        GOOD | {2: "x" * 32},
        GOOD | {3: bytes(RESPONSE_BYTES + 1)},
        GOOD | {4: None},
        GOOD | {5: 0},
    ],
)
def test_other_helper_data_is_refused(value: Any) -> None:
    assert HelperData.decode(cbor.encode(GOOD)).salt == bytes(32)
    with pytest.raises(Refused) as caught:
        HelperData.decode(cbor.encode(value))
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        HelperData.decode(data)
