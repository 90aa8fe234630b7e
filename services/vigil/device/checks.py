"""Device check 7, pure: the profile's limits, what is revoked, what an installation leads to, the pump's circumstances.

Each function answers refusals, all that apply, so that a person learns everything at once.
"""

from vigil.core.certificates import Identity, Kind
from vigil.core.classes import permits_action, permits_install
from vigil.core.commands import check_parameters, target_root
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    BaselineKind,
    Downgrade,
    Effect,
    ParameterType,
    PatientState,
    Release,
    RevocationEffect,
    Scope,
)
from vigil.core.statements.envelope import Statement, check
from vigil.device.facts import Admission, ReadBundle, Target, View
from vigil.errors import Reason, Refusal, refused

_SIGNER = frozenset({Kind.SIGNER})
_PERSON = frozenset({Kind.PERSON})
_KIND_OF = {
    Effect.INSTALL_BASELINE: BaselineKind.CONFIGURATION,
    Effect.INSTALL_LIBRARY: BaselineKind.DRUG_LIBRARY,
}
_MANUFACTURER = "the manufacturer"
BASELINE_ROLE = "baseline-signer"


def check_not_revoked(identity: Identity, view: View) -> None:
    """Revocation now, of people and of signers, and the root's own list. Raises CREDENTIAL_REVOKED, SIGNER_REVOKED."""
    reason = view.revocations.identity_refusal(identity, at=view.now)
    if reason is None and identity.thumbprint in view.distrusted:
        reason = Reason.SIGNER_REVOKED
    if reason is not None:
        raise refused(
            reason,
            f"the certificate of {identity.kind} {identity.id} is revoked",
            lifted_by="statements by somebody whose certificate is not",
            who="the recall team",
        )


def manufacturer_signer(statement: Statement[Release] | Statement[Downgrade], view: View) -> Identity:
    """Who signed for the manufacturer of this very device, valid when it was signed. Raises its refusal.

    A build outlives the 13 months of the certificate that signed it, so the instant is the statement's own.
    """
    signer = view.verifier.verify(statement.chain, at=statement.issued_at * 1000, kinds=_SIGNER)
    check(statement, signer)
    check_not_revoked(signer, view)
    if signer.organization != view.manufacturer:
        raise refused(Reason.SIGNATURE_INVALID, "another manufacturer than the device's signed this")
    return signer


def release_target(read_one: ReadBundle, action: ActionSpec, view: View) -> Target:
    """Check 7, update: the manufacturer's signature, digest, model. Raises its refusal."""
    release = read_one.release
    if release is None:
        raise refused(Reason.SIGNATURE_INVALID, "an update comes with the manufacturer's signed release")
    signer = manufacturer_signer(release, view)
    body = release.body
    _check_named(read_one, action, body.firmware)
    if body.model != view.profile.body.model:
        raise refused(Reason.PROFILE_MISMATCH, f"the build is for the model {body.model}")
    authoriser = _authoriser(read_one, body, view)
    return Target(
        digest=body.firmware,
        size=body.size,
        signers=(signer,) if authoriser is None else (signer, authoriser),
        release=body,
        authorised=authoriser is not None,
    )


def baseline_target(read_one: ReadBundle, action: ActionSpec, view: View) -> Target:
    """Check 7, baseline and library: the site's signature, digest, site, model, kind, validity. Raises its refusal."""
    baseline = read_one.baseline
    if baseline is None:
        raise refused(Reason.SIGNATURE_INVALID, "an installation comes with a baseline that the site signed")
    body = baseline.body
    # A person's certificate lives for hours and a baseline for months: judged when it was signed.
    signer = view.verifier.verify(baseline.chain, at=baseline.issued_at * 1000, kinds=_PERSON)
    check(baseline, signer)
    check_not_revoked(signer, view)
    if not signer.has_role(BASELINE_ROLE):
        raise refused(
            Reason.ROLE_NOT_PERMITTED, f"a baseline is signed by somebody with the role {BASELINE_ROLE}"
        )
    if (body.organization, body.site) != (view.organization, view.site) or not signer.covers_site(
        view.organization, view.site
    ):
        raise refused(Reason.NOT_IN_SCOPE, "the baseline is another site's")
    _check_named(read_one, action, body.content)
    if view.profile.body.model not in body.models or body.baseline_kind is not _KIND_OF[action.effect]:
        raise refused(Reason.PROFILE_MISMATCH, "the baseline is for other models, or of another kind")
    return Target(digest=body.content, size=body.size, signers=(signer,), baseline=body)


