"""Signed heads: who may sign them, with what time, and how they answer challenges."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Connection

from vigil.core.certificates import ChainVerifier, Identity, Kind, Pair
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import PathStep
from vigil.core.signing_clock import SigningClock
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import Scribe
from vigil.core.statements.opened import OpenedSigner
from vigil.errors import Reason, Refused, refused
from vigil.revocation import store
from vigil.revocation.chain import Chain
from vigil.revocation.domain import CHALLENGE_BYTES, root_and_paths
from vigil.storage import Database

LEASE_S: Final = 4.0
"""A second process takes over when the holder has not renewed for this time (ARCHITECTURE, Revocation)."""
RENEW_S: Final = 1.0
HELD_S: Final = 3.0
"""A holder that could not renew stops signing a second before another may begin."""
GATHER_S: Final = 0.02
"""Challenges that come within this time share a head, unless they come alone."""


class LeaseLostError(Exception):
    """Another process signs heads now: this one ends, and begins again as the one that waits."""


class HeadLease:
    """The row that says which process signs; with it goes the newest signed time that is durable.

    Its end is nobody's wall clock: whoever waits takes over once the row has not changed for 4 s of its own monotonic
    time. So a clock that is stepped takes no lease from another, and holds none up.
    """

    def __init__(self, *, database: Database, clock: Clock, holder: str) -> None:
        self._database = database
        self._clock = clock
        self._holder = holder
        self._renewed = float("-inf")
        self._seen: tuple[store.Holding, float] | None = None
        self.turn = asyncio.Lock()
        """Held while signed time is made durable, and by whoever resets it."""
        self._log = structlog.get_logger("vigil.revocation.lease")

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        told = False
        while not await self._take():
            if not told:
                self._log.info("standing_by", holder=self._holder)
                told = True
            await asyncio.sleep(RENEW_S / 2)

    def held(self) -> bool:
        """Whether heads may be signed here."""
        return self._clock.monotonic() - self._renewed < HELD_S

    async def renew(self, head_clock: SigningClock) -> None:
        """Keep the lease and make the time durable that a head has now. Raises LeaseLostError, STORAGE_UNAVAILABLE."""
        async with self.turn:
            await self._renew(head_clock)

    async def _renew(self, head_clock: SigningClock) -> None:
        moment = self._clock.monotonic()
        try:
            time = head_clock.time(now=self._clock.now(), monotonic=moment)
        except Refused:
            # A clock that leapt is not made durable: heads stay withheld.
            time = 0
        if not await self._take(time):
            raise LeaseLostError(self._holder)
        if time:
            head_clock.stored(time, monotonic=moment)

    async def _take(self, time: int = 0) -> bool:
        moment = self._clock.monotonic()
        over = self._seen[0] if self._seen is not None and moment - self._seen[1] > LEASE_S else None

        def run(connection: Connection) -> store.Holding:
            holding = store.take_lease(connection, holder=self._holder, over=over)
            if holding[0] == self._holder and time:
                store.store_head_time(connection, time)
            return holding

        holding = await self._database.write(run, vital=True)
        if self._seen is None or self._seen[0] != holding:
            # After the write: whoever renewed did so before we saw it.
            self._seen = (holding, self._clock.monotonic())
        if holding[0] != self._holder:
            return False
        # From before the write began: others count the row's end from later.
        self._renewed = moment
        return True


@dataclass(frozen=True, slots=True)
class HeadKey:
    """One signer of heads."""

    identity: Identity
    scribe: Scribe


def head_key(pair: Pair, *, verifier: ChainVerifier, clock: Clock, entropy: Entropy) -> HeadKey:
    """Make a signer of heads. Raises CERTIFICATE_INVALID when the certificate was made for something else."""
    identity = verifier.remember(pair.chain_der)
    if identity.kind is not Kind.SIGNER or not identity.may_sign("head"):
        raise refused(Reason.CERTIFICATE_INVALID, "The signer's certificate was not made for heads.")
    return HeadKey(identity, OpenedSigner(pair, identity).scribe(clock=clock, entropy=entropy))


class HeadSigner:
    """Signs where the chain stands; with the spare key once the first one's certificate has ended."""

    def __init__(
        self,
        *,
        chain: Chain,
        keys: Sequence[HeadKey],
        lease: HeadLease,
        head_clock: SigningClock,
        clock: Clock,
    ) -> None:
        if not keys:
            raise ValueError("a signer of heads needs a key")
        self._chain = chain
        self._keys = tuple(keys)
        self._lease = lease
        self._head_clock = head_clock
        self._clock = clock
        self._log = structlog.get_logger("vigil.revocation.heads")
        self._complained = False

    def sign(self, challenges: bytes | None = None) -> bytes:
        """Sign a head. Raises SERVICE_UNAVAILABLE, STATE_CONFLICT (the clock), CERTIFICATE_EXPIRED."""
        if not self._lease.held():
            raise refused(
                Reason.SERVICE_UNAVAILABLE,
                "Another process signs heads, or the lease could not be renewed.",
                lifted_by="asking again in a few seconds",
                who="caller",
            )
        now = self._clock.now()
        try:
            time = self._head_clock.time(now=now, monotonic=self._clock.monotonic())
        except Refused as refusal:
            if not self._complained:
                self._log.error("heads_withheld", reason=str(refusal), now=now)
                self._complained = True
            raise
        state = self._chain.state
        body = Head(epoch=state.epoch, chain=state.chain, era=state.era, issued=time, challenges=challenges)
        data = self._key(now).scribe.sign(body, subject="revocation/head").data
        self._complained = False
        return data

    def _key(self, now: int) -> HeadKey:
        for key in self._keys:
            if key.identity.not_before <= now <= key.identity.operational_until:
                return key
        raise refused(
            Reason.CERTIFICATE_EXPIRED,
            "The certificates of the signers of heads have ended.",
            lifted_by="new signers under the root",
            who="the keepers of the root",
        )

    async def keep(self) -> None:
        """Renew the lease and store the signed time each second, until cancelled or the lease is lost."""
        while True:
            try:
                await self._lease.renew(self._head_clock)
            except Refused as refusal:
                self._log.error("lease_not_renewed", reason=str(refusal))
            await asyncio.sleep(RENEW_S)


