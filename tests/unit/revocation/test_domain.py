"""The rules of revoking, and of signing heads."""

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import TestPki
from vigil.core import cbor, merkle
from vigil.core.certificates import EVERY, Identity, Kind
from vigil.core.classes import CLOCK_AGREEMENT_MS
from vigil.core.revocations import Lease
from vigil.core.signing_clock import START_SLACK_MS, SigningClock
from vigil.core.statements.bodies import (
    Reinstatement,
    Revocation,
    RevocationEffect,
    RevocationReason,
    Scope,
)
from vigil.errors import Reason, Refused
from vigil.revocation import edge_store, store
from vigil.revocation.domain import (
    ALONE_IDS,
    ALONE_STATEMENTS,
    EFFECTS,
    Owner,
    Recent,
    Reinstater,
    Step,
    check_reinstatement_form,
    check_reinstaters,
    check_revocation,
    check_scope,
    needs_second_person,
    read_record_body,
    record_body,
    root_and_paths,
    subjects_of,
)
from vigil.storage import assert_migrations_match

NOW = 1_790_000_000_000
DAY = 86_400_000
PUMP = "dev-aaaaaaaaaaaaaaaa"
HEX = "ab" * 32


def body(*ids: str, scope: Scope = Scope.DEVICE, **values: Any) -> Revocation:
    settings: dict[str, Any] = {"effect": RevocationEffect.DENY, "reason": RevocationReason.LOST, **values}
    return Revocation(scope=scope, ids=ids, **settings)


def reason_of(run: Any, *arguments: Any, **named: Any) -> Reason | None:
    try:
        run(*arguments, **named)
    except Refused as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize("migrations", ["migrations", "edge_migrations"])
def test_migrations_lead_to_the_tables(migrations: str) -> None:
    metadata = {"migrations": store.METADATA, "edge_migrations": edge_store.METADATA}[migrations]
    assert_migrations_match(metadata, f"vigil.revocation.{migrations}")


@pytest.mark.parametrize(
    ("revocation", "field"),
    [
        (body(PUMP, PUMP), "ids"),
        (body("dev-AAAAAAAAAAAAAAAA"), "ids"),
        (body(PUMP + "\n"), "ids"),
        (body(HEX.upper(), scope=Scope.BUILD), "ids"),
        (body("principal/", scope=Scope.CREDENTIAL), "ids"),
        (body(PUMP, scope=Scope.GATEWAY, effect=RevocationEffect.FLAG), "effect"),
        (body(HEX, scope=Scope.CREDENTIAL, effect=RevocationEffect.FLAG), "effect"),
        (body(PUMP, effect=RevocationEffect.NO_NEW), "effect"),
        (body(PUMP, expires=NOW), "expires"),
    ],
)
def test_malformed_revocations(revocation: Revocation, field: str) -> None:
    with pytest.raises(Refused) as caught:
        check_revocation(revocation, issued_at_ms=NOW, now=NOW)
    assert caught.value.refusals[0].values["field"] == field


def test_well_formed_revocations_and_signatures_from_the_future() -> None:
    names = {Scope.DEVICE: PUMP, Scope.GATEWAY: "gateway-1"}
    for scope, effects in EFFECTS.items():
        for effect in effects:
            revocation = body(names.get(scope, HEX), scope=scope, effect=effect, expires=NOW + 1)
            check_revocation(revocation, issued_at_ms=NOW + 30_000, now=NOW)
    assert (
        reason_of(check_revocation, body(PUMP), issued_at_ms=NOW + DAY + 1, now=NOW) is Reason.FIELD_INVALID
    )
    check_revocation(body(PUMP), issued_at_ms=NOW + DAY, now=NOW)


@pytest.mark.holds("rogue-revoker")
def test_reinstatements_free_what_was_revoked_within_a_day() -> None:
    free = Reinstatement(revocation=bytes(32), scope=Scope.DEVICE, ids=(PUMP,), reason="found")
    other = "dev-bbbbbbbbbbbbbbbb"

    def judge(what: Reinstatement, *issued: int) -> Reason | None:
        return reason_of(check_reinstatement_form, what, body(PUMP), issued=issued, now=NOW)

    assert judge(free, NOW, NOW - 86_400_000) is None
    assert judge(free, NOW, NOW - 86_400_001) is Reason.INTENT_EXPIRED
    assert judge(free, NOW, NOW + 31_000) is Reason.FIELD_INVALID
    assert judge(replace(free, ids=(PUMP, other)), NOW) is Reason.FIELD_INVALID
    assert judge(replace(free, scope=Scope.GATEWAY, ids=("gateway-1",)), NOW) is Reason.FIELD_INVALID


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return TestPki(tmp_path_factory.mktemp("pki")).person("p-recall", "recall").identity


