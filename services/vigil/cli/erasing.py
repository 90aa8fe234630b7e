"""Erasing records: the first person signs what is to go and leaves a file, the second looks at it, signs and sends."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.logbook import find_entry
from vigil.cli.messages import instant
from vigil.cli.options import UsageError, one_of
from vigil.cli.output import DONE
from vigil.cli.session import Session
from vigil.core.certificates import replace_file
from vigil.core.commands import person_of
from vigil.core.erasures import ERASABLE, MAX_SUBJECTS
from vigil.core.statements.envelope import Statement, read
from vigil.core.statements.log_bodies import MAX_ERASED, Erasure, ErasureReason, ErasureWhat
from vigil.errors import Reason, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What was typed."""

    records: tuple[str, ...]
    subject: str
    reason: str
    reference: str
    bodies_only: bool
    half: Path | None
    out: Path


async def erase(session: Session, ask: Ask) -> int:
    """Begin an erasure, or complete one that another person began."""
    return await (_begin(session, ask) if ask.half is None else _complete(session, ask.half))


async def _begin(session: Session, ask: Ask) -> int:
    what = ErasureWhat.BODIES if ask.bodies_only else ErasureWhat.STATEMENTS
    reason = ErasureReason(one_of(ask.reason, tuple(ErasureReason), "--reason"))
    entries = [await find_entry(session, name) for name in ask.records]
    if ask.subject:
        request = pb.ListHistoryRequest(subject=ask.subject)
        found = await session.every("evidence", session.evidence.ListHistory, request, "entries")
        entries += [entry for entry in found if _may_go(entry, what)]
    unique = list({entry.digest: entry for entry in entries}.values())
    if not unique:
        raise UsageError("name records, or a --subject that has records which can be erased")
    erasures = []
    for group in _groups(unique):
        digests = tuple(entry.digest for entry in group)
        body = Erasure(records=digests, what=what, reason=reason, reference=ask.reference or None)
        statement = session.scribe.sign(body, subject=group[0].subjects[0].subject)
        erasures.append(base64.b64encode(statement.data).decode())
    replace_file(ask.out, (json.dumps({"erasures": erasures}, indent=1) + "\n").encode(), mode=0o600)
    value = {"what": str(what), "reason": str(reason), "reference": ask.reference, "file": str(ask.out)}
    session.output.record({**value, "records": [entry.index for entry in unique], "complete": False})
    session.output.say(f"another administrator completes it: vigil evidence erase --with {ask.out}")
    return DONE


async def _complete(session: Session, half: Path) -> int:
    halves = _read_half(half)
    erased, indexes = [], []
    for first in halves:
        person = person_of(first, session.verifier, at=session.clock.now(), grace=True)
        if person.id == session.person.id:
            raise refused(
                Reason.APPROVER_NOT_DISTINCT,
                "the first half is your own",
                lifted_by="another administrator running this command",
                who="an admin of the organization",
            )
    for first in halves:
        second = session.scribe.sign(first.body, subject=first.subject)
        indexes += [(await find_entry(session, digest.hex())).index for digest in first.body.records]
        request = pb.EraseRequest(erasures=[first.data, second.data])
        erased.append(await session.call("evidence", session.erasure.Erase, request))
    last = erased[-1].erased
    value = {"what": last.what, "reason": last.reason, "reference": last.reference, "file": str(half)}
    session.output.record(
        {
            **value,
            "records": indexes,
            "complete": True,
            "people": list(last.people),
            "time": instant(last.time_ms),
            "recorded": [index for one in erased for index in one.erased.records],
            "scrubbed": all(one.scrubbed for one in erased),
        }
    )
    return DONE


def _may_go(entry: pb.Entry, what: ErasureWhat) -> bool:
    if entry.kind not in ERASABLE:
        return False
    return bool(entry.bodies) if what is ErasureWhat.BODIES else bool(entry.statement)


def _groups(entries: list[pb.Entry]) -> list[list[pb.Entry]]:
    """As many records in one erasure as it may name, and be about."""
    groups: list[list[pb.Entry]] = [[]]
    subjects: set[str] = set()
    for entry in entries:
        own = {one.subject for one in entry.subjects}
        if groups[-1] and (len(groups[-1]) == MAX_ERASED or len(subjects | own) > MAX_SUBJECTS):
            groups.append([])
            subjects = set()
        groups[-1].append(entry)
        subjects |= own
    return groups


def _read_half(path: Path) -> list[Statement[Erasure]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["erasures"]
        data = [base64.b64decode(item, validate=True) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise refused(Reason.FIELD_INVALID, f"{path} cannot be used: {error}") from error
    if not data:
        raise refused(Reason.FIELD_INVALID, f"{path} names nothing")
    return [read(item, Erasure) for item in data]
