"""DSSE envelopes (secure-systems-lab/dsse v1.0) around in-toto Statements, as cosign and securesystemslib make them.

Read strictly: the payload type is in-toto's, every byte of base64 counts, one signature of the expected key is enough
(a keyid is a hint and never trusted). ECDSA signatures are ASN.1 DER as in that ecosystem; either value of s is
taken there, since nothing here is named by its signature.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from vigil.core import strict_json
from vigil.core.digest import hex_digest, parse_hex_digest
from vigil.core.keys import ES256, PublicKey, Signer
from vigil.errors import Reason, Refused, refused

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPES: Final = frozenset({"https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1"})
"""cosign writes v0.1, newer tools v1; the fields that are read here are the same."""
CYCLONEDX: Final = "https://cyclonedx.org/bom"
"""Predicate type of a CycloneDX document (in-toto attestation framework)."""

MAX_ENVELOPE_BYTES: Final = 12 << 20
"""An SBOM of 8 MiB with its statement, in base64."""
MAX_SIGNATURES: Final = 8
MAX_SIGNATURE_BYTES: Final = 1024
MAX_SUBJECTS: Final = 64


@dataclass(frozen=True, slots=True)
class InTotoStatement:
    """An in-toto Statement; ``subjects`` are (name, SHA-256 or empty when it has none)."""

    subjects: tuple[tuple[str, bytes], ...]
    predicate_type: str
    predicate: Any


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of the DSSE protocol: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def in_toto_statement(
    *, name: str, sha256: bytes, predicate: Any, predicate_type: str = CYCLONEDX, version: str = "v1"
) -> bytes:
    """Write a Statement about one artifact, ``sha256`` its raw digest."""
    statement = {
        "_type": f"https://in-toto.io/Statement/{version}",
        "subject": [{"name": name, "digest": {"sha256": hex_digest(sha256)}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()


def make_dsse(payload: bytes, *, signer: Signer, keyid: str = "") -> bytes:
    """Sign an in-toto Statement: the envelope as JSON."""
    signature = signer.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    if signer.algorithm == ES256:
        signature = encode_dss_signature(
            int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        )
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def verify_dsse(envelope: bytes, *, public_key: PublicKey, max_bytes: int = MAX_ENVELOPE_BYTES) -> bytes:
    """Answer the payload if a signature in the envelope verifies with the key.

    Raises SBOM_INVALID for an envelope that cannot be read, SIGNATURE_INVALID when no signature verifies.
    """
    try:
        payload, signatures = _read(envelope, max_bytes)
    except ValueError as error:
        raise _invalid(f"the attestation is no DSSE envelope: {error}") from None
    signed = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    if not any(_verifies(public_key, signature, signed) for signature in signatures):
        raise refused(
            Reason.SIGNATURE_INVALID,
            "the SBOM's attestation is not signed by the key that signed the release",
            lifted_by="signing the in-toto Statement with the manufacturer's release key",
            who="the manufacturer",
        )
    return payload


def read_statement(payload: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> InTotoStatement:
    """Read an in-toto Statement. Raises SBOM_INVALID."""
    try:
        return _statement(_object(strict_json.parse(payload, max_bytes=max_bytes), "the statement"))
    except ValueError as error:
        raise _invalid(f"the attestation holds no in-toto Statement: {error}") from None


def _statement(value: Mapping[str, Any]) -> InTotoStatement:
    if str(value.get("_type")) not in STATEMENT_TYPES:
        raise ValueError("its _type is neither Statement/v0.1 nor Statement/v1")
    kind = value.get("predicateType")
    subjects = value.get("subject")
    if not isinstance(kind, str) or "predicate" not in value:
        raise ValueError("it has no predicate of a named type")
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= MAX_SUBJECTS:
        raise ValueError(f"it has no subject, or more than {MAX_SUBJECTS}")
    return InTotoStatement(tuple(_subject(one) for one in subjects), kind, value["predicate"])


def _read(envelope: bytes, max_bytes: int) -> tuple[bytes, list[bytes]]:
    value = _object(strict_json.parse(envelope, max_bytes=max_bytes, max_depth=8), "the envelope")
    if value.get("payloadType") != PAYLOAD_TYPE:
        raise ValueError(f"its payloadType is not {PAYLOAD_TYPE}")
    signatures = value.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise ValueError(f"it has no signature, or more than {MAX_SIGNATURES}")
    found = []
    for one in signatures:
        signature = _base64(_object(one, "a signature").get("sig"))
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise ValueError("a signature is too long")
        found.append(signature)
    return _base64(value.get("payload")), found


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")  # noqa: TRY004 - one kind of error for what was sent
    return value


def _base64(value: object) -> bytes:
    """RFC 4648 section 4 or, as the DSSE protocol allows, the URL-safe alphabet."""
    if not isinstance(value, str) or not value:
        raise ValueError("a field in base64 is missing")
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a field is not base64") from None


def _subject(value: object) -> tuple[str, bytes]:
    one = _object(value, "a subject")
    name, digests = one.get("name", ""), _object(one.get("digest"), "a subject's digest")
    if not isinstance(name, str):
        raise ValueError("a subject's name is not text")  # noqa: TRY004 - as in _object
    text = digests.get("sha256", "")
    if not isinstance(text, str):
        raise ValueError("a subject's digest is not text")  # noqa: TRY004 - as in _object
    try:
        return name, parse_hex_digest(text) if text else b""
    except Refused:
        raise ValueError("a subject's sha256 is not 64 lowercase hexadecimal digits") from None


def _verifies(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, signed)
        else:
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _invalid(sentence: str) -> Refused:
    return refused(
        Reason.SBOM_INVALID,
        sentence,
        lifted_by="a DSSE envelope of an in-toto Statement whose predicate is the CycloneDX document",
        who="the manufacturer",
    )
