"""Pages of a list (AIP-158): newest first, a token that names the last row that was given. Pure."""

import re
from typing import Final

from vigil.errors import Reason, refused

DEFAULT: Final = 50
MOST: Final = 200

_TOKEN = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


def size_of(wished: int) -> int:
    """How many rows a page holds. Raises FIELD_INVALID for a negative wish."""
    if wished < 0:
        raise refused(Reason.FIELD_INVALID, "a page has no negative size", field="page_size")
    return min(wished or DEFAULT, MOST)


def place_of(token: str) -> int | None:
    """The row before which the page begins; None for the first page. Raises FIELD_INVALID."""
    if not token:
        return None
    if not _TOKEN.fullmatch(token):
        raise refused(Reason.FIELD_INVALID, "the page token was not given by this list", field="page_token")
    return int(token)


def token_of(place: int | None) -> str:
    """The token of the page that follows; empty after the last one."""
    return "" if place is None else str(place)
