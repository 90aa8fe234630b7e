"""One decision, as values in and values out, in the order of docs/protocol.md ("Who checks what", Policy 1 to 7).

1 size bounds, strict parsing. 2 profile and class. 3 chains, signatures, scope, revocation of who signed; intent and
approvals are judged when they were recorded, the command's signer now. 4 staleness of what is known. 5 effects of
revocations; the device's result joined with its build at this moment. 6 parameters and limits, the build or baseline.
7 the question for Rego. Then the decision and the document that it rests on, which the service signs and records (8).

Everything that 2 and 4 to 7 find is told together; what 3 finds is told alone. Deliberately not checked: the nonce and
the secure facts of the device, which it checks itself, and class S1, which never asks policy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vigil.core.certificates import Identity
from vigil.core.classes import RULES, permits_action, permits_install
from vigil.core.commands import (
    check_command,
    check_intent,
    check_parameters,
    check_recorded,
    find_action,
    person_of,
)
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Answer,
    Baseline,
    BaselineKind,
    Command,
    Decision,
    Effect,
    Mode,
    Obligation,
    ParameterType,
    RefusalReason,
    Release,
    RevocationEffect,
    Scope,
)
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason, Refused
from vigil.policy.case import Installable, Item, Judgement, Parties, Signed, View
from vigil.policy.question import STATES, no_lower, question
from vigil.policy.sentences import Finding, found

NOW_LIFETIME_MS: Final = 60_000
"""A permit for now is applied within a minute of its decision, or not at all."""

_INSTALLED: Final[Mapping[Effect, BaselineKind]] = {
    Effect.INSTALL_BASELINE: BaselineKind.CONFIGURATION,
    Effect.INSTALL_LIBRARY: BaselineKind.DRUG_LIBRARY,
}


def judge(item: Item, view: View) -> Judgement:
    """Policy checks 2 to 6, and the question for 7."""
    judgement = Judgement()
    try:
        parties = _authenticate(item, view, judgement)  # 3, told alone
    except Refused as refusal:
        judgement.take(refusal.refusals, "vigil.policy.authenticated")
        return judgement
    action = _find_action(item, view, judgement)  # 2
    if action is None:
        return judgement
    _check_staleness(action, view, judgement)  # 4
    staged = item.intent.body.mode is not Mode.NOW or action.action_class is ActionClass.U
    refusals = check_intent(item.intent, at=view.now)
    if staged:  # The device waits for `not_before` itself.
        refusals = [refusal for refusal in refusals if refusal.reason is not Reason.OUTSIDE_WINDOW]
    judgement.take(refusals, "vigil.policy.intent_in_time")
    judgement.take(check_parameters(action, item.intent.body.parameters), "vigil.policy.parameters")  # 6
    _check_target(item, action, view, judgement)  # 6
    _check_restrictions(item, action, view, judgement)  # 5
    judgement.question = question(item, parties, action, view, judgement)
    return judgement


# --- 2: profile and class


def _find_action(item: Item, view: View, judgement: Judgement) -> ActionSpec | None:
    rule = "vigil.policy.profile_known"
    if view.profile is None:
        age = view.ages.get("release", math.inf)
        if age > RULES[ActionClass.R].facts_age_s:  # type: ignore[operator]  # class R has a bound
            judgement.findings.append(found(Reason.REPLICA_STALE, rule, {"replicas": "release"}))
        else:
            judgement.findings.append(found(Reason.ACTION_UNKNOWN, rule, {"model": view.device.model}))
        return None
    if view.revocations.signer_refusal(view.profile.signer, at=view.now) is not None:
        judgement.findings.append(
            found(Reason.SIGNER_REVOKED, "vigil.policy.profile_signer", {"statement": "profile"})
        )
        return None
    try:
        action = find_action(view.profile.statement.body, item.intent.body.action)
    except Refused as refusal:
        judgement.take(refusal.refusals, "vigil.policy.action_known")
        return None
    judgement.action = action
    if action.action_class is ActionClass.S1:
        # Classes, S1: never asks policy; an answer given by mistake must be no.
        judgement.findings.append(found(Reason.POLICY_DENIED, "vigil.command.class_known"))
        return None
    return action


# --- 3: chains, signatures, scope, revocation of those who signed


def _authenticate(item: Item, view: View, judgement: Judgement) -> Parties:
    times = _recorded_times(item, view)
    judgement.times = times
    intent, command = item.intent, item.command
    requester = _person(intent, view, judgement, recorded_at=times[0] if times else None)
    _require_scope(requester, view)
    executor = requester
    if command is not None:
        executor = _person(command, view, judgement, recorded_at=None)
        _require_scope(executor, view)
        refusals = check_command(
            command, intent, signer=executor, requester=requester, device_id=item.device_id
        )
        if refusals:
            raise Refused(refusals)
    approvers = []
    for place, approval in enumerate(item.approvals, start=1):
        recorded_at = times[place] if times else None
        person = _person(approval, view, judgement, recorded_at=recorded_at)
        body = approval.body
        counts = (
            body.intent == intent.digest
            and view.now < min(body.expires, intent.body.expires)
            and person.covers_site(view.device.organization, view.device.site)
        )
        if counts:
            approvers.append(person)
    return Parties(requester, executor, tuple(approvers))


def _recorded_times(item: Item, view: View) -> tuple[int, ...]:
    """When intent and approvals were recorded (ms); empty when they are not. Raises NOT_RECORDED, SIGNER_REVOKED."""
    times = []
    digests = [item.intent.digest, *(approval.digest for approval in item.approvals)]
    for proof, digest in zip(item.proofs, digests, strict=False):
        recorded, signer = check_recorded(proof, digest, view.verifier)
        if view.revocations.signer_refusal(signer, at=view.now) is not None:
            raise Refused(
                [found(Reason.SIGNER_REVOKED, "vigil.policy.recorder", {"statement": "recorded"}).refusal]
            )
        times.append(recorded.body.time)
    return tuple(times)


def _person(
    statement: Statement[Any], view: View, judgement: Judgement, *, recorded_at: int | None
) -> Identity:
    at = view.now if recorded_at is None else min(recorded_at, view.now)
    person = person_of(statement, view.verifier, at=at)
    judgement.signed.append(Signed(statement, person))
    # Compromise voids what was signed before; leaving only what is not on record from before it.
    if view.revocations.voids(person, recorded_at=recorded_at, at=view.now):
        raise Refused(
            [found(Reason.CREDENTIAL_REVOKED, "vigil.policy.credential", {"person": person.id}).refusal]
        )
    return person


def _require_scope(person: Identity, view: View) -> None:
    if not person.covers_site(view.device.organization, view.device.site):
        raise Refused([found(Reason.NOT_IN_SCOPE, "vigil.policy.in_scope").refusal])


# --- 4: staleness


def _check_staleness(action: ActionSpec, view: View, judgement: Judgement) -> None:
    """Every replica inside its bound for this class; all that are not are named."""
    rules = RULES[action.action_class]
    stale = [
        name
        for name, age in sorted(view.ages.items())
        if (bound := rules.revocation_age_s if name == "revocation" else rules.facts_age_s) is not None
        and not age <= bound
    ]
    if stale:
        judgement.findings.append(
            found(Reason.REPLICA_STALE, "vigil.policy.replicas_fresh", {"replicas": ", ".join(stale)})
        )


# --- 5: effects of revocations


def _check_restrictions(item: Item, action: ActionSpec, view: View, judgement: Judgement) -> None:
    """The table effect x class for what the device is and runs (docs/protocol.md, Effects of a revocation)."""
    effect_of, now = view.revocations.effect, view.now
    result = None if view.result is None else view.result.statement.body
    cures = judgement.target is not None and not any(
        finding.reason in (Reason.FIRMWARE_REVOKED, Reason.FIRMWARE_ROLLBACK, Reason.OUTSIDE_WINDOW)
        for finding in judgement.findings
    )
    update = cures and action.effect is Effect.UPDATE
    device = effect_of(Scope.DEVICE, item.device_id, at=now)
    if not permits_action(device, action.action_class, curative=update, recovery=action.recovery):
        banned = device is RevocationEffect.DENY
        judgement.findings.append(
            found(
                Reason.DEVICE_REVOKED if banned else Reason.DEVICE_QUARANTINED,
                "vigil.policy.device_effect",
                {"state": STATES.get(device, str(device)) if device else ""},
            )
        )
    if result is None:
        return
    running = result.measurements
    build = effect_of(Scope.BUILD, running.firmware.hex(), at=now)
    if not permits_action(build, action.action_class, curative=update, recovery=action.recovery):
        judgement.findings.append(
            found(Reason.FIRMWARE_REVOKED, "vigil.policy.build_effect", {"effect": str(build)})
        )
    for name, digest in (("configuration", running.configuration), ("drug library", running.library)):
        effect = effect_of(Scope.BASELINE, digest.hex(), at=now)
        if not permits_action(effect, action.action_class, curative=cures, recovery=action.recovery):
            values = {"name": name, "effect": str(effect)}
            judgement.findings.append(
                found(Reason.FIRMWARE_REVOKED, "vigil.policy.baseline_in_force", values)
            )


# --- 6: what is to be installed


def _check_target(item: Item, action: ActionSpec, view: View, judgement: Judgement) -> None:
    """A published build or baseline, for this device, by an unrevoked signer, itself not revoked."""
    if action.effect is not Effect.UPDATE and action.effect not in _INSTALLED:
        return
    names = [spec.name for spec in action.parameters if spec.type is ParameterType.DIGEST]
    digest = item.intent.body.parameters.get(names[0]) if names else None
    if not isinstance(digest, bytes):
        judgement.findings.append(found(Reason.PARAMETER_INVALID, "vigil.policy.installation_named"))
        return
    target = view.installable(digest)
    if target is None or not _belongs(target.statement.body, view):
        judgement.findings.append(
            found(Reason.PARAMETER_INVALID, "vigil.policy.installation_known", {"digest": digest.hex()})
        )
        return
    body = target.statement.body
    models = (body.model,) if isinstance(body, Release) else body.models
    kind = None if isinstance(body, Release) else body.baseline_kind
    if view.device.model not in models or kind is not _INSTALLED.get(action.effect):
        judgement.findings.append(
            found(Reason.PROFILE_MISMATCH, "vigil.policy.installation_fits", {"model": view.device.model})
        )
        return
    judgement.target = target
    if view.revocations.signer_refusal(target.signer, at=view.now) is Reason.SIGNER_REVOKED:
        values = {"statement": "release"}
        judgement.findings.append(found(Reason.SIGNER_REVOKED, "vigil.policy.target_signer", values))
    if isinstance(body, Baseline):
        _check_baseline(body, target, view, judgement)
    scope = Scope.BUILD if isinstance(body, Release) else Scope.BASELINE
    effect = view.revocations.effect(scope, digest.hex(), at=view.now)
    if not permits_install(effect):
        judgement.findings.append(
            found(Reason.FIRMWARE_REVOKED, "vigil.command.target_unrevoked", {"effect": str(effect)})
        )
    if isinstance(body, Release) and not no_lower(body, view):
        judgement.findings.append(found(Reason.FIRMWARE_ROLLBACK, "vigil.policy.security_version"))


def _check_baseline(body: Baseline, target: Installable, view: View, judgement: Judgement) -> None:
    if not body.valid_from <= view.now < body.valid_to:
        judgement.findings.append(found(Reason.OUTSIDE_WINDOW, "vigil.policy.baseline_valid"))
    # A baseline outlives its signer's credential: judged when it was published.
    if view.revocations.voids(target.signer, recorded_at=target.recorded_at, at=view.now):
        values = {"person": target.signer.id}
        judgement.findings.append(found(Reason.CREDENTIAL_REVOKED, "vigil.policy.target_signer", values))


def _belongs(body: Release | Baseline, view: View) -> bool:
    """A baseline is its own site's; another site's looks like one that was never published."""
    return isinstance(body, Release) or (body.organization, body.site) == (
        view.device.organization,
        view.device.site,
    )


# --- 8: the decision


def refusal_of(findings: Sequence[Finding]) -> Refused:
    """What the caller is told: most fundamental first, authentication and scope alone."""
    return Refused([finding.refusal for finding in findings])


def decide(
    item: Item,
    command: Statement[Command],
    view: View,
    judgement: Judgement,
    *,
    findings: Sequence[Finding],
    obligations: Sequence[Obligation],
    input_digest: bytes,
    revision: str,
) -> Decision:
    """The body of the signed decision: an allow exactly when nothing was found against it."""
    action_class = None if judgement.action is None else judgement.action.action_class
    if findings or judgement.question is None or view.profile is None:
        kept = {refusal.reason for refusal in refusal_of(findings).refusals}
        return Decision(
            command=command.digest,
            intent=item.intent.digest,
            device=item.device_id,
            answer=Answer.REFUSE,
            input=input_digest,
            bundle=revision,
            decided_at=view.now,
            action_class=action_class,
            reasons=tuple(
                RefusalReason(str(one.reason), one.rule, dict(one.refusal.values))
                for one in findings
                if one.reason in kept
            ),
        )
    result = None if view.result is None else view.result.statement.body
    staged = any(obligation.kind == "stage" for obligation in obligations)
    ends = [item.intent.body.expires, *(approval.body.expires for approval in item.approvals)]
    if item.intent.body.mode is Mode.NOW and not staged:
        ends.append(view.now + NOW_LIFETIME_MS)
    return Decision(
        command=command.digest,
        intent=item.intent.digest,
        device=item.device_id,
        answer=Answer.ALLOW,
        input=input_digest,
        bundle=revision,
        decided_at=view.now,
        action_class=action_class,
        nonce=command.body.nonce,
        profile=view.profile.statement.digest,
        boot_count=None if result is None else result.boot_count,
        log_size=None if result is None else result.log_size,
        epoch=view.revocations.state.epoch,
        era=view.revocations.state.era,
        obligations=tuple(obligations),
        mode="online",
        apply_not_after=min(ends),
    )
