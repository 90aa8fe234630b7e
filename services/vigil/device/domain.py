"""The device's own judgement of a command: bytes and what the device knows in, an admission or a refusal out.

The checks are those of docs/protocol.md, "Device", in that order and beside their numbers:

1. `read_bundle`: bounds and strict parsing;
2. the nonce: the caller takes it out of its book before it calls `authenticate`, which gets what became of it;
3. `authenticate`: chains, roles, site, revocation and signatures of requester, executor and approvers;
4. `admit`: the journal: this request id is known with this intent, or with another one;
5. permit and its record, epoch, boot and log (not for class S1);
6. approvals as the profile demands;
7. profile, limits, therapy state, hold, revocations of what the device is and installs (`checks`).

`judge_staged` repeats revocation, site, 6 and 7 for a command that is applied later. Nothing here does I/O, reads a
clock or changes anything. Deliberately not checked: work order and maintenance window, which are policy's to judge.
"""

import hmac
from collections.abc import Sequence
from dataclasses import replace

from vigil.core.certificates import Identity, Kind
from vigil.core.classes import OWN_CHALLENGE_S, RULES, SAFETY_GRACE_MS
from vigil.core.commands import (
    check_command,
    check_intent,
    check_recorded,
    count_approvals,
    find_action,
    person_of,
    said_by_nonce,
)
from vigil.core.profiles import LEAST_APPROVALS
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Answer,
    Approval,
    Baseline,
    Command,
    Decision,
    Downgrade,
    Effect,
    Intent,
    Mode,
    Recorded,
    Release,
)
from vigil.core.statements.envelope import Statement, StatementKind, check, kind_of, read
from vigil.device import checks
from vigil.device.facts import Admission, Bundle, Parties, ReadBundle, Replay, Target, View
from vigil.errors import Reason, Refusal, Refused, refused

MAX_APPROVALS = 8
"""As the profile's own bound of approvals."""
MAX_PATH = 64
"""Levels of a Merkle path: no log has more leaves than 2^64."""

ROLES_OF = {
    ActionClass.S1: ("safety", "technician", "approver", "recall"),
    ActionClass.R: ("technician", "approver", "safety", "auditor", "recall"),
    ActionClass.C: ("technician",),
    ActionClass.U: ("technician",),
    ActionClass.T: ("technician",),
    ActionClass.D: ("technician", "approver"),
}
"""Roles that may request (COMMANDS, Classes); a recovery out of quarantine is open to those of S1 as well."""

OBLIGATIONS = frozenset({"stage", "show_attestation", "review"})
"""What a permit may oblige somebody to. A device that meets another obligation cannot fulfil it and refuses."""

_SIGNER = frozenset({Kind.SIGNER})
_LEADING_OUT = frozenset({Effect.RELEASE_QUARANTINE, Effect.LIFT_HOLD})


def read_bundle(bundle: Bundle) -> ReadBundle:
    """Device check 1: bounds, strict parsing. Raises STATEMENT_MALFORMED."""
    if len(bundle.approvals) > MAX_APPROVALS:
        raise _malformed(f"a bundle carries at most {MAX_APPROVALS} approvals")
    if len(bundle.statements_recorded) > 1 + len(bundle.approvals):
        raise _malformed("a bundle carries more proofs than statements")
    proofs = [*bundle.statements_recorded, *([bundle.permit_recorded] if bundle.permit_recorded else [])]
    if any(len(proof.path) > MAX_PATH for proof in proofs):
        raise _malformed("a proof's path is longer than any log is deep")
    release, baseline = None, None
    if bundle.release:
        if kind_of(bundle.release) is StatementKind.BASELINE:
            baseline = read(bundle.release, Baseline)
        else:
            release = read(bundle.release, Release)
    return ReadBundle(
        bundle=bundle,
        intent=read(bundle.intent, Intent),
        command=read(bundle.command, Command),
        approvals=tuple(read(data, Approval) for data in bundle.approvals),
        permit=read(bundle.permit, Decision) if bundle.permit else None,
        release=release,
        baseline=baseline,
        downgrade=read(bundle.downgrade, Downgrade) if bundle.downgrade else None,
    )


