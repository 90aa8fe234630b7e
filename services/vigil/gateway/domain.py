"""What the gateway judges by itself, as values in and values out (docs/protocol.md, "Who checks what", Gateway).

The order of the refusals is that of the checks: 1 certificate, role and scope (answered alone), 2 the signer is the
caller, 3 quota, 4 revocation and the lease for the class, 5 the device is connected. Quotas stand in `quotas`, since
they remember; everything here is judged from what stands in its arguments.

Deliberately not checked: patient state, attestation, parameters and approvals of an ordinary command. They are
policy's, and then the device's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core.certificates import Identity
from vigil.core.classes import ATTEST_BEFORE_LAPSE_S, LEASE_S, RULES, SAFETY_GRACE_MS
from vigil.core.commands import result_ends
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Outcome,
    Profile,
    Receipt,
    Result,
    RevocationEffect,
)
from vigil.errors import Reason, Refusal, refused

SAFETY_ROLES: Final = ("technician", "safety", "approver", "recall")
"""Who may give a class S1 command (COMMANDS, Classes)."""
COMMANDING_ROLES: Final = (*SAFETY_ROLES, "auditor")
"""Who may ask for a command at all; which of them for which action is policy's to say."""
SAFETY_ROLE: Final = "safety"

ANSWERING: Final = frozenset(Outcome) - {Outcome.ACCEPTED}
"""Outcomes that answer a command: staged, or final. *Accepted* alone says nothing yet."""

REFUSED, FORWARDED, UNKNOWN = "refused", "forwarded", "unknown"
"""What a command's record says while no receipt speaks for it."""
UNSETTLED: Final = (FORWARDED, UNKNOWN, str(Outcome.ACCEPTED), str(Outcome.STAGED))
"""Recorded outcomes after which the device may still have news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything that the gateway itself knows when it judges one request; instants in ms, ages in seconds."""

    caller: Identity
    spec: ActionSpec
    now: int
    lease_age_s: float
    caller_revoked: Reason | None
    gateway_revoked: bool
    gateway_operational_until: int
    device_effect: RevocationEffect | None
    device_commandable: bool
    connected: bool


def caller_refusal(
    caller: Identity, action_class: ActionClass, *, now: int, lease_age_s: float
) -> Refusal | None:
    """Gateway check 1: certificate and role, for this class."""
    if now > caller.operational_until and not bears_expired(
        caller, action_class, now=now, lease_age_s=lease_age_s
    ):
        return Refusal(
            Reason.CERTIFICATE_EXPIRED,
            "Your credential is past its operational end.",
            "a renewed credential",
            "you, while it is valid; an administrator afterwards",
        )
    roles = SAFETY_ROLES if action_class is ActionClass.S1 else COMMANDING_ROLES
    if not caller.has_role(*roles):
        return Refusal(
            Reason.ROLE_NOT_PERMITTED,
            "Your role does not permit this call.",
            f"a credential with one of the roles {', '.join(roles)}",
            "an administrator of your organization",
        )
    return None


def asker_refusal(caller: Identity, *, now: int, lease_age_s: float) -> Refusal | None:
    """Who may ask what became of a request: whoever may command, in class S1's grace too."""
    if bears_expired(caller, ActionClass.S1, now=now, lease_age_s=lease_age_s):
        return None
    return caller_refusal(caller, ActionClass.R, now=now, lease_age_s=lease_age_s)


def bears_expired(caller: Identity, action_class: ActionClass, *, now: int, lease_age_s: float) -> bool:
    """Class S1: a gateway without a lease bears an expired, unrevoked safety credential for 72 h."""
    return (
        action_class is ActionClass.S1
        and caller.has_role(SAFETY_ROLE)
        and lease_age_s > LEASE_S
        and now <= min(caller.operational_until + SAFETY_GRACE_MS, caller.not_after)
    )


def lease_refusal(action_class: ActionClass, *, lease_age_s: float) -> Refusal | None:
    """Gateway checks 4 and 7: whether the class is served at this age of the lease."""
    allowed = RULES[action_class].without_lease_s
    if allowed is None or lease_age_s <= LEASE_S + allowed:
        return None
    return Refusal(
        Reason.LEASE_EXPIRED,
        "The gateway has not heard what is revoked for too long to let this through.",
        "the connection to the control plane coming back; safety actions (class S1) go on meanwhile",
        "the operator of the gateway's network",
        {} if lease_age_s == float("inf") else {"lease_age_ms": str(int(lease_age_s * 1000))},
    )


def is_degraded(*, lease_age_s: float) -> bool:
    """Whether the lease has run out: what is still served is marked."""
    return lease_age_s > LEASE_S


def revocation_refusals(standing: Standing) -> list[Refusal]:
    """Gateway checks 4 and 7: what is known revoked is refused, in every class."""
    refusals = []
    if standing.caller_revoked is not None:
        refusals.append(revoked_caller(standing.caller_revoked))
    if standing.gateway_revoked:
        refusals.append(
            Refusal(
                Reason.GATEWAY_REVOKED,
                "This gateway is revoked.",
                "another gateway of the site, or this one's reinstatement",
                "the recall team",
            )
        )
    # The table effect x class: only DENY refuses whatever the action leads to; policy knows the rest.
    if (
        standing.device_effect is RevocationEffect.DENY
        and standing.spec.action_class is not ActionClass.S1
        and not standing.spec.recovery
    ):
        refusals.append(
            Refusal(
                Reason.DEVICE_REVOKED,
                "The device is revoked; only safety actions and its recovery reach it.",
                "its reinstatement",
                "two people of the recall team",
            )
        )
    return refusals


