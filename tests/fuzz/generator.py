"""Messages out of their descriptors, from a seed: what is plausible, what lies on a boundary, what cannot be.

`message` answers a message that protobuf can hold; `wire` breaks its bytes as no library would write them.
"""

import random
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

MAX_DEPTH: Final = 6
INTEGERS: Final = (0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS: Final = (0.0, -0.0, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.7e308)
TEXTS: Final = (
    "",
    "a",
    "*",
    "a\x00b",
    "' OR 1=1 --",
    "../../etc/passwd",
    "%s%n{0}${x}",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH JOINER}\U0010ffff",
    "A" * 300,
    "x" * 70_000,
    "device/",
    "(01)09504000059118(21)SN-1",
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "9" * 400,
    "a-" * 40 + "!",
)
BYTES: Final = (
    b"",
    b"\x00",
    bytes(16),
    bytes(32),
    b"\xff" * 64,
    b"\xa0",
    b"\x84" * 40,
    b"\xbf" * 40,
    b"x" * 70_000,
    b"{}",
)

_BOUNDS: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Generator:
    """Makes messages of texts and data that exist where they go, and of others; a ``tame`` one mostly of the first."""

    def __init__(
        self, seed: int, *, texts: tuple[str, ...] = (), data: tuple[bytes, ...] = (), tame: bool = False
    ) -> None:
        self.chance = random.Random(seed)
        self._texts, self._data, self._tame = texts, data, tame

    def message(self, descriptor: Descriptor, *, full: bool = False, depth: int = MAX_DEPTH) -> Message:
        """A message with some of its fields, or with each of them once."""
        made = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if full or self.chance.random() < 0.7:
                self._fill(made, field, full=full, depth=depth)
        return made

    def _fill(self, made: Any, field: FieldDescriptor, *, full: bool, depth: int) -> None:
        if field.message_type is not None and depth <= 0:
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(getattr(made, field.name), field, depth)
        elif field.is_repeated:
            self._repeat(getattr(made, field.name), field, full=full, depth=depth)
        elif field.message_type is not None:
            getattr(made, field.name).MergeFrom(self.message(field.message_type, full=full, depth=depth - 1))
        else:
            setattr(made, field.name, self._scalar(field))

    def _map(self, entries: Any, field: FieldDescriptor, depth: int) -> None:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(self.chance.choice((1, 3, 200))):
            if value.message_type is not None:
                entries[self._scalar(key)].MergeFrom(self.message(value.message_type, depth=depth - 1))
            else:
                entries[self._scalar(key)] = self._scalar(value)

    def _repeat(self, items: Any, field: FieldDescriptor, *, full: bool, depth: int) -> None:
        many = (
            1
            if full
            else self.chance.choice(
                (0, 1, 2) if self._tame else (0, 1, 2, 17, 2_000 if depth == MAX_DEPTH else 3)
            )
        )
        for _ in range(many):
            if field.message_type is None:
                items.append(self._scalar(field))
            else:
                items.add().MergeFrom(
                    self.message(field.message_type, full=full, depth=0 if many > 3 else depth - 1)
                )

    def _scalar(self, field: FieldDescriptor) -> Any:
        chance = self.chance
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                kept = self._data and chance.random() < (0.95 if self._tame else 0.5)
                return chance.choice(self._data if kept else (*BYTES, chance.randbytes(chance.randrange(80))))
            case FieldDescriptor.CPPTYPE_STRING:
                kept = self._texts and chance.random() < (0.95 if self._tame else 0.6)
                return chance.choice(self._texts if kept else TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return chance.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                known = [value.number for value in field.enum_type.values]
                return chance.choice((*known, 77, -1, 2**31 - 1))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return chance.choice(FLOATS)
            case _:
                if self._tame:
                    return chance.choice((0, 1, 3))
                least, most = _BOUNDS[field.cpp_type]
                return min(max(chance.choice(INTEGERS) * chance.choice((1, 1, -1)), least), most)

    def wire(self, message: Message) -> bytes:
        """The message's bytes, half of the time broken."""
        data = message.SerializeToString()
        if self._tame or self.chance.random() < 0.5:
            return data
        return self.chance.choice(_BREAKS)(self, data)


def _bad_utf8(one: Generator, data: bytes) -> bytes:
    """Every field as a string that is not UTF-8 (wire type 2)."""
    field = one.chance.randint(1, 12)
    return data + _tag(field, 2) + b"\x04\xc3\x28\xff\xfe"


def _unknown(one: Generator, data: bytes) -> bytes:
    """Fields that no version knows."""
    return data + b"".join(_tag(one.chance.randint(500, 2**29 - 1), 0) + b"\x01" for _ in range(1_000))


def _truncated(one: Generator, data: bytes) -> bytes:
    return data[: one.chance.randint(0, len(data))] if data else b"\x0a"


def _longer(one: Generator, data: bytes) -> bytes:
    """A length of 2^31 and more, with nothing behind it."""
    return data + _tag(one.chance.randint(1, 12), 2) + b"\xff\xff\xff\xff\x0f"


def _deep(one: Generator, data: bytes) -> bytes:
    """One field inside itself, three hundred times."""
    tag = _tag(one.chance.randint(1, 8), 2)
    inner = b""
    for _ in range(300):
        inner = tag + _varint(len(inner)) + inner
    return data + inner


def _groups(one: Generator, data: bytes) -> bytes:
    """Groups that never end (wire type 3)."""
    return data + _tag(one.chance.randint(1, 20), 3) * 200


def _wrong_type(_one: Generator, data: bytes) -> bytes:
    """Fields of the contract with another wire type."""
    fields = (_tag(field, 1) + struct.pack("<d", float("nan")) for field in range(1, 10))
    return data + b"".join(fields)


def _varints(one: Generator, data: bytes) -> bytes:
    """Numbers of more than 64 bits."""
    return data + _tag(one.chance.randint(1, 12), 0) + b"\xff" * 9 + b"\x7f"


def _doubled(_one: Generator, data: bytes) -> bytes:
    """The last of several wins, and submessages merge."""
    return data * 3 if len(data) < 50_000 else data


def _random(one: Generator, _data: bytes) -> bytes:
    return one.chance.randbytes(one.chance.randrange(200))


_BREAKS: Final[tuple[Callable[[Generator, bytes], bytes], ...]] = (
    *(_bad_utf8, _unknown, _truncated, _longer, _deep, _groups, _wrong_type, _varints, _doubled, _random),
)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))