def judge_bundle(
    read_one: ReadBundle, view: View, *, nonce: Refusal | None, known_intent: bytes | None
) -> Admission | Replay:
    """Checks 2 to 7 in their order.

    ``nonce``: what is wrong with it, if anything; ``known_intent``: digest that the journal has for the request id.
    """
    parties = authenticate(read_one, view, nonce=nonce)
    return admit(read_one, parties, view, known_intent=known_intent)


def authenticate(read_one: ReadBundle, view: View, *, nonce: Refusal | None) -> Parties:
    """Device checks 2 and 3. Raises the refusal, one alone."""
    # Device check 2: its own nonce, for this credential, alive, unused. It is used up already, whatever it was.
    if nonce is not None:
        raise Refused([nonce])
    # Device check 3: chains, roles, site, revocation and signatures of requester, executor and approvers.
    intent, command = read_one.intent, read_one.command
    spec = next((one for one in view.profile.body.actions if one.name == intent.body.action), None)
    safety = spec is not None and spec.action_class is ActionClass.S1
    times, recorders, not_recorded = _recorded_times(read_one, view, safety=safety)
    requester = _in_scope(_person(intent, view, at=times[0], safety=safety), view)
    executor = requester
    if command.signer != intent.signer:
        executor = _in_scope(_person(command, view, at=view.now, safety=safety), view)
    else:
        person_of(command, view.verifier, at=view.now, grace=safety)
    approvals = tuple(
        (approval, _person(approval, view, at=at, safety=safety), at)
        for approval, at in zip(read_one.approvals, times[1:], strict=True)
    )
    _raise(check_command(command, intent, signer=executor, requester=requester, device_id=view.device_id))
    spec = find_action(view.profile.body, intent.body.action)
    roles = ROLES_OF[spec.action_class] + (ROLES_OF[ActionClass.S1] if spec.recovery else ())
    for person in (requester, executor):
        if not person.has_role(*roles):
            raise refused(
                Reason.ROLE_NOT_PERMITTED,
                f"an action of class {spec.action_class} needs one of the roles {', '.join(roles)}",
                lifted_by="a credential with that role",
                who="an administrator",
            )
    return Parties(
        requester=requester,
        executor=executor,
        approvals=approvals,
        intent_at=times[0],
        recorders=recorders,
        not_recorded=not_recorded,
    )


def admit(
    read_one: ReadBundle, parties: Parties, view: View, *, known_intent: bytes | None
) -> Admission | Replay:
    """Device checks 4 to 7. Raises the refusals; those of 6 and 7 together."""
    # Device check 4: its journal. This request id with this intent answers the stored receipt.
    if known_intent is not None:
        if not hmac.compare_digest(known_intent, read_one.intent.digest):
            raise refused(
                Reason.REQUEST_ID_REUSED,
                "this request id belongs to another intent",
                lifted_by="a new request id",
                who="the requester",
            )
        return Replay()
    action = find_action(view.profile.body, read_one.intent.body.action)
    signers = parties.recorders
    permit: Decision | None = None
    if action.action_class is not ActionClass.S1:
        # Device check 5: permit and its record. Class S1 asks no policy.
        permit, permit_signers = _check_permit(read_one, parties, action, view)
        signers = (*signers, *permit_signers)
    target = _target(read_one, action, view)
    staged = _is_staged(read_one.intent.body, action, target, permit)
    admission = Admission(
        read=read_one,
        parties=parties,
        action=action,
        signers=signers if target is None else (*signers, *target.signers),
        target=target,
        staged=staged,
        apply_not_after=_apply_not_after(read_one, permit),
    )
    at = None if said_by_nonce(read_one.intent, action.action_class) else view.now
    refusals = check_intent(read_one.intent, at=at)
    if staged:
        refusals = [refusal for refusal in refusals if refusal.reason is not Reason.OUTSIDE_WINDOW]
    if permit is not None and permit.apply_not_after is not None and view.now >= permit.apply_not_after:
        refusals.append(_too_late())
    _raise(
        refusals
        # Device check 6: approvals as the profile demands.
        + approval_refusals(admission, view, now=view.now)
        # Device check 7: profile: limits, therapy state, hold, revocations; for an update the build itself.
        + checks.profile_refusals(admission, view)
        + checks.circumstance_refusals(admission, view)
    )
    return admission


