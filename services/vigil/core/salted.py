"""Bodies as the log keeps them: 16 random bytes, then what was sent.

The leaf holds the digest of all of it and anybody may read the leaf. Without its salt a digest says nothing to who
guesses the body, so erasing the salt with the body erases it from the digest as well.
"""

from typing import Final

from vigil.core.clock import Entropy
from vigil.errors import Reason, refused

SALT_BYTES: Final = 16
"""As long as a statement's ``cti``: 2^128 guesses for each guess of the body."""


def salted(body: bytes, entropy: Entropy) -> bytes:
    """The form that is kept, digested and handed out."""
    return entropy(SALT_BYTES) + body


def unsalted(kept: bytes) -> bytes:
    """What was sent. Raises STATEMENT_MALFORMED for what is too short to have a salt."""
    if len(kept) < SALT_BYTES:
        raise refused(Reason.STATEMENT_MALFORMED, f"A body begins with {SALT_BYTES} random bytes.")
    return kept[SALT_BYTES:]
