"""COSE_Sign1 (RFC 9052), in the one form that Vigil writes and reads: untagged, deterministic, one signature.

The protected header holds ``alg``, the content type, the CWT claims (RFC 9597) and ``x5t`` (RFC 9360), and
nothing else. The unprotected header holds at most ``x5chain``, which travels but is not stored. A statement's
digest is SHA-256 of its Sig_structure, so that another signature over the same content, or another chain
beside it, is the same statement. Whether the signer's key may sign is decided in ``vigil.core.certificates``
and ``vigil.core.statements``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from vigil.core import cbor, keys
from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.errors import Reason, Refused, refused

ALG: Final = 1
CRIT: Final = 2
CONTENT_TYPE: Final = 3
CWT_CLAIMS: Final = 15
X5CHAIN: Final = 33
X5T: Final = 34
SHA_256: Final = -16
"""COSE algorithm identifier of SHA-256 (RFC 9054), the hash of x5t."""

MAX_CHAIN: Final = 4
MAX_CERTIFICATE_BYTES: Final = 4096

_PROTECTED = frozenset({ALG, CONTENT_TYPE, CWT_CLAIMS, X5T})
_ARRAY_OF_4 = b"\x84"
_SIGNATURE1 = b"\x84\x6aSignature1"
_NO_EXTERNAL_AAD = b"\x40"
_NO_UNPROTECTED = b"\xa0"
_OVERHEAD: Final = 128
"""More than the heads of a statement's parts and its signature take."""


@dataclass(frozen=True, slots=True)
class Sign1:
    """A parsed COSE_Sign1 whose signature has **not** been checked yet."""

    protected: bytes
    headers: Mapping[int, Any]
    payload: bytes
    signature: bytes
    chain: tuple[bytes, ...]
    digest: bytes

    @property
    def algorithm(self) -> int:
        """The COSE algorithm, -7 or -8."""
        algorithm: int = self.headers[ALG]
        return algorithm

    @property
    def content_type(self) -> str:
        """The content type, which names exactly one kind of statement."""
        content_type: str = self.headers[CONTENT_TYPE]
        return content_type

    @property
    def claims(self) -> Mapping[int | str, Any]:
        """The CWT claims of the protected header."""
        claims: Mapping[int | str, Any] = self.headers[CWT_CLAIMS]
        return claims

    @property
    def signer(self) -> bytes:
        """SHA-256 thumbprint of the signer's certificate, from x5t."""
        thumbprint: bytes = self.headers[X5T][1]
        return thumbprint

    @property
    def encoded(self) -> bytes:
        """The statement as it travels, with its chain."""
        return _assemble(self.protected, self.chain, self.payload, self.signature)

    @property
    def without_chain(self) -> bytes:
        """The same statement encoded with its unprotected header emptied: the form that is stored."""
        return _assemble(self.protected, (), self.payload, self.signature)

    @property
    def to_be_signed(self) -> bytes:
        """The Sig_structure that the signature covers (RFC 9052 section 4.4)."""
        return sig_structure(self.protected, self.payload)


def sig_structure(protected: bytes, payload: bytes) -> bytes:
    """``["Signature1", protected, h'', payload]`` (RFC 9052 section 4.4); Vigil has no external data."""
    return _SIGNATURE1 + cbor.byte_string(protected) + _NO_EXTERNAL_AAD + cbor.byte_string(payload)


def sign(
    signer: keys.Signer,
    *,
    content_type: str,
    claims: Mapping[int | str, Any],
    payload: bytes,
    with_chain: bool = True,
) -> bytes:
    """Sign ``payload`` and answer the encoded COSE_Sign1, by default with the signer's chain beside it."""
    return seal(
        signer, content_type=content_type, claims=claims, payload=payload, with_chain=with_chain
    ).encoded


def seal(
    signer: keys.Signer,
    *,
    content_type: str,
    claims: Mapping[int | str, Any],
    payload: bytes,
    with_chain: bool = True,
) -> Sign1:
    """Sign ``payload``; answers what `parse` makes of the encoding, without reading it again.

    Raises Refused STATEMENT_MALFORMED for what `parse` would refuse: a chain or a whole that is too large.
    """
    headers = {
        ALG: signer.algorithm,
        CONTENT_TYPE: content_type,
        CWT_CLAIMS: dict(claims),
        X5T: [SHA_256, signer.certificate_thumbprint],
    }
    protected = cbor.encode(headers)
    signed = sig_structure(protected, payload)
    sign1 = Sign1(
        protected=protected,
        headers=headers,
        payload=payload,
        signature=signer.sign(signed),
        chain=_checked_chain(signer.chain) if with_chain else (),
        digest=sha256(signed),
    )
    if sum(map(len, (protected, payload, *sign1.chain))) > cbor.MAX_BYTES - _OVERHEAD:
        raise _malformed("it is too large")
    return sign1


def parse(data: bytes, *, max_bytes: int = cbor.MAX_BYTES) -> Sign1:
    """Read one COSE_Sign1 strictly; the signature is not checked here.

    Raises Refused STATEMENT_MALFORMED for every deviation from the form this module describes.
    """
    protected, chain, payload, signature = _disassemble(data, max_bytes)
    headers = cbor.decode(protected, max_bytes=max_bytes)
    _check_protected(headers)
    # RFC 9360 section 2: x5t names the end-entity certificate, which stands first in x5chain.
    if chain and sha256(chain[0]) != headers[X5T][1]:
        raise _malformed("x5t does not name the first certificate of x5chain")
    return Sign1(
        protected=protected,
        headers=headers,
        payload=payload,
        signature=signature,
        chain=chain,
        digest=sha256(sig_structure(protected, payload)),
    )