def approval_refusals(admission: Admission, view: View, *, now: int) -> list[Refusal]:
    """Device check 6; whatever the profile says, no fewer than its class takes, and two to leave a restriction."""
    needed = max(admission.action.approvals, LEAST_APPROVALS.get(admission.action.action_class, 0))
    if admission.action.effect in _LEADING_OUT:
        needed = max(needed, 1)
    return count_approvals(
        admission.read.intent,
        admission.parties.approvals,
        requester=admission.parties.requester,
        organization=view.organization,
        site=view.site,
        needed=needed,
        now=now,
    )


def judge_staged(admission: Admission, view: View, *, head_age_s: float, ready: bool) -> Refusal | None:
    """Later application: None to apply it now, a refusal that says what it waits for. Raises Refused to abandon it.

    ``head_age_s``: since the sending of the device's own newest answered challenge; ``ready``: its artifact is here.
    """
    # At `apply_not_after` it is abandoned, whatever it waits for.
    if view.now >= admission.apply_not_after:
        raise Refused([_too_late()])
    action = find_action(view.profile.body, admission.intent.action)
    if action.action_class is not admission.action.action_class:
        raise refused(
            Reason.PROFILE_MISMATCH, "the profile gives the action another class since it was staged"
        )
    # Limits and states are those of the profile in force now.
    admission = replace(admission, action=action)
    # Revocation and site once more; validity periods are not repeated.
    people = [admission.parties.requester, admission.parties.executor]
    for person in (*people, *(person for _, person, _ in admission.parties.approvals), *admission.signers):
        checks.check_not_revoked(person, view)
    for person in people:
        _in_scope(person, view)
    # Device checks 6 and 7 once more; an approval that counted then counts still, until `apply_not_after`.
    _raise(
        approval_refusals(admission, view, now=admission.parties.intent_at)
        + checks.profile_refusals(admission, view)
    )
    waits = checks.application_wait(admission, view, ready=ready)
    if waits is not None:
        return waits
    if head_age_s > OWN_CHALLENGE_S:
        return Refusal(
            Reason.LEASE_EXPIRED,
            "no head has answered the device's own challenge within 10 s",
            "the device being connected to a gateway that hears of revocations",
            "the operator",
        )
    return None


def restore_admission(
    read_one: ReadBundle, view: View, *, times: Sequence[int], apply_not_after: int
) -> Admission:
    """Take up a staged command after a restart: signatures once more, judged by no clock. Raises Refused."""

    def person(statement: Statement[Intent] | Statement[Command] | Statement[Approval]) -> Identity:
        identity = view.verifier.remember(statement.chain)
        if identity.kind is not Kind.PERSON:
            raise refused(Reason.SIGNATURE_INVALID, f"the {statement.kind} was not signed by a person")
        check(statement, identity)
        return identity

    action = find_action(view.profile.body, read_one.intent.body.action)
    signers: list[Identity] = []
    if read_one.permit is not None:
        signer = view.verifier.remember(read_one.permit.chain)
        check(read_one.permit, signer)
        signers.append(signer)
    # A revocation of who put it on record reaches a staged command after a restart as well.
    proofs = (*read_one.bundle.statements_recorded, read_one.bundle.permit_recorded)
    signers += [
        view.verifier.remember(read(proof.recorded, Recorded).chain) for proof in proofs if proof is not None
    ]
    target = _target(read_one, action, view)
    if target is not None:
        signers += target.signers
    return Admission(
        read=read_one,
        parties=Parties(
            requester=person(read_one.intent),
            executor=person(read_one.command),
            approvals=tuple(
                (approval, person(approval), at)
                for approval, at in zip(read_one.approvals, times[1:], strict=True)
            ),
            intent_at=times[0],
            recorders=(),
            not_recorded=None,
        ),
        action=action,
        signers=tuple(signers),
        target=target,
        staged=True,
        apply_not_after=apply_not_after,
    )


