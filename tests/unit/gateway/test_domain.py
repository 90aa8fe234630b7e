"""The gateway's own judgement, class by class."""

from dataclasses import replace

import pytest

from vigil.core.certificates import Identity, Kind
from vigil.core.classes import SAFETY_GRACE_MS
from vigil.core.keys import new_private_key
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Effect,
    LogHead,
    Outcome,
    Receipt,
    RevocationEffect,
)
from vigil.errors import Reason
from vigil.gateway import domain
from vigil.gateway.domain import Standing

NOW = 1_790_000_000_000
HOUR = 3_600_000
EVERY = tuple(ActionClass)
POLICED = tuple(one for one in ActionClass if one is not ActionClass.S1)


def person(*roles: str, operational_until: int = NOW + HOUR, not_after: int = NOW + 100 * HOUR) -> Identity:
    return Identity(
        kind=Kind.PERSON,
        id="p-one",
        organization="hospital",
        sites=("site-1",),
        roles=roles,
        statements=(),
        thumbprint=bytes(32),
        key_thumbprint=bytes(32),
        not_before=0,
        not_after=not_after,
        operational_until=operational_until,
        authenticated="",
        public_key=new_private_key().public_key(),
        spiffe_id="spiffe://vigil.test/person/p-one",
    )


def spec(action_class: ActionClass, *, recovery: bool = False) -> ActionSpec:
    return ActionSpec("act", action_class, Effect.SET, (), 0, (), recovery=recovery)


def standing(action_class: ActionClass, **changed: object) -> Standing:
    values = {
        "caller": person("technician"),
        "spec": spec(action_class),
        "now": NOW,
        "lease_age_s": 1.0,
        "caller_revoked": None,
        "gateway_revoked": False,
        "gateway_operational_until": NOW + HOUR,
        "device_effect": None,
        "device_commandable": True,
        "connected": True,
    }
    return Standing(**{**values, **changed})  # type: ignore[arg-type]


def reasons(action_class: ActionClass, **changed: object) -> list[Reason]:
    return [refusal.reason for refusal in domain.own_refusals(standing(action_class, **changed))]


@pytest.mark.parametrize("action_class", EVERY)
def test_nothing_stands_against_a_technician_at_a_healthy_gateway(action_class: ActionClass) -> None:
    assert reasons(action_class) == []


@pytest.mark.parametrize(
    ("action_class", "age", "served"),
    [
        (ActionClass.S1, float("inf"), True),
        (ActionClass.R, 610.0, True),
        (ActionClass.R, 610.1, False),
        (ActionClass.R, float("inf"), False),
        *((one, 10.0, True) for one in (ActionClass.C, ActionClass.U, ActionClass.T, ActionClass.D)),
        *((one, 10.1, False) for one in (ActionClass.C, ActionClass.U, ActionClass.T, ActionClass.D)),
    ],
)
def test_the_lease_runs_out_class_by_class(action_class: ActionClass, age: float, served: bool) -> None:
    expected = [] if served else [Reason.LEASE_EXPIRED]
    assert reasons(action_class, lease_age_s=age) == expected


@pytest.mark.parametrize("action_class", EVERY)
def test_what_is_known_revoked_is_refused_in_every_class(action_class: ActionClass) -> None:
    assert reasons(action_class, caller_revoked=Reason.CREDENTIAL_REVOKED) == [Reason.CREDENTIAL_REVOKED]
    assert reasons(action_class, gateway_revoked=True) == [Reason.GATEWAY_REVOKED]


@pytest.mark.parametrize("action_class", EVERY)
def test_a_denied_device_takes_safety_actions_and_its_recovery_alone(action_class: ActionClass) -> None:
    denied = {"device_effect": RevocationEffect.DENY}
    expected = [] if action_class is ActionClass.S1 else [Reason.DEVICE_REVOKED]
    assert reasons(action_class, **denied) == expected
    assert reasons(action_class, **denied, spec=spec(action_class, recovery=True)) == []
    assert reasons(action_class, device_effect=RevocationEffect.CORRECTIVE_ONLY) == []


@pytest.mark.parametrize("action_class", EVERY)
def test_a_gateway_past_its_operational_end_serves_safety_actions_alone(action_class: ActionClass) -> None:
    expected = [] if action_class is ActionClass.S1 else [Reason.LEASE_EXPIRED]
    assert reasons(action_class, gateway_operational_until=NOW - 1) == expected


