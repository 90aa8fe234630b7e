"""Pages of lists (AIP-158): opaque tokens that carry the last key shown and what the list was asked for."""

import base64
import binascii
import hmac
from typing import Final

from vigil.core.digest import sha256
from vigil.errors import Reason, Refused, refused

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
"""A thousand devices stay below the megabyte of a message; what is above is cut to it, as AIP-158 says."""
MAX_TOKEN: Final = 1024
_MARK: Final = 8
_ALPHABET: Final = b"._"
"""Unreserved in a URL (RFC 3986 section 2.3), and no token looks like an option on a command line."""


def page_size(asked: int, *, default: int = DEFAULT_PAGE, most: int = MAX_PAGE) -> int:
    """Rows of a page at most. Raises FIELD_INVALID for a negative number."""
    if asked < 0:
        raise refused(Reason.FIELD_INVALID, "a page has no negative size", field="page_size")
    return min(asked or default, most)


def token_after(place: str, *asked: str) -> str:
    """Write the token of the page after ``place``, a row's key for most; empty for an empty place."""
    if not place:
        return ""
    return base64.b64encode(_mark(asked) + place.encode(), altchars=_ALPHABET).decode().rstrip("=")


def after_of(token: str, *asked: str) -> str:
    """Read the place after which the page begins; empty at the start. Raises FIELD_INVALID.

    A token grants nothing: scope is held against every row of every page.
    """
    if not token:
        return ""
    if len(token) > MAX_TOKEN:
        raise foreign()
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=_ALPHABET, validate=True)
        if not hmac.compare_digest(raw[:_MARK], _mark(asked)):
            raise foreign()
        return raw[_MARK:].decode()
    except (binascii.Error, ValueError) as error:
        raise foreign() from error


def _mark(asked: tuple[str, ...]) -> bytes:
    return sha256("\x00".join(asked).encode(errors="replace"))[:_MARK]


def foreign() -> Refused:
    """FIELD_INVALID for a token that this list has not given."""
    return refused(
        Reason.FIELD_INVALID, "the page token belongs to another list, or to none", field="page_token"
    )
