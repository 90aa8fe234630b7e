"""What a witness makes of a checkpoint that is handed to it (C2SP tlog-witness, `add-checkpoint`). Pure.

Invariants:

* what is cosigned carries a signature of a log that the witness was told of, and follows from what it cosigned last;
* the size cosigned for a log never goes back, and one size has one root;
* the time of a cosignature never goes back, whatever the machine's clock does.

Not checked: what stands in the log, and extension lines of a checkpoint (tlog-cosignature says nothing of them).
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core.merkle import EMPTY_ROOT, HASH_BYTES, verify_consistency
from vigil.core.notes import MAX_NOTE_BYTES, open_note, parse_checkpoint_text, parse_note, parse_verifier_key
from vigil.errors import Refused, VigilError

MAX_PROOF: Final = 63
"""Lines of a consistency proof (tlog-witness)."""
MAX_BODY_BYTES: Final = MAX_NOTE_BYTES + 64 * 64
"""A note, and a line for each hash and for the old size."""

_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)
SIZE_TYPE: Final = "text/x.tlog.size"


class Rejected(VigilError):  # noqa: N818 - it is an answer, not an error of ours
    """Why a checkpoint is not cosigned. ``status``: of HTTP, as tlog-witness gives it to each reason.

    ``known``: the size that the witness holds, told when the old size is another; a conflict of roots tells none.
    ``signed``: whether the log's own signature stands under what was refused, so that it is worth keeping.
    """

    def __init__(self, status: int, sentence: str, *, known: int | None = None, signed: bool = False) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.known = known
        self.signed = signed


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was read: the size the sender believes known, the proof from there, the signed note."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str


@dataclass(frozen=True, slots=True)
class TreeHead:
    """A log at one size."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A checkpoint that its log signed: the head, and the text that a cosignature covers."""

    head: TreeHead
    text: str


def parse_request(body: bytes) -> Request:
    """Read a request. Raises Rejected (400)."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Rejected(400, "The request is not UTF-8.") from None
    head, separator, note = text.partition("\n\n")
    first, *lines = head.split("\n")
    old = _OLD.fullmatch(first)
    if not separator or old is None:
        raise Rejected(400, "A request begins with `old`, a size, the proof's lines and an empty line.")
    if len(lines) > MAX_PROOF:
        raise Rejected(400, f"A consistency proof has at most {MAX_PROOF} lines.")
    return Request(int(old[1]), tuple(_hash(line) for line in lines), note)


def _hash(line: str) -> bytes:
    try:
        data = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != HASH_BYTES or base64.b64encode(data).decode() != line:
        raise Rejected(400, "A line of the proof is not a SHA-256 hash in base64.")
    return data


class KnownLogs:
    """The logs that a witness was told of, each by one verifier key or more; a key's name is its log's origin."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take keys as C2SP writes them. Raises Refused FIELD_INVALID."""
        self._keys: dict[str, list[str]] = {}
        for key in keys:
            self._keys.setdefault(parse_verifier_key(key)[0], []).append(key)

    def __len__(self) -> int:
        return len(self._keys)

    def open(self, note: str) -> SignedHead:
        """Read a checkpoint and hold it against its log's keys. Raises Rejected: 400, 404 or 403."""
        try:
            text = parse_note(note).text
            head = TreeHead(*parse_checkpoint_text(text))
        except Refused as error:
            raise Rejected(400, error.refusals[0].sentence) from None
        if head.origin not in self._keys:
            raise Rejected(404, "The witness does not know this log.")
        if not any(_opens(note, key) for key in self._keys[head.origin]):
            raise Rejected(403, "The checkpoint carries no signature of a key known for this log.")
        return SignedHead(head, text)


def _opens(note: str, key: str) -> bool:
    try:
        open_note(note, key)
    except Refused:
        return False
    return True


def check_follows(request: Request, head: TreeHead, known: TreeHead | None) -> None:
    """The head follows from what was cosigned last (None: nothing yet). Raises Rejected: 400, 409 or 422.

    In the order of tlog-witness: the old size is not beyond the checkpoint, it is the one known, one size has one
    root, and the proof leads from one to the other (RFC 6962 section 2.1.2).
    """
    size, root = (0, EMPTY_ROOT) if known is None else (known.size, known.root)
    if request.old_size > head.size:
        raise Rejected(400, "The old size is beyond the checkpoint's.")
    if request.old_size != size:
        raise Rejected(409, "The witness knows this log at another size.", known=size)
    if head.size == size and head.root != root:
        raise Rejected(409, "The log had another root at this size.", signed=True)
    if not verify_consistency(
        old_size=size, new_size=head.size, old_root=root, new_root=head.root, path=request.proof
    ):
        raise Rejected(422, "The proof does not lead from the log that is known to this one.", signed=True)
