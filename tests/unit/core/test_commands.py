"""The checks of a command that gateway, policy and device share."""

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import Credential, TestPki
from tests.support.statements import EXAMPLES, NOW, SET_PRESSURE
from vigil.core import merkle
from vigil.core.certificates import Identity, Kind
from vigil.core.classes import RULES, permits_action, permits_install
from vigil.core.clock import ManualClock
from vigil.core.commands import (
    RecordedProof,
    check_command,
    check_intent,
    check_parameters,
    check_recorded,
    count_approvals,
    find_action,
    format_scaled,
    record_leaf,
    said_by_nonce,
    target_path,
    target_root,
)
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
    RevocationEffect,
)
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason, Refused

DEVICE = "dev-aaaaaaaaaaaaaaaa"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def people(pki: TestPki) -> dict[str, Credential]:
    names = ("ada", "ben", "cid")
    return {
        name: pki.issue(Kind.PERSON, f"p-{name}", roles=("technician", "approver"), sites=("site-1",))
        for name in names
    }


def sign(person: Credential, body: object) -> Statement[object]:
    return Scribe(
        signer=person.signer,
        issuer=person.issuer_name,
        clock=ManualClock(now=NOW),
        entropy=os.urandom,
        numbered=False,
    ).sign(body, subject=f"device/{DEVICE}")


def intent_of(person: Credential, **changes: object) -> Statement[Intent]:
    body = dataclasses.replace(EXAMPLES[Intent], target_root=target_root([DEVICE]), **changes)
    return sign(person, body)  # type: ignore[return-value]


def command_of(person: Credential, intent: Statement[Intent], **changes: object) -> Statement[Command]:
    body = dataclasses.replace(Command(intent.digest, DEVICE, 0, (), bytes(16)), **changes)
    return sign(person, body)  # type: ignore[return-value]


def judge(
    command: Statement[Command], intent: Statement[Intent], signer: Identity, requester: Identity
) -> list[Reason]:
    found = check_command(command, intent, signer=signer, requester=requester, device_id=DEVICE)
    return [refusal.reason for refusal in found]


def test_a_command_binds_its_intent_device_and_requester(people: dict[str, Credential]) -> None:
    ada, ben = people["ada"], people["ben"]
    intent = intent_of(ada)
    assert judge(command_of(ada, intent), intent, ada.identity, ada.identity) == []
    assert judge(command_of(ben, intent), intent, ben.identity, ada.identity) == [Reason.SIGNER_NOT_CALLER]
    foreign = command_of(ada, intent, device="dev-bbbbbbbbbbbbbbbb")
    assert judge(foreign, intent, ada.identity, ada.identity) == [Reason.NOT_IN_TARGET]
    other = command_of(ada, intent_of(ada, request_id=bytes([1]) * 16))
    assert judge(other, intent, ada.identity, ada.identity) == [Reason.NOT_IN_TARGET]


def test_only_the_named_executor_finishes_an_intent_that_names_one(people: dict[str, Credential]) -> None:
    ada, ben = people["ada"], people["ben"]
    intent = intent_of(ada, executor=ben.identity.key_thumbprint)
    assert judge(command_of(ben, intent), intent, ben.identity, ada.identity) == []
    assert judge(command_of(ada, intent), intent, ada.identity, ada.identity) == [Reason.SIGNER_NOT_CALLER]


def test_a_device_outside_the_target_tree_is_refused(people: dict[str, Credential]) -> None:
    devices = [f"dev-{letter * 16}" for letter in "abcde"]
    ada = people["ada"]
    intent = sign(
        ada, dataclasses.replace(EXAMPLES[Intent], target_root=target_root(devices), target_count=5)
    )
    for device in devices:
        index, path = target_path(devices, device)
        command = sign(ada, Command(intent.digest, device, index, path, bytes(16)))
        assert (
            check_command(
                command,  # type: ignore[arg-type]
                intent,  # type: ignore[arg-type]
                signer=ada.identity,
                requester=ada.identity,
                device_id=device,
            )
            == []
        )
    with pytest.raises(Refused) as refusal:
        target_path(devices, "dev-zzzzzzzzzzzzzzzz")
    assert refusal.value.reason is Reason.NOT_IN_TARGET


