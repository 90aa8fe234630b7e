"""A fuzzy extractor: from a PUF's noisy response the same secret each time, and keys from that secret.

Code-offset construction (Dodis, Ostrovsky, Reyzin, Smith, Fuzzy Extractors, SIAM J. Comput. 38(1), section 5).
At enrolment a random codeword hides the response, and the response the codeword; helper data is their XOR and may
be public. The codeword carries 262 random bits: two blocks of BCH (255, 131), each bit of them seven times.

*Noise.* Made for 15 % wrong bits: a majority of seven is then wrong for 1.2 % of the bits, some three in a block
of 255, of which 18 are corrected. A reading beyond that is one in 10^9; the next attempt reads again.

*What helper data tells.* Of 3,570 response bits it gives away 3,308, the redundancy. With unbiased, independent
cells 262 bits remain unknown; biased cells need debiasing before this, for a repetition code gives a bias away.

*Robustness* (Boyen et al., EUROCRYPT 2005): helper data carries a MAC under a key from the secret itself, so that
changed helper data yields a refusal and never another key.
"""

import hmac
from dataclasses import dataclass
from typing import Any, Final, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from vigil.core import cbor
from vigil.core.clock import Entropy
from vigil.core.keys import P256_ORDER
from vigil.device import bch
from vigil.device.puf import Puf
from vigil.errors import Reason, Refused, refused

IDENTITY_KEY: Final = "vigil device identity key"
"""``RootSecret.derive_key`` info of the key that the voucher names and that renews the others."""
ATTESTATION_KEY: Final = "vigil device attestation key"
"""``RootSecret.derive_key`` info of the key that signs evidence and receipts."""

BLOCKS: Final = 2
REPETITION: Final = 7
SECRET_BITS: Final = BLOCKS * bch.DIMENSION
CODE_BITS: Final = BLOCKS * bch.LENGTH
RESPONSE_BITS: Final = CODE_BITS * REPETITION
RESPONSE_BYTES: Final = (RESPONSE_BITS + 7) // 8
ENROLMENT_READS: Final = 15
ATTEMPTS: Final = 4

_SECRET_BYTES = (SECRET_BITS + 7) // 8
_SALT_BYTES = 32
_TAG_BYTES = 32
_VERSION = 1
_VERSION_LABEL, _SALT_LABEL, _SKETCH_LABEL, _TAG_LABEL = 1, 2, 3, 4
_INTEGRITY_KEY = "vigil helper data integrity key"
_SCALAR_BYTES = 48
"""FIPS 186-5 A.2.1 wants 64 bits more than the order has; 384 bits are 128 more."""


