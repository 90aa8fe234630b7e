"""The port behind which Rego is asked, and the one reading of its answers.

Invariants, whichever engine answers:

1. Undefined, non-boolean, erroring or late policy means refuse. An engine returns a `Verdict` or raises
   `Refused` with POLICY_UNDEFINED or POLICY_UNAVAILABLE; there is no third way out.
2. An answer is read against a strict schema. A missing or additional member, another type, a permission that
   carries reasons or an obligation that nobody knows is POLICY_UNDEFINED.
3. A refusal always carries a reason: a bare no, and an identifier that `vigil.errors` does not list for
   commands, become POLICY_DENIED with the rule named.
4. The order of reasons and obligations does not depend on the engine.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vigil.errors import Reason, Refused, refused

ENTRYPOINT: Final = "vigil/command/decision"
"""The one rule that is asked, as a path under OPA's `data`."""

ENTRYPOINT_RULE: Final = ENTRYPOINT.replace("/", ".")

DOCUMENT_LIMIT: Final = 32_768
"""Bytes of one question as JSON. A command with ten approvers needs 2,000."""

ANSWER_LIMIT: Final = 65_536
"""Bytes of one answer as JSON."""

_ENTRIES_LIMIT: Final = 64
_VALUES_LIMIT: Final = 16
_STRING_LIMIT: Final = 256
_INTEGER_LIMIT: Final = 2**53 - 1  # RFC 8259, section 6: integers that every JSON reader agrees on

_ANSWER_MEMBERS: Final = {"allow", "reasons", "obligations"}
_REASON_MEMBERS: Final = {"reason", "rule", "values"}
_OBLIGATION_MEMBERS: Final = {"kind", "values"}

_IDENTIFIER = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_RULE = re.compile(r"[a-z][A-Za-z0-9_.]{0,127}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

COMMAND_REASONS: Final[frozenset[Reason]] = frozenset(
    {
        Reason.ROLE_NOT_PERMITTED,
        Reason.NOT_IN_SCOPE,
        Reason.CREDENTIAL_REVOKED,
        Reason.GATEWAY_REVOKED,
        Reason.DEVICE_REVOKED,
        Reason.DEVICE_QUARANTINED,
        Reason.FIRMWARE_REVOKED,
        Reason.ACTION_UNKNOWN,
        Reason.PARAMETER_INVALID,
        Reason.PARAMETER_OUT_OF_RANGE,
        Reason.WORK_ORDER_MISSING,
        Reason.THERAPY_NOT_ENABLED,
        Reason.EVIDENCE_HOLD,
        Reason.ATTESTATION_MISSING,
        Reason.ATTESTATION_CONTRAINDICATED,
        Reason.ATTESTATION_STALE,
        Reason.ATTESTATION_WARNING,
        Reason.FIRMWARE_ROLLBACK,
        Reason.APPROVALS_MISSING,
        Reason.APPROVER_NOT_DISTINCT,
        Reason.BEDSIDE_CONFIRMATION_MISSING,
        Reason.PATIENT_CONNECTED,
        Reason.OUTSIDE_WINDOW,
        Reason.POLICY_DENIED,
    }
)
"""The reasons that a policy may give for a command; any other identifier becomes POLICY_DENIED."""

OBLIGATIONS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "stage": {"until": frozenset({"idle", "bedside_release", "window"})},
    "show_attestation": {},
    "review": {},
}
"""The obligations that a permit can carry: kind, its values and what they may be."""

_REASON_ORDER = {reason: place for place, reason in enumerate(Reason)}

Values = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class RuleReason:
    """Why the policy refused: an identifier of `vigil.errors`, the rule that gave it, structured details."""

    reason: Reason
    rule: str
    values: Values


