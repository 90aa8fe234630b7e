"""The clock of a signer of times: a wrong clock is not made anybody's truth (docs/protocol.md, "Time"). Pure."""

from typing import Final

from vigil.core.classes import CLOCK_AGREEMENT_MS
from vigil.errors import Reason, refused

START_SLACK_MS: Final = 30 * 86_400_000
"""How far the clock may stand ahead of the last durable time when a signer starts (COMMANDS, Time)."""


class SigningClock:
    """When something may be signed, and with what time: signed time only moves forward, and never leaps.

    ``durable`` is the newest time that was signed and stored; None at the very first start.
    """

    def __init__(self, *, durable: int | None, monotonic: float) -> None:
        self._durable = durable
        self._since = monotonic
        self._slack = START_SLACK_MS
        self._issued = durable or 0

    def time(self, *, now: int, monotonic: float) -> int:
        """The time of what is signed now. Raises STATE_CONFLICT when the clock runs ahead."""
        if self._durable is not None:
            elapsed = int((monotonic - self._since) * 1000)
            # COMMANDS, Time: ahead of the last durable time by more than the time elapsed; 30 days at a start.
            if now > self._durable + elapsed + self._slack:
                raise refused(
                    Reason.STATE_CONFLICT,
                    "Nothing is signed: the clock stands too far ahead of the last time that was signed.",
                    lifted_by="the right time, or two people confirming it",
                    who="the operator",
                    now=now,
                    durable=self._durable,
                )
        self._issued = max(self._issued, now)
        return self._issued

    def stored(self, time: int, *, monotonic: float) -> None:
        """Note that ``time`` is durable, as of ``monotonic``."""
        self._durable = time
        self._since = monotonic
        self._slack = CLOCK_AGREEMENT_MS
        self._issued = max(self._issued, time)