OWNERS = {
    (Scope.DEVICE, PUMP): Owner("hospital", ("site-1",)),
    (Scope.DEVICE, "dev-bbbbbbbbbbbbbbbb"): Owner("hospital", ("site-2",)),
    (Scope.DEVICE, "dev-cccccccccccccccc"): Owner("clinic", ("site-1",)),
    (Scope.CREDENTIAL, "principal/p-chief"): Owner("hospital", (EVERY,)),
    (Scope.CREDENTIAL, "principal/p-nurse"): Owner("hospital", ("site-1",)),
    (Scope.BUILD, HEX): Owner("hospital"),
}


@pytest.mark.holds("rogue-revoker")
@pytest.mark.parametrize(
    ("scope", "name", "bound", "everywhere"),
    [
        (Scope.DEVICE, PUMP, True, True),
        (Scope.DEVICE, "dev-bbbbbbbbbbbbbbbb", False, True),
        (Scope.DEVICE, "dev-cccccccccccccccc", False, False),
        (Scope.DEVICE, "dev-dddddddddddddddd", False, False),
        (Scope.CREDENTIAL, "principal/p-nurse", True, True),
        (Scope.CREDENTIAL, "principal/p-chief", False, True),
        (Scope.BUILD, HEX, False, True),
        (Scope.SIGNER, HEX, False, False),
    ],
)
def test_scope(person: Identity, scope: Scope, name: str, bound: bool, everywhere: bool) -> None:
    def allowed(caller: Identity) -> bool:
        reason = reason_of(check_scope, caller, scope, (name,), find=lambda *key: OWNERS.get(key))
        assert reason in (None, Reason.NOT_IN_SCOPE)
        return reason is None

    assert person.kind is Kind.PERSON
    assert allowed(person) is bound
    assert allowed(replace(person, sites=(EVERY,))) is everywhere
    operator = replace(person, organization="operator", operator=True, sites=(EVERY,), roles=("admin",))
    assert allowed(operator)


@pytest.mark.holds("rogue-revoker")
def test_a_signer_needs_an_administrator_and_one_foreign_id_spoils_all(person: Identity) -> None:
    recall = replace(person, operator=True, sites=(EVERY,))
    find: Any = lambda *key: OWNERS.get(key)  # noqa: E731
    assert reason_of(check_scope, recall, Scope.SIGNER, (HEX,), find=find) is Reason.ROLE_NOT_PERMITTED
    both = (PUMP, "dev-cccccccccccccccc")
    assert reason_of(check_scope, person, Scope.DEVICE, both, find=find) is Reason.NOT_IN_SCOPE


PEOPLE = (
    Reinstater("p-one", ("aa" * 32, "bb" * 32)),
    Reinstater("p-two", ()),
    Reinstater("p-three", ("cc" * 32,)),
)


@pytest.mark.holds("rogue-revoker")
@pytest.mark.parametrize(
    ("ids", "revoked", "held"),
    [
        (["principal/p-one"], [], True),
        (["principal/p-one", "principal/p-two"], [], False),
        (["principal/p-one"], ["principal/p-two"], False),
        (["aa" * 32], ["principal/p-two"], True),
        (["aa" * 32, "bb" * 32], ["principal/p-two"], False),
        (["aa" * 32], ["bb" * 32, "cc" * 32], False),
        (["principal/p-nurse"], ["principal/p-two", "principal/p-three"], True),
        (["principal/p-two"], ["principal/p-one", "principal/p-three"], False),
    ],
)
def test_two_reinstaters_remain(ids: list[str], revoked: list[str], held: bool) -> None:
    revocation = body(*ids, scope=Scope.CREDENTIAL)
    reason = reason_of(check_reinstaters, revocation, PEOPLE, is_revoked=revoked.__contains__)
    assert reason is (None if held else Reason.STATE_CONFLICT)


@pytest.mark.holds("rogue-revoker")
def test_the_second_person() -> None:
    assert not needs_second_person(Recent(ALONE_STATEMENTS - 1, ALONE_IDS - 1), body(PUMP))
    assert needs_second_person(Recent(ALONE_STATEMENTS, 0), body(PUMP))
    assert needs_second_person(Recent(0, ALONE_IDS), body(PUMP))


def test_records_of_steps() -> None:
    data = record_body(epoch=7, chain=bytes(32), time=NOW)
    assert read_record_body(data) == Step(7, bytes(32), NOW)
    for other in (
        b"",
        b"\xff",
        data + b"\x00",
        cbor.encode({"epoch": 0, "chain": bytes(32), "time": NOW}),
        cbor.encode({"epoch": 2**63, "chain": bytes(32), "time": NOW}),
        cbor.encode({"epoch": 7, "chain": bytes(31), "time": NOW}),
        cbor.encode([7]),
    ):
        assert read_record_body(other) is None
    names = tuple(f"principal/p-{n}" for n in range(1000))
    subjects = subjects_of(Scope.CREDENTIAL, names)
    assert subjects[:2] == ("revocation/log", "person/p-0")
    assert len(subjects) <= 62  # the log takes 64, the statement's own and the revoker's among them


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=16, max_size=64), min_size=1, max_size=40))
def test_all_paths_at_once_are_those_of_rfc_6962(values: list[bytes]) -> None:
    root, steps = root_and_paths(values)
    leaves = [merkle.leaf_hash(value) for value in values]
    assert root == merkle.tree_root(leaves)
    for index, step in enumerate(steps):
        assert (step.index, step.size) == (index, len(values))
        assert list(step.path) == merkle.inclusion_path(leaves, index)