def test_several_refusals_come_together_and_the_callers_own_alone() -> None:
    several = reasons(ActionClass.C, lease_age_s=11.0, connected=False, gateway_revoked=True)
    assert several == [Reason.GATEWAY_REVOKED, Reason.LEASE_EXPIRED, Reason.DEVICE_OFFLINE]
    stranger = person("publisher")
    assert reasons(ActionClass.C, caller=stranger, connected=False) == [Reason.ROLE_NOT_PERMITTED]


@pytest.mark.parametrize(
    ("roles", "safety", "others"),
    [
        (("technician",), True, True),
        (("safety",), True, True),
        (("approver",), True, True),
        (("recall",), True, True),
        (("auditor",), False, True),
        (("publisher",), False, False),
        (("admin", "policy-editor", "psirt"), False, False),
        ((), False, False),
    ],
)
def test_roles(roles: tuple[str, ...], safety: bool, others: bool) -> None:
    assert (reasons(ActionClass.S1, caller=person(*roles)) == []) is safety
    assert (reasons(ActionClass.R, caller=person(*roles)) == []) is others


class TestAnExpiredCredential:
    late = SAFETY_GRACE_MS + HOUR

    def expired(self, *roles: str, ago: int = HOUR) -> Identity:
        return person(*roles, operational_until=NOW - ago, not_after=NOW + HOUR)

    @pytest.mark.parametrize("action_class", POLICED)
    def test_is_refused_outside_s1(self, action_class: ActionClass) -> None:
        caller = self.expired("safety", "technician")
        assert reasons(action_class, caller=caller, lease_age_s=11.0) == [Reason.CERTIFICATE_EXPIRED]

    def test_is_borne_without_a_lease_for_72_hours_with_the_safety_role(self) -> None:
        assert reasons(ActionClass.S1, caller=self.expired("safety"), lease_age_s=10.1) == []
        edge = self.expired("safety", ago=SAFETY_GRACE_MS)
        assert reasons(ActionClass.S1, caller=edge, lease_age_s=10.1) == []

    @pytest.mark.parametrize(
        ("caller_roles", "ago", "age"),
        [
            (("safety",), HOUR, 10.0),  # with a lease it can be renewed
            (("technician",), HOUR, 11.0),  # no safety credential
            (("safety",), SAFETY_GRACE_MS + 1, 11.0),  # past 72 h
        ],
    )
    def test_is_refused_otherwise(self, caller_roles: tuple[str, ...], ago: int, age: float) -> None:
        caller = self.expired(*caller_roles, ago=ago)
        assert reasons(ActionClass.S1, caller=caller, lease_age_s=age) == [Reason.CERTIFICATE_EXPIRED]

    def test_never_outlives_its_certificate(self) -> None:
        caller = replace(self.expired("safety"), not_after=NOW - 1)
        assert reasons(ActionClass.S1, caller=caller, lease_age_s=11.0) == [Reason.CERTIFICATE_EXPIRED]


def receipt(number: int, outcome: Outcome) -> Receipt:
    head = LogHead(1, bytes(32), 1)
    return Receipt(
        intent=bytes(32),
        command=bytes(32),
        request_id=bytes(16),
        number=number,
        outcome=outcome,
        device="dev-aaaaaaaaaaaaaaaa",
        udi="udi",
        action="act",
        performed_by="p-one",
        log=head,
        boot_count=1,
        device_time=NOW,
        applied=0,
    )


def test_accepted_alone_answers_nothing() -> None:
    assert not domain.answers([receipt(1, Outcome.ACCEPTED)])
    assert domain.answers([receipt(1, Outcome.ACCEPTED), receipt(2, Outcome.STAGED)])
    assert not domain.answers([])


def test_the_highest_receipt_speaks_and_a_refusal_last() -> None:
    applied, staged = receipt(2, Outcome.APPLIED), receipt(1, Outcome.STAGED)
    assert domain.outcome_of([applied, staged]) is applied
    refused = receipt(1, Outcome.REFUSED)
    assert domain.outcome_of([refused, staged]) is staged
    assert domain.outcome_of([refused]) is refused
    assert domain.outcome_of([]) is None


@pytest.mark.parametrize(
    ("kept", "given", "now", "expected"),
    [
        ("open", 0, NOW, "pending"),
        ("open", 2, NOW, "approved"),
        ("open", 2, NOW + HOUR, "expired"),
        ("used", 2, NOW + HOUR, "used"),
        ("cancelled", 2, NOW, "cancelled"),
    ],
)
def test_states_of_an_intent(kept: str, given: int, now: int, expected: str) -> None:
    assert domain.intent_state(kept, needed=2, given=given, expires=NOW + HOUR, now=now) == expected