def test_an_intent_lives_inside_its_times(people: dict[str, Credential]) -> None:
    ada = people["ada"]
    assert check_intent(intent_of(ada), at=NOW) == []
    assert [item.reason for item in check_intent(intent_of(ada), at=NOW + 60_000)] == [Reason.INTENT_EXPIRED]
    early = check_intent(intent_of(ada), at=NOW - 60_000)
    assert [item.reason for item in early] == [Reason.OUTSIDE_WINDOW]
    ages = check_intent(intent_of(ada, expires=NOW + 8 * 86_400_000), at=NOW)
    assert [item.reason for item in ages] == [Reason.STATEMENT_MALFORMED]


def test_a_nonce_alone_says_when_for_a_safety_action_at_once_by_the_requester(
    people: dict[str, Credential],
) -> None:
    ada, ben = people["ada"], people["ben"]
    assert said_by_nonce(intent_of(ada, mode=Mode.NOW), ActionClass.S1)
    for action in ActionClass:
        if action is not ActionClass.S1:
            assert not said_by_nonce(intent_of(ada, mode=Mode.NOW), action)
    assert not said_by_nonce(intent_of(ada, mode=Mode.IDLE), ActionClass.S1)
    executed = intent_of(ada, mode=Mode.NOW, executor=ben.identity.key_thumbprint)
    assert not said_by_nonce(executed, ActionClass.S1)
    ages = check_intent(intent_of(ada, expires=NOW + 8 * 86_400_000), at=None)
    assert [item.reason for item in ages] == [Reason.STATEMENT_MALFORMED]
    assert (
        check_intent(intent_of(ada, not_before=NOW + 86_400_000, expires=NOW + 2 * 86_400_000), at=None) == []
    )


def test_approvals_count_distinct_other_people_in_scope(pki: TestPki, people: dict[str, Credential]) -> None:
    ada, ben, cid = people["ada"], people["ben"], people["cid"]
    intent = intent_of(ada)
    stranger = pki.issue(Kind.PERSON, "p-eve", roles=("approver",), sites=("site-2",))
    reader = pki.issue(Kind.PERSON, "p-dan", roles=("auditor",), sites=("site-1",))

    def missing(
        *approvers: Credential, needed: int = 2, expires: int = NOW + 60_000, now: int = NOW
    ) -> list[Reason]:
        given = [
            (sign(person, Approval(intent.digest, "approval", expires)), person.identity, NOW)
            for person in approvers
        ]
        found = count_approvals(
            intent,
            given,  # type: ignore[arg-type]
            requester=ada.identity,
            organization="hospital",
            site="site-1",
            needed=needed,
            now=now,
        )
        return [refusal.reason for refusal in found]

    assert missing(ben, cid) == []
    assert missing(needed=0) == []
    assert missing(ben) == [Reason.APPROVALS_MISSING]
    assert missing(ben, ben) == [Reason.APPROVALS_MISSING, Reason.APPROVER_NOT_DISTINCT]
    assert missing(ada, ben) == [Reason.APPROVALS_MISSING, Reason.APPROVER_NOT_DISTINCT]
    assert missing(ben, stranger) == [Reason.APPROVALS_MISSING]
    assert missing(ben, reader) == [Reason.APPROVALS_MISSING]
    assert missing(ben, cid, expires=NOW) == [Reason.APPROVALS_MISSING]
    assert missing(ben, cid, now=NOW + 60_000) == [Reason.APPROVALS_MISSING]


def test_an_action_the_profile_does_not_know_is_named() -> None:
    profile: Profile = EXAMPLES[Profile]
    assert find_action(profile, "set-occlusion-pressure") is SET_PRESSURE
    with pytest.raises(Refused) as refusal:
        find_action(profile, "self-destruct")
    assert refusal.value.reason is Reason.ACTION_UNKNOWN


@pytest.mark.parametrize(
    ("parameters", "reasons"),
    [
        ({"occlusion_pressure": 300}, []),
        ({"occlusion_pressure": 50}, []),
        ({"occlusion_pressure": 600}, []),
        ({"occlusion_pressure": 49}, [Reason.PARAMETER_OUT_OF_RANGE]),
        ({"occlusion_pressure": 601}, [Reason.PARAMETER_OUT_OF_RANGE]),
        ({"occlusion_pressure": 2**63}, [Reason.PARAMETER_OUT_OF_RANGE]),
        ({"occlusion_pressure": True}, [Reason.PARAMETER_INVALID]),
        ({"occlusion_pressure": "300"}, [Reason.PARAMETER_INVALID]),
        ({}, [Reason.PARAMETER_INVALID]),
        ({"occlusion_pressure": 300, "rate": 1}, [Reason.PARAMETER_UNKNOWN]),
    ],
)
def test_parameters_are_held_to_names_types_and_hard_limits(
    parameters: dict[str, object], reasons: list[Reason]
) -> None:
    found = check_parameters(SET_PRESSURE, parameters)  # type: ignore[arg-type]
    assert [refusal.reason for refusal in found] == reasons
    assert all(refusal.sentence and refusal.lifted_by for refusal in found)


