"""The classes of actions: how stale a fact may be, what must be there, and how each fails (the class table)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from vigil.core.statements.bodies import ActionClass, RevocationEffect

CHALLENGE_INTERVAL_S: Final = 2.0
"""A gateway sends a challenge every 2 s (ARCHITECTURE, Lease)."""
LEASE_S: Final = 10.0
"""The lease runs from sending the newest challenge that a head has answered (ARCHITECTURE, Lease)."""
NONCE_LIFETIME_S: Final = 5.0
"""A device's nonce lives 5 s in its memory (COMMANDS, Prepare)."""
ATTEST_BEFORE_LAPSE_S: Final = 10.0
"""A prepare lets the device attest when its result would lapse within 10 s (COMMANDS, Prepare)."""
DECISION_DEADLINE_S: Final = 2.0
"""The gateway waits 2 s for a decision (COMMANDS, Gateway 6)."""
HEAD_TOLERANCE_S: Final = 8.0
"""A permit's epoch is not below the highest head that the device held for more than 8 s (COMMANDS, Device 5)."""
OWN_CHALLENGE_S: Final = 10.0
"""A staged command waits for a head that answers the device's own challenge within 10 s (COMMANDS)."""
CLOCK_AGREEMENT_MS: Final = 10_000
"""A device's floor advances where a head's time and the gateway's agree within 10 s (COMMANDS, Time)."""
SAFETY_GRACE_MS: Final = 72 * 3_600_000
"""A gateway without a lease bears an expired, unrevoked safety credential for 72 h (COMMANDS, Classes)."""
SAFETY_DEVICES: Final = 3
SAFETY_PERIOD_S: Final = 600.0
"""One safety officer touches 3 devices in 10 minutes alone (COMMANDS, Classes)."""
MAX_INTENT_LIFETIME_MS: Final = 7 * 86_400_000
"""An intent outlives no week: approvals can take a night, a maintenance plan a few days."""
MAX_CLOCK_SKEW_MS: Final = 30_000
"""A person's clock may run this much ahead of ours before its statements are 'not yet'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRules:
    """One row of the class table. Ages in seconds; None where the class does not ask."""

    asks_policy: bool
    revocation_age_s: float | None  # of policy's replica
    facts_age_s: float | None  # of policy's other replicas
    without_lease_s: float | None  # how long it is still served after the lease ran out; None: for ever
    attests_first: bool
    bound_to_boot: bool  # device check 5: same boot count, no new boot, firmware or configuration leaf
    work_order: bool


_CHANGE: Final = ClassRules(
    asks_policy=True,
    revocation_age_s=3.0,
    facts_age_s=10.0,
    without_lease_s=0.0,
    attests_first=True,
    bound_to_boot=False,
    work_order=True,
)
_BOUND: Final = ClassRules(
    asks_policy=True,
    revocation_age_s=3.0,
    facts_age_s=10.0,
    without_lease_s=0.0,
    attests_first=True,
    bound_to_boot=True,
    work_order=True,
)

RULES: Final[Mapping[ActionClass, ClassRules]] = MappingProxyType(
    {
        ActionClass.S1: ClassRules(
            asks_policy=False,
            revocation_age_s=None,
            facts_age_s=None,
            without_lease_s=None,
            attests_first=False,
            bound_to_boot=False,
            work_order=False,
        ),
        ActionClass.R: ClassRules(
            asks_policy=True,
            revocation_age_s=60.0,
            facts_age_s=60.0,
            without_lease_s=600.0,
            attests_first=False,
            bound_to_boot=False,
            work_order=False,
        ),
        ActionClass.C: _BOUND,
        ActionClass.U: _CHANGE,
        ActionClass.T: _BOUND,
        ActionClass.D: _CHANGE,
    }
)

_STRENGTH: Final = {effect: place for place, effect in enumerate(RevocationEffect)}


def strongest(effects: "list[RevocationEffect]") -> RevocationEffect | None:
    """The strongest of several effects; None of none."""
    return max(effects, key=_STRENGTH.__getitem__, default=None)


def permits_action(
    effect: RevocationEffect | None, action_class: ActionClass, *, curative: bool, recovery: bool
) -> bool:
    """The table effect x class for what a device *is* or *runs* (COMMANDS, Effects of a revocation).

    ``curative``: the action leads to an unrevoked build of no lower security version, or one that a downgrade
    authorisation names. ``recovery``: the profile marks it as leading out of quarantine (two persons).
    """
    match effect:
        case None | RevocationEffect.FLAG | RevocationEffect.NO_NEW:
            return True
        case RevocationEffect.CORRECTIVE_ONLY:
            if action_class in (ActionClass.S1, ActionClass.R):
                return True
            return action_class in (ActionClass.C, ActionClass.U) and (curative or recovery)
        case RevocationEffect.DENY:
            # "Recovery by two people": a profile's recovery action or an update, both of which need a second person.
            leads_out = (action_class is ActionClass.C and recovery) or (
                action_class is ActionClass.U and curative
            )
            return action_class is ActionClass.S1 or leads_out


def permits_install(effect: RevocationEffect | None) -> bool:
    """Whether a build or baseline with this effect may still be installed."""
    return effect in (None, RevocationEffect.FLAG)
