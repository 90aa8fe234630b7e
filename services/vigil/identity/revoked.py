"""Who is revoked, followed from the revocation service's feed, to turn revoked callers away."""

from collections.abc import Callable

import grpc

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Entry, RevocationState
from vigil.errors import Reason
from vigil.feed import Change, Replica


class RevokedCallers:
    """Follows the chain of revocations.

    While revocation cannot be reached, what was last known stays in force: the registry is asked about by people who
    prepare answers to an incident, and what they make here (people, gateways, devices) is revoked where it is used.
    """

    def __init__(
        self, *, channel_factory: Callable[[], grpc.aio.Channel], clock: Clock, entropy: Entropy
    ) -> None:
        self._clock = clock
        self._known = RevocationState()
        self._arriving = self._known
        self._replica = Replica(
            channel_factory=channel_factory,
            name="revocation",
            clock=clock,
            entropy=entropy,
            on_change=self._changed,
            on_reset=self._reset,
            kinds=("entry",),
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._replica.run()

    def refusal(self, caller: Identity) -> Reason | None:
        """Why this caller may not act; None when nothing is known against it."""
        if self._replica.synced.is_set():
            self._known = self._arriving
        return self._known.identity_refusal(caller, at=self._clock.now())

    def _reset(self) -> None:
        self._arriving = RevocationState()

    def _changed(self, change: Change) -> None:
        entry = revocation_pb2.RevocationEntry.FromString(change.value)
        self._arriving.append(Entry(entry.epoch, tuple(entry.statements), entry.chain))
