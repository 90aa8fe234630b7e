"""The facts of a moment, one by one: its value, the record it rests on, by whose clock, and how sure it is.

A fact that no proved record tells of has no value, and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vigil.core.certificates import EVERY
from vigil.core.holds import standing
from vigil.core.moment import REVOCATION_LOG, STEPS, read_step
from vigil.core.statements.bodies import (
    Decision,
    Hold,
    Reinstatement,
    Release,
    Revocation,
    Scope,
    Voucher,
)
from vigil.core.statements.envelope import Statement
from vigil.verify.moment import MEASURED, Measurement, Moment, Seen, Sure

_REINSTATERS: Final = 2
_NOT_MEASURED: Final = "not measured before it"
_NOT_READABLE: Final = "its last measurement is withheld, or was erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact. ``value`` is empty where no record tells it; ``at`` in ms by ``clock``."""

    name: str
    value: str
    index: int | None = None
    at: int | None = None
    clock: str = ""
    sure: str = ""
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def facts_of(moment: Moment) -> tuple[Fact, ...]:
    """Every fact of a device at a moment that has an entry of its own in the answer."""
    return (
        _device(moment),
        *(_measured(moment, name) for name in MEASURED),
        _trust(moment),
        _therapy(moment),
        _custodian(moment),
        _credential(moment),
        _policy(moment),
        _epoch(moment),
        _holds(moment),
        _revocations(moment),
    )


def _nothing(name: str, note: str) -> Fact:
    return Fact(name=name, value="", sure=Sure.NO_EVIDENCE, note=note)


def _unmeasured(moment: Moment, name: str) -> Fact:
    return _nothing(name, _NOT_READABLE if moment.unreadable else _NOT_MEASURED)


def _device(moment: Moment) -> Fact:
    vouchers = moment.of(Voucher)
    if not vouchers:
        return _nothing("device", "its voucher is not on record, or not yours to see")
    seen, statement = vouchers[0]
    body = statement.body
    return Fact(
        name="device",
        value=f"{body.model} {body.udi}",
        index=seen.index,
        at=seen.leaf.log_time,
        clock="log",
        note="enrolled",
        more={"udi": body.udi, "model": body.model},
    )


def _measured(moment: Moment, name: str) -> Fact:
    sure = moment.sure[name]
    if moment.before is None:
        if moment.after is None or moment.unreadable:
            return _unmeasured(moment, name)
        later = getattr(moment.after.result.body.measurements, name).hex()
        return Fact(name=name, value="", sure=sure, note=_NOT_MEASURED, more={"afterwards": later})
    measurement = moment.before
    body = measurement.result.body
    value = getattr(body.measurements, name).hex()
    more: dict[str, Any] = {"digest": value}
    if moment.after is not None:
        more["afterwards"] = getattr(moment.after.result.body.measurements, name).hex()
    text = value
    if name == "firmware":
        text, named = _version(moment, measurement)
        more |= named
    return Fact(
        name=name,
        value=text,
        index=measurement.evidence_index
        if measurement.evidence_index is not None
        else measurement.result_index,
        at=measurement.times.device if measurement.times.device is not None else measurement.times.service,
        clock="device" if measurement.times.device is not None else "attestation",
        sure=sure,
        more=more,
    )


def _version(moment: Moment, measurement: Measurement) -> tuple[str, dict[str, Any]]:
    """The firmware's name as the device signed it, and as the manufacturer released that digest."""
    digest = measurement.result.body.measurements.firmware
    named: dict[str, Any] = {"security_version": measurement.result.body.security_version}
    text = digest.hex()
    if measurement.evidence is not None:
        name, version = measurement.evidence.body.swname, measurement.evidence.body.swversion[0]
        named |= {"name": name, "version": version}
        text = f"{name} {version} ({digest.hex()[:16]})"
    for seen, statement in moment.of(Release):
        if statement.body.firmware == digest:
            named |= {"release": seen.index, "released_as": statement.body.version}
    return text, named


def _trust(moment: Moment) -> Fact:
    if moment.before is None:
        return _unmeasured(moment, "trust")
    body = moment.before.result.body
    fresh = moment.time <= body.stale_at
    return Fact(
        name="trust",
        value=f"{body.status} ({body.basis}{', quarantined' if body.quarantined else ''})",
        index=moment.before.result_index,
        at=body.appraised_at,
        clock="attestation",
        sure="fresh" if fresh else "stale",
        note="" if fresh else "it was stale at that moment: nothing was appraised in time",
        more={
            "status": str(body.status),
            "basis": str(body.basis),
            "vector": dict(body.vector),
            "reasons": list(body.reasons),
            "stale_at": body.stale_at,
            "quarantined": body.quarantined,
        },
    )


