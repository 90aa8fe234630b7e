"""Checks of a command's statements that gateway, policy and device share (docs/protocol.md, "Who checks what").

Everything here is pure: the caller brings verified identities, its clock and what it knows of revocation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vigil.core import merkle
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.classes import MAX_CLOCK_SKEW_MS, MAX_INTENT_LIFETIME_MS
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Approval,
    Command,
    Intent,
    Mode,
    ParameterSpec,
    ParameterType,
    Profile,
    Recorded,
    Result,
)
from vigil.core.statements.envelope import Statement, check, read
from vigil.core.statements.schema import Scalar
from vigil.errors import Reason, Refusal, Refused, refused

MAX_STATEMENT_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class RecordedProof:
    """An item's proof that evidence holds it: one signed commit, and the item's path in it."""

    recorded: bytes
    index: int
    path: tuple[bytes, ...]


def target_root(device_ids: Sequence[str]) -> bytes:
    """The RFC 6962 root over device ids in UTF-8; one pump is a tree of one."""
    return merkle.tree_root([merkle.leaf_hash(device_id.encode()) for device_id in device_ids])


def target_path(device_ids: Sequence[str], device_id: str) -> tuple[int, tuple[bytes, ...]]:
    """Index and path of one device under the target root. Raises NOT_IN_TARGET."""
    if device_id not in device_ids:
        raise refused(Reason.NOT_IN_TARGET, "the intent does not name this device")
    index = list(device_ids).index(device_id)
    leaves = [merkle.leaf_hash(item.encode()) for item in device_ids]
    return index, tuple(merkle.inclusion_path(leaves, index))


def record_leaf(index: int, digest: bytes) -> bytes:
    """The leaf of `recorded`: RFC 6962 leaf hash over index (8 bytes, big endian) and statement digest."""
    return merkle.leaf_hash(index.to_bytes(8, "big") + digest)


Commit = tuple[Statement[Recorded], Identity]
"""One group commit of the log as it was verified, and who signed it."""


def check_recorded(
    proof: RecordedProof,
    digest: bytes,
    verifier: ChainVerifier,
    *,
    verified: dict[bytes, Commit] | None = None,
) -> Commit:
    """A statement is on record: signer made for `recorded`, signature, path. Raises NOT_RECORDED.

    Whether that signer is revoked is the caller's to ask. ``verified``: commits of the same bundle by their bytes, so
    that what several statements share is verified once.
    """
    known = None if verified is None else verified.get(proof.recorded)
    statement, signer = known or _commit(proof.recorded, verifier)
    if verified is not None:
        verified[proof.recorded] = (statement, signer)
    body = statement.body
    included = 0 <= proof.index - body.first < body.count and merkle.verify_inclusion(
        leaf=record_leaf(proof.index, digest),
        index=proof.index - body.first,
        size=body.count,
        path=proof.path,
        root=body.root,
    )
    if not included:
        raise refused(Reason.NOT_RECORDED, "the proof that this is on record is for something else")
    return statement, signer


def _commit(data: bytes, verifier: ChainVerifier) -> Commit:
    try:
        statement = read(data, Recorded)
        at = statement.body.time
        signer = verifier.valid_at(statement.signer, at=at) or verifier.verify(
            statement.chain, at=at, kinds=frozenset({Kind.SIGNER})
        )
        check(statement, signer)
    except Refused as error:
        raise refused(
            Reason.NOT_RECORDED, f"the proof that this is on record does not hold: {error}"
        ) from error
    return statement, signer


def person_of(
    statement: Statement[Any], verifier: ChainVerifier, *, at: int, grace: bool = False
) -> Identity:
    """The person who signed, by the chain that travelled with it and as valid ``at``. Raises the chain's refusal."""
    person = verifier.verify(statement.chain, at=at, kinds=frozenset({Kind.PERSON}), grace=grace)
    check(statement, person)
    return person


