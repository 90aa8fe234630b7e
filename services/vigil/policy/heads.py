"""Follows the chain of revocations: each second a challenge of our own, answered by a signed head.

Freshness runs from *sending* the newest answered challenge, on a clock that counts suspended time. Entries that are
missed come with the answer, in pages; they count when a head confirms the chain they lead to.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import Entry, Lease, PathStep, answers
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused, refused
from vigil.policy.revoked import Revocations
from vigil.rpc import status

INTERVAL_S: Final = 1.0
"""Between two challenges: three of them fit into the bound of 3 s."""
CALL_S: Final = 1.0
"""How long one answer may take."""
PAGE: Final = 32
"""Entries asked for at once: a set of 1,024 ids takes 72 KiB, and a message holds 4 MiB."""
MAX_PENDING: Final = 100_000
CHALLENGE_BYTES: Final = 16


class HeadFollower:
    """The client of the revocation service; ``run`` is its task. ``on_head`` hears each verified head's time (ms)."""

    def __init__(
        self,
        *,
        stub: "revocation_pb2_grpc.HeadServiceAsyncStub",
        verifier: Callable[[], ChainVerifier],
        clock: Clock,
        entropy: Entropy,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_head: Callable[[int], object] = lambda _issued: None,
    ) -> None:
        self._stub = stub
        self._verifier = verifier
        self._clock = clock
        self._entropy = entropy
        self._sleep = sleep
        self._on_head = on_head
        self._lease = Lease()
        self._pending: dict[int, Entry] = {}
        self._anew = False
        self._trouble = ""
        self.revocations = Revocations()
        self._log = structlog.get_logger("vigil.policy.heads")

    def age(self) -> float:
        """Seconds since the sending of the newest answered challenge; infinite when none was."""
        return self._lease.age(monotonic=self._clock.monotonic())

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            begun = self._clock.monotonic()
            again = False
            try:
                again = await self.ask()
                self._note("")
            except Refused as refusal:
                self._pending.clear()
                self._note(str(refusal))
            except Exception:  # noqa: BLE001 - the task's outer edge: freshness runs out meanwhile, as it must
                self._pending.clear()
                self._log.exception("heads_failed")
            if not again:
                await self._sleep(max(0.05, INTERVAL_S - (self._clock.monotonic() - begun)))

    async def ask(self) -> bool:
        """One challenge and its answer; True when more entries wait to be fetched at once. Raises Refused."""
        challenge = self._entropy(CHALLENGE_BYTES)
        begin = 0 if self._anew else self.revocations.state.epoch
        after = max(self._pending, default=begin)
        # Freshness runs from here, before the first byte leaves.
        self._lease.sent(challenge, monotonic=self._clock.monotonic())
        request = revocation_pb2.AnswerChallengesRequest(
            challenge=challenge, after_epoch=after, max_entries=PAGE
        )
        response = await status.translated(self._stub.AnswerChallenges(request, timeout=CALL_S))
        head = read(response.head.head, Head)
        steps = [PathStep(step.index, step.size, tuple(step.path)) for step in response.head.paths]
        if not answers(head, challenge, steps):
            raise refused(Reason.SIGNATURE_INVALID, "the head does not answer this challenge")
        for entry in response.entries:
            self._pending[entry.epoch] = Entry(entry.epoch, tuple(entry.statements), entry.chain)
        if len(self._pending) > MAX_PENDING:
            raise refused(Reason.REQUEST_TOO_LARGE, "more entries than wait for one head")
        newest = max(self._pending, default=begin)
        if after < newest < head.body.epoch:
            return True
        self._take(head)
        self._lease.answered(challenge)
        return False

    def _take(self, head: Statement[Head]) -> None:
        entries, verifier, now = tuple(self._pending.values()), self._verifier(), self._clock.now()
        try:
            if self._anew and head.body.era > self.revocations.state.era:
                self.revocations = self.revocations.renewed(entries, head, verifier=verifier, at=now)
            else:
                self.revocations.take(entries, head, verifier=verifier, at=now)
        except Refused:
            # Another chain counts only when the root and two people opened a later era in it: it is fetched from
            # its beginning beside the one in force, which stays in force, and nothing is fresh meanwhile.
            self._anew = not self._anew and head.body.era > self.revocations.state.era
            raise
        finally:
            self._pending.clear()
        self._anew = False
        self._on_head(head.body.issued)

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.warning("heads_wait", reason=trouble) if trouble else self._log.info("heads_follow")
