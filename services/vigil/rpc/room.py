"""So much at once and no more: what does not fit is refused at once, since waiting would only make everything late."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from vigil.errors import Reason, Refused, refused

GROWTH: Final = 4.0
"""Places that a full round of what was in time adds to an elastic room."""
SHRINKAGE: Final = 0.5
TOO_LATE: Final = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
        Reason.EVIDENCE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
    }
)
"""Refusals that tell of too much work for whoever does it."""


class Room:
    """Places for what is under way; ``share``: the part of them that one party may hold. For one event loop."""

    def __init__(self, places: int, *, share: float = 1.0) -> None:
        self._places = float(places)
        self._share = share
        self._taken = 0
        self._by: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return self._taken

    @property
    def places(self) -> int:
        """How many there are now."""
        return int(self._places)

    @contextmanager
    def place(self, who: Hashable) -> Iterator[None]:
        """Hold a place while something runs. Raises SERVICE_UNAVAILABLE when there is none."""
        self.enter(who)
        try:
            yield
        finally:
            self.leave(who)

    def enter(self, who: Hashable) -> None:
        """Take a place until ``leave``. Raises SERVICE_UNAVAILABLE when there is none."""
        if self._taken >= self.places or self._by[who] >= max(1, int(self._places * self._share)):
            raise overloaded()
        self._taken += 1
        self._by[who] += 1

    def leave(self, who: Hashable) -> None:
        """Give a place back."""
        self._taken -= 1
        self._by[who] -= 1
        if not self._by[who]:
            del self._by[who]


class ElasticRoom(Room):
    """A room that finds out how much can be done at once: what takes longer than ``target`` seconds halves it, at most
    once in that time, and what is in time lets it grow (additive increase, multiplicative decrease, as RFC 5681).

    How many fit into a deadline depends on the machine and on what else it does; with a fixed number too high, work
    that comes too late crowds out all that could be in time.
    """

    def __init__(
        self,
        places: int,
        *,
        least: int,
        most: int,
        target: float,
        now: Callable[[], float],
        share: float = 1.0,
    ) -> None:
        super().__init__(places, share=share)
        self._least = float(least)
        self._most = float(most)
        self._target = target
        self._now = now
        self._shrunk_at = float("-inf")

    @contextmanager
    def place(self, who: Hashable) -> Iterator[None]:
        self.enter(who)
        begun, late = self._now(), False
        try:
            yield
        except Refused as refusal:
            late = refusal.reason in TOO_LATE
            raise
        finally:
            self.leave(who)
            self._learn(begun, late=late)

    def _learn(self, begun: float, *, late: bool) -> None:
        now = self._now()
        if not late and now - begun <= self._target:
            self._places = min(self._most, self._places + GROWTH / self._places)
        elif begun >= self._shrunk_at:
            # What had begun before the room shrank says nothing about its new size.
            self._places = max(self._least, self._places * SHRINKAGE)
            self._shrunk_at = now


def overloaded() -> Refused:
    """Refuse what there is no room for."""
    return refused(
        Reason.SERVICE_UNAVAILABLE,
        "More is asked for at once than this service takes on.",
        lifted_by="asking again a little later",
        who="you",
    )
