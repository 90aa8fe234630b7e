"""Pages of records: their bounds, and tokens that keep an answer to what was on record when it began."""

from typing import Final

from vigil.evidence.store import StoredEntry
from vigil.rpc import paging

PAGE: Final = 100
MAX_PAGE: Final = 500
PAGE_BYTES: Final = 2 << 20
"""A page stops growing here: one more record still fits into a gRPC message of 4 MiB."""
_DIGITS: Final = 18  # below 2^63

Place = tuple[int, ...]
"""By which numbers the last record of a page is found again."""


def rows(asked: int) -> int:
    """Records of a page at most."""
    return paging.page_size(max(asked, 0), default=PAGE, most=MAX_PAGE)


def token_after(place: Place, end: int, *asked: str) -> str:
    """Write the token of the page after ``place``, of records with an index below ``end``, for what was ``asked``."""
    return paging.token_after(":".join(map(str, (*place, end))), *asked)


def place_of(token: str, *asked: str, parts: int) -> tuple[Place, int] | None:
    """Read where a page begins, and below which index it ends; None at the start. Raises FIELD_INVALID."""
    text = paging.after_of(token, *asked)
    if not text:
        return None
    numbers = text.split(":")
    if len(numbers) != parts + 1 or not all(map(_is_number, numbers)):
        raise paging.foreign()
    *place, end = map(int, numbers)
    return tuple(place), end


def size_of(entry: StoredEntry) -> int:
    """Bytes of a record as it is sent."""
    return sum(map(len, (entry.leaf, entry.statement, *entry.bodies, *entry.chain)))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS
