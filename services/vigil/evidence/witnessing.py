"""Sends checkpoints to witnesses (C2SP tlog-witness) and keeps what they say of them.

Rounds: one checkpoint goes to every witness that is free, at the same time, so that enough of them hold the *same*
one. The next round begins when enough do, or all have answered, or a while has passed; who is slow stays with the one
it has, who fails is left alone for longer and longer. Nothing here is waited for by an append or a reader.
"""

import asyncio
import base64
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from vigil.core.clock import Clock
from vigil.core.notes import Cosignature, find_cosignature, parse_note, parse_signatures
from vigil.core.witness_policy import KnownWitness
from vigil.errors import Refused, VigilError
from vigil.evidence.domain import Checkpoint
from vigil.evidence.guard import HistoryGuard, Holds
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.witness_book import WitnessBook
from vigil.evidence.witness_client import Answer, WitnessUnreachableError

TICK_SECONDS: Final = 0.25
ROUND_SECONDS: Final = 5.0
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 300.0
ATTEMPTS: Final = 3
"""Of one checkpoint at one witness: the second continues from the size that it knows."""

SIZE_TYPE: Final = "text/x.tlog.size"
_SIZE_BODY: Final = re.compile(r"(0|[1-9][0-9]{0,18})\n", re.ASCII)
_log = logging.getLogger(__name__)

Post = Callable[[str, bytes], Awaitable[Answer]]
Prove = Callable[[int, int], Awaitable[tuple[bytes, ...]]]
"""The consistency proof from one size to another's checkpoint. Raises LookupError where the log is damaged."""
HOLDS: Final = {"ahead": Holds.MORE, "contradiction": Holds.OTHER}
"""What a trouble says of what the witness holds; others say nothing."""


class WitnessTrouble(VigilError):  # noqa: N818 - an outcome that is counted
    """A witness did not take a checkpoint.

    ``what``: unreachable, refused, false, contradiction, ahead, newer, unkept; damaged: this log has no proof for it.
    """

    def __init__(self, what: str, sentence: str) -> None:
        super().__init__(sentence)
        self.what = what


def request_body(old_size: int, path: tuple[bytes, ...], note: str) -> bytes:
    """A request of add-checkpoint."""
    lines = [f"old {old_size}", *(base64.b64encode(one).decode() for one in path), "", note]
    return "\n".join(lines).encode()


class Follower:
    """One witness as the log sees it. ``known``: the size that it holds, as far as we know."""

    def __init__(
        self, name: str, witness: KnownWitness, *, known: int, post: Post, prove: Prove, metrics: LogMetrics
    ) -> None:
        self.name = name
        self.key = witness.key
        self._url = f"{witness.url.rstrip('/')}/add-checkpoint"
        self._post = post
        self._prove = prove
        self._metrics = metrics
        self.known = known
        self._backoff = FIRST_BACKOFF_S
        self._free_at = float("-inf")
        self._damage = ""
        self.held = -1  # asked about the newest at every start: it may hold more than this log
        metrics.witness(name, known)

    def free(self, checkpoint: Checkpoint, *, at: float) -> bool:
        """Whether it lacks this checkpoint and may be asked again."""
        return checkpoint.size > self.held and at >= self._free_at

    def took(self, size: int) -> None:
        """It holds this size."""
        self.known = self.held = size
        self._backoff = FIRST_BACKOFF_S
        self._damage = ""
        self._metrics.witness(self.name, size)

    def failed(self, trouble: WitnessTrouble, *, at: float) -> None:
        """Leave it alone for a while. Damage of our own is said once, what a witness says as often as it does."""
        damage = str(trouble) if trouble.what == "damaged" else ""
        if not damage or damage != self._damage:
            _log.warning("witness %s: %s: %s", self.name, trouble.what, trouble)
        self._damage = damage or self._damage
        self._metrics.witness_trouble(self.name, trouble.what)
        self._free_at = at + self._backoff
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_S)

    async def ask(self, checkpoint: Checkpoint, *, log_size: int) -> Cosignature:
        """Have a checkpoint cosigned; answers what was verified. Raises WitnessTrouble."""
        text = parse_note(checkpoint.note).text
        for _ in range(ATTEMPTS):
            old = min(self.known, checkpoint.size)
            try:
                path = await self._prove(old, checkpoint.size)
            except LookupError as error:
                raise WitnessTrouble("damaged", f"it cannot be given a proof from {old}: {error}") from error
            try:
                answer = await self._post(self._url, request_body(old, path, checkpoint.note))
            except WitnessUnreachableError as error:
                raise WitnessTrouble("unreachable", str(error)) from error
            if answer.status == 200:
                return self._verified(text, answer.body)
            if answer.status != 409:
                raise self._refusal(answer, old)
            self._continue(answer, old, checkpoint, log_size)
        raise WitnessTrouble("refused", "it names another size each time it is asked")

    def _continue(self, answer: Answer, old: int, checkpoint: Checkpoint, log_size: int) -> None:
        """Go on from the size that the witness knows. Raises WitnessTrouble when that cannot be."""
        size = _SIZE_BODY.fullmatch(answer.body) if answer.content_type == SIZE_TYPE else None
        told = int(size[1]) if size else None
        # Another root at the size that both know is a conflict too; some tell the size with it, some do not.
        if old == checkpoint.size and told in (None, old):
            raise WitnessTrouble(
                "contradiction",
                f"it holds another root of this log at the size of {old}: somebody forked the log",
            )
        if told is None:
            raise WitnessTrouble("refused", "it answers a conflict without a size")
        if told > log_size:
            raise WitnessTrouble(
                "ahead",
                f"it holds this log at {told} records, there are {log_size} here: was an older copy restored?",
            )
        self.known = told
        if told > checkpoint.size:
            raise WitnessTrouble("newer", f"it holds {told} records already, more than this checkpoint has")

    @staticmethod
    def _refusal(answer: Answer, old: int) -> WitnessTrouble:
        if answer.status == 422:
            return WitnessTrouble(
                "contradiction", f"this log does not follow from the one of {old} records that it holds"
            )
        return WitnessTrouble("refused", f"it answers {answer.status}")

    def _verified(self, text: str, body: str) -> Cosignature:
        """A witness is believed for its signature alone (tlog-witness: lines of unknown keys are ignored)."""
        try:
            found = find_cosignature(text, parse_signatures(body), self.key)
        except Refused as error:
            raise WitnessTrouble("false", error.refusals[0].sentence) from error
        if found is None:
            raise WitnessTrouble("false", "its answer carries no cosignature of the key that is known")
        return found


