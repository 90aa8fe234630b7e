"""SHA-256 digests: raw 32 bytes in statements and protos, 64 lowercase hex digits for people and JSON."""

import re
from hashlib import sha256 as _sha256

from vigil.errors import Reason, refused

DIGEST_BYTES = 32
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def sha256(data: bytes) -> bytes:
    """SHA-256 (FIPS 180-4) of ``data``, 32 bytes."""
    return _sha256(data).digest()


def hex_digest(digest: bytes) -> str:
    """Write a raw digest as 64 lowercase hex digits. Raises ValueError for another length."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a SHA-256 digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return digest.hex()


def parse_hex_digest(text: str) -> bytes:
    """Read 64 lowercase hex digits. Raises Refused FIELD_INVALID for anything else."""
    if _HEX.fullmatch(text) is None:
        raise refused(
            Reason.FIELD_INVALID,
            "A SHA-256 digest is written as 64 lowercase hexadecimal digits.",
            lifted_by="Give the digest in full, in lowercase and without a prefix.",
            who="caller",
        )
    return bytes.fromhex(text)
