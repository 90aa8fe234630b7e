"""Profiles as people edit them (JSON), and what a profile must hold to before anybody signs or publishes it.

In JSON, limits are written as people say them (``"maximum": 12.5`` with ``"scale": 1``); in the statement they are
integers. Every object may carry a ``note`` (a limit's source): it is for readers and is not signed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, TypeVar

from vigil.core import strict_json
from vigil.core.statements.bodies import (
    ActionClass,
    ActionSpec,
    Effect,
    ParameterSpec,
    ParameterType,
    Profile,
    RiskClass,
    TherapyState,
)
from vigil.core.statements.schema import decode_body, encode_body
from vigil.errors import Reason, Refusal, Refused, refused

MAX_PROFILE_BYTES: Final = 256 << 10
DEFAULT_THERAPY_LIFETIME_S: Final = 60

CLASS_OF: Final[Mapping[Effect, ActionClass]] = {
    Effect.SET: ActionClass.C,
    Effect.INSTALL_BASELINE: ActionClass.C,
    Effect.INSTALL_LIBRARY: ActionClass.C,
    Effect.RELEASE_QUARANTINE: ActionClass.C,
    Effect.LIFT_HOLD: ActionClass.C,
    Effect.UPDATE: ActionClass.U,
    Effect.DIAGNOSE: ActionClass.R,
    Effect.QUARANTINE: ActionClass.S1,
    Effect.HOLD: ActionClass.S1,
    Effect.ALERT: ActionClass.S1,
    Effect.THERAPY: ActionClass.T,
    Effect.CLEAR: ActionClass.D,
}
"""What an effect can do decides the class of any action that has it (docs/protocol.md, Classes)."""

LEAST_APPROVALS: Final[Mapping[ActionClass, int]] = {ActionClass.U: 1, ActionClass.D: 2}
"""Class U wants two, of which the manufacturer's release signature may be one; class D two persons."""

INSTALLS: Final[Mapping[Effect, str]] = {
    Effect.UPDATE: "firmware",
    Effect.INSTALL_BASELINE: "baseline",
    Effect.INSTALL_LIBRARY: "library",
}
"""The required digest parameter that names what is installed."""

RECOVERY: Final = frozenset({Effect.RELEASE_QUARANTINE, Effect.LIFT_HOLD})
_ACTION_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
_PARAMETER_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_ANY: Final = "any"
_E = TypeVar("_E", bound=StrEnum)
_T = TypeVar("_T")


def default_attestation_lifetime_s(risk_class: RiskClass) -> int:
    """How long an attestation counts when a profile's source does not say: the higher the risk, the shorter."""
    return {RiskClass.III: 300, RiskClass.IIB: 600, RiskClass.IIA: 1_800, RiskClass.I: 3_600}[risk_class]


# --- JSON


def profile_from_json(text: str) -> Profile:
    """Read a profile's source and check it. Raises FIELD_INVALID, with every fault that `check_profile` finds."""
    try:
        value = strict_json.parse(
            text.encode(errors="surrogatepass"), max_bytes=MAX_PROFILE_BYTES, decimals=Decimal
        )
        profile = _profile(_Object(value, "profile"))
    except ValueError as error:
        raise invalid("profile", f"the profile cannot be read: {error}") from None
    try:
        profile = decode_body(Profile, encode_body(profile))
    except Refused as error:
        raise invalid("profile", error.refusals[0].sentence) from None
    refusals = check_profile(profile)
    if refusals:
        raise Refused(refusals)
    return profile


