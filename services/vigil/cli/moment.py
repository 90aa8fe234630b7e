"""`vigil evidence at`: what a device was at one moment, worked out here from records that are proved here."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.durations import milliseconds
from vigil.cli.logbook import Seen as SeenLog
from vigil.cli.logbook import answers_another, believed, entry_value, read_policy, record_of
from vigil.cli.messages import instant
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED
from vigil.cli.proving import FoundSubject, subject_proof
from vigil.cli.session import Session
from vigil.core.certificates import replace_file
from vigil.core.clock import rfc3339
from vigil.core.moment import Role
from vigil.errors import Reason, Refused
from vigil.verify import Document, Finding, Proven, SubjectClaim, document_to_json
from vigil.verify.facts import Fact, facts_of
from vigil.verify.moment import Measurement, Moment, Seen, StateAnswer, StateRecord, Sure, work_out

_DEVICE_ID: Final = re.compile(r"dev-[a-z2-7]{16}")
_INSTANTS: Final = frozenset(
    {"at", "placed", "stale_at", "not_before", "operational_until", "not_after", "device_time"}
)
_KNOWN: Final = frozenset(int(role) for role in Role)
_SURE: Final[Mapping[str, str]] = {
    Sure.BRACKETED: "the same before and after, no restart between",
    Sure.SAME_ON_BOTH_SIDES: "the same before and after",
    Sure.CHANGED_BETWEEN: "another one afterwards: it changed in between",
    Sure.LAST_KNOWN: "last known; nothing newer is on record",
    Sure.NOT_YET_MEASURED: "known only from afterwards",
    Sure.NO_EVIDENCE: "no evidence",
    "fresh": "fresh at that moment",
    "stale": "stale at that moment",
}


def document_of(
    answer: StateAnswer, *, note: str, trust_domain: str, counted: FoundSubject | None = None
) -> Document:
    """The answer to take away: every record, and the device's chain of leaves, under the one checkpoint.

    ``counted``: what a census says of the device's records from the chain's first one on.
    """
    records = {one.record.index: Proven(one.record, one.path) for one in answer.records}
    leaves, census = answer.chain, None
    if counted is not None:
        # The census may count more than lies about the moment, or less.
        leaves, census = max(leaves, counted.claim.leaves, key=len), counted.claim.census
        records.setdefault(counted.census.record.index, counted.census)
    claim = SubjectClaim(
        subject=f"device/{answer.device}", first=answer.first_number, leaves=leaves, census=census
    )
    return Document(
        trust_domain=trust_domain,
        checkpoint=note,
        records=tuple(records[index] for index in sorted(records)),
        subjects=(claim,) if leaves else (),
    )


async def counted_of(session: Session, answer: StateAnswer, *, size: int) -> FoundSubject | None:
    """What the newest census under the checkpoint of ``size`` entries says of the device.

    None where it does not reach the answer's records, or there is none yet.
    """
    if not answer.chain:
        return None
    try:
        found = await subject_proof(session, f"device/{answer.device}", size=size, first=answer.first_number)
    except Refused as refusal:
        if refusal.reason in (Reason.RESOURCE_NOT_FOUND, Reason.FIELD_INVALID):
            return None
        raise
    # A census from before the device's first record says that there is none.
    return found if found.claim.leaves else None


async def show_state(
    session: Session, device: str, when: str, *, as_of: str, policy: Path | None, proof: Path | None
) -> int:
    """Answer about one moment; exit 3 when something in the answer does not hold."""
    now = session.clock.now()
    request = pb.GetStateAtRequest(
        device_id=await device_id_of(session, device),
        time_ms=read_moment(when, now=now),
        as_of_ms=read_moment(as_of, now=now) if as_of else 0,
        witnessed=policy is not None,
    )
    state = await session.call("evidence", session.evidence.GetStateAt, request)
    if (state.device_id, state.time_ms) != (request.device_id, request.time_ms):
        raise answers_another(f"{request.device_id} at {instant(request.time_ms)}")
    seen = await believed(session, state.checkpoint, None if policy is None else read_policy(policy))
    answer = answer_of(state)
    moment = work_out(answer, tree=seen.tree, verifier=session.verifier)
    holds = moment.holds and seen.consistency.holds is not False
    if proof is not None:
        await _take_away(session, state, answer, proof)
    if session.output.json:
        session.output.value({**moment_value(session, state, moment, seen), "holds": holds})
    else:
        _draw(session, state, moment, seen)
    return DONE if holds else REFUSED


async def _take_away(session: Session, state: pb.StateAt, answer: StateAnswer, file: Path) -> None:
    """Write the proof, and say how it is checked."""
    counted = await counted_of(session, answer, size=state.checkpoint.size)
    document = document_of(
        answer,
        note=state.checkpoint.note,
        trust_domain=session.context.trust_domain,
        counted=counted,
    )
    replace_file(file, document_to_json(document).encode(), mode=0o644)
    key = "" if counted is not None else f" --log {state.checkpoint.verifier_key}"
    session.output.say(
        f"the proof is in {file}; with no network: vigil evidence check {file} --trust FILE{key}"
    )


async def device_id_of(session: Session, name: str) -> str:
    """A device's id by any of its names; an id is taken as it is, for the registry may know it no longer."""
    if _DEVICE_ID.fullmatch(name):
        return name
    from vigil.api.identity.v1 import identity_pb2

    request = identity_pb2.GetDeviceRequest(device_id=name)
    found = await session.call("identity", session.devices.GetDevice, request)
    return found.device_id


