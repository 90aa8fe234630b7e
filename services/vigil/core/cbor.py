"""Deterministic CBOR (RFC 8949 section 4.2.1): one value, one encoding, and no other is read.

Allowed are integers from -2^63 to 2^64-1, byte strings, text in valid UTF-8, booleans, null, arrays, and
maps whose keys are integers or text. Refused are floats, tags, undefined and other simple values, indefinite
lengths, integers and lengths that are not in their shortest form, maps whose keys are not in bytewise order
of their encodings (which includes duplicates), trailing bytes, and whatever exceeds the bounds.

Both directions are ours. cbor2 reads tags into objects (dates, regular expressions, shared references) before
anyone can object, keeps the last of duplicate keys and ignores trailing bytes; and it writes maps in the order they
come, so that they would have to be copied first. One pass that checks while it reads or writes is both the stricter
and the faster way; the tests hold it against cbor2 in both directions.
Work and memory of a decode are proportional to the length of the input, whatever lengths it declares.
"""

from collections.abc import Callable
from functools import lru_cache
from struct import Struct, error
from typing import Any, Final

from vigil.errors import Reason, Refused, refused

MAX_BYTES: Final = 65_536
"""Statements are small; artifacts travel by digest."""
MAX_DEPTH: Final = 16
MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1

MAX_KNOWN_KEYS: Final = 32
"""Keys of a map whose order is remembered: more than any statement has."""

_UINT16 = Struct(">H").unpack_from
_UINT32 = Struct(">I").unpack_from
_UINT64 = Struct(">Q").unpack_from


def encode(value: Any, *, max_depth: int = MAX_DEPTH) -> bytes:
    """Encode ``value`` deterministically; tuples become arrays, enum members their values.

    Raises Refused STATEMENT_MALFORMED for anything that :func:`decode` would not read.
    """
    parts: list[bytes] = []
    try:
        _put(value, parts.append, max_depth)
    except UnicodeEncodeError:
        raise _malformed("text is not valid Unicode") from None
    return b"".join(parts)


