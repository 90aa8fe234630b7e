"""`vigil evidence history`: a subject's records in words, with when each happened, and where nothing did.

The log's order is kept. Times stand in the reader's own zone, with its offset.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.logbook import answers_another, entry_value
from vigil.cli.messages import instant
from vigil.cli.moment import apart, device_id_of, local, read_moment
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED
from vigil.cli.session import PAGE, Session
from vigil.core.statements.envelope import read_any
from vigil.errors import Refused
from vigil.verify import decode_leaf

_HEX: Final = {
    "request": "request_id",
    **{name: name for name in ("intent", "command", "decision", "evidence", "revocation", "body")},
}
GAP_MS: Final = 3_600_000
"""A pause that is told; and every one in which a device's trust went stale."""
LATE_MS: Final = 60_000
"""What the log took so much later than it happened is told with both times."""
_TIMES: Final = ("appraised_at", "decided_at", "device_time")

Says = Mapping[str, Any]


async def show_history(
    session: Session, name: str, *, kinds: list[str], since: str, until: str, page: str, limit: int
) -> int:
    """A subject's records; exit 3 when a signature among them does not hold."""
    subject = name if "/" in name else f"device/{await device_id_of(session, name)}"
    now = session.clock.now()
    request = pb.ListHistoryRequest(
        subject=subject,
        kinds=kinds,
        from_ms=read_moment(since, now=now) if since else 0,
        to_ms=read_moment(until, now=now) if until else 0,
        page_token=page,
    )
    if request.to_ms and request.from_ms > request.to_ms:
        raise UsageError("--to lies before --from")
    entries, following = await _entries(session, request, limit)
    rows = [{**entry_value(session, entry), "number": _number(entry, subject)} for entry in entries]
    _check_order(rows, subject)
    _tell(rows, entries)
    if session.output.json:
        session.output.value({"records": rows, "subject": subject, "next": following})
    else:
        _draw(session, rows, entries)
        if following:
            session.output.say(f"there is more: --page {following}")
    return DONE if all(row["verified"] is not False for row in rows) else REFUSED


async def find_records(session: Session, text: str, *, since: str, until: str, page: str, limit: int) -> int:
    """Records by what they refer to, or by kind; exit 3 when a signature among them does not hold."""
    request = wanted(text)
    now = session.clock.now()
    request.from_ms = read_moment(since, now=now) if since else 0
    request.to_ms = read_moment(until, now=now) if until else 0
    request.page_token = page
    found: list[pb.Entry] = []
    while True:
        request.page_size = min(PAGE, limit - len(found))
        response = await session.call("evidence", session.evidence.FindRecords, request)
        found.extend(response.entries)
        request.page_token = response.next_page_token
        if not request.page_token or len(found) >= limit:
            break
    rows = [{**entry_value(session, one), "happened": instant(happened(one)), "words": ""} for one in found]
    for row in rows:
        row["words"] = words(row)
    value = {"records": rows, "covered": response.covered, "next": request.page_token}
    if session.output.json:
        session.output.value(value)
    else:
        _draw(session, [{**row, "gap_s": None} for row in rows], found)
        if request.page_token:
            session.output.say(f"there is more: --page {request.page_token}")
    return DONE if all(row["verified"] is not False for row in rows) else REFUSED


def wanted(text: str) -> pb.FindRecordsRequest:
    """Read `what=value`. Raises UsageError."""
    what, _, value = text.partition("=")
    if what == "kind" and value:
        return pb.FindRecordsRequest(kind=value)
    if what == "epoch" and value.isascii() and value.isdecimal() and len(value) < 19:
        return pb.FindRecordsRequest(epoch=int(value))
    if what not in _HEX:
        raise UsageError(f"{text!r} is none of {', '.join(sorted(_HEX))}, epoch or kind, with = and a value")
    try:
        data = bytes.fromhex(value.replace("-", "") if what == "request" else value)
    except ValueError:
        raise UsageError(f"{value!r} is not hexadecimal") from None
    request = pb.FindRecordsRequest()
    setattr(request, _HEX[what], data)
    return request


async def _entries(
    session: Session, request: pb.ListHistoryRequest, limit: int
) -> tuple[list[pb.Entry], str]:
    """At most so many, and where the next ones begin."""
    found: list[pb.Entry] = []
    while True:
        request.page_size = min(PAGE, limit - len(found))
        response = await session.call("evidence", session.evidence.ListHistory, request)
        found.extend(response.entries)
        request.page_token = response.next_page_token
        if not request.page_token or len(found) >= limit:
            return found, request.page_token


def _tell(rows: Sequence[dict[str, Any]], entries: Sequence[pb.Entry]) -> None:
    """Add to each record what happened in words, when, and how long nothing had been recorded before it."""
    last, stale = None, None
    for row, entry in zip(rows, entries, strict=True):
        taken = decode_leaf(entry.leaf).log_time
        at = happened(entry)
        pause = 0 if last is None else taken - last
        gap = last is not None and (pause >= GAP_MS or (stale is not None and last < stale < taken))
        row["happened"] = instant(at)
        row["words"] = words(row)
        row["gap_s"] = pause // 1000 if gap else None
        last = taken
        if row["kind"] == "result" and row["says"] is not None:
            stale = row["says"].get("stale_at")


