"""Signed checkpoints and what witnesses add to them. Pure.

C2SP signed-note, tlog-checkpoint, and the Ed25519 cosignature of tlog-cosignature (``cosignature/v1``). One
Ed25519 key is named by two key ids, one for notes and one for cosignatures: neither signature passes for the other.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
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
_COSIGNATURE: Final = b"\x04"
"""Signature type of a timestamped Ed25519 cosignature (C2SP tlog-cosignature)."""
_COSIGNATURE_BYTES: Final = 8 + 64
_MAX_TIMESTAMP: Final = 2**63 - 1
_DASH: Final = "\N{EM DASH}"


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


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: the signer's name, the four bytes that name its key, and the signature itself."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A signed note that was read and of which nothing was verified yet. ``text`` ends in a newline."""

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's verified statement: at ``time`` (s) this was the largest log it had seen. ``line``: as written."""

    name: str
    time: int
    line: str


def key_id(name: str, public_key: bytes) -> bytes:
    """The four bytes that name an Ed25519 key in a note's signature line."""
    return _key_id(name, _ED25519 + public_key)


def cosigner_key_id(name: str, public_key: bytes) -> bytes:
    """The four bytes that name a witness's Ed25519 key in the line of a cosignature."""
    return _key_id(name, _COSIGNATURE + public_key)


def _key_id(name: str, typed_key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + typed_key)[:4]


def verifier_key(name: str, public_key: bytes) -> str:
    """A log's key as C2SP writes it: ``<name>+<key id, hex>+<base64 of type and key>``."""
    return _verifier_key(name, _ED25519 + public_key)


def cosigner_key(name: str, public_key: bytes) -> str:
    """A witness's key in the same form."""
    return _verifier_key(name, _COSIGNATURE + public_key)


def _verifier_key(name: str, typed_key: bytes) -> str:
    return f"{name}+{_key_id(name, typed_key).hex()}+{base64.b64encode(typed_key).decode()}"


def parse_verifier_key(text: str) -> tuple[str, bytes]:
    """Read name and raw Ed25519 key of a log. Raises FIELD_INVALID."""
    return _parse_key(text, _ED25519, "This is not an Ed25519 verifier key as C2SP signed-note writes them.")


def parse_cosigner_key(text: str) -> tuple[str, bytes]:
    """Read name and raw Ed25519 key of a witness. Raises FIELD_INVALID, for a log's key too."""
    return _parse_key(
        text, _COSIGNATURE, "This is not an Ed25519 witness key (type 4 of C2SP tlog-cosignature)."
    )


def _parse_key(text: str, kind: bytes, sentence: str) -> tuple[str, bytes]:
    name, _, rest = text.partition("+")
    identifier, _, encoded = rest.partition("+")
    key = _base64(encoded)
    if (
        is_key_name(name)
        and key is not None
        and len(key) == 33
        and key[:1] == kind
        and identifier == _key_id(name, key).hex()
    ):
        return name, key[1:]
    raise refused(
        Reason.FIELD_INVALID,
        sentence,
        lifted_by="the key as its owner published it",
        who="caller",
        field="verifier_key",
    )


def is_key_name(text: str) -> bool:
    """Whether this can name a key: not empty, without spaces and plus signs (C2SP signed-note)."""
    return _KEY_NAME.fullmatch(text) is not None


def sign_note(text: str, *, name: str, public_key: bytes, sign: Callable[[bytes], bytes]) -> str:
    """A signed note of ``text`` (which ends in a newline) with one Ed25519 signature."""
    return f"{text}\n{_line(name, key_id(name, public_key) + sign(text.encode()))}"


def cosign(text: str, *, time: int, name: str, public_key: bytes, sign: Callable[[bytes], bytes]) -> str:
    """The line, newline included, with which a witness cosigns a checkpoint's ``text`` at ``time`` (s)."""
    signature = time.to_bytes(8, "big") + sign(_cosigned_message(text, time))
    return _line(name, cosigner_key_id(name, public_key) + signature)


def _cosigned_message(text: str, time: int) -> bytes:
    """What a cosignature signs: its header, its time, and the checkpoint without signatures (tlog-cosignature)."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def _line(name: str, payload: bytes) -> str:
    return f"{_DASH} {name} {base64.b64encode(payload).decode()}\n"


def parse_note(note: str) -> Note:
    """Read a signed note without verifying anything. Raises STATEMENT_MALFORMED."""
    if _CONTROL.search(note) or len(note) > MAX_NOTE_BYTES or len(note.encode()) > MAX_NOTE_BYTES:
        raise _malformed_note("it is too long, or holds what is no text")
    head, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise _malformed_note("it has no signatures, or does not end in a newline")
    return Note(head + "\n", parse_signatures(signatures))


def parse_signatures(text: str) -> tuple[NoteSignature, ...]:
    """Read signature lines, each ended by a newline. Raises STATEMENT_MALFORMED."""
    lines = text[:-1].split("\n")
    if not text.endswith("\n") or len(lines) > MAX_NOTE_SIGNATURES:
        raise _malformed_note("it has too many signatures, or does not end in a newline")
    return tuple(_read_line(line) for line in lines)


def _read_line(line: str) -> NoteSignature:
    dash, _, rest = line.partition(" ")
    signer, _, encoded = rest.partition(" ")
    payload = _base64(encoded)
    if dash != _DASH or not is_key_name(signer) or payload is None or len(payload) < 5:
        raise _malformed_note("a signature line has another form")
    return NoteSignature(signer, payload[:4], payload[4:])


def open_note(note: str, key: str) -> str:
    """Verify a signed note with one verifier key and answer its text.

    Signatures of other keys (witnesses) are passed over; one that claims this key and does not verify refuses
    the note, as C2SP signed-note says. Raises STATEMENT_MALFORMED, SIGNATURE_INVALID, or FIELD_INVALID for the key.
    """
    name, public_key = parse_verifier_key(key)
    read = parse_note(note)
    wanted = key_id(name, public_key)
    verified = False
    for one in read.signatures:
        if one.name == name and compare_digest(one.key_id, wanted):
            _check_ed25519(public_key, one.signature, read.text.encode())
            verified = True
    if not verified:
        raise refused(Reason.SIGNATURE_INVALID, f"The note carries no signature of {name}.")
    return read.text


def find_cosignature(text: str, signatures: Sequence[NoteSignature], key: str) -> Cosignature | None:
    """The newest cosignature of one witness on a checkpoint's ``text``; None when there is none.

    Signatures of other keys are passed over. Raises SIGNATURE_INVALID for one that claims this key and does not
    verify (C2SP signed-note), and FIELD_INVALID for the key.
    """
    name, public_key = parse_cosigner_key(key)
    wanted = cosigner_key_id(name, public_key)
    found: Cosignature | None = None
    for one in signatures:
        if one.name != name or not compare_digest(one.key_id, wanted):
            continue
        time = int.from_bytes(one.signature[:8], "big")
        if len(one.signature) != _COSIGNATURE_BYTES or time > _MAX_TIMESTAMP:
            raise _malformed_note("a cosignature is not a time and an Ed25519 signature")
        _check_ed25519(public_key, one.signature[8:], _cosigned_message(text, time))
        if found is None or time > found.time:
            found = Cosignature(name, time, _line(name, one.key_id + one.signature))
    return found


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