@dataclass(frozen=True, slots=True)
class Answered:
    """A head, the epoch it is about, and the way from one challenge to the root inside it."""

    head: bytes
    epoch: int
    step: PathStep


class HeadAnswerer:
    """Answers challenges: alone at once, many together (as Roughtime batches do)."""

    def __init__(self, *, signer: HeadSigner, chain: Chain, clock: Clock) -> None:
        self._signer = signer
        self._chain = chain
        self._clock = clock
        self._waiting: list[tuple[bytes, asyncio.Future[Answered]]] = []
        self._flushed = float("-inf")

    async def answer(self, challenge: bytes) -> Answered:
        """Sign a head that answers a challenge. Raises FIELD_INVALID and what ``HeadSigner.sign`` raises."""
        if len(challenge) not in CHALLENGE_BYTES:
            raise refused(
                Reason.FIELD_INVALID, "A challenge has 16 to 64 bytes.", who="caller", field="challenge"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        self._waiting.append((challenge, future))
        if len(self._waiting) == 1:
            since = self._clock.monotonic() - self._flushed
            loop.call_later(0.0 if since > GATHER_S else GATHER_S, self._flush)
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._flushed = self._clock.monotonic()
        root, steps = root_and_paths([challenge for challenge, _ in waiting])
        epoch = self._chain.state.epoch
        try:
            head = self._signer.sign(root)
        except Refused as refusal:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(refusal)
            return
        for (_, future), step in zip(waiting, steps, strict=True):
            if not future.done():
                future.set_result(Answered(head, epoch, step))