def test_scaled_integers_read_as_decimals() -> None:
    spec = ParameterSpec("rate", ParameterType.INTEGER, required=True, unit="mL/h", scale=2)
    assert format_scaled(5, spec) == "0.05 mL/h"
    assert format_scaled(-1234, spec) == "-12.34 mL/h"
    assert format_scaled(None, spec) == "unbounded"


@given(st.integers(), st.integers(0, 9))
def test_scaling_loses_no_digit(value: int, scale: int) -> None:
    spec = ParameterSpec("x", ParameterType.INTEGER, required=True, scale=scale)
    assert int(format_scaled(value, spec).replace(".", "")) == value


def test_a_recorded_proof_holds_for_its_item_alone(pki: TestPki) -> None:
    signer = pki.signer("recorded")
    identity = pki.verifier.remember(signer.chain)
    digests = [bytes([place]) * 32 for place in range(3)]
    leaves = [record_leaf(40 + place, digest) for place, digest in enumerate(digests)]
    body = Recorded(root=merkle.tree_root(leaves), first=40, count=3, time=pki.clock.now())
    scribe = Scribe(
        signer=signer, issuer=f"signer/{identity.id}", clock=pki.clock, entropy=os.urandom, numbered=True
    )
    data = scribe.sign(body, subject="log").data
    path = tuple(merkle.inclusion_path(leaves, 1))
    check_recorded(RecordedProof(data, 41, path), digests[1], pki.verifier)
    for proof, digest in (
        (RecordedProof(data, 41, path), digests[0]),
        (RecordedProof(data, 42, path), digests[1]),
        (RecordedProof(data, 39, path), digests[1]),
        (RecordedProof(data, 41, path[:-1]), digests[1]),
        (RecordedProof(data[:-1] + bytes([data[-1] ^ 1]), 41, path), digests[1]),
        (RecordedProof(b"", 41, path), digests[1]),
    ):
        with pytest.raises(Refused) as refusal:
            check_recorded(proof, digest, pki.verifier)
        assert refusal.value.reason is Reason.NOT_RECORDED


@pytest.mark.holds("stolen-signers")
def test_a_recorded_proof_by_another_signer_is_worth_nothing(pki: TestPki) -> None:
    signer = pki.signer("decision")
    identity = pki.verifier.remember(signer.chain)
    digest = bytes(32)
    body = Recorded(root=record_leaf(0, digest), first=0, count=1, time=pki.clock.now())
    data = (
        Scribe(
            signer=signer, issuer=f"signer/{identity.id}", clock=pki.clock, entropy=os.urandom, numbered=True
        )
        .sign(body, subject="log")
        .data
    )
    with pytest.raises(Refused) as refusal:
        check_recorded(RecordedProof(data, 0, ()), digest, pki.verifier)
    assert refusal.value.reason is Reason.NOT_RECORDED


@pytest.mark.parametrize("action_class", list(ActionClass))
def test_the_effect_table(action_class: ActionClass) -> None:
    def allowed(effect: RevocationEffect | None, *, curative: bool = False, recovery: bool = False) -> bool:
        return permits_action(effect, action_class, curative=curative, recovery=recovery)

    gentle = action_class in (ActionClass.S1, ActionClass.R)
    for effect in (None, RevocationEffect.FLAG, RevocationEffect.NO_NEW):
        assert allowed(effect)
    assert allowed(RevocationEffect.CORRECTIVE_ONLY) == gentle
    assert allowed(RevocationEffect.CORRECTIVE_ONLY, curative=True) == (
        gentle or action_class in (ActionClass.C, ActionClass.U)
    )
    assert allowed(RevocationEffect.DENY) == (action_class is ActionClass.S1)
    assert allowed(RevocationEffect.DENY, curative=True) == (action_class in (ActionClass.S1, ActionClass.U))
    assert allowed(RevocationEffect.DENY, recovery=True) == (action_class in (ActionClass.S1, ActionClass.C))
    assert permits_install(None)
    assert not permits_install(RevocationEffect.NO_NEW)
    assert action_class in RULES


def test_an_action_specification_is_a_value() -> None:
    assert dataclasses.replace(SET_PRESSURE, approvals=1) != SET_PRESSURE
    assert isinstance(SET_PRESSURE, ActionSpec)