def check_signature(sign1: Sign1, public_key: keys.PublicKey) -> bool:
    """Say whether the signature is this key's over this statement, by the algorithm that the key is for."""
    return keys.verify(public_key, sign1.algorithm, sign1.to_be_signed, sign1.signature)


def without_chain(data: bytes, *, max_bytes: int = cbor.MAX_BYTES) -> bytes:
    """Empty the unprotected header: the form that is stored. Raises Refused STATEMENT_MALFORMED."""
    protected, _, payload, signature = _disassemble(data, max_bytes)
    return _assemble(protected, (), payload, signature)


def with_chain(data: bytes, chain: Sequence[bytes], *, max_bytes: int = cbor.MAX_BYTES) -> bytes:
    """Put ``chain`` (DER, leaf first) beside a statement. Raises Refused STATEMENT_MALFORMED."""
    protected, _, payload, signature = _disassemble(data, max_bytes)
    return _assemble(protected, _checked_chain(chain) if chain else (), payload, signature)


def _assemble(protected: bytes, chain: Sequence[bytes], payload: bytes, signature: bytes) -> bytes:
    return (
        _ARRAY_OF_4
        + cbor.byte_string(protected)
        + (_unprotected(tuple(chain)) if chain else _NO_UNPROTECTED)
        + cbor.byte_string(payload)
        + cbor.byte_string(signature)
    )


@lru_cache(maxsize=64)
def _unprotected(chain: tuple[bytes, ...]) -> bytes:
    """The unprotected header for a chain; a signer's stays the same for all that it signs."""
    # RFC 9360 section 2: one certificate is a bstr, several are an array.
    return cbor.encode({X5CHAIN: chain[0] if len(chain) == 1 else list(chain)})


def _disassemble(data: bytes, max_bytes: int) -> tuple[bytes, tuple[bytes, ...], bytes, bytes]:
    """Answer protected header, chain, payload and signature, each of the right type and size."""
    parts = cbor.decode(data, max_bytes=max_bytes)
    if type(parts) is not list or len(parts) != 4:
        raise _malformed("it is not an array of four")
    protected, unprotected, payload, signature = parts
    if type(protected) is not bytes or type(payload) is not bytes or type(signature) is not bytes:
        raise _malformed("protected header, payload and signature are byte strings")
    if len(signature) != keys.SIGNATURE_BYTES:
        raise _malformed("a signature has 64 bytes")
    if type(unprotected) is not dict:
        raise _malformed("the unprotected header is a map")
    if not unprotected:
        return protected, (), payload, signature
    if len(unprotected) != 1 or X5CHAIN not in unprotected:
        raise _malformed("the unprotected header holds x5chain or nothing")
    chain = unprotected[X5CHAIN]
    if type(chain) is list and len(chain) < 2:
        raise _malformed("an x5chain of one certificate is a byte string (RFC 9360 section 2)")
    return protected, _checked_chain(chain if type(chain) is list else [chain]), payload, signature


def _checked_chain(chain: Sequence[Any]) -> tuple[bytes, ...]:
    if len(chain) > MAX_CHAIN:
        raise _malformed(f"x5chain has more than {MAX_CHAIN} certificates")
    for certificate in chain:
        if type(certificate) is not bytes or not 0 < len(certificate) <= MAX_CERTIFICATE_BYTES:
            raise _malformed(f"a certificate is a byte string of 1 to {MAX_CERTIFICATE_BYTES} bytes")
    return tuple(chain)


def _check_protected(headers: Any) -> None:
    if type(headers) is not dict:
        raise _malformed("the protected header is not a map")
    if CRIT in headers:
        # RFC 9052 section 3.1: a critical header that is not understood is fatal, and none is understood.
        raise _malformed("a header is marked critical, and Vigil knows no critical header")
    if headers.keys() != _PROTECTED:
        raise _malformed(
            "the protected header holds alg, content type, CWT claims and x5t, all of them and alone"
        )
    if type(headers[ALG]) is not int or headers[ALG] not in keys.ALGORITHMS:
        raise _malformed("alg is neither ES256 nor EdDSA")
    if type(headers[CONTENT_TYPE]) is not str:
        raise _malformed("the content type is not text")
    if type(headers[CWT_CLAIMS]) is not dict:
        raise _malformed("the CWT claims are not a map")
    x5t = headers[X5T]
    if type(x5t) is not list or len(x5t) != 2 or type(x5t[0]) is not int or x5t[0] != SHA_256:
        raise _malformed("x5t is not a SHA-256 thumbprint")
    if type(x5t[1]) is not bytes or len(x5t[1]) != DIGEST_BYTES:
        raise _malformed("x5t is not a SHA-256 thumbprint")


def _malformed(what: str) -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        f"The signed statement does not have the form that Vigil reads: {what}.",
        lifted_by="Sign it again in the form that docs/protocol.md describes.",
        who="signer",
    )
