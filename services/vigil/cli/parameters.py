"""Parameters as people type them, typed by the profile: scaled decimals, digests, choices."""

import re
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

from vigil.cli.options import UsageError
from vigil.core.commands import check_parameters, format_scaled
from vigil.core.statements.bodies import ActionSpec, ParameterSpec, ParameterType
from vigil.core.statements.schema import Scalar
from vigil.errors import Refused

_HEX: Final = re.compile(r"(?:0x|sha256:)?([0-9a-fA-F]{64})")

FindDigest = Callable[[ActionSpec, ParameterSpec, str], Awaitable[bytes]]
"""Looks up what a name such as `model@version` stands for."""


def split(pairs: Sequence[str]) -> dict[str, str]:
    """Read `name=value` each. Raises UsageError."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{pair!r} is no parameter: write name=value")
        if name in values:
            raise UsageError(f"the parameter {name} stands there twice")
        values[name] = value
    return values


async def typed(action: ActionSpec, texts: dict[str, str], *, find: FindDigest) -> dict[str, Scalar]:
    """The parameters as they are signed; names that the action does not know stay text.

    Raises UsageError for what cannot be of its type, and what ``find`` raises. Limits are not judged here: the
    policy says no to them on the record.
    """
    specs = {spec.name: spec for spec in action.parameters}
    values: dict[str, Scalar] = {}
    for name, text in texts.items():
        spec = specs.get(name)
        if spec is None:
            values[name] = text
        elif spec.type is ParameterType.DIGEST:
            match = _HEX.fullmatch(text)
            values[name] = bytes.fromhex(match[1]) if match else await find(action, spec, text)
        else:
            values[name] = _plain(spec, text)
    return values


def shown(action: ActionSpec | None, values: "dict[str, Scalar]") -> dict[str, str]:
    """Parameters as people read them, with their units."""
    specs = {spec.name: spec for spec in action.parameters} if action else {}
    out = {}
    for name, value in values.items():
        spec = specs.get(name)
        if type(value) is int and spec is not None:
            out[name] = format_scaled(value, spec)
        else:
            out[name] = value.hex() if isinstance(value, bytes) else str(value)
    return out


def faults(action: ActionSpec, values: "dict[str, Scalar]") -> list[str]:
    """What the profile will say about them, in words."""
    return [refusal.sentence for refusal in check_parameters(action, values)]


def _plain(spec: ParameterSpec, text: str) -> Scalar:
    if spec.type is not ParameterType.INTEGER:
        return text
    number = text.removesuffix(spec.unit).strip() if spec.unit else text
    try:
        product = Decimal(number).scaleb(spec.scale)
        whole = product.to_integral_value()
    except (InvalidOperation, Refused):
        raise UsageError(f"{spec.name} is a number, {text!r} is none") from None
    if not product.is_finite() or product != whole or not -(2**63) <= whole < 2**63:
        digits = f"at most {spec.scale} digits after the point" if spec.scale else "no fraction"
        raise UsageError(f"{spec.name} is a number with {digits}; {text!r} is not")
    return int(whole)
