"""COSE Receipts of the log (RFC 9942, verifiable data structure RFC9162_SHA256). Pure.

A receipt is a tagged COSE_Sign1 over a Merkle root that is not in it (detached): whoever checks it computes the root
from the proof and from what is proved. Its entry is the log's leaf. It is signed by the log's own Ed25519 key, which
signs checkpoints too, and only over roots of which there is a signed checkpoint. Our profile of it:

* protected, exactly: ``1`` alg, -8; ``4`` kid, the four bytes that name the key in a signed note (C2SP signed-note);
  ``15`` CWT claims (RFC 9597), ``{1: the log's origin}``; ``395`` vds, 1;
* unprotected: ``396`` vdp with one inclusion proof (-1) or one consistency proof (-2); and beside an inclusion proof,
  in a file to take away, ``"vigil.leaf"``, the leaf that it is of.

The size in a proof is not under the signature: a root is. What a checkpoint of that size says, a receipt does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vigil.core import cbor, cose
from vigil.core.digest import DIGEST_BYTES
from vigil.core.merkle import leaf_hash, root_of_consistency, root_of_path
from vigil.core.notes import key_id, parse_verifier_key
from vigil.errors import Reason, Refused, refused

VDS: Final = 395
VDP: Final = 396
RFC9162_SHA256: Final = 1
INCLUSION: Final = -1
CONSISTENCY: Final = -2
LEAF: Final = "vigil.leaf"
TAG: Final = b"\xd2"
"""Tag 18, COSE_Sign1: RFC 9942 demands it of receipts."""
MAX_PATH: Final = 64
MAX_RECEIPT_BYTES: Final = 131_072

_KID: Final = 4
_ISS: Final = 1
_EDDSA: Final = -8


@dataclass(frozen=True, slots=True)
class Proof:
    """``kind`` INCLUSION: ``first`` is the tree's size, ``second`` the leaf's index; CONSISTENCY: old and new size."""

    kind: int
    first: int
    second: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt that was read; its signature is not checked yet. ``leaf`` is empty where it does not travel along."""

    origin: str
    key_id: bytes
    proof: Proof
    leaf: bytes
    protected: bytes
    signature: bytes