def read_moment(text: str, *, now: int) -> int:
    """Read `now`, an instant (RFC 3339; without an offset it is the reader's own zone), or how long ago (`90m`).

    Answers ms since the epoch. Raises UsageError.
    """
    if text == "now":
        return now
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - milliseconds(text)
        except UsageError:
            raise UsageError(
                f"{text!r} is no moment: 2026-09-14T03:12, with seconds and an offset if you like, "
                "how long ago (90m), or now"
            ) from None
    try:
        return int(moment.astimezone().timestamp() * 1000)
    except (OverflowError, OSError, ValueError):
        raise UsageError(f"{text!r} lies beyond what a clock can say") from None


def local(ms: int | None) -> str:
    """An instant in the reader's own zone, with its offset; one that no calendar here has, as ``rfc3339`` writes it."""
    if ms is None:
        return ""
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).astimezone().isoformat(" ", "seconds")
    except (OverflowError, OSError, ValueError):
        return rfc3339(ms)


def answer_of(state: pb.StateAt) -> StateAnswer:
    """The log's answer as the verifier takes it."""
    return StateAnswer(
        device=state.device_id,
        time=state.time_ms,
        considered=state.considered,
        records=tuple(
            StateRecord(
                record=record_of(one.entry),
                path=tuple(one.inclusion_path),
                roles=tuple(map(Role, _KNOWN.intersection(one.roles))),
                withheld=one.withheld,
            )
            for one in state.records
        ),
        chain=tuple(state.chain),
        first_number=state.first_number,
        newest_number=state.newest_number,
        truncated=state.truncated,
    )


# --- for machines


def moment_value(session: Session, state: pb.StateAt, moment: Moment, seen: SeenLog) -> dict[str, Any]:
    """The answer as JSON: facts, measurements on both sides, what lies between, every record with its findings."""
    entries = {one.entry.index: one.entry for one in state.records}
    between = moment.between
    return {
        "device_id": moment.device,
        "time": instant(moment.time),
        "evidence": moment.evidence,
        "facts": [fact_value(fact) for fact in facts_of(moment)],
        "before": measurement_value(moment.before),
        "after": measurement_value(moment.after),
        "between": {
            "boots": between.boots,
            "log_grew": between.log_grew,
            "records": dict(between.records),
            "receipts": [
                {
                    "record": index,
                    "action": body.action,
                    "outcome": str(body.outcome),
                    "device_time": instant(body.device_time),
                    "performed_by": body.performed_by,
                }
                for index, body in between.receipts
            ],
            "complete": between.complete,
        },
        "quiet": {
            "before": _neighbour(moment, moment.quiet.before),
            "after": _neighbour(moment, moment.quiet.after),
            "proved": moment.quiet.proved,
            "sentence": _quiet_words(moment),
        },
        "considered": state.considered,
        "newest_number": state.newest_number,
        "truncated": state.truncated,
        "checkpoint": {
            "size": seen.tree.size,
            "root": seen.tree.root.hex(),
            "time": instant(seen.checkpoint.time_ms),
            "witnesses": [
                {"name": name, "time": instant(one.time * 1000)}
                for name, one in sorted(seen.witnesses.items())
            ],
        },
        "records": [
            {
                **entry_value(session, entries[one.index]),
                "roles": [role.name.lower().replace("_", "-") for role in one.roles],
                "withheld": one.withheld,
                "findings": findings_value(one.findings),
            }
            for one in moment.seen
        ],
        "findings": findings_value((seen.consistency, *moment.findings)),
    }


