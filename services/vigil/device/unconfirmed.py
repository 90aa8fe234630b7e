"""Receipts that left on a link and that no gateway has said it keeps."""

from typing import Final

from vigil.core.clock import Clock

SAY_AGAIN_S: Final = 10.0
"""How long receipts wait for the gateway's word that it keeps them, before they are sent again."""


class Unconfirmed:
    """By request: how many of its receipts left, and when. In memory: a start says all that is unsent again."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._left: dict[bytes, tuple[int, float]] = {}

    def count(self, request_id: bytes) -> int:
        """How many receipts of a request are on their way."""
        return self._left.get(request_id, (0, 0.0))[0]

    def leave(self, request_id: bytes, count: int) -> None:
        """The receipts of a request up to this number leave now."""
        self._left[request_id] = (count, self._clock.monotonic())

    def keep(self, request_id: bytes, *, up_to: int) -> None:
        """A gateway has them on its disk, up to this number."""
        if self.count(request_id) <= up_to:
            self._left.pop(request_id, None)

    def give_up(self) -> bool:
        """Forget what has waited too long, though the link is up; whether there was any."""
        now = self._clock.monotonic()
        late = [name for name, (_, since) in self._left.items() if now - since >= SAY_AGAIN_S]
        for request_id in late:
            del self._left[request_id]
        return bool(late)

    def clear(self) -> None:
        """The link is gone: nothing of it counts as on its way."""
        self._left.clear()
