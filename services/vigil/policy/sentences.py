"""What a person reads: one place that makes a reason and its values into words. Pure.

Policy authors return identifiers with values. A rule that says more than its reason has words of its own; everything
else is told by the reason. Each entry: the sentence, what would lift it, who can.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vigil.errors import Reason, Refusal

Values = Mapping[str, str | int | bool]

_Words = tuple[str, str, str]

_ADMIN: Final = "an administrator of the organization"
_APPROVER: Final = "an approver of the site"
_BEDSIDE: Final = "somebody at the bedside"
_MANUFACTURER: Final = "the manufacturer"
_OPERATOR: Final = "the operator"
_RECALL: Final = "the recall team"
_REQUESTER: Final = "the requester"
_SECURITY: Final = "the security team"

_OF_RULE: Final[Mapping[str, _Words]] = {
    "vigil.command.class_known": (
        "policy decides no action of this class; safety actions ask none",
        "the action's own way, or a policy with a row for its class",
        _SECURITY,
    ),
    "vigil.command.target_unrevoked": (
        "what is to be installed is revoked ({effect}) and not installed any more",
        "a build or baseline that is not revoked",
        _REQUESTER,
    ),
    "vigil.command.therapy_immediate": (
        "an action on a therapy happens now or not at all, not in the mode {mode}",
        "the mode 'now'",
        _REQUESTER,
    ),
    "vigil.policy.baseline_in_force": (
        "the {name} in force on the device is revoked ({effect})",
        "installing one that is not revoked",
        _REQUESTER,
    ),
    "vigil.policy.baseline_valid": (
        "the baseline is not valid now",
        "a baseline whose validity covers this moment",
        "a baseline signer of the site",
    ),
    "vigil.policy.installation_known": (
        "nothing with the digest {digest} has been published for this device",
        "publishing it, or the digest of something published for this model and site",
        _REQUESTER,
    ),
    "vigil.policy.installation_fits": (
        "what is to be installed is made for another model, or is of another kind",
        "something made for the model {model}",
        _REQUESTER,
    ),
    "vigil.policy.installation_named": (
        "the action installs something, and the intent does not name it by digest",
        "the digest of what is to be installed",
        _REQUESTER,
    ),
    "vigil.policy.profile_known": (
        "no profile of the model {model} is known",
        "the manufacturer publishing it",
        _MANUFACTURER,
    ),
}

_OF_REASON: Final[Mapping[Reason, _Words]] = {
    Reason.ROLE_NOT_PERMITTED: (
        "none of the requester's roles permits an action of class {class}",
        "a credential with a role that does",
        _ADMIN,
    ),
    Reason.NOT_IN_SCOPE: (
        "What you named does not exist, or it is not in your scope.",
        "a credential whose organization and sites cover it",
        "an administrator of the organization that owns it",
    ),
    Reason.CREDENTIAL_REVOKED: (
        "the credential of {person} is revoked",
        "statements by somebody whose credential is not",
        _RECALL,
    ),
    Reason.GATEWAY_REVOKED: ("the gateway is revoked", "its reinstatement by two people", _RECALL),
    Reason.SIGNER_REVOKED: (
        "the signer of the {statement} is revoked",
        "the same signed with another key",
        _RECALL,
    ),
    Reason.DEVICE_REVOKED: ("the device is banned", "its reinstatement by two people", _RECALL),
    Reason.DEVICE_QUARANTINED: (
        "the device is {state}: only safety actions, reading and what leads out of it are allowed",
        "a curing update, or its release by two people",
        _RECALL,
    ),
    Reason.FIRMWARE_REVOKED: (
        "the build that the device runs is revoked ({effect}): only what leads out of it is allowed",
        "an update to a build that is not revoked",
        _REQUESTER,
    ),
    Reason.ACTION_UNKNOWN: ("the model knows no such action", "one of its actions", _REQUESTER),
    Reason.PARAMETER_INVALID: ("a parameter is not permitted", "another value", _REQUESTER),
    Reason.PARAMETER_OUT_OF_RANGE: ("a parameter lies outside its limits", "a value inside", _REQUESTER),
    Reason.WORK_ORDER_MISSING: (
        "a change belongs to a work order, and the intent names none",
        "--work-order with its number",
        _REQUESTER,
    ),
    Reason.REPLICA_STALE: (
        "policy does not know freshly enough what holds: {replicas}",
        "the connection between policy and these services",
        _OPERATOR,
    ),
    Reason.THERAPY_NOT_ENABLED: (
        "this action changes a therapy, and nobody may do that from afar on this model",
        "doing it at the bedside",
        _BEDSIDE,
    ),
    Reason.EVIDENCE_HOLD: (
        "an evidence hold keeps the device as it is ({holds})",
        "two people lifting the hold",
        "safety or recall team",
    ),
    Reason.ATTESTATION_MISSING: (
        "the device has no attestation result that counts ({basis})",
        "the device attesting",
        "the device, through its gateway",
    ),
    Reason.ATTESTATION_CONTRAINDICATED: (
        "the device's attestation speaks against it",
        "a curing update; the result names what is wrong",
        "the site and the manufacturer",
    ),
    Reason.ATTESTATION_STALE: (
        "the device's attestation is stale, {age_ms} ms old",
        "the device attesting again",
        "the device, through its gateway",
    ),
    Reason.ATTESTATION_WARNING: (
        "the device attests with a warning, and the action is not one that puts it right",
        "an action that the profile marks as corrective",
        _REQUESTER,
    ),
    Reason.FIRMWARE_ROLLBACK: (
        "the build's security version is below the device's, and no downgrade authorisation names it",
        "a build of no lower security version, or a downgrade authorisation",
        _MANUFACTURER,
    ),
    Reason.APPROVALS_MISSING: (
        "{given} of {required} approvals are given",
        "`vigil command approve` by another person of the site",
        _APPROVER,
    ),
    Reason.APPROVER_NOT_DISTINCT: (
        "an approval by the requester, or a second one by the same person, does not count",
        "an approval by somebody else",
        _APPROVER,
    ),
    Reason.BEDSIDE_CONFIRMATION_MISSING: (
        "a change of therapy is confirmed at the bedside",
        "pressing confirm at the device",
        _BEDSIDE,
    ),
    Reason.PATIENT_CONNECTED: (
        "therapy {therapy}, patient {patient}: unknown counts as connected",
        "a bedside release, or the mode 'idle'",
        _BEDSIDE,
    ),
    Reason.OUTSIDE_WINDOW: ("the time for this has not come, or has passed", "waiting", _REQUESTER),
    Reason.PROFILE_MISMATCH: (
        "what is to be installed is not made for this device",
        "something that is",
        _REQUESTER,
    ),
    Reason.POLICY_DENIED: (
        "the policy in force does not allow it, by its rule {rule}",
        "circumstances that the rule allows, or a changed policy",
        _SECURITY,
    ),
}


class _Known(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """Why not: what goes into the signed decision (reason, rule, values), with the words beside it."""

    rule: str
    refusal: Refusal

    @property
    def reason(self) -> Reason:
        """The stable identifier."""
        return self.refusal.reason


def found(reason: Reason, rule: str, values: Values | None = None) -> Finding:
    """Say a reason. Raises KeyError for one that has no words here, which a test looks for."""
    given = dict(values or {})
    words = _OF_RULE.get(rule) or _OF_REASON[reason]
    known = _Known(given, rule=rule)
    # The templates are ours; values are only inserted, never formatted themselves.
    sentence, lifted_by, who = (template.format_map(known) for template in words)
    details = {name: str(value) for name, value in given.items()}
    return Finding(rule, Refusal(reason, sentence, lifted_by, who, {"rule": rule, **details}))


def spoken() -> frozenset[Reason]:
    """The reasons that have words here."""
    return frozenset(_OF_REASON)
