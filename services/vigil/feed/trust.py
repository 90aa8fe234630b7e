"""Whom to believe, as it changes at run time: the trust bundle's verifier, and who is revoked."""

from collections.abc import Callable

import grpc
import structlog

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Entry, RevocationState
from vigil.errors import Reason
from vigil.feed.change import Change
from vigil.feed.replica import Replica
from vigil.rpc.tls import TlsWatcher


class CurrentVerifier:
    """Answers the verifier for the newest trust bundle; a new one begins when the file changes.

    ``at_once``: the file is looked at for each call, where somebody may just have made a manufacturer known.
    """

    def __init__(self, *, watcher: TlsWatcher, at_once: bool = False) -> None:
        self._watcher = watcher
        self._at_once = at_once
        self._verifier = ChainVerifier(watcher.current().bundle)

    def __call__(self) -> ChainVerifier:
        bundle = self._watcher.current(now=self._at_once).bundle
        if bundle is not self._verifier.bundle:
            self._verifier = ChainVerifier(bundle)
        return self._verifier


class RevokedCallers:
    """Follows the chain of revocations, to turn revoked callers away, and statements of revoked signers.

    Before the first whole snapshot, and while revocation cannot be reached, what was last known stays in force:
    a log that stopped taking statements whenever another service is away would lose what it is there to keep, and
    what is published or registered takes effect only where it is used, by fresh revocations. A chain that does not
    go on from what is known un-revokes nobody: it counts only when the root and two people opened a later era in it.
    """

    def __init__(
        self,
        *,
        channel_factory: Callable[[], grpc.aio.Channel],
        verifier: Callable[[], ChainVerifier],
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._known = RevocationState()
        self._arriving = self._known
        self._follows, self._told = True, False
        self._replica = Replica(
            channel_factory=channel_factory,
            name="revocation",
            clock=clock,
            entropy=entropy,
            on_change=self.changed,
            on_reset=self.reset,
            kinds=("entry",),
        )
        self._log = structlog.get_logger("vigil.feed.trust")

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._replica.run()

    def refusal(self, who: Identity) -> Reason | None:
        """Why this caller or signer counts no more; None when nothing is known against it."""
        if self._replica.synced.is_set():
            self.arrived()
        return self._known.identity_refusal(who, at=self._clock.now())

    def reset(self) -> None:
        """Begin again beside what is known: a snapshot follows."""
        self._arriving, self._follows, self._told = RevocationState(), self._known.epoch == 0, False

    def changed(self, change: Change) -> None:
        """Take one step. Raises what is wrong with it; the replica then begins anew, and what is known stays."""
        entry = revocation_pb2.RevocationEntry.FromString(change.value)
        step = Entry(entry.epoch, tuple(entry.statements), entry.chain)
        self._arriving.append_verified(step, verifier=self._verifier(), at=self._clock.now())
        if (self._arriving.epoch, self._arriving.chain) == (self._known.epoch, self._known.chain):
            self._follows = True

    def arrived(self) -> None:
        """A snapshot is whole: it is what is known from now on, if it goes on from what was known before."""
        if self._arriving is self._known:
            return
        if self._follows or self._arriving.era > self._known.era:
            self._known = self._arriving
        elif not self._told:
            self._told = True
            self._log.error("revocations_rolled_back", epoch=self._arriving.epoch, known=self._known.epoch)
