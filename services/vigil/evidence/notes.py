"""Signed checkpoints: a C2SP tlog-checkpoint in a C2SP signed-note. Pure.

``vigil.evidence.domain`` gives these names to the outside.
"""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.errors import Reason, Refused, refused

MAX_NOTE_BYTES: Final = 65_536
MAX_NOTE_SIGNATURES: Final = 100
"""C2SP signed-note asks readers to bound the signatures; a log and its witnesses stay far below."""

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
"""What C2SP signed-note forbids, and lone surrogates, which JSON can name and UTF-8 cannot."""
_KEY_NAME = re.compile(r"[^\s+\ud800-\udfff]{1,255}")
_ED25519: Final = b"\x01"
"""Signature type of Ed25519 (C2SP signed-note)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log at one size, as it was signed. ``time`` (ms) stands beside the note, not under its signature."""

    origin: str
    size: int
    root: bytes
    time: int
    note: str


def origin_of(trust_domain: str) -> str:
    """The log's origin line, which is its key's name too."""
    return f"{trust_domain}/evidence"


def check_advance(newest: Checkpoint | None, *, size: int, root: bytes, time: int) -> None:
    """Refuse (STATE_CONFLICT) to sign a checkpoint that goes back: in size, in time, or to another root."""
    if newest is None:
        return
    if size < newest.size or time < newest.time or (size == newest.size and root != newest.root):
        raise refused(
            Reason.STATE_CONFLICT,
            f"The log has signed a checkpoint of {newest.size} leaves that this one contradicts.",
            lifted_by="the log's own data, whole",
            who="the operator",
            signed=newest.size,
            asked=size,
        )


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The body of a checkpoint: origin, size and root, each on a line of its own."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def parse_checkpoint_text(text: str) -> tuple[str, int, bytes]:
    """Read origin, size and root; extension lines are allowed and ignored. Raises STATEMENT_MALFORMED."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]) or not _SIZE.fullmatch(lines[1]):
        raise _malformed_note("it is not an origin, a size and a root, each on a line")
    root = _base64(lines[2])
    if root is None or len(root) != DIGEST_BYTES:
        raise _malformed_note("its root is not a SHA-256 hash in base64")
    return lines[0], int(lines[1]), root


def key_id(name: str, public_key: bytes) -> bytes:
    """The four bytes that name an Ed25519 key in a note's signature line."""
    return sha256(name.encode() + b"\n" + _ED25519 + public_key)[:4]


def verifier_key(name: str, public_key: bytes) -> str:
    """A key as C2SP writes it: ``<name>+<key id, hex>+<base64 of type and key>``."""
    encoded = base64.b64encode(_ED25519 + public_key).decode()
    return f"{name}+{key_id(name, public_key).hex()}+{encoded}"


def parse_verifier_key(text: str) -> tuple[str, bytes]:
    """Read name and raw Ed25519 key. Raises FIELD_INVALID."""
    name, _, rest = text.partition("+")
    identifier, _, encoded = rest.partition("+")
    key = _base64(encoded)
    if (
        _KEY_NAME.fullmatch(name)
        and key is not None
        and len(key) == 33
        and key[:1] == _ED25519
        and identifier == key_id(name, key[1:]).hex()
    ):
        return name, key[1:]
    raise refused(
        Reason.FIELD_INVALID,
        "This is not an Ed25519 verifier key as C2SP signed-note writes them.",
        lifted_by="the key as the log's operator published it",
        who="caller",
        field="verifier_key",
    )


def sign_note(text: str, *, name: str, public_key: bytes, sign: Callable[[bytes], bytes]) -> str:
    """A signed note of ``text`` (which ends in a newline) with one Ed25519 signature."""
    signature = base64.b64encode(key_id(name, public_key) + sign(text.encode())).decode()
    return f"{text}\n\N{EM DASH} {name} {signature}\n"


def open_note(note: str, key: str) -> str:
    """Verify a signed note with one verifier key and answer its text.

    Signatures of other keys (witnesses) are passed over; one that claims this key and does not verify refuses
    the note, as C2SP signed-note says. Raises STATEMENT_MALFORMED, SIGNATURE_INVALID, or FIELD_INVALID for the key.
    """
    name, public_key = parse_verifier_key(key)
    if _CONTROL.search(note) or len(note) > MAX_NOTE_BYTES or len(note.encode()) > MAX_NOTE_BYTES:
        raise _malformed_note("it is too long, or holds what is no text")
    head, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise _malformed_note("it has no signatures, or does not end in a newline")
    text = head + "\n"
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise _malformed_note("it has too many signatures")
    wanted = key_id(name, public_key)
    verified = False
    for line in lines:
        dash, _, rest = line.partition(" ")
        signer, _, encoded = rest.partition(" ")
        signature = _base64(encoded)
        if (
            dash != "\N{EM DASH}"
            or not _KEY_NAME.fullmatch(signer)
            or signature is None
            or len(signature) < 5
        ):
            raise _malformed_note("a signature line has another form")
        if signer == name and compare_digest(signature[:4], wanted):
            _check_ed25519(public_key, signature[4:], text.encode())
            verified = True
    if not verified:
        raise refused(Reason.SIGNATURE_INVALID, f"The note carries no signature of {name}.")
    return text


def _check_ed25519(public_key: bytes, signature: bytes, data: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise refused(Reason.SIGNATURE_INVALID, "The note's signature does not verify.") from None


def _base64(text: str) -> bytes | None:
    """Standard base64, padded, in its one encoding (RFC 4648 section 3.5); None for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def _malformed_note(what: str) -> Refused:
    return refused(Reason.STATEMENT_MALFORMED, f"This is not a signed checkpoint: {what}.")