def decode(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Decode one deterministically encoded item that fills ``data``.

    Raises Refused STATEMENT_MALFORMED for every other input.
    """
    if len(data) > max_bytes:
        raise _malformed(f"it is longer than {max_bytes} bytes")
    try:
        value, end = _item(data, 0, max_depth)
    except (IndexError, error):
        raise _malformed("it ends in the middle of an item") from None
    except UnicodeDecodeError:
        raise _malformed("text is not valid UTF-8") from None
    if end != len(data):
        raise _malformed("it ends in the middle of an item" if end > len(data) else "bytes follow the item")
    return value


def byte_string(data: bytes) -> bytes:
    """Encode ``data`` as a byte string (major type 2): its head, then the bytes."""
    size = len(data)
    return (_BYTES[size] if size < 0x100 else _head(0x40, size)) + data


def _malformed(what: str) -> Refused:
    return refused(
        Reason.STATEMENT_MALFORMED,
        f"The data is not deterministic CBOR as RFC 8949 section 4.2.1 describes it: {what}.",
        lifted_by="Encode it again, deterministically and within the bounds.",
        who="sender",
    )


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Read the item at ``at``; answer it and where it ends.

    A string that runs past the input is cut here and noticed by whoever looks at its end: the position only
    ever grows, so the next read fails, or the comparison in :func:`decode` does.
    """
    first = data[at]
    if first < 24:
        return first, at + 1
    if first == 0x58 and data[at + 1] >= 24:
        end = at + 2 + data[at + 1]
        return data[at + 2 : end], end
    size = first & 31
    if size < 24:
        at += 1
    else:
        size, at = _argument(data, at, size)
    if first < 0x60:
        if first >= 0x40:
            return data[at : at + size], at + size
        if first < 0x20:
            return size, at
        if size >= -MIN_INT:
            raise _malformed("an integer is below -2^63")
        return -1 - size, at
    if first < 0x80:
        return str(data[at : at + size], "utf-8"), at + size
    if first < 0xC0:
        # Bounded depth, and no more items than bytes are left to hold them.
        if depth <= 0:
            raise _malformed("it is nested too deeply")
        if first < 0xA0:
            return _array(data, at, size, depth - 1)
        return _map(data, at, size, depth - 1)
    if first == 0xF6:
        return None, at
    if first == 0xF5:
        return True, at
    if first == 0xF4:
        return False, at
    raise _malformed("it holds a tag" if first < 0xE0 else "it holds a float or an unassigned simple value")


def _argument(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Read the argument that follows an initial byte; it must be in its shortest form."""
    if size == 24:
        value, end, least = data[at + 1], at + 2, 24
    elif size == 25:
        value, end, least = _UINT16(data, at + 1)[0], at + 3, 0x100
    elif size == 26:
        value, end, least = _UINT32(data, at + 1)[0], at + 5, 0x1_0000
    elif size == 27:
        value, end, least = _UINT64(data, at + 1)[0], at + 9, 0x1_0000_0000
    else:
        raise _malformed("a length is indefinite or reserved")
    if value < least:
        raise _malformed("an integer, a length or a simple value is not in its shortest form")
    return value, end


def _array(data: bytes, at: int, size: int, depth: int) -> tuple[list[Any], int]:
    if size > len(data) - at:
        raise _malformed("an array is longer than the input")
    items = []
    for _ in range(size):
        item, at = _item(data, at, depth)
        items.append(item)
    return items, at


def _map(data: bytes, at: int, size: int, depth: int) -> tuple[dict[int | str, Any], int]:
    if 2 * size > len(data) - at:
        raise _malformed("a map is longer than the input")
    members: dict[int | str, Any] = {}
    previous = b""
    key: int | str
    for _ in range(size):
        start = at
        key = first = data[at]
        # The commonest forms are read in place: a call for each item costs more than the item.
        if first < 24:
            at += 1
        elif 0x60 <= first < 0x78:
            at += first - 0x5F
            key = str(data[start + 1 : at], "utf-8")
        elif first < 0x40 or 0x60 <= first < 0x80:
            key, at = _item(data, at, 0)
        else:
            raise _malformed("a map's key is neither an integer nor text")
        encoded = data[start:at]
        if encoded <= previous:
            raise _malformed("a map's keys are out of order or repeated")
        previous = encoded
        first = data[at]
        if first < 24:
            members[key] = first
            at += 1
        elif 0x60 <= first < 0x78:
            end = at + first - 0x5F
            members[key] = str(data[at + 1 : end], "utf-8")
            at = end
        else:
            members[key], at = _item(data, at, depth)
    return members, at


def _heads(major: int) -> tuple[bytes, ...]:
    """The initial bytes of a major type (its top bits) with an argument of 0 to 255."""
    return tuple(bytes((major | n,)) if n < 24 else bytes((major | 24, n)) for n in range(0x100))


_UINTS, _NEGATIVES, _BYTES, _TEXTS, _ARRAYS, _MAPS = map(_heads, (0x00, 0x20, 0x40, 0x60, 0x80, 0xA0))
_HEAD16 = Struct(">BH").pack
_HEAD32 = Struct(">BI").pack
_HEAD64 = Struct(">BQ").pack


def _head(major: int, argument: int) -> bytes:
    """The initial bytes with an argument above 255, in its shortest form."""
    if argument < 0x1_0000:
        return _HEAD16(major | 25, argument)
    if argument < 0x1_0000_0000:
        return _HEAD32(major | 26, argument)
    return _HEAD64(major | 27, argument)


def _put(value: Any, put: Callable[[bytes], None], depth: int) -> None:
    """Write the item's encoding in pieces; exact types first, since nearly all are."""
    kind = type(value)
    if kind is bytes:
        size = len(value)
        put(_BYTES[size] if size < 0x100 else _head(0x40, size))
        put(value)
    elif kind is str:
        put(_text(value))
    elif kind is int:
        put(_integer(value))
    elif kind is dict:
        _put_map(value, put, depth)
    elif kind is list or kind is tuple:
        if depth <= 0:
            raise _malformed("it is nested too deeply")
        size = len(value)
        put(_ARRAYS[size] if size < 0x100 else _head(0x80, size))
        for item in value:
            _put(item, put, depth - 1)
    elif value is None:
        put(b"\xf6")
    elif kind is bool:
        put(b"\xf5" if value else b"\xf4")
    elif isinstance(value, str):
        put(_text(str.__str__(value)))
    elif isinstance(value, int):
        put(_integer(int(value)))
    else:
        raise _malformed(f"a {kind.__name__} has no place in it")


def _text(value: str) -> bytes:
    text = value.encode()
    size = len(text)
    return (_TEXTS[size] if size < 0x100 else _head(0x60, size)) + text


def _integer(value: int) -> bytes:
    if 0 <= value < 0x100:
        return _UINTS[value]
    if 0 < value <= MAX_INT:
        return _head(0x00, value)
    if not MIN_INT <= value < 0:
        raise _malformed("an integer is outside -2^63 to 2^64-1")
    return _NEGATIVES[-1 - value] if value >= -0x100 else _head(0x20, -1 - value)


def _put_map(value: dict[Any, Any], put: Callable[[bytes], None], depth: int) -> None:
    if depth <= 0:
        raise _malformed("it is nested too deeply")
    size = len(value)
    put(_MAPS[size] if size < 0x100 else _head(0xA0, size))
    keys = tuple(value)
    # Only of exactly these types does equal mean encoded alike: True == 1.
    known = size <= MAX_KNOWN_KEYS and _EXACT.issuperset(map(type, keys))
    for key, encoded in _known_order(keys) if known else _order(keys):
        put(encoded)
        _put(value[key], put, depth - 1)


def _order(keys: tuple[Any, ...]) -> list[tuple[Any, bytes]]:
    """Keys beside their encodings, in bytewise order of these."""
    return sorted(((key, _key(key)) for key in keys), key=lambda pair: pair[1])


_EXACT = frozenset({int, str})
_known_order = lru_cache(maxsize=1024)(_order)
"""The kinds of statements have few sets of keys between them."""


def _key(key: object) -> bytes:
    if isinstance(key, str):
        return _text(str.__str__(key))
    if type(key) is bool or not isinstance(key, int):
        raise _malformed("a map's key is neither an integer nor text")
    return _integer(int(key))
