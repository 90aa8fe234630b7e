"""The question for Rego (policies/schemas/command.json), and the document that a decision rests on. Pure."""

import math
from collections.abc import Mapping
from typing import Any, Final

from vigil.core import cbor
from vigil.core.certificates import EVERY, Identity
from vigil.core.commands import result_ends
from vigil.core.statements.bodies import (
    ActionSpec,
    Effect,
    Mode,
    PatientState,
    Release,
    Result,
    RevocationEffect,
    Scope,
    TherapyState,
    TrustTier,
)
from vigil.policy.case import Item, Judgement, Parties, View
from vigil.policy.engine.port import encode_document

INPUT_VERSION: Final = 1

STATES: Final[Mapping[RevocationEffect, str]] = {
    RevocationEffect.CORRECTIVE_ONLY: "quarantined",
    RevocationEffect.DENY: "banned",
}
"""The state of a device under a revocation of its own, as the question names it."""


def question(
    item: Item, parties: Parties, action: ActionSpec, view: View, judgement: Judgement
) -> dict[str, Any]:
    intent, requester, now = item.intent.body, parties.requester, view.now
    result = None if view.result is None else view.result.statement.body
    if requester.thumbprint == parties.executor.thumbprint:
        roles = list(requester.roles)
    else:  # Who binds the nonce needs the role as well.
        roles = [role for role in requester.roles if role in parties.executor.roles]
    stale_at, therapy_stale_at = _ends(result, view)
    release = judgement.target is not None and isinstance(judgement.target.statement.body, Release)
    return {
        "action": {
            "name": action.name,
            "class": str(action.action_class),
            "approvals": action.approvals,
            "corrective_when_warning": action.corrective_when_warning,
            "therapy_enabled": action.therapy_enabled,
            "states": [str(state) for state in action.states],
        },
        "mode": str(intent.mode),
        "requester": {
            "id": requester.id,
            "organization": _organization(requester),
            "sites": list(requester.sites),
            "roles": roles,
        },
        "approvers": [
            {"id": person.id, "organization": _organization(person), "roles": list(person.roles)}
            for person in parties.approvers
        ],
        "release_signature": release and action.effect is Effect.UPDATE,
        "device": _device(item, view, result),
        "attestation": _attestation(result, now, stale_at=stale_at),
        "therapy": _therapy(result, now, stale_at=therapy_stale_at),
        "build": {"effect": _running_effect(result, view)},
        "target": _target(action, view, judgement),
        "work_order": intent.work_order is not None,
        # A person confirms at the device, which alone can know it: from afar nobody has.
        "bedside_confirmed": False,
        # The window is the signed intent's own: from `not_before` until it expires.
        "window_open": intent.mode is Mode.WINDOW and intent.not_before <= now < intent.expires,
    }


def _organization(person: Identity) -> str:
    """The operator's people act for every organization."""
    return EVERY if person.operator else person.organization


def _device(item: Item, view: View, result: Result | None) -> dict[str, Any]:
    """State and holds: the stricter of the registry, the revocations and the device's own word."""
    device = view.device
    effect = view.revocations.effect(Scope.DEVICE, item.device_id, at=view.now)
    state = device.state
    if effect is not None and effect in STATES and state != "banned":
        state = STATES[effect]
    if state == "active" and result is not None and result.quarantined:
        state = "quarantined"
    return {
        "id": item.device_id,
        "organization": device.organization,
        "site": device.site,
        "model": device.model,
        "state": state,
        "holds": max(device.holds, 0 if result is None else result.holds),
    }


def _ends(result: Result | None, view: View) -> tuple[int, int]:
    """When the result and its therapy state lapse; without a profile to hold them against, at once."""
    if result is None or view.profile is None:
        return 0, 0
    return result_ends(result, view.profile.statement.body, now=view.now)


def _attestation(result: Result | None, now: int, *, stale_at: int) -> dict[str, Any]:
    if result is None:
        status = str(TrustTier.NONE)
        return {"status": status, "age_ms": 0, "stale": False, "vector": {}, "basis": "attested"}
    return {
        "status": str(result.status),
        "age_ms": max(0, now - result.appraised_at),
        "stale": now >= stale_at,
        "vector": dict(result.vector),
        "basis": str(result.basis),
    }


def _therapy(result: Result | None, now: int, *, stale_at: int) -> dict[str, str]:
    """As last attested; past its own end it is unknown, and unknown counts as connected."""
    if result is None or now >= stale_at:
        return {"state": str(TherapyState.UNKNOWN), "patient": str(PatientState.UNKNOWN)}
    return {"state": str(result.therapy.state), "patient": str(result.therapy.patient)}


def _running_effect(result: Result | None, view: View) -> str:
    if result is None:
        return "none"
    effect = view.revocations.effect(Scope.BUILD, result.measurements.firmware.hex(), at=view.now)
    return "none" if effect is None else str(effect)


def _target(action: ActionSpec, view: View, judgement: Judgement) -> dict[str, Any] | None:
    """Where the action leads: a build, a baseline, or out of a restriction, which the profile calls recovery."""
    if judgement.target is None:
        return {"effect": "none", "curative": True} if action.recovery else None
    body = judgement.target.statement.body
    scope, digest = (
        (Scope.BUILD, body.firmware) if isinstance(body, Release) else (Scope.BASELINE, body.content)
    )
    effect = view.revocations.effect(scope, digest.hex(), at=view.now)
    return {
        "effect": "none" if effect is None else str(effect),
        # A baseline cures no build.
        "curative": isinstance(body, Release) and no_lower(body, view),
    }


def no_lower(release: Release, view: View) -> bool:
    """Without a result the version that runs is unknown; the device holds its own against the build's."""
    return view.result is None or release.security_version >= view.result.statement.body.security_version


def input_document(item: Item, view: View, judgement: Judgement, *, gateway_id: str) -> bytes:
    """The whole input, deterministic CBOR: the question as JSON, and by digest whatever else was looked at."""
    target = judgement.target
    return cbor.encode(
        {
            "version": INPUT_VERSION,
            "at": view.now,
            "gateway": gateway_id,
            "device": item.device_id,
            "intent": item.intent.digest,
            "approvals": [approval.digest for approval in item.approvals],
            "command": None if item.command is None else item.command.digest,
            "recorded": list(judgement.times),
            "profile": None if view.profile is None else view.profile.statement.digest,
            "result": None if view.result is None else view.result.statement.digest,
            "target": None if target is None else target.statement.digest,
            "era": view.revocations.state.era,
            "epoch": view.revocations.state.epoch,
            "ages_ms": {
                name: int(age * 1000) if math.isfinite(age) else None for name, age in view.ages.items()
            },
            "found": [[str(finding.reason), finding.rule] for finding in judgement.findings],
            # The very text that was asked, to be asked again.
            "question": None if judgement.question is None else encode_document(judgement.question).decode(),
        }
    )
