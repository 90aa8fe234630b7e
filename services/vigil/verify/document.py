"""Evidence to take away: one JSON file with records, their proofs, and the checkpoint that they stand under.

Nothing in it is trusted: the trust bundle and the log's key come from elsewhere. What each member means and how it is
checked stands in docs/evidence.md; the JSON Schema is docs/cli-schemas/proof.json. One document has one encoding of
each byte string, no member that is not known, and none missing.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from vigil.core import strict_json
from vigil.core.census import Item, Placed
from vigil.errors import Reason, Refused, refused
from vigil.verify.checks import Record

VERSION: Final = 1
MAX_BYTES: Final = 256 << 20
"""Half a million records of 500 bytes; what is larger is exported in parts."""
_MEMBERS: Final = frozenset(
    {"vigil_evidence", "trust_domain", "checkpoint", "consistency", "records", "subjects"}
)
_RECORD: Final = frozenset(
    {"index", "leaf", "statement", "chain", "bodies", "recorded", "recorded_path", "inclusion_path"}
)
_EARLIER: Final = frozenset({"checkpoint", "path"})
_SUBJECT: Final = frozenset({"subject", "first", "leaves", "census"})
_CENSUS: Final = frozenset({"index", "items"})
_ITEM: Final = frozenset({"place", "key", "number", "leaf", "path"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Proven:
    """A record with its inclusion path to the document's checkpoint."""

    record: Record
    inclusion_path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A checkpoint signed before, and the consistency path from it to the document's."""

    checkpoint: str
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CensusProof:
    """What a census says of one subject. ``index`` names the census's own record, which is among the document's.

    One item: the subject's own. None, one at an end, or two neighbours: the subject is not there.
    """

    index: int
    items: tuple[Placed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectClaim:
    """A subject's records ``first``, ``first + 1``, … without a gap, as leaves; none: it has no record.

    The last leaf is that of a record of the document, or the newest that the census names.
    """

    subject: str
    first: int
    leaves: tuple[bytes, ...]
    census: CensusProof | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """All that is proved together, under one checkpoint."""

    trust_domain: str
    checkpoint: str
    records: tuple[Proven, ...] = ()
    subjects: tuple[SubjectClaim, ...] = ()
    consistency: tuple[Earlier, ...] = ()


# --- writing


def document_to_json(document: Document) -> str:
    """Write a document; binary members are base64."""
    return json.dumps(document_value(document), indent=1)


def document_value(document: Document) -> dict[str, Any]:
    """A document as the value of its JSON."""
    return {
        "vigil_evidence": VERSION,
        "trust_domain": document.trust_domain,
        "checkpoint": document.checkpoint,
        "consistency": [
            {"checkpoint": one.checkpoint, "path": _texts(one.path)} for one in document.consistency
        ],
        "records": [_record_value(one) for one in document.records],
        "subjects": [_subject_value(one) for one in document.subjects],
    }


def _record_value(proven: Proven) -> dict[str, Any]:
    record = proven.record
    return {
        "index": record.index,
        "leaf": _text(record.leaf),
        "statement": _text(record.statement),
        "chain": _texts(record.chain),
        "bodies": _texts(record.bodies),
        "recorded": _text(record.recorded),
        "recorded_path": _texts(record.recorded_path),
        "inclusion_path": _texts(proven.inclusion_path),
    }


def _subject_value(claim: SubjectClaim) -> dict[str, Any]:
    census = claim.census
    return {
        "subject": claim.subject,
        "first": claim.first,
        "leaves": _texts(claim.leaves),
        "census": None
        if census is None
        else {
            "index": census.index,
            "items": [
                {
                    "place": one.place,
                    "key": _text(one.item.key),
                    "number": one.item.number,
                    "leaf": _text(one.item.leaf),
                    "path": _texts(one.path),
                }
                for one in census.items
            ],
        },
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _texts(values: tuple[bytes, ...]) -> list[str]:
    return [_text(one) for one in values]


# --- reading


def document_from_json(text: str) -> Document:
    """Read a document strictly. Raises STATEMENT_MALFORMED."""
    try:
        value = strict_json.parse(text.encode(errors="surrogatepass"), max_bytes=MAX_BYTES)
    except ValueError as error:
        raise _malformed(str(error)) from None
    return document_from_value(value)


def document_from_value(value: object) -> Document:
    """Read a document that was parsed already, as a part of another text. Raises STATEMENT_MALFORMED."""
    if isinstance(value, dict) and value.get("vigil_evidence") != VERSION:
        raise _malformed(f"this version of Vigil reads version {VERSION} of the format")
    members = _object(value, _MEMBERS, "the document")
    if type(members["vigil_evidence"]) is not int:
        raise _malformed("its version is no number")
    return Document(
        trust_domain=_string(members["trust_domain"]),
        checkpoint=_string(members["checkpoint"]),
        consistency=_many(members["consistency"], _earlier),
        records=_many(members["records"], _proven),
        subjects=_many(members["subjects"], _claim),
    )


def _proven(value: object) -> Proven:
    members = _object(value, _RECORD, "a record")
    record = Record(
        index=_number(members["index"]),
        leaf=_bytes(members["leaf"]),
        statement=_bytes(members["statement"]),
        chain=_many(members["chain"], _bytes),
        bodies=_many(members["bodies"], _bytes),
        recorded=_bytes(members["recorded"]),
        recorded_path=_many(members["recorded_path"], _bytes),
    )
    return Proven(record, _many(members["inclusion_path"], _bytes))


def _earlier(value: object) -> Earlier:
    members = _object(value, _EARLIER, "an earlier checkpoint")
    return Earlier(_string(members["checkpoint"]), _many(members["path"], _bytes))


def _claim(value: object) -> SubjectClaim:
    members = _object(value, _SUBJECT, "a subject")
    return SubjectClaim(
        subject=_string(members["subject"]),
        first=_number(members["first"]),
        leaves=_many(members["leaves"], _bytes),
        census=None if members["census"] is None else _census(members["census"]),
    )


def _census(value: object) -> CensusProof:
    members = _object(value, _CENSUS, "a census")
    return CensusProof(_number(members["index"]), _many(members["items"], _placed))


def _placed(value: object) -> Placed:
    members = _object(value, _ITEM, "an item of a census")
    item = Item(_bytes(members["key"]), _number(members["number"]), _bytes(members["leaf"]))
    return Placed(_number(members["place"]), item, _many(members["path"], _bytes))


def _object(value: object, names: frozenset[str], what: str) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != names:
        raise _malformed(f"{what} has other members than version {VERSION} names")
    return value


def _many(value: object, read: Callable[[object], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise _malformed("a member that is a list is not")
    return tuple(read(item) for item in value)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _malformed("a member that is a number is not")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _malformed("a member that is text is not")
    return value


def _bytes(value: object) -> bytes:
    text = _string(value)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("a binary member is not base64") from None
    if _text(data) != text:  # RFC 4648 section 3.5: the bits after the last byte are zero
        raise _malformed("a binary member is not in its one base64 encoding")
    return data


def _malformed(sentence: str) -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        f"This is not an evidence document: {sentence}.",
        lifted_by="the file as `vigil evidence prove --output json` wrote it, whole and unchanged",
        who="whoever made it",
    )
