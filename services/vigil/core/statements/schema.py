"""Typed bodies to and from deterministic CBOR maps, strictly.

A body is a frozen dataclass whose annotations say everything: the CBOR type, the bounds and, where a standard
numbers its claims, the integer key. A field that is None is absent from the map; an unknown, missing,
mistyped or unbounded field is STATEMENT_MALFORMED.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar, get_args, get_origin

from vigil.core import cbor
from vigil.errors import Reason, Refused, refused

MAX_ITEMS = 4096
"""Items in any one array or map of a body: a profile's actions and a revocation's set of ids stay far below."""

MAX_TEXT = 1024
"""UTF-8 bytes of any text that states no bound of its own."""

MAX_BYTES = 65_536
"""Bytes of any byte string that states no bound of its own."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bounds of a byte string (bytes), a text (UTF-8 bytes) or an array (items)."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an integer, both included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Key:
    """The integer key that a standard assigns to this field."""

    label: int


B = TypeVar("B")
M = TypeVar("M")

Scalar = int | str | bytes | bool
"""A parameter's value. Decimals are integers scaled as the profile says: no float is ever signed."""

Digest = Annotated[bytes, Size(32, 32)]
Nonce = Annotated[bytes, Size(16, 64)]
Uuid = Annotated[bytes, Size(16, 16)]
Identifier = Annotated[str, Size(1, 128)]
Text = Annotated[str, Size(0, 1024)]
Instant = Annotated[int, Range(0, 2**53)]
"""Milliseconds since the Unix epoch."""
Count = Annotated[int, Range(0, 2**63 - 1)]

_Decoder = Callable[[object], Any]
_Encoder = Callable[[Any], object]


class _InvalidError(Exception):
    """What is wrong with a value; where it stands is put together on the way out, by those who know it."""

    def __init__(self, what: str, *, at: str = "") -> None:
        self.what = what
        self.at = at


def malformed(sentence: str, *, field: str = "") -> Refused:
    """Make the refusal of a statement that cannot be read."""
    return refused(
        Reason.STATEMENT_MALFORMED,
        sentence,
        lifted_by="a statement encoded as docs/protocol.md says",
        field=field,
    )


def encode_body(body: Any) -> bytes:
    """Encode a body as the one deterministic CBOR map of it (RFC 8949 4.2.1)."""
    return cbor.encode(to_map(body))


def to_map(body: Any) -> dict[int | str, object]:
    """Turn a body into the map that is encoded."""
    out: dict[int | str, object] = {}
    cls = typing.cast("Hashable", type(body))
    for label, name, encoder, _, _ in _plan(cls):
        value = getattr(body, name)
        if value is not None:
            out[label] = encoder(value)
    return out


def decode_body(cls: type[B], payload: bytes) -> B:
    """Decode one body. Raises ``Refused`` (STATEMENT_MALFORMED) on anything but its canonical encoding."""
    return from_map(cls, cbor.decode(payload, max_bytes=MAX_BYTES))


def from_map(cls: type[B], value: object) -> B:
    """Check and convert a decoded map. Raises as ``decode_body``."""
    try:
        found: B = _from_map(cls, value)
    except _InvalidError as error:
        where = f"{cls.__name__}{error.at}"
        raise malformed(f"{where} {error.what}", field=where) from None
    return found


def _from_map(cls: Any, value: object) -> Any:
    if type(value) is not dict:
        raise _InvalidError("must be a map")
    fields: dict[str, Any] = {}
    seen = 0
    name = ""
    try:
        for label, name, _, decoder, required in _plan(cls):
            if label in value:
                seen += 1
                fields[name] = decoder(value[label])
            elif required:
                _missing()
    except _InvalidError as error:
        error.at = f".{name}{error.at}"
        raise
    if seen != len(value):
        raise _InvalidError("holds a field that this version does not know")
    return cls(**fields)


def _missing() -> None:
    raise _InvalidError("is missing")


