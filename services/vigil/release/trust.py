"""Whom to believe, as it changes at run time: the trust bundle's verifier, and who is revoked."""

from collections.abc import Callable

import grpc

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Entry, RevocationState
from vigil.errors import Reason
from vigil.feed import Change, Replica
from vigil.rpc.tls import TlsWatcher


class CurrentVerifier:
    """Answers the verifier for the newest trust bundle; a new one begins when the file changes."""

    def __init__(self, *, watcher: TlsWatcher) -> None:
        self._watcher = watcher
        self._verifier = ChainVerifier(watcher.current().bundle)

    def __call__(self) -> ChainVerifier:
        bundle = self._watcher.current().bundle
        if bundle is not self._verifier.bundle:
            self._verifier = ChainVerifier(bundle)
        return self._verifier


class Revoked:
    """Follows the chain of revocations: callers are turned away, and statements of revoked signers.

    While revocation cannot be reached, what was last known stays in force. What is published here takes effect only
    through commands, and those are judged by fresh revocations where they are decided.
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

    def refusal(self, who: Identity) -> Reason | None:
        """Why this caller or signer counts no more; None when nothing is known against it."""
        if self._replica.synced.is_set():
            self._known = self._arriving
        return self._known.identity_refusal(who, at=self._clock.now())

    def _reset(self) -> None:
        self._arriving = RevocationState()

    def _changed(self, change: Change) -> None:
        entry = revocation_pb2.RevocationEntry.FromString(change.value)
        self._arriving.append(Entry(entry.epoch, tuple(entry.statements), entry.chain))