def findings_value(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """What was checked, as JSON."""
    return [{"property": str(one.property), "holds": one.holds, "sentence": one.sentence} for one in findings]


def fact_value(fact: Fact) -> dict[str, Any]:
    """One fact as JSON."""
    return {
        "name": fact.name,
        "value": fact.value,
        "record": fact.index,
        "at": instant(fact.at),
        "clock": fact.clock,
        "sure": str(fact.sure),
        "note": fact.note,
        "more": _plain(fact.more),
    }


def measurement_value(measurement: Measurement | None) -> dict[str, Any] | None:
    """One measurement as JSON, with the time by every clock that gives one."""
    if measurement is None:
        return None
    body = measurement.result.body
    return {
        "result": measurement.result_index,
        "evidence": measurement.evidence_index,
        "device_time": instant(measurement.times.device),
        "appraised": instant(measurement.times.service),
        "log_time": instant(measurement.times.log),
        "stale": instant(body.stale_at),
        "status": str(body.status),
        "boot_count": body.boot_count,
        "log_size": body.log_size,
        "firmware": body.measurements.firmware.hex(),
        "configuration": body.measurements.configuration.hex(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: instant(item) if name in _INSTANTS and isinstance(item, int) else _plain(item)
            for name, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _neighbour(moment: Moment, one: Seen | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "number": one.number(f"device/{moment.device}"),
        "index": one.index,
        "kind": one.leaf.kind,
        "log_time": instant(one.leaf.log_time),
    }


# --- for people


def _draw(session: Session, state: pb.StateAt, moment: Moment, seen: SeenLog) -> None:
    output = session.output
    print(f"{moment.device} at {local(moment.time)}")
    if not moment.evidence:
        output.say("No evidence for this moment.")
    rows = [
        (
            fact.name,
            fact.value or "-",
            "" if fact.index is None else fact.index,
            local(fact.at),
            fact.clock,
            "; ".join(filter(None, (_SURE.get(fact.sure, fact.sure), fact.note))),
        )
        for fact in facts_of(moment)
    ]
    output.table(["what", "value", "record", "at", "by the clock of", "how sure"], rows)
    for line in _lines(moment):
        print(line)
    failed = [
        (one.index, finding) for one in moment.seen for finding in one.findings if finding.holds is False
    ]
    for index, finding in failed:
        output.say(f"record {index} does NOT hold: {finding.property}: {finding.sentence}")
    whole = [one for one in (seen.consistency, *moment.findings) if one.holds is not True]
    for one in whole:
        output.say(f"{'NOT so' if one.holds is False else 'not shown'}: {one.property}: {one.sentence}")
    if state.truncated:
        output.say("There are more holds, revocations or receipts than were shown.")
    print(
        f"{len(moment.seen) - len({index for index, _ in failed})} of {len(moment.seen)} records proved under the "
        f"checkpoint of {seen.tree.size} entries"
        + (f", which {len(seen.witnesses)} witnesses hold" if seen.witnesses else "")
    )


def _lines(moment: Moment) -> list[str]:
    between = moment.between
    lines = [
        f"last measured  {_measured_words(moment.before, moment.time)}",
        f"next measured  {_measured_words(moment.after, moment.time)}",
    ]
    parts = []
    if between.boots is not None:
        parts.append(f"{between.boots} restarts" if between.boots != 1 else "1 restart")
    if between.log_grew is not None:
        parts.append(f"{between.log_grew} entries in the device's own log")
    if between.records:
        parts.append(
            "records: " + ", ".join(f"{count} {kind}" for kind, count in sorted(between.records.items()))
        )
    if between.complete:
        parts.append("none left out")
    lines.append(f"between        {'; '.join(parts) or 'nothing'}")
    lines += [
        f"{'':15}{local(body.device_time)} {body.action} {body.outcome}, for {body.performed_by} (record {index})"
        for index, body in between.receipts
    ]
    lines.append(f"at that moment {_quiet_words(moment)}")
    return lines


def _measured_words(measurement: Measurement | None, time: int) -> str:
    if measurement is None:
        return "never"
    times = measurement.times
    at = times.service or times.log
    words = f"{local(at)} by attestation"
    if times.device is not None:
        words += f", {local(times.device)} by the device"
    return f"{words}, {local(times.log)} by the log ({apart(abs(at - time))} {'before' if at <= time else 'after'})"


def _quiet_words(moment: Moment) -> str:
    subject = f"device/{moment.device}"
    before, after = moment.quiet.before, moment.quiet.after
    if before is None:
        if after is None:
            return "no record of it is shown"
        words = (
            f"nothing was on record about it: its first record (index {after.index}) was taken "
            f"{local(after.leaf.log_time)}"
        )
        return words if moment.quiet.proved else f"NOT PROVED: {words}"
    if after is None:
        return (
            f"its record {before.number(subject)} (index {before.index}, {local(before.leaf.log_time)}) is its newest: "
            "the log's word, until a census covers it"
        )
    words = (
        f"nothing was recorded between its records {before.number(subject)} ({local(before.leaf.log_time)}) and "
        f"{after.number(subject)} ({local(after.leaf.log_time)})"
    )
    return words if moment.quiet.proved else f"NOT PROVED: {words}"


def apart(ms: int) -> str:
    """A span in words, two units of it."""
    seconds = ms // 1000
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "under 1 s"