def _recorded_times(
    read_one: ReadBundle, view: View, *, safety: bool
) -> tuple[tuple[int, ...], tuple[Identity, ...], Refused | None]:
    """The instants at which intent and approvals are judged: when they were recorded; class S1, now.

    That they must be on record is check 5's, so a refusal is handed on to it.
    """
    digests = [read_one.intent.digest, *(approval.digest for approval in read_one.approvals)]
    now = (view.now,) * len(digests)
    if safety:
        return now, (), None
    try:
        if len(read_one.bundle.statements_recorded) != len(digests):
            raise refused(Reason.NOT_RECORDED, "there is no proof that intent and approvals are on record")
        times, recorders = [], []
        for proof, digest in zip(read_one.bundle.statements_recorded, digests, strict=True):
            recorded, signer = check_recorded(proof, digest, view.verifier, verified=read_one.commits)
            checks.check_not_revoked(signer, view)
            # Nothing was recorded later than now: log time that once ran ahead ends nobody's credential.
            times.append(min(recorded.body.time, view.now))
            recorders.append(signer)
    except Refused as error:
        return now, (), error
    return tuple(times), tuple(recorders), None


def _person(
    statement: Statement[Intent] | Statement[Command] | Statement[Approval],
    view: View,
    *,
    at: int,
    safety: bool,
) -> Identity:
    person = person_of(statement, view.verifier, at=at, grace=safety)
    # Classes, S1: an expired safety credential is borne for 72 h, and no other one.
    if at > person.operational_until and not (
        person.has_role("safety") and at <= person.operational_until + SAFETY_GRACE_MS
    ):
        raise refused(
            Reason.CERTIFICATE_EXPIRED,
            f"the credential of {person.id} is past its operational end",
            lifted_by="a renewed credential",
            who="its holder",
        )
    checks.check_not_revoked(person, view)
    return person


def _in_scope(person: Identity, view: View) -> Identity:
    if not person.covers_site(view.organization, view.site):
        raise refused(Reason.NOT_IN_SCOPE, "the device stands at a site outside this credential's scope")
    return person


def _check_permit(
    read_one: ReadBundle, parties: Parties, action: ActionSpec, view: View
) -> tuple[Decision, tuple[Identity, ...]]:
    """Device check 5. Raises its refusal."""
    # Certificates carry two ends: past its operational one a device does S1 and renews.
    if view.now > view.operational_until:
        raise refused(
            Reason.CERTIFICATE_EXPIRED,
            "the device's own certificate is past its operational end",
            lifted_by="the device renewing it at its gateway",
            who="the operator",
        )
    if parties.not_recorded is not None:
        raise parties.not_recorded
    body, signers = _check_permit_signers(read_one, view)
    if body.answer is not Answer.ALLOW or body.action_class is not action.action_class:
        raise refused(Reason.POLICY_DENIED, "the decision does not allow this action in its class")
    _check_permit_is_for(body, read_one, view)
    _check_permit_rests_on(body, action, view)
    if any(obligation.kind not in OBLIGATIONS for obligation in body.obligations):
        raise refused(Reason.POLICY_DENIED, "the permit obliges the device to something it does not know")
    # Break-glass: never T, D or a rollback.
    if body.mode == "break-glass" and (
        action.action_class in (ActionClass.T, ActionClass.D) or read_one.downgrade is not None
    ):
        raise refused(
            Reason.POLICY_DENIED, "break-glass reaches no therapy, destroys nothing, rolls nothing back"
        )
    return body, signers


