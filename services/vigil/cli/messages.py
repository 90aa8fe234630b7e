"""Contracts' messages as JSON: ids bare, digests in hex, instants as RFC 3339 in UTC, enums by name in lower case."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from vigil.core.clock import rfc3339
from vigil.core.statements.schema import Scalar

STATEMENTS: Final = frozenset(
    {"statement", "statements", "profile", "result", "intent", "approvals", "command", "decision", "receipts"}
    | {"recorded", "attestation_chain", "leaf", "chain", "bodies", "certificate_pem", "manufacturer_root_pem"}
)
"""Members that hold signed bytes or PEM: what they say is shown elsewhere, verified."""


def plain(message: Message, *, omit: Collection[str] = STATEMENTS) -> dict[str, Any]:
    """Write a message as JSON values; every member is there, also when it is empty."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name in omit:
            continue
        name = field.name
        value = getattr(message, name)
        if is_instant(name):
            out[name.removesuffix("_ms")] = instant(value)
        else:
            out[name] = _value(field, value)
    return out


def instant(ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds; None for 0, which stands for none."""
    return rfc3339(ms) if ms else None


def scalar(value: Scalar) -> int | str | bool:
    """A parameter's value; bytes as hex."""
    return value.hex() if isinstance(value, bytes) else value


def scalars(values: Mapping[str, Scalar]) -> dict[str, int | str | bool]:
    """All of them, by name."""
    return {name: scalar(values[name]) for name in sorted(values)}


def is_instant(name: str) -> bool:
    """Whether a field holds ms since the epoch, by its name."""
    return name.endswith(("time_ms", "until_ms", "after_ms", "from_ms", "to_ms", "enforced_time_ms"))


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): _scalar_value(value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    if isinstance(value, Message):
        return plain(value)
    return _scalar_value(value)


def _scalar_value(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _enum(kind: Any, number: int) -> str:
    found = kind.values_by_number.get(number)
    if found is None or number == 0:
        return "unknown"
    zero = kind.values_by_number[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    return str(found.name).removeprefix(prefix).lower()
