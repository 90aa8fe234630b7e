"""One look at a log after another: what is new is read, held against what was seen, and only then remembered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from vigil.core.clock import Clock
from vigil.core.freshness import MAX_AHEAD_MS, check_fresh
from vigil.core.notes import Cosignature
from vigil.core.tiles import TILE_WIDTH
from vigil.core.witness_policy import WitnessPolicy, check_witnessed
from vigil.errors import Reason, Refused, refused
from vigil.monitor import store
from vigil.monitor.domain import (
    Reading,
    Signed,
    Wrong,
    bundles,
    check_follows,
    check_root,
    decode,
    read_checkpoint,
    split_bundle,
)
from vigil.storage import Database

BUNDLES_A_STEP: Final = 64
"""16,384 entries: so much is read again when a run is cut off."""


class Source(Protocol):
    """Where the log is read from."""

    async def checkpoint(self) -> str:
        """See ``TileClient.checkpoint``."""
        ...

    async def read(self, path: str) -> bytes:
        """See ``TileClient.read``."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found; ``time`` (ms) is the newest entry's, ``missing`` counts signers' numbers not in the log."""

    signed: Signed
    before: int
    time: int
    subjects: int
    missing: int
    witnesses: Mapping[str, Cosignature]


class Monitor:
    """Follows one log. Raises STATE_CONFLICT when its memory is of a log with another key."""

    def __init__(
        self,
        *,
        database: Database,
        source: Source,
        key: str,
        policy: WitnessPolicy | None,
        max_age: int | None,
        clock: Clock,
        progress: Callable[[int, int], None] = lambda _done, _size: None,
    ) -> None:
        """``max_age`` in ms; ``progress`` hears how many entries of how many were read."""
        self._database = database
        self._source = source
        self.key = key
        self._policy = policy
        self._max_age = max_age
        self._clock = clock
        self._progress = progress
        pinned = database.read_now(store.load_key)
        if pinned not in (None, key):
            raise refused(
                Reason.STATE_CONFLICT,
                "This folder remembers a log with another key.",
                lifted_by="another folder, or the key that it was begun with",
                who="you",
            )
        self.held = ""
        """The note of the log that the one looked at last was held against; empty for the first."""
        self.shown = ""
        """The note that was looked at last."""

    async def kept(self) -> Signed | None:
        """The newest checkpoint that was verified."""
        return await self._database.read(store.newest_note)

    async def look(self) -> Look:
        """Take the newest checkpoint and read up to it. Raises Wrong, UnreadableError, STORAGE_UNAVAILABLE."""
        kept = await self.kept()
        self.held = "" if kept is None else kept.note
        self.shown = await self._source.checkpoint()
        shown = read_checkpoint(self.shown, self.key)
        witnesses = self._witnessed(shown)
        check_follows(kept, shown)
        for signed in await self._due(kept, shown):
            self.shown = signed.note
            await self._reach(signed, within=shown.size)
            self.held = signed.note
        self.shown = shown.note
        if self.shown != self.held:  # the same tree, with other witnesses
            await self._database.write(lambda c: store.save_note(c, shown, seen=self._clock.now()))
        time = (await self._database.read(store.load_proved)).time
        self._check_age(time, witnesses)
        subjects, missing = await self._database.read(store.counts)
        return Look(shown, 0 if kept is None else kept.size, time, subjects, missing, witnesses)

    async def _due(self, kept: Signed | None, shown: Signed) -> list[Signed]:
        """The checkpoints to read up to, one after another. Raises Wrong (shrunk, forked)."""
        proved = await self._database.read(store.load_proved)
        unproved = await self._database.read(store.load_unproved)
        due: list[Signed] = []
        if (
            kept is not None and proved.frontier.size < kept.size
        ):  # it was kept by a version before migration 0002
            due.append(kept)
        elif unproved is not None:  # cut off on its way to an earlier one, which the log signed all the same
            before, self.held = self.held, unproved[1]
            due.append(read_checkpoint(self.held, self.key))
            check_follows(due[0], shown)
            self.held = before
        newest = due[0] if due else kept
        return [*due, shown] if newest is None or newest.size < shown.size else due

    def _witnessed(self, shown: Signed) -> Mapping[str, Cosignature]:
        if self._policy is None:
            return {}
        try:
            return check_witnessed(shown.note, self._policy, log_key=self.key)
        except Refused as error:
            what = "not-witnessed" if error.reason is Reason.NOT_WITNESSED else "signature"
            raise Wrong(what, error.refusals[0].sentence) from error

    def _check_age(self, time: int, witnesses: Mapping[str, Cosignature]) -> None:
        """With a policy by the witnesses' clocks; without one, by what the log says of its newest entry."""
        if self._max_age is None:
            return
        now = self._clock.now()
        if self._policy is not None:
            try:
                check_fresh(witnesses, self._policy, now=now, max_age=self._max_age)
            except Refused as error:
                raise Wrong("stale", error.refusals[0].sentence) from error
        elif not now - self._max_age <= time <= now + MAX_AHEAD_MS:
            seconds = (now - time) // 1000
            raise Wrong(
                "stale", f"The newest record is {seconds} s old: no more was recorded, or it is not shown."
            )

    async def _reach(self, signed: Signed, *, within: int) -> None:
        """Read up to a checkpoint. What rests on steps that no root proved is read once more before it is wrong."""
        for again in (False, True):
            try:
                return await self._read_to(signed, within)
            except Wrong:
                rested = await self._database.write(lambda c: store.drop_unproved(c, key=self.key))
                if again or not rested:
                    raise
        return None

    async def _read_to(self, signed: Signed, within: int) -> None:
        """Read the entries up to a checkpoint, in steps that survive being cut off and are unproved till the last."""
        proved = await self._database.read(store.load_proved)
        unproved = await self._database.read(store.load_unproved)
        reading = proved if unproved is None else unproved[0]
        tiles = bundles(reading.frontier.size, signed.size, within=within)
        last = False
        while not last:
            entries: list[bytes] = []
            for tile in islice(tiles, BUNDLES_A_STEP):
                found = split_bundle(await self._source.read(tile.path), tile)
                entries += found[max(0, reading.frontier.size - tile.start) : signed.size - tile.start]
                self._progress(min(tile.start + TILE_WIDTH, signed.size), signed.size)
            last = reading.frontier.size + len(entries) >= signed.size
            reading = await self._step(reading, entries, signed, verified=proved.frontier.size, last=last)

    async def _step(
        self, reading: Reading, entries: list[bytes], signed: Signed, *, verified: int, last: bool
    ) -> Reading:
        decoded = [decode(index, entry) for index, entry in enumerate(entries, reading.frontier.size)]
        subjects = {link.subject for _, leaf in decoded for link in leaf.subjects}
        series = {(leaf.signer, leaf.number.series) for _, leaf in decoded if leaf.number is not None}
        known = await self._database.read(lambda c: store.load_known(c, subjects, series))
        after = Reading(reading.frontier, reading.time, known)
        after.take(decoded)
        now = self._clock.now()
        if last:
            check_root(after, signed, kept=verified)
            await self._database.write(lambda c: store.save_proved(c, after, signed, key=self.key, seen=now))
        else:
            await self._database.write(
                lambda c: store.save_unproved(c, after, key=self.key, target=signed.note)
            )
        return after
