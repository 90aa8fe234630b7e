"""Time and randomness as ports: nothing in Vigil reads a clock or a random source it was not given."""

import datetime as dt
import time
from collections.abc import Callable
from typing import Protocol

Entropy = Callable[[int], bytes]
"""``entropy(n)`` answers ``n`` random bytes; ``os.urandom`` in the wiring."""

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's clock that counts suspended time too; elsewhere the best there is."""


def rfc3339(ms: int) -> str:
    """Write an instant (ms since the Unix epoch) in UTC (RFC 3339); one past the year 9999 as the number it is."""
    try:
        moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
    except (OverflowError, OSError, ValueError):
        return f"{ms} ms after 1970"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Clock(Protocol):
    """Two clocks: one to say when, one to say how long."""

    def now(self) -> int:
        """Milliseconds since the Unix epoch, as the wall clock has it."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never steps back and counts suspended time."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.clock_gettime(_BOOTTIME)


class ManualClock:
    """Clocks that move only when told to; for simulation and tests."""

    def __init__(self, now: int = 1_790_000_000_000, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks. Raises ValueError if time would run backwards."""
        if seconds < 0:
            raise ValueError("time does not run backwards; set_now() steps the wall clock")
        self._now += round(seconds * 1000)
        self._monotonic += seconds

    def set_now(self, now: int) -> None:
        """Step the wall clock alone, as an operator or NTP does; ``now`` in milliseconds since the epoch."""
        self._now = now