@dataclass(frozen=True, slots=True)
class HelperData:
    """What is kept beside the PUF: public, and useless for another device."""

    salt: bytes
    sketch: bytes
    tag: bytes

    def encode(self) -> bytes:
        """Encode as a deterministic CBOR map."""
        return cbor.encode(
            {
                _VERSION_LABEL: _VERSION,
                _SALT_LABEL: self.salt,
                _SKETCH_LABEL: self.sketch,
                _TAG_LABEL: self.tag,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what :meth:`encode` wrote. Raises Refused STATEMENT_MALFORMED for anything else."""
        value = cbor.decode(data, max_bytes=1024)
        if (
            type(value) is not dict
            or value.keys() != {_VERSION_LABEL, _SALT_LABEL, _SKETCH_LABEL, _TAG_LABEL}
            or type(value[_VERSION_LABEL]) is not int
            or value[_VERSION_LABEL] != _VERSION
        ):
            raise _malformed()
        return cls(
            salt=_sized(value[_SALT_LABEL], _SALT_BYTES),
            sketch=_sized(value[_SKETCH_LABEL], RESPONSE_BYTES),
            tag=_sized(value[_TAG_LABEL], _TAG_BYTES),
        )


class RootSecret:
    """The device's secret, from which all its keys follow; it is never stored and never shown."""

    __slots__ = ("_key",)

    def __init__(self, pseudorandom_key: bytes) -> None:
        self._key = pseudorandom_key

    def __repr__(self) -> str:
        return "RootSecret(…)"

    def derive(self, info: str, length: int) -> bytes:
        """HKDF-Expand (RFC 5869 section 2.3) with SHA-256: ``length`` bytes for the purpose ``info``."""
        return HKDFExpand(hashes.SHA256(), length, info.encode()).derive(self._key)

    def derive_key(self, info: str) -> ec.EllipticCurvePrivateKey:
        """Derive the P-256 key for the purpose ``info``, by extra random bits (FIPS 186-5 A.2.1)."""
        scalar = int.from_bytes(self.derive(info, _SCALAR_BYTES), "big") % (P256_ORDER - 1) + 1
        return ec.derive_private_key(scalar, ec.SECP256R1())


def enrol(puf: Puf, *, entropy: Entropy) -> HelperData:
    """Make a device's helper data, once, where it is manufactured.

    The majority of several readings is what later readings are compared with. Raises Refused
    POSSESSION_NOT_PROVED if the PUF is too noisy for its secret to be reproduced at once.
    """
    response = _majority([_response(puf) for _ in range(ENROLMENT_READS)])
    message = int.from_bytes(entropy(_SECRET_BYTES), "big") >> (_SECRET_BYTES * 8 - SECRET_BITS)
    salt = entropy(_SALT_BYTES)
    sketch = (response ^ _spread(message)).to_bytes(RESPONSE_BYTES, "big")
    helper = HelperData(salt, sketch, _tag(_extract(message, salt), salt, sketch))
    reproduce(puf, helper)
    return helper


def reproduce(puf: Puf, helper: HelperData) -> RootSecret:
    """Reproduce the secret from a fresh reading and the helper data, in a few attempts.

    Raises Refused POSSESSION_NOT_PROVED if the helper data was changed, is another device's, or the PUF has
    become too noisy: these look alike from here.
    """
    sketch = int.from_bytes(helper.sketch, "big")
    for _ in range(ATTEMPTS):
        try:
            message = _gather(_response(puf) ^ sketch)
        except bch.UncorrectableError:
            continue
        secret = _extract(message, helper.salt)
        if hmac.compare_digest(_tag(secret, helper.salt, helper.sketch), helper.tag):
            return secret
    raise refused(
        Reason.POSSESSION_NOT_PROVED,
        "The device's PUF does not reproduce the key that its helper data belongs to.",
        lifted_by="Restore this device's own helper data; if it is the right one, the device must be replaced.",
        who="manufacturer",
    )


def _extract(message: int, salt: bytes) -> RootSecret:
    """HKDF-Extract (RFC 5869 section 2.2) with SHA-256."""
    return RootSecret(hmac.digest(salt, message.to_bytes(_SECRET_BYTES, "big"), "sha256"))


def _tag(secret: RootSecret, salt: bytes, sketch: bytes) -> bytes:
    """HMAC-SHA256 over everything that helper data says, under a key that only the right secret gives."""
    return hmac.digest(
        secret.derive(_INTEGRITY_KEY, _TAG_BYTES), cbor.encode([_VERSION, salt, sketch]), "sha256"
    )


def _response(puf: Puf) -> int:
    response = puf.read()
    if len(response) < RESPONSE_BYTES:
        raise ValueError(f"the PUF answers {len(response)} bytes, where {RESPONSE_BYTES} are needed")
    return int.from_bytes(response[:RESPONSE_BYTES], "big") >> (RESPONSE_BYTES * 8 - RESPONSE_BITS)


def _spread(message: int) -> int:
    """Encode 262 bits as a codeword of 3,570: the blocks side by side, and that seven times over."""
    code = 0
    for block in range(BLOCKS):
        part = message >> block * bch.DIMENSION & (1 << bch.DIMENSION) - 1
        code |= bch.encode(part) << block * bch.LENGTH
    return sum(code << copy * CODE_BITS for copy in range(REPETITION))


def _gather(word: int) -> int:
    """Decode a noisy codeword. Raises UncorrectableError."""
    code = _majority([word >> copy * CODE_BITS & (1 << CODE_BITS) - 1 for copy in range(REPETITION)])
    message = 0
    for block in range(BLOCKS):
        part = code >> block * bch.LENGTH & (1 << bch.LENGTH) - 1
        message |= bch.decode(part).message << block * bch.DIMENSION
    return message


def _majority(words: list[int]) -> int:
    """Vote bit by bit over 2^k - 1 words: a counter for each bit, whose digits lie in separate words.

    With 2^k - 1 votes, the counter's highest digit says whether more than half were 1.
    """
    digits = [0] * len(words).bit_length()
    if len(words) + 1 != 1 << len(digits):
        raise ValueError("the vote needs 2^k - 1 words")
    for word in words:
        carry = word
        for place, digit in enumerate(digits):
            digits[place], carry = digit ^ carry, digit & carry
    return digits[-1]


def _sized(value: Any, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise _malformed()
    return value


def _malformed() -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        "This is not helper data of a version that this device reads.",
        lifted_by="Restore the device's own helper data.",
        who="manufacturer",
    )