def sign_receipt(
    proof: Proof, root: bytes, *, origin: str, public_key: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """Make a receipt of a proof that leads to ``root``.

    Raises FIELD_INVALID for a proof without a path, which RFC 9942 cannot write (its paths have one node at least).
    """
    if not proof.path:
        raise refused(
            Reason.FIELD_INVALID,
            "A COSE Receipt cannot be written for a proof that needs no path: the only leaf of a log, or no growth.",
            lifted_by="asking again when the log has grown",
            who="caller",
            field="receipt",
        )
    protected = cbor.encode(
        {
            cose.ALG: _EDDSA,
            _KID: key_id(origin, public_key),
            cose.CWT_CLAIMS: {_ISS: origin},
            VDS: RFC9162_SHA256,
        }
    )
    return _assemble(protected, proof, b"", sign(cose.sig_structure(protected, root)))


def with_leaf(data: bytes, leaf: bytes) -> bytes:
    """Put the leaf beside a receipt's proof, so that it can be taken away alone. Raises STATEMENT_MALFORMED."""
    receipt = read_receipt(data)
    return _assemble(receipt.protected, receipt.proof, leaf, receipt.signature)


def _assemble(protected: bytes, proof: Proof, leaf: bytes, signature: bytes) -> bytes:
    one = cbor.encode([proof.first, proof.second, list(proof.path)])
    unprotected: dict[int | str, Any] = {VDP: {proof.kind: [one]}}
    if leaf:
        unprotected[LEAF] = leaf
    return TAG + cbor.encode([protected, unprotected, None, signature])


def is_receipt(data: bytes) -> bool:
    """Whether this can be a receipt, by its first byte: no text begins so."""
    return data[:1] == TAG


def read_receipt(data: bytes) -> Receipt:
    """Read a receipt of this profile, and no other. Raises STATEMENT_MALFORMED."""
    if not is_receipt(data) or len(data) > MAX_RECEIPT_BYTES:
        raise _malformed("it is not tagged as a COSE_Sign1, or too long")
    match cbor.decode(data[1:], max_bytes=MAX_RECEIPT_BYTES, max_depth=4):
        case [bytes(protected), dict(unprotected), None, bytes(signature)] if len(signature) == 64:
            origin, name = _protected(protected)
            proof, leaf = _unprotected(unprotected)
            return Receipt(origin, name, proof, leaf, protected, signature)
    raise _malformed("it is not a COSE_Sign1 with a detached payload")


def _protected(data: bytes) -> tuple[str, bytes]:
    headers = cbor.decode(data, max_bytes=MAX_RECEIPT_BYTES, max_depth=2)
    if not isinstance(headers, dict) or headers.keys() != {cose.ALG, _KID, cose.CWT_CLAIMS, VDS}:
        raise _malformed("its protected header holds alg, kid, CWT claims and vds, all of them and alone")
    algorithm, name, claims = headers[cose.ALG], headers[_KID], headers[cose.CWT_CLAIMS]
    if type(algorithm) is not int or algorithm != _EDDSA or type(name) is not bytes:
        raise _malformed("it is not signed with EdDSA by a named key")
    if type(headers[VDS]) is not int or headers[VDS] != RFC9162_SHA256:
        raise _malformed("its tree is not RFC9162_SHA256")
    if not isinstance(claims, dict) or claims.keys() != {_ISS} or type(claims[_ISS]) is not str:
        raise _malformed("its claims name an issuer and nothing else")
    return claims[_ISS], name


def _unprotected(headers: dict[Any, Any]) -> tuple[Proof, bytes]:
    proofs = headers.get(VDP)
    leaf = headers.get(LEAF, b"")
    known = VDP in headers and headers.keys() <= {VDP, LEAF}
    if not known or type(leaf) is not bytes or not isinstance(proofs, dict) or (LEAF in headers and not leaf):
        raise _malformed("its unprotected header holds one proof, and at most the leaf beside it")
    match proofs:
        case {-1: [bytes(one)]} if len(proofs) == 1:
            return _proof(INCLUSION, one), leaf
        case {-2: [bytes(one)]} if len(proofs) == 1 and not leaf:
            return _proof(CONSISTENCY, one), leaf
    raise _malformed("it holds one proof, of inclusion or of consistency")


def _proof(kind: int, data: bytes) -> Proof:
    match cbor.decode(data, max_bytes=MAX_RECEIPT_BYTES, max_depth=2):
        case [int(first), int(second), [_, *_] as path] if (
            type(first) is int
            and type(second) is int
            and min(first, second) >= 0
            and max(first, second) < 2**63
            and len(path) <= MAX_PATH
            and all(type(node) is bytes and len(node) == DIGEST_BYTES for node in path)
        ):
            return Proof(kind, first, second, tuple(path))
    raise _malformed("its proof is not two numbers and a path")


def check_inclusion_receipt(receipt: Receipt, verifier_key: str, leaf: bytes) -> None:
    """Check that the log's key signed a root over this leaf. Raises NOT_RECORDED, SIGNATURE_INVALID."""
    proof = receipt.proof
    if proof.kind != INCLUSION:
        raise _not_recorded("it proves consistency, not that a leaf is there")
    if receipt.leaf and not compare_digest(receipt.leaf, leaf):
        raise _not_recorded("it is of another leaf")
    try:
        root = root_of_path(leaf=leaf_hash(leaf), index=proof.second, size=proof.first, path=proof.path)
    except ValueError:
        raise _not_recorded("its path cannot be that of its index") from None
    _check_signed(receipt, verifier_key, root)


def check_consistency_receipt(receipt: Receipt, verifier_key: str, *, old_size: int, old_root: bytes) -> None:
    """Check that the log's key signed a root that extends a known one. Raises NOT_RECORDED, SIGNATURE_INVALID."""
    proof = receipt.proof
    if proof.kind != CONSISTENCY or proof.first != old_size:
        raise _not_recorded(f"it does not start from the known {old_size} entries")
    root = root_of_consistency(
        old_size=proof.first, new_size=proof.second, old_root=old_root, path=proof.path
    )
    if root is None:
        raise _not_recorded("its path does not lead on from the known root")
    _check_signed(receipt, verifier_key, root)


def _check_signed(receipt: Receipt, verifier_key: str, root: bytes) -> None:
    name, public_key = parse_verifier_key(verifier_key)
    if receipt.origin != name or not compare_digest(receipt.key_id, key_id(name, public_key)):
        raise refused(Reason.SIGNATURE_INVALID, f"The receipt is signed by another key than that of {name}.")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            receipt.signature, cose.sig_structure(receipt.protected, root)
        )
    except (InvalidSignature, ValueError):
        raise refused(
            Reason.SIGNATURE_INVALID,
            "The receipt's signature is not over what its proof leads to: the leaf, the proof or the signature is "
            "another.",
        ) from None


def _not_recorded(what: str) -> Refused:
    return refused(Reason.NOT_RECORDED, f"The receipt does not prove this: {what}.")


def _malformed(what: str) -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        f"This is not a COSE Receipt that Vigil reads (RFC 9942): {what}.",
        lifted_by="the receipt as `vigil evidence prove --cose` wrote it",
        who="whoever made it",
    )
