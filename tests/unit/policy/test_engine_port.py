"""The one reading of answers: what is taken, and that nothing else is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.errors import Reason, Refused
from vigil.policy.engine.port import (
    ANSWER_LIMIT,
    COMMAND_REASONS,
    DOCUMENT_LIMIT,
    Obligation,
    RuleReason,
    Verdict,
    decode_answer,
    encode_document,
    read_verdict,
)

YES: dict[str, Any] = {"allow": True, "reasons": [], "obligations": []}
HOLD: dict[str, Any] = {
    "reason": "EVIDENCE_HOLD",
    "rule": "vigil.command.hold_absent",
    "values": {"holds": 1},
}
NO: dict[str, Any] = {"allow": False, "reasons": [HOLD], "obligations": []}
STAGE: dict[str, Any] = {"kind": "stage", "values": {"until": "idle"}}

UNUSABLE: list[Any] = [
    None,
    True,
    [],
    "allow",
    {},
    {"allow": True},
    {**YES, "more": 1},
    {**YES, "allow": 1},
    {**YES, "allow": "true"},
    {**YES, "allow": None},
    {**YES, "reasons": None},
    {**YES, "reasons": {}},
    {**YES, "reasons": [HOLD]},
    {**YES, "obligations": [{"kind": "stage"}]},
    {**YES, "obligations": [{"kind": "stage", "values": {}}]},
    {**YES, "obligations": [{"kind": "stage", "values": {"until": "later"}}]},
    {**YES, "obligations": [{"kind": "stage", "values": {"until": "idle", "more": 1}}]},
    {**YES, "obligations": [{"kind": "stage", "values": {"until": True}}]},
    {**YES, "obligations": [{"kind": "fly", "values": {}}]},
    {**YES, "obligations": [{"kind": ["stage"], "values": {"until": "idle"}}]},
    {**YES, "obligations": [STAGE] * 65},
    {**NO, "obligations": [STAGE]},
    {**NO, "reasons": ["EVIDENCE_HOLD"]},
    {**NO, "reasons": [{**HOLD, "more": 1}]},
    {**NO, "reasons": [{**HOLD, "reason": "evidence hold"}]},
    {**NO, "reasons": [{**HOLD, "reason": "EVIDENCE_HOLD\n"}]},
    {**NO, "reasons": [{**HOLD, "reason": None}]},
    {**NO, "reasons": [{**HOLD, "rule": ""}]},
    {**NO, "reasons": [{**HOLD, "rule": "a rule\n"}]},
    {**NO, "reasons": [{**HOLD, "values": []}]},
    {**NO, "reasons": [{**HOLD, "values": {"Holds": 1}}]},
    {**NO, "reasons": [{**HOLD, "values": {"holds": None}}]},
    {**NO, "reasons": [{**HOLD, "values": {"holds": 1.0}}]},
    {**NO, "reasons": [{**HOLD, "values": {"holds": 2**53}}]},
    {**NO, "reasons": [{**HOLD, "values": {"holds": [1]}}]},
    {**NO, "reasons": [{**HOLD, "values": {"holds": "x" * 257}}]},
    {**NO, "reasons": [{**HOLD, "values": {f"v{n}": n for n in range(17)}}]},
    {**NO, "reasons": [HOLD] * 65},
]


@pytest.mark.parametrize("result", UNUSABLE, ids=range(len(UNUSABLE)))
def test_what_is_not_of_the_schema_is_undefined(result: Any) -> None:
    with pytest.raises(Refused) as refusal:
        read_verdict(result)
    assert refusal.value.reason is Reason.POLICY_UNDEFINED


def test_a_permission_is_read() -> None:
    result = {**YES, "obligations": [STAGE, {"kind": "review", "values": {}}]}
    assert read_verdict(result) == Verdict(
        allow=True, reasons=(), obligations=(Obligation("review", {}), Obligation("stage", {"until": "idle"}))
    )


def test_a_refusal_is_read_in_the_order_of_the_error_tree() -> None:
    scope = {"reason": "NOT_IN_SCOPE", "rule": "vigil.command.device_in_scope", "values": {}}
    assert read_verdict({**NO, "reasons": [HOLD, scope]}).reasons == (
        RuleReason(Reason.NOT_IN_SCOPE, "vigil.command.device_in_scope", {}),
        RuleReason(Reason.EVIDENCE_HOLD, "vigil.command.hold_absent", {"holds": 1}),
    )


def test_a_bare_no_is_policy_denied_by_the_decision() -> None:
    assert read_verdict({**NO, "reasons": []}).reasons == (
        RuleReason(Reason.POLICY_DENIED, "vigil.command.decision", {}),
    )


@pytest.mark.parametrize("identifier", ["MERCURY", "INTERNAL", "SIGNATURE_INVALID", "OUTCOME_UNKNOWN"])
def test_a_reason_that_is_not_for_policies_is_policy_denied_by_its_rule(identifier: str) -> None:
    assert read_verdict({**NO, "reasons": [{**HOLD, "reason": identifier}]}).reasons == (
        RuleReason(Reason.POLICY_DENIED, "vigil.command.hold_absent", {"reason": identifier}),
    )


@pytest.mark.parametrize("reason", sorted(COMMAND_REASONS))
def test_each_reason_for_policies_passes(reason: Reason) -> None:
    assert read_verdict({**NO, "reasons": [{**HOLD, "reason": reason.value}]}).reasons[0].reason is reason


@pytest.mark.holds("policy-editor")
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["allow", "reasons", "obligations", "kind", "values"]), inner, max_size=5
            )
        ),
        max_leaves=20,
    )
)
def test_any_value_is_a_verdict_or_undefined(result: Any) -> None:
    try:
        verdict = read_verdict(result)
    except Refused as refusal:
        reason: Reason | None = refusal.reason
    else:
        reason = None
        assert verdict.allow is result["allow"]
        assert verdict.allow is not bool(verdict.reasons)
    assert reason in {None, Reason.POLICY_UNDEFINED}


@pytest.mark.parametrize("answer", [b"", b"{", b"\xff", b"[" * 60_000, b" " * (ANSWER_LIMIT + 1)])
def test_an_answer_that_is_no_small_json_is_undefined(answer: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        decode_answer(answer)
    assert refusal.value.reason is Reason.POLICY_UNDEFINED


def test_the_bound_of_a_question_is_in_bytes() -> None:
    fits = {"a": "x" * (DOCUMENT_LIMIT - len('{"a":""}'))}
    assert len(encode_document(fits)) == DOCUMENT_LIMIT
    with pytest.raises(Refused):
        encode_document({"a": "é" * (DOCUMENT_LIMIT // 2)})
