"""JSON from strangers (RFC 8259, I-JSON of RFC 7493): one meaning, bounded size and depth, or nothing.

Refused are duplicate names, NaN and infinities, numbers no double can hold, lone surrogates, NUL, bytes that are not
UTF-8, and whatever exceeds the bounds. Raises ValueError with a sentence; callers choose the reason.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Final

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other; a CycloneDX document of a real program needs about ten."""
MAX_EXPONENT: Final = 6
"""Characters of an exponent, its sign included: a Decimal has no room for every one that a double rounds to zero."""
MAX_DIGITS: Final = 64
"""Characters of one number: more cost quadratic time and mean nothing."""


def parse(
    data: bytes,
    *,
    max_bytes: int,
    max_depth: int = MAX_DEPTH,
    decimals: Callable[[str], Any] = float,
) -> Any:
    """Read one JSON text. ``decimals`` makes values of numbers with a fraction or an exponent.

    Raises ValueError. Time and memory are proportional to the length of ``data``.
    """
    if len(data) > max_bytes:
        raise ValueError(f"it is longer than {max_bytes} bytes")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=lambda text: _decimal(text, decimals),
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value, max_depth)
    return value


def same(one: object, other: object) -> bool:
    """Whether two parsed texts mean the same: members in any order, 7.0 is 7, true is not 1."""
    waiting: list[tuple[object, object]] = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            waiting.extend((value, right[name]) for name, value in left.items())
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            waiting.extend(zip(left, right, strict=True))
        elif isinstance(left, bool) != isinstance(right, bool) or left != right:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("an object holds two members of one name")
    return out


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _decimal(text: str, make: Callable[[str], Any]) -> Any:
    if len(text) > MAX_DIGITS or not math.isfinite(float(text)):
        raise ValueError("a number is larger than a double can hold, or too long")
    if len(text.lower().partition("e")[2]) > MAX_EXPONENT:
        raise ValueError("a number has an exponent beyond every measure")
    return make(text)


def _check(value: object, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                for name in item:
                    _check_text(name)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply")


def _check_text(text: str) -> None:
    if text.isascii():
        if "\x00" in text:
            raise ValueError("a text holds a NUL")
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text is not valid Unicode") from None
    if "\x00" in text:
        raise ValueError("a text holds a NUL")
