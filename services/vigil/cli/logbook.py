"""The evidence log from an outsider's side: records and checkpoints, believed for their proofs alone.

The last checkpoint seen is kept in DATA/checkpoint.json with the log's key: the key is pinned at first sight, and a
newer checkpoint must be shown to extend the older one before it replaces it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.messages import instant
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED
from vigil.cli.session import Session
from vigil.core import cose
from vigil.core.certificates import replace_file
from vigil.core.freshness import check_fresh
from vigil.core.notes import Cosignature
from vigil.core.statements.envelope import read_any
from vigil.core.witness_policy import WitnessPolicy, check_witnessed, parse_witness_policy
from vigil.errors import Reason, Refused, refused
from vigil.verify import (
    Finding,
    Property,
    Record,
    SignedTree,
    check_checkpoint,
    check_consistency,
    check_recorded,
    check_statement,
    decode_leaf,
)

_HEX: Final = re.compile(r"[0-9a-f]{64}")


async def show_entry(session: Session, name: str) -> int:
    """One record; exit 3 when its signature does not hold."""
    value = entry_value(session, await find_entry(session, name))
    if session.output.json:
        session.output.value(value)
    else:
        session.output.record(value, hide=("says",))
        session.output.record(value["says"] or {}, title="what was signed")
    return REFUSED if value["verified"] is False else DONE


async def show_checkpoint(session: Session, *, policy: Path | None = None, max_age: int | None = None) -> int:
    """The newest checkpoint; exit 3 when the log did not only grow, or too few witnesses hold it."""
    wanted = None if policy is None else read_policy(policy)
    if max_age is not None and wanted is None:
        raise UsageError("--max-age needs a --policy: only witnesses say when they saw a checkpoint")
    seen = await newest_checkpoint(session, wanted)
    if wanted is not None and max_age is not None:
        check_fresh(seen.witnesses, wanted, now=session.clock.now(), max_age=max_age)
    checkpoint, tree, consistency = seen.checkpoint, seen.tree, seen.consistency
    value = {
        "size": tree.size,
        "root": tree.root.hex(),
        "time": instant(checkpoint.time_ms),
        "verifier_key": checkpoint.verifier_key,
        "note": checkpoint.note,
        "cosignatures": checkpoint.witnesses,
        "witnesses": [
            {"name": name, "time": instant(one.time * 1000)} for name, one in sorted(seen.witnesses.items())
        ],
        "consistent": consistency.holds,
        "sentence": consistency.sentence,
    }
    session.output.record(value, hide=("note",))
    return REFUSED if consistency.holds is False else DONE


def entry_value(session: Session, entry: pb.Entry) -> dict[str, Any]:
    """A record as JSON: what was signed, by whom, and whether signature and the log's promise hold (None: erased).

    Everything is said by the leaf, which the log has promised under this index, and by the statement: nothing by the
    answer that brought them. Raises STATEMENT_MALFORMED for a leaf that is none.
    """
    leaf = decode_leaf(entry.leaf)
    value: dict[str, Any] = {
        "index": entry.index,
        "kind": leaf.kind,
        "log_time": instant(leaf.log_time),
        "digest": leaf.digest.hex(),
        "subjects": [f"{one.subject}#{one.number}" for one in leaf.subjects],
        "signed_by": "",
        "verified": None,
        "says": None,
        "erased": erased_value(entry),
    }
    record = record_of(entry)
    try:
        check_recorded(record, session.verifier)
        if entry.statement:
            signer = check_statement(record, session.verifier)
            value["verified"], value["signed_by"] = True, f"{signer.kind}/{signer.id}"
    except Refused as error:
        session.output.say(f"record {entry.index}: NOT VERIFIED: {error.refusals[0].sentence}")
        value["verified"] = False
    if entry.statement:
        data = cose.with_chain(entry.statement, tuple(entry.chain)) if entry.chain else entry.statement
        value["says"] = body_value(read_any(data).body)
    return value


def erased_value(entry: pb.Entry) -> dict[str, Any] | None:
    """What was erased of a record, as JSON; None where nothing was."""
    if not entry.HasField("erased"):
        return None
    found = entry.erased
    return {
        "what": found.what,
        "reason": found.reason,
        "reference": found.reference,
        "time": instant(found.time_ms),
        "people": list(found.people),
        "records": list(found.records),
    }


def record_of(entry: pb.Entry) -> Record:
    """A record as the verifier takes it."""
    return Record(
        index=entry.index,
        leaf=entry.leaf,
        statement=entry.statement,
        chain=tuple(entry.chain),
        bodies=tuple(entry.bodies),
        recorded=entry.recorded.recorded,
        recorded_path=tuple(entry.recorded.path),
    )


def body_value(value: Any) -> Any:
    """A statement's body as JSON: bytes in hex, what is absent left out."""
    if is_dataclass(value):
        named = {one.name: getattr(value, one.name) for one in fields(value)}
        return {name: body_value(item) for name, item in named.items() if item is not None}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): body_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [body_value(item) for item in value]
    return str(value) if isinstance(value, str) else value


