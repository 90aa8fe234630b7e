"""The clock of a signer of times: a wrong clock is not made anybody's truth (docs/protocol.md, "Time"). Pure."""

from typing import Final

from vigil.core.classes import CLOCK_AGREEMENT_MS
from vigil.core.clock import Clock
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

    @property
    def unmeasured(self) -> bool:
        """Whether no durable time is known, as at the very first start."""
        return self._durable is None

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
        """Note that ``time`` is durable, as of ``monotonic``.

        While the clock stands behind, signed time stands still, and what was durable before plus what has elapsed
        stays the measure: a clock that was set back and is then set right again runs ahead of nothing.
        """
        if time > self._issued or (self._durable is not None and time <= self._durable):
            # Signed before an era began, or no news.
            return
        self._slack = CLOCK_AGREEMENT_MS
        if self._durable is None or time >= self._durable + int((monotonic - self._since) * 1000):
            self._durable, self._since = time, monotonic

    def begin_again(self, time: int, *, monotonic: float) -> None:
        """An era resets signed time (docs/protocol.md, "Time"): from here on, as at a start, whatever was before."""
        self._durable, self._since, self._slack, self._issued = time, monotonic, START_SLACK_MS, time


class SigningTime:
    """A `vigil.core.clock.Clock` for a scribe: its time is withheld while the clock leaps, and never goes back."""

    def __init__(self, *, clock: Clock, durable: int | None) -> None:
        self._clock = clock
        self._signing = SigningClock(durable=durable, monotonic=clock.monotonic())

    def now(self) -> int:
        """Milliseconds since the epoch. Raises STATE_CONFLICT when nothing may be signed."""
        return self._signing.time(now=self._clock.now(), monotonic=self._clock.monotonic())

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def stored(self, time: int) -> None:
        """Note that ``time`` is on record."""
        self._signing.stored(time, monotonic=self._clock.monotonic())

    def begin(self, time: int) -> None:
        """Take a time that another signer holds durable for the start; without effect where one is known."""
        if self._signing.unmeasured:
            self._signing.begin_again(time, monotonic=self._clock.monotonic())
