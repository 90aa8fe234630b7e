"""`vigil evidence prove` and `check`: a proof made on line, taken away, and checked by anybody without a network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.logbook import Seen, find_entry, newest_checkpoint, read_policy, record_of, yes
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED, Output
from vigil.cli.session import Session
from vigil.core.certificates import ChainVerifier, TrustBundle
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Reason, refused
from vigil.verify import (
    Document,
    Earlier,
    Proven,
    Report,
    check_checkpoint,
    document_from_json,
    document_to_json,
    not_proved,
    verify_document,
)

MAX_NOTE_FILE: Final = 65_536


async def prove(
    session: Session, names: Sequence[str], *, policy: Path | None = None, known: Path | None = None
) -> int:
    """Prove records under the newest checkpoint; exit 3 when something does not hold."""
    if not names:
        raise UsageError("name a record: its index, or its statement's digest in hex")
    wanted = None if policy is None else read_policy(policy)
    note = "" if known is None else read_note(known)
    entries = [await find_entry(session, name) for name in dict.fromkeys(names)]
    seen = await newest_checkpoint(session, wanted)
    document = Document(
        trust_domain=session.context.trust_domain,
        checkpoint=seen.checkpoint.note,
        consistency=await _earlier(session, seen, note),
        records=tuple(
            [await _proven(session, entry, seen, witnessed=wanted is not None) for entry in entries]
        ),
    )
    report = verify_document(
        document, verifier=session.verifier, verifier_key=seen.key, policy=wanted, known=note
    )
    report = Report((seen.consistency, *report.findings))
    if session.output.json:
        print(document_to_json(document))
    else:
        show(session.output, report, not_proved(document, witnessed=wanted is not None))
    return DONE if report.holds else REFUSED


async def _proven(session: Session, entry: pb.Entry, seen: Seen, *, witnessed: bool) -> Proven:
    size = seen.tree.size
    if entry.index >= size:
        raise refused(
            Reason.NOT_RECORDED,
            f"the newest checkpoint{' that is witnessed' if witnessed else ''} covers {size} records, this one has "
            f"index {entry.index}",
            lifted_by="a moment's patience: the next checkpoint",
            who="the log",
        )
    request = pb.GetInclusionProofRequest(index=entry.index, size=size)
    proof = await session.call("evidence", session.evidence.GetInclusionProof, request)
    return Proven(record_of(entry), tuple(proof.path))


async def _earlier(session: Session, seen: Seen, note: str) -> tuple[Earlier, ...]:
    """The way from the checkpoint that somebody knows to the newest."""
    if not note:
        return ()
    old = check_checkpoint(note, verifier_key=seen.key, trust_domain=session.context.trust_domain)
    if not 0 < old.size < seen.tree.size:
        return ()
    request = pb.GetConsistencyProofRequest(old_size=old.size, new_size=seen.tree.size)
    found = await session.call("evidence", session.evidence.GetConsistencyProof, request)
    return (Earlier(note, tuple(found.path)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    """What a reader brings along. ``log_key`` empty: the one that a census in the proof names."""

    verifier: ChainVerifier
    log_key: str = ""
    policy: WitnessPolicy | None = None
    known: str = ""


def believed(trust: Path, *, log_key: str, policy: Path | None, known: Path | None) -> Believed:
    """Read what is believed. ``log_key`` is a verifier key, or a file with one. Raises as the readers do, OSError."""
    try:
        bundle = TrustBundle.from_json(trust.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{trust} is not a text in UTF-8") from None
    wanted = None if policy is None else read_policy(policy)
    key = log_key
    if key and "+" not in key:
        key = _text(Path(key)).strip()
    if not key and wanted is not None and len(wanted.logs) == 1:
        key = wanted.logs[0]
    note = "" if known is None else read_note(known)
    return Believed(verifier=ChainVerifier(bundle), log_key=key, policy=wanted, known=note)


def check(output: Output, proof: Path, believes: Believed) -> int:
    """Check a proof with no network; exit 3 when anything does not hold."""
    document = document_from_json(_text(proof))
    report = verify_document(
        document,
        verifier=believes.verifier,
        verifier_key=believes.log_key or None,
        policy=believes.policy,
        known=believes.known,
    )
    missing = not_proved(document, witnessed=believes.policy is not None)
    if output.json:
        output.value(report_value(report, missing))
    else:
        show(output, report, missing)
    return DONE if report.holds else REFUSED


def show(output: Output, report: Report, missing: Sequence[str]) -> None:
    """What was found, for people, and what nobody may conclude from it."""
    rows = [
        (yes(one.holds), "" if one.index is None else one.index, one.property, one.sentence)
        for one in report.findings
    ]
    output.table(["holds", "index", "property", "what was found"], rows)
    output.say("All of it holds." if report.holds else "NOT ACCEPTED: something does not hold.")
    output.say("Not proved:")
    for sentence in missing:
        output.say(f"  {sentence}")


def report_value(report: Report, missing: Sequence[str]) -> dict[str, Any]:
    """A report as JSON."""
    return {
        "holds": report.holds,
        "findings": [
            {
                "property": str(one.property),
                "holds": one.holds,
                "sentence": one.sentence,
                "index": one.index,
            }
            for one in report.findings
        ],
        "not_proved": list(missing),
    }


def read_note(path: Path) -> str:
    """A checkpoint that was kept: a signed note, or the JSON that `vigil evidence checkpoint` writes."""
    text = _text(path)
    if text.lstrip().startswith("{"):
        try:
            text = str(json.loads(text)["note"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{path} holds no checkpoint") from None
    if not text or len(text) > MAX_NOTE_FILE:
        raise UsageError(f"{path} holds no checkpoint")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise refused(
            Reason.STATEMENT_MALFORMED,
            f"{path} is not a text in UTF-8.",
            lifted_by="the file as it was written, whole and unchanged",
            who="caller",
        ) from None
