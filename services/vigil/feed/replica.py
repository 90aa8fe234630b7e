"""The reader's side: applies an owner's changes in order and knows how fresh they are."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.core.clock import Clock, Entropy
from vigil.feed.change import START, Change, Position
from vigil.rpc.deadline import raise_if_cancelled

INTERVAL_S = 1.0
"""Between two challenges."""
SILENCE_S = 15.0
"""Without any message for this long the stream is given up."""
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
MAX_OUTSTANDING = 8
"""Challenges without an answer; the owner keeps at most 16."""

_log = logging.getLogger(__name__)


class _UnusableError(Exception):
    """The owner's answer cannot follow on what is held here."""


class Replica:
    """Follows one owner's feed; ``run`` is the task that does it.

    ``on_reset`` is called before a snapshot is applied, ``on_change`` for each change, both on the event loop and
    in order. From the reset until the first beat after the snapshot the state is incomplete: ``age()`` is infinite
    and ``synced`` is clear. If ``on_change`` raises, the replica begins again with a snapshot.
    """

    def __init__(
        self,
        *,
        channel_factory: Callable[[], grpc.aio.Channel],
        name: str,
        clock: Clock,
        entropy: Entropy,
        on_change: Callable[[Change], None],
        on_reset: Callable[[], None],
        kinds: Iterable[str] = (),
        interval: float = INTERVAL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.synced = asyncio.Event()
        self.last_error = ""
        """Why the last stream ended, for a person; empty once a beat has come since."""
        self._channel_factory = channel_factory
        self._clock = clock
        self._entropy = entropy
        self._on_change = on_change
        self._on_reset = on_reset
        self._kinds = tuple(kinds)
        self._interval = interval
        self._sleep = sleep
        self._position = START
        self._snapshot: Position | None = None
        self._incomplete = True
        self._outstanding: dict[bytes, float] = {}
        self._answered: float | None = None
        self._heard = 0.0
        self._silent = False
        self._failures = 0
        self._call: Any = None

    @property
    def sequence(self) -> int:
        """The owner's newest sequence that is applied here; 0 until a whole snapshot is."""
        return self._position.sequence

    def age(self) -> float:
        """Seconds since the newest answered challenge was *sent*; infinite when the state was never complete."""
        if self._answered is None:
            return math.inf
        return self._clock.monotonic() - self._answered

    def resync(self) -> None:
        """Begin again with a snapshot, as a reader must whose own scope has changed."""
        self._forget()
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._session()
                self.last_error = "the owner ended the stream"
            except grpc.aio.AioRpcError as error:
                self.last_error = f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    # SNAPSHOT_REQUIRED. What is held stays, ageing, until the snapshot's first page.
                    self._position = START
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                self.last_error = f"the channel cannot be used: {error}"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # The call alone was cancelled: by silence, resync() or a channel that was closed.
                self.last_error = "the owner fell silent" if self._silent else "the stream was closed here"
            except _UnusableError as error:
                self.last_error = str(error)
                _log.warning("the replica of %s begins again: %s", self.name, error, exc_info=error.__cause__)
                self._forget()
            except Exception as error:  # noqa: BLE001 - the task's outer edge: the state ages until it works again
                _log.exception("the replica of %s failed", self.name)
                self.last_error = repr(error)
            raise_if_cancelled()
            _log.info("the replica of %s connects again: %s", self.name, self.last_error)
            await self._sleep(self._backoff())

    async def _session(self) -> None:
        self._outstanding.clear()
        self._snapshot = None
        self._incomplete = self._position == START
        self._silent = False
        self._heard = self._clock.monotonic()
        stub = feed_pb2_grpc.FeedServiceStub(self._channel_factory())
        call = self._call = stub.Watch()
        asking = asyncio.create_task(self._ask(call))
        try:
            async for response in call:
                self._heard = self._clock.monotonic()
                self._apply(response)
        finally:
            self._call = None
            asking.cancel()
            call.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, call: Any) -> None:
        """Say where to begin, then send a challenge in each interval; gives the call up when nothing comes."""
        start = feed_pb2.WatchStart(
            after_sequence=self._position.sequence, mark=self._position.mark, kinds=self._kinds
        )
        try:
            await call.write(feed_pb2.WatchRequest(start=start))
            while True:
                if self._clock.monotonic() - self._heard > SILENCE_S:
                    self._silent = True
                    call.cancel()
                    return
                if len(self._outstanding) < MAX_OUTSTANDING:
                    nonce = self._entropy(16)
                    # Freshness runs from here, before the first byte leaves: the state is at least this new.
                    self._outstanding[nonce] = self._clock.monotonic()
                    await call.write(feed_pb2.WatchRequest(challenge=feed_pb2.WatchChallenge(nonce=nonce)))
                await self._sleep(self._interval)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over; the reading side has its status.
            return

    def _apply(self, response: feed_pb2.WatchResponse) -> None:
        match response.WhichOneof("message"):
            case "snapshot":
                self._apply_snapshot(response.snapshot)
            case "changes":
                self._apply_changes(response.changes)
            case "beat":
                self._apply_beat(response.beat)
            case _:
                raise _UnusableError("the owner sent an empty message")

    def _apply_snapshot(self, page: feed_pb2.SnapshotPage) -> None:
        position = Position(page.sequence, page.mark)
        if self._snapshot is None:
            if not self._incomplete:
                raise _UnusableError("the owner sent a snapshot that was not asked for")
            self._snapshot = position
            self.synced.clear()
            self._answered = None
            self._deliver(self._on_reset)
        elif position != self._snapshot:
            raise _UnusableError("the owner sent pages of two snapshots")
        for change in page.changes:
            self._deliver(self._on_change, _change(change))
        if page.last:
            self._snapshot = None
            self._incomplete = False
            self._position = position

    def _apply_changes(self, batch: feed_pb2.ChangeBatch) -> None:
        self._require_whole()
        if batch.after_sequence != self._position.sequence:
            raise _UnusableError(f"a gap: {batch.after_sequence} follows {self._position.sequence}")
        last = batch.after_sequence
        for change in batch.changes:
            if not last < change.sequence <= batch.sequence:
                raise _UnusableError(f"out of order: {change.sequence} follows {last}")
            last = change.sequence
            self._deliver(self._on_change, _change(change))
        self._position = Position(batch.sequence, batch.mark)

    def _apply_beat(self, beat: feed_pb2.Beat) -> None:
        self._require_whole()
        if beat.sequence < self._position.sequence:
            raise _UnusableError(f"a beat at {beat.sequence} follows {self._position.sequence}")
        if beat.nonce not in self._outstanding:
            raise _UnusableError("a beat answers no challenge of this stream")
        sent = self._outstanding[beat.nonce]
        while beat.nonce in self._outstanding:
            # Those before it are in the order of their sending; what it answers, it answers for them too.
            del self._outstanding[next(iter(self._outstanding))]
        self._position = Position(beat.sequence, beat.mark)
        self._answered = sent
        self._failures = 0
        self.last_error = ""
        self.synced.set()

    def _require_whole(self) -> None:
        if self._incomplete:
            raise _UnusableError("changes came before the snapshot was whole")

    def _forget(self) -> None:
        """Hold what is here for incomplete."""
        self._position = START
        self._snapshot = None
        self._incomplete = True
        self._answered = None
        self.synced.clear()

    def _deliver(self, callback: Callable[..., None], *arguments: Change) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            # Whatever the owner of the callback did not expect: its state is in doubt, so it begins again.
            raise _UnusableError(f"a change could not be applied: {error!r}") from error

    def _backoff(self) -> float:
        """Full jitter over the upper half, so that a fleet does not return in step."""
        longest = min(MAX_BACKOFF_S, math.ldexp(FIRST_BACKOFF_S, min(self._failures, 10)))
        self._failures += 1
        return longest * (0.5 + int.from_bytes(self._entropy(4)) / 2**33)


def _change(change: feed_pb2.Change) -> Change:
    return Change(
        sequence=change.sequence,
        kind=change.kind,
        key=change.key,
        value=change.value,
        deleted=change.deleted,
        site_id=change.site_id,
    )
