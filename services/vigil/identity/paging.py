"""Pages of lists (AIP-158): opaque tokens that carry the last key shown and what the list was asked for."""

import base64
import binascii
import hmac
from typing import Final

from vigil.core.digest import sha256
from vigil.errors import Refused
from vigil.identity.refusals import invalid

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
"""A thousand devices stay below the megabyte of a message; what is above is cut to it, as AIP-158 says."""
_MARK: Final = 8


def page_size(asked: int) -> int:
    """Rows of a page. Raises FIELD_INVALID for a negative number."""
    if asked < 0:
        raise invalid("page_size", "it is not negative")
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def token_after(last: str, *asked: str) -> str:
    """Write the token of the page after the row whose key is ``last``."""
    return base64.urlsafe_b64encode(_mark(asked) + last.encode()).decode().rstrip("=")


def after_of(token: str, *asked: str) -> str:
    """Read the key after which the page begins; empty at the start. Raises FIELD_INVALID.

    A token grants nothing: scope is held against every row of every page.
    """
    if not token:
        return ""
    if len(token) > 512:
        raise _foreign()
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if not hmac.compare_digest(raw[:_MARK], _mark(asked)):
            raise _foreign()
        return raw[_MARK:].decode()
    except (binascii.Error, ValueError) as error:
        raise _foreign() from error


def _mark(asked: tuple[str, ...]) -> bytes:
    return sha256("\x00".join(asked).encode())[:_MARK]


def _foreign() -> Refused:
    return invalid("page_token", "it belongs to another list, or to none")