@dataclass(frozen=True, slots=True)
class Obligation:
    """What an allowed command owes: a kind and its values, as in `OBLIGATIONS`."""

    kind: str
    values: Values


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one question. `allow` has no reasons; a refusal has at least one and no obligations."""

    allow: bool
    reasons: tuple[RuleReason, ...]
    obligations: tuple[Obligation, ...]


class PolicyEngine(Protocol):
    """Answers one question with the policy of one revision."""

    @property
    def revision(self) -> str:
        """The revision of the bundle that answers: the digest of its sources, lowercase hex."""

    async def decide(self, document: Mapping[str, Any]) -> Verdict:
        """Answer the question `document` (policies/schemas/command.json).

        Raises `Refused`: POLICY_UNDEFINED when the answer is undefined or is not of the schema,
        POLICY_UNAVAILABLE when there is no answer in time.
        """

    async def close(self) -> None:
        """Give back what the engine holds; afterwards it refuses."""


def undefined(detail: str) -> Refused:
    """The refusal for a policy that gave no usable answer."""
    return refused(
        Reason.POLICY_UNDEFINED,
        f"The policy gave no usable answer: {detail}.",
        lifted_by="a corrected policy",
        who="security team",
    )


def unavailable(detail: str) -> Refused:
    """The refusal for an engine that gave no answer at all."""
    return refused(
        Reason.POLICY_UNAVAILABLE,
        f"The policy could not be asked: {detail}.",
        lifted_by="a policy engine that answers in time",
        who="operator",
    )


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


def encode_document(document: Mapping[str, Any]) -> bytes:
    """The question as compact JSON in UTF-8, at most DOCUMENT_LIMIT bytes; else POLICY_UNDEFINED."""
    try:
        encoded = _encode(document).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise undefined("the question cannot be written as JSON") from error
    if len(encoded) > DOCUMENT_LIMIT:
        raise undefined(f"the question is larger than {DOCUMENT_LIMIT} bytes")
    return encoded


def decode_answer(answer: bytes) -> Any:
    """Parse what an engine answered, at most ANSWER_LIMIT bytes of JSON; else POLICY_UNDEFINED."""
    if len(answer) > ANSWER_LIMIT:
        raise undefined(f"the answer is larger than {ANSWER_LIMIT} bytes")
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise undefined("the answer is not JSON") from error


def read_verdict(result: object) -> Verdict:
    """Read the value of ENTRYPOINT strictly; anything that is not of the schema is POLICY_UNDEFINED."""
    if not isinstance(result, dict) or result.keys() != _ANSWER_MEMBERS:
        raise undefined("the decision does not have the members allow, reasons and obligations alone")
    allow = result["allow"]
    if allow is not True and allow is not False:
        raise undefined("allow is not a boolean")
    reasons = tuple(_read_reason(entry) for entry in _entries(result["reasons"], "reasons"))
    obligations = tuple(_read_obligation(entry) for entry in _entries(result["obligations"], "obligations"))
    if allow:
        if reasons:
            raise undefined("a permission carries reasons to refuse")
        return Verdict(allow=True, reasons=(), obligations=tuple(sorted(obligations, key=_obligation_order)))
    if obligations:
        raise undefined("a refusal carries obligations")
    if not reasons:
        reasons = (RuleReason(Reason.POLICY_DENIED, ENTRYPOINT_RULE, {}),)
    return Verdict(allow=False, reasons=tuple(sorted(reasons, key=_reason_order)), obligations=())


def _entries(value: object, name: str) -> list[object]:
    if not isinstance(value, list) or len(value) > _ENTRIES_LIMIT:
        raise undefined(f"{name} is not a list of at most {_ENTRIES_LIMIT}")
    return value


def _read_reason(entry: object) -> RuleReason:
    if not isinstance(entry, dict) or entry.keys() != _REASON_MEMBERS:
        raise undefined("a reason does not have the members reason, rule and values alone")
    identifier, rule = entry["reason"], entry["rule"]
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        raise undefined("a reason is not an identifier")
    if not isinstance(rule, str) or not _RULE.fullmatch(rule):
        raise undefined("a reason's rule is not the name of a rule")
    values = _read_values(entry["values"])
    reason = Reason.__members__.get(identifier)
    if reason is None or reason not in COMMAND_REASONS:
        return RuleReason(Reason.POLICY_DENIED, rule, {"reason": identifier})
    return RuleReason(reason, rule, values)


def _read_obligation(entry: object) -> Obligation:
    if not isinstance(entry, dict) or entry.keys() != _OBLIGATION_MEMBERS:
        raise undefined("an obligation does not have the members kind and values alone")
    kind, values = entry["kind"], _read_values(entry["values"])
    known = OBLIGATIONS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise undefined("an obligation is of a kind that nobody could fulfil")
    if values.keys() != known.keys() or any(values[name] not in known[name] for name in known):
        raise undefined(f"the obligation {kind} has values that nobody could fulfil")
    return Obligation(kind, values)


def _read_values(value: object) -> Values:
    if not isinstance(value, dict) or len(value) > _VALUES_LIMIT:
        raise undefined(f"values is not an object of at most {_VALUES_LIMIT} members")
    for name, detail in value.items():
        if not _NAME.fullmatch(name):
            raise undefined("the name of a value is not an identifier")
        if isinstance(detail, str):
            valid = len(detail) <= _STRING_LIMIT
        else:
            valid = isinstance(detail, int) and abs(detail) <= _INTEGER_LIMIT
        if not valid:
            raise undefined(f"the value {name} is not a short string, an integer or a boolean")
    return value


def _reason_order(reason: RuleReason) -> tuple[int, str, str]:
    return _REASON_ORDER[reason.reason], reason.rule, _canonical(reason.values)


def _obligation_order(obligation: Obligation) -> tuple[str, str]:
    return obligation.kind, _canonical(obligation.values)


def _canonical(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