def revoked_caller(reason: Reason) -> Refusal:
    """The refusal of a caller that is known revoked."""
    return Refusal(
        reason,
        "The credential that this was asked with is revoked.",
        "a new credential",
        "an administrator of your organization",
    )


def dead_nonce() -> Refusal:
    """The device's nonce has outlived its time."""
    return Refusal(
        Reason.NONCE_EXPIRED,
        "The device's nonce has expired.",
        "preparing the command again",
        "you",
    )


def out_of_scope() -> Refusal:
    """Somebody who signed has no say about this device."""
    return Refusal(
        Reason.NOT_IN_SCOPE,
        "What you named does not exist, or it is not in your scope.",
        "a credential whose organization and sites cover it",
        "an administrator of the organization that owns it",
    )


def own_refusals(standing: Standing) -> list[Refusal]:
    """Gateway checks 1, 4 and 5 in their order; scope (1), signer (2) and quota (3) were held before.

    A refusal of check 1 is answered alone; of the others all are.
    """
    action_class = standing.spec.action_class
    first = caller_refusal(standing.caller, action_class, now=standing.now, lease_age_s=standing.lease_age_s)
    if first is not None:
        return [first]
    refusals = forwarding_refusals(standing)
    if not standing.device_commandable:
        refusals.append(
            Refusal(
                Reason.STATE_CONFLICT,
                "The device is not in service: it awaits activation, or it was retired.",
                "its activation by another person than the one who enrolled it",
                "an administrator or approver",
            )
        )
    if not standing.connected:
        refusals.append(offline())
    return refusals


def forwarding_refusals(standing: Standing) -> list[Refusal]:
    """Gateway check 7: revocation and the lease once more, just before the bundle leaves."""
    refusals = revocation_refusals(standing)
    lease = lease_refusal(standing.spec.action_class, lease_age_s=standing.lease_age_s)
    if lease is not None:
        refusals.append(lease)
    # Certificates carry two ends: past the operational one a gateway serves S1 only.
    if standing.spec.action_class is not ActionClass.S1 and standing.now > standing.gateway_operational_until:
        refusals.append(
            Refusal(
                Reason.LEASE_EXPIRED,
                "The gateway's own certificate is past its operational end; it serves safety actions only.",
                "the renewal that happens by itself once the control plane is reached",
                "the operator of the gateway",
            )
        )
    return refusals


def offline() -> Refusal:
    """Gateway check 5."""
    return Refusal(
        Reason.DEVICE_OFFLINE,
        "The device is not connected to this gateway.",
        "switching the device on, or bringing it into the site's network",
        "somebody at the device",
    )


def attestation_due(action_class: ActionClass, result: Result | None, profile: Profile, *, now: int) -> bool:
    """Prepare: the device attests first when its result or its therapy state would lapse within 10 s."""
    if not RULES[action_class].attests_first:
        return False
    if result is None:
        return True
    _, first = result_ends(result, profile, now=now)
    return first <= now + int(ATTEST_BEFORE_LAPSE_S * 1000)


def outcome_of(receipts: Iterable[Receipt]) -> Receipt | None:
    """The receipt that speaks for an intent on a device now.

    A refusal is not journaled by the device, so the same intent may be admitted later and begin with the same number:
    any other receipt speaks before a refusal, and of the others the one with the highest number.
    """
    return max(
        receipts,
        key=lambda receipt: (receipt.outcome is not Outcome.REFUSED, receipt.number),
        default=None,
    )


def answers(receipts: Iterable[Receipt]) -> bool:
    """Whether the device has answered: some receipt is staged or final (Gateway 8)."""
    return any(receipt.outcome in ANSWERING for receipt in receipts)


INTENT_STATES: Final = ("pending", "approved", "cancelled", "expired", "used")


def intent_state(kept: str, *, needed: int, given: int, expires: int, now: int) -> str:
    """The state that a person is told: ``kept`` is "open", "cancelled" or "used"."""
    if kept != "open":
        return kept
    if now >= expires:
        return "expired"
    return "approved" if given >= needed else "pending"


def intent_usable(kept: str) -> bool:
    """Whether an intent that is kept here may still be submitted; one for many devices is used many times."""
    return kept != "cancelled"


def taken_back() -> Refusal:
    """An intent that is worth nothing any more."""
    return Refusal(
        Reason.INTENT_CANCELLED,
        "This intent was taken back, or an approval behind it was voided by a revocation.",
        "a new intent",
        "the requester",
    )


def approvals_needed(specs: Sequence[ActionSpec]) -> int:
    """Of the models that an intent's devices belong to, the most demanding one decides."""
    return max((spec.approvals for spec in specs), default=0)


def check_same_class(specs: Sequence[ActionSpec]) -> None:
    """One intent is of one class. Raises PARAMETER_INVALID."""
    if len({spec.action_class for spec in specs}) > 1:
        raise refused(
            Reason.PARAMETER_INVALID,
            "The action has another class on some of the devices than on the others.",
            lifted_by="one intent for each model",
            who="the requester",
        )