def profile_refusals(admission: Admission, view: View) -> list[Refusal]:
    """Check 7, the part that a later application repeats: limits, revocations, rollback."""
    action, target = admission.action, admission.target
    refusals = check_parameters(action, admission.intent.parameters)
    if action.action_class is ActionClass.T or action.effect is Effect.THERAPY:
        refusals += _therapy_refusals(admission, view)
    if target is not None:
        refusals += _target_refusals(target, view)
    if action.action_class is not ActionClass.S1:
        refusals += _restrictions(action, target, view)
    return refusals


def circumstance_refusals(admission: Admission, view: View) -> list[Refusal]:
    """Check 7, the part about this moment: validity of a baseline, hold, patient and therapy state."""
    action, target = admission.action, admission.target
    refusals = []
    if target is not None and target.baseline is not None:
        body = target.baseline
        if not body.valid_from <= view.now < body.valid_to:
            refusals.append(
                Refusal(
                    Reason.OUTSIDE_WINDOW, "the baseline is not valid now", "a valid baseline", "the site"
                )
            )
    if view.holds and action.action_class in (ActionClass.U, ActionClass.D):
        refusals.append(_held())
    match action.action_class:
        case ActionClass.C if not admission.staged:
            safe = patient_away(view) and view.therapy in action.states
        case ActionClass.D:
            safe = patient_away(view) and (admission.staged or view.therapy in action.states)
        case ActionClass.T:
            safe = view.therapy in action.states
        case _:
            # S1 and R never touch a therapy; U and what is staged are looked at again before they are applied.
            safe = True
    if not safe:
        refusals.append(_connected(view))
    return refusals


def application_wait(admission: Admission, view: View, *, ready: bool) -> Refusal | None:
    """What a staged command still waits for here; None when nothing stands against applying it."""
    if not ready:
        return Refusal(Reason.STATE_CONFLICT, "what it installs is still on its way", "time", "nobody")
    if view.now < admission.intent.not_before:
        return Refusal(Reason.OUTSIDE_WINDOW, "the intent's time has not come", "waiting", "nobody")
    if view.holds:
        return _held()
    if not patient_away(view) or view.therapy not in admission.action.states:
        return _connected(view)
    if admission.action.effect is Effect.UPDATE and not view.on_mains:
        return Refusal(
            Reason.STATE_CONFLICT, "the pump is not on mains", "plugging it in", "somebody at the device"
        )
    return None


def patient_away(view: View) -> bool:
    """Unknown counts as connected."""
    return view.patient is PatientState.DISCONNECTED


def _check_named(read_one: ReadBundle, action: ActionSpec, digest: bytes) -> None:
    """The intent names by digest what is installed; its people signed that digest and no other."""
    names = [spec.name for spec in action.parameters if spec.type is ParameterType.DIGEST]
    if not names or read_one.intent.body.parameters.get(names[0]) != digest:
        raise refused(
            Reason.PARAMETER_INVALID, "the intent names something else than what came to be installed"
        )


def _authoriser(read_one: ReadBundle, release: Release, view: View) -> Identity | None:
    """Who signed a downgrade authorisation that names this build and a population that this device stands in.

    A population is this one device, or the very population of the intent, under whose root the command proved it.
    """
    downgrade, intent = read_one.downgrade, read_one.intent.body
    if downgrade is None:
        return None
    signer = manufacturer_signer(downgrade, view)
    body = downgrade.body
    alone = body.population_count == 1 and body.population_root == target_root([view.device_id])
    same = (body.population_root, body.population_count) == (intent.target_root, intent.target_count)
    named = (body.firmware, body.security_version) == (release.firmware, release.security_version)
    return signer if named and (alone or same) else None