def _therapy(moment: Moment) -> Fact:
    if moment.before is None:
        return _unmeasured(moment, "therapy")
    body = moment.before.result.body
    fresh = moment.time <= body.therapy_stale_at
    return Fact(
        name="therapy",
        value=f"{body.therapy.state}, patient {body.therapy.patient}",
        index=moment.before.result_index,
        at=body.therapy.at,
        clock="device",
        sure="fresh" if fresh else "stale",
        more={"state": str(body.therapy.state), "patient": str(body.therapy.patient)},
    )


def _custodian(moment: Moment) -> Fact:
    """Organization and site stand in the device's certificate, under the operator's root; a move reissues it."""
    measurement = moment.before
    if measurement is None or measurement.signer is None:
        return _unmeasured(moment, "custodian")
    signer = measurement.signer
    sites = ", ".join("every site" if site == EVERY else site for site in signer.sites)
    same = moment.after is not None and moment.after.signer is not None
    return Fact(
        name="custodian",
        value=f"{sites} of {signer.organization}",
        index=measurement.evidence_index,
        at=signer.not_before,
        clock="identity",
        sure=_both(
            (signer.organization, signer.sites),
            (moment.after.signer.organization, moment.after.signer.sites)
            if same and moment.after is not None and moment.after.signer is not None
            else None,
        ),
        note="as the certificate says that signed the evidence",
        more={"organization": signer.organization, "sites": list(signer.sites)},
    )


def _credential(moment: Moment) -> Fact:
    measurement = moment.before
    if measurement is None or measurement.signer is None:
        return _unmeasured(moment, "credential")
    signer = measurement.signer
    standing = "valid"
    if moment.time > signer.not_after:
        standing = "expired"
    elif moment.time > signer.operational_until:
        standing = "in grace"
    thumbprint = signer.thumbprint.hex()
    if any(thumbprint in one["ids"] for one in in_force(moment)):
        standing = "revoked"
    return Fact(
        name="credential",
        value=f"{standing} ({thumbprint[:16]})",
        index=measurement.evidence_index,
        at=signer.not_before,
        clock="identity",
        more={
            "thumbprint": thumbprint,
            "standing": standing,
            "not_before": signer.not_before,
            "operational_until": signer.operational_until,
            "not_after": signer.not_after,
        },
    )


def _policy(moment: Moment) -> Fact:
    decisions = [pair for pair in moment.of(Decision) if pair[1].body.device == moment.device]
    before = [pair for pair in decisions if _decided(pair) <= moment.time]
    after = [pair for pair in decisions if _decided(pair) > moment.time]
    if not before:
        return _nothing("policy", "nothing about this device was decided before that moment")
    seen, statement = max(before, key=_decided)
    body = statement.body
    following = min(after, key=_decided)[1].body.bundle if after else None
    return Fact(
        name="policy",
        value=body.bundle,
        index=seen.index,
        at=body.decided_at,
        clock="policy",
        sure=_both(body.bundle, following),
        note="as the last decision about this device before that moment says",
        more={"answer": str(body.answer), "epoch": body.epoch, "era": body.era},
    )


def _decided(pair: tuple[Seen, Statement[Decision]]) -> int:
    return pair[0].own(pair[1].body.decided_at)


def _epoch(moment: Moment) -> Fact:
    """Epochs have no gaps: the step before the moment and the one after it leave room for no other."""
    steps = [
        (one, step)
        for one in moment.seen
        if one.holds and one.leaf.kind in STEPS
        for step in map(read_step, one.bodies)
        if step is not None
    ]
    before = [pair for pair in steps if pair[0].own(pair[1].time) <= moment.time]
    after = [pair for pair in steps if pair[0].own(pair[1].time) > moment.time]
    following = min(step.epoch for _, step in after) if after else None
    if not before:
        known = following == 1
        return Fact(
            name="revocation epoch",
            value="0" if known or not after else "",
            sure=Sure.BRACKETED if known else Sure.LAST_KNOWN,
            note="nothing had been revoked" if known else "no revocation is on record up to that moment",
        )
    seen, step = max(before, key=lambda pair: pair[1].epoch)
    sure = Sure.LAST_KNOWN
    if following is not None:
        sure = Sure.BRACKETED if following == step.epoch + 1 else Sure.CHANGED_BETWEEN
    return Fact(
        name="revocation epoch",
        value=str(step.epoch),
        index=seen.index,
        at=step.time,
        clock="revocation",
        sure=sure,
        more={"next": following},
    )