# --- time


@pytest.mark.holds("clock-steps")
def test_a_clock_that_is_ahead_at_the_start_withholds_heads() -> None:
    clock = SigningClock(durable=NOW, monotonic=100.0)
    assert clock.time(now=NOW + START_SLACK_MS, monotonic=100.0) == NOW + START_SLACK_MS
    with pytest.raises(Refused) as caught:
        SigningClock(durable=NOW, monotonic=100.0).time(now=NOW + START_SLACK_MS + 1, monotonic=100.0)
    assert caught.value.reason is Reason.STATE_CONFLICT


@pytest.mark.holds("wrong-decade")
def test_a_clock_that_leaps_withholds_heads_until_it_is_right_again() -> None:
    clock = SigningClock(durable=None, monotonic=0.0)
    clock.stored(clock.time(now=NOW, monotonic=0.0), monotonic=0.0)
    ten_years = 10 * 365 * 86_400_000
    for leap in (CLOCK_AGREEMENT_MS + 5_001, ten_years):
        assert reason_of(clock.time, now=NOW + leap, monotonic=5.0) is Reason.STATE_CONFLICT
    assert clock.time(now=NOW + 5_000, monotonic=5.0) == NOW + 5_000


@pytest.mark.holds("clock-steps")
def test_signed_time_never_steps_back() -> None:
    clock = SigningClock(durable=NOW, monotonic=0.0)
    assert clock.time(now=NOW + 1_000, monotonic=1.0) == NOW + 1_000
    assert clock.time(now=NOW - 86_400_000, monotonic=2.0) == NOW + 1_000
    assert clock.time(now=NOW + 1_500, monotonic=3.0) == NOW + 1_500


@pytest.mark.holds("clock-steps")
def test_a_clock_that_was_set_back_and_right_again_withholds_nothing() -> None:
    clock = SigningClock(durable=NOW, monotonic=0.0)
    clock.stored(clock.time(now=NOW + 1_000, monotonic=1.0), monotonic=1.0)
    for second in range(2, 120):
        time = clock.time(now=NOW + second * 1000 - 3_600_000, monotonic=float(second))
        assert time == NOW + 1_000
        clock.stored(time, monotonic=float(second))
    assert clock.time(now=NOW + 120_000, monotonic=120.0) == NOW + 120_000
    ahead = NOW + 120_000 + CLOCK_AGREEMENT_MS + 1
    assert reason_of(clock.time, now=ahead, monotonic=120.0) is Reason.STATE_CONFLICT


@pytest.mark.holds("clock-steps")
def test_a_clock_that_starts_behind_is_still_at_its_start_when_it_is_set_right() -> None:
    clock = SigningClock(durable=NOW, monotonic=0.0)
    for second in range(5):
        clock.stored(
            clock.time(now=NOW - 3_600_000 + second * 1000, monotonic=float(second)), monotonic=float(second)
        )
    assert clock.time(now=NOW + 60_000, monotonic=6.0) == NOW + 60_000


@pytest.mark.holds("wrong-decade")
def test_an_era_resets_signed_time() -> None:
    clock = SigningClock(durable=NOW + 10 * 365 * 86_400_000, monotonic=0.0)
    assert clock.time(now=NOW, monotonic=0.0) > NOW
    clock.begin_again(NOW - 1_000, monotonic=1.0)
    assert clock.time(now=NOW, monotonic=1.0) == NOW


def test_a_day_without_readers_withholds_nothing() -> None:
    clock = SigningClock(durable=NOW, monotonic=0.0)
    for second in range(0, 86_400, 60):
        clock.stored(clock.time(now=NOW + second * 1000, monotonic=second), monotonic=second)
    assert clock.time(now=NOW + 86_400_000, monotonic=86_400.0) == NOW + 86_400_000


@pytest.mark.holds("captured-bus", "even-delay")
def test_heads_that_are_all_late_by_a_minute_let_the_lease_run_out() -> None:
    lease = Lease(keep=64)
    challenges = [os.urandom(16) for _ in range(60)]
    for second, challenge in enumerate(challenges):
        lease.sent(challenge, monotonic=float(second))
        if second >= 30:
            assert lease.answered(challenges[second - 30])
            assert lease.age(monotonic=float(second)) == 30.0