def find_action(profile: Profile, name: str) -> ActionSpec:
    """The action's specification. Raises ACTION_UNKNOWN."""
    for action in profile.actions:
        if action.name == name:
            return action
    known = ", ".join(sorted(action.name for action in profile.actions))
    raise refused(
        Reason.ACTION_UNKNOWN,
        f"the model {profile.model} knows no action {name!r}",
        lifted_by=f"one of its actions: {known}",
        action=name,
    )


def said_by_nonce(intent: Statement[Intent], action: ActionClass) -> bool:
    """Whether the nonce alone says when this is meant: class S1, at once, bound by the requester in person.

    The pump gave the nonce out less than five seconds ago by its own monotonic clock, so the requester signs now. A
    wall clock of ours that stands wrong must not be what a safety action fails on (docs/decisions/0018). A named
    executor, or a later time, still needs the clock.
    """
    body = intent.body
    return action is ActionClass.S1 and body.mode is Mode.NOW and body.executor is None


def check_intent(intent: Statement[Intent], *, at: int | None) -> list[Refusal]:
    """Lifetime of an intent, judged ``at`` its recorded time or now (ms); its form alone for None."""
    body = intent.body
    refusals = []
    if body.expires <= body.not_before or body.expires - body.not_before > MAX_INTENT_LIFETIME_MS:
        refusals.append(
            Refusal(Reason.STATEMENT_MALFORMED, "an intent lives longer than nothing and at most a week")
        )
    if at is None:
        return refusals
    if at >= body.expires:
        refusals.append(
            Refusal(Reason.INTENT_EXPIRED, "the intent has expired", "a new intent", "the requester")
        )
    if at + MAX_CLOCK_SKEW_MS < body.not_before:
        refusals.append(
            Refusal(
                Reason.OUTSIDE_WINDOW, "the intent's time has not come", "waiting until then", "the requester"
            )
        )
    return refusals


def check_command(
    command: Statement[Command],
    intent: Statement[Intent],
    *,
    signer: Identity,
    requester: Identity,
    device_id: str,
) -> list[Refusal]:
    """The command belongs to the intent, the device and the one who may bind nonces for it."""
    body = command.body
    if body.intent != intent.digest or body.device != device_id:
        return [Refusal(Reason.NOT_IN_TARGET, "the command names another intent or another device")]
    included = merkle.verify_inclusion(
        leaf=merkle.leaf_hash(body.device.encode()),
        index=body.index,
        size=intent.body.target_count,
        path=body.path,
        root=intent.body.target_root,
    )
    if not included:
        return [Refusal(Reason.NOT_IN_TARGET, "the device does not stand under the intent's target")]
    executor = intent.body.executor
    # COMMANDS, intent: the executor's key alone may bind nonces for it; without one, the requester in person.
    bound = signer.key_thumbprint == executor if executor is not None else signer.id == requester.id
    if not bound:
        return [
            Refusal(
                Reason.SIGNER_NOT_CALLER,
                "only the requester, or the executor it named, may finish this intent",
            )
        ]
    return []


def count_approvals(
    intent: Statement[Intent],
    approvals: Sequence[tuple[Statement[Approval], Identity, int]],
    *,
    requester: Identity,
    organization: str,
    site: str,
    needed: int,
    now: int,
) -> list[Refusal]:
    """Approvals by distinct persons other than the requester, in scope, with the role, unexpired.

    Each approval comes with its verified signer and the instant (ms) at which it is judged.
    """
    distinct: set[str] = set()
    doubled = False
    for approval, person, at in approvals:
        body = approval.body
        if (
            body.intent != intent.digest
            or min(body.expires, intent.body.expires) <= now
            or at >= body.expires
        ):
            continue
        if not person.covers_site(organization, site) or not person.has_role("approver", "safety"):
            continue
        if person.id == requester.id or person.id in distinct:
            doubled = True
            continue
        distinct.add(person.id)
    if len(distinct) >= needed:
        return []
    missing = needed - len(distinct)
    refusals = [
        Refusal(
            Reason.APPROVALS_MISSING,
            f"{missing} more approval{'s' if missing > 1 else ''} needed, {len(distinct)} of {needed} given",
            "`vigil command approve` by another person of the site",
            "an approver",
            {"needed": str(needed), "given": str(len(distinct))},
        )
    ]
    if doubled:
        refusals.append(
            Refusal(
                Reason.APPROVER_NOT_DISTINCT,
                "an approval by the requester, or a second one by the same person, does not count",
                "an approval by somebody else",
                "an approver",
            )
        )
    return refusals