async def find_entry(session: Session, name: str) -> pb.Entry:
    """The record of that name: an index, or a statement's digest in hex. Raises UsageError, NOT_IN_SCOPE,
    NOT_RECORDED for another one than that.
    """
    if _HEX.fullmatch(name):
        request = pb.GetEntryRequest(digest=bytes.fromhex(name))
    elif name.isdecimal() and len(name) < 19:
        request = pb.GetEntryRequest(index=int(name))
    else:
        raise UsageError(f"{name!r} is neither an index nor a digest of 64 hexadecimal digits")
    entry = await session.call("evidence", session.evidence.GetEntry, request)
    shown = decode_leaf(entry.leaf).digest if request.digest else entry.index
    if shown != (request.digest or request.index):
        raise answers_another(f"record {name}")
    return entry


def answers_another(asked: str) -> Refused:
    """NOT_RECORDED for an answer, however well proved, to another question than was asked."""
    return refused(
        Reason.NOT_RECORDED,
        f"The log was asked for {asked}, and answered with something else.",
        lifted_by="a log that answers what it is asked",
        who="the log's operator",
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint that was opened with the pinned key, and what was found of it."""

    checkpoint: pb.Checkpoint
    tree: SignedTree
    key: str
    consistency: Finding
    witnesses: Mapping[str, Cosignature]


async def newest_checkpoint(session: Session, wanted: WitnessPolicy | None) -> Seen:
    """The newest checkpoint, opened with the pinned key, and whether it extends the last one seen here.

    With a policy: the newest that the log says is witnessed, and held against that policy here. Raises
    SIGNATURE_INVALID when the key or the signature is another, NOT_WITNESSED when too few witnesses hold it.
    """
    request = pb.GetCheckpointRequest(witnessed=wanted is not None)
    found = await session.call("evidence", session.evidence.GetCheckpoint, request)
    return await believed(session, found, wanted)


async def believed(session: Session, found: pb.Checkpoint, wanted: WitnessPolicy | None) -> Seen:
    """A checkpoint opened with the pinned key, and whether it extends the last one seen here. Raises as above."""
    path = session.folder.path / "checkpoint.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    key = kept.get("verifier_key", found.verifier_key)
    if key != found.verifier_key:
        raise refused(
            Reason.SIGNATURE_INVALID,
            "the log now signs its checkpoints with another key than the one seen here first",
            lifted_by=f"asking the operator, then removing {path}",
            who="the operator",
        )
    domain = session.context.trust_domain
    tree = check_checkpoint(found.note, verifier_key=key, trust_domain=domain)
    witnesses = {} if wanted is None else check_witnessed(found.note, wanted, log_key=key)
    old = check_checkpoint(kept["note"], verifier_key=key, trust_domain=domain) if kept else None
    if old is None:
        finding = _consistency(
            holds=None, words="No checkpoint was seen here before: this one is kept from now on."
        )
    elif wanted is not None and tree.size < old.size:
        # What witnesses hold lags behind what was seen; the newer one must extend it, and stays the one that is kept.
        return Seen(found, tree, key, await _extends(session, tree, old), witnesses)
    else:
        finding = await _extends(session, old, tree)
    if finding.holds is not False:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {"verifier_key": key, "note": found.note}
        replace_file(path, (json.dumps(kept, indent=1) + "\n").encode(), mode=0o600)
    return Seen(found, tree, key, finding, witnesses)


def read_policy(path: Path) -> WitnessPolicy:
    """Read a witness policy. Raises UsageError, FIELD_INVALID, OSError."""
    try:
        return parse_witness_policy(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text in UTF-8") from None


async def _extends(session: Session, old: SignedTree, new: SignedTree) -> Finding:
    if new.size < old.size:
        return _consistency(
            holds=False,
            words=f"The log shows {new.size} records; {old.size} were signed before. It was cut back.",
        )
    try:
        path: tuple[bytes, ...] = ()
        if 0 < old.size < new.size:
            request = pb.GetConsistencyProofRequest(old_size=old.size, new_size=new.size)
            path = tuple((await session.call("evidence", session.evidence.GetConsistencyProof, request)).path)
        if old.size:
            check_consistency(old, new, path)
    except Refused as error:
        if error.reason is not Reason.NOT_RECORDED:
            raise
        return _consistency(holds=False, words=error.refusals[0].sentence)
    return _consistency(
        holds=True, words=f"The log only grew since the checkpoint of {old.size} seen here before."
    )


def _consistency(*, holds: bool | None, words: str) -> Finding:
    return Finding(Property.CHECKPOINT, holds, words)


def yes(holds: bool | None) -> str:
    """A finding's answer in one word."""
    return {True: "yes", False: "NO", None: "-"}[holds]
