"""Durations as people type them."""

import re
from typing import Final

from vigil.cli.options import UsageError

_FORM: Final = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> int:
    """Read `90s`, `10m`, `8h` or `2d`. Raises UsageError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no duration: a number with s, m, h or d, such as 10m")
    return int(match[1]) * _SECONDS[match[2]]


def milliseconds(text: str) -> int:
    """As ``seconds``, in ms."""
    return seconds(text) * 1000