class Witnessing:
    """Sends every checkpoint worth it to every witness with a URL, in rounds."""

    def __init__(
        self,
        *,
        book: WitnessBook,
        newest: Callable[[], Awaitable[Checkpoint]],
        prove: Prove,
        post: Post,
        clock: Clock,
        metrics: LogMetrics,
        guard: HistoryGuard,
    ) -> None:
        self._book = book
        self._guard = guard
        self._newest = newest
        self._clock = clock
        self._followers = [
            Follower(name, one, known=book.newest_of(one.key), post=post, prove=prove, metrics=metrics)
            for name, one in book.policy.witnesses.items()
            if one.url
        ]
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                try:
                    await self._round()
                except Refused as error:
                    _log.warning("no checkpoint for the witnesses: %s", error)
                await asyncio.sleep(TICK_SECONDS)
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _round(self) -> None:
        """Ask all who are free about the newest checkpoint, and wait for enough of them, but not for long."""
        checkpoint = await self._newest()
        if not checkpoint.size:
            return
        self._reap()
        now = self._clock.monotonic()
        mine = set()
        for one in self._followers:
            if one.name not in self._asking and one.free(checkpoint, at=now):
                task = asyncio.create_task(self._ask(one, checkpoint), name=f"witness-{one.name}")
                self._asking[one.name] = task
                mine.add(task)
        until = now + ROUND_SECONDS
        while mine and (left := until - self._clock.monotonic()) > 0:
            _, mine = await asyncio.wait(mine, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if (await self._book.held(checkpoint)).witnessed:
                return

    def _reap(self) -> None:
        """Free those whose witness has answered; what nobody expected ends the process, which is started anew."""
        for name, task in list(self._asking.items()):
            if task.done():
                del self._asking[name]
                task.result()

    async def _ask(self, one: Follower, checkpoint: Checkpoint) -> None:
        log_size = (await self._newest()).size
        try:
            cosignature = await one.ask(checkpoint, log_size=log_size)
            await self._book.keep(checkpoint, one.key, cosignature)
        except WitnessTrouble as trouble:
            words = f"{trouble.what}: {trouble}"
            self._guard.heard(one.name, HOLDS.get(trouble.what, Holds.UNSAID), trouble=words)
            one.failed(trouble, at=self._clock.monotonic())
        except Refused as error:
            self._guard.heard(one.name, Holds.UNSAID)
            one.failed(WitnessTrouble("unkept", error.refusals[0].sentence), at=self._clock.monotonic())
        else:
            self._guard.heard(one.name, Holds.SAME, size=checkpoint.size)
            one.took(checkpoint.size)
