"""One look at a log after another: what is new is read, held against what was seen, and only then remembered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import Connection

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
        self.shown = ""
        """The note that was looked at last."""

    async def kept(self) -> Signed | None:
        """The newest checkpoint that was verified."""
        return await self._database.read(store.newest_note)

    async def look(self) -> Look:
        """Take the newest checkpoint and read up to it. Raises Wrong, UnreadableError, STORAGE_UNAVAILABLE."""
        self.shown = await self._source.checkpoint()
        shown = read_checkpoint(self.shown, self.key)
        witnesses = self._witnessed(shown)
        kept = await self.kept()
        check_follows(kept, shown)
        reading, target = await self._database.read(store.load_reading)
        if target:  # cut off on its way to an earlier one
            await self._read_to(reading, read_checkpoint(target, self.key), kept)
            kept = await self.kept()
            check_follows(kept, shown)
            reading, _ = await self._database.read(store.load_reading)
        if kept is None or shown.size > kept.size:
            await self._read_to(reading, shown, kept)
        elif shown.note != kept.note:
            await self._database.write(lambda c: store.save_note(c, shown, seen=self._clock.now()))
        time = (await self._database.read(store.load_reading))[0].time
        self._check_age(time, witnesses)
        subjects, missing = await self._database.read(store.counts)
        return Look(shown, 0 if kept is None else kept.size, time, subjects, missing, witnesses)

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

    async def _read_to(self, reading: Reading, signed: Signed, kept: Signed | None) -> None:
        """Read the entries up to a checkpoint, in steps that survive being cut off."""
        verified = 0 if kept is None else kept.size
        try:
            tiles = list(bundles(reading.frontier.size, signed.size))
            for start in range(0, len(tiles), BUNDLES_A_STEP):
                entries: list[bytes] = []
                for tile in tiles[start : start + BUNDLES_A_STEP]:
                    found = split_bundle(await self._source.read(tile.path), tile)
                    entries += found[max(0, reading.frontier.size - tile.start) :]
                    self._progress(min(tile.start + TILE_WIDTH, signed.size), signed.size)
                last = start + BUNDLES_A_STEP >= len(tiles)
                reading = await self._step(reading, entries, signed, verified=verified, last=last)
            if not tiles:
                await self._step(reading, [], signed, verified=verified, last=True)
        except Wrong:
            if not verified:
                # Nothing of it was ever verified: perhaps it was read wrongly, and nothing is lost by reading it again.
                await self._database.write(lambda c: store.forget(c, key=self.key))
            raise

    async def _step(
        self, reading: Reading, entries: list[bytes], signed: Signed, *, verified: int, last: bool
    ) -> Reading:
        decoded = [decode(index, entry) for index, entry in enumerate(entries, reading.frontier.size)]
        subjects = {link.subject for _, leaf in decoded for link in leaf.subjects}
        series = {(leaf.signer, leaf.number.series) for _, leaf in decoded if leaf.number is not None}
        known = await self._database.read(lambda c: store.load_known(c, subjects, series))
        after = Reading(reading.frontier, reading.time, known)
        after.take(decoded)
        if last:
            check_root(after, signed, kept=verified)
        target = "" if last else signed.note
        now = self._clock.now()

        def save(connection: Connection) -> None:
            store.save_reading(connection, after, key=self.key, target=target)
            if last:
                store.save_note(connection, signed, seen=now)

        await self._database.write(save)
        return after
