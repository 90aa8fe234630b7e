"""The device's nonces: 16 bytes, for one credential, alive 5 s, one outstanding for each, one slot kept for safety."""

import hmac
from dataclasses import dataclass
from typing import Final

from vigil.core.classes import NONCE_LIFETIME_S
from vigil.core.clock import Clock, Entropy
from vigil.errors import Reason, Refusal, refused

NONCE_BYTES: Final = 16
SLOTS: Final = 8
"""Outstanding nonces, the last of them for a safety role only: a flood by others leaves it free."""
REMEMBERED: Final = 64
"""Former nonces that are told from unknown ones."""


@dataclass(frozen=True, slots=True)
class _Issued:
    nonce: bytes
    credential: bytes
    until: float
    safety: bool


class NonceBook:
    """In memory only: a restart forgets them all, and what was bound to them is refused."""

    def __init__(self, *, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._issued: dict[bytes, _Issued] = {}
        self._former: dict[bytes, Reason] = {}

    def issue(self, credential: bytes, *, safety: bool) -> bytes:
        """Make a nonce for a credential (SHA-256 thumbprint), in place of its former one. Raises QUOTA_EXCEEDED."""
        self._expire()
        former = self._issued.pop(credential, None)
        if former is not None:
            self._remember(former.nonce, Reason.NONCE_EXPIRED)
        taken = len(self._issued) if safety else sum(not one.safety for one in self._issued.values())
        if taken >= (SLOTS if safety else SLOTS - 1):
            raise refused(
                Reason.QUOTA_EXCEEDED,
                "too many commands are being prepared for this device",
                lifted_by="waiting 5 seconds",
                who="the requester",
            )
        nonce = self._entropy(NONCE_BYTES)
        until = self._clock.monotonic() + NONCE_LIFETIME_S
        self._issued[credential] = _Issued(nonce, credential, until, safety)
        return nonce

    def take(self, nonce: bytes, *, credential: bytes) -> Refusal | None:
        """Use a nonce up, whatever becomes of the command; answer what is wrong with it, if anything."""
        self._expire()
        for issued in list(self._issued.values()):
            if hmac.compare_digest(issued.nonce, nonce):
                # Whoever shows it, it is gone: a nonce seen with another credential has leaked.
                del self._issued[issued.credential]
                self._remember(nonce, Reason.NONCE_USED)
                if hmac.compare_digest(issued.credential, credential):
                    return None
                return _refusal(Reason.NONCE_UNKNOWN)
        return _refusal(self._former.get(nonce, Reason.NONCE_UNKNOWN))

    def drop(self, thumbprint_hex: str) -> None:
        """Forget what was issued for a credential that was revoked; another kind of name drops nothing."""
        for credential in [one for one in self._issued if one.hex() == thumbprint_hex]:
            self._remember(self._issued.pop(credential).nonce, Reason.NONCE_EXPIRED)

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for issued in [one for one in self._issued.values() if now >= one.until]:
            del self._issued[issued.credential]
            self._remember(issued.nonce, Reason.NONCE_EXPIRED)

    def _remember(self, nonce: bytes, reason: Reason) -> None:
        self._former[nonce] = reason
        while len(self._former) > REMEMBERED:
            del self._former[next(iter(self._former))]


_SENTENCES = {
    Reason.NONCE_UNKNOWN: "the nonce is none of this device's, or was given to another credential",
    Reason.NONCE_USED: "the nonce was used before",
    Reason.NONCE_EXPIRED: "the nonce is older than 5 seconds, or a newer one took its place",
}


def _refusal(reason: Reason) -> Refusal:
    return Refusal(reason, _SENTENCES[reason], "preparing the command again", "the requester")