def happened(entry: pb.Entry) -> int:
    """When it happened, by its signer's clock (ms); never later than the log took it."""
    taken = decode_leaf(entry.leaf).log_time
    if not entry.statement:
        return taken
    try:
        statement = read_any(entry.statement)
    except Refused:
        return taken
    named = [getattr(statement.body, name, None) for name in _TIMES]
    said = next((one for one in named if isinstance(one, int)), statement.issued_at * 1000)
    return min(said, taken)


def _draw(session: Session, rows: Sequence[Mapping[str, Any]], entries: Sequence[pb.Entry]) -> None:
    if not rows:
        session.output.say("nothing is on record there")
        return
    shown: list[tuple[object, ...]] = []
    for row, entry in zip(rows, entries, strict=True):
        if row["gap_s"] is not None:
            shown.append(("", f"... nothing recorded for {apart(row['gap_s'] * 1000)} ...", "", "", ""))
        taken, at = decode_leaf(entry.leaf).log_time, happened(entry)
        text = row["words"]
        if taken - at >= LATE_MS:
            text += f" (the log took it {apart(taken - at)} later, {local(taken)})"
        shown.append((local(at), text, row["signed_by"], row["index"], row["verified"]))
    session.output.table(["when", "what", "signed by", "record", "verified"], shown)


def _check_order(rows: Sequence[Mapping[str, Any]], subject: str) -> None:
    """Each record is about the subject, and none stands twice or before an earlier one. Raises NOT_RECORDED.

    Some may be missing: those of other kinds, and what is not in one's scope.
    """
    last = (0, -1)
    for row in rows:
        place = row["number"], row["index"]
        if place[0] <= last[0] or place[1] <= last[1]:
            raise answers_another(f"the records of {subject} in their order")
        last = place


def _number(entry: pb.Entry, subject: str) -> int:
    links = decode_leaf(entry.leaf).subjects
    return next((one.number for one in links if one.subject == subject), 0)


# --- in words


def words(row: Mapping[str, Any]) -> str:
    """What a record says, in words; its kind and what it names where there are none for it."""
    says, erased = row["says"], row["erased"]
    if says is None:
        if erased:
            return f"{row['kind']}, erased {erased['time']}: {erased['reason']}"
        return f"{row['kind']}, whose statement is missing"
    told = _WORDS.get(row["kind"])
    return told(says) if told is not None else f"{row['kind']} {_named(says)}".rstrip()


def _named(says: Says) -> str:
    keep = ("action", "outcome", "reason", "answer", "status", "model", "version", "effect", "scope", "name")
    return " ".join(str(says[name]) for name in keep if says.get(name))


def _evidence(says: Says) -> str:
    version = " ".join(says["swversion"])
    return f"measured: {says['swname']} {version}, start {says['bootcount']}, its log {says['log']['size']}"


def _result(says: Says) -> str:
    reasons = f" ({', '.join(says['reasons'])})" if says["reasons"] else ""
    return f"appraised {says['status']}{reasons}, {says['basis']}"


def _intent(says: Says) -> str:
    parameters = ", ".join(f"{name} = {value}" for name, value in says["parameters"].items())
    return f"wanted: {says['action']}{f' ({parameters})' if parameters else ''}"


def _decision(says: Says) -> str:
    if says["answer"] == "allow":
        return f"allowed (class {says.get('action_class', '?')}) under policy {says['bundle']}"
    reasons = ", ".join(one["reason"] for one in says["reasons"])
    return f"refused under policy {says['bundle']}: {reasons}"


def _receipt(says: Says) -> str:
    reason = f": {says['reason']}" if says.get("reason") else ""
    return f"{says['action']} {says['outcome']}{reason}, for {says['performed_by']}"


def _hold(says: Says) -> str:
    return f"{'held' if says['action'] == 'place' else 'hold lifted'}: {says['reason']}"


def _revocation(says: Says) -> str:
    return f"revoked ({says['effect']}): {says['scope']} {', '.join(says['ids'][:3])}, {says['reason']}"


def _reinstatement(says: Says) -> str:
    return f"reinstated: {says['scope']} {', '.join(says['ids'][:3])}: {says['reason']}"


_WORDS: Final[Mapping[str, Callable[[Says], str]]] = {
    "evidence": _evidence,
    "result": _result,
    "intent": _intent,
    "approval": lambda says: f"approved: {says['meaning']}",
    "command": lambda _: "commanded, bound to its nonce",
    "decision": _decision,
    "receipt": _receipt,
    "hold": _hold,
    "revocation": _revocation,
    "reinstatement": _reinstatement,
    "voucher": lambda says: f"enrolled: {says['model']} {says['udi']}",
    "release": lambda says: f"released: {says['model']} {says['version']}",
}