@functools.cache
def _plan(cls: Any) -> tuple[tuple[int | str, str, _Encoder, _Decoder, bool], ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    plan = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        label: int | str = field.name
        required = True
        if get_origin(hint) in (types.UnionType, typing.Union) and type(None) in get_args(hint):
            required = False
            (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
        if get_origin(hint) is Annotated:
            label = next((mark.label for mark in hint.__metadata__ if isinstance(mark, Key)), field.name)
        plan.append((label, field.name, _encoder(hint), _decoder(hint), required))
    return tuple(plan)


def _same(value: Any) -> object:
    return typing.cast("object", value)


def _encoder(hint: Any) -> _Encoder:
    base, _ = _split(hint)
    if dataclasses.is_dataclass(base):
        return to_map
    if get_origin(base) is tuple:
        inner = _encoder(get_args(base)[0])
        return lambda items: [inner(item) for item in items]
    if get_origin(base) is Mapping:
        return dict
    if isinstance(base, type) and issubclass(base, StrEnum):
        return str
    return _same


def _split(hint: Any) -> tuple[Any, tuple[object, ...]]:
    marks: tuple[object, ...] = ()
    while get_origin(hint) is Annotated:
        marks = (*marks, *hint.__metadata__)
        hint = hint.__origin__
    return hint, marks


def _mark(marks: tuple[object, ...], kind: type[M], default: M) -> M:
    return next((mark for mark in marks if isinstance(mark, kind)), default)


def _decoder(hint: Any) -> _Decoder:
    base, marks = _split(hint)
    if base is int:
        return _int_decoder(_mark(marks, Range, Range(-(2**63), 2**64 - 1)))
    if base is bool:
        return _bool
    if base is bytes:
        return _bytes_decoder(_mark(marks, Size, Size(0, MAX_BYTES)))
    if base is str:
        return _text_decoder(_mark(marks, Size, Size(0, MAX_TEXT)))
    if get_origin(base) is tuple:
        return _array_decoder(_decoder(get_args(base)[0]), _mark(marks, Size, Size(0, MAX_ITEMS)))
    if get_origin(base) is Mapping:
        return _mapping_decoder(get_args(base)[1], _mark(marks, Size, Size(0, MAX_ITEMS)))
    if isinstance(base, type) and issubclass(base, StrEnum):
        return _enum_decoder(base)
    if dataclasses.is_dataclass(base):
        return functools.partial(_from_map, base)
    raise TypeError(f"no CBOR form for {hint!r}")


def _int_decoder(bounds: Range) -> _Decoder:
    least, most = bounds.least, bounds.most

    def decode(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _InvalidError(f"must be an integer from {least} to {most}")
        return value

    return decode


def _bool(value: object) -> bool:
    if type(value) is not bool:
        raise _InvalidError("must be true or false")
    return value


def _bytes_decoder(size: Size) -> _Decoder:
    least, most = size.least, size.most

    def decode(value: object) -> bytes:
        if type(value) is not bytes or not least <= len(value) <= most:
            raise _InvalidError(f"must be {least} to {most} bytes")
        return value

    return decode


def _text_decoder(size: Size) -> _Decoder:
    least, most = size.least, size.most

    def decode(value: object) -> str:
        if type(value) is not str or not least <= len(value.encode()) <= most:
            raise _InvalidError(f"must be text of {least} to {most} bytes")
        if "\x00" in value:
            raise _InvalidError("holds a NUL")
        return value

    return decode


def _array_decoder(inner: _Decoder, size: Size) -> _Decoder:
    def decode(value: object) -> tuple[Any, ...]:
        if type(value) is not list or not size.least <= len(value) <= size.most:
            raise _InvalidError(f"must be an array of {size.least} to {size.most} items")
        items: list[Any] = []
        try:
            for item in value:
                items.append(inner(item))  # noqa: PERF401 - how many were read says which one failed
        except _InvalidError as error:
            error.at = f"[{len(items)}]{error.at}"
            raise
        return tuple(items)

    return decode


def _mapping_decoder(value_hint: Any, size: Size) -> _Decoder:
    inner = _scalar if value_hint == Scalar else _decoder(value_hint)
    key = _text_decoder(Size(1, 128))

    def decode(value: object) -> Mapping[str, Any]:
        if type(value) is not dict or not size.least <= len(value) <= size.most:
            raise _InvalidError(f"must be a map of {size.least} to {size.most} entries")
        members: dict[str, Any] = {}
        for name, item in value.items():
            try:
                members[key(name)] = inner(item)
            except _InvalidError as error:
                error.at = f"[{name!r}]{error.at}"
                raise
        return members

    return decode


def _scalar(value: object) -> object:
    if type(value) is int or type(value) is bool:
        return value
    if type(value) is str:
        return _SCALAR_TEXT(value)
    if type(value) is bytes and len(value) <= MAX_TEXT:
        return value
    raise _InvalidError("must be an integer, a text, a byte string or a boolean")


_SCALAR_TEXT = _text_decoder(Size(0, MAX_TEXT))


def _enum_decoder(enum: type[StrEnum]) -> _Decoder:
    members = {str(member): member for member in enum}

    def decode(value: object) -> StrEnum:
        if type(value) is not str or value not in members:
            raise _InvalidError(f"must be one of {', '.join(members)}")
        return members[value]

    return decode