def _holds(moment: Moment) -> Fact:
    held = holds_at(moment)
    attested = None if moment.before is None else moment.before.result.body.holds
    newest = max((one["index"] for one in held), default=None)
    return Fact(
        name="holds",
        value=str(len(held)),
        index=newest,
        at=max((one["placed"] for one in held), default=None),
        clock="person" if held else "",
        note="" if attested is None else f"the device itself said {attested} when it was last measured",
        more={"holds": held, "attested": attested},
    )


def _revocations(moment: Moment) -> Fact:
    found = in_force(moment)
    return Fact(
        name="revocations",
        value=", ".join(f"{one['effect']} of its {one['scope']} ({one['reason']})" for one in found)
        or "none",
        index=max((one["index"] for one in found), default=None),
        at=max((one["at"] for one in found), default=None),
        clock="person" if found else "",
        more={"revocations": found},
    )


def holds_at(moment: Moment) -> list[dict[str, Any]]:
    """The holds in force: placed by one person, until two have lifted, or its own end."""
    said = [
        (seen, statement)
        for seen, statement in moment.of(Hold)
        if statement.body.device == moment.device and seen.own(statement.issued_at * 1000) <= moment.time
    ]
    held = {hold.digest for hold in standing((statement for _, statement in said), at=moment.time)}
    return [
        {
            "index": seen.index,
            "placed": seen.own(statement.issued_at * 1000),
            "by": statement.issuer,
            "reason": statement.body.reason,
        }
        for seen, statement in said
        if statement.digest in held
    ]


def in_force(moment: Moment) -> list[dict[str, Any]]:
    """The revocations that name the device, what it ran, or its credential, and stood at the moment."""
    names = _names(moment)
    back = _reinstated(moment)
    found = []
    for seen, statement in moment.of(Revocation):
        body = statement.body
        ids = [one for one in body.ids if (body.scope, one) in names]
        ids = [one for one in ids if one not in back.get(statement.digest, frozenset())]
        at = _step_time(seen, statement)
        if (
            _is_step(seen)
            and ids
            and at <= moment.time
            and (body.expires is None or body.expires > moment.time)
        ):
            found.append(
                {
                    "index": seen.index,
                    "at": at,
                    "scope": str(body.scope),
                    "ids": ids,
                    "effect": str(body.effect),
                    "reason": str(body.reason),
                    "by": statement.issuer,
                }
            )
    return found


def _names(moment: Moment) -> set[tuple[Scope, str]]:
    names = {(Scope.DEVICE, moment.device)}
    if moment.before is not None:
        measured = moment.before.result.body.measurements
        names |= {
            (Scope.BUILD, measured.firmware.hex()),
            (Scope.BASELINE, measured.configuration.hex()),
            (Scope.BASELINE, measured.library.hex()),
        }
        if moment.before.signer is not None:
            names.add((Scope.CREDENTIAL, moment.before.signer.thumbprint.hex()))
    return names


def _reinstated(moment: Moment) -> dict[bytes, frozenset[str]]:
    """Which ids two people had taken out of which revocation by then."""
    said: dict[tuple[bytes, tuple[str, ...]], set[str]] = {}
    for seen, statement in moment.of(Reinstatement):
        if _is_step(seen) and _step_time(seen, statement) <= moment.time:
            said.setdefault((statement.body.revocation, statement.body.ids), set()).add(statement.issuer)
    back: dict[bytes, frozenset[str]] = {}
    for (revocation, ids), people in said.items():
        if len(people) >= _REINSTATERS:
            back[revocation] = back.get(revocation, frozenset()) | frozenset(ids)
    return back


def _is_step(seen: Seen) -> bool:
    """Whether the chain of revocations took it: the first word of two people is on record before it counts."""
    return bool(seen.number(REVOCATION_LOG))


def _step_time(seen: Seen, statement: Statement[Any]) -> int:
    """When the chain of revocations took it; when it was signed where that is not known."""
    step = next(filter(None, map(read_step, seen.bodies)), None)
    return seen.own(statement.issued_at * 1000 if step is None else step.time)


def _both(before: object, after: object) -> str:
    if after is None:
        return Sure.LAST_KNOWN
    return Sure.SAME_ON_BOTH_SIDES if before == after else Sure.CHANGED_BETWEEN
