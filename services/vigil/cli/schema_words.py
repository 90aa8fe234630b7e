"""JSON Schema, in the few words that the shapes of the command line's answers are made of."""

from collections.abc import Collection
from typing import Any, Final

from google.protobuf.message import Message

from vigil.cli.messages import STATEMENTS, is_instant

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "integer"}
FLAG: Final[Schema] = {"type": "boolean"}
HEX: Final[Schema] = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}
INSTANT: Final[Schema] = {"type": ["string", "null"], "format": "date-time"}
MAYBE_NUMBER: Final[Schema] = {"type": ["integer", "null"]}
MAYBE_FLAG: Final[Schema] = {"type": ["boolean", "null"]}
MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
COUNTS: Final[Schema] = {"type": "object", "additionalProperties": NUMBER}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
ANYTHING: Final[Schema] = {"type": "object"}
SCALARS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "integer", "boolean"]},
}


def shape(**members: Schema) -> Schema:
    """An object with exactly these members, all of them there."""
    return {
        "type": "object",
        "properties": members,
        "required": sorted(members),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": schema}


def maybe(schema: Schema) -> Schema:
    """This, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def extended(schema: Schema, **members: Schema) -> Schema:
    """The same object with more members, or with other ones of the same names."""
    return shape(**{**schema["properties"], **members})


def of_message(kind: type[Message], *, omit: Collection[str] = STATEMENTS) -> Schema:
    """The shape that `messages.plain` gives a message."""
    members: dict[str, Schema] = {}
    for one in kind.DESCRIPTOR.fields:
        field: Any = one
        if field.name in omit:
            continue
        if is_instant(field.name):
            members[field.name.removesuffix("_ms")] = INSTANT
            continue
        members[field.name] = _of_field(field)
    return shape(**members)


def _of_field(field: Any) -> Schema:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _of_scalar(kind.fields_by_name["value"])}
    single = of_message(kind._concrete_class) if kind is not None else _of_scalar(field)  # noqa: SLF001 - no other way
    return items(single) if field.is_repeated else single


def _of_scalar(field: Any) -> Schema:
    if field.enum_type is not None:
        return TEXT
    if field.cpp_type == field.CPPTYPE_BOOL:
        return FLAG
    if field.cpp_type == field.CPPTYPE_STRING:
        return HEX if field.type == field.TYPE_BYTES else TEXT
    return NUMBER
