"""Evidence to take away: one JSON file with the records, their proofs and the checkpoint they stand under.

Nothing in it is trusted: the trust bundle and the log's verifier key come from elsewhere.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from vigil.core import strict_json
from vigil.errors import Reason, Refused, refused
from vigil.verify.checks import Record

VERSION: Final = 1
MAX_BYTES: Final = 256 << 20
"""Half a million records of 500 bytes; what is larger is exported in parts."""
_MEMBERS = {"vigil_evidence", "trust_domain", "subject", "checkpoint", "records"}
_RECORD = {"index", "leaf", "statement", "chain", "bodies", "recorded", "recorded_path", "inclusion_path"}


@dataclass(frozen=True, slots=True)
class Proven:
    """A record with its inclusion path to the document's checkpoint."""

    record: Record
    inclusion_path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """``subject`` is set when the records claim to be all of that subject's; empty otherwise."""

    trust_domain: str
    checkpoint: str
    records: tuple[Proven, ...]
    subject: str = ""


def document_to_json(document: Document) -> str:
    """Write a document; binary members are base64."""
    return json.dumps(
        {
            "vigil_evidence": VERSION,
            "trust_domain": document.trust_domain,
            "subject": document.subject,
            "checkpoint": document.checkpoint,
            "records": [
                {
                    "index": proven.record.index,
                    "leaf": _text(proven.record.leaf),
                    "statement": _text(proven.record.statement),
                    "chain": [_text(one) for one in proven.record.chain],
                    "bodies": [_text(body) for body in proven.record.bodies],
                    "recorded": _text(proven.record.recorded),
                    "recorded_path": [_text(node) for node in proven.record.recorded_path],
                    "inclusion_path": [_text(node) for node in proven.inclusion_path],
                }
                for proven in document.records
            ],
        },
        indent=1,
    )


def document_from_json(text: str) -> Document:
    """Read a document strictly. Raises STATEMENT_MALFORMED."""
    try:
        value = strict_json.parse(text.encode(errors="surrogatepass"), max_bytes=MAX_BYTES)
    except ValueError as error:
        raise _malformed(str(error)) from None
    if not isinstance(value, dict) or set(value) != _MEMBERS or value["vigil_evidence"] != VERSION:
        raise _malformed("its members are not those of version 1")
    records = value["records"]
    if not isinstance(records, list):
        raise _malformed("its records are no list")
    return Document(
        trust_domain=_string(value["trust_domain"]),
        subject=_string(value["subject"]),
        checkpoint=_string(value["checkpoint"]),
        records=tuple(_proven(record) for record in records),
    )


def _proven(value: Any) -> Proven:
    if not isinstance(value, dict) or set(value) != _RECORD:
        raise _malformed("a record has other members")
    index = value["index"]
    if type(index) is not int or not 0 <= index < 2**63:
        raise _malformed("an index is no number")
    record = Record(
        index=index,
        leaf=_bytes(value["leaf"]),
        statement=_bytes(value["statement"]),
        chain=_list(value["chain"]),
        bodies=_list(value["bodies"]),
        recorded=_bytes(value["recorded"]),
        recorded_path=_list(value["recorded_path"]),
    )
    return Proven(record, _list(value["inclusion_path"]))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _malformed("a member that is text is not")
    return value


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_string(value), validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("a binary member is not base64") from None


def _list(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list):
        raise _malformed("a member that is a list is not")
    return tuple(_bytes(item) for item in value)


def _malformed(sentence: str) -> Refused:
    return refused(Reason.STATEMENT_MALFORMED, f"This is not an evidence document: {sentence}.")