def profile_to_json(profile: Profile) -> str:
    """Write a profile as its source, without notes."""
    value = {
        "model": profile.model,
        "version": profile.version,
        "risk_class": str(profile.risk_class),
        "attestation_lifetime_s": profile.attestation_lifetime_s,
        "therapy_lifetime_s": profile.therapy_lifetime_s,
        "patient_state_source": profile.patient_state_source,
        "actions": [_action_to(action) for action in profile.actions],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


class _Object:
    """An object of the source whose members are taken one by one; what is left over is unknown."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object")  # noqa: TRY004 - one kind of error for what was read
        self._left = dict(value)
        self._where = where
        self._left.pop("note", None)

    def take(self, name: str, kind: type[_T], *default: _T) -> _T:
        where = f"{self._where}.{name}"
        if name not in self._left:
            if default:
                return default[0]
            raise ValueError(f"{where} is missing")
        value = self._left.pop(name)
        if type(value) is not kind:
            raise ValueError(f"{where} must be of the kind {_KIND_NAMES.get(kind, kind.__name__)}")
        return value

    def choice(self, name: str, kind: type[_E]) -> _E:
        return _member(self.take(name, str), kind, f"{self._where}.{name}")

    def number(self, name: str, scale: int) -> int | None:
        """A limit as people write it; an integer in scaled units."""
        value = self._left.pop(name, None)
        return None if value is None else scaled(value, scale, f"{self._where}.{name}")

    def end(self) -> None:
        if self._left:
            raise ValueError(f"{self._where} has no member {', '.join(sorted(self._left))}")


_KIND_NAMES: Final[dict[Any, str]] = {
    str: "text",
    int: "whole number",
    bool: "true or false",
    list: "array",
    dict: "object",
}


def scaled(value: object, scale: int, where: str) -> int:
    """A JSON number as an integer with ``scale`` decimal digits after the point. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ValueError(f"{where} must be a number")  # noqa: TRY004 - as in _Object
    if not 0 <= scale <= 9:
        raise ValueError(f"{where}: a scale lies from 0 to 9")
    number = Decimal(value)
    if number and not -30 <= number.adjusted() <= 18:
        raise ValueError(f"{where} lies outside every measure")
    product = number.scaleb(scale)
    if product != product.to_integral_value():
        raise ValueError(f"{where} has more than {scale} digits after the point, as its scale says")
    return int(product)


def _profile(source: _Object) -> Profile:
    risk = source.choice("risk_class", RiskClass)
    profile = Profile(
        model=source.take("model", str),
        version=source.take("version", int),
        risk_class=risk,
        attestation_lifetime_s=source.take(
            "attestation_lifetime_s", int, default_attestation_lifetime_s(risk)
        ),
        therapy_lifetime_s=source.take("therapy_lifetime_s", int, DEFAULT_THERAPY_LIFETIME_S),
        patient_state_source=source.take("patient_state_source", str),
        actions=tuple(
            _action(_Object(one, f"actions[{place}]"))
            for place, one in enumerate(source.take("actions", list))
        ),
    )
    source.end()
    return profile


def _action(source: _Object) -> ActionSpec:
    name = source.take("name", str)
    action = ActionSpec(
        name=name,
        action_class=source.choice("class", ActionClass),
        effect=source.choice("effect", Effect),
        parameters=tuple(
            _parameter(_Object(one, f"{name}.parameters[{place}]"))
            for place, one in enumerate(source.take("parameters", list, []))
        ),
        approvals=source.take("approvals", int, 0),
        states=_states(source.take("states", list), f"{name}.states"),
        corrective_when_warning=source.take("corrective_when_warning", bool, False),
        recovery=source.take("recovery", bool, False),
        therapy_enabled=source.take("therapy_enabled", bool, False),
    )
    source.end()
    return action


def _states(values: list[object], where: str) -> tuple[TherapyState, ...]:
    if values == [_ANY]:
        return tuple(TherapyState)
    return tuple(_member(value, TherapyState, where) for value in values)


def _parameter(source: _Object) -> ParameterSpec:
    scale = source.take("scale", int, 0)
    choices = source.take("choices", list, [])
    if not all(isinstance(one, str) for one in choices):
        raise ValueError("choices are texts")
    parameter = ParameterSpec(
        name=source.take("name", str),
        type=source.choice("type", ParameterType),
        required=source.take("required", bool, True),
        unit=source.take("unit", str, ""),
        scale=scale,
        minimum=source.number("minimum", scale),
        maximum=source.number("maximum", scale),
        choices=tuple(choices),
    )
    source.end()
    return parameter


def _member(value: object, kind: type[_E], where: str) -> _E:
    for member in kind:
        if value == str(member):
            return member
    raise ValueError(f"{where} must be one of {', '.join(kind)}")


def _action_to(action: ActionSpec) -> dict[str, object]:
    out: dict[str, object] = {
        "name": action.name,
        "class": str(action.action_class),
        "effect": str(action.effect),
        "states": [_ANY] if set(action.states) == set(TherapyState) else [str(one) for one in action.states],
        "approvals": action.approvals,
    }
    flags = ("corrective_when_warning", "recovery", "therapy_enabled")
    out.update({name: True for name in flags if getattr(action, name)})
    if action.parameters:
        out["parameters"] = [_parameter_to(one) for one in action.parameters]
    return out


def _parameter_to(spec: ParameterSpec) -> dict[str, object]:
    out: dict[str, object] = {"name": spec.name, "type": str(spec.type), "required": spec.required}
    if spec.unit:
        out["unit"] = spec.unit
    if spec.scale:
        out["scale"] = spec.scale
    for name, value in (("minimum", spec.minimum), ("maximum", spec.maximum)):
        if value is not None:
            number = Decimal(value).scaleb(-spec.scale)
            # A double shows every decimal of up to 15 digits as it was written.
            out[name] = int(number) if number == number.to_integral_value() else float(number)
    if spec.choices:
        out["choices"] = list(spec.choices)
    return out


# --- what a profile must hold to


def check_profile(profile: Profile) -> list[Refusal]:
    """Every fault of a profile, each FIELD_INVALID: names, classes by effect, approvals, limits, states."""
    faults: list[Refusal] = []

    def fault(where: str, sentence: str) -> None:
        faults.append(_fault(where, sentence))

    if not profile.actions:
        fault("actions", "a profile has at least one action")
    _doubled((action.name for action in profile.actions), fault, "actions", "action")
    for action in profile.actions:
        _check_action(action, fault)
    return faults


_Fault = Callable[[str, str], None]


def _check_action(action: ActionSpec, fault: _Fault) -> None:
    name = action.name
    if _ACTION_NAME.fullmatch(name) is None:
        fault(name, "an action's name is a slug: lowercase letters, digits and hyphens")
    wanted = CLASS_OF[action.effect]
    if action.action_class is not wanted:
        fault(name, f"an action with the effect {action.effect} is of class {wanted}")
    least = max(LEAST_APPROVALS.get(action.action_class, 0), 1 if action.effect in RECOVERY else 0)
    if action.approvals < least:
        fault(name, f"it needs at least {least} approval{'s' if least > 1 else ''} besides the requester")
    if action.action_class is ActionClass.S1 and action.approvals:
        fault(name, "a safety action waits for nobody's approval")
    # Leaving quarantine or a hold takes two persons and is open to a quarantined device; nothing else is.
    if action.recovery is not (action.effect in RECOVERY):
        fault(name, "recovery is for release-quarantine and lift-hold, and always for these")
    if action.therapy_enabled and action.action_class is not ActionClass.T:
        fault(name, "only an action of class T enables a therapy change")
    if action.corrective_when_warning and action.action_class is not ActionClass.C:
        fault(name, "only an action of class C corrects a warning")
    if not action.states or len(set(action.states)) != len(action.states):
        fault(name, "its states are at least one, each named once")
    if action.action_class in {ActionClass.U, ActionClass.D} and TherapyState.DELIVERING in action.states:
        fault(name, "an update or a destructive action is never applied while the pump delivers")
    _doubled((spec.name for spec in action.parameters), fault, name, "parameter")
    for spec in action.parameters:
        _check_parameter(spec, f"{name}.{spec.name}", fault)
    if action.effect in INSTALLS:
        wanted_name = INSTALLS[action.effect]
        digests = [spec for spec in action.parameters if spec.type is ParameterType.DIGEST]
        if len(digests) != 1 or digests[0].name != wanted_name or not digests[0].required:
            fault(name, f"it takes one digest, required and named {wanted_name}")
    if action.effect is Effect.SET and not action.parameters:
        fault(name, "an action that sets needs something to set")
    if action.effect is Effect.THERAPY and not any(
        spec.type is ParameterType.INTEGER and spec.required for spec in action.parameters
    ):
        fault(name, "a therapy action needs a required integer: the rate")


def _check_parameter(spec: ParameterSpec, where: str, fault: _Fault) -> None:
    if _PARAMETER_NAME.fullmatch(spec.name) is None:
        fault(where, "a parameter's name has lowercase letters, digits and underscores")
    if spec.type is ParameterType.INTEGER:
        if spec.minimum is None or spec.maximum is None:
            fault(where, "a number has both hard limits")
        elif spec.minimum > spec.maximum:
            fault(where, "its minimum lies above its maximum")
    elif spec.minimum is not None or spec.maximum is not None or spec.scale or spec.unit:
        fault(where, "only a number has limits, a scale or a unit")
    if (spec.type is ParameterType.CHOICE) is not bool(spec.choices):
        fault(where, "a choice names its choices, and nothing else has any")
    _doubled(spec.choices, fault, where, "choice")


def _doubled(names: Iterable[str], fault: _Fault, where: str, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            fault(where, f"the {what} {name} is named twice")
        seen.add(name)


def invalid(field: str, sentence: str) -> Refused:
    """Make a FIELD_INVALID about one field."""
    return Refused([_fault(field, sentence)])


def _fault(field: str, sentence: str) -> Refusal:
    (refusal,) = refused(
        Reason.FIELD_INVALID,
        f"{field}: {sentence}",
        lifted_by="a corrected file",
        who="its author",
        field=field,
    ).refusals
    return refusal