def _therapy_refusals(admission: Admission, view: View) -> list[Refusal]:
    if not admission.action.therapy_enabled:
        return [
            Refusal(
                Reason.THERAPY_NOT_ENABLED,
                "this model lets nobody change a therapy from afar",
                "somebody at the bedside",
                _MANUFACTURER,
            )
        ]
    if not view.bedside_confirmed:
        return [
            Refusal(
                Reason.BEDSIDE_CONFIRMATION_MISSING,
                "a change of therapy is confirmed at the pump itself",
                "pressing confirm at the pump",
                "somebody at the bedside",
            )
        ]
    return []


def _target_refusals(target: Target, view: View) -> list[Refusal]:
    refusals = []
    scope = Scope.BUILD if target.release is not None else Scope.BASELINE
    effect = view.revocations.effect(scope, target.digest.hex(), at=view.now)
    if not permits_install(effect):
        refusals.append(
            Refusal(
                Reason.FIRMWARE_REVOKED,
                f"this {'build' if target.release else 'baseline'} is revoked and not installed any more",
                "a build or baseline that is not revoked",
                "the requester",
                {"digest": target.digest.hex()},
            )
        )
    # Downgrade: a security version below the current one only with the manufacturer's signed authorisation.
    if (
        target.release is not None
        and target.release.security_version < view.security_version
        and not target.authorised
    ):
        refusals.append(
            Refusal(
                Reason.FIRMWARE_ROLLBACK,
                f"the build's security version {target.release.security_version} is below"
                f" {view.security_version}",
                "a downgrade authorisation for this build and device",
                _MANUFACTURER,
            )
        )
    return refusals


def _restrictions(action: ActionSpec, target: Target | None, view: View) -> list[Refusal]:
    """Effects of revocations on what the device is and runs (table effect x class)."""
    effect_of, now = view.revocations.effect, view.now
    curative = target is not None and not _target_refusals(target, view)
    update = curative and action.effect is Effect.UPDATE
    device = effect_of(Scope.DEVICE, view.device_id, at=now)
    quarantine = RevocationEffect.CORRECTIVE_ONLY if view.quarantined else None
    build = effect_of(Scope.BUILD, view.firmware.hex(), at=now)
    restricted = [
        (Reason.DEVICE_REVOKED, "the device is revoked", device, update),
        (Reason.DEVICE_QUARANTINED, "the device is in quarantine", quarantine, update),
        (Reason.FIRMWARE_REVOKED, "the build that the device runs is revoked", build, update),
    ]
    restricted += [
        (
            Reason.FIRMWARE_REVOKED,
            f"the {name} in force is revoked",
            effect_of(Scope.BASELINE, digest.hex(), at=now),
            curative,
        )
        for name, digest in (("configuration", view.configuration), ("drug library", view.library))
    ]
    return [
        Refusal(
            reason,
            f"{sentence}: only safety actions, reading and what leads out of it are allowed",
            "a correction, or its reinstatement by two people",
            "the recall team",
            {"effect": str(effect)},
        )
        for reason, sentence, effect, cures in restricted
        if not permits_action(effect, action.action_class, curative=cures, recovery=action.recovery)
    ]


def _held() -> Refusal:
    return Refusal(
        Reason.EVIDENCE_HOLD,
        "an evidence hold keeps the device as it is",
        "two people lifting the hold",
        "safety or recall team",
    )


def _connected(view: View) -> Refusal:
    return Refusal(
        Reason.PATIENT_CONNECTED,
        f"therapy {view.therapy}, patient {view.patient}: unknown counts as connected",
        "a bedside release, or the mode 'idle'",
        "somebody at the bedside",
        {"therapy": str(view.therapy), "patient": str(view.patient)},
    )
