"""The device's own time: a floor that only rises, and a clock that is never below it (docs/protocol.md, "Time").

The floor advances with the device's own monotonic time, and further only where a head's time and the gateway's agree
within 10 s. Permits move nothing.
"""

from vigil.core.classes import CLOCK_AGREEMENT_MS
from vigil.core.clock import Clock

MAX_DEVIATION_MS = 2_000
"""A head is made every second and travels for less than another."""


class DeviceTime:
    """Instants in ms since the epoch. ``floor`` is what was stored last."""

    def __init__(self, *, clock: Clock, floor: int) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._floor = floor
        # A clock below its floor is set to the floor before the device dials.
        self._anchor = max(clock.now(), floor)

    def now(self) -> int:
        """What the device takes the time to be: its clock at the start, carried on by monotonic time."""
        return self._anchor + self._elapsed()

    def floor(self) -> int:
        """The instant that the time certainly is not before; to be stored now and then."""
        return self._floor + self._elapsed()

    def agree(self, *, head: int, gateway: int) -> bool:
        """Take the time of a verified head, if the gateway's agrees with it and the floor is not above it."""
        if abs(head - gateway) > CLOCK_AGREEMENT_MS or head < self.floor():
            return False
        self._floor = head - self._elapsed()
        # Small differences are the way through the network; the clock is stepped only where it is really wrong.
        if abs(self.now() - head) > MAX_DEVIATION_MS:
            self._anchor = head - self._elapsed()
        return True

    def reset(self, floor: int) -> None:
        """Begin again at an era's floor: the way out of a floor and a clock that stand too far ahead."""
        self._floor = self._anchor = floor - self._elapsed()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, so that this is a `vigil.core.clock.Clock`."""
        return self._clock.monotonic()

    def _elapsed(self) -> int:
        return int((self._clock.monotonic() - self._started) * 1000)