def result_ends(result: Result, profile: Profile, *, now: int) -> tuple[int, int]:
    """When a result and its therapy state lapse (ms): as signed, at most the profile's lifetimes after the appraisal.

    One from the future has lapsed already: whoever holds the verifier's key calls nothing healthy in advance.
    """
    if result.appraised_at > now + MAX_CLOCK_SKEW_MS:
        return 0, 0
    stale = min(result.stale_at, result.appraised_at + profile.attestation_lifetime_s * 1000)
    therapy = min(result.therapy_stale_at, result.appraised_at + profile.therapy_lifetime_s * 1000)
    return stale, min(therapy, stale)


def check_parameters(action: ActionSpec, parameters: Mapping[str, Scalar]) -> list[Refusal]:
    """Names, types and hard limits, in code and before any policy (COMMANDS, Policy 6)."""
    specs = {spec.name: spec for spec in action.parameters}
    refusals = [
        Refusal(
            Reason.PARAMETER_UNKNOWN,
            f"{action.name} takes no parameter {name!r}",
            f"one of: {', '.join(sorted(specs)) or 'none'}",
            "the requester",
            {"parameter": name},
        )
        for name in parameters
        if name not in specs
    ]
    for spec in action.parameters:
        if spec.name in parameters:
            refusals.extend(_check_value(spec, parameters[spec.name]))
        elif spec.required:
            refusals.append(
                Refusal(
                    Reason.PARAMETER_INVALID,
                    f"{action.name} needs the parameter {spec.name}",
                    f"--param {spec.name}=…",
                    "the requester",
                    {"parameter": spec.name},
                )
            )
    return refusals


def _check_value(spec: ParameterSpec, value: Scalar) -> list[Refusal]:
    good = {
        ParameterType.INTEGER: type(value) is int,
        ParameterType.TEXT: type(value) is str,
        ParameterType.CHOICE: type(value) is str and value in spec.choices,
        ParameterType.DIGEST: type(value) is bytes and len(value) == 32,
    }[spec.type]
    if not good:
        choices = f" (one of {', '.join(spec.choices)})" if spec.choices else ""
        return [
            Refusal(
                Reason.PARAMETER_INVALID,
                f"{spec.name} must be a {spec.type}{choices}",
                "a value of that kind",
                "the requester",
                {"parameter": spec.name},
            )
        ]
    if type(value) is int and not (
        (spec.minimum is None or value >= spec.minimum) and (spec.maximum is None or value <= spec.maximum)
    ):
        low, high = (format_scaled(bound, spec) for bound in (spec.minimum, spec.maximum))
        return [
            Refusal(
                Reason.PARAMETER_OUT_OF_RANGE,
                f"{spec.name} = {format_scaled(value, spec)} lies outside the hard limits {low} to {high}",
                "a value inside the limits; the manufacturer alone can change them",
                "the requester",
                {"parameter": spec.name, "minimum": low, "maximum": high},
            )
        ]
    return []


def format_scaled(value: int | None, spec: ParameterSpec) -> str:
    """An integer in scaled units as people write it, with its unit."""
    if value is None:
        return "unbounded"
    sign, digits = ("-" if value < 0 else ""), str(abs(value)).rjust(spec.scale + 1, "0")
    number = digits if spec.scale == 0 else f"{digits[: -spec.scale]}.{digits[-spec.scale :]}"
    return f"{sign}{number}{' ' + spec.unit if spec.unit else ''}"
