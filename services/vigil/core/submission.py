"""What travels beside a device's evidence, bound to its signature: a gateway on the way alters nothing unnoticed."""

from collections.abc import Sequence

from vigil.core import cbor
from vigil.core.digest import sha256


def submission_digest(*, first_leaf: int, leaves: Sequence[bytes], permits: Sequence[bytes]) -> bytes:
    """SHA-256 over deterministic CBOR of [first leaf's index, [SHA-256 of each leaf], [SHA-256 of each permit]]."""
    return sha256(
        cbor.encode([first_leaf, [sha256(leaf) for leaf in leaves], [sha256(one) for one in permits]])
    )
