"""What a device was at one moment, worked out from proved records: by the reader, never by the log.

The log picks records (`StateAnswer`); here each is verified, and what it says is put together. What the log might have
left out shows: the device's numbered records between the two measurements come along as a chain of leaves, each naming
the hash of the one before it, the last of them proved; a result in it that is not shown is found.

What stays the log's word: that the record after the last one shown does not exist yet. A census closes that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from vigil.core import cose
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash
from vigil.core.moment import Role
from vigil.core.statements.bodies import Evidence, Receipt, Result
from vigil.core.statements.envelope import Statement, read_any
from vigil.errors import Refused
from vigil.evidence.domain import Leaf, decode_leaf
from vigil.verify.checks import Record, SignedTree, check_statement
from vigil.verify.report import Finding, Property, verify_record

MEASURED: Final = ("firmware", "configuration", "library", "sbom")


class Sure(StrEnum):
    """How sure a measured value is at the moment between two measurements."""

    BRACKETED = "bracketed"  # the same on both sides, and the device did not restart between them
    SAME_ON_BOTH_SIDES = "same-on-both-sides"  # the same on both sides; it restarted between them
    CHANGED_BETWEEN = "changed-between"  # another value afterwards: it changed at some time in between
    LAST_KNOWN = "last-known"  # measured before, and not since
    NOT_YET_MEASURED = "not-yet-measured"  # measured only afterwards
    NO_EVIDENCE = "no-evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """A record with its inclusion path. ``withheld``: somebody else's, its statement not shown."""

    record: Record
    path: tuple[bytes, ...]
    roles: tuple[Role, ...] = ()
    withheld: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StateAnswer:
    """What the log answered about a device at a moment (ms): ``chain`` are leaves from ``first_number`` on."""

    device: str
    time: int
    considered: int
    records: tuple[StateRecord, ...]
    chain: tuple[bytes, ...]
    first_number: int
    newest_number: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A record after its checks. ``statement`` is None where it is withheld, erased, or does not hold."""

    index: int
    leaf: Leaf
    data: bytes  # the leaf's bytes
    bodies: tuple[bytes, ...]
    statement: Statement[Any] | None
    signer: Identity | None
    findings: tuple[Finding, ...]
    roles: tuple[Role, ...]
    withheld: bool

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked failed."""
        return all(one.holds is not False for one in self.findings)

    def own(self, said: int) -> int:
        """A time that it says itself (ms): a clock that stood ahead cannot make it later than the log took it."""
        return min(said, self.leaf.log_time)

    def number(self, subject: str) -> int:
        """Its number among a subject's records; 0 when it is not about it."""
        return next((link.number for link in self.leaf.subjects if link.subject == subject), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instants:
    """When something happened, by each clock that says so (ms); None where that clock says nothing.

    The device's and the gateway's clocks can be wrong; a statement was made before the log took it, and the log's time
    never goes back.
    """

    device: int | None = None
    service: int | None = None
    log: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One appraised evidence: what the device signed, and what attestation made of it."""

    result: Statement[Result]
    evidence: Statement[Evidence] | None
    result_index: int
    evidence_index: int | None
    signer: Identity | None  # the device's certificate at that time
    times: Instants


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """What lies between the two measurements."""

    boots: int | None
    log_grew: int | None  # entries of the device's own measurement log
    receipts: tuple[tuple[int, Receipt], ...]  # index, what was done
    records: Mapping[str, int]  # the device's records in the log by kind
    complete: bool | None  # every record of the device between them was seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Two neighbouring records of the device around the moment, by the log's time: nothing was recorded between."""

    before: Seen | None
    after: Seen | None
    proved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The answer, worked out. ``seen`` are all records, ``findings`` about the whole."""

    device: str
    time: int
    before: Measurement | None
    after: Measurement | None
    between: Between
    quiet: Quiet
    sure: Mapping[str, Sure]
    seen: tuple[Seen, ...]
    findings: tuple[Finding, ...]
    unreadable: bool = False
    """A measurement up to the moment is on record and withheld or erased: what it says is not known."""

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked failed."""
        return all(one.holds for one in self.seen) and all(one.holds is not False for one in self.findings)

    @property
    def evidence(self) -> bool:
        """Whether anything was measured on either side."""
        return self.before is not None or self.after is not None

    def of(self, body: type[Any]) -> list[tuple[Seen, Any]]:
        """The verified statements of one kind, in the order of the log."""
        return [
            (one, one.statement)
            for one in self.seen
            if one.statement is not None and isinstance(one.statement.body, body)
        ]


def work_out(answer: StateAnswer, *, tree: SignedTree, verifier: ChainVerifier) -> Moment:
    """Verify every record, and put together what they say of the moment."""
    seen = tuple(
        _look(one, tree, verifier) for one in sorted(answer.records, key=lambda one: one.record.index)
    )
    subject = f"device/{answer.device}"
    measured = _measurements(seen, answer.device)
    before = max(
        (one for one in measured if _at(one) <= answer.time),
        key=lambda one: (_at(one), one.result_index),
        default=None,
    )
    after = min(
        (one for one in measured if _at(one) > answer.time),
        key=lambda one: (_at(one), one.result_index),
        default=None,
    )
    unread = [one for one in seen if _is_unread(one, subject)]
    complete = _chain(answer, seen, before, after, frozenset(one.leaf.digest for one in unread))
    unreadable = before is None and any(one.leaf.log_time <= answer.time for one in unread)
    return Moment(
        device=answer.device,
        time=answer.time,
        before=before,
        after=after,
        between=_between(answer, seen, before, after, complete=complete.holds),
        quiet=_quiet(answer, seen, subject),
        sure={name: Sure.NO_EVIDENCE if unreadable else _sure(name, before, after) for name in MEASURED},
        seen=seen,
        findings=(complete,),
        unreadable=unreadable,
    )


def _look(one: StateRecord, tree: SignedTree, verifier: ChainVerifier) -> Seen:
    record = one.record
    findings = verify_record(record, inclusion_path=one.path, tree=tree, verifier=verifier)
    leaf = decode_leaf(record.leaf)
    statement, signer = None, None
    if record.statement and all(finding.holds is not False for finding in findings):
        signer = check_statement(record, verifier)
        data = cose.with_chain(record.statement, record.chain) if record.chain else record.statement
        try:
            statement = read_any(data)
        except Refused as refusal:
            # Its signature holds, but this version cannot read what it says.
            sentence = refusal.refusals[0].sentence
            findings = (*findings, Finding(Property.PROVENANCE, None, sentence, record.index))
    named = {sha256(body): body for body in record.bodies}
    bodies = tuple(named[digest] for digest in leaf.bodies if digest in named)
    return Seen(record.index, leaf, record.leaf, bodies, statement, signer, findings, one.roles, one.withheld)


def _measurements(seen: Sequence[Seen], device: str) -> list[Measurement]:
    by_digest = {one.leaf.digest: one for one in seen}
    found = []
    for one in seen:
        statement = one.statement
        if statement is None or not isinstance(statement.body, Result) or statement.body.device != device:
            continue
        source = by_digest.get(statement.body.evidence)
        evidence = source.statement if source is not None and _is_of(source, device) else None
        found.append(
            Measurement(
                result=statement,
                evidence=evidence,
                result_index=one.index,
                evidence_index=None if source is None or evidence is None else source.index,
                signer=None if source is None or evidence is None else source.signer,
                times=Instants(
                    device=None if evidence is None else evidence.issued_at * 1000,
                    service=statement.body.appraised_at,
                    log=one.leaf.log_time,
                ),
            )
        )
    return found


def _is_of(source: Seen, device: str) -> bool:
    """Whether this is evidence that the device itself signed."""
    statement, signer = source.statement, source.signer
    return (
        statement is not None
        and isinstance(statement.body, Evidence)
        and signer is not None
        and signer.id == device
    )


def _is_unread(one: Seen, subject: str) -> bool:
    """Whether this is a proved result of the device of which nothing can be read: withheld, or erased."""
    return one.leaf.kind == "result" and one.statement is None and one.holds and bool(one.number(subject))


def _at(measurement: Measurement) -> int:
    """When it counts as made: when it was appraised, and never later than the log took it."""
    return min(measurement.result.body.appraised_at, measurement.times.log)


def _sure(name: str, before: Measurement | None, after: Measurement | None) -> Sure:
    if before is None:
        return Sure.NO_EVIDENCE if after is None else Sure.NOT_YET_MEASURED
    if after is None:
        return Sure.LAST_KNOWN
    one, other = before.result.body, after.result.body
    if getattr(one.measurements, name) != getattr(other.measurements, name):
        return Sure.CHANGED_BETWEEN
    if one.boot_count != other.boot_count:
        return Sure.SAME_ON_BOTH_SIDES
    return Sure.BRACKETED


# --- what lies between, and whether all of it was shown


def _between(
    answer: StateAnswer,
    seen: Sequence[Seen],
    before: Measurement | None,
    after: Measurement | None,
    *,
    complete: bool | None,
) -> Between:
    boots = grew = None
    if before is not None and after is not None:
        boots = after.result.body.boot_count - before.result.body.boot_count
        grew = after.result.body.log_size - before.result.body.log_size
    since = 0 if before is None else _said_at(before, seen)
    until = None if after is None else after.times.log
    receipts = tuple(
        (one.index, one.statement.body)
        for one in seen
        if one.statement is not None
        and isinstance(one.statement.body, Receipt)
        and one.statement.body.device == answer.device
        and since < one.own(one.statement.body.device_time)
        and (until is None or one.own(one.statement.body.device_time) <= until)
    )
    kinds: dict[str, int] = {}
    for leaf in _inside(answer, before, after):
        kinds[leaf.kind] = kinds.get(leaf.kind, 0) + 1
    return Between(boots=boots, log_grew=grew, receipts=receipts, records=kinds, complete=complete)


def _said_at(measurement: Measurement, seen: Sequence[Seen]) -> int:
    """When the device says to have measured, as the log counts it."""
    source = next((one for one in seen if one.index == measurement.evidence_index), None)
    said = measurement.times.device
    return _at(measurement) if source is None or said is None else source.own(said)


def _inside(answer: StateAnswer, before: Measurement | None, after: Measurement | None) -> Iterable[Leaf]:
    """The device's records after the measurement before and up to the one after, of those that were shown."""
    ours = {one.result.digest for one in (before, after) if one is not None}
    ours |= {one.result.body.evidence for one in (before, after) if one is not None}
    started = before is None
    for data in answer.chain:
        leaf = decode_leaf(data)
        if before is not None and leaf.digest == before.result.digest:
            started = True
        if started and leaf.digest not in ours:
            yield leaf
        if after is not None and leaf.digest == after.result.digest:
            return


def _chain(
    answer: StateAnswer,
    seen: Sequence[Seen],
    before: Measurement | None,
    after: Measurement | None,
    unread: frozenset[bytes],
) -> Finding:
    """Whether the chain of leaves is one, is proved, and shows no measurement that was left out."""
    subject = f"device/{answer.device}"
    if not answer.chain:
        words = "There are more records of the device between the measurements than were shown."
        return Finding(Property.COMPLETENESS, None, words)
    try:
        leaves = [decode_leaf(data) for data in answer.chain]
        trouble = _broken(leaves, answer.chain, subject, answer.first_number)
    except Refused as refusal:
        trouble = refusal.refusals[0].sentence
        leaves = []
    proved = {one.data for one in seen if one.holds}
    if not trouble and answer.chain[-1] not in proved:
        trouble = "the last record of the chain was not proved"
    ends = [one.result.digest for one in (before, after) if one is not None]
    digests = [leaf.digest for leaf in leaves]
    if not trouble and any(digest not in digests for digest in ends):
        trouble = "a measurement is not among the device's records that were shown"
    if not trouble:
        trouble = _left_out(leaves, before, after, unread, first=answer.first_number)
    last = answer.first_number + len(answer.chain) - 1
    if trouble:
        return Finding(Property.COMPLETENESS, False, f"The records of {subject} are not whole: {trouble}.")
    if not unread.isdisjoint(digests):
        words = (
            f"A measurement among records {answer.first_number} to {last} of {subject} cannot be read here:"
        )
        return Finding(Property.COMPLETENESS, None, f"{words} it is withheld, or was erased.")
    words = (
        f"Records {answer.first_number} to {last} of {subject} follow one on the other: none was left out."
    )
    return Finding(Property.COMPLETENESS, True, words)


def _broken(leaves: Sequence[Leaf], chain: Sequence[bytes], subject: str, first: int) -> str:
    for place, leaf in enumerate(leaves):
        link = next((link for link in leaf.subjects if link.subject == subject), None)
        if link is None or link.number != first + place:
            return f"record {first + place} is another's"
        if place and link.previous != leaf_hash(chain[place - 1]):
            return f"record {first + place} follows another one than was shown"
    return ""


def _left_out(
    leaves: Sequence[Leaf],
    before: Measurement | None,
    after: Measurement | None,
    unread: frozenset[bytes],
    *,
    first: int,
) -> str:
    """A result between the two measurements would have been one of them, and so would one before the first shown."""
    digests = [leaf.digest for leaf in leaves]
    if before is None and first != 1 and unread.isdisjoint(digests):
        return f"the {first - 1} before them may hold a measurement"
    start = digests.index(before.result.digest) + 1 if before is not None else 0
    end = digests.index(after.result.digest) if after is not None else len(leaves)
    if any(leaf.kind == "result" and leaf.digest not in unread for leaf in leaves[start:end]):
        return "a measurement between the two was not shown"
    return ""


def _quiet(answer: StateAnswer, seen: Sequence[Seen], subject: str) -> Quiet:
    """The two neighbours around the moment by the log's time, and whether they prove that nothing lies between."""
    numbered = sorted(
        ((one.number(subject), one) for one in seen if one.number(subject) and one.holds),
        key=lambda pair: pair[0],
    )
    earlier = [pair for pair in numbered if pair[1].leaf.log_time <= answer.time]
    later = [pair for pair in numbered if pair[1].leaf.log_time > answer.time]
    before, after = (earlier[-1] if earlier else None), (later[0] if later else None)
    proved = after is not None and (
        after[0] == 1
        if before is None
        else after[0] == before[0] + 1 and _follows(before[1], after[1], subject)
    )
    return Quiet(
        before=None if before is None else before[1], after=None if after is None else after[1], proved=proved
    )


def _follows(one: Seen, other: Seen, subject: str) -> bool:
    return any(
        link.subject == subject and link.previous == leaf_hash(one.data) for link in other.leaf.subjects
    )