def _check_permit_signers(read_one: ReadBundle, view: View) -> tuple[Decision, tuple[Identity, ...]]:
    """Who signed the permit and who its record: of the right kind, not revoked, and both signatures hold."""
    permit, proof = read_one.permit, read_one.bundle.permit_recorded
    if permit is None or proof is None:
        raise refused(Reason.NOT_RECORDED, "there is no permit, or none that is on record")
    signer = view.verifier.verify(permit.chain, at=view.now, kinds=_SIGNER)
    check(permit, signer)
    checks.check_not_revoked(signer, view)
    _, recorder = check_recorded(proof, permit.digest, view.verifier, verified=read_one.commits)
    checks.check_not_revoked(recorder, view)
    return permit.body, (signer, recorder)


def _check_permit_is_for(body: Decision, read_one: ReadBundle, view: View) -> None:
    """This command, intent, device, nonce, and the profile that the device has."""
    command = read_one.command
    if (
        body.command != command.digest
        or body.intent != read_one.intent.digest
        or body.device != view.device_id
    ):
        raise refused(Reason.SIGNATURE_INVALID, "the permit is for another command, intent or device")
    if body.nonce is None or not hmac.compare_digest(body.nonce, command.body.nonce):
        raise refused(Reason.NONCE_UNKNOWN, "the permit is for another nonce")
    if body.profile != view.profile.digest:
        raise refused(
            Reason.PROFILE_MISMATCH,
            "the decision was taken with another profile than the device's",
            lifted_by="asking again, once the newer profile has reached both",
            who="the requester",
        )


def _check_permit_rests_on(body: Decision, action: ActionSpec, view: View) -> None:
    """What it was decided with is not older than what the device knows, of revocations and of itself."""
    # The permit's epoch is not below the highest head held for more than 8 s; permits move nothing.
    if body.era != view.revocations.era or body.epoch is None or body.epoch < view.held_epoch:
        raise refused(
            Reason.EPOCH_ROLLED_BACK,
            "the decision did not know of revocations that the device knows of",
            lifted_by="asking again",
            who="the requester",
        )
    # Classes C and T: same boot count, and no boot, firmware or configuration leaf since the appraised log size.
    if RULES[action.action_class].bound_to_boot and (
        body.boot_count != view.boot_count or body.log_size is None or body.log_size < view.bound_size
    ):
        raise refused(
            Reason.ATTESTATION_STALE,
            "the device has started or changed since it was appraised",
            lifted_by="asking again: the device attests after every change",
            who="the requester",
        )


def _target(read_one: ReadBundle, action: ActionSpec, view: View) -> Target | None:
    """What is to be installed, with its signature verified (check 7)."""
    if action.effect is Effect.UPDATE:
        return checks.release_target(read_one, action, view)
    if action.effect in (Effect.INSTALL_BASELINE, Effect.INSTALL_LIBRARY):
        return checks.baseline_target(read_one, action, view)
    return None


def _is_staged(intent: Intent, action: ActionSpec, target: Target | None, permit: Decision | None) -> bool:
    if action.action_class in (ActionClass.S1, ActionClass.R, ActionClass.T):
        return False
    obliged = permit is not None and any(obligation.kind == "stage" for obligation in permit.obligations)
    return (
        action.action_class is ActionClass.U or target is not None or obliged or intent.mode is not Mode.NOW
    )


def _apply_not_after(read_one: ReadBundle, permit: Decision | None) -> int:
    ends = [read_one.intent.body.expires, *(approval.body.expires for approval in read_one.approvals)]
    if permit is not None and permit.apply_not_after is not None:
        ends.append(permit.apply_not_after)
    return min(ends)


def _too_late() -> Refusal:
    return Refusal(
        Reason.INTENT_EXPIRED, "the last moment to apply this has passed", "a new intent", "the requester"
    )


def _raise(refusals: list[Refusal]) -> None:
    if refusals:
        raise Refused(refusals)


def _malformed(sentence: str) -> Refused:
    return refused(Reason.STATEMENT_MALFORMED, sentence)
